"""Nothing is left behind: after an exit, after an error, and by the next start after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from isolated import in_namespace, sh

from jumpvpn.runtime.cleanup import Ownership, Sysctl, set_sysctl
from jumpvpn.runtime.errors import AlreadyRunning, RtnlFailed
from jumpvpn.runtime.routing import configure_tunnel, route_into_tunnel

pytestmark = pytest.mark.netns
STATE = """
ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset
cd /proc/sys/net; cat ipv4/ip_forward ipv6/conf/all/forwarding ipv6/conf/lo/accept_ra
"""

# Installs everything a node installs, says so, and waits to be killed.
NODE = """
import asyncio, sys, time
from pathlib import Path
from jumpvpn.runtime.cleanup import Ownership
from jumpvpn.runtime.nat import Forwarding, enable_forwarding
from jumpvpn.runtime.routing import configure_tunnel, protect_inner_addresses, route_into_tunnel

async def main() -> None:
    owner = await Ownership.claim(Path(sys.argv[1]))
    await configure_tunnel(owner, "t0", ["10.77.0.2/24", "fd77::2/64"], 1380)
    await route_into_tunnel(owner, "t0", ["0.0.0.0/0", "::/0", "10.0.0.0/8"], 7, 19030)
    await protect_inner_addresses(owner, "client", "t0", ["10.77.0.2/24"])
    await enable_forwarding(owner, Forwarding("gw", "t0", ("10.77.0.0/24", "fd77::/64"), True))
    print("installed", flush=True)
    time.sleep(60)

asyncio.run(main())
"""


def test_leftovers_of_a_killed_node_are_removed_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "owned.json"

    async def body() -> None:
        before = sh(STATE)
        sh("ip link add t0 type veth peer name t1; ip link set t1 up")  # unlike a TUN it outlives its maker
        with subprocess.Popen([sys.executable, "-c", NODE, str(path)], stdout=subprocess.PIPE) as node:
            assert node.stdout is not None
            assert node.stdout.readline() == b"installed\n"
            with pytest.raises(AlreadyRunning, match=f"process {node.pid} owns"):
                await Ownership.claim(path)
            node.send_signal(signal.SIGKILL)
        assert sh(STATE) != before
        assert path.exists()
        owner = await Ownership.claim(path)
        assert owner.items == ()
        assert sh(STATE) == before
        assert "t0" not in sh("ip -o link")
        assert await owner.release() == []
        assert not path.exists()

    in_namespace(body)


def test_leftovers_of_another_boot_or_namespace_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "owned.json"

    async def body() -> None:
        for changes in ({"boot_id": "another"}, {"namespace": 1}):
            owner = await Ownership.claim(path)
            owner.note(Sysctl("net/ipv4/ip_forward", "1", "0"))
            record = json.loads(path.read_bytes())
            os.close(owner._lock)
            path.write_text(json.dumps({**record, **changes}))
            owner = await Ownership.claim(path)
            assert sh("cat /proc/sys/net/ipv4/ip_forward").strip() == "0"
            await owner.release()

    in_namespace(body)


def test_a_damaged_record_does_not_stop_the_start(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "owned.json").write_bytes(b"{torn")
        owner = await Ownership.claim(tmp_path / "owned.json")
        assert owner.items == ()
        await owner.release()

    in_namespace(body)


def test_a_setting_that_someone_else_changed_since_is_theirs(tmp_path: Path) -> None:
    async def body() -> None:
        owner = await Ownership.claim(tmp_path / "owned.json")
        set_sysctl(owner, "net/ipv4/ip_default_ttl", "99")
        sh("echo 77 > /proc/sys/net/ipv4/ip_default_ttl")
        await owner.release()
        assert sh("cat /proc/sys/net/ipv4/ip_default_ttl").strip() == "77"

    in_namespace(body)


def test_what_is_gone_already_is_no_failure_and_the_rest_is_undone(tmp_path: Path) -> None:
    async def body() -> None:
        before = sh("ip rule")
        sh("ip link add t0 type veth peer name t1")
        owner = await Ownership.claim(tmp_path / "owned.json")
        await configure_tunnel(owner, "t0", ["10.77.0.2/24"], 1380)
        await route_into_tunnel(owner, "t0", ["0.0.0.0/0", "10.0.0.0/8"], 7, 19030)
        sh("ip link del t0; ip rule del priority 30100")
        assert await owner.release() == []
        assert sh("ip rule") == before

    in_namespace(body)


def test_a_missing_interface_is_named(tmp_path: Path) -> None:
    async def body() -> None:
        owner = await Ownership.claim(tmp_path / "owned.json")
        with pytest.raises(RtnlFailed, match="there is no interface nope0"):
            await configure_tunnel(owner, "nope0", [], 1380)
        await owner.release()

    in_namespace(body)
