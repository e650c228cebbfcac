"""Leases and watches in etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import (
    GRANT,
    KEEP_ALIVE,
    REQUIRE_LEADER,
    REVOKE,
    TXN,
    Client,
    Patience,
    Refused,
    packed,
)
from jumpvpn.runtime.stores.etcd.operations import get, put, unchanged, values
from jumpvpn.runtime.stores.etcd.records import Names, after_prefix
from jumpvpn.runtime.stores.etcd.watching import Following, Keys, pages, stream
from jumpvpn.runtime.stores.leases import Change, Compacted, Lease, LeaseLost, Listing
from jumpvpn.runtime.stores.shared import Unanswered
from jumpvpn.values import Instant

_SECOND = 1_000_000_000
_MOST_HELD = 16  # a node holds one name under one lease; what is older belongs to leases that ended
# A node sees its own beats in the stream of ``follow``, several in this time; if it does not, the connection is dead
# (gRPC itself finds that out after 13 s), and another member is asked. Leases that are long may make it reopen in vain.
SILENCE_SECONDS = 4.0
_REOPEN_SECONDS = 0.05  # at least this between two streams: a member that ends each at once is not run down


class EtcdLeases:
    """Leases and watches over the connection of an ``EtcdStore``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._names = Names(client.config.cluster, client.config.node)
        self._beats: dict[tuple[int, str], int] = {}  # the last revision of each name held, by lease

    async def grant(self, ttl_seconds: int) -> Lease:
        """A lease of at least this length (etcd gives 2 s or more). A try without an answer leaves one to run out."""
        if ttl_seconds < 1:
            raise ValueError("a lease lasts at least one second")
        patience = Patience(self._client)
        while True:
            before = clock.boot_time()
            try:
                answer = await self._client.once(GRANT, pb.LeaseGrantRequest(ttl=ttl_seconds), patience.deadline)
            except Unanswered as failure:
                await patience.wait(failure)
            else:
                return _lease(answer.id, before, answer.ttl)

    async def keep_alive(self, lease: Lease) -> Lease:
        """The same lease, good for its whole length again; tried no longer than what remains of it.

        Raises LeaseLost, also without asking once it is over: etcd may know a lease that its holder no longer may use.
        """
        left = lease.remaining(clock.boot_time()) / _SECOND
        patience = Patience(self._client, self._client.deadline(left))
        while True:
            before = clock.boot_time()
            if not lease.remaining(before):
                raise LeaseLost("the lease ran out before etcd could be asked to keep it")
            try:
                answer = await self._renewed(lease, patience.deadline)
            except Unanswered as failure:
                await patience.wait(failure)
            else:
                if answer.ttl <= 0:
                    raise LeaseLost("etcd has ended the lease")
                return _lease(lease.id, before, answer.ttl)

    async def revoke(self, lease: Lease) -> None:
        """End the lease and remove what is held under it; ending an ended lease does nothing."""
        for held in [held for held in self._beats if held[0] == lease.id]:
            del self._beats[held]
        try:
            await self._client.ask(REVOKE, pb.LeaseRevokeRequest(id=lease.id))
        except Refused as refused:
            if refused.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def revoke_by_id(self, lease_id: int) -> None:
        """End a lease that an earlier process of this node left; ending an ended lease does nothing."""
        await self.revoke(Lease(lease_id, Instant(0)))

    async def beat(self, lease: Lease, name: str, value: bytes) -> Lease:
        """Keep the lease alive and set ``held/NAME``, which it holds, to ``value``; the renewed lease.

        Raises LeaseLost: the lease is over, or does not hold the name (somebody removed it).
        """
        renewed = await self.keep_alive(lease)
        key = self._names.held + name.encode()
        seconds = renewed.remaining(clock.boot_time()) / _SECOND
        deadline = self._client.deadline(seconds)
        while True:
            request = pb.TxnRequest(
                compare=[unchanged(key, self._beats.get((lease.id, name), -1))],
                success=[put(key, value, lease.id)], failure=[get(key)],
            )  # fmt: skip
            answer = await self._held_under(request, deadline)
            if answer.succeeded:
                self._beats[lease.id, name] = answer.header.revision
                return renewed
            (there,) = values(answer)
            if there is None or there.lease != lease.id:
                raise LeaseLost(f"held/{name} is not held under this lease any more; somebody removed or replaced it")
            self._beats[lease.id, name] = there.mod_revision

    async def hold(self, lease: Lease, name: str, value: bytes) -> bool:
        """Set ``held/NAME`` until the lease ends; False if another lease holds it. Raises LeaseLost."""
        key = self._names.held + name.encode()
        request = pb.TxnRequest(compare=[unchanged(key, 0)], success=[put(key, value, lease.id)], failure=[get(key)])
        answer = await self._held_under(request)
        if answer.succeeded:
            self._beats[lease.id, name] = answer.header.revision
            while len(self._beats) > _MOST_HELD:
                del self._beats[next(iter(self._beats))]
            return True
        (holder,) = values(answer)
        return holder is not None and (holder.lease, holder.value) == (lease.id, value)

    async def listing(self, prefix: str) -> Listing:
        """Every name under ``prefix``, as of one revision."""
        keys, entries, revision = self._under(prefix), dict[str, bytes](), 0
        async for page in pages(self._client, keys):
            entries |= {keys.name(kv.key): kv.value for kv in page.entries}
            revision = page.revision
        return Listing(revision, entries)

    def follow(self, since: int, silence: float = SILENCE_SECONDS) -> AsyncIterator[Change]:
        """Every change of ``held/`` and ``live/`` after the revision ``since``, in order, without an end.

        What etcd has forgotten is found by listing again: first the names that are gone, then those that changed, in
        the order of their last changes, all with the revision of the listing. Raises StoreUnavailable when etcd refuses
        (also when it has forgotten ``since`` itself before the first answer: list again).
        """
        keys = Keys(self._names.held, after_prefix(self._names.live), len(self._names.root))
        return Following(self._client, keys, since, silence).changes()

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[Change | Compacted]:
        """Every change under ``prefix`` from that revision on, past and future, in order; ends after Compacted.

        A stream that breaks is opened again, at another member, after the last change that was handed on; raises
        StoreUnavailable when no member takes it within the call's time.
        """
        keys, following = self._under(prefix), from_revision
        patience: Patience | None = None
        while True:
            try:
                async with aclosing(stream(self._client, keys, following)) as answers:
                    async for answer in answers:
                        patience = None
                        if answer.compact_revision:
                            yield Compacted(answer.compact_revision)
                            return
                        for event in answer.events:
                            yield keys.change(event)
                        if answer.events:  # all of one revision come in one answer
                            following = answer.events[-1].kv.mod_revision + 1
            except Unanswered as failure:
                patience = patience or Patience(self._client)
                await patience.wait(failure, least=_REOPEN_SECONDS)

    def _under(self, prefix: str) -> Keys:
        start = self._names.root + prefix.encode()
        return Keys(start, after_prefix(start), len(self._names.root))

    async def _held_under(self, request: pb.TxnRequest, deadline: float | None = None) -> Any:
        try:
            return await self._client.ask(TXN, request, deadline)
        except Refused as refused:
            if refused.code is grpc.StatusCode.NOT_FOUND:
                raise LeaseLost("etcd has ended the lease") from refused
            raise

    async def _renewed(self, lease: Lease, deadline: float) -> Any:
        """One exchange on a stream of its own: nothing is left to go stale when members change."""
        member = self._client.turn
        stream = self._client.channel.stream_stream(KEEP_ALIVE.path, packed, KEEP_ALIVE.answer)
        call = stream(timeout=self._client.attempt(deadline), metadata=REQUIRE_LEADER)
        try:
            await call.write(pb.LeaseKeepAliveRequest(id=lease.id))
            answer = await call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            raise self._client.failure(error, member) from None
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise Unanswered("the member ended the stream")
        return answer


def _lease(lease_id: int, before: Instant, ttl_seconds: int) -> Lease:
    return Lease(lease_id, Instant(before + ttl_seconds * _SECOND))
