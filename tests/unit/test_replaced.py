"""What `once_celery.compat` says to write instead, where it says it, and how often."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery

from once_celery import OnceOptions, OnceTask, _replaced, compat
from once_celery.compat import celery_once_task
from once_core.errors import ConfigurationError

HERE = __file__


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test hears what others have heard before."""
    monkeypatch.setattr(_replaced, "_said", set())
    yield
    celery_once_task.reset_config()


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app in memory."""
    with Celery("shop", broker="memory://", set_as_current=False) as app:
        app.conf.once_url = "memory://test-replaced"
        yield app


def line() -> int:
    """The line of the caller."""
    return sys._getframe(1).f_lineno


@contextmanager
def hearing() -> Iterator[list[warnings.WarningMessage]]:
    """Take down every warning."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said
    assert {each.category for each in said} == {DeprecationWarning}


def texts(said: list[warnings.WarningMessage]) -> list[str]:
    """What was said, without the head that all have."""
    found = [str(each.message) for each in said]
    assert all(each.startswith("once_celery.compat: ") for each in found)
    return [each.partition(": ")[2] for each in found]


def define(app: Celery, base: type[OnceTask], **options: Any) -> Any:
    """A task named ``shop.sync``, made at once, in place of the one before."""
    app.tasks.pop("shop.sync", None)

    @app.task(base=base, name="shop.sync", shared=False, lazy=False, **options)
    def sync(a: int = 1, b: int = 2) -> None: ...

    return sync


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        (
            compat.QueueOnce,
            {"once": {"keys": ["a"], "graceful": True, "timeout": 60}},
            (
                "shop.sync: QueueOnce stands in for celery-once; write base=OnceTask, "
                "once={'scope': "
                "'until_done', 'on_duplicate': 'skip', 'key': ['a'], 'ttl': 60} "
                "(from once_celery import OnceTask)"
            ),
        ),
        (
            compat.QueueOnce,
            {"once": {"unlock_before_run": True}},
            (
                "shop.sync: QueueOnce stands in for celery-once; write base=OnceTask, "
                "once={'scope': "
                "'queued', 'on_duplicate': 'raise'} (from once_celery import OnceTask)"
            ),
        ),
        (
            compat.QueueOnce,
            {"once": False},
            (
                "shop.sync: QueueOnce stands in for celery-once; write base=OnceTask, once=False "
                "(from once_celery import OnceTask)"
            ),
        ),
        (
            compat.Singleton,
            {"unique_on": "a", "raise_on_duplicate": True, "lock_expiry": 10},
            (
                "shop.sync: Singleton stands in for celery-singleton; write base=OnceTask, "
                "once={'scope': 'until_done', 'key': ['a'], 'on_duplicate': 'raise', 'ttl': 10} "
                "(from once_celery import OnceTask)"
            ),
        ),
        (
            celery_once_task.OnceTask,
            {},
            (
                "shop.sync: OnceTask stands in for celery-once-task; write base=OnceTask "
                "(from once_celery import OnceTask)"
            ),
        ),
    ],
)
def test_a_task_says_what_to_write_instead(
    app: Celery, base: type[OnceTask], options: dict[str, Any], expected: str
) -> None:
    """Base class and options, in our words and with the user's own values."""
    with hearing() as said:
        define(app, base, **options)

    assert texts(said) == [expected]


@pytest.mark.parametrize("options", [{"keys": ["a"]}, OnceOptions(key=["a"])])
def test_what_is_said_is_what_is_done(app: Celery, options: Any) -> None:
    """A task written as the warning says has the same options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = define(app, compat.QueueOnce, once=options)

    new = Celery("new", broker="memory://", set_as_current=False)
    new.conf.once_url = "memory://test-replaced"
    written = define(
        new, OnceTask, once={"scope": "until_done", "on_duplicate": "raise", "key": ["a"]}
    )

    assert old.once_guard().options == written.once_guard().options


def test_it_points_to_the_line_of_the_task(app: Celery) -> None:
    """Not to where Celery makes it, which may be anywhere, and once however often that is."""
    decorated = line() + 2

    @app.task(base=compat.QueueOnce, shared=False)
    def sync() -> None: ...

    with hearing() as said:
        app.finalize()
        sync.bind(app)

    assert [(each.filename, each.lineno) for each in said] == [(HERE, decorated)]


def test_a_call_says_it_once_for_a_line(app: Celery) -> None:
    """Two lines are two places, and one line in a loop is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sync = define(app, compat.QueueOnce, once={"graceful": True})

    with hearing() as said:
        for number in range(3):
            sync.apply_async((number,), once={"timeout": 60})
        sync.apply_async((9,), once={"timeout": 60})
        second = line() - 1
        sync.apply_async((10,), once={"ttl": 60})

    text = "the options of this call of shop.sync are celery-once's; write once={'ttl': 60}"
    assert texts(said) == [text, text]
    assert [each.lineno for each in said] == [second - 1, second]


def test_settings_are_said_once(app: Celery) -> None:
    """Wherever they are read, and without the password in a URL."""
    settings = {"url": "redis://:secret@cache:6379/1", "default_timeout": 60}
    app.conf.ONCE = {"backend": "celery_once.backends.Redis", "settings": settings}

    with hearing() as said:
        for _ in range(2):
            define(app, compat.QueueOnce).once_guard()

    assert texts(said)[0] == (
        "app.conf.ONCE is celery-once's; write "
        "app.conf.once_url = 'redis://***@cache:6379/1', app.conf.once_ttl = 60"
    )
    assert len({text for text in texts(said) if "conf" in text}) == 1


def test_blocking_is_explained(app: Celery) -> None:
    """What replaces it is another scope."""
    app.conf.ONCE = {"settings": {"blocking": True}}

    with hearing() as said:
        define(app, compat.QueueOnce)

    assert 'app.conf.once_scope = "queued+running"' in texts(said)[0]


def test_settings_of_celery_singleton(app: Celery) -> None:
    """All of them in one sentence; an encoder is not needed any more."""
    app.conf.update(
        singleton_key_prefix="shop",
        singleton_lock_expiry=60,
        singleton_raise_on_duplicate=True,
        singleton_json_encoder_class="shop.Encoder",
    )

    with hearing() as said:
        define(app, compat.Singleton)

    assert texts(said)[:2] == [
        (
            "singleton_json_encoder_class has no effect, leave it out: once has a form for UUID, "
            "datetime, Decimal, Enum, dataclasses and models; for others give key="
        ),
        (
            "the settings singleton_* are celery-singleton's; write app.conf.once_prefix = 'shop', "
            "app.conf.once_ttl = 60, app.conf.once_on_duplicate = 'raise'"
        ),
    ]


def test_functions_that_do_nothing_say_so(app: Celery) -> None:
    """Each at the line that calls it."""
    with hearing() as said:
        compat.setup_once_task_signals()
        compat.teardown_once_task_signals()
        compat.OnceTaskUnlockBootStep(app).include_if(app)
        compat.configure(running_lock_timeout=60)
        compat.clear_locks(app)
        last = line() - 1

    assert [each.lineno for each in said] == list(range(last - 4, last + 1))
    assert all(each.filename == HERE for each in said)
    assert [text.partition(" ")[0] for text in texts(said)] == [
        "setup_once_task_signals()",
        "teardown_once_task_signals()",
        'app.steps["worker"].add(OnceTaskUnlockBootStep)',
        "configure",
        "clear_locks",
    ]


def test_old_settings_with_our_own_task(app: Celery) -> None:
    """Who has changed the base class and not yet the settings is told, too; ours go before."""
    app.conf.update(once_redis_url="redis://cache:6379/1", once_running_lock_timeout=60)
    app.conf.update(once_queue_lock_timeout=60, once_ttl=99)

    with hearing() as said:
        task = define(app, OnceTask)

    options = task.once_guard().options
    assert (options.ttl, options.url) == (99.0, "memory://test-replaced")
    assert sorted(text.partition(";")[0].rpartition(" is ")[0] for text in texts(said)) == [
        "the setting once_queue_lock_timeout",
        "the setting once_redis_url",
        "the setting once_running_lock_timeout",
    ]


def test_as_an_error_it_is_said_again(app: Celery) -> None:
    """Where a filter makes it an error it is one every time, and not only the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(DeprecationWarning, match="stands in for celery-once"):
                define(app, compat.QueueOnce)


@pytest.mark.filterwarnings("ignore:once_celery.compat:DeprecationWarning")
@pytest.mark.parametrize("base", [compat.QueueOnce, compat.Singleton, celery_once_task.OnceTask])
def test_what_is_no_options_is_refused(app: Celery, base: type[OnceTask]) -> None:
    """As with our own task."""
    with pytest.raises(ConfigurationError, match="must be a dict of options"):
        define(app, base, once="yes")
    with pytest.raises(ConfigurationError, match="did you mean 'key'"):
        define(app, base, once={"kex": ["a"]})


def test_the_names_at_the_top() -> None:
    """Everything but celery-once-task's class, which has the name of ours, is there."""
    modules = (compat.celery_once, compat.celery_singleton, celery_once_task)
    names = {name for module in modules for name in module.__all__}

    assert set(compat.__all__) == names - {"OnceTask", "reset_config"}
    assert compat.DuplicateTaskError is compat.celery_singleton.DuplicateTaskError
