"""What nobody foresaw ends a node in order; an order that came too late does not end it at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jumpvpn.cli.failures import TRACEBACK_VARIABLE, reported
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.runtime import node
from jumpvpn.runtime.control import ControlClient, ControlServer, Refused
from jumpvpn.runtime.dataplane import Overtaken, Race
from jumpvpn.runtime.driver import Driver
from jumpvpn.runtime.stores.base import CommitResult


def raising(error: BaseException) -> Callable[..., Any]:
    def order(*_: object) -> None:
        raise error

    return order


@pytest.mark.parametrize("error", [KeyError("no reattach request 7"), RuntimeError("no reattach is under way")])
def test_an_order_that_came_too_late_is_counted_and_no_failure(error: Exception) -> None:
    race = Race()
    race.give(raising(error))
    with pytest.raises(Overtaken, match="no reattach"):
        race.run(raising(error))
    assert race.lost == 2
    assert race.run(lambda number: number + 1, 1) == 2


def test_an_argument_out_of_bounds_stays_a_defect() -> None:
    with pytest.raises(ValueError, match="below 8"):
        Race().give(raising(ValueError("path 9 is not below 8")))


class World:
    """Engine, executor and recorder of a driver: orders are what a test says, a commit takes until it is released."""

    def __init__(self, *orders: Any) -> None:
        self.orders = list(orders)
        self.inputs: list[Any] = []
        self.tape = None
        self.seal_fails: Exception | None = None
        self.execute = raising(KeyError("a defect"))
        self.released = asyncio.Event()
        self.written: list[str] = []
        self.driver = Driver(self, self, self)  # type: ignore[arg-type]

    def handle(self, event: Any, _now: Any) -> list[Any]:
        self.inputs.append(event)
        return self.orders if event == "go" else []

    def draft(self, *_: Any) -> None:
        """Nothing is sealed here."""

    def next_wakeup(self) -> None:
        return None

    def seal(self, _secret: Any, _uid: str) -> bytes | None:
        if self.seal_fails is not None:
            raise self.seal_fails
        return None

    def kept(self, uid: str) -> Any:
        return uid

    async def commit(self, order: out.Commit, *_: Any) -> CommitResult:
        await self.released.wait()
        self.written.append(order.uid)
        return CommitResult.COMMITTED


def commit_of(uid: str) -> out.Commit:
    return out.Commit(uid, 1, None, None, ())  # type: ignore[arg-type]


async def test_defect_in_the_loop_ends_it() -> None:
    world = World(out.AbandonReattach())
    world.driver.post("go")
    with pytest.raises(KeyError, match="a defect"):
        await world.driver.run()


async def test_request_that_ran_out_of_time_before_its_commit_is_a_conflict() -> None:
    world = World(commit_of("u1"))
    world.seal_fails = Overtaken("no reattach request 7")
    world.driver.post("go")
    world.driver.stop()
    await world.driver.run()
    assert world.inputs[-1] == inp.CommitEnded("u1", 1, "conflict")
    assert world.written == []


async def test_commit_under_way_is_finished_before_the_loop_ends() -> None:
    world = World(commit_of("u1"))
    world.driver.post("go")
    running = asyncio.create_task(world.driver.run())
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.sleep(0.01)
    assert not running.done(), "the journal may not be closed yet"
    world.released.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert world.written == ["u1"]


async def test_defects_in_callbacks_and_forgotten_tasks_reach_the_node() -> None:
    ends: list[BaseException] = []
    node.on_defects(ends.append)
    loop = asyncio.get_running_loop()
    loop.call_soon(raising(KeyError("callback")))
    await asyncio.sleep(0.01)
    assert [repr(error) for error in ends] == ["KeyError('callback')"]
    loop.set_exception_handler(None)


async def test_error_of_the_system_in_a_callback_is_said_and_survived(capfd: pytest.CaptureFixture[str]) -> None:
    ends: list[BaseException] = []
    node.on_defects(ends.append)
    asyncio.get_running_loop().call_exception_handler(
        {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    )
    assert ends == []
    assert capfd.readouterr().err == "jumpvpn: socket.accept() out of system resource: Too many open files\n"
    asyncio.get_running_loop().set_exception_handler(None)


async def test_failed_job_reaches_the_node_and_ends_the_others() -> None:
    ends: list[BaseException] = []
    other = asyncio.Event()
    async with node.background(asyncio.sleep(3600), failing(other), on_failure=ends.append):
        await other.wait()
        await asyncio.sleep(0)
    assert [str(error) for error in ends] == ["job"]


async def failing(other: asyncio.Event) -> None:
    other.set()
    raise RuntimeError("job")


def test_what_nobody_foresaw_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as left, reported():
        raise KeyError("several\nlines")
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert said.count("\n") == 1
    assert said.startswith("jumpvpn: error: internal error: KeyError: 'several\\nlines' (test_node_failures.py:")
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(KeyError), reported():
        raise KeyError("again")


async def test_question_that_shows_a_defect_is_answered_and_the_node_lives_on(tmp_path: Path) -> None:
    async def status(_: Any) -> Any:
        return {}["state"]

    async def down(_: Any) -> Any:
        return "fine"

    server = ControlServer(tmp_path / "c.sock", {"status": status, "down": down}, {})
    await server.start()
    async with ControlClient(tmp_path / "c.sock") as client:
        with pytest.raises(Refused, match="could not answer: KeyError: 'state'"):
            await client.request("status")
        assert await client.request("down") == "fine"
    await server.close()
