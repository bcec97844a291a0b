"""celery-once's `QueueOnce` and `AlreadyQueued`, on the locks of once.

In place of ``from celery_once import QueueOnce, AlreadyQueued``; the rest stays as it is. See
"Coming from celery-once" in the docs for what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from once_celery._replaced import shown, warn_caller
from once_celery.compat._translated import TranslatedTask, Words
from once_core.errors import ConfigurationError, DuplicateTaskError

__all__ = ["AlreadyQueued", "QueueOnce"]


class AlreadyQueued(DuplicateTaskError):  # noqa: N818  # celery-once's name
    """Nothing was sent: the same work waits or runs.

    Attributes:
        countdown: Seconds after which a new call may be accepted.
        message: What happened, in words.
    """

    @property
    def countdown(self) -> float:
        """Seconds after which a new call may be accepted, as `retry_after`."""
        return self.retry_after

    @property
    def message(self) -> str:
        """What happened, in words."""
        return str(self)


class QueueOnce(TranslatedTask):
    """Base class of tasks that are refused while one with the same arguments waits or runs.

    Takes ``once={"keys": ..., "graceful": ..., "timeout": ..., "unlock_before_run": ...}`` at the
    task, the first three of them at a call too, ``app.conf.ONCE``, and all options of once.

    Example:
        >>> import warnings
        >>> from celery import Celery
        >>> app = Celery("shop", broker="memory://", set_as_current=False)
        >>> app.conf.ONCE = {
        ...     "backend": "celery_once.backends.Redis",
        ...     "settings": {"url": "memory://queue-once", "default_timeout": 600},
        ... }
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...
        ...     @app.task(base=QueueOnce, once={"keys": ["a"]})
        ...     def slow_add(a, b): ...
        ...
        ...     first = slow_add.delay(1, 1)
        >>> try:
        ...     slow_add.delay(1, 2)
        ... except AlreadyQueued as error:
        ...     print(error.holder_id == first.id)
        True
    """

    abstract = True
    library = "celery-once"
    duplicate_error = AlreadyQueued

    @classmethod
    def app_words(cls) -> Words:
        """``app.conf.ONCE``."""
        once = cls.app.conf.get("ONCE") or cls.app.conf.get("once")
        if not isinstance(once, Mapping):
            return {}
        _check_backend(once.get("backend"))
        settings: Mapping[str, Any] = once.get("settings") or {}
        words: Words = {}
        if settings.get("url"):
            words["url"] = _url(settings["url"])
        if settings.get("default_timeout") is not None:
            words["ttl"] = settings["default_timeout"]
        lines = shown(words, "app.conf.once_{} = {!r}") or "nothing, it says nothing"
        text = f"app.conf.ONCE is celery-once's; write {lines}"
        if settings.get("blocking"):
            words["scope"] = "queued+running"
            text += (
                ". In place of blocking, which let the caller wait, write app.conf.once_scope = "
                '"queued+running": the message waits in the queue until the run is done'
            )
        warn_caller(text, is_setting=True)
        return words

    @classmethod
    def task_words(cls, given: Mapping[str, object]) -> Words:
        """``once={...}`` of the task."""
        words = {"on_duplicate": "raise", **_words(given)}
        if not _blocks(cls.app.conf):
            words = {"scope": "until_done", **words}
        return words

    def call_words(self, given: Mapping[str, object]) -> Words:
        """``once={...}`` of a call."""
        words = _words({name: given[name] for name in given if name != "unlock_before_run"})
        if "unlock_before_run" in given:
            warn_caller(
                f"unlock_before_run at a call of {self.name} has no effect, and had none in "
                'celery-once; give the task once={"scope": "queued"}'
            )
        if _OLD & given.keys():
            warn_caller(
                f"the options of this call of {self.name} are celery-once's; write "
                f"once={{{shown(words)}}}"
            )
        return words


_OLD = frozenset({"keys", "graceful", "timeout", "unlock_before_run"})


def _words(given: Mapping[str, Any]) -> Words:
    words: Words = {}
    if given.get("unlock_before_run"):
        words["scope"] = "queued"
    if given.get("keys") is not None:
        words["key"] = list(given["keys"])
    if given.get("timeout") is not None:
        words["ttl"] = given["timeout"]
    if "graceful" in given:
        words["on_duplicate"] = "skip" if given["graceful"] else "raise"
    return {**words, **{name: given[name] for name in given if name not in _OLD}}


def _blocks(conf: Mapping[str, Any]) -> bool:
    once = conf.get("ONCE") or conf.get("once")
    return isinstance(once, Mapping) and bool((once.get("settings") or {}).get("blocking"))


def _check_backend(backend: object) -> None:
    """Redis is the only place for locks.

    Raises:
        ConfigurationError: For files, and for backends of one's own.
    """
    name = backend if isinstance(backend, str) else getattr(backend, "__name__", "")
    if backend is None or str(name).rpartition(".")[2] == "Redis":
        return
    raise ConfigurationError(
        f"app.conf.ONCE names the backend {backend!r}, and once keeps its locks in Redis or Valkey "
        "alone: files and caches cannot renew a lock, check its owner and free it in one step. "
        'Set app.conf.once_url = "redis://host:6379/0" and take ONCE out; for tests and a single '
        'process there is "memory://NAME"',
        option="url",
    )


def _url(url: str) -> str:
    """celery-once's URLs of unix sockets and of TLS in the form that redis-py knows."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "redis+socket":
        return url.replace("redis+socket", "unix", 1)  # `geturl` would drop an empty host
    if parts.scheme == "redis" and "ssl" in query:
        is_tls = query.pop("ssl").lower() in ("true", "1", "yes")
        parts = parts._replace(scheme="rediss" if is_tls else "redis", query=urlencode(query))
        return parts.geturl()
    return url
