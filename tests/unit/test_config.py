"""Configuration files: complete reports, lines, relations between tables, paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumpvpn.config import (
    decode_key,
    encode_key,
    load_either,
    load_gateway,
    parse_client,
    parse_gateway,
    split_address,
)
from jumpvpn.policy.problems import Rejected
from jumpvpn.values import SECOND

KEY = encode_key(bytes(range(32)))
BASE = Path("/etc/jumpvpn")


def keys_of(caught: pytest.ExceptionInfo[Rejected]) -> list[str]:
    return [problem.key for problem in caught.value.problems]


def test_a_small_gateway_file_is_enough() -> None:
    config = parse_gateway('private_key_file = "gw.key"\n', BASE)
    assert config.private_key_file == BASE / "gw.key"
    assert [str(address) for address in config.tunnel.gateway_addresses()] == ["10.77.0.1/24"]
    assert config.role == "gateway"


def test_a_small_client_file_is_enough() -> None:
    text = f'private_key_file = "/k"\n[[gateway]]\nname = "gw1"\naddress = "[fd::1]:51900"\npublic_key = "{KEY}"\n'
    config = parse_client(text, BASE)
    assert (config.gateway[0].address, config.role) == ("[fd::1]:51900", "client")


def test_all_mistakes_are_told_with_their_lines() -> None:
    text = f"""\
listen = ["0.0.0.0"]
private_key_fil = "gw.key"
[tunnel]
mtu = 100
routes = ["x"]
[[device]]
name = "a"
public_key = "zzz"
[[device]]
name = "a/b"
public_key = "{KEY}"
[policy.session]
transport_ttl = "1s"
nonsense = 1
"""
    with pytest.raises(Rejected) as caught:
        parse_gateway(text, BASE, "gw.toml")
    told = {problem.key: problem.line for problem in caught.value.problems}
    assert told == {
        "private_key_file": None,
        "listen[0]": 1,
        "private_key_fil": 2,
        "tunnel.mtu": 4,
        "tunnel.routes[0]": 5,
        "device[0].public_key": 8,
        "device[1].name": 10,
        "policy.session.transport_ttl": 13,
        "policy.session.nonsense": 14,
    }
    assert str(caught.value).startswith("gw.toml: 9 problems")


def test_devices_must_differ_and_fit_the_pool() -> None:
    text = f"""\
private_key_file = "k"
[[device]]
name = "a"
public_key = "{KEY}"
address = "10.77.0.1"
[[device]]
name = "a"
public_key = "{KEY}"
address6 = "fd::1"
"""
    with pytest.raises(Rejected) as caught:
        parse_gateway(text, BASE)
    assert keys_of(caught) == ["device[0].address", "device[1].name", "device[1].public_key", "device[1].address6"]


def test_policy_file_is_read_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('version = "2.5"\n[session]\ntransport_ttl = "60s"\n')
    config = parse_gateway('private_key_file = "k"\npolicy_file = "p.toml"\n', tmp_path)
    assert (config.policy.version, config.policy.session.transport_ttl) == ("2.5", 60 * SECOND)
    (tmp_path / "p.toml").write_text('[session]\ntransport_ttl = "1s"\n')
    with pytest.raises(Rejected, match=r"line 2: policy_file = \"p.toml\": session.transport_ttl = 1s"):
        parse_gateway('private_key_file = "k"\npolicy_file = "p.toml"\n', tmp_path)
    with pytest.raises(Rejected, match="not both"):
        parse_gateway('private_key_file = "k"\npolicy_file = "p.toml"\n[policy]\nversion = "1.0"\n', tmp_path)


@pytest.mark.parametrize("content", [b"x = [", b"\xff\xfe", b"policy = 3\nprivate_key_file = 'k'", b"device = 'x'"])
def test_broken_files_raise_only_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(Rejected):
        load_gateway(tmp_path / "c.toml")


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="jumpvpn init"):
        load_either(tmp_path / "none.toml")


@pytest.mark.parametrize("text", ["host", "host:0", "host:70000", ":1", "[::1]", "[1.2.3.4]:5", "a b:1", "::1:5"])
def test_bad_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        split_address(text)


def test_keys_round_trip_and_wrong_lengths_are_refused() -> None:
    assert decode_key(KEY) == bytes(range(32))
    for text in ("", "AAAA", KEY + "AAAA", "!" * 44):
        with pytest.raises(ValueError):
            decode_key(text)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('recording = { size = "1MiB" }', "recording.file: missing; this key is required"),
        ('recording = { file = "r", size = "1KiB" }', "must be within 64KiB and 1GiB"),
        ('recording = { file = "r", keep = 0 }', "must be at least 1"),
        ('recording = { file = "r", rotate = 3 }', "recording.rotate: unknown key"),
        ('events = "e.jsonl"\nrecording = { file = "e.jsonl" }', "must be a file of its own"),
        ('recording = "r"', "must be a table of keys"),
    ],
)
def test_a_recording_that_cannot_be_is_refused(line: str, words: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_gateway(f'private_key_file = "gw.key"\n{line}\n', BASE)
    assert words in str(caught.value)
