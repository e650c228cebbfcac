"""What a run leaves behind: the table on the terminal, the picture, the journals, and the JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from jumpvpn.lab.cluster.demo.picture import timeline
from jumpvpn.lab.cluster.demo.result import Result, document
from jumpvpn.lab.demo.report import effect_table, show_findings, write_journals, write_picture
from jumpvpn.lab.demo.result import Finding
from jumpvpn.lab.demo.words import effect_cells


def show(console: Console, result: Result, findings: Sequence[Finding]) -> None:
    """Print one row per incident, then what had to hold."""
    table = effect_table("what was done", "owner")
    for shown in result.shown:
        cells = effect_cells(shown.incident.detection_ms, shown.effect)
        table.add_row(shown.title, shown.incident.reason, *cells, shown.owner)
    console.print(table)
    show_findings(console, findings)


def write(result: Result, findings: Sequence[Finding], directory: Path, also: Path | None) -> list[str]:
    """Write picture, journals, the store's history and the result; the paths, and a hint if there is no PNG."""
    directory.mkdir(parents=True, exist_ok=True)
    written, hint = write_picture(timeline(result, findings), directory)
    written += write_journals(result.journal_lines, directory)
    history = directory / "store.jsonl"
    history.write_text("".join(f"{json.dumps(asdict(change))}\n" for change in result.changes), encoding="utf-8")
    written.append(history)
    text = json.dumps(document(result, findings), indent=2) + "\n"
    for path in (directory / "result.json", also):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return [*map(str, written), *([hint] if hint else [])]
