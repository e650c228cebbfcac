"""Holds an event journal against what a replay produces: from the first common line on they must run alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class NotInJournal(Exception):
    """The journal lacks an event that the replay produced, or has another one in its place."""


class JournalCheck:
    """``expect`` every produced line in order. Lines of earlier runs before the first one are skipped."""

    def __init__(self, name: str, lines: Iterable[bytes]) -> None:
        self._name = name
        self._lines: Iterator[bytes] = iter(lines)
        self._number = 0
        self._searching = True

    def search(self) -> None:
        """The recording has a gap here: skip to the next line that is produced."""
        self._searching = True

    def expect(self, produced: bytes) -> None:
        """The journal's next line is ``produced``. Raises NotInJournal."""
        begin = self._number
        for line in self._lines:
            self._number += 1
            if line == produced:
                self._searching = False
                return
            if not self._searching:
                raise NotInJournal(f"{self._name}: line {self._number} is not the event that was recorded there")
        after = f" after line {begin}" if begin else ""
        raise NotInJournal(f"{self._name}: an event of the recording is missing{after}")
