"""The key of the checkpoints: never lost, never used twice, never started anew in silence, never shown."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from jumpvpn.audit.auditor import audit_files
from jumpvpn.audit.chain import GENESIS
from jumpvpn.audit.checkpoints import EVENTS_MAX
from jumpvpn.policy.model import Policy
from jumpvpn.runtime import checkpoints
from jumpvpn.runtime.checkpoints import TAIL_BYTES, CheckpointKeys, last_checkpoint
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.journal import Journal, JournalFailed, read_lines
from jumpvpn.runtime.recorder import Recorder
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.values import SECOND, DomainEvent, Instant, Now

NOW = Now(Instant(5 * SECOND), 1_700_000_000_000)
NOTE = DomainEvent("node.stopping", "N")


class Node:
    """Runs of one node: its directory, its journal, and the recorder of the present run."""

    def __init__(self, directory: Path, name: str = "gw1", role: str = "gateway") -> None:
        self.directory, self.name, self.role = directory, name, role
        self.events = directory / f"{role}-events.jsonl"
        self.key_file, self.public_file = directory / "audit.key", directory / "audit.pub"
        self.journal: Journal | None = None

    def start(self) -> Recorder:
        """A run begins; the one before, if any, was killed."""
        self.kill()
        self.journal = Journal(self.events)
        keys = CheckpointKeys.open(self.directory, self.name, self.role, self.events)
        recorder = Recorder.create(self.name, self.role, self.journal, MemoryStore(), Policy(), keys)
        recorder.start({"role": self.role}, NOW)
        return recorder

    def kill(self) -> None:
        if self.journal is not None:
            self.journal.close()
        self.journal = None

    def anchor(self) -> str:
        return self.public_file.read_text().strip()

    def records(self, event: str = "audit.checkpoint") -> list[dict[str, Any]]:
        records = [json.loads(line) for line in read_lines(self.events)]
        return [record for record in records if record["event"] == event]

    def verified(self, key: str, previous: str = GENESIS, number: int = 0) -> int:
        """How many checkpoints hold, each by the key that the one before announced; all of the journal must."""
        for record in self.records():
            data = record["data"]
            number += 1
            names = ("number", "heads", "counts", "prev_checkpoint", "next_key")
            message = rfc8785.dumps({"chain": record["chain"], **{name: data[name] for name in names}})
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(data["signature"]), message)
            assert (data["number"], data["prev_checkpoint"]) == (number, previous)
            key, previous = data["next_key"], record["hash"]
        report = audit_files([self.events])
        assert report.sound, report.explain()
        return number


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.kill()


def checkpoint(recorder: Recorder, *, change: bool = True) -> None:
    """One checkpoint; ``change`` False is a kill right after it is in the journal."""
    recorder.emit((NOTE,), NOW)
    recorder._checkpoint(NOW)
    if change:
        recorder._change_key()


def private_keys(path: Path) -> list[str]:
    kept = json.loads(path.read_text())
    return [kept["current"], kept["next"]]


# --- the chain of keys -----------------------------------------------------------------------------------------------


def test_first_start_leaves_an_anchor_and_says_where(gateway: Node, capfd: pytest.CaptureFixture[str]) -> None:
    recorder = gateway.start()
    assert capfd.readouterr().err == "", "a start that fails afterwards says only why"
    recorder.keys.introduce()
    assert stat.S_IMODE(gateway.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(gateway.public_file.stat().st_mode) == 0o644
    assert re.fullmatch("[0-9a-f]{64}\n", gateway.public_file.read_text())
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert str(gateway.public_file) in said
    assert "another machine" in said
    assert [record["data"]["audit_key"] for record in gateway.records("node.started")] == [gateway.anchor()]
    gateway.start().keys.introduce()
    assert capfd.readouterr().err == ""


def test_every_checkpoint_of_every_run_is_verified_from_the_first_key(gateway: Node) -> None:
    for _ in range(3):
        recorder = gateway.start()
        checkpoint(recorder)
        checkpoint(recorder)
        recorder.stop({"cause": "asked"}, NOW)
    assert gateway.verified(gateway.anchor()) == 9
    announced = {record["data"]["next_key"] for record in gateway.records()} | {gateway.anchor()}
    assert len(announced) == 10, "no key signs twice"


def test_node_started_names_the_key_of_the_first_checkpoint_of_its_run(gateway: Node) -> None:
    gateway.start().stop({"cause": "asked"}, NOW)
    gateway.start()
    (announced,) = [record["data"]["next_key"] for record in gateway.records()]
    assert gateway.records("node.started")[-1]["data"]["audit_key"] == announced


def test_kill_between_the_checkpoint_and_the_change_of_key_breaks_nothing(gateway: Node) -> None:
    checkpoint(gateway.start())
    checkpoint(gateway.start(), change=False)
    checkpoint(gateway.start(), change=False)
    checkpoint(gateway.start())
    assert gateway.verified(gateway.anchor()) == 4


def test_kill_before_the_checkpoint_is_in_the_journal_keeps_the_key(gateway: Node) -> None:
    first = gateway.start()
    checkpoint(first)
    first.sealer.checkpoint(first.keys.link, first.keys.sign, NOW)
    gateway.journal.append([b'{"event":"audit.checkpoint","data":{"number":'])  # type: ignore[union-attr]
    checkpoint(gateway.start())
    assert gateway.verified(gateway.anchor()) == 2


def test_kill_while_the_new_key_is_written_keeps_the_old_one(gateway: Node) -> None:
    checkpoint(gateway.start(), change=False)
    (gateway.directory / "audit.key.new").write_text('{"format":1,"node":')
    checkpoint(gateway.start())
    assert gateway.verified(gateway.anchor()) == 2
    assert not (gateway.directory / "audit.key.new").exists()


def test_journal_that_was_moved_away_does_not_matter(gateway: Node) -> None:
    checkpoint(gateway.start())
    gateway.kill()
    gateway.events.rename(gateway.directory / "old.jsonl")
    before = json.loads((gateway.directory / "old.jsonl").read_text().splitlines()[-1])
    recorder = gateway.start()
    checkpoint(recorder)
    gateway.events.unlink()  # while it runs
    recorder.stop({"cause": "asked"}, NOW)
    checkpoint(gateway.start())
    (record,) = gateway.records()
    assert record["data"]["number"] == 4
    assert before["data"]["number"] == 1


def test_key_file_that_is_moved_away_while_the_node_runs_is_written_again(gateway: Node) -> None:
    recorder = gateway.start()
    gateway.key_file.unlink()
    checkpoint(recorder)
    checkpoint(gateway.start())
    assert gateway.verified(gateway.anchor()) == 2


def test_key_that_signed_is_erased(gateway: Node) -> None:
    recorder = gateway.start()
    used, following = private_keys(gateway.key_file)
    with gateway.key_file.open("rb") as old:
        checkpoint(recorder)
        assert set(old.read()) == {0}
    assert private_keys(gateway.key_file)[0] == following
    assert not any(used.encode() in path.read_bytes() for path in gateway.directory.iterdir())


# --- what must not be used -------------------------------------------------------------------------------------------


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(b"\xff" * 400), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        (edited(current="0f"), "is damaged"),
        (edited(number=-1), "is damaged"),
        (edited(format=2), "has format 2, this program knows 1"),
        (edited(node="gw2"), "belongs to the gateway 'gw2', not to the gateway 'gw1'"),
        (lambda path: path.chmod(0o640), "chmod 600"),
    ],
)  # fmt: skip
def test_key_file_that_cannot_be_right_stops_the_start(
    gateway: Node, damage: Callable[[Path], None], words: str
) -> None:
    gateway.start()
    keys = private_keys(gateway.key_file)
    damage(gateway.key_file)
    left = gateway.key_file.read_bytes()
    with pytest.raises(StartFailed, match=re.escape(words)) as refused:
        gateway.start()
    assert str(gateway.key_file) in str(refused.value)
    assert not any(key in str(refused.value) for key in keys)
    assert gateway.key_file.read_bytes() == left, "nothing is repaired in silence"


def test_key_file_of_another_kind_stops_the_start(gateway: Node) -> None:
    gateway.key_file.mkdir()
    with pytest.raises(StartFailed, match=r"audit\.key is not a regular file"):
        gateway.start()
    gateway.key_file.rmdir()
    gateway.key_file.symlink_to(gateway.directory / "elsewhere")
    with pytest.raises(StartFailed, match=r"audit\.key is not a regular file"):
        gateway.start()


def test_directory_that_cannot_be_written_stops_the_start(gateway: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(checkpoints, "_write", refused)
    with pytest.raises(StartFailed, match=r"cannot use .*audit\.key: Read-only file system"):
        gateway.start()


def test_key_file_from_an_old_backup_stops_the_start(gateway: Node) -> None:
    recorder = gateway.start()
    backup = gateway.key_file.read_bytes()
    checkpoint(recorder)
    checkpoint(recorder)
    gateway.key_file.write_bytes(backup)
    with pytest.raises(StartFailed, match=r"older than the journal .* \(at checkpoint 0, the journal at 2\)"):
        gateway.start()


def test_checkpoint_that_another_key_signed_is_no_successor(gateway: Node) -> None:
    recorder = gateway.start()
    link = recorder.keys.link
    forged = recorder.sealer.checkpoint(link, lambda _message: bytes(64), NOW)
    recorder.journal.append([forged])
    with pytest.raises(StartFailed, match="older than the journal"):
        gateway.start()


def test_moving_the_key_away_begins_a_new_chain_of_keys(gateway: Node) -> None:
    recorder = gateway.start()
    checkpoint(recorder)
    checkpoint(recorder)
    first = gateway.anchor()
    gateway.key_file.unlink()
    gateway.start()
    recorder = gateway.start()  # before its first checkpoint, the journal's last one is of the old chain
    assert gateway.anchor() != first
    assert recorder.keys.public == gateway.anchor() == gateway.records("node.started")[-1]["data"]["audit_key"]
    checkpoint(recorder)
    gateway.start()
    assert [record["data"]["number"] for record in gateway.records()] == [1, 2, 1]


def test_two_nodes_of_one_machine_share_a_directory(tmp_path: Path) -> None:
    gateway, client = Node(tmp_path), Node(tmp_path, "laptop", "client")
    client.public_file = tmp_path / "client-audit.pub"
    for _ in range(2):
        for node in (gateway, client):
            checkpoint(node.start())
    assert [node.verified(node.anchor()) for node in (gateway, client)] == [2, 2]
    gateway.kill()
    client.kill()


def test_nothing_shows_a_private_key(gateway: Node) -> None:
    recorder = gateway.start()
    keys = private_keys(gateway.key_file)
    shown = repr(recorder) + repr(recorder.keys) + repr(recorder.keys._state) + gateway.events.read_text()
    assert not any(key in shown for key in keys)


def test_full_disk_is_a_failed_journal(gateway: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = gateway.start()
    checkpoint(recorder, change=False)

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(JournalFailed, match=r"cannot write .*audit\.key: No space left on device; free some space"):
            recorder._change_key()
    assert not (gateway.directory / "audit.key.new").exists()
    recorder._change_key()
    checkpoint(gateway.start())
    assert gateway.verified(gateway.anchor()) == 2


# --- the journal's last checkpoint -----------------------------------------------------------------------------------


def test_last_checkpoint_of_this_node_is_found_behind_others_and_damage(gateway: Node) -> None:
    recorder = gateway.start()
    checkpoint(recorder)
    (mine,) = gateway.records()
    recorder.emit((NOTE,), NOW)
    line = next(line for line in read_lines(gateway.events) if b"audit.checkpoint" in line)
    recorder.journal.append([line.replace(b'"number":1', b'"number":7'), b'{"event":"audit.checkpoint"}\n', b"junk\n"])
    seen = last_checkpoint(gateway.events, "gw1")
    assert seen is not None
    assert (seen.number, seen.hash) == (1, mine["hash"])
    assert last_checkpoint(gateway.events, "gw2") is None
    assert last_checkpoint(gateway.directory / "missing", "gw1") is None


def test_only_the_tail_of_a_long_journal_is_read(gateway: Node) -> None:
    checkpoint(gateway.start())
    gateway.kill()
    with gateway.events.open("ab") as file:
        file.truncate(file.tell() + TAIL_BYTES + 1)
    assert last_checkpoint(gateway.events, "gw1") is None


# --- the recorder ----------------------------------------------------------------------------------------------------


def test_last_words_are_a_checkpoint_of_everything_and_node_stopped(gateway: Node) -> None:
    recorder = gateway.start()
    recorder.emit((NOTE,), NOW)
    recorder.stop({"cause": "asked"}, NOW)
    *_, before, vouched, stopped = [json.loads(line) for line in read_lines(gateway.events)]
    assert (vouched["event"], stopped["event"]) == ("audit.checkpoint", "node.stopped")
    assert vouched["data"]["heads"] == {before["chain"]: f"{before['seq']}:{before['hash']}"}
    assert stopped["prev"] == vouched["hash"]


async def test_a_thousand_events_bring_a_checkpoint_at_once(gateway: Node) -> None:
    recorder = gateway.start()
    task = asyncio.create_task(recorder.vouch())
    recorder.emit((NOTE,) * EVENTS_MAX, NOW)
    await until(lambda: recorder.keys.link.number == 2)
    (record,) = gateway.records()
    assert record["data"]["counts"]["events"] == EVENTS_MAX + 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    recorder.stop({"cause": "asked"}, NOW)
    assert gateway.verified(gateway.anchor()) == 2


async def test_stop_in_the_midst_of_a_change_of_key_waits_for_it(
    gateway: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change runs in a thread: two at the same time would lose a key."""
    recorder = gateway.start()
    changing, loop = asyncio.Event(), asyncio.get_running_loop()
    change = recorder.keys.advance

    def slow() -> None:
        loop.call_soon_threadsafe(changing.set)
        change()

    monkeypatch.setattr(recorder.keys, "advance", slow)
    task = asyncio.create_task(recorder.vouch())
    recorder.emit((NOTE,) * EVENTS_MAX, NOW)
    await changing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.keys.link.number == 2
    recorder.stop({"cause": "asked"}, NOW)
    assert gateway.verified(gateway.anchor()) == 2


async def test_failure_to_write_ends_the_job(gateway: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = gateway.start()

    def full(*_: object) -> None:
        raise JournalFailed("no space")

    recorder.emit((NOTE,) * EVENTS_MAX, NOW)
    monkeypatch.setattr(recorder.keys, "advance", full)
    with pytest.raises(JournalFailed, match="no space"):
        await recorder.vouch()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition`` holds; the test's own timeout ends it otherwise."""
    while not condition():
        await asyncio.sleep(0)
