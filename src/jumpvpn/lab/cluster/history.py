"""Is what happened to a session's record a history of one register? Pure; times are boot time in ns.

Two independent questions. `disorder`: does the store's own order of changes keep the rules of ownership? And
`linearizable`: is there one order of all operations, each between its call and its return, in which every read returns
what the writes before it left? The search is Wing's and Gong's (1993), with Lowe's memory of configurations (2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TERMINATED = "TERMINATED"
_FOREVER = 1 << 62


@dataclass(frozen=True, slots=True)
class StoreChange:
    """One change of a key, in the store's order (`revision`); `record` is what may be told of the value."""

    name: str
    revision: int
    at_ns: int
    gone: bool
    record: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> StoreChange:
        """Read a line of the observer."""
        return cls(told["change"], told["revision"], told["at_ns"], told["gone"], told["record"] or {})

    @property
    def session(self) -> str:
        """The session that this change is of, or nothing."""
        kind, _, name = self.name.partition("/")
        return name if kind in ("live", "dead") else ""


@dataclass(frozen=True, slots=True)
class StoreRead:
    """One linearizable read of a session's record; `version` 0: there was none."""

    session: str
    invoked_ns: int
    returned_ns: int
    revision: int
    version: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> StoreRead:
        """Read a line of the observer."""
        version = (told["record"] or {}).get("version", 0)
        return cls(told["read"], told["invoked_ns"], told["returned_ns"], told["revision"], version)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on a register of versions, between its call and its return.

    A write by compare-and-swap takes the version from `expected` to `value`; a read (`expected` None) returned `value`.
    `returned_ns` may be unknown (None): then it took place at some time after its call, or never.
    """

    invoked_ns: int
    returned_ns: int | None
    value: int
    expected: int | None = None

    @property
    def is_read(self) -> bool:
        """Whether it changed nothing."""
        return self.expected is None


def disorder(changes: Iterable[StoreChange]) -> list[str]:
    """What breaks the rules of ownership in the store's own order, one line each; nothing if all is well.

    For each session: versions, terms and epochs never fall and versions rise with every change; the owner changes
    exactly when the term rises, by one; what is terminated stays so, and is removed from the live ones at once.
    """
    found: list[str] = []
    by_session: dict[str, list[StoreChange]] = {}
    for change in sorted(changes, key=lambda change: change.revision):
        if change.session:
            by_session.setdefault(change.session, []).append(change)
    for session, mine in by_session.items():
        found += [f"session {session[:8]}: {fault}" for fault in _disorder_of(mine)]
    return found


def _disorder_of(changes: Sequence[StoreChange]) -> list[str]:
    found: list[str] = []
    before: StoreChange | None = None
    for change in changes:
        if change.gone:
            removed_with_end = any(
                other.revision == change.revision and other.name.startswith("dead/") for other in changes
            )
            if change.name.startswith("live/") and not removed_with_end:
                found.append(f"removed at revision {change.revision} without being terminated")
            continue
        if before is not None:
            found += _faults_between(before, change)
        before = change
    return found


def _faults_between(old: StoreChange, new: StoreChange) -> list[str]:
    was, now = old.record, new.record
    here = f"at revision {new.revision}"
    found = []
    if was["state"] == TERMINATED:
        found.append(f"changed {here} after it was terminated")
    if now["version"] <= was["version"]:
        found.append(f"version {now['version']} follows {was['version']} {here}")
    found += [
        f"{name} {now[name]} follows {was[name]} {here}"
        for name in ("epoch", "term", "seq")
        if name in now and name in was and now[name] < was[name]
    ]
    if "term" in now and "owner" in now and "term" in was:
        taken = now["term"] - was["term"]
        if taken > 1:
            found.append(f"term {now['term']} follows {was['term']} {here}")
        if taken == 0 and now["owner"] != was["owner"]:
            found.append(f"owner {was['owner']} became {now['owner']} within term {now['term']} {here}")
    return found


def linearizable(operations: Sequence[Operation], initial: int = 0) -> bool:
    """Whether the operations on one register, beginning at `initial`, have an order that explains them all."""
    called = sorted(operations, key=lambda operation: operation.invoked_ns)
    everything = (1 << len(called)) - 1
    certain = sum(1 << index for index, operation in enumerate(called) if operation.returned_ns is not None)
    stack, seen = [(0, initial)], {(0, initial)}
    while stack:
        done, value = stack.pop()
        if done & certain == certain:
            return True
        for index in _minimal(called, everything & ~done):
            operation = called[index]
            after = _applied(operation, value)
            following = (done | 1 << index, after if after is not None else value)
            if after is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return False


def _minimal(operations: Sequence[Operation], left: int) -> list[int]:
    """Those that may come next: called before any other that is left has returned."""
    waiting = [index for index in range(len(operations)) if left >> index & 1]
    first = min((_returned(operations[index]) for index in waiting), default=_FOREVER)
    return [index for index in waiting if operations[index].invoked_ns <= first]


def _applied(operation: Operation, value: int) -> int | None:
    """The register afterwards, or None where the operation could not have succeeded."""
    if operation.is_read:
        return value if operation.value == value else None
    return operation.value if operation.expected == value else None


def _returned(operation: Operation) -> int:
    return _FOREVER if operation.returned_ns is None else operation.returned_ns


def operations_of(session: str, changes: Iterable[StoreChange], reads: Iterable[StoreRead]) -> list[Operation]:
    """The register's history as one client saw it: reads as they were called, writes no later than they were watched.

    A write's call is not visible from outside, so it may have been at any time before: an interval that is too long
    accuses nobody wrongly.
    """
    mine = sorted((c for c in changes if c.session == session), key=lambda change: (change.revision, change.gone))
    found: list[Operation] = []
    version = 0
    for change in mine:
        if change.name.startswith("live/"):
            value = 0 if change.gone else int(change.record["version"])
            found.append(Operation(0, change.at_ns, value, expected=version))
            version = value
    found += [Operation(r.invoked_ns, r.returned_ns, r.version) for r in reads if r.session == session]
    return found
