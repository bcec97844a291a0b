"""Errors: one tree, which survives the trip from process to process."""

from __future__ import annotations

import copy
import pickle
import re
from types import ModuleType
from typing import Any

import pytest
from kombu.exceptions import OperationalError

import once_celery.errors
import once_core
import once_dramatiq.errors
from once_celery.compat import celery_once, celery_singleton
from once_core import errors
from once_core.errors import OnceError

TREE: dict[type[OnceError], dict[str, Any]] = {
    OnceError: {},
    errors.ConfigurationError: {"option": "lease"},
    errors.KeyDerivationError: {"task": "shop.sync", "parameter": "user.address[2]"},
    errors.DuplicateTaskError: {
        "task": "shop.sync",
        "key": "once:shop.sync:0",
        "state": "waiting",
        "holder_id": "m1",
        "retry_after": 12.5,
    },
    errors.OverlapError: {"task": "shop.sync", "key": "once:shop.sync:0", "holder_id": "m1"},
    errors.LeaseLostError: {"key": "once:shop.sync:0", "fence": 7},
    errors.LeaseTimeoutError: {"key": "once:shop.sync:0", "waited": 3.0},
    errors.StoreUnavailableError: {"url": "redis://h", "reason": "refused"},
    once_celery.errors.StoreUnavailableError: {"url": "redis://h", "reason": "refused"},
    once_dramatiq.errors.GuardError: {},
    errors.BulkPublishError: {"task": "shop.sync", "reasons": ["", "no key"]},
}
TREE |= {
    each: TREE[each.__bases__[0]]
    for each in (
        once_dramatiq.errors.ConfigurationError,
        once_dramatiq.errors.KeyDerivationError,
        once_dramatiq.errors.DuplicateTaskError,
        once_dramatiq.errors.OverlapError,
        once_dramatiq.errors.StoreUnavailableError,
        celery_once.AlreadyQueued,
        celery_singleton.DuplicateTaskError,
    )
}


def _all(of: type[OnceError]) -> set[type[OnceError]]:
    return {of}.union(*(_all(each) for each in of.__subclasses__()))


def test_tree_is_known() -> None:
    """Every error of this library is tested here, and exported where it is defined."""
    found = {each for each in _all(OnceError) if each.__module__.startswith("once_")}

    assert found == set(TREE)
    assert {each.__name__ for each in found} == {*errors.__all__, "GuardError", "AlreadyQueued"}


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in range(2, 6)),
    ],
)
def test_survives_copies(kind: type[OnceError], again: Any) -> None:
    """Pickled, copied or deep-copied, an error keeps its class, its text and its attributes."""
    error = kind("what happened; what to do", **TREE[kind])

    other = again(error)

    assert type(other) is kind
    assert str(other) == "what happened; what to do"
    assert other.args == error.args
    assert {name: getattr(other, name) for name in TREE[kind]} == TREE[kind]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_attributes_have_defaults(kind: type[OnceError]) -> None:
    """Made with a text alone, an error has its attributes all the same."""
    error = kind("text")

    assert str(error) == "text"
    others: dict[str, object] = {"retry_after": 0.0, "reasons": ()}
    assert {name: getattr(error, name) for name in TREE[kind]} == {
        name: others.get(name) for name in TREE[kind]
    }


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_attribute_is_explained(kind: type[OnceError]) -> None:
    """The docstring of each class explains each of its attributes."""
    texts = "".join(
        str(each.__doc__) for each in kind.__mro__ if each.__module__.startswith("once")
    )

    for name in TREE[kind]:
        assert re.search(rf"^ +{name}: ", texts, re.MULTILINE)


def test_also_what_python_calls_them() -> None:
    """Handlers for ValueError, TypeError and TimeoutError see ours where that is what they are."""
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.KeyDerivationError, TypeError)
    assert issubclass(errors.LeaseTimeoutError, TimeoutError)


def test_celery_handlers_see_it() -> None:
    """Handlers for a broker that is away see a lock store that is away."""
    core = errors.StoreUnavailableError("away", url="redis://h", reason="refused")

    error = once_celery.errors.StoreUnavailableError.of(core)

    assert isinstance(error, OperationalError)
    assert isinstance(error, errors.StoreUnavailableError)
    assert (str(error), error.url, error.reason) == ("away", "redis://h", "refused")


def test_tree_is_drawn() -> None:
    """The drawing on top of the module names every error of it."""
    drawn = set(re.findall(r"\w+Error\b", str(errors.__doc__)))

    assert drawn == set(errors.__all__)


@pytest.mark.parametrize("package", [once_core, once_celery, once_dramatiq])
def test_every_error_is_where_a_handler_looks_for_it(package: ModuleType) -> None:
    """`from once_celery import BulkPublishError` failed, though its page says that it has all."""
    assert [name for name in errors.__all__ if name not in package.__all__] == []
