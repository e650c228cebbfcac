"""Every row of the table in a transcript that people review; ``--rewrite`` writes what the machine does now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transcripts import Scenario, read

from jumpvpn.session.transitions import TABLE

FOLDER = Path(__file__).parents[2] / "scenarios"
FILES = sorted(path for path in FOLDER.glob("*.txt") if path.name != "table.txt")


def _scenarios() -> list[Scenario]:
    return [scenario for path in FILES for scenario in read(path.read_text())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_machine_does_what_the_transcript_says(path: Path, rewrite: bool) -> None:
    text = "\n\n".join("\n".join(scenario.replay()[0]) for scenario in read(path.read_text())) + "\n"
    if rewrite:
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("scenario", _scenarios(), ids=lambda scenario: scenario.title)
def test_a_transcript_takes_the_rows_of_its_title(scenario: Scenario) -> None:
    promised = re.split(r",\s*", scenario.title.partition(":")[0])
    _, rows = scenario.replay()
    assert set(promised) <= set(rows)


def test_every_row_has_a_transcript() -> None:
    taken = {row for scenario in _scenarios() for row in scenario.replay()[1]}
    assert taken == {row.id for row in TABLE} | {"34", "35"}
