"""The ownership protocol: seeded faults break the promise that they ought to; what is not promised does not hold."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from jumpvpn.tracecheck import model, ownership, tlc

SAFETY, DRIFT, TERMS, LIVE = "Ownership.cfg", "OwnershipDrift.cfg", "OwnershipTerms.cfg", "OwnershipLive.cfg"
SILENT = (("Attempts = 4", "Attempts = 0"), (" ATTEMPTS_SUFFICE\n", "\n"))
ACCEPTS = "IF client.prev = NoKeys THEN keys = Newest ELSE keys = client.prev"


@dataclass(frozen=True)
class Mutant:
    """Every (old, new) of ``edits`` is made, in the module or in ``config``; the run must find ``broken`` violated."""

    name: str
    broken: str
    edits: tuple[tuple[str, str], ...]
    config: str = SAFETY


def mutants() -> list[Mutant]:
    """Faults of gateways, of clients, of what requests carry."""
    return [*_lease_mutants(), *_store_mutants(), *_request_mutants()]


def _lease_mutants() -> list[Mutant]:
    stops = '  /\\ Drop(n) /\\ Stop(n)\n  /\\ Note("release")'
    keeps = '  /\\ UNCHANGED <<own, stale, late, dl, ans, cool>>\n  /\\ Note("release")'
    timer_only = (
        "Forwards(n) == ~paused[n] /\\ own[n].bound /\\ dl[n] > 0",
        "Forwards(n) == ~paused[n] /\\ own[n].bound",
    )
    any_packet = (ACCEPTS, "keys.epoch > 0")
    lapsed = (
        ("~Idle(n) /\\ lease[n] > 0 /\\ dl[n] > 0 /\\", "~Idle(n) /\\"), ("  /\\ dl[n] > 0\n  /\\ dl'", "  /\\ dl'"),
    )  # fmt: skip
    living = "  /\\ Free(n) /\\ (lease[rec.owner] = 0 \\/ rec.owner = n) = TRUE\n"
    return [
        Mutant("no margin", "ONLY_OWNER_FORWARDS", (("Margin = 1", "Margin = 0"),), DRIFT),
        Mutant("the lease's clock starts with the answer", "ONLY_OWNER_FORWARDS",
               (("![n] = ans[n]]", "![n] = Deadline]"), (" /\\ (dl[n] < Deadline \\/ Superseded(n))\n", "\n")), DRIFT),
        Mutant("a timer fences, the packet path does not look", "ONLY_OWNER_FORWARDS", (timer_only,)),
        Mutant("no fence on pause and a client that compares no epochs", "NO_DUAL_ACTIVE",
               (timer_only, any_packet, (" ONLY_OWNER_FORWARDS", ""))),
        Mutant("a beat that is not awaited", "ONLY_OWNER_FORWARDS",
               ((" /\\ ans[n] > 0 /\\ ~late[n]", " /\\ ans[n] > 0"),)),
        Mutant("a drain gives the lease back and goes on", "ONLY_OWNER_FORWARDS", ((stops, keeps),)),
        Mutant("a lease is revoked while the old process lives", "ONLY_OWNER_FORWARDS",
               (("lease[n] > 0 /\\ Ended(n)\n", "lease[n] > 0\n"),)),
        Mutant("a lapsed lease is renewed", "ONLY_OWNER_FORWARDS", lapsed),
        Mutant("an adopter that looks at no lease", "ADOPT_SPARES_LIVING", ((living, "  /\\ Free(n)\n"),)),
        Mutant("an adoption sets the transport clock back", "CLOCK_KEPT",
               (("  /\\ off' = off\n", "  /\\ off' = 0\n"),)),
        Mutant("nobody adopts, and the client is silent", "a temporal property",
               ((" \\/ AdoptRead(n) \\/ Adopt(n)\n        \\/ \\E k", "\n        \\/ \\E k"), *SILENT), LIVE),
    ]  # fmt: skip


def _store_mutants() -> list[Mutant]:
    taking, adopting = (f'  /\\ Swap(n) /\\ job[n].kind = "{kind}"' for kind in ("take", "adopt"))
    stored = " /\\ Stored(n) = TRUE\n  /\\ rec' = [rec EXCEPT !.epoch"
    compares = " /\\ Unchanged(n) = TRUE\n"
    unguarded = 'job[n] = NoJob /\\ rec.st # "TERMINATED"\n'
    landing = "  /\\ s # NoJob /\\ (s.base = Present) = TRUE"
    early = '  /\\ own\' = [own EXCEPT ![n] = Fresh(Taken(n, k), k)]\n  /\\ Note("read")\n  /\\ UNCHANGED <<rec, stray'
    trusting = (
        '  /\\ job[n].kind = "take" /\\ own\' = [own EXCEPT ![n] = Fresh(Taken(n, job[n].nonce), job[n].nonce)]\n'
        '  /\\ Note("doubt")\n  /\\ UNCHANGED <<rec, client'
    )
    return [
        Mutant("a commit compares nothing", "COMMIT_FENCED", ((stored, "\n  /\\ rec' = [rec EXCEPT !.epoch"),)),
        Mutant("a commit compares no term: no lower version wins", "COMMIT_FENCED",
               ((stored, " /\\ rec.ver <= own[n].ver\n  /\\ rec' = [rec EXCEPT !.epoch"),)),
        Mutant("a takeover without compare-and-swap", "COMMIT_FENCED", ((taking + compares, taking + "\n"),)),
        Mutant("an adoption without compare-and-swap", "COMMIT_FENCED", ((adopting + compares, adopting + "\n"),)),
        Mutant("a write that was given up compares nothing when it lands", "COMMIT_FENCED",
               ((landing, "  /\\ s # NoJob"),)),
        Mutant("a grant that does not wait for its commit", "GRANT_FOLLOWS_COMMIT",
               (('  /\\ Note("read")\n  /\\ UNCHANGED <<rec, own, stray', early),)),
        Mutant("an unknown outcome counts as a success", "GRANT_FOLLOWS_COMMIT",
               (('  /\\ Note("doubt")\n  /\\ UNCHANGED <<rec, own, client', trusting),)),
        Mutant("two owners in one term after an unknown outcome", "ONE_HISTORY",
               (('  /\\ Note("doubt")\n  /\\ UNCHANGED <<rec, own, client', trusting),
                (" GRANT_FOLLOWS_COMMIT", ""), ("INVARIANTS TypeOK", "INVARIANTS"))),
        Mutant("an adopter inherits the binding", "BINDING_NOT_INHERITED",
               (('bound |-> None,\n               st |-> "RECOVERING"', "bound |-> rec.bound, st |-> rec.st"),)),
        Mutant("a takeover keeps the former owner's binding", "BINDING_NOT_INHERITED",
               (("!.bound = n,\n", "!.bound = rec.bound,\n"),)),
        Mutant("a new owner in the old one's term", "ONE_HISTORY", (("term |-> rec.term + 1", "term |-> rec.term"),)),
        Mutant("a takeover without a new version", "VERSION", (("reqs[k].ver) + 2", "reqs[k].ver)"),)),
        Mutant("a version not raised by the client's", "VERSION", (("Max(rec.ver, reqs[k].ver) + 2", "rec.ver + 2"),)),
        Mutant("an epoch not raised by the client's", "EPOCH", (("!.epoch = Opens(k),", "!.epoch = rec.epoch,"),)),
        Mutant("a takeover records the epoch before the one that was asked for", "NONCE_ONCE",
               (("!.epoch = Opens(k),", "!.epoch = Opens(k) - 1,"),
                ("PROPERTIES COMMIT_FENCED EPOCH", "PROPERTIES COMMIT_FENCED"))),
        Mutant("TERMINATED revived", "ABSORBING", ((unguarded, "job[n] = NoJob\n"),)),
    ]  # fmt: skip


def _request_mutants() -> list[Mutant]:
    used = "  /\\ mark' = [mark EXCEPT ![n] = k]\n  /\\ off'"
    forged = '  /\\ mark\' = mark\n  /\\ Note("forged")'
    forged_counts = '  /\\ mark\' = [mark EXCEPT ![n] = Len(reqs) + 1]\n  /\\ Note("forged")'
    both = "IF client.prev = NoKeys THEN keys = Newest ELSE keys \\in {Newest, client.prev}"
    return [
        Mutant("a client that compares no epochs", "NO_DUAL_ACTIVE", ((ACCEPTS, "keys.epoch > 0"),)),
        Mutant("one epoch asked for twice, and keys of its number alone", "NO_DUAL_ACTIVE",
               (("Opens(k) == k + 1", "Opens(k) == reqs[k].epoch + 1"), (ACCEPTS, "keys.epoch = client.epoch"),
                ("PROPERTIES COMMIT_FENCED EPOCH", "PROPERTIES COMMIT_FENCED"))),
        Mutant("both epochs open after a drain", "NO_DUAL_ACTIVE", ((ACCEPTS, both),)),
        Mutant("an old epoch kept open after a lost owner", "HANDOVER_DRAINED",
               (("IF drain[client.at] /\\ client.at", "IF client.at"),)),
        Mutant("an owner does not journal the nonce", "NONCE_ONCE", ((used, "  /\\ mark' = mark\n  /\\ off'"),)),
        Mutant("requests name no gateway", "NONCE_ONCE", (("reqs[k].to = n\n", "TRUE\n"),)),
        Mutant("a nonce is used up before its proof", "NONCE_PROVED", ((forged, forged_counts),)),
        Mutant("answers to requests that were given up count", "CLIENT_ONWARD", (("  /\\ k = Len(reqs)\n", ""),)),
        Mutant("a replaced owner serves a request of a newer epoch", "CLIENT_ONWARD",
               (("  /\\ Known(n, k) = TRUE\n", ""),), TERMS),
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


@pytest.mark.parametrize("claim", ["VERSION_NAMES_A_COMMIT", "NEVER_LATE", "ONE_FORWARDS", "OWNER_KNOWS"])
def test_what_is_not_promised_does_not_hold(claim: str) -> None:
    files = _mutated((("INVARIANTS TypeOK", f"INVARIANTS {claim}"),), SAFETY)
    assert _check(SAFETY, files).violated == claim


def test_recovery_holds_and_not_for_want_of_requests() -> None:
    checked = _check(LIVE, tlc.sources())
    assert checked.violated is None
    assert checked.distinct > 1_000
    assert {"RECOVERS", "ATTEMPTS_SUFFICE"} <= set(checked.promises)


def test_the_session_of_a_silent_client_ends_by_its_time() -> None:
    """Its owner may be gone: who adopted it has its deadline."""
    assert _check(LIVE, _mutated(SILENT, LIVE)).violated is None


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
