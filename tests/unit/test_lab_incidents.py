"""What an incident is made of: the records after its cause, not those of the same millisecond before it."""

import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jumpvpn.lab import incidents
from jumpvpn.lab.deployment import SIDES, Deployment
from jumpvpn.lab.journals import Journals, Record

CAUSE_NS = 5_000_900_000
NUMBERS = itertools.count()


def told(ms: int, event: str, transport: str, before: str = "", state: str = "", **more: Any) -> dict[str, Any]:
    """One record of a journal, as far as incidents read it."""
    fields = {"mono_ms": ms, "event": event, "prev_state": before, "state": state}
    return fields | {"transport": {"id": transport}, "reason": more.pop("reason", ""), "data": more}


class Told:
    """A deployment that only has journals: what restoring an uplink writes there is given."""

    attached = Deployment.attached

    def __init__(self, journals: Journals, afterwards: Callable[[], None]) -> None:
        self.journals = journals
        self.lab = SimpleNamespace(restore=lambda _: (afterwards(), SimpleNamespace(before_ns=CAUSE_NS))[1])

    async def event(self, wanted: Callable[[Record], bool], since_ns: int = 0) -> Record:
        return await self.journals.next(wanted, since_ns)


@pytest.fixture
async def journals(tmp_path: Path) -> AsyncIterator[Journals]:
    journals = Journals(tmp_path, {side: f"{side}.jsonl" for side in SIDES})
    journals.open()
    yield journals
    journals.close()


async def test_a_failback_is_not_settled_by_the_switch_that_ended_in_its_first_millisecond(journals: Journals) -> None:
    def write(*records: dict[str, Any]) -> None:
        for path in journals.paths.values():
            with path.open("a") as file:
                file.writelines(json.dumps(record | {"hash": str(next(NUMBERS))}) + "\n" for record in records)

    change = "session.state_change"
    write(told(4990, change, "wwan0", "ATTACHED", "VOLATILE"), told(5000, change, "wwan0", "RECOVERING", "ATTACHED"))
    later = [
        told(5003, "transport.candidate", "wlan0", change="added"),
        told(6010, change, "wwan0", "ATTACHED", "VOLATILE", reason="failback"),
        told(6014, change, "wlan0", "RECOVERING", "ATTACHED", reason="reattach_success"),
    ]
    incident = await incidents.failback(Told(journals, lambda: write(*later)))  # type: ignore[arg-type]
    assert (incident.transport, incident.reason, incident.outcome) == ("wlan0", "failback", "reattach_success")
    assert (incident.detected.event, incident.settled_ns) == ("transport.candidate", 6_014_000_000)
