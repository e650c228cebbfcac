"""Each operation of the lab does what it says, on plain and on emulated links, with ordinary UDP and before any VPN."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from jumpvpn.lab import GATEWAY_PUBLIC, SERVER_INNER, SERVER_PUBLIC, UPLINKS, Lab, LabError, Link

pytestmark = pytest.mark.netns

# Answers each datagram with the source that it saw and how many datagrams it has seen.
WITNESS = f"""
import json, socket
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.bind(("{SERVER_PUBLIC}", 7100))
print("ready", flush=True)
seen = 0
while True:
    data, (address, port) = link.recvfrom(2048)
    seen += 1
    link.sendto(json.dumps([address, port, seen]).encode(), (address, port))
"""

# Keeps one socket; for each line "seconds" it sends a datagram and prints the answer, "silence", or the error.
ASKER = f"""
import socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if len(sys.argv) > 1:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
link.connect(("{SERVER_PUBLIC}", 7100))
for line in sys.stdin:
    link.settimeout(float(line))
    try:
        link.send(b"who am I?")
        answer = link.recv(2048).decode()
    except TimeoutError:
        answer = "silence"
    except OSError as error:
        answer = type(error).__name__
    print(answer, flush=True)
"""

# Long enough for any answer on a busy machine; short enough for a silence that is expected.
PATIENT, SHORT = 5.0, 0.25


class Asker:
    """A client's UDP socket, optionally bound to an interface."""

    def __init__(self, lab: Lab, *interface: str) -> None:
        self.process = lab.exec(
            "client",
            [sys.executable, "-c", ASKER, *interface],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, seconds: float = PATIENT) -> str:
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return str(self.process.stdout.readline().strip())

    def source(self) -> tuple[str, int, int]:
        address, port, seen = json.loads(self.ask())
        return address, port, seen


@pytest.fixture(scope="module", params=["plain", "emulated"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    link = Link() if request.param == "plain" else Link.with_delay(1)
    with Lab(wifi=link, lte=link) as lab:
        witness = lab.exec("server", [sys.executable, "-c", WITNESS], stdout=subprocess.PIPE)
        assert witness.stdout.readline() == b"ready\n"
        yield lab


@pytest.fixture(autouse=True)
def _mended(lab: Lab) -> Iterator[None]:
    yield
    for name in UPLINKS:
        lab.restore(name)


def client_state(lab: Lab, what: str, *selection: str) -> list[dict[str, Any]]:
    state: list[dict[str, Any]] = json.loads(lab.run("client", ["ip", "-j", what, "show", *selection]).stdout)
    return state


def default_route(lab: Lab, interface: str) -> list[dict[str, Any]]:
    return client_state(lab, "route", "default", "dev", interface)


@pytest.mark.parametrize("interface", ["wlan0", "wwan0"])
@pytest.mark.parametrize("host", [GATEWAY_PUBLIC, SERVER_PUBLIC])
def test_both_uplinks_reach_gateway_and_server(lab: Lab, interface: str, host: str) -> None:
    lab.run("client", ["ping", "-c1", "-W5", "-I", interface, host])


def test_private_network_is_out_of_reach_without_tunnel(lab: Lab) -> None:
    lab.run("gateway", ["ping", "-c1", "-W5", SERVER_INNER])
    assert lab.run("client", ["ping", "-c1", "-W1", SERVER_INNER], check=False).returncode == 1


def test_server_sees_the_routers_address(lab: Lab) -> None:
    for uplink in UPLINKS.values():
        assert Asker(lab, uplink.interface).source()[0] in uplink.nat_addresses


def test_gateway_answers_from_its_public_address(lab: Lab) -> None:
    server = lab.python("gateway", "jumpvpn.lab.traffic.serve", stdout=subprocess.PIPE)
    assert json.loads(server.stdout.readline()) == {"ready": True}
    out = lab.directory / "gateway-echo"
    arguments = ["--udp", "--server", GATEWAY_PUBLIC, "--seconds", "0.05", "--out", str(out)]
    client = lab.python("client", "jumpvpn.lab.traffic.echo", *arguments, stdout=subprocess.PIPE)
    report = json.loads(client.communicate()[0].splitlines()[-1])
    assert report["received"] == report["sent"] > 0


def test_down_is_announced_and_the_other_uplink_takes_over(lab: Lab) -> None:
    assert Asker(lab).source()[0] in UPLINKS["wifi"].nat_addresses
    monitor = lab.exec("client", ["ip", "monitor", "link"], stdout=subprocess.PIPE, text=True)
    wait_for_monitor(lab, monitor)
    change = lab.down("wifi")
    assert change.before_ns < change.after_ns
    assert any("wlan0" in line and "state DOWN" in line for line in iter(monitor.stdout.readline, ""))
    assert Asker(lab).source()[0] in UPLINKS["lte"].nat_addresses
    lab.restore("wifi")
    assert Asker(lab).source()[0] in UPLINKS["wifi"].nat_addresses


def test_lost_carrier_keeps_the_interface_up(lab: Lab) -> None:
    lab.down("wifi", carrier=True)
    flags = client_state(lab, "link", "dev", "wlan0")[0]["flags"]
    assert "NO-CARRIER" in flags
    assert "UP" in flags
    lab.restore("wifi")
    assert Asker(lab, "wlan0").source()[0] in UPLINKS["wifi"].nat_addresses


def test_blackhole_is_silent(lab: Lab) -> None:
    asker = Asker(lab, "wlan0")
    asker.source()
    monitor = lab.exec("client", ["ip", "monitor", "link", "address", "route"], stdout=subprocess.PIPE, text=True)
    wait_for_monitor(lab, monitor)
    lab.blackhole("wifi")
    assert asker.ask(SHORT) == "silence"
    assert not select.select([monitor.stdout], [], [], 0)[0]
    assert Asker(lab, "wwan0").source()[0] in UPLINKS["lte"].nat_addresses
    lab.restore("wifi")
    assert asker.source()[0] in UPLINKS["wifi"].nat_addresses


def test_one_way_blackholes_differ_in_what_arrives(lab: Lab) -> None:
    asker = Asker(lab, "wlan0")
    before = asker.source()[2]
    lab.blackhole("wifi", "up")
    assert asker.ask(SHORT) == "silence"
    lab.restore("wifi")
    assert asker.source()[2] == before + 1
    lab.blackhole("wifi", "down")
    assert asker.ask(SHORT) == "silence"
    lab.restore("wifi")
    assert asker.source()[2] == before + 3


def test_rebinding_changes_the_port_at_once_and_the_address_on_request(lab: Lab) -> None:
    asker = Asker(lab, "wlan0")
    address, port, _ = asker.source()
    for _ in range(6):
        lab.rebind("wifi")
        new_address, new_port, _ = asker.source()
        assert (new_address, new_port != port) == (address, True)
        port = new_port
    lab.rebind("wifi", address=True)
    assert asker.source()[0] != address
    lab.rebind("wifi", address=True)
    assert asker.source()[0] == address


def test_address_gone_takes_the_routes_along(lab: Lab) -> None:
    lab.address_gone("wifi")
    assert client_state(lab, "address", "dev", "wlan0")[0].get("addr_info", []) == []
    assert default_route(lab, "wlan0") == []
    lab.restore("wifi")
    assert Asker(lab, "wlan0").source()[0] in UPLINKS["wifi"].nat_addresses


def test_route_gone_keeps_the_address(lab: Lab) -> None:
    lab.route_gone("wifi")
    assert client_state(lab, "address", "dev", "wlan0")[0]["addr_info"][0]["local"] == UPLINKS["wifi"].client_address
    assert default_route(lab, "wlan0") == []
    lab.restore("wifi")
    assert [route["metric"] for route in default_route(lab, "wlan0")] == [100]


def test_several_cuts_are_restored_together(lab: Lab) -> None:
    for cut in (lab.route_gone, lab.address_gone, lab.blackhole, lab.down):
        cut("wifi")
    lab.down("wifi", carrier=True)
    lab.restore("wifi")
    assert Asker(lab, "wlan0").source()[0] in UPLINKS["wifi"].nat_addresses


def test_unknown_names_are_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match="no uplink is called 'dsl'"):
        lab.down("dsl")
    with pytest.raises(LabError, match="no direction is called 'left'"):
        lab.blackhole("wifi", "left")
    with pytest.raises(LabError, match="no namespace is called 'moon'"):
        lab.run("moon", ["true"])
    with pytest.raises(LabError, match=r"in client: false: exit 1"):
        lab.run("client", ["false"])


def wait_for_monitor(lab: Lab, monitor: "subprocess.Popen[str]") -> None:
    """Return when the monitor is listening: it shows a change that we make and take back."""
    while not select.select([monitor.stdout], [], [], 0.05)[0]:
        lab.run("client", ["ip", "link", "set", "lo", "down"])
        lab.run("client", ["ip", "link", "set", "lo", "up"])
        lab.run("client", ["ip", "route", "add", "blackhole", "192.0.2.99"])
        lab.run("client", ["ip", "route", "del", "blackhole", "192.0.2.99"])
    while select.select([monitor.stdout], [], [], 0.1)[0]:
        assert monitor.stdout.readline()
