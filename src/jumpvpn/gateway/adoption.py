"""Sessions whose owner is gone and whose clients are silent: one of the others sees to it that their deadlines hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from jumpvpn.gateway.view import ClusterView
from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.values import Instant, later

AT_ONCE = 32  # adopted between two breaths: clients that come by themselves go first
BREATH_SECONDS = 0.1


class Adopt(Protocol):
    """Takes one session over. Raises StoreUnavailable."""

    def __call__(self, session_id: bytes, *, lost_at: Instant | None, superseded: bool = False) -> Awaitable[None]: ...


class Adoption:
    """Waits ``after_ns`` for the clients of a node that is gone, then adopts this node's share of what is left."""

    def __init__(self, node: str, view: ClusterView, after_ns: int, adopt: Adopt, may_act: Callable[[], bool]) -> None:
        self._node = node
        self._view = view
        self._after = after_ns
        self._adopt = adopt
        self._may_act = may_act
        self._gone: dict[str, Instant] = {}
        self._back: dict[str, tuple[Instant, Instant]] = {}  # since when each had been gone, and since when it is back
        self._changed = asyncio.Event()

    def gone(self, node: str) -> None:
        """The lease of ``node`` has ended. If it had one for a moment only, it is gone since it was before."""
        now = clock.boot_time()
        before, back = self._back.pop(node, (now, now))
        self._gone.setdefault(node, before if now < later(back, self._after) else now)
        self._changed.set()

    def back(self, node: str) -> None:
        """``node`` holds a lease again, and sees to its sessions itself, if it can keep the lease."""
        if (since := self._gone.pop(node, None)) is not None:
            self._back[node] = since, clock.boot_time()

    async def run(self) -> None:
        """Adopt what is due; runs until cancelled."""
        while True:
            first = min(self._gone.values(), default=None)
            self._changed.clear()
            await clock.until(self._changed, None if first is None else later(first, self._after))
            await self._adopt_due()

    async def _adopt_due(self) -> None:
        now = clock.boot_time()
        for node, since in list(self._gone.items()):
            if since + self._after <= now:
                await self._adopt_all(node, since)

    async def _adopt_all(self, node: str, since: Instant) -> None:
        """This node's share of the sessions of ``node``. What the store refuses now is tried again a lease later.

        A session that came to ``node`` while it seemed gone shows that it acts again, and is about to say so: such a
        session waits for its client from then on.
        """
        share = [session_id for session_id in self._view.owned_by(node) if self._view.heir(session_id) == self._node]
        for number, session_id in enumerate(share, 1):
            if node not in self._gone:
                return
            if not self._may_act():
                break
            owner = self._view.owners.get(session_id)
            lost_at = since if owner is None or owner.since is None else max(since, owner.since)
            if later(lost_at, self._after) > clock.boot_time():
                continue
            try:
                await self._adopt(session_id, lost_at=lost_at)
            except StoreUnavailable:
                await asyncio.sleep(1.0)
            if number % AT_ONCE == 0:
                await asyncio.sleep(BREATH_SECONDS)
        if not self._view.owned_by(node):
            self._gone.pop(node, None)
        else:
            await asyncio.sleep(1.0)  # others take theirs or were away, or this node may not act: look again
