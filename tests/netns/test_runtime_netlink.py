"""The monitor against the real kernel: every change becomes facts, also after an overrun."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable

import pytest
from isolated import in_namespace, sh

from jumpvpn.runtime.netlink import NetMonitor
from jumpvpn.runtime.netstate import (
    AddressAdded,
    AddressRemoved,
    InterfaceDown,
    InterfaceGone,
    InterfaceUp,
    NetFact,
    RouteAdded,
    RouteRemoved,
    Usable,
    usable_transports,
)

pytestmark = pytest.mark.netns
GATEWAY = ipaddress.ip_address("203.0.113.1")
GATEWAY6 = ipaddress.ip_address("2001:db8::1")
SET_UP = """
ip link add a0 type veth peer name b0; ip link set a0 up; ip link set b0 up
ip addr add 10.1.1.2/24 dev a0; ip route add default via 10.1.1.1
ip -6 addr add fd11::2/64 dev a0 nodad; ip -6 route add default via fd11::1
"""


class Watch:
    """A monitor and all facts that it told."""

    def __init__(self, monitor: NetMonitor) -> None:
        self.monitor = monitor
        self.facts: list[NetFact] = []

    async def run(self) -> None:
        async for facts in self.monitor.changes():
            self.facts += facts

    def usable(self) -> tuple[Usable, ...]:
        return usable_transports(self.monitor.snapshot, [("gw", GATEWAY), ("gw", GATEWAY6)], lambda name: name == "a0")

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                await asyncio.sleep(0.01)


async def watched(body: Callable[[Watch], object]) -> None:
    async with NetMonitor() as monitor:
        watch = Watch(monitor)
        task = asyncio.create_task(watch.run())
        try:
            await body(watch)  # type: ignore[misc]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_initial_dump_and_every_later_change() -> None:
    async def body(watch: Watch) -> None:
        assert {u.address for u in watch.usable()} == {GATEWAY, GATEWAY6}
        sh("ip addr add 10.9.9.9/32 dev a0; ip route add 192.0.2.0/24 via 10.1.1.1")
        added = RouteAdded("a0", ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_address("10.1.1.1"))
        await watch.until(lambda: added in watch.facts)
        assert AddressAdded("a0", ipaddress.ip_address("10.9.9.9")) in watch.facts
        sh("ip route del default via 10.1.1.1")
        gone = RouteRemoved("a0", ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("10.1.1.1"))
        await watch.until(lambda: gone in watch.facts)
        assert {u.address for u in watch.usable()} == {GATEWAY6}

    sh_in_namespace(body)


def test_link_loss_and_return() -> None:
    async def body(watch: Watch) -> None:
        sh("ip link set b0 down")
        await watch.until(lambda: InterfaceDown("a0") in watch.facts)
        assert watch.usable() == ()
        sh("ip link set b0 up")
        await watch.until(lambda: InterfaceUp("a0") in watch.facts)
        await watch.until(lambda: {u.address for u in watch.usable()} == {GATEWAY, GATEWAY6})
        sh("ip link set a0 down")
        await watch.until(lambda: watch.facts.count(InterfaceDown("a0")) == 2)
        assert watch.usable() == ()
        sh("ip link set a0 up")
        await watch.until(lambda: watch.facts.count(InterfaceUp("a0")) == 2)
        assert watch.usable() == (), "the kernel dropped the default routes with the link"
        sh("ip link del a0")
        await watch.until(lambda: InterfaceGone("a0") in watch.facts)

    sh_in_namespace(body)


def test_routes_that_the_kernel_drops_silently_with_an_address_are_noticed() -> None:
    async def body(watch: Watch) -> None:
        sh("ip addr del 10.1.1.2/24 dev a0")
        gone = RouteRemoved("a0", ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("10.1.1.1"))
        await watch.until(lambda: gone in watch.facts)
        assert AddressRemoved("a0", ipaddress.ip_address("10.1.1.2")) in watch.facts

    sh_in_namespace(body)


def test_overrun_is_answered_by_a_fresh_dump() -> None:
    async def body() -> None:
        sh(SET_UP)
        async with NetMonitor() as monitor:
            assert monitor._socket is not None
            monitor._socket.setsockopt(1, 8, 4096)  # SO_RCVBUF, small enough to overrun
            changes = [f"route add 192.0.{n // 250}.{n % 250}/32 dev a0" for n in range(500)]
            sh("printf '%s\\n' " + " ".join(f"'{c}'" for c in changes) + " | ip -batch -")
            sh("ip link set b0 down")
            watch = Watch(monitor)
            task = asyncio.create_task(watch.run())
            await watch.until(lambda: monitor.overruns > 0 and InterfaceDown("a0") in watch.facts)
            await watch.until(lambda: sum(isinstance(f, RouteAdded) for f in watch.facts) >= 500)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    in_namespace(body)


def sh_in_namespace(body: Callable[[Watch], object]) -> None:
    async def whole() -> None:
        sh(SET_UP)
        await watched(body)

    in_namespace(whole)
