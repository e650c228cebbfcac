"""Which gateways the client knows, from its file and from the cluster, and to which of them it keeps transports."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from jumpvpn.config import GatewayPeer, decode_key
from jumpvpn.engine.book import PATHS_PER_EPOCH
from jumpvpn.policy.model import TransportPolicy
from jumpvpn.wire.gateways import Gateway

PROTOCOL = "udp"


@dataclass(frozen=True, slots=True)
class Known:
    """One gateway: ``address`` is ``host:port`` or ``[v6]:port``, ``key`` its raw public key."""

    name: str
    address: str
    key: bytes


class KnownGateways:
    """Those of the configuration file, then those that the cluster told. Bounded: 16 and 8.

    What the file says wins: a gateway that it names, or whose key it has under another name, is not learned again.
    """

    def __init__(self, configured: Iterable[GatewayPeer], learned: Iterable[Gateway] = ()) -> None:
        self._configured = tuple(Known(peer.name, peer.address, decode_key(peer.public_key)) for peer in configured)
        self._learned: tuple[Gateway, ...] = ()
        self._current: Known | None = None
        self.learn(learned)

    @property
    def learned(self) -> tuple[Gateway, ...]:
        """The cluster's newest list, without those of the configuration file."""
        return self._learned

    @property
    def configured_keys(self) -> tuple[bytes, ...]:
        """The keys of the configuration file."""
        return tuple(known.key for known in self._configured)

    @property
    def all(self) -> tuple[Known, ...]:
        """Every gateway, in the order of the file, then of the list; the current one also when the list lost it."""
        told = (Known(found.name, found.address, found.public_key) for found in self._learned)
        current = self._current
        found = [current if current is not None and known.name == current.name else known for known in
                 (*self._configured, *told)]  # fmt: skip
        lost = current is not None and all(known.name != current.name for known in found)
        return (*found, current) if lost and current is not None else tuple(found)

    def learn(self, told: Iterable[Gateway]) -> bool:
        """Take the cluster's newest list in place of the one before; whether that changed anything."""
        names, keys = {known.name for known in self._configured}, set(self.configured_keys)
        fresh = tuple(found for found in told if found.name not in names and found.public_key not in keys)
        changed, self._learned = fresh != self._learned, fresh
        return changed

    def hold(self, name: str | None) -> None:
        """The session is with ``name``: that gateway stays known as it is, whatever the list says, until it is left."""
        held = None if name is None else next((known for known in self.all if known.name == name), None)
        self._current = held

    def named(self, name: str) -> Known:
        """The gateway of that name. Raises KeyError."""
        for known in self.all:
            if known.name == name:
                return known
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Situation:
    """What decides between gateways: usable ``interfaces``, the session's own gateway (None before the birth), those
    that leave, and how many were passed over because no gateway before them answered.
    """

    interfaces: Sequence[str]
    home: str | None = None
    leaving: Collection[str] = ()
    passed: int = 0


def chosen(known: Sequence[Known], rules: TransportPolicy, now: Situation) -> tuple[str, ...]:
    """Names of the gateways to keep transports to, the best first: the session's own and as many others as policy says.

    Before the birth as many are tried at a time. There are never more than path indexes allow, with one for each
    interface: the session's own gateway comes before any other, and one gateway is always in.
    """
    ranked = {place.name: _place(place.name, index, rules, now) for index, place in enumerate(known)}
    order = sorted((name for name in ranked if _allowed(name, rules, now)), key=lambda name: ranked[name])
    room = max(1, PATHS_PER_EPOCH // max(1, len(now.interfaces)))
    wanted = min(room, 1 + rules.standby_gateways)
    if now.home is not None:
        others = [name for name in order if name != now.home]
        return (now.home, *others[: wanted - 1])
    start = now.passed % len(order) if len(order) > wanted else 0
    return tuple((*order[start:], *order[:start])[:wanted])


def _place(name: str, index: int, rules: TransportPolicy, now: Situation) -> tuple[bool, int, int, str]:
    """Those that leave last; then the policy's rank, the order in which they are known, the name."""
    rank = min((rules.rank(interface, PROTOCOL, name) for interface in now.interfaces), default=0)
    return name in now.leaving, rank, index, name


def _allowed(name: str, rules: TransportPolicy, now: Situation) -> bool:
    return not now.interfaces or any(rules.allows(interface, PROTOCOL, name) for interface in now.interfaces)
