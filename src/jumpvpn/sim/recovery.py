"""The second half of a run: everything works again. Within which time must the session be attached, or have ended?"""

from __future__ import annotations

from dataclasses import dataclass

from jumpvpn.engine.gateways import DENIAL_WAIT_MAX
from jumpvpn.engine.plans import BLIND_WAIT, PATIENCE_MAX, PROMPT_TRIES
from jumpvpn.policy.model import Policy
from jumpvpn.properties import Property
from jumpvpn.session.state import Session, State
from jumpvpn.sim.life import deadlines_of
from jumpvpn.sim.violation import Violated
from jumpvpn.sim.world import World
from jumpvpn.transports.state import Condition
from jumpvpn.values import MILLISECOND, MINUTE, SECOND

LOOK = 0.25  # s between two looks at both ends
ATTACH = "both ends attached"
FOLLOW = "the client's session ended, as the gateway's has,"
LAST = "the client attached or ended, with one attempt left and a gateway in a newer epoch,"
SLACK = SECOND  # store, network and the look itself


@dataclass(frozen=True, slots=True)
class Healed:
    """How it went: seconds until both ends were settled, and how (``ATTACHED`` or ``TERMINATED``).

    ``rekey_halfway``: only the gateway knows of the newest rekey; what flows, flows in the epoch before. ``owed``:
    everything that recovery asks for was there, so that an end, whatever its reason, would have been a violation.
    """

    took: float
    outcome: str
    rekey_halfway: bool
    owed: bool


def attach_bound(client: Policy, gateway: Policy) -> int:
    """Longest time (ns) from the moment everything works until both ends are attached, unless a clock ends it first.

    Somebody still has to notice (silence, then death; traffic flows), VOLATILE and RECOVERING run their bounds, then
    DEGRADED waits: out of patience (at most ``PATIENCE_MAX``) or for the gateway's word (``DENIAL_WAIT_MAX``), for
    hold-down, and for the switch budget (60 s); then one more stay in RECOVERING.
    """
    rules = (client, gateway)
    notice = max(r.volatility.silence_ceiling * r.volatility.dead_factor + r.volatility.probe_interval for r in rules)
    stay = max(r.volatility.volatile_max for r in rules) + max(r.recovery.window for r in rules)
    wait = max(PATIENCE_MAX, DENIAL_WAIT_MAX, MINUTE, *(r.switching.hold_down for r in rules))
    return notice + stay + wait + client.recovery.window + SLACK


def prompt_bound(client: Policy, gateway: Policy, *, blind: bool) -> int:
    """As ``attach_bound`` where nothing has to be waited for: neither budget nor patience nor the gateway's word.

    ``blind``: the gateway is in a newer epoch and answers no probe, so the client waits before it tries nevertheless.
    """
    waits = max(PATIENCE_MAX, DENIAL_WAIT_MAX, MINUTE, client.switching.hold_down, gateway.switching.hold_down)
    hold = max(client.switching.hold_down, gateway.switching.hold_down)
    return attach_bound(client, gateway) - waits + hold + (BLIND_WAIT * PROMPT_TRIES if blind else 0)


def owed(world: World) -> int | None:
    """Within which time (ns) both ends have to attach, if both have attempts, budget and time left and a transport."""
    client, gateway = world.client.session, world.gateway_session
    if client is None or gateway is None or not (client.state.live and gateway.state.live):
        return None
    allows = client.policy.transports.allows
    known = world.client.transports.values()
    candidate = any(allows(t.interface, t.protocol, t.gateway) for t in known if t.condition is not Condition.GONE)
    refused = world.now < world.client.plans.denied_until
    prompt = client.attempts <= PROMPT_TRIES and not refused
    bound = prompt_bound(client.policy, gateway.policy, blind=gateway.epoch > client.epoch)
    room = all(_has_room(world, side, bound) for side in ("client", "gateway"))
    return bound if candidate and prompt and room else None


def _has_room(world: World, side: str, bound: int) -> bool:
    """Attempts for a wish in vain and one more, a switch within the budget, and no clock that ends within ``bound``."""
    life = world.checker.lives[(side, world.uid)]
    session = life.record
    assert session is not None, "a live session has a record"
    policy = session.policy
    ends = [at for at, prop, _ in deadlines_of(session) if prop is Property.FINITE]
    ends += [world.now + policy.session.transport_ttl, world.now + policy.recovery.episode_max]
    budget = life.spent(world.now) < policy.switching.max_per_minute
    return budget and min(ends) > world.now + bound and policy.recovery.max_attempts - session.attempts >= 2


def end_bound(rules: Policy) -> int:
    """Longest time (ns) until one end gives up a session that the other end holds no more, and told nobody."""
    quiet = rules.volatility
    notice = max(quiet.silence_ceiling, quiet.silence_limit_idle()) * quiet.dead_factor + quiet.probe_interval_idle
    stay = quiet.volatile_max + rules.recovery.window + rules.session.handshake_timeout
    return notice + stay + rules.session.transport_ttl + SLACK


def settle(world: World) -> Healed:
    """Let time pass until both ends agree. Raises Violated(MUST_RECOVER) when they do not within the bound."""
    begin = since = world.now
    due = None
    if not _over(world):
        world.run(LOOK)  # what had queued up is handled
        due = owed(world)
    bound, wanted = attach_bound(world.client_rules, world.gateway_rules), ATTACH
    if due is not None:
        bound = due
    while not _over(world):
        if wanted == ATTACH and _alone(world) and due is None:
            since, bound, wanted = world.now, end_bound(world.client_rules), FOLLOW
        if wanted == ATTACH and _keeps_last_attempt(world) and due is None:
            since, bound, wanted = world.now, end_bound(world.client_rules), LAST
        if world.now - since > bound:
            raise Violated(Property.MUST_RECOVER, f"{wanted} within {bound / SECOND:.1f} s", _seen(world))
        world.run(LOOK)
    outcome = "ATTACHED" if _attached(world) else "TERMINATED"
    if due is not None and outcome != "ATTACHED":
        raise Violated(
            Property.MUST_RECOVER, f"{ATTACH}: transport, time, attempts and budget were there", _seen(world)
        )
    took = (world.now - begin) / SECOND
    halfway = rekey_is_halfway(world)
    _end_leftovers(world)
    return Healed(took, outcome, halfway, due is not None)


def _keeps_last_attempt(world: World) -> bool:
    """Whether the gateway cannot read the client's epoch while the client keeps its last attempt for an answer."""
    client, gateway = world.client.session, world.gateway_session
    if client is None or gateway is None or client.binding is not None or not client.state.live:
        return False
    return gateway.epoch > client.epoch and client.attempts >= client.policy.recovery.max_attempts - 1


def _alone(world: World) -> bool:
    """Whether the gateway has ended the session that the client still holds."""
    life = world.checker.lives.get(("gateway", world.uid))
    return life is not None and not life.live


def _over(world: World) -> bool:
    return _attached(world) or _state(world.client.session) == "TERMINATED"


def _attached(world: World) -> bool:
    client, gateway = world.client.session, world.gateway_session
    if client is None or gateway is None or world.states() != ("ATTACHED", "ATTACHED"):
        return False
    here, there = world.client_plane, world.gateway_planes[gateway.uid]
    return world.active is not None and here.key == there.key and client.id == gateway.id


def rekey_is_halfway(world: World) -> bool:
    """Whether the gateway has recorded a rekey that the client never heard of: traffic stays in the epoch before."""
    client, gateway = world.client.session, world.gateway_session
    both = client is not None and gateway is not None and client.attached and gateway.attached
    return both and client is not None and gateway is not None and gateway.epoch > client.epoch


def _end_leftovers(world: World) -> None:
    """Sessions that no client holds any more end at the gateway as well."""
    assert world.gateway is not None, "the gateway runs after the heal"
    begin, bound = world.now, end_bound(world.gateway_rules)
    while left := _leftovers(world):
        if world.now - begin > bound:
            raise Violated(
                Property.FINITE, f"the gateway to end what no client holds within {bound / SECOND:.1f} s",
                f"{left} sessions are left",
            )  # fmt: skip
        world.run(LOOK)


def _leftovers(world: World) -> int:
    assert world.gateway is not None, "the gateway runs after the heal"
    client = world.client.session
    held = client.uid if client is not None and client.state.live else None
    return sum(1 for uid, place in world.gateway.places.items() if uid != held and place.seat.session.state.live)


def _state(session: Session | None) -> str:
    return session.state.value if session is not None else "-"


def _seen(world: World) -> str:
    client, gateway = world.client.session, world.gateway_session
    epochs = "/".join(str(s.epoch) if s is not None else "-" for s in (client, gateway))
    carrier = world.active or "nothing that works both ways"
    attempts = client.attempts if client is not None and client.state is not State.TERMINATED else 0
    words = f"they are {' and '.join(world.states())} in epochs {epochs} over {carrier}"
    waits = world.client.plans.denied_until - world.now
    return f"{words}, {attempts} attempts" + (f", denied for {waits // MILLISECOND} ms" if waits > 0 else "")
