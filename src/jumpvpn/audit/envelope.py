"""The envelope of every event record: one JSON object with the same fields, whatever happened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jumpvpn.audit.catalogue import CATALOGUE, Lane, severity_of
from jumpvpn.values import DomainEvent, TransportView, dataclass

ENVELOPE_VERSION = 1
LONGEST_LINE = 1 << 20  # bytes; records aim at 1 KiB, a longer line than this is not ours
LARGEST_INTEGER = 2**53 - 1  # RFC 8785 numbers are IEEE doubles
_BIG = "integers of events stay below 2^53"
_REASON = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Context:
    """Where and when: the node, its clocks in this turn of the loop, the policy in force."""

    node_id: str
    cluster_id: str
    boot_id: str
    time_ms: int
    mono_ms: int
    policy_version: str
    policy_digest: str


class Record(msgspec.Struct, frozen=True):
    """The envelope, its members in the order of canonical JSON; ``Chain.append`` knows chain, hash, prev and seq."""

    boot_id: str = ""
    cause: str | None = None
    chain: str = ""
    cluster_id: str = ""
    contributing: Sequence[str] = ()
    data: Mapping[str, Any] = {}
    event: str = ""
    hash: str = ""
    idx: int = 1
    mono_ms: int = 0
    n: int = 1
    node_id: str = ""
    owner_epoch: int = 0
    policy_digest: str = ""
    policy_version: str = ""
    prev: str = ""
    prev_state: str | None = None
    reason: str | None = None
    seq: int = 0
    session_uid: str | None = None
    severity: int = 0
    state: str | None = None
    state_version: int = 0
    time_ms: int = 0
    transport: Mapping[str, Any] | None = None
    v: int = ENVELOPE_VERSION


_BLANK = Record()  # a copy with changes is made in a third of the time that a call with so many names takes


def build_record(event: DomainEvent, context: Context, *, idx: int = 1, n: int = 1, cause: str | None = None) -> Record:
    """The record without chain fields, ready for ``Chain.append``; ``idx`` of ``n`` within the events of one commit.

    ``cause`` is the record (``chain/seq``) that this one follows from.

    Asserts that the catalogue allows it: a wrong event is our own defect, never the peer's.
    """
    _check(event)
    return msgspec.structs.replace(
        _BLANK,
        event=event.name,
        severity=int(severity_of(event.name, event.state, event.reason)),
        time_ms=context.time_ms,
        mono_ms=context.mono_ms,
        boot_id=context.boot_id,
        session_uid=event.session,
        state_version=event.state_version,
        idx=idx,
        n=n,
        prev_state=event.prev_state,
        state=event.state,
        reason=event.reason,
        contributing=event.contributing,
        node_id=context.node_id,
        cluster_id=context.cluster_id,
        owner_epoch=event.owner_epoch,
        policy_version=context.policy_version,
        policy_digest=context.policy_digest,
        transport=None if event.transport is None else _transport(event.transport),
        cause=cause,
        data={name: value if type(value) is str else _plain(value) for name, value in event.data.items()},
    )


def _transport(info: TransportView) -> dict[str, Any]:
    return {
        "id": info.id,
        "proto": info.proto,
        "local": info.local,
        "peer": info.peer,
        "binding_gen": _plain(info.binding_gen),
    }


def _check(event: DomainEvent) -> None:
    entry = CATALOGUE.get(event.name)
    assert entry is not None, f"event {event.name!r} is not in the catalogue"
    assert event.lane in entry.lanes, f"{event.name} does not belong to lane {event.lane}"
    assert entry.fields.issuperset(event.data), (
        f"{event.name} has no data fields {sorted(set(event.data) - entry.fields)}"
    )
    assert event.reason is None or _REASON.fullmatch(event.reason), f"{event.reason!r} is not a reason code"
    assert max(event.owner_epoch, event.state_version) <= LARGEST_INTEGER, _BIG
    if event.lane == Lane.STATE.value:
        assert event.session is not None, f"{event.name} is in the state lane and names no session"
        assert event.state is not None, f"{event.name} is in the state lane and names no state"


def _plain(value: Any) -> Any:
    """JSON values only; integers must survive every JSON reader."""
    kind = type(value)  # of most values; what inherits from these comes after
    if kind is float:  # RFC 8785 writes 300.0 as 300
        return int(value) if value.is_integer() and abs(value) <= LARGEST_INTEGER else value
    if kind is not bool and isinstance(value, int):
        assert abs(value) <= LARGEST_INTEGER, _BIG
        return value
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise AssertionError(f"an event cannot carry a {type(value).__name__}")
