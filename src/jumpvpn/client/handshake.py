"""BIRTH on the client: offer the device's key over one transport after the other until a gateway answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jumpvpn.client.executor import ClientExecutor, Way
from jumpvpn.engine.client import ClientEngine
from jumpvpn.policy.selection import Selected
from jumpvpn.runtime import clock
from jumpvpn.runtime.dataplane import Fact, Plane
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.values import SessionId, TransportId

RESEND_SECONDS = 0.5  # the two datagrams of an offer are small; a gateway answers within one round trip
TRANSPORT_SECONDS = 2.0  # then the next transport gets its turn
SHORT_SECONDS = 1.0  # in the first round, while there are several gateways: the next one may be alive
IDLE_SECONDS = 0.2  # nothing usable: look again (netlink says so sooner)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a completed handshake brought."""

    transport: TransportId
    handle: int
    session_id: SessionId
    welcome: bytes
    peer: str


class NoAnswer(Exception):
    """No gateway accepted within the handshake timeout; the text names what was tried."""


class Handshake:
    """Runs offers over transports in the engine's order of choice.

    ``unanswered`` is called when all of them have been tried in vain: there may be other gateways to offer to.
    """

    def __init__(
        self, plane: Plane, engine: ClientEngine, executor: ClientExecutor, state_dir: Path,
        unanswered: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._plane = plane
        self._engine = engine
        self._executor = executor
        self._unanswered = unanswered
        self._patient = False
        self._stamp_file = state_dir / "last-handshake"
        self._offers: dict[int, TransportId] = {}
        self._facts: asyncio.Queue[Fact] = asyncio.Queue()
        executor.handshake_facts = self._facts.put_nowait

    async def run(self, timeout_ns: int) -> Answer:
        """The first answer. Raises NoAnswer after ``timeout_ns``."""
        tried: list[TransportId] = []
        ever: set[TransportId] = set()
        try:
            async with asyncio.timeout(timeout_ns / 1e9):
                while True:
                    choice = self._engine.first_choice(clock.boot_time(), tuple(tried))
                    if not isinstance(choice, Selected):
                        self._round_over(tried)
                        await asyncio.sleep(IDLE_SECONDS)
                        continue
                    tried.append(choice.transport)
                    ever.add(choice.transport)
                    answer = await self._offer(choice.transport)
                    if answer is not None:
                        return answer
        except TimeoutError:
            raise NoAnswer(_explanation(sorted(ever))) from None

    def _round_over(self, tried: list[TransportId]) -> None:
        if tried:
            self._patient = True
            self._unanswered()
        tried.clear()

    def _time(self) -> float:
        """How long (s) this offer may take."""
        gateways = {known.gateway for known in self._engine.transports.values() if known.usable}
        return SHORT_SECONDS if len(gateways) > 1 and not self._patient else TRANSPORT_SECONDS

    async def _offer(self, transport: TransportId) -> Answer | None:
        way = self._executor.ways.get(transport)
        if way is None:
            return None
        offer = self._plane.begin_handshake(
            socket=way.socket,
            gateway=way.peer,
            gateway_key=way.key,
            timestamp_ns=self._next_timestamp(),
            credential=b"",
        )
        self._offers[offer] = transport
        answer: Answer | None = None
        try:
            async with asyncio.timeout(self._time()):
                answer = await self._answered(offer, way)
        except TimeoutError:
            answer = None
        if answer is None:  # an offer that was answered in this very moment is no failure: its fact is read next
            self._executor.race.give(self._plane.cancel_handshake, offer)
        return answer

    async def _answered(self, offer: int, way: Way) -> Answer | None:
        """The first answer, to an earlier offer too; None if this one failed or its socket is gone."""
        while True:
            try:
                async with asyncio.timeout(RESEND_SECONDS):
                    fact = await self._facts.get()
            except TimeoutError:
                if self._executor.ways.get(self._offers[offer]) is not way:
                    return None
                self._plane.resend_handshake(offer, way.socket, way.peer)
                continue
            if fact[0] == "handshake_response" and (transport := self._offers.get(fact[1])) is not None:
                return Answer(transport, fact[2], SessionId(fact[3]), fact[4], fact[5])
            if fact[0] == "handshake_failed" and fact[1] == offer:
                return None

    def _next_timestamp(self) -> int:
        """Wall clock (ns), but above every earlier one of this device: a clock that went back locks nobody out.

        Raises StartFailed where it cannot be kept.
        """
        try:
            last = int(self._stamp_file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            last = 0
        stamp = max(clock.wall_time_ns(), last + 1)
        try:
            fd = os.open(self._stamp_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(str(stamp))
        except OSError as error:
            raise StartFailed(f"cannot write {self._stamp_file}: {error.strerror}") from error
        return stamp


def _explanation(ever: list[TransportId]) -> str:
    if not ever:
        return "no transport to any gateway is usable: is an interface up, with an address and a route?"
    tried = ", ".join(ever)
    return (
        f"no gateway answered over {tried}; check its address and UDP port, its public key in this file, "
        "and that this device's public key is in the gateway's [[device]] list"
    )
