"""The control socket: one JSON object per line, for the commands of this machine's administrator.

Request ``{"command": str, "args": {}}``. Answer ``{"ok": true, "result": …}`` or ``{"ok": false, "error": str,
"code": str}``. A streaming command answers ``{"ok": true, "stream": true}``, then one ``{"item": …}`` per line until
either side closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

LONGEST_REQUEST = 64 * 1024  # requests are a command and a few words
LONGEST_ANSWER = 32 * 1024 * 1024  # status of some 10,000 sessions
LONGEST_PATH = 107  # sun_path less its terminating zero (unix(7))
MOST_CLIENTS = 64
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 30.0
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (SO_PEERCRED)

Args = Mapping[str, Any]
Command = Callable[[Args], Awaitable[Any]]
Stream = Callable[[Args], AsyncIterator[Any]]


class Refused(Exception):
    """A command that the node understood and declines; ``code`` is a reason or ``usage``."""

    def __init__(self, text: str, code: str = "refused") -> None:
        super().__init__(text)
        self.code = code


class ControlBusy(Exception):
    """A live process already serves the socket, or its path cannot be used."""


class NotRunning(Exception):
    """No node answers on the socket."""


class ControlServer:
    """Serves ``commands`` and ``streams`` on a socket that only its owner and root may use."""

    def __init__(self, path: Path, commands: Mapping[str, Command], streams: Mapping[str, Stream]) -> None:
        self._path = path
        self._commands = commands
        self._streams = streams
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._inode = 0

    async def start(self) -> None:
        """Bind, taking over the socket of a dead process. Raises ControlBusy."""
        listener = _bind(self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=LONGEST_REQUEST)

    async def close(self) -> None:
        """Hang up on every client and remove the socket, unless someone else's stands there now."""
        if self._server is None:
            return
        self._server.close()
        for client in tuple(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._server = None
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs every connection in a task"
        self._clients.add(task)
        try:
            if len(self._clients) <= MOST_CLIENTS and _is_allowed(writer):
                await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                await _send(writer, _error(f"a request has at most {LONGEST_REQUEST} bytes", "usage"))
                return
            command, args = _request(line)
            if command in self._streams:
                await self._stream(self._streams[command], args, reader, writer)
                return
            await _send(writer, await self._answer(command, args))

    async def _answer(self, command: str, args: Args) -> dict[str, Any]:
        if command not in self._commands:
            known = ", ".join(sorted([*self._commands, *self._streams]))
            return _error(f"unknown command {command!r}; known are {known}", "usage")
        try:
            return {"ok": True, "result": await self._commands[command](args)}
        except Refused as refused:
            return _error(str(refused), refused.code)
        except Exception as error:  # a question that shows a defect must not end the tunnel; the asker is told
            return _error(f"the node could not answer: {type(error).__name__}: {error}", "defect")

    async def _stream(
        self, stream: Stream, args: Args, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send items until the client hangs up, which is noticed even while nothing happens."""
        await _send(writer, {"ok": True, "stream": True})
        pump = asyncio.create_task(_pump(stream(args), writer))
        hangup = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({pump, hangup}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, hangup):
                task.cancel()
            await asyncio.gather(pump, hangup, return_exceptions=True)


class ControlClient:
    """One connection to a node. Use as ``async with ControlClient(path) as node``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> ControlClient:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=LONGEST_ANSWER)
        except PermissionError:
            raise NotRunning(f"may not use {self._path}; run as root or as the user that started the node") from None
        except (OSError, TimeoutError):
            raise NotRunning(
                f"no node answers on {self._path}; start one with 'jumpvpn up' or 'jumpvpn gateway', or name its socket"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()

    async def request(self, command: str, **args: Any) -> Any:
        """The result of one command. Raises Refused, NotRunning."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await self._exchange(command, args)
        except TimeoutError:
            raise NotRunning(f"the node on {self._path} does not answer within {ANSWER_SECONDS:.0f} s") from None
        return answer.get("result")

    async def stream(self, command: str, **args: Any) -> AsyncIterator[Any]:
        """Items of a streaming command until the node ends it. Raises Refused, NotRunning."""
        await self._exchange(command, args)
        while True:
            message = await self._receive(is_end_fine=True)
            if message is None:
                return
            yield message.get("item")

    async def _exchange(self, command: str, args: Args) -> dict[str, Any]:
        assert self._writer is not None, "the client is connected"
        with contextlib.suppress(ConnectionError):
            await _send(self._writer, {"command": command, "args": dict(args)})
        answer = await self._receive(is_end_fine=False)
        assert answer is not None, "an end is reported as NotRunning here"
        if not answer.get("ok"):
            raise Refused(str(answer.get("error", "no reason given")), str(answer.get("code", "refused")))
        return answer

    async def _receive(self, *, is_end_fine: bool) -> dict[str, Any] | None:
        assert self._reader is not None, "the client is connected"
        try:
            message = json.loads(await self._reader.readuntil(b"\n"))
        except (asyncio.IncompleteReadError, ConnectionError):
            if is_end_fine:
                return None
            raise NotRunning(f"the node on {self._path} went away") from None
        except (asyncio.LimitOverrunError, ValueError):
            raise NotRunning(f"what answers on {self._path} is not a node of Jumping VPN") from None
        return message if isinstance(message, dict) else {}


def serving_process(path: Path) -> int | None:
    """Process id of whoever listens on ``path``; None if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(str(path))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    pid, _, _ = _CREDENTIALS.unpack(credentials)
    return int(pid)


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ControlBusy(f"the control socket's path has more than {LONGEST_PATH} bytes: {path}")
    pid = serving_process(path)
    if pid is not None:
        raise ControlBusy(f"process {pid} already serves {path}; stop it with 'jumpvpn down' or set another 'control'")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_stale(path)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        listener.close()
        raise ControlBusy(f"cannot bind the control socket {path}: {error.strerror}") from error
    return listener


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "something else stands there; move it away")
        path.unlink()


def _is_allowed(writer: asyncio.StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in (0, os.geteuid())


def _request(line: bytes) -> tuple[str, Args]:
    try:
        message = json.loads(line)
    except ValueError:
        return "", {}
    if not isinstance(message, dict):
        return "", {}
    args = message.get("args")
    return str(message.get("command", "")), args if isinstance(args, dict) else {}


async def _pump(items: AsyncIterator[Any], writer: asyncio.StreamWriter) -> None:
    async for item in items:
        await _send(writer, {"item": item})


async def _send(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    await writer.drain()


def _error(text: str, code: str) -> dict[str, Any]:
    return {"ok": False, "error": text, "code": code}
