"""Bytes from anybody: a verdict with a line number, never another exception, never without end."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taped import OTHER, RULES, lines_of, resummed, troubled

from jumpvpn.policy.model import Policy
from jumpvpn.recording.dryrun import Unsuitable, compare
from jumpvpn.recording.entries import LINE_MAX, BadRecording
from jumpvpn.recording.replay import Difference, replay

EXTREMES: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**64 - 1, -(2**63), 2**70, 0.0, -1.5, 1e300, True, None, "", "x", "\x1b[2J",
    "ATTACHED", [], {}, [1], [1, {}], {"a": 1}, "wlan0/udp/gw1", "00" * 16,
)  # fmt: skip


def verdict(lines: list[bytes]) -> str:
    try:
        for _ in replay(lines):
            pass
    except (Difference, BadRecording) as found:
        return type(found).__name__
    return "same"


def tried(lines: list[bytes]) -> str:
    try:
        compare([lambda: lines], RULES)
    except (Difference, BadRecording, Unsuitable) as found:
        return type(found).__name__
    return "compared"


@pytest.fixture(scope="module")
def samples() -> list[list[bytes]]:
    found = []
    for seed in range(3):
        world = troubled(seed, RULES, OTHER, size=32_000, faults=20)
        found += [lines_of(segment) for nodes in world.nodes.values() for n in nodes for segment in n.shelf.segments]
    return [lines for lines in found if len(lines) > 20]


@given(st.binary(max_size=600))
def test_random_bytes_are_no_recording(data: bytes) -> None:
    lines = data.splitlines(keepends=True)
    with pytest.raises(BadRecording, match=r"no recording of jumpvpn|is empty"):
        for _ in replay(lines):
            pass


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=8), st.integers(0, 10**9))
def test_random_lines_within_a_recording(samples: list[list[bytes]], told: list[bytes], at: int) -> None:
    lines = samples[at % len(samples)]
    cut = 1 + at % (len(lines) - 1)
    assert verdict([*lines[:cut], *(line + b"\n" for line in told), *lines[cut:]]) in (
        "Difference",
        "BadRecording",
        "Changed",
    )


@pytest.mark.parametrize("seed", range(150))
def test_damaged_recordings_get_a_verdict(samples: list[list[bytes]], seed: int) -> None:
    dice = random.Random(seed)
    lines = list(dice.choice(samples))
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(lines))
        match dice.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, dice.choice(lines))
            case 2:
                other = dice.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                raw = bytearray(lines[at])
                raw[dice.randrange(len(raw))] = dice.randrange(256)
                lines[at] = bytes(raw)
            case 4:
                lines[at] = lines[at][: dice.randrange(len(lines[at]))]
            case _:
                lines[at] = altered(lines[at], dice)
    for told in (lines, resummed(lines)):
        verdict(told)
        tried(told)


def altered(line: bytes, dice: random.Random) -> bytes:
    """One value somewhere in the line is replaced by another."""
    try:
        document = json.loads(line)
    except ValueError:
        return line
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    if isinstance(document, (dict, list)):
        walk(document)
    if places:
        node, key = dice.choice(places)
        node[key] = dice.choice(EXTREMES)
    return json.dumps(document).encode() + b"\n"


@pytest.mark.parametrize("seed", range(250))
def test_altered_values_get_a_verdict(samples: list[list[bytes]], seed: int) -> None:
    dice = random.Random(seed)
    lines = list(dice.choice(samples))
    state = [n for n, line in enumerate(lines) if line.startswith(b'["state"')]
    at = dice.choice(state) if dice.random() < 0.5 else dice.randrange(len(lines))
    lines[at] = altered(lines[at], dice)
    verdict(resummed(lines))
    tried(resummed(lines))


def changed_header(**values: Any) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        kind, header = json.loads(lines[0])
        return [json.dumps([kind, {**header, **values}], separators=(",", ":")).encode() + b"\n", *lines[1:]]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _lines: [], "is empty"),
        (lambda lines: lines[1:], "no recording of jumpvpn"),
        (lambda lines: [lines[0][:50]], "no recording of jumpvpn"),
        (lambda lines: [line for line in lines if line.startswith(b"{")], "an event journal, no recording"),
        (lambda lines: [lines[0], *lines[2:]], "line 2: state sealer: policy 1 is named, but its body is missing"),
        (lambda lines: lines[:1], "the state of the engine is missing"),
        (lambda lines: [*lines[:4], b"[" * 100_000 + b"\n"], "line 5: is no line of a recording"),
        (lambda lines: [*lines[:4], b'["in",1,2,"Tick",' + b'{"a":' * 5000 + b"\n"], "line 5: is no line"),
        (lambda lines: [*lines[:4], b"x" * (LINE_MAX + 2)], "line 5: is longer than"),
        (lambda lines: [*lines[:4], b'["odd",1]\n'], "line 5: is of an unknown kind"),
        (lambda lines: [*lines[:4], b'["in",1,2,"Nonsense",{}]\n'], "line 5: in: is no known input"),
        (lambda lines: [*lines[:4], b'["in",1,2,"Tick",{"a":1}]\n'], "line 5: in: Tick: missing or unknown: a"),
        (changed_header(format=9), "line 1: recording: has format 9, this program reads 2: replay it with jumpvpn"),
        (changed_header(role="boss"), "line 1: recording: role is neither client nor gateway"),
        (changed_header(run=7), "line 1: recording: run: is a int, not a str"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    samples: list[list[bytes]], change: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    with pytest.raises(BadRecording) as caught:
        for _ in replay(change(samples[0])):
            pass
    assert words in str(caught.value)


def test_a_state_in_the_middle_is_refused(samples: list[list[bytes]]) -> None:
    lines = samples[0]
    at = next(n for n, line in enumerate(lines) if line.startswith(b'["in"')) + 1
    with pytest.raises(BadRecording, match="a state after the first input"):
        for _ in replay([*lines[:at], lines[1], *lines[at:]]):
            pass


def test_another_policy_for_broken_bytes_is_no_defect() -> None:
    with pytest.raises(BadRecording):
        compare([lambda: [b"nonsense\n"]], Policy())
