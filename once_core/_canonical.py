"""One byte form per value, the same in the producer and in the worker.

A key made from ``repr()`` or ``json.dumps()`` of the arguments breaks when the
message serializer changes them on the way: the producer locks ``(1, 2)``, the
worker frees ``[1, 2]``, and the lock stays. Here, what a serializer makes equal
has one form, and what it keeps apart has two:

- equal: ``(1, 2)`` and ``[1, 2]``; dict keys ``1`` and ``"1"``, ``True`` and
  ``"true"``, ``None`` and ``"null"``; ``bytes``, ``bytearray``, ``memoryview``; a
  subclass and its builtin base; an Enum and its value (or its mixed-in base); a
  pydantic model and the JSON mapping Celery sends for it; what ``__json__()``
  returns and its object; two spellings of one UTC offset; every NaN.
- apart: ``1``, ``"1"``, ``True``, ``1.0`` and ``None``; ``0.0`` and ``-0.0``;
  ``Decimal("1.0")`` and ``Decimal("1.00")``; one instant with two UTC offsets; a
  list and a set.

Three things no form can mend. kombu's JSON reads a dict that looks like its own
envelope, ``{"__type__": "date", "__value__": "2020-01-01"}``, as that date. Celery
sends a set inside a pydantic model as a list in the set's chance order; it is
sorted here, so producers agree. ``pydantic_dump_kwargs`` are not known here.

Forms are typed and length-framed: none is the beginning of another.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import struct
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from once_core.errors import KeyDerivationError

__all__ = ["Pieces", "Unencodable", "canonical", "encode", "reduced"]

#: Raised with every change of the form: keys of two versions never meet.
VERSION = b"\x01"
#: Deeper than any payload met, and well inside Python's stack of 1000 frames.
MAX_DEPTH = 200
#: Bounds time and memory. Values that share parts, as ``b = [a, a]; c = [b, b]``
#: and on, double with each level and would else run for ever.
MAX_PIECES = 1 << 22
_LONG, _PIECE_BITS = 4096, 6  # A long string counts as a piece for each 64 bytes.


class Pieces(list[bytes]):
    """Parts of a form; ``spent`` counts what was built and is not in the list."""

    spent = 0

    def charge(self, value: object, size: int) -> None:
        self.spent += size >> _PIECE_BITS
        if self.spent > MAX_PIECES:
            raise Unencodable(value, "is too large")


class Unencodable(Exception):  # noqa: N818 - a verdict on its way, never shown as such
    """A value without a form; gathers its path while it unwinds."""

    def __init__(
        self, value: object, reason: str, *, endless: bool = False, position: int = 0
    ) -> None:
        super().__init__(reason)
        self.position = position
        self._endless = endless
        self._trail: list[tuple[object, str]] = [(value, "")]

    def under(self, container: object, step: str) -> None:
        self._trail.append((container, step))

    def verdict(self, root: str) -> tuple[str, str]:
        """Return path and text, telling a value inside itself from a deep one."""
        steps, found, reason = self._trail[::-1], self._trail[0][0], str(self)
        shown, rest = len(steps), ""
        if self._endless:
            shown, rest, seen = 6, "...", set[int]()
            for position, (value, _) in enumerate(steps):
                if id(value) in seen:
                    shown, rest, found, reason = position, "", value, "contains itself"
                    break
                seen.add(id(value))
        path = root + "".join(step for _, step in steps[:shown]) + rest
        return path, f"{path} ({type_name(type(found))}) {reason}"


def type_name(kind: type) -> str:
    """Return the name of a type as an import would spell it."""
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


_Encoder = Callable[[Any, Pieces, int], None]


class _Encoders(dict[type, _Encoder]):
    def __missing__(self, kind: type) -> _Encoder:
        return _other


def _text(value: str) -> bytes:
    try:
        data = str.encode(value)
    except UnicodeEncodeError:
        # JSON joins two halves of a surrogate pair to the one character they
        # spell; a half that stands alone survives, and pickle keeps both.
        halves = value.encode("utf-16-le", "surrogatepass")
        whole = halves.decode("utf-16-le", "surrogatepass")
        data = whole.encode(errors="surrogatepass")
    return b"s%d:%b" % (len(data), data)


def _str(value: str, out: Pieces, _depth: int) -> None:
    data = _text(value)
    if len(data) > _LONG:
        out.charge(value, len(data))
    out.append(data)


def _bytes(value: bytes | bytearray | memoryview, out: Pieces, _depth: int) -> None:
    data = bytes(value)
    if len(data) > _LONG:
        out.charge(value, len(data))
    out.append(b"b%d:%b" % (len(data), data))


def _framed(tag: bytes, form: Callable[[Any], str]) -> _Encoder:
    def encoder(value: object, out: Pieces, _depth: int) -> None:
        data = form(value).encode()
        out.append(b"%b%d:%b" % (tag, len(data), data))

    return encoder


def _enter(value: object, size: int, out: Pieces, depth: int) -> None:
    if depth >= MAX_DEPTH:
        reason = f"is nested deeper than {MAX_DEPTH} levels"
        raise Unencodable(value, reason, endless=True)
    if size + len(out) + out.spent > MAX_PIECES:
        raise Unencodable(value, f"makes more than {MAX_PIECES} parts")


def _list(value: Sequence[object], out: Pieces, depth: int) -> None:
    _enter(value, len(value), out, depth)
    out.append(b"l%d:" % len(value))
    depth += 1
    try:
        for item in value:
            _ENCODERS[type(item)](item, out, depth)
    except Unencodable as refused:
        # Found again by identity, so that the usual case need not count.
        places = (f"[{i}]" for i, other in enumerate(value) if other is item)
        refused.under(value, next(places, "[?]"))
        raise


def _set(value: AbstractSet[object], out: Pieces, depth: int) -> None:
    _enter(value, len(value), out, depth)
    try:
        forms = sorted(_apart(item, out, depth + 1) for item in value)
    except Unencodable as refused:
        refused.under(value, "{member}")
        raise
    out += (b"S%d:" % len(forms), *forms)


def _apart(value: object, out: Pieces, depth: int) -> bytes:
    """Return one value's own form, on the budget of the whole."""
    own = Pieces()
    own.spent = out.spent
    _ENCODERS[type(value)](value, own, depth)
    out.spent = own.spent + len(own)
    return b"".join(own)


def _dict(value: Mapping[object, object], out: Pieces, depth: int) -> None:
    _enter(value, 2 * len(value), out, depth)
    depth += 1
    try:
        forms = {
            _text(key) if type(key) is str else _key(key, out, depth): item
            for key, item in value.items()
        }
    except Unencodable as refused:
        refused.under(value, "{key}")
        raise
    if len(forms) != len(value):
        # JSON keeps the last of them, pickle keeps both: no form suits both.
        raise Unencodable(value, "has two keys that are one in JSON, as 1 and '1'")
    out.append(b"d%d:" % len(forms))
    try:
        for name in sorted(forms):
            out.append(name)
            item = forms[name]
            _ENCODERS[type(item)](item, out, depth)
    except Unencodable as refused:
        steps = (_step(key) for key, other in value.items() if other is item)
        refused.under(value, next(steps, "[?]"))
        raise


def _step(key: object) -> str:
    if key is None or isinstance(key, (str, int, float)):
        return f"[{json.dumps(key)[:42]}]"
    return f"[<{type_name(type(key))}>]"


def _key(key: object, out: Pieces, depth: int) -> bytes:
    """Return the form of a dict key: its JSON name, or its own form without one."""
    key = reduced(key)
    if isinstance(key, str):
        return _text(key)
    if key is None or isinstance(key, (int, float)):
        try:
            return _text(json.dumps(key))
        except ValueError as error:
            raise Unencodable(key, "is too long for the name of a key") from error
    return _apart(key, out, depth)


def _record(value: object, names: Iterable[str], out: Pieces, depth: int) -> None:
    _enter(value, 1, out, depth)
    names = sorted(names)
    out += (b"o", _text(type_name(type(value))), b"%d:" % len(names))
    for name in names:
        out.append(_text(name))
        # A field never set has no form, and neither has the ellipsis.
        item = getattr(value, name, ...)
        try:
            _ENCODERS[type(item)](item, out, depth + 1)
        except Unencodable as refused:
            refused.under(value, f".{name}")
            raise


def _row(value: Any, out: Pieces, depth: int) -> None:  # noqa: ANN401 - Django is not imported
    key = value.pk
    if key is None or (isinstance(key, tuple) and None in key):
        raise Unencodable(value, "is a Django model instance that is not saved yet")
    # Django itself takes a row and the same row as a proxy model for equal.
    label = value._meta.concrete_model._meta.label_lower  # noqa: SLF001 - Django's API
    out += (b"m", _text(label))
    _ENCODERS[type(key)](key, out, depth + 1)


def _loaded(module: str, name: str) -> tuple[type, ...]:
    """Return a class of a library if somebody loaded it: else no value is of it."""
    found = getattr(sys.modules.get(module), name, None)
    return (found,) if isinstance(found, type) else ()


def _dumped(model: Any) -> object:  # noqa: ANN401 - pydantic is not imported
    plain = model.model_dump(warnings=False)
    try:
        # Celery's pydantic=True sends just this.
        return _ordered(plain, model.model_dump(mode="json", warnings=False))
    except ValueError:
        # It has no JSON form (PydanticSerializationError), so it travels as itself.
        return plain


def _ordered(plain: object, wire: object) -> object:
    """Sort the lists that pydantic makes of sets, whose order differs by process."""
    if isinstance(plain, (set, frozenset)) and isinstance(wire, list):
        nested = any(isinstance(item, (tuple, frozenset)) for item in plain)
        return plain if nested else sorted(wire, key=canonical)
    if isinstance(plain, dict) and isinstance(wire, dict) and len(plain) == len(wire):
        values = map(_ordered, plain.values(), wire.values())
        return dict(zip(wire, values))  # noqa: B905 - as long
    if isinstance(plain, (list, tuple)) and isinstance(wire, list):
        return wire if len(plain) != len(wire) else list(map(_ordered, plain, wire))
    return wire


def reduced(value: object) -> object:
    """Return what goes on the wire in place of an object, else the value itself."""
    kind = type(value)
    known = any(base in _ENCODERS for base in kind.__mro__)
    try:
        # The order is that of kombu's JSON encoder.
        if hasattr(kind, "__json__") and not isinstance(value, _NATIVE):
            return value.__json__()  # type: ignore[attr-defined]  # just seen
        if isinstance(value, _loaded("django.utils.functional", "Promise")):
            return str(value)
        if isinstance(value, enum.Enum) and not known:
            return value.value
        if isinstance(value, _loaded("pydantic.main", "BaseModel")) and not known:
            return _dumped(value)
    except Exception as error:
        reason = f"could not be turned into plain values ({type(error).__name__})"
        raise Unencodable(value, reason) from error
    return value


def _other(value: object, out: Pieces, depth: int) -> None:
    simple, kind = reduced(value), type(value)
    bases = [base for base in kind.__mro__ if base in _ENCODERS]
    if simple is not value:
        _enter(value, 1, out, depth)
        try:
            _ENCODERS[type(simple)](simple, out, depth + 1)
        except Unencodable as refused:
            refused.under(value, "")
            raise
    elif bases:
        _ENCODERS[bases[0]](value, out, depth)
    elif isinstance(value, Mapping):
        _dict(value, out, depth)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _record(value, (field.name for field in dataclasses.fields(value)), out, depth)
    elif isinstance(fields := getattr(kind, "__attrs_attrs__", None), tuple):
        _record(value, (field.name for field in fields), out, depth)
    elif isinstance(value, _loaded("django.db.models.base", "Model")):
        _row(value, out, depth)
    else:
        raise Unencodable(value, "has no form that is the same in every process")


#: What JSON takes as it is, subclasses too, before it asks for ``__json__``.
_NATIVE = (str, int, float, dict, list, tuple)

# isoformat() of the base class, as kombu does: it drops fold and the name of the
# zone, which the JSON and YAML trips drop, and keeps the offset, which they keep.
_ENCODERS = _Encoders()
_ENCODERS[type(None)] = lambda _value, out, _depth: out.append(b"n")
_ENCODERS[bool] = lambda value, out, _depth: out.append(b"T" if value else b"F")
# Hexadecimal, for Python refuses decimals of more than 4300 digits.
_ENCODERS[int] = lambda value, out, _depth: out.append(b"i%x;" % value)
_ENCODERS[float] = lambda value, out, _depth: out.append(
    b"N" if math.isnan(value) else b"f" + struct.pack(">d", value)
)
_ENCODERS[str] = _str
_ENCODERS[dict] = _dict
_ENCODERS.update(dict.fromkeys((list, tuple), _list))
_ENCODERS.update(dict.fromkeys((bytes, bytearray, memoryview), _bytes))
_ENCODERS.update(dict.fromkeys((set, frozenset), _set))
_ENCODERS[uuid.UUID] = _framed(b"u", lambda value: f"{value.int:x}")
_ENCODERS[dt.datetime] = _framed(b"D", dt.datetime.isoformat)
_ENCODERS[dt.date] = _framed(b"a", dt.date.isoformat)
_ENCODERS[dt.time] = _framed(b"t", dt.time.isoformat)
_ENCODERS[dt.timedelta] = _framed(
    b"p", lambda value: f"{value.days}/{value.seconds}/{value.microseconds}"
)
# upper(), for a decimal context can ask for small letters.
_ENCODERS[decimal.Decimal] = _framed(b"c", lambda value: decimal.Decimal.__str__(value).upper())


def encode(values: Iterable[object]) -> bytes:
    """Return the forms of several values, one behind the other, without a version.

    Raises:
        Unencodable: If a value has no form; ``position`` says which.
    """
    out = Pieces()
    position = 0
    try:
        for value in values:
            _ENCODERS[type(value)](value, out, 0)
            position += 1
    except Unencodable as refused:
        refused.position = position
        raise
    except RecursionError:
        reason = "is nested deeper than the stack that is left"
        raise Unencodable(value, reason, position=position) from None
    return b"".join(out)


def canonical(value: object) -> bytes:
    """Return the one byte form of a value.

    Args:
        value: A plain value, a container of such, or one of the models above.

    Returns:
        The form, which begins with its version.

    Raises:
        KeyDerivationError: If it has none; names the path and the type.

    Example:
        >>> canonical((1, "1")) == canonical([1, "1"])
        True
        >>> canonical(1) == canonical("1")
        False
    """
    try:
        return VERSION + encode((value,))
    except Unencodable as refused:
        path, text = refused.verdict("value")
        text += "; convert it to plain values first"
        raise KeyDerivationError(text, parameter=path) from refused.__cause__
