"""From a sample of sessions to the load of many: writes by cause, bytes, what gateways and etcd clusters carry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jumpvpn.sim.scale.costs import Costs
from jumpvpn.sim.scale.habits import Habit
from jumpvpn.sim.scale.sample import BIRTH, CAUSES, END, OWNER, REKEY, Deed, live

COALESCED_S = 1.0  # local commits of one session within this reach the shared store as one record
SEALED_BYTES = 212  # key material of one record (wire format, WIRE-37), sealed
KEYS_BYTES = 190  # names and framing of a record, its lines and their later deletion, in etcd
ONCE = (BIRTH, END)  # happen once in a session's life, however long it is


@dataclass(frozen=True, slots=True)
class Cause:
    """Per session-hour: commits, those that wait for the shared store, writes that reach it, bytes that it keeps."""

    commits: float = 0.0
    shared: float = 0.0
    writes: float = 0.0
    bytes: float = 0.0

    def plus(self, other: Cause, weight: float = 1.0) -> Cause:
        """The sum with ``weight`` times the other."""
        return Cause(
            self.commits + weight * other.commits, self.shared + weight * other.shared,
            self.writes + weight * other.writes, self.bytes + weight * other.bytes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """What ``sessions`` of one habit did, by cause; ``record_bytes`` is what etcd keeps of a live one."""

    habit: str
    sessions: int
    causes: Mapping[str, Cause]
    record_bytes: float


def sampled(habit: Habit, sessions: int, seed: int) -> Sample:
    """Let ``sessions`` of one habit live through an hour."""
    causes: dict[str, Cause] = dict.fromkeys(CAUSES, Cause())
    records: list[int] = []
    for number in range(sessions):
        deeds = live(habit, seed * 1_000_003 + number)
        records += [deed.record_bytes for deed in deeds]
        for cause, found in _hour(deeds).items():
            once = 1.0 / habit.hours if cause in ONCE else 1.0
            causes[cause] = causes[cause].plus(found, once / sessions)
    return Sample(habit.name, sessions, causes, sum(records) / len(records) + SEALED_BYTES + KEYS_BYTES)


def _hour(deeds: Sequence[Deed]) -> Mapping[str, Cause]:
    """One session's commits by cause; a local commit rides with what else is written within a second after it."""
    found: dict[str, Cause] = defaultdict(Cause)
    for deed, after in zip(deeds, [*deeds[1:], None], strict=True):
        rides = not deed.shared and after is not None and after.at - deed.at < COALESCED_S
        record = 0 if rides else deed.record_bytes + SEALED_BYTES + KEYS_BYTES
        written = Cause(1.0, float(deed.shared), float(not rides), float(deed.line_bytes + record))
        found[deed.cause] = found[deed.cause].plus(written)
    return found


@dataclass(frozen=True, slots=True)
class Load:
    """The load of ``sessions`` on ``gateways`` that share one etcd cluster.

    Rates are per second. ``etcd_bytes`` is what its file holds: live records, and everything written since the last
    compaction. ``etcd_busy`` is the share of its measured rates, and of one core of each member for telling watchers.
    ``watch_events`` reach each gateway; ``core`` is the share of one core of a gateway's control plane.
    """

    sessions: int
    gateways: int
    writes: float
    shared: float
    by_cause: Mapping[str, float]
    etcd_bytes: float
    etcd_busy: float
    watch_events: float
    core: float
    memory: float


def mean(samples: Sequence[Sample], habits: Sequence[Habit]) -> tuple[Mapping[str, Cause], float]:
    """The causes of an average session, and its record's bytes."""
    shares = {habit.name: habit.share for habit in habits}
    whole = sum(shares.values())
    causes: dict[str, Cause] = dict.fromkeys(CAUSES, Cause())
    record = 0.0
    for sample in samples:
        weight = shares[sample.habit] / whole
        record += weight * sample.record_bytes
        for cause, found in sample.causes.items():
            causes[cause] = causes[cause].plus(found, weight)
    return causes, record


def load(
    causes: Mapping[str, Cause], record_bytes: float, sessions: int, gateways: int, costs: Costs, lease_s: float = 5.0
) -> Load:
    """``sessions`` average sessions on ``gateways`` of one etcd cluster, in calm."""
    hourly = sessions / 3600.0
    rates = {cause: found.writes * hourly for cause, found in causes.items()}
    shared = sum(found.shared for found in causes.values()) * hourly
    writes = sum(rates.values())
    beats = gateways * 3.0 / lease_s  # membership is renewed three times in a lease
    watched = writes + beats
    kept = sum(found.bytes for found in causes.values()) * hourly * costs.etcd.retention_s
    own = sum(_own_us(cause, found, costs) for cause, found in causes.items()) * hourly / gateways
    core = (own + watched * costs.gateway.watch_event_us) / 1e6
    told = watched * gateways / costs.etcd.members * costs.etcd.fanout_us / 1e6
    busy = shared / costs.etcd.writes_per_s + (writes - shared) / costs.etcd.flushed_per_s + told
    return Load(
        sessions=sessions, gateways=gateways, writes=writes, shared=shared, by_cause=rates,
        etcd_bytes=sessions * record_bytes + kept, etcd_busy=busy, watch_events=watched, core=core,
        memory=sessions / gateways * costs.gateway.session_bytes + sessions * costs.gateway.known_bytes,
    )  # fmt: skip


def _own_us(cause: str, found: Cause, costs: Costs) -> float:
    """CPU of a gateway for its own sessions' commits, per session-hour. A birth is two commits, told as one cost."""
    gateway = costs.gateway
    each = {BIRTH: gateway.birth_us / 2, REKEY: gateway.rekey_us, OWNER: gateway.takeover_us}
    return found.commits * each.get(cause, gateway.commit_us)
