"""Publishing many calls of one task; what a single one does is in `_publish`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery import uuid
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from once_celery import _publish
from once_celery.errors import StoreUnavailableError
from once_core import errors
from once_core.bulk import AWAY, Bulk, Call, arguments
from once_core.errors import ConfigurationError
from once_core.publish import Claiming, Publication, claiming

if TYPE_CHECKING:
    from celery import Celery

    from once_celery._publish import Send
    from once_celery.task import OnceTask

__all__ = ["apply_async_many"]


def apply_async_many(
    task: OnceTask,
    send: Send,
    calls: Iterable[Call],
    call: Mapping[str, object] | None,
    options: Mapping[str, Any],
) -> list[Any]:
    """Send or refuse each call.

    Args:
        task: The task.
        send: `Task.apply_async` of the base class.
        calls: Arguments of each.
        call: Options for these calls; None where no lock is asked for.
        options: Everything else that `apply_async` takes.
    """
    if "task_id" in options:
        raise ConfigurationError(
            f"task_id={options['task_id']!r} cannot be the id of many calls of {task.name}; leave "
            "it out, or use apply_async for each"
        )
    calls = list(calls)  # whoever makes them may send something too, and need a connection
    with _producer(task.app, options.get("producer")) as producer:
        options = {**options, "producer": producer}
        guard = None
        if call is not None:
            _publish.end_pending(task, options, None)
            guard = _publish.with_call(task, task.once_guard(), call)

        def ask(each: Call, marks: dict[str, str]) -> Claiming | Publication | None:
            args, kwargs = arguments(task.name, each)
            if guard is None:
                return None
            if task.typing and hasattr(task, "__header__"):
                task.__header__(*args, **kwargs)
            terms = _publish.terms(task, None, call or {}, options)
            return claiming(guard, args, kwargs, uuid(), marks=marks, **terms)

        def deliver(each: Call, publication: Publication | None) -> Any:
            args, kwargs = arguments(task.name, each)
            if publication is None:
                return send(args, kwargs, **options)
            return _publish.deliver(task, publication, send, args, kwargs, None, options)

        bulk = Bulk(task.name, ask, deliver, _is_away, _known_as, (SoftTimeLimitExceeded,))
        return bulk.publish(calls)


@contextmanager
def _producer(app: Celery, given: Any) -> Iterator[Any]:
    """One connection for all messages."""
    if app.conf.task_always_eager:
        yield given
        return
    with app.producer_or_acquire(given) as producer:
        yield producer


def _is_away(error: Exception) -> bool:
    """Whether the next call would fail as well, and only after a while."""
    if isinstance(error, RuntimeError):  # of the result backend, after some 20 s
        return "Retry limit exceeded" in str(error)
    return isinstance(error, (OperationalError, *AWAY)) and not isinstance(error, errors.OnceError)


def _known_as(error: Exception) -> Exception:
    if isinstance(error, errors.StoreUnavailableError):
        return StoreUnavailableError.of(error)
    return error
