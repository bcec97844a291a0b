"""Celery's configuration and tasks in our words: stores, options, base classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery, Task, signals

from once_celery import OnceOptions, OnceTask
from once_celery._binding import Binding, task_options
from once_core.errors import ConfigurationError, StoreUnavailableError
from once_core.options import OPTIONS
from once_pytest import assert_task_locked, assert_task_not_locked

NO_STORE = (
    "once has no lock store: neither the broker nor the result backend of this app is a Redis. "
    "Set once_url in the app's configuration (CELERY_ONCE_URL under Django's namespace), or the "
    "environment variable ONCE_URL, to a redis:// URL"
)


def _app(**conf: Any) -> Celery:
    app = Celery("tests", set_as_current=False)
    app.conf.update({"broker_url": "memory://", **conf})
    return app


def _define(app: Celery, name: str = "shop.sync", **options: Any) -> Any:
    """A task, bound: Celery itself waits until it is first used."""

    def sync(order_id: object, note: object = "") -> None: ...

    options.setdefault("base", OnceTask)
    task = app.task(name=name, shared=False, **options)(sync)
    assert task.name == name
    return task


def _refused(app: Celery, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        _define(app, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("conf", "url"),
    [
        ({"broker_url": "redis://cache:6380/2"}, "redis://cache:6380/2"),
        ({"broker_url": "redis://:pw@cache/2"}, "redis://:pw@cache/2"),
        ({"broker_url": "redis://"}, "redis://localhost"),
        ({"broker_url": "rediss://cache/2"}, "rediss://cache/2"),
        (
            {"broker_url": "rediss://cache/2?ssl_cert_reqs=CERT_NONE"},
            "rediss://cache/2?ssl_cert_reqs=none",
        ),
        ({"broker_url": "redis://cache?virtual_host=5&db=4"}, "redis://cache?db=4"),
        (
            {"broker_url": "redis+socket:///run/redis.sock?virtual_host=3"},
            "unix:///run/redis.sock?db=3",
        ),
        ({"broker_url": "redis+socket:///run/redis.sock"}, "unix:///run/redis.sock?db=0"),
        (
            {
                "broker_url": "sentinel://a:1/2;sentinel://b:2/2",
                "broker_transport_options": {"master_name": "main"},
            },
            "redis+sentinel://a:1,b:2/2/main",
        ),
        ({"broker_url": ["amqp://rabbit", "redis://cache"]}, "redis://cache"),
        ({"broker_url": "amqp://rabbit;redis://cache"}, "redis://cache"),
        ({"broker_url": "redis://one;redis://two"}, "redis://one"),
        ({"broker_read_url": "redis://read", "broker_write_url": "redis://write"}, "redis://write"),
        ({"broker_url": "amqp://rabbit", "result_backend": "redis://results"}, "redis://results"),
        ({"broker_url": "redis://broker", "result_backend": "redis://results"}, "redis://broker"),
    ],
)
def test_discovery(conf: dict[str, Any], url: str) -> None:
    """Where broker or result backend is a Redis, it is the lock store without any setting."""
    assert Binding.of(_app(**conf))._discovered() == url


def test_quoted_sentinel_password() -> None:
    """A quoted password of a sentinel URL means the same in ours."""
    app = _app(broker_url="sentinel://:p%2Fw@a", broker_transport_options={"master_name": "main"})
    client: Any = Binding.of(app).store(OnceOptions()).client()

    assert client.connection_pool.connection_kwargs["password"] == "p/w"


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"broker_url": "amqp://rabbit", "result_backend": "rpc://"},
        {"broker_url": "amqp://rabbit", "result_backend": "db+sqlite:///x"},
        {"broker_url": "sentinel://a:1"},
        {"broker_url": "sqs://"},
    ],
)
def test_no_store(conf: dict[str, Any]) -> None:
    """Without any Redis the error says what to set."""
    app = _app(**conf)
    task = _define(app)

    with pytest.raises(ConfigurationError) as caught:
        task.delay(1)
    assert str(caught.value) == NO_STORE


def test_store_of_the_app_and_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's own URL wins over the app's, the app's over the environment, that over Celery's."""
    app = _app(broker_url="redis://broker")
    binding = Binding.of(app)
    assert binding.guard(_define(app, "discovered")).store.place == "redis://broker"

    monkeypatch.setenv("ONCE_URL", "redis://environment")
    app = _app(broker_url="redis://broker")
    assert Binding.of(app).guard(_define(app)).store.place == "redis://environment"

    app = _app(broker_url="redis://broker", once_url="redis://app")
    assert Binding.of(app).guard(_define(app)).store.place == "redis://app"
    task = _define(app, "own", once={"url": "redis://task"})
    assert Binding.of(app).guard(task).store.place == "redis://task"


def test_stores_are_shared() -> None:
    """All tasks that lock in one place share one store."""
    app = _app(once_url="redis://app")
    binding = Binding.of(app)
    first, second = (binding.guard(_define(app, name)).store for name in ("a", "b"))

    assert first is second


def test_given_client() -> None:
    """A client or a function that makes one can be set for the app."""
    client = redis.Redis()
    app = _app(once_client=lambda: client)
    task = _define(app)

    assert Binding.of(app).guard(task).store.client() is client


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"once": None}, {}),
        ({"once": True}, {}),
        ({"once": {"ttl": 5}}, {"ttl": 5}),
        ({"once": OnceOptions(ttl=5)}, {"ttl": 5.0}),
        ({"once": False}, None),
        ({"queue_lock": False}, {"scope": "running"}),
        ({"running_lock": False}, {"scope": "queued"}),
        ({"running_lock": False, "once": {"ttl": 5}}, {"scope": "queued", "ttl": 5}),
        ({"queue_lock": False, "running_lock": False}, None),
        ({"name": "celery.backend_cleanup"}, None),
    ],
)
def test_task_options(options: dict[str, Any], expected: object) -> None:
    """Options are a dict or OnceOptions; the two switches are short for a scope."""
    assert task_options(_define(_app(), **options)) == expected


def test_switches_and_scope() -> None:
    """A switch beside a scope is a contradiction."""
    assert _refused(_app(), once={"scope": "queued"}, queue_lock=False) == (
        "shop.sync has scope='queued' and also queue_lock=False, running_lock=True, which are "
        "short for a scope; give one of them"
    )


@pytest.mark.parametrize("once", ["queued", 5, ["scope"]])
def test_wrong_once(once: Any) -> None:
    """What is no options is refused, with what it can be."""
    assert _refused(_app(), once=once) == (
        f"once={once!r} of shop.sync must be a dict of options, OnceOptions(...), True or False"
    )


@pytest.mark.parametrize(
    ("once", "text"),
    [
        ({"leese": 5}, "once has no option 'leese'; did you mean 'lease'? (given for shop.sync)"),
        (
            {"lease": 0.2},
            "once option lease=0.2 of shop.sync must be seconds, finite and at least 1 second",
        ),
        ({"url": "amqp://u:s3cret@h"}, "the lock store's URL 'amqp://***@h' has the scheme 'amqp'"),
        ({"scope": "until_executed"}, "what others call 'until_executed' is scope='until_done'"),
    ],
)
def test_refused_when_defined(once: dict[str, Any], text: str) -> None:
    """What cannot work is refused when the task is defined, naming the task."""
    assert text in _refused(_app(), once=once)


def test_missing_parameter_in_key() -> None:
    """A parameter in key= that the task has not is refused when the task is defined."""
    text = _refused(_app(), once={"key": ["order"]})

    assert "shop.sync" in text
    assert "'order'" in text
    assert "order_id" in text


def test_missing_parameter_in_preview() -> None:
    """A parameter in preview= that the task has not is refused when the task is defined."""
    assert "'order'" in _refused(_app(), once={"preview": ["order"]})


def test_impossible_prefix() -> None:
    """A prefix that no key can have is refused when the task is defined."""
    assert "prefix" in _refused(_app(), once={"prefix": "shop {x}"})


def test_self_is_no_parameter() -> None:
    """A bound task's `self` is none of the arguments that identify its work."""
    app = _app(once_url="memory://bound")

    @app.task(base=OnceTask, bind=True, name="bound", shared=False, once={"key": ["order_id"]})
    def bound(self: Any, order_id: object) -> None: ...

    guard = Binding.of(app).guard(bound)

    assert guard.key((1,), {}) == guard.key((), {"order_id": 1})


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("once_leese", "did you mean 'once_lease'?"),
        ("ONCE_SCOPES", "did you mean 'once_scope'?"),
    ],
)
def test_unknown_setting(setting: str, hint: str) -> None:
    """A once_* setting that is none of ours is refused, naming the nearest."""
    assert _refused(_app(**{setting: 5})) == f"the setting {setting} is none of once; {hint}"


def test_unknown_setting_with_nothing_near() -> None:
    """Where nothing is near, all settings are named."""
    known = ", ".join(f"once_{name}" for name in OPTIONS)

    assert _refused(_app(once_xyzzy=5)) == (
        f"the setting once_xyzzy is none of once; there are {known}"
    )


class DjangoSettings:
    """As Django's settings, with Celery's in a namespace of their own."""

    CELERY_BROKER_URL = "memory://"
    CELERY_ONCE_URL = "memory://django"
    CELERY_ONCE_LEASE = 20


def _django(**settings: object) -> Celery:
    app = Celery("django", set_as_current=False)
    app.config_from_object(type("Settings", (DjangoSettings,), settings)(), namespace="CELERY")
    return app


def test_namespace() -> None:
    """Under Django's namespace CELERY_ONCE_URL works by itself."""
    app = _django()
    guard = Binding.of(app).guard(_define(app))

    assert (guard.store.place, guard.options.lease) == ("memory://django", 20.0)


def test_unknown_setting_in_a_namespace() -> None:
    """Under a namespace an unknown setting is refused like any other."""
    assert _refused(_django(CELERY_ONCE_LEESE=5)) == (
        "the setting CELERY_ONCE_LEESE is none of once; did you mean 'once_lease'?"
    )


def test_settings_are_the_apps_layer() -> None:
    """once_* settings hold for all tasks that do not say otherwise."""
    app = _app(once_url="memory://x", once_ttl=10, once_lease=20, once_prefix="shop")
    binding = Binding.of(app)
    plain, own = _define(app, "plain"), _define(app, "own", once={"lease": 30})

    assert (binding.guard(plain).options.ttl, binding.guard(plain).options.lease) == (10.0, 20.0)
    assert (binding.guard(own).options.ttl, binding.guard(own).options.lease) == (10.0, 30.0)
    assert binding.guard(own).key((1,), {}).startswith("shop:own:")


def test_wrong_setting() -> None:
    """A setting that cannot be names the app's configuration."""
    assert _refused(_app(once_url="memory://x", once_lease=0)) == (
        "once option lease=0 of the app's configuration must be seconds, finite and at least "
        "1 second"
    )


def test_late_configuration() -> None:
    """Configuration may come after the tasks."""
    app = _app()
    task = _define(app)
    app.conf.once_url = "memory://late"

    assert Binding.of(app).guard(task).store.place == "memory://late"


def test_window_from_the_app() -> None:
    """scope="window" may rely on a window= of the app."""
    app = _app(once_url="memory://x", once_window=5)
    task = _define(app, once={"scope": "window"})

    assert Binding.of(app).guard(task).options.window == 5.0
    assert "needs window=" in _refused(_app(), once={"scope": "window"})


class ContextTask(Task):  # type: ignore[misc]  # Celery has no types
    """As Flask's documentation has it."""

    abstract = True

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.run(*args, **kwargs)


def test_hidden_call() -> None:
    """A base class whose __call__ hides ours is refused, with the right order."""

    class WrongOrder(ContextTask, OnceTask):
        abstract = True

    assert _refused(_app(), base=WrongOrder) == (
        "shop.sync: ContextTask.__call__ hides that of OnceTask, so the task would run unguarded; "
        "name OnceTask first: class MyTask(OnceTask, ContextTask)"
    )


@pytest.mark.usefixtures("once_locks")
def test_right_order() -> None:
    """OnceTask in front of a Flask-style base class works."""

    class RightOrder(OnceTask, ContextTask):
        abstract = True

    task = _define(_app(), base=RightOrder)
    sent = task.delay(1)

    assert sent.once.state == "claimed"
    assert_task_locked(task, 1, state="waiting", holder=sent)


def test_subclass_with_a_call_of_its_own() -> None:
    """A subclass of OnceTask that wraps its __call__ is no mistake."""

    class Wrapping(OnceTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    assert _define(_app(once_url="memory://x"), base=Wrapping).name == "shop.sync"


@pytest.mark.usefixtures("once_locks")
def test_base_of_all_tasks() -> None:
    """`app.Task = OnceTask` guards all tasks but Celery's own."""
    app = _app()
    app.Task = OnceTask
    app.finalize()
    mine = _define(app, base=None)
    cleanup = app.tasks["celery.backend_cleanup"]
    sent = mine.delay(1)

    assert isinstance(cleanup, OnceTask)
    assert task_options(cleanup) is None
    assert cleanup.delay().once.state == "off"
    assert isinstance(mine, OnceTask)
    assert sent.once.state == "claimed"
    assert_task_locked(mine, 1, state="waiting", holder=sent)


def _receivers() -> dict[str, int]:
    found = {}
    for name in ("task_postrun", "task_revoked", "task_failure"):
        lookups = [key[0] for key, _ in getattr(signals, name).receivers]
        found[name] = sum(str(each).startswith("once.") for each in lookups)
    return found


def test_bound_twice() -> None:
    """Binding a task again connects no signal twice."""
    app = _app(once_url="memory://x")
    task = _define(app)
    before = _receivers()
    type(app.tasks[task.name]).on_bound(app)
    _define(app, "other")

    assert before == _receivers() == {"task_postrun": 1, "task_revoked": 1, "task_failure": 1}


def test_bindings_are_per_app() -> None:
    """Two apps in one process share nothing."""
    one, two = _app(once_url="memory://one"), _app(once_url="memory://two")

    assert Binding.of(one) is Binding.of(one)
    assert Binding.of(one) is not Binding.of(two)


def test_switched_off() -> None:
    """once=False and both switches off leave a plain Celery task, without any lock store."""
    app = _app()
    for name, options in (
        ("off", {"once": False}),
        ("both", {"queue_lock": False, "running_lock": False}),
    ):
        assert _define(app, name, **options).delay(1).once.state == "off"


@pytest.mark.usefixtures("once_locks")
def test_call_switched_off() -> None:
    """once=False at a call passes all locks."""
    task = _define(_app())
    states = [task.apply_async((1,), once=once).once.state for once in (None, False, None)]

    assert states == ["claimed", "off", "waiting"]
    assert_task_locked(task, 1, state="waiting")


@pytest.mark.usefixtures("once_locks")
def test_wrong_call_options() -> None:
    """What is no options at a call is refused."""
    task = _define(_app())

    with pytest.raises(ConfigurationError) as caught:
        task.apply_async((1,), once="queued")
    assert str(caught.value) == (
        "once='queued' must be a dict of options, OnceOptions(...) or False"
    )
    assert_task_not_locked(task, 1)


@pytest.mark.parametrize(
    "ask",
    [lambda t: t.is_locked(1), lambda t: t.holder(1), lambda t: t.release(1), lambda t: t.delay(1)],
)
def test_store_away(ask: Callable[[Any], object]) -> None:
    """Whatever a task is asked while the store is away: Celery's handlers see the error too."""
    from kombu.exceptions import OperationalError

    task = _define(_app(once_url="redis://127.0.0.1:1"))

    with pytest.raises(OperationalError) as caught:
        ask(task)
    assert isinstance(caught.value, StoreUnavailableError)
    assert caught.value.url == "redis://127.0.0.1:1"


@pytest.mark.usefixtures("once_locks")
def test_people_may_ask() -> None:
    """is_locked, holder and release tell and free the unit of a call."""
    task = _define(_app())
    sent = task.delay(1)
    holder = task.holder(1)

    assert task.is_locked(1)
    assert (holder.state, holder.message_id) == ("waiting", sent.id)
    assert task.release(1)
    assert not task.release(1)
    assert not task.is_locked(1)
    assert task.holder(1) is None
