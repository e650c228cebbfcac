"""What a run leaves behind: the table on the terminal, the picture, the journals, and the JSON for programs."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jumpvpn.lab.demo.picture import timeline
from jumpvpn.lab.demo.result import Finding, Result, document
from jumpvpn.lab.demo.words import effect_cells, names_of

_RASTER = "rsvg-convert"
_RASTER_PACKAGE = "librsvg2-bin"


def show_table(console: Console, result: Result) -> None:
    """Print one row per incident."""
    table = effect_table("incident", "carried by")
    for shown in result.shown:
        incident, effect = shown.incident, shown.effect
        table.add_row(
            shown.step.title,
            incident.reason,
            *effect_cells(incident.detection_ms, effect),
            names_of(incident.transport) or "–",
        )
    console.print(table)
    console.print(
        Text("gap: longest time without delivery around the incident (echo at 1 kHz); definitions: docs/measuring.md",
             style="dim")
    )  # fmt: skip


def effect_table(first: str, last: str) -> Table:
    """A table without rows: what happened, its reason, the cells of its effect, and one thing more."""
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    table.add_column("reason")
    for title in ("detected", "UDP gap", "TCP gap", "download gap", "lost", "dup."):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(last, no_wrap=True)
    return table


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print what had to hold and whether it did."""
    for finding in findings:
        mark = Text("✓ ", style="green") if finding.holds else Text("✗ ", style="bold red")
        console.print(mark + Text(finding.text, style="" if finding.holds else "bold red"), soft_wrap=True)


def write_files(result: Result, findings: Sequence[Finding], directory: Path) -> tuple[list[Path], str]:
    """Write picture, journals and results into `directory`; the paths, and a hint if something could not be made."""
    directory.mkdir(parents=True, exist_ok=True)
    written, hint = write_picture(timeline(result, findings), directory)
    written += write_journals(result.journal_lines, directory)
    for side, words in result.said.items():
        said = directory / f"{side}.log"
        said.write_text(f"{words}\n", encoding="utf-8")
        written.append(said)
    written.append(write_json(result, findings, directory / "result.json"))
    return written, hint


def write_picture(drawn: str, directory: Path) -> tuple[list[Path], str]:
    """Write a picture as SVG and PNG; the paths, and a hint if there could be no PNG."""
    picture = directory / "timeline.svg"
    picture.write_text(drawn, encoding="utf-8")
    if not shutil.which(_RASTER):
        return [picture], f"no PNG: {_RASTER} is missing; install it with 'apt-get install {_RASTER_PACKAGE}'"
    raster = picture.with_suffix(".png")
    subprocess.run([_RASTER, "--output", str(raster), str(picture)], check=True, timeout=60)
    return [picture, raster], ""


def write_journals(journals: Mapping[str, Iterable[bytes]], directory: Path) -> Iterator[Path]:
    """Write each side's lines into a file of their own; the paths."""
    for side, lines in journals.items():
        path = directory / f"{side}-events.jsonl"
        path.write_bytes(b"".join(lines))
        yield path


def write_json(result: Result, findings: Sequence[Finding], path: Path) -> Path:
    """Write the result for programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(result, findings), indent=2) + "\n", encoding="utf-8")
    return path
