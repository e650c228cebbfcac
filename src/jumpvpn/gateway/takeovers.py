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
        self._tasks: set[asyncio.Task[None]] = set()
        self._candidates: dict[int, StoredSession] = {}

    def asked(self, session_id: bytes, request: inp.ReattachAsked) -> None:
        """A request whose ticket names a session that was not here when it came."""
        if SessionId(session_id).uid in self._executor.handles:
            self._try_here(request.request)
            return
        task = asyncio.create_task(self._read(session_id, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def proved(self, handle: int, request: inp.ReattachAsked) -> bool:
        """The packet core opened a request with the keys of a candidate; False if ``handle`` is none.

        Without proof the candidate goes again: whoever sent that holds a ticket, and nothing else.
        """
        stored = self._candidates.pop(handle, None)
        if stored is None:
            return False
        if SessionId(stored.session_id).uid in self._executor.handles:  # it was taken up meanwhile
            self._give_up(handle, request.request)
            return True
        if not request.proof:
            self._try_another(handle, stored, request.request)
            return True
        try:
            session, kept = decode(stored.body, self._policy(), clock.now(), clock.boot_id(), request.age_ms)
        except BadRecord as error:
            self._refuse(stored, error)
            self._give_up(handle, request.request)
            return True
        self._store.take(stored)
        self._claim(session, kept, handle, stored)
        self._post(inp.TakeoverAsked(session, kept.device, stored.owner, request))
        return True

    async def close(self) -> None:
        """Give up what is being read."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, session_id: bytes, request: inp.ReattachAsked) -> None:
        try:
            stored = await self._store.load(session_id)
        except StoreUnavailable as failure:
            self._complain(failure.reason)
            self._executor.drop(request.request)
            return
        if stored is None or stored.state == TERMINATED or stored.sealed is None:
            self._post(request)
        elif SessionId(session_id).uid in self._executor.handles:
            self._try_here(request.request)
        elif not self._open(stored, request.request):
            self._executor.drop(request.request)

    def _try_here(self, request: int) -> None:
        """The session has come here meanwhile: its own keys are tried."""
        if not self._tried(request):
            self._executor.drop(request)

    def _try_another(self, handle: int, stored: StoredSession, number: int) -> None:
        """Who sent the one that was refused holds a ticket and nothing else; the client's own may be beside it."""
        while (other := self._executor.admission.another(number)) is not None:
            number = other
            if self._tried(number):
                self._candidates[handle] = stored
                return
        self._executor.race.give(self._plane.close_session, handle)
        self._executor.admission.done(number)

    def _give_up(self, handle: int, request: int) -> None:
        self._executor.race.give(self._plane.close_session, handle)
        self._executor.drop(request)

    def _open(self, stored: StoredSession, request: int) -> bool:
        """Let the packet core try the record's keys on the request; False if that cannot be."""
        if self._returns(stored.owner):  # it will come from this node's own file, which may know more than the store
            return False
        try:
            inner = inner_addresses(stored.body)
            handle = self._plane.restore(stored.session_id, stored.sealed or b"", inner, routed=False)
        except (BadRecord, ValueError) as error:
            self._refuse(stored, error)
            return False
        self._candidates[handle] = stored
        if self._tried(request):
            return True
        del self._candidates[handle]
        self._plane.close_session(handle)
        return False

    def _refuse(self, stored: StoredSession, error: ValueError) -> None:
        self._complain(f"the record of session {SessionId(stored.session_id).uid} cannot be used: {error}")

    def _tried(self, request: int) -> bool:
        try:
            self._executor.race.run(self._plane.retry_reattach, request)
        except Overtaken:
            return False
        return True
