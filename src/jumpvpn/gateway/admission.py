"""Which requests to reattach are worked on and which wait: a storm's answers come while somebody waits for them.

Thousands may ask at once: after a gateway's restart, or when another gateway died. Worked on in the order in which they
came, all of them would be answered late, and most to clients that have given up this attempt and made the next one. So
a bounded number is under way, one of each session, and the newest goes first: its client has just begun to wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from jumpvpn.engine.inputs import ReattachAsked
from jumpvpn.runtime import clock
from jumpvpn.values import MILLISECOND, SECOND, Instant, replace

AT_ONCE = 192  # some hundredths of a second of work: one that answers all of a storm together answers all too late
UNPROVED_MAX = 64  # of one session that is not here: as many as come while its record is read, if somebody floods it
WAITING_MAX = 16_384  # sessions: as many requests as wait in the packet core
# Policy `recovery.attempt_timeout`: who has waited for so long makes another request. A client with more patience
# repeats this one, which is as good as a new one.
PATIENCE_NS = 2 * SECOND
LIFE_NS = 5 * SECOND  # whatever became of it: the packet core has forgotten the request by then


@dataclass(frozen=True, slots=True)
class _Request:
    session_id: bytes
    asked: ReattachAsked
    since: Instant


class Admission:
    """``start`` gets each request whose turn has come; ``done`` has to follow. ``drop`` gets what is not worked on."""

    def __init__(self, start: Callable[[bytes, ReattachAsked], None], drop: Callable[[int], None]) -> None:
        self._start = start
        self._drop = drop
        self._under_way: dict[int, _Request] = {}  # by request, oldest first
        self._waiting: OrderedDict[bytes, list[_Request]] = OrderedDict()  # by session, the newest last
        self._following: dict[bytes, list[_Request]] = {}  # by session that has one under way: what came meanwhile
        self._filling = False

    def is_busy(self) -> bool:
        """Whether any request is under way."""
        return bool(self._under_way)

    def waited_ms(self, number: int) -> int:
        """How long ago the request came that is under way; 0 for another one."""
        request = self._under_way.get(number)
        return 0 if request is None else (clock.boot_time() - request.since) // MILLISECOND

    def offer(self, session_id: bytes, asked: ReattachAsked) -> None:
        """A request came: now or later it is started, or it is dropped for a newer one.

        One that is under way already is asked again, with what has been found out about it: it is started at once.
        """
        if asked.request in self._under_way:
            self._start(session_id, asked)
            return
        is_busy = session_id in self._following
        beside = self._following[session_id] if is_busy else self._waiting.pop(session_id, [])
        if asked.proof and not asked.fresh_nonce and beside:  # a copy displaces no other
            self._drop(asked.request)
        else:
            # Whoever has seen a ticket can send what names its session: that displaces only what is as old.
            self._drop_all_but(0 if asked.proof else UNPROVED_MAX - 1, beside)
            beside.append(_Request(session_id, asked, clock.boot_time()))
        if not is_busy:
            self._waiting[session_id] = beside
        if len(self._waiting) > WAITING_MAX:
            self._drop_all_but(0, self._waiting.popitem(last=False)[1])
        self._fill()

    def done(self, number: int) -> None:
        """The request is answered or dropped: the next one has its turn."""
        request = self._under_way.pop(number, None)
        if request is not None:
            self._release(request.session_id)
            self._fill()

    def another(self, number: int) -> int | None:
        """The request was not its client's: the next one of the same session that is under way for it, if one came."""
        following = self._following[self._under_way[number].session_id] if number in self._under_way else []
        if not following:
            return None
        del self._under_way[number]
        request = following.pop()
        self._under_way[request.asked.request] = request
        return request.asked.request

    def _release(self, session_id: bytes) -> None:
        following = self._following.pop(session_id)
        if following:
            self._drop_all_but(1, following)
            self._waiting[session_id] = following

    def _drop_all_but(self, count: int, requests: list[_Request]) -> None:
        while len(requests) > count:
            self._drop(requests.pop(0).asked.request)

    def _fill(self) -> None:
        if self._filling:  # what was started has ended at once: the loop below goes on
            return
        self._filling = True
        try:
            now = clock.boot_time()
            self._give_up(now)
            while self._waiting and len(self._under_way) < AT_ONCE:
                session_id, requests = self._waiting.popitem()
                request = requests.pop()
                waited = now - request.since
                if waited >= PATIENCE_NS:
                    self._drop_all_but(0, [*requests, request])
                    continue
                self._under_way[request.asked.request] = request
                self._following[session_id] = requests
                self._start(session_id, replace(request.asked, age_ms=request.asked.age_ms + waited // MILLISECOND))
        finally:
            self._filling = False

    def _give_up(self, now: Instant) -> None:
        """Count no more on those that the packet core has forgotten."""
        while self._under_way:
            number, oldest = next(iter(self._under_way.items()))
            if now - oldest.since < LIFE_NS:
                return
            del self._under_way[number]
            self._release(oldest.session_id)
