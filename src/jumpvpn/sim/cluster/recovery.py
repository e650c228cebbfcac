"""The second half of a run: one gateway at least works for good. Within which time is every session well, or over?"""

from __future__ import annotations

from collections.abc import Sequence

from jumpvpn.engine.plans import PROMPT_TRIES
from jumpvpn.properties import Property
from jumpvpn.runtime.stores.base import TERMINATED
from jumpvpn.session.state import State
from jumpvpn.sim.cluster.client import ClientHost
from jumpvpn.sim.cluster.world import ClusterWorld
from jumpvpn.sim.recovery import attach_bound, end_bound
from jumpvpn.sim.violation import Violated
from jumpvpn.values import SECOND

LOOK = 0.25  # s between two looks
WRONG_JUMP_MS = 10_000  # wall clocks further apart may end a session by its age
TRIES_ELSEWHERE = 6 * SECOND  # attempts at gateways that do not work come first


def settle(world: ClusterWorld, well: Sequence[str]) -> float:
    """Let time pass until every client is attached to a gateway, or its session is over; seconds that it took.

    Raises Violated(MUST_RECOVER).
    """
    begin, rules = world.now, world.plan.rules
    lease = world.plan.lease_s * SECOND
    bound = attach_bound(rules, rules) + 2 * lease + TRIES_ELSEWHERE
    world.run(LOOK)
    owed = {client.name for client in world.clients if _owed(world, client)}
    while not all(_over(world, client) for client in world.clients):
        if world.now - begin > bound:
            seen = "; ".join(_seen(world, client) for client in world.clients if not _over(world, client))
            raise Violated(
                Property.MUST_RECOVER, f"all attached within {bound / SECOND:.1f} s, {' '.join(well)} working", seen
            )
        world.run(LOOK)
    for client in world.clients:
        world.checker.require(
            Property.MUST_RECOVER, client.name not in owed or _attached(world, client),
            f"{client.name} attached: gateway, time and attempts were there", _seen(world, client),
        )  # fmt: skip
    took = (world.now - begin) / SECOND
    _end_leftovers(world)
    return took


def _owed(world: ClusterWorld, client: ClientHost) -> bool:
    """Whether both ends have so much time and so many attempts left that an end would be a violation."""
    session = client.session
    known = world.checker.known.get(world.raw.get(client.uid, b""))
    if session is None or known is None or not session.state.live or known.stored.state == TERMINATED:
        return False
    rules = world.plan.rules
    need = attach_bound(rules, rules) - 60 * SECOND + 2 * world.plan.lease_s * SECOND + TRIES_ELSEWHERE
    starts = [at for at in (session.transportless_at, session.episode_at, known.transportless) if at is not None]
    room = all(world.now + need < at + rules.session.transport_ttl for at in starts)
    fresh = need < rules.session.transport_ttl  # what begins only now has room, too
    clocks = world.checker.skew_ms < WRONG_JUMP_MS
    prompt = session.attempts <= PROMPT_TRIES and not client.client.book.gateways.denied
    return room and fresh and clocks and prompt


def _over(world: ClusterWorld, client: ClientHost) -> bool:
    session = client.session
    return _attached(world, client) or (session is not None and session.state is State.TERMINATED)


def _attached(world: ClusterWorld, client: ClientHost) -> bool:
    session, plane = client.session, client.client_plane
    host = world.gateways.get(plane.home)
    known = world.checker.known.get(world.raw.get(client.uid, b""))
    if session is None or not session.attached or host is None or not host.running or known is None:
        return False
    place, hosted = host.engine.places.get(client.uid), host.plane.by_id.get(session.id.raw)
    if place is None or hosted is None or not place.seat.session.attached or known.stored.owner != host.name:
        return False
    same = hosted.key is not None and plane.key is not None and hosted.keys.get(hosted.key) == plane.keys.get(plane.key)
    return same and hosted.forwards() and hosted.active == plane.active


def _end_leftovers(world: ClusterWorld) -> None:
    """Sessions that no client holds any more end, whoever owns them."""
    rules = world.plan.rules
    extra = 2 * world.plan.lease_s * SECOND + world.plan.adopt_ms * 1_000_000 + rules.session.transport_ttl
    begin, bound = world.now, end_bound(rules) + extra
    world.traffic = False
    while left := _leftovers(world):
        if world.now - begin > bound:
            raise Violated(
                Property.FINITE, f"an end to what no client holds within {bound / SECOND:.1f} s", ", ".join(left)
            )
        world.run(LOOK * 4)


def _leftovers(world: ClusterWorld) -> list[str]:
    held = {client.uid for client in world.clients if client.session is not None and client.session.state.live}
    raws = {world.raw.get(uid) for uid in held}
    return [
        f"{known.stored.chain} of {known.stored.owner}" for raw, known in world.checker.known.items()
        if known.stored.state != TERMINATED and raw not in raws
    ]  # fmt: skip


def _seen(world: ClusterWorld, client: ClientHost) -> str:
    session, plane = client.session, client.client_plane
    known = world.checker.known.get(world.raw.get(client.uid, b""))
    mine = "no session" if session is None else f"{session.state.value} {session.reason} in epoch {session.epoch}"
    stored = known.stored if known is not None else None
    there = "nothing" if stored is None else f"{stored.state} of {stored.owner} in epoch {stored.epoch}"
    attempts = 0 if session is None else session.attempts
    return f"{client.name} is {mine} with {plane.home or 'nobody'} after {attempts} attempts, the store has {there}"
