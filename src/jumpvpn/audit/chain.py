"""The hash chain that makes loss and change of events visible (RFC 8785 canonical JSON, SHA-256)."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import rfc8785

from jumpvpn.audit.envelope import Record
from jumpvpn.values import dataclass

GENESIS = "0" * 64
_HOLE = secrets.token_hex(32)  # where a hash will be; no record can contain what nobody knows
_HOLE_MEMBER = b'"hash":"%b",' % _HOLE.encode()
_ENCODER = msgspec.json.Encoder(order="deterministic")  # names of a dict are sorted
_LARGEST_INTEGER = 2**53 - 1  # beyond it RFC 8785 has no integers
_PLAIN_FROM = 1e-4  # smaller fractions are written with an exponent, of which every encoder has its own form


@dataclass(frozen=True, slots=True)
class Chain:
    """Head of one chain. A value: it moves only when the caller keeps the result, that is after the commit."""

    name: str
    seq: int = 0
    head: str = GENESIS

    def append(self, record: Record | Mapping[str, Any]) -> tuple[Chain, bytes]:
        """The next head and the finished line (canonical JSON with ``chain``, ``seq``, ``prev``, ``hash``)."""
        links: Any = {"chain": self.name, "seq": self.seq + 1, "prev": self.head, "hash": _HOLE}
        linked = msgspec.structs.replace(record, **links) if isinstance(record, Record) else {**record, **links}
        before, after = canonical(linked).split(_HOLE_MEMBER)  # never the last: "prev" and "seq" follow
        digest = hashlib.sha256(before + after).hexdigest()
        return Chain(self.name, self.seq + 1, digest), b'%b"hash":"%b",%b\n' % (before, digest.encode(), after)

    def extend(self, records: Iterable[Record | Mapping[str, Any]]) -> tuple[Chain, tuple[bytes, ...]]:
        """``append`` for every record of one commit."""
        chain, lines = self, []
        for record in records:
            chain, line = chain.append(record)
            lines.append(line)
        return chain, tuple(lines)


def canonical(value: Any) -> bytes:
    """``value`` as canonical JSON (RFC 8785). Raises ValueError for what has no such form.

    The fast encoder's bytes are those of RFC 8785 where every name and text is ASCII (it sorts names by code point, RFC
    8785 by UTF-16 unit) and the numbers are ordinary ones, which in a Record they are outside of its data.
    """
    is_record = isinstance(value, Record)
    if _ordinary(value.data if is_record else value):
        encoded = _ENCODER.encode(value)
        if encoded.isascii():
            return encoded
    return rfc8785.dumps(msgspec.structs.asdict(value) if is_record else value)


def _ordinary(value: Any) -> bool:
    """Whether there are JSON's own types only, and no number that encoders write in different forms."""
    kind = type(value)
    if kind is dict:
        for name, item in value.items():
            if type(name) is not str:
                return False
            kind = type(item)  # most are texts and counters: no call for those
            if kind not in _ALWAYS_ORDINARY and not (
                _ordinary(item) if kind is not int else -_LARGEST_INTEGER <= item <= _LARGEST_INTEGER
            ):
                return False
        return True
    if kind is int:
        return bool(-_LARGEST_INTEGER <= value <= _LARGEST_INTEGER)
    if kind is float:
        return bool(_PLAIN_FROM <= abs(value) < _LARGEST_INTEGER and not value.is_integer())
    if kind is list or kind is tuple:
        return all(map(_ordinary, value))
    return kind in _ALWAYS_ORDINARY


_ALWAYS_ORDINARY = frozenset({str, bool, type(None)})


def session_chain(session_uid: str, role: str) -> str:
    """Name of a session's state lane: the gateways' one chain, or the client's own record of the same session."""
    return f"{'c' if role == 'client' else 's'}:{session_uid}"


def node_chain(node_id: str, boot: str) -> str:
    """Name of the chain of one process run; ``boot`` differs for every run."""
    return f"n:{node_id}:{boot}"


def record_hash(record: Mapping[str, Any]) -> str:
    """The hash that ``record`` ought to carry."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "hash"})).hexdigest()
