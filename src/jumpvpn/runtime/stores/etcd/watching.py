"""Names and their changes as etcd tells them: listings page by page, and streams of changes that never miss one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import RANGE, REQUIRE_LEADER, WATCH, Client, Refused, Unreachable, packed
from jumpvpn.runtime.stores.leases import Change
from jumpvpn.runtime.stores.shared import Unanswered

_LISTED = 256  # names in one answer: 16 MiB of records at most
_NAMES = 4_096  # names without values in one answer: some hundred KiB
_REOPEN_SECONDS = 0.1  # between two tries: a member that ends each stream at once is not run down


@dataclass(frozen=True, slots=True)
class Keys:
    """From ``start`` up to, but without, ``end``; told without the first ``skip`` bytes."""

    start: bytes
    end: bytes
    skip: int

    def name(self, key: bytes) -> str:
        """The name that people and callers know."""
        return key[self.skip :].decode("utf-8", "backslashreplace")

    def change(self, event: pb.Event) -> Change:
        """What an event says."""
        value = event.kv.value if event.type == pb.Event.PUT else None
        return Change(self.name(event.kv.key), value, event.kv.mod_revision)


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the keys as of ``revision``."""

    revision: int
    entries: list[pb.KeyValue]


async def pages(client: Client, keys: Keys, revision: int = 0, names_only: bool = False) -> AsyncIterator[Page]:
    """All keys with their values, as of one revision (0: that of the first page). Raises StoreUnavailable."""
    start, limit = keys.start, _NAMES if names_only else _LISTED
    while True:
        request = pb.RangeRequest(
            key=start, range_end=keys.end, limit=limit, revision=revision, keys_only=names_only
        )  # fmt: skip
        page = await client.ask(RANGE, request)
        revision = revision or page.header.revision
        yield Page(revision, list(page.kvs))
        if not page.more:
            return
        start = page.kvs[-1].key + b"\0"


async def stream(
    client: Client, keys: Keys, revision: int, silence: float | None = None
) -> AsyncGenerator[pb.WatchResponse, None]:
    """What one member answers to a watch from ``revision`` on.

    Raises Unanswered when it ends, or says nothing for ``silence`` seconds, StoreUnavailable when etcd refuses.
    """
    member = client.turn
    call = client.channel.stream_stream(WATCH.path, packed, WATCH.answer)(metadata=REQUIRE_LEADER)
    create = pb.WatchCreateRequest(key=keys.start, range_end=keys.end, start_revision=revision)
    try:
        await call.write(pb.WatchRequest(create_request=create))
        while (answer := await _next(call, silence)) is not grpc.aio.EOF:
            client.check(answer.header)
            yield answer
            if answer.canceled:
                raise StoreUnavailable(f"etcd: ended the watch: {answer.cancel_reason or 'no reason given'}")
        raise Unanswered("the watch ended")
    except TimeoutError:
        client.leave(member)
        raise Unanswered("the watch was silent for too long") from None
    except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
        raise client.failure(error, member) from None
    finally:
        call.cancel()


async def _next(call: Any, silence: float | None) -> Any:
    async with asyncio.timeout(silence):
        return await call.read()


class Following:
    """Every change of ``keys`` after ``since``, over broken connections and forgotten history."""

    def __init__(self, client: Client, keys: Keys, since: int, silence: float | None) -> None:
        self._client, self._keys, self._since, self._silence = client, keys, since, silence
        self._names: set[str] = set()

    async def changes(self) -> AsyncIterator[Change]:
        """Without an end. Raises StoreUnavailable when etcd refuses; unreachable, it is asked again and again."""
        await self._persist(self._learn)
        while True:
            forgotten = False
            try:
                async with aclosing(stream(self._client, self._keys, self._since + 1, self._silence)) as answers:
                    async for answer in answers:
                        if answer.compact_revision:
                            forgotten = True
                            break
                        for change in self._told(answer):
                            yield change
            except Unanswered:
                await asyncio.sleep(_REOPEN_SECONDS)
            if forgotten:
                for change in await self._persist(self._relist):
                    yield change

    def _told(self, answer: pb.WatchResponse) -> list[Change]:
        changes = [self._keys.change(event) for event in answer.events]
        for change in changes:
            (self._names.discard if change.value is None else self._names.add)(change.name)
            self._since = change.revision  # all of one revision come in one answer
        return changes

    async def _persist(self, work: Any) -> Any:
        """What ``work`` returns once etcd can be reached, and did not forget the listing while it was made."""
        while True:
            try:
                return await work()
            except Unreachable:
                await asyncio.sleep(_REOPEN_SECONDS)
            except Refused as refused:
                if refused.code is not grpc.StatusCode.OUT_OF_RANGE or work == self._learn:
                    raise

    async def _learn(self) -> None:
        """The names as of ``since``: without them, what goes while changes are forgotten would be missed."""
        async for page in pages(self._client, self._keys, self._since, names_only=True):
            self._names |= {self._keys.name(kv.key) for kv in page.entries}

    async def _relist(self) -> list[Change]:
        names, changed, revision = set[str](), list[pb.KeyValue](), self._since
        async for page in pages(self._client, self._keys):
            revision = page.revision
            names |= {self._keys.name(kv.key) for kv in page.entries}
            changed += [kv for kv in page.entries if kv.mod_revision > self._since]
        gone = [Change(name, None, revision) for name in sorted(self._names - names)]
        changed.sort(key=lambda kv: int(kv.mod_revision))
        self._names, self._since = names, revision
        return [*gone, *(Change(self._keys.name(kv.key), kv.value, revision) for kv in changed)]
