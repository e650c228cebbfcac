"""What a run came to, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.model.explorer import Counterexample, Exploration
from jumpvpn.model.liveness import CONDITIONS
from jumpvpn.properties import Property
from jumpvpn.session.transitions import AFTER_TERMINATION, NOT_LISTED, TABLE

EXPLORED = (
    Property.SINGLE_BINDING, Property.IDENTITY, Property.EDGES, Property.ABSORBING, Property.VERSION, Property.PROOF,
    Property.REJECTION, Property.BOUNDED_SWITCHING, Property.DEATH_IS_NOT_THE_END, Property.CLOCKS, Property.TOTALITY,
    Property.PRIORITY, Property.PROGRESS, Property.MUST_RECOVER, Property.FINITE, Property.BOUNDED_RECOVERY,
    Property.VISIBLE, Property.PAIRED, Property.EPOCH, Property.POLICY_IN_FORCE,
)  # fmt: skip
"""The properties that exploration is about; a run that never checked one of them fails."""


@dataclass(frozen=True, slots=True)
class MutantResult:
    """One seeded fault: the property that caught it, or None; ``as_declared`` says whether that is the right one."""

    name: str
    expected: tuple[str, ...]
    caught_by: str | None
    text: str
    seconds: float

    @property
    def as_declared(self) -> bool:
        """Whether a declared property caught it."""
        return self.caught_by in self.expected


@dataclass(frozen=True, slots=True)
class Report:
    """Exploration of both roles, and the seeded faults."""

    bounds: str
    explorations: tuple[Exploration, ...]
    mutants: tuple[MutantResult, ...] = ()
    skipped: str = field(default="")  # why the seeded faults were not run

    @property
    def rows(self) -> Counter[str]:
        """How often each row of the table was applied."""
        return sum((e.rows for e in self.explorations), Counter())

    @property
    def reasons(self) -> Counter[str]:
        """How often each reason was given."""
        return sum((e.reasons for e in self.explorations), Counter())

    @property
    def checks(self) -> Counter[str]:
        """How often each property was checked."""
        return sum((e.checks for e in self.explorations), Counter())

    @property
    def recoveries(self) -> dict[str, int]:
        """In how many worlds of an excursion ATTACHED is owed, and in how many which condition is missing."""
        found = sum((e.recoveries for e in self.explorations), Counter())
        return {condition: found[condition] for condition in CONDITIONS}

    @property
    def violations(self) -> tuple[tuple[str, Counterexample], ...]:
        """The role and the counterexample of each violation."""
        return tuple((e.role, found) for e in self.explorations for found in e.found)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Rows that were never applied."""
        rows = self.rows
        return tuple(row.id for row in (*TABLE, AFTER_TERMINATION, NOT_LISTED) if not rows[row.id])

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Properties that were never checked."""
        checks = self.checks
        return tuple(one.name for one in EXPLORED if not checks[one.name])

    @property
    def passed(self) -> bool:
        """Whether everything holds, was looked at, and every seeded fault was caught as declared."""
        complete = not self.violations and not self.uncovered and not self.unchecked
        return complete and all(mutant.as_declared for mutant in self.mutants)

    def body(self) -> dict[str, Any]:
        """The report as plain values; equal for equal runs, except for what is measured in seconds."""
        return {
            "format": 1,
            "bounds": self.bounds,
            "passed": self.passed,
            "states": sum(e.worlds for e in self.explorations),
            "sessions": sum(e.nodes for e in self.explorations),
            "edges": sum(e.edges for e in self.explorations),
            "rows": dict(sorted(self.rows.items())),
            "uncovered_rows": list(self.uncovered),
            "reasons": dict(sorted(self.reasons.items())),
            "properties": dict(sorted(self.checks.items())),
            "unchecked_properties": list(self.unchecked),
            "recovery": self.recoveries,
            "mutants": {mutant.name: mutant.caught_by for mutant in self.mutants},
            "violations": [
                {"role": role, "property": found.property.name, "text": found.text, "path": list(found.path)}
                for role, found in self.violations
            ],
        }


def told(report: Report) -> str:
    """The report in words."""
    lines = [f"bounds {report.bounds}"]
    for e in report.explorations:
        lines.append(
            f"  {e.role:8} {e.worlds:>9,} states  {e.edges:>10,} edges  {e.nodes:>8,} sessions  {e.seconds:6.1f} s"
        )
    checks = report.checks
    for one in EXPLORED:
        lines.append(f"  {one.name:22} {checks[one.name]:>10,} checks   {one.text}")
    recoveries = ", ".join(f"{condition} {number:,}" for condition, number in report.recoveries.items())
    lines.append(f"worlds of an excursion {sum(report.recoveries.values()):,}: ATTACHED is {recoveries}")
    total = len(TABLE) + 2
    lines.append(f"rows covered {total - len(report.uncovered)} of {total}, reasons given {len(report.reasons)}")
    lines += _mutants(report)
    for role, found in report.violations:
        lines += ["", f"VIOLATION {found.property.name} ({role}): {found.text}", *found.path]
    lines += [f"UNCOVERED row {row}: nothing in this exploration applies it" for row in report.uncovered]
    lines += [f"UNCHECKED {name}" for name in report.unchecked]
    lines.append("PASS" if report.passed else "FAIL")
    return "\n".join(lines)


def _mutants(report: Report) -> list[str]:
    if report.skipped:
        return [f"seeded faults not run: {report.skipped}"]
    if not report.mutants:
        return []
    lines = [f"seeded faults caught as declared {sum(m.as_declared for m in report.mutants)} of {len(report.mutants)}"]
    for mutant in report.mutants:
        verdict = "caught" if mutant.as_declared else "MISSED"
        by = mutant.caught_by or "nothing"
        wanted = "" if mutant.as_declared else f", expected {' or '.join(mutant.expected)}: {mutant.text}"
        lines.append(f"  {verdict} {mutant.name:24} by {by}{wanted}  {mutant.seconds:.1f} s")
    return lines
