"""The event journals of running nodes, followed as they grow: every record can be awaited, none is polled for."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpvpn.lab.linux import watch_directory

_NOTICES_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Record:
    """One event record and the side ("client" or "gateway") whose journal holds it."""

    side: str
    fields: Mapping[str, Any]

    @property
    def event(self) -> str:
        """Its name in the catalogue."""
        return str(self.fields["event"])

    @property
    def reason(self) -> str:
        """Its primary reason, or nothing."""
        return str(self.fields["reason"] or "")

    @property
    def at_ns(self) -> int:
        """When the node decided: boot time, floored to the millisecond that the envelope carries."""
        return int(self.fields["mono_ms"]) * 1_000_000

    @property
    def transport(self) -> str:
        """The transport it speaks of, or nothing."""
        transport = self.fields["transport"]
        return str(transport["id"]) if transport else ""

    @property
    def data(self) -> Mapping[str, Any]:
        """Its own fields."""
        fields: Mapping[str, Any] = self.fields["data"]
        return fields

    def turned(self, state: str, before: str | None = None) -> bool:
        """Whether it is the change of a session into `state` (from `before`)."""
        fields = self.fields
        changed = self.event == "session.state_change" and fields["prev_state"] != fields["state"]
        return changed and fields["state"] == state and before in (None, fields["prev_state"])


Wanted = Callable[[Record], bool]


class Journals:
    """All records of some journals in one directory, in the order in which they were read.

    `files` maps a side to the name of its journal, which need not exist yet. A record that a restarted node writes
    again (same hash) counts once. Needs a running event loop between `open` and `close`.
    """

    def __init__(self, directory: Path, files: Mapping[str, str]) -> None:
        self.records: list[Record] = []
        self.paths: Mapping[str, Path] = {side: directory / name for side, name in files.items()}
        self.listener: Callable[[Record], None] | None = None
        self._directory = directory
        self._offsets = dict.fromkeys(files, 0)
        self._seen: set[str] = set()
        self._waiting: list[tuple[Wanted, int, asyncio.Future[Record]]] = []
        self._watch = -1

    def open(self) -> None:
        """Begin to follow."""
        self._watch = watch_directory(self._directory)
        asyncio.get_running_loop().add_reader(self._watch, self.read)
        self.read()

    def close(self) -> None:
        """Read what is there and follow no more; idempotent."""
        if self._watch >= 0:
            self.read()
            asyncio.get_running_loop().remove_reader(self._watch)
            os.close(self._watch)
            self._watch = -1

    def read(self) -> None:
        """Take in every whole line that was written since the last time."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._watch, _NOTICES_BYTES)
        for side, path in self.paths.items():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(self._offsets[side])
                whole, _, _ = file.read().rpartition(b"\n")
                self._offsets[side] += len(whole) + bool(whole)
                for line in whole.splitlines():
                    self._take(Record(side, json.loads(line)))

    def first(self, wanted: Wanted, since_ns: int = 0) -> Record | None:
        """The earliest record from `since_ns` (boot time) on, of either side, that is wanted."""
        found = [record for record in self.records if _fits(record, wanted, since_ns)]
        return min(found, key=lambda record: record.at_ns, default=None)

    async def next(self, wanted: Wanted, since_ns: int = 0) -> Record:
        """The first such record, now or when it comes; the caller bounds the wait."""
        for record in self.records:
            if _fits(record, wanted, since_ns):
                return record
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        entry = (wanted, since_ns, future)
        self._waiting.append(entry)
        try:
            return await future
        finally:
            self._waiting.remove(entry)

    def _take(self, record: Record) -> None:
        if record.fields["hash"] in self._seen:
            return
        self._seen.add(record.fields["hash"])
        self.records.append(record)
        if self.listener is not None:
            self.listener(record)
        for wanted, since_ns, future in self._waiting:
            if not future.done() and _fits(record, wanted, since_ns):
                future.set_result(record)


def _fits(record: Record, wanted: Wanted, since_ns: int) -> bool:
    return record.at_ns >= since_ns // 1_000_000 * 1_000_000 and wanted(record)
