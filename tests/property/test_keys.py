"""Whatever the arguments are: equal calls have equal keys, others never."""

from __future__ import annotations

import datetime as dt
import inspect
import math
import zoneinfo
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.serialization import dumps, enable_insecure_serializers, loads

from once_core._canonical import canonical
from once_core.errors import KeyDerivationError
from once_core.keys import KeySpec

enable_insecure_serializers()

quick = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))

# Few values of each type, so that equal ones are drawn often.
little = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]),
    st.sampled_from(["", "1", "a", "a:1", "true", "null", "1.0", "\ud83d\ude00", "😀", "\ud83d"]),
    st.sampled_from([b"", b"1", b"a"]),
)
keys = st.sampled_from([1, "1", True, "true", None, "null", 1.0, "1.0", "a", "b"])
tiny = st.recursive(
    little,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=2),
    ),
    max_leaves=6,
)


def _normal(value: object) -> object:
    """Return a hashable model of what the serializers keep of a value, made otherwise."""
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else value.hex())
    if isinstance(value, str):
        return ("str", value.replace("\ud83d\ude00", "😀"))
    if isinstance(value, (list, tuple)):
        return ("list", tuple(_normal(item) for item in value))
    if isinstance(value, dict):
        names = {None: "null", True: "true"}
        return ("dict", frozenset((_name(k, names), _normal(v)) for k, v in value.items()))
    return (type(value).__name__, value)


def _name(key: object, names: dict[object, str]) -> str:
    if isinstance(key, (bool, type(None))):
        return names[key]
    return str(key)


def _form(value: object) -> bytes | None:
    try:
        return canonical(value)
    except KeyDerivationError as error:
        assert "two keys that are one in JSON" in str(error)  # noqa: PT017 - the only reason
        return None


@settings(quick, max_examples=1000)
@given(tiny, tiny)
def test_equal_if_and_only_if_equal(left: object, right: object) -> None:
    """Forms are equal if, and only if, the values are the same to the serializers."""
    one, two = _form(left), _form(right)

    if one is not None and two is not None:
        assert (one == two) == (_normal(left) == _normal(right))


@quick
@given(st.lists(tiny, max_size=4))
def test_no_form_begins_another(values: list[object]) -> None:
    """No form is the beginning of another: what stands side by side stays apart."""
    forms = {found for value in values if (found := _form(value))}

    for one in forms:
        assert not any(other != one and other.startswith(one) for other in forms)


zones = st.one_of(
    st.none(),
    st.just(dt.timezone.utc),
    st.sampled_from([zoneinfo.ZoneInfo("Europe/Berlin"), zoneinfo.ZoneInfo("Asia/Kolkata")]),
    st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes))),
)
years = {"min_value": dt.datetime(1900, 1, 2), "max_value": dt.datetime(2100, 1, 1)}  # noqa: DTZ001
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(),
    st.text(st.characters(categories=["Cs", "Lu"])),
    st.binary(),
)
rich = st.one_of(
    plain,
    st.uuids(),
    st.decimals(),
    st.datetimes(**years, timezones=zones, allow_imaginary=False),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.sets(st.one_of(st.integers(), st.text()), max_size=4),
)


def _nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.tuples(inner, inner),
            st.dictionaries(names, inner, max_size=3),
            st.dictionaries(st.text(), inner, max_size=3),
        ),
        max_leaves=8,
    )


@pytest.mark.parametrize("serializer", ["json", "msgpack", "pickle", "yaml"])
@settings(quick, max_examples=250)
@given(value=st.one_of(_nested(plain), _nested(rich)))
def test_trips(serializer: str, value: object) -> None:
    """Producer and worker derive the same key, whatever the serializer."""
    before = _form(value)
    try:
        content_type, encoding, body = dumps(value, serializer=serializer)
        after = loads(body, content_type, encoding)
    except Exception:  # noqa: BLE001 - refusing a value is the serializer's right
        return

    if before is not None:
        assert _form(after) == before


@quick
@given(st.dictionaries(st.text(), st.integers()), st.randoms())
def test_order_of_insertion(value: dict[str, int], random: Any) -> None:
    """The order in which dicts and sets were filled does not count."""
    items = list(value.items())
    random.shuffle(items)

    assert canonical(dict(items)) == canonical(value)
    assert canonical({name for name, _ in items}) == canonical(set(value))


def _plain(a: object, b: object = 2, c: object = None) -> None: ...
def _required(a: object, b: object) -> None: ...
def _nothing() -> None: ...
def _mixed(a: object, /, b: object = 1, *rest: object, c: object = 3, **more: object) -> None: ...


calls = st.tuples(
    st.lists(st.integers(0, 3), max_size=4),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3), max_size=3),
)


@pytest.mark.parametrize("function", [_plain, _required, _nothing, _mixed])
@settings(quick, max_examples=300)
@given(call=calls)
def test_bound_as_python_binds(function: Any, call: tuple[list[int], dict[str, int]]) -> None:
    """bind() gives what inspect gives, and refuses what inspect refuses."""
    args, kwargs = call
    spec = KeySpec("t", function)
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(KeyDerivationError, match="do not fit") as caught:
            spec.bind(args, kwargs)
        assert str(caught.value).endswith(str(error))  # noqa: PT017 - Python's own words
        return

    bound.apply_defaults()

    assert list(spec.bind(args, kwargs).items()) == list(bound.arguments.items())


@pytest.mark.parametrize("function", [_plain, _mixed])
@pytest.mark.parametrize("select", [None, ["a", "b"], "{a}:{b}", lambda a, *_, **__: a])
@settings(quick, max_examples=150)
@given(one=calls, two=calls)
def test_keys_of_calls(function: Any, select: Any, one: Any, two: Any) -> None:
    """Two calls share a key if, and only if, what identifies them is equal."""
    spec = KeySpec("t", function, select)
    try:
        left, right = spec.bind(*one), spec.bind(*two)
        first, second = spec.key(*one), spec.key(*two)
    except KeyDerivationError:
        return
    chosen = left.keys() if select is None else ["a"] if callable(select) else ["a", "b"]

    same = all(left[name] == right[name] for name in chosen)

    assert (first == second) == same
    assert (spec.fingerprint(*one) == spec.fingerprint(*two)) == (left == right)


@quick
@given(st.text(), st.text(), st.text(), st.text())
def test_no_separator_trick(a: str, b: str, c: str, d: str) -> None:
    """No text can reach over into its neighbour."""
    for select in (None, "{a}-{b}", ["a", "b"]):
        spec = KeySpec("t", _required, select)  # type: ignore[arg-type]  # a list of kinds
        same = _normal([a, b]) == _normal([c, d])
        assert (spec.key((a, b), {}) == spec.key((c, d), {})) == same


@quick
@given(st.text(min_size=1), st.one_of(st.text(), tiny))
def test_harmless_names(name: str, value: object) -> None:
    """Whatever the task and its arguments are called, the key has harmless characters."""
    spec = KeySpec(name, _plain, "o{a}")
    if _form(value) is None:
        return

    key = spec.key((value,), {})

    assert len(key) <= 5 + 128 + 1 + 48 + 1 + 40
    assert not set(key) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-")
