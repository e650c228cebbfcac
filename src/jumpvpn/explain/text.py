"""An explanation as lines of styled pieces: calm, aligned, short; no terminal, no width but a given one."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable

from jumpvpn.explain.ahead import Due, near
from jumpvpn.explain.causes import Step
from jumpvpn.explain.explanation import Explanation, Verdict
from jumpvpn.explain.units import listed, span
from jumpvpn.session.state import State

Piece = tuple[str, str]
"""Text and the name of its style: "", "dim", "label", "good", "bad", or a state's name."""
Line = list[Piece]
Clock = Callable[[int], str]
"""Unix milliseconds as the reader's time of day."""

LABEL = 9  # width of the first column
LEAST_TEXT = 40  # a narrow terminal wraps instead of losing words
_CALM_DUES = 2
_GRAIN_MS = 1.001  # events carry whole milliseconds
_QUANTITY = re.compile(r"(?<=\d) (?=(?:ms|s|min|h|d|%)(?![a-z]))")


def lines(explanation: Explanation, clock: Clock, width: int) -> list[Line]:
    """The whole text for people, wrapped to ``width`` columns."""
    found = _headline(explanation, clock, width)
    if explanation.calm and not explanation.source.past:
        found += _calm(explanation, clock, width)
    else:
        found += _full(explanation, clock, width)
    for note in explanation.notes:
        found += _block("note", [note], width, "dim")
    return found


def plain(found: Iterable[Line]) -> str:
    """Without styles, for tests and pipes."""
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in found)


def _headline(explanation: Explanation, clock: Clock, width: int) -> list[Line]:
    state, age = explanation.state, explanation.facts["state_age_ms"]
    line: Line = [("session".ljust(LABEL), "label"), (f"{explanation.uid}  ", ""), (state.value, state.value)]
    if state is State.TERMINATED:
        line.append((f" since {clock(round(explanation.at_ms - age))}", ""))
    elif age is not None:
        line.append((f" for {span(age)}", ""))
    well = ": all is well" if explanation.calm else ""
    if state is not State.ATTACHED:
        return [line, *_block("", [explanation.where], width), *_source(explanation, clock, width)]
    head: Line = [*line, (f" {explanation.where}{well}", "good" if well else "bad")]
    obvious = explanation.calm and explanation.source.live and not explanation.source.past
    return [head] if obvious else [head, *_source(explanation, clock, width)]


def _source(explanation: Explanation, clock: Clock, width: int) -> list[Line]:
    source = explanation.source
    text = f"as of {clock(explanation.at_ms)}; {source.text}"
    return _block("", [text], width, "dim")


# --- all is well -----------------------------------------------------------------------------------------------------


def _calm(explanation: Explanation, clock: Clock, width: int) -> list[Line]:
    coming = near(explanation.dues, explanation.state)
    shown = [_calm_due(due) for due in coming if due.in_ms is not None][:_CALM_DUES]
    lifetime = next((due for due in explanation.dues if due.name == "lifetime"), None)
    if lifetime is not None and lifetime.in_ms is not None and not any(due.name == "lifetime" for due in coming):
        shown.append(f"it may live {span(lifetime.in_ms)} more")
    found = _steps("why", explanation, explanation.steps, clock, width)
    found += _block("next", ["; ".join(shown) or "nothing is due"], width)
    if explanation.changes:
        found += _block("change", ["; ".join(explanation.changes)], width)
    return found


def _calm_due(due: Due) -> str:
    return f"in {span(due.in_ms or 0)} {due.text}"


# --- the full story --------------------------------------------------------------------------------------------------


def _full(explanation: Explanation, clock: Clock, width: int) -> list[Line]:
    ended = explanation.state is State.TERMINATED
    found = _section(_steps("why", explanation, explanation.steps, clock, width))
    found += _section(_block("rule", list(explanation.rules), width))
    found += _section(_transports(explanation, width))
    if explanation.verdict is not None:
        found += _section(_block("checked", [_checked(explanation.verdict, clock)], width))
    if not ended:
        found += _section(_dues(explanation, width))
    if explanation.later:
        found += _section(_steps("then", explanation, explanation.later, clock, width))
    label = "saved by" if ended else "change"
    return found + _section(_block(label, list(explanation.changes), width))


def _section(block: list[Line]) -> list[Line]:
    return [[], *block] if block else []


def _steps(label: str, explanation: Explanation, steps: tuple[Step, ...], clock: Clock, width: int) -> list[Line]:
    found: list[Line] = []
    for index, step in enumerate(steps):
        if explanation.left_out and index == 2 and label == "why":
            found.append([(" " * LABEL, ""), (f"... {explanation.left_out} more ('jumpvpn events')", "dim")])
        found += _step(label if index == 0 else "", step, clock, width)
    if not found and label == "why" and explanation.state is not State.BIRTH:
        return _block(label, ["no event tells"], width, "dim")
    return found


def _step(label: str, step: Step, clock: Clock, width: int) -> list[Line]:
    time = clock(step.time_ms)
    indent = LABEL + len(time) + 2
    again = f" ({step.times} times)" if step.times > 1 else ""
    arrow = "".join(f" > {state}" for state in (*step.through, step.into) if state)
    rows = f"row{'s' if len(step.rows) > 1 else ''} {listed(list(step.rows))}" if step.rows else ""
    tags = ", ".join(part for part in (*step.reasons, rows) if part)
    words = _wrapped(f"{step.text}{again}{arrow}", max(width - indent, LEAST_TEXT))
    found: list[Line] = []
    for index, text in enumerate(words):
        start: Line = [(label.ljust(LABEL), "label"), (f"{time}  ", "dim")] if index == 0 else [(" " * indent, "")]
        last = index == len(words) - 1
        body: Line = [(text, "")]
        if last and step.into and text.endswith(step.into):
            body = [(text.removesuffix(step.into), ""), (step.into, step.into)]
        found.append([*start, *body])
    if tags and sum(len(text) for text, _ in found[-1]) + len(tags) + 4 <= width:
        found[-1].append((f"  ({tags})", "dim"))
    elif tags:
        found.append([(" " * indent, ""), (f"({tags})", "dim")])
    return found


def _transports(explanation: Explanation, width: int) -> list[Line]:
    seen = explanation.considered
    if not seen:
        return []
    names = max(len(c.transport) for c in seen)
    verdicts = max(len(c.verdict) for c in seen)
    styles = {"active": "good", "standby": "good", "candidate": "", "waiting": "dim", "forbidden": "bad"}
    found: list[Line] = []
    for index, c in enumerate(seen):
        label = "networks" if index == 0 else ""
        indent = LABEL + names + verdicts + 4
        words = _wrapped(c.text, max(width - indent, LEAST_TEXT)) or [""]
        found.append([(label.ljust(LABEL), "label"), (c.transport.ljust(names + 2), ""),
                      (c.verdict.ljust(verdicts + 2), styles.get(c.verdict, "bad")), (words[0], "")])  # fmt: skip
        found += [[(" " * indent, ""), (text, "")] for text in words[1:]]
    return found


def _dues(explanation: Explanation, width: int) -> list[Line]:
    found: list[Line] = []
    coming = near(explanation.dues, explanation.state)
    times = [f"in {span(due.in_ms)}" if due.in_ms is not None else "-" for due in coming]
    column = max((len(time) for time in times), default=0)
    for index, (due, time) in enumerate(zip(coming, times, strict=True)):
        label = ("pending" if explanation.source.past else "next") if index == 0 else ""
        policy = f" ({due.policy} {due.value})" if due.policy else ""
        indent = LABEL + column + 2
        words = _wrapped(f"{due.text}{policy}", max(width - indent, LEAST_TEXT))
        found.append([(label.ljust(LABEL), "label"), (time.ljust(column + 2), ""), (words[0], "")])
        found += [[(" " * indent, ""), (text, "")] for text in words[1:]]
    return found


def _checked(verdict: Verdict, clock: Clock) -> str:
    limit = f"{verdict.policy} {verdict.value}"
    if verdict.passed_ms is None or verdict.limit_time_ms is None:
        return f"the events do not reach back far enough to check {limit}"
    at = clock(verdict.limit_time_ms)
    if verdict.passed_ms < -_GRAIN_MS:
        early = span(-verdict.passed_ms)
        return f"by these events {limit} would have passed only at {at}, {early} later: see 'jumpvpn audit verify'"
    late = f"{span(verdict.passed_ms)} later" if verdict.passed_ms > _GRAIN_MS else "then"
    return f"{limit} was over at {at}; the session ended {late}"


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width``; a number and its unit stay together."""
    held = _QUANTITY.sub("\u00a0", text)
    found = textwrap.wrap(held, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in found]


def _block(label: str, texts: list[str], width: int, style: str = "") -> list[Line]:
    found: list[Line] = []
    for text in texts:
        for part in _wrapped(text, max(width - LABEL, LEAST_TEXT)):
            found.append([((label if not found else "").ljust(LABEL), "label"), (part, style)])
    return found
