"""Names in Redis for units of work: a task and the arguments that identify it.

Two calls that mean the same work must get the same key, and no two others. So the
arguments are bound as Python binds them (``f(1)``, ``f(a=1)`` and ``f(1, b=2)``,
where 2 is the default, are one call), and the digest is over their types and
values in one canonical form, never over their ``repr()`` or a joined string:

    PREFIX:NAME:DIGEST              the usual key
    PREFIX:NAME:TEXT:DIGEST         with a template, whose text people can read
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import hmac
import inspect
import re
import string
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Union
from uuid import UUID

from once_core import _canonical
from once_core.errors import ConfigurationError, KeyDerivationError

__all__ = ["KeySelect", "KeySpec"]

#: What ``key=`` takes: all arguments, names of parameters, a template, a callable.
KeySelect = Union[Sequence[str], str, Callable[..., object], None]  # noqa: UP007 - evaluated at run time by Python 3.10

_Args = Sequence[object]
_Kwargs = Mapping[str, object]
_Hash = Any  # A hash or an HMAC, which share no public type.
#: Raised with every change of what the digest covers.
_VERSION = 1
#: 160 bits: no collision by chance, and none that 2**64 tries would find.
_DIGEST_LENGTH, _FINGERPRINT_LENGTH = 40, 32
_NAME_LENGTH, _TEXT_LENGTH, _PREVIEW_LENGTH, _BITS = 128, 48, 64, 512
#: Redis Cluster hashes only what stands between braces: keys would crowd one slot.
_UNFIT = re.compile(r"[^A-Za-z0-9_.:-]")
_HARMFUL = frozenset("{} ")
#: Texts that are the same before and after the trip through a serializer. Very
#: long integers have none, for Python may refuse to print them.
_SHOWN: dict[type, Callable[[Any], str]] = {
    **dict.fromkeys((type(None), bool, UUID, timedelta), str),
    int: lambda value: int.__repr__(value) if value.bit_length() <= _BITS else "_",
    float: float.__repr__,
    str: str.__str__,
    Decimal: lambda value: Decimal.__str__(value).upper(),
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
}

_WAY_OUT = "Leave it out with key=[...], derive the key by key=callable, or pass an id or string"
_ALL_NEEDED = "All arguments are compared with those that wait: pass an id or string"


class KeySpec:
    """Derive the keys of one task; made once, when the task is defined.

    Immutable, and safe to use from any thread, greenlet or forked process. It does
    not talk to Redis. It cannot be pickled: make it anew from its arguments.

    Args:
        task: Name of the task, or the name that several tasks share.
        function: What the task runs, for its parameters and their defaults; a
            bound method without ``self``. One whose signature Python cannot read
            counts as ``(*args, **kwargs)``.
        select: The arguments that identify the work. None for all of them, names
            of parameters, ``[]`` for the task alone, a template such as
            ``"order-{order_id}"``, or a callable that gets the arguments of the
            call and returns the identifying value. Where the function takes
            ``**kwargs``, names may be of those as well.
        secret: Makes the digests HMACs, so that nobody who reads Redis can try
            out guesses of the arguments. All programs must have the same one.
        preview: Parameters whose values may be shown to people.

    Attributes:
        task: Name of the task.
        covers_all: Whether equal keys mean equal calls.
        parameters: Names of those that identify the work; none where a callable says.

    Raises:
        ConfigurationError: If the selection cannot work for this function.

    Example:
        >>> def sync(order_id, force=False): ...
        >>> spec = KeySpec("orders.sync", sync, "order-{order_id}")
        >>> spec.key((7,), {}).rpartition(":")[0]
        'once:orders.sync:order-7'
        >>> spec.key((7,), {}) == spec.key((), {"order_id": 7, "force": True})
        True
    """

    def __init__(
        self,
        task: str,
        function: Callable[..., object],
        select: KeySelect = None,
        *,
        secret: str | bytes | None = None,
        preview: bool | Sequence[str] = False,
    ) -> None:
        self.task = task
        self._read_signature(function)
        self._callable: Callable[..., object] | None = None
        self._template: list[tuple[str, str | None]] = []
        chosen: tuple[str, ...] | None = None
        kind, text = "all", ""
        if isinstance(select, str):
            kind, text = "template", select
            self._template = self._parse_template(select)
            chosen = tuple(sorted({name for _, name in self._template if name}))
        elif callable(select):
            kind = "callable"
            if inspect.iscoroutinefunction(select) or inspect.isgeneratorfunction(select):
                raise self._wrong("key", "needs a plain function that returns a value")
            self._callable = select
        elif select is not None:
            kind = "names"
            chosen = tuple(sorted(set(self._check_names("key", select))))
        self.covers_all = kind == "all" or (chosen is not None and set(chosen) >= set(self._names))
        if preview is True:
            raise self._wrong("preview", "needs the names of the parameters to show")
        self._previewed = self._check_names("preview", preview or ())
        self._name = _UNFIT.sub("_", task[:_NAME_LENGTH])
        self._usual_head = f"once:{self._name}:"
        every = self._names if self._callable is None else ()
        self.parameters = every if chosen is None else chosen
        self._roots = self.parameters if self._callable is None else ("key()",)
        # Positions among the bound values; a name is looked up in **kwargs.
        self._places: list[int | str] | None = None
        if chosen is not None:
            known = {name: place for place, name in enumerate(self._names)}
            self._places = [known.get(name, name) for name in chosen]
        about = (_VERSION, task, kind, text, self._names if chosen is None else chosen)
        self._digest_from = _hasher(secret, about)
        self._fingerprint_from = _hasher(secret, (*about[:2], "every", self._names))

    def __repr__(self) -> str:
        return f"<KeySpec of {self.task}>"

    def bind(self, args: _Args, kwargs: _Kwargs) -> dict[str, object]:
        """Return every argument by the name of its parameter, defaults applied.

        Args:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            Names and values in the order of the parameters.

        Raises:
            KeyDerivationError: If the function does not take these arguments.

        Example:
            >>> KeySpec("add", lambda a, b=2: a + b).bind((1,), {})
            {'a': 1, 'b': 2}
        """
        return dict(zip(self._names, self._values(args, kwargs)))  # noqa: B905 - as long

    def digest(self, args: _Args, kwargs: _Kwargs) -> str:
        """Return what tells this unit of work from all others.

        Args:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            40 hexadecimal digits (160 bits of SHA-256).

        Raises:
            KeyDerivationError: If the arguments do not fit or have no form.

        Example:
            >>> spec = KeySpec("orders.sync", lambda order_id: None)
            >>> spec.digest((7,), {}) == spec.digest(("7",), {})
            False
        """
        values = self._selected(args, kwargs)
        return self._sum(self._digest_from.copy(), values, self._roots, _WAY_OUT)[:_DIGEST_LENGTH]

    def key(self, args: _Args, kwargs: _Kwargs, *, prefix: str = "once") -> str:
        """Return the name of the record of this unit of work in Redis.

        Args:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
            prefix: Keeps programs, or tenants, on one Redis apart.

        Returns:
            ``PREFIX:NAME:DIGEST``, with the template's text before the digest.

        Raises:
            KeyDerivationError: If the arguments do not fit or have no form.
            ConfigurationError: If the prefix cannot be part of a key.

        Example:
            >>> KeySpec("nightly", lambda: None).key((), {}, prefix="shop")[:13]
            'shop:nightly:'
        """
        head = self._usual_head
        if prefix != "once":
            head = f"{_checked_prefix(prefix)}:{self._name}:"
        values = self._selected(args, kwargs)
        full = self._sum(self._digest_from.copy(), values, self._roots, _WAY_OUT)
        text = f"{self._text(values)}:" if self._template else ""
        return head + text + full[:_DIGEST_LENGTH]

    def fingerprint(self, args: _Args, kwargs: _Kwargs) -> str:
        """Return a digest over all arguments, whatever the selection is.

        Args:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            32 hexadecimal digits (128 bits); equal for equal calls only.

        Raises:
            KeyDerivationError: If the arguments do not fit or have no form.

        Example:
            >>> spec = KeySpec("sync", lambda order_id, note="": None, ["order_id"])
            >>> spec.fingerprint((7,), {}) == spec.fingerprint((7, "new"), {})
            False
        """
        values, start = self._values(args, kwargs), self._fingerprint_from.copy()
        return self._sum(start, values, self._names, _ALL_NEEDED)[:_FINGERPRINT_LENGTH]

    def preview(self, args: _Args, kwargs: _Kwargs) -> dict[str, str]:
        """Return short texts of the parameters that may be shown, and of no others.

        Args:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            Names and texts of at most 64 characters; the type in place of a value
            that is not a plain scalar.

        Raises:
            KeyDerivationError: If the function does not take these arguments.

        Example:
            >>> spec = KeySpec("pay", lambda order, card: None, preview=["order"])
            >>> spec.preview((7, "4111 1111"), {})
            {'order': '7'}
        """
        if not self._previewed:
            return {}
        known = self.bind(args, kwargs)
        extra: Any = known.get(self._extra) or {}
        found = {**extra, **known}
        return {name: _printable(found[name]) for name in self._previewed if name in found}

    def _read_signature(self, function: Callable[..., object]) -> None:
        named: object = self.task
        if not (isinstance(named, str) and named and callable(function)):
            raise self._wrong("name", "needs a name, not empty, and a function to run")
        try:
            self.signature = inspect.signature(function)
        except (TypeError, ValueError):
            self.signature = inspect.signature(lambda *args, **kwargs: (args, kwargs))
        parameters = self.signature.parameters.values()
        self._names = tuple(self.signature.parameters)
        plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        self._arity = len(parameters) if plain else -1
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self._extra = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "")

    def _wrong(self, option: str, text: str) -> ConfigurationError:
        return ConfigurationError(f"{self.task}: {option}= {text}", option=option)

    def _check_names(self, option: str, names: object) -> tuple[str, ...]:
        if isinstance(names, str) or not isinstance(names, (Sequence, AbstractSet)):
            raise self._wrong(option, 'needs a list of names, as ["order_id"]')
        for name in names:
            if not isinstance(name, str) or not (name in self._names or self._extra):
                near = difflib.get_close_matches(str(name), self._names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                known = ", ".join(self._names) or "none"
                text = f"names {str(name)!r}, which is no parameter{hint} Parameters: {known}"
                raise self._wrong(option, text)
        return tuple(names)

    def _parse_template(self, text: str) -> list[tuple[str, str | None]]:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise self._wrong("key", f"{text!r} is no template: {error}") from error
        names = [name for _, name, _, _ in parts if name is not None]
        if not names:
            hint = 'Write ["order_id"] or "order-{order_id}", or [] for the task alone'
            raise self._wrong("key", f"{text!r} names no parameter in braces. {hint}")
        for _, name, spec, conversion in parts:
            if name is not None and (spec or conversion or not name.isidentifier()):
                hint = "no attribute, index, conversion or format; use a callable for more"
                raise self._wrong("key", f"{text!r} may only name parameters: {hint}")
        self._check_names("key", names)
        return [(literal, name) for literal, name, _, _ in parts]

    def _values(self, args: _Args, kwargs: _Kwargs) -> Sequence[object]:
        given = len(args)
        if given == self._arity and not kwargs:
            return args
        if given <= self._arity:
            # Signature.bind() takes some 5 microseconds, more than all the rest.
            values, left = list(args), len(kwargs)
            for name in self._names[given:]:
                if name in kwargs:
                    values.append(kwargs[name])
                    left -= 1
                elif name in self._defaults:
                    values.append(self._defaults[name])
                else:
                    break
            if not left and len(values) == self._arity:
                return values
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            text = f"{self.task}: these arguments do not fit: {error}"
            raise KeyDerivationError(text, task=self.task) from error
        bound.apply_defaults()
        return list(bound.arguments.values())

    def _selected(self, args: _Args, kwargs: _Kwargs) -> Sequence[object]:
        if self._callable is not None:
            try:
                return (self._callable(*args, **kwargs),)
            except Exception as error:
                text = f"{self.task}: the callable of key= raised {type(error).__name__}: {error}"
                raise KeyDerivationError(text, task=self.task) from error
        values = self._values(args, kwargs)
        if self._places is None:
            return values
        extra: Any = values[self._names.index(self._extra)] if self._extra else {}
        try:
            return [
                values[place] if isinstance(place, int) else extra[place] for place in self._places
            ]
        except KeyError as error:
            name = str(error.args[0])
            text = f"{self.task}: key= names {name!r}, which this call does not pass"
            raise KeyDerivationError(text, task=self.task, parameter=name) from None

    def _sum(self, hasher: _Hash, values: _Args, roots: Sequence[str], way_out: str) -> str:
        try:
            hasher.update(_canonical.encode(values))
        except _canonical.Unencodable as refused:
            path, text = refused.verdict(roots[refused.position])
            text = f"{self.task}: {text}. {way_out}."
            facts = {"task": self.task, "parameter": path}
            raise KeyDerivationError(text, **facts) from refused.__cause__
        digest: str = hasher.hexdigest()
        return digest

    def _text(self, values: Sequence[object]) -> str:
        text = {n: (_scalar(v) or "_")[:_TEXT_LENGTH] for n, v in zip(self.parameters, values)}  # noqa: B905 - as long
        whole = "".join(part + (text[name] if name else "") for part, name in self._template)
        return _UNFIT.sub("_", whole[:_TEXT_LENGTH])


def _scalar(value: object) -> str | None:
    if type(value) not in _SHOWN:
        with contextlib.suppress(_canonical.Unencodable):
            value = _canonical.reduced(value)
    forms = [_SHOWN[base] for base in type(value).__mro__ if base in _SHOWN]
    return forms[0](value) if forms else None


def _printable(value: object) -> str:
    text = _scalar(value)
    if text is None:
        return f"<{type(value).__name__[:_PREVIEW_LENGTH]}>"
    return "".join(c if c.isprintable() else "_" for c in text[:_PREVIEW_LENGTH])


def _checked_prefix(prefix: object) -> str:
    if isinstance(prefix, str) and prefix.isprintable() and prefix and not _HARMFUL & {*prefix}:
        return prefix
    text = "prefix= must be printable text without spaces, and without the braces of hash tags"
    raise ConfigurationError(text, option="prefix")


def _hasher(secret: object, about: tuple[object, ...]) -> _Hash:
    head = _canonical.canonical(about)
    if secret is None:
        return hashlib.sha256(head)
    key = secret.encode() if isinstance(secret, str) else secret
    if not isinstance(key, bytes) or not key:
        raise ConfigurationError("secret= must be text or bytes", option="secret")
    return hmac.new(key, head, hashlib.sha256)
