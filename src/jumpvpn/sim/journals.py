"""Both ends' event journals, sealed as the nodes seal theirs."""

from __future__ import annotations

from jumpvpn.audit.addresses import AddressMode, shown_address
from jumpvpn.audit.chain import Chain
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.engine.outputs import Commit
from jumpvpn.policy.model import Policy
from jumpvpn.session.state import State
from jumpvpn.values import DomainEvent, Now

CLUSTER = "standalone"
BOOT = "boot"
_KEY = b"simulation" * 3  # a hash of an invented address protects nobody


def _shown(address: str, mode: AddressMode) -> str:
    return shown_address(address, mode, _KEY)


class Journal:
    """Lines of one node over all runs of its process."""

    def __init__(self, role: str) -> None:
        self.lines: list[bytes] = []
        self._role = role
        self._runs = 0
        self._sealer: Sealer | None = None

    def start(self, policy: Policy, now: Now) -> None:
        """A process begins: a chain of its own, and the policy that it starts with."""
        self._runs += 1
        origin = Origin(self._role, CLUSTER, BOOT, f"run{self._runs}", self._role)
        self._sealer = Sealer(origin, policy, _shown)
        self.note((DomainEvent("node.started", "N", data={"role": self._role, "boot_id": BOOT}),), now)
        self.use_policy(policy, now, "start")

    def use_policy(self, policy: Policy, now: Now, mode: str = "reload") -> None:
        """From here on events name ``policy``."""
        assert self._sealer is not None
        self.lines += self._sealer.announce(policy, now, mode)

    def note(self, events: tuple[DomainEvent, ...], now: Now) -> None:
        """Node-lane events outside a commit."""
        assert self._sealer is not None
        self.lines += self._sealer.note(events, now)

    def commit(self, order: Commit, now: Now) -> Chain:
        """The lines of a commit that the store has; returns the session's chain head."""
        assert self._sealer is not None
        draft = self._sealer.draft(order.uid, order.events, now)
        self.lines += self._sealer.settle(draft, ended=order.session.state is State.TERMINATED)
        return draft.chain

    def resume(self, uid: str, chain: Chain) -> None:
        """Continue a session's chain where the store says it ended."""
        assert self._sealer is not None
        self._sealer.resume(uid, chain)

    def close(self, now: Now) -> None:
        """Summaries that are still held back."""
        if self._sealer is not None:
            self.lines += self._sealer.due(now)
