"""What must hold of every commit: the record before, the record after, and the events that tell of the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jumpvpn.engine import outputs as out
from jumpvpn.properties import Property
from jumpvpn.session.state import Session, State
from jumpvpn.sim import rules
from jumpvpn.sim.life import Life, deadlines_of
from jumpvpn.values import DomainEvent

if TYPE_CHECKING:
    from jumpvpn.sim.checker import Checker

_CLOSES_ATTEMPT = frozenset(
    {"transport.switch_failed", "transport.switch_denied", "transport.revalidated", "transport.rebound",
     "ownership.acquired", "session.terminated"}
)  # fmt: skip


class CommitChecks:
    """Statements about commits; ``judge`` before the record is kept."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._require = checker.require

    def judge(self, life: Life, order: out.Commit, now: int) -> None:
        """Hold ``order`` against what is known of the session."""
        self._identity(life, order)
        self._versions(life, order)
        limit = order.session.policy.switching.max_per_minute
        if life.record is not None:
            limit = max(limit, life.record.policy.switching.max_per_minute)
        for event in order.events:
            if event.name == "session.state_change":
                self._edge(life, event, order, now)
                life.switch_limit = limit if event.state == "RECOVERING" else life.switch_limit
            self._clocks_of(life, event, now)
            self.follow(life, event)
            if event.name in ("transport.switch", "transport.rebound"):
                self._switched(life, max(limit, life.switch_limit), now)
            if event.name == "session.terminated":
                self._ended(life, str(event.reason), order, now)
        self._record(life, order)

    def follow(self, life: Life, event: DomainEvent) -> None:
        """Every attempt has a result before the next one begins."""
        if event.name == "reattach.attempt":
            self._require(
                Property.PAIRED, life.attempt is None, f"a result of the attempt on {life.attempt}",
                f"the {life.side} begins the next",
            )  # fmt: skip
            life.attempt = event.transport.id if event.transport is not None else ""
        elif event.name in _CLOSES_ATTEMPT or (event.name == "reattach.result" and _succeeded(event)):
            life.attempt = None

    # --- identity and versions ---------------------------------------------------------------------------------------

    def _identity(self, life: Life, order: out.Commit) -> None:
        before, after = life.record, order.session
        created = sum(1 for event in order.events if event.name == "session.created")
        born = before is None and order.expected_version is None
        self._require(
            Property.IDENTITY, created == (1 if born else 0), "one session.created, at birth", f"{created} of them"
        )
        if before is None:
            return
        same = (before.id, before.role, before.born_at) == (after.id, after.role, after.born_at)
        self._require(Property.IDENTITY, same, f"the identity of {before.uid}", f"{after.uid}, born at {after.born_at}")
        self._require(
            Property.ABSORBING, before.state is not State.TERMINATED, "nothing after TERMINATED", after.state.value
        )

    def _versions(self, life: Life, order: out.Commit) -> None:
        first = 0 if life.record is None else int(life.record.version)
        self._require(
            Property.VERSION, (order.expected_version or 0) == first, f"a commit on version {first}",
            f"it names {order.expected_version}",
        )  # fmt: skip
        told = sorted({event.state_version for event in order.events if event.lane == "S"})
        wanted = list(range(first + 1, int(order.session.version) + 1))
        self._require(
            Property.VERSION, told == wanted and bool(wanted), f"one event or more for each of the versions {wanted}",
            f"events of the versions {told}",
        )  # fmt: skip
        life.version = int(order.session.version)

    # --- edges and proofs --------------------------------------------------------------------------------------------

    def _edge(self, life: Life, event: DomainEvent, order: out.Commit, now: int) -> None:
        before = life.state or State.BIRTH.value
        edge = (event.prev_state or "", event.state or "")
        self._require(Property.EDGES, event.prev_state == before, f"a change out of {before}", f"{edge[0]}>{edge[1]}")
        self._require(
            Property.ABSORBING, before != State.TERMINATED.value, "nothing leaves TERMINATED", f"{edge[0]}>{edge[1]}"
        )
        allowed = rules.EDGES.get(edge)
        self._require(Property.EDGES, allowed is not None, "one of the listed edges", f"{edge[0]}>{edge[1]}")
        self._require(
            Property.EDGES, event.reason in (allowed or ()), f"a listed reason for {edge[0]}>{edge[1]}",
            str(event.reason),
        )  # fmt: skip
        if edge == ("RECOVERING", "ATTACHED"):
            self._proof(life, event, order)
        life.moved(event, now)

    def _proof(self, life: Life, event: DomainEvent, order: out.Commit) -> None:
        if event.reason == "reattach_success":
            self._reattached(life, event, order)
            return
        transport = event.transport.id if event.transport is not None else ""
        facts = [f for f in self._checker.facts[life.side] if f.uid == life.uid and f.transport == transport]
        if event.reason == "rebind_validated":
            bound = order.session.binding
            facts = [f for f in facts if bound is None or f.peer == bound.peer]
        self._require(
            Property.PROOF, bool(facts), f"an answered challenge on {transport} in this turn",
            f"the {life.side} attached by {event.reason} without one",
        )  # fmt: skip

    def _reattached(self, life: Life, event: DomainEvent, order: out.Commit) -> None:
        results = [
            str(e.data.get("nonce_id")) for e in order.events
            if e.name == "reattach.result" and _succeeded(e) and e.state_version == event.state_version
        ]  # fmt: skip
        self._require(Property.PROOF, len(results) == 1, "one accepted request", f"{len(results)} of them")
        nonce = results[0]
        made = nonce in self._checker.made.get(life.uid, ())
        self._require(Property.PROOF, made, "a request that the client made", f"nonce {nonce} is nobody's")
        self._require(
            Property.PROOF, nonce not in life.nonces, "a nonce that never counted before", f"nonce {nonce} counts again"
        )
        life.nonces.add(nonce)
        if life.side == "gateway":
            copied = self._checker.was_copied(life.uid, order)
            self._require(Property.PROOF, not copied, "the request itself", f"a copy of nonce {nonce} was granted")
            proved = self._checker.was_proved(life.uid, order)
            self._require(Property.PROOF, proved, "an address that has answered", f"nonce {nonce} came from another")

    # --- clocks and bounds -------------------------------------------------------------------------------------------

    def _clocks_of(self, life: Life, event: DomainEvent, now: int) -> None:
        if event.lane != "S":
            return
        if event.name == "session.created":
            life.state = State.BIRTH.value
        died = event.name == "transport.dead" and event.data.get("was_active")
        taken_over = event.name == "ownership.acquired" and event.state != "ATTACHED"
        if died or taken_over:
            life.unbound(now)

    def _switched(self, life: Life, limit: int, now: int) -> None:
        life.switches.append(now)
        spent = life.spent(now)
        self._require(
            Property.BOUNDED_SWITCHING, spent <= limit, f"at most {limit} switches in 60 s",
            f"the {life.side} made {spent}",
        )  # fmt: skip

    def _ended(self, life: Life, reason: str, order: out.Commit, now: int) -> None:
        """A session ends only by a rule, and a clock that is blamed has really run out."""
        after, before = order.session, life.record or order.session
        policy = after.policy
        claims: dict[str, tuple[int | None, int]] = {
            "session_lifetime_exceeded": (before.born_at, policy.session.max_lifetime),
            "key_expired": (before.keys_at, policy.security.key_max_age),
            "transport_ttl_exceeded": (life.unbound_at, policy.session.transport_ttl),
            "episode_bound_exceeded": (life.episode_at, policy.recovery.episode_max),
        }
        passed = {name for name, (since, span) in claims.items() if since is not None and now > since + span}
        if reason in claims:
            prop = Property.DEATH_IS_NOT_THE_END if reason == "transport_ttl_exceeded" else Property.FINITE
            self._require(
                prop, reason in passed, f"{reason} only after its time", f"it has not passed at the {life.side}"
            )
            first = next(name for name in rules.ENDINGS if name in passed)
            self._require(Property.PRIORITY, first == reason, f"{first}, which ranks higher", reason)
        elif reason == "recovery_attempts_exhausted":
            most = policy.recovery.max_attempts
            self._require(
                Property.DEATH_IS_NOT_THE_END, life.tries >= most, f"{most} attempts before giving up", f"{life.tries}"
            )
        else:
            self._closed(life, reason)

    def _closed(self, life: Life, reason: str) -> None:
        other = "gateway" if life.side == "client" else "client"
        peer = self._checker.lives.get((other, life.uid))
        authorised = {
            "operator_terminated": (life.side, life.uid) in self._checker.ending,
            "peer_closed": peer is not None and not peer.live,
        }
        self._require(
            Property.EDGES, authorised.get(reason, True), f"somebody with the right to close the {life.side}'s session",
            f"{reason} without one",
        )  # fmt: skip

    # --- records -----------------------------------------------------------------------------------------------------

    def _record(self, life: Life, order: out.Commit) -> None:
        before, after = life.record, order.session
        state = after.state.value
        self._require(
            Property.VISIBLE, state == life.state, f"{life.state}, where the events lead", f"the record says {state}"
        )
        bound = after.binding
        unbound = after.state in (State.BIRTH, State.TERMINATED)
        fits = bound is None if unbound else (bound is not None or after.state is not State.ATTACHED)
        self._require(
            Property.SINGLE_BINDING, fits, f"a binding that fits {state}", "none" if bound is None else bound.transport
        )
        if bound is not None:
            own = bound.epoch == after.epoch and bound.transport == after.incumbent
            self._require(Property.SINGLE_BINDING, own, f"a binding of epoch {after.epoch}", f"one of {bound.epoch}")
        if after.state is not State.TERMINATED:
            clocks = (after.transportless_at, after.episode_at)
            own_clocks: tuple[Any, Any] = (life.unbound_at, life.episode_at)
            self._require(Property.CLOCKS, clocks == own_clocks, f"clocks since {own_clocks}", f"recorded {clocks}")
        if before is not None:
            self._epochs(life, before, after)
            if after.state.live:
                self._deadlines(life, before, order)

    def _epochs(self, life: Life, before: Session, after: Session) -> None:
        rises = after.epoch >= before.epoch and after.owner_epoch >= before.owner_epoch
        self._require(
            Property.EPOCH, rises, f"epochs from {before.epoch}/{before.owner_epoch} on",
            f"the {life.side} goes to {after.epoch}/{after.owner_epoch}",
        )  # fmt: skip
        if after.owner_epoch > before.owner_epoch and after.binding is not None:
            self._require(
                Property.EPOCH, after.epoch > before.epoch, "no binding that survives a new owner", after.state.value
            )

    def _deadlines(self, life: Life, before: Session, order: out.Commit) -> None:
        """No running deadline moves later, except that ATTACHED ends an excursion and fresh keys begin anew."""
        after = order.session
        fresh = {"security.key_max_age"} if after.keys_at != before.keys_at else set()
        if any(e.name == "session.state_change" for e in order.events):
            fresh |= {"volatility.volatile_max", "recovery.window", "session.handshake_timeout"}
        if any("ATTACHED" in (e.prev_state, e.state) for e in order.events if e.name == "session.state_change"):
            fresh |= {"session.transport_ttl", "recovery.episode_max"}
        earlier = {name: at for at, _, name in deadlines_of(before)}
        for at, _, name in deadlines_of(after):
            if name in earlier and name not in fresh:
                self._require(
                    Property.CLOCKS, at <= earlier[name], f"{name} not to move later",
                    f"the {life.side} moved it by {(at - earlier[name]) / 1e9:.3f} s",
                )  # fmt: skip
        if fresh >= {"security.key_max_age"}:
            told = any(e.name == "key.rotated" or e.reason == "handshake_ok" for e in order.events)
            self._require(
                Property.CLOCKS, told, "the age of keys to begin with fresh keys only", "no event tells of any"
            )


def _succeeded(event: DomainEvent) -> bool:
    return event.data.get("status") == "SUCCESS"
