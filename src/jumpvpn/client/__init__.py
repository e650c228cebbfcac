"""The client: one session, many transports."""

from __future__ import annotations

import asyncio

from jumpvpn.client.node import ClientNode
from jumpvpn.config import ClientConfig


def run(config: ClientConfig) -> int:
    """Run a client until its session ends or it is told to stop; the process's exit code."""
    return asyncio.run(ClientNode(config).run())
