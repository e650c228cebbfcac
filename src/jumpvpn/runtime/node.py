"""What both roles need to run as a process: preconditions, the order of acquisition, certain teardown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpvpn.runtime.cleanup import Ownership, tell
from jumpvpn.runtime.errors import StartFailed

if TYPE_CHECKING:
    from jumpvpn.config import Recording
    from jumpvpn.recording.snapshot import Engine
    from jumpvpn.recording.tape import Tape

CAP_NET_ADMIN = 12
TUN_DEVICE = Path("/dev/net/tun")


def require_privileges() -> None:
    """Raises StartFailed unless this process may configure the network."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    if not effective >> CAP_NET_ADMIN & 1:
        raise StartFailed("needs root or CAP_NET_ADMIN to create the tunnel interface; run it with sudo")
    if not TUN_DEVICE.exists():
        raise StartFailed(f"{TUN_DEVICE} is missing; load the module with 'modprobe tun'")


def make_private_directory(path: Path) -> None:
    """Create ``path`` (0700) if it is not there. Raises StartFailed."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StartFailed(f"cannot create {path}: {error.strerror}; choose another state_dir") from error


def start_recording(wish: Recording | None, engine: Engine, stack: contextlib.AsyncExitStack) -> Tape | None:
    """The tape that the configuration wishes, closed with ``stack``; None if it wishes none."""
    if wish is None:
        return None
    from jumpvpn.recording import files  # noqa: PLC0415 - few nodes record, and a gateway that starts is awaited

    return files.start(wish, engine, stack)


async def release(owner: Ownership) -> None:
    """Undo everything that the node installed, and say what could not be undone."""
    tell(await owner.release())


@contextlib.asynccontextmanager
async def background(*jobs: Awaitable[None], on_failure: Callable[[BaseException], None]):  # type: ignore[no-untyped-def]
    """Run ``jobs`` beside the block; a job that fails reports, all are cancelled at the end."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            on_failure(task.exception())  # type: ignore[arg-type]

    tasks = [asyncio.ensure_future(job) for job in jobs]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def on_defects(end: Callable[[BaseException], None]) -> None:
    """Let ``end`` have what asyncio would only log: an exception in a callback, or in a task that nobody awaits.

    An OSError there is the system's (out of descriptors while accepting a control client): said, and survived.
    """

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError):
            os.write(2, f"jumpvpn: {context['message']}: {error.strerror}\n".encode())
        else:
            end(error if error is not None else RuntimeError(context["message"]))

    asyncio.get_running_loop().set_exception_handler(handle)


def on_signals(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """SIGINT and SIGTERM stop the node in order; SIGHUP reloads its policy."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
