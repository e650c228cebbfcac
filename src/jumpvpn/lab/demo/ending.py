"""How a demonstration ends before its time: by a signal, or because the machine lets it have no lab."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from jumpvpn.lab.errors import LabError

Result = TypeVar("Result")

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@contextmanager
def told(command: str) -> Iterator[None]:
    """Tell in one line why it ended too early; `command` is how root runs it. Raises SystemExit with 1 or 130."""
    try:
        yield
    except LabError as error:
        advice = "" if os.geteuid() == 0 else f"; as root ('sudo {command}') it works on every kernel"
        sys.stderr.write(f"jumpvpn: error: {error}{advice}\n")
        raise SystemExit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("jumpvpn: interrupted; the lab is gone\n")
        raise SystemExit(_INTERRUPTED) from None


async def endable(running: Coroutine[Any, Any, Result]) -> Result:
    """Let SIGTERM end the run as Ctrl-C does, with everything cleaned up."""
    task = asyncio.ensure_future(running)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task
