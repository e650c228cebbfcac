"""A store that forgets at exit: for tests, and for clients, whose sessions end with the process."""

from __future__ import annotations

from collections.abc import Sequence

from jumpvpn.runtime.stores.base import (
    TERMINATED,
    CommitResult,
    StoredSession,
    StoreUnavailable,
    Write,
    judge,
)


class MemoryStore:
    """Same rules as every store, in dictionaries. Set ``unavailable`` to a reason to make every call fail."""

    def __init__(self) -> None:
        self.unavailable: str | None = None
        self._sessions: dict[bytes, StoredSession] = {}
        self._devices: dict[bytes, int] = {}
        self._outbox: dict[int, bytes] = {}
        self._next_line = 1

    async def load_all(self) -> list[StoredSession]:
        """Every session that is not terminated, in order of its identifier."""
        self._check()
        return [s for _, s in sorted(self._sessions.items()) if s.state != TERMINATED]

    async def load(self, session_id: bytes) -> StoredSession | None:
        """One session, terminated ones too."""
        self._check()
        return self._sessions.get(session_id)

    async def commit(self, write: Write) -> CommitResult:
        """Apply one unit wholly or not at all."""
        self._check()
        old = self._sessions.get(write.session_id)
        timestamp = self._devices.get(write.device[0], 0) if write.device else 0
        verdict = judge(write, old, timestamp)
        if verdict is not None:
            return verdict
        self._sessions[write.session_id] = write.stored_over(old)
        if write.device is not None:
            self._devices[write.device[0]] = write.device[1]
        self._add(write.lines)
        return CommitResult.COMMITTED

    async def load_many(self, session_ids: Sequence[bytes]) -> list[StoredSession]:
        """Those of these sessions that are stored."""
        self._check()
        return [self._sessions[i] for i in session_ids if i in self._sessions]

    async def adopt(
        self, records: Sequence[StoredSession] = (), lines: Sequence[bytes] = (), gone: Sequence[bytes] = ()
    ) -> None:
        """Put records as they are, add outbox lines, erase the sessions ``gone``."""
        self._check()
        self._sessions |= {record.session_id: record for record in records}
        for session_id in gone:
            self._sessions.pop(session_id, None)
        self._add(lines)

    @property
    def last_line(self) -> int:
        """The number of the newest outbox line that was ever added."""
        return self._next_line - 1

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp (ns) of this device; 0 if none."""
        self._check()
        return self._devices.get(device, 0)

    async def outbox(self, limit: int = 256) -> list[tuple[int, bytes]]:
        """Oldest lines not yet exported."""
        self._check()
        return list(self._outbox.items())[:limit]

    async def exported(self, up_to: int) -> None:
        """Forget outbox lines up to this number."""
        self._check()
        for number in [n for n in self._outbox if n <= up_to]:
            del self._outbox[number]

    async def close(self) -> None:
        """Nothing is held that needs releasing."""

    def _add(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._outbox[self._next_line] = line
            self._next_line += 1

    def _check(self) -> None:
        if self.unavailable is not None:
            raise StoreUnavailable(self.unavailable)
