"""The network sends what is for an inner address to the gateway that has its session, in both families.

The server believes a neighbour entry for an hour here, so whatever changes one in these tests is an announcement.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from isolated import in_namespace, sh
from segment import BOTH, INNER, POOLS, Gateway, Segment, call, heard, many, state

from jumpvpn.runtime.announce import Announcer
from jumpvpn.runtime.cleanup import Ownership
from jumpvpn.runtime.errors import RtnlFailed, StartFailed

pytestmark = pytest.mark.netns


@BOTH
@pytest.mark.usefixtures("server")
def test_a_connection_follows_its_session_to_another_gateway_and_back(
    segment: Segment, tmp_path: Path, version: int
) -> None:
    inner = INNER[version]
    gateways = {name: Gateway(segment, name, tmp_path) for name in ("a", "b")}
    gateways["a"].do("acquired", f"{inner}/24")
    caller, monitor = call(segment, version), segment.monitor()
    assert segment.neighbour(inner) == segment.hardware("a", "in0")
    for old, new in (("a", "b"), ("b", "a"), ("a", "b")):
        gateways[old].do("released", inner)  # first: it could be about to repeat its own announcement
        gateways[new].do("acquired", inner)
        heard(monitor, inner, segment.hardware(new, "in0"))
        segment.leave_by(new)
        before = segment.count(old, f"tunnel{version}"), segment.count(new, f"tunnel{version}")
        assert caller.ask(f"through {new}") == f"through {new}"
        assert segment.neighbour(inner) == segment.hardware(new, "in0")
        assert segment.count(old, f"tunnel{version}") == before[0]
        assert segment.count(new, f"tunnel{version}") > before[1]


@BOTH
@pytest.mark.usefixtures("server")
def test_what_still_reaches_the_old_gateway_is_passed_on_to_the_new_one(
    segment: Segment, tmp_path: Path, version: int
) -> None:
    inner = INNER[version]
    old, new = Gateway(segment, "a", tmp_path), Gateway(segment, "b", tmp_path)
    old.do("acquired", inner)
    caller = call(segment, version)
    assert caller.ask("before") == "before"
    stuck = segment.hardware("a", "in0")
    segment.sh("server", f"ip neigh replace {inner} lladdr {stuck} dev eth0 nud permanent")
    new.do("acquired", inner)
    old.do("released", inner)
    segment.leave_by("b")
    into_tunnel = segment.count("a", f"tunnel{version}")
    assert caller.ask("after") == "after"
    assert segment.neighbour(inner) == stuck
    assert segment.count("a", f"passed{version}") > 0
    assert segment.count("a", f"tunnel{version}") == into_tunnel
    assert segment.count("b", f"tunnel{version}") > 0
    assert segment.count("a", "redirects") == 0
    old.do("acquired", inner)  # and back: the route into the segment is gone
    segment.leave_by("a")
    assert caller.ask("again") == "again"
    assert segment.count("a", f"tunnel{version}") > into_tunnel


@BOTH
def test_an_address_is_announced_three_times_and_then_for_whoever_asks(
    segment: Segment, tmp_path: Path, version: int
) -> None:
    inner, witness = INNER[version], segment.witness()
    gateway = Gateway(segment, "a", tmp_path)
    segment.sh("server", f"! ping -c 1 -W 1 {inner}")
    gateway.do("acquired", inner)
    expected = ["request", "reply", "request"] if version == 4 else ["advertisement"] * 3
    assert [witness.hear() for _ in expected] == expected
    segment.sh("server", f"ip neigh flush dev eth0; ping -c 1 -W 5 {inner}")
    assert segment.neighbour(inner) == segment.hardware("a", "in0")
    gateway.do("released", inner)
    segment.sh("server", f"ip neigh flush dev eth0; ! ping -c 1 -W 5 {inner}")


@BOTH
@pytest.mark.usefixtures("server")
def test_a_killed_gateway_keeps_nothing_from_its_successor(segment: Segment, tmp_path: Path, version: int) -> None:
    inner = INNER[version]
    before = state(segment, "a")
    old, new = Gateway(segment, "a", tmp_path), Gateway(segment, "b", tmp_path)
    old.do("acquired", *INNER.values(), "10.77.0.6", "fd77::6")
    old.do("released", "10.77.0.6", "fd77::6")
    caller = call(segment, version)
    old.kill()
    tunnel = segment.sh("a", "ip route show dev t0; ip -6 route show dev t0 proto kernel")
    segment.sh("a", "ip link set t0 down; ip addr flush dev t0")  # the tunnel goes with its process
    assert "10.77.0.0/16" in tunnel
    new.do("acquired", inner)
    segment.leave_by("b")
    stuck = segment.hardware("a", "in0")
    segment.sh("server", f"ip neigh replace {inner} lladdr {stuck} dev eth0 nud permanent")
    assert caller.ask("through what is left of it") == "through what is left of it"
    segment.sh("server", f"ip neigh del {inner} dev eth0")
    assert caller.ask("whoever answers") == "whoever answers"
    if version == 4:  # nothing but the new gateway does: the old one has no route to it that is not the segment
        assert segment.neighbour(inner) == segment.hardware("b", "in0")
    segment.sh("a", "ip addr add 10.77.0.1/16 dev t0; ip addr add fd77::1/64 dev t0 nodad; ip link set t0 up")
    assert state(segment, "a") != before
    assert Gateway(segment, "a", tmp_path).close() == []
    assert state(segment, "a") == before


@BOTH
@pytest.mark.usefixtures("server")
def test_close_withdraws_everything(segment: Segment, tmp_path: Path, version: int) -> None:
    before = state(segment, "a")
    gateway = Gateway(segment, "a", tmp_path)
    gateway.do("acquired", INNER[version])
    gateway.do("released", *many(version, 3))
    assert call(segment, version).ask("here") == "here"
    assert gateway.close() == []
    assert state(segment, "a") == before
    assert not gateway.notes.exists()
    segment.sh("server", f"ip neigh flush dev eth0; ! ping -c 1 -W 5 {INNER[version]}")
    assert segment.neighbour(INNER[version]) is None


@BOTH
def test_a_link_that_was_away_is_announced_on_again(segment: Segment, tmp_path: Path, version: int) -> None:
    inner, before = INNER[version], "02:00:00:00:00:01"
    gateway = Gateway(segment, "a", tmp_path)
    gateway.do("acquired", *INNER.values())
    gateway.do("released", *many(version, 1))
    held = state(segment, "a")
    segment.sh("a", "ip link set in0 down")
    assert state(segment, "a") != held
    segment.sh("server", f"ip neigh replace {inner} lladdr {before} dev eth0 nud reachable")
    monitor = segment.monitor()
    segment.sh("a", "ip link set in0 up; ip addr replace fd09::1/64 dev in0 nodad")
    heard(monitor, inner, segment.hardware("a", "in0"))
    gateway.tell(json.dumps(["acquired"]))  # done when all that the link's return caused is done
    while gateway.answer() != ["done"]:  # the kernel may have refused the first try
        pass
    assert sorted(state(segment, "a").split("\n")) == sorted(held.split("\n"))


def test_a_failure_is_told_and_overcome_when_the_link_is_back(segment: Segment, tmp_path: Path) -> None:
    gateway, monitor = Gateway(segment, "a", tmp_path), segment.monitor()
    segment.sh("server", f"ip neigh replace {INNER[4]} lladdr 02:00:00:00:00:01 dev eth0 nud reachable")
    segment.sh("a", "ip link set in0 down")
    gateway.tell(json.dumps(["acquired", INNER[4]]))
    word, text = gateway.answer()
    assert word == "failed"
    assert text == f"cannot announce {INNER[4]}: in0: Network is down; trying again in 0.5 s"
    assert gateway.answer() == ["done"]
    segment.sh("a", "ip link set in0 up")
    heard(monitor, INNER[4], segment.hardware("a", "in0"))


@BOTH
def test_ten_thousand_addresses_are_one_note(segment: Segment, tmp_path: Path, version: int) -> None:
    before = state(segment, "a")
    gateway = Gateway(segment, "a", tmp_path)
    notes = gateway.notes.read_bytes()
    written = gateway.notes.stat()
    gateway.do("acquired", *many(version, 10_000))
    assert int(segment.sh("a", f"ip -{version} neigh show proxy | wc -l")) == 10_000
    gateway.do("released", *many(version, 5_000))
    assert int(segment.sh("a", f"ip -{version} neigh show proxy | wc -l")) == 5_000
    assert int(segment.sh("a", f"ip -{version} route show proto 74 dev t0 | wc -l")) == 5_000
    assert int(segment.sh("a", f"ip -{version} route show proto 74 | wc -l")) == 5_002, "and the halves of the pool"
    assert gateway.notes.read_bytes() == notes
    assert gateway.notes.stat().st_ino == written.st_ino, "the file of notes was not written again"
    gateway.kill()
    assert Gateway(segment, "a", tmp_path).close() == []
    assert state(segment, "a") == before


def test_what_is_not_ours_stays(segment: Segment, tmp_path: Path) -> None:
    segment.sh(
        "a",
        "ip neigh add proxy 10.77.0.9 dev in0; ip route add 10.77.0.10/32 dev in0; ip route add 172.16.0.0/12 dev in0",
    )
    before = state(segment, "a")
    gateway = Gateway(segment, "a", tmp_path)
    gateway.do("acquired", "10.77.0.11", "10.77.0.10")
    gateway.do("released", "10.77.0.11", "10.77.0.10")
    gateway.kill()
    assert Gateway(segment, "a", tmp_path).close() == []
    assert state(segment, "a") == before


def _refusal(tmp_path: Path, interface: str, kind: type[Exception], *, prepare: str = "true") -> str:
    told: list[str] = []

    async def body() -> None:
        sh("ip link add in0 type veth peer name far0; ip link set in0 up; ip link set far0 up")
        sh("ip addr add 192.168.9.1/24 dev in0")
        sh(f"cd /proc/sys/net; {prepare}")
        owner = await Ownership.claim(tmp_path / "owned.json")
        with pytest.raises(kind) as caught:
            Announcer.create("arp", interface, (), owner, told.append, pools=POOLS, tunnel="t0")
        (tmp_path / "text").write_text(str(caught.value))
        assert await owner.release() == []

    in_namespace(body)
    return (tmp_path / "text").read_text()


def test_a_missing_interface_is_named(tmp_path: Path) -> None:
    assert _refusal(tmp_path, "nope0", RtnlFailed) == "there is no interface nope0"


def test_an_interface_without_neighbours_is_refused(tmp_path: Path) -> None:
    assert "has no Ethernet address" in _refusal(tmp_path, "tun0", RtnlFailed, prepare="ip tuntap add tun0 mode tun")


def test_a_kernel_that_does_not_forward_is_refused(tmp_path: Path) -> None:
    text = _refusal(tmp_path, "in0", StartFailed)
    assert "net/ipv4/conf/in0/forwarding is 0" in text
    assert "forward.enabled = true" in text


def test_an_interface_without_ipv6_is_refused(tmp_path: Path) -> None:
    prepare = "echo 1 >ipv4/ip_forward; ip link set in0 mtu 1000"  # less than IPv6 can do with
    text = _refusal(tmp_path, "in0", StartFailed, prepare=prepare)
    assert "in0 has no IPv6" in text


def _documented(name: str) -> str:
    """The shell program of that name, as docs/return-traffic.md prints it."""
    text = (Path(__file__).parents[2] / "docs" / "return-traffic.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if f"/{name}" in block)


def test_the_documented_program_keeps_host_routes_through_the_tunnel(tmp_path: Path) -> None:
    async def body() -> None:
        sh("ip link add jumpvpn0 type veth peer name far0; ip link set far0 up; ip link set jumpvpn0 up")
        sh("ip route add 10.77.9.9/32 dev jumpvpn0 proto 74")  # of a killed predecessor
        program = tmp_path / "jumpvpn-route"
        program.write_text(_documented("jumpvpn-route"))
        program.chmod(0o755)
        owner, told = await Ownership.claim(tmp_path / "owned.json"), list[str]()
        announcer = Announcer.create("command", None, (str(program),), owner, told.append, pools=POOLS, tunnel="t0")
        job = asyncio.ensure_future(announcer.run())
        announcer.acquired([*many(4, 300), *many(6, 2)])
        await announcer.settled()
        listing = "ip route show proto 74; ip -6 route show proto 74"
        assert len(sh(listing).splitlines()) == 302
        announcer.released(["10.77.0.17/16", "fd77::10", "10.77.200.1"])
        await announcer.settled()
        assert len(sh(listing).splitlines()) == 300
        assert "10.77.0.17 " not in sh(listing)
        job.cancel()
        await asyncio.wait([job])
        await announcer.close()
        assert sh(listing) == ""
        assert told == []
        assert await owner.release() == []

    in_namespace(body)


def test_the_documented_exabgp_process_follows_host_routes(tmp_path: Path) -> None:
    async def body() -> None:
        program = tmp_path / "inner-routes"
        program.write_text(_documented("inner-routes"))
        process = await asyncio.create_subprocess_exec(
            "env", f"TMPDIR={tmp_path}", "sh", str(program), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        sh("ip link add jumpvpn0 type veth peer name far0; ip link set far0 up; ip link set jumpvpn0 up")
        sh("ip -6 route add fd77::5 dev jumpvpn0 proto 74; ip route add 10.77.0.5 dev jumpvpn0 proto 74")
        heard = {await process.stdout.readline(), await process.stdout.readline()}
        assert heard == {b"announce route fd77::5/128 next-hop self\n", b"announce route 10.77.0.5/32 next-hop self\n"}
        sh("ip route del 10.77.0.5")
        assert await process.stdout.readline() == b"withdraw route 10.77.0.5/32 next-hop self\n"
        sh("ip link del jumpvpn0")
        assert await process.stdout.readline() == b"withdraw route fd77::5/128 next-hop self\n"
        process.kill()
        await process.wait()

    in_namespace(body)
