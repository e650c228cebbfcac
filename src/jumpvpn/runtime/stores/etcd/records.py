"""Names and values of the store in etcd: strict on reading, so that foreign or damaged bytes are never taken for ours.

Names, all below ``/jumpvpn/CLUSTER/``::

    format                                      the version of this layout
    live/SESSION, dead/SESSION                  one record; the terminated apart, so that listing stays cheap
    device/KEY                                  newest handshake timestamp (ns), 8 bytes big-endian, and the session
                                                that it began (16 bytes)
    addresses/IP                                public key of the device that has this inner address
    secrets/NAME                                sealed under the cluster key
    outbox/NODE/SESSION.VERSION.WRITE-ID.COUNT  the event lines of one commit, until the node has exported them, or one
                                                that outlives it
    held/NAME                                   what a lease holds

``held/`` and ``live/`` are neighbours: one ordered watch over both tells who is there and who owns what. No other name
may lie between them.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from jumpvpn.runtime.stores.base import ForeignRecord, StoredSession, Write
from jumpvpn.runtime.stores.shared import KeptLines, outbox_name

FORMAT = b"1"
_ZLIB = b"\x78"  # what packed lines begin with; those that are not begin with the mark of an array
_LONGEST = 4 << 20  # bytes of unpacked lines, of which a commit has 1 MiB at most: whatever is there, memory stays flat
LONGEST_LINES = 1 << 16  # of one commit: the index of a line has 16 bits in its number
_SIGN = b"JVS"
_LAYOUT = 1
_MAGIC = _SIGN + bytes([_LAYOUT])
_DIGEST_BYTES = 8  # against damage, not against forgery: that is the seal's and the cluster key's work
_TIMESTAMP_BYTES = 8
_SESSION_BYTES = 16


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    session_id: bytes
    version: int
    state: str
    epoch: int
    body: bytes
    sealed: bytes | None
    chain: str
    seq: int
    head: str
    write_id: str
    owner: str = ""
    term: int = 0


_values = attrgetter(*_Record.__struct_fields__)


@dataclass(frozen=True, slots=True)
class Names:
    """The keys of one cluster and node."""

    cluster: str
    node: str

    @property
    def root(self) -> bytes:
        """What all keys begin with."""
        return f"/jumpvpn/{self.cluster}/".encode()

    @property
    def format(self) -> bytes:
        """The version of the layout."""
        return self.root + b"format"

    @property
    def live(self) -> bytes:
        """Prefix of sessions that are not terminated."""
        return self.root + b"live/"

    def live_session(self, session_id: bytes) -> bytes:
        """A session that is not terminated."""
        return self.live + session_id.hex().encode()

    def dead_session(self, session_id: bytes) -> bytes:
        """The same session once terminated."""
        return self.root + b"dead/" + session_id.hex().encode()

    def device(self, device: bytes) -> bytes:
        """A device's newest timestamp."""
        return self.root + b"device/" + device.hex().encode()

    @property
    def outbox(self) -> bytes:
        """Prefix of this node's lines."""
        return self.outboxes + f"{self.node}/".encode()

    @property
    def outboxes(self) -> bytes:
        """Prefix of all nodes' lines."""
        return self.root + b"outbox/"

    def outbox_entry(self, write: Write) -> bytes:
        """The lines of one commit; the name is unique to it, so its presence proves that the commit took place."""
        return self.outbox + outbox_name(write).encode()

    @property
    def held(self) -> bytes:
        """Prefix of what leases hold."""
        return self.root + b"held/"

    def address(self, address: str) -> bytes:
        """Which device has this inner address."""
        return self.root + f"addresses/{address}".encode()

    def secret(self, name: str) -> bytes:
        """A value sealed under the cluster key."""
        return self.root + f"secrets/{name}".encode()


def after_prefix(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix``, which must not end in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def encode_session(session: StoredSession) -> bytes:
    """The value of ``live/`` and ``dead/``."""
    packed = msgspec.msgpack.encode(_values(session))
    return _MAGIC + _digest(packed) + packed


def decode_session(key: bytes, value: bytes) -> StoredSession:
    """The record under ``key``. Raises ForeignRecord."""
    if len(value) > len(_MAGIC) and value.startswith(_SIGN) and value[len(_SIGN)] > _LAYOUT:
        raise ForeignRecord(
            f"etcd: {repr(key)[2:-1]} has record layout {value[len(_SIGN)]}, this program knows {_LAYOUT}; "
            "upgrade this gateway"
        )
    packed = value[len(_MAGIC) + _DIGEST_BYTES :]
    if not value.startswith(_MAGIC) or value[len(_MAGIC) : len(_MAGIC) + _DIGEST_BYTES] != _digest(packed):
        raise _foreign(key, "a session record")
    try:
        record = msgspec.msgpack.decode(packed, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _foreign(key, "a session record") from None
    if key.rpartition(b"/")[2] != record.session_id.hex().encode():
        raise _foreign(key, "the record of that session")
    return StoredSession(*msgspec.structs.astuple(record))


def encode_device(timestamp: int, session_id: bytes) -> bytes:
    """The value of ``device/``."""
    return timestamp.to_bytes(_TIMESTAMP_BYTES, "big") + session_id


def decode_device(key: bytes, value: bytes) -> tuple[int, bytes | None]:
    """Timestamp (ns) and last session under ``key``; the session is None in short values. Raises ForeignRecord."""
    if len(value) not in (_TIMESTAMP_BYTES, _TIMESTAMP_BYTES + _SESSION_BYTES):
        raise _foreign(key, "a timestamp of 8 bytes and a session of 16")
    return int.from_bytes(value[:_TIMESTAMP_BYTES], "big"), value[_TIMESTAMP_BYTES:] or None


def encode_lines(lines: tuple[bytes, ...]) -> bytes:
    """The value of ``outbox/``: a fifth of the lines, which the members keep, send each other and write to disk."""
    return zlib.compress(msgspec.msgpack.encode(lines), 1)


def decode_lines(key: bytes, value: bytes) -> list[bytes]:
    """The lines under ``key``, packed or not, as many as its name says. Raises ForeignRecord."""
    try:
        unpacked = zlib.decompressobj().decompress(value, _LONGEST) if value[:1] == _ZLIB else value
        lines = msgspec.msgpack.decode(unpacked, type=list[bytes])
    except (zlib.error, msgspec.MsgspecError):
        raise _foreign(key, "event lines") from None
    if len(lines) != lines_of(key):
        raise _foreign(key, "as many event lines as its name says")
    return lines


def lines_of(key: bytes) -> int:
    """How many lines the entry of this name has. Raises ForeignRecord."""
    count = key.rpartition(b".")[2]
    if not count.isdigit() or not 0 < int(count) <= LONGEST_LINES:
        raise _foreign(key, "event lines")
    return int(count)


def decode_entry(root: bytes, key: bytes, value: bytes) -> KeptLines:
    """The lines of one commit, under ``root`` + their name. Raises ForeignRecord."""
    name = key[len(root) :]
    session, _, rest = name.partition(b".")
    version = rest.partition(b".")[0]
    try:
        session_id = bytes.fromhex(session.decode("ascii"))
    except ValueError:
        raise _foreign(key, "event lines") from None
    if not version.isdigit():
        raise _foreign(key, "event lines")
    return KeptLines(name, session_id, int(version), tuple(decode_lines(key, value)))


def _digest(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()[:_DIGEST_BYTES]


def _foreign(key: bytes, expected: str) -> ForeignRecord:
    shown = repr(key)[2:-1]
    return ForeignRecord(
        f"etcd: {shown} does not hold {expected}; something else writes below /jumpvpn/, or it is damaged: "
        f"restore it, or remove it with 'etcdctl del {shown}'"
    )
