"""What the graph as a whole must show: no cycle without time, no endless excursion, and recovery where it is owed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jumpvpn.model.bounds import NOW, TICK, TRANSPORTS
from jumpvpn.model.checks import Violation
from jumpvpn.model.environment import OK, Move, fares
from jumpvpn.model.graph import Graph
from jumpvpn.properties import Property
from jumpvpn.session.state import AttemptKind, Session, State
from jumpvpn.values import Instant, TransportId

_OPEN = frozenset({State.VOLATILE, State.RECOVERING, State.DEGRADED})

OWED, NO_CANDIDATE, NO_TIME, NO_ATTEMPT = "owed", "no good candidate that policy allows", "no time", "no attempt left"
CONDITIONS = (OWED, NO_CANDIDATE, NO_TIME, NO_ATTEMPT)
"""Whether ATTACHED is owed in an excursion, or which condition is missing."""

Alarm = tuple[int, Violation, str]  # the world, what does not hold, and how it shows from there


class Ways:
    """The edges that liveness is about: those between open states, and where a well-meaning world leads."""

    def __init__(self) -> None:
        self.open: dict[int, list[int]] = {}  # target * 2 + whether time passed
        self.prompt: dict[int, list[int]] = {}  # targets of what the protocol does without any time
        self.helped: dict[int, tuple[int, bool, bool]] = {}
        self.conditions: Counter[str] = Counter()  # of MUST_RECOVER, by the worlds of an excursion in which they decide

    def add(self, graph: Graph, world: int, target: int, move: Move, attached: bool) -> None:
        """Note one edge."""
        if move.protocol:
            self.prompt.setdefault(world, []).append(target)
        if not attached and graph.state(world) in _OPEN and graph.state(target) in _OPEN:
            self.open.setdefault(world, []).append(target * 2 + move.time)

    def help(self, world: int, target: int, attached: bool, time: bool) -> None:
        """Note where ``world`` goes when everything answers."""
        self.helped[world] = (target, attached, time)


def judge(graph: Graph, ways: Ways) -> Iterator[Alarm]:
    """Each cycle without time, endless excursion, and recovery that is owed and does not come."""
    counts = graph.watcher.checks.counts
    component = components({world: [way >> 1 for way in targets] for world, targets in ways.open.items()})
    text = "time can pass for ever between VOLATILE, RECOVERING and DEGRADED"
    for world, targets in ways.open.items():
        counts[Property.PROGRESS.name] += len(targets)
        if any(way & 1 and component[world] == component[way >> 1] for way in targets):
            yield world, Violation(Property.PROGRESS, text), "from here a cycle leads back, in which time passes"
    component = components(ways.prompt)
    text = "answers and plans alone lead round in a circle, without any time"
    for world, targets in ways.prompt.items():
        counts[Property.PROGRESS.name] += len(targets)
        if any(component[world] == component[target] for target in targets):
            yield world, Violation(Property.PROGRESS, text), "from here a cycle leads back, in which no time passes"
    yield from _recoveries(graph, ways)


def components(edges: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Tarjan's strongly connected components, without recursion: the number of each vertex's component."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    component: dict[int, int] = {}
    stack: list[int] = []
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            vertex, targets = work[-1]
            deeper = _next_unseen(vertex, targets, index, low, component)
            if deeper is not None:
                index[deeper] = low[deeper] = len(index)
                stack.append(deeper)
                work.append((deeper, iter(edges.get(deeper, ()))))
                continue
            work.pop()
            if work:
                parent = work[-1][0]
                low[parent] = min(low[parent], low[vertex])
            if low[vertex] == index[vertex]:
                _close(vertex, stack, component)
    return component


def _next_unseen(
    vertex: int, targets: Iterable[int], index: dict[int, int], low: dict[int, int], component: dict[int, int]
) -> int | None:
    for target in targets:
        if target not in index:
            return target
        if target not in component:
            low[vertex] = min(low[vertex], index[target])
    return None


def _close(vertex: int, stack: list[int], component: dict[int, int]) -> None:
    while True:
        member = stack.pop()
        component[member] = vertex
        if member == vertex:
            return


def _recoveries(graph: Graph, ways: Ways) -> Iterator[Alarm]:
    """From every world that meets the four conditions, a world that answers leads to ATTACHED within the bound."""
    for world in ways.helped:
        if graph.state(world) not in _OPEN:
            continue
        bound, condition = owed(graph, world)
        ways.conditions[condition] += 1
        if bound is None:
            continue
        graph.watcher.checks.counts[Property.MUST_RECOVER.name] += 1
        ticks, here, attached = 0, world, False
        try:
            while not attached and ticks <= bound and graph.state(here) is not State.TERMINATED:
                here, attached, passed = ways.helped.get(here) or _helped(graph, here)
                ticks += passed
        except Violation as broken:
            yield world, broken, "everything answers"
            continue
        if not attached or ticks > bound:
            end = (
                "the session has ended"
                if graph.state(here) is State.TERMINATED
                else f"it is in {graph.state(here).value}"
            )
            text = f"ATTACHED is owed within {bound} s, and everything answers: after {ticks} s {end}"
            yield world, Violation(Property.MUST_RECOVER, text), f"everything answers, {ticks} s pass"


def _helped(graph: Graph, world: int) -> tuple[int, bool, bool]:
    """The helpful way from a world that the search has not expanded."""
    session, _, paths = graph.seen(world)
    move = graph.environment.help(session, paths, graph.moves(world))
    target, attached = graph.arrive(world, move)
    return target, attached, move.time


def owed(graph: Graph, world: int) -> tuple[int | None, str]:
    """In how many ticks ATTACHED is owed, or None; and which of the conditions decides (one of ``CONDITIONS``).

    The bound has no slack: VOLATILE is left at its deadline, an attempt that cannot succeed at its own, hold-down ends;
    everything else follows at once. A strict deadline costs a tick of its own: ``now`` equal to it is still inside.
    """
    session, ghost, paths = graph.seen(world)
    waits = [_wait(session, ghost.switches, ghost.hold, t) for t in TRANSPORTS if fares(paths, t) == OK]
    possible = [wait for wait in waits if wait is not None]
    if not possible:
        return None, NO_CANDIDATE
    policy, attempt = session.policy, session.attempt
    spent = ghost.switches >= policy.switching.max_per_minute  # a rebinding is refused then, though it answers
    succeeds = attempt is not None and fares(paths, attempt.transport) == OK
    succeeds = succeeds and not (spent and attempt is not None and attempt.kind is AttemptKind.REBIND)
    needed = max(possible)  # the plans may choose any of them
    if session.state is State.VOLATILE and session.binding is not None:
        needed += _left(session.entered_at, policy.volatility.volatile_max) + 1
    elif attempt is not None and not succeeds:
        needed += min(_left(attempt.deadline, 0), _left(session.entered_at, policy.recovery.window)) + 1
    clocks = (
        (session.transportless_at, policy.session.transport_ttl),
        (session.episode_at, policy.recovery.episode_max),
    )
    if any(at is not None and _left(at, limit) < needed for at, limit in clocks):
        return None, NO_TIME
    # The stay that comes, and one more if its wish is in vain; none if the attempt that runs can succeed.
    stays = 2 if session.state is State.VOLATILE else 0 if succeeds else 1
    left = policy.recovery.max_attempts - session.attempts
    return (needed, OWED) if left >= stays else (None, NO_ATTEMPT)


def _left(since: Instant, span: int) -> int:
    """Whole ticks until ``span`` has passed since ``since``; 0 when it has."""
    return max(0, (since + span - NOW) // TICK)


def _wait(session: Session, used: int, hold: int, transport: TransportId) -> int | None:
    """Ticks until policy lets the session move to ``transport``; None if it does not."""
    policy = session.policy
    if not policy.transports.allows(transport.split("/")[0], "udp", "gw"):
        return None
    if transport == session.incumbent:
        return 0
    if used >= policy.switching.max_per_minute:
        return None
    return 0 if session.binding is None else hold
