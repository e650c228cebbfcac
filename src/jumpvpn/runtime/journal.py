"""The event journal: one JSON object per line, whole lines only, appended and never rewritten."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from jumpvpn.audit.envelope import LONGEST_LINE
from jumpvpn.runtime.stores.base import Store

# A followed file is looked at this often; events are for people and collectors, who do not need it sooner.
POLL_SECONDS = 0.1
_READ_BYTES = 1 << 16


class JournalFailed(Exception):
    """Events cannot be written; the text says why and what to do."""


class Journal:
    """Append-only file of event lines, mode 0600."""

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        """Open or create ``path``; ``sync`` adds an fdatasync per append. Raises JournalFailed."""
        self._path = path
        self._sync = sync
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalFailed(f"cannot open the event journal {path}: {error.strerror}") from error
        try:
            self._adopt()
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, lines: Sequence[bytes]) -> None:
        """Write all ``lines`` (each ending in a newline) or, on failure, none. Raises JournalFailed."""
        data = b"".join(lines)
        if not data:
            return
        before = os.fstat(self._fd).st_size
        try:
            self._write(data)
            if self._sync:
                os.fdatasync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)
            advice = "; free some space" if error.errno in (28, 122) else ""  # ENOSPC, EDQUOT
            raise JournalFailed(f"cannot write the event journal {self._path}: {error.strerror}{advice}") from error

    def settle(self) -> None:
        """Return when everything appended so far is on disk. Raises JournalFailed."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise JournalFailed(f"cannot write the event journal {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            view = view[written:]

    def _adopt(self) -> None:
        """Take over a file that a kill may have left with a partial last line: cut that off."""
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise JournalFailed(f"cannot use {self._path} as event journal: it is not a regular file")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalFailed(f"the event journal {self._path} is in use by another process") from error
        if stat.S_IMODE(found.st_mode) != 0o600:
            os.fchmod(self._fd, 0o600)
        whole = _end_of_last_line(self._fd, found.st_size)
        if whole != found.st_size:
            os.ftruncate(self._fd, whole)


async def export_outbox(store: Store, journal: Journal) -> int:
    """Move the store's committed event lines into the journal; returns how many.

    At least once: a crash in between repeats lines, which have the same hash. Raises JournalFailed, StoreUnavailable.
    """
    moved = 0
    while batch := await store.outbox():
        journal.append([line for _, line in batch])
        await store.exported(batch[-1][0])
        moved += len(batch)
    return moved


def read_lines(path: Path, last: int | None = None) -> list[bytes]:
    """The whole lines of a journal, or only its ``last`` ones. Raises OSError."""
    return read_tail(path, last)[0]


def read_tail(path: Path, last: int | None = None) -> tuple[list[bytes], int]:
    """``read_lines`` and the offset where they end, for ``follow`` to go on from there. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = 0 if last is None else _start_of_tail(file.fileno(), size, last)
        file.seek(start)
        lines = [line for line in file.read(size - start).splitlines(keepends=True) if line.endswith(b"\n")]
    kept = lines if last is None else lines[len(lines) - min(last, len(lines)) :]
    return kept, start + sum(len(line) for line in lines)


async def follow(path: Path, *, from_start: bool = False, offset: int | None = None) -> AsyncIterator[bytes]:
    """Every whole line of ``path`` from its present end (or ``offset``) on, also across replacement of the file."""
    offset = 0 if from_start else _size(path) if offset is None else offset
    inode, partial = _inode(path), b""
    while True:
        current = _inode(path)
        if current != inode or _size(path) < offset:
            inode, offset, partial = current, 0, b""
        data = _read_from(path, offset)
        if not data:
            await asyncio.sleep(POLL_SECONDS)
            continue
        offset += len(data)
        *whole, partial = (partial + data).split(b"\n")
        partial = partial[:LONGEST_LINE]
        for line in whole:
            yield line + b"\n"


def stream(path: Path) -> Callable[[Any], AsyncIterator[str]]:
    """What a node's control socket answers to ``events``: the journal's lines; with ``from_start`` from the first."""

    async def lines(args: Any) -> AsyncIterator[str]:
        async for line in follow(path, from_start=bool(args.get("from_start", False))):
            yield line.decode("utf-8").rstrip("\n")

    return lines


def _start_of_tail(fd: int, size: int, last: int) -> int:
    """An offset with at least ``last`` whole lines behind it, found from the end so that long journals cost nothing."""
    start, newlines = size, 0
    while start > 0 and newlines <= last + 1:
        before = max(0, start - _READ_BYTES)
        newlines += os.pread(fd, start - before, before).count(b"\n")
        start = before
    if start == 0:
        return 0
    return start + os.pread(fd, _READ_BYTES, start).find(b"\n") + 1


def _end_of_last_line(fd: int, size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - _READ_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_READ_BYTES)
    except OSError:
        return b""
