"""The store of a cluster: records in etcd, each commit one transaction that compares what it was decided on."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from jumpvpn.runtime.stores.base import TERMINATED, CommitResult, StoredSession, StoreUnavailable, Write, judge
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import RANGE, TXN, Client, Patience, Refused, Unanswered
from jumpvpn.runtime.stores.etcd.config import EtcdConfig
from jumpvpn.runtime.stores.etcd.records import (
    FORMAT,
    LONGEST_LINES,
    Names,
    after_prefix,
    decode_lines,
    decode_session,
    decode_timestamp,
    encode_lines,
    encode_session,
    encode_timestamp,
    lines_of,
)

# etcd's own bounds are 1.5 MiB a request and 128 operations a transaction (--max-request-bytes, --max-txn-ops).
LONGEST_RECORD = 64 << 10  # a record is a few KiB; bounds a page of them
LONGEST_COMMIT = 1 << 20
_PAGE = 256  # records: 16 MiB at most
_LINES_PAGE = 16  # commits' lines: 16 MiB at most
_FORGET = 100  # deletions in one transaction
_INDEX_BITS = 16
_LISTINGS = 3  # begun again when the revision being listed is compacted away meanwhile


class CommitUnknown(StoreUnavailable):
    """The store went away after a commit was sent: it may have been carried out.

    Asking again with the same Write is safe and tells.
    """


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a commit was decided on: three values and the revisions to compare (0 = the key does not exist)."""

    live: pb.KeyValue | None
    dead: pb.KeyValue | None
    device: pb.KeyValue | None
    done: bool

    @property
    def session(self) -> StoredSession | None:
        found = self.live or self.dead
        return None if found is None else decode_session(found.key, found.value)

    @property
    def timestamp(self) -> int:
        return 0 if self.device is None else decode_timestamp(self.device.key, self.device.value)


class EtcdStore:
    """Session records in etcd. Open with ``await EtcdStore.open(config)``.

    Several gateways share the records of one cluster; the outbox is each node's own. Erased keys of terminated sessions
    stay in etcd's history until it is compacted, sealed as they were.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._names = Names(client.config.cluster, client.config.node)
        self._exported = 0

    @classmethod
    async def open(cls, config: EtcdConfig) -> EtcdStore:
        """Reach the cluster and check that it holds our layout. Raises StoreUnavailable with one clear reason."""
        store = cls(await Client.open(config))
        try:
            await store._check_format()
        except BaseException:
            await store.close()
            raise
        return store

    @property
    def client(self) -> Client:
        """The connection, to be shared with ``EtcdLeases``."""
        return self._client

    async def load_all(self) -> list[StoredSession]:
        """Every session that is not terminated, in order of its identifier, all as of one revision."""
        for _ in range(_LISTINGS):
            try:
                return await self._pages()
            except Refused as refused:
                if refused.code is not grpc.StatusCode.OUT_OF_RANGE:
                    raise
        raise StoreUnavailable("etcd: forgets its history while it is listed; compact it less often than every second")

    async def load(self, session_id: bytes) -> StoredSession | None:
        """One session, terminated ones too."""
        keys = (self._names.live_session(session_id), self._names.dead_session(session_id))
        answer = await self._client.ask(TXN, pb.TxnRequest(success=[_get(key) for key in keys]))
        live, dead = _values(answer)
        return _Seen(live, dead, None, done=False).session

    async def commit(self, write: Write) -> CommitResult:
        """Apply one unit in one transaction; a majority has it on disk when this returns COMMITTED.

        After a try without an answer everything is read back, the mark that the unit leaves included; sending it again
        is safe, because the comparison lets at most one of the two through. Raises CommitUnknown when the time ends
        in such doubt, and StoreUnavailable when nothing was changed.
        """
        _check_lines(write)
        attempt = _Attempt(self._client, self._names, write)
        try:
            return await attempt.settle()
        except StoreUnavailable as failure:
            if attempt.doubt:
                raise CommitUnknown(f"{failure.reason}; whether the last commit took place is not known") from failure
            raise

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp (ns) of this device; 0 if none."""
        answer = await self._client.ask(RANGE, pb.RangeRequest(key=self._names.device(device)))
        return decode_timestamp(answer.kvs[0].key, answer.kvs[0].value) if answer.kvs else 0

    async def outbox(self, limit: int = 256) -> list[tuple[int, bytes]]:
        """Oldest lines of this node's commits not yet exported, in the order of the commits.

        A line's number is the revision of its commit and its place in it: it rises over restarts without a counter.
        """
        prefix, found = self._names.outbox, list[tuple[int, bytes]]()
        floor = self._exported >> _INDEX_BITS
        while len(found) < limit:
            request = pb.RangeRequest(
                key=prefix, range_end=after_prefix(prefix), limit=_LINES_PAGE, min_create_revision=floor,
                sort_order=pb.RangeRequest.ASCEND, sort_target=pb.RangeRequest.CREATE,
            )  # fmt: skip
            page = await self._client.ask(RANGE, request)
            for kv in page.kvs:
                numbered = enumerate(decode_lines(kv.key, kv.value), kv.create_revision << _INDEX_BITS)
                found += [(number, line) for number, line in numbered if number > self._exported]
            if not page.more:
                break
            floor = page.kvs[-1].create_revision + 1
        return found[:limit]

    async def exported(self, up_to: int) -> None:
        """Forget lines up to this number; a commit's lines are removed together, once the last of them is exported."""
        self._exported = max(self._exported, up_to)
        prefix = self._names.outbox
        request = pb.RangeRequest(
            key=prefix, range_end=after_prefix(prefix), limit=_FORGET, keys_only=True,
            max_create_revision=self._exported >> _INDEX_BITS,
        )  # fmt: skip
        while True:
            page = await self._client.ask(RANGE, request)
            gone = [kv.key for kv in page.kvs if self._last_number(kv) <= self._exported]
            if gone:
                await self._client.ask(TXN, pb.TxnRequest(success=[_delete(key) for key in gone]))
            if not (page.more and gone):
                return

    async def close(self) -> None:
        """Close the connections, those of an ``EtcdLeases`` that shares them too."""
        await self._client.close()

    def _last_number(self, entry: pb.KeyValue) -> int:
        return (entry.create_revision << _INDEX_BITS) + lines_of(entry.key) - 1

    async def _pages(self) -> list[StoredSession]:
        start, end = self._names.live, after_prefix(self._names.live)
        found: list[StoredSession] = []
        revision = 0
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=_PAGE, revision=revision)
            page = await self._client.ask(RANGE, request)
            found += [decode_session(kv.key, kv.value) for kv in page.kvs]
            if not page.more:
                return found
            start, revision = page.kvs[-1].key + b"\0", revision or page.header.revision

    async def _check_format(self) -> None:
        key = self._names.format
        request = pb.TxnRequest(compare=[_unchanged(key, None)], success=[_put(key, FORMAT)], failure=[_get(key)])
        answer = await self._client.ask(TXN, request)
        found = FORMAT if answer.succeeded else answer.responses[0].response_range.kvs[0].value
        if found != FORMAT:
            raise StoreUnavailable(
                f"etcd: {key.decode()} has format {found.decode('ascii', 'backslashreplace')!r}, "
                f"this program knows {FORMAT.decode()!r}; upgrade the program, or name another cluster"
            )


class _Attempt:
    """One commit until it is settled. ``doubt``: a transaction was sent whose fate is not known."""

    def __init__(self, client: Client, names: Names, write: Write) -> None:
        self.doubt = False
        self._client = client
        self._write = write
        self._patience = Patience(client)
        self._live, self._dead = names.live_session(write.session_id), names.dead_session(write.session_id)
        self._device = None if write.device is None else names.device(write.device[0])
        self._entry = names.outbox_entry(write)

    async def settle(self) -> CommitResult:
        """Look, judge, transact; again from what was seen instead when the comparison failed or no answer came."""
        seen: _Seen | None = None
        while True:
            sent = False
            try:
                if seen is None:
                    seen = self._seen(await self._transact(pb.TxnRequest(success=self._reads())))
                session = seen.session
                verdict = CommitResult.COMMITTED if seen.done else judge(self._write, session, seen.timestamp)
                if verdict is not None:
                    return verdict
                request = self._request(seen, session)
                sent = True
                answer = await self._transact(request)
            except Unanswered as failure:
                self.doubt = self.doubt or sent
                seen = None
                await self._patience.wait(failure)
            else:
                if answer.succeeded:
                    return CommitResult.COMMITTED
                # Revisions only rise: whatever was sent before can no longer pass its comparison.
                self.doubt = False
                seen = self._seen(answer)

    async def _transact(self, request: pb.TxnRequest) -> pb.TxnResponse:
        answer: pb.TxnResponse = await self._client.once(TXN, request, self._patience.deadline)
        return answer

    def _reads(self) -> list[pb.RequestOp]:
        keys = [self._live, self._dead, self._entry] + ([] if self._device is None else [self._device])
        return [_get(key) for key in keys]

    def _seen(self, answer: pb.TxnResponse) -> _Seen:
        live, dead, entry, *device = _values(answer)
        return _Seen(live, dead, device[0] if device else None, done=entry is not None)

    def _request(self, seen: _Seen, session: StoredSession | None) -> pb.TxnRequest:
        write, new = self._write, self._write.stored_over(session)
        record = encode_session(new)
        if len(record) > LONGEST_RECORD:
            raise StoreUnavailable(
                f"etcd: the record of {write.chain} has {len(record)} bytes, more than the {LONGEST_RECORD} "
                "that a record may have; nothing was committed"
            )
        compare = [_unchanged(self._live, seen.live), _unchanged(self._dead, seen.dead)]
        if new.state == TERMINATED:
            success = [_delete(self._live), _put(self._dead, record)]
        else:
            success = [_put(self._live, record)]
        if self._device is not None and write.device is not None:
            compare.append(_unchanged(self._device, seen.device))
            success.append(_put(self._device, encode_timestamp(write.device[1])))
        if write.lines:
            success.append(_put(self._entry, encode_lines(write.lines)))
        return pb.TxnRequest(compare=compare, success=success, failure=self._reads())


def _check_lines(write: Write) -> None:
    size = sum(map(len, write.lines))
    if size > LONGEST_COMMIT or len(write.lines) > LONGEST_LINES:
        raise StoreUnavailable(
            f"etcd: the commit of {write.chain} has {len(write.lines)} event lines of {size} bytes, more than the "
            f"{LONGEST_LINES} lines of {LONGEST_COMMIT} bytes that one transaction takes; nothing was committed"
        )


def _get(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def _put(key: bytes, value: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))


def _delete(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def _unchanged(key: bytes, seen: pb.KeyValue | None) -> pb.Compare:
    """The comparison that holds while ``key`` is as ``seen``; None = it does not exist, which etcd calls revision 0."""
    revision = 0 if seen is None else seen.mod_revision
    return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key, mod_revision=revision)


def _values(answer: pb.TxnResponse) -> list[pb.KeyValue | None]:
    """The single value, if there is one, that each reading operation of a transaction found."""
    found = [response.response_range.kvs for response in answer.responses]
    return [kvs[0] if kvs else None for kvs in found]
