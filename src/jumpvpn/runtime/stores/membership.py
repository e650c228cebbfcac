"""What a gateway tells the others of its cluster about itself, in the record that its lease holds."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from enum import Enum

import msgspec

PREFIX = "held/"
FORMAT = 1
LONGEST_MEMBER = 4 << 10  # a record is a few hundred bytes
_KEY_BYTES = 32
_MOST_FORMATS = 64  # of one program; a longer list is not ours


class Serving(Enum):
    """Whether a gateway takes sessions. A fenced one holds its name without the right to act: nobody counts on it."""

    SERVING = "serving"
    DRAINING = "draining"
    FENCED = "fenced"


class ForeignMember(Exception):
    """Under ``held/`` is something that is no membership record; it is ignored. ``reason``: one line for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Member:
    """One gateway. Raises ValueError, naming the field, for values that cannot be told.

    ``address``: HOST:PORT for clients. ``public_key``: 32 bytes. ``run``: differs for each start of the program.
    ``formats``: the record formats that the program reads, the one that it writes first. ``beat`` rises with each
    renewal of the lease.
    """

    node: str
    address: str
    public_key: bytes
    run: str
    state: Serving
    program_version: str
    formats: tuple[int, ...]
    beat: int = 0

    def __post_init__(self) -> None:
        for name in ("node", "address", "run", "program_version"):
            value = getattr(self, name)
            if not value or not value.isprintable() or len(value) > 255:
                raise ValueError(f"{name}: 1 to 255 printable characters")
        if len(self.public_key) != _KEY_BYTES:
            raise ValueError(f"public_key: {_KEY_BYTES} bytes")
        if not 0 < len(self.formats) <= _MOST_FORMATS:
            raise ValueError(f"formats: 1 to {_MOST_FORMATS} numbers")
        if self.beat < 0:
            raise ValueError("beat: not below 0")

    @property
    def name(self) -> str:
        """Under which name the record is held."""
        return PREFIX + self.node


class _Record(msgspec.Struct, frozen=True):
    """JSON, for whoever looks with etcdctl. Fields that a later program adds are passed over."""

    format: int
    node: str
    address: str
    public_key: str
    run: str
    state: Serving
    program_version: str
    formats: tuple[int, ...]
    beat: int


def encode_member(member: Member) -> bytes:
    """The value of ``held/NODE``."""
    record = _Record(
        FORMAT, member.node, member.address, base64.b64encode(member.public_key).decode(), member.run, member.state,
        member.program_version, member.formats, member.beat,
    )  # fmt: skip
    return msgspec.json.encode(record)


def decode_member(name: str, value: bytes) -> Member:
    """The record under ``name`` (``held/NODE``). Raises ForeignMember."""
    shown = ascii(name)[1:-1]
    if len(value) > LONGEST_MEMBER:
        raise ForeignMember(f"{shown}: {len(value)} bytes are no membership record of a gateway; remove it")
    try:
        record = msgspec.json.decode(value, type=_Record)
        key = base64.b64decode(record.public_key, validate=True)
        if record.format != FORMAT:
            raise ForeignMember(
                f"{shown}: membership format {record.format}, this program knows {FORMAT}; upgrade the older gateway"
            )
        member = Member(
            record.node, record.address, key, record.run, record.state, record.program_version, record.formats,
            record.beat,
        )  # fmt: skip
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, ValueError) as error:
        raise ForeignMember(f"{shown}: not a membership record of a gateway ({error}); remove it") from None
    if member.name != name:
        raise ForeignMember(f"{shown}: is the membership record of {member.node!r}; remove it")
    return member
