"""The loop of a node: inputs in, engine, outputs out; one timer; commits beside the loop, never beside their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from jumpvpn.audit.sealing import Draft
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.outputs import Output
from jumpvpn.runtime import clock
from jumpvpn.runtime.dataplane import Overtaken
from jumpvpn.runtime.journal import JournalFailed
from jumpvpn.runtime.recorder import Recorder
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.session.records import Kept
from jumpvpn.values import Instant, Now

TURNS_PER_BREATH = 64  # inputs handled before other tasks (control socket, netlink) get a turn


class Engine(Protocol):
    """What the driver needs of either role's engine."""

    def handle(self, event: Any, now: Now) -> list[Output]:
        """Apply one input."""

    def next_wakeup(self) -> Instant | None:
        """When a ``Tick`` is wanted."""


class Executor(Protocol):
    """What carries out a role's orders. Everything but commits and events, which the driver does itself."""

    def execute(self, order: Output) -> None:
        """Carry out one order; errors of the world come back as inputs, not as exceptions."""

    def seal(self, secret: out.Secret | None, uid: str) -> bytes | None:
        """Key material that goes into the record with this commit. Raises Overtaken."""

    def kept(self, uid: str) -> Kept:
        """What is stored beside the machine's record."""


class Driver:
    """Owns the queue of inputs. ``run`` ends when ``stop`` was called or the journal failed (raised)."""

    def __init__(self, engine: Engine, executor: Executor, recorder: Recorder) -> None:
        self._engine = engine
        self._executor = executor
        self._recorder = recorder
        self._inputs: deque[Any] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._ended = False
        self._failure: BaseException | None = None
        self._commits: set[asyncio.Task[None]] = set()
        self.on_turn: Callable[[], None] = lambda: None

    def post(self, event: Any) -> None:
        """Queue one input."""
        self._inputs.append(event)
        self._wake.set()

    async def rest(self) -> None:
        """Wait until every input so far has been handled, or ``run`` has ended."""
        while self._inputs and not self._ended:  # noqa: ASYNC110 - the loop handles them between two turns of the caller
            await asyncio.sleep(0)

    def stop(self) -> None:
        """Let ``run`` return once what is queued and committed has been done."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Handle inputs until stopped. Raises JournalFailed when events cannot be written any more."""
        try:
            while True:
                self._turns()
                if self._failure is not None:
                    raise self._failure
                if self._stopping and not self._inputs and not self._commits:
                    return
                await self._rest()
        finally:
            self._ended = True
            if self._commits:  # what is on its way to the store reaches the journal before that is closed
                await asyncio.wait(self._commits)

    def _turns(self) -> None:
        for _ in range(TURNS_PER_BREATH):
            if not self._inputs:
                break
            self._handle(self._inputs.popleft())
        due = self._engine.next_wakeup()
        if due is not None and clock.boot_time() >= due:
            self._handle(inp.Tick())
        self.on_turn()

    def _handle(self, event: Any) -> None:
        now, tape = clock.now(), self._recorder.tape
        if tape is not None:  # before the engine: an input that it cannot bear is worth most
            tape.heard(event, now)
        orders = self._engine.handle(event, now)
        if tape is not None:
            tape.ordered(orders)
        for order in orders:
            self._carry_out(order, now)

    def _carry_out(self, order: Output, now: Now) -> None:
        if isinstance(order, out.Commit):
            kept = self._executor.kept(order.uid)  # now: the session may be let go before the commit begins
            task = asyncio.create_task(self._commit(order, self._recorder.draft(order, now), kept))
            self._commits.add(task)
            task.add_done_callback(self._committed)
        elif isinstance(order, out.Emit):
            try:
                self._recorder.emit(order.events, now)
            except JournalFailed as failure:
                self._failure = failure
        else:
            self._executor.execute(order)

    async def _commit(self, order: out.Commit, draft: Draft, kept: Kept) -> None:
        try:
            sealed = self._executor.seal(order.secret, order.uid)
            result = (await self._recorder.commit(order, draft, kept, sealed)).value
        except StoreUnavailable:
            result = "unavailable"
        except Overtaken:  # the request ran out of time before its turn came: nobody waits for the answer
            result = "conflict"
        # Ahead of what waits: when thousands ask at once, those that have been dealt with are answered first. For the
        # session itself nothing changes: what came for it meanwhile waits for this.
        self._inputs.appendleft(inp.CommitEnded(order.uid, order.serial, result))
        self._wake.set()

    def _committed(self, task: asyncio.Task[None]) -> None:
        self._commits.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
        self._wake.set()

    async def _rest(self) -> None:
        """Wait for an input or the next deadline."""
        if self._inputs:
            await asyncio.sleep(0)
            return
        due = self._engine.next_wakeup()
        self._wake.clear()
        await clock.until(self._wake, due)
