"""Options: what each may be, which layer wins, and what every mistake is told."""

from __future__ import annotations

import copy
import datetime as dt
import math
import pickle
from typing import Any

import pytest

from once_core.errors import ConfigurationError
from once_core.options import OPTIONS, SCOPES, OnceOptions

WINDOW = {"scope": "window", "window": 5}
REPLACE = {"on_duplicate": "replace"}
PASSWORD = "s3cret"

LEAST = {"ttl": 1, "lease": 1}
BESIDE: dict[str, dict[str, Any]] = {
    "window": {"scope": "window"},
    "debounce": REPLACE,
    "debounce_max": {**REPLACE, "debounce": 1},
}
DURATIONS = [
    "ttl",
    "lease",
    "heal_after",
    "window",
    "keep_for",
    "debounce",
    "debounce_max",
    "warn_after",
]


def _wrong(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        OnceOptions(**options)
    assert caught.value.option is not None
    return str(caught.value)


def _wrong_layer(*layers: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        OnceOptions.layered(*layers)
    return str(caught.value)


def test_defaults() -> None:
    """Without options everything is as the table of options says."""
    options = OnceOptions()

    assert {name: getattr(options, name) for name in OPTIONS} == {
        "scope": "queued+running",
        "key": None,
        "name": None,
        "prefix": "once",
        "ttl": 3600.0,
        "lease": 60.0,
        "limit": 1,
        "min_replicas": 0,
        "heal_after": 60.0,
        "window": None,
        "keep_for": None,
        "on_duplicate": "skip",
        "debounce": None,
        "debounce_max": None,
        "return_on_duplicate": None,
        "on_overlap": "defer",
        "on_store_error": "raise",
        "warn_after": None,
        "preview": False,
        "secret": None,
        "events": 0,
        "url": None,
        "client": None,
    }
    assert options.given == {}


def test_every_option_is_explained() -> None:
    """The docs' table is made of these texts: each is a sentence."""
    for option in OPTIONS.values():
        assert option.text.endswith(".")


@pytest.mark.parametrize(
    ("scope", "limits"),
    [
        ("queued+running", (True, False, True)),
        ("until_done", (True, True, True)),
        ("queued", (True, False, False)),
        ("running", (False, False, True)),
        ("window", (True, False, False)),
    ],
)
def test_what_scopes_limit(scope: Any, limits: tuple[bool, bool, bool]) -> None:
    """Each scope limits what waits, publishing while it runs, and what runs, as designed."""
    found = OnceOptions(scope=scope, window=1 if scope == "window" else None).limits

    assert (found.waiting, found.while_running, found.running) == limits


def test_unknown_option_names_the_nearest() -> None:
    """A misspelt option is an error that names the one that was meant."""
    assert _wrong(leese=5) == "once has no option 'leese'; did you mean 'lease'?"
    assert _wrong(on_duplicates="skip") == (
        "once has no option 'on_duplicates'; did you mean 'on_duplicate'?"
    )


def test_unknown_option_with_nothing_near() -> None:
    """Where nothing is near, all options are named."""
    assert _wrong(xyzzy=5) == f"once has no option 'xyzzy'; there are {', '.join(OPTIONS)}"


def test_error_names_the_task() -> None:
    """Where the task is known, the error names it."""
    assert _wrong_layer({}, {"lease": 0}, "shop.sync") == (
        "once option lease=0 of shop.sync must be seconds, finite and at least 1 second"
    )
    assert _wrong_layer({}, {"leese": 5}, "shop.sync") == (
        "once has no option 'leese'; did you mean 'lease'? (given for shop.sync)"
    )
    assert _wrong_layer({"lease": 0}, {}, "shop.sync") == (
        "once option lease=0 of the app's configuration must be seconds, finite and at least "
        "1 second"
    )


@pytest.mark.parametrize("value", [0, -1, -0.001, math.nan, math.inf, -math.inf, dt.timedelta(0)])
@pytest.mark.parametrize("name", DURATIONS)
def test_impossible_durations(name: str, value: Any) -> None:
    """No duration is zero, negative, infinite or not a number."""
    least = "at least 1 second" if name in LEAST else "more than 0"

    assert _wrong(**{**BESIDE.get(name, {}), name: value}) == (
        f"once option {name}={value!r} must be seconds, finite and {least}"
    )


@pytest.mark.parametrize("value", [True, False, "60", b"60", [60], {"seconds": 60}, 1j])
@pytest.mark.parametrize("name", DURATIONS)
def test_durations_of_other_types(name: str, value: Any) -> None:
    """A duration is a number or a timedelta; True and texts are mistakes."""
    assert _wrong(**{**BESIDE.get(name, {}), name: value}) == (
        f"once option {name}={value!r} must be seconds as a number or a timedelta"
    )


@pytest.mark.parametrize("name", ["ttl", "lease", "heal_after"])
def test_durations_that_cannot_be_off(name: str) -> None:
    """What is always needed cannot be switched off with None."""
    assert _wrong(**{name: None}) == (
        f"once option {name}=None must be seconds as a number or a timedelta"
    )


@pytest.mark.parametrize("value", [0.2, 0.999, dt.timedelta(milliseconds=999)])
@pytest.mark.parametrize("name", ["lease", "ttl"])
def test_shorter_than_a_second(name: str, value: Any) -> None:
    """A lease, or a life of what waits, below a second is refused."""
    assert _wrong(**{name: value}) == (
        f"once option {name}={value!r} must be seconds, finite and at least 1 second"
    )


@pytest.mark.parametrize("name", ["ttl", "lease", "heal_after", "warn_after"])
def test_timedelta(name: str) -> None:
    """Durations may be timedeltas; they are seconds from then on."""
    options = OnceOptions(**{name: dt.timedelta(minutes=2)})  # type: ignore[arg-type]  # any name

    assert getattr(options, name) == 120.0
    assert type(getattr(OnceOptions(ttl=5), "ttl")) is float  # noqa: B009  # beside the line above


def test_wrong_choice() -> None:
    """A value that is none of the choices is told the choices."""
    assert _wrong(on_duplicate="drop") == (
        "once option on_duplicate='drop' must be one of 'skip', 'raise', 'replace', 'share'"
    )
    assert _wrong(on_overlap="wait") == (
        "once option on_overlap='wait' must be one of 'defer', 'skip', 'raise'"
    )
    assert _wrong(on_store_error="ignore") == (
        "once option on_store_error='ignore' must be one of 'raise', 'run'"
    )
    assert _wrong(scope="everything") == (
        "once option scope='everything' must be one of 'queued+running', 'until_done', 'queued', "
        "'running', 'window'"
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("until_executing", "queued"),
        ("until_executed", "until_done"),
        ("while_executing", "running"),
        ("until_and_while_executing", "queued+running"),
        ("until_expired", "window"),
    ],
)
def test_names_from_other_libraries(theirs: str, ours: str) -> None:
    """What other libraries call a scope is not accepted, but the error names ours."""
    assert _wrong(scope=theirs) == (
        f"once option scope={theirs!r} must be one of 'queued+running', 'until_done', 'queued', "
        f"'running', 'window'; what others call {theirs!r} is scope={ours!r} here"
    )
    assert ours in SCOPES


@pytest.mark.parametrize("value", [None, 1, True])
def test_choices_of_other_types(value: Any) -> None:
    """A scope that is no text at all gets the same clear error."""
    assert "must be one of 'queued+running', 'until_done'" in _wrong(scope=value)


@pytest.mark.parametrize("value", [["queued"], {"queued"}, {}])
def test_choices_that_have_no_hash(value: Any) -> None:
    """So does one that cannot be looked up."""
    assert "must be one of 'queued+running', 'until_done'" in _wrong(scope=value)


def test_absurdly_long_durations() -> None:
    """A number that no clock can count is refused like an infinite one."""
    assert "must be seconds, finite" in _wrong(ttl=10**400)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("name", "", "a non-empty text"),
        ("name", 5, "a non-empty text"),
        ("prefix", "", "a non-empty text, or a function without arguments that returns one"),
        ("prefix", None, "a non-empty text, or a function without arguments that returns one"),
        ("preview", True, "False, or a list of parameter names that may be shown"),
        ("preview", "order_id", "False, or a list of parameter names that may be shown"),
        ("preview", [1], "False, or a list of parameter names that may be shown"),
    ],
)
def test_texts(option: str, value: Any, text: str) -> None:
    """Names, prefixes and previews that cannot be are told what they may be."""
    assert _wrong(**{option: value}) == f"once option {option}={value!r} must be {text}"


def test_empty_url() -> None:
    """An empty URL is refused like any other empty text."""
    assert _wrong(url="").endswith(" must be a non-empty text")


@pytest.mark.parametrize("value", ["", b"", 5, ["x"]])
def test_wrong_secret_is_not_shown(value: Any) -> None:
    """The error for a wrong secret does not show it."""
    assert _wrong(secret=value) == "once option secret=... must be a non-empty text or bytes"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"window": 5},
            'once option window=5.0 needs scope="window"',
        ),
        (
            {"scope": "window"},
            "once option scope='window' needs window=, the seconds in which others are refused",
        ),
        (
            {"scope": "running", "keep_for": 5},
            (
                'once option keep_for=5.0 needs scope="queued+running" or "until_done": others '
                "see no success"
            ),
        ),
        (
            {"scope": "queued", "keep_for": 5},
            (
                'once option keep_for=5.0 needs scope="queued+running" or "until_done": others '
                "see no success"
            ),
        ),
        (
            {"scope": "running", "on_duplicate": "raise"},
            (
                "once option on_duplicate='raise' never applies with scope='running': it refuses "
                "nothing"
            ),
        ),
        (
            {"scope": "queued", "on_overlap": "skip"},
            "once option on_overlap='skip' never applies with scope='queued': runs may overlap",
        ),
        (
            {**WINDOW, "on_overlap": "raise"},
            "once option on_overlap='raise' never applies with scope='window': runs may overlap",
        ),
        (
            {"debounce": 5},
            (
                'once option debounce=5.0 needs on_duplicate="replace": the last call of a burst '
                "is to run"
            ),
        ),
        (
            {**REPLACE, "debounce_max": 5},
            "once option debounce_max=5.0 needs debounce=",
        ),
        (
            {**REPLACE, "debounce": 6, "debounce_max": 5},
            "once option debounce_max=5.0 is shorter than debounce=6.0",
        ),
    ],
)
def test_contradictions(options: dict[str, Any], text: str) -> None:
    """Options that make no sense together are refused, with the reason."""
    assert _wrong(**options) == text


def test_two_stores() -> None:
    """A URL and a client contradict each other, and the error does not show the password."""
    text = _wrong(url=f"redis://:{PASSWORD}@cache:6379/0", client=lambda: None)

    assert "and client= are two places for one store; give one of them" in text
    assert PASSWORD not in text


def test_wrong_url_is_masked() -> None:
    """The error for a URL of another type does not show its password."""
    assert PASSWORD not in _wrong(url=f"redis://:{PASSWORD}@cache:6379/0".encode())


def test_no_contradiction() -> None:
    """Combinations that make sense pass."""
    assert OnceOptions(scope="window", window=5).window == 5.0
    assert OnceOptions(scope="until_done", keep_for=5).keep_for == 5.0
    assert OnceOptions(on_duplicate="replace", debounce=5, debounce_max=5).debounce_max == 5.0
    assert OnceOptions(scope="running", on_overlap="skip").on_overlap == "skip"


def test_longest_debounce() -> None:
    """A burst is delayed for ten times its debounce at most, unless something else is given."""
    options = OnceOptions(on_duplicate="replace", debounce=3)

    assert options.debounce_max == 30.0
    assert options.with_call({"debounce": 1}).debounce_max == 10.0


def test_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call wins over task, task over app, app over environment, environment over built in."""
    assert OnceOptions.layered({}, {}).url is None

    monkeypatch.setenv("ONCE_URL", "redis://environment")
    monkeypatch.setenv("ONCE_PREFIX", "environment")
    environment = OnceOptions.layered({}, {})
    app = OnceOptions.layered({"url": "redis://app", "prefix": "app", "ttl": 10}, {})
    task = OnceOptions.layered({"prefix": "app", "ttl": 10}, {"prefix": "task", "ttl": 20})
    call = task.with_call({"ttl": 30})

    assert (environment.url, environment.prefix) == ("redis://environment", "environment")
    assert (app.url, app.prefix, app.ttl) == ("redis://app", "app", 10.0)
    assert (task.url, task.prefix, task.ttl) == ("redis://environment", "task", 20.0)
    assert (call.prefix, call.ttl, call.lease) == ("task", 30.0, 60.0)


def test_empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set and empty is as good as none."""
    monkeypatch.setenv("ONCE_URL", "")
    monkeypatch.setenv("ONCE_PREFIX", "")
    options = OnceOptions.layered({}, {})

    assert (options.url, options.prefix) == (None, "once")


def test_events_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on for a deployment without touching its code; what is no number is refused."""
    monkeypatch.setenv("ONCE_EVENTS", "5000")
    assert OnceOptions.layered({}, {}).events == 5000

    monkeypatch.setenv("ONCE_EVENTS", "many")
    assert _wrong_layer({}, {}).startswith("once option events='many' of the app's configuration")


def test_environment_is_for_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options made by hand do not look at the environment."""
    monkeypatch.setenv("ONCE_PREFIX", "environment")

    assert OnceOptions().prefix == "once"


def test_wider_layers_do_not_contradict() -> None:
    """What the app says for all its tasks does not apply where a task's scope has no use for it."""
    options = OnceOptions.layered({"keep_for": 5, "on_overlap": "skip"}, {"scope": "queued"})

    assert options.scope == "queued"


def test_task_store_wins_over_the_apps() -> None:
    """A task's URL takes the place of the app's client, and the other way round."""
    by_url = OnceOptions.layered({"client": print}, {"url": "redis://task"})
    by_client = OnceOptions.layered({"url": "redis://app"}, {"client": print})

    assert (by_url.url, by_url.client) == ("redis://task", None)
    assert (by_client.url, by_client.client) == (None, print)


def test_call_can_contradict() -> None:
    """A call's option that cannot work with the task's is refused."""
    with pytest.raises(ConfigurationError) as caught:
        OnceOptions(scope="running").with_call({"on_duplicate": "raise"}, "shop.sync")

    assert str(caught.value) == (
        "once option on_duplicate='raise' of shop.sync never applies with scope='running': it "
        "refuses nothing"
    )


@pytest.mark.parametrize("name", ["url", "client", "secret", "preview", "events"])
def test_not_at_a_call(name: str) -> None:
    """What the worker has to know as well cannot be given at a call."""
    with pytest.raises(ConfigurationError) as caught:
        OnceOptions().with_call({name: "redis://x"}, "shop.sync")

    assert caught.value.option == name
    assert str(caught.value) == (
        f"once option {name!r} of shop.sync cannot be given at a call, for the worker would not "
        "see it; give it where the task is defined"
    )


def test_call_leaves_the_tasks_options_alone() -> None:
    """Options of a call are for that call."""
    options = OnceOptions(ttl=10)
    options.with_call({"ttl": 30})

    assert options.ttl == 10.0


def test_immutable() -> None:
    """Options cannot be changed; the error says what to do."""
    options = OnceOptions()

    with pytest.raises(AttributeError) as caught:
        options.ttl = 5.0

    assert str(caught.value) == "OnceOptions cannot be changed; make new ones with ttl=5.0"
    assert options.ttl == 3600.0


def test_nothing_can_be_deleted() -> None:
    """Options cannot be taken away either."""
    options = OnceOptions()

    with pytest.raises(AttributeError):
        del options.ttl

    assert options.ttl == 3600.0


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies(again: Any) -> None:
    """Options survive pickling, copying and deep copying."""
    options = OnceOptions(
        scope="until_done", key=["order_id"], ttl=dt.timedelta(minutes=1), secret="x"
    )

    other = again(options)

    assert other == options
    assert other.given == options.given
    assert other.limits == options.limits


def test_deep_copy_with_a_client() -> None:
    """A client that cannot be copied does not keep the options from being."""

    class Client:
        def __deepcopy__(self, memo: object) -> Client:
            raise TypeError("cannot pickle '_thread.RLock' object")

    client: Any = Client()

    assert copy.deepcopy(OnceOptions(client=client)).client is client


def test_equality() -> None:
    """Options are equal when all of them are, given or not; they have no hash."""
    assert OnceOptions(ttl=3600) == OnceOptions()
    assert OnceOptions(ttl=3601) != OnceOptions()
    assert OnceOptions() != "queued+running"
    with pytest.raises(TypeError):
        hash(OnceOptions())


def test_repr_hides_secrets() -> None:
    """The repr shows what was given, but neither secret nor URL nor client."""
    options = OnceOptions(ttl=5, key=["a"], secret=PASSWORD, url=f"redis://:{PASSWORD}@h")
    client: Any = object()
    by_client = OnceOptions(client=client)

    assert repr(options) == "OnceOptions(ttl=5.0, key=['a'], secret='...', url='...')"
    assert repr(by_client) == "OnceOptions(client='...')"
    assert PASSWORD not in str(options)
