"""What can be seen to be wrong without sending a task: for ``manage.py check``, without network.

Tasks are imported as a worker does it, but the app is not finalized: whoever does that later,
such as a worker, meets the same errors again.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from celery import _state
from celery.contrib.django.task import DjangoTask
from celery.local import maybe_evaluate
from django import conf
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004  # Django's name for it

from once_celery._binding import Binding, task_options
from once_celery.task import OnceTask
from once_core._client import masked
from once_core.errors import ConfigurationError
from once_core.options import OPTIONS, OnceOptions

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["TAG", "check_deployment", "check_loading", "check_tasks", "is_loaded"]

TAG = "once"

_SHOWN = 5
"""Names of tasks in one message."""


def is_loaded() -> bool:
    """Whether there is a Celery app; asking `celery.current_app` would make one."""
    return _state.default_app is not None or _state._tls.current_app is not None  # noqa: SLF001  # as said


def check_loading(**_: object) -> list[CheckMessage]:
    """Registered where no app was there when Django was ready."""
    package = os.environ.get("DJANGO_SETTINGS_MODULE", "").partition(".")[0] or "project"
    return [
        Warning(
            "No Celery app was loaded when Django started. A @shared_task that is called before "
            "something imports yours goes to an app of Celery's own, which knows none of your "
            "settings: neither the broker nor the lock store.",
            hint=f"Write into {package}/__init__.py: from .celery import app as celery_app",
            id="once.W003",
        )
    ]


def check_tasks(**_: object) -> list[CheckMessage]:
    """Options and settings that cannot be, no lock store, settings and base classes in vain."""
    if not is_loaded():
        return []
    app = _state.get_current_app()
    found = [*_load(app), *_settings(app)]
    told = {message.msg for message in found}
    tasks, good = _tasks(app), []
    for task in tasks:
        error = _refusal(task, app)
        if error is None:
            good.append(task)
        elif str(error) not in told:
            told.add(str(error))
            found.append(_error(error, task.name, f"Change it at {_place(task)}."))
    return [*found, *_ignored(app), *_stores(app, good), *_bases(tasks)]


def check_deployment(**_: object) -> list[CheckMessage]:
    """With ``--deploy``: what is right for tests alone."""
    if not is_loaded():
        return []
    app = _state.get_current_app()
    found: list[CheckMessage] = []
    if app.conf.task_always_eager:
        found.append(
            Warning(
                "With task_always_eager tasks run at once in their caller, so nothing is guarded.",
                hint=f"Leave {_setting(app, 'task_always_eager')} to the settings of your tests.",
                id="once.W004",
            )
        )
    url = _options(app).get("url")
    if isinstance(url, str) and url.startswith("memory:"):
        found.append(
            Warning(
                f"The lock store {url} lives in one process: no other sees its locks.",
                hint=f"Set {_setting(app, 'once_url')} to a redis:// URL.",
                id="once.W005",
            )
        )
    return found


def _setting(app: Celery, name: str) -> str:
    """A setting as it has to be written in Django's settings."""
    return f"{app.namespace or 'CELERY'}_{name}".upper()


def _options(app: Celery) -> Mapping[str, object]:
    try:
        return Binding(app).options()
    except ConfigurationError:
        return {}


def _error(error: ConfigurationError, about: str, hint: str) -> CheckMessage:
    return Error(str(error), hint=hint, obj=about, id="once.E001")


def _load(app: Celery) -> list[CheckMessage]:
    """Import the tasks, and make them of their functions, which Celery puts off."""
    with _without_checks():
        found = _done(app.loader.import_default_modules)
    if not app.finalized:
        # as `app.finalize()` does, which would stop at the first error and be done for good
        for make in [*_state._on_app_finalizers]:  # noqa: SLF001  # no other way to each of them
            # Celery's own tasks are new functions each time, of which it would warn
            if make.__module__ != "celery.app.builtins":
                found += _done(make, app)
        for promise in [*app._pending]:  # noqa: SLF001  # the same
            found += _done(maybe_evaluate, promise)
    return found


def _done(step: Callable[..., object], *args: object) -> list[CheckMessage]:
    """Run what imports or makes tasks; no error of theirs may end the check."""
    try:
        step(*args)
    except ConfigurationError:
        pass  # its task is registered all the same, and found there
    except Exception as error:  # noqa: BLE001  # modules and decorators of others
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if not frame.filename.startswith("<frozen")][-1]
        return [
            Error(
                f"The tasks cannot be loaded: {type(error).__name__}: {error}",
                hint=f"Raised at {last.filename}:{last.lineno}. A worker would not start either.",
                id="once.E002",
            )
        ]
    return []


@contextmanager
def _without_checks() -> Iterator[None]:
    """Celery runs all checks of Django before it imports tasks, and we are in one."""
    before = os.environ.get("CELERY_SKIP_CHECKS")
    os.environ["CELERY_SKIP_CHECKS"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CELERY_SKIP_CHECKS"]
        else:
            os.environ["CELERY_SKIP_CHECKS"] = before


def _tasks(app: Celery) -> list[Any]:
    """All tasks of our base class, Celery's own left out."""
    found = [task for task in app._tasks.values() if isinstance(task, OnceTask)]  # noqa: SLF001  # `tasks` finalizes
    return sorted(
        (task for task in found if not task.name.startswith("celery.")), key=lambda each: each.name
    )


def _refusal(task: Task, app: Celery) -> ConfigurationError | None:
    """Why a task cannot be; its own faults first, for a setting's are those of every task."""
    try:
        given = task_options(task)
        if given is not None:
            OnceOptions.layered({}, given, task.name)
        type(task).on_bound(app)
    except ConfigurationError as error:
        return error
    return None


def _place(task: Task) -> str:
    """File and line of a task."""
    run = inspect.unwrap(task.run)
    code = getattr(run, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else type(task).__module__


def _settings(app: Celery) -> list[CheckMessage]:
    """Every setting of the app that cannot be."""
    try:
        given = Binding(app).options()
    except ConfigurationError as error:
        hint = f"In Django's settings it would be such as {_setting(app, 'once_lease')}."
        return [_error(error, "settings", hint)]
    found = []
    for option, value in given.items():
        try:
            options = OnceOptions.layered({option: value}, {})
            if option == "url" and options.url:
                Binding(app).check_url(options.url)
        except ConfigurationError as error:
            name = _setting(app, f"once_{option}")
            found.append(_error(error, name, f"Change {name} in the settings."))
    return found


def _ignored(app: Celery) -> list[CheckMessage]:
    """Settings of ours in Django's settings that the app does not read."""
    found: list[CheckMessage] = []
    for name in sorted(dir(conf.settings)):
        bare = name.removeprefix(f"{app.namespace or 'CELERY'}_")
        value = getattr(conf.settings, name, None)
        option = bare.removeprefix("ONCE_").lower()
        if bare == "ONCE" and isinstance(value, Mapping):
            options = [each for each in value if each in OPTIONS] or ["url"]
        elif bare.startswith("ONCE_") and option in OPTIONS:
            if bare != name and app.conf.get(f"once_{option}") is not None:
                continue
            options = [option]
        else:
            continue
        wanted = ", ".join(_setting(app, f"once_{each}") for each in options)
        advice = f"Write {wanted} instead."
        if wanted == name:
            advice = (
                "Have the Celery app read Django's settings: "
                'app.config_from_object("django.conf:settings", namespace="CELERY").'
            )
        found.append(
            Error(
                f"The setting {name} is ignored: the Celery app reads no such setting.",
                hint=advice,
                obj=name,
                id="once.E003",
            )
        )
    return found


def _stores(app: Celery, tasks: list[Any]) -> list[CheckMessage]:
    """Tasks for whose locks there is no place, or one that is emptied by others."""
    if app.conf.task_always_eager:
        return []
    binding, lost, urls = Binding(app), [], set()
    for task in tasks:
        given = task_options(task)
        if given is None:
            continue
        options = OnceOptions.layered(binding.options(), given, task.name)
        try:
            urls.add(options.url or options.client or binding._discovered())  # noqa: SLF001  # of the same package
        except ConfigurationError:
            lost.append(task.name)
    found = _caches({url for url in urls if isinstance(url, str)})
    if lost:
        found.append(
            Error(
                f"There is no lock store for {_listed(lost)}: neither the broker nor the result "
                "backend is a Redis. Each call will raise ConfigurationError.",
                hint=f'Set {_setting(app, "once_url")} = "redis://host:6379/0", or the '
                "environment variable ONCE_URL.",
                id="once.E004",
            )
        )
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _caches(stores: set[str]) -> list[CheckMessage]:
    """Caches in a lock store's database: ``cache.clear()`` is FLUSHDB."""
    databases = {_database(url): masked(url) for url in stores}
    found: list[CheckMessage] = []
    for alias, cache in conf.settings.CACHES.items():
        location = cache.get("LOCATION") or ()
        urls = location.replace(";", ",").split(",") if isinstance(location, str) else location
        shared = {_database(str(url)) for url in urls} & databases.keys() - {None}
        found += [
            Warning(
                f"The cache {alias!r} is in the Redis database of the lock store "
                f"({databases[database]}). cache.clear() empties all of it, locks and queues too.",
                hint="Give the cache a database number of its own, such as /1.",
                obj="CACHES",
                id="once.W002",
            )
            for database in shared
        ]
    return found


def _database(url: str) -> tuple[str, str] | None:
    """Server and database number of a URL, or None where it is no single Redis."""
    parts = urlsplit(url.strip())
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "unix":
        return parts.path, query.get("db", "0")
    if parts.scheme not in ("redis", "rediss"):
        return None
    host = (parts.hostname or "localhost").replace("127.0.0.1", "localhost")
    return f"{host}:{parts.port or 6379}", query.get("db", parts.path.strip("/") or "0")


def _bases(tasks: list[Any]) -> list[CheckMessage]:
    """Tasks that have lost what Celery gives all tasks in Django."""
    names = [task.name for task in tasks if not isinstance(task, DjangoTask)]
    if not names:
        return []
    return [
        Warning(
            f"{_listed(names)}: OnceTask has no delay_on_commit, which other tasks have in Django.",
            hint="Use base=DjangoOnceTask, from once_celery.django.",
            id="once.W001",
        )
    ]
