"""``jumpvpn audit``: exit codes, words for people, objects for programs, stories and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audit_logs import Node, Records, client_log, gateway_log, rewritten
from typer.testing import CliRunner

from jumpvpn.audit.auditor import audit_lines
from jumpvpn.audit.auditor.stats import Spread, Stats
from jumpvpn.audit.auditor.timeline import Timeline
from jumpvpn.cli.audit import audit_commands
from jumpvpn.cli.main import commands

RUN = CliRunner()


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Node, list[str]]:
    """A gateway's and a client's journal."""
    gateway, client = gateway_log(), client_log()
    paths = []
    for node in (gateway, client):
        path = tmp_path / f"{node.name}.jsonl"
        path.write_bytes(b"".join(node.lines))
        paths.append(str(path))
    return gateway, paths


def _json(*argv: str) -> tuple[int, dict[str, Any]]:
    done = RUN.invoke(audit_commands, [*argv, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_verify_passes_and_shows_every_rule(logs: tuple[Node, list[str]]) -> None:
    done = RUN.invoke(audit_commands, ["verify", *logs[1]])
    assert done.exit_code == 0
    assert done.stdout.count("PASS  ") == 4
    for number in range(1, 15):
        assert f"A-{number} " in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("PASS: ")
    assert "--checkpoints" in done.stdout


def test_verify_with_anchors_from_a_file_and_by_name(logs: tuple[Node, list[str]], tmp_path: Path) -> None:
    gateway, paths = logs
    anchor = tmp_path / "audit.pub"
    anchor.write_text(gateway.public(1) + "\n")
    code, found = _json("verify", paths[0], "--checkpoints", str(anchor))
    assert (code, found["outcome"]) == (0, "PASS")
    assert not any("--checkpoints" in note for note in found["notes"])
    assert _json("verify", paths[0], "--checkpoints", "ab" * 32)[0] == 1


def test_verify_fails_with_the_rule_the_property_and_the_place(logs: tuple[Node, list[str]]) -> None:
    _, paths = logs
    text = Path(paths[0]).read_bytes()
    Path(paths[0]).write_bytes(text.replace(b'"dwell_ms":3950', b'"dwell_ms":3951'))
    code, found = _json("verify", *paths)
    assert (code, found["outcome"], found["chains"]["FAIL"]) == (1, "FAIL", 1)
    finding = found["verdicts"][0]["findings"][0]
    assert (finding["rule"], finding["property"]) == ("A-1", "CHAIN")
    assert found["rules"][0]["failed"] >= 1
    assert "FAIL" in RUN.invoke(audit_commands, ["verify", *paths]).stdout


def test_verify_is_incomplete_when_something_is_missing(logs: tuple[Node, list[str]]) -> None:
    _, paths = logs
    lines = Path(paths[0]).read_bytes().splitlines(keepends=True)
    Path(paths[0]).write_bytes(b"".join(lines[:7] + lines[8:]))
    code, found = _json("verify", *paths)
    assert (code, found["outcome"], found["chains"]["INCOMPLETE"]) == (2, "INCOMPLETE", 1)


def test_heads_kept_elsewhere(logs: tuple[Node, list[str]], tmp_path: Path) -> None:
    _, paths = logs
    kept = tmp_path / "heads.json"
    session = [json.loads(line) for line in Path(paths[0]).read_bytes().splitlines()]
    last = [record for record in session if record["chain"].startswith("s:")][-1]
    kept.write_text(json.dumps({last["chain"]: f"{last['seq']}:{last['hash']}"}))
    assert _json("verify", paths[0], "--heads", str(kept))[0] == 0
    kept.write_text(json.dumps({last["chain"]: f"{last['seq']}:{'0' * 64}"}))
    assert _json("verify", paths[0], "--heads", str(kept))[0] == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--table", "nowhere.json"], "cannot read the table"),
        (["--checkpoints", "nothing"], "neither a key of 64 hex digits nor a readable file"),
        (["--heads", "nowhere.json"], "cannot read"),
    ],
)
def test_wrong_options_are_usage_errors(logs: tuple[Node, list[str]], argv: list[str], words: str) -> None:
    done = RUN.invoke(audit_commands, ["verify", *logs[1], *argv])
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_log_twice_is_a_mistake(logs: tuple[Node, list[str]]) -> None:
    assert RUN.invoke(audit_commands, ["verify", logs[1][0], logs[1][0]]).exit_code == 2


def test_a_log_gives_no_orders_to_the_terminal(tmp_path: Path) -> None:
    def hostile(records: Records) -> None:
        for record in records:
            if record["reason"] == "probe_timeout":
                record["reason"] = "\x1b[2J[bold]x"
            if record["transport"]:
                record["transport"]["id"] = "[link]\x1b]0;x\x07\u202e"

    log = tmp_path / "hostile.jsonl"
    log.write_bytes(b"".join(rewritten(client_log().lines, hostile)))
    for command in ("verify", "timeline", "stats"):
        said = RUN.invoke(audit_commands, [command, str(log)]).stdout
        assert all(sign.isprintable() for sign in said.replace("\n", "")), command
    told = RUN.invoke(audit_commands, ["timeline", str(log)]).stdout
    assert "?[2J[bold]x" in told
    assert "[link]?]0;x" in told


def test_small_numbers_are_said_in_good_english(tmp_path: Path) -> None:
    lines = client_log().lines
    place = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "transport.switch")
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"".join([*lines[:place], *lines[place + 1 :], lines[0]]))
    said = RUN.invoke(audit_commands, ["verify", str(log)]).stdout
    assert "is missing; what it changed" in said
    assert "1 repeated record\n" in said


def test_many_unreadable_lines_do_not_fill_the_screen(tmp_path: Path) -> None:
    log = tmp_path / "other.log"
    log.write_text('{"level":"info"}\n' * 50)
    done = RUN.invoke(audit_commands, ["verify", str(log)])
    assert done.exit_code == 2
    assert "and 40 more unreadable lines" in done.stdout
    assert "no event record of Jumping VPN" in done.stdout
    assert len(done.stdout.splitlines()) < 16


def test_the_commands_are_part_of_jumpvpn(logs: tuple[Node, list[str]]) -> None:
    done = RUN.invoke(commands, ["audit", "verify", *logs[1]])
    assert done.exit_code == 0


def test_timeline_tells_states_switches_denials_and_the_end(logs: tuple[Node, list[str]]) -> None:
    done = RUN.invoke(audit_commands, ["timeline", *logs[1]])
    assert done.exit_code == 0
    for words in (
        "as the gateway recorded it", "as the client recorded it", "ATTACHED > VOLATILE after 3.95 s: probe_timeout",
        "switch path0/udp > path1/udp, 700 ms without transport", "reattach denied at check 8: stale_state_version",
        "attempt on wlan0/udp/gw1 failed: reattach_timeout", "fresh keys, epoch 3",
        "ended: peer_closed", "ended: operator_terminated", "policy 1.0 applies",
    ):  # fmt: skip
        assert words in done.stdout, words


def test_timeline_of_one_session_as_an_object(logs: tuple[Node, list[str]]) -> None:
    code, found = _json("timeline", *logs[1])
    assert code == 0
    client = next(s for s in found["sessions"] if s["end"] == "client")
    stays = [(span["state"], span["length_ms"]) for span in client["states"]]
    assert ("DEGRADED", 3_000) in stays
    assert client["cause"] == "operator_terminated"
    assert client["switches"] == 2
    assert [window["length_ms"] for window in client["degraded"]] == [3_000]
    nothing = RUN.invoke(audit_commands, ["timeline", *logs[1], "--session", "ffff"])
    assert nothing.exit_code == 2
    assert "no session that begins with 'ffff'" in nothing.stderr


def test_the_bar_shows_the_gravest_state_of_each_column() -> None:
    told = Timeline()
    audit_lines(client_log().lines, observer=told)
    (story,) = told.stories.values()
    bar = story.bar(60)
    assert len(bar) == 60
    assert bar[0] == "ATTACHED"
    assert bar[40:43] == ["DEGRADED", "DEGRADED", "DEGRADED"]
    assert bar[-1] == "TERMINATED"


def test_stats_count_what_happened(logs: tuple[Node, list[str]]) -> None:
    code, found = _json("stats", *logs[1])
    assert code == 0
    client, gateway = found["client"], found["gateway"]
    assert (client["sessions"], client["switches"], gateway["switches"]) == (1, 2, 2)
    assert client["recovery_ms"]["count"] == 3
    assert client["recovery_ms"]["max"] == 5_100
    assert client["terminations"] == {"operator_terminated": 1}
    assert gateway["denials"] == {"no_candidate_transports": 1, "stale_state_version": 1}
    assert client["attempts"] == 4
    assert client["failed_attempts"] == 1
    assert client["states"]["DEGRADED"]["total_ms"] == 3_000
    assert found["events"]["audit.checkpoint"] == 3
    words = RUN.invoke(audit_commands, ["stats", *logs[1]]).stdout
    assert "in DEGRADED" in words
    assert "ends: operator_terminated 1" in words


def test_quantiles_are_exact_to_one_per_cent() -> None:
    spread = Spread()
    for value in range(1, 10_001):
        spread.add(float(value))
    for share, exact in ((0.5, 5_000), (0.95, 9_500), (0.99, 9_900)):
        found = spread.quantile(share)
        assert found is not None
        assert abs(found - exact) <= exact / 100
    assert Spread().as_json() == {"count": 0, "p50": None, "p95": None, "p99": None, "max": None}


def test_the_observer_sees_each_record_once() -> None:
    counted = Stats()
    lines = gateway_log().lines
    audit_lines([*lines, *reversed(lines)], observer=counted)
    assert counted.events.total() == len(lines)
