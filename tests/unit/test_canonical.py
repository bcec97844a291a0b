"""What has which byte form, and what is refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import itertools
import struct
import subprocess
import sys
import time
import types
import uuid
import zoneinfo
from collections import ChainMap, OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType
from typing import Any

import attrs
import pydantic
import pytest
from kombu.serialization import dumps, enable_insecure_serializers, loads

from once_core import _canonical
from once_core._canonical import canonical
from once_core.errors import KeyDerivationError

enable_insecure_serializers()

Point = namedtuple("Point", "x y")  # noqa: PYI024 - what users have
NAN = float("nan")
UTC = dt.timezone.utc
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Kind(str, enum.Enum):
    A = "a"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Day(dt.date, enum.Enum):
    FIRST = 2020, 1, 1


class MyInt(int):
    pass


class MyStr(str):
    __slots__ = ()


@dataclasses.dataclass
class Order:
    order_id: int
    lines: list[object] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Refund:
    order_id: int
    lines: list[object] = dataclasses.field(default_factory=list)


@attrs.define
class Parcel:
    code: str
    weight: float = 1.0


class Customer(pydantic.BaseModel):
    uid: uuid.UUID
    since: dt.datetime
    tags: set[str] = set()
    nested: dict[str, frozenset[int]] = {}


class Speaking:
    def __init__(self, value: object) -> None:
        self.value = value

    def __json__(self) -> object:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def _refusal(value: object) -> KeyDerivationError:
    with pytest.raises(KeyDerivationError) as caught:
        canonical(value)
    return caught.value


def _trip(value: object, serializer: str) -> object:
    content_type, encoding, body = dumps(value, serializer=serializer)
    return loads(body, content_type, encoding)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 2), [1, 2]),
        (Point(1, (2,)), [1, [2]]),
        ({1: "a"}, {"1": "a"}),
        ({True: 0, None: 1, 1.5: 2}, {"true": 0, "null": 1, "1.5": 2}),
        ({NAN: 0, float("inf"): 1, -float("inf"): 2}, {"NaN": 0, "Infinity": 1, "-Infinity": 2}),
        ({Level.LOW: 0, Kind.A: 1, MyStr("b"): 2}, {"1": 0, "a": 1, "b": 2}),
        ({Colour.RED: 0}, {"1": 0}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (ChainMap({"a": 1}), UserDict({"a": 1})),
        (b"a", bytearray(b"a")),
        (b"a", memoryview(b"a")),
        ({1, 2, 3}, frozenset([3, 2, 1])),
        (MyInt(3), 3),
        (MyStr("x"), "x"),
        (Level.LOW, 1),
        (Kind.A, "a"),
        (Colour.RED, 1),
        (Colour.BLUE, "blue"),
        (Right.READ | Right.WRITE, 3),
        (Day.FIRST, dt.date(2020, 1, 1)),
        (NAN, struct.unpack(">d", bytes.fromhex("7ff8000000000001"))[0]),
        ("\ud83d\ude00", "😀"),
        (Speaking({"a": (1,)}), {"a": [1]}),
        (dt.datetime(2020, 10, 25, 2, 30, fold=1), dt.datetime(2020, 10, 25, 2, 30)),  # noqa: DTZ001
        (
            dt.datetime(2020, 7, 1, 12, tzinfo=BERLIN),
            dt.datetime(2020, 7, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        ),
        (dt.time(1, 2, tzinfo=BERLIN), dt.time(1, 2)),
    ],
)
def test_equal_forms(left: object, right: object) -> None:
    """What a serializer makes equal on the way has one form."""
    assert canonical(left) == canonical(right)


APART: list[object] = [
    *(None, True, False, 0, 1, -1, 10**30, 0.0, -0.0, 1.0, NAN, float("inf"), -float("inf")),
    *("", "1", "True", "None", "1.0", "i1;", "\ud800", "\udc00", "nan", b"", b"1", b"\xff"),
    *([], [[]], [1], [1, 2], [[1], 2], [[1, 2]], ["1", "2"], ["1,2"], ["12"], ["1", "2", ""]),
    *({}, {"a": 1}, {"a": "1"}, {"a": {"b": 1}}, {"a": 1, "b": 1}, {b"a": 1}, [["a", 1]]),
    *(set(), {1}, {1, 2}, {"1"}, frozenset([(1,)])),
    uuid.UUID(int=5),
    str(uuid.UUID(int=5)),
    dt.datetime(2020, 1, 1),  # noqa: DTZ001
    dt.datetime(2020, 1, 1, tzinfo=UTC),
    dt.datetime(2020, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
    dt.date(2020, 1, 1),
    "2020-01-01",
    dt.time(0),
    dt.time(0, tzinfo=UTC),
    dt.timedelta(seconds=1),
    dt.timedelta(microseconds=1),
    *(decimal.Decimal(text) for text in ("1", "1.0", "1.00", "-0", "0", "NaN", "1E+3")),
    Order(1),
    Refund(1),
    Order(2),
    Parcel("1"),
    Parcel("1", 2.0),
    struct.unpack(">d", b"nan.....")[0],
]


def test_all_of_these_are_apart() -> None:
    """What the serializers keep apart has forms that differ, and none begins another."""
    forms = sorted(canonical(value) for value in APART)

    for left, right in itertools.pairwise(forms):
        assert not right.startswith(left)


def test_a_form_begins_with_its_version() -> None:
    """A change of the form can be told from the first byte."""
    assert canonical(1)[:1] == _canonical.VERSION


@pytest.mark.parametrize("serializer", ["json", "msgpack", "pickle", "yaml"])
def test_trip_of_samples(serializer: str) -> None:
    """Each sample a serializer accepts has the same form before and after."""
    tripped = 0

    for value in [*APART, Point(1, 2), Level.LOW, Kind.A, MyInt(1), bytearray(b"x"), {1: 2}]:
        try:
            after = _trip(value, serializer)
        except Exception:  # noqa: BLE001 - refusing a value is the serializer's right
            continue
        tripped += 1
        assert canonical(after) == canonical(value)

    assert tripped > 20


def test_dict_like_an_envelope_of_kombu() -> None:
    """A dict that imitates kombu's own envelope arrives as another value: no form helps."""
    imitation = {"__type__": "date", "__value__": "2020-01-01"}

    assert _trip(imitation, "json") == dt.date(2020, 1, 1)
    assert canonical(_trip(imitation, "json")) != canonical(imitation)


def test_pydantic_model_is_what_celery_sends() -> None:
    """A model is the mapping Celery's pydantic=True puts on the wire."""
    model = Customer(uid=uuid.UUID(int=1), since=dt.datetime(2020, 1, 1, tzinfo=UTC), tags={"a"})

    assert canonical(model) == canonical(_trip(model.model_dump(mode="json"), "json"))


def test_sets_inside_a_pydantic_model_are_sorted() -> None:
    """The chance order of a set inside a model does not change its form."""
    words = [f"w{n}" for n in range(50)]
    common = {"uid": uuid.UUID(int=1), "since": dt.datetime(2020, 1, 1, tzinfo=UTC)}
    one = Customer.model_construct(**common, tags=set(words), nested={"a": frozenset([1, 9])})
    two = Customer.model_construct(**common, tags=set(words), nested={"a": frozenset([9, 1])})
    # The same members, inserted into a larger table: another order.
    two.tags |= {f"x{n}" for n in range(500)}
    two.tags -= {f"x{n}" for n in range(500)}

    assert list(one.tags) != list(two.tags)
    assert canonical(one) == canonical(two)


def test_pydantic_model_without_json_form() -> None:
    """A model that only pickle can send goes by its plain values, sets of sets too."""

    class Raw(pydantic.BaseModel):
        data: bytes
        groups: set[frozenset[str]] = set()

    assert canonical(Raw(data=b"\xff")) == canonical({"data": b"\xff", "groups": set()})
    grouped = Raw(data=b"a", groups={frozenset("ab")})
    assert canonical(grouped) == canonical({"data": "a", "groups": {frozenset("ba")}})


def test_pydantic_root_model() -> None:
    """A root model is its root, lists inside stay in order."""

    class Names(pydantic.RootModel[list[tuple[str, int]]]):
        pass

    assert canonical(Names([("b", 1), ("a", 2)])) == canonical([["b", 1], ["a", 2]])


def test_order_of_fields_does_not_count() -> None:
    """Fields of a dataclass may change places without changing keys."""
    one = dataclasses.make_dataclass("Thing", ["a", "b"])
    two = dataclasses.make_dataclass("Thing", ["b", "a"])
    one.__module__ = two.__module__ = "m"

    assert canonical(one(a=1, b=2)) == canonical(two(a=1, b=2))


def test_decimals_ignore_the_context() -> None:
    """A decimal context that prints small letters changes nothing."""
    value = decimal.Decimal("1E+9")
    before = canonical(value)

    with decimal.localcontext() as context:
        context.capitals = 0
        assert canonical(value) == before


def _fake_django(monkeypatch: pytest.MonkeyPatch) -> Any:
    base, functional = types.ModuleType("base"), types.ModuleType("functional")
    base.Model = type("Model", (), {})  # type: ignore[attr-defined]  # a stand-in
    functional.Promise = type("Promise", (), {"__str__": lambda _: "Hello"})  # type: ignore[attr-defined]  # the same
    monkeypatch.setitem(sys.modules, "django.db.models.base", base)
    monkeypatch.setitem(sys.modules, "django.utils.functional", functional)

    def row(label: str, pk: object, concrete: str = "") -> object:
        meta = types.SimpleNamespace(label_lower=concrete or label)
        meta.concrete_model = types.SimpleNamespace(_meta=meta)
        return type("Row", (base.Model,), {"_meta": meta, "pk": pk})()

    return types.SimpleNamespace(row=row, lazy=functional.Promise())


def test_django_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Django model instance is its model and primary key; a lazy text is its text."""
    django = _fake_django(monkeypatch)

    assert canonical(django.row("a.user", 1)) == canonical(django.row("a.user", 1))
    assert canonical(django.row("a.user", 1)) != canonical(django.row("a.user", 2))
    assert canonical(django.row("a.user", 1)) != canonical(django.row("a.user", "1"))
    assert canonical(django.row("a.user", 1)) != canonical(django.row("a.item", 1))
    assert canonical(django.row("a.proxy", 1, "a.user")) == canonical(django.row("a.user", 1))
    assert canonical(django.lazy) == canonical("Hello")
    for unsaved in (None, (1, None)):
        assert "not saved yet" in str(_refusal([django.row("a.user", unsaved)]))


def test_real_django() -> None:
    """The names we ask Django for are there."""
    code = """if True:
    import django
    from django.conf import settings
    settings.configure()
    django.setup()
    from django.db import models
    from django.utils.functional import SimpleLazyObject
    from django.utils.translation import gettext_lazy
    from once_core._canonical import canonical
    class User(models.Model):
        class Meta:
            app_label = "shop"
    class Proxy(User):
        class Meta:
            app_label, proxy = "shop", True
    assert canonical(User(id=1)) == canonical(Proxy(id=1)) != canonical(User(id=2))
    assert canonical(SimpleLazyObject(lambda: User(id=1))) == canonical(User(id=1))
    assert canonical(gettext_lazy("x")) == canonical("x")
    assert b"shop.user" in canonical(User(id=1))
    """
    pytest.importorskip("django")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr == ""


def test_libraries_are_not_imported() -> None:
    """Looking at values imports neither pydantic, attrs nor Django."""
    code = (
        "import sys, once_core._canonical as c\n"
        "had = set(sys.modules)\n"
        "class Odd: pass\n"
        "try: c.canonical([1, 'a', {'b': Odd()}])\n"
        "except TypeError: pass\n"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - had}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


class Unset:
    __slots__ = ("x",)


@dataclasses.dataclass(init=False)
class Half:
    x: int


ITSELF: list[object] = [1]
ITSELF.append({"again": ITSELF})


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (1j, "value", "(complex) has no form"),
        ({"items": [0, 1, Order(1, [object()])]}, 'value["items"][2].lines[0]', "(object)"),
        ([Parcel(code=1j)], "value[0].code", "(complex)"),  # type: ignore[arg-type]  # on purpose
        ({1: [lambda: 1]}, "value[1][0]", "(function)"),
        ({b"x": 1j}, "value[<bytes>]", "(complex)"),
        ({1j: 0}, "value{key}", "(complex)"),
        ({1j}, "value{member}", "(complex)"),
        ({'a"\n' + "b" * 99: 1j}, 'value["a\\"\\n' + "b" * 36 + "]", "(complex)"),
        (Half(), "value.x", "(ellipsis)"),
        (Order, "value", "(type)"),
        (Unset(), "value", "test_canonical.Unset)"),
        (iter([1]), "value", "(list_iterator)"),
        ([Speaking(ValueError("secret"))], "value[0]", "could not be turned into plain values"),
        ([Speaking([1j])], "value[0][0]", "(complex)"),
        ({1: "a", "1": "b"}, "value", "two keys that are one in JSON"),
        ({10**5000: 1}, "value{key}", "too long for the name of a key"),
        (ITSELF, 'value[1]["again"]', "(list) contains itself"),
    ],
)
def test_refusals_name_path_and_type(value: object, path: str, reason: str) -> None:
    """What has no form is refused with its path, its type and the reason."""
    if value == {10**5000: 1} and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("This Python prints integers of any length")

    error = _refusal(value)

    assert error.parameter == path
    assert str(error).startswith(f"{path} (")
    assert reason in str(error)
    assert "secret" not in str(error)


def test_repr_is_never_called() -> None:
    """No object's repr() gets into a form or a message."""

    class Shy:
        def __repr__(self) -> str:
            raise AssertionError

        __str__ = __repr__

    assert "Shy" in str(_refusal([Shy()]))


def test_object_whose_json_is_itself() -> None:
    """An object that returns itself from __json__ is refused, not followed for ever."""
    speaking = Speaking(None)
    speaking.value = [speaking]

    assert "contains itself" in str(_refusal(speaking))


@pytest.mark.parametrize("step", [lambda x: [x], lambda x: {"a": x}, lambda x: Order(1, x)])
def test_very_deep_values(step: Any) -> None:
    """A hundred thousand levels are refused at once, with a reason."""
    value: object = 1
    for _ in range(100_000):
        value = step(value)

    begun = time.perf_counter()
    error = _refusal(value)

    assert "nested deeper than 200 levels" in str(error)
    assert error.parameter is not None
    assert error.parameter.endswith("...")
    assert time.perf_counter() - begun < 1


def test_deep_value_on_a_full_stack() -> None:
    """Where the caller has used up the stack, the refusal is still ours."""
    value: object = 1
    for _ in range(150):
        value = [value]

    def dig(left: int) -> None:
        if left:
            dig(left - 1)
        else:
            canonical(value)

    used = len(inspect.stack(0))
    with pytest.raises(KeyDerivationError, match="deeper than the stack that is left"):
        dig(sys.getrecursionlimit() - used - 60)


def test_150_levels_are_fine() -> None:
    """Nesting that people use has a form."""
    value: object = 1
    for _ in range(150):
        value = [value]

    assert canonical(value)


@pytest.mark.parametrize("make", [lambda x: [x, x], lambda x: {"a": x, "b": x}, lambda x: (x, x)])
def test_values_that_double_with_each_level(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared parts that multiply are refused within bounded time."""
    monkeypatch.setattr(_canonical, "MAX_PIECES", 1_000_000)
    value: object = [1]
    for _ in range(100):
        value = make(value)

    assert "makes more than" in str(_refusal(value))


def test_sets_that_double_with_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets have the same bound."""
    monkeypatch.setattr(_canonical, "MAX_PIECES", 10_000)
    value: object = frozenset([1])
    for _ in range(60):
        value = frozenset([(1, value), (2, value)])

    assert "makes more than" in str(_refusal(value))


@pytest.mark.parametrize(
    "value",
    [b"x" * 10_000_000, "é" * 5_000_000, list(range(1_000_000)), 1 << 80_000_000],
    ids=["bytes", "str", "ints", "int"],
)
def test_ten_megabytes(value: object) -> None:
    """Ten megabytes, or a million numbers, have a form within ten seconds (measured: 0.7)."""
    begun = time.perf_counter()
    assert canonical(value)
    assert time.perf_counter() - begun < 10


def test_too_large() -> None:
    """More than 256 MB of text is refused."""
    text = "x" * 10_000_000

    assert "is too large" in str(_refusal([text] * 30))


def test_errors_hold_no_values() -> None:
    """A refusal that is logged shows no values of the arguments."""
    assert "hunter2" not in str(_refusal({"password": "hunter2", "other": 1j}))
