"""What is wrong between an app's configuration and its guarded tasks, before it hurts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.schedules import maybe_schedule, schedule

from once_celery._binding import Binding, check_sharing
from once_core.errors import OnceError
from once_core.finding import Finding, listed
from once_core.task_checkup import (
    of_periodic,
    of_results,
    of_retries,
    of_time_limit,
    of_unguarded,
)

if TYPE_CHECKING:
    from celery import Celery

    from once_core.guard import Guard

__all__ = ["findings"]

CONSUMER_TIMEOUT = 1800.0
"""Seconds after which RabbitMQ takes back what is not acknowledged, unless told otherwise."""

Guarded = Mapping[str, "Guard"]


def findings(app: Celery) -> Iterator[Finding]:
    """What looks wrong between an app's configuration and its guarded tasks.

    Args:
        app: The app; its task modules are imported.

    Example:
        >>> from celery import Celery
        >>> from once_celery import OnceTask
        >>> app = Celery("shop", broker="memory://", set_as_current=False)
        >>> @app.task(base=OnceTask, once={"ttl": 60, "url": "memory://"}, time_limit=600)
        ... def sync_order(order_id): ...
        >>> [finding.code for finding in findings(app) if finding.level == "warning"]
        ['ttl-below-time-limit']
    """
    guarded = _guarded(app)
    for name, guard in guarded.items():
        task = app.tasks[name]
        yield from of_time_limit(guard, _time_limit(app, task))
        yield from of_retries(guard, *_delays(task))
        yield from _results(app, guard)
    yield from _acknowledging(app, list(guarded))
    with app.connection_for_read() as connection:  # connects to nothing
        of_broker = {"amqp": _on_amqp, "redis": _on_redis}.get(connection.transport.driver_type)
    if of_broker is not None:
        yield from of_broker(app, guarded)
    yield from _schedule(app, guarded)
    others = [name for name in app.tasks if not name.startswith("celery.")]
    yield from of_unguarded((name for name in others if _is_plain(app, name)), "base=OnceTask")


def _guarded(app: Celery) -> dict[str, Guard]:
    """The guards; a task whose options are refused is told about where guards are looked at."""
    app.loader.import_default_modules()
    app.finalize()
    found = {}
    for name, task in sorted(app.tasks.items()):
        try:
            guard = Binding.of(app).guard(task) if hasattr(task, "queue_lock") else None
        except OnceError:
            continue
        if guard is not None:
            found[name] = guard
    return found


def _is_plain(app: Celery, name: str) -> bool:
    """Whether nobody has thought of a guard for it: ``once=False`` is a choice."""
    return not hasattr(app.tasks[name], "queue_lock")


# One task


def _is_late(app: Celery, task: Any) -> bool:
    return bool(_setting(app, task, "acks_late"))


def _setting(app: Celery, task: Any, name: str) -> Any:
    own = getattr(task, name, None)
    return app.conf.get(f"task_{name}") if own is None else own


def _time_limit(app: Celery, task: Any) -> float | None:
    """Seconds after which a run has ended: the hard limit, or else the soft one."""
    for name in ("time_limit", "soft_time_limit"):
        limit = getattr(task, name, None) or app.conf.get(f"task_{name}")
        if limit:
            return float(limit)
    return None


def _delays(task: Any) -> tuple[float, float]:
    """Seconds before the first and the last retry; zero where nothing says that there are any."""
    does_itself = bool(getattr(task, "autoretry_for", ()))
    own = float(task.default_retry_delay or 0)
    if task.max_retries == 0 or not (does_itself or own != Task.default_retry_delay):
        return 0.0, 0.0
    backoff = float(getattr(task, "retry_backoff", 0) or 0) if does_itself else 0.0
    if not backoff:
        return own, own
    most = float(getattr(task, "retry_backoff_max", 600))
    return min(backoff, most), most


def _results(app: Celery, guard: Guard) -> Iterator[Finding]:
    task = app.tasks[guard.task]
    try:
        check_sharing(task, app, guard.options)
    except OnceError as error:  # when it was defined, the configuration was another
        yield Finding("error", "share-without-results", guard.task, str(error))
        return
    life = app.conf.result_expires
    seconds = life.total_seconds() if isinstance(life, timedelta) else life
    if app.conf.result_backend and not _setting(app, task, "ignore_result"):
        yield from of_results(guard, seconds or None, "set result_expires to a time")


# All tasks: one line for one setting


def _acknowledging(app: Celery, names: list[str]) -> Iterator[Finding]:
    late = [name for name in names if _is_late(app, app.tasks[name])]
    early = [name for name in names if name not in late]
    if early:
        yield Finding(
            "note",
            "early-acks",
            listed(early),
            "acknowledged before they run (acks_late is off): when a worker is killed in the "
            "midst of a run, its message is gone; the unit is free within one lease, and the next "
            "call runs",
            "acks_late=True where the run must be made up for without a call",
        )
    lost = [name for name in late if not _survives(app, app.tasks[name])]
    if lost:
        yield Finding(
            "warning",
            "acked-when-worker-dies",
            listed(lost),
            "acks_late is on, and yet Celery acknowledges the message when the process that runs "
            "it is killed (SIGKILL, out of memory): the work is not made up for",
            "task_reject_on_worker_lost = True, or reject_on_worker_lost=True for a task",
        )


def _survives(app: Celery, task: Any) -> bool:
    """Whether its message outlives the process that runs it."""
    return bool(
        _setting(app, task, "reject_on_worker_lost") or _setting(app, task, "retry_on_worker_lost")
    )


def _on_redis(app: Celery, guarded: Guarded) -> Iterator[Finding]:
    limit = Binding.of(app).given_out_again
    runs = [
        name for name in guarded
        if _is_late(app, app.tasks[name]) and _is_longer(_time_limit(app, app.tasks[name]), limit)
    ]  # fmt: skip
    if runs:
        yield Finding(
            "note",
            "visibility-timeout",
            listed(runs),
            f"acks_late on Redis: a run of more than visibility_timeout={limit:.0f} s is given "
            "out a second time; that delivery waits for the first, and ends without a run",
            "broker_transport_options = {'visibility_timeout': <the longest run in seconds>}, or "
            "give the task a time_limit",
        )
    waits = {name: _longest_wait(app.tasks[name], guard) for name, guard in guarded.items()}
    long = [name for name, seconds in waits.items() if seconds > limit]
    if long:
        most = max(waits.values())
        yield Finding(
            "note",
            "wait-beyond-visibility-timeout",
            listed(long),
            f"a message may wait for its ETA for {most:g} s in the hands of a worker, and each "
            f"visibility_timeout={limit:.0f} s Redis gives it out again; the copies end without a "
            "run, but fill the workers until then",
            f"broker_transport_options = {{'visibility_timeout': {most * 2:g}}}",
        )


def _on_amqp(app: Celery, guarded: Guarded) -> Iterator[Finding]:
    found = [
        name for name, guard in guarded.items()
        if _longest_wait(app.tasks[name], guard) > CONSUMER_TIMEOUT
        or (_is_late(app, app.tasks[name])
            and _is_longer(_time_limit(app, app.tasks[name]), CONSUMER_TIMEOUT))
    ]  # fmt: skip
    if found:
        yield Finding(
            "note",
            "consumer-timeout",
            listed(found),
            "a message may be held for more than 30 minutes before it is acknowledged: RabbitMQ "
            "then closes the channel (consumer_timeout), and all that the worker holds is given "
            "out again; what runs is not run twice, but copies of it come and wait",
            "consumer_timeout = 7200000 in rabbitmq.conf (ms), or a time_limit below 30 minutes",
        )


def _is_longer(limit: float | None, than: float) -> bool:
    return limit is None or limit > than


def _longest_wait(task: Any, guard: Guard) -> float:
    """Seconds that one message may wait for its time in a worker's hands, as far as is known."""
    return max(_delays(task)[1], guard.options.debounce_max or 0.0)


# The schedule


def _schedule(app: Celery, guarded: Guarded) -> Iterator[Finding]:
    for entry, given in (app.conf.beat_schedule or {}).items():
        name, about = str(given.get("task", "")), f"beat entry {entry!r}"
        if name.startswith("celery."):
            continue
        if name not in app.tasks:
            yield Finding(
                "note",
                "periodic-unknown",
                about,
                f"this app has no task {name!r}: if it is another program's, beat cannot ask its "
                "lock, and its messages pile up in the queue; they do not overlap",
                "let beat import the task (include=), or mend the name",
            )
            continue
        if name not in guarded and not _is_plain(app, name):
            continue
        found = of_periodic(about, name, guarded.get(name), _period(app, given.get("schedule")))
        if found is not None:
            yield found


def _period(app: Celery, given: Any) -> float | None:
    """Seconds between two triggers, the shortest of some; None where it depends on the sun."""
    found = maybe_schedule(given, app=app)
    if type(found) is schedule:
        return float(found.run_every.total_seconds())
    remaining: Callable[..., Any] | None = getattr(found, "remaining_delta", None)
    if remaining is None:
        return None
    at, gaps = datetime(2024, 1, 1, tzinfo=timezone.utc), []
    for _ in range(5):
        start, delta, _ = remaining(at)
        gaps.append((start + delta - at).total_seconds())
        at = start + delta
    shortest: float = min(gaps[1:])  # the first one began anywhere
    return shortest
