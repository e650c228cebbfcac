"""The tables of a gateway's file that make it a member of a cluster: ``[cluster]`` and ``[announce]``."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from jumpvpn.config_fields import Endpoint, FilePath, InterfaceName, Name, Table, split_address
from jumpvpn.policy.problems import Problem, quoted
from jumpvpn.policy.units import format_duration, span
from jumpvpn.values import MILLISECOND, MINUTE, SECOND, Duration

if TYPE_CHECKING:
    from jumpvpn.config import GatewayConfig

SHORTEST_LEASE = Duration(2 * SECOND)  # etcd makes shorter ones longer, with its usual election timeout of 1 s
LONGEST_LEASE = Duration(MINUTE)  # for so long the sessions of a dead gateway whose clients are silent are nobody's
LEAST_MARGIN_SHARE = 100  # 1 % of the lease: NTP slews two clocks apart by at most a tenth of that (500 ppm each)
MOST_MARGIN_SHARE = 2  # half: renewal, every third of the lease, must be able to move the deadline forward
MOST_ETCD_MEMBERS = 16  # etcd is run with 3 or 5, 7 at most; the rest is room for names of the same member
MOST_WORDS = 32  # of a command; what needs more is a script


class ClusterConfig(Table):
    """Where the shared store is, how this gateway proves itself to it, and how long ownership holds (durations in ns).

    ``key_file`` holds the cluster's key (32 bytes, raw or as base64 text), the same at every gateway. ``advertise`` is
    where clients reach this gateway. Forwarding stops ``margin`` before the lease could be over by our own clock.
    ``adopt_after``: how long the sessions of a gateway that is gone wait for their clients before another adopts them.
    """

    name: Name
    etcd: Annotated[tuple[Endpoint, ...], Field(strict=False, min_length=1, max_length=MOST_ETCD_MEMBERS)]
    ca: FilePath
    certificate: FilePath
    key: FilePath
    key_file: FilePath = Field(default=Path("cluster.key"), validate_default=True)
    advertise: Endpoint
    lease: Annotated[Duration, span(SHORTEST_LEASE, LONGEST_LEASE)] = Duration(5 * SECOND)
    margin: Annotated[Duration, span(MILLISECOND, LONGEST_LEASE)] = Duration(500 * MILLISECOND)
    adopt_after: Annotated[Duration, span(SECOND, 10 * MINUTE)] = Duration(10 * SECOND)

    @property
    def lease_seconds(self) -> int:
        """The lease as etcd counts it."""
        return self.lease // SECOND

    def problems(self) -> list[Problem]:
        """What is wrong between the keys of this table."""
        return [*self._lease_problems(), *self._address_problems()]

    def _lease_problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.lease % SECOND:
            message = "must be whole seconds: etcd counts leases in seconds"
            found.append(Problem(("lease",), message, format_duration(self.lease)))
        least, most = self.lease // LEAST_MARGIN_SHARE, self.lease // MOST_MARGIN_SHARE
        if not least <= self.margin < most:
            bounds = (
                f"at least {format_duration(least)} (1 % of lease) and less than {format_duration(most)} (half of it)"
            )
            message = f"must be {bounds}: it covers the drift of two clocks and must leave time to renew"
            found.append(Problem(("margin",), message, format_duration(self.margin)))
        return found

    def _address_problems(self) -> list[Problem]:
        found: list[Problem] = []
        for index, endpoint in enumerate(self.etcd):
            if endpoint in self.etcd[:index]:
                message = f"must be unique, but cluster.etcd[{self.etcd.index(endpoint)}] is the same"
                found.append(Problem(("etcd", index), message, quoted(endpoint)))
        if _is_wildcard(split_address(self.advertise)[0]):
            message = "must be where clients reach this gateway; an address for listening means nothing to them"
            found.append(Problem(("advertise",), message, quoted(self.advertise)))
        return found


class Announce(Table):
    """How the network behind the gateways learns which of them has an inner address.

    ``arp``: gratuitous announcements and proxy ARP/NDP on ``interface``. ``command``: a program of the administrator's
    (an absolute path, then its first arguments). Packets of other gateways' clients come in by ``interface`` only.
    """

    mode: Literal["none", "arp", "command"] = "none"
    interface: InterfaceName | None = None
    command: Annotated[tuple[str, ...], Field(strict=False, max_length=MOST_WORDS)] = ()

    def problems(self) -> list[Problem]:
        """What is wrong between the keys of this table."""
        found: list[Problem] = []
        if self.mode == "arp" and self.interface is None:
            message = 'missing; mode = "arp" needs the interface of the network behind the gateways, such as "eth1"'
            found.append(Problem(("interface",), message))
        if self.mode == "command" and not self.command:
            message = 'missing; mode = "command" needs the program and its arguments, such as ["/usr/local/bin/route"]'
            found.append(Problem(("command",), message))
        if self.command and not self.command[0].startswith("/"):
            found.append(Problem(("command",), "must begin with an absolute path", quoted(list(self.command))))
        for key, mode, value in (("interface", "arp", self.interface), ("command", "command", list(self.command))):
            if value and self.mode == "none":
                message = f'has no effect; add mode = "{mode}", or remove it'
                found.append(Problem((key,), message, quoted(value)))
        return found


_PARTS: tuple[tuple[str, type[ClusterConfig | Announce]], ...] = (("cluster", ClusterConfig), ("announce", Announce))


def problems_inside(table: Mapping[str, Any], context: Mapping[str, Any]) -> list[Problem]:
    """What is wrong within those of our tables whose keys are fine one by one; works when others are not."""
    found: list[Problem] = []
    for name, kind in _PARTS:
        try:
            part = kind.model_validate(table.get(name), context=dict(context))
        except ValidationError:  # told already, or there is no such table
            continue
        found += [problem.under(name) for problem in part.problems()]
    return found


def problems_between(config: GatewayConfig) -> list[Problem]:
    """What is wrong between our tables and the rest of a gateway's file."""
    found: list[Problem] = []
    if config.cluster is not None and config.store == "memory":
        message = 'must be "sqlite" with [cluster]: changes are durable there before etcd has them'
        found.append(Problem(("store",), message, quoted(config.store)))
    if config.announce.mode != "none" and config.forward.enabled and config.forward.masquerade:
        message = (
            f'must be false with announce.mode = "{config.announce.mode}": masqueraded packets come back to this '
            "gateway's own address, whoever has the inner one; write masquerade = false below [forward]"
        )
        found.append(Problem(("forward", "masquerade"), message, "true"))
    return found


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
