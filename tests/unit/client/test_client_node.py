"""The client process among the gateways of a cluster: what it learns, keeps, opens and closes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jumpvpn.client import memory
from jumpvpn.client.executor import ClientExecutor
from jumpvpn.client.node import ClientNode, meant
from jumpvpn.config import ClientConfig, encode_key, parse_client
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.runtime import status
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.netstate import Address, Interface, Route, Snapshot
from jumpvpn.session.records import Kept
from jumpvpn.transports.state import Condition
from jumpvpn.values import Instant, Now, SessionId, TransportId, Version
from jumpvpn.wire.gateways import DRAIN, GATEWAYS, Gateway, encode_drain, encode_gateways

KEYS = {f"gw{n}": bytes([n]) * 32 for n in range(1, 10)}
ID = SessionId(bytes(16))


def gateway(number: int, host: str = "") -> Gateway:
    return Gateway(f"gw{number}", f"{host or f'192.0.2.{number}'}:51900", KEYS[f"gw{number}"])


def networks(*names: str) -> Snapshot:
    """Interfaces that are up, with an address and a default route each."""
    interfaces = {index: Interface(index, name, is_up=True) for index, name in enumerate(names, 1)}
    addresses = [
        Address(index, ipaddress.ip_address(f"10.{index}.0.2"), 24, is_usable=True, is_deprecated=False)
        for index in interfaces
    ]
    everywhere = ipaddress.ip_network("0.0.0.0/0")
    routes = [Route(everywhere, index, ipaddress.ip_address(f"10.{index}.0.1"), None, 100, 254) for index in interfaces]
    return Snapshot(interfaces, frozenset(addresses), frozenset(routes))


class Plane:
    """Opens sockets and remembers which are open."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self._sockets = 0

    def open_socket(self, **_: Any) -> tuple[int, str]:
        self._sockets += 1
        self.open.add(self._sockets)
        return self._sockets, "10.0.0.2:1"

    def close_socket(self, socket: int) -> None:
        self.open.remove(socket)

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_options: {}


class Client:
    """A node whose packet core and networks are the test's; ``pump`` is its loop."""

    def __init__(self, config: ClientConfig, *interfaces: str) -> None:
        self.node = ClientNode(config)
        self.inputs: deque[Any] = deque()
        self.plane = Plane()
        self.executor = ClientExecutor(self.plane, 1, self.inputs.append, lambda _name: None)  # type: ignore[arg-type]
        self.executor.told_gateways = self.node._learn
        self.engine = self.node._engine
        self.node._driver = SimpleNamespace(post=self.inputs.append)  # type: ignore[assignment]
        self.node._executor = self.executor
        self.node._monitor = SimpleNamespace(snapshot=networks(*interfaces))  # type: ignore[assignment]
        self.now = 1_000_000_000_000

    async def start(self) -> Client:
        await self.node._find_gateways()
        self.node._network_changed([])
        self.pump()
        return self

    def born(self, transport: str) -> Client:
        born_on = TransportId(transport)
        path = self.engine.transports[born_on].path
        assert path is not None
        self.executor.adopt(7, ID.uid, Kept(b"", "", ()), born_on, path)
        policy = self.engine.policy
        self.inputs.append(inp.HandshakeAnswered(ID, born_on, "192.0.2.1:51900", "c0ffee", policy, Version(1)))
        self.pump()
        return self

    def pump(self) -> None:
        while self.inputs:
            self.now += 1_000_000
            self._carry_out(self.engine.handle(self.inputs.popleft(), Now(Instant(self.now), 0)))
            self.node._follow_session()

    def _carry_out(self, orders: list[Any]) -> None:
        for order in orders:
            if isinstance(order, out.Commit):
                ended = inp.CommitEnded(order.uid, order.serial, "committed")
                self._carry_out(self.engine.handle(ended, Now(Instant(self.now), 0)))
            elif not isinstance(order, out.Emit):
                self.executor.execute(order)

    def tell(self, *fact: Any) -> None:
        self.executor.consume(fact)
        self.pump()

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """The job that follows the cluster's list, until the list that was told is in use."""
        task = asyncio.create_task(self.node._follow_list())
        try:
            yield
            async with asyncio.timeout(10):
                while self.node._told.is_set() or not self.inputs:
                    await asyncio.sleep(0.001)
            self.pump()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def here(self) -> set[str]:
        return {t for t, known in self.engine.transports.items() if known.condition is not Condition.GONE}

    def document(self) -> dict[str, tuple[str, str]]:
        known = [(found.name, found.address) for found in self.node._gateways.all]
        told = status.of_client(self.engine, 0, self.plane, self.node._config, None, 0, known)  # type: ignore[arg-type]
        return {found["name"]: (found["state"], found["address"]) for found in told["gateways"]}


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names under .invalid do not exist (RFC 6761); no resolver is asked."""
    ask = socket.getaddrinfo

    def answer(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ask(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.fixture(autouse=True)
def _no_tun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plane, "tun_name", "", raising=False)


def config(tmp_path: Path, *, gateways: int = 1, policy: str = "", host: str = "192.0.2.1") -> ClientConfig:
    tables = "".join(
        f'[[gateway]]\nname = "gw{n}"\naddress = "{host if n == 1 else f"192.0.2.{n}"}:51900"\n'
        f'public_key = "{encode_key(KEYS[f"gw{n}"])}"\n'
        for n in range(1, gateways + 1)
    )
    text = f'private_key_file = "key"\nstate_dir = "{tmp_path}"\n{tables}{policy}'
    return parse_client(text, tmp_path)


async def test_the_cluster_is_learned_used_and_kept(tmp_path: Path) -> None:
    client = (await Client(config(tmp_path), "wlan0", "eth0").start()).born("wlan0/udp/gw1")
    assert client.here == {"wlan0/udp/gw1", "eth0/udp/gw1"}
    async with client.following():
        client.tell("control", 7, 0, GATEWAYS, encode_gateways([gateway(n) for n in (1, 3, 2, 4)]))
    assert client.here == {f"{i}/udp/{g}" for i in ("wlan0", "eth0") for g in ("gw1", "gw3", "gw2")}
    assert memory.read(tmp_path, [KEYS["gw1"]]) == (gateway(3), gateway(2), gateway(4))
    assert client.executor.ways[TransportId("eth0/udp/gw3")].peer == "192.0.2.3:51900"
    assert client.executor.ways[TransportId("eth0/udp/gw3")].key == KEYS["gw3"]
    assert client.document() == {
        "gw1": ("current", "192.0.2.1:51900"), "gw3": ("silent", "192.0.2.3:51900"),
        "gw2": ("silent", "192.0.2.2:51900"), "gw4": ("unused", "192.0.2.4:51900"),
    }  # fmt: skip


async def test_a_list_that_came_at_birth_serves_the_next_birth(tmp_path: Path) -> None:
    memory.write(tmp_path, [KEYS["gw1"]], (gateway(2),))
    client = await Client(config(tmp_path), "wlan0").start()
    assert client.here == {"wlan0/udp/gw1", "wlan0/udp/gw2"}
    assert client.engine.transports[TransportId("wlan0/udp/gw2")].peer == "192.0.2.2:51900"


async def test_a_damaged_list_is_told_and_the_file_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / memory.FILE_NAME).write_bytes(b"\x00garbage")
    client = await Client(config(tmp_path), "wlan0").start()
    assert client.here == {"wlan0/udp/gw1"}
    assert "going on with the gateways of the configuration file" in capsys.readouterr().err


async def test_nothing_that_can_be_found_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="no gateway name can be resolved"):
        await Client(config(tmp_path, host="gateway.invalid"), "wlan0").start()


async def test_a_name_that_cannot_be_found_does_not_stand_in_the_way_of_others(tmp_path: Path) -> None:
    client = await Client(config(tmp_path, gateways=2, host="gateway.invalid"), "wlan0").start()
    assert client.here == {"wlan0/udp/gw2"}


async def test_who_leaves_the_list_is_closed_unless_the_session_is_there(tmp_path: Path) -> None:
    client = (await Client(config(tmp_path), "wlan0").start()).born("wlan0/udp/gw1")
    async with client.following():
        client.tell("control", 7, 0, GATEWAYS, encode_gateways([gateway(1), gateway(2)]))
    async with client.following():
        client.tell("control", 7, 0, GATEWAYS, encode_gateways([gateway(1), gateway(3)]))
    assert client.here == {"wlan0/udp/gw1", "wlan0/udp/gw3"}
    assert client.plane.open == {way.socket for way in client.executor.ways.values()}
    client.tell("standby_answered", 7, client.executor.ways[TransportId("wlan0/udp/gw3")].path, "", 1, False)
    client.inputs.append(inp.OperatorSwitch(TransportId("wlan0/udp/gw3")))
    client.pump()
    asked = client.engine.session
    assert asked is not None
    assert asked.attempt is not None
    path = client.executor.ways[TransportId("wlan0/udp/gw3")].path
    client.tell("reattach_reply", 7, "n", 0, 2, 2, 0, path, b"")
    assert client.document()["gw3"][0] == "current"
    async with client.following():
        client.tell("control", 7, path, GATEWAYS, encode_gateways([gateway(1), gateway(2)]))
    assert client.here == {"wlan0/udp/gw3", "wlan0/udp/gw1", "wlan0/udp/gw2"}


async def test_a_moved_gateway_is_reached_at_its_new_address(tmp_path: Path) -> None:
    client = (await Client(config(tmp_path), "wlan0").start()).born("wlan0/udp/gw1")
    async with client.following():
        client.tell("control", 7, 0, GATEWAYS, encode_gateways([gateway(2)]))
    before = client.executor.ways[TransportId("wlan0/udp/gw2")].socket
    async with client.following():
        client.tell("control", 7, 0, GATEWAYS, encode_gateways([gateway(2, "198.51.100.7")]))
    way = client.executor.ways[TransportId("wlan0/udp/gw2")]
    assert (way.peer, way.socket != before) == ("198.51.100.7:51900", True)


async def test_who_drains_is_replaced_until_the_list_is_told_again(tmp_path: Path) -> None:
    policy = "[policy.transports]\nstandby_gateways = 1\n"
    client = (await Client(config(tmp_path, gateways=3, policy=policy), "wlan0").start()).born("wlan0/udp/gw1")
    assert client.here == {"wlan0/udp/gw1", "wlan0/udp/gw2"}
    there = client.executor.ways[TransportId("wlan0/udp/gw2")].path
    client.tell("standby_answered", 7, there, "", 1, True)
    assert client.here == {"wlan0/udp/gw1", "wlan0/udp/gw3"}
    client.node._network_changed([])
    client.pump()
    assert client.here == {"wlan0/udp/gw1", "wlan0/udp/gw3"}, "not to and fro"
    async with client.following():
        client.tell("control", 7, 0, GATEWAYS, encode_gateways([gateway(n) for n in (1, 2, 3)]))
    assert client.here == {"wlan0/udp/gw1", "wlan0/udp/gw2"}


async def test_a_drain_of_the_own_gateway_is_shown(tmp_path: Path) -> None:
    client = (await Client(config(tmp_path), "wlan0").start()).born("wlan0/udp/gw1")
    client.tell("control", 7, 0, DRAIN, encode_drain(on=True))
    assert client.document()["gw1"][0] == "draining"
    client.tell("control", 7, 0, DRAIN, encode_drain(on=False))
    assert client.document()["gw1"][0] == "current"


async def test_policy_may_want_no_other_gateway(tmp_path: Path) -> None:
    policy = "[policy.transports]\nstandby_gateways = 0\n"
    client = (await Client(config(tmp_path, gateways=3, policy=policy), "wlan0").start()).born("wlan0/udp/gw1")
    assert client.here == {"wlan0/udp/gw1"}


async def test_more_interfaces_mean_fewer_standbys(tmp_path: Path) -> None:
    names = ("a0", "b0", "c0", "d0", "e0")
    client = (await Client(config(tmp_path, gateways=3), *names).start()).born("a0/udp/gw1")
    assert client.here == {f"{name}/udp/gw1" for name in names}


async def test_before_the_birth_gateways_take_turns(tmp_path: Path) -> None:
    client = await Client(config(tmp_path, gateways=4), "wlan0").start()
    seen = set[str]()
    for _ in range(4):
        seen |= {transport.split("/")[2] for transport in client.here}
        client.node._pass_over()
        client.pump()
    assert seen == {"gw1", "gw2", "gw3", "gw4"}


@pytest.mark.parametrize(
    ("wanted", "home", "transport"),
    [
        ("wwan0", "gw1", "wwan0/udp/gw1"),
        ("wwan0", "gw2", "wwan0/udp/gw2"),
        ("wwan0/udp/gw2", "gw1", "wwan0/udp/gw2"),
        ("eth0", "gw1", "eth0/udp/gw2"),
        ("wwan0", None, None),
        ("wwan", "gw1", None),
        ("", "gw1", None),
    ],
)
def test_an_interface_means_its_way_to_the_present_gateway(
    wanted: str, home: str | None, transport: str | None
) -> None:
    known = [TransportId(name) for name in ("wlan0/udp/gw1", "wwan0/udp/gw1", "wwan0/udp/gw2", "eth0/udp/gw2")]
    assert meant(wanted, known, home) == transport
