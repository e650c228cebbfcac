"""Signed checkpoints: who signed, whether the keys follow each other, and which heads they name."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from jumpvpn.audit.auditor.records import Record, canonical

GENESIS = "0" * 64
CHAINS_MAX = 65_536  # nodes whose next checkpoint is awaited
_KEY = re.compile(r"[0-9a-f]{64}")
_HEAD = re.compile(r"([1-9][0-9]{0,15}):([0-9a-f]{64})")

Heads = dict[str, tuple[int, str]]


class CheckpointFailed(ValueError):
    """The checkpoint is false; the text says how."""


class CheckpointUnsure(ValueError):
    """The checkpoint cannot be judged; the text says why."""


class KeyRing:
    """All chains of keys in the log: each begins with a key that a node announces, or goes on from one known."""

    def __init__(self, anchors: frozenset[str]) -> None:
        self.anchors = anchors
        self.used: set[str] = set()  # anchors that verified a checkpoint
        self._awaited: dict[str, KeyChain] = {}
        self._newest: dict[str, int] = {}  # the newest verified number under each node's name

    def start(self, node: str, key: str | None) -> KeyChain:
        """A run of ``node`` begins and names the key of its first checkpoint."""
        known = self._awaited.get(key or "")
        if known is not None and known.node == node:
            known.announced = key
            return known
        chain = KeyChain(node)
        chain.announced = key
        return chain

    def verify(self, chain: KeyChain, record: Record) -> Heads:
        """The heads that a checkpoint vouches for. Raises CheckpointFailed, CheckpointUnsure."""
        self._awaited.pop(chain.next_key or "", None)
        try:
            heads = chain.verify(record, self.anchors, self._newest.get(chain.node, 0))
            self._newest[chain.node] = max(chain.number, self._newest.get(chain.node, 0))
            if chain.anchor is not None:
                self.used.add(chain.anchor)
        finally:
            if chain.next_key and len(self._awaited) < CHAINS_MAX:
                self._awaited[chain.next_key] = chain
        return heads


class KeyChain:
    """The keys of one node's checkpoints: each names its successor; the first is announced, or anchored off-host."""

    __slots__ = ("anchor", "announced", "head", "mono", "next_key", "node", "number")

    def __init__(self, node: str) -> None:
        self.node = node
        self.announced: str | None = None  # by the run's node.started, until its first checkpoint
        self.next_key: str | None = None  # by the last checkpoint
        self.number = 0
        self.head = GENESIS
        self.mono: tuple[str, int] | None = None  # boot and time of the newest verified one
        self.anchor: str | None = None  # the key from outside the log that these keys go back to

    def verify(self, record: Record, anchors: frozenset[str], newest: int) -> Heads:
        """``KeyRing.verify``; ``newest`` is the newest verified number that this node is known to have reached."""
        signed = _signed(record)
        number, key = signed["number"], self._key(signed)
        try:
            if key is None:
                raise CheckpointUnsure("the key that verifies this checkpoint is named nowhere in the log")
            if not _verified(key, record.data.signature or "", canonical(signed)):
                raise CheckpointFailed("the checkpoint's signature is wrong: the log was rewritten or the key replaced")
            self._follows(signed, key, newest)
            self._anchor(key, number, anchors)
        finally:
            self.number, self.head, self.next_key = number, record.hash, record.data.next_key
            self.announced = None
        self.mono = (record.boot_id, record.mono_ms)
        return _heads(signed["heads"])

    def _key(self, signed: dict[str, Any]) -> str | None:
        follows = self.number and signed["number"] == self.number + 1
        return self.next_key if follows else self.announced

    def _follows(self, signed: dict[str, Any], key: str, newest: int) -> None:
        number, previous = signed["number"], signed["prev_checkpoint"]
        if self.number and number <= self.number:
            raise CheckpointFailed(f"checkpoint {number} comes after checkpoint {self.number}")
        if self.number and number > self.number + 1:
            raise CheckpointUnsure(f"checkpoints {self.number + 1} to {number - 1} are missing")
        if self.number and previous != self.head:
            raise CheckpointFailed(f"checkpoint {number} does not name its predecessor")
        if self.number and self.announced not in (None, key):
            raise CheckpointFailed(f"the run announced another key than checkpoint {self.number} did")
        if number == 1 and previous != GENESIS:
            raise CheckpointFailed("the first checkpoint names a predecessor")
        if not self.number and number > 1 and newest:
            raise CheckpointUnsure(f"checkpoint {number} goes on from one that is not in the log")

    def _anchor(self, key: str, number: int, anchors: frozenset[str]) -> None:
        if key in anchors:
            self.anchor = key
        if not anchors or self.anchor is not None:
            return
        if number == 1:
            raise CheckpointFailed("the checkpoints begin with a key that was not given as anchor")
        raise CheckpointUnsure("the log begins after the anchor: give the key that verifies its first checkpoint")


def head_of(text: str) -> tuple[int, str] | None:
    """``seq:hash`` as a pair, or None."""
    match = _HEAD.fullmatch(text)
    return (int(match.group(1)), match.group(2)) if match else None


def is_key(text: str) -> bool:
    """Whether ``text`` is a public key in hex."""
    return _KEY.fullmatch(text) is not None


def _signed(record: Record) -> dict[str, Any]:
    data = record.data
    if data.number is None or data.number < 1 or not bytes(data.heads) or not bytes(data.counts):
        raise CheckpointFailed("the checkpoint lacks its number, its heads or its counts")
    if data.prev_checkpoint is None or data.next_key is None or data.signature is None:
        raise CheckpointFailed("the checkpoint lacks its predecessor, its next key or its signature")
    try:
        heads, counts = msgspec.json.decode(data.heads, type=dict[str, str]), msgspec.json.decode(data.counts)
        signed = {
            "chain": record.chain, "number": data.number, "heads": heads, "counts": counts,
            "prev_checkpoint": data.prev_checkpoint, "next_key": data.next_key,
        }  # fmt: skip
        canonical(signed)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise CheckpointFailed("the checkpoint's heads or counts are malformed") from None
    return signed


def _heads(named: dict[str, str]) -> Heads:
    heads: Heads = {}
    for chain, text in named.items():
        head = head_of(text)
        if head is None:
            raise CheckpointFailed(f"the checkpoint's head of {chain[:64]} is malformed")
        heads[chain] = head
    return heads


def _verified(key: str, signature: str, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), message)
    except (ValueError, InvalidSignature):
        return False
    return True
