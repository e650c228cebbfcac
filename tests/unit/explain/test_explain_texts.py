"""What people read: golden texts of incidents that the product's engines went through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenes import SCENES, said

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", sorted(SCENES))
def test_the_text_is_the_reviewed_one(name: str, rewrite: bool) -> None:
    shown = "\n".join(said(found) for found in SCENES[name]())
    path = GOLDEN / f"{name}.txt"
    if rewrite:
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(SCENES))
def test_the_same_facts_come_as_json(name: str) -> None:
    for found in SCENES[name]():
        document = json.loads(json.dumps(found.document(), allow_nan=False))
        assert document["state"] == found.state.value
        assert [step["text"] for step in document["why"]] == [step.text for step in found.steps]
        assert {due["name"] for due in document["next"]} == {due.name for due in found.dues}
        for due in document["next"]:
            assert due["in_ms"] is None or due["in_ms"] >= 0


def test_no_golden_text_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(SCENES)


def test_a_healthy_session_takes_four_lines() -> None:
    lines = said(SCENES["healthy"]()[0]).splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["session", "why", "next", "change"]
    assert len(lines) == 4
