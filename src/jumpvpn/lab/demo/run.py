"""One demonstration from the empty lab to the ended session."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from jumpvpn.lab.demo.result import Result, Shown, WorldChange
from jumpvpn.lab.demo.script import CLIENT_POLICY, END, POLICY, STEPS, Step
from jumpvpn.lab.deployment import SIDES, Deployment, lay_roaming_cable
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.incidents import Effect, Incident, effect
from jumpvpn.lab.journals import Record
from jumpvpn.lab.lab import Lab
from jumpvpn.lab.link import Link
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.workload import Load, Workload
from jumpvpn.runtime.journal import read_lines

WIFI_DELAY_MS, LTE_DELAY_MS = 10.0, 30.0
_STATUS_PERIOD_S = 0.2
# The download loses some seconds to outages; a machine that needs this much more is too slow to show anything.
_PATIENCE = 1.5


@dataclass(frozen=True, slots=True)
class Pace:
    """How a run is stretched: pauses between incidents (s), the download (bytes, bytes/s), waiting times of policy."""

    pause_s: float
    size: int
    rate: int
    failback: str
    hold_down: str

    @property
    def patience_s(self) -> float:
        """How long the download may still take when the script is through."""
        return self.size / self.rate * _PATIENCE


# 3.5 MB/s: light enough that two cores carry it beside the emulated links and three measuring tools.
FULL = Pace(pause_s=4.5, size=210_000_000, rate=3_500_000, failback="6s", hold_down="1.5s")
QUICK = Pace(pause_s=0.45, size=30_000_000, rate=3_500_000, failback="1500ms", hold_down="300ms")


class Audience(Protocol):
    """Whoever watches a run."""

    def began(self, result: Result) -> None:
        """The session is attached and traffic flows."""

    def status(self, document: dict[str, Any]) -> None:
        """The client's status, several times a second."""

    def progress(self, tool: str, line: dict[str, Any]) -> None:
        """What a traffic tool measured in the last 200 ms."""

    def record(self, record: Record) -> None:
        """An event record of either side."""

    def step(self, step: Step) -> None:
        """A step begins."""

    def over(self, step: Step, incident: Incident) -> None:
        """A step has ended as it should, or at least ended."""


async def perform(pace: Pace, seed: int, audience: Audience, *, quick: bool) -> Result:
    """Run the whole demonstration; raises LabError if it cannot even begin."""
    result = Result(started_ns=boot_ns(), quick=quick, size=pace.size)
    policy = POLICY.format(failback=pace.failback, hold_down=pace.hold_down)
    with Lab(wifi=Link.with_delay(WIFI_DELAY_MS), lte=Link.with_delay(LTE_DELAY_MS), seed=seed) as lab:
        lay_roaming_cable(lab)
        vpn = Deployment(lab, policy=policy, client_policy=CLIENT_POLICY, demand_verdict=False)
        vpn.journals.listener = audience.record
        work = Workload(lab, Load(size=pace.size, rate=pace.rate, seed=seed), audience.progress)
        async with vpn, contextlib.aclosing(work):
            await work.start()
            result.started_ns = boot_ns()
            audience.began(result)
            async with _watching(vpn, audience):
                await _play(vpn, work, pace, audience, result)
            result.said = {side: vpn.said(side) for side in SIDES}
        result.journal_lines = {side: read_lines(path) for side, path in vpn.journals.paths.items()}
        result.records, result.verdict = list(vpn.journals.records), vpn.verdict
    return result


async def _play(vpn: Deployment, work: Workload, pace: Pace, audience: Audience, result: Result) -> None:
    """Go through the steps; a step that fails ends the script, what was measured until then is kept."""
    incidents: list[tuple[Step, Incident]] = []
    try:
        await _standby(vpn, "wwan0")
        result.addresses_before = await _addresses(vpn)
        for step in STEPS:
            await asyncio.sleep(pace.pause_s)
            await vpn.carried_by(step.before)
            incidents.append((step, await _perform(vpn, step, audience, result)))
        await asyncio.sleep(pace.pause_s)
        result.addresses_after = await _addresses(vpn)
        await vpn.while_healthy(work.downloaded(), pace.patience_s)
        result.logs = await work.finish()
        incidents.append((END, await _perform(vpn, END, audience, result)))
    except TimeoutError:
        result.failure = f"the download did not end within {pace.patience_s:.0f} s"
    except LabError as error:
        result.failure = str(error)
    result.ended_ns = boot_ns()
    logs = result.logs = result.logs or await work.finish()
    for step, incident in incidents:
        result.shown.append(Shown(step, incident, effect(incident, logs) if step is not END else Effect()))


async def _perform(vpn: Deployment, step: Step, audience: Audience, result: Result) -> Incident:
    audience.step(step)
    before = boot_ns()
    try:
        incident = await step.cause(vpn)
    except LabError as error:
        result.world += [WorldChange(before, what, state) for what, state in step.world.items()]
        raise LabError(f"{step.title}: {error}") from error
    result.world += [WorldChange(incident.cause_ns, what, state) for what, state in step.world.items()]
    if incident.returned_ns is not None:
        result.world += [WorldChange(incident.returned_ns, what, state) for what, state in step.back.items()]
    audience.over(step, incident)
    for uplink in step.afterwards:
        mended = await asyncio.to_thread(vpn.lab.restore, uplink)
        result.world.append(WorldChange(mended.after_ns, uplink, "up"))
    return incident


async def _standby(vpn: Deployment, interface: str) -> None:
    """Wait until a transport has proved itself, so that the first incident finds a standby."""

    def proved(record: Record) -> bool:
        is_candidate = record.event == "transport.candidate" and record.data.get("change") == "validated"
        return is_candidate and record.transport.startswith(interface)

    await vpn.event(proved)


async def _addresses(vpn: Deployment) -> tuple[str, ...]:
    return tuple(str(address) for address in (await vpn.status("client"))["tun"]["addresses"])


@contextlib.asynccontextmanager
async def _watching(vpn: Deployment, audience: Audience) -> AsyncIterator[None]:
    """Tell the audience the client's status until the block ends."""

    async def look() -> None:
        while True:
            with contextlib.suppress(LabError, IndexError):  # a client that has just ended has no status
                audience.status(await vpn.status("client"))
            await asyncio.sleep(_STATUS_PERIOD_S)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
