"""The lab of a cluster: the client's uplinks as in the small lab, segments behind them, and cuts between hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jumpvpn.lab.cluster import topology
from jumpvpn.lab.cluster.topology import MEMBERS, SWITCH, TRUNK, Port, Shape
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.lab import Emulator, Lab
from jumpvpn.lab.link import DIRECTIONS, Link
from jumpvpn.lab.namespaces import NamespaceSet
from jumpvpn.lab.topology import UPLINKS
from jumpvpn.lab.traffic.pacing import boot_ns


@dataclass(frozen=True, slots=True)
class Cut:
    """What one host can no longer send to another, and when that took effect (boot ns, just before)."""

    pairs: frozenset[str]
    before_ns: int


class ClusterLab(Lab):
    """A running lab of `shape`; with `slow_store`, `impair_store` can delay what gateways and etcd say to each other.

    All methods block for some milliseconds. Raises LabError.
    """

    def __init__(
        self,
        shape: Shape | None = None,
        *,
        wifi: Link | None = None,
        lte: Link | None = None,
        seed: int = 1,
        slow_store: bool = False,
    ) -> None:
        super().__init__(wifi, lte, seed)
        self.shape = shape or Shape()
        self._slow_store = slow_store
        self._ports: Mapping[str, list[Port]] = _by_host(self.shape.ports())
        self._pairs: set[str] = set()

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The names of the lab's namespaces."""
        return self.shape.namespaces

    def cut(self, sources: Iterable[str], targets: Iterable[str], *, both: bool = True) -> Cut:
        """Let nothing of `sources` reach `targets` on any segment that they share; with `both`, nor the way back.

        The roaming client is named by its routers ("wifi", "lte"), because that is where the switch sees it.
        """
        pairs = self._elements(tuple(sources), tuple(targets), both) - self._pairs
        before = boot_ns()
        self._change("add", pairs)
        self._pairs |= pairs
        return Cut(frozenset(pairs), before)

    def heal(self, cut: Cut | None = None) -> int:
        """Undo one cut, or all; the boot time (ns) just before."""
        pairs = self._pairs & cut.pairs if cut is not None else set(self._pairs)
        before = boot_ns()
        self._change("delete", pairs)
        self._pairs -= pairs
        return before

    def cut_store(self, gateway: str, *, way: str = "both") -> Cut:
        """Cut a gateway off from all etcd servers: "both" ways, what it sends ("up"), or what it hears ("down")."""
        if way not in (*DIRECTIONS, "both"):
            raise LabError(f"no direction is called {way!r}")
        ends = ((gateway,), MEMBERS)
        return self.cut(*(ends if way != "down" else ends[::-1]), both=way == "both")

    def cut_clients(self, gateway: str, clients: Iterable[str] = ("client",), *, way: str = "both") -> Cut:
        """Cut a gateway off from clients: "both" ways, what clients send ("up"), or what they hear ("down")."""
        hosts = [host for client in clients for host in (UPLINKS if client == "client" else (client,))]
        ends = (hosts, (gateway,))
        return self.cut(*(ends if way != "down" else ends[::-1]), both=way == "both")

    def impair_store(self, **changes: Any) -> None:
        """Change the trunk between gateways and etcd servers, both directions; fields as in `Impairment`."""
        if not self._slow_store:
            raise LabError("the store's link is plain: open the lab with slow_store=True")
        self._emulators[TRUNK].ask({"set": dict.fromkeys(DIRECTIONS, changes)})

    def mac_of(self, host: str, interface: str) -> str:
        """The hardware address of a host's cable into the switch."""
        return next(port.mac for port in self._ports[host] if port.interface == interface)

    def _elements(self, sources: tuple[str, ...], targets: tuple[str, ...], both: bool) -> set[str]:
        if unknown := [host for host in (*sources, *targets) if host not in self._ports]:
            raise LabError(f"no cable of {unknown[0]!r} ends in the switch; there are {', '.join(self._ports)}")
        found = {
            topology.cut_element(near, far)
            for source, target in ((s, t) for s in sources for t in targets if s != t)
            for near in self._ports[source]
            for far in self._ports[target]
            if near.bridge.partition("-")[0] == far.bridge.partition("-")[0]
        }
        return found | (self._elements(targets, sources, both=False) if both else set())

    def _change(self, verb: str, pairs: set[str] | frozenset[str]) -> None:
        if pairs:
            self._shell(SWITCH, f"nft {verb} element bridge cuts pairs '{{ {', '.join(sorted(pairs))} }}'")

    def _wiring(self, paths: Mapping[str, str], emulated: Mapping[str, bool], mtu: Mapping[str, int]) -> dict[str, str]:
        return topology.wiring(self.shape, paths, emulated, mtu, slow_store=self._slow_store)

    def _addressing(self) -> dict[str, str]:
        return topology.addressing(self.shape, slow_store=self._slow_store)

    def _emulate(self, inside: NamespaceSet) -> None:
        if self._slow_store:
            ends = (f"{TRUNK}-g", f"{TRUNK}-e")
            self._emulators[TRUNK] = Emulator(inside, TRUNK, ends, Link.with_delay(0), self.seed)


def _by_host(ports: Iterable[Port]) -> dict[str, list[Port]]:
    found: dict[str, list[Port]] = {}
    for port in ports:
        found.setdefault(port.host, []).append(port)
    return found
