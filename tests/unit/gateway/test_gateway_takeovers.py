"""Requests for sessions that are not here: when the stored record is tried on them, and when not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

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
        self.admission = self
        self.forgotten: set[int] = set()
        self.beside: list[int] = []
        self.ended: list[int] = []
        self._candidates = itertools.count(7)

    def restore(self, _session_id: bytes, _sealed: bytes, _inner: list[str], *, routed: bool) -> int:
        assert not routed
        return next(self._candidates)

    def close_session(self, handle: int) -> None:
        self.closed.append(handle)

    def another(self, _request: int) -> int | None:
        return self.beside.pop() if self.beside else None

    def done(self, request: int) -> None:
        self.ended.append(request)

    def retry_reattach(self, request: int) -> None:
        if request in self.forgotten:
            raise KeyError(request)
        self.retried.append(request)

    def drop(self, request: int) -> None:
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


def takeovers_of(
    core: Core, stored: Stored, *, claim: Callable[..., None] = lambda *_: None,
    post: Callable[[Any], None] = lambda _: None, complain: Callable[[str], None] = lambda _: None, returning: str = "",
) -> Takeovers:  # fmt: skip
    """Takeovers from that record, while the sessions of ``returning`` are being brought back."""
    return Takeovers(
        stored, core, core, Policy, claim, post, complain, lambda node: node == returning  # type: ignore[arg-type]
    )  # fmt: skip


async def worked_on(core: Core, takeovers: Takeovers, number: int) -> None:
    """The request comes; wait until it was tried, or dropped."""
    takeovers.asked(ID, asked(number))
    async with asyncio.timeout(20):
        while number not in core.retried + core.dropped:
            await asyncio.sleep(0)


async def outcome(owner: str, returning: str) -> Core:
    """A request for a session of ``owner`` while the sessions of ``returning`` are being brought back."""
    core = Core()
    takeovers = takeovers_of(core, Stored(owner), returning=returning)
    await worked_on(core, takeovers, 1)
    await takeovers.close()
    return core


async def test_a_request_is_tried_on_the_record_of_another_gateway() -> None:
    core = await outcome("gw2", "gw1")
    assert (core.retried, core.dropped) == ([1], [])


async def test_what_a_restart_is_about_to_bring_back_waits_for_it() -> None:
    core = await outcome("gw1", "gw1")
    assert core.retried == [], "this node's file may know more of the session than the store"
    assert core.dropped == [1]


async def test_a_request_whose_session_has_come_here_meanwhile_goes_to_its_engine_at_once() -> None:
    core = Core()
    core.handles[SessionId(ID).uid] = 7
    takeovers = takeovers_of(core, Stored("gw2"))
    await worked_on(core, takeovers, 1)
    assert core.retried == [1]
    assert core.dropped == [], "its client would have to send it again"
    assert not takeovers.proved(7, asked(1)), "it is no candidate"


async def test_of_two_proved_requests_the_first_takes_the_session_and_the_second_is_repeated() -> None:
    core, posted = Core(), list[Any]()

    def claim(session: Any, _kept: Any, handle: int, _stored: Any) -> None:
        core.handles[session.uid] = handle

    takeovers = takeovers_of(core, Stored("gw2"), claim=claim, post=posted.append)
    for number in (1, 2):  # the second comes while the packet core tries the first
        await worked_on(core, takeovers, number)
    assert core.retried == [1, 2]
    assert takeovers.proved(7, replace(asked(1), proof=True))
    assert takeovers.proved(8, replace(asked(2), proof=True))
    assert [takeover.request.request for takeover in posted] == [1]
    assert (core.closed, core.dropped) == ([8], [2]), "the engine decides on one claim of a session at a time"
    assert core.handles == {SessionId(ID).uid: 7}


def changed(**fields: Any) -> Stored:
    """The record of a session of gw2, with other fields."""
    stored = Stored("gw2")
    body = msgspec.msgpack.encode(msgspec.msgpack.decode(stored.record.body) | fields)
    stored.record = replace(stored.record, body=body)
    return stored


async def test_a_proved_request_for_a_record_that_cannot_be_read_ends_nothing_but_itself() -> None:
    core, said, done = Core(), list[str](), list[Any]()
    takeovers = takeovers_of(
        core, changed(state="FLOATING"), claim=lambda *what: done.append(what), post=done.append, complain=said.append
    )
    await worked_on(core, takeovers, 1)
    assert core.retried == [1]
    assert takeovers.proved(7, replace(asked(1), proof=True))
    assert (core.closed, core.dropped, done) == ([7], [1], [])
    assert [words.partition(": ")[0] for words in said] == [f"the record of session {SessionId(ID).uid} cannot be used"]
    assert not takeovers.proved(7, replace(asked(1), proof=True)), "it is no candidate any more"


async def test_the_record_of_a_later_program_is_not_even_tried() -> None:
    core, said = Core(), list[str]()
    await worked_on(core, takeovers_of(core, changed(format=2, unheard_of=1), complain=said.append), 1)
    assert (core.retried, core.dropped) == ([], [1])
    assert "record format 2, this program knows 1; upgrade the older program" in said[0]


async def tried(core: Core, posted: list[Any]) -> Takeovers:
    """A stranger's request has been tried on the record of another gateway, as candidate 7."""
    takeovers = takeovers_of(core, Stored("gw2"), post=posted.append)
    await worked_on(core, takeovers, 1)
    assert core.retried == [1]
    return takeovers


async def test_strangers_with_the_ticket_do_not_keep_the_client_out() -> None:
    core, posted = Core(), list[Any]()
    core.beside, core.forgotten = [2, 3, 4], {4}
    takeovers = await tried(core, posted)
    assert takeovers.proved(7, asked(1))
    assert (core.retried, core.closed) == ([1, 3], []), "4 is gone, the record stays for the next one"
    assert takeovers.proved(7, asked(3))
    assert takeovers.proved(7, replace(asked(2), proof=True))
    assert [takeover.request.request for takeover in posted] == [2]
    assert (core.retried, core.closed, core.ended) == ([1, 3, 2], [], [])


async def test_without_its_client_the_record_is_put_away_again() -> None:
    core, posted = Core(), list[Any]()
    takeovers = await tried(core, posted)
    core.beside, core.forgotten = [2], {2}
    assert takeovers.proved(7, asked(1))
    assert (core.closed, core.ended, posted) == ([7], [2], [])
    assert not takeovers.proved(7, asked(1)), "it is no candidate any more"
