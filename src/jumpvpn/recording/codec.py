"""Typed values to JSON values and back, by their type hints: inputs, and everything an engine keeps.

Denies by default: a type that is not listed here cannot be recorded. What must not be readable goes through a ``Veil``:
session identifiers become their public names, other bytes irreversible names, addresses what policy shows of them.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from math import isfinite
from typing import Any, Literal, NewType, Protocol, Union, get_args, get_origin, get_type_hints

from jumpvpn.audit.sealing import ADDRESS_FIELDS
from jumpvpn.policy.model import Policy
from jumpvpn.values import DomainEvent, SessionId

ADDRESS_NAMES = frozenset({"peer", "local", "old", "new", "birth_peer"})
"""Names of the fields that hold addresses, wherever they occur."""

EXPONENTS = frozenset({"denials", "let_down", "attempts"})  # the engines raise 2 to these
EXPONENT_MAX = 1_000_000
INTEGER_MAX = 2**64 - 1
UID_DIGITS = 16
SECRET_DIGITS = 64  # a recorded name of a secret has 32


class BadValue(ValueError):
    """A recorded value does not have the type it should have; the text names the field."""


class Veil(Protocol):
    """What a recording shows instead of what must not be readable."""

    def address(self, address: str) -> str:
        """An injective name of ``address``."""

    def secret(self, raw: bytes) -> str:
        """Hexadecimal digits that say no more than which secrets are equal."""

    def policy(self, policy: Policy) -> Any:
        """A JSON value that keeps which policies are one object."""


class Sight(Protocol):
    """What a reader makes of a veiled value. Raises BadValue."""

    def policy(self, value: Any) -> Policy:
        """The policy, the same object for the same number."""


class RecordedId(SessionId):
    """A session identifier of which only the public name is known; it serves wherever the machine needs one."""

    __slots__ = ()

    @classmethod
    def named(cls, uid: str) -> RecordedId:
        """The identifier whose public name is ``uid`` (16 hexadecimal digits)."""
        return cls(uid.encode("ascii"))

    def _public_name(self) -> str:
        return self.raw.decode("ascii")


Encode = Callable[[Any, Veil], Any]
Decode = Callable[[Any, Sight], Any]


def encode(value: Any, hint: Any, veil: Veil, name: str = "") -> Any:
    """The JSON value of ``value``, which has the type ``hint`` and is called ``name``.

    Raises TypeError for types that cannot be recorded.
    """
    return encoder(hint, name)(value, veil)


def decode(value: Any, hint: Any, sight: Sight, name: str = "") -> Any:
    """The value of type ``hint`` behind a JSON value. Raises BadValue."""
    return decoder(hint, name)(value, sight)


@cache
def encoder(hint: Any, name: str = "") -> Encode:
    """How values of ``hint`` are written; ``name`` is the field that holds them."""
    hint, inner = _resolved(hint), get_args(_resolved(hint))
    origin = get_origin(hint)
    if hint is str and name in ADDRESS_NAMES:
        return lambda value, veil: veil.address(value)
    if hint in (str, int, float, bool) or origin is Literal:
        return lambda value, _veil: value
    if origin in (Union, types.UnionType):
        optional = encoder(_other_than_none(hint), name)
        return lambda value, veil: None if value is None else optional(value, veil)
    if origin in (tuple, list, set, frozenset, deque):
        return _array_encoder(origin, inner)
    if origin in (dict, Mapping):
        key, item = encoder(inner[0]), encoder(inner[1])
        return lambda value, veil: {key(k, veil): item(v, veil) for k, v in value.items()}
    return _leaf_encoder(hint)


def _leaf_encoder(hint: Any) -> Encode:
    if hint is Any:
        return lambda value, _veil: plain(value)
    if hint is bytes:
        return lambda value, veil: veil.secret(value)
    if hint is Policy:
        return lambda value, veil: veil.policy(value)
    if hint is SessionId:
        return lambda value, _veil: value.uid
    if hint is DomainEvent:
        return _encode_event
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value, _veil: value.value
    if is_dataclass(hint):
        return _record_encoder(hint)
    raise TypeError(f"{hint} cannot be recorded")


def _array_encoder(origin: Any, inner: tuple[Any, ...]) -> Encode:
    if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        parts = tuple(encoder(part) for part in inner)
        return lambda value, veil: [part(item, veil) for part, item in zip(parts, value, strict=True)]
    item = encoder(inner[0])
    if origin in (set, frozenset):
        return lambda value, veil: sorted(item(one, veil) for one in value)
    return lambda value, veil: [item(one, veil) for one in value]


def _record_encoder(kind: Any) -> Encode:
    parts = tuple((name, encoder(hint, name)) for name, hint in hints_of(kind).items())
    return lambda value, veil: {name: part(getattr(value, name), veil) for name, part in parts}


def _encode_event(event: DomainEvent, veil: Veil) -> Any:
    record = _record_encoder(DomainEvent)(event, veil)
    shown = {k: veil.address(str(v)) for k, v in event.data.items() if k in ADDRESS_FIELDS and v}
    return {**record, "data": {**record["data"], **shown}}


def plain(value: Any) -> Any:
    """``value`` as JSON has it. Raises TypeError for what JSON has not."""
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be recorded")


# --- reading ---------------------------------------------------------------------------------------------------------


@cache
def decoder(hint: Any, name: str = "") -> Decode:
    """How values of ``hint`` are read; ``name`` is the field that holds them."""
    hint, inner = _resolved(hint), get_args(_resolved(hint))
    origin = get_origin(hint)
    if hint is int:
        return lambda value, _sight: _integer(value, EXPONENT_MAX if name in EXPONENTS else INTEGER_MAX)
    if hint is float:
        return lambda value, _sight: _number(value)
    if hint in (str, bool):
        return lambda value, _sight: _exactly(value, hint)
    if origin is Literal:
        return lambda value, _sight: _one_of(value, inner)
    if origin in (Union, types.UnionType):
        optional = decoder(_other_than_none(hint), name)
        return lambda value, sight: None if value is None else optional(value, sight)
    if origin in (tuple, list, set, frozenset, deque):
        return _array_decoder(origin, inner)
    if origin in (dict, Mapping):
        return _table_decoder(decoder(inner[0]), decoder(inner[1]))
    return _leaf_decoder(hint)


def _leaf_decoder(hint: Any) -> Decode:
    if hint is Any:
        return lambda value, _sight: value
    if hint is bytes:
        return lambda value, _sight: _secret(value)
    if hint is Policy:
        return lambda value, sight: sight.policy(value)
    if hint is SessionId:
        return lambda value, _sight: _session_id(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value, _sight: _member(value, hint)
    if is_dataclass(hint):
        return _record_decoder(hint)
    raise TypeError(f"{hint} cannot be recorded")


def _array_decoder(origin: Any, inner: tuple[Any, ...]) -> Decode:
    if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        parts = tuple(decoder(part) for part in inner)

        def fixed(value: Any, sight: Sight) -> Any:
            if len(_exactly(value, list)) != len(parts):
                raise BadValue(f"{len(value)} entries instead of {len(parts)}")
            return tuple(part(item, sight) for part, item in zip(parts, value, strict=True))

        return fixed
    item = decoder(inner[0])
    return lambda value, sight: origin(item(one, sight) for one in _exactly(value, list))


def _table_decoder(key: Decode, item: Decode) -> Decode:
    def table(value: Any, sight: Sight) -> Any:
        return {key(k, sight): _within(str(k), item, v, sight) for k, v in _exactly(value, dict).items()}

    return table


def _record_decoder(kind: Any) -> Decode:
    parts = {name: decoder(hint, name) for name, hint in hints_of(kind).items()}

    def record(value: Any, sight: Sight) -> Any:
        table = _exactly(value, dict)
        if table.keys() != parts.keys():
            odd = sorted(str(name) for name in table.keys() ^ parts.keys())
            raise BadValue(f"{kind.__name__}: missing or unknown: {', '.join(odd)[:200]}")
        return kind(**{name: _within(name, part, table[name], sight) for name, part in parts.items()})

    return record


def _within(name: str, part: Decode, value: Any, sight: Sight) -> Any:
    try:
        return part(value, sight)
    except BadValue as error:
        raise BadValue(f"{name[:60]}: {error}") from None


def _integer(value: Any, most: int) -> int:
    number: int = _exactly(value, int)
    if abs(number) > most:
        raise BadValue(f"beyond {most}")
    return number


def _number(value: Any) -> Any:
    if type(value) not in (int, float) or not isfinite(value):
        raise BadValue("is not a number")
    return value


def _exactly(value: Any, kind: Any) -> Any:
    if type(value) is not kind:
        raise BadValue(f"is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _one_of(value: Any, wanted: tuple[Any, ...]) -> Any:
    if value not in wanted:
        raise BadValue(f"is none of {', '.join(map(str, wanted))}")
    return value


def _member(value: Any, kind: type[Enum]) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise BadValue(f"is no {kind.__name__}") from None


def _secret(value: Any) -> bytes:
    try:
        raw = bytes.fromhex(_exactly(value, str))
    except ValueError:
        raise BadValue("is not hexadecimal") from None
    if len(value) > SECRET_DIGITS:
        raise BadValue(f"has more than {SECRET_DIGITS} digits")
    return raw


def _session_id(value: Any) -> RecordedId:
    text = _exactly(value, str)
    if len(text) != UID_DIGITS or set(text) - set("0123456789abcdef"):
        raise BadValue(f"is no session name of {UID_DIGITS} hexadecimal digits")
    return RecordedId.named(text)


# --- hints -----------------------------------------------------------------------------------------------------------


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Field name -> type of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _resolved(hint: Any) -> Any:
    while isinstance(hint, NewType):
        hint = hint.__supertype__
    return hint


def _other_than_none(hint: Any) -> Any:
    others = [part for part in get_args(hint) if part is not type(None)]
    if len(others) != 1:
        raise TypeError(f"{hint} cannot be recorded")
    return others[0]
