"""Requests for sessions that are not here: which of them are tried on the stored record, and which have to wait."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.gateway.takeovers import Takeovers
from jumpvpn.policy.model import Policy
from jumpvpn.runtime import clock
from jumpvpn.runtime.dataplane import Race
from jumpvpn.runtime.stores.base import StoredSession
from jumpvpn.session.records import Kept, encode
from jumpvpn.sim.world import World
from jumpvpn.values import Epoch, SessionId, TransportId

ID = bytes(range(16))


class Core:
    """A packet core that notes its orders; the executor's part is that it knows no session."""

    def __init__(self) -> None:
        self.retried: list[int] = []
        self.dropped: list[int] = []
        self.closed: list[int] = []
        self.handles: dict[str, int] = {}
        self.race = Race()
        self._candidates = itertools.count(7)

    def restore(self, _session_id: bytes, _sealed: bytes, _inner: list[str], *, routed: bool) -> int:
        assert not routed
        return next(self._candidates)

    def close_session(self, handle: int) -> None:
        self.closed.append(handle)

    def retry_reattach(self, request: int) -> None:
        self.retried.append(request)

    def drop_reattach(self, request: int) -> None:
        self.dropped.append(request)


class Stored:
    """A store that has one record."""

    def __init__(self, owner: str) -> None:
        session = World().start().gateway_session
        assert session is not None
        body = encode(session, Kept(b"k" * 32, "laptop", ("10.9.0.2/32",)), clock.now(), clock.boot_id())
        self.record = StoredSession(ID, 2, "ATTACHED", 1, body, b"sealed", "s:x", 1, "h", "w", owner, 1)

    async def load(self, _session_id: bytes) -> StoredSession:
        return self.record

    def take(self, _stored: StoredSession) -> None:
        pass


def asked(request: int) -> inp.ReattachAsked:
    return inp.ReattachAsked(
        request, None, TransportId("path0/udp"), "10.0.0.1:5000", False, False, False, "aa", Epoch(2), 2, 0, 1
    )


async def outcome(owner: str, returning: str) -> Core:
    """Two requests for the same session of ``owner`` while the sessions of ``returning`` are being brought back."""
    core = Core()
    takeovers = Takeovers(
        Stored(owner), core, core, Policy, lambda *_: None, lambda _: None, lambda _: None,  # type: ignore[arg-type]
        lambda node: node == returning,
    )  # fmt: skip
    takeovers.asked(ID, asked(1))
    takeovers.asked(ID, asked(2))
    async with asyncio.timeout(20):
        while len(core.retried) + len(core.dropped) < 2:
            await asyncio.sleep(0)
    await takeovers.close()
    return core


async def test_the_newest_request_is_tried_on_the_record_of_another_gateway() -> None:
    core = await outcome("gw2", "gw1")
    assert (core.retried, core.dropped) == ([2], [1])


async def test_what_a_restart_is_about_to_bring_back_waits_for_it() -> None:
    core = await outcome("gw1", "gw1")
    assert core.retried == [], "this node's file may know more of the session than the store"
    assert sorted(core.dropped) == [1, 2]


async def test_a_request_whose_session_has_come_here_meanwhile_goes_to_its_engine_at_once() -> None:
    core = Core()
    core.handles[SessionId(ID).uid] = 7
    takeovers = Takeovers(
        Stored("gw2"), core, core, Policy, lambda *_: None, lambda _: None, lambda _: None,  # type: ignore[arg-type]
        lambda _node: False,
    )  # fmt: skip
    takeovers.asked(ID, asked(1))
    async with asyncio.timeout(20):
        while not core.retried:
            await asyncio.sleep(0)
    assert core.dropped == [], "its client would have to send it again"
    assert not takeovers.proved(7, asked(1)), "it is no candidate"


async def test_of_two_proved_requests_the_first_takes_the_session_and_the_second_is_repeated() -> None:
    core, posted = Core(), list[Any]()

    def claim(session: Any, _kept: Any, handle: int, _stored: Any) -> None:
        core.handles[session.uid] = handle

    takeovers = Takeovers(
        Stored("gw2"), core, core, Policy, claim, posted.append, lambda _: None, lambda _node: False  # type: ignore[arg-type]
    )  # fmt: skip
    for number in (1, 2):  # the second comes while the packet core tries the first
        takeovers.asked(ID, asked(number))
        async with asyncio.timeout(20):
            while number not in core.retried:
                await asyncio.sleep(0)
    assert takeovers.proved(7, replace(asked(1), proof=True))
    assert takeovers.proved(8, replace(asked(2), proof=True))
    assert [takeover.request.request for takeover in posted] == [1]
    assert (core.closed, core.dropped) == ([8], [2]), "the engine decides on one claim of a session at a time"
    assert core.handles == {SessionId(ID).uid: 7}
