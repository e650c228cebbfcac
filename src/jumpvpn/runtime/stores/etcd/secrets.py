"""Secrets that the gateways of a cluster share through etcd, sealed under the cluster key, which etcd never sees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import TXN, Client
from jumpvpn.runtime.stores.etcd.operations import get, put, unchanged, values
from jumpvpn.runtime.stores.etcd.records import Names

KEPT = 3  # ticket keys: the newest seals, all open; a ticket is older than two rotations only if nobody used it
# A key seals only when it is older: by then every gateway has read the list again (they do so every minute).
SETTLE_MS = 150_000
_KEY_BYTES = 32
_NONCE_BYTES = 12
_LONGEST = 64 << 10
_CHECK = b"jumpvpn cluster"


class WrongClusterKey(StoreUnavailable):
    """What the cluster sealed does not open with this gateway's cluster key."""


@dataclass(frozen=True, slots=True)
class TicketKey:
    """``id`` rises with each rotation; ``created_ms`` is wall time (UTC); ``key``: 32 random bytes, never shown."""

    id: int
    created_ms: int
    key: bytes

    def __repr__(self) -> str:
        return f"TicketKey(id={self.id}, created_ms={self.created_ms})"


class _Listed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    id: int
    created_ms: int
    key: bytes


class ClusterSeal:
    """AES-256-GCM under a key derived from the cluster key; a sealed value opens only under its own name."""

    def __init__(self, cluster_key: bytes) -> None:
        derived = HKDF(SHA256(), _KEY_BYTES, salt=None, info=b"jumpvpn v1 ticket keys").derive(cluster_key)
        self._cipher = AESGCM(derived)

    def __repr__(self) -> str:
        return "ClusterSeal()"

    def seal(self, name: bytes, value: bytes) -> bytes:
        """``nonce 12 | sealed``."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, name)

    def open(self, name: bytes, sealed: bytes) -> bytes:
        """The value. Raises WrongClusterKey."""
        try:
            if len(sealed) > _LONGEST:
                raise ValueError("too long")
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name)
        except (InvalidTag, ValueError):
            raise WrongClusterKey(
                "cluster.key is not the one of this cluster: "
                f"{name.decode('utf-8', 'backslashreplace')} in etcd does not open with it; "
                "copy the file of another gateway of the cluster"
            ) from None


class ClusterSecrets:
    """``secrets/check`` and ``secrets/tickets``, over the connection of an ``EtcdStore``."""

    def __init__(self, client: Client, seal: ClusterSeal) -> None:
        self._client, self._seal = client, seal
        self._names = Names(client.config.cluster, client.config.node)

    async def check(self) -> None:
        """Whether the cluster key is the cluster's; the first gateway decides. Raises WrongClusterKey."""
        name = self._names.secret("check")
        kv = await self._put(name, _CHECK, 0)
        if kv is not None and self._seal.open(name, kv.value) != _CHECK:
            raise StoreUnavailable(f"etcd: {name.decode()} is not what this program wrote; remove it")

    async def ticket_keys(self, now_ms: int) -> tuple[TicketKey, ...]:
        """The cluster's ticket keys, newest first; the first one is made here if there is none."""
        keys, _ = await self._read()
        return keys or await self.rotate(0, now_ms)

    async def rotate(self, newest_id: int, now_ms: int) -> tuple[TicketKey, ...]:
        """Put another key in front if ``newest_id`` still is the newest (0: none); the keys afterwards.

        Of several gateways that rotate at the same time one makes the key, and all get it.
        """
        while True:
            keys, revision = await self._read()
            if (keys[0].id if keys else 0) != newest_id:
                return keys
            made = (TicketKey(newest_id + 1, now_ms, os.urandom(_KEY_BYTES)), *keys)[:KEPT]
            listed = [_Listed(key.id, key.created_ms, key.key) for key in made]
            if await self._put(self._names.secret("tickets"), msgspec.msgpack.encode(listed), revision) is None:
                return made

    async def _read(self) -> tuple[tuple[TicketKey, ...], int]:
        name = self._names.secret("tickets")
        (kv,) = values(await self._client.ask(TXN, pb.TxnRequest(success=[get(name)])))
        if kv is None:
            return (), 0
        try:
            listed = msgspec.msgpack.decode(self._seal.open(name, kv.value), type=list[_Listed])
        except msgspec.MsgspecError as error:
            raise StoreUnavailable(
                f"etcd: {name.decode()} has a format that this program does not know ({error}); upgrade the program"
            ) from None
        return tuple(TicketKey(entry.id, entry.created_ms, entry.key) for entry in listed), int(kv.mod_revision)

    async def _put(self, name: bytes, value: bytes, revision: int) -> pb.KeyValue | None:
        """Seal ``value`` under ``name`` if that is as of ``revision``; None = done, else what is there.

        A request that is carried out although its answer is lost finds its own value, which opens like any other.
        """
        sealed = self._seal.seal(name, value)
        request = pb.TxnRequest(compare=[unchanged(name, revision)], success=[put(name, sealed)], failure=[get(name)])
        answer = await self._client.ask(TXN, request)
        if answer.succeeded:
            return None
        (kv,) = values(answer)
        return None if kv is not None and kv.value == sealed else kv


def in_order_of_use(keys: Sequence[TicketKey], now_ms: int) -> tuple[TicketKey, ...]:
    """The key that seals first, then the others, which open: one that others may not know yet does not seal."""
    settled = [key for key in keys if now_ms - key.created_ms >= SETTLE_MS]
    first = settled[0] if settled else keys[-1]
    return (first, *(key for key in keys if key is not first))
