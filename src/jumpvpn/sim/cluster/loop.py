"""An event loop whose time is the simulation's: integer nanoseconds, one order of events, processes that can stop."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

from jumpvpn.values import SECOND

STEPS_AT_ONCE = 200_000  # calls at one instant; more are a loop that never lets time pass


class Process:
    """One process of one machine: everything that is scheduled within it stops with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = self.paused = False
        self.held: list[Call] = []
        self.tasks: list[asyncio.Task[Any]] = []


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)


class Call:
    """One scheduled call; what asyncio knows as a handle."""

    __slots__ = ("args", "callback", "context", "off", "process", "when_ns")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context, when_ns: int) -> None:
        self.callback, self.args, self.context, self.when_ns = callback, args, context, when_ns
        self.process = context.get(PROCESS)
        self.off = False

    def cancel(self) -> None:
        """It will not be made."""
        self.off = True
        self.callback, self.args = _nothing, ()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.off

    def when(self) -> float:
        """The loop's time at which it is due (s)."""
        return self.when_ns / SECOND


def _nothing() -> None:
    return None


class VirtualLoop(asyncio.AbstractEventLoop):
    """Calls in the order of their instants, then of their making. Time passes only in ``run``."""

    def __init__(self, start: int) -> None:
        self.now = start
        self.defects: list[BaseException] = []
        self.steps = 0
        self._ready: deque[Call] = deque()
        self._queue: list[tuple[int, int, Call]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []

    # --- what asyncio asks -------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds; exact to some hundred nanoseconds."""
        return self.now / SECOND

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        """At this instant, after everything that is ready."""
        call = Call(callback, args, context if context is not None else copy_context(), self.now)
        self._ready.append(call)
        return call

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        """In ``delay`` seconds."""
        return self.at(self.now + max(0, round(delay * SECOND)), callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        """At the loop's time ``when`` (s)."""
        return self.at(round(when * SECOND), callback, *args, context=context)

    def at(self, when: int, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Call:
        """At ``when`` (ns), or at once if that has passed."""
        call = Call(callback, args, context if context is not None else copy_context(), max(when, self.now))
        self._count += 1
        heapq.heappush(self._queue, (call.when_ns, self._count, call))
        return call

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:  # fmt: skip
        """A task of the process in whose context it is made."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        process = (context if context is not None else copy_context()).get(PROCESS)
        owned = self._tasks if process is None else process.tasks
        if len(owned) > 256:  # tasks that have ended need no keeping
            owned[:] = [other for other in owned if not other.done()]
        owned.append(task)
        return task

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """While anything asks."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody caught is a defect of the run."""
        self.defects.append(context.get("exception") or RuntimeError(context["message"]))

    # --- what the world asks -----------------------------------------------------------------------------------------

    def run(self, until: int) -> None:
        """Let time pass until ``until`` (ns). Raises the first thing that nobody caught."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            self._run(until)
        finally:
            asyncio._set_running_loop(before)

    def _run(self, until: int) -> None:
        ready, queue, at_once = self._ready, self._queue, 0
        while True:
            if ready:
                call = ready.popleft()
            elif queue and queue[0][0] <= until:
                call = heapq.heappop(queue)[2]
                if call.when_ns > self.now:
                    self.now, at_once = call.when_ns, 0
            else:
                self.now = max(self.now, until)
                return
            if not call.off:
                at_once += 1
                assert at_once < STEPS_AT_ONCE, f"cycle without time at {call.callback}"
                self._make(call)
                if self.defects:
                    raise self.defects[0]

    def _make(self, call: Call) -> None:
        process = call.process
        if process is not None:
            if process.dead:
                return
            if process.paused:
                process.held.append(call)
                return
        self.steps += 1
        call.context.run(call.callback, *call.args)

    def start(self, process: Process | None, work: Coroutine[Any, Any, Any], context: Context) -> asyncio.Task[Any]:
        """Run ``work`` within ``process``."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            context.run(PROCESS.set, process)
            return context.run(self.create_task, work, context=context)
        finally:
            asyncio._set_running_loop(before)

    def resume(self, process: Process) -> None:
        """The process goes on: what was due meanwhile happens at once, in its order."""
        process.paused = False
        held, process.held = process.held, []
        self._ready.extend(held)

    def dispose(self, processes: list[Process]) -> None:
        """End every task in order, so that none is found pending when it is collected. Nothing that happens counts."""
        tasks = list(self._tasks)
        for process in processes:
            process.dead = process.paused = False
            process.held.clear()
            tasks += process.tasks
        self._queue.clear()
        self._ready.clear()
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for task in tasks:
                task.cancel()
            while self._ready:
                call = self._ready.popleft()
                if not call.off:
                    call.context.run(call.callback, *call.args)
        finally:
            asyncio._set_running_loop(before)
        self.defects.clear()
        self._queue.clear()
