"""Names of units of work: which calls share one, what it shows, what is refused."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import functools
import re
import uuid
from typing import Any

import pydantic
import pytest
from celery import Celery

from once_core.errors import ConfigurationError, KeyDerivationError
from once_core.keys import KeySpec


def _sync(order_id: object, note: object = "", force: object = False) -> None: ...


def _flexible(a: object, /, *args: object, b: object = 2, **kwargs: object) -> None: ...


class Level(enum.IntEnum):
    LOW = 1


class Order(pydantic.BaseModel):
    uid: uuid.UUID


class Kind(str, enum.Enum):
    A = "a"


def _wrong(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        KeySpec(*args, **kwargs)
    return str(caught.value)


def _refused(spec: KeySpec, *args: object, **kwargs: object) -> KeyDerivationError:
    with pytest.raises(KeyDerivationError) as caught:
        spec.key(args, kwargs)
    assert caught.value.task == spec.task
    return caught.value


def test_one_unit_however_called() -> None:
    """Positional, by name, with or without the default: one unit."""
    spec = KeySpec("sync", _sync)

    assert {
        spec.key((1,), {}),
        spec.key((), {"order_id": 1}),
        spec.key((1, ""), {}),
        spec.key([1, ""], {"force": False}),
        spec.key((), {"force": False, "note": "", "order_id": 1}),
    } == {spec.key((1,), {})}


@pytest.mark.parametrize("other", [("1",), (True,), (1.0,), (None,), (1, "x"), (1, None), ([1],)])
def test_types_count(other: tuple[object, ...]) -> None:
    """What the serializer keeps apart makes two units."""
    spec = KeySpec("sync", _sync)

    assert spec.key((1,), {}) != spec.key(other, {})


def test_separators_in_values() -> None:
    """No value can pretend to be two."""
    spec = KeySpec("sync", lambda a, b: None)
    template = KeySpec("sync", lambda a, b: None, "x-{a}-{b}")

    assert spec.key(("1-2", 3), {}) != spec.key((1, "2-3"), {})
    assert template.key(("1-2", "3"), {}) != template.key(("1", "2-3"), {})
    assert template.key(("1", "2"), {}) != template.key((1, 2), {})


def test_form_of_the_key() -> None:
    """The key is prefix, name and 160 bits in hexadecimal."""
    spec = KeySpec("orders.sync", _sync)

    assert re.fullmatch(r"once:orders\.sync:[0-9a-f]{40}", spec.key((1,), {}))
    assert spec.key((1,), {}, prefix="shop") == f"shop:orders.sync:{spec.digest((1,), {})}"


def test_key_is_stable() -> None:
    """A key is the same in every release that says so: change _VERSION with it."""
    spec = KeySpec("orders.sync", _sync)

    assert spec.key((7, "a"), {}) == "once:orders.sync:b6d569343e4f9f2015b60704bbaba9de3e2ed808"


def test_names_differ() -> None:
    """Two tasks never share a unit unless name= says so, long and odd names too."""
    names = ["a", "b", "a b", "a_b", "a{b}", "a{c}", "x" * 200, "x" * 201]

    keys = {KeySpec(name, _sync).key((1,), {}) for name in names}

    assert len(keys) == len(names)
    for key in keys:
        assert re.fullmatch(r"once:[A-Za-z0-9_.:-]{1,128}:[0-9a-f]{40}", key)


def test_names_of_parameters() -> None:
    """A list of names leaves the other arguments out; its order does not count."""
    spec = KeySpec("sync", _sync, ["order_id", "force"])

    assert spec.key((1, "x"), {}) == spec.key((1,), {"note": object()})
    assert spec.key((1,), {}) != spec.key((2,), {})
    assert spec.key((1,), {}) == KeySpec("sync", _sync, ("force", "order_id")).key((1,), {})
    assert spec.key((1,), {}) != KeySpec("sync", _sync, ["order_id"]).key((1,), {})


def test_empty_list() -> None:
    """An empty list means the task alone."""
    spec = KeySpec("sync", _sync, [])

    assert spec.key((1,), {}) == spec.key((), {"order_id": object()})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (7, "7"),
        ("a/b {c}", "a_b__c_"),
        ("é", "_"),
        ("", "_"),
        ("\ud800", "_"),
        (None, "None"),
        (True, "True"),
        (1.5, "1.5"),
        (Level.LOW, "1"),
        (Kind.A, "a"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1E+3"), "1E_3"),
        (dt.date(2020, 1, 2), "2020-01-02"),
        (dt.datetime(2020, 1, 2, 3), "2020-01-02T03:00:00"),  # noqa: DTZ001
        (dt.timedelta(hours=1), "1:00:00"),
        ([1], "_"),
        ({"a": 1}, "_"),
        (b"x", "_"),
        pytest.param(10**5000, "_", id="huge"),
        ("x" * 10_000, "x" * 46),
    ],
)
def test_text_of_a_template(value: object, shown: str) -> None:
    """A template shows plain values in at most 48 harmless characters."""
    key = KeySpec("sync", _sync, "o-{order_id}").key((value,), {})

    assert key.rpartition(":")[0] == f"once:sync:o-{shown}"


def test_text_of_what_has_no_form() -> None:
    """What cannot be a key raises, whatever its text would have been."""

    class Broken:
        def __json__(self) -> object:
            raise ValueError

    spec = KeySpec("sync", _sync, "o-{order_id}", preview=["order_id"])

    assert "could not be turned" in str(_refused(spec, Broken()))
    assert "Broken" in spec.preview((Broken(),), {})["order_id"]


def test_braces_in_a_template() -> None:
    """Doubled braces are text, and never reach the key as braces."""
    key = KeySpec("sync", _sync, "{{x}}-{order_id}-{order_id}").key((1,), {})

    assert key.startswith("once:sync:_x_-1-1:")


def test_template_text_counts() -> None:
    """Two templates of one parameter are two selections."""
    one, two = (KeySpec("sync", _sync, t).digest((1,), {}) for t in ("a{order_id}", "b{order_id}"))

    assert one != two


def test_pydantic_root_in_a_template() -> None:
    """The text is the same before and after the trip of a model."""

    class Code(pydantic.RootModel[str]):
        pass

    spec = KeySpec("sync", _sync, "o-{order_id}")

    assert spec.key((Code("x"),), {}) == spec.key(("x",), {})


def test_callable() -> None:
    """A callable gets the arguments of the call; what it returns is the key."""
    spec = KeySpec("sync", _sync, lambda order, **rest: (order["id"], sorted(rest)))

    assert spec.key(({"id": 1, "at": 5},), {}) == spec.key(({"id": 1},), {})
    assert spec.key(({"id": 1},), {}) != spec.key(({"id": 1},), {"note": 1})


def test_callable_that_raises() -> None:
    """An error of the callable names the task, and stays the cause."""
    error = _refused(KeySpec("sync", _sync, lambda order: order["id"]), {})

    assert "sync: the callable of key= raised KeyError" in str(error)
    assert isinstance(error.__cause__, KeyError)


def test_callable_with_a_result_that_has_no_form() -> None:
    """A result without a form is refused as any argument."""
    error = _refused(KeySpec("sync", _sync, lambda *_: [1j]), 1)

    assert error.parameter == "key()[0]"


def test_wrong_arguments() -> None:
    """Arguments that do not fit are a TypeError that names the task, as Python's own."""
    spec = KeySpec("sync", _sync)

    for args, kwargs in [((), {}), ((1, 2, 3, 4), {}), ((1,), {"order_id": 1}), ((1,), {"x": 1})]:
        error = _refused(spec, *args, **kwargs)
        assert isinstance(error, TypeError)
        assert str(error).startswith("sync: these arguments do not fit: ")


def test_refused_argument() -> None:
    """A refusal names the task, the path, the type and the ways out."""
    error = _refused(KeySpec("pay", _sync), 1, {"items": [0, {"price": 1j}]})

    assert error.parameter == 'note["items"][1]["price"]'
    assert str(error) == (
        'pay: note["items"][1]["price"] (complex) has no form that is the same in every process. '
        "Leave it out with key=[...], derive the key by key=callable, or pass an id or string."
    )


def test_default_without_a_form() -> None:
    """A default that has no form is refused by name."""
    spec = KeySpec("sync", functools.partial(_sync, note=object()))

    assert _refused(spec, 1).parameter == "note"


def test_all_kinds_of_parameters() -> None:
    """Positional only, keyword only, *args and **kwargs are bound as Python does."""
    spec = KeySpec("f", _flexible)

    assert spec.bind((1, 5), {"a": 7, "c": 3}) == {
        "a": 1,
        "args": (5,),
        "b": 2,
        "kwargs": {"a": 7, "c": 3},
    }
    assert spec.key((1,), {"c": 1, "d": 2}) == spec.key((1,), {"d": 2, "b": 2, "c": 1})
    assert spec.key((1, 2), {}) != spec.key((1,), {"b": 2})
    assert spec.key((1,), {"c": 1}) != spec.key((1,), {})


def test_names_from_kwargs() -> None:
    """Where the function takes **kwargs, a name may be one of those."""
    spec = KeySpec("f", _flexible, ["a", "tenant"])

    assert spec.key((1,), {"tenant": 2}) == spec.key((1, 9), {"tenant": 2, "x": 1})
    assert spec.key((1,), {"tenant": 2}) != spec.key((1,), {"tenant": 3})
    error = _refused(spec, 1)
    assert error.parameter == "tenant"
    assert str(error) == "f: key= names 'tenant', which this call does not pass"


def test_builtin() -> None:
    """A function without a signature is keyed by its raw arguments."""
    spec = KeySpec("b", min)

    assert spec.key((1, 2), {"a": 1, "b": 2}) == spec.key((1, 2), {"b": 2, "a": 1})
    assert spec.key((1, 2), {}) != spec.key((2, 1), {})
    assert spec.bind((1,), {"a": 2}) == {"args": (1,), "kwargs": {"a": 2}}


def test_celery_task() -> None:
    """The run of a Celery task has no self, bound or not, pydantic or not."""
    app = Celery("t")

    @app.task(bind=True)
    def one(self: object, a: int, b: int = 2) -> None: ...

    @app.task
    def two(a: int, b: int = 2) -> None: ...

    @app.task(pydantic=True, autoretry_for=(ValueError,))
    def three(a: Order, b: int = 2) -> None: ...

    for task in (one, two, three):
        assert KeySpec("x", task.run).bind((1,), {}) == {"a": 1, "b": 2}
    spec, order = KeySpec("x", three.run), Order(uid=uuid.UUID(int=1))
    args = (order.model_dump(mode="json"),)
    if dump := getattr(three, "_dump_pydantic_arguments", None):  # before 5.7 callers dump
        assert dump((order,), {}) == (args, {})
    assert spec.key(args, {}) == spec.key((order,), {})


def test_secret() -> None:
    """A secret changes all digests, and cannot be seen."""
    plain, one, two, same = (KeySpec("s", _sync, secret=s) for s in (None, "one", "two", b"one"))

    assert len({s.key((1,), {}) for s in (plain, one, two, same)}) == 3
    assert len({s.fingerprint((1,), {}) for s in (plain, one, two, same)}) == 3
    assert one.key((1,), {}) == same.key((1,), {})
    assert "one" not in repr(one)


def test_fingerprint() -> None:
    """A fingerprint is over all arguments, whatever identifies the unit."""
    for select in (None, [], ["order_id"], "o{order_id}", lambda *_: 1):
        spec = KeySpec("sync", _sync, select)  # type: ignore[arg-type]  # a list of kinds
        assert spec.fingerprint((1,), {}) == spec.fingerprint((), {"order_id": 1, "note": ""})
        assert spec.fingerprint((1,), {}) != spec.fingerprint((1, "new"), {})
        assert re.fullmatch("[0-9a-f]{32}", spec.fingerprint((1,), {}))
        with pytest.raises(KeyDerivationError, match=r"note \(complex\).*compared with those"):
            spec.fingerprint((1, 1j), {})


@pytest.mark.parametrize(
    ("function", "select", "covers"),
    [
        (_sync, None, True),
        (_sync, ["force", "note", "order_id"], True),
        (_sync, "{order_id}{note}{force}", True),
        (_sync, ["order_id"], False),
        (_sync, "{order_id}", False),
        (_sync, [], False),
        (lambda: None, [], True),
        (_sync, _sync, False),
        (_flexible, ["a", "args", "b", "kwargs"], True),
        (_flexible, ["a", "args", "b"], False),
    ],
)
def test_covers_all(function: Any, select: Any, covers: bool) -> None:
    """covers_all says whether equal keys mean equal calls."""
    assert KeySpec("s", function, select).covers_all is covers


def test_preview() -> None:
    """A preview shows the named parameters, short and harmless, and no others."""
    spec = KeySpec("s", _sync, preview=["note", "order_id"])

    assert spec.preview((1, "a\nb\x1b[0m"), {"force": "hidden"}) == {
        "note": "a_b_[0m",
        "order_id": "1",
    }
    assert spec.preview(("x" * 99, [1]), {}) == {"note": "<list>", "order_id": "x" * 64}
    assert KeySpec("s", _sync).preview((1,), {}) == {}
    loose = KeySpec("f", _flexible, preview=["a", "tenant"])
    assert loose.preview((1,), {"tenant": 2}) == {"a": "1", "tenant": "2"}
    assert loose.preview((1,), {"a": 9}) == {"a": "1"}


@pytest.mark.parametrize(
    ("select", "text"),
    [
        (
            ["ordr_id"],
            "is no parameter; did you mean 'order_id'? Parameters: order_id, note, force",
        ),
        (["zzz"], "t: key= names 'zzz', which is no parameter. Parameters: order_id, note, force"),
        ([1], "t: key= names '1', which is no parameter. Parameters: order_id, note, force"),
        (5, 't: key= needs a list of names, as ["order_id"]'),
        ("{ordr_id}", "did you mean 'order_id'?"),
        ("order_id", "'order_id' names no parameter in braces. Write"),
        ("", "names no parameter in braces"),
        ("x{", "is no template"),
        ("{}", "may only name parameters"),
        ("{0}", "may only name parameters"),
        ("{order_id.real}", "may only name parameters"),
        ("{order_id[0]}", "may only name parameters"),
        ("{order_id!r}", "may only name parameters"),
        ("{order_id:>5}", "may only name parameters"),
    ],
)
def test_wrong_selections(select: Any, text: str) -> None:
    """A selection that cannot work is refused when the task is defined."""
    assert text in _wrong("t", _sync, select)


async def _coroutine(order_id: int) -> int:
    return order_id


def test_other_wrong_options() -> None:
    """Every option that cannot work is refused with its name."""
    assert "names no parameter" not in _wrong("t", _sync, _coroutine)
    assert "plain function" in _wrong("t", _sync, _coroutine)
    assert "needs a name" in _wrong("", _sync)
    assert "needs a name" in _wrong(5, _sync)
    assert "a function" in _wrong("t", 5)
    assert "secret= must be" in _wrong("t", _sync, secret="")
    assert "secret= must be" in _wrong("t", _sync, secret=5)
    assert "preview= needs the names" in _wrong("t", _sync, preview=True)
    assert "preview= needs a list" in _wrong("t", _sync, preview="order_id")
    assert "preview= names 'x'" in _wrong("t", _sync, preview=["x"])
    assert "Parameters: none" in _wrong("t", lambda: None, ["x"])


@pytest.mark.parametrize("prefix", ["", "a b", "{a}", "}", "a\n", "a\x00", "\ud800", 5, None, b"a"])
def test_wrong_prefixes(prefix: Any) -> None:
    """A prefix with braces, spaces or control characters is refused."""
    with pytest.raises(ConfigurationError, match="prefix= must be printable") as caught:
        KeySpec("t", _sync).key((1,), {}, prefix=prefix)

    assert caught.value.option == "prefix"


def test_ten_megabyte_argument() -> None:
    """A large argument costs time in proportion, and its key is as short as any."""
    spec = KeySpec("t", _sync, "{order_id}")

    assert len(spec.key(("x" * 10_000_000,), {})) < 110
