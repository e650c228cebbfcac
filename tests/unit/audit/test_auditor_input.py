"""Whatever is fed, the auditor answers with a verdict and a reason; it never raises and never hangs on to it."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest
import rfc8785
from audit_logs import Node, Tale, attached, client_log, gateway_log, judged, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from jumpvpn.audit.auditor import Auditor, BadTable, audit_files, load_table
from jumpvpn.audit.auditor.auditor import CLOSED_MAX
from jumpvpn.audit.auditor.records import LINE_MAX
from jumpvpn.audit.auditor.sources import Unreadable, split
from jumpvpn.audit.auditor.stats import Stats
from jumpvpn.audit.auditor.timeline import Timeline
from jumpvpn.audit.chain import record_hash
from jumpvpn.cli import show_audit
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason

GATEWAY = gateway_log().lines
CLIENT = client_log().lines
TABLE = Path(sys.modules["jumpvpn"].__file__ or "").parent / "audit" / "transitions.json"

NOT_RECORDS = {
    b"": None,
    b"not json": "not JSON",
    b"\x00\x01\x02": "not text: it holds zero bytes",
    b'{"a":"\xff\xfe"}': "event record",
    b'{"v":1}': "without the field",
    b"[]": "Expected `object`",
    b"17": "Expected `object`",
    b"NaN": "not JSON",
    b'{"v":NaN}': "not JSON",
    b'{"v":1e400}': "event record",
    b'{"v":' + b"9" * 5_000 + b"}": "event record",
    b"[" * 200_000: "Expected `object`",
    b'{"x":' * 200_000: "event record",
}


@pytest.mark.parametrize("line", NOT_RECORDS, ids=lambda line: repr(line[:20]))
def test_what_is_no_record_has_a_reason(line: bytes) -> None:
    report = judged([line])
    assert report.exit_code == 2
    assert not rules(report)
    wanted = NOT_RECORDS[line]
    assert [wanted in u.text for u in report.unreadable] == ([True] if wanted is not None else [])


def _with(**values: Any) -> bytes:
    record: dict[str, Any] = {**json.loads(GATEWAY[0]), **values}
    return msgspec.json.encode(record)


FOREIGN = {
    "another version": _with(v=2),
    "an unknown kind of chain": _with(chain="x:1"),
    "a chain without a name": _with(chain="s:"),
    "a number as text": _with(seq="1"),
    "seq 0": _with(seq=0),
    "a number beyond all readers": _with(mono_ms=2**60),
    "a fraction as count": _with(mono_ms=1.5),
    "a name as long as a book": _with(node_id="x" * 10_000),
    "a short hash": _with(hash="00"),
    "data that is a list": _with(data=[]),
    "a nonce that is a list": _with(data={"nonce_id": []}),
    "many contributing": _with(contributing=["x"] * 1_000),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_record_has_a_reason(kind: str) -> None:
    report = judged([FOREIGN[kind]])
    assert report.exit_code == 2
    assert report.unreadable_count == 1
    assert report.events == 0


def test_a_deeply_nested_field_that_no_rule_reads_is_still_hashed() -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"x": deep}
    record = json.loads(GATEWAY[0])
    record["data"]["deep"] = deep
    record["hash"] = record_hash(record)
    assert judged([rfc8785.dumps(record)]).faults[0].end == "open"
    too_deep = GATEWAY[0].replace(b'"data":{', b'"data":{"deep":' + b"[" * 100_000 + b"]" * 100_000 + b",")
    assert judged([too_deep]).exit_code in (1, 2)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_random_bytes_never_raise(lines: list[bytes]) -> None:
    assert judged(lines).exit_code == 2


class Both:
    """Two observers at once."""

    def __init__(self, *observers: Any) -> None:
        self._observers = observers

    def record(self, chain: Any, record: Any) -> None:
        for observer in self._observers:
            observer.record(chain, record)

    def noted(self, track: Any, record: Any) -> None:
        for observer in self._observers:
            observer.noted(track, record)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_records_with_other_values_never_raise_and_never_pass(data: st.DataObject) -> None:
    """Members replaced by anything, and the hash made right: the rules themselves have to stand it.

    Not of the last record: nothing that follows vouches for it.
    """
    lines = list(data.draw(st.sampled_from((GATEWAY, CLIENT))))
    place = data.draw(st.integers(min_value=0, max_value=len(lines) - 2))
    record = json.loads(lines[place])
    target = data.draw(st.sampled_from(("envelope", "data")))
    members = record if target == "envelope" else record["data"]
    name = data.draw(st.sampled_from(sorted(members))) if members else "row"
    value = data.draw(_JSON)
    same = members.get(name) == value
    members[name] = value
    try:
        if name != "hash":
            record["hash"] = record_hash(record)
        lines[place] = rfc8785.dumps(record)
    except (ValueError, KeyError):  # no canonical form: a line as it might be typed
        lines[place] = repr(record).encode()
    told, counted = Timeline(), Stats()
    report = judged(lines, observer=Both(told, counted))
    assert same or not report.ok
    show_audit.print_stories(list(told.stories.values()), told.not_told)
    show_audit.print_stats(counted)
    show_audit.print_report(report)
    assert json.dumps([story.as_json() for story in told.stories.values()], allow_nan=False)
    assert json.dumps(counted.as_json(), allow_nan=False)
    assert report.explain()
    assert json.dumps(report.as_json())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_lines_cut_and_glued_never_raise(data: st.DataObject) -> None:
    lines = [*GATEWAY, *CLIENT]
    place = data.draw(st.integers(min_value=0, max_value=len(lines) - 1))
    cut = data.draw(st.integers(min_value=0, max_value=len(lines[place])))
    mess = [*lines[:place], lines[place][:cut] + data.draw(st.binary(max_size=30)), *lines[place + 1 :]]
    report = judged(mess)
    assert report.exit_code in (0, 1, 2)
    if report.ok:  # without its last words a node's record looks like that of one that runs
        no_goodbye = not mess[place].strip() and b'"node.stopped"' in lines[place]
        assert no_goodbye or mess[place].strip() == lines[place].strip()


def test_lines_longer_than_the_bound_are_named_and_skipped() -> None:
    chunks = [b"short\n", b"x" * LINE_MAX, b"y" * 10, b"\nnext\n", b"z" * (LINE_MAX + 1)]
    found = list(split(chunks, "log"))
    assert [f for f in found if not isinstance(f, Unreadable)] == [(1, b"short"), (3, b"next")]
    assert [f.number for f in found if isinstance(f, Unreadable)] == [2, 4]


def test_files_of_every_kind(tmp_path: Path) -> None:
    whole = gateway_log()
    good = tmp_path / "events.jsonl"
    good.write_bytes(b"".join(whole.lines))
    packed = tmp_path / "events.jsonl.gz"
    packed.write_bytes(gzip.compress(good.read_bytes()))
    anchors = [whole.public(1)]
    assert audit_files([good], anchors=anchors).ok
    assert audit_files([packed], anchors=anchors).ok
    reasons = {
        "missing": "No such file", "empty": "the file is empty", "cut.gz": "damaged or cut off",
        "dir": "is a directory", "random": "not", "no.gz": "not JSON",
    }  # fmt: skip
    (tmp_path / "empty").touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "cut.gz").write_bytes(packed.read_bytes()[:200])
    (tmp_path / "no.gz").write_bytes(b"plain")
    (tmp_path / "random").write_bytes(bytes(range(256)) * 10)
    for name, reason in reasons.items():
        report = audit_files([tmp_path / name])
        assert report.exit_code == 2
        assert reason in report.unreadable[0].text, name


def test_what_is_compressed_is_known_by_its_content_and_read_up_to_the_damage(tmp_path: Path) -> None:
    whole = b"".join(gateway_log().lines)
    (tmp_path / "rotated.1").write_bytes(gzip.compress(whole))
    assert audit_files([tmp_path / "rotated.1"]).ok
    (tmp_path / "plain.gz").write_bytes(whole)
    assert audit_files([tmp_path / "plain.gz"]).ok
    packed = gzip.compress(whole)
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) * 2 // 3])
    report = audit_files([tmp_path / "cut.gz"])
    assert report.outcome.value == "INCOMPLETE"
    assert report.events > 3
    assert "damaged or cut off" in str(report.unreadable)


def test_nothing_is_lost_of_several_pipes(tmp_path: Path) -> None:
    pipes = []
    for node in (gateway_log(), client_log()):
        pipe = tmp_path / node.name
        os.mkfifo(pipe)
        Thread(target=pipe.write_bytes, args=(b"".join(node.lines),), daemon=True).start()
        pipes.append(pipe)
    assert audit_files(pipes).ok


def test_a_file_that_is_no_log_is_given_up(tmp_path: Path) -> None:
    foreign = tmp_path / "access.log"
    foreign.write_bytes(b'{"status":200}\n' * 50_000)
    report = audit_files([foreign])
    assert "this is no event log" in report.unreadable[-1].text or report.unreadable_count == 1_001
    assert report.lines == 1_000
    assert len(report.unreadable) == 100


def test_rotated_files_may_be_named_in_any_order(tmp_path: Path) -> None:
    lines = gateway_log().lines
    parts = []
    for place, part in enumerate((lines[:12], lines[12:20], lines[20:])):
        path = tmp_path / f"part{place}"
        path.write_bytes(b"".join(part))
        parts.append(path)
    assert audit_files([parts[2], parts[0], parts[1]]).ok


def test_memory_of_ended_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpvpn.audit.auditor.auditor.CLOSED_MAX", 8)
    assert CLOSED_MAX > 8
    auditor = Auditor()
    node = Node()
    for number in range(1, 60):
        tale = Tale(node, number, client=f"device {number}")
        tale.feed(attached(), at=number * 100)
        tale.feed(ev.CloseRequested(Reason.PEER_CLOSED), at=number * 100 + 10)
    node.stop(vouch=False)
    for line in node.lines:
        auditor.feed(line)
        assert len(auditor._chains) <= 2
        assert len(auditor._closed) <= 8
        assert len(auditor._live) <= 1
    assert auditor.finish().counts["PASS"] == 60


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.update(format=2), "format 2"),
        (lambda t: t.update(states=["A"]), "other states"),
        (lambda t: t["edges"].append(["VOLATILE", "ATTACHED"]), "an edge that no session may take"),
        (lambda t: t["rows"].clear(), "no rows"),
        (lambda t: t["rows"].append(t["rows"][0]), "two with the same id"),
        (lambda t: t["rows"][0].update(states=["A"]), "unknown state"),
        (lambda t: t["rows"][0].update(next="DEGRADED"), "moves along no edge"),
        (lambda t: t.pop("priority"), "is no transition table"),
        (lambda t: t["rows"][0].update(reasons=1), "is no transition table"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    table = json.loads(TABLE.read_text())
    change(table)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    with pytest.raises(BadTable, match=reason):
        load_table(path)


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, content in (
        (tmp_path / "missing", None),
        (tmp_path / "bad", b"\xff"),
        (tmp_path / "deep", b"[" * 99_999),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadTable):
            load_table(path)


def test_another_table_judges_otherwise(tmp_path: Path) -> None:
    table = json.loads(TABLE.read_text())
    table["rows"] = [row for row in table["rows"] if row["id"] != "16"]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    report = judged(GATEWAY, table=load_table(path))
    assert rules(report) == {"A-2"}
