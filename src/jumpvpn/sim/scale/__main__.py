"""``python -m jumpvpn.sim.scale``: what a population of sessions does to gateways and etcd.

A sample of sessions lives through an hour with the shipped engines; its commits are then superposed. What one
operation costs is measured by ``python -m bench.scale_store`` and read with ``--costs``. Equal arguments give equal
figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from jumpvpn.sim.scale import costs as prices
from jumpvpn.sim.scale import load as loads
from jumpvpn.sim.scale import shards, storm
from jumpvpn.sim.scale.habits import habits, policy
from jumpvpn.sim.scale.picture import Curve, picture
from jumpvpn.sim.scale.report import text

SESSIONS = (1_000, 100_000, 1_000_000, 10_000_000)
SAMPLE = 12  # sessions of each habit: the figures move by some percent with the seed
VARIANTS = ((120.0, 3600.0), (120.0, 300.0), (3600.0, 300.0))
"""Seconds between rekeys, and how long etcd keeps old revisions: first what is shipped, then what spares the store."""
_WRONG_USE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate and print; 0, or 2 with one line on stderr for arguments that make no sense."""
    options = _options(argv)
    try:
        costs = prices.read(options.costs or _shipped())
        _demand(options)
    except (prices.BadCosts, ValueError) as error:
        sys.stderr.write(f"jumpvpn sim.scale: {error}\n")
        return _WRONG_USE
    found = simulate(options, costs)
    body = json.dumps(found, indent=2)
    if options.output is not None:
        _keep(options.output, body, found)
    sys.stdout.write(body + "\n" if options.json else text(found))
    return 0


def simulate(options: argparse.Namespace, costs: prices.Costs) -> dict[str, Any]:
    """Everything that the report tells, as plain values."""
    populations = []
    for rekey_s, retention_s in _variants(options):
        at = msgspec.structs.replace(costs, etcd=msgspec.structs.replace(costs.etcd, retention_s=retention_s))
        kinds = habits(policy(rekey_s))
        samples = []
        for kind in kinds:
            _note(f"{options.sample} sessions of kind {kind.name}, rekey every {rekey_s:g} s")
            samples.append(loads.sampled(kind, options.sample, options.seed))
        causes, record = loads.mean(samples, kinds)
        populations.append(_population(options, at, rekey_s, causes, record, samples))
    return {
        "seed": options.seed, "sample": options.sample, "costs": msgspec.to_builtins(costs), "populations": populations,
        "storms": _storms(options, costs),
    }  # fmt: skip


def _population(
    options: argparse.Namespace, costs: prices.Costs, rekey_s: float, causes: Any, record: float, samples: Any
) -> dict[str, Any]:
    shard = shards.largest(causes, record, costs, per_gateway=options.per_gateway)
    rows = []
    for sessions in options.sessions or SESSIONS:
        clusters = max(1, -(-sessions // shard.sessions))
        gateways = max(2, -(-sessions // clusters // options.per_gateway))
        one = loads.load(causes, record, -(-sessions // clusters), gateways, costs)
        rows.append(
            {"sessions": sessions, "etcd_clusters": clusters, "gateways": gateways * clusters, "each": asdict(one)}
        )
    return {
        "rekey_s": rekey_s, "retention_s": costs.etcd.retention_s, "record_bytes": record,
        "per_session_hour": {cause: asdict(found) for cause, found in causes.items()},
        "by_habit": {s.habit: {cause: asdict(found) for cause, found in s.causes.items()} for s in samples},
        "shard": {
            "sessions": shard.sessions, "gateways": shard.gateways, "binding": shard.binding,
            "limits": dict(shard.limits), "load": asdict(shard.load), "storm_last_s": shard.storm.last_s,
        },
        "rows": rows,
    }  # fmt: skip


def _storms(options: argparse.Namespace, costs: prices.Costs) -> list[dict[str, Any]]:
    """One gateway of some, and a site of them, at different sizes of gateway."""
    found = []
    for gateways, lost in ((2, 1), (10, 1), (100, 1), (100, 20)):
        for each in (1_000, options.per_gateway):
            told = storm.takeover(lost * each, gateways - lost, costs, detect_s=options.detect, seed=options.seed)
            found.append({"gateways": gateways, "lost": lost, "per_gateway": each, **asdict(told)})
    limit = shards.per_gateway(costs, 10, back_within_s=options.back_within)
    found.append({"gateways": 10, "lost": 1, "per_gateway_in_time": limit, "back_within_s": options.back_within})
    return found


def _keep(folder: Path, body: str, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.json").write_text(body + "\n", encoding="utf-8")
    curves = []
    for told in found["storms"]:
        if told.get("last_s") is not None:
            times = [at * 1000 for at, _ in told["curve"]]
            name = f"{told['lost']} of {told['gateways']} gateways, {told['per_gateway']} sessions each"
            curves.append(Curve(name, times, len(times)))
    drawn = picture("share of sessions back after the death of gateways (simulated)", curves[-5:], 5000.0, percent=True)
    (folder / "storms.svg").write_text(drawn, encoding="utf-8")


def _demand(options: argparse.Namespace) -> None:
    for name in ("sample", "per_gateway"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if any(sessions < 1 for sessions in options.sessions or ()):
        raise ValueError("--sessions must be at least 1")
    if any(not 5 <= rekey <= 86_400 for rekey in options.rekey or ()):
        raise ValueError("--rekey must be from 5 to 86400 seconds, as policy has it")
    if any(not 60 <= kept <= 86_400 for kept in options.retention or ()):
        raise ValueError("--retention must be from 60 to 86400 seconds")
    if options.back_within <= options.detect or options.detect < 0:
        raise ValueError("--back-within must be more than --detect, and neither below 0")


def _shipped() -> Path:
    return Path(str(resources.files("jumpvpn.sim.scale") / "costs.json"))


def _variants(options: argparse.Namespace) -> list[tuple[float, float]]:
    if options.rekey is None and options.retention is None:
        return list(VARIANTS)
    first, kept = VARIANTS[0]
    return [(rekey, retention) for rekey in options.rekey or [first] for retention in options.retention or [kept]]


def _note(words: str) -> None:
    sys.stderr.write(f"\r\033[K{words}" if sys.stderr.isatty() else f"{words}\n")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jumpvpn.sim.scale", description="Load of a population of sessions on gateways and etcd."
    )
    parser.add_argument("--sessions", type=int, action="append", help="a population; may be repeated")
    parser.add_argument("--per-gateway", type=int, default=shards.PER_GATEWAY, help="sessions of one gateway")
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"sessions of each kind of user (default {SAMPLE})")
    parser.add_argument("--seed", type=int, default=1, help="of the sample and of the storms (default 1)")
    parser.add_argument("--rekey", type=float, action="append", help="seconds between rekeys; may be repeated")
    parser.add_argument("--retention", type=float, action="append", help="seconds until etcd compacts; may be repeated")
    parser.add_argument("--detect", type=float, default=1.0, help="clients notice a dead gateway within (s)")
    parser.add_argument("--back-within", type=float, default=5.0, help="all sessions are wanted back within (s)")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="what 'python -m bench.scale_store' wrote")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write scale.json and storms.svg here")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
