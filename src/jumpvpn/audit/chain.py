"""The hash chain that makes loss and change of events visible (RFC 8785 canonical JSON, SHA-256)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Chain:
    """Head of one chain. A value: it moves only when the caller keeps the result, that is after the commit."""

    name: str
    seq: int = 0
    head: str = GENESIS

    def append(self, record: Mapping[str, Any]) -> tuple[Chain, bytes]:
        """The next head and the finished line (canonical JSON with ``chain``, ``seq``, ``prev``, ``hash``)."""
        linked = {**record, "chain": self.name, "seq": self.seq + 1, "prev": self.head}
        digest = hashlib.sha256(rfc8785.dumps(linked)).hexdigest()
        line = rfc8785.dumps({**linked, "hash": digest}) + b"\n"
        return Chain(self.name, self.seq + 1, digest), line

    def extend(self, records: Iterable[Mapping[str, Any]]) -> tuple[Chain, tuple[bytes, ...]]:
        """``append`` for every record of one commit."""
        chain, lines = self, []
        for record in records:
            chain, line = chain.append(record)
            lines.append(line)
        return chain, tuple(lines)


def session_chain(session_uid: str, role: str) -> str:
    """Name of a session's state lane: the gateways' one chain, or the client's own record of the same session."""
    return f"{'c' if role == 'client' else 's'}:{session_uid}"


def node_chain(node_id: str, boot: str) -> str:
    """Name of the chain of one process run; ``boot`` differs for every run."""
    return f"n:{node_id}:{boot}"


def record_hash(record: Mapping[str, Any]) -> str:
    """The hash that ``record`` ought to carry."""
    return hashlib.sha256(rfc8785.dumps({k: v for k, v in record.items() if k != "hash"})).hexdigest()
