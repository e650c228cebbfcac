"""The safety properties, checked at every turn: from records and events only, as statements of their own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.seat import STORE_RETRY, Seat
from jumpvpn.properties import Property
from jumpvpn.session.state import Session, State
from jumpvpn.sim import rules
from jumpvpn.sim.commits import CommitChecks
from jumpvpn.sim.gateway_plane import path_of
from jumpvpn.sim.life import Life
from jumpvpn.sim.plane import NEVER
from jumpvpn.sim.store import COMMITTED
from jumpvpn.sim.violation import Violated
from jumpvpn.values import SECOND, DomainEvent

if TYPE_CHECKING:
    from jumpvpn.sim.world import World


class Checker:
    """Watches one world. Every method raises ``Violated`` for a broken promise; ``checks`` counts what was asked."""

    def __init__(self, world: World) -> None:
        self.checks: Counter[str] = Counter()
        self.lives: dict[tuple[str, str], Life] = {}
        self.made: dict[str, set[str]] = {}  # nonces that a session's client drew
        self.ending: set[tuple[str, str]] = set()  # who was asked by an operator to end what
        self.facts: dict[str, list[inp.PathValidated]] = {"client": [], "gateway": []}
        self.addresses: dict[str, set[str]] = {}  # from which a session's client has answered the gateway
        self._world = world
        self._commits = CommitChecks(self)
        self._nearest = NEVER
        self._at_once: dict[str, tuple[int, int]] = {}
        self._ticks: dict[str, tuple[int, int]] = {}
        self._quiet: bool = False  # nothing is due and the input proves nothing: no commit may follow
        self._idle: Session | None = None  # the session before a turn that begins at once, else None

    # --- what the world reports --------------------------------------------------------------------------------------

    def started(self, side: str) -> None:
        """A process begins: its plans are gone, its records stay."""
        self.facts[side].clear()
        for life in self.lives.values():
            if life.side == side:
                life.attempt, life.fails_until = None, 0
                if side == "client":
                    life.due = NEVER
        self._refresh()

    def restored(self, session: Session) -> None:
        """The gateway's new process read ``session`` from the store."""
        life = self.lives[("gateway", session.uid)]
        before = life.record
        assert before is not None, "only what was committed can be read"
        same = (before.version, before.state, before.epoch, before.binding, before.transportless_at)
        now = (session.version, session.state, session.epoch, session.binding, session.transportless_at)
        self.require(Property.IDENTITY, same == now, f"the record as it was written, {same}", f"read {now}")
        life.record = session
        life.fails_until = self._world.now
        life.look_ahead()
        self._refresh()

    def asked(self, uid: str, nonce: str) -> None:
        """The client made a reattach request."""
        self.made.setdefault(uid, set()).add(nonce)

    def was_copied(self, uid: str, order: out.Commit) -> bool:
        """Whether the request that ``order`` grants is not the first with its nonce."""
        plane = self._world.gateway_planes.get(uid)
        waiting = plane.pending.get(order.secret.number) if plane is not None and order.secret is not None else None
        return waiting is None or waiting.copied or not waiting.fresh

    def was_proved(self, uid: str, order: out.Commit) -> bool:
        """Whether the address of the request that ``order`` grants has ever answered a challenge or brought a token."""
        plane = self._world.gateway_planes.get(uid)
        waiting = plane.pending.get(order.secret.number) if plane is not None and order.secret is not None else None
        if waiting is None:
            return False
        known = self.addresses.setdefault(uid, set())
        if waiting.request.token == waiting.address.encode():
            known.add(waiting.address)
        return waiting.address in known

    def woke(self, side: str) -> None:
        """An engine is about to be woken because it asked for it."""
        now = self._world.now
        at, count = self._at_once.get(side, (-1, 0))
        count = count + 1 if at == now else 1
        self._at_once[side] = (now, count)
        self.require(
            Property.PROGRESS, count <= rules.TICKS_AT_ONCE, f"at most {rules.TICKS_AT_ONCE} wake-ups at one instant",
            f"the {side} asks for one more",
        )  # fmt: skip
        since, ticks = self._ticks.get(side, (now, 0))
        self._ticks[side] = (now, 1) if now - since >= SECOND else (since, ticks + 1)
        self.require(
            Property.PROGRESS, ticks < rules.TICKS_PER_SECOND, f"at most {rules.TICKS_PER_SECOND} wake-ups in a second",
            f"the {side} asks for more",
        )  # fmt: skip

    def before(self, side: str, event: Any, due: int | None) -> None:
        """An input is about to be handled; ``due`` is when the engine wanted to be woken."""
        session, seat = self._seat_for(side, event)
        self._idle = session if seat is not None and seat.pending is None else None
        self._quiet = False
        if isinstance(event, inp.HandshakeOffered):  # whoever completes it has received the answer there
            self.addresses[event.session_id.uid] = {event.peer}
        elif isinstance(event, inp.PathValidated):
            self.facts[side].append(event)
            if side == "gateway":
                self.addresses.setdefault(event.uid, set()).add(event.peer)
        elif isinstance(event, inp.OperatorTerminate):
            self.ending.add((side, event.uid))
        elif isinstance(event, inp.ReattachAsked):
            proven = event.uid is not None and event.proof and event.fresh_nonce
            failing = any(life.failing for life in self.lives.values() if life.side == side)
            self._quiet = not proven and not failing and (due is None or due > self._world.now)

    def after(self, side: str, event: Any, orders: list[Any]) -> None:
        """The input has been handled and its orders carried out."""
        if self._quiet:
            commits = [order for order in orders if isinstance(order, out.Commit)]
            self.require(
                Property.REJECTION, not commits, "no change by a request without proof", f"{len(commits)} commits"
            )
        if self._idle is not None:
            self._visible(event, self._idle, orders)
            self._wish(side, event, self._idle, orders)
        seats = self._seats(side)
        if not any(seat.waiting for seat in seats):
            self.facts[side].clear()
        for seat in seats:
            self._as_recorded(side, seat)

    def committed(self, side: str, order: out.Commit, result: str) -> None:
        """The store has decided about ``order``; a commit that won is judged before it is kept."""
        if result != COMMITTED:
            return
        life = self.lives.get((side, order.uid)) or Life(side, order.uid)
        self.lives[(side, order.uid)] = life
        self._commits.judge(life, order, self._world.now)
        life.record, life.failing = order.session, False
        life.look_ahead()
        self._refresh()

    def stored(self, side: str, order: out.Commit, result: str) -> None:
        """The engine is about to hear how its commit ended."""
        life = self.lives.get((side, order.uid))
        if life is not None and result != COMMITTED:
            life.fails_until, life.failing = self._world.now + STORE_RETRY, True

    def emitted(self, side: str, events: tuple[DomainEvent, ...]) -> None:
        """Node-lane events outside a commit."""
        for event in events:
            self.require(Property.VERSION, event.lane == "N", "state-lane events only with a commit", event.name)
            life = self.lives.get((side, event.session or ""))
            if life is not None:
                self._commits.follow(life, event)

    def overdue(self) -> None:
        """Some time has passed and everything due was handled: no deadline may lie behind."""
        now = self._world.now
        if now <= self._nearest:
            return
        for life in self.lives.values():
            if life.due < now and self._able(life):
                prop, name = life.due_for
                late = (now - life.due) / SECOND
                self.require(
                    prop, False, f"an end to {life.state} when {name} has passed",
                    f"the {life.side} is {late:.3f} s late",
                )  # fmt: skip

    # --- the statements ----------------------------------------------------------------------------------------------

    def require(self, prop: Property, holds: bool, expected: str, seen: str) -> None:
        """Count one question about ``prop``; raise unless it holds."""
        self.checks[prop.name] += 1
        if not holds:
            raise Violated(prop, expected, seen)

    def _able(self, life: Life) -> bool:
        """Whether the engine could have acted: its process runs, and no commit holds it up."""
        if life.side == "client" and self._world.asleep:
            return False
        seat = next((s for s in self._seats(life.side) if s.session.uid == life.uid), None)
        return seat is not None and seat.pending is None and self._world.now > life.fails_until

    def _as_recorded(self, side: str, seat: Seat) -> None:
        """What the engine believes is what the store has, and its packet core does what the record says."""
        life = self.lives.get((side, seat.session.uid))
        record = life.record if life is not None else None
        if record is None or seat.pending is not None:
            return
        own = seat.session
        same = own.version == record.version and own.state is record.state and own.binding == record.binding
        self.require(
            Property.VERSION, same and own.epoch == record.epoch, f"the committed record, version {record.version}",
            f"the {side} holds version {own.version} in {own.state.value}",
        )  # fmt: skip
        if own.state.live and own.state is not State.BIRTH:
            self._carries(side, own)

    def _carries(self, side: str, own: Session) -> None:
        """The packet core sends on the bound path and no other; without a binding on none."""
        world = self._world
        if side == "client":
            bound = world.client_plane.index(own.binding.transport) if own.binding is not None else None
            active = world.client_plane.active
        else:
            plane = world.gateway_planes.get(own.uid)
            bound = path_of(own.binding.transport) if own.binding is not None else None
            # A takeover that the store has not taken yet: the record names a binding that nobody may use.
            active = plane.active if plane is not None and plane.key is not None else bound
        self.require(
            Property.SINGLE_BINDING, active == bound, f"the {side}'s packet core to carry path {bound}",
            f"it carries path {active}",
        )  # fmt: skip

    def _visible(self, event: Any, before: Session, orders: list[Any]) -> None:
        """Silence of the bound transport is followed by VOLATILE in the same turn."""
        bound = before.binding
        if not isinstance(event, inp.PathSilent) or before.state is not State.ATTACHED or bound is None:
            return
        if event.transport == bound.transport:
            left = any(e.name == "session.state_change" for e in _events(orders))
            self.require(Property.VISIBLE, left, "VOLATILE after silence of the active transport", "nothing happened")

    def _wish(self, side: str, event: Any, before: Session, orders: list[Any]) -> None:
        """An operator's wish leads to a change or to a denial, in the same turn."""
        if side == "client" and isinstance(event, inp.OperatorSwitch) and before.state.live:
            found = [e.name for e in _events(orders)]
            told = "transport.switch_denied" in found or "session.state_change" in found
            self.require(Property.PAIRED, told, "a switch or a denial for the operator", f"only {found}")

    # --- engines -----------------------------------------------------------------------------------------------------

    def _seats(self, side: str) -> list[Seat]:
        if side == "client":
            return [self._world.client.seat] if self._world.client.seat is not None else []
        gateway = self._world.gateway
        return [place.seat for place in gateway.places.values()] if gateway is not None else []

    def _seat_for(self, side: str, event: Any) -> tuple[Session | None, Seat | None]:
        uid = getattr(event, "uid", None)
        for seat in self._seats(side):
            if side == "client" or seat.session.uid == uid:
                return seat.session, seat
        return None, None

    def _refresh(self) -> None:
        self._nearest = min((life.due for life in self.lives.values()), default=NEVER)


def _events(orders: list[Any]) -> list[DomainEvent]:
    return [e for order in orders if isinstance(order, (out.Commit, out.Emit)) for e in order.events]
