"""What etcd and a gateway's part in it cost, for the simulation of populations (``python -m jumpvpn.sim.scale``).

``python -m bench.scale_store [--etcd 1|3] [--scale FILE] [--output FILE]`` starts real etcd servers and drives them by
the shipped store. ``--scale`` is the JSON of ``python -m bench.scale``, from which the costs of whole operations come.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.scale_cluster import PLACE, Cluster
from bench.scale_control import OPERATIONS, Control
from bench.scale_nodes import Usage
from jumpvpn.gateway.view import HELD, LIVE, ClusterView, Watchers
from jumpvpn.lab import LabError
from jumpvpn.runtime.stores.base import CommitResult, Write
from jumpvpn.runtime.stores.etcd.config import EtcdConfig
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases
from jumpvpn.runtime.stores.etcd.records import decode_session, encode_session
from jumpvpn.runtime.stores.etcd.store import EtcdStore
from jumpvpn.runtime.stores.leases import Change
from jumpvpn.runtime.stores.shared import Exchange, Found

SECONDS = 8.0
SESSIONS = 2_000  # of each writer
UNDER_WAY = 64  # transactions of each writer at once
WRITERS = 2
WATCHERS = 3
BATCH = 40  # records of one write-behind transaction, as the gateways have them
BODY, SEALED = bytes(620), bytes(212)
LINES = tuple(hashlib.shake_256(b"%d" % n).digest(320) + b"x" * 480 for n in range(2))  # two real ones pack as these do


# --- in the namespace of etcd, one process for each role -------------------------------------------------------------


def _write(number: int, writer: int, version: int) -> Write:
    session_id = (writer * SESSIONS + number).to_bytes(16, "big")
    return Write(
        session_id=session_id, expected_version=version - 1 or None, version=version, state="ATTACHED", epoch=version,
        body=BODY, sealed=SEALED, chain=f"s:{number:016x}", seq=version, head="0" * 64, lines=LINES, device=None,
        write_id=f"{writer:04x}{number:06x}{version:06x}", owner=f"w{writer}", term=1,
    )  # fmt: skip


async def _write_singly(store: EtcdStore, writer: int, seconds: float) -> dict[str, Any]:
    """One record in each transaction, UNDER_WAY of them at a time; compare-and-swap on what was written last."""
    until, counts, seen = time.monotonic() + seconds, [0] * UNDER_WAY, dict[int, Found]()

    async def task(place: int) -> None:
        version = 0
        while True:
            version += 1
            for number in range(place, SESSIONS, UNDER_WAY):
                if time.monotonic() > until:
                    return
                write = _write(number, writer, version)
                change = Exchange(write, write.stored_over(None), seen.get(number, Found()))
                done = await store.exchange([change], asyncio.get_running_loop().time() + 5)
                assert done.found is None, "nobody else writes these records"
                seen[number] = Found(change.record, done.revision)
                counts[place] += 1

    await asyncio.gather(*(task(place) for place in range(UNDER_WAY)))
    return {"count": sum(counts), "seconds": seconds}


async def _write_batches(store: EtcdStore, writer: int, seconds: float) -> dict[str, Any]:
    """As write-behind does: BATCH records in a transaction, four transactions at a time."""
    until, seen, count = time.monotonic() + seconds, dict[int, Found](), 0

    async def task(place: int) -> None:
        nonlocal count
        version, own = 0, range(place * BATCH, (place + 1) * BATCH)
        while time.monotonic() < until:
            version += 1
            writes = [_write(number, writer, version) for number in own]
            changes = [
                Exchange(write, write.stored_over(None), seen.get(number, Found()))
                for number, write in zip(own, writes, strict=True)
            ]
            done = await store.exchange(changes, asyncio.get_running_loop().time() + 5)
            assert done.found is None, "nobody else writes these records"
            seen.update((number, Found(c.record, done.revision)) for number, c in zip(own, changes, strict=True))
            count += len(changes)

    await asyncio.gather(*(task(place) for place in range(4)))
    return {"count": count, "seconds": seconds}


async def _one_at_a_time(store: EtcdStore, writer: int, seconds: float) -> dict[str, Any]:
    """Latencies (ms) of single commits with pauses between them."""
    until, number, times = time.monotonic() + seconds, 0, list[float]()
    while time.monotonic() < until:
        number += 1
        write = replace(_write(number, writer, 1), chain=f"s:{number:016x}")
        began = time.perf_counter()
        assert await store.commit(write) is CommitResult.COMMITTED
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.01)
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)], "count": len(times)}


async def _watch(store: EtcdStore, _writer: int, seconds: float) -> dict[str, Any]:
    """CPU and memory of a gateway that follows what others write."""
    leases = EtcdLeases(store.client)
    view = ClusterView(lambda name, value: decode_session(name.encode(), value))
    watchers = Watchers(lambda *_: None, lambda *_: None, lambda reason: sys.stderr.write(reason + "\n"))
    before = Usage.of(os.getpid())
    view.start(await leases.listing(HELD), await leases.listing(LIVE), watchers)
    listed = Usage.of(os.getpid())
    count, until = 0, time.monotonic() + seconds

    async def follow() -> None:
        nonlocal count
        changes: AsyncIterator[Any] = leases.follow(view.revision)
        async for change in changes:
            view.apply(change, watchers)
            count += 1

    task = asyncio.create_task(follow())
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    task.cancel()
    after = Usage.of(os.getpid())
    return {
        "count": count, "us": (after.cpu_s - listed.cpu_s) / max(1, count) * 1e6, "known": len(view.owners),
        "known_bytes": _known_bytes(), "list_s": listed.at - before.at,
    }  # fmt: skip


def _known_bytes() -> float:
    """What a gateway's view takes for each session of its cluster."""
    count, view = 20_000, ClusterView(lambda name, value: decode_session(name.encode(), value))
    watchers = Watchers(lambda *_: None, lambda *_: None, lambda _reason: None)
    records = [_write(number, 1, 1).stored_over(None) for number in range(SESSIONS)]
    tracemalloc.start()
    for number in range(count):
        session_id = number.to_bytes(16, "big")
        stored = replace(records[number % SESSIONS], session_id=session_id)
        view.apply(Change(LIVE + session_id.hex(), encode_session(stored), number), watchers)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / count


ROLES = {"single": _write_singly, "batch": _write_batches, "latency": _one_at_a_time, "watch": _watch}


async def _child(role: str, writer: int, seconds: float, files: Path, endpoints: Sequence[str]) -> dict[str, Any]:
    config = EtcdConfig(
        endpoints=endpoints, ca=files / "ca.pem", certificate=files / "etcd-client.pem", key=files / "etcd-client.key",
        cluster="costs", node=f"w{writer}",
    )  # fmt: skip
    store = await EtcdStore.open(config)
    try:
        before = Usage.of(os.getpid())
        found = await ROLES[role](store, writer, seconds)
        return {**found, "cpu_s": Usage.of(os.getpid()).cpu_s - before.cpu_s}
    finally:
        await store.close()


# --- who starts them -------------------------------------------------------------------------------------------------


async def measure_etcd(members: int, note: Callable[[str], None], seconds: float = SECONDS) -> dict[str, Any]:
    """Rates and latencies of one etcd cluster of ``members``, and what following it costs."""
    async with Cluster("", members) as cluster:
        start = _starter(cluster, seconds)
        note("etcd: latency of single transactions")
        latency = await start("latency", 100)
        note("etcd: transactions of one record")
        usage = cluster.etcd_usage()
        single = await asyncio.gather(*(start("single", 200 + writer) for writer in range(WRITERS)))
        single_cpu = _spent(usage, cluster.etcd_usage())
        note("etcd: transactions of many records")
        usage = cluster.etcd_usage()
        batch = await start("batch", 300)
        batch_us = _spent(usage, cluster.etcd_usage()) / batch["count"] * 1e6
        note("etcd: the same, and gateways that follow")
        usage = cluster.etcd_usage()
        again, *watches = await asyncio.gather(start("batch", 310), *(start("watch", 400 + n) for n in range(WATCHERS)))
        told = sum(found["count"] for found in watches)
        fanout_us = (_spent(usage, cluster.etcd_usage()) * 1e6 - again["count"] * batch_us) / told
        watch = watches[0]
        written = sum(found["count"] for found in single)
        return {
            "members": members, "writes_per_s": written / seconds, "flushed_per_s": batch["count"] / seconds,
            "latency_p50_ms": latency["p50"], "latency_p99_ms": latency["p99"],
            "etcd_us_per_write": single_cpu / written * 1e6, "etcd_us_per_flushed": batch_us,
            "writer_us_per_write": sum(found["cpu_s"] for found in single) / written * 1e6,
            "watch_event_us": watch["us"], "known_bytes": watch["known_bytes"], "watch_events": watch["count"],
            "fanout_us": max(1.0, fanout_us), "list_s": watch["list_s"], "listed": watch["known"],
        }  # fmt: skip


def _starter(cluster: Cluster, seconds: float) -> Callable[[str, int], Any]:
    async def start(role: str, writer: int) -> dict[str, Any]:
        argv = [sys.executable, "-m", "bench.scale_store", "--role", role, "--writer", str(writer)]
        argv += ["--seconds", str(seconds), "--files", str(cluster.files("gw1")), *cluster.endpoints]
        process = await cluster.namespaces.exec_async(PLACE, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said, complained = await process.communicate()
        if process.returncode != 0:
            raise LabError(f"the {role} role ended with {process.returncode}: {complained.decode()[-800:]}")
        found: dict[str, Any] = json.loads(said)
        return found

    return start


def _spent(before: Sequence[Usage], after: Sequence[Usage]) -> float:
    return sum(late.cpu_s - early.cpu_s for early, late in zip(before, after, strict=True))


def costs(etcd: dict[str, Any], scale: dict[str, Any] | None, control: dict[str, Any]) -> dict[str, Any]:
    """The file that ``jumpvpn.sim.scale`` reads. Without ``scale`` an operation costs its control path alone."""
    operations = {name: float(control["operations"][name]["us"]) for name in OPERATIONS}
    commit, takeover, birth, session_bytes = operations["reattach"], operations["takeover"], operations["birth"], 16_384
    if scale is not None:
        commit, takeover = (_each(scale[one][other]) for one, other in (("restart", "storm"), ("kill", "kill")))
        birth = scale["kill"]["births"]["gateway_us_each"]
        session_bytes = round(scale["kill"]["memory"]["kib_per_session"] * 1024)
    rekey = operations["rekey"] + etcd["writer_us_per_write"]
    return {
        "machine": f"{os.cpu_count()} cores shared by all, {platform.system()} {platform.release()}",
        "etcd": {name: etcd[name] for name in (
            "members", "writes_per_s", "flushed_per_s", "latency_p50_ms", "latency_p99_ms", "fanout_us",
        )},
        "gateway": {
            "commit_us": commit, "takeover_us": takeover, "birth_us": birth, "rekey_us": rekey,
            "watch_event_us": etcd["watch_event_us"], "session_bytes": session_bytes,
            "known_bytes": max(1, round(etcd["known_bytes"])),
        },
    }  # fmt: skip


def _each(back: dict[str, Any]) -> float:
    """CPU (us) of the gateway for each client that came back."""
    return float(back["gateway_cpu_s"]) / int(back["moved"]) * 1e6


def _control(note: Callable[[str], None]) -> dict[str, Any]:
    import tempfile  # noqa: PLC0415 - only this role needs it

    with tempfile.TemporaryDirectory(prefix="jumpvpn-bench-") as folder:
        control = Control(Path(folder))
        note("control path")
        return {"operations": {name: control.run(name, 1000) for name in OPERATIONS}}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.scale_store", description=__doc__)
    parser.add_argument("--etcd", type=int, default=1, choices=(1, 3), help="servers (default 1)")
    parser.add_argument(
        "--scale", metavar="FILE", type=Path, action="append", default=[],
        help="the JSON of 'python -m bench.scale'; may be repeated where its measurements were made one by one",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the costs here too")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=tuple(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--writer", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, default=Path(), help=argparse.SUPPRESS)
    parser.add_argument("endpoints", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        found = asyncio.run(_child(options.role, options.writer, options.seconds, options.files, options.endpoints))
        sys.stdout.write(json.dumps(found))
        return 0

    def note(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    try:
        scale = {}
        for file in options.scale:
            scale |= json.loads(file.read_text(encoding="utf-8"))
        etcd = asyncio.run(measure_etcd(options.etcd, note, options.seconds))
    except (LabError, OSError, ValueError) as error:
        sys.stderr.write(f"bench.scale_store: {error}\n")
        return 1
    document = {"measured": etcd, "costs": costs(etcd, scale or None, _control(note))}
    text = json.dumps(document, indent=2)
    if options.output:
        options.output.write_text(json.dumps(document["costs"], indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
