"""Celery's configuration and tasks in the words of `once_core`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from once_celery._pydantic import validator
from once_celery._replaced import REPLACED, option_of
from once_celery._scheduled import Scheduled
from once_core._client import is_cluster, make_client
from once_core._diversion import is_bypassed
from once_core.errors import ConfigurationError
from once_core.guard import Guard
from once_core.options import OPTIONS, OnceOptions, nearest
from once_core.store import Store

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["Binding", "check", "check_sharing", "task_options"]

_ATTRIBUTE = "_once_binding"


class Binding:
    """What all tasks of an app share: its options, its lock stores, what waits for an ETA."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._stores: dict[object, Store] = {}
        self._guards: dict[Task, Guard | None] = {}
        self._checked_urls: set[str] = set()
        self.scheduled = Scheduled()
        """Messages with an ETA that this process holds, if it is a worker."""

    @classmethod
    def of(cls, app: Celery) -> Binding:
        """The binding of an app, made when it is first asked for."""
        found: Binding | None = app.__dict__.get(_ATTRIBUTE)
        return found or app.__dict__.setdefault(_ATTRIBUTE, cls(app))

    @cached_property
    def given_out_again(self) -> float:
        """Seconds after which Redis gives out again what a worker holds; by default an hour."""
        options: Mapping[str, Any] = self._app.conf.broker_transport_options or {}
        return float(options.get("visibility_timeout") or 3600.0)

    @cached_property
    def is_on_amqp(self) -> bool:
        """Whether the broker gives out again what it holds whenever it loses a connection."""
        return bool(self._app.connection_for_read().transport.driver_type == "amqp")

    @cached_property
    def has_results(self) -> bool:
        """Whether workers can look up results."""
        return result_place(self._app) not in ("disabled", "rpc")

    def guard(self, task: Task) -> Guard | None:
        """The guard of a task, or None where it is not under guard.

        Made when it is first needed, for configuration may come late.

        Raises:
            ConfigurationError: Options that cannot be, or no lock store.
        """
        if is_bypassed():
            return None
        try:
            return self._guards[task]
        except KeyError:
            given = task_options(task)
            guard = None
            if given is not None:
                options = OnceOptions.layered(self.options(), given, task.name)
                store = partial(self.store, options)
                guard = Guard(task.name, task.run, options, store, validator(task.run))
            return self._guards.setdefault(task, guard)

    def options(self) -> dict[str, object]:
        """The ``once_*`` settings of the app, as they are now.

        Raises:
            ConfigurationError: For a setting that is none of ours.
        """
        conf = self._app.conf
        namespace = f"{(self._app.namespace or '').lower()}_"
        found: dict[str, object] = {}
        others: dict[str, object] = {}
        # not `for setting in conf`, which takes a millisecond, for each task that is defined
        for setting in chain.from_iterable(conf.maps):
            if "once_" not in (lower := setting.lower()):
                continue
            name = lower.removeprefix(namespace)
            if not name.startswith("once_"):
                continue
            option = name.removeprefix("once_")
            if option in REPLACED:
                others.update(option_of(setting, option, conf.get(name, conf.get(setting))))
                continue
            if option not in OPTIONS:
                hint = (
                    _nearest(name) or f"; there are {', '.join(f'once_{one}' for one in OPTIONS)}"
                )
                raise ConfigurationError(
                    f"the setting {setting} is none of once{hint}", option=option
                )
            value = conf.get(name, _MISSING)
            if value is not _MISSING:
                found[option] = value
        return {**others, **found}

    def store(self, options: OnceOptions) -> Store:
        """The lock store of a task: its own, the app's, or the Redis that Celery uses already.

        Raises:
            ConfigurationError: When there is none of these.
        """
        source: Any = options.client or options.url or self._discovered()
        name = source if isinstance(source, str) else id(source)
        found = self._stores.get(name)
        return found if found is not None else self._stores.setdefault(name, Store(source))

    def check_url(self, url: str) -> None:
        """Refuse a URL that can never be used; once for each, for many tasks share one.

        Raises:
            ConfigurationError: When it cannot be.
        """
        if url not in self._checked_urls and not is_cluster(url):
            make_client(url)  # connects to nothing yet
            self._checked_urls.add(url)

    def _discovered(self) -> str:
        conf = self._app.conf
        candidates = [conf.broker_write_url, conf.broker_url, conf.result_backend]
        for candidate in candidates:
            urls = candidate.split(";") if isinstance(candidate, str) else candidate or ()
            for position, url in enumerate(urls):
                found = _store_url(url, list(urls)[position:], conf)
                if found:
                    return found
        raise ConfigurationError(
            "once has no lock store: neither the broker nor the result backend of this app is a "
            "Redis. Set once_url in the app's configuration (CELERY_ONCE_URL under Django's "
            "namespace), or the environment variable ONCE_URL, to a redis:// URL",
            option="url",
        )


def _nearest(name: str) -> str:
    """Among the settings, without the part they all share: that one makes everything near."""
    return nearest(name.removeprefix("once_"), OPTIONS).replace("'", "'once_", 1)


_MISSING = object()


def _store_url(url: object, rest: list[str], conf: Mapping[str, Any]) -> str | None:
    """A broker's or result backend's URL as one of ours, or None where it is no Redis."""
    if not isinstance(url, str):
        return None
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme in ("redis", "rediss"):
        if "ssl_cert_reqs" in query:
            query["ssl_cert_reqs"] = query["ssl_cert_reqs"].removeprefix("CERT_").lower()
        known = {name: value for name, value in query.items() if name != "virtual_host"}
        plain = parts._replace(query=urlencode(known), netloc=parts.netloc or "localhost")
        return plain.geturl()
    if parts.scheme in ("redis+socket", "socket"):
        return f"unix://{parts.path}?db={query.get('virtual_host', '0')}"
    if parts.scheme == "sentinel":
        return _sentinel_url(rest, conf)
    return None


def _sentinel_url(urls: list[str], conf: Mapping[str, Any]) -> str | None:
    options = conf.get("broker_transport_options") or {}
    service = options.get("master_name")
    if not service:
        return None
    places = [urlsplit(url) for url in urls if urlsplit(url).scheme == "sentinel"]
    user, password = (unquote(part or "") for part in (places[0].username, places[0].password))
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    hosts = ",".join(f"{place.hostname}:{place.port or 26379}" for place in places)
    database = places[0].path.strip("/") or "0"
    return f"redis+sentinel://{login}{hosts}/{database}/{service}"


def task_options(task: Task | type[Task]) -> Mapping[str, object] | None:
    """What was given with a task; None where it is not under guard.

    Raises:
        ConfigurationError: For a ``once=`` that is no options, and switches that contradict it.
    """
    once, name = task.in_our_words(task.once), task.name or ""
    if once is False or name.startswith("celery."):
        return None
    if once is None or once is True:
        given: Mapping[str, object] = {}
    elif isinstance(once, OnceOptions):
        given = once.given
    elif isinstance(once, Mapping):
        given = once
    else:
        raise ConfigurationError(
            f"once={once!r} of {name} must be a dict of options, OnceOptions(...), True or False"
        )
    switches = (bool(task.queue_lock), bool(task.running_lock))
    if switches == (True, True):
        return given
    if "scope" in given:
        raise ConfigurationError(
            f"{name} has scope={given['scope']!r} and also queue_lock={task.queue_lock!r}, "
            f"running_lock={task.running_lock!r}, which are short for a scope; give one of them",
            option="scope",
        )
    if switches == (False, False):
        return None
    return {**given, "scope": "queued" if task.queue_lock else "running"}


def check(task: type[Task], app: Celery) -> None:
    """Refuse what can never work the moment a task is defined.

    Raises:
        ConfigurationError: Naming the task, the option, and what to write instead.
    """
    given = task_options(task)
    if given is None:
        return
    misplaced = sorted(OPTIONS.keys() & vars(task).keys() - {"name"})
    if misplaced and vars(task).get("_decorated"):
        option = misplaced[0]
        raise ConfigurationError(
            f"{task.name}: {option}= is an option of once, not of Celery, and would be ignored "
            f'there; write once={{"{option}": {vars(task)[option]!r}}}',
            option=option,
        )
    binding = Binding.of(app)
    options = OnceOptions.layered(binding.options(), given, task.name)
    if options.url:
        binding.check_url(options.url)
    Guard(task.name, _body(task), options, lambda: binding.store(options))
    check_sharing(task, app, options)


def check_sharing(task: Task | type[Task], app: Celery, options: OnceOptions) -> None:
    """Refuse to share results where there are none.

    Raises:
        ConfigurationError: Saying what to set.
    """
    if options.on_duplicate != "share":
        return
    place = result_place(app)
    if place == "disabled":
        why = "its app has no result backend"
        advice = "set result_backend to one that all workers can read, such as redis://"
    elif place == "rpc":
        why = "results of rpc:// reach nobody but the caller"
        advice = "set result_backend to one that all workers can read, such as redis://"
    elif task.ignore_result or (task.ignore_result is None and app.conf.task_ignore_result):
        why, advice = "it stores no results (ignore_result)", "take ignore_result from it"
    else:
        return
    raise ConfigurationError(
        f'{task.name} has on_duplicate="share", but {why}, so a duplicate could never end with '
        f'the result of its holder; {advice}, or use on_duplicate="skip"',
        option="on_duplicate",
    )


def result_place(app: Celery) -> str:
    """The scheme of the result backend."""
    return str(app.conf.result_backend or "disabled").partition(":")[0]


def _body(task: type[Task]) -> Callable[..., object]:
    """The body as callers see it, without ``self``."""
    run: Callable[..., object] = task.run
    if isinstance(inspect.getattr_static(task, "run"), staticmethod):
        return run
    return run.__get__(object())  # type: ignore[no-any-return]  # a plain function
