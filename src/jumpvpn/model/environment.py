"""What may happen next in a world, for each role: a session, two transports each good, lossy or dead, and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from jumpvpn.engine import gateway_plans
from jumpvpn.engine.book import TransportBook
from jumpvpn.engine.place import Place
from jumpvpn.engine.plans import Plans
from jumpvpn.engine.seat import Seat
from jumpvpn.model.bounds import NOW, PEERS, SHORT, TRANSPORTS, A, B
from jumpvpn.model.canon import Ghost
from jumpvpn.model.facts import MINUTE_PASSES, TIME_PASSES
from jumpvpn.policy.model import Policy
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import Instant, SessionId, TransportId

OK, BAD, DEAD = range(3)
WORDS = ("good", "lossy", "dead")
PATHS = tuple((a, b) for a in range(3) for b in range(3))  # how the two transports fare
_LOSS, _RTT = 0.5, 20_000_000  # a lossy transport is above every threshold; both are equally far


@dataclass(frozen=True, slots=True)
class Move:
    """One thing that can happen: facts fed one after the other, in the paths that hold then.

    ``protocol`` moves answer or follow from the machine's own orders; ``time`` moves let a tick pass.
    """

    label: str
    facts: tuple[str, ...]
    paths: tuple[int, int]
    protocol: bool = False
    time: bool = False


class Environment(Protocol):
    """One role's surroundings."""

    def moves(self, session: Session, ghost: Ghost, paths: tuple[int, int]) -> list[Move]:
        """Everything that may happen next."""

    def plan(self, session: Session, paths: tuple[int, int]) -> tuple[str, bool] | None:
        """The fact that follows at rest, and whether it follows at once."""

    def help(self, session: Session, paths: tuple[int, int], moves: list[Move]) -> Move:
        """The move of a world that means well: answers come, nothing else goes wrong."""


def fares(paths: tuple[int, int], transport: TransportId) -> int:
    """How ``transport`` fares."""
    return paths[0] if transport == A else paths[1]


def with_path(paths: tuple[int, int], transport: TransportId, how: int) -> tuple[int, int]:
    """``paths`` with ``transport`` faring ``how``."""
    return (how, paths[1]) if transport == A else (paths[0], how)


def _always(session: Session, ghost: Ghost, paths: tuple[int, int]) -> list[Move]:
    """What may happen to any live session, whatever its role."""
    labels = ["another owner"]
    if session.state in (State.BIRTH, State.ATTACHED):
        labels.append("operator closes")  # elsewhere it is probed: it leads to the same end
    if session.state is State.BIRTH:
        labels = ["operator closes", "the handshake fails"]
    if session.binding is not None:
        labels.append("fresh keys")
    moves = [Move(label, (label,), paths) for label in labels]
    moves.append(_reload(session, paths))
    if ghost.switches:
        moves.append(Move(MINUTE_PASSES, (), paths))
    moves.append(Move(TIME_PASSES, _detected(session, paths), paths, time=True))
    return moves


def _reload(session: Session, paths: tuple[int, int]) -> Move:
    """The other of two policies comes."""
    following = session.next_policy or session.policy
    return _fact("a tighter policy" if following.version == "1.0" else "the first policy", paths)


def _detected(session: Session, paths: tuple[int, int]) -> tuple[str, ...]:
    """Instability of the active transport is seen within one tick."""
    bound = session.binding
    if session.state is State.ATTACHED and bound is not None and fares(paths, bound.transport) == BAD:
        return (f"instability of {SHORT[bound.transport]}",)
    return ()


def _path_moves(session: Session, paths: tuple[int, int]) -> list[Move]:
    """Each transport gets better, worse, or dies; what the engine makes of it is fed."""
    moves = []
    for transport in TRANSPORTS:
        for how in (OK, BAD, DEAD):
            if how != fares(paths, transport):
                name = SHORT[transport]
                facts = _noticed(session, transport, how)
                moves.append(Move(f"{name} becomes {WORDS[how]}", facts, with_path(paths, transport, how)))
    return moves


def _noticed(session: Session, transport: TransportId, how: int) -> tuple[str, ...]:
    name, bound, attempt = SHORT[transport], session.binding, session.attempt
    facts = []
    active = bound is not None and bound.transport == transport
    if how == DEAD and attempt is not None and attempt.transport == transport:
        facts.append(f"the attempt dies with {name}")
    if how == DEAD and active:
        facts.append(f"death of {name}")
    if how == BAD and active and session.state is State.ATTACHED:
        facts.append(f"instability of {name}")
    return tuple(facts)


def _failures(session: Session, paths: tuple[int, int]) -> list[Move]:
    """The running attempt fails for a reason that is not its deadline."""
    attempt = session.attempt
    if attempt is None:
        return []
    name = SHORT[attempt.transport]
    labels = [f"the attempt is forbidden on {name}"]
    if attempt.kind is AttemptKind.SWITCH:
        labels.append("the gateway denies the switch")
    return [Move(label, (label,), paths, protocol=True) for label in labels]


class ClientEnvironment:
    """The client's: the shipped plans choose what is tried, over the shipped selection."""

    def __init__(self) -> None:
        self._plans = {paths: _plans(paths) for paths in PATHS}

    def moves(self, session: Session, ghost: Ghost, paths: tuple[int, int]) -> list[Move]:
        """Everything that may happen next."""
        moves = [*_path_moves(session, paths), *_always(session, ghost, paths), *_failures(session, paths)]
        if session.state is State.BIRTH:
            good = [
                t
                for t in TRANSPORTS
                if fares(paths, t) != DEAD and session.policy.transports.allows(t[:2], "udp", "gw")
            ]
            return moves + [_fact(f"the handshake completes on {SHORT[t]}", paths, protocol=True) for t in good]
        if session.state in (State.ATTACHED, State.VOLATILE):  # the engine refuses the operator's wish elsewhere
            other = B if session.incumbent == A else A
            moves.append(_fact(f"the operator wants {SHORT[other]}", paths))
        attempt = session.attempt
        if attempt is not None and fares(paths, attempt.transport) != DEAD:
            answer = "the gateway grants" if attempt.kind is AttemptKind.SWITCH else "the challenge is answered on"
            moves.append(_fact(f"{answer} {SHORT[attempt.transport]}", paths, protocol=True))
        return moves

    def plan(self, session: Session, paths: tuple[int, int]) -> tuple[str, bool] | None:
        """What the shipped plans feed here; waiting for stability, for better or for a retry is not urgent."""
        attempt, plans = session.attempt, self._plans[paths]
        if attempt is not None and plans.forbids(session, attempt, NOW):
            return f"the attempt is forbidden on {SHORT[attempt.transport]}", True
        plans.bound_path = None
        if session.binding is not None:
            plans.bound_path = 0 if session.binding.transport == A else 1
        return _planned(plans.next_event(session, NOW, None))

    def help(self, session: Session, paths: tuple[int, int], moves: list[Move]) -> Move:
        """Answers come at once, the plans are followed at once, else time passes."""
        return _helpful(moves)


class GatewayEnvironment:
    """The gateway's: the client asks, the shipped validation answers, the shipped plans ask the incumbent for proof."""

    def __init__(self) -> None:
        self._places = {paths: _place(paths) for paths in PATHS}

    def moves(self, session: Session, ghost: Ghost, paths: tuple[int, int]) -> list[Move]:
        """Everything that may happen next."""
        moves = [*_path_moves(session, paths), *_always(session, ghost, paths), *_failures(session, paths)]
        if session.state is State.BIRTH:
            return [*moves, _fact("the handshake completes on A", paths, protocol=True)]
        for transport in TRANSPORTS:
            label = f"a valid reattach request on {SHORT[transport]}"
            moves.append(Move(label, (label,), with_path(paths, transport, OK)))
        bound = session.binding
        if bound is not None and session.state in (State.ATTACHED, State.VOLATILE):
            moves.append(_fact(f"a new address under {SHORT[bound.transport]}", paths))
        attempt = session.attempt
        if attempt is not None and fares(paths, attempt.transport) != DEAD:
            answer = _answer(attempt.kind, SHORT[attempt.transport], session)
            moves.append(_fact(answer, paths, protocol=True))
        return moves

    def plan(self, session: Session, paths: tuple[int, int]) -> tuple[str, bool] | None:
        """What the gateway's shipped plans feed: it never moves a session by itself."""
        return _planned(gateway_plans.next_event(self._places[paths], session, NOW, superseded=False))

    def help(self, session: Session, paths: tuple[int, int], moves: list[Move]) -> Move:
        """A client whose transport is good has nothing to ask; else it asks on a good one that is within its budget."""
        if session.incumbent is not None and fares(paths, session.incumbent) == OK:
            return _helpful(moves)
        used = len(session.switches)
        for move in moves:
            for transport in TRANSPORTS:
                asks = move.label == f"a valid reattach request on {SHORT[transport]}"
                within = transport == session.incumbent or used < session.policy.switching.max_per_minute
                if asks and within and fares(paths, transport) == OK:
                    return move
        return _helpful(moves)


def _answer(kind: AttemptKind, name: str, session: Session) -> str:
    """A rebinding spends the switch budget: the gateway's engine denies it when that is used up."""
    if kind is AttemptKind.REVALIDATE:
        return f"the challenge is answered on {name}"
    within = gateway_plans.may_rebind(session, NOW)
    return f"the new address answers on {name}" if within else "the rate denies the switch"


def _helpful(moves: list[Move]) -> Move:
    wanted = ("the gateway grants", "the challenge is", "the new address", "the handshake completes")
    for move in moves:
        if move.protocol and move.label.startswith(wanted):
            return move
    failing = ("the attempt", "the gateway denies", "the handshake fails")
    for move in moves:
        if move.protocol and not move.label.startswith(failing):
            return move
    return next(move for move in moves if move.time)


def _fact(label: str, paths: tuple[int, int], *, protocol: bool = False) -> Move:
    return Move(label, (label,), paths, protocol=protocol)


def _plans(paths: tuple[int, int]) -> Plans:
    book = TransportBook()
    for index, transport in enumerate(TRANSPORTS):
        how = paths[index]
        condition = Condition.DEAD if how == DEAD else Condition.GOOD
        book.keep(
            Transport(
                id=transport, interface=transport[:2], protocol="udp", gateway="gw", peer=PEERS[0], path=index,
                condition=condition, since=Instant(0), validated_at=Instant(0), heard_at=Instant(0), rtt_ns=_RTT,
                loss_up=_LOSS if how == BAD else 0.0,
            )
        )  # fmt: skip
    return Plans(book)


def _place(paths: tuple[int, int]) -> Place:
    """The gateway's view: it measures no loss of its own, so a lossy transport is one that falls silent."""
    conditions = (Condition.GOOD, Condition.SILENT, Condition.DEAD)
    found = [
        Transport(t, "", "udp", "", PEERS[0], since=Instant(0), condition=conditions[how], validated_at=Instant(0))
        for t, how in zip(TRANSPORTS, paths, strict=True)
    ]
    first = birth(
        SessionId(bytes(16)), Role.GATEWAY, Policy(), NOW, ""
    ).session  # plans look at the session they are given
    return Place(Seat(first), b"", transports={transport.id: transport for transport in found})


_ATTEMPTED = {
    AttemptKind.SWITCH: "a switch is tried to",
    AttemptKind.REVALIDATE: "a proof is asked of",
    AttemptKind.REBIND: "a rebinding is tried on",
}
_DENIALS = {
    "cooldown_active": "a cooldown denies the switch",
    "switch_rate_limited": "the rate denies the switch",
    "policy_denied": "the gateway denies the switch",
}


def _planned(event: Any) -> tuple[str, bool] | None:
    """The label of what the plans feed, and whether at once: stability, better and a retry may be waited for."""
    if event is None or isinstance(event, ev.InstabilitySeen):
        return None  # instability is the world's to show
    return _label(event), not isinstance(event, ev.TransportStabilized | ev.BetterCandidateSeen | ev.ConditionMet)


def _label(event: Any) -> str:
    """The label of the fact that the plans ask for."""
    match event:
        case ev.TransportDied():
            return f"death of {SHORT[event.transport]}"
        case ev.SwitchForced():
            return "policy forbids the transport"
        case ev.BetterCandidateSeen():
            return f"a better candidate is {SHORT[event.transport]}"
        case ev.TransportStabilized():
            return f"stability of {SHORT[event.transport]}"
        case ev.NoCandidate():
            return "nothing is left to try"
        case ev.SwitchDenied():
            return _DENIALS[event.reason.value]
        case ev.AttemptStarted():
            return f"{_ATTEMPTED[event.kind]} {SHORT[event.transport]}"
        case _:
            assert isinstance(event, ev.ConditionMet), event
            return f"the way is free for {SHORT[event.transport]}"
