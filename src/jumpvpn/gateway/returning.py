"""Sessions that came back from the store: they wait beside the engine for their clients, who mostly ask at once.

The engine records of each one that its binding is gone. After a restart with thousands of sessions that takes seconds,
in which their clients would be kept waiting, only to have the same session moved on once more. So a client that asks
goes first, and both are one commit; the engine takes up the others in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.values import replace

AT_ONCE = 32  # taken up without a client's word, then whoever asks has its turn
BREATH_SECONDS = 0.1  # between those while clients ask: also with no end of requests, 10,000 are back within 31 s

_ABOUT_ALL = (inp.LeaseEnded, inp.PolicyOffered, inp.DrainWished)


class Returning:
    """Passes inputs on to the engine (``post``; ``rest`` waits until it has dealt with them), restored ones later.

    ``busy`` tells whether requests of clients are under way.
    """

    def __init__(
        self, post: Callable[[Any], None], rest: Callable[[], Coroutine[Any, Any, None]], busy: Callable[[], bool]
    ) -> None:
        self._post = post
        self._rest = rest
        self._busy = busy
        self._waiting: dict[str, inp.SessionRestored] = {}  # by session, in order
        self._news = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def post(self, event: Any) -> None:
        """An input for the engine. What it says of sessions that wait here meets them there."""
        if isinstance(event, inp.SessionRestored):
            self._waiting[event.session.uid] = event
            self._none.clear()
            self._news.set()
            return
        if self._waiting:
            event = self._met(event)
        self._post(event)

    def _met(self, event: Any) -> Any:
        if isinstance(event, inp.ReattachAsked):
            if event.uid is None or not event.token_ok:  # it is challenged, whatever is known of the session
                return event
            restored = self._waiting.pop(event.uid, None)
            return event if restored is None else replace(restored, request=event)
        if isinstance(event, _ABOUT_ALL):
            self._take_up(len(self._waiting))
        elif (restored := self._waiting.pop(getattr(event, "uid", ""), None)) is not None:
            self._post(restored)
        return event

    async def rest(self) -> None:
        """Wait until every input so far, restored ones too, has been handled, or ``run`` was cancelled."""
        await self._none.wait()
        await self._rest()

    async def run(self) -> None:
        """Let the engine take up what waits; runs until cancelled."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    self._take_up(AT_ONCE)
                    await self._rest()
                    if self._busy():
                        await asyncio.sleep(BREATH_SECONDS)
                self._none.set()
        finally:
            self._none.set()

    def _take_up(self, count: int) -> None:
        for uid in list(islice(self._waiting, count)):
            self._post(self._waiting.pop(uid))
