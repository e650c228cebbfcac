"""What the product does, the specification explains: every transcript, whole worlds, seeds of the simulation."""

from __future__ import annotations

import json
from pathlib import Path

from build import ID, PEER, WLAN, policy, started
from traced import Tape, eventful_world, scenario_tapes, write
from transcripts import read

from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Role, State
from jumpvpn.sim.cluster.run import UNJUDGED
from jumpvpn.sim.cluster.run import play as play_cluster
from jumpvpn.sim.run import Run
from jumpvpn.tracecheck import Verdict, validate
from jumpvpn.tracecheck.journals import LINES_MAX
from jumpvpn.tracecheck.journals import read as read_journals
from jumpvpn.values import HOUR

ROOT = Path(__file__).parents[3]
SEEDS = range(7000, 7010)
CLUSTERS = range(30)


def _mutating_rows() -> set[str]:
    table = json.loads((ROOT / "spec/generated/transitions.json").read_text())
    return {row["id"] for row in table["rows"] if row["mutates"]}


def test_every_transcript_is_explained_and_together_they_take_every_row(tmp_path: Path) -> None:
    texts = [file.read_text() for file in sorted((ROOT / "tests/scenarios").glob("*.txt")) if file.stem != "table"]
    tapes = [tape for text in texts for scenario in read(text) for tape in scenario_tapes(scenario)]
    files = [write(tmp_path / f"{number}.jsonl", tape.lines) for number, tape in enumerate(tapes)]
    report = validate(files, each=True)
    assert [finding.why for finding in report.findings if finding.verdict is not Verdict.ACCEPTED] == []
    assert len(report.findings) == len(files)
    assert _mutating_rows() <= {row for finding in report.findings for row in finding.rows}


def test_both_ends_of_an_eventful_life_are_explained_from_their_journals(tmp_path: Path) -> None:
    world = eventful_world()
    files = [write(tmp_path / f"{role}.jsonl", journal.lines) for role, journal in world.journals.items()]
    report = validate(files)
    assert report.accepted, [finding.why for finding in report.findings]
    assert {finding.end for finding in report.findings} == {"client", "gateway"}
    assert all(finding.lines > 40 and not finding.note for finding in report.findings)
    assert validate(reversed(files)).findings == report.findings  # the order of the journals does not matter


def test_seeds_of_the_simulation_are_explained(tmp_path: Path) -> None:
    files = []
    for seed in SEEDS:
        outcome = Run(seed).play()
        assert outcome.failure is None
        files += [write(tmp_path / f"{seed}-{role}.jsonl", lines) for role, lines in outcome.journals.items()]
    report = validate(files, each=True)
    assert report.accepted, [f"{finding.journal}: {finding.why}" for finding in report.findings]
    assert len(report.findings) >= len(SEEDS)


def test_seeds_of_simulated_clusters_are_explained_with_all_journals_together(tmp_path: Path) -> None:
    files = []
    for seed in CLUSTERS:
        outcome = play_cluster(seed)
        assert outcome.failure is None
        if not outcome.notes[UNJUDGED]:
            files.append(
                write(tmp_path / f"{seed}.jsonl", [line for side in outcome.journals.values() for line in side])
            )
    report = validate(files, each=True)
    assert report.accepted, [f"{finding.journal}: {finding.why}" for finding in report.rejected]
    assert {"8", "16", "32"} <= {row for finding in report.findings for row in finding.rows}
    assert any("@" in finding.chain for finding in report.findings)


def test_a_long_record_is_judged_up_to_the_bound_and_says_so(tmp_path: Path) -> None:
    tape = Tape(rules=policy(security={"key_max_age": "20h"}, session={"max_lifetime": "20h"})).reach(State.ATTACHED)
    epoch = 1
    while len(tape.lines) <= LINES_MAX:
        epoch += 1
        tape.feed(ev.KeysRotated(epoch), wait=1)
    finding = validate([write(tmp_path / "long.jsonl", tape.lines)]).findings[0]
    assert finding.verdict is Verdict.ACCEPTED
    assert finding.lines == LINES_MAX
    assert finding.note == f"judged its first {LINES_MAX} of {len(tape.lines)} events (at most {LINES_MAX})"


def test_the_sample_depends_on_the_seed_alone(tmp_path: Path) -> None:
    lines = Tape().reach(State.ATTACHED).lines
    content = [line.replace(ID.uid.encode(), f"{number:016x}".encode()) for number in range(20) for line in lines]
    journal = write(tmp_path / "many.jsonl", content)
    chosen = [[t.chain for t in read_journals([journal], session=None, sample=3, seed=s).traces] for s in (1, 1, 2)]
    assert len(chosen[0]) == 3
    assert chosen[0] == chosen[1] != chosen[2]
    assert [f.chain for f in validate([journal], sample=3, seed=2).findings] == chosen[2]


def test_a_journal_with_rubbish_in_it_still_counts(tmp_path: Path) -> None:
    lines = Tape(Role.GATEWAY).reach(State.RECOVERING).feed(ev.NoCandidate(), wait=HOUR // 3600).lines
    rubbish = [b"\xff\x00\n", b"[]\n", b'{"chain": 1}\n', b"{" * 5000 + b"\n", b"x" * (3 << 20) + b"\n", b'{"chain":"s']
    report = validate([write(tmp_path / "gateway.jsonl", [*lines, *rubbish])])
    assert report.accepted
    assert report.unreadable == len(rubbish)


def test_a_lane_that_is_not_here_lets_attempts_begin_unseen(tmp_path: Path) -> None:
    tape = Tape().reach(State.RECOVERING)
    tape.feed(started(tape.session, WLAN, AttemptKind.REVALIDATE, tape.now))
    tape.feed(ev.IncumbentRevalidated(WLAN, PEER, 1), wait=1)
    alone = [line for line in tape.lines if json.loads(line)["chain"].startswith("c:")]
    assert validate([write(tmp_path / "alone.jsonl", alone)]).accepted


def test_reasons_of_the_table_are_the_only_ones(tmp_path: Path) -> None:
    tape = Tape().reach(State.ATTACHED).feed(ev.InstabilitySeen(WLAN, Reason.PROBE_TIMEOUT))
    known = validate([write(tmp_path / "a.jsonl", tape.lines)])
    foreign = [line.replace(b"probe_timeout", b"bad_weather") for line in tape.lines]
    unknown = validate([write(tmp_path / "b.jsonl", foreign)])
    assert known.accepted
    assert [finding.verdict for finding in unknown.findings] == [Verdict.REJECTED]
