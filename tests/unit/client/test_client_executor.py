"""What the client tells its packet core: which paths lead to which gateway, and when a session has moved."""

from __future__ import annotations

from typing import Any

import pytest

from jumpvpn.client.executor import ClientExecutor, Source
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.session.reasons import Reason
from jumpvpn.session.records import Kept
from jumpvpn.values import Epoch, TransportId
from jumpvpn.wire.gateways import DRAIN, GATEWAYS, Gateway, encode_drain, encode_gateways

KEYS = {"gw1": b"\x01" * 32, "gw2": b"\x02" * 32}
HERE, THERE = TransportId("wlan0/udp/gw1"), TransportId("wlan0/udp/gw2")
HERE_TOO, THERE_TOO = TransportId("eth0/udp/gw1"), TransportId("eth0/udp/gw2")
SESSION = 7


class Plane:
    """Remembers orders."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._sockets = 0

    def open_socket(self, **_: Any) -> tuple[int, str]:
        self._sockets += 1
        return self._sockets, "10.0.0.2:1"

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.told.append((name, *args, options) if options else (name, *args))


def path(index: int, socket: int, name: str, *, standby: bool = False) -> tuple[Any, ...]:
    """The order that sets a path; the key of the birth's gateway, gw1, is known below."""
    key = None if name == "gw1" else KEYS[name]
    return ("set_path", SESSION, index, socket, f"{name}:1", key, {"standby": standby})


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
def posted() -> list[Any]:
    return []


@pytest.fixture
def executor(plane: Plane, posted: list[Any]) -> ClientExecutor:
    """Born on ``HERE``, with two networks to two gateways."""
    made = ClientExecutor(plane, 1, posted.append, lambda _interface: None)  # type: ignore[arg-type]
    for index, transport in enumerate((HERE, THERE, HERE_TOO, THERE_TOO)):
        interface, _, name = transport.split("/")
        made.sources[transport] = Source(interface, "10.0.0.2", name, KEYS[name])
        made.execute(out.OpenPath(transport, index, f"{name}:1"))
    assert plane.told == []
    made.adopt(SESSION, "uid", Kept(b"", "", ()), HERE, 0)
    return made


def test_a_client_of_one_gateway_tells_nothing_more_than_where_paths_lead(plane: Plane) -> None:
    alone = ClientExecutor(plane, 1, lambda _event: None, lambda _interface: None)  # type: ignore[arg-type]
    alone.sources[HERE] = Source("wlan0", "10.0.0.2", "gw1", KEYS["gw1"])
    alone.execute(out.OpenPath(HERE, 0, "gw1:1"))
    alone.adopt(SESSION, "uid", Kept(b"", "", ()), HERE, 0)
    alone.execute(out.FinishReattach(HERE))
    assert plane.told == [path(0, 1, "gw1"), ("finish_reattach", SESSION, "same")]


def test_paths_to_another_gateway_are_standbys_under_its_key(executor: ClientExecutor, plane: Plane) -> None:
    assert plane.told == [
        path(0, 1, "gw1"), path(2, 3, "gw1"), path(1, 2, "gw2", standby=True), path(3, 4, "gw2", standby=True),
    ]  # fmt: skip


def test_after_a_move_the_epoch_comes_first_and_every_path_is_set_anew(executor: ClientExecutor, plane: Plane) -> None:
    plane.told.clear()
    executor.execute(out.FinishReattach(THERE, "drained"))
    assert plane.told == [
        ("finish_reattach", SESSION, "drained"),
        path(1, 2, "gw2"), path(3, 4, "gw2"), path(0, 1, "gw1", standby=True), path(2, 3, "gw1", standby=True),
    ]  # fmt: skip


def test_a_path_opened_after_a_move_knows_where_the_session_is(executor: ClientExecutor, plane: Plane) -> None:
    executor.execute(out.FinishReattach(THERE, "lost"))
    executor.execute(out.ClosePath(HERE_TOO, 2))
    plane.told.clear()
    executor.execute(out.OpenPath(HERE_TOO, 5, "gw1:1"))
    assert plane.told == [path(5, 5, "gw1", standby=True)]


def test_a_standby_answer_reaches_the_engine(executor: ClientExecutor, posted: list[Any]) -> None:
    executor.consume(("standby_answered", SESSION, 1, "gw2:1", 5_000_000, True))
    assert posted == [inp.StandbyAnswered("uid", THERE, 5_000_000, True)]


@pytest.mark.parametrize("on", [True, False])
def test_drain_is_of_the_gateway_whose_path_brought_it(executor: ClientExecutor, posted: list[Any], on: bool) -> None:
    executor.consume(("control", SESSION, 2, DRAIN, encode_drain(on=on)))
    assert posted == [inp.DrainTold("uid", HERE_TOO, on)]


def test_the_list_of_gateways_reaches_the_node(executor: ClientExecutor, posted: list[Any]) -> None:
    told: list[tuple[Gateway, ...]] = []
    executor.told_gateways = told.append
    gateways = (Gateway("gw1", "h:1", KEYS["gw1"]), Gateway("gw3", "h:3", bytes(32)))
    executor.consume(("control", SESSION, 0, GATEWAYS, encode_gateways(gateways)))
    assert told == [gateways]
    assert posted == []


@pytest.mark.parametrize(("kind", "payload"), [(GATEWAYS, b"\xc1"), (DRAIN, b"\x07"), (DRAIN, b"\x00\x00")])
def test_what_cannot_be_understood_is_counted(
    executor: ClientExecutor, posted: list[Any], kind: int, payload: bytes
) -> None:
    executor.consume(("control", SESSION, 0, kind, payload))
    assert (posted, executor.malformed) == ([], 1)


def test_unknown_kinds_are_a_newer_gateways_and_no_mistake(executor: ClientExecutor, posted: list[Any]) -> None:
    executor.consume(("control", SESSION, 0, 99, b"whatever"))
    assert (posted, executor.malformed) == ([], 0)


async def test_a_request_to_another_gateway_goes_out_on_its_path(executor: ClientExecutor, plane: Plane) -> None:
    plane.told.clear()
    executor.execute(out.AskReattach(THERE, Epoch(2), 1, 0, Reason.GATEWAY_DRAIN))
    assert [order[0] for order in plane.told] == ["begin_reattach"]
    assert plane.told[0][-1]["path"] == 1
    executor.execute(out.AbandonReattach())


@pytest.mark.parametrize(("cause", "leaving"), [(Reason.GATEWAY_DRAIN, True), (Reason.PROBE_TIMEOUT, False)])
async def test_only_a_gateway_that_asked_for_the_move_is_waited_for(
    executor: ClientExecutor, plane: Plane, cause: Reason, leaving: bool
) -> None:
    plane.told.clear()
    executor.execute(out.AskReattach(THERE, Epoch(2), 1, 0, cause))
    assert plane.told[0][-1]["leaving"] is leaving
    executor.execute(out.AbandonReattach())
