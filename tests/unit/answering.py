"""A control socket of a node that does not run: what answers is a test's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from jumpvpn.runtime.control import Command, ControlServer


@contextmanager
def answering(path: Path, commands: Mapping[str, Command]) -> Iterator[None]:
    """Within this block ``commands`` answer on the socket at ``path``, on a loop and thread of their own."""
    loop = asyncio.new_event_loop()
    server = ControlServer(path, commands, {})
    loop.run_until_complete(server.start())
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
