"""BIRTH among several gateways: whoever does not answer is passed over soon, and nobody is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jumpvpn.client import handshake
from jumpvpn.client.executor import ClientExecutor, Source
from jumpvpn.client.handshake import Handshake, NoAnswer
from jumpvpn.engine import inputs as inp
from jumpvpn.engine.client import ClientEngine
from jumpvpn.policy.model import Policy
from jumpvpn.runtime import clock
from jumpvpn.values import SECOND, TransportId

SHORT, LONG = 0.011, 0.023  # seconds; what matters is which of them is used


class Plane:
    """Offers reach nobody, but those to ``alive``."""

    def __init__(self, alive: bytes = b"") -> None:
        self.alive = alive
        self.offers: list[bytes] = []
        self.answer: Any = lambda _fact: None

    def open_socket(self, **_: Any) -> tuple[int, str]:
        return len(self.offers) + 1, "10.0.0.2:1"

    def begin_handshake(self, *, gateway_key: bytes, **_: Any) -> int:
        self.offers.append(gateway_key)
        if gateway_key == self.alive:
            self.answer(("handshake_response", len(self.offers), 7, bytes(16), b"welcome", "192.0.2.1:1"))
        return len(self.offers)

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_options: None


class Birth:
    """A client that has one or two networks, and gateways named by a letter."""

    def __init__(self, tmp_path: Path, plane: Plane, interfaces: str, gateways: str) -> None:
        self.engine = ClientEngine(Policy())
        self.executor = ClientExecutor(plane, 1, lambda _event: None, lambda _name: None)  # type: ignore[arg-type]
        self.rounds = 0
        reachable = []
        for interface in interfaces:
            for name in gateways:
                transport = TransportId(f"{interface}/udp/{name}")
                self.executor.sources[transport] = Source(interface, "10.0.0.2", name, name.encode())
                reachable.append(inp.Reachable(transport, interface, "udp", name, f"{name}:1", "10.0.0.2"))
        for order in self.engine.handle(inp.TransportsChanged(tuple(reachable)), clock.now()):
            self.executor.execute(order)
        self.handshake = Handshake(plane, self.engine, self.executor, tmp_path, self.unanswered)  # type: ignore[arg-type]
        plane.answer = self.handshake._facts.put_nowait

    def unanswered(self) -> None:
        self.rounds += 1


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each offer was given (s)."""
    given: list[float] = []
    timeout = handshake.asyncio.timeout

    def noted(seconds: float | None) -> Any:
        if seconds in (SHORT, LONG):
            given.append(seconds)
        return timeout(seconds)

    monkeypatch.setattr(handshake, "SHORT_SECONDS", SHORT)
    monkeypatch.setattr(handshake, "TRANSPORT_SECONDS", LONG)
    monkeypatch.setattr(handshake, "IDLE_SECONDS", 0.001)
    monkeypatch.setattr(handshake.asyncio, "timeout", noted)
    return given


async def test_the_next_gateway_is_asked_before_the_next_network(tmp_path: Path, patience: list[float]) -> None:
    plane = Plane(alive=b"c")
    birth = Birth(tmp_path, plane, "we", "abc")
    answer = await birth.handshake.run(10 * SECOND)
    assert len(plane.offers) == 3
    assert sorted(plane.offers) == [b"a", b"b", b"c"]
    assert birth.engine.transports[answer.transport].gateway == "c"
    assert patience == [SHORT] * 3


async def test_one_gateway_gets_its_full_time(tmp_path: Path, patience: list[float]) -> None:
    with pytest.raises(NoAnswer):
        await Birth(tmp_path, Plane(), "we", "a").handshake.run(SECOND // 10)
    assert set(patience) == {LONG}


async def test_nobody_answers(tmp_path: Path, patience: list[float]) -> None:
    """After the first round every gateway gets its full time, and others may get their turn."""
    plane = Plane()
    birth = Birth(tmp_path, plane, "w", "ab")
    with pytest.raises(NoAnswer, match="no gateway answered over w/udp/a, w/udp/b"):
        await birth.handshake.run(SECOND // 2)
    assert birth.rounds > 1
    assert patience[:3] == [SHORT, SHORT, LONG]
    assert SHORT not in patience[3:]
