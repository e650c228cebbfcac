"""A node that cannot run says why in one line, exits with a code, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import PORT, Machine

from jumpvpn.audit.auditor import audit_files

pytestmark = pytest.mark.netns
RUN, USAGE = 1, 2
# The rest of a page that a file holds already stays writable on a full disk.
PAD = """
size=$(stat -c %s small/events.jsonl); head -c $((4095 - size % 4096)) /dev/zero | tr '\\0' x >> small/events.jsonl
echo >> small/events.jsonl"""
FILL = "head -c 1M /dev/zero > {}/rest 2>/dev/null || true"

# A whole and honest handshake of a device that no list holds.
KNOCK = f"""
import sys, time
from jumpvpn._native import Plane, generate_private_key
from jumpvpn.config import decode_key
plane = Plane(role="client", private_key=generate_private_key(), cluster_key=b"", tun="", mtu=1400,
    queue_bytes=65536, replay_bytes=65536, replay_ms=100)
socket, _ = plane.open_socket(bind="127.0.0.1:0")
plane.begin_handshake(socket=socket, gateway="127.0.0.1:{PORT}", gateway_key=decode_key(sys.argv[1]),
    timestamp_ns=time.time_ns(), credential=b"")
time.sleep(0.1)
"""
# Where a node's loop calls code of ours: the engine, a callback of the event loop, a job beside the loop.
DEFECTS = [
    ("client", "import jumpvpn.engine.client as m; m.ClientEngine.handle = lambda *_: {}['oops']"),
    ("client", "import jumpvpn.client.handshake as m; m.Handshake.run = lambda *_: {}['oops']"),
    ("gateway", "import jumpvpn.gateway.executor as m; m.GatewayExecutor.consume = lambda *_: {}['oops']"),
]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        machine.write_gateway()
        machine.write_client()
        yield machine
    journals = [path for path in tmp_path.rglob("*.jsonl") if path.is_file()]
    report = audit_files(journals)
    assert report.sound, report.explain()


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr that holds ``words``, and the exit code."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("jumpvpn: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def fails(machine: Machine, *args: str, code: int = RUN, words: tuple[str, ...], prefix: str = "") -> None:
    """The command is refused, and the machine is as before."""
    before = machine.installed(), machine.stray_files()
    refused(machine.jumpvpn(*args, prefix=prefix), code, *words)
    assert (machine.installed(), machine.stray_files()) == before


GATEWAY = ("gateway", "--config", "gateway.toml")
CLIENT = ("up", "--config", "client.toml")


def test_second_gateway_meets_port_state_socket_journal_and_interface_of_the_first(machine: Machine) -> None:
    machine.start_gateway()
    before = machine.installed()
    other = {"state": "other", "control": "other.sock", "events": "other.jsonl", "tun": "jv9", "port": PORT + 1}
    for same, words in (
        ("port", (f"cannot listen on 127.0.0.1:{PORT}", "Address already in use", "another gateway")),
        ("state", ("already running (process ", "'jumpvpn down'")),
        ("control", ("already serves", "gateway.sock", "'jumpvpn down'")),
        ("events", ("gateway.jsonl", "in use by another process")),
        ("tun", ("cannot create the tunnel interface jv0", "busy")),
    ):
        changes = {key: value for key, value in other.items() if key != same}
        machine.write_gateway("second.toml", **changes)
        fails(machine, "gateway", "--config", "second.toml", words=words)
    assert machine.installed() == before, "the first one's tunnel, table and sockets are untouched"
    status = json.loads(machine.jumpvpn("status", "--json", "--control", "gateway.sock").stdout)
    assert status["node"] == "gw1"


def test_second_client(machine: Machine) -> None:
    first = machine.start_client()
    fails(machine, *CLIENT, words=("already running", "'jumpvpn down'"))
    machine.write_client("second.toml", state="other", control="other.sock", events="other.jsonl")
    fails(machine, "up", "--config", "second.toml", words=("cannot create the tunnel interface jv1", "busy"))
    assert first.poll() is None


def test_missing_tun_device(machine: Machine) -> None:
    machine.sh("mount -t tmpfs tmpfs /dev/net")
    for args in (GATEWAY, CLIENT):
        fails(machine, *args, words=("/dev/net/tun is missing", "modprobe tun"))


def test_tun_device_that_is_none(machine: Machine) -> None:
    machine.sh("mount --bind /dev/null /dev/net/tun")
    fails(machine, *GATEWAY, words=("cannot create the tunnel interface jv0",))


def test_no_privilege(machine: Machine) -> None:
    without = "setpriv --bounding-set -net_admin --inh-caps -net_admin"
    for args in (GATEWAY, CLIENT):
        fails(machine, *args, prefix=without, words=("needs root or CAP_NET_ADMIN", "sudo"))


def test_unreadable_configuration(machine: Machine) -> None:
    machine.sh("chmod 000 gateway.toml")
    by_modes = "setpriv --bounding-set -dac_override,-dac_read_search --inh-caps -dac_override,-dac_read_search"
    fails(machine, *GATEWAY, prefix=by_modes, code=USAGE, words=("gateway.toml", "not readable"))


def test_key_files(machine: Machine) -> None:
    machine.sh("chmod 644 gateway.key")
    fails(machine, *GATEWAY, code=USAGE, words=("others may read the private key", "chmod 600"))
    machine.sh("chmod 600 gateway.key; echo nonsense > gateway.key")
    fails(machine, *GATEWAY, code=USAGE, words=("holds no private key",))
    machine.sh("rm client.key")
    fails(machine, *CLIENT, code=USAGE, words=("there is no key file", "jumpvpn keygen"))


def test_malformed_configuration_names_every_key_at_once(machine: Machine) -> None:
    machine.write_gateway(more="mtu = 3\nstore = 'paper'", tunnel="mtu = 5")
    done = machine.jumpvpn(*GATEWAY)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.count("jumpvpn: error:") == 1
    assert "3 problems" in done.stderr.splitlines()[0]
    for words in ("mtu: unknown key", "store = ", "tunnel.mtu = 5"):
        assert words in done.stderr
    machine.sh("echo '[[[' > client.toml")
    fails(machine, *CLIENT, code=USAGE, words=("client.toml",))


def test_unreadable_store(machine: Machine) -> None:
    machine.sh("mkdir -m 700 gateway; head -c 8192 /dev/urandom > gateway/sessions.sqlite")
    fails(machine, *GATEWAY, words=("sessions.sqlite", "damaged or not a session store", "move it away"))
    with sqlite3.connect(machine.directory / "other.sqlite") as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    machine.sh("mv other.sqlite gateway/sessions.sqlite")
    fails(machine, *GATEWAY, words=("not a session store of Jumping VPN",))
    machine.sh("rm gateway/sessions.sqlite; echo short > gateway/cluster.key; chmod 644 gateway/cluster.key")
    fails(machine, *GATEWAY, code=USAGE, words=("others may read", "chmod 600", "cluster.key"))
    machine.sh("chmod 600 gateway/cluster.key")
    fails(machine, *GATEWAY, code=USAGE, words=("cluster.key holds no cluster key",))


def test_full_disk_for_events_at_start(machine: Machine) -> None:
    machine.sh(f"mkdir full; mount -t tmpfs -o size=64k tmpfs full; {FILL.format('full')}")
    machine.write_gateway(events="full/events.jsonl")
    machine.write_client(events="full/events.jsonl")
    for args in (GATEWAY, CLIENT):
        fails(machine, *args, words=("events.jsonl", "No space left on device", "free some space"))


def test_full_disk_for_state_at_start(machine: Machine) -> None:
    machine.sh(f"mkdir full; mount -t tmpfs -o size=64k tmpfs full; mkdir full/state; {FILL.format('full')}")
    machine.write_gateway(state="full/state")
    machine.write_client(state="full/state")
    for args in (GATEWAY, CLIENT):
        fails(machine, *args, words=("full/state",))
    machine.sh("rm full/rest")
    gateway = machine.start_gateway()
    gateway.terminate()
    assert gateway.wait(10) == 0, "with space again it starts, and no half-written file stands in the way"


def test_full_disk_for_events_while_running(machine: Machine) -> None:
    """Events are written before anything they tell of: without them a node ends, in order."""
    machine.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6; ip link add up0 type veth peer name far0")
    machine.sh("ip link set far0 up; ip link set up0 up")
    machine.sh("ip addr add 192.0.2.9/24 dev up0")
    machine.sh("mkdir small; mount -t tmpfs -o size=64k tmpfs small")
    before = machine.installed()
    machine.write_client(events="small/events.jsonl", timeout="2s")
    client = machine.start("up", "--config", "client.toml")
    machine.eventually(lambda: machine.sh("ls small").strip() and "node.started" in machine.sh("cat small/*.jsonl"))
    machine.sh(f"{PAD}; {FILL.format('small')}")
    _, said = client.communicate(timeout=20)
    assert client.returncode == RUN
    assert said.startswith("jumpvpn: error: cannot write the event journal")
    assert said.count("\n") == 1
    assert (machine.installed(), machine.stray_files()) == (before, [])
    assert machine.sh("tail -c 1 small/events.jsonl") == "\n", "a line is whole or not there"


def test_full_disk_when_a_stranger_knocks(machine: Machine) -> None:
    """A gateway that cannot record who it refused does not go on as if nothing had happened."""
    machine.sh("mkdir small; mount -t tmpfs -o size=64k tmpfs small")
    before = machine.installed()
    machine.write_gateway(events="small/events.jsonl")
    gateway = machine.start_gateway()
    machine.sh(f"{PAD}; {FILL.format('small')}")
    machine.python(KNOCK, machine.keys["gateway"])
    _, said = gateway.communicate(timeout=20)
    assert gateway.returncode == RUN
    assert said.splitlines()[-1].startswith("jumpvpn: error: cannot write the event journal")
    assert (machine.installed(), machine.stray_files()) == (before, [])


@pytest.mark.parametrize(("role", "broken"), DEFECTS, ids=["engine", "job", "callback"])
def test_defect_in_the_loop_ends_the_node_in_order(machine: Machine, role: str, broken: str) -> None:
    before = machine.installed()
    command, config = ("gateway", "gateway.toml") if role == "gateway" else ("up", "client.toml")
    start = f"""
import sys
{broken}
from jumpvpn.cli.main import app
sys.argv = ["jumpvpn", "{command}", "--config", "{config}"]
app()
"""
    running = machine.start_python(start)
    if role == "gateway":
        assert running.stderr is not None
        assert "listens on" in running.stderr.readline()
        assert "audit.pub" in running.stderr.readline()
        machine.python(KNOCK, machine.keys["gateway"])
    _, said = running.communicate(timeout=20)
    assert running.returncode == RUN
    assert said.startswith("jumpvpn: error: internal error: KeyError: 'oops'")
    assert said.count("\n") == 1
    assert (machine.installed(), machine.stray_files()) == (before, [])


def test_read_only_places(machine: Machine) -> None:
    machine.sh("mkdir frozen; mount -t tmpfs tmpfs frozen; mount -o remount,ro frozen; touch file")
    for place, words in (("frozen/c.sock", "Read-only file system"), ("file/c.sock", "file/c.sock")):
        machine.write_gateway(control=place)
        fails(machine, *GATEWAY, words=("cannot bind the control socket", words))
    machine.write_gateway(state="frozen/state")
    fails(machine, *GATEWAY, words=("cannot create", "frozen/state", "choose another state_dir"))
    machine.write_gateway(events="frozen/e.jsonl")
    fails(machine, *GATEWAY, words=("cannot open the event journal", "Read-only file system"))


def test_pool_too_small(machine: Machine) -> None:
    devices = "\n".join(
        f'[[device]]\nname = "d{number}"\npublic_key = "{key}"' for number, key in enumerate(machine.keys.values())
    )
    machine.write_gateway(tunnel=f'pool = "10.77.0.0/30"\n{devices}')
    fails(machine, *GATEWAY, words=("pool 10.77.0.0/30 has no address left for device 'd1'", "enlarge tunnel.pool"))


def test_unresolvable_gateway_name(machine: Machine) -> None:
    machine.write_client(address=f"nowhere.invalid:{PORT}")
    fails(machine, *CLIENT, words=("no gateway name can be resolved", "nowhere.invalid", "[[gateway]]"))


def test_missing_program(machine: Machine) -> None:
    fails(machine, *GATEWAY, words=("'nft' is missing", "install the package nftables"), prefix="env PATH=/nowhere")


def test_no_uplink_is_a_handshake_that_times_out(machine: Machine) -> None:
    machine.write_client(timeout="1s")
    before = machine.installed()
    done = machine.jumpvpn(*CLIENT)
    assert done.returncode == RUN
    assert done.stderr.startswith("jumpvpn: session ended: handshake_timeout: no transport to any gateway is usable")
    assert done.stderr.count("\n") == 1
    assert (machine.installed(), machine.stray_files()) == (before, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_the_handshake_is_under_way(machine: Machine, number: signal.Signals) -> None:
    before = machine.installed()
    client = machine.start_client()
    client.send_signal(number)
    _, said = client.communicate(timeout=10)
    assert (client.returncode, said.count("\n")) == (0, 1), said
    assert (machine.installed(), machine.stray_files()) == (before, [])


def test_leftovers_of_killed_nodes_are_cleaned_by_the_next_start(machine: Machine) -> None:
    before = machine.installed()
    for start, args in ((machine.start_gateway, GATEWAY), (machine.start_client, CLIENT)):
        killed = start()
        killed.kill()
        killed.wait(10)
        again = start()
        assert machine.jumpvpn("down", "--config", args[-1]).returncode == 0
        assert again.wait(10) == 0
        assert (machine.installed(), machine.stray_files()) == (before, [])
