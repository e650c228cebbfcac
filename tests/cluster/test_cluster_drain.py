"""A gateway that goes in order takes no packet with it: neither of its clients' conversations nor of the servers'."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import pytest

from jumpvpn.lab.cluster.configuration import inner_address
from jumpvpn.lab.cluster.deployment import ClusterDeployment, Options
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.topology import Shape
from jumpvpn.lab.incidents import AFTERMATH_NS, IN_FLIGHT_NS
from jumpvpn.lab.link import Link
from jumpvpn.lab.measure import EchoLog, load_echo
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.workload import Load, Workload

pytestmark = pytest.mark.netns
PATIENT_S = 30.0
LOOK_S = 0.1
# The gateways are left on purpose only: a client that changes its network meanwhile is another story.
POLICY = """
[policy.switching]
failback = "600s"
"""


class FromServer:
    """A 1 kHz echo that the server begins: its packets come whether or not the client has just said something."""

    def __init__(self, lab: ClusterLab) -> None:
        self._lab = lab
        self._out: Path = lab.directory / "from-server.log"
        self._processes: list[Process] = []

    async def start(self) -> None:
        """Returns when both ends run."""
        await self._launch("client", "serve", "--bind", inner_address(0))
        await self._launch("server", "echo", "--udp", "--server", inner_address(0), "--out", str(self._out))

    async def finish(self) -> EchoLog:
        """Ends both; what became of the messages."""
        serve, echo = self._processes
        echo.terminate()
        await asyncio.wait_for(echo.communicate(), PATIENT_S)
        serve.terminate()
        await serve.wait()
        return load_echo(self._out)

    async def _launch(self, namespace: str, module: str, *arguments: str) -> None:
        argv = [sys.executable, "-P", "-m", f"jumpvpn.lab.traffic.{module}", *arguments]
        process = await self._lab.exec_async(namespace, argv, stdin=DEVNULL, stdout=PIPE)
        self._processes.append(process)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), PATIENT_S)


async def counts_on(vpn: ClusterDeployment, gateway: str) -> None:
    """Until the client has proved a way to the gateway, which serves."""
    while not any(
        known["name"] == gateway and known["state"] == "standby" for known in (await vpn.status("client"))["gateways"]
    ):
        await asyncio.sleep(LOOK_S)


async def empty(vpn: ClusterDeployment, gateway: str) -> None:
    """Until the gateway owns no session, as ``jumpvpn drain --stop`` waits."""
    while await vpn.left(gateway):
        await asyncio.sleep(LOOK_S / 10)


async def leave(vpn: ClusterDeployment, how: str) -> tuple[int, int]:
    """The owner goes in order; when that began, and when the client was elsewhere (boot ns)."""
    owner, before = await vpn.gateway_of(), boot_ns()
    if "drain" in how:
        await vpn.drain(owner)
        await vpn.while_healthy(empty(vpn, owner), PATIENT_S)
    if "stop" in how:
        assert await vpn.stop_node(owner) == 0
    gone = boot_ns()
    moved = await vpn.event(lambda r: r.side == "client" and r.turned("ATTACHED"), before)
    assert await vpn.gateway_of() != owner
    if "stop" in how:
        await vpn.restart_node(owner)
    else:
        await vpn.undrain(owner)
        await vpn.joined([owner])
    await vpn.while_healthy(counts_on(vpn, owner), PATIENT_S)
    return before, max(gone, moved.at_ns)


async def test_a_gateway_that_is_left_in_order_loses_nothing() -> None:
    with ClusterLab(Shape(gateways=2), wifi=Link.with_delay(10), lte=Link.with_delay(30), seed=9) as lab:
        async with ClusterDeployment(lab, Options(policy=POLICY, lease="5s", adopt_after="10s")) as vpn:
            await vpn.standbys()
            work, back = Workload(lab, Load(protocols=("udp",))), FromServer(lab)
            await work.start()
            await back.start()
            # There, back (the addresses were at this gateway before), and with the process that had them.
            spans = [await leave(vpn, how) for how in ("drain", "drain", "drain and stop", "stop")]
            await asyncio.sleep(AFTERMATH_NS / 1e9)  # what is sent after the last one is over is measured as well
            from_server = await back.finish()
            logs = await work.finish()
    for log in (logs.echoes["udp"], from_server):
        windows = [log.window(start - IN_FLIGHT_NS, end + AFTERMATH_NS) for start, end in spans]
        assert [(window.lost, window.duplicated) for window in windows] == [(0, 0)] * len(spans)
        assert all(window.sent > 0 for window in windows)
