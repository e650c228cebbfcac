"""What ownership needs beside the records: leases that end by themselves, and watches that replay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from jumpvpn.values import Instant


class LeaseLost(Exception):
    """The lease has ended (or was revoked): whatever was held under it may belong to another by now."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its holder may count on it.

    ``good_until`` (boot clock, ns) is counted from before the request was sent, so the store ends the lease later than
    its holder believes, never earlier, as long as both clocks run at the same speed; the holder subtracts a margin
    for that.
    """

    id: int
    good_until: Instant

    def remaining(self, now: Instant) -> int:
        """Nanoseconds that the holder may still count on; 0 if none."""
        return max(0, self.good_until - now)


@dataclass(frozen=True, slots=True)
class Listing:
    """Every name under a prefix with its value, as of ``revision``; watch from ``revision + 1`` to miss nothing."""

    revision: int
    entries: dict[str, bytes]

    def __repr__(self) -> str:
        return f"Listing(revision={self.revision}, names={len(self.entries)})"


@dataclass(frozen=True, slots=True)
class Change:
    """One name was set (``value``) or removed (None) at ``revision``."""

    name: str
    value: bytes | None
    revision: int

    def __repr__(self) -> str:
        what = "removed" if self.value is None else f"{len(self.value)} bytes"
        return f"Change(name={self.name!r}, {what}, revision={self.revision})"


@dataclass(frozen=True, slots=True)
class Compacted:
    """The changes asked for are forgotten. List again (at ``reload_at`` or later), then watch from there."""

    reload_at: int


class Leases(Protocol):
    """Leases, names held under them, and watches; every method raises StoreUnavailable."""

    async def grant(self, ttl_seconds: int) -> Lease:
        """A lease of at least this length; the store may give more (etcd gives 2 s or more)."""

    async def keep_alive(self, lease: Lease) -> Lease:
        """The same lease, good for its whole length again. Raises LeaseLost, also without asking when it is over."""

    async def revoke(self, lease: Lease) -> None:
        """End the lease and remove what is held under it; ending an ended lease does nothing."""

    async def hold(self, lease: Lease, name: str, value: bytes) -> bool:
        """Set ``held/NAME`` until the lease ends; False if another lease holds it. Raises LeaseLost."""

    async def listing(self, prefix: str) -> Listing:
        """Every name under ``prefix`` (such as ``held/`` or ``live/``)."""

    async def beat(self, lease: Lease, name: str, value: bytes) -> Lease:
        """Keep the lease alive and set ``held/NAME``, which it holds, to ``value``; the renewed lease.

        The change comes back in order through ``follow``: whoever sees it there has seen every change before it.
        Raises LeaseLost: the lease is over, or does not hold the name.
        """

    async def revoke_by_id(self, lease_id: int) -> None:
        """End a lease that an earlier process of this node left; ending an ended lease does nothing."""

    def follow(self, since: int) -> AsyncIterator[Change]:
        """Every change of ``held/`` and ``live/`` after the revision ``since``, in order, without an end.

        Where the store has forgotten changes, what differs is found by listing again: first the names that are gone,
        then those that changed since, in the order of their last changes, all with the revision of the listing.
        A store that cannot be reached is asked again and again: only ``beat`` tells. Raises StoreUnavailable when the
        store refuses.
        """

    def watch(self, prefix: str, from_revision: int) -> AsyncIterator[Change | Compacted]:
        """Every change under ``prefix`` from that revision on, past and future, in order; ends after Compacted."""
