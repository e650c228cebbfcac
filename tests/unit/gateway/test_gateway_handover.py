"""In which order a gateway lets packets through, claims addresses and gives them up when a session comes or goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from jumpvpn.engine import outputs as out
from jumpvpn.gateway import executor as gateway_executor
from jumpvpn.gateway.executor import Admitted, GatewayExecutor
from jumpvpn.session.records import Kept
from jumpvpn.values import SessionId

ID = SessionId(bytes(range(16)))
INNER = ("10.77.0.2/24", "fd77::2/64")
KEPT = Kept(b"key", "laptop", INNER)
FIRST, AGAIN, REQUEST = 7, 8, 21
LEAVES = out.ReleaseSession(ID.uid, ID)


class Told:
    """Packet core and announcements in one: all that they are told, in order; ``heard`` is set by each."""

    def __init__(self) -> None:
        self.words: list[tuple[Any, ...]] = []
        self.heard = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self._note(name, *args, *options.values())

    def _note(self, name: str, *args: Any) -> bytes:
        self.words.append((name, *(tuple(arg) if isinstance(arg, Iterable) else arg for arg in args)))
        self.heard.set()
        return b"sealed"

    async def until(self, *last: Any) -> list[tuple[Any, ...]]:
        """All words so far, once ``last`` is among them."""
        async with asyncio.timeout(10):
            while last not in self.words:
                self.heard.clear()
                await self.heard.wait()
        return self.words


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def executor(told: Told, monkeypatch: pytest.MonkeyPatch) -> GatewayExecutor:
    """One session is here, restored from its record and claimed."""
    monkeypatch.setattr(gateway_executor, "HAND_OVER_SECONDS", 0.01)
    monkeypatch.setattr(gateway_executor, "LINGER_SECONDS", 0.02)
    made = GatewayExecutor(told, {}, lambda _: b"", lambda _: None)  # type: ignore[arg-type]
    made.announcing = told
    made.claim(ID.uid, FIRST, KEPT)
    return made


def grant(executor: GatewayExecutor) -> None:
    """Both halves of a granted reattach: before its commit, and after."""
    executor.seal(out.Secret("reattach", REQUEST), ID.uid)
    executor.execute(out.GrantReattach(REQUEST, ID.uid, 2))


def test_answers_find_the_way_before_anything_is_delivered(executor: GatewayExecutor, told: Told) -> None:
    grant(executor)
    assert told.words == [
        ("expected", INNER), ("prepare_reattach", REQUEST), ("ready", INNER), ("commit_reattach", REQUEST, 2),
        ("acquired", INNER),
    ]  # fmt: skip


def test_a_session_that_is_here_is_announced_once(executor: GatewayExecutor, told: Told) -> None:
    grant(executor)
    told.words.clear()
    grant(executor)
    assert told.words == [("prepare_reattach", REQUEST), ("commit_reattach", REQUEST, 2)]


def test_a_session_that_was_expected_in_vain_is_released(executor: GatewayExecutor, told: Told) -> None:
    executor.seal(out.Secret("reattach", REQUEST), ID.uid)
    executor.execute(LEAVES)
    assert told.words[-2:] == [("released", INNER), ("close_session", FIRST)]


def test_a_gateway_that_drains_repeats_no_announcement(executor: GatewayExecutor, told: Told) -> None:
    for on in (True, False):
        executor.drain(on=on)
        assert executor.lingering is on
        assert told.words.pop() == ("hush", on)


async def test_a_drained_session_is_delivered_for_before_it_is_passed_on(executor: GatewayExecutor, told: Told) -> None:
    grant(executor)
    executor.lingering = True
    told.words.clear()
    executor.execute(LEAVES)
    assert told.words == [("leaving", INNER)]
    assert await told.until("close_session", FIRST) == [
        ("leaving", INNER), ("released", INNER), ("close_session", FIRST),
    ]  # fmt: skip


async def test_a_session_that_comes_back_meanwhile_keeps_its_addresses(executor: GatewayExecutor, told: Told) -> None:
    grant(executor)
    executor.lingering = True
    executor.execute(LEAVES)
    executor.claim(ID.uid, AGAIN, KEPT)
    grant(executor)
    words = await told.until("close_session", FIRST)
    assert "released" not in [word[0] for word in words]
    assert ("close_session", AGAIN) not in words


def test_without_a_drain_a_session_that_left_is_passed_on_at_once(executor: GatewayExecutor, told: Told) -> None:
    grant(executor)
    told.words.clear()
    executor.execute(LEAVES)
    assert told.words == [("released", INNER), ("close_session", FIRST)]


async def test_another_session_of_the_device_keeps_the_addresses(executor: GatewayExecutor, told: Told) -> None:
    grant(executor)
    executor.lingering = True
    executor.execute(LEAVES)
    other = SessionId(bytes(16))
    executor.claim(other.uid, AGAIN, KEPT)
    executor.seal(out.Secret("reattach", REQUEST), other.uid)
    assert "released" not in [word[0] for word in await told.until("close_session", FIRST)]


def test_devices_without_announcements_are_let_go_as_well(executor: GatewayExecutor, told: Told) -> None:
    executor.announcing = None
    grant(executor)
    executor.execute(LEAVES)
    assert told.words[-1] == ("close_session", FIRST)
    assert Admitted("laptop", INNER).inner not in [word[-1] for word in told.words]
