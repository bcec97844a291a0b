"""`OnceTask`, the base class of Celery tasks under guard."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any

from celery import Task

from once_celery import _defer, _groups, _many, _publish, _run, _signals
from once_celery._binding import Binding, check
from once_celery._publish import PENDING
from once_celery.errors import StoreUnavailableError
from once_core import errors
from once_core._diversion import is_bypassed
from once_core.bulk import Call
from once_core.errors import ConfigurationError
from once_core.events import logger
from once_core.guard import Guard, Holder
from once_core.options import OnceOptions, OnceOptionsDict
from once_core.publish import OncePublish

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

__all__ = ["OnceTask"]

Once = OnceOptions | OnceOptionsDict | bool | None


class OnceTask(Task):  # type: ignore[misc]  # Celery has no types
    """Base class of tasks of which at most one message waits and at most one attempt runs.

    Nothing else has to be set up: signals install themselves, and where the broker or the
    result backend is a Redis it is the lock store too. Otherwise set ``once_url``. Safe in all
    pools. While the lock store is away `delay` raises `StoreUnavailableError` and messages that
    start are put back; see ``on_store_error``.

    Attributes:
        once: Options of the task (see `OnceOptions`); False switches all of it off.
        queue_lock: Limit what waits. Short for a scope, together with `running_lock`.
        running_lock: Limit what runs.

    Example:
        >>> from celery import Celery
        >>> app = Celery("shop", broker="memory://", set_as_current=False)
        >>> app.conf.once_url = "memory://task-example"
        >>> @app.task(base=OnceTask, once={"key": ["order_id"]})
        ... def sync_order(order_id, force=False): ...
        >>> first, second = sync_order.delay(1), sync_order.delay(1, force=True)
        >>> second.once.is_duplicate, second.id == first.id
        (True, True)
        >>> sync_order.is_locked(1), sync_order.is_locked(2)
        (True, False)
    """

    abstract = True
    once: Once = None
    queue_lock: bool = True
    running_lock: bool = True

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the options the moment the task is defined; called by Celery.

        Raises:
            ConfigurationError: Options that cannot be, or a base class that would hide ours.
        """
        super().on_bound(app)
        if cls.run is Task.run:
            return
        first = next(each for each in cls.__mro__ if "__call__" in each.__dict__)
        if not issubclass(first, OnceTask):
            raise ConfigurationError(
                f"{cls.name}: {first.__name__}.__call__ hides that of OnceTask, so the task would "
                f"run unguarded; name OnceTask first: class MyTask(OnceTask, {first.__name__})"
            )
        if not _calls_parent(first):
            raise ConfigurationError(
                f"{cls.name}: {first.__name__}.__call__ does not call super().__call__, which asks "
                "for the guard, so the task would run unguarded; call "
                "super().__call__(*args, **kwargs) in it instead of self.run(*args, **kwargs)"
            )
        check(cls, app)
        _warn_of_lost_context(cls, app)
        _signals.connect()
        _groups.connect()

    @classmethod
    def in_our_words(cls, once: Once) -> Once:
        """The options of the task; `once_celery.compat` has those of other libraries here."""
        return once

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        *other: Any,
        once: Once = None,
        **options: Any,
    ) -> AsyncResult:
        """Send the task unless it is a duplicate; never returns None.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.
            task_id: Id for the message; a duplicate with an id of its own is sent and settled.
            other: Celery's remaining positional arguments.
            once: Options for this call alone; False sends it past all locks.
            options: Everything that Celery's `apply_async` takes.

        Returns:
            A handle of the task that was sent, or of the one that waits or runs. Its ``once``
            is an `OncePublish` that tells which.

        Raises:
            DuplicateTaskError: With ``on_duplicate="raise"``.
            KeyDerivationError: The arguments give no key.
            StoreUnavailableError: The lock store is away; nothing was sent.
        """
        send = super().apply_async
        if other:
            names = ("producer", "link", "link_error", "shadow")
            options.update(zip(names, other, strict=False))
        app = self.app
        guard = Binding.of(app).guard(self)
        if guard is None and once and not is_bypassed():
            raise self._not_guarded(f"once={once!r} at a call")
        if guard is None or app.conf.task_always_eager:
            if guard is not None and once:
                guard.with_call(_given(once))  # what production refuses, tests should refuse
            return self._sent_plainly(send(args, kwargs, task_id=task_id, **options))
        if once is False:
            return _publish.publish_unguarded(self, send, args, kwargs, task_id, options)
        if _defer.is_put_back(task_id):
            return send(args, kwargs, task_id=task_id, **options)
        args, kwargs = args or (), kwargs or {}
        if self.typing and hasattr(self, "__header__"):
            # Celery's own check, before the claim: a call that cannot be sent takes nothing
            self.__header__(*args, **kwargs)
        return _publish.publish(self, guard, send, args, kwargs, task_id, _given(once), options)

    def delay_many(self, calls: Iterable[Call]) -> list[AsyncResult]:
        """Send many calls; see `apply_async_many`.

        Args:
            calls: Arguments of each call: ``(args, kwargs)``.
        """
        return self.apply_async_many(calls)

    def apply_async_many(
        self, calls: Iterable[Call], *, once: Once = None, **options: Any
    ) -> list[AsyncResult]:
        """Send many calls, and pay for the locks of 500 with one round trip.

        Each is sent or refused as by `apply_async`; of equal calls the first is sent. Messages go
        out one after the other over one connection. If the broker goes away in the middle, no
        further call is tried.

        Args:
            calls: Arguments of each call: ``(args, kwargs)``.
            once: Options for these calls.
            options: What `apply_async` takes, for all of them; no ``task_id``.

        Returns:
            The handles, in the order of the calls.

        Raises:
            BulkPublishError: Some calls were not sent. Its ``results`` has the handle or the error
                of each; nothing of those that were not sent is left claimed.
            Exception: Nothing was sent, and for one reason: as `apply_async` raises it.

        Example:
            >>> from celery import Celery
            >>> app = Celery("shop", broker="memory://", set_as_current=False)
            >>> app.conf.once_url = "memory://many-example"
            >>> @app.task(base=OnceTask)
            ... def sync_order(order_id): ...
            >>> handles = sync_order.delay_many([((1,), {}), ((2,), {}), ((1,), {})])
            >>> [handle.once.state for handle in handles]
            ['claimed', 'claimed', 'waiting']
        """
        plain = partial(self.apply_async, once=once)
        if not self._is_claimed_here(once):
            return _many.apply_async_many(self, plain, calls, None, options)
        return _many.apply_async_many(self, super().apply_async, calls, _given(once), options)

    def _is_claimed_here(self, once: Once) -> bool:
        """Whether calls need a claim, and `apply_async` is ours and does nothing besides."""
        is_ours = getattr(self.apply_async, "__func__", None) is OnceTask.apply_async
        is_bare = once is False or is_bypassed() or self.app.conf.task_always_eager
        return is_ours and not is_bare and Binding.of(self.app).guard(self) is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body: under guard in a worker, plainly when called directly or eagerly."""
        request, parent = self.request, super().__call__
        # `hasattr`: the body is on its way and calls its own task as a function
        if request.called_directly or hasattr(request, PENDING):
            return parent(*args, **kwargs)
        body = partial(parent, *args, **kwargs)
        if parent.__func__ is Task.__call__:
            # that one would push a second, empty request outside of Celery's own workers; in
            # them it is told by this mark to do so when the body calls its task as a function
            request._protected = 1  # noqa: SLF001  # as `celery.app.trace` does
            body = partial(self.run, *args, **kwargs)
        guard = None if request.is_eager else Binding.of(self.app).guard(self)
        if guard is None:
            setattr(request, PENDING, None)
            return body()
        return _run.run(self, guard, body)

    def is_locked(self, *args: Any, **kwargs: Any) -> bool:
        """Whether the unit of work of this call waits, runs, or is kept by a window.

        Raises:
            StoreUnavailableError: When nobody can say.
        """
        return self.holder(*args, **kwargs) is not None

    def holder(self, *args: Any, **kwargs: Any) -> Holder | None:
        """Who holds the unit of work of this call, or None.

        Raises:
            StoreUnavailableError: When nobody can say.
        """
        try:
            return self.once_guard().holder(args, kwargs)
        except errors.StoreUnavailableError as error:
            raise StoreUnavailableError.of(error) from error

    def release(self, *args: Any, **kwargs: Any) -> bool:
        """Free the unit of work of this call, whoever holds it.

        A message that waits is not lost, and a live run loses its lease: only do this when you
        know that it may overlap.

        Returns:
            Whether there was something to free.

        Raises:
            StoreUnavailableError: When the store is away.
        """
        try:
            return self.once_guard().release(args, kwargs)
        except errors.StoreUnavailableError as error:
            raise StoreUnavailableError.of(error) from error

    def once_guard(self) -> Guard:
        """What once knows of this task.

        Raises:
            ConfigurationError: It is not under guard.
        """
        guard = Binding.of(self.app).guard(self)
        if guard is None:
            raise self._not_guarded("asking for its lock")
        return guard

    def _not_guarded(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.name} is not under guard (once=False), so {what} would do nothing; take "
            "once=False from the task, and give it at the calls that need it"
        )

    @staticmethod
    def _sent_plainly(result: AsyncResult) -> AsyncResult:
        result.once = OncePublish("off", is_duplicate=False, holder_id=result.id)
        return result


def _given(once: Once) -> Mapping[str, object]:
    if once is True or once is None:
        return {}
    if isinstance(once, OnceOptions):
        return once.given
    if isinstance(once, Mapping):
        return once
    raise ConfigurationError(f"once={once!r} must be a dict of options, OnceOptions(...) or False")


def _calls_parent(owner: type) -> bool:
    """Whether the `__call__` of a subclass goes on to ours; not if its code names `run` alone."""
    code = getattr(inspect.unwrap(vars(owner)["__call__"]), "__code__", None)
    names = _names(code) if code is not None and owner is not OnceTask else set()
    return "run" not in names or "__call__" in names


def _names(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _warn_of_lost_context(task: type[Task], app: Celery) -> None:
    """Say that ``base=`` took the place of the app's own task class, such as Flask's context.

    Once for an app and a class, not for each task. That class is looked at only where Celery has
    made it already, which it has when it binds all tasks: making it here would come back to us.
    """
    if any("__call__" in vars(each) for each in task.__mro__[: task.__mro__.index(OnceTask)]):
        return  # it knows what it does
    default = vars(app).get("Task")
    warned: set[type] = vars(app).setdefault("_once_lost_contexts", set())
    for each in default.__mro__ if default is not None else ():
        if "__call__" in vars(each) and each not in task.__mro__ and each not in warned:
            warned.add(each)
            base, own = task.__mro__[1].__name__, each.__name__
            logger.warning(
                "%s runs without the %s of its app, and so without what %s.__call__ does around a "
                "task (such as Flask's app context), because base=%s takes its place; write "
                "class MyTask(%s, %s) and give base=MyTask",
                *(task.name, own, own, base, base, own),
            )
