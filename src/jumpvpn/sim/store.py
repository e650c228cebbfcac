"""A store that can be slow, away, or lost to another writer; what it holds outlives the gateway's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jumpvpn.audit.chain import Chain
from jumpvpn.engine import outputs as out
from jumpvpn.session.state import Session
from jumpvpn.values import Now

COMMITTED, CONFLICT, REPLAYED, UNAVAILABLE = "committed", "conflict", "replayed_device", "unavailable"


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it was written, with the head of its chain (None where nothing is sealed)."""

    session: Session
    written: Now
    chain: Chain | None


@dataclass(slots=True)
class Store:
    """``verdict(order)`` says how a commit ends, ``delay`` (ns) after which time; versions and devices count anyway."""

    delay: int = 0
    verdict: Callable[[out.Commit], str] = lambda _order: COMMITTED
    rows: dict[str, Row] = field(default_factory=dict)
    devices: dict[bytes, int] = field(default_factory=dict)

    def judge(self, order: out.Commit) -> str:
        """The result of ``order`` by compare-and-swap on version and device."""
        result = self.verdict(order)
        if result != COMMITTED:
            return result
        row = self.rows.get(order.uid)
        if (int(row.session.version) if row is not None else None) != order.expected_version:
            return CONFLICT
        if order.device is not None and order.device[1] <= self.devices.get(order.device[0], -1):
            return REPLAYED
        return COMMITTED

    def write(self, order: out.Commit, now: Now, chain: Chain | None) -> None:
        """Keep the record of a commit that won."""
        self.rows[order.uid] = Row(order.session, now, chain)
        if order.device is not None:
            self.devices[order.device[0]] = order.device[1]
