"""What gateways share beside the records: inner addresses, and secrets under the cluster key."""

from __future__ import annotations

import asyncio
import ipaddress

import msgspec
import pytest
from etcd_lab import Cluster, put

from jumpvpn.runtime.stores.base import ForeignRecord, StoreUnavailable
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.addresses import Addresses, AddressTaken
from jumpvpn.runtime.stores.etcd.client import RANGE
from jumpvpn.runtime.stores.etcd.records import Names
from jumpvpn.runtime.stores.etcd.secrets import (
    KEPT,
    SETTLE_MS,
    ClusterSeal,
    ClusterSecrets,
    TicketKey,
    WrongClusterKey,
    in_order_of_use,
)
from jumpvpn.runtime.stores.etcd.store import EtcdStore

POOL = ipaddress.ip_network("10.9.0.0/24")
POOL6 = ipaddress.ip_network("fd00:9::/64")
KEY = bytes(range(32))


def device(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def names(store: EtcdStore) -> Names:
    return Names(store.client.config.cluster, store.client.config.node)


async def test_a_device_has_the_same_addresses_everywhere_and_forever(store: EtcdStore) -> None:
    addresses = Addresses(store.client)
    first = await addresses.claim(device(1), (), (POOL, POOL6))
    assert ipaddress.ip_address(first[0]) in POOL
    assert ipaddress.ip_address(first[1]) in POOL6
    assert await Addresses(store.client).claim(device(1), (), (POOL, POOL6)) == first
    assert await addresses.claim(device(2), (), (POOL, POOL6)) != first


async def test_a_pool_is_given_out_to_the_last_address_without_collisions(store: EtcdStore) -> None:
    pool = ipaddress.ip_network("10.8.0.0/26")
    claims = [Addresses(store.client).claim(device(n), (), (pool,)) for n in range(61)]
    given = [found for (found,) in await asyncio.gather(*claims)]
    assert sorted(map(ipaddress.ip_address, given)) == [pool[n] for n in range(2, 63)], (
        "not the gateways', no broadcast"
    )
    with pytest.raises(AddressTaken, match=r"the pool 10\.8\.0\.0/26 has no free inner address"):
        await Addresses(store.client).claim(device(99), (), (pool,))


async def test_an_address_of_the_file_is_the_devices_or_nobodys(store: EtcdStore) -> None:
    addresses = Addresses(store.client)
    assert await addresses.claim(device(1), ("10.9.0.7",), (POOL, POOL6)) == (
        "10.9.0.7", (await addresses.claim(device(1), (), (POOL6,)))[0],
    )  # fmt: skip
    with pytest.raises(AddressTaken, match=rf"10\.9\.0\.7 belongs to another device.*{device(1).hex()}"):
        await addresses.claim(device(2), ("10.9.0.7",), (POOL,))
    avoid = {str(address) for address in POOL} - {"10.9.0.200"}
    assert await addresses.claim(device(3), (), (POOL,), avoid) == ("10.9.0.200",)


async def test_a_foreign_holder_of_an_address_is_named(store: EtcdStore, names: Names) -> None:
    await put(store.client, names.address("10.9.0.7"), b"printer")
    with pytest.raises(ForeignRecord, match="does not hold a device's key"):
        await Addresses(store.client).claim(device(1), ("10.9.0.7",), (POOL,))


async def test_ticket_keys_are_the_same_at_every_gateway_and_rotate_once(etcd: Cluster, store: EtcdStore) -> None:
    other = await EtcdStore.open(etcd.config("gw2", cluster=store.client.config.cluster))
    gateways = [ClusterSecrets(each.client, ClusterSeal(KEY)) for each in (store, other)]
    await asyncio.gather(*(gateway.check() for gateway in gateways))
    made = await asyncio.gather(*(gateway.ticket_keys(5) for gateway in gateways))
    assert made[0] == made[1]
    assert [(key.id, key.created_ms, len(key.key)) for key in made[0]] == [(1, 5, 32)]
    rotated = await asyncio.gather(*(gateway.rotate(1, 9) for gateway in gateways))
    assert rotated[0] == rotated[1] == await gateways[1].ticket_keys(10)
    assert [key.id for key in rotated[0]] == [2, 1]
    assert await gateways[0].rotate(1, 11) == rotated[0], "somebody did it already"
    for newest in range(2, 6):
        keys = await gateways[0].rotate(newest, 20)
    assert [key.id for key in keys] == [6, 5, 4]
    assert len(keys) == KEPT
    assert len({key.key for key in keys}) == KEPT
    await other.close()


async def test_another_cluster_key_is_found_out_before_anything_is_sealed(store: EtcdStore, names: Names) -> None:
    right, wrong = (ClusterSecrets(store.client, ClusterSeal(key)) for key in (KEY, bytes(32)))
    await right.check()
    await right.check()
    await right.ticket_keys(1)
    for question in (wrong.check(), wrong.ticket_keys(1), wrong.rotate(1, 2)):
        with pytest.raises(WrongClusterKey, match=r"cluster\.key is not the one of this cluster"):
            await question
    tickets = await store.client.ask(RANGE, pb.RangeRequest(key=names.secret("tickets")))
    for damaged in (b"", b"x" * 40, tickets.kvs[0].value[:-1]):
        await put(store.client, names.secret("tickets"), damaged)
        with pytest.raises(WrongClusterKey):
            await right.ticket_keys(1)
    await put(store.client, names.secret("check"), tickets.kvs[0].value)
    with pytest.raises(WrongClusterKey, match="secrets/check"):
        await right.check()


async def test_a_list_of_another_format_is_refused(store: EtcdStore, names: Names) -> None:
    seal, name = ClusterSeal(KEY), names.secret("tickets")
    await put(store.client, name, seal.seal(name, msgspec.msgpack.encode({"keys": []})))
    with pytest.raises(StoreUnavailable, match="upgrade the program"):
        await ClusterSecrets(store.client, seal).ticket_keys(1)


def test_a_key_seals_once_every_gateway_knows_it() -> None:
    newest, older, oldest = (TicketKey(n, n * SETTLE_MS, b"k" * 32) for n in (3, 2, 1))
    keys = (newest, older, oldest)
    assert in_order_of_use(keys, 4 * SETTLE_MS) == keys
    assert in_order_of_use(keys, 4 * SETTLE_MS - 1) == (older, newest, oldest)
    assert in_order_of_use((newest,), 0) == (newest,)


def test_no_key_is_shown() -> None:
    assert "secretsecret" not in repr(TicketKey(1, 2, b"secretsecret"))
    assert "secretsecret" not in repr(ClusterSeal(b"secretsecret"))
