"""Lines of logs: files, ``.gz`` files, standard input; bounded, and with a reason for everything that is not read."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import BinaryIO

import msgspec

from jumpvpn.audit.auditor.records import LINE_MAX

CHUNK_BYTES = 1 << 20
STDIN = "-"
GZIP_MAGIC = b"\x1f\x8b"
SKIPPED_MAX = 1 << 28  # without one end of line: a device or an image, which nobody wants to read to its end
_PEEK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What could not be read: a line (``number`` >= 1) or a whole source (0)."""

    source: str
    number: int
    text: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.number}" if self.number else self.source
        return f"{where}: {self.text}"


class _Stamp(msgspec.Struct):
    time_ms: int


def in_order(names: Sequence[str]) -> list[str]:
    """The sources by the time of their first record, so that rotated files may be named in any order.

    Sources whose first line tells no time come last, as they were named.
    """
    if len(names) < 2:
        return list(names)
    return sorted(names, key=_first_time)


def read(name: str) -> Iterator[tuple[int, bytes] | Unreadable]:
    """Numbered lines of one source without their ends; too long lines and failures as ``Unreadable``."""
    lines = _read(name)
    while True:
        try:
            yield next(lines)
        except StopIteration:
            return
        except (EOFError, gzip.BadGzipFile, zlib.error):
            yield Unreadable(name, 0, "the compressed data is damaged or cut off")
            return
        except OSError as error:
            yield Unreadable(name, 0, _why(error))
            return


def split(chunks: Iterable[bytes], name: str) -> Iterator[tuple[int, bytes] | Unreadable]:
    """Numbered lines of a stream of bytes; a line longer than ``LINE_MAX`` is named, not kept."""
    number, rest, skipping, skipped = 0, b"", False, 0
    for chunk in chunks:
        skipped = skipped + len(chunk) if skipping else 0
        if skipped > SKIPPED_MAX:
            yield Unreadable(name, number + 1, f"no end of line in {SKIPPED_MAX} bytes; this is no event log")
            return
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            if skipping or len(line) > LINE_MAX:
                skipping = False
                yield _too_long(name, number)
            else:
                yield number, line
        if len(rest) > LINE_MAX:
            rest, skipping = b"", True
    if skipping:
        yield _too_long(name, number + 1)
    elif rest:
        yield number + 1, rest


def _read(name: str) -> Iterator[tuple[int, bytes] | Unreadable]:
    if name == STDIN:
        with _unpacked(sys.stdin.buffer) as file:
            yield from split(_chunks(file), "stdin")
        return
    with _opened(name) as raw, _unpacked(raw) as file:
        yield from split(_chunks(file), name)


def _opened(name: str) -> BinaryIO:
    path = Path(name)
    if path.is_dir():
        raise IsADirectoryError(21, "is a directory; name the files in it", name)
    return path.open("rb")


def _unpacked(raw: BinaryIO) -> AbstractContextManager[BufferedIOBase]:
    """What is compressed says so itself, whatever its name is. Does not close ``raw``."""
    buffered = raw if isinstance(raw, BufferedReader) else BufferedReader(raw)  # type: ignore[type-var]
    if buffered.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] == GZIP_MAGIC:
        return gzip.GzipFile(fileobj=buffered)
    return nullcontext(buffered)


def _chunks(file: BufferedIOBase) -> Iterator[bytes]:
    while chunk := file.read1(CHUNK_BYTES):  # what there is: of a damaged file everything before the damage
        yield chunk


def _first_time(name: str) -> float:
    if name == STDIN or not Path(name).is_file():  # what was read of a pipe is gone
        return float("inf")
    try:
        with _opened(name) as raw, _unpacked(raw) as file:
            line = file.read(_PEEK_BYTES).partition(b"\n")[0]
        return msgspec.json.decode(line, type=_Stamp).time_ms
    except (OSError, EOFError, zlib.error, msgspec.MsgspecError, UnicodeError, RecursionError):
        return float("inf")  # ``read`` says what is wrong with it


def _too_long(name: str, number: int) -> Unreadable:
    return Unreadable(name, number, f"longer than {LINE_MAX} bytes, so it is no event record")


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
