"""What is judged: the rules, each with its promise, and the words in which a judgement is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from jumpvpn.properties import Property

if TYPE_CHECKING:
    from jumpvpn.audit.auditor.owners import Tenure

FINDINGS_MAX = 16  # per chain: a chain that is wrong that often is wrong; the count goes on
NOTES_MAX = 8


class Rule(Enum):
    """One rule of the audit: its number, the promise it stands for, what it looks at."""

    CHAIN = (1, Property.CHAIN, "genesis, order, links, hashes, forks, checkpoints, and how the chain ends")
    REPLAY = (2, Property.EDGES, "each commit is rows of the table, each with all its events", Property.VISIBLE)
    VERSION = (3, Property.VERSION, "each mutating row raises the version by one")
    IDENTITY = (
        4,
        Property.IDENTITY,
        "created once, nothing after the end, one live session per device",
        Property.ABSORBING,
    )
    BINDING = (5, Property.SINGLE_BINDING, "ATTACHED is always covered by exactly one binding")
    PROOF = (6, Property.PROOF, "each way into ATTACHED has its proof, and a proof counts once")
    DENIAL = (7, Property.REJECTION, "what was denied changed nothing")
    RATE = (
        8,
        Property.BOUNDED_SWITCHING,
        "switches stay within budget and hold-down; denials by rate were at the limit",
    )
    DEADLINE = (
        9, Property.FINITE, "deadlines end what they bound, in time and truthfully", Property.BOUNDED_RECOVERY,
        Property.CLOCKS,
    )  # fmt: skip
    LIVENESS = (10, Property.DEATH_IS_NOT_THE_END, "the death of a transport alone ends no session")
    PRIORITY = (11, Property.PRIORITY, "no contributing cause outranks the one that decided")
    EPOCH = (12, Property.EPOCH, "epochs never fall, a binding never survives its owner")
    POLICY = (13, Property.POLICY_IN_FORCE, "every policy in use was announced, no running bound grows")
    PAIRING = (14, Property.PAIRED, "each attempt ends before the next begins")

    def __init__(self, number: int, promise: Property, text: str, *also: Property) -> None:
        self.number = number
        self.promise = promise
        self.text = text
        self.also = also  # further promises that the same checks look after

    @property
    def id(self) -> str:
        """``A-1`` .. ``A-14``."""
        return f"A-{self.number}"


class Outcome(Enum):
    """The verdict on one chain."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a secret
    FAIL = "FAIL"
    INCOMPLETE = "INCOMPLETE"


def counted(count: int, thing: str, things: str = "") -> str:
    """``1 record``, ``2 records``; ``things`` is the plural where it is not just an s more."""
    return f"{count} {thing}" if count == 1 else f"{count} {things or f'{thing}s'}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule, at one record."""

    rule: Rule
    promise: Property
    chain: str
    seq: int
    text: str

    def __str__(self) -> str:
        return f"FAIL {self.rule.id} {self.promise.name} at {self.chain}/{self.seq}: {self.text}"


def spans(findings: Iterable[Finding]) -> list[tuple[Finding, int]]:
    """Findings that say the same of records in a row as one: the first, and the number of the last record."""
    found: list[tuple[Finding, int]] = []
    for finding in findings:
        first, last = found[-1] if found else (finding, -1)
        if finding.seq == last + 1 and replace(finding, seq=first.seq) == first:
            found[-1] = (first, finding.seq)
        else:
            found.append((finding, finding.seq))
    return found


@dataclass(frozen=True, slots=True)
class Gap:
    """What cannot be decided: records ``first`` to ``last`` (0: none in particular), and why."""

    chain: str
    first: int
    last: int
    text: str

    def __str__(self) -> str:
        where = f"{self.chain}/{self.first}..{self.last}" if self.last > self.first else f"{self.chain}/{self.first}"
        return f"INCOMPLETE at {where if self.first else self.chain}: {self.text}"


@dataclass(slots=True)
class Docket:
    """Everything that was found about one chain."""

    chain: str
    findings: list[Finding] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: int = 0

    def fail(self, rule: Rule, seq: int, text: str, promise: Property | None = None) -> None:
        """A rule is broken at record ``seq``."""
        self.failures += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(rule, promise or rule.promise, self.chain, seq, text))

    def miss(self, text: str, first: int = 0, last: int = 0) -> None:
        """Something cannot be decided."""
        if len(self.gaps) < FINDINGS_MAX:
            self.gaps.append(Gap(self.chain, first, max(first, last), text))

    def note(self, text: str) -> None:
        """Worth saying, changes no verdict."""
        if len(self.notes) < NOTES_MAX and text not in self.notes:
            self.notes.append(text)

    @property
    def outcome(self) -> Outcome:
        """A broken rule stays broken whatever is missing; what is missing never breaks a rule."""
        if self.failures:
            return Outcome.FAIL
        return Outcome.INCOMPLETE if self.gaps else Outcome.PASS


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one chain. ``state`` and ``version`` are the last that it shows, for a session.

    ``owners`` are those of a session that had more than one, in their order.
    """

    chain: str
    outcome: Outcome
    records: int
    end: str
    findings: tuple[Finding, ...] = ()
    gaps: tuple[Gap, ...] = ()
    notes: tuple[str, ...] = ()
    failures: int = 0
    state: str | None = None
    version: int = 0
    reason: str | None = None
    owners: tuple[Tenure, ...] = ()

    def __str__(self) -> str:
        return f"{self.outcome.value} {self.chain} ({self.records} records, {self.end})"
