"""What one demonstration showed: the facts, the verdict on them, and their form for programs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.audit.auditor import Report
from jumpvpn.lab.demo.script import Step
from jumpvpn.lab.incidents import Effect, Incident
from jumpvpn.lab.journals import Record
from jumpvpn.lab.workload import Logs


@dataclass(frozen=True, slots=True)
class Shown:
    """One step as it went."""

    step: Step
    incident: Incident
    effect: Effect


@dataclass(frozen=True, slots=True)
class WorldChange:
    """What the script did to "wifi", "lte" or "gateway": "up", "down", "blackhole", "killed". Boot time (ns)."""

    at_ns: int
    what: str
    state: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that had to hold."""

    holds: bool
    text: str


@dataclass(slots=True)
class Result:
    """Everything that a run left behind.

    `failure` says what ended the script early; `said` is what the nodes wrote to their terminals; addresses are the
    client's inner ones.
    """

    started_ns: int
    quick: bool
    size: int
    ended_ns: int = 0
    failure: str = ""
    shown: list[Shown] = field(default_factory=list)
    world: list[WorldChange] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    journal_lines: dict[str, list[bytes]] = field(default_factory=dict)
    verdict: Report | None = None
    logs: Logs | None = None
    addresses_before: tuple[str, ...] = ()
    addresses_after: tuple[str, ...] = ()

    @property
    def sessions(self) -> tuple[str, ...]:
        """The public identifiers of all sessions that either side knew."""
        return tuple(sorted({str(r.fields["session_uid"]) for r in self.records if r.fields["session_uid"]}))

    @property
    def handshakes(self) -> int:
        """How many handshakes the gateway completed."""
        return sum(r.side == "gateway" and r.turned("ATTACHED") and r.reason == "handshake_ok" for r in self.records)

    @property
    def download(self) -> dict[str, Any]:
        """The facts of the download; empty if there was none."""
        return dict(self.logs.download.facts) if self.logs is not None and self.logs.download is not None else {}

    @property
    def tcp_connections(self) -> int:
        """How many TCP connections the server saw for the download."""
        return int(self.download.get("server_connections", 0))

    def last_change(self, side: str) -> Record | None:
        """The last change of the session's state at one side."""
        mine = [r for r in self.records if r.side == side and r.event == "session.state_change"]
        return mine[-1] if mine else None


def verdict(result: Result) -> list[Finding]:
    """Everything that had to hold, in the order of importance."""
    facts = result.download
    wrong = facts.get("error") or f"{facts.get('received', 0)} of {result.size} bytes"
    return [
        *([Finding(False, result.failure)] if result.failure else []),
        Finding(bool(facts.get("checksum_ok")), f"SHA-256 of the download holds ({_or(facts, wrong)})"),
        _one(result.tcp_connections, "TCP connection carried the whole download"),
        _one(len(result.sessions), "session identifier"),
        _one(result.handshakes, "handshake"),
        Finding(
            result.addresses_before == result.addresses_after != (),
            f"inner address stayed {' '.join(result.addresses_before)}",
        ),
        *[_step_finding(shown) for shown in result.shown],
        *_end_findings(result),
        _audit_finding(result),
    ]


def document(result: Result, findings: Sequence[Finding]) -> dict[str, Any]:
    """The result as plain JSON values."""
    last = result.last_change("gateway")
    return {
        "ok": all(finding.holds for finding in findings),
        "broken": [finding.text for finding in findings if not finding.holds],
        "quick": result.quick,
        "seconds": round((result.ended_ns - result.started_ns) / 1e9, 3),
        "sessions": len(result.sessions),
        "session": result.sessions[0] if len(result.sessions) == 1 else None,
        "handshakes": result.handshakes,
        "checksum_ok": bool(result.download.get("checksum_ok")),
        "bytes": int(result.download.get("received", 0)),
        "tcp_connections": result.tcp_connections,
        "final_state": last.fields["state"] if last else None,
        "final_reason": last.reason if last else None,
        "incidents": [_incident(shown) for shown in result.shown],
    }


def _incident(shown: Shown) -> dict[str, Any]:
    incident, effect = shown.incident, shown.effect
    return {
        "name": incident.name,
        "title": shown.step.title,
        "reason": incident.reason,
        "outcome": incident.outcome,
        "transport": incident.transport,
        "detected_by": incident.detected.side,
        "detection_ms": _rounded(incident.detection_ms),
        "settled_ms": _rounded(incident.settled_ms),
        "undelivered_ms": _rounded(effect.undelivered_ms),
        "tcp_undelivered_ms": _rounded(effect.tcp_undelivered_ms),
        "download_undelivered_ms": _rounded(effect.download_undelivered_ms),
        "resumed_ms": _rounded(effect.resumed_ms),
        "lost": effect.lost,
        "duplicated": effect.duplicated,
    }


def _step_finding(shown: Shown) -> Finding:
    step, incident = shown.step, shown.incident
    right = (
        incident.reason in step.reasons
        and incident.outcome in step.outcomes
        and incident.transport.startswith(step.transport)
    )
    told = f"{step.title}: {incident.reason}, then {incident.outcome} on {incident.transport or 'nothing'}"
    return Finding(right, told if right else f"{told}; expected {step.reasons}, {step.outcomes}, {step.transport}")


def _end_findings(result: Result) -> list[Finding]:
    """Both sides must call the session TERMINATED, and say why."""
    findings = []
    for side, reasons in (("gateway", ("operator_terminated",)), ("client", ("operator_terminated", "peer_closed"))):
        last = result.last_change(side)
        ended = last is not None and last.fields["state"] == "TERMINATED" and last.reason in reasons
        told = f"{last.fields['state']} {last.reason}" if last is not None else "no session"
        findings.append(Finding(ended, f"{side} ends as {told}"))
    return findings


def _audit_finding(result: Result) -> Finding:
    """What the auditor says; the gateway was killed, so what it wrote last may be vouched for by no checkpoint."""
    verdict = result.verdict
    if verdict is None:
        return Finding(False, "the journals were not judged")
    told = f"auditor: {verdict.events} event records of {sum(verdict.counts.values())} chains break no rule"
    return Finding(verdict.sound and verdict.events > 0, told if verdict.sound else verdict.explain())


def _one(count: int, what: str) -> Finding:
    return Finding(count == 1, f"{count} {what}{'' if count == 1 else 's'}")


def _or(facts: dict[str, Any], wrong: str) -> str:
    return f"{facts['received'] / 1e6:.0f} MB" if facts.get("checksum_ok") else str(wrong)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
