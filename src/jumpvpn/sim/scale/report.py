"""The figures of a simulated population as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def text(found: Mapping[str, Any]) -> str:
    """All of ``simulate``'s figures that people compare."""
    return "\n".join([*_costs(found["costs"]), *_populations(found), *_storms(found["storms"])]) + "\n"


def _costs(costs: Mapping[str, Any]) -> Iterator[str]:
    etcd, gateway = costs["etcd"], costs["gateway"]
    yield f"costs measured on: {costs['machine']}"
    yield (
        f"  etcd ({etcd['members']}): {etcd['writes_per_s']:.0f} single and {etcd['flushed_per_s']:.0f} batched "
        f"records/s, p50 {etcd['latency_p50_ms']:.1f} ms, p99 {etcd['latency_p99_ms']:.1f} ms"
    )
    yield (
        f"  gateway CPU: commit {gateway['commit_us']:.0f} us, takeover {gateway['takeover_us']:.0f} us, birth "
        f"{gateway['birth_us']:.0f} us, rekey {gateway['rekey_us']:.0f} us, watched event "
        f"{gateway['watch_event_us']:.0f} us"
    )


def _populations(found: Mapping[str, Any]) -> Iterator[str]:
    for population in found["populations"]:
        yield ""
        yield (
            f"rekey every {population['rekey_s']:g} s, etcd compacts after {population['retention_s']:g} s; "
            f"a record is {population['record_bytes']:.0f} bytes"
        )
        yield f"  {'per session-hour':24}{'commits':>10}{'shared':>10}{'writes':>10}{'bytes':>10}"
        total = dict.fromkeys(("commits", "shared", "writes", "bytes"), 0.0)
        for cause, told in population["per_session_hour"].items():
            total = {name: total[name] + told[name] for name in total}
            yield f"  {cause:24}" + _four(told)
        yield f"  {'all':24}" + _four(total)
        shard = population["shard"]
        limits = ", ".join(f"{name} {most:,}" for name, most in shard["limits"].items())
        yield f"  one etcd cluster bears {shard['sessions']:,} sessions on {shard['gateways']:,} gateways"
        yield f"  the narrow place is {shard['binding']}; limits: {limits}"
        yield (
            f"  {'sessions':>12}{'etcd':>6}{'gateways':>10}{'writes/s':>10}{'etcd MiB':>10}{'watch/s':>9}{'core':>7}"
            f"{'GW MiB':>8}   (from writes/s on: each etcd cluster, each gateway)"
        )
        for row in population["rows"]:
            each = row["each"]
            yield (
                f"  {row['sessions']:>12,}{row['etcd_clusters']:>6}{row['gateways']:>10,}{each['writes']:>10.1f}"
                f"{each['etcd_bytes'] / 2**20:>10.0f}{each['watch_events']:>9.1f}{each['core']:>7.1%}"
                f"{each['memory'] / 2**20:>8.0f}"
            )


def _four(told: Mapping[str, float]) -> str:
    return f"{told['commits']:>10.3f}{told['shared']:>10.3f}{told['writes']:>10.3f}{told['bytes']:>10.0f}"


def _storms(storms: Any) -> Iterator[str]:
    yield ""
    yield "storms: gateways die, all their sessions move (s until the last is back)"
    for told in storms:
        where = f"  {told['lost']} of {told['gateways']} gateways"
        if "per_gateway_in_time" in told:
            most, span = told["per_gateway_in_time"], told["back_within_s"]
            yield f"{where}: all back within {span:g} s up to {most:,} sessions each"
            continue
        last = f"{told['last_s']:.1f} s" if told["last_s"] is not None else "not within an hour"
        narrow = "etcd" if told["etcd_s"] > told["gateway_s"] else "gateways"
        yield f"{where}, {told['per_gateway']:,} sessions each: {last} (narrow: {narrow})"
