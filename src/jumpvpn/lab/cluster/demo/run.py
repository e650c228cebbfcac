"""One demonstration of a cluster, from the empty lab to the end of the download."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from jumpvpn.lab.cluster.capture import accepted
from jumpvpn.lab.cluster.demo.result import Result, Shown, WorldChange
from jumpvpn.lab.cluster.deployment import ClusterDeployment, Options
from jumpvpn.lab.cluster.judge import violations
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.scenario import Scenario
from jumpvpn.lab.cluster.topology import Shape
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.incidents import Incident, effect
from jumpvpn.lab.journals import Record
from jumpvpn.lab.link import Link
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.workload import Load, Workload
from jumpvpn.runtime.journal import read_lines

WIFI_DELAY_MS, LTE_DELAY_MS = 10.0, 30.0
# 3 MB/s for the length of the script: light enough for two cores beside emulated links, five nodes and three servers.
SIZE, RATE = 120_000_000, 3_000_000
_PAUSE_S = 4.5
# The download loses some seconds to outages; a machine that needs this much more is too slow to show anything.
_PATIENCE_S = SIZE / RATE * 1.5
_MOVE_S = 15.0
_POLICY = """
[policy.switching]
hold_down = "500ms"
failback = "5s"
max_per_minute = 16

[policy.observability]
address_mode = "full"
"""
_STORY = Scenario("demo", ())


class _Show:
    """The script, and what came of it."""

    def __init__(self, vpn: ClusterDeployment, result: Result, say: Callable[[str], None]) -> None:
        self._vpn = vpn
        self._result = result
        self._say = say
        self.incidents: list[tuple[str, Incident, str]] = []

    async def play(self) -> None:
        """Everything that is shown, in order."""
        vpn = self._vpn
        first = await vpn.gateway_of()
        await self._pause()
        await self._shown(f"{first}, the owner, is killed", "owner_killed", self._kill(first))
        await self._pause()
        await vpn.restart_node(first)
        self._note(first, "up")
        self._say(f"{first} is back")
        await vpn.event(lambda r: _proved_again(r, first), self.incidents[-1][1].settled_ns)
        leader = vpn.store.leader
        await vpn.store.kill_member(leader)
        self._say(f"etcd's leader {leader} is killed")
        await self._shown("Wi-Fi goes down while etcd elects", "wifi_down_no_leader", self._lose_wifi())
        await self._pause()
        await vpn.store.start_member(leader)
        change = await asyncio.to_thread(vpn.lab.restore, "wifi")
        self._note("wifi", "up", change.after_ns)
        await vpn.event(lambda r: r.side == "client" and r.turned("ATTACHED") and _is_on(r, "wlan0"), change.before_ns)
        await self._pause()
        second = await vpn.gateway_of()
        await self._shown(f"{second} is drained", "drained", self._drain(second))
        await self._pause()

    async def _kill(self, gateway: str) -> int:
        before = await self._vpn.kill_node(gateway)
        self._note(gateway, "killed", before)
        return before

    async def _lose_wifi(self) -> int:
        change = await asyncio.to_thread(self._vpn.lab.down, "wifi")
        self._note("wifi", "down", change.before_ns)
        return change.before_ns

    async def _drain(self, gateway: str) -> int:
        before = boot_ns()
        await self._vpn.drain(gateway)
        self._note(gateway, "draining", before)
        return before

    async def _shown(self, title: str, name: str, cause: Awaitable[int]) -> None:
        """Cause an incident and wait until the client is ATTACHED again."""
        self._say(title)
        before = await cause
        vpn = self._vpn
        left = await vpn.event(_client_left, before, _MOVE_S)
        back = await vpn.event(lambda r: r.side == "client" and r.turned("ATTACHED"), left.at_ns, _MOVE_S)
        detected = vpn.journals.first(lambda r: _client_left(r) or r.event == "transport.dead", before) or left
        incident = Incident(name, before, detected, left.reason, back, back.at_ns, back.transport)
        self.incidents.append((title, incident, back.transport.rpartition("/")[2]))
        self._say(f"  {left.reason}, then {back.reason} on {back.transport} after {incident.settled_ms:.0f} ms")

    async def _pause(self) -> None:
        await self._vpn.while_healthy(asyncio.sleep(_PAUSE_S), _PAUSE_S + 5.0)

    def _note(self, what: str, state: str, at_ns: int = 0) -> None:
        self._result.world.append(WorldChange(at_ns or boot_ns(), what, state))


async def perform(seed: int, say: Callable[[str], None]) -> Result:
    """Run the whole demonstration; raises LabError if it cannot even begin."""
    shape = Shape(gateways=2)
    result = Result(started_ns=boot_ns(), size=SIZE, gateways=shape.gateway_names)
    with ClusterLab(shape, wifi=Link.with_delay(WIFI_DELAY_MS), lte=Link.with_delay(LTE_DELAY_MS), seed=seed) as lab:
        vpn = ClusterDeployment(
            lab, Options(policy=_POLICY, lease="5s", adopt_after="10s", first={"client": "gw1"}), demand_verdict=False
        )
        work = Workload(lab, Load(size=SIZE, rate=RATE, seed=seed))
        async with vpn, contextlib.aclosing(work):
            say("three etcd servers, two gateways and a client are up")
            await _play(vpn, work, result, say)
        result.journal_lines = {side: read_lines(path) for side, path in vpn.journals.paths.items()}
        result.records, result.verdict = list(vpn.journals.records), vpn.verdict
    return result


async def _play(vpn: ClusterDeployment, work: Workload, result: Result, say: Callable[[str], None]) -> None:
    """Go through the script; what fails ends it, and what was measured until then is kept."""
    show = _Show(vpn, result, say)
    try:
        await vpn.standbys()
        await work.start()
        result.started_ns = boot_ns()
        say(f"traffic flows: {SIZE / 1e6:.0f} MB download, 1 kHz echo over UDP and TCP")
        result.uid, result.address = (await vpn.uids())["client"], await _address(vpn)
        await show.play()
        say("the download comes to its end")
        await vpn.while_healthy(work.downloaded(), _PATIENCE_S)
        result.address_after = await _address(vpn)
    except TimeoutError:
        result.failure = f"the download did not end within {_PATIENCE_S:.0f} s"
    except LabError as error:
        result.failure = str(error)
    result.ended_ns = boot_ns()
    logs = result.logs = await work.finish()
    result.shown = [Shown(title, one, effect(one, logs), owner) for title, one, owner in show.incidents]
    await _judge(vpn, result)


async def _judge(vpn: ClusterDeployment, result: Result) -> None:
    await vpn.store.caught_up()
    seen = await vpn.captured()
    result.leaders, result.changes = list(vpn.store.leaders), list(vpn.store.changes)
    result.births = len(vpn.births())
    if result.uid:
        result.violations = violations(vpn, _STORY, {"client": result.uid}, seen)
    result.messages = sum(run.messages for run in accepted(seen))


async def _address(vpn: ClusterDeployment) -> str:
    return " ".join((await vpn.status("client"))["tun"]["addresses"])


def _client_left(record: Record) -> bool:
    return record.side == "client" and record.turned("VOLATILE", "ATTACHED")


def _proved_again(record: Record, gateway: str) -> bool:
    proved = record.event == "transport.candidate" and record.data.get("change") == "validated"
    return proved and record.side == "client" and record.transport.endswith(f"/{gateway}")


def _is_on(record: Record, interface: str) -> bool:
    return record.transport.startswith(interface)
