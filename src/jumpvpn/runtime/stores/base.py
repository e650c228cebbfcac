"""The interface of every session store, and the words in which it is asked and answers."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from jumpvpn.values import dataclass

TERMINATED = "TERMINATED"


class StoreUnavailable(Exception):
    """The store cannot serve; ``reason`` says why in one line and what to do where that is known."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CommitUnknown(StoreUnavailable):
    """The store went away after a commit was sent: it may have been carried out.

    Asking again with the same Write is safe and tells.
    """


class ForeignRecord(StoreUnavailable):
    """Something under our names that this program did not write, or damage; nothing of it was used."""


class CommitResult(Enum):
    """How a commit ended. Only COMMITTED changed anything."""

    COMMITTED = "committed"
    CONFLICT = "conflict"
    REPLAYED_DEVICE = "replayed_device"


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One session as last committed. ``sealed`` (key material under the cluster key) is None once terminated.

    ``owner`` is the node that may act for it (empty: no cluster), ``term`` how many owners it has had.
    """

    session_id: bytes
    version: int
    state: str
    epoch: int
    body: bytes
    sealed: bytes | None
    chain: str
    seq: int
    head: str
    write_id: str
    owner: str = ""
    term: int = 0

    def __repr__(self) -> str:
        return f"StoredSession(chain={self.chain!r}, version={self.version}, state={self.state!r}, epoch={self.epoch})"


@dataclass(frozen=True, slots=True)
class Write:
    """One atomic unit: the new record, its event lines, and (at BIRTH) the device's handshake timestamp.

    ``expected_version`` None demands that the session does not exist; ``sealed`` None keeps the stored one.
    ``device`` is (public key, timestamp ns); the timestamp must be strictly greater than the stored one.
    ``write_id`` makes a repeated, identical commit succeed again instead of conflicting with itself.
    ``owner`` and ``term`` are stored as they are; a term never goes back. ``shared`` False: where gateways share a
    store, the change may reach it later (births, owner changes and terminations may not).
    """

    session_id: bytes
    expected_version: int | None
    version: int
    state: str
    epoch: int
    body: bytes
    sealed: bytes | None
    chain: str
    seq: int
    head: str
    lines: tuple[bytes, ...]
    device: tuple[bytes, int] | None
    write_id: str
    owner: str = ""
    term: int = 0
    shared: bool = True

    def __post_init__(self) -> None:
        if self.expected_version is not None and self.version <= self.expected_version:
            raise ValueError("a commit raises the version, by one for each transition in it")

    def __repr__(self) -> str:
        return f"Write(chain={self.chain!r}, version={self.version}, state={self.state!r}, epoch={self.epoch})"

    def stored_over(self, old: StoredSession | None) -> StoredSession:
        """The record after this write; a terminated session keeps no keys."""
        kept = old.sealed if old is not None and self.sealed is None else self.sealed
        sealed = None if self.state == TERMINATED else kept
        return StoredSession(
            session_id=self.session_id,
            version=self.version,
            state=self.state,
            epoch=self.epoch,
            body=self.body,
            sealed=sealed,
            chain=self.chain,
            seq=self.seq,
            head=self.head,
            write_id=self.write_id,
            owner=self.owner,
            term=self.term,
        )


def judge(write: Write, old: StoredSession | None, device_timestamp: int) -> CommitResult | None:
    """What the rules say about ``write`` over ``old``: None = apply it, else the answer without any change."""
    if old is not None and (old.version, old.write_id) == (write.version, write.write_id):
        return CommitResult.COMMITTED
    if (None if old is None else old.version) != write.expected_version:
        return CommitResult.CONFLICT
    if old is not None and (old.state == TERMINATED or _goes_back(write, old)):
        return CommitResult.CONFLICT
    if write.device is not None and write.device[1] <= device_timestamp:
        return CommitResult.REPLAYED_DEVICE
    return None


def _goes_back(write: Write, old: StoredSession) -> bool:
    return write.epoch < old.epoch or write.seq < old.seq or write.term < old.term


class Store(Protocol):
    """Session records with compare-and-swap on the version; every method raises StoreUnavailable."""

    async def load_all(self) -> list[StoredSession]:
        """Every session that is not terminated, in order of its identifier."""

    async def load(self, session_id: bytes) -> StoredSession | None:
        """One session, terminated ones too (an identifier is never reused)."""

    async def commit(self, write: Write) -> CommitResult:
        """Apply one unit wholly or not at all; durable when it returns COMMITTED."""

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp (ns) committed for this device key; 0 if none."""

    @property
    def last_line(self) -> int:
        """The number of the newest outbox line that was ever added; 0 if none."""

    async def outbox(self, limit: int = 256) -> list[tuple[int, bytes]]:
        """Oldest event lines that are committed but not yet exported, with their rising numbers."""

    async def exported(self, up_to: int) -> None:
        """Forget outbox lines up to this number; lines whose forgetting is lost in a crash come again."""

    async def close(self) -> None:
        """Release everything; a second call does nothing."""
