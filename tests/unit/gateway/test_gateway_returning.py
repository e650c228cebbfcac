"""Sessions that came back from the store: whoever asks goes first, the others follow, and nothing overtakes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from jumpvpn.engine import inputs as inp
from jumpvpn.gateway import returning
from jumpvpn.gateway.returning import AT_ONCE, Returning
from jumpvpn.sim.world import World
from jumpvpn.values import Epoch, SessionId, TransportId


class Engine:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.busy = False
        self.returning = Returning(self.told.append, self.rest, lambda: self.busy)

    async def rest(self) -> None:
        await asyncio.sleep(0)

    def uids(self) -> list[str]:
        return [event.session.uid for event in self.told if isinstance(event, inp.SessionRestored)]


def restored(number: int) -> inp.SessionRestored:
    session = World().start().gateway_session
    assert session is not None
    return inp.SessionRestored(replace(session, id=SessionId(number.to_bytes(16, "big"))), b"d" * 32)


def asked(uid: str | None, *, token_ok: bool = True) -> inp.ReattachAsked:
    return inp.ReattachAsked(
        7, uid, TransportId("path0/udp"), "10.0.0.1:5000", True, True, token_ok, "aa", Epoch(2), 2, 0, 1
    )


@pytest.fixture
async def engine() -> Engine:
    return Engine()


@contextlib.asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[None]:
    job = asyncio.create_task(engine.returning.run())
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


async def test_what_its_client_asks_and_its_return_are_one_input(engine: Engine) -> None:
    first, second = restored(1), restored(2)
    for event in (first, second):
        engine.returning.post(event)
    request = asked(second.session.uid)
    engine.returning.post(request)
    assert engine.told == [replace(second, request=request)]
    engine.returning.post(request)
    assert engine.told[1:] == [request], "the engine has the session"


async def test_a_request_whose_address_is_to_be_proved_takes_nothing_up(engine: Engine) -> None:
    event = restored(1)
    engine.returning.post(event)
    for request in (asked(event.session.uid, token_ok=False), asked(None)):
        engine.returning.post(request)
        assert engine.told.pop() == request
    assert engine.told == []


async def test_what_concerns_a_session_finds_it_in_the_engine(engine: Engine) -> None:
    first, second = restored(1), restored(2)
    for event in (first, second):
        engine.returning.post(event)
    end = inp.OperatorTerminate(second.session.uid)
    engine.returning.post(end)
    assert engine.told == [second, end]


@pytest.mark.parametrize("event", [inp.LeaseEnded(1), inp.PolicyOffered(None, ()), inp.DrainWished(on=True)])
async def test_what_concerns_all_finds_all_in_the_engine(engine: Engine, event: Any) -> None:
    many = [restored(number) for number in range(AT_ONCE + 1)]
    for one in many:
        engine.returning.post(one)
    engine.returning.post(event)
    assert engine.told == [*many, event]


async def test_all_are_taken_up_in_time_and_rest_waits_for_the_last(engine: Engine) -> None:
    many = [restored(number) for number in range(3 * AT_ONCE)]
    async with running(engine):
        for one in many:
            engine.returning.post(one)
        await engine.returning.rest()
        assert engine.told == many


async def test_while_clients_ask_the_others_take_breath(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returning, "BREATH_SECONDS", 0.001)
    engine.busy = True
    portions = list[int]()

    async def rest() -> None:
        portions.append(len(engine.told))
        engine.busy = len(portions) < 2

    engine.returning = Returning(engine.told.append, rest, lambda: engine.busy)
    for number in range(3 * AT_ONCE):
        engine.returning.post(restored(number))
    async with running(engine):
        while len(engine.told) < 3 * AT_ONCE:
            await asyncio.sleep(0)
    assert portions[:2] == [AT_ONCE, 2 * AT_ONCE]


async def test_nobody_waits_for_a_node_that_ends(engine: Engine) -> None:
    async with running(engine):
        pass
    engine.returning.post(restored(1))
    job = asyncio.create_task(engine.returning.run())
    await asyncio.sleep(0)
    job.cancel()
    async with asyncio.timeout(20):
        await engine.returning.rest()
