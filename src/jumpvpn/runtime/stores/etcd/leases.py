"""Leases and watches in etcd."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import (
    GRANT,
    KEEP_ALIVE,
    RANGE,
    REQUIRE_LEADER,
    REVOKE,
    TXN,
    WATCH,
    Client,
    Patience,
    Refused,
    Unanswered,
    packed,
)
from jumpvpn.runtime.stores.etcd.records import Names, after_prefix
from jumpvpn.runtime.stores.leases import Change, Compacted, Lease, LeaseLost, Listing
from jumpvpn.values import Instant

_SECOND = 1_000_000_000
_LISTED = 256  # names in one answer: 16 MiB of records at most
_REOPEN_SECONDS = 0.05  # at least this between two streams: a member that ends each at once is not run down


class EtcdLeases:
    """Leases and watches over the connection of an ``EtcdStore``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._names = Names(client.config.cluster, client.config.node)

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
        try:
            await self._client.ask(REVOKE, pb.LeaseRevokeRequest(id=lease.id))
        except Refused as refused:
            if refused.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def hold(self, lease: Lease, name: str, value: bytes) -> bool:
        """Set ``held/NAME`` until the lease ends; False if another lease holds it. Raises LeaseLost."""
        key = self._names.root + b"held/" + name.encode()
        request = pb.TxnRequest(
            compare=[pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key, mod_revision=0)],
            success=[pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease.id))],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key))],
        )
        try:
            answer = await self._client.ask(TXN, request)
        except Refused as refused:
            if refused.code is grpc.StatusCode.NOT_FOUND:
                raise LeaseLost("etcd has ended the lease") from refused
            raise
        if answer.succeeded:
            return True
        holders = answer.responses[0].response_range.kvs
        return any((kv.lease, kv.value) == (lease.id, value) for kv in holders)

    async def listing(self, prefix: str) -> Listing:
        """Every name under ``prefix``, as of one revision."""
        start = self._names.root + prefix.encode()
        end, revision = after_prefix(start), 0
        entries: dict[str, bytes] = {}
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=_LISTED, revision=revision)
            page = await self._client.ask(RANGE, request)
            revision = revision or page.header.revision
            entries |= {self._name(kv.key): kv.value for kv in page.kvs}
            if not page.more:
                return Listing(revision, entries)
            start = page.kvs[-1].key + b"\0"

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[Change | Compacted]:
        """Every change under ``prefix`` from that revision on, past and future, in order; ends after Compacted.

        A stream that breaks is opened again, at another member, after the last change that was handed on; raises
        StoreUnavailable when no member takes it within the call's time.
        """
        start, following = self._names.root + prefix.encode(), from_revision
        patience: Patience | None = None
        while True:
            try:
                async with aclosing(self._stream(start, following)) as stream:
                    async for answer in stream:
                        patience = None
                        if answer.compact_revision:
                            yield Compacted(answer.compact_revision)
                            return
                        for event in answer.events:
                            yield self._change(event)
                        if answer.events:  # all of one revision come in one answer
                            following = answer.events[-1].kv.mod_revision + 1
            except Unanswered as failure:
                patience = patience or Patience(self._client)
                await patience.wait(failure, least=_REOPEN_SECONDS)

    async def _stream(self, start: bytes, revision: int) -> AsyncGenerator[Any, None]:
        member = self._client.turn
        call = self._client.channel.stream_stream(WATCH.path, packed, WATCH.answer)(metadata=REQUIRE_LEADER)
        create = pb.WatchCreateRequest(key=start, range_end=after_prefix(start), start_revision=revision)
        try:
            await call.write(pb.WatchRequest(create_request=create))
            while (answer := await call.read()) is not grpc.aio.EOF:
                yield answer
                if answer.canceled:
                    raise StoreUnavailable(f"etcd: ended the watch: {answer.cancel_reason or 'no reason given'}")
            raise Unanswered("the watch ended")
        except grpc.aio.AioRpcError as error:
            raise self._client.failure(error, member) from None
        finally:
            call.cancel()

    async def _renewed(self, lease: Lease, deadline: float) -> Any:
        """One exchange on a stream of its own: nothing is left to go stale when members change."""
        member = self._client.turn
        stream = self._client.channel.stream_stream(KEEP_ALIVE.path, packed, KEEP_ALIVE.answer)
        call = stream(timeout=self._client.attempt(deadline), metadata=REQUIRE_LEADER)
        try:
            await call.write(pb.LeaseKeepAliveRequest(id=lease.id))
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            raise self._client.failure(error, member) from None
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise Unanswered("the member ended the stream")
        return answer

    def _change(self, event: pb.Event) -> Change:
        value = event.kv.value if event.type == pb.Event.PUT else None
        return Change(self._name(event.kv.key), value, event.kv.mod_revision)

    def _name(self, key: bytes) -> str:
        return key[len(self._names.root) :].decode("utf-8", "backslashreplace")


def _lease(lease_id: int, before: Instant, ttl_seconds: int) -> Lease:
    return Lease(lease_id, Instant(before + ttl_seconds * _SECOND))
