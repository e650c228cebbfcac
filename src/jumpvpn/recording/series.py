"""Recordings as files on a disk: which segments there are, in which order, and which of them follow each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jumpvpn.recording.entries import LINE_MAX, BadRecording, Header, read
from jumpvpn.recording.veil import ReaderSight


@dataclass(frozen=True, slots=True)
class Segment:
    """One file and its first line."""

    path: Path
    header: Header

    def follows(self, other: Segment | None) -> bool:
        """Whether this segment continues ``other`` without a gap."""
        if other is None or self.header.missed:
            return False
        mine, theirs = self.header, other.header
        return (mine.role, mine.node_id, mine.run, mine.segment) == (
            theirs.role, theirs.node_id, theirs.run, theirs.segment + 1
        )  # fmt: skip

    def lines(self) -> Iterator[bytes]:
        """The lines, each at most a little longer than a recording's may be. Raises OSError."""
        return lines_of(self.path)


def segments(paths: Sequence[Path]) -> tuple[Segment, ...]:
    """The files in the order in which they were written. Raises BadRecording, OSError."""
    found = [Segment(path, header_of(path)) for path in paths]
    return tuple(sorted(found, key=lambda s: (s.header.node_id, s.header.role, s.header.began_ms, s.header.segment)))


def header_of(path: Path) -> Header:
    """The first line of a recording. Raises BadRecording, OSError."""
    try:
        for _, entry in read(lines_of(path), ReaderSight()):
            assert isinstance(entry, Header), "the first entry is a header"
            return entry
    except BadRecording as error:
        raise BadRecording(f"{path}: {error}") from None
    raise BadRecording(f"{path}: is empty")


def lines_of(path: Path) -> Iterator[bytes]:
    """Lines of ``path``; one that is longer than a recording's may be comes cut. Raises OSError."""
    with path.open("rb") as file:
        while line := file.readline(LINE_MAX + 1):
            yield line
