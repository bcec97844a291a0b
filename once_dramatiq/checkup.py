"""What is wrong between a broker's settings and its guarded actors, before it hurts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, Any

from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AgeLimit, Retries, TimeLimit

from once_core.errors import OnceError
from once_core.finding import Finding, listed
from once_core.task_checkup import (
    of_periodic,
    of_results,
    of_retries,
    of_time_limit,
    of_unguarded,
)
from once_dramatiq._binding import OPTION

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Middleware

    from once_core.guard import Guard
    from once_dramatiq._binding import Binding
    from once_dramatiq.middleware import OnceMiddleware

__all__ = ["findings"]

CONSUMER_TIMEOUT = 1_800_000.0
"""Milliseconds after which RabbitMQ takes back what is not acknowledged, unless told otherwise."""

EXPONENTS = 32
"""Doublings of the delay of a retry, at most."""


def findings(broker: Broker, ours: OnceMiddleware) -> Iterator[Finding]:
    """What looks wrong between a broker's settings and its guarded actors.

    Args:
        broker: The broker.
        ours: Its middleware.

    Example:
        >>> import dramatiq
        >>> from dramatiq.brokers.stub import StubBroker
        >>> from once_dramatiq import OnceMiddleware
        >>> broker, ours = StubBroker(), OnceMiddleware()
        >>> broker.add_middleware(ours)
        >>> @dramatiq.actor(broker=broker, once={"ttl": 60}, max_retries=0)
        ... def sync_order(order_id): ...
        >>> [finding.code for finding in findings(broker, ours)]
        ['stub-broker', 'ttl-below-time-limit']
    """
    binding = ours.binding(broker)
    if isinstance(broker, StubBroker):
        yield Finding(
            "warning",
            "stub-broker",
            "the broker",
            "a StubBroker keeps messages in this process: no worker gets them, and they end with "
            "it; it is meant for tests",
            'broker = RedisBroker(url="redis://localhost:6379/0"), or a RabbitmqBroker',
        )
    actors = broker.actors
    guarded = _guarded(binding)
    for name, guard in guarded.items():
        yield from _of_actor(broker, binding, actors[name], guard)
    if hasattr(broker, "get_queue_message_counts"):  # RabbitMQ's
        yield from _on_amqp(broker, list(guarded))
    # once=False is a choice
    plain = [name for name, actor in sorted(actors.items()) if _is_plain(binding, actor)]
    for name in [each for each in (*guarded, *plain) if "periodic" in actors[each].options]:
        about, period = f"periodic actor {name!r}", _period(actors[name].options["periodic"])
        found = of_periodic(about, name, guarded.get(name), period)
        if found is not None:
            yield found
    yield from of_unguarded(plain, "@dramatiq.actor(once=True)")


def _is_plain(binding: Binding, actor: Actor[..., Any]) -> bool:
    """Whether nobody has thought of a guard for it."""
    return actor.options.get(OPTION) is None and not binding.is_guarded(actor)


def _guarded(binding: Binding) -> dict[str, Guard]:
    """The guards; an actor whose options are refused is told about where guards are looked at."""
    found = {}
    for name, actor in sorted(binding.broker.actors.items()):
        try:
            if binding.is_guarded(actor):
                found[name] = binding.guard(actor)
        except OnceError:
            continue
    return found


def _of_actor(
    broker: Broker, binding: Binding, actor: Actor[..., Any], guard: Guard
) -> Iterator[Finding]:
    limit, age = _time_limit(broker, actor), _option(broker, actor, AgeLimit, "max_age")
    yield from of_time_limit(guard, limit / 1000 if 0 < limit < inf else None)
    if age and guard.options.limits.running and age < limit:
        yield Finding(
            "warning",
            "max-age-below-time-limit",
            guard.task,
            f"max_age={age} ms is shorter than its time limit of {limit:g} ms: a message that "
            "waits for the end of such a run is thrown away, and with it its trigger",
            f"max_age={2 * limit:.0f}, or a shorter time_limit"
            if limit < inf
            else "give it a time_limit shorter than max_age",
        )
    yield from of_retries(guard, *(each / 1000 for each in _delays(broker, actor)))
    results = binding.results(actor, {})
    if results is not None:
        yield from of_results(guard, results[1] / 1000, "give the actor a result_ttl= (ms)")


def _on_amqp(broker: Broker, names: list[str]) -> Iterator[Finding]:
    long = [
        name for name in names
        if _time_limit(broker, broker.actors[name]) > CONSUMER_TIMEOUT
    ]  # fmt: skip
    if long:
        yield Finding(
            "note",
            "consumer-timeout",
            listed(long),
            "a run may take more than 30 minutes, and is acknowledged at its end: RabbitMQ then "
            "closes the channel (consumer_timeout), and all that the worker holds is given out "
            "again; what runs is not run twice, but copies of it come and wait",
            "consumer_timeout = 7200000 in rabbitmq.conf (ms), or a time_limit below 30 minutes",
        )


def _time_limit(broker: Broker, actor: Actor[..., Any]) -> float:
    """Milliseconds that a run may take."""
    limit = _option(broker, actor, TimeLimit, "time_limit")
    return inf if limit is None else float(limit)


def _delays(broker: Broker, actor: Actor[..., Any]) -> tuple[float, float]:
    """Milliseconds before the first and the last retry, at most; zero where there is none."""
    retries = _option(broker, actor, Retries, "max_retries")
    if retries == 0 or not any(isinstance(each, Retries) for each in broker.middleware):
        return 0.0, 0.0
    first = float(_option(broker, actor, Retries, "min_backoff") or 0)
    most = float(_option(broker, actor, Retries, "max_backoff") or 0)
    doublings = EXPONENTS if retries is None else min(int(retries), EXPONENTS)
    return min(first, most), min(first * 2**doublings, most)


def _option(broker: Broker, actor: Actor[..., Any], kind: type[Middleware], name: str) -> Any:
    """What the actor says, or else the middleware; None where that is missing."""
    middleware = next((each for each in broker.middleware if isinstance(each, kind)), None)
    if middleware is None:
        return None
    options: Mapping[str, Any] = actor.options
    return options.get(name, getattr(middleware, name))


def _period(spec: Any) -> float | None:
    """Seconds between two triggers of periodiq, the shortest of some."""
    at, gaps = import_module("pendulum").datetime(2024, 1, 1), []
    for _ in range(5):
        following = spec.next_valid_date(at)
        gaps.append((following - at).total_seconds())
        at = following
    return min(gaps[1:], default=None)  # the first one began anywhere
