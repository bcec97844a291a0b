"""The header of a message: read back as written, and harmless whatever is in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from once_core.envelope import OFF, VERSION, Envelope

KEY = "once:shop.sync:" + "0" * 40
HEADER = {"v": VERSION, "key": KEY, "ticket": 5, "scope": "queued", "id": "m1", "task": "shop.sync"}

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("shop.sync")
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
fields = st.sampled_from([*HEADER, "store", "call", "dup", "n"])


def _read(**changes: Any) -> Envelope | None:
    return Envelope.read({**HEADER, **changes}, "m1", "shop.sync")


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(KEY, 5, "queued", "m1", "shop.sync"),
        Envelope(KEY, -5, "running", "m1", "shop.sync"),
        Envelope(
            KEY,
            5,
            "until_done",
            "m1",
            "shop.sync",
            store="abc",
            call={"ttl": 5.0},
            duplicate_of="m0",
            deferrals=3,
        ),
    ],
)
def test_round_trip(envelope: Envelope) -> None:
    """What a producer writes a worker reads, through JSON too."""
    header = json.loads(json.dumps(envelope.to_header()))

    assert Envelope.read(header, "m1", "shop.sync") == envelope


def test_empty_parts_do_not_travel() -> None:
    """A plain message carries six values and no more."""
    assert Envelope(KEY, 5, "queued", "m1", "shop.sync").to_header() == HEADER


def test_switched_off() -> None:
    """A call without any guard says so, and needs no key."""
    header = Envelope("", 0, OFF, "m1", "shop.sync").to_header()
    read = Envelope.read(header, "m1", "shop.sync")

    assert read is not None
    assert read.scope == OFF


def test_of_another_message() -> None:
    """A header that was copied along to another message or task does not count."""
    assert Envelope.read(HEADER, "m2", "shop.sync") is None
    assert Envelope.read(HEADER, "m1", "shop.other") is None
    assert Envelope.read({**HEADER, "scope": OFF}, "m2", "shop.sync") is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "session:42",
        "celery-task-meta-1",
        "once:shop.sync:short",
        "once:shop sync:" + "0" * 40,
        "once:{shop}:" + "0" * 40,
        KEY + "\n",
        "once:" + "x" * 500 + ":" + "0" * 40,
        "0" * 40,
        KEY.encode(),
        [KEY],
        None,
    ],
)
def test_foreign_keys(key: Any) -> None:
    """A key that is none of ours is never touched, whoever put it into a header."""
    assert _read(key=key) is None


@pytest.mark.parametrize("name", [name for name in HEADER if name != "scope"])
def test_missing(name: str) -> None:
    """A header without one of its parts does not count."""
    header = {each: value for each, value in HEADER.items() if each != name}

    assert Envelope.read(header, "m1", "shop.sync") is None


@pytest.mark.parametrize("header", [None, "x", 5, [], [HEADER], b"x", {}])
def test_no_header(header: object) -> None:
    """What is no mapping is no envelope."""
    assert Envelope.read(header, "m1", "shop.sync") is None


def test_newer_version() -> None:
    """A newer producer's message is guarded by its key alone: ticket and options mean nothing."""
    read = _read(v=VERSION + 1, ticket=77, call={"ttl": 5.0}, dup="m0", extra="x")

    assert read == Envelope(
        KEY, 0, "queued", "m1", "shop.sync", duplicate_of="m0", version=VERSION + 1
    )


def test_unknown_fields() -> None:
    """Fields that this version does not know change nothing."""
    assert _read(future=[1, 2]) == _read()


@pytest.mark.parametrize("deferrals", ["x", None, [1], {}, float("inf"), float("nan")])
def test_wrong_deferrals(deferrals: Any) -> None:
    """A count of deferrals that is none does not keep a message from running."""
    read = _read(n=deferrals)

    assert read is None or read.deferrals == 0


@settings(deadline=None, max_examples=200)
@given(header=st.one_of(anything, st.dictionaries(fields, anything, max_size=10)))
def test_anything(header: object) -> None:
    """Whatever a header holds, reading it does not raise."""
    Envelope.read(header, "m1", "shop.sync")


@settings(deadline=None, max_examples=300)
@given(changes=st.dictionaries(fields, anything, max_size=4))
def test_any_value_in_a_good_header(changes: dict[str, Any]) -> None:
    """Whatever stands in one field of a good header, reading it does not raise."""
    read = _read(**changes)

    assert read is None or isinstance(read.to_header(), dict)
