"""What an incident did to traffic: exact losses, duplicates and time without delivery, from the tools' logs."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jumpvpn.lab.errors import LabError
from jumpvpn.lab.records import read_result

_MS = 1e6


@dataclass(frozen=True, slots=True)
class Window:
    """What happened to one flow between two instants.

    `sent`, `lost`, `duplicated` count the messages sent inside the window (zero for a download, which has no messages);
    lost ones were never answered, duplicated ones more than once. `undelivered_ms` is the longest time between two
    successive deliveries that overlaps the window, even where it begins before or ends after it; it includes the
    ordinary spacing of the flow. The round-trip times are of the messages sent inside the window and answered.
    """

    sent: int
    lost: int
    duplicated: int
    undelivered_ms: float
    gap_start_ns: int
    gap_end_ns: int
    rtt_p50_ms: float | None
    rtt_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class EchoLog:
    """The log of one echo run; `deliveries` are the instants of all first answers, in order."""

    facts: dict[str, Any]
    sent: "array[int]"
    answered: "array[int]"
    copies: "array[int]"
    deliveries: Sequence[int]

    def window(self, start_ns: int, end_ns: int) -> Window:
        """Return what happened between two instants of CLOCK_BOOTTIME."""
        rows = range(bisect_left(self.sent, start_ns), bisect_left(self.sent, end_ns))
        times = sorted(self.answered[row] - self.sent[row] for row in rows if self.answered[row])
        first, last = (self.sent[0], self.sent[-1]) if self.sent else (start_ns, start_ns)
        gap = _longest_gap(self.deliveries, first, last, start_ns, end_ns)
        return Window(
            sent=len(rows),
            lost=sum(self.copies[row] == 0 for row in rows),
            duplicated=sum(self.copies[row] - 1 for row in rows if self.copies[row] > 1),
            undelivered_ms=(gap[1] - gap[0]) / _MS,
            gap_start_ns=gap[0],
            gap_end_ns=gap[1],
            rtt_p50_ms=_quantile_ms(times, 0.50),
            rtt_p99_ms=_quantile_ms(times, 0.99),
        )


@dataclass(frozen=True, slots=True)
class DownloadLog:
    """The log of one download; pauses shorter than the tool's threshold count as steady delivery."""

    facts: dict[str, Any]
    buckets: "array[int]"
    pause_starts: "array[int]"
    pause_ends: "array[int]"

    def window(self, start_ns: int, end_ns: int) -> Window:
        """Return what happened between two instants of CLOCK_BOOTTIME."""
        first, last = bisect_right(self.pause_ends, start_ns), bisect_left(self.pause_starts, end_ns)
        pauses = list(zip(self.pause_starts[first:last], self.pause_ends[first:last], strict=True))
        start, end = max(pauses, key=lambda pause: pause[1] - pause[0], default=(start_ns, start_ns))
        return Window(0, 0, 0, (end - start) / _MS, start, end, None, None)

    def throughput(self) -> list[tuple[int, float]]:
        """Return (start of the bucket in ns, Mbit/s) for the whole run."""
        width: int = self.facts["bucket_ns"]
        return [
            (self.facts["started_ns"] + index * width, count * 8e3 / width) for index, count in enumerate(self.buckets)
        ]


def load_echo(path: Path | str) -> EchoLog:
    """Read the result of `jumpvpn.lab.traffic.echo`; raises LabError."""
    facts, arrays = _load(path, "echo")
    deliveries = sorted(instant for instant in arrays["answered"] if instant)
    return EchoLog(facts, arrays["sent"], arrays["answered"], arrays["copies"], deliveries)


def load_download(path: Path | str) -> DownloadLog:
    """Read the result of `jumpvpn.lab.traffic.download`; raises LabError."""
    facts, arrays = _load(path, "download")
    return DownloadLog(facts, arrays["buckets"], arrays["pause_starts"], arrays["pause_ends"])


def _load(path: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, "array[int]"]]:
    facts, arrays = read_result(Path(path))
    if facts.get("kind") != kind:
        raise LabError(f"{path} is the result of {facts.get('kind')}, not of {kind}")
    return facts, arrays


def _longest_gap(
    deliveries: Sequence[int], begin_ns: int, finish_ns: int, start_ns: int, end_ns: int
) -> tuple[int, int]:
    """Return the longest interval without delivery that overlaps [start, end), of a run from `begin_ns` on."""
    edges = [begin_ns, *deliveries, max([finish_ns, *deliveries[-1:]])]
    first, last = max(0, bisect_right(edges, start_ns) - 1), bisect_left(edges, end_ns) + 1
    near = edges[first:last]
    return max(pairwise(near), key=lambda gap: gap[1] - gap[0], default=(start_ns, start_ns))


def _quantile_ms(ordered: Sequence[int], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / _MS if ordered else None
