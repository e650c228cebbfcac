"""Writes docs/reference/coverage.md: what exploration, simulation and real traces exercised of the session.

``coverage.py DIRECTORY`` reads ``model.json``, ``sim.json`` and ``real.json`` there (``make coverage`` makes them).
``coverage.py --check`` compares the names in the written document with the code: a row, reason or property that came
or went makes it stale, a count that moved does not.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jumpvpn.properties import Property
from jumpvpn.session.reasons import Reason
from jumpvpn.session.transitions import AFTER_TERMINATION, NOT_LISTED, TABLE

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/reference/coverage.md"
SOURCES = {"model": "exploration", "sim": "simulation", "real": "real traces"}
NOTE = "<!-- Written by `make coverage`; `make check` compares the names. -->\n"

NAMES: dict[str, tuple[str, ...]] = {
    "rows": tuple(row.id for row in (*TABLE, AFTER_TERMINATION, NOT_LISTED)),
    "reasons": tuple(reason.value for reason in Reason),
    "properties": tuple(prop.name for prop in Property),
}
TEXTS = {prop.name: prop.text for prop in Property}


def document(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page; ``found`` maps a source to its JSON."""
    parts = [
        NOTE,
        "# Coverage of the session\n",
        "How often each row of the table was taken, each reason given and each property checked: by exhaustive",
        "exploration of the shipped machine (`make model`), by simulation of both shipped engines (`make sim`), and by",
        "the auditor over the journals of real nodes (namespace tests). A row that writes no event is unseen there.\n",
        _sizes(found),
    ]
    for kind, names in NAMES.items():
        parts += [f"\n## {kind.capitalize()}\n", *_table(kind, names, found)]
    parts += ["\n## Mutants\n", *_mutants(found["model"])]
    return "\n".join(parts) + "\n"


def _sizes(found: Mapping[str, Mapping[str, Any]]) -> str:
    model, sim, real = found["model"], found["sim"], found["real"]
    return (
        f"Exploration: {_short(model['states'])} states, {_short(model['edges'])} edges. "
        f"Simulation: {sim['seeds']} seeds. Real traces: {real['logs']} journals, {_short(real['events'])} events."
    )


def _table(kind: str, names: tuple[str, ...], found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    heads = [kind[:-1] if kind != "properties" else "property", *SOURCES.values()]
    lines = [f"| {' | '.join(heads)} |", "| --- | ---: | ---: | ---: |"]
    for name in names:
        counts = [_short(found[source].get(kind, {}).get(name, 0)) for source in SOURCES]
        shown = f"`{name}`" if kind == "reasons" else name
        lines.append(f"| {shown} | {' | '.join(counts)} |")
    for source, title in SOURCES.items():
        seen = sum(1 for name in names if found[source].get(kind, {}).get(name, 0))
        lines.append(
            f"\n{title}: {seen} of {len(names)}." if source == "model" else f"{title}: {seen} of {len(names)}."
        )
    return lines


def _mutants(model: Mapping[str, Any]) -> list[str]:
    lines = [
        "Seeded faults of the machine and the property that caught each.\n",
        "| fault | caught by |",
        "| --- | --- |",
    ]
    return lines + [f"| {name} | {prop} |" for name, prop in sorted(model["mutants"].items())]


def _short(count: int) -> str:
    """A count in at most three figures; nothing seen is a dash."""
    if count == 0:
        return "–"
    for size, unit in ((1_000_000, " M"), (1_000, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def stale() -> list[str]:
    """Names in which the written document and the code differ."""
    if not DOCUMENT.exists():
        return [DOCUMENT.name]
    found: list[str] = []
    for section in DOCUMENT.read_text(encoding="utf-8").split("\n## "):
        known = NAMES.get(section.split("\n", 1)[0].lower())
        if known is not None:
            written = re.findall(r"^\| `?([^`|]+?)`? \|", section, flags=re.MULTILINE)[2:]  # after head and rule
            found += sorted(set(known) ^ set(written))
    return found


def main() -> int:
    """0 done; 1 stale, or the directory lacks a source."""
    if sys.argv[1:] == ["--check"]:
        found = stale()
        if found:
            sys.stderr.write(f"docs/reference/coverage.md is stale ({', '.join(found)}); run: make coverage\n")
        return 1 if found else 0
    directory = Path(sys.argv[1])
    missing = [name for name in SOURCES if not (directory / f"{name}.json").exists()]
    if missing:
        sys.stderr.write(f"{directory} has no {', '.join(f'{name}.json' for name in missing)}; run: make coverage\n")
        return 1
    found_by = {name: json.loads((directory / f"{name}.json").read_text(encoding="utf-8")) for name in SOURCES}
    DOCUMENT.write_text(document(found_by), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
