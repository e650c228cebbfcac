"""One after the other for each session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Turns:
    """Who is at work on which session; nothing is kept for sessions that nobody works on."""

    def __init__(self) -> None:
        self._turns: dict[bytes, _Turn] = {}

    @asynccontextmanager
    async def alone(self, session_id: bytes) -> AsyncIterator[None]:
        """Wait until nobody else is at work on the session, and keep others from it meanwhile."""
        turn = self._turns.setdefault(session_id, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[session_id]
