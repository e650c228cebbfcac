"""Clients at different gateways of a cluster reach each other, and go on doing so when one of their gateways dies."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import pytest

from jumpvpn.lab.cluster.deployment import ClusterDeployment, Options
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.scenario import POLICY
from jumpvpn.lab.cluster.topology import INNER_POOL, Shape
from jumpvpn.lab.journals import Record
from jumpvpn.lab.traffic.pacing import boot_ns

pytestmark = pytest.mark.netns
POOL6 = "fd77::/64"
PATIENT_S = 30.0
DEAD = {"inet": "10.77.0.200", "inet6": "fd77::dead"}

# Echoes over TCP at the two addresses that it is given.
ECHO = """
import asyncio, sys
async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
async def main():
    for address in sys.argv[1:]:
        await asyncio.start_server(echo, address, 7000)
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""

# One TCP connection to each of the addresses; each line goes over both and must come back.
CALLER = """
import socket, sys
links = [socket.create_connection((address, 7000), 20) for address in sys.argv[1:]]
print("ready", flush=True)
for line in sys.stdin:
    for link in links:
        link.sendall(line.encode())
    answers = {link.recv(100) for link in links}
    print("both" if answers == {line.encode()} else answers, flush=True)
"""


class Inner6(ClusterDeployment):
    """With inner addresses of both families."""

    async def start_node(self, side: str) -> None:
        """Give a gateway's file the other pool, before it is read for the first time."""
        text = self.config(side).read_text()
        pool = f'pool = "{INNER_POOL}"\n'
        if pool in text and "pool6" not in text:
            self.config(side).write_text(text.replace(pool, f'{pool}pool6 = "{POOL6}"\n'))
            link_local = f"fe80::{side.removeprefix('gw')}/64"  # neighbour discovery needs one
            self.lab.run(side, ["ip", "addr", "add", link_local, "dev", "in0", "nodad"])
        await super().start_node(side)

    def inner(self, client: str, family: str) -> str:
        """A client's inner address."""
        listing = json.loads(self.lab.run(client, ["ip", "-j", "addr", "show", "dev", "jumpvpn0"]).stdout)
        found = [one for one in listing[0]["addr_info"] if one["family"] == family and one["scope"] == "global"]
        return str(found[0]["local"])

    async def bring(self, client: str, gateway: str) -> None:
        """Let a client be at this gateway."""
        if await self.gateway_of(client) != gateway:
            await self.event(lambda r: _proved(r, client, gateway))
            since = boot_ns()
            await self.move(client, gateway)
            await self.event(lambda r: r.side == client and r.turned("ATTACHED"), since)
        assert await self.gateway_of(client) == gateway


def _proved(record: Record, client: str, gateway: str) -> bool:
    proved = record.event == "transport.candidate" and record.data.get("change") == "validated"
    return proved and record.side == client and record.transport.endswith(f"/{gateway}")


@pytest.fixture
async def cluster() -> AsyncIterator[Inner6]:
    """The roaming client is at gw1, the other one at gw2; there is a third gateway."""
    with ClusterLab(Shape(gateways=3, crowd=1), seed=7) as lab:
        async with Inner6(lab, Options(policy=POLICY)) as cluster:
            await cluster.standbys()
            await cluster.bring("client", "gw1")
            await cluster.bring("c1", "gw2")
            yield cluster


async def _program(cluster: Inner6, side: str, code: str, *arguments: str) -> Process:
    process = await cluster.lab.exec_async(side, [sys.executable, "-c", code, *arguments], stdin=PIPE, stdout=PIPE)
    assert await _answer(process) == "ready"
    return process


async def _answer(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENT_S):
        return (await process.stdout.readline()).decode().strip()


async def _ask(process: Process) -> str:
    assert process.stdin is not None
    process.stdin.write(b"hello\n")
    return await _answer(process)


@pytest.mark.timeout(240)
async def test_clients_at_two_gateways_talk_across_takeover_and_drain(cluster: Inner6) -> None:
    there = {family: cluster.inner("c1", family) for family in DEAD}
    for address in there.values():
        await asyncio.to_thread(cluster.lab.run, "client", ["ping", "-c2", "-W5", address])
    for address in DEAD.values():  # nobody has it: the gateway's kernel says so, once its neighbours did not answer
        lost = await asyncio.to_thread(cluster.lab.run, "client", ["ping", "-c1", "-W10", address], check=False)
        assert "nreachable" in lost.stdout, lost.stdout
    echo = await _program(cluster, "c1", ECHO, *there.values())
    caller = await _program(cluster, "client", CALLER, *there.values())
    assert await _ask(caller) == "both"
    await cluster.kill_node("gw1")
    assert await _ask(caller) == "both", "across the takeover of the caller"
    assert await cluster.gateway_of("client") in ("gw2", "gw3")
    await cluster.restart_node("gw1")
    before = await cluster.gateway_of("c1")
    await cluster.drain(before)
    while await cluster.left(before):
        assert await _ask(caller) == "both", "while both gateways of the drained client may have it"
    assert await _ask(caller) == "both"
    assert await cluster.gateway_of("c1") != before
    for process in (caller, echo):
        process.kill()
        await process.wait()
