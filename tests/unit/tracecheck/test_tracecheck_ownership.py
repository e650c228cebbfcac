"""The ownership protocol: seeded faults break the promise that they ought to; what is not promised does not hold."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from jumpvpn.tracecheck import model, ownership, tlc

SAFETY, DRIFT, LIVE = "Ownership.cfg", "OwnershipDrift.cfg", "OwnershipLive.cfg"
COMPARES = " /\\ Unchanged(n) = TRUE\n"
NO_PASSING = "own[n].bound /\\ dl[n] > 0\n"
SAME_EPOCH = "keys.epoch = client.epoch /\\ keys.nonce = client.nonce"


@dataclass(frozen=True)
class Mutant:
    """Every (old, new) of ``edits`` is made, in the module or in ``config``; the run must find ``broken`` violated."""

    name: str
    broken: str
    edits: tuple[tuple[str, str], ...]
    config: str = SAFETY


def mutants() -> list[Mutant]:
    """Faults of gateways, of clients, of what requests carry."""
    taking = '  /\\ job[n].kind = "take" /\\ Reaches(n)'
    sweeping = '  /\\ job[n].kind = "sweep" /\\ Reaches(n)'
    stops = '  /\\ Forget(n)\n  /\\ Note("release")'
    keeps = '  /\\ UNCHANGED <<own, dl, ans, cool, stale>>\n  /\\ Note("release")'
    used = "  /\\ mark' = [mark EXCEPT ![n] = k]"
    forged = '  /\\ mark\' = mark\n  /\\ Note("forged")'
    forged_counts = '  /\\ mark\' = [mark EXCEPT ![n] = Len(reqs) + 1]\n  /\\ Note("forged")'
    sweeps, others = " \\/ SweepRead(n) \\/ Sweep(n)\n        \\/ \\E k", "\n        \\/ \\E k"
    newer = "  /\\ reqs[k].epoch <= own[n].epoch /\\ reqs[k].ver <= own[n].ver\n"
    any_packet = (SAME_EPOCH, "keys.epoch > 0")
    timer_only = (NO_PASSING, "own[n].bound\n")
    late_start = (("![n] = ans[n]]", "![n] = Deadline]"), ("Superseded(n) \\/ dl[n] >= Deadline", "Superseded(n)"))
    blind = (" /\\ Waiting(n) /\\ Stored(n) = TRUE", " /\\ Waiting(n)")
    lapsed = (("Held(n) /\\ lease[n] > 0\n", "Held(n)\n"), ("  /\\ dl[n] > 0\n  /\\ dl'", "  /\\ dl'"))
    return [
        Mutant("no margin", "ONLY_OWNER_FORWARDS", (("Margin = 1", "Margin = 0"),), DRIFT),
        Mutant("the lease's clock starts with the answer", "ONLY_OWNER_FORWARDS", late_start, DRIFT),
        Mutant("a timer fences, the packet path does not look", "ONLY_OWNER_FORWARDS", (timer_only,)),
        Mutant("no fence on pause and a client that compares no epochs", "NO_DUAL_ACTIVE",
               (timer_only, any_packet, (" ONLY_OWNER_FORWARDS", ""))),
        Mutant("a client that compares no epochs", "NO_DUAL_ACTIVE", (any_packet,)),
        Mutant("keys of the epoch's number alone", "NO_DUAL_ACTIVE", ((" /\\ keys.nonce = client.nonce", ""),)),
        Mutant("a renewal does not look at the record", "ONLY_OWNER_FORWARDS", (("IF Superseded(n) \\/ dl", "IF dl"),)),
        Mutant("a drain gives the lease back and goes on", "ONLY_OWNER_FORWARDS", ((stops, keeps),)),
        Mutant("a lapsed lease is renewed", "SWEEP_SPARES_LIVING", lapsed),
        Mutant("a commit compares nothing", "COMMIT_FENCED", (blind,)),
        Mutant("a takeover without compare-and-swap", "COMMIT_FENCED", ((taking + COMPARES, taking + "\n"),)),
        Mutant("a sweeper that compares nothing", "COMMIT_FENCED", ((sweeping + COMPARES, sweeping + "\n"),)),
        Mutant("a takeover inherits the binding", "BINDING_NOT_INHERITED",
               (('bound |-> None, st |-> "RECOVERING"', "bound |-> rec.bound, st |-> rec.st"),)),
        Mutant("a takeover in the old owner's term", "ONE_HISTORY", (("term |-> rec.term + 1", "term |-> rec.term"),)),
        Mutant("a takeover without a new version", "VERSION", (("Max(rec.ver, r.ver) + 1", "Max(rec.ver, r.ver)"),)),
        Mutant("a takeover that looks at the store's epoch only", "EPOCH",
               (("Max(rec.epoch, r.epoch) + 1", "rec.epoch + 1"),)),
        Mutant("a takeover does not record the nonce", "NONCE_ONCE", (("mark |-> job[n].nonce", "mark |-> rec.mark"),)),
        Mutant("an owner does not journal the nonce", "NONCE_ONCE", ((used, "  /\\ mark' = mark"),)),
        Mutant("requests name no gateway", "NONCE_ONCE", (("reqs[k].to = n\n", "TRUE\n"),)),
        Mutant("a nonce is used up before its proof", "NONCE_PROVED", ((forged, forged_counts),)),
        Mutant("TERMINATED revived", "ABSORBING", (('  /\\ rec.st # "TERMINATED"\n', ""),)),
        Mutant("a replaced owner serves a request of a newer epoch", "CLIENT_ONWARD", ((newer, ""),)),
        Mutant("nobody sweeps", "a temporal property", ((sweeps, others),), LIVE),
    ]  # fmt: skip


def _mutated(edits: tuple[tuple[str, str], ...], config: str) -> dict[str, str]:
    files = tlc.sources()
    for old, new in edits:
        places = [name for name in ("Ownership.tla", config) if old in files[name]]
        assert len(places) == 1
        assert files[places[0]].count(old) == 1
        files[places[0]] = files[places[0]].replace(old, new)
    return files


def _check(config: str, files: dict[str, str]) -> model.Checked:
    """One thread: of two faults that show at one depth, it is always the same that is found first."""
    return model.check_one(config, files, ownership.MODULE)


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_a_mutant_breaks_the_promise_it_ought_to(mutant: Mutant) -> None:
    checked = _check(mutant.config, _mutated(mutant.edits, mutant.config))
    assert checked.violated == mutant.broken


@pytest.mark.parametrize("claim", ["VERSION_NAMES_A_COMMIT", "NEVER_LATE", "ONE_FORWARDS"])
def test_what_is_not_promised_does_not_hold(claim: str) -> None:
    files = _mutated((("INVARIANTS TypeOK", f"INVARIANTS {claim}"),), SAFETY)
    assert _check(SAFETY, files).violated == claim


def test_recovery_holds_and_not_for_want_of_requests() -> None:
    checked = _check(LIVE, tlc.sources())
    assert checked.violated is None
    assert checked.distinct > 1_000
    assert {"RECOVERS", "ATTEMPTS_SUFFICE"} <= set(checked.promises)


def test_safety_holds_for_one_request_without_faults() -> None:
    edits = (("Attempts = 2", "Attempts = 1"), ("MaxFaults = 1", "MaxFaults = 0"))
    checked = _check(SAFETY, _mutated(edits, SAFETY))
    assert checked.violated is None
    assert checked.distinct > 500


def test_every_promise_is_described_and_has_its_mutant() -> None:
    files = tlc.sources()
    promised = {name for config in ownership.CONFIGS for name in model.promises(files[config])}
    assert promised == set(ownership.PROMISES)
    unbroken = {"TypeOK", "RECOVERS", "ATTEMPTS_SUFFICE"}  # RECOVERS: TLC names no temporal property
    assert promised - unbroken == {mutant.broken for mutant in mutants()} - {"a temporal property"}


def test_an_action_never_taken_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    files = _mutated((("Attempts = 2", "Attempts = 0"), ("MaxFaults = 1", "MaxFaults = 0")), SAFETY)
    monkeypatch.setattr(tlc, "sources", lambda: files)
    monkeypatch.setattr(ownership, "CONFIGS", (SAFETY,))
    told: list[str] = []
    protocol = ownership.check(told.append)
    assert told == [SAFETY]
    assert not protocol.holds
    assert {"take", "ask", "crash"} <= set(protocol.untaken)
    assert "tick" not in protocol.untaken
