"""Finding, naming and ending the processes of a lab, for its keeper and for the sweep of what dead labs left."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

# In the environment of every process of a lab, so that a sweep recognises them when the keeper was killed.
ENVIRONMENT_TAG = "JUMPVPN_LAB"
RECORD = "lab.json"

# Time for a node to tear its own routes down before it is killed.
TERM_GRACE_S = 2.0
# A killed process leaves its namespace within a scheduler round; more means an uninterruptible sleep.
KILL_GRACE_S = 5.0


def end_processes(belongs: Callable[[int], bool]) -> None:
    """End every process for which `belongs(pid)` holds: SIGTERM, a grace time, then SIGKILL until none is left."""
    asked: set[int] = set()
    started = time.monotonic()
    while time.monotonic() < started + TERM_GRACE_S + KILL_GRACE_S:
        members = [pid for pid in _process_ids() if pid != os.getpid() and belongs(pid)]
        if not members:
            return
        late = time.monotonic() >= started + TERM_GRACE_S
        for pid in members:
            if late or pid not in asked:
                _signal(pid, signal.SIGKILL if late else signal.SIGTERM, belongs)
        asked.update(members)
        time.sleep(0.01)


def carries_tag(pid: int, lab_id: str) -> bool:
    """Say whether a process was started in the lab, which its children inherit."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{ENVIRONMENT_TAG}={lab_id}".encode() in environment.split(b"\0")


def start_ticks(pid: int) -> int:
    """Return when a living process began, in clock ticks since boot, or 0 if there is none: with its id, its identity.

    Source: proc_pid_stat(5), fields 3 (a zombie has ended) and 22.
    """
    state, *fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split() or ["X"]
    return 0 if state in "ZX" else int(fields[18])


def read_text(path: str) -> str:
    """Return the text of a file of the kernel, or nothing where it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _signal(pid: int, number: signal.Signals, belongs: Callable[[int], bool]) -> None:
    """Signal a process through a descriptor taken before it is judged again, so that a reused id is never hit."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if belongs(pid):
            signal.pidfd_send_signal(handle, number)
    except OSError:
        pass
    finally:
        os.close(handle)


def _process_ids() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
