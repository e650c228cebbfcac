"""The event journal: whole lines only, private, one writer, followable."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from jumpvpn.runtime import journal as journal_module
from jumpvpn.runtime.journal import Journal, JournalFailed, follow, read_lines, read_tail


def test_lines_are_appended_and_private(tmp_path: Path) -> None:
    path = tmp_path / "events" / "events.jsonl"
    journal = Journal(path, sync=True)
    journal.append([b"one\n", b"two\n"])
    journal.append([])
    journal.close()
    again = Journal(path)
    again.append([b"three\n"])
    again.close()
    assert read_lines(path) == [b"one\n", b"two\n", b"three\n"]
    assert read_lines(path, 2) == [b"two\n", b"three\n"]
    assert read_lines(path, 0) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_partial_line_of_a_killed_writer_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(b"one\n" + b"x" * 200_000)
    Journal(path).close()
    assert path.read_bytes() == b"one\n"
    path.write_bytes(b"only a part")
    Journal(path).close()
    assert path.read_bytes() == b""


def test_failed_append_leaves_no_partial_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.jsonl"
    journal = Journal(path)
    journal.append([b"one\n"])
    real_write = os.write

    def half_then_full(fd: int, data: bytes) -> int:
        if len(data) <= 10:
            raise OSError(28, "No space left on device")
        return real_write(fd, bytes(data)[:10])

    monkeypatch.setattr(journal_module.os, "write", half_then_full)
    with pytest.raises(JournalFailed, match=r"No space left on device; free some space"):
        journal.append([b"a line of fifteen\n"])
    monkeypatch.undo()
    assert path.read_bytes() == b"one\n"
    journal.append([b"two\n"])
    assert path.read_bytes() == b"one\ntwo\n"
    journal.close()


def test_a_full_device_fails_with_a_clear_text() -> None:
    with pytest.raises(JournalFailed, match="not a regular file"):
        Journal(Path("/dev/full"))


def test_a_second_writer_is_kept_out(tmp_path: Path) -> None:
    first = Journal(tmp_path / "e.jsonl")
    with pytest.raises(JournalFailed, match="in use by another process"):
        Journal(tmp_path / "e.jsonl")
    first.close()


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalFailed, match="cannot open the event journal"):
        Journal(tmp_path / "file" / "e.jsonl")


@pytest.mark.parametrize("length", [1, 900, 70_000])
def test_the_tail_of_a_long_journal_is_found_from_its_end(length: int, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    lines = [b"%d " % n + b"x" * length + b"\n" for n in range(300)]
    path.write_bytes(b"".join(lines) + b"partial")
    for last in (0, 1, 7, 299, 300, 301):
        kept, offset = read_tail(path, last)
        assert kept == (lines[-last:] if last else [])
        assert offset == sum(map(len, lines))


async def test_follow_gives_whole_lines_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    journal = Journal(path)
    journal.append([b"old\n"])
    seen: list[bytes] = []
    task = asyncio.create_task(_collect(path, seen))
    await asyncio.sleep(0.05)
    journal.append([b"new\n"])
    journal._write(b"par")
    await _until(lambda: seen == [b"new\n"])
    journal._write(b"tial\n")
    await _until(lambda: seen == [b"new\n", b"partial\n"])
    journal.close()
    path.unlink()
    replaced = Journal(path)
    replaced.append([b"after\n"])
    await _until(lambda: seen[-1] == b"after\n")
    replaced.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_follow_waits_for_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    seen: list[bytes] = []
    task = asyncio.create_task(_collect(tmp_path / "later.jsonl", seen))
    await asyncio.sleep(0.05)
    (tmp_path / "later.jsonl").write_bytes(b"hello\n")
    await _until(lambda: seen == [b"hello\n"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _collect(path: Path, seen: list[bytes]) -> None:
    async for line in follow(path):
        seen.append(line)


async def _until(holds: object) -> None:
    assert callable(holds)
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)
