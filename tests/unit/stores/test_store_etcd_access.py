"""Who gets in: certificates that do not fit are refused on both sides, in words that name what to do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from pathlib import Path

import pytest
from etcd_lab import Authority, Cluster, Pem, Proxy, free_ports

from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd.config import EtcdConfig
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases
from jumpvpn.runtime.stores.etcd.store import EtcdStore
from jumpvpn.runtime.stores.leases import Lease

QUICK = {"timeout_ms": 600, "attempt_ms": 300}
PAST = datetime.timedelta(hours=-1)


async def refusal(config: EtcdConfig) -> str:
    with pytest.raises(StoreUnavailable) as raised:
        await EtcdStore.open(config)
    assert "PRIVATE KEY" not in raised.value.reason
    return raised.value.reason


async def test_servers_of_another_ca_are_refused(etcd: Cluster, tmp_path: Path) -> None:
    said = await refusal(etcd.config(ca=Authority(tmp_path, "other").file, **QUICK))
    assert "its certificate is not accepted" in said
    assert "check " in said
    assert "other-ca.pem" in said


async def test_a_certificate_of_another_ca_is_refused_by_etcd(etcd: Cluster, tmp_path: Path) -> None:
    pem = Authority(tmp_path, "other").issue("stranger")
    said = await refusal(etcd.config(certificate=pem.certificate, key=pem.key, **QUICK))
    assert f"does not accept our certificate {pem.certificate}" in said
    assert "--trusted-ca-file" in said


async def test_an_expired_certificate_of_ours_is_not_even_shown(etcd: Cluster) -> None:
    pem = etcd.authority.issue("late", ends=PAST)
    said = await refusal(etcd.config(certificate=pem.certificate, key=pem.key, **QUICK))
    assert f"the certificate {pem.certificate} expired on" in said
    assert "issue a new one" in said


async def test_an_expired_certificate_of_a_server_is_refused(etcd: Cluster) -> None:
    pem = etcd.authority.issue("late-server", ends=PAST)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem.certificate, pem.key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    said = await refusal(etcd.config(endpoints=[endpoint], **QUICK))
    server.close()
    assert f"{endpoint}: its certificate is not accepted: certificate has expired" in said


async def test_a_port_that_is_not_etcds_is_named(etcd: Cluster) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    said = await refusal(etcd.config(endpoints=[endpoint], **QUICK))
    server.close()
    assert f"{endpoint}: does not speak TLS as etcd does" in said


async def test_files_that_cannot_be_used_are_named(etcd: Cluster, tmp_path: Path) -> None:
    nothing, text, open_key = tmp_path / "none.pem", tmp_path / "text.pem", tmp_path / "open.key"
    text.write_text("hello")
    text.chmod(0o600)
    open_key.write_bytes(etcd.gateway.key.read_bytes())
    open_key.chmod(0o644)
    for changes, words in (
        ({"certificate": nothing}, f"cannot read {nothing}: No such file or directory; etcd needs mutual TLS"),
        ({"key": nothing}, f"cannot read {nothing}"),
        ({"ca": text}, f"{text} holds no certificate"),
        ({"key": text}, f"{text} holds no private key"),
        ({"key": open_key}, f"chmod 600 {open_key}"),
        ({"key": etcd.server.key}, "does not belong to the certificate"),
    ):
        assert words in await refusal(etcd.config(**changes))


async def test_no_server_is_one_clear_reason(etcd: Cluster) -> None:
    (port,) = free_ports(1)
    said = await refusal(etcd.config(endpoints=[f"127.0.0.1:{port}"], **QUICK))
    assert f"127.0.0.1:{port}: connection refused" in said
    assert "check that a majority of the members runs" in said


async def test_a_dead_member_is_passed_over(etcd: Cluster) -> None:
    (port,) = free_ports(1)
    store = await EtcdStore.open(etcd.config(endpoints=[f"127.0.0.1:{port}", etcd.members[0].endpoint]))
    assert await store.load_all() == []
    await store.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"endpoints": []}, "at least one"),
        ({"endpoints": ["http://a:1"]}, "mutual TLS"),
        ({"endpoints": ["a"]}, "HOST:PORT"),
        ({"endpoints": ["a:99999"]}, "HOST:PORT"),
        ({"cluster": "a/b"}, "cluster: "),
        ({"node": ""}, "node: "),
        ({"timeout_ms": 1}, "timeout_ms"),
    ],
)
def test_a_wrong_configuration_names_its_field(etcd: Cluster, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        etcd.config(**changes)  # type: ignore[arg-type]


async def test_a_renewed_certificate_takes_effect_without_a_restart(tmp_path: Path, etcd: Cluster) -> None:
    """The files are replaced while the store is open; the old certificate does not get in any more."""
    stranger = Authority(tmp_path, "other").issue("gateway")
    files = tmp_path / "own.pem", tmp_path / "own.key"
    install(etcd.gateway, files)
    async with Proxy(etcd.members[0].client) as proxy:
        config = etcd.config(
            endpoints=[proxy.endpoint], certificate=files[0], key=files[1], timeout_ms=1_500, attempt_ms=500
        )  # fmt: skip
        store = await EtcdStore.open(config)
        watch = EtcdLeases(store.client).follow((await EtcdLeases(store.client).listing("held/")).revision)
        waiting = asyncio.ensure_future(anext(watch))
        install(stranger, files)
        proxy.deaf = True
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await store.load_all()
        await proxy.reset()
        with pytest.raises(StoreUnavailable, match="does not accept our certificate"):
            await store.load_all()
        late = etcd.authority.issue("late", ends=PAST)
        install(late, files)
        with pytest.raises(StoreUnavailable, match=f"{files[0]} expired on"):
            await _until_told(store, "expired")
        install(etcd.authority.issue("renewed"), files)
        leases = EtcdLeases(store.client)
        async with asyncio.timeout(30):
            lease = await _until_let_in(leases)
            await leases.hold(lease, "gw1", b"x")
            assert (await waiting).name == "held/gw1"
        await store.close()


async def _until_let_in(leases: EtcdLeases) -> Lease:
    while True:
        with contextlib.suppress(StoreUnavailable):
            return await leases.grant(60)


async def _until_told(store: EtcdStore, words: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await store.load_all()
            except StoreUnavailable as failure:
                if words in failure.reason:
                    raise


def install(pem: Pem, files: tuple[Path, Path]) -> None:
    files[0].write_bytes(pem.certificate.read_bytes())
    files[1].touch(mode=0o600)
    files[1].write_bytes(pem.key.read_bytes())
