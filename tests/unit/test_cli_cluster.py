"""``jumpvpn cluster init``, ``add``, ``renew``: certificates that verify, files that work as written, nothing lost."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from test_cli import run

from jumpvpn.cli import cluster_files
from jumpvpn.cli.certificates import AUTHORITY_DAYS, LEAF_DAYS, Authority, BadAuthority
from jumpvpn.cli.cluster_plan import Gateway, Plan, read_plan
from jumpvpn.cli.failures import Failure
from jumpvpn.config import load_gateway, parse_client
from jumpvpn.runtime.errors import KeyFileError
from jumpvpn.runtime.keys import public_key_of, read_cluster_key
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd.config import EtcdConfig, Identity

GATEWAYS = ("gw1=vpn1.example.org:51900,inside=eth1", "gw2=[2001:db8::2]:443,inside=eth2")
MEMBERS = ("a=10.0.0.11", "b=etcd-b.example.org", "c=2001:db8::13")
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def plan() -> Plan:
    return read_plan("eu", GATEWAYS, MEMBERS)


@pytest.fixture
def directory(tmp_path: Path, plan: Plan) -> Path:
    cluster_files.create(tmp_path / "eu", plan)
    return tmp_path / "eu"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def usages(path: Path) -> set[x509.ObjectIdentifier]:
    return set(certificate(path).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_members_certificates_verify_for_their_host_and_no_other(directory: Path) -> None:
    builder = PolicyBuilder().store(Store([certificate(directory / "ca/ca.pem")]))
    hosts = {
        "a": x509.IPAddress(ipaddress.ip_address("10.0.0.11")),
        "b": x509.DNSName("etcd-b.example.org"),
        "c": x509.IPAddress(ipaddress.ip_address("2001:db8::13")),
    }
    for name, host in hosts.items():
        for kind in ("server", "peer"):
            leaf = certificate(directory / f"etcd-{name}/{kind}.pem")
            chain = builder.build_server_verifier(host).verify(leaf, [])
            assert chain[-1] == certificate(directory / "ca/ca.pem")
            with pytest.raises(VerificationError):
                builder.build_server_verifier(x509.DNSName("other.example.org")).verify(leaf, [])


def test_gateways_certificates_name_the_gateway_and_serve_for_clients_only(directory: Path) -> None:
    for name in ("gw1", "gw2"):
        path = directory / f"gateway-{name}/etcd-client.pem"
        assert usages(path) == {ExtendedKeyUsageOID.CLIENT_AUTH}
        certificate(path).verify_directly_issued_by(certificate(directory / "ca/ca.pem"))
        assert [str(a.value) for a in certificate(path).subject] == [name]
    assert usages(directory / "etcd-a/peer.pem") == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}


def test_certificates_last_as_long_as_stated_and_the_authority_signs_only(directory: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for path, days in (("ca/ca.pem", AUTHORITY_DAYS), ("etcd-a/server.pem", LEAF_DAYS)):
        found = certificate(directory / path)
        assert found.not_valid_before_utc < now
        assert abs(found.not_valid_after_utc - now - datetime.timedelta(days=days)) < datetime.timedelta(hours=1)
    authority = certificate(directory / "ca/ca.pem").extensions
    usage = authority.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    basic = authority.get_extension_for_class(x509.BasicConstraints).value
    assert (basic.ca, basic.path_length) == (True, 0)
    assert (
        not certificate(directory / "etcd-a/peer.pem")
        .extensions.get_extension_for_class(x509.BasicConstraints)
        .value.ca
    )


def test_what_is_private_is_for_its_owner_alone(directory: Path) -> None:
    private = {name for name, content in contents(directory).items() if b"PRIVATE" in content}
    keys = {name for name in contents(directory) if name.endswith(".key")}
    own = {f"gateway-{gateway}/{kind}.key" for gateway in ("gw1", "gw2") for kind in ("gateway", "cluster")}
    assert keys == private | own | {"cluster.key"}
    for name in keys:
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    for folder in (directory, *(p for p in directory.iterdir() if p.is_dir())):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_umask_takes_nothing_away_and_gives_nothing(tmp_path: Path, plan: Plan) -> None:
    before = os.umask(0)
    try:
        cluster_files.create(tmp_path / "open", plan)
    finally:
        os.umask(before)
    for path in (tmp_path / "open").rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_authoritys_key_is_in_no_nodes_directory(directory: Path) -> None:
    secret = (directory / "ca/ca.key").read_bytes()
    assert [name for name, content in contents(directory).items() if content == secret] == ["ca/ca.key"]
    assert "ca/ca.key" in (directory / "README.txt").read_text()


def test_gateways_files_are_ready_to_run(directory: Path) -> None:
    for name, interface, advertise in (
        ("gw1", "eth1", "vpn1.example.org:51900"),
        ("gw2", "eth2", "[2001:db8::2]:443"),
    ):
        config = load_gateway(directory / f"gateway-{name}/gateway.toml")
        cluster = config.cluster
        assert cluster is not None
        assert (config.name, cluster.name, cluster.advertise) == (name, "eu", advertise)
        assert cluster.etcd == ("10.0.0.11:2379", "etcd-b.example.org:2379", "[2001:db8::13]:2379")
        assert (config.announce.mode, config.announce.interface, config.forward.masquerade) == ("arp", interface, False)
        assert read_cluster_key(cluster.key_file) == read_cluster_key(directory / "cluster.key")
        Identity.read(EtcdConfig(cluster.etcd, cluster.ca, cluster.certificate, cluster.key, cluster.name, name))
        checked = run("config", "check", str(directory / f"gateway-{name}/gateway.toml"))
        assert (checked.returncode, checked.stderr) == (0, "")
    assert load_gateway(directory / "gateway-gw2/gateway.toml").listen == ("0.0.0.0:443", "[::]:443")


def test_clients_learn_the_gateways_own_keys(directory: Path) -> None:
    text = 'private_key_file = "k"\n' + (directory / "clients.toml").read_text()
    told = {peer.name: (peer.address, peer.public_key) for peer in parse_client(text, directory).gateway}
    assert told == {
        "gw1": ("vpn1.example.org:51900", public_key_of(directory / "gateway-gw1/gateway.key")),
        "gw2": ("[2001:db8::2]:443", public_key_of(directory / "gateway-gw2/gateway.key")),
    }


def test_without_an_inside_interface_each_gateway_masquerades(tmp_path: Path) -> None:
    cluster_files.create(tmp_path / "x", read_plan("x", ["g=192.0.2.1:51900"], ["a=10.0.0.1:4001"]))
    text = (tmp_path / "x/gateway-g/gateway.toml").read_text()
    config = load_gateway(tmp_path / "x/gateway-g/gateway.toml")
    assert (config.announce.mode, config.forward.masquerade) == ("none", True)
    uncommented = text.replace("# [announce]", "[announce]").replace("masquerade = true ", "masquerade = false")
    for mode, line in (("arp", "interface = "), ("command", "command = ")):
        chosen = uncommented.replace(f'# mode = "{mode}"', f'mode = "{mode}"').replace(f"# {line}", line)
        (tmp_path / "x/gateway-g/changed.toml").write_text(chosen)
        assert load_gateway(tmp_path / "x/gateway-g/changed.toml").announce.mode == mode


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    directory: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(directory)
    with pytest.raises(Failure, match="exists already and is not empty"):
        cluster_files.create(directory, plan)
    (directory.parent / "file").write_text("x")
    with pytest.raises(Failure, match="exists already"):
        cluster_files.create(directory.parent / "file", plan)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cluster_files, "_write_common", full)
    with pytest.raises(OSError, match="No space"):
        cluster_files.create(directory.parent / "late", plan)
    assert contents(directory) == before
    assert sorted(p.name for p in directory.parent.iterdir()) == ["eu", "file"]


def test_an_empty_directory_is_taken(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "eu").mkdir()
    cluster_files.create(tmp_path / "eu", plan)
    assert (tmp_path / "eu/README.txt").exists()


def test_renewal_keeps_names_and_uses_and_changes_keys(directory: Path) -> None:
    before = contents(directory)
    old = {name: certificate(directory / name) for name in ("etcd-b/server.pem", "etcd-b/peer.pem")}
    made = cluster_files.renew(directory, "b")
    changed = {name for name, content in contents(directory).items() if content != before[name]}
    assert changed == {"etcd-b/server.pem", "etcd-b/server.key", "etcd-b/peer.pem", "etcd-b/peer.key"}
    assert {file["file"] for file in made.files} == changed
    builder = PolicyBuilder().store(Store([certificate(directory / "ca/ca.pem")]))
    for name, previous in old.items():
        fresh = certificate(directory / name)
        builder.build_server_verifier(x509.DNSName("etcd-b.example.org")).verify(fresh, [])
        assert fresh.serial_number != previous.serial_number
        assert fresh.subject == previous.subject
        assert usages(directory / name) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
        key = load_pem_private_key((directory / name).with_suffix(".key").read_bytes(), None)
        assert key.public_key() == fresh.public_key() != previous.public_key()


def test_renewal_works_when_the_keys_are_only_on_their_nodes(directory: Path) -> None:
    for path in directory.glob("*-*/*.key"):
        path.unlink()
    made = cluster_files.renew(directory, None)
    assert len(made.certificates) == 8
    assert not list(directory.glob("gateway-*/gateway.key"))


def test_all_or_nothing_is_renewed(directory: Path) -> None:
    (directory / "gateway-gw2/etcd-client.pem").write_text("damaged")
    before = contents(directory)
    with pytest.raises(Failure, match=r"gateway-gw2/etcd-client\.pem: cannot be renewed"):
        cluster_files.renew(directory, None)
    assert contents(directory) == before


def test_a_foreign_certificate_is_not_renewed(directory: Path, plan: Plan) -> None:
    cluster_files.create(directory.parent / "other", plan)
    foreign = directory.parent / "other/etcd-a/peer.pem"
    (directory / "etcd-a/peer.pem").write_bytes(foreign.read_bytes())
    with pytest.raises(Failure, match="was not issued by this authority"):
        cluster_files.renew(directory, "a")
    for part in ("ca.pem", "ca.key"):
        (directory / "ca" / part).write_bytes((directory.parent / "other/ca" / part).read_bytes())
        if part == "ca.pem":
            with pytest.raises(Failure, match="private key does not belong to its certificate"):
                cluster_files.renew(directory, "b")


def test_no_certificate_outlives_its_authority() -> None:
    authority = Authority.create("x", NOW)
    late = NOW + datetime.timedelta(days=AUTHORITY_DAYS - 10)
    assert authority.issue("n", (), (), late).ends == authority.certificate.not_valid_after_utc
    with pytest.raises(BadAuthority, match="expired on"):
        authority.issue("n", (), (), NOW + datetime.timedelta(days=AUTHORITY_DAYS))


def test_a_gateway_is_added_to_what_is_there(directory: Path) -> None:
    before = contents(directory)
    cluster_files.extend(directory, (Gateway("gw3", "192.0.2.3:51900", "eth1"),))
    after = contents(directory)
    assert {name for name in before if before[name] != after[name]} == {"README.txt", "clients.toml", "cluster.json"}
    config = load_gateway(directory / "gateway-gw3/gateway.toml")
    assert config.cluster is not None
    assert config.cluster.etcd == ("10.0.0.11:2379", "etcd-b.example.org:2379", "[2001:db8::13]:2379")
    assert after["gateway-gw3/cluster.key"] == before["cluster.key"]
    assert after["clients.toml"].startswith(before["clients.toml"])
    for wrong, words in (
        (Gateway("gw3", "192.0.2.4:1", "e"), "named twice"),
        (Gateway("gw4", "192.0.2.4:1"), "for all gateways or for none"),
    ):
        with pytest.raises(Failure, match=words):
            cluster_files.extend(directory, (wrong,))
    assert contents(directory) == after


def test_every_mistake_of_the_command_line_is_told_at_once(tmp_path: Path) -> None:
    done = run(
        "cluster", "init", str(tmp_path / "x"), "--name", "e u", "--gateway", "g=0.0.0.0:5", "--gateway", "h=h:1,in=3",
        "--etcd", "a=10.0.0.1", "--etcd", "a=10.0.0.1:2380", "--etcd", "b=1.2.3", "--etcd", "c=h:65534",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    for words in (
        "--name 'e u'", "--gateway g=0.0.0.0:5: write NAME=HOST:PORT", "'in=3' is not inside=INTERFACE",
        "etcd server 'a' is named twice", "port (each takes three) '10.0.0.1:2380' is named twice",
        "--etcd b=1.2.3: write NAME=HOST", "--etcd c=h:65534: write",
    ):  # fmt: skip
        assert words in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("gateways", "members", "words"),
    [
        ([f"g{n}=h{n}:1" for n in range(17)], ["a=h"], "17 gateways are too many"),
        (["g=h:1"], [f"m{n}=h{n}" for n in range(8)], "8 etcd servers are too many"),
        (["g=h:1,inside=e", "k=h:2"], ["a=h"], "name inside=INTERFACE for all gateways or for none"),
        (["g=h:1", "k=h:1"], ["a=h"], "the address of a gateway 'h:1' is named twice"),
        ([], ["a=h"], "name at least one gateway"),
        (["g=h:1"], [], "name at least one etcd server"),
        (["g=h:1"], ["../x=h"], "--etcd ../x=h: write"),
        (["../g=h:1"], ["x=h"], "--gateway ../g=h:1: write"),
    ],
)
def test_plans_that_cannot_be_are_refused(gateways: list[str], members: list[str], words: str) -> None:
    with pytest.raises(Failure) as caught:
        read_plan("eu", gateways, members)
    assert str(caught.value).startswith(words)
    assert caught.value.code == 2


def test_programs_learn_what_was_made(tmp_path: Path) -> None:
    target = tmp_path / "eu"
    done = run("cluster", "init", str(target), "--name", "eu", "--gateway", "g=h:1", "--etcd", "a=10.0.0.1", "--json")
    assert "with one etcd server nothing can be committed while it is down" in done.stderr
    told = json.loads(done.stdout)
    assert {file["file"] for file in told["files"]} == set(contents(target))
    assert {f["file"] for f in told["files"] if f["secret"]} == {n for n in contents(target) if n.endswith(".key")}
    assert told["certificates"][1] == {
        "file": "etcd-a/server.pem", "subject": "a", "hosts": ["10.0.0.1"],
        "ends": f"{certificate(target / 'etcd-a/server.pem').not_valid_after_utc:%Y-%m-%d}",
    }  # fmt: skip
    for secret in target.rglob("*.key"):
        assert secret.read_text().strip() not in done.stdout


def test_people_learn_what_is_secret_and_what_comes_next(tmp_path: Path) -> None:
    target = tmp_path / "eu"
    done = run("cluster", "init", str(target), "--name", "eu", "--gateway", "g=h:1", "--etcd", "a=h", "--etcd", "b=k")
    assert done.stderr == "jumpvpn: 2 etcd servers survive no more failures than 1; 3 do\n"
    assert f"{target}/ca/ca.key  (secret, mode 0600)\n" in done.stdout
    assert f"{target}/ca/ca.key can issue more of them: keep it apart from every node\n" in done.stdout
    renewed = run("cluster", "renew", str(target), "--node", "gateway-g")
    assert (renewed.returncode, renewed.stdout.count(".pem")) == (0, 2)
    unknown = run("cluster", "renew", str(target), "--node", "z")
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "jumpvpn: error: the cluster has no node 'z'; its nodes are a, b, g\n",
    )
    assert run("cluster", "renew", str(tmp_path)).returncode == 2


def test_the_check_of_a_configuration_reads_what_the_cluster_needs(directory: Path) -> None:
    file = str(directory / "gateway-gw1/gateway.toml")
    (directory / "gateway-gw1/cluster.key").write_text("short")
    assert "holds no cluster key" in run("config", "check", file).stderr
    (directory / "gateway-gw1/cluster.key").write_bytes(bytes(32))
    assert run("config", "check", file).returncode == 0
    (directory / "gateway-gw1/etcd-client.key").write_bytes((directory / "gateway-gw2/etcd-client.key").read_bytes())
    done = run("config", "check", file)
    assert done.returncode == 2
    assert "does not belong to the certificate" in done.stderr


def test_cluster_keys_are_read_raw_and_as_text_and_refused_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    with pytest.raises(KeyFileError, match="copy it from the directory"):
        read_cluster_key(path)
    path.touch(mode=0o600)
    for content in (bytes(range(32)), b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"):
        path.write_bytes(content)
        assert read_cluster_key(path) == bytes(range(32))
    for content in (b"", bytes(33), b"AAAA\n"):
        path.write_bytes(content)
        with pytest.raises(KeyFileError, match="holds no cluster key"):
            read_cluster_key(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_cluster_key(path)


def test_an_expired_certificate_is_named(directory: Path) -> None:
    authority = Authority.read((directory / "ca/ca.pem").read_bytes(), (directory / "ca/ca.key").read_bytes())
    old = authority.issue("gw1", (), (ExtendedKeyUsageOID.CLIENT_AUTH,), NOW - datetime.timedelta(days=3650))
    folder = directory / "gateway-gw1"
    (folder / "etcd-client.pem").write_bytes(old.certificate)
    (folder / "etcd-client.key").write_bytes(old.key)
    with pytest.raises(StoreUnavailable, match="expired on"):
        Identity.read(
            EtcdConfig(["h:1"], folder / "ca.pem", folder / "etcd-client.pem", folder / "etcd-client.key", "eu", "gw1")
        )
