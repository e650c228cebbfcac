"""Runs a test's body in a child process with a network namespace of its own; nothing outside can change."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import subprocess
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def in_namespace(body: Callable[[], Awaitable[None]]) -> None:
    """Fork, enter a fresh network namespace (and user namespace without root), run ``body``, report its failure."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_child(body, writer))
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as report:
        text = report.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 77:
        pytest.skip(text)
    if os.waitstatus_to_exitcode(status) != 0:
        pytest.fail(text or f"child ended with status {status}", pytrace=False)


def _child(body: Callable[[], Awaitable[None]], writer: int) -> int:
    gc.freeze()  # what the tests before left behind may wait for threads that are not here, as gRPC's channels do
    try:
        if not _unshare():
            os.write(writer, b"network namespaces are not allowed here")
            return 77
        sh("ip link set lo up")
        asyncio.run(_awaited(body))
    except BaseException:
        os.write(writer, traceback.format_exc().encode())
        return 1
    return 0


async def _awaited(body: Callable[[], Awaitable[None]]) -> None:
    await body()


def _unshare() -> bool:
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWNET if uid == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    if _LIBC.unshare(flags) != 0:
        return False
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    return True


def sh(commands: str) -> str:
    """Run shell commands that must succeed; their output."""
    done = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{commands}: {done.stderr}"
    return done.stdout
