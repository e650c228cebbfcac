"""What becomes of a client's session if its transport dies, or its whole gateway: facts for ``status`` and ``explain``.

Selection answers, as it will when it happens; how long it takes is reckoned from the policy's limits.
"""

from __future__ import annotations

from jumpvpn.engine.book import TransportBook
from jumpvpn.policy.selection import Choice, Nothing, Refused, Selected, Wish, choose
from jumpvpn.session.deadlines import CAUSE, POLICY_KEY, deadlines
from jumpvpn.session.events import EpisodePassed, KeysExpired, LifetimePassed, TransportTtlPassed
from jumpvpn.session.facts import Facts
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session
from jumpvpn.transports.state import Transport
from jumpvpn.values import SECOND, Instant, later, milliseconds, replace

TOKEN_SHOWN = 9 * SECOND  # wire format, WIRE-87: for so long a standby's return token goes with a request
_ENDS = (TransportTtlPassed, EpisodePassed, LifetimePassed, KeysExpired)


def successor(book: TransportBook, session: Session, now: Instant, *, elsewhere: bool = False) -> Choice | None:
    """Who would take over if the bound transport died at ``now``, or (``elsewhere``) the whole gateway."""
    if session.binding is None:
        return None
    wish = Wish(urgent=True, incumbent=session.incumbent, exclude_incumbent=True)
    found = [c for c in book.candidates(session.policy, (), now, session) if c.away or not elsewhere]
    if elsewhere:  # one that leaves takes no session over
        staying = [c for c in found if book.transports[c.id].gateway not in book.gateways.draining]
        if any(c.usable for c in found) and not any(c.usable for c in staying):
            return Refused(Reason.GATEWAY_DRAIN.value, {"candidate_count": len(found)})
        found = staying
    return choose(tuple(found), wish, session.budget, session.policy, now)


def gateway_loss(book: TransportBook, session: Session, now: Instant) -> Facts | None:
    """What follows if the session's gateway dies at ``now``; None while no gateway carries it.

    ``outcome`` is ``moves`` (to the gateway ``to``, over ``transport`` and ``interface``) or ``waits`` (``why``: a
    reason). ``proof``: ``token`` (the client's address is proven ahead, it asks once) or ``challenge`` (it has to prove
    it first, one exchange more). ``detect_busy_ms`` and ``detect_idle_ms``: when the gateway counts as dead,
    with traffic and without. ``at_most_ms``: until the move, detection included, if ``to`` answers; None: no bound
    but the end. ``ends``: reason, policy key and time (ms) of the session's end if no gateway answers.
    """
    choice, home = successor(book, session, now, elsewhere=True), book.home(session)
    if choice is None or home is None or session.binding is None:
        return None
    limits = book.liveness(session.binding.transport)
    busy, idle = (limits.silence_busy, limits.silence_idle) if limits is not None else (0, 0)
    factor = session.policy.volatility.dead_factor
    found: Facts = {
        "gateway": home, "outcome": "waits", "to": None, "transport": None, "interface": None, "proof": None,
        "why": None, "detect_busy_ms": milliseconds(busy * factor), "detect_idle_ms": milliseconds(idle * factor),
        "at_most_ms": None, "ends": _end(session, now),
    }  # fmt: skip
    match choice:
        case Refused():
            return {**found, "why": choice.rule}
        case Nothing():
            return {**found, "why": Reason.NO_CANDIDATE_TRANSPORTS.value}
        case Selected():
            heir = book.transports[choice.transport]
            bound = _attempts(book, session, now)
            return {
                **found, "outcome": "moves", "to": heir.gateway, "transport": heir.id, "interface": heir.interface,
                "proof": "token" if _has_token(heir, now) else "challenge",
                "at_most_ms": milliseconds(max(busy, idle) * factor + bound) if bound is not None else None,
            }  # fmt: skip


def _has_token(heir: Transport, now: Instant) -> bool:
    """Whether the answer to the last standby probe is so fresh that its return token still goes with a request."""
    return heir.validated and heir.heard_at is not None and now - heir.heard_at + heir.rtt_ns < TOKEN_SHOWN


def _attempts(book: TransportBook, session: Session, now: Instant) -> int | None:
    """How long (ns) attempts take at most until the heir's has ended: the dead gateway may be tried over other networks
    before. None if they do not fit the recovery window: then the policy's waits come in between.
    """
    recovery = session.policy.recovery
    others = (c for c in book.candidates(session.policy, (), now, session) if not c.away and c.id != session.incumbent)
    tried = sum(c.usable and c.allowed for c in others)
    longest = (tried + 1) * min(recovery.attempt_timeout, recovery.window)
    return longest if longest <= recovery.window and tried < recovery.max_attempts else None


def _end(session: Session, now: Instant) -> Facts:
    """The first limit that ends the session if nothing carries it from ``now`` on."""
    since = session.transportless_at or now
    alone = replace(session, binding=None, transportless_at=since, episode_at=session.episode_at or now)
    first = min((d for d in deadlines(alone) if isinstance(d.event, _ENDS)), key=lambda d: later(d.at, 0))
    return {
        "reason": CAUSE[type(first.event)].value, "policy": POLICY_KEY[first.name],
        "in_ms": milliseconds(first.at - now),
    }  # fmt: skip
