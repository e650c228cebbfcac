"""Event lines that are in the store only: a gateway committed them, and did not live to write them to its journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from jumpvpn.gateway.view import ClusterView
from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.shared import KeptLines
from jumpvpn.values import Instant, later

AGAIN_NS = 1_000_000_000  # a store that refuses is asked again
BREATH_SECONDS = 0.1  # between two portions of some commits: clients come first


class Lines(Protocol):
    """What the store has of commits' lines. Every method raises StoreUnavailable."""

    async def keepers(self) -> list[str]: ...
    async def unexported(self, node: str) -> list[KeptLines]: ...
    async def drop(self, node: str, kept: Sequence[KeptLines]) -> None: ...


class Leftovers:
    """Writes them to this node's journal, byte for byte, then lets the store forget them.

    Two cases: commits of this node whose outcome it did not learn before its lease ended, once it has the next one
    (``returned``), or learns later that one took place (``late``); and whatever a node left that is ``gone`` for
    ``after_ns``, which one of those that serve writes. Whoever dies in between has erased nothing that no journal has:
    the next one writes it again. A node that comes back meanwhile does the same for itself. So a line may be in two
    journals, or twice in one, and never in none.
    """

    def __init__(
        self, node: str, view: ClusterView, after_ns: int, store: Lines, write: Callable[[Sequence[bytes]], None],
        may_act: Callable[[], bool], complain: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._node = node
        self._view = view
        self._after = after_ns
        self._store = store
        self._write = write
        self._may_act = may_act
        self._complain = complain
        self._own: Instant | None = None  # when to look for this node's own
        self._others: Instant | None = None
        self._changed = asyncio.Event()

    def returned(self) -> None:
        """This node holds a lease, and nothing of its former one is under way."""
        self.late()
        self.gone()

    def late(self) -> None:
        """A commit that this node had given up took place under its next lease."""
        self._own = clock.boot_time()
        self._changed.set()

    def gone(self) -> None:
        """The lease of another node has ended, or may have before this one began to look."""
        self._others = self._others or later(clock.boot_time(), self._after)
        self._changed.set()

    async def run(self) -> None:
        """Export what is due; runs until cancelled. Raises JournalFailed."""
        while True:
            due = min((at for at in (self._own, self._others) if at is not None), default=None)
            self._changed.clear()
            await clock.until(self._changed, due)
            now = clock.boot_time()
            if self._own is not None and self._own <= now:
                self._own = None if await self._export(self._node) else later(now, AGAIN_NS)
            if self._others is not None and self._others <= now:
                self._others = None  # whoever goes from here on is looked for later
                self._look_again(await self._export_others(), now)

    def _look_again(self, after_ns: int | None, now: Instant) -> None:
        if after_ns is not None:
            self._others = self._others or later(now, after_ns)

    async def _export_others(self) -> int | None:
        """This node's share of what those who are gone left; after how long (ns) to look again, None: all is done."""
        again: int | None = None
        try:
            for node in await self._store.keepers():
                if node == self._node or node in self._view.members:
                    continue
                if self._view.heir(node.encode()) != self._node:
                    again = self._after if again is None else again  # its heir may go, too
                elif not await self._export(node):
                    again = AGAIN_NS
        except StoreUnavailable as failure:
            self._complain(failure.reason)
            return AGAIN_NS
        return again

    async def _export(self, node: str) -> bool:
        """Portion by portion; whether nothing is left to do here."""
        try:
            while self._may_act() and (node == self._node or node not in self._view.members):
                kept = await self._store.unexported(node)
                if not kept:
                    return True
                self._write([line for entry in kept for line in entry.lines])
                await self._store.drop(node, kept)
                await asyncio.sleep(BREATH_SECONDS)
        except StoreUnavailable as failure:
            self._complain(failure.reason)
            return False
        return self._may_act()
