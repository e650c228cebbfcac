"""Exhaustive checks of the session module over the generated table: all promises, all rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jumpvpn.properties import Property
from jumpvpn.tracecheck import tlc

CONFIGS = ("Session.cfg", "Liveness.cfg")
SAME = {"FRESH_PROOF": Property.PROOF, "CLOCKS_AGREE": Property.CLOCKS, "RECOVERING_ENDS": Property.BOUNDED_RECOVERY,
        "EPISODE_ENDS": Property.FINITE}  # fmt: skip
"""Promises that have another name in TLA+: PROOF is a word of the language, others are told in two parts."""
BESIDES = ("KNOWN", "TypeOK")
"""What the module asks of itself and of the table: it knows every guard, event and row; values are of their types."""

_ROW = re.compile(r'id \|-> "([^"]+)"')
_TAKEN = re.compile(r'<<\s*"row",\s*"([^"]+)"\s*>>')
_PROMISES = re.compile(r"^(?:INVARIANTS|PROPERTIES) (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Checked:
    """One run: its configuration, states, what was promised, what of it is violated (None: nothing), TLC's words."""

    config: str
    states: int
    distinct: int
    promises: tuple[str, ...]
    violated: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Model:
    """All runs. ``untaken`` are rows of the table that no behaviour takes."""

    runs: tuple[Checked, ...]
    rows: int
    untaken: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every promise holds and every row is taken."""
        return not self.untaken and all(run.violated is None for run in self.runs)


def check(files: Mapping[str, str] | None = None) -> Model:
    """Check the module in ``files`` (default: that of the checkout). Raises TlcMissing, TlcFailed."""
    given = tlc.sources() if files is None else files
    runs = tuple(check_one(config, given) for config in CONFIGS)
    rows = _ROW.findall(given["SessionTable.tla"])
    taken = set(_TAKEN.findall(runs[0].text))
    untaken = tuple(row for row in rows if row not in taken) if runs[0].violated is None else ()
    return Model(runs, len(rows), untaken)


def check_one(config: str, files: Mapping[str, str], module: str = "Session", workers: int = 1) -> Checked:
    """One configuration. Raises TlcMissing, TlcFailed."""
    outcome = tlc.run(module, config, files, workers=workers)
    told = promises(files[config])
    return Checked(config, outcome.states, outcome.distinct, told, outcome.violated, outcome.text)


def promises(config: str) -> tuple[str, ...]:
    """What a configuration's text asks TLC to check, by name."""
    return tuple(name for names in _PROMISES.findall(config) for name in names.split())
