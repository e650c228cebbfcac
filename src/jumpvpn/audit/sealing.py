"""From events to sealed lines: envelope, policy in force, addresses as policy allows, chains of both lanes.

Pure: whoever holds a ``Sealer`` decides when lines are written. A state-lane chain moves only when ``settle`` says
that the store has the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jumpvpn.audit.addresses import AddressMode
from jumpvpn.audit.chain import Chain, node_chain, session_chain
from jumpvpn.audit.checkpoints import EVENT, Growth, Link, Sign, checkpoint_data
from jumpvpn.audit.coalesce import Coalescer
from jumpvpn.audit.envelope import Context, build_record
from jumpvpn.policy.model import Policy
from jumpvpn.values import DomainEvent, Now, TransportView, dataclass

ADDRESS_FIELDS = ("old_peer", "new_peer", "source_prefix")
ShowAddress = Callable[[str, AddressMode], str]
"""How an address appears in events; the empty string never reaches it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who writes: node, cluster, boot of the machine, run of the process, and the role ``client`` or ``gateway``."""

    node_id: str
    cluster_id: str
    boot_id: str
    run: str
    role: str


@dataclass(frozen=True, slots=True)
class Draft:
    """One commit's events, sealed for the state lane, waiting for the store. ``chain`` is the head it will have."""

    uid: str
    chain: Chain
    lines: tuple[bytes, ...]
    events: tuple[DomainEvent, ...]
    now: Now
    context: Context


class Sealer:
    """Heads of the node's chain and of its live sessions' chains."""

    def __init__(self, origin: Origin, policy: Policy, show_address: ShowAddress) -> None:
        self.origin = origin
        self.policy = policy
        self._digest = policy.digest()
        self._show_address = show_address
        self._sessions: dict[str, Chain] = {}
        self._denials = Coalescer(policy.observability.denial_interval)
        self.node = Chain(node_chain(origin.node_id, origin.run))
        self.growth = Growth()

    def use_policy(self, policy: Policy) -> None:
        """From here on events name this policy."""
        self.policy, self._digest = policy, policy.digest()

    def announce(self, policy: Policy, now: Now, mode: str) -> tuple[bytes, ...]:
        """Lines that tell ``policy`` with its body, which events name from here on; ``mode`` is start or reload."""
        self.use_policy(policy)
        data = {"version": policy.version, "digest": self._digest, "body": policy.body(), "mode": mode}
        return self.note((DomainEvent("policy.applied", "N", reason="policy_applied", data=data),), now)

    def resume(self, uid: str, chain: Chain) -> None:
        """Continue a session's chain where the store says it ended."""
        self._sessions[uid] = chain

    def forget(self, uid: str) -> None:
        """Another node continues the session's chain."""
        self._sessions.pop(uid, None)

    def note(self, events: Sequence[DomainEvent], now: Now) -> tuple[bytes, ...]:
        """Lines for node-lane events outside a commit; repeated denials come as summaries."""
        offered = [self._denials.offer(self._shown(event), now) for event in events]
        return self._node_lines([event for event in offered if event is not None] + self._denials.due(now), now)

    def due(self, now: Now) -> tuple[bytes, ...]:
        """Lines for the summaries of denials whose interval has ended."""
        return self._node_lines(self._denials.due(now), now)

    def draft(self, uid: str, events: Sequence[DomainEvent], now: Now) -> Draft:
        """Seal one commit's state lane, whose first event causes the others; nothing moves before ``settle``."""
        mine = [event for event in events if event.lane == "S"]
        context = self._context(now)
        before = self._sessions.get(uid) or Chain(session_chain(uid, self.origin.role))
        first = f"{before.name}/{before.seq + 1}"
        sealed = [
            build_record(self._shown(event), context, idx=index, n=len(mine), cause=None if index == 1 else first)
            for index, event in enumerate(mine, 1)
        ]
        chain, lines = before.extend(sealed)
        return Draft(uid, chain, lines, tuple(events), now, context)

    def settle(self, draft: Draft, *, ended: bool) -> tuple[bytes, ...]:
        """The store has the commit: both lanes' lines in the order in which things happened.

        ``ended`` says that the session is over; its chain is forgotten.
        """
        lines = tuple(self._in_order(draft))
        self._sessions[draft.uid] = draft.chain
        self.growth.add(draft.chain, len(draft.lines), draft.now)
        if ended:
            del self._sessions[draft.uid]
        return lines

    def checkpoint(self, link: Link, sign: Sign, now: Now) -> bytes:
        """The line that vouches for all chains as they are; its own hash is then ``node.head``."""
        heads, counts = self.growth.take(self.node)
        data = checkpoint_data(self.node.name, link, heads, counts, sign)
        self.node, line = self.node.append(build_record(DomainEvent(EVENT, "N", data=data), self._context(now)))
        return line

    def _in_order(self, draft: Draft) -> Iterator[bytes]:
        committed = iter(draft.lines)
        for event in draft.events:
            if event.lane == "S":
                yield next(committed)
            elif (offered := self._denials.offer(self._shown(event), draft.now)) is not None:
                self.node, line = self.node.append(build_record(offered, draft.context))
                self.growth.add(self.node, 1, draft.now)
                yield line

    def _node_lines(self, events: Sequence[DomainEvent], now: Now) -> tuple[bytes, ...]:
        if not events:
            return ()
        context = self._context(now)
        self.node, lines = self.node.extend(build_record(event, context) for event in events)
        self.growth.add(self.node, len(lines), now)
        return lines

    def _context(self, now: Now) -> Context:
        origin = self.origin
        return Context(
            node_id=origin.node_id, cluster_id=origin.cluster_id, boot_id=origin.boot_id, time_ms=now.wall_ms,
            mono_ms=now.boot // 1_000_000, policy_version=self.policy.version, policy_digest=self._digest,
        )  # fmt: skip

    def _shown(self, event: DomainEvent) -> DomainEvent:
        """The event with addresses as ``observability.address_mode`` allows."""
        view = event.transport
        named = [name for name in ADDRESS_FIELDS if name in event.data]
        if not named and (view is None or not (view.local or view.peer)):
            return event
        if view is not None:
            view = TransportView(
                view.id, view.proto, self._address(view.local), self._address(view.peer), view.binding_gen
            )
        shown = {name: self._address(str(event.data[name])) for name in named}
        return event.showing(view, {**event.data, **shown})

    def _address(self, address: str) -> str:
        return self._show_address(address, self.policy.observability.address_mode) if address else ""
