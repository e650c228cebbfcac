"""Deadlines and clocks of one session (rule A-9): what must have ended by now, and whether reasons and claims are true.

Records carry whole milliseconds, so two instants of them are at most one apart from the truth; what a comparison
allows beyond that is ``ROUNDING_MS``.
"""

from __future__ import annotations

from math import inf

from jumpvpn.audit.auditor.records import Bounds, Record
from jumpvpn.audit.auditor.rules import Rule
from jumpvpn.audit.auditor.track import UNKNOWN, Track
from jumpvpn.properties import Property

ROUNDING_MS = 2
_EXHAUSTED = "recovery_attempts_exhausted"
_JUDGED = frozenset({None, "lifetime", "key_age", "transport_ttl", "episode", "volatile_dwell", "recovery_window"})
"""Deadlines whose start and span are in the records; a handshake's and an attempt's are not."""


_EVENTS = {
    "lifetime": "LifetimePassed", "key age": "KeysExpired", "transport TTL": "TransportTtlPassed",
    "episode bound": "EpisodePassed", "recovery window": "RecoveryWindowPassed", "dwell in VOLATILE": "DwellPassed",
}  # fmt: skip


def begin(track: Track, record: Record, tolerance: int) -> None:
    """A commit begins: time has not run backwards, and no deadline was left behind."""
    clock = (record.node_id, record.boot_id)
    track.lapsed = 0 < track.owner < record.owner_epoch
    if clock != track.clock:
        if track.clock is not None:
            track.carry_clocks(record.mono_ms)
        track.clock = clock
    elif record.mono_ms < track.mono:
        track.docket.fail(Rule.DEADLINE, record.seq, "the node's clock ran backwards", Property.CLOCKS)
    node = track.node
    if node is not None and node.run != track.run:
        if track.version and track.role == "s":  # a new process works under the policy that it was started with
            track.bounds = node.announced.get(record.policy_digest)
            track.sure = track.bounds is not None
        track.run = node.run
    if record.mono_ms > track.due + ROUNDING_MS:
        track.overdue = track.due_name
        if record.mono_ms > track.due + tolerance:
            _late(track, record, tolerance)
    track.mono = record.mono_ms


def first_row(track: Track, record: Record, event: str, rank: dict[str, int]) -> None:
    """The first row of a commit that comes after a deadline: that deadline's own, or one of a higher-ranking input.

    A new owner's claim comes before everything, because whatever it does it does as the owner; the deadline's row
    follows in the same commit, as ``end`` sees to.
    """
    name, track.overdue = track.overdue, ""
    if track.lapsed:
        return
    mine, due = rank.get(event), rank.get(_EVENTS[name])
    if mine is not None and due is not None and mine > due:
        text = (
            f"the {name} had passed {record.mono_ms - track.due:.0f} ms before and outranks {event}, which was applied"
        )
        track.docket.fail(Rule.DEADLINE, record.seq, text, _promise(name))


def moved(track: Track, record: Record, before: str, after: str, deadline_of: dict[str, str]) -> None:
    """A change of state: its claims and its reason are true; the clocks of the new state start."""
    data, now = record.data, record.mono_ms
    track.checks[9] += 1
    claim(track, record, "dwell_ms", data.dwell_ms, "entered")
    claim(track, record, "transportless_ms", data.transportless_ms, "transportless")
    claim(track, record, "episode_ms", data.episode_ms, "episode")
    name = deadline_of.get(record.reason or "")
    if name is not None or record.reason == _EXHAUSTED:
        _truth(track, record, name, before, after)
    _attempts(track, record, before, after)
    if before == "ATTACHED" and after != "TERMINATED":
        track.episode = now
    if before == "BIRTH":
        track.keys = now
    if after == "ATTACHED":
        track.episode = track.transportless = None
        track.hold_down = track.bounds.hold_down_ms if track.bounds is not None else 0
    elif after == "RECOVERING":
        track.rate_limit = track.bounds.switches_60s if track.bounds is not None else 0
    track.attempt_open = False
    track.entered = now
    if data.bounds is not None:
        rebound(track, record, data.bounds, tightened=False)


def end(track: Track, record: Record) -> None:
    """A commit ends: no deadline that had passed was left running by it; the next one is found."""
    if track.ended or not track.sure or track.bounds is None:
        track.due = track.turned_late = inf
        return
    due, name = _next(track, track.bounds)
    track.turned_late = UNKNOWN
    track.due, track.due_name = due, name
    if record.mono_ms > due + ROUNDING_MS:
        over = record.mono_ms - due
        promise = _promise(name)
        track.docket.fail(
            Rule.DEADLINE, record.seq, f"the {name} had passed {over:.0f} ms before, and the commit let it run", promise
        )


def rebound(track: Track, record: Record, bounds: Bounds, *, tightened: bool) -> None:
    """The session goes on under other bounds; none that is running may have grown."""
    old = track.bounds
    track.checks[13] += 1
    if old is not None and track.sure:
        running = ["lifetime_ms", "key_age_ms"]
        if tightened and track.state != "ATTACHED":
            running += ["transport_ttl_ms", "episode_ms", "window_ms", "volatile_ms", "switches_60s", "attempts"]
        grown = [name for name in running if getattr(bounds, name) > getattr(old, name)]
        if grown:
            text = f"a running bound grew: {', '.join(grown)}"
            track.docket.fail(Rule.POLICY, record.seq, text, Property.CLOCKS)
    track.bounds, track.sure = bounds, True
    if track.state == "RECOVERING":
        track.rate_limit = max(track.rate_limit, bounds.switches_60s)


def unbound(track: Track, now: int, *, at_latest: bool = False) -> None:
    """The binding is gone: the transportless clock starts unless it runs; ``at_latest``: it may have begun before."""
    if track.transportless is None:
        if at_latest:
            track.at_latest("transportless", now)
        else:
            track.transportless = now


def _next(track: Track, bounds: Bounds) -> tuple[float, str]:
    due, name = inf, ""
    state = track.state
    for start, span, word in (
        (track.born, bounds.lifetime_ms, "lifetime"),
        (track.keys, bounds.key_age_ms, "key age"),
        (track.transportless, bounds.transport_ttl_ms, "transport TTL"),
        (track.episode, bounds.episode_ms, "episode bound"),
    ):
        if start is not None and start + span < due:
            due, name = start + span, word
    if state == "RECOVERING" and track.entered + bounds.window_ms < due:
        due, name = track.entered + bounds.window_ms, "recovery window"
    elif state == "VOLATILE" and track.entered + bounds.volatile_ms < due:
        due, name = track.entered + bounds.volatile_ms, "dwell in VOLATILE"
    return due, name


def _promise(name: str) -> Property:
    return Property.BOUNDED_RECOVERY if name in ("recovery window", "dwell in VOLATILE") else Property.FINITE


def turned(track: Track, record: Record, tolerance: int) -> None:
    """The node lane tells of a turn of this session: whoever takes one after a deadline must act on it."""
    if record.mono_ms > track.due + tolerance and track.turned_late == UNKNOWN:
        track.turned_late = record.mono_ms


def _late(track: Track, record: Record, tolerance: int) -> None:
    """The first commit after a deadline came late: a fault if the session had a turn meanwhile, else nobody can tell.

    A machine that slept and a commit that waited for its store look the same from outside: nothing was written.
    """
    due, name, now, node = track.due, track.due_name, record.mono_ms, track.node
    if track.lapsed or (node is not None and node.started_between(due, now)):
        return
    if node is not None and node.troubled_since(due - tolerance):
        return
    if track.turned_late < now - tolerance:
        text = f"the {name} passed {now - due:.0f} ms before; the session had a turn meanwhile and was not ended by it"
        track.docket.fail(Rule.DEADLINE, record.seq, text, _promise(name))
        return
    text = "whether the node slept or waited for its store cannot be decided"
    track.docket.miss(f"the {name} passed {now - due:.0f} ms before the node acted; {text}", record.seq)


def claim(track: Track, record: Record, name: str, claimed: float | None, clock: str) -> None:
    """What a record says of a time is what the records before it show; of a carried clock they show the least."""
    start: float | None = getattr(track, clock)
    if claimed is None or start == UNKNOWN:
        return
    elapsed = 0.0 if start is None else record.mono_ms - start
    if claimed > elapsed and track.is_carried(clock):
        return
    if abs(claimed - elapsed) > ROUNDING_MS:
        text = f"{name} says {claimed:g}, the records say {elapsed:g}"
        track.docket.fail(Rule.DEADLINE, record.seq, text, Property.CLOCKS)


def _truth(track: Track, record: Record, name: str | None, before: str, after: str) -> None:
    """A reason that names a deadline is only true once that deadline has passed."""
    if name not in _JUDGED:
        return
    bounds = track.bounds
    if bounds is None or not track.sure:
        track.undecided = True
        return
    clock, span = _measured(bounds, name, before, after)
    start: float | None = getattr(track, clock) if clock else None
    if name is None and track.attempts is not None and track.attempts < bounds.attempts:
        text = f"{track.attempts} of {bounds.attempts} attempts were used"
        track.docket.fail(Rule.DEADLINE, record.seq, f"{record.reason} is not true: {text}", Property.BOUNDED_RECOVERY)
    if span < 0 or start == UNKNOWN:
        return
    elapsed = record.mono_ms - start if start is not None else -1
    if elapsed < span - ROUNDING_MS and not track.is_carried(clock):
        text = "that clock does not run" if start is None else f"{elapsed:.0f} of {span} ms had passed"
        track.fail(Rule.DEADLINE, record.seq, f"{record.reason} is not true: {text}")


def _measured(bounds: Bounds, name: str | None, before: str, after: str) -> tuple[str, int]:
    """Clock and span of the deadline that a change of state names; span -1 if it names none."""
    if after == "TERMINATED":
        ends = {
            "lifetime": ("born", bounds.lifetime_ms), "key_age": ("keys", bounds.key_age_ms),
            "transport_ttl": ("transportless", bounds.transport_ttl_ms), "episode": ("episode", bounds.episode_ms),
        }  # fmt: skip
        return ends.get(name or "", ("", -1))
    if name == "volatile_dwell" and before == "VOLATILE":
        return "entered", bounds.volatile_ms
    if name == "recovery_window" and before == "RECOVERING":
        return "entered", bounds.window_ms
    return "", -1


def _attempts(track: Track, record: Record, before: str, after: str) -> None:
    was = track.attempts
    if after == "ATTACHED" or (before == "ATTACHED" and after == "VOLATILE"):
        track.attempts = 0
    elif after == "RECOVERING" and was is not None:
        track.attempts = was + 1
        if track.sure and track.bounds is not None and before == "DEGRADED" and was >= track.bounds.attempts:
            text = f"attempt {was + 1} of an episode that allows {track.bounds.attempts}"
            track.docket.fail(Rule.DEADLINE, record.seq, text, Property.BOUNDED_RECOVERY)
    claimed = record.data.attempts
    if was is None or claimed is None:
        return
    if claimed != (track.attempts or was):
        text = f"attempts says {claimed}, the records say {track.attempts or was}"
        track.docket.fail(Rule.DEADLINE, record.seq, text, Property.CLOCKS)
