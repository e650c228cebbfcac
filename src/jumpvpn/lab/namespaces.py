"""The owner's side of a set of network namespaces: start the keeper, run programs inside, leave nothing behind."""

import asyncio
import contextlib
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from jumpvpn.lab.errors import LabError
from jumpvpn.lab.processes import (
    ENVIRONMENT_TAG,
    KILL_GRACE_S,
    RECORD,
    TERM_GRACE_S,
    carries_tag,
    end_processes,
    start_ticks,
)

# An interpreter starts in well under a second; a loaded machine may need more.
_KEEPER_START_S = 20.0


class NamespaceSet:
    """Named network namespaces that live exactly as long as this object's process wants them to.

    Entered through nsenter(1), which keeps the process id. As an ordinary user the keeper makes a user namespace in
    which this user is root; the owner itself never changes its privileges.
    """

    def __init__(self, record: Mapping[str, Any], keeper: subprocess.Popen[str] | None = None) -> None:
        self.id: str = record["id"]
        self.directory: Path = state_root() / self.id
        self.names: Mapping[str, int] = record["namespaces"]
        self._descriptors = f"/proc/{record['keeper']}/fd"
        self._user: int | None = record["user"]
        self._keeper = keeper
        self._children: list[subprocess.Popen[Any]] = []

    @classmethod
    def create(cls, names: Iterable[str]) -> Self:
        """Start a keeper with one new namespace per name; raises LabError with the cause."""
        sweep()
        directory = state_root() / secrets.token_hex(4)
        keeper = subprocess.Popen(
            [sys.executable, "-P", "-m", "jumpvpn.lab.keeper", str(directory), str(os.getpid()), *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        record = json.loads(_first_line(keeper, "the lab's keeper"))
        if "error" in record:
            _finish(keeper)
            raise LabError(record["error"])
        return cls(record, keeper)

    @classmethod
    def attach(cls, lab_id: str) -> Self:
        """Return a living lab made by another process, to run programs in it."""
        for record in living():
            if record["id"] == lab_id:
                return cls(record)
        raise LabError(f"no living lab is called {lab_id!r}")

    @property
    def rootless(self) -> bool:
        return self._user is not None

    def path(self, name: str) -> str:
        """Return a path that names the namespace for ip(8) and setns(2)."""
        if name not in self.names:
            raise LabError(f"no namespace is called {name!r}; there are {', '.join(self.names)}")
        return f"{self._descriptors}/{self.names[name]}"

    def command(self, name: str, argv: Sequence[str]) -> list[str]:
        """Return the argument list that runs `argv` inside the namespace, in the same process."""
        user = [] if self._user is None else [f"--user={self._descriptors}/{self._user}", "--preserve-credentials"]
        return ["nsenter", *user, f"--net={self.path(name)}", "--", *argv]

    def exec(self, name: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside the namespace; it ends with the namespaces at the latest. Options as for Popen."""
        process = subprocess.Popen(self.command(name, argv), **self._tagged(options))
        self._children.append(process)
        return process

    async def exec_async(self, name: str, argv: Sequence[str], **options: Any) -> asyncio.subprocess.Process:
        """Start a program inside the namespace from asyncio. Options as for `asyncio.create_subprocess_exec`."""
        return await asyncio.create_subprocess_exec(*self.command(name, argv), **self._tagged(options))

    def run(
        self, name: str, argv: Sequence[str], *, check: bool = True, timeout: float = 30.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside the namespace to its end, its output captured as text; raises LabError if it fails."""
        done = subprocess.run(
            self.command(name, argv),
            check=False,
            timeout=timeout,
            capture_output=True,
            text=True,
            **self._tagged(options),
        )
        if check and done.returncode != 0:
            raise LabError(f"in {name}: {' '.join(argv)[:200]}: exit {done.returncode}: {done.stderr.strip()[:500]}")
        return done

    def close(self) -> None:
        """End every process inside, then the namespaces, and wait until both are gone. May be called twice."""
        if self._keeper is not None:
            _finish(self._keeper)
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._children.clear()

    def _tagged(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Mark the child as ours for a later sweep, and keep a terminal's Ctrl-C from it: its owner decides."""
        environment = dict(options.get("env") or os.environ) | {ENVIRONMENT_TAG: self.id}
        return {"start_new_session": True, **options, "env": environment}


def state_root() -> Path:
    """Return the directory that holds one directory per lab of this user."""
    if os.geteuid() == 0:
        return _private(Path("/run/jumpvpn-lab"))
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) else Path(tempfile.gettempdir())
    return _private(base / f"jumpvpn-lab-{os.geteuid()}")


def living() -> list[dict[str, Any]]:
    """Return the records of this user's labs whose keeper is alive."""
    return [record for record in _records() if _is_alive(record)]


def sweep() -> list[str]:
    """Remove what labs with a dead keeper left (processes that carry their tag, directories); return their names."""
    dead = [record for record in _records() if not _is_alive(record)]
    for record in dead:
        end_processes(partial(carries_tag, lab_id=record["id"]))
        shutil.rmtree(state_root() / record["id"], ignore_errors=True)
    return [record["id"] for record in dead]


def _private(directory: Path) -> Path:
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.geteuid():
        raise LabError(f"{directory} belongs to another user")
    return directory


def _records() -> list[dict[str, Any]]:
    records = []
    for path in state_root().glob(f"[!.]*/{RECORD}"):
        with contextlib.suppress(OSError, ValueError):  # another owner may just have removed it
            records.append(json.loads(path.read_text()))
    return records


def _is_alive(record: Mapping[str, Any]) -> bool:
    return start_ticks(int(record["keeper"])) == int(record["started"])


def _first_line(process: subprocess.Popen[str], what: str) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _KEEPER_START_S)
    line = process.stdout.readline() if ready else ""
    if not line:
        process.kill()
        _finish(process)
        raise LabError(f"{what} did not start")
    return line


def _finish(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    try:
        process.wait(TERM_GRACE_S + KILL_GRACE_S + 5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
