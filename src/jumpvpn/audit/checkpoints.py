"""Checkpoints: from time to time a node vouches for the heads of its chains, so that a log which lost its end shows it.

A checkpoint is signed by the key that the one before announced, and announces the key of the next. Whoever knows the
first public key can verify all of them; whoever takes over the node finds only the present key, and cannot sign
anything that was recorded before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jumpvpn.audit.chain import Chain, canonical
from jumpvpn.values import SECOND, Instant, Now

EVENT = "audit.checkpoint"
PERIOD = 10 * SECOND  # a chain without a checkpoint for 25 s is reported as open: one may fail to be in time
EVENTS_MAX = 1000  # so much at most can be cut off unseen, however busy the node is
HEADS_MAX = 5000  # of about 100 bytes each: half of the 1 MiB that readers take as a line

Sign = Callable[[bytes], bytes]
"""The signature (64 bytes) over a message."""


@dataclass(frozen=True, slots=True)
class Link:
    """What ties one checkpoint to its neighbours: its number, the hash of the one before, the key of the next (hex)."""

    number: int
    previous: str
    next_key: str


class Growth:
    """The chains that grew since the last checkpoint, and by how many events."""

    def __init__(self) -> None:
        self._heads: dict[str, Chain] = {}
        self._events = 0
        self._since: Instant | None = None

    def add(self, chain: Chain, events: int, now: Now) -> None:
        """``chain`` has grown by ``events`` to its present head."""
        self._heads[chain.name] = chain
        self._events += events
        if self._since is None:
            self._since = now.boot

    @property
    def left(self) -> bool:
        """Whether there is anything that no checkpoint covers."""
        return bool(self._heads)

    @property
    def full(self) -> bool:
        """Whether a checkpoint is due before its time."""
        return self._events >= EVENTS_MAX

    def due(self, now: Now) -> bool:
        """Whether it is time for a checkpoint."""
        return self.full or (self._since is not None and now.boot - self._since >= PERIOD)

    def take(self, node: Chain) -> tuple[dict[str, str], dict[str, int]]:
        """Heads (``seq:hash`` by chain) and counts for one checkpoint; ``node`` is the chain that it will extend.

        Chains beyond HEADS_MAX wait for the next one, which is due as soon as this one was.
        """
        self._heads.pop(node.name, None)
        taken = [self._heads.pop(name) for name in list(self._heads)[:HEADS_MAX]]
        heads = {chain.name: f"{chain.seq}:{chain.head}" for chain in (*taken, node) if chain.seq}
        counts = {"events": self._events, "chains": len(heads)}
        self._events = 0
        self._since = self._since if self._heads else None
        return heads, counts


def checkpoint_data(
    chain: str, link: Link, heads: Mapping[str, str], counts: Mapping[str, int], sign: Sign
) -> dict[str, Any]:
    """The data of an ``audit.checkpoint`` on the node chain ``chain``, signed."""
    data = {
        "number": link.number,
        "heads": dict(heads),
        "counts": dict(counts),
        "prev_checkpoint": link.previous,
        "next_key": link.next_key,
    }
    return {**data, "signature": sign(signed_part(chain, data)).hex()}


def signed_part(chain: str, data: Mapping[str, Any]) -> bytes:
    """The message that a checkpoint's signature is over (RFC 8785). Raises KeyError, ValueError for no checkpoint."""
    names = ("number", "heads", "counts", "prev_checkpoint", "next_key")
    return canonical({"chain": chain, **{name: data[name] for name in names}})
