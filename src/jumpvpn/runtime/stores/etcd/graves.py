"""How long etcd remembers terminated sessions: under one lease of each node and day, which nobody keeps alive."""

from __future__ import annotations

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import GRANT, Client

_HOUR_SECONDS = 3_600
# A record of a terminated session answers late requests of its client ("ended, because ..."). Its identifier is random
# and is not given again, and a handshake is not accepted twice, so nothing depends on it after a client gave up.
REMEMBERED_SECONDS = 48 * _HOUR_SECONDS  # at least half of it for each record
_CHANGED_SECONDS = 24 * _HOUR_SECONDS
_SECOND = 1_000_000_000


class Graves:
    """The lease for records of terminated sessions; one object a day instead of one for each record."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lease = 0
        self._until = 0

    async def lease(self, deadline: float) -> int:
        """Its number; one try. Raises Unanswered, StoreUnavailable."""
        now = clock.boot_time()
        if not self._lease or now >= self._until:
            answer = await self._client.once(GRANT, pb.LeaseGrantRequest(ttl=REMEMBERED_SECONDS), deadline)
            self._lease, self._until = answer.id, now + _CHANGED_SECONDS * _SECOND
        return self._lease

    def lost(self) -> None:
        """etcd does not know the lease (it was revoked by hand): ask for another one next time."""
        self._lease = 0
