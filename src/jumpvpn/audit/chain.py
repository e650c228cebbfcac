"""The hash chain that makes loss and change of events visible (RFC 8785 canonical JSON, SHA-256)."""

from __future__ import annotations

import hashlib
import json
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


def genesis_digest(session_uid: str, handshake_hash: bytes, node_id: str, epoch: int) -> str:
    """What the first record of a session's chain carries, so that the chain cannot be moved to another session."""
    origin: dict[str, Any] = {
        "session_uid": session_uid,
        "handshake_hash": handshake_hash.hex(),
        "node_id": node_id,
        "epoch": epoch,
    }
    return hashlib.sha256(rfc8785.dumps(origin)).hexdigest()


def record_hash(record: Mapping[str, Any]) -> str:
    """The hash that ``record`` ought to carry."""
    return hashlib.sha256(rfc8785.dumps({k: v for k, v in record.items() if k != "hash"})).hexdigest()


def find_breaks(lines: Iterable[bytes]) -> list[str]:
    """Where the chains in ``lines`` do not hold, in words; empty when they do. Order and repeats are harmless."""
    chains: dict[str, dict[int, dict[str, Any]]] = {}
    breaks: list[str] = []
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None:
            breaks.append(f"line {number}: not an event record")
            continue
        chain, seq = record["chain"], record["seq"]
        if record_hash(record) != record["hash"]:
            breaks.append(f"{chain}/{seq}: the record was changed")
        earlier = chains.setdefault(chain, {}).setdefault(seq, record)
        if earlier["hash"] != record["hash"]:
            breaks.append(f"{chain}/{seq}: two different records")
    for name, records in sorted(chains.items()):
        breaks += _gaps(name, records)
    return breaks


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in ``line`` if it has a chain's fields and a canonical form, else None."""
    try:
        record = json.loads(line)
        rfc8785.dumps(record)
    except (ValueError, RecursionError):  # rfc8785's errors are ValueErrors
        return None
    kinds = {"chain": str, "seq": int, "prev": str, "hash": str}
    if not isinstance(record, dict) or any(type(record.get(name)) is not kind for name, kind in kinds.items()):
        return None
    return record


def _gaps(name: str, records: Mapping[int, Mapping[str, Any]]) -> list[str]:
    breaks: list[str] = []
    expected = GENESIS
    for position, seq in enumerate(sorted(records), start=1):
        if seq != position:
            return [*breaks, f"{name}/{position}: missing"]
        if records[seq]["prev"] != expected:
            breaks.append(f"{name}/{seq}: does not follow its predecessor")
        expected = records[seq]["hash"]
    return breaks
