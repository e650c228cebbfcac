"""The command line: what people see, one line per error, exit codes, and files that work as written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jumpvpn.audit.chain import Chain
from jumpvpn.cli import templates
from jumpvpn.cli.show_event import event_line
from jumpvpn.cli.show_status import amount, span, status_view
from jumpvpn.config import encode_key, parse_client, parse_gateway
from jumpvpn.runtime.control import Refused
from unit.answering import answering

TRANSPORT = {
    "id": "wlan0/udp/gw1",
    "interface": "wlan0",
    "gateway": "gw1",
    "state": "active",
    "rtt_ms": 12.34,
    "rtt_dev_ms": 1.1,
    "loss_up": 0.0,
    "loss_down": 0.013,
    "age_ms": 63_000,
    "last_heard_ms": 20,
    "silence_limit_ms": 100,
    "silence_formula": "max(100 ms, 2 RTT + 4 dev + 50 ms)",
}
ATTACHED = {
    "uid": "9f2c11aa00bb22cc",
    "state": "ATTACHED",
    "state_age_ms": 12_340,
    "version": 17,
    "epoch": 4,
    "last_reason": "reattach_success",
    "binding": {"transport": "wlan0/udp/gw1", "peer": "203.0.113.1:51900", "since_ms": 12_340},
    "transportless_ms": None,
    "transport_ttl_left_ms": None,
    "lifetime_left_ms": 86_300_000,
    "switches_used": 7,
    "switches_max": 8,
    "hold_down_left_ms": 900,
    "attempts": 0,
    "attempts_max": 8,
    "next_deadline": {"name": "rekey", "in_ms": 45_000},
    "transports": [TRANSPORT, {**TRANSPORT, "id": "lte0/udp/gw1", "state": "dead", "rtt_ms": None, "loss_up": None}],
    "traffic": {"tx_bytes": 123_456_789, "rx_bytes": 0, "queued": 0, "shed": 3, "resent": 12, "duplicates": 0},
}
DOCUMENT = {
    "role": "client",
    "node": "laptop [bold]",
    "pid": 4242,
    "version": "0.1.0",
    "tun": {"name": "jumpvpn0", "mtu": 1380, "addresses": ["10.77.0.2/24"]},
    "sessions": [ATTACHED],
    "counters": {"drop_replay": 3, "drop_truncated": 0},
}


def shown(document: Mapping[str, Any]) -> str:
    console = Console(width=140, no_color=True)
    with console.capture() as captured:
        console.print(status_view(document))
    return captured.get()


def run(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from jumpvpn.cli.main import app; app()", *args]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)


def test_status_tells_state_budget_transports_and_losses() -> None:
    text = shown(DOCUMENT)
    for wanted in (
        "client laptop [bold]",
        "ATTACHED for 12.3 s",
        "epoch 4  version 17  reattach_success",
        "binding wlan0/udp/gw1 → 203.0.113.1:51900",
        "switches 7 of 8 in 60 s",
        "hold-down 900 ms",
        "lifetime left 23 h 58 min",
        "next rekey in 45 s",
        "12.3 ± 1.1 ms",
        "1.3 %",
        "max(100 ms, 2 RTT + 4 dev + 50 ms)",
        "sent 123.5 MB",
        "sent again 12",
        "shed 3",
        "drop_replay 3",
    ):
        assert wanted in text
    assert "drop_truncated" not in text


def test_status_without_binding_says_how_long_it_may_last() -> None:
    lost = {
        **ATTACHED,
        "state": "DEGRADED",
        "binding": None,
        "transportless_ms": 3200,
        "transport_ttl_left_ms": 296_800,
    }
    assert "no binding for 3.2 s; ends in 4 min 57 s" in shown({**DOCUMENT, "sessions": [lost]})
    ended = {**lost, "state": "TERMINATED"}
    assert "ended; nothing brings it back" in shown({**DOCUMENT, "sessions": [ended]})


def test_status_survives_missing_parts() -> None:
    assert "no session" in shown({})
    assert "session ?" in shown({"sessions": [{}]})


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "–"),
        (85, "85 ms"),
        (3400, "3.4 s"),
        (725_000, "12 min 5 s"),
        (86_340_000, "23 h 59 min"),
        (3e8, "3 d 11 h"),
    ],
)
def test_spans_are_short(milliseconds: float | None, text: str) -> None:
    assert span(milliseconds) == text


def test_amounts_are_short() -> None:
    assert [amount(size) for size in (None, 0, 999, 1500, 2e9, 3e15)] == [
        "–",
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 GB",
        "3000.0 TB",
    ]


def test_event_lines_show_the_transition_and_the_reason() -> None:
    record = {
        "event": "session.state_change",
        "session_uid": "9f2c",
        "severity": 3,
        "time_ms": 1_790_000_000_040,
        "prev_state": "ATTACHED",
        "state": "VOLATILE",
        "reason": "transport_dead",
        "contributing": ["probe_timeout"],
        "transport": {"id": "wlan0/udp/gw1"},
        "data": {"dwell_ms": 5, "none": None, "deep": {}},
    }
    text = event_line(json.dumps(record).encode()).plain
    assert "ATTACHED > VOLATILE  transport_dead (with probe_timeout)  wlan0/udp/gw1  dwell_ms=5" in text
    assert event_line(b"broken\n").plain == "unreadable line"
    assert event_line(b"[]\n").plain == "unreadable line"


def test_templates_are_valid_as_written() -> None:
    key = encode_key(bytes(range(32)))
    gateway = templates.gateway("gw", "gateway.key") + templates.device("laptop", key)
    assert parse_gateway(gateway, Path("/etc/jumpvpn")).device[0].name == "laptop"
    client = templates.client("laptop", "client.key", "192.0.2.1:51900", key)
    assert parse_client(client, Path("/etc/jumpvpn")).gateway[0].public_key == key


def test_commented_lines_of_the_templates_are_valid_too() -> None:
    """Whoever takes a leading "# " away gets a file that still works."""
    key = encode_key(bytes(range(32)))
    text = templates.client("laptop", "client.key", "192.0.2.1:51900", key)
    lines = [line[2:] if line.startswith("# ") and "=" in line.split("#")[1] else line for line in text.splitlines()]
    assert parse_client("\n".join(lines), Path("/etc/jumpvpn")).table == 19030


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nonsense"], 2, "No such command"),
        (["switch"], 2, "Missing option '--to'"),
        (["status", "--control", "/nonexistent/c.sock"], 1, "no node answers on /nonexistent/c.sock"),
        (["down", "--control", "/nonexistent/c.sock"], 1, "no node answers"),
        (["status", "--config", "/nonexistent.toml"], 2, "there is no such file; 'jumpvpn init' writes one"),
        (["up", "--config", "/nonexistent.toml"], 2, "there is no such file"),
        (["gateway", "--config", "/nonexistent.toml"], 2, "there is no such file"),
        (["events", "--file", "/nonexistent.jsonl"], 1, "there is no event journal"),
    ],
)
def test_every_failure_is_one_line_and_a_code(args: list[str], code: int, words: str) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("jumpvpn: error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_without_a_command() -> None:
    done = run()
    assert done.returncode == 2
    assert "keygen" in done.stdout


def test_events_are_read_from_the_journal(tmp_path: Path) -> None:
    _, lines = Chain("n:gw:1").extend({"event": "node.started", "n": n, "time_ms": 1} for n in range(5))
    (tmp_path / "e.jsonl").write_bytes(b"".join(lines))
    done = run("events", "--json", "--last", "2", "--file", str(tmp_path / "e.jsonl"))
    assert done.returncode == 0
    assert done.stdout.encode() == b"".join(lines[3:])
    assert run("events", "--file", str(tmp_path / "e.jsonl")).stdout.count("node.started") == 5


def test_a_configuration_error_names_every_key(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("mtu = 3\n[tunnel]\nmtu = 4\n")
    done = run("config", "check", str(tmp_path / "c.toml"))
    assert done.returncode == 2
    for words in ("3 problems", "private_key_file: missing", "line 1: mtu: unknown key", "line 3: tunnel.mtu = 4"):
        assert words in done.stderr


class Node:
    """What answers in the place of a running node at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.commands = {"status": self._status, "switch": self._switch, "terminate": self._terminate}

    async def _status(self, _: Mapping[str, Any]) -> Any:
        return DOCUMENT

    async def _switch(self, args: Mapping[str, Any]) -> Any:
        self.asked.append(("switch", dict(args)))
        raise Refused("switch denied: switch_rate_limited", "switch_rate_limited")

    async def _terminate(self, args: Mapping[str, Any]) -> Any:
        self.asked.append(("terminate", dict(args)))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    stand_in = Node(tmp_path / "c.sock")
    with answering(stand_in.path, stand_in.commands):
        yield stand_in


def test_commands_reach_the_node_and_denials_come_back(node: Node) -> None:
    control = ["--control", str(node.path)]
    assert json.loads(run("status", "--json", *control).stdout) == DOCUMENT
    assert "ATTACHED" in run("status", JUMPVPN_CONTROL=str(node.path)).stdout
    denied = run("switch", "--to", "lte0", *control)
    assert (denied.returncode, denied.stderr) == (1, "jumpvpn: error: switch denied: switch_rate_limited\n")
    assert run("terminate", "9f2c", *control).returncode == 0
    assert node.asked == [("switch", {"to": "lte0", "session": None}), ("terminate", {"session": "9f2c"})]
