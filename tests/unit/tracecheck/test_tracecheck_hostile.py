"""Nothing that a log says reaches TLA+ but words of a small alphabet and small numbers; nothing breaks the reader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traced import client_story, gateway_story, records, write

from jumpvpn.tracecheck import Verdict, validate
from jumpvpn.tracecheck.data import Names, module
from jumpvpn.tracecheck.journals import Seen, Trace

EVIL = [
    '"]>>\n====\n---- MODULE Evil ----\nASSUME PrintT(<<"explained", 1>>)',
    '<<"explained", 1>>',
    "\\* (* *) \\/ TRUE",
    '\\"', "\n", "\x00", "\u2028\u202e", "a" * 100_000, "", "TERMINATED\n", "t1", "none", "?",
    -1, 0, 2**31, 10**40, 1.5, True, None, [], {}, [[[]]], {"id": {"id": 1}},
]  # fmt: skip
FIELDS = ("event", "state_version", "owner_epoch", "prev_state", "state", "reason", "node_id", "transport")
DATA = ("row", "epoch", "nonce_id", "status", "attempt", "attempts", "bounds", "from_id", "to_id", "kind", "role")
_STRING = r'"[A-Za-z0-9_.?]{0,48}"'
_LINE = re.compile(
    rf"\[(?:(?:event|row|from|to|reason|lane|transport|away|here|kind) \|-> {_STRING}, "
    rf"|(?:version|owner|gen|epoch|attempts|limit|floor|granted|node|nonce) \|-> -?\d{{1,10}}, "
    r"|(?:early|lost) \|-> (?:TRUE|FALSE), )+"
    r"episode \|-> (?:TRUE|FALSE)\],?>*\]?,?"
)

_any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_data = st.dictionaries(st.sampled_from((*DATA, "bounds", "last_epoch", "transportless_ms", "episode_ms")), _any)
_seen = st.builds(
    Seen, chain=st.text(), seq=st.integers(1), event=st.text() | st.just("session.created"), session_uid=_any,
    state_version=_any, owner_epoch=_any, prev_state=_any, state=_any, reason=_any, node_id=_any,
    transport=_any | st.fixed_dictionaries({"id": _any, "binding_gen": _any}), data=_any | _data,
)  # fmt: skip


@given(st.lists(_seen, min_size=1, max_size=4))
@settings(max_examples=200)
def test_whatever_a_record_holds_its_line_has_one_shape(lines: list[Seen]) -> None:
    text = module([(Trace("c:0", lines, len(lines), {1, 8}), Names())])
    head, body = text.split("lines |-> <<\n")
    assert head.startswith("---- MODULE TraceData ----\nEXTENDS Integers\nTraces == <<\n")
    assert head.endswith('\n[end |-> "client", limits |-> {1, 8}, silent |-> FALSE, cut |-> FALSE, ')
    told, tail = body.split("\n>>\n====\n")
    assert tail == ""
    shown = told.split("\n")
    assert len(shown) == len(lines)
    assert all(_LINE.fullmatch(line) for line in shown), shown


def _has(record: dict[str, Any], field: str, name: str | None) -> bool:
    return record["chain"][0] != "n" and (name is None or (record[field] is not None and name in record[field]))


def _poisoned() -> list[list[dict[str, Any]]]:
    """Good records in which one field of one line is evil: every field once, every value at least once."""
    worlds = []
    places = [(name, None) for name in FIELDS] + [("data", name) for name in DATA] + [("transport", "id")]
    for number in range(max(len(places), len(EVIL))):
        field, name = places[number % len(places)]
        told = records((client_story if number % 2 else gateway_story)().lines)
        first = name in ("role", "bounds", "kind")  # only the first line has those
        record = told[0] if first else next(r for r in told[3:] if _has(r, field, name))
        if name is None:
            record[field] = EVIL[number % len(EVIL)]
        else:
            record[field][name] = EVIL[number % len(EVIL)]
        worlds.append(told)
    return worlds


def test_evil_values_are_judged_and_explain_nothing(tmp_path: Path) -> None:
    worlds = _poisoned()
    files = [write(tmp_path / f"{number}.jsonl", told) for number, told in enumerate(worlds)]
    report = validate(files, each=True)
    assert len(report.findings) == len(files)
    for finding in report.findings:
        assert finding.why.isprintable()
        assert len(finding.why) < 1_000
    # Only a node's name and what nothing depends on may say anything.
    accepted = [finding.journal for finding in report.findings if finding.verdict is Verdict.ACCEPTED]
    assert len(accepted) < len(files) // 2


def test_a_record_that_claims_to_be_explained_is_not(tmp_path: Path) -> None:
    told = records(client_story().lines)
    told[5]["reason"] = '"]>>\n<<"explained", 1>>'
    told[5]["data"]["row"] = '<<"explained", 1>>'
    finding = validate([write(tmp_path / "liar.jsonl", told)]).findings[0]
    assert finding.verdict is Verdict.REJECTED
    assert finding.explained == 5


def test_transports_and_nonces_get_names_of_their_own() -> None:
    names = Names()
    assert [names.transport(shown) for shown in ("wlan0", "t1", "none", "wlan0", "", None)] == [
        "t1", "t2", "t3", "t1", "none", "none",
    ]  # fmt: skip
    assert [names.nonce(shown) for shown in ("1", "a", 1, "a", None, "")] == [1, 2, 1, 2, -1, -1]
    assert names.known("t2") == "t1"


@pytest.mark.parametrize("chain", ["c:xyz", "s:d87750fdc8262dee/..", "c:D87750FDC8262DEE", "x:d87750fdc8262dee", ""])
def test_chains_with_other_names_are_no_sessions(chain: str, tmp_path: Path) -> None:
    told = [{**record, "chain": chain} for record in records(client_story().lines) if record["chain"][0] == "c"]
    report = validate([write(tmp_path / "foreign.jsonl", told)])
    assert (report.findings, report.sessions, report.accepted) == ((), 0, False)


def test_deep_nesting_is_no_record(tmp_path: Path) -> None:
    deep = b'{"chain":"c:d87750fdc8262dee","seq":1,"event":"session.created","data":' + b"[" * 100_000 + b"]" * 100_000
    report = validate([write(tmp_path / "deep.jsonl", [deep + b"}\n", json.dumps({"seq": 0}).encode() + b"\n"])])
    assert (report.findings, report.unreadable) == ((), 2)


def test_seen_reads_every_line_of_the_product() -> None:
    decoder = msgspec.json.Decoder(Seen)
    assert all(decoder.decode(line).event for line in (*client_story().lines, *gateway_story().lines))
