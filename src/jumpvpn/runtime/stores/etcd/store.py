"""The store of a cluster: records in etcd, each commit one transaction that compares what it was decided on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from jumpvpn.runtime.stores.base import (
    TERMINATED,
    CommitResult,
    CommitUnknown,
    ForeignRecord,
    StoredSession,
    StoreUnavailable,
    Write,
)
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import RANGE, TXN, Client, OutOfSpace, Patience, Refused, WentBack
from jumpvpn.runtime.stores.etcd.config import EtcdConfig
from jumpvpn.runtime.stores.etcd.graves import Graves
from jumpvpn.runtime.stores.etcd.operations import delete, get, put, unchanged, values
from jumpvpn.runtime.stores.etcd.records import (
    FORMAT,
    LONGEST_LINES,
    Names,
    after_prefix,
    decode_device,
    decode_entry,
    decode_lines,
    decode_session,
    encode_device,
    encode_lines,
    encode_session,
    lines_of,
)
from jumpvpn.runtime.stores.pool import Bounds, Pool, Spoilt
from jumpvpn.runtime.stores.shared import Exchange, Found, KeptLines, Outcome, Unanswered, settle
from jumpvpn.values import replace

# etcd's own bounds are 1.5 MiB a request and 128 operations a transaction (--max-request-bytes, --max-txn-ops).
LONGEST_RECORD = 64 << 10  # a record is a few KiB; bounds a page of them
LONGEST_COMMIT = 1 << 20
_PAGE = 256  # records: 16 MiB at most
_LINES_PAGE = 16  # commits' lines: 16 MiB at most
_KEEPERS = 256  # nodes whose lines are kept: a cluster has 16, and those that were replaced
_FORGET = 100  # deletions in one transaction
_INDEX_BITS = 16
# Sessions that are asked for at the same time: two reads of each, of etcd's 128 operations; 4 MiB of records at most.
_READS_TOGETHER = Bounds(at_once=2, items=60, size=60)
_LISTINGS = 3  # begun again when the revision being listed is compacted away meanwhile


class EtcdStore:
    """Session records in etcd. Open with ``await EtcdStore.open(config)``.

    Several gateways share the records of one cluster; the outbox is each node's own. Erased keys of terminated sessions
    stay in etcd's history until it is compacted, sealed as they were.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._names = Names(client.config.cluster, client.config.node)
        self._graves = Graves(client)
        self._finds: Pool[bytes, list[pb.KeyValue | None]] = Pool(self._find_all, _READS_TOGETHER)
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
                return [decode_session(kv.key, kv.value) async for kv in self._live()]
            except Refused as refused:
                if refused.code is not grpc.StatusCode.OUT_OF_RANGE:
                    raise
        raise StoreUnavailable("etcd: forgets its history while it is listed; compact it less often than every second")

    async def owned(self, node: str, foreign: Callable[[str], None]) -> AsyncIterator[Found]:
        """Every session of ``node`` that is not terminated, page by page, each page as of its own time."""
        async for kv in self._live(at_once=False):
            try:
                session = decode_session(kv.key, kv.value)
            except ForeignRecord as damage:
                foreign(damage.reason)
            else:
                if session.owner == node:
                    yield Found(session, kv.mod_revision)

    async def load(self, session_id: bytes) -> StoredSession | None:
        """One session, terminated ones too."""
        return (await self.find(session_id)).session

    async def find(self, session_id: bytes) -> Found:
        """One session with the revision of its last change, terminated ones too."""
        deadline = self._client.deadline()
        try:
            return _found(await self._finds.ask(session_id, 1, deadline))
        except Spoilt:
            return _found((await self._find_all((session_id,), deadline))[0])

    async def commit(self, write: Write) -> CommitResult:
        """Apply one unit in one transaction; a majority has it on disk when this returns COMMITTED.

        Raises CommitUnknown when the time ends without knowing, and StoreUnavailable when nothing was changed.
        """
        result, _ = await settle(self, write, None, Patience(self._client))
        return result

    def patience(self, at_most: float) -> Patience:
        """For one call of at most so many seconds."""
        return Patience(self._client, self._client.deadline(at_most))

    async def look(self, write: Write, deadline: float) -> Found:
        """Everything that ``write`` is decided on; one try. Raises Unanswered."""
        return _found(values(await self._once(pb.TxnRequest(success=self._touched(write)), deadline)))

    async def exchange(self, changes: Sequence[Exchange], deadline: float) -> Outcome:
        """All of ``changes`` or none, in one transaction; one try. Raises Unanswered, StoreUnavailable."""
        ended = any(change.record.state == TERMINATED for change in changes)
        grave = await self._graves.lease(deadline) if ended else 0
        request = pb.TxnRequest()
        for change in changes:
            self._add(request, change, grave)
        try:
            answer = await self._once(request, deadline)
        except WentBack as failure:
            raise CommitUnknown(failure.reason) from failure
        except OutOfSpace as refused:
            return await self._had_space(changes[0], refused, deadline)
        except Refused as refused:
            if grave and refused.code is grpc.StatusCode.NOT_FOUND:
                self._graves.lost()
                raise Unanswered("the lease of terminated sessions had ended") from refused
            raise
        if answer.succeeded:
            return Outcome(answer.header.revision, None)
        read, found = values(answer), list[Found]()
        for change in changes:
            count = len(self._touched(change.write))
            found.append(_found(read[:count]))
            read = read[count:]
        return Outcome(answer.header.revision, tuple(found))

    async def _had_space(self, change: Exchange, refused: OutOfSpace, deadline: float) -> Outcome:
        """The outcome of a transaction that etcd refused, and perhaps carried out. Raises ``refused`` if it did not."""
        found = await self.look(change.write, deadline)
        if found.revision == change.seen.revision:
            raise refused
        if found.session is not None and found.session.write_id == change.write.write_id:
            return Outcome(found.revision, None)
        raise Unanswered(f"{refused.reason}; and somebody else was there") from refused

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp (ns) of this device; 0 if none."""
        return (await self._device(device))[0]

    async def last_session(self, device: bytes) -> bytes | None:
        """The session that this device began last; None if it began none."""
        return (await self._device(device))[1]

    async def kept(self, node: str | None = None) -> list[KeptLines]:
        """The oldest lines of a node's commits (this one's) that were not erased yet."""
        prefix = self._outbox_of(node)
        page = await self._client.ask(RANGE, _oldest_lines(prefix, 0))
        return [decode_entry(prefix, kv.key, kv.value) for kv in page.kvs]

    async def erase(self, names: Sequence[bytes], node: str | None = None) -> None:
        """Remove lines of that node by the names under which they are kept."""
        prefix = self._outbox_of(node)
        for first in range(0, len(names), _FORGET):
            gone = [delete(prefix + name) for name in names[first : first + _FORGET]]
            await self._client.ask(TXN, pb.TxnRequest(success=gone))

    async def keepers(self) -> list[str]:
        """The nodes of which ``kept`` has something; one small read for each."""
        prefix, nodes = self._names.outboxes, list[str]()
        start, end = prefix, after_prefix(prefix)
        while len(nodes) < _KEEPERS:
            page = await self._client.ask(RANGE, pb.RangeRequest(key=start, range_end=end, limit=1, keys_only=True))
            if not page.kvs:
                break
            name, _, _ = page.kvs[0].key[len(prefix) :].partition(b"/")
            nodes.append(name.decode("utf-8", "backslashreplace"))
            start = after_prefix(prefix + name + b"/")
        return nodes

    async def outbox(self, limit: int = 256) -> list[tuple[int, bytes]]:
        """Oldest lines of this node's commits not yet exported, in the order of the commits.

        For a node that commits each change by itself, with ``commit``; a ``ClusterStore`` exports from its own file.
        A line's number is the revision of its commit and its place in it: it rises over restarts without a counter.
        """
        found = list[tuple[int, bytes]]()
        floor = self._exported >> _INDEX_BITS
        while len(found) < limit:
            page = await self._client.ask(RANGE, _oldest_lines(self._names.outbox, floor))
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
                await self._client.ask(TXN, pb.TxnRequest(success=[delete(key) for key in gone]))
            if not (page.more and gone):
                return

    async def close(self) -> None:
        """Close the connections, those of an ``EtcdLeases`` that shares them too."""
        await self._client.close()

    def _last_number(self, entry: pb.KeyValue) -> int:
        return (entry.create_revision << _INDEX_BITS) + lines_of(entry.key) - 1

    def _outbox_of(self, node: str | None) -> bytes:
        return self._names.outbox if node is None else replace(self._names, node=node).outbox

    async def _live(self, at_once: bool = True) -> AsyncIterator[pb.KeyValue]:
        start, end = self._names.live, after_prefix(self._names.live)
        revision = 0
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=_PAGE, revision=revision)
            page = await self._client.ask(RANGE, request)
            for kv in page.kvs:
                yield kv
            if not page.more:
                return
            start = page.kvs[-1].key + b"\0"
            if at_once:
                revision = revision or page.header.revision

    async def _device(self, device: bytes) -> tuple[int, bytes | None]:
        answer = await self._client.ask(RANGE, pb.RangeRequest(key=self._names.device(device)))
        return decode_device(answer.kvs[0].key, answer.kvs[0].value) if answer.kvs else (0, None)

    async def _check_format(self) -> None:
        key = self._names.format
        request = pb.TxnRequest(compare=[unchanged(key, 0)], success=[put(key, FORMAT)], failure=[get(key)])
        answer = await self._client.ask(TXN, request)
        found = FORMAT if answer.succeeded else answer.responses[0].response_range.kvs[0].value
        if found != FORMAT:
            raise StoreUnavailable(
                f"etcd: {key.decode()} has format {found.decode('ascii', 'backslashreplace')!r}, "
                f"this program knows {FORMAT.decode()!r}; upgrade the program, or name another cluster"
            )

    async def _find_all(self, session_ids: Sequence[bytes], deadline: float) -> list[list[pb.KeyValue | None]]:
        """What there is of each of these sessions, for ``_found``; in one transaction, so all as of one revision."""
        reads = [read for session_id in session_ids for read in self._reads(session_id)]
        read = values(await self._client.ask(TXN, pb.TxnRequest(success=reads), deadline))
        return [read[first : first + 2] for first in range(0, len(read), 2)]

    async def _once(self, request: pb.TxnRequest, deadline: float) -> Any:
        return await self._client.once(TXN, request, deadline)

    def _reads(self, session_id: bytes) -> list[pb.RequestOp]:
        return [get(self._names.live_session(session_id)), get(self._names.dead_session(session_id))]

    def _touched(self, write: Write) -> list[pb.RequestOp]:
        """What ``write`` is decided on, in the order in which ``_found`` reads it."""
        reads = [*self._reads(write.session_id), get(self._names.outbox_entry(write))]
        return reads if write.device is None else [*reads, get(self._names.device(write.device[0]))]

    def _add(self, request: pb.TxnRequest, change: Exchange, grave: int) -> None:
        write, seen, names = change.write, change.seen, self._names
        live, dead = names.live_session(write.session_id), names.dead_session(write.session_id)
        record = _checked(change)
        request.compare.append(unchanged(live, seen.revision))
        if seen.session is None:
            request.compare.append(unchanged(dead, 0))  # a live record has no terminated one beside it
        if change.record.state == TERMINATED:
            request.success.extend([delete(live), put(dead, record, grave)])
        else:
            request.success.append(put(live, record))
        if write.device is not None:
            device, timestamp = write.device
            request.compare.append(unchanged(names.device(device), seen.device_revision))
            request.success.append(put(names.device(device), encode_device(timestamp, write.session_id)))
        if write.lines:
            request.success.append(put(names.outbox_entry(write), encode_lines(write.lines)))
        request.failure.extend(self._touched(write))


def _oldest_lines(prefix: bytes, floor: int) -> pb.RangeRequest:
    return pb.RangeRequest(
        key=prefix, range_end=after_prefix(prefix), limit=_LINES_PAGE, min_create_revision=floor,
        sort_order=pb.RangeRequest.ASCEND, sort_target=pb.RangeRequest.CREATE,
    )  # fmt: skip


def _checked(change: Exchange) -> bytes:
    """The packed record, when etcd can take it and its lines. Raises StoreUnavailable."""
    write, record = change.write, encode_session(change.record)
    size = sum(map(len, write.lines))
    if size > LONGEST_COMMIT or len(write.lines) > LONGEST_LINES:
        raise StoreUnavailable(
            f"etcd: the commit of {write.chain} has {len(write.lines)} event lines of {size} bytes, more than the "
            f"{LONGEST_LINES} lines of {LONGEST_COMMIT} bytes that one transaction takes; nothing was committed"
        )
    if len(record) > LONGEST_RECORD:
        raise StoreUnavailable(
            f"etcd: the record of {write.chain} has {len(record)} bytes, more than the {LONGEST_RECORD} "
            "that a record may have; nothing was committed"
        )
    return record


def _found(read: Sequence[pb.KeyValue | None]) -> Found:
    """From the answers to ``_touched``, or to ``_reads`` alone."""
    record = read[0] or read[1]
    done = len(read) > 2 and read[2] is not None
    device = read[3] if len(read) > 3 else None
    timestamp, _ = (0, None) if device is None else decode_device(device.key, device.value)
    return Found(
        session=None if record is None else decode_session(record.key, record.value),
        revision=0 if record is None else record.mod_revision,
        timestamp=timestamp,
        device_revision=0 if device is None else device.mod_revision,
        done=done,
    )
