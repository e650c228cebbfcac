"""What a cluster consists of, as the words of ``jumpvpn cluster init`` name it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jumpvpn.cli.failures import USAGE_FAILURE, Failure
from jumpvpn.config import MOST_GATEWAYS, split_address
from jumpvpn.config_fields import InterfaceName, Name

ETCD_PORT = 2379  # registered for etcd's clients; its peers use the next one
MOST_MEMBERS = 7  # etcd's own advice: each more makes every write wait for more disks
MEMBER_PORTS = 3  # for clients, peers and local health checks
LAST_ETCD_PORT = 65535 - MEMBER_PORTS + 1
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_GATEWAY_FORM = "NAME=HOST:PORT[,inside=INTERFACE]"
_MEMBER_FORM = "NAME=HOST[:PORT]"


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway: where clients reach it, and the interface to the network behind it, if it announces there."""

    name: str
    address: str
    inside: str | None = None

    @property
    def folder(self) -> str:
        """Its directory below the cluster's."""
        return f"gateway-{self.name}"


@dataclass(frozen=True, slots=True)
class Member:
    """One etcd server. Clients use ``port``, other members ``port + 1``, local health checks ``port + 2``."""

    name: str
    host: str
    port: int = ETCD_PORT

    @property
    def folder(self) -> str:
        """Its directory below the cluster's."""
        return f"etcd-{self.name}"

    @property
    def is_address(self) -> bool:
        """Whether ``host`` is an IP address; etcd listens on addresses only."""
        return _is_address(self.host)

    def at(self, port: int) -> str:
        """``HOST:PORT`` of this member."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A cluster by name, with its gateways and its etcd members."""

    name: str
    gateways: tuple[Gateway, ...]
    members: tuple[Member, ...]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where gateways reach etcd."""
        return tuple(member.at(member.port) for member in self.members)

    def as_json(self) -> dict[str, Any]:
        """The plan for the file ``cluster.json``."""
        return {
            "name": self.name,
            "gateways": [{"name": g.name, "address": g.address, "inside": g.inside} for g in self.gateways],
            "etcd": [{"name": m.name, "host": m.host, "port": m.port} for m in self.members],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """The plan that ``as_json`` wrote. Raises ValueError."""
        try:
            gateways = tuple(Gateway(g["name"], g["address"], g["inside"]) for g in document["gateways"])
            members = tuple(Member(m["name"], m["host"], m["port"]) for m in document["etcd"])
            return cls(document["name"], gateways, members)
        except (KeyError, TypeError) as error:
            raise ValueError("not the plan of a cluster") from error


def read_plan(name: str, gateways: Sequence[str], members: Sequence[str]) -> Plan:
    """The plan that the command line states. Raises Failure with everything that is wrong."""
    problems: list[str] = []
    if not _is(Name, name):
        problems.append(f"--name {name!r}: 1 to 63 of letters, digits, . _ -")
    plan = Plan(name, read_gateways(gateways, problems), _members(members, problems))
    problems += broken(plan)
    if not members:
        problems.append(f"name at least one etcd server: --etcd {_MEMBER_FORM}")
    if not gateways:
        problems.append(f"name at least one gateway: --gateway {_GATEWAY_FORM}")
    demand(problems)
    return plan


def read_gateways(texts: Iterable[str], problems: list[str]) -> tuple[Gateway, ...]:
    """Gateways written as NAME=HOST:PORT[,inside=IF]; what is wrong is added to ``problems``."""
    found: list[Gateway] = []
    for text in texts:
        name, _, rest = text.partition("=")
        address, *options = rest.split(",")
        inside = None
        for option in options:
            key, _, inside = option.partition("=")
            if key != "inside" or not _is(InterfaceName, inside):
                problems.append(f"--gateway {text}: {option!r} is not inside=INTERFACE")
        if not _is(Name, name) or not _is_endpoint(address):
            problems.append(f"--gateway {text}: write {_GATEWAY_FORM}, where HOST is how clients reach it")
        found.append(Gateway(name, address, inside))
    return tuple(found)


def broken(plan: Plan) -> list[str]:
    """What is wrong between the parts of a plan."""
    problems = [f"{what} {name!r} is named twice" for what, name in _twice(plan)]
    if len(plan.members) > MOST_MEMBERS:
        problems.append(f"{len(plan.members)} etcd servers are too many: at most {MOST_MEMBERS}, best 3 or 5")
    if len(plan.gateways) > MOST_GATEWAYS:
        problems.append(f"{len(plan.gateways)} gateways are too many: a client's file names at most {MOST_GATEWAYS}")
    if len({one.inside is None for one in plan.gateways}) > 1:
        problems.append("name inside=INTERFACE for all gateways or for none: a session may come to any of them")
    return problems


def demand(problems: Sequence[str]) -> None:
    """Leave with all ``problems``, if there are any."""
    if len(problems) == 1:
        raise Failure(problems[0], USAGE_FAILURE)
    if problems:
        raise Failure(f"{len(problems)} problems\n" + "\n".join(f"  {text}" for text in problems), USAGE_FAILURE)


def _members(texts: Iterable[str], problems: list[str]) -> tuple[Member, ...]:
    found: list[Member] = []
    for text in texts:
        name, _, address = text.partition("=")
        try:
            bare = f"[{address}]" if _is_address(address) and ":" in address else address
            host, port = split_address(bare, ETCD_PORT)
        except ValueError:
            host, port = "", 0
        if not _is(Name, name) or not _is_host(host) or port > LAST_ETCD_PORT:
            problems.append(f"--etcd {text}: write {_MEMBER_FORM}, where HOST is an address or a DNS name")
        found.append(Member(name, host, port))
    return tuple(found)


def _twice(plan: Plan) -> list[tuple[str, str]]:
    lists = {
        "gateway": [gateway.name for gateway in plan.gateways],
        "the address of a gateway": [gateway.address for gateway in plan.gateways],
        "etcd server": [member.name for member in plan.members],
        "etcd server's port (each takes three)": [m.at(m.port + n) for m in plan.members for n in range(MEMBER_PORTS)],
    }
    return [(what, name) for what, names in lists.items() for name in sorted(set(names)) if names.count(name) > 1]


def _is(kind: Any, value: str) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def _is_endpoint(text: str) -> bool:
    try:
        host, _ = split_address(text)
    except ValueError:
        return False
    return _is_host(host)


def _is_host(text: str) -> bool:
    if _is_address(text):
        return not ipaddress.ip_address(text).is_unspecified
    is_number = text.replace(".", "").isdigit()  # a mistyped address, never a DNS name
    return not is_number and _HOST.fullmatch(text) is not None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
