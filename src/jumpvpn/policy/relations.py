"""Relations between policy keys, as data: what must not exceed what, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jumpvpn.policy.problems import Path, Problem
from jumpvpn.policy.units import format_duration


@dataclass(frozen=True, slots=True)
class Relation:
    """The sum of ``lower`` must be at most ``upper``; both sides are dotted keys of the policy."""

    lower: tuple[str, ...]
    upper: str
    why: str


RELATIONS: tuple[Relation, ...] = (
    Relation(
        ("volatility.volatile_max", "switching.hold_down", "recovery.window"),
        "session.transport_ttl",
        "one full recovery must fit into the transport TTL",
    ),
    Relation(("session.transport_ttl",), "recovery.episode_max", "an episode must outlast the transport TTL"),
    Relation(("recovery.episode_max",), "session.max_lifetime", "an episode cannot outlast the session"),
    Relation(
        ("volatility.stability_window",), "volatility.volatile_max", "stability must be provable within the dwell"
    ),
    Relation(("volatility.stability_window",), "volatility.stability_window_max", "the doubling starts at the window"),
    Relation(("security.reattach_max_age",), "recovery.window", "a request must not outlive its attempt"),
    Relation(("recovery.attempt_timeout",), "recovery.window", "at least one attempt must fit into the window"),
    Relation(("volatility.silence_floor",), "volatility.silence_ceiling", "the floor cannot pass the ceiling"),
    Relation(("volatility.probe_interval",), "volatility.probe_interval_idle", "idle probes are the rarer ones"),
    Relation(("switching.flap_reuse",), "switching.flap_suppress", "reuse must lie below suppression"),
    Relation(("security.rekey_after",), "security.key_max_age", "keys must be renewed before they expire"),
)


def broken_relations(values: Mapping[str, Any], skip: Collection[Path] = ()) -> list[Problem]:
    """Every relation that ``values`` (sections of plain numbers) breaks, except those that touch a key in ``skip``."""
    skipped = {".".join(str(part) for part in path) for path in skip}
    return [
        _problem(relation, values)
        for relation in RELATIONS
        if not _touches(relation, skipped)
        and sum(_value(values, key) for key in relation.lower) > _value(values, relation.upper)
    ]


def _touches(relation: Relation, skipped: set[str]) -> bool:
    sections = {key.split(".", maxsplit=1)[0] for key in (*relation.lower, relation.upper)}
    return bool(skipped & {*relation.lower, relation.upper, *sections})


def _problem(relation: Relation, values: Mapping[str, Any]) -> Problem:
    total = sum(_value(values, key) for key in relation.lower)
    bound = f"{' + '.join(relation.lower)} = {_shown(relation, total)}"
    section, key = relation.upper.split(".")
    shown = _shown(relation, _value(values, relation.upper))
    return Problem((section, key), f"must be at least {bound} ({relation.why})", shown)


def _shown(relation: Relation, value: int) -> str:
    return str(value) if relation.upper.startswith("switching.flap_s") else format_duration(value)


def _value(values: Mapping[str, Any], dotted: str) -> int:
    section, key = dotted.split(".")
    return int(values[section][key])
