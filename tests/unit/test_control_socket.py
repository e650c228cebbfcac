"""The control socket: private, bounded, one owner, and honest about who answers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jumpvpn.runtime.control import (
    LONGEST_REQUEST,
    ControlBusy,
    ControlClient,
    ControlServer,
    NotRunning,
    Refused,
    serving_process,
)


async def echo(args: Mapping[str, Any]) -> Any:
    return dict(args)


async def refuse(_: Mapping[str, Any]) -> Any:
    raise Refused("denied: switch_rate_limited", "switch_rate_limited")


async def count(args: Mapping[str, Any]) -> AsyncIterator[int]:
    for number in range(args["to"]):
        yield number


async def never(_: Mapping[str, Any]) -> AsyncIterator[int]:
    await asyncio.sleep(3600)
    yield 0


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlServer]:
    node = ControlServer(
        tmp_path / "run" / "c.sock", {"echo": echo, "refuse": refuse}, {"count": count, "never": never}
    )
    await node.start()
    yield node
    await node.close()


@pytest.fixture
def path(server: ControlServer, tmp_path: Path) -> Path:
    return tmp_path / "run" / "c.sock"


async def test_requests_are_answered_in_order_on_one_connection(path: Path) -> None:
    async with ControlClient(path) as node:
        assert await node.request("echo", a=1) == {"a": 1}
        assert await node.request("echo") == {}
        with pytest.raises(Refused, match="rate_limited") as caught:
            await node.request("refuse")
        assert caught.value.code == "switch_rate_limited"
        with pytest.raises(Refused, match="unknown command 'nope'; known are count, echo, never, refuse") as caught:
            await node.request("nope")
        assert caught.value.code == "usage"


async def test_streams_end_with_their_last_item(path: Path) -> None:
    async with ControlClient(path) as node:
        assert [item async for item in node.stream("count", to=3)] == [0, 1, 2]


async def test_a_stream_is_dropped_as_soon_as_the_client_hangs_up(path: Path, server: ControlServer) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"command":"never"}\n')
    assert json.loads(await reader.readline()) == {"ok": True, "stream": True}
    assert len(server._clients) == 1
    writer.close()
    async with asyncio.timeout(2):
        while server._clients:
            await asyncio.sleep(0.01)


async def test_only_the_owner_may_use_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert serving_process(path) == os.getpid()


async def test_a_live_socket_is_not_taken_over(path: Path) -> None:
    with pytest.raises(ControlBusy, match=f"process {os.getpid()} already serves"):
        await ControlServer(path, {}, {}).start()
    async with ControlClient(path) as node:
        assert await node.request("echo", still=True) == {"still": True}


async def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(path, {"echo": echo}, {})
    await server.start()
    async with ControlClient(path) as node:
        assert await node.request("echo", a=1) == {"a": 1}
    await server.close()
    await server.close()
    assert not path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ControlBusy, match="something else stands there"):
        await ControlServer(path, {}, {}).start()
    assert path.read_text() == "precious"


async def test_a_path_too_long_for_the_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(ControlBusy, match="more than 107 bytes"):
        await ControlServer(tmp_path / ("x" * 120), {}, {}).start()


async def test_garbage_and_endless_lines_do_not_harm_the_server(path: Path) -> None:
    for request in (b"garbage\n", b"[]\n", b'{"command": 5}\n', b'{"command":"echo","args":[1]}\n', b"\xff\xfe\n"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(request)
        assert "ok" in json.loads(await reader.readline())
        writer.close()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"x" * (LONGEST_REQUEST + 10) + b"\n")
    answer = json.loads(await reader.readline())
    assert answer["code"] == "usage"
    assert await reader.read() == b""
    writer.close()
    async with ControlClient(path) as node:
        assert await node.request("echo") == {}


async def test_nobody_there_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no node answers"):
        async with ControlClient(tmp_path / "none.sock"):
            pass
