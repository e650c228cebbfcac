"""Return traffic by a routing daemon: a program of the administrator's is told which inner addresses are here.

The program is run as ``COMMAND... VERB [ADDRESS...]``, one run at a time:

- ``reset``: once, before anything else. Withdraw whatever an earlier run announced: it may have been killed.
- ``acquire ADDRESS...``: 1 to 256 addresses, without prefix length, IPv4 and IPv6 mixed. Announce each as a host route
  (/32, /128) to this machine. One that is announced already is fine.
- ``release ADDRESS...``: withdraw them. One that is not announced is fine: a gateway may be told of a session that it
  never had.

Exit status 0 says that all of it is done. Anything else, or no end within 10 s (its process group is killed then), is a
failure of all addresses of that run; the first line of its standard error is told, and the same wish comes again later,
perhaps beside other addresses. Runs for one address come in the order of the changes. Standard input and output are
/dev/null, the directory is /, and of the environment there are only PATH and LANG.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from jumpvpn.runtime.wishes import Batch

MOST_PER_RUN = 256  # some 10 kB of arguments, far below any system's limit
TIMEOUT_S = 10.0
CLOSING_S = 30.0  # for all runs together when the gateway stops: three that hang
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_LONGEST_LINE = 200  # characters of the program's complaint that are told
_MOST_KEPT = 4096  # bytes of it that are kept


class HookBackend:
    """Runs the command; a failure concerns all addresses of its run."""

    most = MOST_PER_RUN

    def __init__(self, command: Sequence[str], failed: Callable[[str], None]) -> None:
        self._command = tuple(command)
        self._failed = failed

    async def start(self) -> None:
        """Let the program withdraw what an earlier run announced. A failure is told and not tried again: what is here
        must be announced all the same."""
        if (why := await self._run("reset")) is not None:
            self._failed(f"cannot withdraw what an earlier run may have announced: {why}")

    async def carry_out(self, batch: Batch) -> Mapping[str, str]:
        """Tell the program."""
        why = await self._run("acquire" if batch.acquire else "release", *batch.addresses)
        return {} if why is None else dict.fromkeys(batch.addresses, why)

    def expect(self, addresses: Sequence[str]) -> None:
        """Nothing: what comes here is never passed on."""

    def ready(self, addresses: Sequence[str]) -> None:
        """Nothing is under way."""

    def hush(self, *, on: bool) -> None:
        """Nothing: what was announced is not repeated."""

    def leave(self, addresses: Sequence[str]) -> None:
        """Nothing: the route leads here until it is withdrawn, and until another gateway announces its own."""

    async def run(self, again: Callable[[], None]) -> None:
        """Nothing goes on beside."""
        del again
        await asyncio.Event().wait()

    async def close(self, held: Sequence[str]) -> Sequence[str]:
        """Release ``held``, each once; a failure is told and the next ones are tried while there is time."""
        told: list[str] = []
        done = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                for start in range(0, len(held), MOST_PER_RUN):
                    part = held[start : start + MOST_PER_RUN]
                    if (why := await self._run("release", *part)) is not None:
                        told.append(f"cannot withdraw {_named(part)}: {why}")
                    done = start + len(part)
        if done < len(held):
            told.append(f"cannot withdraw {_named(held[done:])}: no time left; {self._command[0]} is too slow")
        return told

    async def _run(self, *arguments: str) -> str | None:
        """One run; None when all is well, else why not."""
        program = self._command[0]
        with _Complaint() as complaint:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command, *arguments,
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=complaint.writer,
                    env=_ENVIRONMENT, cwd="/", start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                return f"cannot run {program}: {error.strerror}; check announce.command"
            complaint.close_writer()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status = await process.wait()
            except TimeoutError:
                await _end(process)
                return f"{program} {arguments[0]} did not end within {TIMEOUT_S:g} s"
            except asyncio.CancelledError:  # it must not act after what comes next
                await _end(process)
                raise
            if status == 0:
                return None
            ending = f"exit status {status}" if status > 0 else f"signal {-status}"
            return f"{program} {arguments[0]} failed ({ending}): {complaint.first_line()}"


class _Complaint:
    """The beginning of what a program writes to its standard error; the rest is read and dropped, so it never blocks.

    A pipe of our own, because asyncio's would have to reach its end, which a process left behind by the program delays.
    """

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.writer, True)
        self._kept = b""

    def __enter__(self) -> _Complaint:
        asyncio.get_running_loop().add_reader(self._reader, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        self.close_writer()

    def close_writer(self) -> None:
        """Close our copy of the writing end. May be called twice."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def first_line(self) -> str:
        """The first line with text, without control characters."""
        self._read()
        text = "".join(c if c.isprintable() else " " for c in self._lines()[0])
        return text.strip()[:_LONGEST_LINE]

    def _lines(self) -> list[str]:
        lines = [line for line in self._kept.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines or ["no reason given"]

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if data := os.read(self._reader, _MOST_KEPT):
                self._kept = (self._kept + data)[:_MOST_KEPT]
            else:
                asyncio.get_running_loop().remove_reader(self._reader)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the program and what it started, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _named(addresses: Sequence[str]) -> str:
    return addresses[0] + (f" and {len(addresses) - 1} more" if len(addresses) > 1 else "")
