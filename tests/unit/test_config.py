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


CLUSTER = {
    "name": '"eu"',
    "etcd": '["10.0.0.11:2379", "[fd::2]:2379"]',
    "ca": '"ca.pem"',
    "certificate": '"c.pem"',
    "key": '"c.key"',
    "advertise": '"vpn1.example.org:51900"',
}


def gateway_text(*, cluster: dict[str, str] | None = None, top: str = "", rest: str = "") -> str:
    table = "" if cluster is None else "[cluster]\n" + "".join(f"{k} = {v}\n" for k, v in cluster.items())
    return f'private_key_file = "k"\n{top}{table}{rest}'


def test_a_cluster_needs_few_keys_and_keeps_its_files_beside_the_configuration() -> None:
    cluster = parse_gateway(gateway_text(cluster=CLUSTER), BASE).cluster
    assert cluster is not None
    assert (cluster.name, cluster.etcd, cluster.advertise) == (
        "eu",
        ("10.0.0.11:2379", "[fd::2]:2379"),
        "vpn1.example.org:51900",
    )
    assert (cluster.ca, cluster.key_file) == (BASE / "ca.pem", BASE / "cluster.key")
    assert (cluster.lease, cluster.margin, cluster.adopt_after) == (5 * SECOND, SECOND // 2, 10 * SECOND)
    assert cluster.lease_seconds == 5
    own = parse_gateway(gateway_text(cluster={**CLUSTER, "key_file": '"/k/c"', "lease": '"1min"', "margin": "1"}), BASE)
    assert own.cluster is not None
    assert (own.cluster.key_file, own.cluster.lease_seconds) == (Path("/k/c"), 60)


def test_without_the_tables_a_gateway_stands_alone_and_announces_nothing() -> None:
    config = parse_gateway(gateway_text(), BASE)
    assert (config.cluster, config.announce.mode, config.announce.interface) == (None, "none", None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"advertise": None}, "cluster.advertise: missing; this key is required"),
        ({"etcd": "[]"}, "cluster.etcd = []: must have at least 1 entries"),
        ({"etcd": '["10.0.0.1"]'}, 'cluster.etcd[0] = "10.0.0.1": must be "host:port"'),
        ({"etcd": '["a:1", "b:1", "a:1"]'}, 'cluster.etcd[2] = "a:1": must be unique, but cluster.etcd[0]'),
        ({"etcd": str([f"h{n}:1" for n in range(17)])}, "must have at most 16 entries"),
        ({"lease": '"1s"'}, "must be within 2s and 1min"),
        ({"lease": '"2500ms"'}, "cluster.lease = 2.5s: must be whole seconds"),
        ({"margin": '"2500ms"'}, "cluster.margin = 2.5s: must be at least 50ms (1 % of lease) and less than 2.5s"),
        ({"margin": '"49ms"'}, "cluster.margin = 49ms: must be at least 50ms"),
        ({"lease": '"60s"'}, "cluster.margin = 500ms: must be at least 600ms"),
        ({"advertise": '"[::]:51900"'}, "must be where clients reach this gateway"),
        ({"advertise": '"0.0.0.0:51900"'}, "must be where clients reach this gateway"),
        ({"name": '"e u"'}, "1 to 63 of letters"),
        ({"adopt_after": '"11min"'}, "must be within 1s and 10min"),
        ({"secret": '"x"'}, "cluster.secret: unknown key"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(changes: dict[str, str | None], words: str) -> None:
    table = {k: v for k, v in {**CLUSTER, **changes}.items() if v is not None}
    with pytest.raises(Rejected) as caught:
        parse_gateway(gateway_text(cluster=table), BASE)
    assert words in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(("lease", "margin"), [('"5s"', '"50ms"'), ('"5s"', '"2499ms"'), ('"2s"', '"20ms"')])
def test_margins_at_their_bounds_are_good(lease: str, margin: str) -> None:
    assert parse_gateway(gateway_text(cluster={**CLUSTER, "lease": lease, "margin": margin}), BASE).cluster is not None


@pytest.mark.parametrize(
    ("announce", "words"),
    [
        ('mode = "arp"', 'announce.interface: missing; mode = "arp" needs'),
        ('mode = "command"', 'announce.command: missing; mode = "command" needs'),
        ('mode = "command"\ncommand = ["bird"]', "must begin with an absolute path"),
        ('interface = "eth1"', 'announce.interface = "eth1": has no effect; add mode = "arp"'),
        ('command = ["/bin/x"]', 'has no effect; add mode = "command"'),
        ('mode = "bgp"', "must be 'none', 'arp' or 'command'"),
        ('mode = "arp"\ninterface = "a b"', "an interface name"),
    ],
)
def test_an_announcement_that_cannot_be_is_refused(announce: str, words: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_gateway(gateway_text(rest=f"[forward]\nmasquerade = false\n[announce]\n{announce}\n"), BASE)
    assert words in str(caught.value)
    assert len(caught.value.problems) == 1


def test_masquerading_would_keep_return_traffic_from_its_way() -> None:
    announce = '[announce]\nmode = "arp"\ninterface = "eth1"\n'
    with pytest.raises(Rejected, match=r"forward\.masquerade = true: must be false with announce\.mode"):
        parse_gateway(gateway_text(rest=announce), BASE)
    assert parse_gateway(gateway_text(rest=f"[forward]\nmasquerade = false\n{announce}"), BASE).announce.mode == "arp"
    assert parse_gateway(gateway_text(rest=f"[forward]\nenabled = false\n{announce}"), BASE).announce.mode == "arp"


def test_a_cluster_keeps_its_changes_on_disk() -> None:
    with pytest.raises(Rejected, match='store = "memory": must be "sqlite" with'):
        parse_gateway(gateway_text(cluster=CLUSTER, top='store = "memory"\n'), BASE)


def test_relations_inside_our_tables_are_told_beside_other_mistakes() -> None:
    text = gateway_text(
        cluster={**CLUSTER, "margin": '"9s"'},
        top="nonsense = 1\n",
        rest='[announce]\nmode = "arp"\n[tunnel]\nmtu = 1\n',
    )
    with pytest.raises(Rejected) as caught:
        parse_gateway(text, BASE)
    assert set(keys_of(caught)) == {"nonsense", "cluster.margin", "announce.interface", "tunnel.mtu"}
    lines = {problem.key: problem.line for problem in caught.value.problems}
    assert lines["cluster.margin"] == text.splitlines().index('margin = "9s"') + 1


def test_clients_have_no_such_tables() -> None:
    peer = f'[[gateway]]\nname = "g"\naddress = "h:1"\npublic_key = "{KEY}"\n'
    text = f'private_key_file = "/k"\n[cluster]\nmargin = "9s"\n{peer}'
    with pytest.raises(Rejected) as caught:
        parse_client(text, BASE)
    assert keys_of(caught) == ["cluster"]


def test_the_number_of_standby_gateways_is_a_key_of_the_policy() -> None:
    def policy(value: str) -> int:
        text = gateway_text(rest=f"[policy.transports]\nstandby_gateways = {value}\n")
        return parse_gateway(text, BASE).policy.transports.standby_gateways

    assert (parse_gateway(gateway_text(), BASE).policy.transports.standby_gateways, policy("0"), policy("7")) == (
        2,
        0,
        7,
    )
    for value in ("-1", "8", "true", "1.5"):
        with pytest.raises(Rejected, match=r"policy\.transports\.standby_gateways"):
            policy(value)
