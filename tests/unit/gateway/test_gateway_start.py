"""A gateway that cannot take up its sessions ends in order: its journal says why, and the caller gets the error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from jumpvpn.gateway.node import GatewayNode
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.stores.base import StoreUnavailable


class Recorder:
    """Keeps the last words."""

    def __init__(self) -> None:
        self.said: list[Mapping[str, Any]] = []

    def stop(self, data: Mapping[str, Any], _now: Any) -> None:
        self.said.append(data)


@pytest.mark.parametrize("shared", [object(), None])
@pytest.mark.parametrize("error", [StartFailed("another gateway is named 'gw1'"), StoreUnavailable("etcd: no answer")])
async def test_what_prevents_a_start_is_the_journal_s_last_word(error: Exception, shared: Any) -> None:
    node = GatewayNode.__new__(GatewayNode)
    node._recorder = recorder = Recorder()  # type: ignore[assignment]

    async def fails(*_: Any) -> None:
        raise error

    node._join = node._restore = fails  # type: ignore[method-assign]
    with pytest.raises(type(error)) as raised:
        await node._take_up(shared, object(), b"key")  # type: ignore[arg-type]
    assert raised.value is error
    assert recorder.said == [{"cause": "start_failed", "error": str(error)}]


def test_a_gateway_that_stands_alone_does_not_load_etcd_s_client() -> None:
    """Whoever waits for its start would wait for that, too."""
    command = "import sys, jumpvpn.cli.main, jumpvpn.gateway.node; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], timeout=50, check=False).returncode == 0
