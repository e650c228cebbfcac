"""Ten thousand real sessions: births, memory, keepalives, and the return of all of them after their gateway's death.

``python -m bench.scale [--clients N] [--only restart|kill] [--output DIR]`` prints JSON and writes the curves as SVG.
The clients are one process (``crates/swarm``) that speaks the real protocol; gateways, stores and their files are those
of a deployment. Everything shares this machine's cores, load generator included.
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
IDLE_S = 15.0
BACK_S = 180.0
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
    document: dict[str, Any] = field(default_factory=dict)
    watched: list[Gateway] = field(default_factory=list)  # that must not end by themselves

    def swarm(self, namespaces: NamespaceSet, gateways: list[Gateway], sources: Sequence[str] = BIND) -> Swarm:
        """The clients of ``gateways``."""
        return Swarm(
            namespaces, "here", [gateway.endpoint for gateway in gateways], self.clients, births=self.births,
            flights=self.flights, probe_ms=self.probe_ms, sources=sources, on_line=self._tell,
        )  # fmt: skip

    async def bring_up(self, swarm: Swarm, gateway: Gateway) -> None:
        """All births, then a while of nothing but keepalives."""
        empty, began = gateway.usage(), time.monotonic()
        born = await swarm.until(lambda line: line["attached"] == self.clients, 120 + self.clients / 20, "all births")
        spent = time.monotonic() - began
        full = gateway.usage()
        self.document["births"] = {
            "per_second": self.clients / spent, "gateway_cpu_s": full.cpu_s - empty.cpu_s,
            "gateway_us_each": (full.cpu_s - empty.cpu_s) / self.clients * 1e6, "birth_ms": born["birth_ms"],
        }  # fmt: skip
        self.document["memory"] = {
            "rss_mib_before": empty.rss / 2**20, "rss_mib": full.rss / 2**20,
            "kib_per_session": (full.rss - empty.rss) / 1024 / self.clients,
        }  # fmt: skip
        await self._idle(swarm, gateway)

    async def _idle(self, swarm: Swarm, gateway: Gateway) -> None:
        before, clients = gateway.usage(), Usage.of(swarm.pid)
        start = (await swarm.line())["t"]
        line = await swarm.until(lambda line: line["t"] >= start + IDLE_S, IDLE_S + 5, "the idle time")
        self.document["idle"] = {
            "gateway_cpu_share": gateway.usage().share_since(before), "probe_interval_ms": self.probe_ms,
            "swarm_cpu_share": Usage.of(swarm.pid).share_since(clients), "probe_ms": line["probe_ms"],
        }  # fmt: skip

    async def all_back(self, swarm: Swarm, title: str) -> list[float]:
        """Wait until every client that is away is attached again; the curve."""
        await swarm.until(lambda line: line["away"] > 0, BACK_S, "the loss")
        line = await swarm.until(lambda line: line["away"] == 0, BACK_S, "the return of all")
        times = await swarm.curve()
        quantiles = {f"p{share}_ms": times[max(0, len(times) * share // 100 - 1)] for share in (1, 50, 99) if times}
        back = {
            "of": self.clients, "count": len(times), "ended": line["ended"], **quantiles,
            "last_ms": times[-1] if times else None, "target_ms": TARGET_MS, "reattach_ms": line["reattach_ms"],
            "again": line["asks_again"], "challenges": line["challenges"], "denials": line["denials"],
        }  # fmt: skip
        name, _, _ = title.partition(":")
        self.document[name] = back
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            path = self.output / f"scale-{name}.svg"
            path.write_text(picture(title, [Curve("clients", times, self.clients)], TARGET_MS), encoding="utf-8")
            back["picture"] = str(path)
        return times

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
                await trial.bring_up(swarm, gateway)
                before = gateway.usage()
                await swarm.tell("move 0")
                await trial.all_back(swarm, "storm: all reattach at once at one gateway, SQLite")
                after = gateway.usage()
                trial.document["storm"]["gateway_cpu_s"] = after.cpu_s - before.cpu_s
                trial.watched = []
                killed = await gateway.kill()
                await swarm.tell("lost 0")
                trial.document["start_with_sessions_s"] = await gateway.start()
                ready_ms = (time.monotonic() - killed) * 1000
                times = await trial.all_back(swarm, "restart: one gateway, SQLite, SIGKILL and start")
                found = trial.document["restart"]
                found["ready_ms"], found["last_after_ready_ms"] = ready_ms, (times[-1] if times else 0.0) - ready_ms
                found["gateway_cpu_s"] = gateway.usage().cpu_s
        finally:
            await gateway.stop()
    finally:
        namespaces.close()
    return trial.document


async def kill(trial: Trial) -> dict[str, Any]:
    """Two gateways and etcd: the owner of all sessions dies by SIGKILL, all of them move to the other one."""
    async with Cluster(device_tables(trial.clients, POOL), trial.members, announce=trial.announce) as cluster:
        first, second = (cluster.gateways[name] for name in GATEWAYS)
        trial.document |= {"etcd_members": trial.members, "announce": trial.announce}
        trial.document["start_s"] = await first.start()
        await second.start()
        trial.watched = [first, second]
        async with trial.swarm(cluster.namespaces, [first, second], SOURCES) as swarm:
            etcd = cluster.etcd_usage()
            await trial.bring_up(swarm, first)
            trial.document["births"]["etcd_cpu_s"] = _cpu(etcd, cluster.etcd_usage())
            before, etcd = second.usage(), cluster.etcd_usage()
            trial.watched = [second]
            await first.kill()
            await swarm.tell("lost 0")
            await trial.all_back(swarm, "kill: the owner dies, its sessions move to the other gateway")
            after, found = second.usage(), trial.document["kill"]
            found["gateway_cpu_s"] = after.cpu_s - before.cpu_s
            found["etcd_cpu_s"] = _cpu(etcd, cluster.etcd_usage())
            found["etcd_mib"] = cluster.etcd_bytes() / 2**20
            found["kib_per_session"] = (after.rss - before.rss) / 1024 / trial.clients
    return trial.document


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
        announce=options.announce,
    )  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.scale", description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"how many (default {CLIENTS})")
    parser.add_argument(
        "--only", action="append", choices=tuple(MEASUREMENTS), help="this measurement; may be repeated"
    )
    parser.add_argument("--births", type=int, default=BIRTHS, help=f"begun per second (default {BIRTHS})")
    parser.add_argument("--flights", type=int, default=512, help="births and requests under way at once (default 512)")
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
