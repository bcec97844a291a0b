"""celery-singleton's `Singleton`, `DuplicateTaskError` and `clear_locks`, on the locks of once.

In place of ``from celery_singleton import Singleton``; the rest stays as it is. See "Coming from
celery-singleton" in the docs for what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from once_celery._publish import is_awaited
from once_celery._replaced import shown, warn_caller
from once_celery.compat._clearing import clear
from once_celery.compat._translated import TranslatedTask, Words, given_options
from once_core import errors
from once_core.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

    from once_celery.task import Once

__all__ = ["DuplicateTaskError", "Singleton", "clear_locks"]


class DuplicateTaskError(errors.DuplicateTaskError):
    """Nothing was sent: the same work waits or runs.

    Attributes:
        task_id: Message id of that one.
    """

    @property
    def task_id(self) -> str | None:
        """Message id of the one that waits or runs, as `holder_id`."""
        return self.holder_id


class Singleton(TranslatedTask):
    """Base class of tasks whose calls return the handle of the same one that waits or runs.

    Takes ``unique_on``, ``raise_on_duplicate`` and ``lock_expiry`` at the task, the settings
    ``singleton_*``, and all options of once.

    Attributes:
        unique_on: Name or names of the parameters that tell tasks apart; all if empty.
        raise_on_duplicate: Whether a duplicate raises `DuplicateTaskError`.
        lock_expiry: Seconds after which a new call is accepted; while the old run lives, it waits
            for its end.

    Example:
        >>> import warnings
        >>> from celery import Celery
        >>> app = Celery("shop", broker="memory://", set_as_current=False)
        >>> app.conf.singleton_backend_url = "memory://singleton"
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...
        ...     @app.task(base=Singleton, unique_on="username")
        ...     def do_something(username, otherarg=None): ...
        ...
        ...     first = do_something.delay("bob", 99)
        ...     second = do_something.delay("bob", otherarg=100)
        >>> first == second
        True
    """

    abstract = True
    library = "celery-singleton"
    duplicate_error = DuplicateTaskError
    unique_on: str | Sequence[str] | None = None
    raise_on_duplicate: bool | None = None
    lock_expiry: float | None = None

    @classmethod
    def app_words(cls) -> Words:
        """The settings ``singleton_*``."""
        conf = cls.app.conf
        _check_backend(conf)
        words: Words = {}
        if conf.get("singleton_backend_url"):
            words["url"] = conf.get("singleton_backend_url")
        if prefix := _prefix(conf.get("singleton_key_prefix")):
            words["prefix"] = prefix
        if conf.get("singleton_lock_expiry"):
            words["ttl"] = conf.get("singleton_lock_expiry")
        if conf.get("singleton_raise_on_duplicate"):
            words["on_duplicate"] = "raise"
        if words:
            lines = shown(words, "app.conf.once_{} = {!r}")
            warn_caller(
                f"the settings singleton_* are celery-singleton's; write {lines}", is_setting=True
            )
        return words

    @classmethod
    def task_words(cls, given: Mapping[str, object]) -> Words:
        """The attributes of the task."""
        words: Words = {"scope": "until_done"}
        if cls.unique_on:
            names = cls.unique_on
            words["key"] = [names] if isinstance(names, str) else list(names)
        if cls.raise_on_duplicate is not None:
            words["on_duplicate"] = "raise" if cls.raise_on_duplicate else "skip"
        if cls.lock_expiry:
            words["ttl"] = cls.lock_expiry
        return {**words, **given}

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        *other: Any,
        once: Once = None,
        **options: Any,
    ) -> AsyncResult:
        """Send the task, or return the handle of the one that waits or runs.

        Raises:
            DuplicateTaskError: With ``raise_on_duplicate``.
        """
        send = super().apply_async
        if not self._expiry or task_id or other or is_awaited(options):
            return send(args, kwargs, task_id, *other, once=once, **options)
        try:
            result = send(args, kwargs, once=once, **options)
        except DuplicateTaskError:
            if self._has_expired(args or (), kwargs or {}):
                return self._send_behind(args, kwargs, once, options)
            raise
        if result.once.state == "running" and self._has_expired(args or (), kwargs or {}):
            return self._send_behind(args, kwargs, once, options)
        return result

    @property
    def _expiry(self) -> float:
        return float(self.lock_expiry or self.app.conf.get("singleton_lock_expiry") or 0)

    def _has_expired(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        holder = self.holder(*args, **kwargs)
        return holder is not None and holder.state == "running" and holder.age > self._expiry

    def _send_behind(
        self, args: Any, kwargs: Any, once: Once, options: Mapping[str, Any]
    ) -> AsyncResult:
        """Its lock would have expired: the next one may come, but waits for the end of this one."""
        given: Any = {**(given_options(once) or {}), "scope": "queued+running"}
        return super().apply_async(args, kwargs, once=given, **options)


def clear_locks(app: Celery) -> int:
    """Free the units of work of an app's `Singleton` tasks that nobody runs.

    That is what waits (a message that is still in a queue runs all the same, guarded as ever) and
    what is held by a process of this machine that is known to be dead. A live run keeps its
    lease, wherever it runs, so this may be called at any time. There is no need to: leases end by
    themselves within a minute of a crash.

    Args:
        app: The app whose tasks these are.

    Returns:
        How many were freed.

    Raises:
        StoreUnavailableError: The lock store is away.
    """
    warn_caller(
        "clear_locks stands in for celery-singleton's; leave it out: a lease whose worker died "
        "ends by itself within once_lease seconds, and task.release(...) frees a unit by hand"
    )
    tasks = [task for task in app.tasks.values() if isinstance(task, Singleton)]
    return sum(clear(task) for task in tasks)


def _prefix(prefix: object) -> str:
    """A prefix without what cannot be part of our keys."""
    unfit = {*"{} "}
    return "".join(each for each in str(prefix or "") if each.isprintable() and each not in unfit)


def _check_backend(conf: Mapping[str, Any]) -> None:
    """Redis is the only place for locks.

    Raises:
        ConfigurationError: For backends of one's own, and for what they were to be given.
    """
    backend = conf.get("singleton_backend_class")
    name = backend if isinstance(backend, str) else getattr(backend, "__name__", "")
    if backend is not None and str(name).rpartition(".")[2] != "RedisBackend":
        raise ConfigurationError(
            f"singleton_backend_class={backend!r} cannot be used: once keeps its locks in Redis or "
            "Valkey alone, which renew a lock, check its owner and free it in one step. Take it "
            'out and set once_url = "redis://host:6379/0"; for tests and a single process there is '
            '"memory://NAME"',
            option="url",
        )
    if conf.get("singleton_backend_kwargs"):
        names = ", ".join(conf.get("singleton_backend_kwargs") or {})
        raise ConfigurationError(
            f"singleton_backend_kwargs ({names}) cannot be used, for once makes its own client; "
            "put them into once_url, as redis://host:6379/0?NAME=VALUE, or give a client as "
            "once_client",
            option="client",
        )
    if conf.get("singleton_json_encoder_class"):
        warn_caller(
            "singleton_json_encoder_class has no effect, leave it out: once has a form for UUID, "
            "datetime, Decimal, Enum, dataclasses and models; for others give key=",
            is_setting=True,
        )
