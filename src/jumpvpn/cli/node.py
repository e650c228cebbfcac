"""Finds the running node and asks it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from jumpvpn.cli.failures import USAGE_FAILURE, Failure
from jumpvpn.config import load_either
from jumpvpn.runtime.control import ControlClient, NotRunning, Refused, serving_process

Answer = TypeVar("Answer")

CLIENT_CONFIG = Path("/etc/jumpvpn/client.toml")
GATEWAY_CONFIG = Path("/etc/jumpvpn/gateway.toml")
DEFAULT_SOCKETS = (Path("/run/jumpvpn/client.sock"), Path("/run/jumpvpn/gateway.sock"))
DEFAULT_EVENTS = (Path("/var/lib/jumpvpn/client-events.jsonl"), Path("/var/lib/jumpvpn/events.jsonl"))
SOCKET_VARIABLE = "JUMPVPN_CONTROL"


def control_path(control: Path | None, config: Path | None) -> Path:
    """The socket meant: named, configured, in $JUMPVPN_CONTROL, or the one of a node in a default place."""
    if control is not None:
        return control
    if config is not None:
        return load_either(config).control
    if os.environ.get(SOCKET_VARIABLE):
        return Path(os.environ[SOCKET_VARIABLE])
    found = [path for path in DEFAULT_SOCKETS if path.exists()]
    live = [path for path in found if serving_process(path) is not None]
    if len(live) > 1:
        names = " and ".join(str(path) for path in live)
        raise Failure(f"a client and a gateway run here; say which with --control: {names}", USAGE_FAILURE)
    return (live or found or list(DEFAULT_SOCKETS))[0]


def ask(control: Path | None, config: Path | None, command: str, **args: Any) -> Any:
    """The node's answer to one command. Raises NotRunning, Refused."""
    return asyncio.run(_ask(control_path(control, config), command, args))


def events_path(file: Path | None, control: Path | None, config: Path | None) -> Path:
    """The event journal meant: named, configured, told by the running node, or one in a default place."""
    if file is not None:
        return file
    if config is not None:
        return load_either(config).events
    try:
        told = ask(control, None, "status").get("events_file")
    except NotRunning:
        told = None
    if told:
        return Path(told)
    found = [path for path in DEFAULT_EVENTS if path.exists()]
    if not found:
        raise Failure("no event journal found; name it with --file or --config", USAGE_FAILURE)
    return found[0]


@contextmanager
def asking_gateway(path: Path) -> Iterator[None]:
    """Around a question that only gateways know. Raises Failure, in words, if the node on ``path`` is a client."""
    try:
        yield
    except Refused as refused:
        if not str(refused).startswith("unknown command"):
            raise
        raise Failure(
            f"the node on {path} is no gateway: ask on a gateway's machine, or name its socket with --control",
            USAGE_FAILURE,
        ) from None


def with_node(path: Path, work: Callable[[ControlClient], Awaitable[Answer]]) -> Answer:
    """Run ``work`` over one connection."""

    async def connected() -> Answer:
        async with ControlClient(path) as node:
            return await work(node)

    return asyncio.run(connected())


async def _ask(path: Path, command: str, args: dict[str, Any]) -> Any:
    async with ControlClient(path) as node:
        return await node.request(command, **args)
