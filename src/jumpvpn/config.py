"""Configuration files (TOML), parsed once into frozen values; every mistake of a file is reported at once."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from jumpvpn.config_cluster import Announce, ClusterConfig, problems_between, problems_inside
from jumpvpn.config_fields import (
    DEFAULT_PORT,
    KEY_BYTES,
    Address4,
    Address6,
    Endpoint,
    FilePath,
    InterfaceName,
    IPAddress,
    IPNetwork,
    Listen,
    Many,
    Mtu,
    Name,
    Network,
    Network4,
    Network6,
    Pattern,
    PublicKey,
    Table,
    decode_key,
    encode_key,
    split_address,
)
from jumpvpn.policy.model import Policy, load_policy
from jumpvpn.policy.problems import Problem, Rejected, problems_of, quoted
from jumpvpn.policy.units import extent
from jumpvpn.toml_lines import line_of

# What others need of the single values comes from here too.
__all__ = [
    "DEFAULT_MTU", "DEFAULT_PORT", "INNER_INTERFACES", "KEY_BYTES", "MOST_GATEWAYS", "Announce", "ClientConfig",
    "ClientTunnel", "ClusterConfig", "Device", "Forward", "GatewayConfig", "GatewayPeer", "GatewayTunnel", "IPAddress",
    "IPNetwork", "Interfaces", "Recording", "Table", "decode_key", "encode_key", "load_client", "load_either",
    "load_gateway", "load_policy_file", "load_policy_of", "parse_client", "parse_gateway", "preferring", "read_text",
    "split_address",
]  # fmt: skip

# Each one costs the client a probe per interface; whoever runs more gateways names each client the ones near it.
MOST_GATEWAYS = 16
# 1500 of Ethernet less IPv6 and UDP (48), our seal (32) and 40 for PPPoE, NAT64 and the like on the way.
DEFAULT_MTU = 1380

Checked = TypeVar("Checked")


class Device(Table):
    """One client that may connect. Without an address it gets the next free one of the pool."""

    name: Name
    public_key: PublicKey
    address: Address4 | None = None
    address6: Address6 | None = None


class GatewayTunnel(Table):
    """The inner network: our first address of each pool is the gateway's, the rest is for devices."""

    name: InterfaceName = "jumpvpn0"
    mtu: Mtu = DEFAULT_MTU
    pool: Network4 = ipaddress.IPv4Network("10.77.0.0/24")
    pool6: Network6 | None = None
    routes: Annotated[tuple[Network, ...], Many] = (ipaddress.IPv4Network("0.0.0.0/0"),)

    def gateway_addresses(self) -> tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]:
        """Our own inner addresses with the pool's prefix length."""
        found: list[ipaddress.IPv4Interface | ipaddress.IPv6Interface] = [
            ipaddress.IPv4Interface((self.pool.network_address + 1, self.pool.prefixlen))
        ]
        if self.pool6 is not None:
            found.append(ipaddress.IPv6Interface((self.pool6.network_address + 1, self.pool6.prefixlen)))
        return tuple(found)


class Forward(Table):
    """What the gateway does with inner packets that are not for itself."""

    enabled: bool = True
    masquerade: bool = True
    interfaces: Annotated[tuple[InterfaceName, ...], Many] = ()


class Recording(Table):
    """What the node's engine is told, kept for ``jumpvpn replay``: ``keep`` files of at most ``size`` bytes each."""

    file: FilePath
    size: Annotated[int, extent(64 * 1024, 1024**3)] = 16 * 1024**2
    keep: Annotated[int, Field(ge=1, le=1000)] = 4


class GatewayConfig(Table):
    """All that one gateway needs to run."""

    name: Name = "gateway"
    private_key_file: FilePath
    listen: Annotated[tuple[Listen, ...], Field(strict=False, min_length=1, max_length=16)] = (
        f"0.0.0.0:{DEFAULT_PORT}",
    )
    state_dir: FilePath = Path("/var/lib/jumpvpn")
    control: FilePath = Path("/run/jumpvpn/gateway.sock")
    events: FilePath = Path("/var/lib/jumpvpn/events.jsonl")
    store: Literal["sqlite", "memory"] = "sqlite"
    key_file: FilePath | None = None
    tunnel: GatewayTunnel = GatewayTunnel()
    forward: Forward = Forward()
    cluster: ClusterConfig | None = None
    announce: Announce = Announce()
    device: Annotated[tuple[Device, ...], Field(strict=False, max_length=65536)] = ()
    recording: Recording | None = None
    policy: Policy = Policy()
    source: SkipJsonSchema[Path | None] = None  # the file this was read from; never a key of it

    @property
    def role(self) -> Literal["gateway"]:
        """Which of the two roles this file configures."""
        return "gateway"


class GatewayPeer(Table):
    """One gateway as the client knows it."""

    name: Name
    address: Endpoint
    public_key: PublicKey


class ClientTunnel(Table):
    """The inner interface; ``routes`` are those wanted through the tunnel, of those that the gateway announces."""

    name: InterfaceName = "jumpvpn0"
    mtu: Mtu = DEFAULT_MTU
    routes: Annotated[tuple[Network, ...], Many] | None = None


# Interfaces that lead into containers, bridges and other tunnels of this machine, not to the outside.
INNER_INTERFACES = ("docker*", "br-*", "virbr*", "veth*", "tun*", "tap*", "wg*", "jumpvpn*", "ifb*")


class Interfaces(Table):
    """Which local interfaces may become transports; ``deny`` wins, ``prefer`` ranks (first is best)."""

    allow: Annotated[tuple[Pattern, ...], Many] = ("*",)
    deny: Annotated[tuple[Pattern, ...], Many] = INNER_INTERFACES
    prefer: Annotated[tuple[Pattern, ...], Many] = ()


class ClientConfig(Table):
    """All that one client needs to run. ``mark`` and ``table`` keep our own packets out of the tunnel."""

    name: Name = "client"
    private_key_file: FilePath
    state_dir: FilePath = Path("/var/lib/jumpvpn")
    control: FilePath = Path("/run/jumpvpn/client.sock")
    events: FilePath = Path("/var/lib/jumpvpn/client-events.jsonl")
    mark: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] = 0x4A56
    table: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] = 19030
    tunnel: ClientTunnel = ClientTunnel()
    interfaces: Interfaces = Interfaces()
    gateway: Annotated[tuple[GatewayPeer, ...], Field(strict=False, min_length=1, max_length=MOST_GATEWAYS)]
    recording: Recording | None = None
    policy: Policy = Policy()
    source: SkipJsonSchema[Path | None] = None  # the file this was read from; never a key of it

    @property
    def role(self) -> Literal["client"]:
        """Which of the two roles this file configures."""
        return "client"


Config = TypeVar("Config", GatewayConfig, ClientConfig)


def load_gateway(path: Path) -> GatewayConfig:
    """Read a gateway's file. Raises ``Rejected`` with all problems."""
    return parse_gateway(read_text(path), path.parent, str(path))


def load_client(path: Path) -> ClientConfig:
    """Read a client's file. Raises ``Rejected`` with all problems."""
    return parse_client(read_text(path), path.parent, str(path))


def load_either(path: Path) -> GatewayConfig | ClientConfig:
    """Read a file of either role: one with ``[[gateway]]`` tables is a client's."""
    text = read_text(path)
    is_client = "gateway" in _tables(text, str(path))
    return (parse_client if is_client else parse_gateway)(text, path.parent, str(path))


def parse_gateway(text: str, base: Path, source: str = "") -> GatewayConfig:
    """A gateway's configuration from TOML ``text``; relative paths start at ``base``. Raises ``Rejected``."""
    return _parse(GatewayConfig, text, base, source, _gateway_problems, problems_inside)


def parse_client(text: str, base: Path, source: str = "") -> ClientConfig:
    """A client's configuration from TOML ``text``; relative paths start at ``base``. Raises ``Rejected``."""
    return _parse(ClientConfig, text, base, source, _client_problems, lambda *_: [])


def _parse(
    kind: type[Config],
    text: str,
    base: Path,
    source: str,
    relations: Callable[[Config], list[Problem]],
    parts: Callable[[Mapping[str, Any], Mapping[str, Any]], list[Problem]],
) -> Config:
    """``relations`` needs a whole configuration; ``parts`` judges single tables, also beside broken ones."""
    table = _tables(text, source)
    problems: list[Problem] = []
    if "source" in table:
        problems.append(Problem(("source",), "unknown key; remove it or correct its spelling"))
    policy = _policy(table, base, problems)
    table |= {"policy": policy, "source": Path(source) if source else None}
    context = {"base": base.absolute()}
    problems += parts(table, context)
    config: Config | None = None
    try:
        config = kind.model_validate(table, context=context)
        problems += relations(config)
    except ValidationError as error:
        problems += problems_of(error)
    if problems or config is None:
        raise Rejected(_placed(problems, text), source)
    return config


def _placed(problems: Iterable[Problem], text: str) -> list[Problem]:
    """``problems`` with the line of ``text`` that each one means, in that order."""
    placed = [Problem(p.path, p.message, p.value, p.line or line_of(text, p.path)) for p in problems]
    return sorted(placed, key=lambda p: p.line or 0)


def _policy(table: dict[str, Any], base: Path, problems: list[Problem]) -> Policy:
    """The policy of ``policy_file`` or of the ``[policy]`` tables; both keys are taken out of ``table``."""
    inline, file = table.pop("policy", None), table.pop("policy_file", None)
    if inline is not None and file is not None:
        problems.append(Problem(("policy_file",), "give either policy_file or [policy], not both", quoted(file)))
        return Policy()
    try:
        if file is not None:
            return load_policy_file(base / file)
        if inline is not None and not isinstance(inline, Mapping):
            problems.append(Problem(("policy",), "must be a table of keys", quoted(inline)))
            return Policy()
        return load_policy(inline or {})
    except Rejected as error:
        if file is None:
            problems += [p.under("policy") for p in error.problems]
        else:  # lines of the other file would mislead here
            told = [str(Problem(p.path, p.message, p.value)) for p in error.problems]
            problems += [Problem(("policy_file",), text, quoted(file)) for text in told]
    except TypeError:
        problems.append(Problem(("policy_file",), "must be a path in quotes", quoted(file)))
    return Policy()


def load_policy_of(path: Path) -> Policy:
    """The policy that a file holds: a policy of its own, or the one of a node's configuration as the node uses it.

    Nothing else of a configuration is looked at. Raises ``Rejected``.
    """
    text = read_text(path)
    table = _tables(text, str(path))
    if table.keys() <= Policy.model_fields.keys():
        return load_policy_file(path)
    interfaces, problems = table.get("interfaces"), list[Problem]()
    policy = _policy(table, path.parent, problems)
    if problems:
        raise Rejected(_placed(problems, text), str(path))
    prefer = interfaces.get("prefer", ()) if isinstance(interfaces, dict) else ()
    return preferring(policy, [pattern for pattern in prefer if isinstance(pattern, str)])


def preferring(policy: Policy, interfaces: Sequence[str]) -> Policy:
    """``policy`` with these patterns of interfaces as its preference, unless it states one itself."""
    if policy.transports.prefer or not interfaces:
        return policy
    prefer = tuple(f"interface:{pattern}" for pattern in interfaces)
    return policy.model_copy(update={"transports": policy.transports.model_copy(update={"prefer": prefer})})


def load_policy_file(path: Path) -> Policy:
    """Read a policy from its own file. Raises ``Rejected``."""
    text = read_text(path)
    try:
        return load_policy(_tables(text, str(path)))
    except Rejected as error:
        raise Rejected(_placed(error.problems, text), str(path)) from None


def read_text(path: Path) -> str:
    """The text in ``path``. Raises ``Rejected`` where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Rejected([Problem((), "is not UTF-8 text")], str(path)) from None
    except FileNotFoundError:
        raise Rejected([Problem((), "there is no such file; 'jumpvpn init' writes one")], str(path)) from None
    except OSError as error:
        raise Rejected([Problem((), f"cannot be read: {error.strerror}")], str(path)) from None


def _tables(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Rejected([Problem((), f"is not valid TOML: {error}")], source) from None


def _gateway_problems(config: GatewayConfig) -> list[Problem]:
    problems = _repeated(config.device, "device", ("name", "public_key", "address", "address6"))
    problems += _recording_problems(config) + problems_between(config)
    own = {address.ip for address in config.tunnel.gateway_addresses()}
    if config.tunnel.pool.num_addresses < 4:
        problems.append(
            Problem(("tunnel", "pool"), "must hold at least one device: /30 or larger", str(config.tunnel.pool))
        )
    for index, device in enumerate(config.device):
        for key, network in (("address", config.tunnel.pool), ("address6", config.tunnel.pool6)):
            address = getattr(device, key)
            if address is not None and (network is None or address not in network or address in own):
                wanted = f"inside {network} and not the gateway's own" if network else "absent: there is no pool6"
                problems.append(Problem(("device", index, key), f"must be {wanted}", str(address)))
    return problems


def _client_problems(config: ClientConfig) -> list[Problem]:
    problems = _repeated(config.gateway, "gateway", ("name",)) + _recording_problems(config)
    if config.table in (253, 254, 255):
        problems.append(Problem(("table",), "must not be one of the system's tables 253 to 255", str(config.table)))
    return problems


def _recording_problems(config: GatewayConfig | ClientConfig) -> list[Problem]:
    wish = config.recording
    if wish is None or wish.file not in (config.events, config.control, config.private_key_file):
        return []
    message = "must be a file of its own, not one that another key names"
    return [Problem(("recording", "file"), message, quoted(str(wish.file)))]


def _repeated(tables: tuple[Checked, ...], name: str, keys: tuple[str, ...]) -> list[Problem]:
    problems: list[Problem] = []
    for key in keys:
        first: dict[Any, int] = {}
        for index, table in enumerate(tables):
            value = getattr(table, key)
            if value is None:
                continue
            if value in first:
                other = f"{name}[{first[value]}]"
                problems.append(Problem((name, index, key), f"must be unique, but {other} has it too", quoted(value)))
            first.setdefault(value, index)
    return problems
