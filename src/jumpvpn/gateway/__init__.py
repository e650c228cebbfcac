"""The gateway: many sessions, each the client's to move."""

from __future__ import annotations

import asyncio

from jumpvpn.config import GatewayConfig
from jumpvpn.gateway.node import GatewayNode


def run(config: GatewayConfig) -> int:
    """Run a gateway until it is told to stop; the process's exit code."""
    return asyncio.run(GatewayNode(config).run())
