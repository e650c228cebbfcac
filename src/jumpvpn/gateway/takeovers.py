"""Requests for sessions that this gateway does not hold: the record is read, the proof checked, then it is claimed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.gateway.executor import GatewayExecutor
from jumpvpn.policy.model import Policy
from jumpvpn.runtime import clock
from jumpvpn.runtime.dataplane import Overtaken, Plane
from jumpvpn.runtime.stores.base import TERMINATED, StoredSession, StoreUnavailable
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.session.records import BadRecord, Kept, decode, inner_addresses
from jumpvpn.session.state import Session
from jumpvpn.values import SessionId

WAITING_MAX = 16_384  # sessions: as many requests as wait in the packet core; the rest is dropped, and repeated
# From reading to the client's answer: one that answers all of a storm together answers all of them too late.
AT_ONCE = 192
SETTLED_WITHIN_SECONDS = 5.0  # whatever became of it: the packet core has forgotten the request by then


Claim = Callable[[Session, Kept, int, StoredSession], None]
"""Makes all beside the engine ready for a session: its record, what is kept with it, its handle, the stored form."""


class Takeovers:
    """Reads the records that requests ask for, and has those taken over whose keys open the request."""

    def __init__(
        self, store: ClusterStore, plane: Plane, executor: GatewayExecutor, policy: Callable[[], Policy],
        claim: Claim, post: Callable[[Any], None], complain: Callable[[str], None], returns: Callable[[str], bool],
    ) -> None:  # fmt: skip
        self._store = store
        self._plane = plane
        self._executor = executor
        self._policy = policy
        self._claim = claim
        self._post = post
        self._complain = complain
        self._returns = returns  # whether the sessions of that node are about to be brought back here
        self._reading: dict[bytes, list[inp.ReattachAsked]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._candidates: dict[int, StoredSession] = {}
        self._trying: dict[str, asyncio.Event] = {}

    def asked(self, session_id: bytes, request: inp.ReattachAsked) -> None:
        """A request whose ticket names a session that is not here."""
        waiting = self._reading.get(session_id)
        if waiting is not None:
            waiting.append(request)
        elif len(self._reading) >= WAITING_MAX:
            self._drop(request)
        else:
            self._reading[session_id] = [request]
            task = asyncio.create_task(self._read(session_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def proved(self, handle: int, request: inp.ReattachAsked) -> bool:
        """The packet core opened a request with the keys of a candidate; False if ``handle`` is none.

        Without proof the candidate goes again: whoever sent that holds a ticket, and nothing else.
        """
        stored = self._candidates.pop(handle, None)
        if stored is None:
            return False
        here = SessionId(stored.session_id).uid in self._executor.handles  # another request of it was quicker
        if here or not request.proof:
            self._plane.close_session(handle)
            if here:
                self._drop(request)
            else:
                self.settled(SessionId(stored.session_id).uid)
            return True
        session, kept = decode(stored.body, self._policy(), clock.now(), clock.boot_id(), request.age_ms)
        self._store.take(stored)
        self._claim(session, kept, handle, stored)
        self._post(inp.TakeoverAsked(session, kept.device, stored.owner, request))
        return True

    def settled(self, uid: str) -> None:
        """The session is bound here, or is not here any more: the next one that waits has its turn."""
        if (waiting := self._trying.get(uid)) is not None:
            waiting.set()

    async def close(self) -> None:
        """Give up what is being read."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, session_id: bytes) -> None:
        async with self._gate:
            uid = SessionId(session_id).uid
            settled = self._trying[uid] = asyncio.Event()
            try:
                if await self._tried(session_id):
                    late = asyncio.get_running_loop().call_later(SETTLED_WITHIN_SECONDS, settled.set)
                    await settled.wait()
                    late.cancel()
            finally:
                if self._trying.get(uid) is settled:
                    del self._trying[uid]

    async def _tried(self, session_id: bytes) -> bool:
        """Whether the record was found, and the packet core tries the newest request on it."""
        try:
            stored = await self._store.load(session_id)
        except StoreUnavailable as failure:  # the client repeats its request, here or elsewhere
            self._complain(failure.reason)
            for request in self._reading.pop(session_id):
                self._drop(request)
            return False
        requests = self._reading.pop(session_id)
        if stored is None or stored.state == TERMINATED or stored.sealed is None:
            for request in requests:
                self._post(request)
            return False
        return self._open(stored, requests)

    def _open(self, stored: StoredSession, requests: list[inp.ReattachAsked]) -> bool:
        """Let the packet core try the record's keys on the newest request: it repeats what the older ones asked."""
        uid = SessionId(stored.session_id).uid
        newest = requests.pop()
        for request in requests:
            self._drop(request)
        if uid in self._executor.handles:  # it has come here meanwhile, with an older request: the engine has this one
            self._executor.race.give(self._plane.retry_reattach, newest.request)
            return False
        if self._returns(stored.owner):  # it will come from this node's own file, which may know more than the store
            self._drop(newest)
            return False
        try:
            inner = inner_addresses(stored.body)
            handle = self._plane.restore(stored.session_id, stored.sealed or b"", inner, routed=False)
        except (BadRecord, ValueError) as error:
            self._complain(f"the record of session {uid} cannot be used: {error}")
            self._drop(newest)
            return False
        self._candidates[handle] = stored
        try:
            self._executor.race.run(self._plane.retry_reattach, newest.request)
        except Overtaken:
            self._candidates.pop(handle, None)
            self._plane.close_session(handle)
            return False
        return True

    def _drop(self, request: inp.ReattachAsked) -> None:
        self._executor.race.give(self._plane.drop_reattach, request.request)
