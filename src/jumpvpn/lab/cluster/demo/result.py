"""What one demonstration of the cluster showed: the facts, the verdict on them, and their form for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.audit.auditor import Report
from jumpvpn.lab.cluster.history import StoreChange
from jumpvpn.lab.demo.result import Finding
from jumpvpn.lab.incidents import Effect, Incident
from jumpvpn.lab.journals import Record
from jumpvpn.lab.workload import Logs


@dataclass(frozen=True, slots=True)
class Shown:
    """One thing that was done, as it went; `owner` is who owned the session afterwards."""

    title: str
    incident: Incident
    effect: Effect
    owner: str


@dataclass(frozen=True, slots=True)
class WorldChange:
    """What became of a gateway or a network: "up", "down", "killed", "draining". Boot time (ns)."""

    at_ns: int
    what: str
    state: str


@dataclass(slots=True)
class Result:
    """Everything that a run left behind. `violations` are promises that the cluster's own judge found broken."""

    started_ns: int
    size: int
    gateways: tuple[str, ...]
    ended_ns: int = 0
    failure: str = ""
    uid: str = ""
    address: str = ""
    address_after: str = ""
    shown: list[Shown] = field(default_factory=list)
    world: list[WorldChange] = field(default_factory=list)
    leaders: list[tuple[int, str]] = field(default_factory=list)
    changes: list[StoreChange] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    journal_lines: dict[str, list[bytes]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    verdict: Report | None = None
    logs: Logs | None = None
    births: int = 0
    messages: int = 0

    @property
    def download(self) -> dict[str, Any]:
        """The facts of the download; empty if there was none."""
        return dict(self.logs.download.facts) if self.logs is not None and self.logs.download is not None else {}

    @property
    def terms(self) -> list[StoreChange]:
        """The session's record at the beginning of each term, in the store's order."""
        found: list[StoreChange] = []
        for change in sorted(self.changes, key=lambda change: change.revision):
            if change.session and change.record.get("term", 0) > (found[-1].record["term"] if found else 0):
                found.append(change)
        return found

    @property
    def writes(self) -> int:
        """How often the session's record was written in the store."""
        return sum(bool(change.session) and not change.gone for change in self.changes)


def verdict(result: Result) -> list[Finding]:
    """Everything that had to hold, in the order of importance."""
    facts = result.download
    told = f"{facts.get('received', 0) / 1e6:.0f} MB" if facts.get("checksum_ok") else str(facts.get("error"))
    connections = int(facts.get("server_connections", 0))
    owners = [str(change.record["owner"]) for change in result.terms]
    audit = result.verdict
    return [
        *([Finding(False, result.failure)] if result.failure else []),
        Finding(bool(facts.get("checksum_ok")), f"SHA-256 of the download holds ({told})"),
        Finding(connections == 1, f"{connections} TCP connection carried the whole download"),
        Finding(result.births == 1, f"{result.births} handshake{'s' * (result.births != 1)}, session {result.uid}"),
        Finding(result.address == result.address_after != "", f"inner address stayed {result.address}"),
        Finding(len(owners) > 2, f"owners by the store: {', then '.join(owners) or 'none'}"),
        *(Finding(False, violation) for violation in result.violations),
        *(
            []
            if result.violations
            else [
                Finding(
                    result.messages > 0, f"{result.messages} messages traced: none accepted of two gateways at a time"
                )
            ]
        ),
        Finding(
            audit is not None and audit.sound,
            f"auditor: {audit.events} event records of {sum(audit.counts.values())} chains break no rule"
            if audit is not None and audit.sound
            else (audit.explain() if audit is not None else "the journals were not judged"),
        ),
    ]


def document(result: Result, findings: Sequence[Finding]) -> dict[str, Any]:
    """The result as plain JSON values."""
    return {
        "ok": all(finding.holds for finding in findings),
        "broken": [finding.text for finding in findings if not finding.holds],
        "seconds": round((result.ended_ns - result.started_ns) / 1e9, 3),
        "session": result.uid,
        "handshakes": result.births,
        "checksum_ok": bool(result.download.get("checksum_ok")),
        "bytes": int(result.download.get("received", 0)),
        "tcp_connections": int(result.download.get("server_connections", 0)),
        "messages_traced": result.messages,
        "store_writes_of_the_session": result.writes,
        "terms": [{"term": c.record["term"], "owner": c.record["owner"]} for c in result.terms],
        "incidents": [_incident(shown) for shown in result.shown],
    }


def _incident(shown: Shown) -> dict[str, Any]:
    incident, effect = shown.incident, shown.effect
    figures = {
        "detection_ms": incident.detection_ms, "settled_ms": incident.settled_ms,
        "undelivered_ms": effect.undelivered_ms, "tcp_undelivered_ms": effect.tcp_undelivered_ms,
        "download_undelivered_ms": effect.download_undelivered_ms,
    }  # fmt: skip
    return {
        "name": incident.name, "title": shown.title, "reason": incident.reason, "outcome": incident.outcome,
        "transport": incident.transport, "owner": shown.owner,
        **{name: None if value is None else round(value, 3) for name, value in figures.items()},
        "lost": effect.lost, "duplicated": effect.duplicated,
    }  # fmt: skip
