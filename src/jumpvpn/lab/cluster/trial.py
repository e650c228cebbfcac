"""One scenario from the empty lab to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jumpvpn.lab.cluster.deployment import ClusterDeployment, Options
from jumpvpn.lab.cluster.judge import violations
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.scenario import Scenario
from jumpvpn.lab.cluster.stage import Done, Stage
from jumpvpn.lab.cluster.topology import Shape
from jumpvpn.lab.cluster.traces import Traces, demand_tlc, judged
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.incidents import AFTERMATH_NS, IN_FLIGHT_NS
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.workload import Load, Logs, Workload

# Enough messages to date a change of carrier to 5 ms, few enough to leave the machine to the nodes.
ECHO_RATE = 200
_KEPT = ("*.jsonl", "*.log", "*.toml", "*.seen", "etcd/*.log")


@dataclass(slots=True)
class Outcome:
    """What came of a scenario. `violations` is empty if every promise held; `failure` if it went through at all."""

    scenario: Scenario
    violations: list[str] = field(default_factory=list)
    failure: str = ""
    steps: list[Done] = field(default_factory=list)
    undelivered_ms: dict[str, float] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)
    births: int = 0
    sessions: tuple[str, ...] = ()
    traces: Traces = Traces(0, 0, ())
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return not self.violations and not self.failure

    def explain(self) -> str:
        """What broke, one line each."""
        return "\n".join([*([self.failure] if self.failure else []), *self.violations]) or "everything held"

    def document(self) -> dict[str, Any]:
        """The outcome as plain JSON values."""
        return {
            "scenario": self.scenario.name, "seed": self.scenario.seed, "ok": self.ok, "failure": self.failure,
            "violations": self.violations, "seconds": round(self.seconds, 1), "owners": self.owners,
            "births": self.births, "traces": {"judged": self.traces.judged, "events": self.traces.events},
            "undelivered_ms": {step: round(ms, 1) for step, ms in self.undelivered_ms.items()},
            "steps": [str(step) for step in self.scenario.steps],
        }  # fmt: skip


async def run(scenario: Scenario, say: Callable[[str], None], keep: Path | None = None) -> Outcome:
    """Build a lab of the scenario's shape, perform it under traffic, judge it; with `keep`, save what a failure left.

    Raises LabError only if the lab itself cannot be built, or TLC is missing, which judges traces.
    """
    demand_tlc()
    outcome = Outcome(scenario)
    shape = Shape(scenario.gateways, scenario.crowd)
    began = boot_ns()
    with ClusterLab(shape, seed=scenario.seed, slow_store=scenario.slow_store) as lab:
        options = Options(
            policy=scenario.policy, lease=scenario.lease, liars=scenario.liars, small_disks=scenario.small_disks
        )
        deployment = ClusterDeployment(lab, options, demand_verdict=False)
        try:
            await _perform(deployment, scenario, outcome, say)
        except (LabError, TimeoutError) as error:
            outcome.failure = str(error) or "it took too long"
        finally:
            with contextlib.suppress(LabError):
                await deployment.close()
        verdict = deployment.verdict
        if verdict is None or not verdict.sound:
            outcome.violations.append(f"auditor: {verdict.explain() if verdict is not None else 'no verdict'}")
        paths, disks_lost = deployment.journals.paths, bool(scenario.small_disks)
        outcome.traces = await asyncio.to_thread(judged, paths, outcome.sessions, disks_lost=disks_lost)
        outcome.violations += outcome.traces.violations
        outcome.seconds = (boot_ns() - began) / 1e9
        if keep is not None and not outcome.ok:
            _save(deployment, outcome, keep)
    return outcome


async def _perform(
    deployment: ClusterDeployment, scenario: Scenario, outcome: Outcome, say: Callable[[str], None]
) -> None:
    async with deployment:
        work = Workload(deployment.lab, Load(echo_rate=ECHO_RATE, seed=scenario.seed))
        async with contextlib.aclosing(work):
            await work.start()
            await deployment.standbys()
            stage = Stage(deployment, scenario, say)
            uids = await deployment.uids()
            outcome.sessions = tuple(uids.values())
            try:
                await stage.perform()
            finally:
                outcome.steps = stage.done
                outcome.owners, outcome.births = deployment.owners(uids["client"]), len(deployment.births())
            logs = await work.finish()
        seen = await deployment.captured()
        _measure(outcome, logs)
        await deployment.store.caught_up()
        outcome.violations += violations(deployment, scenario, uids, seen)
        if not scenario.must_end and logs.echoes["tcp"].facts["error"]:
            outcome.violations.append(f"the TCP connection did not survive: {logs.echoes['tcp'].facts['error']}")


def _measure(outcome: Outcome, logs: Logs) -> None:
    """The longest time without delivery around each step that struck something."""
    for done in outcome.steps:
        if done.began_ns != done.undone_ns:
            window = logs.echoes["udp"].window(done.began_ns - IN_FLIGHT_NS, done.undone_ns + AFTERMATH_NS)
            outcome.undelivered_ms[str(done.step)] = window.undelivered_ms


def _save(deployment: ClusterDeployment, outcome: Outcome, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for pattern in _KEPT:
        for path in deployment.directory.glob(pattern):
            shutil.copy(path, keep / path.name)
    document = outcome.document() | {"story": outcome.scenario.document()}
    (keep / "outcome.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    lines = [json.dumps(asdict(change)) for change in deployment.store.changes]
    (keep / "store.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
