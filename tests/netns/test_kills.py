"""Nodes that are killed, at any moment, or told to go: nothing is left behind, no session is lost, none comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jumpvpn.audit.auditor import audit_files
from jumpvpn.lab import Lab, LabError
from jumpvpn.lab.deployment import SIDES, Deployment
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.runtime.control import ControlClient

pytestmark = pytest.mark.netns

POLICY = """
[policy.switching]
failback = "never"
max_per_minute = 60
hold_down = "300ms"
"""
# The kernel's own routes come back in another order, or a little later, when a link was down.
INSTALLED = """
ip -o link | grep -o '^[0-9]*: [^:]*'; ip rule; ip -6 rule
ip route show table all | grep -v 'proto kernel\\|^multicast' | sort; nft list ruleset
cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/rp_filter
"""
STRAY = ("*.sock", "owned-*.json", "*.new", "*-wal", "*-shm")
BY_A_RULE, RUN_FAILURE = 3, 1


class Pair:
    """A deployment, and what its machines looked like before."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.deployment = Deployment(lab, policy=POLICY)
        self.before = {side: self.installed(side) for side in SIDES}

    def installed(self, side: str) -> str:
        """Everything on one machine that a node may change."""
        return self.lab.run(side, ["sh", "-ec", INSTALLED]).stdout

    def demand_clean(self, *sides: str) -> None:
        """Nothing is left of the nodes of these sides."""
        for side in sides:
            assert self.installed(side) == self.before[side]
            assert not (self.deployment.directory / f"{side}.sock").exists()
            assert not list((self.deployment.directory / side).glob("owned-*.json"))

    def demand_chains(self) -> None:
        """Both journals break no rule, across every kill and restart."""
        report = audit_files(list(self.deployment.journals.paths.values()))
        assert report.sound, report.explain()

    async def sessions(self, side: str) -> list[dict[str, Any]]:
        """The sessions of a node, as its status tells."""
        found: list[dict[str, Any]] = (await self.deployment.status(side))["sessions"]
        return found

    async def uid(self) -> str:
        """The one session's name."""
        return str((await self.sessions("client"))[0]["uid"])

    async def elsewhere(self) -> str:
        """The client's interface that does not carry the session now; a restart may have moved it."""
        binding = (await self.sessions("client"))[0]["binding"]
        return "wwan0" if binding is not None and binding["transport"].startswith("wlan0") else "wlan0"

    async def restart(self, side: str) -> None:
        """Start a node that was killed, and wait until it answers."""
        await self.deployment.start_node(side)
        await self.answers(side)

    async def answers(self, side: str) -> None:
        async with asyncio.timeout(20):
            while not await self.is_up(side):
                await asyncio.sleep(0.02)

    async def is_up(self, side: str) -> bool:
        try:
            await self.deployment.status(side)
        except LabError:
            return False
        return True

    async def ask(self, side: str, command: str, **args: Any) -> None:
        async with ControlClient(self.deployment.directory / f"{side}.sock") as node:
            await node.request(command, **args)


@pytest.fixture
async def pair(lab: Lab) -> AsyncIterator[Pair]:
    pair = Pair(lab)
    try:
        await pair.deployment.start()
        yield pair
    finally:
        await pair.deployment.close()


async def test_killed_client_is_cleaned_up_after_and_supersedes_itself(pair: Pair) -> None:
    old = await pair.uid()
    await pair.deployment.kill_node("client")
    assert pair.installed("client") != pair.before["client"], "rules and routes outlive a killed process"
    since = boot_ns()
    await pair.deployment.start_node("client")
    await pair.deployment.attached(since)
    ended = await pair.deployment.event(lambda r: r.event == "session.terminated", since)
    assert (ended.reason, ended.fields["session_uid"]) == ("device_superseded", old)
    assert [session["uid"] for session in await pair.sessions("gateway")] == [await pair.uid()] != [old]
    for side in reversed(SIDES):
        assert await pair.deployment.stop_node(side) == 0
    pair.demand_clean(*SIDES)
    pair.demand_chains()


async def test_gateway_killed_in_every_phase_keeps_the_session(pair: Pair) -> None:
    """Attached, in the middle of a switch, and while no network is there at all."""
    deployment, uid = pair.deployment, await pair.uid()

    async def killed() -> None:
        await deployment.kill_node("gateway")
        since = boot_ns()
        await deployment.start_node("gateway")
        await deployment.attached(since)

    await killed()
    for _ in range(2):
        async with asyncio.timeout(10):
            while await deployment.switch(await pair.elsewhere()) is not None:
                await asyncio.sleep(0.1)  # hold-down
        await killed()
    for uplink in pair.lab.uplinks:
        pair.lab.down(uplink)
    await deployment.event(lambda r: r.side == "client" and r.turned("DEGRADED"), boot_ns() - 10**9)
    await deployment.kill_node("gateway")
    await pair.restart("gateway")
    for uplink in pair.lab.uplinks:
        pair.lab.restore(uplink)
    await deployment.attached(boot_ns() - 10**9)
    assert [session["uid"] for session in await pair.sessions("gateway")] == [uid] == [await pair.uid()]
    assert sum(r.event == "handshake.completed" for r in deployment.journals.records) <= 2
    pair.demand_chains()


async def test_announced_end_is_durable(pair: Pair) -> None:
    """The moment its client has heard of the end, the gateway is killed: it does not bring the session back."""
    uid, since = await pair.uid(), boot_ns()
    await pair.ask("gateway", "terminate", session=uid)
    assert await pair.deployment.ended("client") == BY_A_RULE
    await pair.deployment.kill_node("gateway")
    await pair.restart("gateway")
    assert await pair.sessions("gateway") == []
    await pair.deployment.event(lambda r: r.side == "gateway" and r.event == "session.terminated", since)
    assert "session ended: peer_closed" in pair.deployment.said("client")
    pair.demand_clean("client")
    pair.demand_chains()


async def test_kill_right_after_the_order_to_terminate_leaves_one_truth(pair: Pair) -> None:
    """Whether or not the end was written before the kill: journal, store and client tell the same."""
    await pair.ask("gateway", "terminate", session=await pair.uid())
    await pair.deployment.kill_node("gateway")
    await pair.restart("gateway")
    ended = [r for r in pair.deployment.journals.records if r.side == "gateway" and r.event == "session.terminated"]
    live = await pair.sessions("gateway")
    assert bool(ended) != bool(live)
    if live:
        await pair.deployment.event(lambda r: r.side == "client" and r.turned("ATTACHED"))
        assert await pair.is_up("client")
    pair.demand_chains()


async def test_session_that_has_not_come_back_yet_can_be_ended(pair: Pair) -> None:
    """Nothing leads to its client: it is told when it asks, and the gateway lives on."""
    uid, since = await pair.uid(), boot_ns()
    for uplink in pair.lab.uplinks:
        pair.lab.blackhole(uplink)
    await pair.deployment.kill_node("gateway")
    await pair.restart("gateway")
    await pair.ask("gateway", "terminate", session=uid)
    await pair.deployment.event(lambda r: r.side == "gateway" and r.event == "session.terminated", since)
    assert await pair.sessions("gateway") == []
    assert await pair.deployment.stop_node("gateway") == 0
    pair.demand_clean("gateway")


async def test_client_without_any_network_stops_in_order(pair: Pair) -> None:
    for uplink in pair.lab.uplinks:
        pair.lab.down(uplink)
    await pair.deployment.event(lambda r: r.side == "client" and r.turned("DEGRADED"))
    assert await pair.deployment.stop_node("client") == 0
    assert pair.deployment.said("client").splitlines()[-1].startswith("jumpvpn: session ended: operator_terminated")
    for uplink in pair.lab.uplinks:
        pair.lab.restore(uplink)
    pair.demand_clean("client")
    pair.demand_chains()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "down"])
async def test_told_to_go(pair: Pair, how: str) -> None:
    for side in reversed(SIDES):
        if how == "down":
            await pair.ask(side, "down")
        else:
            os.kill((await pair.deployment.status(side))["pid"], signal.Signals[how])
        assert await pair.deployment.ended(side) == 0
        last = [r for r in pair.deployment.journals.records if r.side == side][-1]
        assert last.event == "node.stopped"
        assert "Traceback" not in pair.deployment.said(side)
    pair.demand_clean(*SIDES)
    assert not [path for pattern in STRAY for path in pair.deployment.directory.rglob(pattern)]
    pair.demand_chains()


async def test_foreign_cluster_key_is_refused_and_the_right_one_brings_the_session_back(pair: Pair) -> None:
    deployment, uid = pair.deployment, await pair.uid()
    key = deployment.directory / "gateway" / "cluster.key"
    right = key.read_bytes()
    await deployment.kill_node("gateway")
    key.write_bytes(os.urandom(32))
    await deployment.start_node("gateway")
    assert await deployment.ended("gateway") == RUN_FAILURE
    said = deployment.said("gateway").splitlines()[-1]
    assert said.startswith("jumpvpn: error: the store in ")
    assert "is cluster.key the one that wrote it?" in said
    pair.demand_clean("gateway")
    key.write_bytes(right)
    since = boot_ns()
    await deployment.start_node("gateway")
    await deployment.attached(since)
    assert await pair.uid() == uid


async def test_unknown_device_is_told_what_to_check(lab: Lab) -> None:
    deployment = Deployment(lab, policy='[policy.session]\nhandshake_timeout = "3s"\n')
    deployment.write_configuration()
    replace_device(deployment.config("gateway"))
    deployment.journals.open()
    try:
        await deployment.start_node("gateway")
        await deployment.start_node("client")
        assert await deployment.ended("client") == RUN_FAILURE
        refused = await deployment.event(lambda r: r.event == "security.validation_failed")
        assert (refused.side, refused.reason) == ("gateway", "unknown_device")
    finally:
        await deployment.close()
    said = deployment.said("client")
    assert said.count("\n") == 0, said
    assert said.startswith("jumpvpn: session ended: handshake_timeout: no gateway answered over wlan0/udp/gw1, wwan0")
    for words in ("UDP port", "its public key in this file", "[[device]] list"):
        assert words in said


def replace_device(config: Path) -> None:
    """Let the gateway know another device than the client's."""
    head, mark, rest = config.read_text().partition("[[device]]")
    before, _, after = rest.partition('public_key = "')
    stranger = "A" * 42 + "E="
    config.write_text(f'{head}{mark}{before}public_key = "{stranger}"{after.partition(chr(34))[2]}')
