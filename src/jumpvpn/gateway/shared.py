"""What the gateways of a cluster share, opened for one of them: records, leases, ticket keys, inner addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from jumpvpn.config import GatewayConfig
from jumpvpn.config_cluster import ClusterConfig
from jumpvpn.gateway.addresses import fixed_addresses
from jumpvpn.runtime.keys import read_cluster_key
from jumpvpn.runtime.stores.base import StoredSession
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.runtime.stores.etcd.addresses import Addresses
from jumpvpn.runtime.stores.etcd.config import EtcdConfig
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases
from jumpvpn.runtime.stores.etcd.reach import answering
from jumpvpn.runtime.stores.etcd.records import Names, decode_session
from jumpvpn.runtime.stores.etcd.secrets import ClusterSeal, ClusterSecrets, in_order_of_use
from jumpvpn.runtime.stores.etcd.store import EtcdStore
from jumpvpn.runtime.stores.sqlite import SqliteStore
from jumpvpn.values import MILLISECOND, Instant

ATTEMPT_MS = 1_500  # a slow store across a continent still answers
TICKET_KEY_LIFE_MS = 86_400_000  # a day, or the longest life of a session: three are kept, so none loses its tickets


class Shared:
    """Open with ``await Shared.open(...)``. ``lost`` and ``may_act_until`` are set by whoever acts."""

    def __init__(self, config: GatewayConfig, etcd: EtcdStore, key: bytes) -> None:
        self._config = config
        self._etcd = etcd
        self._names = Names(etcd.client.config.cluster, config.name)
        self._addresses = Addresses(etcd.client)
        self._secrets = ClusterSecrets(etcd.client, ClusterSeal(key))
        self._fixed = fixed_addresses(config)
        self._taken = frozenset(address for fixed in self._fixed.values() for address in fixed)
        self.leases = EtcdLeases(etcd.client)
        self.lost: Callable[[bytes, StoredSession | None], None] = lambda _session_id, _found: None
        self.complain: Callable[[str], None] = lambda _reason: None
        self.may_act_until: Callable[[], Instant] = lambda: Instant(0)
        self.store: ClusterStore

    @classmethod
    async def open(cls, config: GatewayConfig, cluster: ClusterConfig) -> Shared:
        """Reach etcd and the local file. Raises StoreUnavailable and StartFailed with what to do.

        A member that does not answer is left after a fifth of the lease: within one lease every other one is asked.
        """
        attempt_ms = min(ATTEMPT_MS, cluster.lease // MILLISECOND // 5)
        key = read_cluster_key(cluster.key_file)
        etcd = await EtcdStore.open(
            EtcdConfig(
                endpoints=cluster.etcd, ca=cluster.ca, certificate=cluster.certificate, key=cluster.key,
                cluster=cluster.name, node=config.name, remembered=config.state_dir / "store-revision",
                attempt_ms=attempt_ms,
            )
        )  # fmt: skip
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(etcd.close)
            local = await SqliteStore.open(config.state_dir / "sessions.sqlite")
            stack.push_async_callback(local.close)
            shared = cls(config, etcd, key)
            await shared._secrets.check()
            shared.store = await ClusterStore.open(
                local, etcd, config.name, give_up_at=shared._until, conflicts=shared._lost, foreign=shared._foreign
            )
            stack.pop_all()
        return shared

    def _until(self) -> Instant:
        return self.may_act_until()

    def _lost(self, session_id: bytes, found: StoredSession | None) -> None:
        self.lost(session_id, found)

    def _foreign(self, reason: str) -> None:
        self.complain(reason)

    async def claim_addresses(self, device: bytes) -> tuple[str, ...]:
        """The inner addresses of a device (``address/prefix``), the same at every gateway. Raises StoreUnavailable."""
        tunnel = self._config.tunnel
        pools = [pool for pool in (tunnel.pool, tunnel.pool6) if pool is not None]
        addresses = await self._addresses.claim(device, self._fixed.get(device, ()), pools, self._taken)
        return tuple(f"{address}/{pool.prefixlen}" for address, pool in zip(addresses, pools, strict=True))

    async def ticket_keys(self, now_ms: int, life_ms: int) -> list[bytes]:
        """The keys of tickets, the one that seals first; a new one is made when the newest is as old as a session gets.

        Raises StoreUnavailable, also when the cluster's key is not the cluster's.
        """
        keys = await self._secrets.ticket_keys(now_ms)
        if now_ms - keys[0].created_ms > max(life_ms, TICKET_KEY_LIFE_MS):
            keys = await self._secrets.rotate(keys[0].id, now_ms)
        return [key.key for key in in_order_of_use(keys, now_ms)]

    async def endpoints(self) -> tuple[tuple[str, bool | None], ...]:
        """Each etcd server, and whether it answers now."""
        return await answering(self._etcd.client.config)

    def decode_record(self, name: str, value: bytes) -> StoredSession:
        """The record under a name of the watch. Raises StoreUnavailable."""
        return decode_session(self._names.root + name.encode(), value)
