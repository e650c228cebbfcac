"""What a store that several nodes share must be able to do, and how one commit to it is settled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from jumpvpn.runtime.stores.base import CommitResult, CommitUnknown, StoredSession, StoreUnavailable, Write, judge
from jumpvpn.values import dataclass, replace


class Unanswered(Exception):
    """One try ended without an answer: the request may have been carried out, or still be."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the store has of a session, and of what a write to it touches.

    ``revision`` numbers the change that made the record (0: there is none), ``device_revision`` that of the device's
    ``timestamp`` (ns). ``done``: the write that was asked about took place, even if others came after it.
    """

    session: StoredSession | None = None
    revision: int = 0
    timestamp: int = 0
    device_revision: int = 0
    done: bool = False

    def stripped(self) -> Found:
        """Enough to compare with, without what makes a record big or secret."""
        session = self.session
        light = None if session is None else replace(session, body=b"", sealed=None, head="")
        return Found(light, self.revision)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Put the record of ``write`` if the store still has what was ``seen``; its lines and device go with it.

    ``lines_to`` is the sender's own count of the session's lines up to these.
    """

    write: Write
    record: StoredSession
    seen: Found
    lines_to: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """``found`` None: all exchanges took place, at ``revision``. Else none did, and this is what is there, in order."""

    revision: int
    found: tuple[Found, ...] | None


@dataclass(frozen=True, slots=True)
class KeptLines:
    """The event lines of one commit, in the store until its node, or one that outlives it, has exported them."""

    name: bytes
    session_id: bytes
    version: int
    lines: tuple[bytes, ...]


class Waiting(Protocol):
    """When to ask again, and when to stop asking; ``deadline`` is in the loop's time (s)."""

    deadline: float

    async def wait(self, failure: BaseException) -> None:
        """Return when the next try is due. Raises StoreUnavailable: there is no time for one."""


class Deciding(Protocol):
    """What one commit needs of the store."""

    async def look(self, write: Write, deadline: float) -> Found:
        """Everything that ``write`` is decided on; one try. Raises Unanswered."""

    async def exchange(self, changes: Sequence[Exchange], deadline: float) -> Outcome:
        """All of ``changes`` (different sessions) or none, in one transaction; one try. Raises Unanswered."""


class SharedStore(Deciding, Protocol):
    """Records that several nodes share, each record compared by the revision of its last change.

    Every method raises StoreUnavailable; ForeignRecord where what is there cannot be ours.
    """

    def patience(self, at_most: float) -> Waiting:
        """For one call: at most so many seconds, and no longer than the store's own bound."""

    async def find(self, session_id: bytes) -> Found:
        """One session, terminated ones too, as long as the store remembers them."""

    async def load_all(self) -> list[StoredSession]:
        """Every session that is not terminated, in order of its identifier."""

    def owned(self, node: str, foreign: Callable[[str], None]) -> AsyncIterator[Found]:
        """Every session of ``node`` that is not terminated; records that cannot be read are told to ``foreign``."""

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp (ns) of this device; 0 if none."""

    async def last_session(self, device: bytes) -> bytes | None:
        """The session that this device began last; None if it began none."""

    async def kept(self, node: str | None = None) -> list[KeptLines]:
        """The oldest lines of a node's commits (this one's) that were not erased yet, at most some MiB of them."""

    async def erase(self, names: Sequence[bytes], node: str | None = None) -> None:
        """Remove what ``kept`` has of that node under these names."""

    async def keepers(self) -> list[str]:
        """The nodes of which ``kept`` has something, this one too, in order of their names."""

    async def close(self) -> None:
        """Release everything; a second call does nothing."""


def same_record(one: Found, other: Found) -> bool:
    """Whether both have the same record, or none."""
    if one.session is None or other.session is None:
        return one.session is other.session
    return (one.session.version, one.session.write_id) == (other.session.version, other.session.write_id)


def outbox_name(write: Write) -> str:
    """Where the lines of one commit are kept; the name is unique to it, so its presence proves that it took place."""
    return f"{write.session_id.hex()}.{write.version}.{write.write_id}.{len(write.lines)}"


def never(_found: Found) -> bool:
    """For ``settle``: nothing but what was expected may be written over."""
    return False


async def settle(
    shared: Deciding, write: Write, seen: Found | None, waiting: Waiting, ours: Callable[[Found], bool] = never,
    doubt: bool = False,
) -> tuple[CommitResult, Found]:  # fmt: skip
    """Commit ``write``: look (unless ``seen`` is known), judge, exchange; again if others came first or no answer did.

    Returns what is in the store after it. What is found instead of the expected record may be written over where
    ``ours`` says so. After a try without an answer everything is read back; sending it again is safe, because the
    comparison lets at most one of the two through. Raises CommitUnknown when the time ends in such doubt
    (``doubt``: it began in it), and StoreUnavailable when nothing was changed.
    """
    while True:
        sent = False
        try:
            if seen is None:
                seen = await shared.look(write, waiting.deadline)
            if not seen.done and ours(seen) and seen.session is not None:
                write = replace(write, expected_version=seen.session.version)
            verdict = CommitResult.COMMITTED if seen.done else judge(write, seen.session, seen.timestamp)
            if verdict is not None:
                return verdict, seen
            change = Exchange(write, write.stored_over(seen.session), seen)
            sent = True
            outcome = await shared.exchange((change,), waiting.deadline)
        except Unanswered as failure:
            doubt, seen = doubt or sent, None
            await _pause(waiting, failure, doubt)
        except StoreUnavailable as failure:
            if doubt:
                raise _unknown(failure) from failure
            raise
        else:
            if outcome.found is None:
                return CommitResult.COMMITTED, Found(change.record, outcome.revision)
            # Revisions only rise: whatever was sent before can no longer pass its comparison.
            doubt, seen = False, outcome.found[0]


async def _pause(waiting: Waiting, failure: Unanswered, doubt: bool) -> None:
    try:
        await waiting.wait(failure)
    except StoreUnavailable as over:
        if doubt:
            raise _unknown(over) from failure
        raise


def _unknown(failure: StoreUnavailable) -> CommitUnknown:
    return CommitUnknown(f"{failure.reason}; whether the last commit took place is not known")
