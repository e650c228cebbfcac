"""How long a birth takes: from the client's first datagram to its first record ATTACHED, in round trips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.recovery import quantiles
from jumpvpn.lab import Lab, Link
from jumpvpn.lab.deployment import Deployment
from jumpvpn.lab.traffic.pacing import boot_ns

ONE_WAY_MS = 50  # long enough that round trips can be told from computing


async def measure(runs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Start the client ``runs`` times against one gateway; per birth, node start to ATTACHED in ms."""
    times: list[float] = []
    with Lab(wifi=Link.with_delay(ONE_WAY_MS), lte=Link.with_delay(ONE_WAY_MS)) as lab:
        async with Deployment(lab) as vpn:
            for turn in range(runs):
                note(f"handshake: {turn + 1} of {runs}")
                await vpn.stop_node("client")
                since = boot_ns()
                await vpn.start_node("client")
                await vpn.event(lambda r: r.side == "client" and r.turned("ATTACHED"), since)
                ready = vpn.journals.first(lambda r: r.side == "client" and r.event == "node.started", since)
                born = vpn.journals.first(lambda r: r.side == "client" and r.turned("ATTACHED"), since)
                assert ready is not None
                assert born is not None
                times.append((born.at_ns - ready.at_ns) / 1e6)
    figures = quantiles(times)
    median = figures["p50"] or 0.0
    return {
        "rtt_ms": 2 * ONE_WAY_MS,
        "start_to_attached_ms": figures,
        "round_trips": round(median / (2 * ONE_WAY_MS), 2),
    }
