"""`once_core.configure`: what holds for a whole process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from once_core import ConfigurationError, configure
from once_core.options import OnceOptions


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a test has configured ends with it."""
    yield
    configure()


def test_tasks_and_apps_go_before_it() -> None:
    """It is wider than an app, and nearer than the environment."""
    configure(prefix="process", lease=7)

    options = OnceOptions.layered({"prefix": "app"}, {"ttl": 60})

    assert (options.prefix, options.lease, options.ttl) == ("app", 7.0, 60.0)


def test_it_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in the program, not around it."""
    monkeypatch.setenv("ONCE_URL", "redis://environment")
    monkeypatch.setenv("ONCE_PREFIX", "environment")
    configure(url="redis://program")

    options = OnceOptions.layered({}, {})

    assert (options.url, options.prefix) == ("redis://program", "environment")


def test_a_url_and_a_client_of_two_layers_do_not_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The nearer one says where the store is."""
    monkeypatch.setenv("ONCE_URL", "redis://environment")
    configure(client=lambda: None)  # type: ignore[arg-type,return-value]

    assert OnceOptions.layered({}, {}).url is None
    assert OnceOptions.layered({"url": "redis://app"}, {}).client is None


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    """The values before stay."""
    configure(prefix="good")
    with pytest.raises(ConfigurationError, match="did you mean 'lease'"):
        configure(leese=5)  # type: ignore[call-arg]

    assert OnceOptions.layered({}, {}).prefix == "good"


def test_calling_it_again_replaces_what_was_given() -> None:
    """Nothing of the first call is left."""
    configure(prefix="first", ttl=5)
    configure(lease=9)

    options = OnceOptions.layered({}, {})
    assert (options.prefix, options.ttl, options.lease) == ("once", 3600.0, 9.0)
