"""Segments as files: the present one under its own name, older ones as ``NAME.1`` (the newest) to ``NAME.N``.

A recording serves people; the node goes on without it. Whatever goes wrong here is said once, and the recording ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from jumpvpn.recording.entries import MAGIC
from jumpvpn.recording.snapshot import Engine
from jumpvpn.recording.tape import Tape

if TYPE_CHECKING:
    from jumpvpn.config import Recording

SALT_BYTES = 32
_FULL = (errno.ENOSPC, errno.EDQUOT)


def say(text: str) -> None:
    """One line for whoever started the node."""
    sys.stderr.write(f"jumpvpn: {text}\n")


def start(wish: Recording, engine: Engine, stack: contextlib.AsyncExitStack) -> Tape:
    """The tape that the configuration wishes, closed with ``stack``."""
    tape = tape_into(wish.file, wish.size, wish.keep, engine)
    stack.callback(tape.close)
    return tape


def tape_into(path: Path, size: int, keep: int, engine: Engine, tell: Callable[[str], None] = say) -> Tape:
    """A tape into ``path``: segments of at most ``size`` bytes, ``keep`` of them with the present one."""
    sink = SegmentFiles(path, keep, tell)
    return Tape(sink, engine, salt=secrets.token_bytes(SALT_BYTES), size=size, program=version("jumpvpn"))


class _Unusable(Exception):
    """The file cannot hold a recording; the text says why and what to do."""


class SegmentFiles:
    """Writes segments, mode 0600, and deletes the oldest."""

    def __init__(self, path: Path, keep: int, tell: Callable[[str], None]) -> None:
        self._path = path
        self._keep = keep
        self._tell = tell
        self._fd: int | None = None

    def begin(self, number: int) -> bool:
        """Move what is there one number on, and open a file."""
        try:
            self._demand_ours()
            self._close()
            self._shift()
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except _Unusable as error:
            return self._give_up(str(error))
        except OSError as error:
            return self._give_up(f"{error.strerror}; check the directory and its permissions")
        return True

    def write(self, data: bytes) -> bool:
        """Append ``data``."""
        assert self._fd is not None
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            advice = "; free some space or lower [recording] size or keep" if error.errno in _FULL else ""
            return self._give_up(f"{error.strerror}{advice}")
        return True

    def too_big(self, state: int) -> None:
        """The sessions fill a segment by themselves."""
        self._give_up(f"the state of all sessions has {state} bytes; raise [recording] size to {4 * state} or more")

    def _give_up(self, why: str) -> bool:
        with contextlib.suppress(OSError):  # what could not be written before cannot be written now: said below
            self._close()
        self._tell(f"recording to {self._path} ends: {why}; the node goes on without it")
        return False

    def close(self) -> None:
        """Close the file; an error says that not all of it may be there."""
        try:
            self._close()
        except OSError as error:
            self._tell(f"recording to {self._path}: {error.strerror}; its end may be missing")

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _shift(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._keep))]
        names[-1].unlink(missing_ok=True)
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            with contextlib.suppress(FileNotFoundError):
                newer.rename(older)

    def _demand_ours(self) -> None:
        """Raises _Unusable for a file that is not a recording, or in which another node records."""
        if self._fd is not None:
            return
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _Unusable("it is not a regular file; choose another [recording] file")
            found = os.read(fd, len(MAGIC))
            if found and found != MAGIC:
                raise _Unusable("the file there is no recording; choose another [recording] file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _Unusable("another node records into it; choose another [recording] file") from None
        finally:
            os.close(fd)
