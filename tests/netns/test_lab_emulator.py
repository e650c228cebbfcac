"""The link emulator on real interfaces: what arrives agrees with what was asked for and with its own counters."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jumpvpn.lab import SERVER_PUBLIC, Lab, LabError, Link
from jumpvpn.lab.measure import EchoLog, load_download, load_echo

pytestmark = pytest.mark.netns

DELAY_MS = 5.0
MESSAGES = 1000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(wifi=Link.with_delay(DELAY_MS), seed=11) as lab:
        server = lab.python("server", "jumpvpn.lab.traffic.serve", stdout=subprocess.PIPE)
        assert json.loads(server.stdout.readline()) == {"ready": True}
        yield lab


@pytest.fixture(autouse=True)
def _unimpaired(lab: Lab) -> Iterator[None]:
    yield
    lab.impair(
        "wifi", delay_ms=DELAY_MS, jitter_ms=0, loss=0, burst_enter=0, duplicate=0, reorder=0, rate_bytes_s=0,
        blackhole=False, mtu=None,
    )  # fmt: skip


def echo(lab: Lab, protocol: str = "udp") -> EchoLog:
    """Exchange 1000 messages, 2000 per second, and return their log."""
    out = lab.directory / "echo"
    arguments = [f"--{protocol}", "--server", SERVER_PUBLIC, "--rate", "2000", "--seconds", "0.5", "--out", str(out)]
    assert lab.python("client", "jumpvpn.lab.traffic.echo", *arguments, stdout=subprocess.DEVNULL).wait() == 0
    return load_echo(out)


def download(lab: Lab, size: int, out: Path, rate: int = 0) -> dict[str, Any]:
    address = f"http://{SERVER_PUBLIC}:8080"
    arguments = ["--url", address, "--bytes", str(size), "--rate", str(rate), "--out", str(out)]
    client = lab.python("client", "jumpvpn.lab.traffic.download", *arguments, stdout=subprocess.DEVNULL)
    assert client.wait() == 0
    return load_download(out).facts


def moved(lab: Lab, before: dict[str, dict[str, int]], direction: str, counter: str) -> int:
    return lab.link_stats("wifi")[direction].get(counter, 0) - before[direction].get(counter, 0)


def within_five_sigma(events: int, trials: int, chance: float) -> bool:
    return abs(events - trials * chance) <= 5 * (trials * chance * (1 - chance)) ** 0.5


def offload(lab: Lab) -> bool:
    return "tcp-segmentation-offload: on" in lab.run("client", ["ethtool", "-k", "wlan0"]).stdout


def test_delay_is_added_in_both_directions(lab: Lab) -> None:
    log = echo(lab)
    whole = log.window(0, 1 << 62)
    assert (whole.lost, whole.duplicated) == (0, 0)
    fastest = min(answer - sent for sent, answer in zip(log.sent, log.answered, strict=True))
    assert fastest / 1e6 >= 2 * DELAY_MS
    assert whole.rtt_p50_ms < 2 * DELAY_MS + 20  # room for a busy machine


def test_random_loss_matches_its_chance_and_the_counters(lab: Lab) -> None:
    before = lab.link_stats("wifi")
    lab.impair("wifi", "up", loss=0.1)
    whole = echo(lab).window(0, 1 << 62)
    assert whole.lost == moved(lab, before, "up", "lost")
    assert moved(lab, before, "down", "lost") == 0
    assert within_five_sigma(whole.lost, whole.sent, 0.1)


def test_bursts_lose_packets_in_runs(lab: Lab) -> None:
    lab.impair("wifi", "down", burst_enter=0.02, burst_leave=0.2)
    log = echo(lab)
    lost = [copies == 0 for copies in log.copies]
    runs = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    assert sum(lost) > 2 * runs > 0  # a mean run of 5 packets; independent loss at this rate gives 1.1


def test_duplicates_arrive_twice(lab: Lab) -> None:
    before = lab.link_stats("wifi")
    lab.impair("wifi", "down", duplicate=0.1)
    whole = echo(lab).window(0, 1 << 62)
    assert whole.lost == 0
    assert whole.duplicated == moved(lab, before, "down", "duplicated")
    assert within_five_sigma(whole.duplicated, whole.sent, 0.1)


def test_reordering_lets_later_messages_overtake(lab: Lab) -> None:
    before = lab.link_stats("wifi")
    lab.impair("wifi", "down", reorder=0.1, reorder_ms=4)
    log = echo(lab)
    reordered = moved(lab, before, "down", "reordered")
    overtaken = sum(earlier > later for earlier, later in zip(log.answered, log.answered[1:], strict=False))
    assert within_five_sigma(reordered, len(log.sent), 0.1)
    # A packet held back directly after another one overtakes nobody by itself.
    assert reordered / 2 < overtaken <= reordered


def test_jitter_spreads_but_keeps_order(lab: Lab) -> None:
    lab.impair("wifi", "down", jitter_ms=4)
    log = echo(lab)
    times = sorted(answer - sent for sent, answer in zip(log.sent, log.answered, strict=True))
    assert times[int(len(times) * 0.95)] - times[int(len(times) * 0.05)] > 2e6
    assert list(log.answered) == sorted(log.answered)


def test_rate_bounds_a_download(lab: Lab, tmp_path: Path) -> None:
    lab.impair("wifi", "down", rate_bytes_s=2_000_000)
    facts = download(lab, 1_500_000, tmp_path / "log")
    # What the queue holds may be sent ahead of the schedule only once; headers make the payload slower than the rate.
    assert (facts["ended_ns"] - facts["started_ns"]) / 1e9 >= 0.7
    assert facts["checksum_ok"]


def test_mtu_swallows_larger_packets_silently(lab: Lab) -> None:
    before = lab.link_stats("wifi")
    lab.impair("wifi", "up", mtu=1000)
    command = ["ping", "-c1", "-W1", "-M", "do", "-I", "wlan0", SERVER_PUBLIC, "-s"]
    assert lab.run("client", [*command, "972"]).returncode == 0
    assert lab.run("client", [*command, "973"], check=False).returncode == 1
    assert moved(lab, before, "up", "oversize") == 1


def test_blackhole_of_one_direction_is_the_emulators_too(lab: Lab) -> None:
    before = lab.link_stats("wifi")
    lab.impair("wifi", "down", blackhole=True)
    ping = ["ping", "-c1", "-W1", "-I", "wlan0", SERVER_PUBLIC]
    assert lab.run("client", ping, check=False).returncode == 1
    assert moved(lab, before, "down", "blackholed") >= 1
    assert moved(lab, before, "up", "blackholed") == 0


def test_super_packets_are_split_only_where_chance_acts_per_packet(lab: Lab, tmp_path: Path) -> None:
    size = 8_000_000
    before = lab.link_stats("wifi")
    assert offload(lab)
    download(lab, size, tmp_path / "whole")
    assert moved(lab, before, "down", "received") < size / 1448 / 2
    lab.impair("wifi", loss=0.001)
    assert not offload(lab)
    before = lab.link_stats("wifi")
    assert download(lab, size, tmp_path / "split")["connections"] == 1
    assert moved(lab, before, "down", "received") >= size / 1448
    lab.impair("wifi", loss=0)
    assert offload(lab)


def test_tcp_echo_crosses_a_lossy_link_complete(lab: Lab) -> None:
    lab.impair("wifi", loss=0.02)
    log = echo(lab, "tcp")
    whole = log.window(0, 1 << 62)
    assert (whole.lost, whole.duplicated, log.facts["error"]) == (0, 0, None)


def test_paced_download_keeps_its_rate(lab: Lab, tmp_path: Path) -> None:
    facts = download(lab, 1_000_000, tmp_path / "log", rate=2_000_000)
    assert (facts["ended_ns"] - facts["started_ns"]) / 1e9 >= 0.45


def test_emulator_outlives_a_link_that_goes_down(lab: Lab) -> None:
    for carrier in (False, True):
        lab.down("wifi", carrier=carrier)
        lab.restore("wifi")
        lab.run("client", ["ping", "-c1", "-W5", "-I", "wlan0", SERVER_PUBLIC])


def test_plain_link_and_impossible_values_are_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match="lte is a plain link"):
        lab.impair("lte", loss=0.1)
    with pytest.raises(LabError, match="loss=7 is not within"):
        lab.impair("wifi", loss=7)
    with pytest.raises(LabError, match="a link has no colour"):
        lab.impair("wifi", colour=1)
    assert lab.link_stats("wifi")["up"]["received"] > 0
