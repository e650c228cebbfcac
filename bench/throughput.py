"""Throughput of TCP streams through the tunnel, and of the same network without it, side by side in one lab."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Callable
from typing import Any

from jumpvpn.lab import SERVER_INNER, SERVER_PUBLIC, Lab
from jumpvpn.lab.deployment import Deployment

SECONDS = 5
STREAMS = (1, 4)
PORT = 5201


async def measure(runs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Medians in Gbit/s over ``runs`` interleaved runs; both ends, the load and the network share this machine."""
    found: dict[str, list[float]] = {}
    with Lab() as lab:
        async with Deployment(lab) as vpn:
            server = lab.exec("server", ["iperf3", "--server", "--port", str(PORT)], stdout=-3)
            await _listening(lab)
            for turn in range(runs):
                note(f"throughput: run {turn + 1} of {runs}")
                for way, address in (("tunnel", SERVER_INNER), ("no_vpn", SERVER_PUBLIC)):
                    for streams in STREAMS:
                        for direction in ("up", "down"):
                            figure = await asyncio.to_thread(_iperf, lab, address, streams, direction)
                            found.setdefault(f"{way}_{streams}_{direction}", []).append(figure)
            latency = {way: await asyncio.to_thread(_ping, lab, a) for way, a in _ways()}
            document = await vpn.status("client")
            server.terminate()
    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    counters = {name: value for name, value in document["counters"].items() if value}
    return {"gbit_s": medians, "runs": runs, "seconds": SECONDS, "rtt_ms": latency, "client_counters": counters}


def _ways() -> tuple[tuple[str, str], ...]:
    return (("tunnel", SERVER_INNER), ("no_vpn", SERVER_PUBLIC))


async def _listening(lab: Lab) -> None:
    """Wait until the server's socket accepts; iperf3 says nothing when it is ready."""
    probe = ["bash", "-c", f"exec 3<>/dev/tcp/{SERVER_PUBLIC}/{PORT}"]
    for _ in range(100):
        if lab.run("client", probe, check=False).returncode == 0:
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("iperf3 does not listen")


def _iperf(lab: Lab, address: str, streams: int, direction: str) -> float:
    argv = ["iperf3", "--client", address, "--port", str(PORT), "--time", str(SECONDS), "--omit", "1", "--json"]
    argv += ["--parallel", str(streams), *(["--reverse"] if direction == "down" else [])]
    report = json.loads(lab.run("client", argv, timeout=SECONDS + 20).stdout)
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def _ping(lab: Lab, address: str) -> dict[str, float]:
    """Round-trip times of 500 small packets on an idle machine."""
    said = lab.run("client", ["ping", "-c", "500", "-i", "0.005", address], timeout=30).stdout
    times = sorted(float(line.split("time=")[1].split()[0]) for line in said.splitlines() if "time=" in line)
    return {"p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)]}
