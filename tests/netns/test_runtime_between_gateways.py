"""Clients at two gateways of one segment reach each other, and an inner source from the segment reaches no more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from segment import BOTH, INNER, PEER, POOLS, SERVER, Gateway, Segment, Talker, call, echoing

from jumpvpn.runtime import nft
from jumpvpn.runtime.nat import PASSED_HOPS, Forwarding, ruleset
from jumpvpn.runtime.routing import table_name

pytestmark = pytest.mark.netns
NOBODY = {4: "10.77.0.77", 6: "fd77::77"}
OWN = {4: "10.77.0.1", 6: "fd77::1"}  # the gateways' own inner address
GATEWAY = {4: "192.168.9.1", 6: "fd09::1"}  # a, on the segment

# Prints the text of every datagram that comes; "listening" when it can hear.
LISTENER = """
import select, socket
links = []
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    link = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    link.bind((address, 7100))
    links.append(link)
print("listening", flush=True)
while True:
    for link in select.select(links, [], [])[0]:
        print(link.recv(100).decode(), flush=True)
"""

# For each line "source destination text" one datagram, whoever has the source; then "sent", or why not.
SENDER = """
import socket, sys
for line in sys.stdin:
    source, destination, text = line.split()
    is_new = ":" in source
    with socket.socket(socket.AF_INET6 if is_new else socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.setsockopt(*((socket.IPPROTO_IPV6, 75) if is_new else (socket.IPPROTO_IP, 19)), 1)  # TRANSPARENT
        link.setsockopt(*((socket.IPPROTO_IPV6, 25) if is_new else (socket.IPPROTO_IP, 11)), 1)  # RECVERR
        link.bind((source, 0))
        link.settimeout(20)
        link.connect((destination, 7100))
        link.send(text.encode())
        if text != "tell-errors":
            print("sent", flush=True)
            continue
        try:
            link.recv(100)
        except OSError as error:
            print(error.strerror, flush=True)
"""


@pytest.fixture
def gateways(segment: Segment, tmp_path: Path) -> dict[str, Gateway]:
    """The client is at a, the other one at b."""
    gateways = {name: Gateway(segment, name, tmp_path) for name in ("a", "b")}
    gateways["a"].do("acquired", *INNER.values())
    gateways["b"].do("acquired", *PEER.values())
    segment.leave_by("b", "peer")
    return gateways


def listen(segment: Segment, name: str) -> Talker:
    listener = Talker(segment, name, LISTENER)
    assert listener.hear() == "listening"
    return listener


def call_peer(segment: Segment, version: int) -> Talker:
    """A TCP connection from one client to the other, which echoes."""
    echoing(segment, "peer")
    return call(segment, version, PEER)


def send(sender: Talker, source: str, destination: str, text: str) -> None:
    assert sender.ask(f"{source} {destination} {text}") == "sent"


def stick(segment: Segment, name: str, address: str, to: str) -> None:
    """Let a host believe for ever that ``address`` is at gateway ``to``."""
    device = "eth0" if name == "server" else "in0"
    segment.sh(name, f"ip neigh replace {address} lladdr {segment.hardware(to, 'in0')} dev {device} nud permanent")


@BOTH
@pytest.mark.usefixtures("gateways")
def test_clients_at_two_gateways_reach_each_other(segment: Segment, version: int) -> None:
    segment.sh("client", f"ping -c 2 -W 5 -I {INNER[version]} {PEER[version]}")
    segment.sh("peer", f"ping -c 2 -W 5 -I {PEER[version]} {INNER[version]}")
    assert call_peer(segment, version).ask("hello") == "hello"
    assert segment.count("a", "between") > 0
    assert segment.count("b", "between") > 0


@BOTH
def test_a_connection_between_clients_goes_on_wherever_they_go(
    segment: Segment, gateways: dict[str, Gateway], version: int
) -> None:
    caller = call_peer(segment, version)
    places = {"client": "a", "peer": "b"}
    for who, where in (("peer", "a"), ("client", "b"), ("peer", "b"), ("client", "a")):
        inner = INNER if who == "client" else PEER
        gateways[where].do("acquired", *inner.values())  # both gateways have it until the old one has heard of it
        segment.leave_by(where, who)
        gateways[places[who]].do("released", *inner.values())
        places[who] = where
        assert caller.ask(f"{who} is at {where}") == f"{who} is at {where}"
        before = segment.count("a", "between") + segment.count("b", "between")
        assert caller.ask("again") == "again"
        crossed = segment.count("a", "between") + segment.count("b", "between") > before
        assert crossed == (places["client"] != places["peer"]), "what stays at one gateway crosses no segment"


@BOTH
def test_a_source_that_is_here_does_not_come_from_the_segment(
    segment: Segment, gateways: dict[str, Gateway], version: int
) -> None:
    gateways["a"].do("acquired", NOBODY[version])
    gateways["a"].do("acquired", PEER[version])  # and the gateway's own address is always here
    listener, sender = listen(segment, "client"), Talker(segment, "server", SENDER)
    for forged in (NOBODY[version], PEER[version], OWN[version], INNER[version]):
        send(sender, forged, INNER[version], "forged")
    send(sender, SERVER[version], INNER[version], "honest")
    assert listener.hear() == "honest"
    gateways["a"].do("released", NOBODY[version])
    send(sender, NOBODY[version], INNER[version], "elsewhere")
    assert listener.hear() == "elsewhere", "it may be a client of another gateway"


@BOTH
def test_an_inner_source_from_the_segment_reaches_inner_addresses_only(
    segment: Segment, gateways: dict[str, Gateway], version: int
) -> None:
    """What the gateway would forward for an honest source of the segment, it does not forward for an inner one."""
    far = {4: "172.16.0.9", 6: "fd16::9"}[version]
    segment.sh("client", f"ip addr add {far} dev lo")
    segment.sh("a", f"ip route add {far} dev t0; ip route add {far} dev in0 metric 4000")
    segment.sh("a", f"ip neigh replace {far} lladdr {segment.hardware('client', 'ta')} dev t0 nud permanent")
    segment.sh("server", f"ip route add {far} via {GATEWAY[version]} dev eth0")
    listener, sender = listen(segment, "client"), Talker(segment, "server", SENDER)
    send(sender, PEER[version], far, "inner")
    send(sender, SERVER[version], far, "honest")
    assert listener.hear() == "honest"
    gateways["a"].do("released", INNER[version])
    send(sender, PEER[version], far, "inner")
    send(sender, SERVER[version], far, "honest")
    assert listener.hear() == "honest"


@BOTH
@pytest.mark.usefixtures("gateways")
def test_what_is_for_nobody_is_answered_by_the_kernel_of_the_first_gateway(segment: Segment, version: int) -> None:
    sender = Talker(segment, "client", SENDER)
    assert sender.ask(f"{INNER[version]} {NOBODY[version]} tell-errors") == "No route to host"
    for name in ("a", "b"):
        assert segment.count(name, f"tunnel{version}") == 0
        assert segment.count(name, f"passed{version}") == (1 if name == "a" else 0)


@BOTH
@pytest.mark.usefixtures("gateways")
def test_gateways_that_each_think_the_other_has_it_give_it_up_soon(segment: Segment, version: int) -> None:
    stick(segment, "a", NOBODY[version], to="b")
    stick(segment, "b", NOBODY[version], to="a")
    stick(segment, "server", NOBODY[version], to="a")
    sender, client = Talker(segment, "server", SENDER), Talker(segment, "client", SENDER)
    assert sender.ask(f"{SERVER[version]} {NOBODY[version]} tell-errors") == "No route to host"
    rounds = _passed(segment, version)
    assert 2 <= rounds <= PASSED_HOPS + 2
    send(client, INNER[version], NOBODY[version], "never")
    listener = listen(segment, "server")
    send(client, INNER[version], SERVER[version], "honest")
    assert listener.hear() == "honest"
    assert _passed(segment, version) <= rounds + 2, "its own gateway knows where the source is"


def _passed(segment: Segment, version: int) -> int:
    return sum(segment.count(name, f"passed{version}") for name in ("a", "b"))


@BOTH
def test_what_another_gateway_still_sends_here_is_passed_on(
    segment: Segment, gateways: dict[str, Gateway], version: int
) -> None:
    """The server plays a third gateway that believes its client's peer to be where it was."""
    gateways["a"].do("acquired", PEER[version])
    gateways["b"].do("released", PEER[version])
    segment.leave_by("a", "peer")
    stick(segment, "server", PEER[version], to="b")
    listener, sender = listen(segment, "peer"), Talker(segment, "server", SENDER)
    send(sender, NOBODY[version], PEER[version], "late")
    assert listener.hear() == "late"
    gateways["b"].kill()
    segment.sh("b", "ip link set t0 down; ip addr flush dev t0")  # the tunnel goes with its process
    send(sender, NOBODY[version], PEER[version], "later")
    assert listener.hear() == "later"
    assert segment.count("b", f"passed{version}") == 2
    assert segment.count("b", "redirects") == 0


@BOTH
def test_nobody_is_redirected(segment: Segment, gateways: dict[str, Gateway], version: int) -> None:
    """A host that sends through a gateway, and not to the neighbour, learns nothing from it: it may be wrong soon."""
    segment.sh("server", f"ip route add {PEER[version]} via {GATEWAY[version]} dev eth0")
    listener, sender = listen(segment, "peer"), Talker(segment, "server", SENDER)
    for text in ("one", "two"):
        send(sender, SERVER[version], PEER[version], text)
        assert listener.hear() == text
    assert segment.count("a", f"passed{version}") == 2
    assert segment.count("a", "redirects") == 0
    settings = "cd /proc/sys/net; cat ipv4/conf/in0/accept_redirects ipv6/conf/in0/accept_redirects"
    assert segment.sh("a", settings).split() == ["0", "0"]
    gateways["a"].close()
    assert segment.sh("a", "nft list tables") == "table inet seen\n"


@BOTH
def test_a_tunnel_that_was_down_gets_its_routes_back(
    segment: Segment, gateways: dict[str, Gateway], version: int
) -> None:
    held = segment.sh("a", f"ip -{version} route show proto 74 dev t0")
    assert INNER[version] in held
    segment.sh("a", "ip link set t0 down")
    assert segment.sh("a", f"ip -{version} route show proto 74 dev t0") == ""
    segment.sh("a", "ip link set t0 up")
    gateways["a"].do("acquired", *INNER.values())  # done when all that the tunnel's return caused is done
    assert segment.sh("a", f"ip -{version} route show proto 74 dev t0") == held


@BOTH
def test_routes_of_a_routing_daemon_are_believed_too(segment: Segment, version: int) -> None:
    """Mode "command": host routes of what is here lead into the tunnel, learned ones out of the interface inside."""
    rules = nft.replacing(table_name("gw"), ruleset(Forwarding("gw", "t0", POOLS, masquerade=False, inside="in0")))
    other = {"a": {4: "192.168.9.2", 6: "fd09::2"}[version], "b": GATEWAY[version]}
    for name, here, elsewhere in (("a", INNER, PEER), ("b", PEER, INNER)):
        segment.sh(name, f"nft -j -f - <<'END'\n{json.dumps({'nftables': rules})}\nEND")
        segment.sh(name, f"ip route add {here[version]} dev t0; ip route add {elsewhere[version]} via {other[name]}")
    segment.leave_by("b", "peer")
    assert call_peer(segment, version).ask("hello") == "hello"
    segment.sh("server", f"ip route replace {INNER[version]} via {GATEWAY[version]}")
    listener, sender = listen(segment, "client"), Talker(segment, "server", SENDER)
    for forged in (NOBODY[version], INNER[version]):
        send(sender, forged, INNER[version], "forged")
    send(sender, SERVER[version], INNER[version], "honest")
    assert listener.hear() == "honest"


@BOTH
@pytest.mark.usefixtures("gateways")
def test_a_gateway_tells_clients_of_another_that_a_packet_is_too_big(segment: Segment, version: int) -> None:
    segment.sh("b", "ip link set t0 mtu 1300")
    ping = f"ping -{version} -M do -s 1400 -c 1 -W 5 -I {INNER[version]} {PEER[version]}"
    said = segment.sh("client", f"{ping} 2>&1 || true")
    assert re.search(r"mtu ?= ?1300|mtu: ?1300", said, re.IGNORECASE), said


@BOTH
@pytest.mark.usefixtures("gateways")
def test_the_documented_table_keeps_clients_apart(segment: Segment, version: int) -> None:
    text = (Path(__file__).parents[2] / "docs" / "return-traffic.md").read_text(encoding="utf-8")
    table = re.search(r"```\n(table inet apart .*?)```", text, re.DOTALL)
    assert table is not None
    listener, sender = listen(segment, "peer"), Talker(segment, "client", SENDER)
    send(sender, INNER[version], PEER[version], "let")
    assert listener.hear() == "let"
    wide = table[1].replace("10.77.0.0/24", "10.77.0.0/16")
    for name in ("a", "b"):
        segment.sh(name, f"nft -f - <<'END'\n{wide}END")
    send(sender, INNER[version], PEER[version], "kept")
    segment.leave_by("b")  # at one gateway
    send(sender, INNER[version], PEER[version], "kept")
    for name in ("a", "b"):
        segment.sh(name, "nft delete table inet apart")
    send(sender, INNER[version], PEER[version], "again")
    assert listener.hear() == "again"


def test_without_other_gateways_no_inner_source_comes_from_elsewhere() -> None:
    alone = str(ruleset(Forwarding("gw", "t0", ("10.77.0.0/24",), masquerade=False)))
    assert re.findall(r"'(accept|drop)': None", alone) == ["drop"]
    assert "prerouting" not in alone
