"""Does to a running cluster what a scenario says, undoes it, and waits until every session is back or rightly ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from jumpvpn.lab.cluster.deployment import ClusterDeployment
from jumpvpn.lab.cluster.lab import Cut
from jumpvpn.lab.cluster.scenario import Scenario, Step
from jumpvpn.lab.cluster.topology import MEMBERS
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.traffic.pacing import boot_ns

# After the last harm is undone: a lease, its adoption, a recovery window and its retry, on a loaded machine.
SETTLE_S = 45.0
# A drained gateway's clients move within a reattach each; more means that they never will.
DRAIN_S = 20.0
_LOOK_S = 0.1
_TO_PROCESSES = frozenset(
    ("kill_gateway", "pause_gateway", "drain_gateway", "fill_disk", "kill_member", "pause_member")
)


@dataclass(frozen=True, slots=True)
class Done:
    """One step as it went: when it struck, when it was undone (boot ns), and at what; `target` "" if at nothing."""

    step: Step
    target: str
    began_ns: int
    undone_ns: int


class Stage:
    """Performs one scenario on a deployment that is up; `say` is told of every step."""

    def __init__(self, deployment: ClusterDeployment, scenario: Scenario, say: Callable[[str], None]) -> None:
        self.done: list[Done] = []
        self._deployment = deployment
        self._scenario = scenario
        self._say = say
        self._uids: dict[str, str] = {}
        self._harmed: set[str] = set()
        self._harms: dict[str, Callable[[Step, str], contextlib.AbstractAsyncContextManager[None]]] = {
            "kill_gateway": self._kill_gateway, "pause_gateway": self._pause_gateway, "drain_gateway": self._drain,
            "cut_store": self._cut, "cut_clients": self._cut, "cut_both": self._cut, "cut_peers": self._cut,
            "cut_member": self._cut, "jump_clock": self._jump_clock, "fill_disk": self._fill_disk,
            "kill_member": self._kill_member, "pause_member": self._pause_members, "store_down": self._pause_members,
            "slow_store": self._slow_store, "lose_uplink": self._lose_uplink,
        }  # fmt: skip

    async def perform(self) -> None:
        """Go through all steps. Raises LabError when a node crashes or a session neither comes back nor may end."""
        self._uids = await self._deployment.uids()
        running: list[asyncio.Task[None]] = []
        try:
            for step in self._scenario.steps:
                await self._healthy(asyncio.sleep(step.after))
                if step.act == "settle":
                    await self._healthy(_all(running))
                    running.clear()
                    await self._settle()
                elif step.act == "roll":
                    await self._roll(step)
                else:
                    running.append(asyncio.create_task(self._strike(step)))
            await self._healthy(_all(running))
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _strike(self, step: Step) -> None:
        target = self._find(step.target)
        harm = _harm(step.act, target)
        if harm in self._harmed or (target in self._deployment.gateways and not self._deployment.runs(target)):
            self._say(f"{step}: {target} is harmed already")
            self.done.append(Done(step, "", boot_ns(), boot_ns()))
            return
        self._say(f"{step}{f' ({target})' if target != step.target else ''}")
        self._harmed.add(harm)
        before = boot_ns()
        try:
            async with self._harms[step.act](step, target):
                await asyncio.sleep(step.seconds)
        finally:
            self._harmed.discard(harm)
        self.done.append(Done(step, target, before, boot_ns()))

    def _find(self, target: str) -> str:
        """The name that a part has at this moment."""
        gateways, store = self._deployment.gateways, self._deployment.store
        owner = self._owner()
        names = {
            "owner": owner,
            "other": next((gateway for gateway in gateways if gateway != owner), owner),
            "leader": store.leader or MEMBERS[0],
            "follower": next((name for name in MEMBERS if name != store.leader), MEMBERS[-1]),
        }
        return names.get(target, target)

    def _owner(self) -> str:
        owners = self._deployment.owners(self._uids["client"])
        return owners[-1] if owners else self._deployment.gateways[0]

    # --- harms -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _kill_gateway(self, _: Step, gateway: str) -> AsyncIterator[None]:
        await self._deployment.kill_node(gateway)
        yield
        await self._deployment.restart_node(gateway)

    @asynccontextmanager
    async def _pause_gateway(self, _: Step, gateway: str) -> AsyncIterator[None]:
        self._deployment.pause_node(gateway)
        try:
            yield
        finally:
            self._deployment.resume_node(gateway)

    @asynccontextmanager
    async def _drain(self, _: Step, gateway: str) -> AsyncIterator[None]:
        await self._send_away(gateway)
        await self._deployment.stop_node(gateway)
        yield
        await self._deployment.restart_node(gateway)

    @asynccontextmanager
    async def _cut(self, step: Step, target: str) -> AsyncIterator[None]:
        lab, clients = self._deployment.cluster_lab, self._deployment.clients
        cuts: list[Cut] = []
        if step.act in ("cut_store", "cut_both"):
            cuts.append(await asyncio.to_thread(lab.cut_store, target, way=step.way))
        if step.act in ("cut_clients", "cut_both"):
            cuts.append(await asyncio.to_thread(lab.cut_clients, target, clients, way=step.way))
        if step.act == "cut_peers":
            others = [gateway for gateway in self._deployment.gateways if gateway != target]
            cuts.append(await asyncio.to_thread(lab.cut, [target], others))
        if step.act == "cut_member":
            others = [member for member in MEMBERS if member != target]
            cuts.append(await asyncio.to_thread(lab.cut, [target], others))
        try:
            yield
        finally:
            for cut in cuts:
                lab.heal(cut)

    @asynccontextmanager
    async def _jump_clock(self, step: Step, gateway: str) -> AsyncIterator[None]:
        self._deployment.clocks[gateway].set(step.value)
        yield
        self._deployment.clocks[gateway].set(0.0)

    @asynccontextmanager
    async def _fill_disk(self, _: Step, gateway: str) -> AsyncIterator[None]:
        self._deployment.may_end.add(gateway)
        self._deployment.fill_disk(gateway)
        yield
        if self._deployment.runs(gateway):
            self._deployment.free_disk(gateway)
        # It may stop rather than go on without a journal, even a little later; a new process gets a disk with space.
        await self._deployment.revive(gateway)

    @asynccontextmanager
    async def _kill_member(self, _: Step, member: str) -> AsyncIterator[None]:
        await self._deployment.store.kill_member(member)
        yield
        await self._deployment.store.start_member(member)

    @asynccontextmanager
    async def _pause_members(self, _: Step, member: str) -> AsyncIterator[None]:
        members = [member] if member else [name for name in MEMBERS if _harm("pause_member", name) not in self._harmed]
        self._harmed |= {_harm("pause_member", name) for name in members}
        for name in members:
            self._deployment.store.pause_member(name)
        try:
            yield
        finally:
            for name in members:
                self._deployment.store.resume_member(name)
            self._harmed -= {_harm("pause_member", name) for name in members}

    @asynccontextmanager
    async def _slow_store(self, step: Step, _: str) -> AsyncIterator[None]:
        lab = self._deployment.cluster_lab
        await asyncio.to_thread(lab.impair_store, delay_ms=step.value)
        try:
            yield
        finally:
            lab.impair_store(delay_ms=0.0)

    @asynccontextmanager
    async def _lose_uplink(self, _: Step, uplink: str) -> AsyncIterator[None]:
        lab = self._deployment.cluster_lab
        await asyncio.to_thread(lab.down, uplink)
        try:
            yield
        finally:
            lab.restore(uplink)

    async def _roll(self, step: Step) -> None:
        """Drain, stop and start every gateway in turn; every session is served before the next one goes."""
        for gateway in self._deployment.gateways:
            self._say(f"roll {gateway}")
            before = boot_ns()
            await self._send_away(gateway)
            await self._deployment.stop_node(gateway)
            await self._deployment.restart_node(gateway)
            self.done.append(Done(step, gateway, before, boot_ns()))
            await self._settle()

    async def _send_away(self, gateway: str) -> None:
        await self._deployment.drain(gateway)

        async def empty() -> bool:
            return await self._deployment.left(gateway) == 0

        if not await self._eventually(empty, DRAIN_S):
            left = [session["uid"] for session in await self._deployment.sessions(gateway)]
            raise LabError(f"{gateway} was drained {DRAIN_S:.0f} s ago and still has {', '.join(left)}")

    # --- afterwards --------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        await self._healthy(self._deployment.store.serves())

        async def settled() -> bool:
            for gateway in self._deployment.gateways:
                await self._deployment.revive(gateway)
            return not await self._unsettled()

        if not await self._eventually(settled, SETTLE_S):
            raise LabError(f"not settled after {SETTLE_S:.0f} s: {'; '.join(await self._unsettled())}")

    async def _unsettled(self) -> list[str]:
        """What is not as it should be at rest, client by client; nothing if all is well."""
        found = []
        for client, uid in self._uids.items():
            if self._has_ended(client):
                continue
            if trouble := await self._trouble(client, uid):
                found.append(f"{client}: {trouble}")
        return found

    def _has_ended(self, client: str) -> bool:
        changes = [r for r in self._deployment.journals.records if r.side == client and r.turned("TERMINATED")]
        return bool(changes)

    async def _trouble(self, client: str, uid: str) -> str:
        """Why a session is not ATTACHED at both ends, with the owner that the store names; empty if it is."""
        try:
            mine = await self._deployment.sessions(client)
            gateway = await self._deployment.gateway_of(client)
            if not mine or mine[0]["state"] != "ATTACHED":
                return f"{mine[0]['state'] if mine else 'no session'}"
            if not self._deployment.runs(gateway):
                return f"bound to {gateway or 'nothing'}, which does not run"
            theirs = {session["uid"]: session["state"] for session in await self._deployment.sessions(gateway)}
        except LabError as error:
            return str(error)
        owners = self._deployment.owners(uid)
        if theirs.get(uid) != "ATTACHED" or owners[-1:] != [gateway]:
            return f"bound to {gateway}, where it is {theirs.get(uid)}; owners {', '.join(owners)}"
        return ""

    async def _eventually(self, holds: Callable[[], Awaitable[bool]], within_s: float) -> bool:
        async def wait() -> None:
            while not await holds():
                await self._next_look()

        try:
            await self._healthy(wait(), within_s)
        except TimeoutError:
            return False
        return True

    async def _next_look(self) -> None:
        """What a status tells changes without an event."""
        await asyncio.sleep(_LOOK_S)

    async def _healthy(self, awaited: Awaitable[None], within_s: float = 600.0) -> None:
        """Wait, but no longer than until a node crashes."""

        async def wait() -> None:
            await awaited

        await self._deployment.while_healthy(wait(), within_s)


def _harm(act: str, target: str) -> str:
    """What cannot be done twice at a time: a process can be harmed in one way only, and each cut is made once."""
    return f"process of {target}" if act in _TO_PROCESSES else f"{act} of {target}"


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for all; the first failure ends the wait."""
    async with AsyncExitStack() as stack:
        stack.callback(lambda: [task.cancel() for task in tasks])
        await asyncio.gather(*tasks)
