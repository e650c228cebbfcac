"""What single state-lane events do to a session: bindings, proofs, budgets, epochs (A-4 to A-8, A-12)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from jumpvpn.audit.auditor import clocks
from jumpvpn.audit.auditor.owners import wrong_cause
from jumpvpn.audit.auditor.records import Record
from jumpvpn.audit.auditor.rules import Docket, Rule
from jumpvpn.audit.auditor.track import NONCES_MAX, Track
from jumpvpn.properties import Property

MINUTE_MS = 60_000
_OWNER_CHANGED = "OwnerChanged"
_ENDINGS = frozenset({"LifetimePassed", "KeysExpired", "TransportTtlPassed", "EpisodePassed"})
_RATE = "switch_rate_limited"
_COOLDOWN = "cooldown_active"
SWITCHES_MAX = 1024  # policy allows at most 600 in a minute

Effect = Callable[[Track, Record], None]


def attached(track: Track, record: Record, checks: list[int]) -> None:
    """A row ends in ATTACHED: a binding covers it, and a row that led there brought binding and proof."""
    checks[5] += 1
    if track.bound is False:
        track.fail(Rule.BINDING, record.seq, "ATTACHED without a binding")
    if track.entering is None:
        return
    checks[6] += 1
    if not track.rebinds:
        track.fail(Rule.BINDING, record.seq, "the way into ATTACHED names no binding")
    if track.entering != "BIRTH" and not track.proof:
        track.fail(Rule.PROOF, record.seq, "a way into ATTACHED without proof")
    track.entering = None


def owner(track: Track, record: Record) -> None:
    """The owner's term differs from before: it rises by one, by a change of owner."""
    track.checks[12] += 1
    row, was, term = track.row, track.owner, record.owner_epoch
    if was and term < was:
        track.fail(Rule.EPOCH, record.seq, f"owner epoch {term} after {was}")
    elif was and row is not None and row.event != _OWNER_CHANGED:
        track.fail(Rule.EPOCH, record.seq, f"the owner's epoch rises in row {row.id}, which changes no owner")
    elif was:
        if term > was + 1:
            track.fail(Rule.EPOCH, record.seq, f"owner epoch {term} after {was}: the chain has no owner in between")
        track.owner_node, track.owned_at = record.node_id, record.seq
        track.seen_version = 0
        track.claimant = ""
    track.owner = term


def writer(track: Track, record: Record) -> None:
    """Whoever writes owns the session: it acquired the term, or the session was born there.

    What outranks a change of owner stands before it in its commit, and may end the session instead.
    """
    track.checks[12] += 1
    if not track.owner_node:
        track.owner_node, track.owned_at = record.node_id, record.seq
    elif record.node_id not in (track.owner_node, track.claimant) and not _ends_for_all(track):
        whose = f"whose owner is {track.owner_node} since {record.chain}/{track.owned_at}"
        text = f"node {record.node_id} writes under owner epoch {record.owner_epoch}, {whose}"
        track.docket.fail(Rule.EPOCH, record.seq, text, Property.SINGLE_BINDING)


def _ends_for_all(track: Track) -> bool:
    return track.row is not None and track.row.event in _ENDINGS


def recent(track: Track, now: int, *, margin: int) -> int:
    """Switches and rebindings within the last 60 s and ``margin`` ms, as recorded."""
    return sum(1 for at in track.switches if now - at < MINUTE_MS + margin)


def rate_denied(track: Track, record: Record, docket: Docket | None = None) -> None:
    """A denial by rate or hold-down says the truth about the budget. A gateway's word is judged in its own record.

    ``docket`` is that of the record's chain if it is not the session's.
    """
    data, now = record.data, record.mono_ms
    docket = docket or track.docket
    if data.by == "gateway" or data.first_ms is not None:
        return
    if record.reason == _RATE:
        track.checks[8] += 1
        limit = data.limit
        if limit is None and track.sure and track.bounds is not None:
            limit = track.bounds.switches_60s
        counted = recent(track, now, margin=clocks.ROUNDING_MS) if track.switches_known else limit
        claimed = counted if data.switch_count_60s is None else data.switch_count_60s
        if limit is not None and counted is not None and claimed is not None and min(counted, claimed) < limit:
            text = f"{min(counted, claimed)} of {limit} switches in 60 s"
            docket.fail(Rule.RATE, record.seq, f"denied by rate, but there were {text}")
    elif record.reason == _COOLDOWN and data.limit is not None and track.role == "c" and track.hold_until > -inf:
        track.checks[8] += 1
        if now > track.hold_until + clocks.ROUNDING_MS:
            docket.fail(Rule.RATE, record.seq, "denied by hold-down, which was over")


def _created(track: Track, record: Record) -> None:
    data = record.data
    track.checks[4] += 1
    if track.created:
        track.fail(Rule.IDENTITY, record.seq, "the session is created a second time")
    track.created = True
    track.client = data.client_id_hash
    track.born = track.keys = track.entered = record.mono_ms
    if data.role is not None and (data.role == "client") != (track.role == "c"):
        track.fail(Rule.IDENTITY, record.seq, f"a {data.role} writes into the chain {record.chain}")
    if data.bounds is not None:
        clocks.rebound(track, record, data.bounds, tightened=False)
    else:
        track.undecided = True


def _terminated(track: Track, record: Record) -> None:
    track.checks[4] += 1
    if track.state != "TERMINATED":
        track.fail(Rule.IDENTITY, record.seq, f"session.terminated in {track.state}")
    track.ended = True
    track.bound = False
    clocks.claim(track, record, "session_age_ms", record.data.session_age_ms, "born")


def _attached(track: Track, record: Record) -> None:
    if track.reattached:
        _same_path(track, record, "attached")
    else:
        _epoch(track, record, record.data.epoch)
    _bind(track, record)


def _switch(track: Track, record: Record) -> None:
    data, transport = record.data, record.transport
    if transport is None or data.to_id != transport.id:
        track.fail(Rule.BINDING, record.seq, "the switch does not name the transport that it leads to")
    if track.incumbent is not None and data.from_id != track.incumbent:
        track.fail(Rule.BINDING, record.seq, f"a switch from {data.from_id}, while {track.incumbent} was bound last")
    if data.to_id == data.from_id:
        track.fail(Rule.BINDING, record.seq, f"a switch from {data.from_id} to itself")
    if not track.reattached:
        track.fail(Rule.PROOF, record.seq, "a switch without a reattach")
    _spend(track, record)
    now = record.mono_ms
    if track.role == "c":
        if track.was_bound and now < track.hold_until - clocks.ROUNDING_MS:
            left = track.hold_until - now
            track.fail(Rule.RATE, record.seq, f"a switch from a living binding {left:.0f} ms before hold-down was over")
        track.hold_until = now + track.hold_down if track.sure else -inf
    _bind(track, record)


def _rebound(track: Track, record: Record) -> None:
    _same_path(track, record, "rebound")
    track.proof = True
    _spend(track, record)
    _bind(track, record)


def _revalidated(track: Track, record: Record) -> None:
    _same_path(track, record, "revalidated")
    track.proof = True
    _bind(track, record)


def _same_path(track: Track, record: Record, word: str) -> None:
    if track.incumbent is not None and (record.transport is None or record.transport.id != track.incumbent):
        name = record.transport.id if record.transport is not None else "nothing"
        track.fail(Rule.BINDING, record.seq, f"{name} is {word}, while {track.incumbent} was bound last")


def _bind(track: Track, record: Record) -> None:
    transport = record.transport
    track.checks[5] += 1
    if transport is None:
        track.fail(Rule.BINDING, record.seq, f"{record.event} names no transport")
        return
    if track.epoch is not None and transport.binding_gen != track.epoch:
        text = f"the binding is of epoch {transport.binding_gen}, the session's is {track.epoch}"
        track.fail(Rule.BINDING, record.seq, text)
    track.bound = track.rebinds = True
    track.incumbent = transport.id


def _dead(track: Track, record: Record) -> None:
    track.checks[5] += 1
    if track.bound is False:
        track.fail(Rule.BINDING, record.seq, "the bound transport died, but none was bound")
    _same_path(track, record, "dead")
    track.bound = False
    clocks.unbound(track, record.mono_ms)


def _acquired(track: Track, record: Record) -> None:
    track.checks[12] += 1
    row = track.row
    if record.data.epoch is not None and record.data.epoch != record.owner_epoch:
        track.fail(Rule.EPOCH, record.seq, f"acquired epoch {record.data.epoch}, written under {record.owner_epoch}")
    if row is None or row.event != _OWNER_CHANGED:
        return
    wrong = wrong_cause(record)
    if wrong is not None:
        track.fail(Rule.EPOCH, record.seq, wrong)
    _versions_left_out(track, record)
    if track.state == "ATTACHED":
        track.fail(Rule.EPOCH, record.seq, "a new owner inherits ATTACHED")
    if track.state != "BIRTH":
        track.bound = False
        clocks.unbound(track, record.mono_ms, at_latest=True)
    track.attempt_open = False
    track.undecided = track.undecided or not track.sure


def _versions_left_out(track: Track, record: Record) -> None:
    """A new owner may leave out the versions that the client proved to know, and no other."""
    before, floor = track.jumped_from, record.data.floor or 0
    track.jumped_from = None
    if before is None:  # the row's first record carried the version that was due
        if floor >= record.state_version:
            text = f"version {record.state_version} is given, and the client proved to know version {floor}"
            track.fail(Rule.VERSION, record.seq, text)
    elif record.state_version != floor + 1:
        known = f"the client proved to know version {floor}" if floor else "the client proved nothing newer"
        track.fail(Rule.VERSION, record.seq, f"version {record.state_version} after {before}, but {known}")


def _rotated(track: Track, record: Record) -> None:
    if track.bound is False:
        track.fail(Rule.BINDING, record.seq, "keys are rotated without a binding")
    _epoch(track, record, record.data.key_epoch)
    clocks.claim(track, record, "age_ms", record.data.age_ms, "keys")
    track.keys = record.mono_ms


def _epoch(track: Track, record: Record, epoch: int | None) -> None:
    """A new epoch of keys; it only rises."""
    track.checks[12] += 1
    if epoch is None:
        track.fail(Rule.EPOCH, record.seq, f"{record.event} names no epoch")
        return
    if track.epoch is not None and epoch <= track.epoch:
        track.fail(Rule.EPOCH, record.seq, f"epoch {epoch} after {track.epoch}")
    track.epoch = epoch


def _result(track: Track, record: Record) -> None:
    data = record.data
    track.checks[6] += 1
    track.checks[7] += 1
    if data.status != "SUCCESS":
        track.fail(Rule.DENIAL, record.seq, f"a result {data.status} stands among the mutations")
        return
    nonce = data.nonce_id
    track.reattached = True
    if not nonce:
        track.fail(Rule.PROOF, record.seq, "a reattach without a nonce")
    else:
        if nonce in track.nonces:
            track.fail(Rule.PROOF, record.seq, f"nonce {nonce} counts a second time")
        if track.denied.get(nonce, record.state_version) < record.state_version:  # later copies are denied, rightly
            track.fail(Rule.DENIAL, record.seq, f"nonce {nonce} was denied before")
        if len(track.nonces) >= NONCES_MAX:
            del track.nonces[next(iter(track.nonces))]
        track.nonces[nonce] = None
    track.proof = True
    _epoch(track, record, data.epoch)


def _spend(track: Track, record: Record) -> None:
    """One switch or rebinding of the budget."""
    now, switches = record.mono_ms, track.switches
    while switches and (now - switches[0] >= MINUTE_MS + clocks.ROUNDING_MS or len(switches) > SWITCHES_MAX):
        switches.popleft()
    switches.append(now)
    if track.bounds is None or not track.sure:
        track.undecided = True
        return
    track.checks[8] += 1
    count, limit = recent(track, now, margin=-clocks.ROUNDING_MS), track.rate_limit
    if count > limit > 0:
        track.fail(Rule.RATE, record.seq, f"{count} switches in 60 s, the policy allows {limit}")


def _applied(track: Track, record: Record) -> None:
    if record.data.bounds is not None:
        clocks.rebound(track, record, record.data.bounds, tightened=True)
        track.hold_down = record.data.bounds.hold_down_ms
    else:
        track.sure, track.undecided = False, True


ON: dict[str, Effect] = {
    "session.created": _created,
    "session.terminated": _terminated,
    "transport.attached": _attached,
    "transport.switch": _switch,
    "transport.rebound": _rebound,
    "transport.revalidated": _revalidated,
    "transport.dead": _dead,
    "transport.switch_denied": rate_denied,
    "ownership.acquired": _acquired,
    "key.rotated": _rotated,
    "reattach.result": _result,
    "policy.applied": _applied,
}
