"""A lab leaves nothing behind, however its owner ends; labs live side by side; no root is needed."""

import asyncio
import contextlib
import json
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jumpvpn
from jumpvpn.lab import SERVER_PUBLIC, Lab, LabError, Link, namespaces
from jumpvpn.lab.processes import carries_tag, read_text

pytestmark = pytest.mark.netns

# Cleanup gives processes 2 s to end by themselves; the rest is for a busy machine.
PATIENCE_S = 15.0

OWNER = """
import json, sys, time
from jumpvpn.lab import Lab, Link
lab = Lab(wifi=Link.with_delay(1)).open()
child = lab.exec("client", ["sh", "-c", "trap '' TERM; echo x; while :; do sleep 1000; done"], stdout=-1)
child.stdout.readline()
record = json.loads((lab.directory / "lab.json").read_text())
print(json.dumps({"lab": lab.id, "child": child.pid, "keeper": record["keeper"], "rootless": lab.rootless}), flush=True)
time.sleep(1000)
"""

PING_ONCE = f"""
from jumpvpn.lab import Lab, Link
with Lab(wifi=Link.with_delay(1, loss=0.001)) as lab:
    for interface in ("wlan0", "wwan0"):
        lab.run("client", ["ping", "-c1", "-W5", "-I", interface, "{SERVER_PUBLIC}"])
    for operation in (lab.down, lab.restore, lab.blackhole, lab.restore, lab.rebind):
        operation("wifi")
    lab.run("client", ["ping", "-c1", "-W5", "-I", "wlan0", "{SERVER_PUBLIC}"])
    print(lab.rootless)
"""


@contextlib.contextmanager
def owner() -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, Any]]]:
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE)
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def is_alive(pid: int) -> bool:
    state = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return bool(state) and state[0] not in "ZX"


def tagged(lab_id: str) -> list[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if carries_tag(pid, lab_id) and is_alive(pid)]


def wait_until_gone(lab_id: str, *pids: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while tagged(lab_id) or any(map(is_alive, pids)) or (namespaces.state_root() / lab_id).exists():
        assert time.monotonic() < deadline, f"left behind: {tagged(lab_id)}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_owner(number: signal.Signals) -> None:
    with owner() as (process, facts):
        assert is_alive(facts["child"])
        process.send_signal(number)
        process.wait()
        wait_until_gone(facts["lab"], facts["child"], facts["keeper"])


def test_next_start_sweeps_what_a_killed_keeper_left() -> None:
    with owner() as (process, facts):
        handle = os.pidfd_open(facts["keeper"])
        os.kill(facts["keeper"], signal.SIGKILL)
        assert select.select([handle], [], [], PATIENCE_S)[0]
        os.close(handle)
        process.kill()
        process.wait()
        assert is_alive(facts["child"])
        with Lab() as lab:
            assert not is_alive(facts["child"])
            assert not (namespaces.state_root() / facts["lab"]).exists()
            assert [record["id"] for record in namespaces.living()].count(lab.id) == 1
        wait_until_gone(facts["lab"], facts["child"], facts["keeper"])


def test_sweep_spares_living_labs() -> None:
    with Lab() as lab:
        child = lab.exec("client", ["sleep", "1000"])
        assert lab.id not in namespaces.sweep()
        assert child.poll() is None


def test_exception_in_the_block_removes_the_lab() -> None:
    seen: list[Any] = []

    def scenario() -> None:
        with Lab() as lab:
            seen.extend((lab.id, lab.exec("gateway", ["sleep", "1000"])))
            raise RuntimeError("scenario failed")

    with pytest.raises(RuntimeError, match="scenario failed"):
        scenario()
    assert seen[1].returncode == -signal.SIGTERM
    wait_until_gone(seen[0])


def test_program_that_is_just_being_started_ends_with_the_lab() -> None:
    for _ in range(10):
        with Lab() as lab:
            lab_id, child = lab.id, lab.exec("gateway", ["sleep", "1000"])
        assert child.returncode is not None
        assert not tagged(lab_id)


def test_failed_construction_removes_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpvpn.lab.topology.addressing", lambda: {"client": "ip link set nothing up"})
    before = namespaces.living()
    with pytest.raises(LabError, match="client: Cannot find device"):
        Lab().open()
    assert namespaces.living() == before


def test_closed_lab_refuses_and_closes_twice() -> None:
    lab = Lab().open()
    lab.close()
    lab.close()
    with pytest.raises(LabError, match="not open"):
        lab.down("wifi")


def test_labs_live_side_by_side() -> None:
    ping = ["ping", "-c1", "-W5", "-I", "wlan0", SERVER_PUBLIC]
    with Lab(wifi=Link.with_delay(1)) as one, Lab() as other:
        assert one.id != other.id
        one.blackhole("wifi")
        other.run("client", ping)
        one.restore("wifi")
        other.close()
        one.run("client", ping)


def test_grandchildren_end_with_the_lab() -> None:
    with Lab() as lab:
        lab_id = lab.id
        shell = lab.exec(
            "client", ["sh", "-c", "sleep 1000 & echo $!; setsid sleep 1000 & wait"], stdout=subprocess.PIPE
        )
        grandchild = int(shell.stdout.readline())
    assert not is_alive(grandchild)
    wait_until_gone(lab_id)


async def test_asyncio_children_run_inside_and_end_with_the_lab() -> None:
    lab = await asyncio.to_thread(Lab().open)
    try:
        shown = await lab.exec_async("server", ["ip", "-br", "address"], stdout=asyncio.subprocess.PIPE)
        assert b"10.99.0.2/24" in (await shown.communicate())[0]
        sleeper = await lab.exec_async("server", ["sleep", "1000"])
    finally:
        await asyncio.to_thread(lab.close)
    assert await sleeper.wait() == -signal.SIGTERM


def test_lab_from_another_process_is_entered_by_its_id() -> None:
    with Lab() as lab:
        command = [sys.executable, "-m", "jumpvpn.lab", "exec", lab.id, "server", "--", "ip", "-br", "address"]
        assert "10.99.0.2/24" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, "no living lab" in done.stderr) == (1, True)


def test_missing_programs_are_named_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="Debian packages: conntrack ethtool iproute2 nftables util-linux"):
        Lab().open()


def test_lab_needs_no_root() -> None:
    """Run as an ordinary user; the lab uses nothing but the standard library, so any Python 3.11 serves."""
    nobody = pwd.getpwnam("nobody")
    source = str(Path(jumpvpn.__file__).parents[1])
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    interpreter = usable_interpreter(identity, source)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [interpreter, "-c", PING_ONCE],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        **identity,
    )
    if "no network namespace can be made" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert (done.stdout, done.stderr) == ("True\n", "")


def usable_interpreter(identity: dict[str, Any], source: str) -> str:
    """Return a Python that the ordinary user may run and that finds our sources; skips the test if there is none."""
    probe = f"import sys, pathlib; assert sys.version_info >= (3, 11); next(pathlib.Path({source!r}).iterdir())"
    for candidate in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "-c", probe], check=False, capture_output=True, **identity).returncode == 0:
                return candidate
    pytest.skip("an ordinary user can read neither a Python 3.11 nor our sources here")


def test_refusal_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from jumpvpn.lab import keeper

    monkeypatch.setattr(keeper, "read_text", lambda path: "0" if path.endswith("max_user_namespaces") else "1000")
    message = keeper.explain(PermissionError(1, "Operation not permitted"))
    assert "max_user_namespaces is 0" in message
    assert "Run as root" in message


def test_keeper_ends_within_a_bound_once_its_input_closes() -> None:
    with Lab() as lab:
        keeper = json.loads((lab.directory / "lab.json").read_text())["keeper"]
        handle = os.pidfd_open(keeper)
    try:
        assert select.select([handle], [], [], PATIENCE_S)[0]
    finally:
        os.close(handle)
