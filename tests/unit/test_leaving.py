"""Commands whose reader has gone, or that are interrupted, leave without a traceback and with a code of their own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jumpvpn.leaving import CLOSED_PIPE, INTERRUPTED, quietly

FEW_SEEDS = ("-m", "jumpvpn.sim", "--seed", "17")
COMMANDS = {
    "sim": FEW_SEEDS,
    "sim as json": (*FEW_SEEDS, "--json"),
    "one line": ("-m", "jumpvpn.cli.main", "version"),
    "help": ("-m", "jumpvpn.cli.main", "--help"),
    "check": ("-m", "jumpvpn.cli.main", "policy", "check", "{policy}"),
    "audit": ("-m", "jumpvpn.cli.main", "audit", "verify", "{policy}"),
    "audit as json": ("-m", "jumpvpn.cli.main", "audit", "stats", "--json", "{policy}"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_gone_is_no_failure(name: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.touch()
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-P", *(word.format(policy=policy) for word in COMMANDS[name])]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.returncode == CLOSED_PIPE
    assert b"Traceback" not in done.stderr
    assert b"Broken pipe" not in done.stderr


@pytest.mark.parametrize(
    "command", [("-m", "jumpvpn.sim", "--seeds", "5000", "--jobs", "2"), ("-m", "jumpvpn.model")], ids=lambda c: c[1]
)
def test_ctrl_c_ends_all_processes_in_one_line(command: tuple[str, ...]) -> None:
    running = subprocess.Popen(
        [sys.executable, "-P", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert running.stderr is not None
    running.stderr.readline()  # the first progress: all processes are at work
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)  # ends when the last process has closed its end
    assert running.returncode == INTERRUPTED
    assert said.splitlines()[-1].endswith(b": stopped")
    assert b"Traceback" not in said


def test_a_code_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert [quietly("x", lambda code=code: code) for code in (0, 1, 2)] == [0, 1, 2]  # type: ignore[misc]
