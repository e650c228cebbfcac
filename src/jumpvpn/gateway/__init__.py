"""The gateway: many sessions, each the client's to move."""

from __future__ import annotations

import asyncio
import gc

from jumpvpn.config import GatewayConfig
from jumpvpn.gateway.node import GatewayNode

# Sessions make few cycles and live for hours: looking through all of them as often as a script would do costs a good
# part of the control core when many of them come at once.
COLLECT_AFTER = (50_000, 20, 50)


def run(config: GatewayConfig) -> int:
    """Run a gateway until it is told to stop; the process's exit code."""
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    return asyncio.run(GatewayNode(config).run())
