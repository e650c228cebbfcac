"""What the auditor knows of one node: its runs, its policies, its signs of life, its checkpoints."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any

import msgspec

from jumpvpn.audit.auditor.checkpoints import KeyChain
from jumpvpn.audit.auditor.records import Bounds, Record, canonical

STARTS_MAX = 64  # starts of one node that are remembered
POLICIES_MAX = 4096  # per node; an operator who applies more in one log has left this auditor's world
_MS = 1_000_000

_BODY_BOUNDS = {
    "lifetime_ms": ("session", "max_lifetime"), "key_age_ms": ("security", "key_max_age"),
    "transport_ttl_ms": ("session", "transport_ttl"), "episode_ms": ("recovery", "episode_max"),
    "window_ms": ("recovery", "window"), "volatile_ms": ("volatility", "volatile_max"),
    "hold_down_ms": ("switching", "hold_down"),
}  # fmt: skip
_BODY_COUNTS = {"switches_60s": ("switching", "max_per_minute"), "attempts": ("recovery", "max_attempts")}


class Node:
    """One node (by ``node_id``) on one boot of its machine, through all runs of its process there.

    Names are chosen by people: two clients may have the same, but not on the same boot.
    """

    __slots__ = (
        "announced", "boot", "draining", "keys", "last_run", "latest", "lease_ms", "losses", "name", "role", "run",
        "starts", "stopped", "trouble", "unannounced",
    )  # fmt: skip

    def __init__(self, name: str, boot: str) -> None:
        self.name = name
        self.boot = boot
        self.role: str | None = None
        self.run = 0  # the number of the last start that was seen, of all in the log
        self.last_run = ""
        self.starts: deque[int] = deque(maxlen=STARTS_MAX)
        self.stopped = False
        self.announced: dict[str, Bounds | None] = {}
        self.unannounced: dict[str, tuple[str, int, int]] = {}
        self.latest = 0
        self.trouble = -1  # the last time that the store refused or failed
        self.losses = 0  # gaps in the node's own chains
        self.lease_ms: float | None = None  # for how long it may act without the store, as it said itself
        self.draining = False
        self.keys = KeyChain(name)

    def started_between(self, after: float, until: float) -> bool:
        """Whether the process began anew in that span, so that nobody could keep a deadline."""
        return any(after < at <= until for at in self.starts)

    def troubled_since(self, since: float) -> bool:
        """Whether the store failed or refused since then: a mutation may have had to wait."""
        return self.trouble >= since

    def uses(self, record: Record) -> None:
        """A record names a policy that was not announced so far."""
        if len(self.unannounced) < POLICIES_MAX:
            self.unannounced.setdefault(record.policy_digest, (record.chain, record.seq, record.mono_ms))

    def announces(self, digest: str, bounds: Bounds | None) -> None:
        """The node told that policy."""
        self.unannounced.pop(digest, None)
        if len(self.announced) < POLICIES_MAX and (bounds is not None or digest not in self.announced):
            self.announced[digest] = bounds


def body_of(record: Record) -> tuple[Bounds | None, str | None]:
    """The bounds in an announced policy's body and what is wrong with the body, if anything."""
    raw = record.data.body
    if not bytes(raw):
        return None, None
    try:
        body = msgspec.json.decode(raw)
        digest = hashlib.sha256(canonical(body)).hexdigest()
        bounds = _bounds(body)
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError):
        return None, "the body of the policy cannot be read"
    wrong = digest != record.data.digest
    return bounds, "the body of the policy does not have the announced digest" if wrong else None


def _bounds(body: dict[str, Any]) -> Bounds:
    values = {name: int(body[section][key]) // _MS for name, (section, key) in _BODY_BOUNDS.items()}
    values |= {name: int(body[section][key]) for name, (section, key) in _BODY_COUNTS.items()}
    return Bounds(**values)
