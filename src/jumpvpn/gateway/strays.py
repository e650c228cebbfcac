"""Sessions that are this node's by the store's word and not here: what it once asked for has taken place after all.

A write's only condition is the record that it replaces, not the lease under which it was sent. So one whose outcome was
given up, because the lease was over or the process died, may take place even after this node has listed what it owns
under its next lease. The others leave such a session to its owner, which lives: only the owner can see to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from jumpvpn.runtime.stores.base import StoreUnavailable

AGAIN_SECONDS = 1.0  # a commit under way, or a store that refuses, is looked at again


class Strays:
    """Has what was ``noticed`` taken up if it is a stray. Memory grows with the sessions of this node, at most.

    ``is_stray`` tells by what this node has seen, and None while a commit of its own is under way that may explain it.
    ``take_up`` asks the store, and may find that nothing is to be done. Raises StoreUnavailable.
    """

    def __init__(
        self, is_stray: Callable[[bytes], bool | None], take_up: Callable[[bytes], Awaitable[None]],
        complain: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._is_stray = is_stray
        self._take_up = take_up
        self._complain = complain
        self._noticed: dict[bytes, None] = {}  # in order
        self._news = asyncio.Event()

    def noticed(self, session_id: bytes) -> None:
        """The session may have become a stray: its record has changed, or it was let go here."""
        if self._is_stray(session_id) is not False:
            self._noticed[session_id] = None
            self._news.set()

    async def run(self) -> None:
        """See to them, one after the other; runs until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            for session_id in list(self._noticed):
                await self._see_to(session_id)
            if self._noticed:
                self._news.set()
                await asyncio.sleep(AGAIN_SECONDS)

    async def _see_to(self, session_id: bytes) -> None:
        stray = self._is_stray(session_id)
        if stray is None:
            return
        del self._noticed[session_id]  # before asking: what is noticed meanwhile is looked at once more
        if stray:
            try:
                await self._take_up(session_id)
            except StoreUnavailable as failure:
                self._complain(failure.reason)
                self._noticed[session_id] = None
