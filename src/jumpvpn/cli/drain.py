"""``jumpvpn drain``: a gateway of a cluster asks its clients to move to the others, while the old bindings still work.

The gateway's control command ``drain`` with ``{"set": "on" | "off"}``, or without it to ask only, answers
``{"state": "serving" | "draining", "sessions": 12}``: the living sessions that this gateway still owns. A gateway
without ``[cluster]`` refuses.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpvpn.cli import watching
from jumpvpn.cli.failures import RUN_FAILURE, USAGE_FAILURE, Failure
from jumpvpn.cli.node import with_node
from jumpvpn.leaving import INTERRUPTED
from jumpvpn.policy.units import format_duration, parse_duration
from jumpvpn.runtime.control import ControlClient
from jumpvpn.values import HOUR, SECOND

COMMAND = "drain"
_LONGEST_NS = 24 * HOUR  # no session outlives the policy's lifetime, a day by default
_POLL_SECONDS = 0.2  # a moved session is seen that soon; the question costs the gateway a few microseconds
_UNDO = "take it back with 'jumpvpn drain --off'"


@dataclass(frozen=True, slots=True)
class Left:
    """What a drain came to."""

    before: int
    after: int

    def as_json(self, *, stopped: bool) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "state": "draining",
            "sessions_before": self.before,
            "sessions": self.after,
            "drained": self.after == 0,
            "stopped": stopped,
        }


def run(path: Path, timeout: str, *, stop: bool, as_json: bool) -> int:
    """Drain the gateway on ``path``; the command's exit code: 0 none left, 1 some are left after ``timeout``."""
    limit_ns = _timeout(timeout)
    try:
        left = with_node(path, lambda node: _drain(node, limit_ns))
    except KeyboardInterrupt:
        sys.stderr.write(f"\njumpvpn: the gateway goes on draining; {_UNDO}\n")
        return INTERRUPTED
    is_stopped = stop and left.after == 0
    if is_stopped:
        watching.stop(path)
    if as_json:
        sys.stdout.write(json.dumps(left.as_json(stopped=is_stopped)) + "\n")
    else:
        sys.stdout.write(_verdict(left, limit_ns, stop=stop) + "\n")
    return 0 if left.after == 0 else RUN_FAILURE


def take_back(path: Path, *, as_json: bool) -> None:
    """Let the gateway serve again."""
    answer = with_node(path, lambda node: _ask(node, set="off"))
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        sys.stdout.write(f"{answer['state']}; {_counted(answer['sessions'])} here\n")


async def _drain(node: ControlClient, limit_ns: int) -> Left:
    answer = await _ask(node, set="on")
    before = left = int(answer["sessions"])
    end = time.monotonic() + limit_ns / SECOND
    progress = _Progress(before)
    progress.show(left)
    while left and time.monotonic() < end:
        await asyncio.sleep(_POLL_SECONDS)
        answer = await _ask(node)
        if answer["state"] != "draining":
            raise Failure(f"the drain was taken back while {_counted(int(answer['sessions']))} were left")
        left = int(answer["sessions"])
        progress.show(left)
    progress.close()
    return Left(before, left)


async def _ask(node: ControlClient, **args: str) -> dict[str, Any]:
    answer = await node.request(COMMAND, **args)
    if not isinstance(answer, dict) or not isinstance(answer.get("sessions"), int) or "state" not in answer:
        raise Failure("the gateway's answer is not understood; this program and the gateway differ in version")
    return answer


class _Progress:
    """One line on a terminal, a line per change elsewhere; on stderr."""

    def __init__(self, before: int) -> None:
        self._before = before
        self._shown: int | None = None
        self._is_terminal = sys.stderr.isatty()

    def show(self, left: int) -> None:
        """``left`` sessions are still here."""
        if left == self._shown:
            return
        self._shown = left
        text = f"jumpvpn: draining, {left} of {self._before} sessions left"
        sys.stderr.write(f"\r\x1b[K{text}" if self._is_terminal else f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the line."""
        if self._is_terminal:
            sys.stderr.write("\n")


def _verdict(left: Left, limit_ns: int, *, stop: bool) -> str:
    if left.after == 0:
        moved = f"drained: {_counted(left.before)} moved or ended"
        return f"{moved}; the gateway is stopped" if stop else f"{moved}; none comes here until the drain is taken back"
    kept = "; it was not stopped" if stop else ""
    return f"{_counted(left.after)} left after {format_duration(limit_ns)}{kept}; the gateway goes on draining, {_UNDO}"


def _counted(sessions: int) -> str:
    return f"{sessions} session{'' if sessions == 1 else 's'}"


def _timeout(text: str) -> int:
    try:
        limit = parse_duration(text)
    except ValueError as error:
        raise Failure(f"--timeout {text}: {error}", USAGE_FAILURE) from None
    if limit > _LONGEST_NS:
        raise Failure(f"--timeout {text}: must be at most {format_duration(_LONGEST_NS)}", USAGE_FAILURE)
    return limit
