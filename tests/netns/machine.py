"""A machine of its own for one test: network and mounts that nothing outside sees, a gateway's and a client's files.

Nodes run as an administrator runs them, by the command line; all that they may change can be compared before and after.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import pytest

from jumpvpn.runtime.keys import create_private_key

# An interpreter starts and a node acquires all it needs within a second; a loaded machine may need many times that.
PATIENCE_S = 30.0
PORT = 51900

# As on any machine, modules are compiled once, whatever the tests' own environment says.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

# All that a node installs, less what the kernel counts.
_INSTALLED = """
ip -o link; ip -o address; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset
ss -Hlnu; ss -Hlnx | awk '{print $5}' | grep . | sort
cd /proc/sys/net; for f in ipv4/ip_forward ipv6/conf/all/forwarding ipv4/conf/*/rp_filter ipv6/conf/*/accept_ra
do echo $f $(cat $f); done
"""
_GATEWAY = """
name = "{name}"
private_key_file = "gateway.key"
listen = ["127.0.0.1:{port}"]
state_dir = "{state}"
control = "{control}"
events = "{events}"
{more}
[tunnel]
name = "{tun}"
{tunnel}
"""
_CLIENT = """
name = "laptop"
private_key_file = "client.key"
state_dir = "{state}"
control = "{control}"
events = "{events}"
[tunnel]
name = "{tun}"
[interfaces]
allow = ["up*"]
[[gateway]]
name = "gw1"
address = "{address}"
public_key = "{key}"
[policy.session]
handshake_timeout = "{timeout}"
"""


class Machine:
    """Use as ``with Machine(tmp_path) as machine``; its processes and namespaces end with the block."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._holder: subprocess.Popen[str]
        self._started: list[subprocess.Popen[str]] = []
        self.keys = {side: create_private_key(directory / f"{side}.key") for side in ("gateway", "client")}

    def __enter__(self) -> Self:
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        script = "mount --make-rprivate / && ip link set lo up && echo ready && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", *user, "--net", "--mount", "--", "sh", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self._holder.communicate()
            pytest.skip("network and mount namespaces are not allowed here")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self._holder.communicate()

    def inside(self, argv: list[str]) -> list[str]:
        """The argument list that runs ``argv`` in the machine, in the same process."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        here = ["sh", "-c", 'cd "$0" && exec "$@"', str(self.directory)]  # looked up inside: mounts count
        return ["nsenter", f"--target={self._holder.pid}", *user, "--net", "--mount", "--", *here, *argv]

    def sh(self, script: str) -> str:
        """Run shell commands that must succeed; their output."""
        done = subprocess.run(
            self.inside(["sh", "-ec", script]), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def jumpvpn(self, *args: str, prefix: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``jumpvpn ARGS`` to its end; ``prefix`` is a command that runs it."""
        return subprocess.run(
            self.inside([*shlex.split(prefix), *command(*args)]), capture_output=True, text=True, check=False,
            timeout=PATIENCE_S, stdin=subprocess.DEVNULL, env=ENVIRONMENT,
        )  # fmt: skip

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start ``jumpvpn ARGS``, with its words in a pipe."""
        return self._start(command(*args))

    def _start(self, argv: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.inside(argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT,
        )  # fmt: skip
        self._started.append(process)
        return process

    def python(self, script: str, *args: str) -> None:
        """Run a Python script to its end; it must succeed."""
        argv = self.inside([sys.executable, "-P", "-c", script, *args])
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr

    def start_python(self, script: str) -> subprocess.Popen[str]:
        """Start a Python script, with its words in a pipe."""
        return self._start([sys.executable, "-P", "-c", script])

    def start_gateway(self, config: str = "gateway.toml") -> subprocess.Popen[str]:
        """Start a gateway and wait until it says that it listens."""
        process = self.start("gateway", "--config", config)
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "listens on" in first, first
        return process

    def start_client(self, config: str = "client.toml", control: str = "client.sock") -> subprocess.Popen[str]:
        """Start a client and wait until it answers on its control socket."""
        process = self.start("up", "--config", config)
        self.eventually(lambda: self.jumpvpn("status", "--control", control).returncode == 0)
        return process

    def eventually(self, holds: Any) -> None:
        """Wait until ``holds()``; fails after far too long."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, "what was awaited did not happen"
            time.sleep(0.02)

    def installed(self) -> str:
        """Everything in the machine that a node may change, sockets included."""
        return self.sh(_INSTALLED)

    def stray_files(self) -> list[str]:
        """Files that only a running or a killed node has: sockets, ownership notes, drafts, logs of the database."""
        patterns = ("*.sock", "owned-*.json", "*.new", "*-wal", "*-shm", "*-journal")
        found = (path for pattern in patterns for path in self.directory.rglob(pattern))
        return sorted(str(path.relative_to(self.directory)) for path in found)

    def write_gateway(self, file: str = "gateway.toml", **changes: Any) -> str:
        """Write a gateway's configuration; the file's name."""
        values = {
            "name": "gw1", "port": PORT, "state": "gateway", "control": "gateway.sock", "events": "gateway.jsonl",
            "more": "", "tun": "jv0", "tunnel": "",
        }  # fmt: skip
        (self.directory / file).write_text(_GATEWAY.format_map({**values, **changes}))
        return file

    def write_client(self, file: str = "client.toml", **changes: Any) -> str:
        """Write a client's configuration; the file's name."""
        values = {
            "state": "client", "control": "client.sock", "events": "client.jsonl", "tun": "jv1",
            "address": f"192.0.2.1:{PORT}", "key": self.keys["gateway"], "timeout": "10s",
        }  # fmt: skip
        (self.directory / file).write_text(_CLIENT.format_map({**values, **changes}))
        return file


def command(*args: str) -> list[str]:
    """``jumpvpn ARGS`` with this interpreter."""
    return [sys.executable, "-P", "-m", "jumpvpn.cli.main", *args]
