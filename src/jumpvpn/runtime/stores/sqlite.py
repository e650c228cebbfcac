"""The embedded store: one SQLite file, one connection, one thread that alone reads and writes it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from jumpvpn.runtime.stores.base import (
    TERMINATED,
    CommitResult,
    StoredSession,
    StoreUnavailable,
    Write,
    judge,
)

Answer = TypeVar("Answer")
_ROWS_TOGETHER = 32  # a statement for each smaller number is kept ready
_MOST_TOGETHER = 256  # changes in one transaction: some MiB in memory, and the first of them does not wait long

APPLICATION_ID = 0x4A56504E  # "JVPN": tells our files from any other SQLite file
SCHEMA_VERSION = 2
_TIMESTAMP_BYTES = 8  # big-endian; SQLite's own integers end at 2^63

_SCHEMA = """
CREATE TABLE session (
  session_id BLOB PRIMARY KEY, version INTEGER NOT NULL, state TEXT NOT NULL, epoch INTEGER NOT NULL,
  body BLOB NOT NULL, sealed BLOB, chain TEXT NOT NULL, seq INTEGER NOT NULL, head TEXT NOT NULL,
  write_id TEXT NOT NULL, owner TEXT NOT NULL DEFAULT '', term INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX live_session ON session (session_id) WHERE state <> 'TERMINATED';
CREATE TABLE device (device BLOB PRIMARY KEY, timestamp BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, line BLOB NOT NULL) STRICT;
"""
# What brings a file of an older schema to the next one, by the schema that it has.
_MIGRATIONS = {
    1: (
        "ALTER TABLE session ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE session ADD COLUMN term INTEGER NOT NULL DEFAULT 0",
    ),
}
_RESTORE = "restore it, or move it away to start without sessions"
_COLUMNS = "session_id, version, state, epoch, body, sealed, chain, seq, head, write_id, owner, term"
_values: Callable[[StoredSession], tuple[Any, ...]] = attrgetter(*_COLUMNS.split(", "))
_MARKS = ", ".join("?" for _ in _COLUMNS.split(", "))


@dataclass(slots=True)
class _Job(Generic[Answer]):
    """One change, then what came of it: ``answer`` (in a tuple, it may be None) or ``error``; ``done`` tells so.

    ``adopted`` are the records and lines of a change that only puts those.
    """

    change: Callable[[], Answer]
    done: asyncio.Future[None]
    adopted: tuple[Sequence[StoredSession], Sequence[bytes]] | None = None
    answer: tuple[Answer] | None = None
    error: Exception | None = None


class SqliteStore:
    """Durable session records. Open with ``await SqliteStore.open(path)``.

    WAL with ``synchronous=FULL``: a committed unit survives power loss. ``locking_mode=EXCLUSIVE`` keeps every other
    process out, so the one-writer rule (SQLite before 3.51.3 may corrupt a WAL that two connections reset) holds
    by force. ``secure_delete`` overwrites erased keys.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None
        self._jobs: deque[_Job[Any]] = deque()
        self._called = False  # the thread is about to take the jobs
        self._exported = 0
        self._last_line = 0

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open or create the file. Raises StoreUnavailable with one clear reason."""
        store = cls(path)
        try:
            await store._run(store._open)
        except BaseException:
            store._thread.shutdown(wait=True)
            raise
        return store

    async def load_all(self) -> list[StoredSession]:
        """Every session that is not terminated, in order of its identifier."""
        return await self._run(self._load_all)

    async def load(self, session_id: bytes) -> StoredSession | None:
        """One session, terminated ones too."""
        return await self._run(lambda: self._load(session_id))

    async def commit(self, write: Write) -> CommitResult:
        """Apply one unit in one transaction; on disk when it returns COMMITTED."""
        return await self._together(lambda: self._apply(write))

    async def load_many(self, session_ids: Sequence[bytes]) -> list[StoredSession]:
        """Those of these sessions that are stored, terminated ones too."""
        return await self._run(lambda: [found for i in session_ids if (found := self._load(i)) is not None])

    async def adopt(
        self, records: Sequence[StoredSession] = (), lines: Sequence[bytes] = (), gone: Sequence[bytes] = ()
    ) -> None:
        """Put records as they are, add outbox lines, and erase the sessions ``gone``; one transaction.

        For a node whose shared store has decided already: nothing is compared.
        """
        await self._together(lambda: self._adopt(records, lines, gone), None if gone else (records, lines))

    @property
    def last_line(self) -> int:
        """The number of the newest outbox line that was ever added."""
        return self._last_line

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp (ns) of this device; 0 if none."""
        return await self._run(lambda: self._device_timestamp(device))

    async def outbox(self, limit: int = 256) -> list[tuple[int, bytes]]:
        """Oldest lines not yet exported."""
        return await self._run(lambda: self._outbox(limit))

    async def exported(self, up_to: int) -> None:
        """Forget lines up to this number, on disk with the next commit: an extra sync per commit buys nothing."""
        self._exported = max(self._exported, up_to)

    async def close(self) -> None:
        """Write back what is pending and close the file."""
        if self._connection is not None:
            await self._run(self._close)
        self._thread.shutdown(wait=True)

    async def _run(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    def _guarded(self, work: Callable[[], Answer]) -> Answer:
        try:
            return work()
        except sqlite3.Error as error:
            raise StoreUnavailable(_reason(self._path, error)) from error
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: {error.strerror or error}") from error

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._path.chmod(0o600)
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0.0)
        try:
            _prepare(connection, self._path)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._last_line = self._newest_line()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreUnavailable(f"{self._path}: the store is closed")
        return self._connection

    def _close(self) -> None:
        self._forget_exported()
        self._db.close()
        self._connection = None

    def _load_all(self) -> list[StoredSession]:
        query = f"SELECT {_COLUMNS} FROM session WHERE state <> '{TERMINATED}' ORDER BY session_id"  # noqa: S608 (constants)
        return [StoredSession(*row) for row in self._db.execute(query)]

    def _load(self, session_id: bytes) -> StoredSession | None:
        query = f"SELECT {_COLUMNS} FROM session WHERE session_id = ?"  # noqa: S608 (constants)
        row = self._db.execute(query, (session_id,)).fetchone()
        return None if row is None else StoredSession(*row)

    async def _together(
        self, change: Callable[[], Answer], adopted: tuple[Sequence[StoredSession], Sequence[bytes]] | None = None
    ) -> Answer:
        """Carry ``change`` out in a transaction that it shares with others that wait: one sync serves them all."""
        loop = asyncio.get_running_loop()
        job = _Job(change, loop.create_future(), adopted)
        self._jobs.append(job)
        if not self._called:
            self._called = True
            self._call(loop)
        await job.done
        if job.error is not None:
            raise job.error
        assert job.answer is not None, "a job that did not fail has an answer"
        return job.answer[0]

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._thread.submit(self._carry_out, loop)
        except RuntimeError as over:
            self._called = False
            self._jobs.clear()
            raise StoreUnavailable(f"{self._path}: the store is closed") from over

    def _carry_out(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: every job that waits; the tasks of many are woken with one call."""
        self._called = False  # before counting: whoever adds a job from here on calls again
        waiting = len(self._jobs)
        for first in range(0, waiting, _MOST_TOGETHER):
            jobs = [self._jobs.popleft() for _ in range(min(waiting - first, _MOST_TOGETHER))]
            try:
                self._carry(jobs)
            except Exception as error:  # the tasks that wait have to hear of it, whatever it is
                for job in jobs:
                    job.error = error
            loop.call_soon_threadsafe(_tell, jobs)

    def _carry(self, jobs: Sequence[_Job[Any]]) -> None:
        try:
            self._commit_all(jobs)
        except (sqlite3.Error, StoreUnavailable):  # one too many for the disk undoes all: each for itself then
            for job in jobs:
                try:
                    self._commit_all([job])
                except (sqlite3.Error, StoreUnavailable) as error:
                    job.error = self._failure(error)

    def _commit_all(self, jobs: Sequence[_Job[Any]]) -> None:
        """All of them in one transaction, or, raising, none."""
        if not jobs:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._forget_exported()
            for adopting, some in groupby(jobs, key=lambda job: job.adopted is not None):
                group = list(some)
                if adopting and len(group) > 1:
                    self._adopt_all(group)
                else:
                    for job in group:
                        self._attempt(job)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._last_line = self._newest_line()

    def _adopt_all(self, jobs: Sequence[_Job[Any]]) -> None:
        """Changes in a row that only put something, in few statements; raising, none of them."""
        adopted = [job.adopted for job in jobs if job.adopted is not None]
        self._adopt(
            [record for records, _ in adopted for record in records], [x for _, lines in adopted for x in lines]
        )
        for job in jobs:
            job.answer, job.error = (None,), None

    def _attempt(self, job: _Job[Any]) -> None:
        """One change of several; its failure undoes only itself, unless SQLite has undone all of them."""
        job.answer = job.error = None
        self._db.execute("SAVEPOINT job")
        try:
            job.answer = (job.change(),)
        except Exception as error:
            job.error = self._failure(error)
            if not self._db.in_transaction:
                raise
            self._db.execute("ROLLBACK TO job")
        self._db.execute("RELEASE job")

    def _failure(self, error: Exception) -> Exception:
        return StoreUnavailable(_reason(self._path, error)) if isinstance(error, sqlite3.Error) else error

    def _apply(self, write: Write) -> CommitResult:
        old = self._load(write.session_id)
        verdict = judge(write, old, self._device_timestamp(write.device[0]) if write.device else 0)
        if verdict is not None:
            return verdict
        self._put(write.stored_over(old))
        if write.device is not None:
            timestamp = write.device[1].to_bytes(_TIMESTAMP_BYTES, "big")
            self._db.execute("INSERT OR REPLACE INTO device VALUES (?, ?)", (write.device[0], timestamp))
        self._add_lines(write.lines)
        return CommitResult.COMMITTED

    def _adopt(self, records: Sequence[StoredSession], lines: Sequence[bytes], gone: Sequence[bytes] = ()) -> None:
        self._put(*records)
        if gone:
            self._db.executemany("DELETE FROM session WHERE session_id = ?", [(session_id,) for session_id in gone])
        self._add_lines(lines)

    def _add_lines(self, lines: Sequence[bytes]) -> None:
        self._insert("INSERT INTO outbox (line)", "(?)", [(line,) for line in lines])

    def _newest_line(self) -> int:
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        return 0 if row is None else int(row[0])

    def _put(self, *records: StoredSession) -> None:
        self._insert(f"INSERT OR REPLACE INTO session ({_COLUMNS})", f"({_MARKS})", [_values(one) for one in records])

    def _insert(self, into: str, marks: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Many rows in one statement: for each one the interpreter is let go, and has to be waited for again."""
        for first in range(0, len(rows), _ROWS_TOGETHER):
            some = rows[first : first + _ROWS_TOGETHER]
            self._db.execute(f"{into} VALUES {','.join([marks] * len(some))}", [*chain.from_iterable(some)])

    def _device_timestamp(self, device: bytes) -> int:
        row = self._db.execute("SELECT timestamp FROM device WHERE device = ?", (device,)).fetchone()
        return 0 if row is None else int.from_bytes(row[0], "big")

    def _outbox(self, limit: int) -> list[tuple[int, bytes]]:
        query = "SELECT number, line FROM outbox WHERE number > ? ORDER BY number LIMIT ?"
        return list(self._db.execute(query, (self._exported, limit)))

    def _forget_exported(self) -> None:
        self._db.execute("DELETE FROM outbox WHERE number <= ?", (self._exported,))


def _tell(jobs: Sequence[_Job[Any]]) -> None:
    for job in jobs:
        if not job.done.done():
            job.done.set_result(None)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    is_new = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and found == 0
    if not is_new and found != APPLICATION_ID:
        raise StoreUnavailable(
            f"{path}: not a session store of Jumping VPN; move the file away or set another state_dir"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("BEGIN IMMEDIATE")
    if is_new:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    else:
        _migrate(connection)
    connection.execute("COMMIT")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise StoreUnavailable(
            f"{path}: has schema {version}, this program knows {SCHEMA_VERSION}; upgrade the program"
        )
    damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise StoreUnavailable(f"{path}: is damaged ({damage}); {_RESTORE}")


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring an older file up to the schema of this program, inside the open transaction."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    while version in _MIGRATIONS:
        for statement in _MIGRATIONS[version]:
            connection.execute(statement)
        version += 1
        connection.execute(f"PRAGMA user_version = {version}")


def _reason(path: Path, error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text:
        return f"{path}: in use by another process; stop that gateway or set another state_dir"
    if "not a database" in text or "malformed" in text:
        return (
            f"{path}: is damaged or not a session store ({text}); restore it, or move it away to start without sessions"
        )
    return f"{path}: {text}"
