"""What comes next and what would change it: an outlook's facts become sentences, nearest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jumpvpn.explain import words
from jumpvpn.explain.causes import Name
from jumpvpn.explain.units import count, listed, percent, span
from jumpvpn.policy.model import Policy
from jumpvpn.session.deadlines import PRIORITY
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State

Facts = Mapping[str, Any]

_OBVIOUS = (Reason.NO_CANDIDATE_TRANSPORTS.value,)  # a transport that does not work cannot be switched to
_NO_HEIR = {
    Reason.NO_CANDIDATE_TRANSPORTS.value: "no other gateway can be reached",
    Reason.GATEWAY_DRAIN.value: "every other gateway that can be reached drains",
}
_FAR_MS = 600_000  # a limit further away than the first lifetime warning is no news while others run
_EVENTS = {event.__name__: event for event in PRIORITY}
_UNLESS = {
    "transport_ttl": "without a transport ",
    "episode": "unless it is ATTACHED again ",
    "key_age": "without fresh keys ",
    "handshake": "without a completed handshake ",
    "volatile_dwell": "unless it calms down before, ",
    "recovery_window": "unless the attempt succeeds ",
    "attempt": "unless the attempt is answered ",
}


@dataclass(frozen=True, slots=True)
class Due:
    """One thing to come. ``in_ms`` None: time alone does not bring it."""

    name: str
    in_ms: float | None
    text: str
    policy: str | None = None
    value: str | None = None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "in_ms": self.in_ms, "text": self.text, "policy": self.policy, "value": self.value}


@dataclass(frozen=True, slots=True)
class Considered:
    """One transport as selection sees it: ``verdict`` in one word, and what it lacks."""

    transport: str
    verdict: str
    text: str

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"transport": self.transport, "verdict": self.verdict, "text": self.text}


# --- what comes next -------------------------------------------------------------------------------------------------


def dues(facts: Facts, policy: Policy, name: Name) -> tuple[Due, ...]:
    """Deadlines and waits, nearest first; what time alone does not bring, last."""
    state = State(facts["state"])
    found = [_deadline(d, state, policy) for d in facts["deadlines"]]
    waits = [w for w in facts["waits"] if w["name"] != "challenge"]
    found += [_wait(wait, facts, policy, name) for wait in waits]
    challenges = [w for w in facts["waits"] if w["name"] == "challenge"]
    if challenges:
        who = listed([name(w["transport"]) for w in challenges])
        verb = "are" if len(challenges) > 1 else "is"
        found.append(Due("challenge", challenges[0]["left_ms"], f"{who} {verb} asked again for an answer"))
    return tuple(sorted(found, key=lambda due: (due.in_ms is None, due.in_ms or 0)))


def near(found: tuple[Due, ...], state: State) -> tuple[Due, ...]:
    """Without the limits that are far away, as long as others are left."""
    far = {"lifetime", "lifetime_warning", "key_age"}
    kept = [d for d in found if d.name not in far or (d.in_ms is not None and d.in_ms < _FAR_MS)]
    kept = [d for d in kept if d.name != "challenge" or state is State.DEGRADED]
    return tuple(kept)


def _deadline(deadline: Facts, state: State, policy: Policy) -> Due:
    name, key = deadline["name"], deadline["policy"]
    happens = words.consequence(state, name, _EVENTS[deadline["event"]])
    return Due(name, deadline["left_ms"], f"{_UNLESS.get(name, '')}{happens}", key, words.value(policy, key))


def _wait(wait: Facts, facts: Facts, policy: Policy, name: Name) -> Due:
    key = _WAIT_KEYS.get(wait["name"])
    shown = words.value(policy, key) if key else None
    return Due(wait["name"], wait["left_ms"], _wait_words(wait, facts, name), key, shown)


_WAIT_KEYS = {
    "hold_down": "switching.hold_down",
    "rekey": "security.rekey_after",
    "failback": "switching.failback",
    "stable": "volatility.stability_window",
    "death": "volatility.dead_factor",
}


def _wait_words(wait: Facts, facts: Facts, name: Name) -> str:
    where = name(wait.get("transport"))
    match wait["name"]:
        case "retry" if wait["left_ms"] is None:
            return "no attempt is due: a transport has to come back first"
        case "retry":
            return f"attempt {facts['attempts'] + 1}: {where} is tried; {_retry_rule(wait, facts)}"
        case "hold_down":
            return "hold-down ends, then a switch by wish is possible again"
        case "gateway_patience":
            return "the gateway, which refused the last request, may be asked again"
        case "rekey":
            return "fresh keys are agreed"
        case "failback":
            return f"the session returns to {where}, which transports.prefer names first"
        case "stable" if wait["left_ms"] is None:
            return f"{where} is not good, so it cannot count as stable"
        case "stable":
            return f"{where} counts as stable and has to prove itself"
        case "death":
            return f"about then {where} is declared dead, unless it answers"
        case "socket":
            return f"a new socket is opened on {where}"
    return str(wait["name"])


def _retry_rule(wait: Facts, facts: Facts) -> str:
    """Why the next attempt comes then: what forbids it until then, or selection's rule."""
    decision = facts["decision"]
    lifted = {
        Reason.SWITCH_RATE_LIMITED.value: "the switch budget has room again then",
        Reason.COOLDOWN_ACTIVE.value: "hold-down is over then",
    }
    refused = (
        decision is not None and decision["kind"] == "refused" and decision["detail"].get("rule") not in words.RULES
    )
    rule = str(wait.get("rule"))
    return lifted.get(decision["rule"] if refused else "", words.RULES.get(rule, rule))


# --- the transports --------------------------------------------------------------------------------------------------


def considered(facts: Facts, policy: Policy, name: Name) -> tuple[Considered, ...]:
    """Every transport with its verdict."""
    return tuple(_considered(candidate, facts, policy, name) for candidate in facts["candidates"])


def _considered(candidate: Facts, facts: Facts, policy: Policy, name: Name) -> Considered:
    bound = facts["binding"]["transport"] if facts["binding"] else None
    lacks = list(candidate.get("lacks", ()))
    figures = _figures(candidate, policy)
    age = span(candidate["condition_ms"])
    condition = candidate["condition"]
    if candidate["id"] == bound:
        good = condition in ("good", "candidate")
        text = figures or "in use"
        troubled = f"in use, but {condition}{_beyond(candidate, facts)} for {age}"
        return Considered(name(bound), "active", text if good else troubled)
    texts = {
        "allowed": f"policy forbids it ({words.forbidding(policy, candidate['id'])})",
        "gone": f"no interface, address or route for {age}",
        "dead": f"does not answer for {age}",
        "silent": f"does not answer for {age}",
        "path": "waits for a path index, which the next reattach frees",
        "proof": f"not proved yet, seen for {age}",
        "calm": f"flapped too often; calm again in {span(candidate.get('reuse_in_ms') or 0)}",
    }
    reasons = [texts[lack] for lack in lacks if lack in texts]
    if candidate["id"] in facts["tried"] and facts["state"] == State.RECOVERING.value:
        reasons.append("tried in this stay already")
    blocking = [lack for lack in lacks if lack != "proof"]
    verdict = _verdict(condition, blocking)
    return Considered(name(candidate["id"]), verdict, "; ".join(reasons) or figures or f"good for {age}")


def _beyond(candidate: Facts, facts: Facts) -> str:
    """The limit that a silent transport in use has crossed, where the reason tells which of both it was."""
    names = {
        Reason.PROBE_TIMEOUT.value: "silence_limit_ms",
        Reason.CONSECUTIVE_DROP_EXCEEDED.value: "silence_limit_idle_ms",
    }
    limit = candidate.get(names.get(facts["reason"], ""))
    if candidate["condition"] != "silent" or limit is None:
        return ""
    return f" beyond its limit of {span(limit)}"


def _verdict(condition: str, blocking: list[str]) -> str:
    if "allowed" in blocking:
        return "forbidden"
    if blocking:
        return {"path": "waiting", "calm": "suppressed"}.get(blocking[0], condition)
    return "standby" if condition == "good" else "candidate"


def _figures(candidate: Facts, policy: Policy) -> str:
    rtt, loss = candidate.get("rtt_ms"), candidate.get("loss")
    if not rtt or loss is None:
        return ""
    if loss > policy.volatility.loss_threshold:
        return f"RTT {span(rtt)}, loss {percent(loss)} against {percent(policy.volatility.loss_threshold)}"
    good = f", good for {span(candidate['condition_ms'])}" if candidate["condition"] == "good" else ""
    return f"RTT {span(rtt)}, loss {percent(loss)}{good}"


# --- what would change it --------------------------------------------------------------------------------------------


def changes(facts: Facts, policy: Policy, name: Name, *, live: bool) -> tuple[str, ...]:
    """What would lead elsewhere: facts that could come true, limits that end, commands that would be granted."""
    state = State(facts["state"])
    found: list[str] = []
    match state:
        case State.ATTACHED | State.VOLATILE:
            several = len(facts.get("gateways", ())) > 1  # else there is only the one that its file names
            found += [*_successor(facts, name), *(gateway_lost(facts.get("gateway_loss")) if several else [])]
            found += _switches(facts, policy, name, live=live)
        case State.DEGRADED if facts["role"] == "gateway":
            found += ["the client reattaches; a gateway never moves a session by itself"]
            found += [f"{name(facts['incumbent'])} answers a challenge"] if facts["incumbent"] else []
        case State.DEGRADED:
            decision = facts["decision"] or {"detail": {}}
            patient = decision["detail"].get("rule") == words.BY_GATEWAY
            found += _come_true(facts["candidates"], policy, name, then=" once the gateway may be asked" * patient)
            found += _limits(facts, policy)
        case State.RECOVERING if facts["attempt"] is not None:
            found += [_settles(facts["attempt"], name)]
        case State.BIRTH:
            found += ["the gateway completes the handshake"]
    if state is State.VOLATILE:
        found = _calms(facts, policy, name) + found
    if facts.get("policy_waiting"):
        found.append("a reloaded policy waits: what it loosens counts from the next ATTACHED on")
    if live and state is not State.TERMINATED and state is not State.ATTACHED:
        found.append(f"'jumpvpn terminate {facts['uid']}' ends it at once")
    return tuple(found)


def _calms(facts: Facts, policy: Policy, name: Name) -> list[str]:
    """What ends instability before its time."""
    if facts["binding"] is None:
        return []
    where = name(facts["binding"]["transport"])
    window, margin = words.value(policy, "volatility.stability_window"), words.value(policy, "switching.hysteresis")
    found = [f"{where} good for the stability window (from {window}): it proves itself and the session stays"]
    if facts["role"] == "client":
        found.append(f"a proved transport that beats {where} (switching.hysteresis {margin}): the session moves there")
    return found


def _settles(attempt: Facts, name: Name) -> str:
    where = name(attempt["transport"])
    if attempt["kind"] == "switch":
        return f"the gateway confirms the reattach over {where}: ATTACHED"
    return f"{where} answers the challenge: ATTACHED"


def _come_true(candidates: list[Facts], policy: Policy, name: Name, then: str) -> list[str]:
    """What each transport lacks, those that lack the same together; ``then`` says when it would be tried."""
    found: dict[str, list[str]] = {}
    for candidate in candidates:
        lacks = candidate.get("lacks", ())
        if "allowed" in lacks:
            template = "a policy that allows {}" + f" (now forbidden: {words.forbidding(policy, candidate['id'])})"
        elif "gone" in lacks:
            template = "{} back (interface up, address, route): it is tried" + then
        elif "dead" in lacks or "silent" in lacks:
            template = "{} answering a challenge: it is tried" + then
        elif "calm" in lacks:
            template = "{}" + f" calm for {span(candidate.get('reuse_in_ms') or 0)} (switching.flap_reuse)"
        else:
            continue
        found.setdefault(template, []).append(name(candidate["id"]))
    return [text.replace("{}", listed(names, "or")) for text, names in found.items()]


def _limits(facts: Facts, policy: Policy) -> list[str]:
    budget, decision = facts["budget"], facts["decision"]
    rule = decision["rule"] if decision else None
    found = []
    if rule == Reason.COOLDOWN_ACTIVE.value and budget["hold_down_ms"]:
        key = "switching.hold_down"
        found.append(f"hold-down ends in {span(budget['hold_down_ms'])} ({key} {words.value(policy, key)})")
    if rule == Reason.SWITCH_RATE_LIMITED.value or budget["used"] >= budget["max"]:
        found.append(_budget(budget))
    return found


def _budget(budget: Facts) -> str:
    frees = budget["frees_in_ms"]
    free = f", the next is free in {span(frees)}" if frees is not None and budget["used"] >= budget["max"] else ""
    return f"switch budget: {budget['used']} of {budget['max']} used in 60 s{free} (switching.max_per_minute)"


def _successor(facts: Facts, name: Name) -> list[str]:
    """Who takes over if the bound transport dies."""
    successor, bound = facts["successor"], facts["binding"]
    if successor is None or bound is None:
        return []
    dies = f"if {name(bound['transport'])} dies"
    if successor["kind"] == "selected":
        return [f"{dies}, {name(successor['transport'])} takes over at once"]
    if successor["kind"] == "refused":
        forbidden = successor["rule"] == Reason.POLICY_DENIED.value
        why = "policy forbids every other transport" if forbidden else words.meaning(successor["rule"])
        return [f"{dies}, the session waits in DEGRADED: {why}"]
    return [f"{dies}, the session waits in DEGRADED: nothing else is usable"]


def gateway_lost(loss: Facts | None) -> list[str]:
    """What becomes of the session if its gateway dies (``engine.gateway_loss``), one sentence or none."""
    if loss is None:
        return []
    dies, ends = f"if gateway {loss['gateway']} dies", loss["ends"]
    end = f"ends with {ends['reason']} after {span(ends['in_ms'])} ({ends['policy']})"
    if loss["outcome"] == "waits":
        why = _NO_HEIR.get(loss["why"]) or words.meaning(loss["why"])
        return [f"{dies}, the session waits in DEGRADED: {why}; unless a gateway answers before, it {end}"]
    at_once = loss["proof"] == "token"
    asks = (
        "asks once (a return token is at hand)" if at_once else "asks twice (it has to prove its address there first)"
    )
    seen = f"{span(loss['detect_busy_ms'])} with traffic, {span(loss['detect_idle_ms'])} without"
    most = "" if loss["at_most_ms"] is None else f"; it has moved within {span(loss['at_most_ms'])}"
    where = f"{loss['to']} over {loss['interface']}"
    return [f"{dies}, the session goes to {where} and {asks}; the death shows after {seen} at most{most}"]


def _switches(facts: Facts, policy: Policy, name: Name, *, live: bool) -> list[str]:
    """Which operator's switches would be granted, which refused and why."""
    bound = facts["binding"]["transport"] if facts["binding"] else None
    others = [c for c in facts["candidates"] if c["id"] != bound and "switch_refusal" in c] if live else []
    granted = [f"'jumpvpn switch --to {name(c['id'])}'" for c in others if c["switch_refusal"] is None]
    found = [f"{listed(granted)} would be granted"] if granted else []
    for candidate in others:
        refusal = candidate["switch_refusal"]
        if refusal is not None and refusal["reason"] not in _OBVIOUS:
            why = _refusal(candidate, refusal, policy)
            found.append(f"'jumpvpn switch --to {name(candidate['id'])}' would be refused: {why}")
    budget = facts["budget"]
    if budget["used"] >= budget["max"]:
        found.append(_budget(budget))
    return found


def _refusal(candidate: Facts, refusal: Facts, policy: Policy) -> str:
    """Why a switch to this very transport would be refused."""
    forbidden = words.forbidding(policy, candidate["id"])
    if refusal["reason"] == Reason.POLICY_DENIED.value and forbidden is not None:
        return f"policy forbids it ({forbidden})"
    if candidate.get("suppressed"):
        return f"it flapped too often, calm again in {span(candidate.get('reuse_in_ms') or 0)}"
    figures = words.measured(refusal["detail"])
    return words.meaning(refusal["reason"]) + (f" ({', '.join(figures)})" if figures else "")


def saved_by(reason: Reason | None, facts: Facts, policy: Policy) -> tuple[str, ...]:
    """What would have kept a session that ended for ``reason`` alive."""
    ttl, episode = words.value(policy, "session.transport_ttl"), words.value(policy, "recovery.episode_max")
    tries = count(policy.recovery.max_attempts, "attempt")
    found = {
        Reason.TRANSPORT_TTL_EXCEEDED: (
            f"any allowed transport that answered within {ttl} of the loss",
            f"a longer session.transport_ttl (it is {ttl})",
        ),
        Reason.EPISODE_BOUND_EXCEEDED: (
            f"one return to ATTACHED within {episode}",
            f"a longer recovery.episode_max (it is {episode})",
        ),
        Reason.RECOVERY_ATTEMPTS_EXHAUSTED: (
            f"one of {tries} that succeeded",
            f"more recovery.max_attempts (it is {policy.recovery.max_attempts})",
        ),
        Reason.SESSION_LIFETIME_EXCEEDED: ("nothing: a lifetime is never extended; a new handshake begins a new one",),
        Reason.KEY_EXPIRED: ("one rekey that the peer answered",),
        Reason.HANDSHAKE_TIMEOUT: ("a gateway that answered in time: is it running, is UDP let through?",),
        Reason.HANDSHAKE_FAILED: ("a handshake that the gateway accepts: is this device in its list?",),
        Reason.OPERATOR_TERMINATED: ("nothing: someone asked for the end",),
        Reason.PEER_CLOSED: (f"nothing here; ask the other end with 'jumpvpn explain {facts['uid']}'",),
        Reason.DEVICE_SUPERSEDED: (
            "no second handshake with the same key: did the client start anew, is its key on another machine?",
        ),
    }
    return found.get(reason, ()) if reason is not None else ()
