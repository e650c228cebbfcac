"""Audits for people: verdicts, stories, figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jumpvpn.audit.auditor import Outcome, Report, Verdict
from jumpvpn.audit.auditor.stats import EndStats, Spread, Stats
from jumpvpn.audit.auditor.timeline import LETTERS, Story, span
from jumpvpn.cli.show_status import STATE_STYLES

_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.INCOMPLETE: "yellow"}
_PASSES_SHOWN = 40  # sessions that are in order fill no screen; --json has a thousand of them
_MOMENTS_SHOWN = 400
_PLAIN_WIDTH = 160
_BAR_MAX = 100


def print_report(report: Report) -> None:
    """Verdicts, what is wrong, totals by rule."""
    console = _console()
    for verdict in report.faults:
        _print_verdict(console, verdict)
    for verdict in report.passes[:_PASSES_SHOWN]:
        _print_verdict(console, verdict)
    hidden = report.counts[Outcome.PASS.value] - min(len(report.passes), _PASSES_SHOWN)
    if hidden > 0:
        console.print(f"{'PASS':<10}  and {hidden} more chains", style="dim")
    for what in report.unreadable:
        console.print(Text.assemble(("UNREADABLE", "yellow"), f"  {what}"), soft_wrap=True)
    more = report.unreadable_count - len(report.unreadable)
    if more:
        console.print(f"            and {more} more unreadable lines")
    console.print()
    console.print(_rules(report))
    console.print()
    for note in report.notes:
        console.print(f"note: {note}", style="dim", soft_wrap=True)
    console.print(_total(report), soft_wrap=True)


def print_doubts(report: Report) -> None:
    """One line if the log is not in order, for commands that tell rather than judge."""
    if report.ok or not report.events:
        return
    sys.stderr.write(f"audit: the log is {report.outcome.value}; 'jumpvpn audit verify' says why\n")


def print_stories(stories: Sequence[Story], not_told: int) -> None:
    """Each session: a bar of its states, then what happened."""
    console = _console()
    for story in stories:
        _print_story(console, story)
    if not_told:
        console.print(f"and {not_told} more sessions; name one with --session")


def print_stats(stats: Stats) -> None:
    """Figures of both ends."""
    console = _console()
    document = stats.as_json()
    rate = document["events_per_s"]
    per_second = f", {rate:g} per second" if rate is not None else ""
    console.print(f"{document['events_total']} events in {span(document['span_s'] * 1000)}{per_second}")
    for name, end in stats.ends.items():
        if end.sessions or end.entries:
            console.print()
            _print_end(console, name, end)
    console.print()
    console.print(_counts("event", document["events"]))


def _print_verdict(console: Console, verdict: Verdict) -> None:
    style = _STYLES[verdict.outcome]
    text = Text.assemble((f"{verdict.outcome.value:<10}", style), f"  {verdict.chain:<30}")
    text.append(f"  {verdict.records:>6} records  {verdict.end}", style="dim")
    if verdict.state is not None:
        text.append(f"  {verdict.state}", style=STATE_STYLES.get(verdict.state, ""))
        text.append(f" version {verdict.version}" + (f" {verdict.reason}" if verdict.reason else ""), style="dim")
    console.print(text, soft_wrap=True)
    for finding in verdict.findings:
        where = f"{finding.rule.id:<5} {finding.promise.name:<18} {finding.chain}/{finding.seq}"
        console.print(Text.assemble("            ", (where, "red"), f"  {finding.text}"), soft_wrap=True)
    hidden = verdict.failures - len(verdict.findings)
    if hidden > 0:
        console.print(f"            and {hidden} more", style="red")
    for gap in verdict.gaps:
        where = f"{gap.first}..{gap.last}" if gap.last > gap.first else str(gap.first or "")
        console.print(
            Text.assemble("            ", (f"gap {where}".rstrip(), "yellow"), f"  {gap.text}"), soft_wrap=True
        )
    for note in verdict.notes:
        console.print(Text(f"            note: {note}", style="dim"), soft_wrap=True)


def _rules(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading, justify in (
        ("rule", "left"),
        ("property", "left"),
        ("checked", "right"),
        ("failed", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for rule in report.rules():
        style = "bold red" if rule["failed"] else "" if rule["checked"] else "dim"
        table.add_row(
            rule["rule"], rule["property"], str(rule["checked"]), str(rule["failed"]), rule["text"], style=style
        )
    return table


def _total(report: Report) -> Text:
    counts = ", ".join(f"{report.counts[o.value]} {o.value}" for o in Outcome if report.counts[o.value]) or "no chains"
    text = Text.assemble((report.outcome.value, _STYLES[report.outcome]), f": {report.events} events, {counts}")
    if report.unreadable_count:
        text.append(f", {report.unreadable_count} unreadable")
    repeats = report.repeats + report.old_repeats
    return text.append(f", {repeats} repeated records" if repeats else "")


def _print_story(console: Console, story: Story) -> None:
    width = min(_BAR_MAX, console.width - 4)
    spans = story.all_spans()
    total = sum(part.length_ms or 0 for part in spans)
    title = Text.assemble((f"session {story.uid}", "bold"), f" as the {story.end} recorded it, {span(total)}")
    console.print(title)
    console.print(_bar(story, width))
    console.print(Text(_clock(spans[0].start_ms) if spans else "", style="dim"))
    facts = [f"transports {', '.join(story.transports) or 'none'}", f"{story.switches} switches"]
    facts += [f"{story.denials} denials", f"owner epochs {', '.join(map(str, story.owners))}"]
    unsettled = sum(length for _, length in story.windows("VOLATILE", "RECOVERING", "DEGRADED"))
    facts += [f"unsettled for {span(unsettled)}"]
    facts.append(f"ended: {story.cause}" if story.cause else f"open in {spans[-1].state}" if spans else "")
    console.print("; ".join(facts), soft_wrap=True)
    for moment in story.moments[:_MOMENTS_SHOWN]:
        line = Text(f"  {_clock(moment.time_ms)}  {'+' + span(moment.since_ms):>14}  ", style="dim")
        line.append(moment.text, style=_moment_style(moment.event))
        console.print(line.append(f"  [{moment.record}]", style="dim"), soft_wrap=True)
    hidden = len(story.moments) - _MOMENTS_SHOWN + story.dropped
    if hidden > 0:
        console.print(f"  and {hidden} more; --json has them", style="dim")
    console.print()


def _bar(story: Story, width: int) -> Text:
    text = Text("  ")
    for state in story.bar(width):
        text.append(LETTERS[state], style=STATE_STYLES.get(state, ""))
    return text


def _moment_style(event: str) -> str:
    if event == "session.state_change":
        return "bold"
    return "yellow" if event.endswith(("denied", "failed", "dead")) else "red" if event.startswith("security") else ""


def _print_end(console: Console, name: str, end: EndStats) -> None:
    minutes = end.live_ms / 60_000
    rate = f", {end.switches / minutes:.2f} per minute" if minutes else ""
    console.print(
        Text.assemble(
            (name, "bold"), f": {end.sessions} sessions, {end.switches} switches{rate}, {end.attempts} attempts"
        )
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "count", "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, values in (("recovery", end.recovery), ("detection", end.detection), ("interruption", end.interruption)):
        _add_spread(table, label, values)
    for state, stay in sorted(end.stays.items()):
        _add_spread(table, f"in {state}", stay)
    console.print(table)
    for heading, counter in (("denials", end.denials), ("ends", end.terminations)):
        if counter:
            told = ", ".join(f"{reason} {count}" for reason, count in counter.most_common())
            console.print(f"{heading}: {told}", soft_wrap=True)


def _add_spread(table: Table, label: str, values: Spread) -> None:
    found = values.as_json()
    cells = ["-" if found[key] is None else f"{found[key]:g}" for key in ("p50", "p95", "p99", "max")]
    table.add_row(label, str(values.count), *cells)


def _counts(heading: str, counts: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(heading)
    table.add_column("count", justify="right")
    for name, count in counts.items():
        table.add_row(name, str(count))
    return table


def _clock(time_ms: int) -> str:
    try:
        moment = datetime.fromtimestamp(time_ms / 1000, tz=UTC).astimezone()
    except (OverflowError, OSError, ValueError):  # a hostile record may tell any time
        return "--:--:--.---"
    return f"{moment:%H:%M:%S}.{time_ms % 1000:03d}"


def _console() -> Console:
    return Console(highlight=False) if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH, highlight=False)
