"""Audits for people: verdicts, stories, figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from jumpvpn.audit.auditor import Outcome, Report, Verdict
from jumpvpn.audit.auditor.owners import Tenure
from jumpvpn.audit.auditor.rules import counted
from jumpvpn.audit.auditor.rules import spans as runs_of
from jumpvpn.audit.auditor.stats import EndStats, Spread, Stats
from jumpvpn.audit.auditor.timeline import LETTERS, Story, span
from jumpvpn.cli.console import Console, printable
from jumpvpn.cli.console import console as console_of
from jumpvpn.explain.styles import STATE_STYLES

_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.INCOMPLETE: "yellow"}
_PASSES_SHOWN = 40  # sessions that are in order fill no screen; --json has a thousand of them
_UNREADABLE_SHOWN = 10  # the first ones tell what it is; --json has 100
_MOMENTS_SHOWN = 400
_PLAIN_WIDTH = 160
_BAR_MAX = 100


def print_report(report: Report) -> None:
    """Verdicts, what is wrong, totals by rule."""
    console = console_of(_PLAIN_WIDTH)
    for verdict in report.faults:
        _print_verdict(console, verdict)
    for verdict in report.passes[:_PASSES_SHOWN]:
        _print_verdict(console, verdict)
    hidden = report.counts[Outcome.PASS.value] - min(len(report.passes), _PASSES_SHOWN)
    if hidden > 0:
        _say(console, f"{'PASS':<10}  and {counted(hidden, 'more chain')}", style="dim")
    for what in report.unreadable[:_UNREADABLE_SHOWN]:
        _say(console, Text.assemble(("UNREADABLE", "yellow"), f"  {what}"))
    more = report.unreadable_count - min(len(report.unreadable), _UNREADABLE_SHOWN)
    if more:
        _say(console, f"            and {counted(more, 'more unreadable line')}")
    console.print()
    if report.events:
        console.print(_rules(report))
        console.print()
    if any(report.ownership.values()):
        _say(console, _ownership(report))
    for note in report.notes:
        _say(console, f"note: {note}", style="dim")
    _say(console, _total(report))


def print_doubts(report: Report) -> None:
    """One line if the log is not in order, for commands that tell rather than judge."""
    if report.ok or not report.events:
        return
    sys.stderr.write(f"audit: the log is {report.outcome.value}; 'jumpvpn audit verify' says why\n")


def print_stories(stories: Sequence[Story], not_told: int) -> None:
    """Each session: a bar of its states, then what happened."""
    console = console_of(_PLAIN_WIDTH)
    for story in stories:
        _print_story(console, story)
    if not_told:
        _say(console, f"and {counted(not_told, 'more session')}; name one with --session")


def print_stats(stats: Stats) -> None:
    """Figures of both ends."""
    console = console_of(_PLAIN_WIDTH)
    document = stats.as_json()
    rate = document["events_per_s"]
    per_second = f", {rate:.3g} per second" if rate is not None else ""
    _say(console, f"{counted(document['events_total'], 'event')} in {span(document['span_s'] * 1000)}{per_second}")
    for name, end in stats.ends.items():
        if end.sessions or end.entries:
            console.print()
            _print_end(console, name, end)
    console.print()
    console.print(_counts("event", document["events"]))


def _print_verdict(console: Console, verdict: Verdict) -> None:
    style = _STYLES[verdict.outcome]
    text = Text.assemble((f"{verdict.outcome.value:<10}", style), f"  {verdict.chain:<30}")
    records = "record " if verdict.records == 1 else "records"
    text.append(f"  {verdict.records:>6} {records}  {verdict.end}", style="dim")
    if verdict.state is not None:
        text.append(f"  {verdict.state}", style=STATE_STYLES.get(verdict.state, ""))
        text.append(f" version {verdict.version}" + (f" {verdict.reason}" if verdict.reason else ""), style="dim")
    _say(console, text)
    for finding, last in runs_of(verdict.findings):
        place = f"{finding.chain}/{_range(finding.seq, last)}"
        where = f"{finding.rule.id:<5} {finding.promise.name:<18} {place}"
        _say(console, Text.assemble("            ", (where, "red"), f"  {finding.text}"))
    hidden = verdict.failures - len(verdict.findings)
    if hidden > 0:
        _say(console, f"            and {hidden} more", style="red")
    for gap in verdict.gaps:
        where = f"gap {_range(gap.first, gap.last)}" if gap.first else "gap"
        _say(console, Text.assemble("            ", (where, "yellow"), f"  {gap.text}"))
    for note in verdict.notes:
        _say(console, f"            note: {note}", style="dim")


def _range(first: int, last: int) -> str:
    return f"{first}..{last}" if last > first else str(first)


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


def _ownership(report: Report) -> str:
    found = report.ownership
    parts = [counted(found["takeovers"], "takeover"), counted(found["adoptions"], "adoption")]
    parts.append(f"{counted(found['tail_records'], 'record')} in {counted(found['tails'], 'tail')} written behind")
    if found["unknown_versions"]:
        parts.append(f"{counted(found['unknown_versions'], 'version')} known only to journals that are not here")
    parts.append(f"{counted(found['dual_active'], 'finding')} of two owners at once")
    return f"owners: {', '.join(parts)}"


def _total(report: Report) -> Text:
    counts = ", ".join(f"{report.counts[o.value]} {o.value}" for o in Outcome if report.counts[o.value]) or "no chains"
    events = counted(report.events, "event")
    text = Text.assemble((report.outcome.value, _STYLES[report.outcome]), f": {events}, {counts}")
    if report.unreadable_count:
        text.append(f", {report.unreadable_count} unreadable")
    repeats = report.repeats + report.old_repeats
    return text.append(f", {counted(repeats, 'repeated record')}" if repeats else "")


def _print_story(console: Console, story: Story) -> None:
    width = min(_BAR_MAX, console.width - 4)
    spans = story.all_spans()
    total = sum(part.length_ms or 0 for part in spans)
    title = Text.assemble((f"session {story.uid}", "bold"), f" as the {story.end} recorded it, {span(total)}")
    _say(console, title)
    _say(console, _bar(story, width))
    if spans:
        _say(console, f"  {_clock(spans[0].start_ms, '%Y-%m-%d %H:%M:%S')} {_zone(spans[0].start_ms)}", style="dim")
    switches = counted(story.switches, "switch", "switches")
    facts = [f"transports {', '.join(story.transports) or 'none'}", switches, counted(story.denials, "denial")]
    facts.append(f"owner epoch{'s'[: len(story.owners) > 1]} {', '.join(map(str, story.owners))}")
    unsettled = sum(length for _, length in story.windows("VOLATILE", "RECOVERING", "DEGRADED"))
    facts += [f"unsettled for {span(unsettled)}"]
    facts.append(f"ended: {story.cause}" if story.cause else f"open in {spans[-1].state}" if spans else "")
    _say(console, "; ".join(facts))
    for tenure in story.tenures if len(story.tenures) > 1 else ():
        _say(console, f"  {_tenure(tenure)}")
    for moment in story.moments[:_MOMENTS_SHOWN]:
        line = Text(f"  {_clock(moment.time_ms)}  {'+' + span(moment.since_ms):>14}  ", style="dim")
        line.append(moment.text, style=_moment_style(moment.event))
        _say(console, line.append(f"  [{moment.record}]", style="dim"))
    hidden = len(story.moments) - _MOMENTS_SHOWN + story.dropped
    if hidden > 0:
        _say(console, f"  and {hidden} more; --json has them", style="dim")
    console.print()


def _tenure(tenure: Tenure) -> str:
    behind = f", {counted(tenure.behind, 'record')} written behind" if tenure.behind else ""
    unknown = f", {counted(tenure.unknown, 'version')} of it not here" if tenure.unknown else ""
    versions = f"versions {tenure.first_version}-{tenure.last_version}"
    times = f"{_clock(tenure.from_ms)} to {_clock(tenure.to_ms)}"
    how = f"{tenure.begun} > {tenure.ended or 'open'}"
    return f"owner {tenure.node}, epoch {tenure.term}: {versions}, {times}, {how}{behind}{unknown}"


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
    sessions, switches = counted(end.sessions, "session"), counted(end.switches, "switch", "switches")
    _say(console, Text.assemble((name, "bold"), f": {sessions}, {switches}{rate}, {counted(end.attempts, 'attempt')}"))
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
            _say(console, f"{heading}: {told}")


def _add_spread(table: Table, label: str, values: Spread) -> None:
    found = values.as_json()
    cells = ["-" if found[key] is None else f"{found[key]:g}" for key in ("p50", "p95", "p99", "max")]
    table.add_row(Text(printable(label)), str(values.count), *cells)


def _counts(heading: str, counts: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(heading)
    table.add_column("count", justify="right")
    for name, count in counts.items():
        table.add_row(Text(printable(name)), str(count))
    return table


def _clock(time_ms: int, form: str = "%H:%M:%S") -> str:
    moment = _local(time_ms)
    return "--:--:--.---" if moment is None else f"{moment:{form}}.{time_ms % 1000:03d}"


def _zone(time_ms: int) -> str:
    moment = _local(time_ms)
    return "" if moment is None else f"{moment:%Z}"


def _local(time_ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=UTC).astimezone()
    except (OverflowError, OSError, ValueError):  # a hostile record may tell any time
        return None


def _say(console: Console, text: Text | str, *, style: str = "") -> None:
    """One line, of which nothing is an order to the terminal."""
    line = text if isinstance(text, Text) else Text(text, style=style)
    line.plain = printable(line.plain)
    console.print(line, soft_wrap=True)
