"""What the auditor knows of one session while it is open: state, binding, clocks, budgets, proofs."""

from __future__ import annotations

from collections import deque
from copy import copy
from math import inf
from typing import TYPE_CHECKING

from jumpvpn.audit.auditor.rules import Docket, Rule
from jumpvpn.audit.auditor.table import Row

if TYPE_CHECKING:
    from jumpvpn.audit.auditor.nodes import Node
    from jumpvpn.audit.auditor.records import Bounds

NONCES_MAX = 4096  # proofs remembered per session: eight switches a minute for more than eight hours
DENIED_MAX = 256  # refused proofs remembered per session: a flood of them must not grow memory
RULES = len(Rule) + 1

CARRIED = ("born", "entered", "keys", "episode", "transportless")
UNKNOWN = inf
"""An instant that was lost with records; a clock that does not run is None."""


class Track:
    """One session as one end recorded it. Instants are ``mono_ms`` of the node and boot in ``clock``."""

    __slots__ = (  # noqa: RUF023 - in the order of __init__
        "uid", "role", "docket", "checks", "synced", "created", "ended", "client", "left", "n", "row", "pos", "again",
        "state", "version", "seen_version", "reason", "owner", "epoch", "bound", "was_bound",
        "incumbent", "proof", "rebinds", "reattached", "entering", "nonces", "denied", "clock", "mono", "born",
        "entered", "keys", "episode", "transportless", "due", "due_name", "turned_late", "overdue", "bounds", "sure",
        "undecided", "attempts", "switches", "switches_known", "rate_limit", "hold_down", "hold_until",
        "attempt_open", "attempt_version", "attempt_losses", "node", "run", "superseded", "superseded_on", "older",
        "carried", "owner_node", "owned_at", "claimant", "jumped_from", "lapsed",
    )  # fmt: skip

    def __init__(self, uid: str, role: str, docket: Docket, checks: list[int]) -> None:
        self.uid = uid
        self.role = role  # "s": the gateways' record, "c": the client's
        self.docket = docket
        self.checks = checks
        self.synced = True  # False after a loss, until the next commit begins
        self.created = self.ended = False
        self.client: str | None = None
        # the commit and the row within it
        self.left = 0
        self.n = 0
        self.row: Row | None = None
        self.pos = 0
        self.again: Row | None = None
        # the record
        self.state = "BIRTH"
        self.version = 0
        self.seen_version = 0  # the highest that the node lane named under the present owner
        self.reason: str | None = None
        self.owner = 0
        self.epoch: int | None = 0
        self.bound: bool | None = False  # None: unknown
        self.was_bound: bool | None = False  # before the present row
        self.incumbent: str | None = None
        # proofs within the present row, and all that counted
        self.proof = self.rebinds = self.reattached = False
        self.entering: str | None = None  # the state before, while a row leads into ATTACHED
        self.nonces: dict[str, None] = {}
        self.denied: dict[str, int] = {}  # the version at which each was denied
        self._begin_clocks()
        # the running attempt, from the node lane
        self.attempt_open = False
        self.attempt_version = -1
        self.attempt_losses = 0
        # the node
        self.node: Node | None = None
        self.run = 0
        self.superseded = inf  # when the device's newer session was certainly durable, by the clock ``superseded_on``
        self.superseded_on: tuple[str, str] | None = None
        self.older: Track | None = None  # the device's session before this one, until that is certain

        # the owner
        self.owner_node = ""
        self.owned_at = 0  # the record with which its time began
        self.claimant = ""  # who becomes the owner within the present commit
        self.jumped_from: int | None = None  # the version before a change of owner that leaves some out
        self.lapsed = False  # the present commit begins another owner's time: nobody kept deadlines before it

    def _begin_clocks(self) -> None:
        # clocks
        self.carried: dict[str, float] = {}  # clocks that came from another machine: what is known is the latest start
        self.clock: tuple[str, str] | None = None
        self.mono = 0
        self.born: float | None = None
        self.entered: float = UNKNOWN
        self.keys: float | None = None
        self.episode: float | None = None
        self.transportless: float | None = None
        self.due = inf
        self.due_name = ""
        self.overdue = ""  # the deadline that had passed when the present commit began
        self.turned_late = UNKNOWN  # when the session first had a turn after ``due`` had passed
        # bounds and budgets
        self.bounds: Bounds | None = None
        self.sure = False  # whether ``bounds`` is what the node works under
        self.undecided = False  # whether a check was skipped for want of bounds
        self.attempts: int | None = 0
        self.switches: deque[int] = deque()
        self.switches_known = True
        self.rate_limit = 0
        self.hold_down = 0
        self.hold_until = -inf

    def branched(self, docket: Docket) -> Track:
        """The session as it is, for records that stand beside those of this chain; what it finds goes to ``docket``."""
        other = copy(self)
        other.docket, other.older = docket, None
        other.nonces, other.denied, other.carried = dict(self.nonces), dict(self.denied), dict(self.carried)
        other.switches = self.switches.copy()
        return other

    def carry_clocks(self, now: int) -> None:
        """The clocks that run go on at another machine; the way took unknown time, so each may have begun earlier."""
        started = {name: getattr(self, name) for name in CARRIED}
        before = self.mono
        self.forget_clocks()
        for name, at in started.items():
            if at is None:
                setattr(self, name, None)
            elif at != UNKNOWN:
                self.at_latest(name, now - max(0.0, before - at))

    def at_latest(self, name: str, start: float) -> None:
        """The clock ``name`` began at ``start`` or earlier."""
        setattr(self, name, start)
        self.carried[name] = start

    def is_carried(self, name: str) -> bool:
        """Whether of the clock's start only the latest is known."""
        return name in self.carried and getattr(self, name) == self.carried[name]

    def fail(self, rule: Rule, seq: int, text: str) -> None:
        """A rule is broken."""
        self.docket.fail(rule, seq, text)

    def lost(self) -> None:
        """Records of this chain are missing: what they would have told is unknown."""
        self.synced = False
        self.left = 0
        self.row = self.again = None
        self.pos = 0
        self.bound = self.was_bound = None
        self.incumbent = None
        self.epoch = self.attempts = None
        self.switches_known = self.sure = False
        self.hold_until = -inf
        self.attempt_open = False
        self.forget_clocks()

    def forget_clocks(self) -> None:
        """Instants of before are not comparable any more."""
        self.carried.clear()
        self.born = self.keys = self.episode = self.transportless = UNKNOWN
        self.entered = UNKNOWN
        self.switches.clear()
        self.switches_known = False
        self.due = self.turned_late = inf
        self.hold_until = -inf
