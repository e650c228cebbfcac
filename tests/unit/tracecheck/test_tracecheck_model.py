"""The module holds for the product's table; a wrong table or a wrong module is caught, by the promise it breaks."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from traced import client_story

from jumpvpn.properties import Property
from jumpvpn.tracecheck import TlcFailed, model, tlc
from jumpvpn.tracecheck.data import Names, module
from jumpvpn.tracecheck.journals import Seen, Trace

NAMES = set(Property.__members__) | set(model.SAME) | set(model.BESIDES)


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in ``file``; the run of ``config`` must find one of ``broken`` violated."""

    name: str
    file: str
    old: str
    new: str
    broken: tuple[str, ...]
    config: str = "Session.cfg"


def row(number: str) -> str:
    """The text of one row of the generated table."""
    lines = tlc.sources()["SessionTable.tla"].splitlines()
    return next(line for line in lines if f'id |-> "{number}",' in line)


def other_row(name: str, number: str, old: str, new: str, *broken: str, config: str = "Session.cfg") -> Mutant:
    """The row says something else."""
    text = row(number)
    assert old in text
    return Mutant(name, "SessionTable.tla", text, text.replace(old, new), broken, config)


def mutants() -> list[Mutant]:
    """Faults of the table, then of the module."""
    goes_on = 'next |-> "RECOVERING", reasons |-> {"dead_transport_recovery"}, emits |-> {}'
    ends = 'next |-> "TERMINATED", reasons |-> {"dead_transport_recovery"}, emits |-> {"session.terminated"}'
    return [
        other_row("a way back that there is not", "18", 'next |-> "DEGRADED"', 'next |-> "VOLATILE"', "EDGES"),
        other_row("a death ends the session", "11.known", goes_on, ends, "DEATH_IS_NOT_THE_END"),
        other_row("two rows at once", "14.unasked", "attempt_does_not_revalidate", "always", "TOTALITY"),
        other_row("no row at all", "7.stale", '"DEGRADED"', '"BIRTH"', "TOTALITY"),
        other_row("a change without a version", "22", "mutates |-> TRUE", "mutates |-> FALSE", "VERSION", "REJECTION"),
        other_row("life after the end", "31", 'from |-> {"BIRTH",', 'from |-> {"TERMINATED", "BIRTH",', "ABSORBING"),
        other_row("an episode without end", "25", ', "DEGRADED"}', "}", "FINITE"),
        other_row("an episode that may last for ever", "25", ', "DEGRADED"}', "}", "a temporal property",
                  config="Liveness.cfg"),
        other_row("attempts without bound", "7.degraded", "newer_epoch_and_attempts_left", "newer_epoch", "TOTALITY"),
        other_row("a silent end", "24", 'emits |-> {"session.terminated"}', "emits |-> {}", "VISIBLE"),
        other_row("a guard that the module does not know", "21", '"attempts_left"', '"good_weather"', "KNOWN"),
        other_row("a row that the module does not know", "10", 'id |-> "10"', 'id |-> "10.new"', "KNOWN"),
        Mutant("a replayed proof", "Session.tla", "x.nonce \\notin s.nonces /\\", "", ("FRESH_PROOF",)),
        Mutant("a running clock restarts", "Session.tla", "IF @ = 0 THEN Count(a.version + 1) ELSE @",
               "Count(a.version + 1)", ("CLOCKS",)),
        Mutant("a takeover inherits the binding", "Session.tla", '"unbind for owner" -> UnbindForOwner(a, x)',
               '"unbind for owner" -> Own(a, x)', ("EPOCH",)),
        Mutant("a binding outlives the session", "Session.tla", '"end" -> [a EXCEPT !.bound = None, ',
               '"end" -> [a EXCEPT ', ("SINGLE_BINDING",)),
        Mutant("a retry that does not count", "Session.tla", "!.attempts = @ + 1", "!.attempts = @",
               ("BOUNDED_RECOVERY",)),
        Mutant("recovery of the wrong transport", "Session.tla", "TryOn(x) /\\ s.try.kind = kind", "s.try.kind = kind",
               ("FRESH_PROOF",)),
    ]  # fmt: skip


def _small(files: dict[str, str]) -> dict[str, str]:
    """Two transports and two bounds: every fault shows with them."""
    config = files["Session.cfg"].replace('"t1", "t2", "t3"', '"t1", "t2"').replace("{1, 2, 3}", "{1, 2}")
    assert config != files["Session.cfg"]
    return {**files, "Session.cfg": config}


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_a_mutant_breaks_the_promise_it_ought_to(mutant: Mutant) -> None:
    files = tlc.sources()
    assert files[mutant.file].count(mutant.old) == 1
    files[mutant.file] = files[mutant.file].replace(mutant.old, mutant.new)
    checked = model.check_one(mutant.config, _small(files))
    assert checked.violated in mutant.broken


def test_every_promise_holds_and_every_row_is_taken() -> None:
    checked = model.check(_small(tlc.sources()))
    assert [run.violated for run in checked.runs] == [None, None]
    assert checked.untaken == ()
    assert checked.rows == len(tlc.sources()["SessionTable.tla"].split("[id |->")) - 1
    assert all(run.distinct > 100 for run in checked.runs)


def test_promises_go_by_the_names_of_the_registry() -> None:
    files = tlc.sources()
    promised = {name for config in model.CONFIGS for name in model.promises(files[config])}
    assert promised <= NAMES
    assert {"SINGLE_BINDING", "EDGES", "ABSORBING", "VERSION", "FRESH_PROOF", "BOUNDED_RECOVERY", "FINITE"} <= promised


def test_a_module_that_cannot_be_read_is_no_verdict() -> None:
    files = {**tlc.sources(), "SessionTable.tla": "---- MODULE SessionTable ----\nRows == {\n====\n"}
    with pytest.raises(TlcFailed, match="TLC stopped"):
        model.check_one("Session.cfg", files)


def test_time_is_limited() -> None:
    with pytest.raises(TlcFailed, match=r"did not end within 0\.05 s"):
        tlc.run("Session", "Session.cfg", tlc.sources(), seconds=0.05)


def test_not_accepted_as_an_invariant_shows_the_explanation() -> None:
    tape = client_story()
    decoder = msgspec.json.Decoder(Seen)
    lines = [line for line in map(decoder.decode, tape.lines) if line.chain.startswith("c:")]
    trace = Trace(lines[0].chain, lines, len(lines), {8}, silent=True)
    files = {**tlc.sources(), "TraceData.tla": module([(trace, Names())])}
    files["TraceSession.cfg"] += "INVARIANT NotAccepted\n"
    outcome = tlc.run("TraceSession", "TraceSession.cfg", files)
    assert outcome.violated == "NotAccepted"
    assert outcome.text.rstrip().count("State ") > len(lines)
