"""What only the durable store promises: restart, kill, damage, privacy."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from store_writes import SESSION, a_write

from jumpvpn.runtime.stores.base import CommitResult, StoreUnavailable, Write
from jumpvpn.runtime.stores.sqlite import SqliteStore

# Commits forever; each unit carries its own number in every part, so a torn one shows.
WRITER = """
import asyncio, sys
from pathlib import Path
from jumpvpn.runtime.stores.base import Write
from jumpvpn.runtime.stores.sqlite import SqliteStore

async def main() -> None:
    store = await SqliteStore.open(Path(sys.argv[1]))
    found = await store.load(b"s" * 16)
    version = 0 if found is None else found.version
    while True:
        version += 1
        mark = b"%d" % version
        await store.commit(Write(
            session_id=b"s" * 16, expected_version=version - 1 or None, version=version, state="ATTACHED",
            epoch=version, body=mark * 50, sealed=mark * 20, chain="s:a", seq=2 * version, head=str(version),
            lines=(b"a" + mark, b"b" + mark), device=(b"d" * 32, version), write_id=str(version)))
        print(version, flush=True)

asyncio.run(main())
"""


async def test_records_and_outbox_survive_a_restart(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.commit(a_write())
    await store.close()
    await store.close()
    store = await SqliteStore.open(tmp_path / "s.db")
    assert [s.session_id for s in await store.load_all()] == [SESSION]
    assert [line for _, line in await store.outbox()] == [b"line 1\n"]
    await store.close()


@pytest.mark.timeout(60)
async def test_kill_in_the_middle_of_commits_never_tears_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    for round_number in range(6):
        acknowledged = _commit_until_killed(path, after_seconds=0.15 + 0.07 * round_number)
        store = await SqliteStore.open(path)
        found = await store.load(SESSION)
        assert found is not None
        assert found.version in (acknowledged, acknowledged + 1), "an acknowledged commit was lost"
        mark = b"%d" % found.version
        assert (found.epoch, found.seq, found.head) == (found.version, 2 * found.version, str(found.version))
        assert (found.body, found.sealed) == (mark * 50, mark * 20)
        assert await store.device_timestamp(b"d" * 32) == found.version
        lines = [line for _, line in await store.outbox(limit=1 << 20)]
        assert lines == [kind + b"%d" % v for v in range(1, found.version + 1) for kind in (b"a", b"b")]
        await store.close()


def _commit_until_killed(path: Path, after_seconds: float) -> int:
    """Run the writer, kill it hard, return the last version that it saw committed."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        assert first
        try:
            writer.wait(after_seconds)
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split(b"\n")
    return int(next((line for line in reversed(rest[:-1]) if line), first))


async def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.commit(a_write())
    with pytest.raises(StoreUnavailable, match="in use by another process"):
        await SqliteStore.open(tmp_path / "s.db")
    await store.close()


async def test_a_file_of_another_kind_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(StoreUnavailable, match="not a session store"):
        await SqliteStore.open(path)
    assert path.read_bytes() == b"hello" * 1000


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(StoreUnavailable, match="not a session store of Jumping VPN"):
        await SqliteStore.open(path)


async def test_a_damaged_file_gives_one_clear_reason(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await SqliteStore.open(path)
    for version in range(1, 20):
        await store.commit(a_write(version))
    await store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(StoreUnavailable, match="damaged"):
        await SqliteStore.open(path)


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await (await SqliteStore.open(path)).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StoreUnavailable, match="schema 99"):
        await SqliteStore.open(path)


OLD_SCHEMA = """
CREATE TABLE session (
  session_id BLOB PRIMARY KEY, version INTEGER NOT NULL, state TEXT NOT NULL, epoch INTEGER NOT NULL,
  body BLOB NOT NULL, sealed BLOB, chain TEXT NOT NULL, seq INTEGER NOT NULL, head TEXT NOT NULL,
  write_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX live_session ON session (session_id) WHERE state <> 'TERMINATED';
CREATE TABLE device (device BLOB PRIMARY KEY, timestamp BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, line BLOB NOT NULL) STRICT;
INSERT INTO session VALUES (CAST('ssssssssssssssss' AS BLOB), 1, 'ATTACHED', 1, x'62', x'6b', 's:a', 1, 'h', '1');
INSERT INTO outbox (line) VALUES (x'61');
PRAGMA application_id = 0x4A56504E;
PRAGMA user_version = 1;
"""


async def test_a_file_of_the_first_schema_keeps_working(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as old:
        old.executescript(OLD_SCHEMA)
    old.close()
    for _ in range(2):
        store = await SqliteStore.open(path)
        (found,) = await store.load_all()
        assert (found.session_id, found.version, found.sealed, found.owner, found.term) == (SESSION, 1, b"k", "", 0)
        assert [line for _, line in await store.outbox()] == [b"a"]
        await store.close()
    store = await SqliteStore.open(path)
    assert await store.commit(a_write(2, owner="gw1", term=1)) is CommitResult.COMMITTED
    changed = await store.load(SESSION)
    assert changed is not None
    assert (changed.owner, changed.term) == ("gw1", 1)
    await store.close()


async def test_adopting_puts_records_as_they_are_in_one_transaction(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.commit(a_write(1))
    later = a_write(9, owner="gw2", term=3).stored_over(None)
    other = replace(later, session_id=b"o" * 16)
    await store.adopt([later, other], [b"x\n"])
    assert await store.load_many([SESSION, b"n" * 16, b"o" * 16]) == [later, other]
    assert [line for _, line in await store.outbox()] == [b"line 1\n", b"x\n"]
    assert store.last_line == 2
    await store.adopt(gone=[SESSION])
    assert await store.load(SESSION) is None
    assert await store.load_all() == [other]
    await store.close()
    store = await SqliteStore.open(tmp_path / "s.db")
    assert store.last_line == 2
    await store.close()


async def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state" / "s.db")
    await store.commit(a_write())
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    await store.close()


async def test_a_full_disk_fails_the_commit_and_leaves_the_record(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.commit(a_write(1))
    await store._run(lambda: store._db.execute("PRAGMA max_page_count = 8").fetchall())
    huge = a_write(2, body=b"x" * 100_000)
    with pytest.raises(StoreUnavailable, match="full"):
        await store.commit(huge)
    found = await store.load(SESSION)
    assert found is not None
    assert found.version == 1
    assert await store.commit(a_write(2)) is CommitResult.COMMITTED
    await store.close()


async def test_commits_that_wait_together_share_a_transaction(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    statements: list[str] = []
    await store._run(lambda: store._db.set_trace_callback(statements.append))
    writes = [a_write(session_id=bytes([n]) * 16) for n in range(50)]
    conflict = a_write(3, session_id=b"c" * 16)
    results = await _all_at_once(store, [*writes, conflict])
    assert results == [*[CommitResult.COMMITTED] * 50, CommitResult.CONFLICT]
    assert statements.count("COMMIT") == 1
    assert [found.session_id for found in await store.load_all()] == [write.session_id for write in writes]
    assert len(await store.outbox()) == 50
    await store.close()


async def test_of_commits_that_wait_together_each_fails_alone(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store._run(lambda: store._db.execute("PRAGMA max_page_count = 40").fetchall())
    writes = [a_write(session_id=bytes([n]) * 16) for n in range(6)]
    huge = a_write(session_id=b"h" * 16, body=b"x" * 400_000)
    results = await _all_at_once(store, [*writes[:3], huge, *writes[3:]])
    failed = results.pop(3)
    assert isinstance(failed, StoreUnavailable)
    assert "full" in failed.reason
    assert results == [CommitResult.COMMITTED] * 6
    assert [found.session_id for found in await store.load_all()] == [write.session_id for write in writes]
    assert len(await store.outbox()) == 6
    await store.close()


async def _all_at_once(store: SqliteStore, writes: list[Write]) -> list[object]:
    """Commit while the store's thread is busy, so that all of them wait for it."""
    free = threading.Event()
    busy = asyncio.ensure_future(store._run(lambda: free.wait(20)))
    tasks = [asyncio.create_task(store.commit(write)) for write in writes]
    while len(store._jobs) < len(writes):
        await asyncio.sleep(0)
    free.set()
    await busy
    return list(await asyncio.gather(*tasks, return_exceptions=True))


async def test_use_after_close_is_one_clear_error(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store._run(store._close)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.load_all()
    await store.close()
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="the store is closed"):
            await store.commit(a_write())


async def test_more_commits_than_fit_in_a_transaction_are_all_answered_before_the_file_is_closed(
    tmp_path: Path,
) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    writes = [a_write(session_id=n.to_bytes(16, "big")) for n in range(600)]
    tasks = [asyncio.create_task(store.commit(write)) for write in writes]
    await asyncio.sleep(0)
    for task in tasks[::7]:
        task.cancel()
    await store.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [result for n, result in enumerate(results) if n % 7] == [CommitResult.COMMITTED] * (600 - 86)
    again = await SqliteStore.open(tmp_path / "s.db")
    assert len(await again.load_all()) == 600
    await again.close()


async def test_a_cancelled_commit_can_be_asked_for_again(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    task = asyncio.create_task(store.commit(a_write()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await store.commit(a_write()) is CommitResult.COMMITTED
    assert len(await store.outbox()) == 1
    await store.close()
