"""The outcome of an audit: verdicts, totals, coverage; as an object, as words, as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jumpvpn.audit.auditor.owners import Tenure
from jumpvpn.audit.auditor.rules import Outcome, Rule, Verdict, counted, spans
from jumpvpn.audit.auditor.sources import Unreadable
from jumpvpn.audit.auditor.table import Table
from jumpvpn.properties import Property

OWNERSHIP = ("takeovers", "adoptions", "restarts", "tails", "tail_records", "unknown_versions", "dual_active")
PASSES_KEPT = 1_000  # verdicts that say nothing but PASS; the rest is counted
FAULTS_KEPT = 10_000  # other verdicts; the rest is counted too
UNREADABLE_KEPT = 100
_BEGUN = {"takeover": "takeovers", "adopted": "adoptions", "superseded": "adoptions", "restart": "restarts"}
_NO_ANCHOR = (
    "the checkpoints' keys were taken from the log itself: give the key kept off-host (--checkpoints) to exclude that "
    "the whole log was replaced"
)
_NO_CHECKPOINT = (
    "no checkpoint was verified, so a log that was written anew as a whole would look the same: name the node's own "
    "chain (n:) and the key kept off-host (--checkpoints)"
)
_LIVENESS = (
    "A-10 is decided only as far as events tell: that death alone never ends a session and that every wait is bounded "
    "(A-9); whether a healthy candidate existed is not in the log"
)


class Report:
    """What an audit found. Complete after ``finish``."""

    def __init__(self, table: Table, checks: list[int], rows: dict[str, int], reasons: dict[str, int]) -> None:
        self._table = table
        self._checks = checks
        self._rows = rows
        self._reasons = reasons
        self.lines = 0
        self.events = 0
        self.repeats = 0
        self.old_repeats = 0
        self.unreadable: list[Unreadable] = []
        self.unreadable_count = 0
        self.faults: list[Verdict] = []
        self.passes: list[Verdict] = []
        self._kept: set[str] = set()  # chains whose verdicts are among these
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.notes: list[str] = []
        self.ownership: Counter[str] = Counter(dict.fromkeys(OWNERSHIP, 0))

    # --- collecting --------------------------------------------------------------------------------------------------

    def add(self, verdict: Verdict) -> None:
        """One more chain is judged."""
        self.counts[verdict.outcome.value] += 1
        self._count_findings(verdict, 1)
        kept, limit = (self.passes, PASSES_KEPT) if verdict.outcome is Outcome.PASS else (self.faults, FAULTS_KEPT)
        if len(kept) < limit:
            kept.append(verdict)
            self._kept.add(verdict.chain)

    def revise(self, verdict: Verdict) -> None:
        """A chain that was judged before is worse than it seemed."""
        for kept in (self.passes, self.faults) if verdict.chain in self._kept else ():
            for index, old in enumerate(kept):
                if old.chain == verdict.chain:
                    del kept[index]
                    self.counts[old.outcome.value] -= 1
                    self._count_findings(old, -1)
                    worse = replace(verdict, state=old.state, version=old.version, reason=old.reason)
                    self.add(replace(worse, owners=old.owners))
                    return
        self.counts[Outcome.PASS.value] = max(
            0, self.counts[Outcome.PASS.value] - 1
        )  # it was one of those only counted
        self.add(verdict)

    def owned(self, tenures: Sequence[Tenure]) -> None:
        """The owners of one more session."""
        for tenure in tenures[1:]:
            self.ownership[_BEGUN[tenure.begun]] += 1

    def behind(self, verdict: Verdict, unknown: int) -> None:
        """One tail is judged; ``unknown`` versions are known only to its writer's journal."""
        self.ownership["tails"] += bool(verdict.records)
        self.ownership["tail_records"] += verdict.records
        self.ownership["unknown_versions"] += unknown
        self.add(verdict)

    def unreadable_line(self, what: Unreadable) -> None:
        """Something of the input could not be read."""
        self.unreadable_count += 1
        if len(self.unreadable) < UNREADABLE_KEPT:
            self.unreadable.append(what)

    def finish(self, *, anchored: bool) -> None:
        """Nothing more comes."""
        if not self.events:
            self.notes.append("nothing was judged: the input holds no event record of Jumping VPN")
            return
        if not anchored:
            self.notes.append(_NO_ANCHOR if self._checks[Rule.CHAIN.number] else _NO_CHECKPOINT)
        self.notes.append(_LIVENESS)
        if self.old_repeats:
            repeats = counted(self.old_repeats, "repeated record is", "repeated records are")
            self.notes.append(f"{repeats} too old to be compared with the first")

    def _count_findings(self, verdict: Verdict, sign: int) -> None:
        for finding in verdict.findings:
            self.failures[finding.rule.id] += sign
            if finding.rule is Rule.EPOCH and finding.promise is Property.SINGLE_BINDING:
                self.ownership["dual_active"] += sign

    # --- the outcome -------------------------------------------------------------------------------------------------

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Verdicts that were kept: all faults (up to ``FAULTS_KEPT``), then the first passes."""
        return (*self.faults, *self.passes)

    @property
    def outcome(self) -> Outcome:
        """FAIL before INCOMPLETE before PASS; nothing read is INCOMPLETE."""
        if self.counts[Outcome.FAIL.value]:
            return Outcome.FAIL
        if self.counts[Outcome.INCOMPLETE.value] or self.unreadable_count or not self.events:
            return Outcome.INCOMPLETE
        return Outcome.PASS

    @property
    def ok(self) -> bool:
        """Everything was read and every chain is PASS."""
        return self.outcome is Outcome.PASS

    @property
    def sound(self) -> bool:
        """No rule is broken; something may be missing."""
        return self.outcome is not Outcome.FAIL

    @property
    def exit_code(self) -> int:
        """0 all PASS, 1 any FAIL, 2 INCOMPLETE or unreadable."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCOMPLETE: 2}[self.outcome]

    @property
    def coverage(self) -> dict[str, dict[str, int]]:
        """How often each row, reason and property was exercised; what never was has 0."""
        properties = dict.fromkeys((promise.name for promise in Property), 0)
        for rule in Rule:
            for promise in (rule.promise, *rule.also):
                properties[promise.name] += self._checked(rule)
        return {
            "rows": {row: self._rows.get(row, 0) for row in self._table.rows},
            "reasons": dict(sorted(self._reasons.items())),
            "properties": properties,
        }

    def _checked(self, rule: Rule) -> int:
        return self.events if rule is Rule.CHAIN else self._checks[rule.number]

    def rules(self) -> list[dict[str, Any]]:
        """Per rule: number, property, what it looks at, how often it was checked and how often it failed."""
        return [
            {
                "rule": rule.id, "property": rule.promise.name, "text": rule.text, "checked": self._checked(rule),
                "failed": self.failures[rule.id],
            }
            for rule in Rule
        ]  # fmt: skip

    def explain(self) -> str:
        """Everything that is not PASS, in words."""
        lines = [f"{self.outcome.value}: {self._totals()}"]
        lines += [f"unreadable {what}" for what in self.unreadable]
        if not self.events and not self.unreadable_count:
            lines.append("no event record was read: the input is empty")
        for verdict in self.faults:
            lines.append(str(verdict))
            lines += [
                f"  {first}" + (f" (to {last})" if last > first.seq else "") for first, last in spans(verdict.findings)
            ]
            lines += [f"  {gap}" for gap in verdict.gaps]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """One object for programs."""
        return {
            "outcome": self.outcome.value,
            "exit_code": self.exit_code,
            "lines": self.lines,
            "events": self.events,
            "repeats": self.repeats + self.old_repeats,
            "chains": {outcome.value: self.counts[outcome.value] for outcome in Outcome},
            "unreadable": {
                "count": self.unreadable_count,
                "first": [{"source": u.source, "line": u.number, "text": u.text} for u in self.unreadable],
            },
            "verdicts": [_verdict_json(verdict) for verdict in self.verdicts],
            "rules": self.rules(),
            "coverage": self.coverage,
            "ownership": dict(self.ownership),
            "notes": self.notes,
        }

    def _totals(self) -> str:
        parts = [f"{self.counts[outcome.value]} {outcome.value}" for outcome in Outcome if self.counts[outcome.value]]
        unreadable = f", {self.unreadable_count} unreadable" if self.unreadable_count else ""
        return f"{self.events} events, chains: {', '.join(parts) or 'none'}{unreadable}"


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "chain": verdict.chain, "outcome": verdict.outcome.value, "records": verdict.records, "end": verdict.end,
        "state": verdict.state, "version": verdict.version, "reason": verdict.reason, "failures": verdict.failures,
        "findings": [
            {"rule": f.rule.id, "property": f.promise.name, "chain": f.chain, "seq": f.seq, "text": f.text}
            for f in verdict.findings
        ],
        "gaps": [{"chain": g.chain, "first": g.first, "last": g.last, "text": g.text} for g in verdict.gaps],
        "notes": list(verdict.notes), "owners": [tenure.as_json() for tenure in verdict.owners],
    }  # fmt: skip
