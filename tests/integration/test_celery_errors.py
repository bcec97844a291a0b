"""Configuration, and what is said when it cannot work: each error by its text, at its moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from _support.celery_app import make_app
from _support.deployment import Deployment
from celery import Celery, Task
from kombu.exceptions import OperationalError

from once_celery import (
    ConfigurationError,
    KeyDerivationError,
    OnceOptions,
    OnceTask,
    StoreUnavailableError,
)
from once_core.devserver import DevServer

NOWHERE = "redis://:secret@127.0.0.1:1/0"
"""A port on which nothing listens."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test sets itself counts."""
    monkeypatch.delenv("ONCE_URL", raising=False)
    monkeypatch.delenv("ONCE_PREFIX", raising=False)


@pytest.fixture
def memory(unit: str) -> str:
    """A lock store in this process, of this test alone."""
    return f"memory://{unit}"


def make(**conf: Any) -> Celery:
    """An app that is configured as its user would."""
    app = Celery("shop", set_as_current=False)
    app.conf.update({"broker_url": "memory://", **conf})
    return app


def define(app: Celery, **options: Any) -> Any:
    """A task as users write it; Celery makes it when it is first used."""

    @app.task(name="sync_order", shared=False, **{"base": OnceTask, **options})
    def sync_order(order_id: Any, force: bool = False) -> None: ...

    app.finalize()
    return sync_order


def published(app: Celery) -> list[dict]:
    """Record every message that the app hands to its broker."""
    found: list[dict] = []
    real = app.amqp.send_task_message

    def send(producer: Any, name: str, message: Any, **options: Any) -> Any:
        found.append({"name": name, "headers": message.headers})
        return real(producer, name, message, **options)

    app.amqp.send_task_message = send
    return found


# Where the configuration comes from


def test_settings_are_read_from_the_app(memory: str) -> None:
    """app.conf.once_* are the defaults of every task of the app."""
    app = make(once_prefix="shop", once_scope="until_done", once_on_duplicate="raise")
    app.conf.once_url = memory
    task = define(app)

    first = task.delay(1)

    assert first.once.key.startswith("shop:sync_order:")
    with pytest.raises(ConfigurationError, match="never applies with scope='running'"):
        task.apply_async((1,), once={"scope": "running", "on_duplicate": "raise"})
    with pytest.raises(Exception, match=f"held by {first.id}"):
        task.delay(1)


def test_settings_may_come_after_the_tasks(memory: str) -> None:
    """A task that was defined before the app was configured sees the configuration."""
    app = Celery("shop", set_as_current=False)
    task = define(app)

    app.conf.update({"broker_url": "memory://", "once_url": memory, "once_prefix": "late"})

    assert task.delay(1).once.key.startswith("late:")


def test_djangos_namespace_works_by_itself(memory: str) -> None:
    """With namespace="CELERY" the settings are CELERY_ONCE_URL and so on."""

    class Settings:
        CELERY_BROKER_URL = "memory://"
        CELERY_ONCE_URL = memory
        CELERY_ONCE_PREFIX = "django"

    app = Celery("shop", set_as_current=False)
    app.config_from_object(Settings, namespace="CELERY")
    task = define(app)

    assert task.delay(1).once.key.startswith("django:sync_order:")
    assert task.delay(1).once.is_duplicate


def test_a_task_wins_over_the_app_and_a_call_over_both(memory: str) -> None:
    """The nearest layer counts: call, then task, then app."""
    app = make(once_url=memory, once_prefix="app")
    task = define(app, once={"prefix": "task"})

    assert define(make(once_url=memory, once_prefix="app")).delay(1).once.key.startswith("app:")
    assert task.delay(1).once.key.startswith("task:")
    called = task.apply_async((1,), once={"prefix": "call"})
    assert called.once.key.startswith("call:")


def test_the_environment_is_the_last_layer(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONCE_URL and ONCE_PREFIX count where the app says nothing."""
    monkeypatch.setenv("ONCE_URL", memory)
    monkeypatch.setenv("ONCE_PREFIX", "env")

    assert define(make()).delay(1).once.key.startswith("env:")
    assert define(make(once_prefix="app")).delay(1).once.key.startswith("app:")


def test_a_redis_broker_is_the_lock_store(shared_server: DevServer, unit: str) -> None:
    """Without any once_* setting the lock store is the Redis that is the broker."""
    app = make(broker_url=shared_server.url, task_default_queue=unit)

    handle = define(app).delay(unit)

    assert shared_server.client().exists(handle.once.key) == 1
    app.close()


def test_a_redis_result_backend_is_the_lock_store(shared_server: DevServer, unit: str) -> None:
    """With another broker the lock store is the Redis that is the result backend."""
    app = make(result_backend=shared_server.url)

    handle = define(app).delay(unit)

    assert shared_server.client().exists(handle.once.key) == 1
    app.close()


def test_once_url_wins_over_the_broker(shared_server: DevServer, memory: str, unit: str) -> None:
    """A lock store that is named is used, whatever the broker is."""
    app = make(broker_url=shared_server.url, task_default_queue=unit, once_url=memory)

    handle = define(app).delay(unit)

    assert shared_server.client().exists(handle.once.key) == 0
    app.close()


def test_a_worker_without_configuration_guards(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """Producer and worker agree on the lock store with nothing but a Redis broker set."""
    scene = deploy()
    del scene.settings["once_url"]
    scene.app = make_app(scene.settings)
    first = scene.task("work").delay(unit)
    duplicate = scene.task("work").delay(unit)

    scene.worker()

    assert (duplicate.id, duplicate.get(timeout=20)) == (first.id, f"done {unit}")
    scene.app.backend.result_consumer.stop()
    assert scene.store.client().exists(first.once.key) == 0
    assert [run.fence is not None for run in scene.runs(unit)] == [True]


# No store, a wrong one, and one that is away


def test_no_lock_store_says_what_to_set() -> None:
    """Where nothing is a Redis the first call says which setting is missing."""
    app = make()
    sent = published(app)

    with pytest.raises(ConfigurationError) as caught:
        define(app).delay(1)

    assert str(caught.value) == (
        "once has no lock store: neither the broker nor the result backend of this app is a "
        "Redis. Set once_url in the app's configuration (CELERY_ONCE_URL under Django's "
        "namespace), or the environment variable ONCE_URL, to a redis:// URL"
    )
    assert sent == []


@pytest.mark.parametrize("layer", ["app", "environment", "task"])
def test_a_wrong_scheme_is_named_with_the_right_ones(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL of another kind is refused, without its password: of a task when it is defined."""
    url = "http://user:secret@cache:6379/0"
    app = make(once_url=url) if layer == "app" else make()
    if layer == "environment":
        monkeypatch.setenv("ONCE_URL", url)

    def use() -> None:
        task = define(app, once={"url": url} if layer == "task" else {})
        assert layer != "task", "defining the task should have failed"
        task.delay(1)

    with pytest.raises(ConfigurationError) as caught:
        use()

    text = str(caught.value)
    assert text.startswith(
        "the lock store's URL 'http://***@cache:6379/0' has the scheme 'http', which is none of\n"
        "  redis://[user:password@]host[:6379][/database]\n"
    )
    assert text.endswith("\nSet once_url (Celery) or ONCE_URL to one of these")
    assert caught.value.option == "url"


def test_a_url_that_is_no_url_is_refused() -> None:
    """A port that is no number is an error of the configuration, not of the network."""
    with pytest.raises(ConfigurationError) as caught:
        define(make(once_url="redis://cache:port/0"))

    assert str(caught.value).startswith(
        "the lock store's URL 'redis://cache:port/0' cannot be used: Port could not be cast"
    )


@pytest.mark.parametrize("kind", [StoreUnavailableError, OperationalError])
def test_an_unreachable_server_sends_nothing(
    deploy: Callable[..., Deployment], unit: str, kind: type[Exception]
) -> None:
    """delay() says where the store is, why it failed and what can be done, and sends nothing."""
    scene = deploy(conf={"once_url": NOWHERE})

    with pytest.raises(kind) as caught:
        scene.task("work").delay(unit)

    text = str(caught.value)
    assert text.startswith(
        "the lock store at redis://***@127.0.0.1:1/0 is not available (ConnectionError: "
    )
    assert text.endswith(
        '; check that it runs and can be reached, or set on_store_error="run" to go on without '
        "the lock"
    )
    assert "secret" not in text
    assert scene.queued() == 0


@pytest.mark.parametrize("question", ["is_locked", "holder", "release"])
def test_nobody_can_say_while_the_server_is_unreachable(question: str) -> None:
    """is_locked, holder and release raise what delay() raises."""
    task = define(make(once_url=NOWHERE))

    with pytest.raises(StoreUnavailableError, match="is not available"):
        getattr(task, question)(1)


def test_on_store_error_run_sends_without_the_lock(
    deploy: Callable[..., Deployment], unit: str
) -> None:
    """With on_store_error="run" every call is sent, and its handle says that nothing guards it."""
    scene = deploy(conf={"once_url": NOWHERE, "once_on_store_error": "run"})

    calls = [scene.task("work").delay(unit) for _ in range(2)]

    assert scene.queued() == 2
    assert [call.once.state for call in calls] == ["unguarded", "unguarded"]


# Options


UNKNOWN = "once has no option 'leese'; did you mean 'lease'?"


def test_an_unknown_option_of_a_task_fails_when_it_is_defined(memory: str) -> None:
    """A misspelt option is named with the nearest known one, before any call."""
    with pytest.raises(ConfigurationError) as caught:
        define(make(once_url=memory), once={"leese": 5})

    assert str(caught.value) == f"{UNKNOWN} (given for sync_order)"


def test_an_unknown_option_of_an_instance_fails_when_it_is_made() -> None:
    """OnceOptions(...) checks itself."""
    with pytest.raises(ConfigurationError) as caught:
        OnceOptions(leese=5)

    assert str(caught.value) == UNKNOWN


def test_an_unknown_option_of_a_call_sends_nothing(memory: str) -> None:
    """A call with a misspelt option is refused before anything is locked or sent."""
    app = make(once_url=memory)
    task, sent = define(app), published(app)

    with pytest.raises(ConfigurationError) as caught:
        task.apply_async((1,), once={"leese": 5})

    assert str(caught.value) == f"{UNKNOWN} (given for sync_order)"
    assert (sent, task.is_locked(1)) == ([], False)


@pytest.mark.parametrize(
    ("option", "value"), [("url", "redis://other"), ("secret", "s"), ("preview", ["order_id"])]
)
def test_options_that_a_worker_would_not_see_are_refused_at_a_call(
    memory: str, option: str, value: object
) -> None:
    """What only a task can have is refused at a call, with the reason."""
    with pytest.raises(ConfigurationError) as caught:
        define(make(once_url=memory)).apply_async((1,), once={option: value})

    assert str(caught.value) == (
        f"once option {option!r} of sync_order cannot be given at a call, for the worker would "
        "not see it; give it where the task is defined"
    )


def test_an_unknown_setting_is_named(memory: str) -> None:
    """A misspelt once_* setting fails the first call, with the nearest known one."""
    app = make(once_url=memory, once_leese=5)

    with pytest.raises(ConfigurationError) as caught:
        define(app).delay(1)

    assert str(caught.value) == (
        "the setting once_leese is none of once; did you mean 'once_lease'?"
    )


def test_an_unknown_setting_in_djangos_namespace_is_named(memory: str) -> None:
    """A misspelt CELERY_ONCE_* setting is as wrong as a misspelt once_* one."""

    class Settings:
        CELERY_BROKER_URL = "memory://"
        CELERY_ONCE_URL = memory
        CELERY_ONCE_LEESE = 5

    app = Celery("shop", set_as_current=False)
    app.config_from_object(Settings, namespace="CELERY")

    with pytest.raises(
        ConfigurationError, match="CELERY_ONCE_LEESE is none of once; did you mean 'once_lease'"
    ):
        define(app).delay(1)


def test_once_must_be_options(memory: str) -> None:
    """once=5 is refused when the task is defined, and at a call."""
    with pytest.raises(ConfigurationError) as of_task:
        define(make(once_url=memory), once=5)
    with pytest.raises(ConfigurationError) as of_call:
        define(make(once_url=memory)).apply_async((1,), once=5)

    assert str(of_task.value) == (
        "once=5 of sync_order must be a dict of options, OnceOptions(...), True or False"
    )
    assert str(of_call.value) == "once=5 must be a dict of options, OnceOptions(...) or False"


NUMBERS = [
    ("ttl", 0, "seconds, finite and at least 1 second"),
    ("ttl", -1, "seconds, finite and at least 1 second"),
    ("lease", 0, "seconds, finite and at least 1 second"),
    ("lease", 0.5, "seconds, finite and at least 1 second"),
    ("lease", float("inf"), "seconds, finite and at least 1 second"),
    ("lease", "60", "seconds as a number or a timedelta"),
    ("lease", True, "seconds as a number or a timedelta"),
    ("heal_after", 0, "seconds, finite and more than 0"),
    ("window", -1, "seconds, finite and more than 0"),
    ("keep_for", 0, "seconds, finite and more than 0"),
    ("debounce", -0.1, "seconds, finite and more than 0"),
    ("debounce_max", 0, "seconds, finite and more than 0"),
    ("warn_after", -5, "seconds, finite and more than 0"),
]


@pytest.mark.parametrize(("option", "value", "must"), NUMBERS)
@pytest.mark.parametrize("layer", ["task", "call", "app"])
def test_durations_must_be_possible(
    memory: str, layer: str, option: str, value: object, must: str
) -> None:
    """Durations that are not positive, and leases under a second, are refused in every layer."""
    conf = {f"once_{option}": value} if layer == "app" else {}
    app = make(once_url=memory, **conf)
    sent = published(app)

    def use() -> None:
        task = define(app, once={option: value} if layer == "task" else {})
        assert layer != "task", "defining the task should have failed"
        task.apply_async((1,), once={option: value} if layer == "call" else None)

    with pytest.raises(ConfigurationError) as caught:
        use()

    of = "the app's configuration" if layer == "app" else "sync_order"
    assert str(caught.value) == f"once option {option}={value!r} of {of} must be {must}"
    assert (caught.value.option, sent) == (option, [])


CONTRADICTIONS = [
    ({"scope": "window"}, "scope='window'", "needs window=, the seconds in which others are"),
    ({"window": 5}, "window=5.0", 'needs scope="window"'),
    ({"debounce": 5}, "debounce=5.0", 'needs on_duplicate="replace"'),
    (
        {"scope": "running", "on_duplicate": "raise"},
        "on_duplicate='raise'",
        "never applies with scope='running'",
    ),
    (
        {"scope": "queued", "on_overlap": "skip"},
        "on_overlap='skip'",
        "never applies with scope='queued'",
    ),
    (
        {"scope": "queued", "keep_for": 5},
        "keep_for=5.0",
        'needs scope="queued+running" or "until_done"',
    ),
]


@pytest.mark.parametrize(("once", "option", "why"), CONTRADICTIONS)
def test_contradictions_fail_when_the_task_is_defined(
    memory: str, once: dict, option: str, why: str
) -> None:
    """Options of which one would never count are refused, with the reason."""
    with pytest.raises(ConfigurationError) as caught:
        define(make(once_url=memory), once=once)

    assert str(caught.value).startswith(f"once option {option} of sync_order {why}")


def test_a_scope_of_other_libraries_is_translated(memory: str) -> None:
    """The error for a name that other libraries use says what it is called here."""
    with pytest.raises(ConfigurationError) as caught:
        define(make(once_url=memory), once={"scope": "until_executed"})

    assert str(caught.value) == (
        "once option scope='until_executed' of sync_order must be one of 'queued+running', "
        "'until_done', 'queued', 'running', 'window'; what others call 'until_executed' is "
        "scope='until_done' here"
    )


def test_a_switch_and_a_scope_are_one_too_many(memory: str) -> None:
    """queue_lock= or running_lock= beside scope= is refused when the task is defined."""
    with pytest.raises(ConfigurationError) as caught:
        define(make(once_url=memory), once={"scope": "queued"}, queue_lock=False)

    assert str(caught.value) == (
        "sync_order has scope='queued' and also queue_lock=False, running_lock=True, which are "
        "short for a scope; give one of them"
    )


def test_a_base_class_that_hides_the_guard_is_refused(memory: str) -> None:
    """A base class whose __call__ comes before that of OnceTask would run the task unguarded."""

    class ContextTask(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    class WrongOrder(ContextTask, OnceTask):
        abstract = True

    with pytest.raises(ConfigurationError) as caught:
        define(make(once_url=memory), base=WrongOrder)

    assert str(caught.value) == (
        "sync_order: ContextTask.__call__ hides that of OnceTask, so the task would run "
        "unguarded; name OnceTask first: class MyTask(OnceTask, ContextTask)"
    )


# Keys and arguments


@pytest.mark.parametrize("key", [["ordr_id"], "order-{ordr_id}"])
def test_a_parameter_that_is_not_there_fails_when_the_task_is_defined(
    memory: str, key: object
) -> None:
    """key= that names no parameter of the body is refused with the nearest one."""
    with pytest.raises(ConfigurationError) as caught:
        define(make(once_url=memory), once={"key": key})

    assert str(caught.value) == (
        "sync_order: key= names 'ordr_id', which is no parameter; did you mean 'order_id'? "
        "Parameters: order_id, force"
    )


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (object(), "order_id (object)"),
        ({"lines": [1, print]}, 'order_id["lines"][1] (builtin_function_or_method)'),
    ],
    ids=["object", "nested"],
)
def test_an_argument_without_a_form_is_named(memory: str, value: object, place: str) -> None:
    """The error names task, place and type of the argument, and the way out; nothing is sent."""
    app = make(once_url=memory)
    task, sent = define(app), published(app)

    with pytest.raises(KeyDerivationError) as caught:
        task.delay(value)

    assert str(caught.value) == (
        f"sync_order: {place} has no form that is the same in every process. Leave it out with "
        "key=[...], derive the key by key=callable, or pass an id or string."
    )
    assert (caught.value.task, sent) == ("sync_order", [])


def test_an_unhashable_argument_is_no_trouble(memory: str) -> None:
    """Lists and dicts identify work as well as numbers do."""
    task = define(make(once_url=memory))

    first = task.delay({"lines": [1, {"a": None}]})

    assert task.delay({"lines": (1, {"a": None})}).id == first.id
    assert task.delay({"lines": [1, {"a": 0}]}).id != first.id


def test_arguments_that_do_not_fit_take_nothing(memory: str) -> None:
    """Celery's own error for wrong arguments comes before anything is locked."""
    app = make(once_url=memory)
    task, sent = define(app), published(app)

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'order_id'"):
        task.delay()

    assert sent == []


def test_arguments_that_cannot_be_sent_leave_nothing_waiting(memory: str) -> None:
    """Where the serializer fails after the claim the unit is free again."""
    app = make(once_url=memory, once_key=["order_id"])
    task = define(app)

    with pytest.raises(Exception, match="not JSON serializable"):
        task.delay(1, force=print)

    assert not task.is_locked(1)
    assert not task.delay(1).once.is_duplicate
