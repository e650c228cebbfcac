"""``jumpvpn drain`` and ``jumpvpn cluster status`` against a stand-in for a gateway's control socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from test_cli import run

from jumpvpn.runtime.control import Refused
from jumpvpn.runtime.status import MemberFacts, OwnedSession, StoreFacts, of_cluster
from unit.answering import answering

DOCUMENT = of_cluster(
    "eu", "gw1", [MemberFacts("gw1", "h:1", "serving", 10**9, "0.1.0")],
    [OwnedSession("aa00", "laptop", "ATTACHED", "gw1", 1)], StoreFacts((("a:2379", True),), 7), with_sessions=True,
)  # fmt: skip
PROGRAM = [sys.executable, "-c", "from jumpvpn.cli.main import app; app()"]


class Gateway:
    """Answers ``drain`` with one session less each time it is asked, but never fewer than ``floor``."""

    def __init__(self, path: Path, sessions: int, floor: int = 0) -> None:
        self.path = path
        self.sessions, self.floor = sessions, floor
        self.is_draining = False
        self.taken_back_at = -1
        self.in_cluster = True
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.polled = Event()
        self.commands = {"drain": self._drain, "cluster": self._cluster, "down": self._down}

    async def _drain(self, args: Mapping[str, Any]) -> Any:
        self.asked.append(("drain", dict(args)))
        if not self.in_cluster:
            raise Refused("this gateway has no [cluster]: its clients have nowhere to go", "usage")
        if "set" in args:
            self.is_draining = args["set"] == "on"
        else:
            self.sessions = max(self.floor, self.sessions - 1)
            self.polled.set()
        if self.sessions == self.taken_back_at:
            self.is_draining = False
        return {"state": "draining" if self.is_draining else "serving", "sessions": self.sessions}

    async def _cluster(self, args: Mapping[str, Any]) -> Any:
        self.asked.append(("cluster", dict(args)))
        return DOCUMENT

    async def _down(self, args: Mapping[str, Any]) -> Any:
        self.asked.append(("down", dict(args)))
        raise Refused("stands in for a gateway and does not stop")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    stand_in = Gateway(tmp_path / "c.sock", sessions=3)
    with answering(stand_in.path, stand_in.commands):
        yield stand_in


def test_a_drain_ends_well_when_no_session_is_left(gateway: Gateway) -> None:
    done = run("drain", "--control", str(gateway.path))
    assert done.returncode == 0
    assert done.stdout == "drained: 3 sessions moved or ended; none comes here until the drain is taken back\n"
    assert done.stderr == "".join(f"jumpvpn: draining, {left} of 3 sessions left\n" for left in (3, 2, 1, 0))
    assert gateway.asked == [("drain", {"set": "on"}), *[("drain", {})] * 3]
    assert gateway.is_draining


def test_a_gateway_without_sessions_is_drained_at_once(gateway: Gateway) -> None:
    gateway.sessions = 0
    done = run("drain", "--control", str(gateway.path), "--json")
    assert json.loads(done.stdout) == {
        "state": "draining", "sessions_before": 0, "sessions": 0, "drained": True, "stopped": False,
    }  # fmt: skip
    assert (done.returncode, gateway.asked) == (0, [("drain", {"set": "on"})])


def test_when_the_time_is_over_the_exit_status_says_so_and_the_drain_stays(gateway: Gateway) -> None:
    gateway.floor = 1
    done = run("drain", "--timeout", "1s", "--stop", "--control", str(gateway.path))
    assert done.returncode == 1
    assert done.stdout == (
        "1 session left after 1s; it was not stopped; the gateway goes on draining, "
        "take it back with 'jumpvpn drain --off'\n"
    )
    assert gateway.is_draining
    assert "down" not in [command for command, _ in gateway.asked]
    told = run("drain", "--timeout", "0s", "--json", "--control", str(gateway.path))
    assert told.returncode == 1
    assert json.loads(told.stdout) == {
        "state": "draining", "sessions_before": 1, "sessions": 1, "drained": False, "stopped": False,
    }  # fmt: skip


def test_an_empty_gateway_is_stopped_when_asked(gateway: Gateway) -> None:
    done = run("drain", "--stop", "--control", str(gateway.path))
    assert gateway.asked[-1] == ("down", {})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("jumpvpn: error: stands in for a gateway and does not stop\n")


def test_ctrl_c_ends_the_waiting_and_not_the_drain(gateway: Gateway) -> None:
    gateway.floor = 2
    command = [*PROGRAM, "drain", "--control", str(gateway.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert gateway.polled.wait(20)
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (130, "")
    assert err.endswith("jumpvpn: the gateway goes on draining; take it back with 'jumpvpn drain --off'\n")
    assert gateway.is_draining


def test_a_drain_is_taken_back(gateway: Gateway) -> None:
    gateway.is_draining = True
    done = run("drain", "--off", "--control", str(gateway.path))
    assert (done.returncode, done.stdout) == (0, "serving; 3 sessions here\n")
    assert gateway.asked == [("drain", {"set": "off"})]
    assert json.loads(run("drain", "--off", "--json", "--control", str(gateway.path)).stdout) == {
        "state": "serving", "sessions": 3,
    }  # fmt: skip


def test_waiting_ends_when_somebody_else_takes_the_drain_back(gateway: Gateway) -> None:
    gateway.taken_back_at = 2
    done = run("drain", "--control", str(gateway.path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("jumpvpn: error: the drain was taken back while 2 sessions were left\n")


def test_a_gateway_that_goes_away_is_no_drained_gateway(gateway: Gateway, tmp_path: Path) -> None:
    done = run("drain", "--control", str(tmp_path / "none.sock"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no node answers" in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--timeout", "soon"], "--timeout soon: must be a duration such as"),
        (["--timeout", "25h"], "--timeout 25h: must be at most 24h"),
        (["--off", "--stop"], "give --off or --stop, not both"),
    ],
)
def test_wrong_words_change_nothing(gateway: Gateway, args: list[str], words: str) -> None:
    done = run("drain", *args, "--control", str(gateway.path))
    assert (done.returncode, done.stdout, gateway.asked) == (2, "", [])
    assert words in done.stderr


def test_a_standalone_gateway_says_why_it_cannot(gateway: Gateway) -> None:
    gateway.in_cluster = False
    done = run("drain", "--control", str(gateway.path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jumpvpn: error: this gateway has no [cluster]: its clients have nowhere to go\n"


def test_the_cluster_is_shown_to_people_and_programs(gateway: Gateway) -> None:
    control = ["--control", str(gateway.path)]
    assert json.loads(run("cluster", "status", "--json", "--sessions", *control).stdout) == DOCUMENT
    text = run("cluster", "status", JUMPVPN_CONTROL=str(gateway.path)).stdout
    assert text.startswith("cluster eu  sessions 1  seen by gw1")
    assert gateway.asked == [("cluster", {"sessions": True}), ("cluster", {"sessions": False})]


def test_the_cluster_is_watched_line_by_line(gateway: Gateway) -> None:
    command = [*PROGRAM, "cluster", "status", "--watch", "--json", "--interval", "0.1", "--control", str(gateway.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as watching:
        assert watching.stdout is not None
        lines = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
    assert lines == [DOCUMENT, DOCUMENT]


@pytest.mark.parametrize("command", [["drain"], ["drain", "--off"], ["cluster", "status"]])
def test_a_client_is_not_asked_what_only_gateways_know(gateway: Gateway, command: list[str]) -> None:
    for known in ("drain", "cluster"):
        del gateway.commands[known]
    done = run(*command, "--control", str(gateway.path))
    assert done.returncode == 2
    assert done.stderr == (
        f"jumpvpn: error: the node on {gateway.path} is no gateway: ask on a gateway's machine, or name its socket "
        "with --control\n"
    )
