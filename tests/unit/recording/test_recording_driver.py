"""Driver and recorder of a real node, with a tape: what they write is what a replay produces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from taped import RULES, lines_of

from jumpvpn.config import Recording, parse_client
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.client import ClientEngine
from jumpvpn.recording.journal import JournalCheck
from jumpvpn.recording.replay import Replay, replay
from jumpvpn.recording.series import header_of
from jumpvpn.runtime import clock
from jumpvpn.runtime.checkpoints import CheckpointKeys
from jumpvpn.runtime.driver import Driver
from jumpvpn.runtime.journal import Journal, read_lines
from jumpvpn.runtime.node import start_recording
from jumpvpn.runtime.recorder import Recorder
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.session.reasons import Reason
from jumpvpn.session.records import Kept
from jumpvpn.session.state import State
from jumpvpn.values import Epoch, SessionId, TransportId, Version

LINK = inp.Reachable(TransportId("wlan0/udp/gw1"), "wlan0", "udp", "gw1", "192.0.2.1:51900", "10.0.0.2")
CABLE = inp.Reachable(TransportId("eth0/udp/gw1"), "eth0", "udp", "gw1", "192.0.2.1:51900", "10.1.0.2")


class Orders:
    """An executor that grants whatever the client asks."""

    def __init__(self) -> None:
        self.driver: Driver
        self.done: list[out.Output] = []

    def execute(self, order: out.Output) -> None:
        self.done.append(order)
        if isinstance(order, out.AskReattach):
            version = Version(order.expected_version + 1)
            self.driver.post(
                inp.ReattachAnswered(
                    order.transport, "0011", "committed", order.epoch, version, Reason.REATTACH_SUCCESS
                )
            )

    def seal(self, secret: out.Secret | None, uid: str) -> bytes | None:
        return None

    def kept(self, uid: str) -> Kept:
        return Kept(b"", "laptop", ())


class Node:
    """A client's loop without a network."""

    def __init__(self, directory: Path, recording: Recording | None, stack: AsyncExitStack) -> None:
        self.engine = ClientEngine(RULES)
        self.events = directory / "events.jsonl"
        journal = Journal(self.events)
        stack.callback(journal.close)
        keys = CheckpointKeys.open(directory, "laptop", "client", self.events)
        tape = start_recording(recording, self.engine, stack)
        self.recorder = Recorder.create("laptop", "client", journal, MemoryStore(), RULES, keys, tape)
        executor = Orders()
        self.driver = executor.driver = Driver(self.engine, executor, self.recorder)

    async def live(self) -> None:
        """Birth, a link that dies, a reload, the end."""
        self.recorder.start({"role": "client"}, clock.now())
        self.recorder.use_policy(RULES, clock.now(), "start")
        post = self.driver.post
        post(inp.TransportsChanged((LINK, CABLE)))
        post(inp.HandshakeAnswered(SessionId(bytes(16)), LINK.id, LINK.peer, "c0ffee", RULES, Version(1)))
        loop = asyncio.ensure_future(self.driver.run())
        await self.until(State.ATTACHED)
        post(inp.PathValidated(self.uid, CABLE.id, CABLE.peer, 20_000_000))
        post(inp.TransportsChanged((CABLE,), {LINK.id: "link"}))
        while self.engine.session is None or self.engine.session.epoch != Epoch(2):
            await asyncio.sleep(0)
        self.recorder.use_policy(RULES, clock.now())
        post(inp.PolicyOffered(RULES))
        post(inp.OperatorSwitch(TransportId("nowhere/udp/gw1")))
        post(inp.OperatorTerminate(self.uid))
        await self.until(State.TERMINATED)
        self.driver.stop()
        await loop
        self.recorder.stop({"cause": "operator_terminated"}, clock.now())

    @property
    def uid(self) -> str:
        assert self.engine.session is not None
        return self.engine.session.uid

    async def until(self, state: State) -> None:
        while self.engine.session is None or self.engine.session.state is not state:
            await asyncio.sleep(0)


@asynccontextmanager
async def lived(directory: Path, recording: Recording | None) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        node = Node(directory, recording, stack)
        await node.live()
        yield node


async def test_what_a_node_records_is_its_journal(tmp_path: Path) -> None:
    async with lived(tmp_path, Recording(file=str(tmp_path / "node.rec"))) as node:  # type: ignore[arg-type]
        pass
    journal = read_lines(node.events)
    check, produced = JournalCheck("log", journal), list[bytes]()
    lines = lines_of((tmp_path / "node.rec").read_bytes())
    run: Replay = list(replay(lines, None, produced.append))[-1]
    assert produced == journal
    assert run.ended
    assert run.counts.commits >= 4
    assert run.sessions()[node.uid].state is State.TERMINATED
    for line in produced:
        check.expect(line)
    assert header_of(tmp_path / "node.rec").role == "client"


async def test_without_the_table_nothing_is_recorded(tmp_path: Path) -> None:
    async with lived(tmp_path, None) as node:
        assert node.recorder.tape is None
    assert [file.name for file in tmp_path.iterdir() if "rec" in file.suffix] == []


async def test_a_recording_that_cannot_be_written_changes_nothing_else(tmp_path: Path) -> None:
    where = tmp_path / "directory.rec"
    where.mkdir()
    async with lived(tmp_path, Recording(file=str(where))) as node:  # type: ignore[arg-type]
        assert node.engine.session is not None
    assert len(read_lines(node.events)) > 10


KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
CLIENT = f'private_key_file = "/k"\n{{}}\n[[gateway]]\nname = "gw1"\naddress = "h:1"\npublic_key = "{KEY}"\n'


def test_the_configuration_names_file_size_and_number() -> None:
    text = CLIENT.format('recording = { file = "a.rec", size = "1MiB", keep = 2 }')
    wish = parse_client(text, Path("/etc/jumpvpn")).recording
    assert wish == Recording.model_validate(
        {"file": "/etc/jumpvpn/a.rec", "size": "1MiB", "keep": 2}, context={"base": Path("/")}
    )
    assert parse_client(CLIENT.format(""), Path("/etc")).recording is None
