"""Inner addresses of a cluster: each belongs to one device, whichever gateway gave it."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Container, Iterator, Sequence
from itertools import islice

from jumpvpn.runtime.stores.base import ForeignRecord, StoreUnavailable
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import TXN, Client
from jumpvpn.runtime.stores.etcd.operations import get, put, unchanged, values
from jumpvpn.runtime.stores.etcd.records import Names

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WINDOW = 64  # addresses looked at in one transaction, of etcd's 128 operations
# Addresses looked at in all: a pool that is 99 % full has runs of some hundred taken ones; one with longer runs is
# too small, and 64 readings are as long as a handshake should wait.
_LOOKED_AT = 4_096
_FIRST = 2  # the network itself, and the gateways' own address, are nobody's


class AddressTaken(StoreUnavailable):
    """An address that the file gives to a device belongs to another one in the cluster, or a pool has no free one."""


class Addresses:
    """Over the connection of an ``EtcdStore``. What a device once had stays its own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._names = Names(client.config.cluster, client.config.node)

    async def claim(
        self, device: bytes, wanted: Sequence[str], pools: Sequence[Network], avoid: Container[str] = ()
    ) -> tuple[str, ...]:
        """The addresses of ``device`` (public key), one of each pool, without prefix lengths.

        ``wanted`` are given to it by the file; where it has none for a pool, the device keeps what it has there or gets
        a free one that is not in ``avoid``. Raises AddressTaken, StoreUnavailable.
        """
        fixed = [ipaddress.ip_address(text) for text in wanted]
        for address in fixed:
            await self._claim_fixed(device, str(address))
        found: list[str] = []
        for pool in pools:
            own = next((address for address in fixed if address.version == pool.version), None)
            found.append(str(own) if own is not None else await self._claim_any(device, pool, avoid))
        return tuple(found)

    async def _claim_fixed(self, device: bytes, address: str) -> None:
        holder = await self._create(device, address)
        if holder != device:
            raise AddressTaken(
                f"the inner address {address} belongs to another device of the cluster (public key {holder.hex()}); "
                "write another one, the same at every gateway"
            )

    async def _claim_any(self, device: bytes, pool: Network, avoid: Container[str]) -> str:
        candidates = (address for address in _candidates(device, pool) if address not in avoid)
        while window := list(islice(candidates, _WINDOW)):
            answer = await self._client.ask(TXN, pb.TxnRequest(success=[get(self._names.address(a)) for a in window]))
            for address, kv in zip(window, values(answer), strict=True):
                holder = await self._create(device, address) if kv is None else _holder(kv)
                if holder == device:
                    return address
        raise AddressTaken(f"the pool {pool} has no free inner address left where it was looked for; enlarge it")

    async def _create(self, device: bytes, address: str) -> bytes:
        """Give ``address`` to ``device`` if it is nobody's; whose it is then."""
        key = self._names.address(address)
        request = pb.TxnRequest(
            compare=[unchanged(key, 0)], success=[put(key, device.hex().encode())], failure=[get(key)]
        )  # fmt: skip
        answer = await self._client.ask(TXN, request)
        if answer.succeeded:
            return device
        (kv,) = values(answer)
        return device if kv is None else _holder(kv)


def _candidates(device: bytes, pool: Network) -> Iterator[str]:
    """Usable addresses of the pool, from a place that differs by device, so that few gateways meet at one."""
    last = pool.num_addresses - (1 if pool.version == 4 else 0)  # IPv4: without the broadcast address
    count = max(0, last - _FIRST)
    start = int.from_bytes(hashlib.sha256(device).digest()[:8], "big")
    for step in range(min(count, _LOOKED_AT)):
        yield str(pool.network_address + _FIRST + (start + step) % count)


def _holder(kv: pb.KeyValue) -> bytes:
    try:
        return bytes.fromhex(kv.value.decode("ascii"))
    except ValueError:
        shown = repr(bytes(kv.key))[2:-1]
        raise ForeignRecord(
            f"etcd: {shown} does not hold a device's key; remove it with 'etcdctl del {shown}'"
        ) from None
