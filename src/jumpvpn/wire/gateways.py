"""What a gateway tells a client of the cluster: where its gateways are, and that it wants to be left.

Both are payloads of control messages: sealed and authenticated below, parsed strictly here. Nearer gateways come first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Annotated

import msgspec

GATEWAYS = 2  # kind of the control message with the list
DRAIN = 3  # kind of the control message that asks the client to leave, or takes that back

GATEWAYS_MAX = 8  # a client keeps standby transports at 7 others at most (policy), and a path index has 3 bits
GATEWAYS_MAX_BYTES = 1000  # one chunk of a control message: the list is told again and again, and comes whole or not
NAME_MAX = 63  # as a DNS label, and as names in configuration files
ADDRESS_MAX = 259  # a DNS name of 253, a colon and a port
KEY_BYTES = 32  # X25519 (RFC 7748)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})?)):([0-9]{1,5})", re.ASCII)
_ON, _OFF = b"\x00", b"\x01"


class BadControl(ValueError):
    """A control message of the gateway cannot be understood."""


class Gateway(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One gateway: its name, ``host:port`` or ``[v6]:port``, and the 32 raw bytes of its public key.

    Raises ValueError, also while decoding, unless each of them has that form.
    """

    name: Annotated[str, msgspec.Meta(max_length=NAME_MAX)]
    address: Annotated[str, msgspec.Meta(max_length=ADDRESS_MAX)]
    public_key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(f"a gateway's name has 1 to {NAME_MAX} of letters, digits, . _ -")
        if not _is_address(self.address):
            raise ValueError('a gateway\'s address is "host:port" or "[v6]:port"')
        if len(self.public_key) != KEY_BYTES:
            raise ValueError(f"a gateway's public key has {KEY_BYTES} bytes")


Gateways = Annotated[tuple[Gateway, ...], msgspec.Meta(max_length=GATEWAYS_MAX)]


def encode_gateways(gateways: Iterable[Gateway]) -> bytes:
    """The payload of GATEWAYS: as many of ``gateways``, from the first on, as ``GATEWAYS_MAX`` and the size allow.

    Raises ValueError if two have one name.
    """
    nearest = distinct(tuple(gateways))[:GATEWAYS_MAX]
    while len(payload := msgspec.msgpack.encode(nearest)) > GATEWAYS_MAX_BYTES:
        nearest = nearest[:-1]
    return payload


def decode_gateways(payload: bytes) -> tuple[Gateway, ...]:
    """The gateways in ``payload``, the nearest first. Raises BadControl."""
    if len(payload) > GATEWAYS_MAX_BYTES:
        raise BadControl(f"the gateway's list has {len(payload)} bytes, at most {GATEWAYS_MAX_BYTES} are allowed")
    try:
        return distinct(msgspec.msgpack.decode(payload, type=Gateways))
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadControl(f"the gateway's list is malformed: {error}") from None


def encode_drain(*, on: bool) -> bytes:
    """The payload of DRAIN: the client shall leave (``on``), or may stay after all."""
    return _ON if on else _OFF


def decode_drain(payload: bytes) -> bool:
    """Whether the client shall leave; an empty payload says so too. Raises BadControl."""
    if payload not in (b"", _ON, _OFF):
        raise BadControl(f"the gateway's drain message has {len(payload)} bytes that mean nothing")
    return payload != _OFF


def distinct(gateways: tuple[Gateway, ...]) -> tuple[Gateway, ...]:
    """``gateways``, in their order. Raises ValueError if two have one name."""
    if len({gateway.name for gateway in gateways}) < len(gateways):
        raise ValueError("two gateways have the same name")
    return gateways


def _is_address(text: str) -> bool:
    matched = _ADDRESS.fullmatch(text)
    if matched is None or not 0 < int(matched[3]) < 65536:
        return False
    if matched[1] is None:
        return True
    try:
        ipaddress.IPv6Address(matched[1])
    except ValueError:
        return False
    return True
