"""Ten thousand real sessions: births, memory, keepalives, and the return of all of them after their gateway's death.

``python -m bench.scale [--clients N] [--only restart|kill] [--output DIR]`` prints JSON and writes the curves as SVG.
The clients are one process (``crates/swarm``) that speaks the real protocol and keeps the shipped client's times;
gateways, stores and their files are those of a deployment. Everything shares this machine's cores, load generator
included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.scale_cluster import GATEWAYS, SOURCES, Cluster
from bench.scale_nodes import POOL, Gateway, Usage, figures, open_place
from bench.scale_swarm import BIND, Swarm, device_tables
from jumpvpn.lab import LabError
from jumpvpn.lab.namespaces import NamespaceSet
from jumpvpn.sim.scale.picture import Curve, picture

CLIENTS = 10_000
BIRTHS = 200  # per second: gateways ask for cookies above that, and nothing here is about the worst case of births
TARGET_MS = 5_000.0
NOTICE_MS = 1000  # clients whose users send notice a death within that; idle ones later, which thins the storm
IDLE_S = 15.0
BACK_S = 180.0
COUNTS = ("requests", "repeats", "timeouts", "blind", "challenges", "given_up", "standby_probes", "standby_answers")
TIMES = ("attempt", "repeat", "probe-busy")
Note = Callable[[str], None]


@dataclass(slots=True)
class Trial:
    """What a measurement works with."""

    clients: int
    note: Note
    output: Path | None
    births: int = BIRTHS
    flights: int = 512
    probe_ms: int = 5000
    members: int = 1
    announce: str = "none"
    on_one: bool = False
    notice_ms: int = NOTICE_MS
    times: dict[str, int] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    watched: list[Gateway] = field(default_factory=list)  # that must not end by themselves

    def swarm(self, namespaces: NamespaceSet, gateways: list[Gateway], sources: Sequence[str] = BIND) -> Swarm:
        """The clients of ``gateways``."""
        return Swarm(
            namespaces, "here", [gateway.endpoint for gateway in gateways], self.clients, births=self.births,
            flights=self.flights, probe_ms=self.probe_ms, spread=not self.on_one, notice_ms=self.notice_ms,
            times=self.times, sources=sources, on_line=self._tell,
        )  # fmt: skip

    async def bring_up(self, swarm: Swarm, gateways: Sequence[Gateway]) -> dict[str, Any]:
        """All births, then a while of nothing but keepalives; the last line."""
        empty, began = _sum(gateways), time.monotonic()
        born = await swarm.until(lambda line: line["attached"] == self.clients, 120 + self.clients / 20, "all births")
        spent = time.monotonic() - began
        full = _sum(gateways)
        self.document["births"] = {
            "per_second": self.clients / spent, "gateway_cpu_s": full.cpu_s - empty.cpu_s,
            "gateway_us_each": (full.cpu_s - empty.cpu_s) / self.clients * 1e6, "birth_ms": born["birth_ms"],
        }  # fmt: skip
        self.document["memory"] = {
            "rss_mib_before": empty.rss / 2**20, "rss_mib": full.rss / 2**20,
            "kib_per_session": (full.rss - empty.rss) / 1024 / self.clients,
        }  # fmt: skip
        return await self._idle(swarm, gateways)

    async def _idle(self, swarm: Swarm, gateways: Sequence[Gateway]) -> dict[str, Any]:
        before, clients = _sum(gateways), Usage.of(swarm.pid)
        start = (await swarm.line())["t"]
        line = await swarm.until(lambda line: line["t"] >= start + IDLE_S, IDLE_S + 5, "the idle time")
        self.document["idle"] = {
            "gateway_cpu_share": _sum(gateways).share_since(before), "probe_interval_ms": self.probe_ms,
            "swarm_cpu_share": Usage.of(swarm.pid).share_since(clients), "probe_ms": line["probe_ms"],
        }  # fmt: skip
        return line

    async def all_back(
        self, swarm: Swarm, command: str, name: str, title: str, *, moved: int, died: float | None = None
    ) -> list[float]:
        """Give ``command``, which makes ``moved`` clients leave, and wait until each is attached again or ended.

        Returns when they came back, ms after ``died`` (monotonic seconds; otherwise after the command).
        """
        before, usage = swarm.lines[-1], Usage.of(swarm.pid)
        began = time.monotonic()
        await swarm.tell(command)
        settled = before["returns"] + before["ended"] + moved
        wanted = f"the return of {moved} clients"
        line = await swarm.until(lambda line: line["returns"] + line["ended"] >= settled, BACK_S, wanted)
        line = await swarm.until(lambda line: line["away"] == 0, BACK_S, wanted) if line["away"] else line
        late_ms = (began - died) * 1000 if died is not None else 0.0
        times = [at + late_ms for at in await swarm.curve()]
        quantiles = {f"p{share}_ms": times[max(0, len(times) * share // 100 - 1)] for share in (1, 50, 99) if times}
        counts = {count: line[count] - before[count] for count in COUNTS}
        self.document[name] = {
            "clients": self.clients, "moved": moved, "back": len(times), "ended": line["ended"] - before["ended"],
            **quantiles, "last_ms": times[-1] if times else None, "target_ms": TARGET_MS,
            "met": len(times) == moved and times[-1] <= TARGET_MS, "reattach_ms": line["reattach_ms"],
            **counts, "requests_each": counts["requests"] / moved, "denials": line["denials"],
            "swarm_cpu_s": Usage.of(swarm.pid).cpu_s - usage.cpu_s,
        }  # fmt: skip
        self._draw(name, title, times, moved)
        return times

    def _draw(self, name: str, title: str, times: list[float], of: int) -> None:
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            path = self.output / f"scale-{name}.svg"
            path.write_text(picture(title, [Curve("clients", times, of)], TARGET_MS), encoding="utf-8")
            self.document[name]["picture"] = str(path)

    def _tell(self, line: dict[str, Any]) -> None:
        for gateway in self.watched:
            gateway.demand_life()
        counts = ", ".join(f"{name} {line[name]}" for name in ("waiting", "births", "attached", "away", "ended"))
        self.note(f"scale: {counts}")


async def restart(trial: Trial) -> dict[str, Any]:
    """One gateway with SQLite: everything reattaches at once; then SIGKILL, start, and everything comes back."""
    namespaces = open_place()
    try:
        gateway = Gateway(namespaces, "here", namespaces.directory, "gw1", 51901, device_tables(trial.clients, POOL))
        gateway.write()
        trial.document["start_s"] = await gateway.start()
        try:
            async with trial.swarm(namespaces, [gateway]) as swarm:
                trial.watched = [gateway]
                await trial.bring_up(swarm, [gateway])
                before = gateway.usage()
                title = f"{trial.clients:,} sessions on one gateway, SQLite: all reattach at once"
                await trial.all_back(swarm, "move 0", "storm", title, moved=trial.clients)
                after = gateway.usage()
                trial.document["storm"]["gateway_cpu_s"] = after.cpu_s - before.cpu_s
                trial.watched = []
                await _restarted(trial, swarm, gateway)
        finally:
            await gateway.stop()
    finally:
        namespaces.close()
    return trial.document


async def _restarted(trial: Trial, swarm: Swarm, gateway: Gateway) -> None:
    """SIGKILL and start: the clients look for their gateway from its death on."""
    killed = await gateway.kill()
    ready: dict[str, float] = {}

    async def start() -> None:
        ready["start_s"] = await gateway.start()
        ready["ms"] = (time.monotonic() - killed) * 1000

    title = f"{trial.clients:,} sessions on one gateway, SQLite: SIGKILL and start"
    started = asyncio.create_task(start())
    try:
        times = await trial.all_back(swarm, "lost 0", "restart", title, moved=trial.clients, died=killed)
    finally:
        await started  # why it does not start says more than that nobody came back
    trial.document["start_with_sessions_s"] = ready["start_s"]
    found = trial.document["restart"]
    found["ready_ms"], found["last_after_ready_ms"] = ready["ms"], (times[-1] if times else 0.0) - ready["ms"]
    found["gateway_cpu_s"] = gateway.usage().cpu_s


async def kill(trial: Trial) -> dict[str, Any]:
    """Two gateways and etcd: one dies by SIGKILL, all of its sessions move to the other one.

    The sessions are spread evenly over both, or are all on the one that dies.
    """
    async with Cluster(device_tables(trial.clients, POOL), trial.members, announce=trial.announce) as cluster:
        first, second = (cluster.gateways[name] for name in GATEWAYS)
        trial.document |= {
            "etcd_members": trial.members,
            "announce": trial.announce,
            "notice_ms": trial.notice_ms,
            "times": trial.times,
        }
        trial.document["start_s"] = await first.start()
        await second.start()
        trial.watched = [first, second]
        async with trial.swarm(cluster.namespaces, [first, second], SOURCES) as swarm:
            etcd = cluster.etcd_usage()
            moved = (await trial.bring_up(swarm, [first, second]))["at"][0]
            trial.document["births"]["etcd_cpu_s"] = _cpu(etcd, cluster.etcd_usage())
            before, etcd = second.usage(), cluster.etcd_usage()
            trial.watched = [second]
            title = f"{trial.clients:,} sessions on two gateways, etcd, one killed: {moved:,} move to the other"
            if trial.on_one:
                title = f"{moved:,} sessions on one of two gateways, etcd: it is killed, all move to the other"
            died = await first.kill()
            await trial.all_back(swarm, "lost 0", "kill", title, moved=moved, died=died)
            after, found = second.usage(), trial.document["kill"]
            found["gateway_cpu_s"] = after.cpu_s - before.cpu_s
            found["gateway_ms_each"] = found["gateway_cpu_s"] / moved * 1000
            found["etcd_cpu_s"] = _cpu(etcd, cluster.etcd_usage())
            found["etcd_mib"] = cluster.etcd_bytes() / 2**20
            found["kib_per_session"] = (after.rss - before.rss) / 1024 / moved
    return trial.document


def _sum(gateways: Sequence[Gateway]) -> Usage:
    used = [gateway.usage() for gateway in gateways]
    return Usage(sum(usage.cpu_s for usage in used), sum(usage.rss for usage in used), used[-1].at)


def _cpu(before: list[Usage], after: list[Usage]) -> float:
    return sum(late.cpu_s - early.cpu_s for early, late in zip(before, after, strict=True))


def measure(names: Sequence[str], trial: Callable[[], Trial]) -> dict[str, Any]:
    """The measurements in ``names``, one after the other, each with a ``trial`` of its own."""
    found: dict[str, Any] = {"machine": {"cpus": os.cpu_count(), "kernel": platform.release()}}
    for name in names:
        found["clients"] = trial().clients
        found[name] = figures(asyncio.run(MEASUREMENTS[name](trial())))
    return found


MEASUREMENTS = {"restart": restart, "kill": kill}


def _trial(options: argparse.Namespace, note: Note) -> Trial:
    return Trial(
        options.clients, note, options.output, births=options.births, flights=options.flights, members=options.etcd,
        announce=options.announce, on_one=options.on_one, notice_ms=options.notice,
        times=dict(options.time),
    )  # fmt: skip


def _time(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if name not in TIMES or not value.isdecimal():
        raise argparse.ArgumentTypeError(f"write NAME=MS with a name of {', '.join(TIMES)}, not {text}")
    return name, int(value)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.scale", description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"how many (default {CLIENTS})")
    parser.add_argument(
        "--only", action="append", choices=tuple(MEASUREMENTS), help="this measurement; may be repeated"
    )
    parser.add_argument("--births", type=int, default=BIRTHS, help=f"begun per second (default {BIRTHS})")
    parser.add_argument("--flights", type=int, default=512, help="births under way at once (default 512)")
    parser.add_argument("--on-one", action="store_true", help="kill: all sessions are on the gateway that dies")
    parser.add_argument(
        "--notice", type=int, default=NOTICE_MS, help=f"clients notice a death within so many ms (default {NOTICE_MS})"
    )
    parser.add_argument(
        "--time", action="append", type=_time, default=[], metavar="NAME=MS",
        help="instead of the shipped client's: attempt=2000, repeat=100, probe-busy=200; may be repeated",
    )  # fmt: skip
    parser.add_argument("--etcd", type=int, default=1, choices=(1, 3), help="kill: etcd servers (default 1)")
    parser.add_argument(
        "--announce", default="none", choices=("none", "arp"), help="kill: return traffic (default none)"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="where the pictures go")
    options = parser.parse_args()

    def note(text: str) -> None:
        sys.stderr.write(f"\r\033[K{text}" if sys.stderr.isatty() else f"{text}\n")
        sys.stderr.flush()

    try:
        found = measure(options.only or tuple(MEASUREMENTS), lambda: _trial(options, note))
    except LabError as error:
        sys.stderr.write(f"bench.scale: {error}\n")
        return 1
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
