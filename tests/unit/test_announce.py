"""What is announced, in which order, and what happens when the administrator's program fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumpvpn.runtime import announce_hook, wishes
from jumpvpn.runtime.announce import MOST_ADDRESSES, Announcer
from jumpvpn.runtime.bulk import link_states
from jumpvpn.runtime.cleanup import Ownership
from jumpvpn.runtime.gratuitous import advertisement, arp_frame
from jumpvpn.runtime.wishes import FIRST_PAUSE_S, LONGEST_PAUSE_S, Batch, Wishes

POOLS = ("10.77.0.0/16", "fd77::/64")
MAC = bytes.fromhex("020000000001")


# --- the queue -------------------------------------------------------------------------------------------------------


def test_the_newest_wish_of_an_address_wins() -> None:
    queue = Wishes()
    for address, acquire in (("a", True), ("b", True), ("a", False), ("b", False), ("b", True)):
        queue.put(address, acquire)
    found = [queue.take(0.0, 10), queue.take(0.0, 10), queue.take(0.0, 10)]
    assert found == [Batch(True, ("b",)), Batch(False, ("a",)), None]


def test_a_batch_is_never_longer_than_asked_for_and_the_oldest_come_first() -> None:
    queue = Wishes()
    for number in range(5):
        queue.put(str(number), True)
    assert queue.take(0.0, 3) == Batch(True, ("0", "1", "2"))
    queue.settle(Batch(True, ("0", "1", "2")), (), 0.0)
    assert queue.take(0.0, 3) == Batch(True, ("3", "4"))


def test_a_failure_comes_again_after_a_pause_that_doubles_up_to_a_bound() -> None:
    queue, now, pauses = Wishes(), 0.0, []
    queue.put("a", True)
    for _ in range(12):
        batch = queue.take(now, 10)
        assert batch == Batch(True, ("a",))
        pauses.append(queue.settle(batch, ("a",), now))
        due = queue.due()
        assert due == now + pauses[-1]
        assert queue.take(due - 0.001, 10) is None
        now = due
    assert pauses[:4] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_failure_is_forgotten_when_a_newer_wish_came_meanwhile() -> None:
    queue = Wishes()
    queue.put("a", True)
    batch = queue.take(0.0, 10)
    assert batch is not None
    queue.put("a", False)
    queue.settle(batch, ("a",), 0.0)
    assert queue.due() is None
    assert queue.take(0.0, 10) == Batch(False, ("a",))


def test_what_failed_before_shares_no_batch_with_what_is_tried_first() -> None:
    queue = Wishes()
    queue.put("bad", True)
    batch = queue.take(0.0, 10)
    assert batch is not None
    queue.settle(batch, ("bad",), 0.0)
    queue.put("good", True)
    later = FIRST_PAUSE_S
    assert {queue.take(later, 10), queue.take(later, 10)} == {Batch(True, ("bad",)), Batch(True, ("good",))}


@given(st.data())
def test_every_address_ends_as_last_wished(data: st.DataObject) -> None:
    """Whatever is wished, fails or comes in between: per address, carried out in order, and the last wish at last."""
    queue, now = Wishes(), 0.0
    wanted: dict[str, bool] = {}
    done: dict[str, bool] = {}
    wish = st.tuples(st.sampled_from("abcdef"), st.booleans())

    def put() -> None:
        for address, acquire in data.draw(st.lists(wish, max_size=6)):
            queue.put(address, acquire)
            wanted[address] = acquire

    for _ in range(data.draw(st.integers(1, 12))):
        put()
        if (batch := queue.take(now, data.draw(st.integers(1, 4)))) is None:
            continue
        put()
        failed = [address for address in batch.addresses if data.draw(st.booleans())]
        done |= {address: batch.acquire for address in batch.addresses if address not in failed}
        queue.settle(batch, failed, now)
        now += data.draw(st.floats(0, 2))
    while (batch := queue.take(now, 4)) is not None or (due := queue.due()) is not None:
        if batch is None:
            now = due
            continue
        done |= dict.fromkeys(batch.addresses, batch.acquire)
        queue.settle(batch, (), now)
    assert done == wanted


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_a_gratuitous_request_is_the_announcement_of_rfc_5227() -> None:
    frame = arp_frame(MAC, bytes((10, 77, 0, 5)), reply=False)
    assert frame[:42].hex() == "ffffffffffff020000000001080600010800060400010200000000010a4d00050000000000000a4d0005"
    assert len(frame) == 60


def test_a_gratuitous_reply_names_the_sender_as_target_too() -> None:
    frame = arp_frame(MAC, bytes((10, 77, 0, 5)), reply=True)
    assert frame[20:22] == b"\x00\x02"
    assert frame[22:32] == frame[32:42] == MAC + bytes((10, 77, 0, 5))


def test_an_advertisement_overrides_and_is_not_solicited() -> None:
    target = bytes.fromhex("fd770000000000000000000000000005")
    packet = advertisement(MAC, target)
    assert packet.hex() == "8800000020000000" + target.hex() + "0201" + MAC.hex()


def _link(name: str, flags: int, kind: int = 16) -> bytes:
    attribute = struct.pack("=HH", 5 + len(name), 3) + name.encode() + b"\0"
    body = struct.pack("=BxHiII", 0, 1, 7, flags, 0) + attribute + bytes(-len(attribute) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_link_messages_tell_whether_our_interface_carries() -> None:
    data = _link("in0", 0x41) + _link("in01", 0x41) + _link("in0", 0x1) + _link("in0", 0x40) + _link("in0", 0x41, 17)
    data += _link("tun0", 0x41)
    told = [("in0", True), ("in0", False), ("in0", False), ("in0", False)]
    assert list(link_states(data, ["in0"])) == told
    assert list(link_states(data, ["tun0", "in0"])) == [*told, ("tun0", True)]


@given(st.binary(max_size=200))
def test_any_bytes_are_link_messages_or_nothing(data: bytes) -> None:
    assert all(name == "in0" for name, _ in link_states(data, ["in0"]))


# --- the administrator's program -------------------------------------------------------------------------------------


class Hook:
    """A program that reports each call through a pipe, then does what the test says (shell commands in ``script``)."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "hook"
        self.fifo = directory / "calls"
        self.calls: asyncio.StreamReader
        self.told: list[str] = []
        self.trouble = asyncio.Event()
        self._announcer: Announcer
        self._job: asyncio.Task[None]

    def write(self, script: str = "") -> None:
        self.path.write_text(f'#!/bin/sh\necho "$@" >>{self.fifo}\n{script}\n')
        self.path.chmod(0o755)

    @contextlib.asynccontextmanager
    async def running(self, *command: str) -> AsyncIterator[Announcer]:
        os.mkfifo(self.fifo)
        pipe = os.fdopen(os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK), "rb", 0)
        self.calls = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.calls), pipe
        )
        owner = await Ownership.claim(self.path.parent / "owned.json")
        words = command or (str(self.path),)
        self._announcer = Announcer.create("command", None, words, owner, self._failed, pools=POOLS, tunnel="t0")
        self._job = asyncio.ensure_future(self._announcer.run())
        try:
            yield self._announcer
        finally:
            await self.stop()
            await self._announcer.close()
            transport.close()
            assert await owner.release() == []

    async def call(self) -> list[str]:
        return (await self.calls.readline()).decode().split()

    async def stop(self) -> None:
        self._job.cancel()
        await asyncio.wait([self._job])

    def _failed(self, text: str) -> None:
        self.told.append(text)
        self.trouble.set()


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    hook = Hook(tmp_path)
    hook.write()
    return hook


async def test_the_program_is_reset_then_told_in_batches(hook: Hook) -> None:
    many = [f"10.77.{number >> 8}.{number & 255}" for number in range(300)]
    async with hook.running() as announcer:
        assert await hook.call() == ["reset"]
        announcer.acquired(f"{address}/16" for address in many)
        assert await hook.call() == ["acquire", *many[:256]]
        assert await hook.call() == ["acquire", *many[256:]]
        await announcer.settled()
        announcer.released(("10.77.0.3/16", "fd77:0::0003"))
        assert await hook.call() == ["release", "10.77.0.3", "fd77::3"]
        await announcer.settled()
    assert hook.told == []


async def test_words_of_the_command_come_first(hook: Hook) -> None:
    async with hook.running(str(hook.path), "--table", "inner routes") as announcer:
        announcer.acquired(["10.77.0.5"])
        assert await hook.call() == ["--table", "inner", "routes", "reset"]
        assert await hook.call() == ["--table", "inner", "routes", "acquire", "10.77.0.5"]


async def test_only_the_newest_wish_is_carried_out_after_a_run_that_took_long(hook: Hook, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    hook.write(f'[ "$1 $2" != "acquire 10.77.0.1" ] || read line <{gate}')
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.1"])
        assert await hook.call() == ["reset"]
        assert await hook.call() == ["acquire", "10.77.0.1"]
        for wish in (announcer.released, announcer.acquired, announcer.released):
            wish(["10.77.0.1", "10.77.0.2"])
        await asyncio.to_thread(gate.write_text, "go on\n")
        assert await hook.call() == ["release", "10.77.0.1", "10.77.0.2"]
        await announcer.settled()
    assert hook.told == []


async def test_a_failure_is_told_once_and_tried_until_it_works(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wishes, "FIRST_PAUSE_S", 0.01)
    broken = tmp_path / "broken"
    broken.touch()
    complaint = r"printf '\n bird: \033not there\nmore\n' >&2"
    hook.write(f"[ $1 = acquire ] || exit 0; [ -e {broken} ] && {complaint} && exit 3; echo done >>{hook.fifo}")
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.5", "10.77.0.6"])
        await announcer.settled()
        assert await hook.call() == ["reset"]
        for _ in range(4):
            assert await hook.call() == ["acquire", "10.77.0.5", "10.77.0.6"]
        broken.unlink()
        while await hook.call() != ["done"]:
            pass
    why = f"{hook.path} acquire failed (exit status 3): bird:  not there"
    assert hook.told == [f"cannot announce 10.77.0.5 and 1 more: {why}; trying again in 0.0 s"]


async def test_a_program_that_hangs_is_killed_with_what_it_started(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce_hook, "TIMEOUT_S", 0.3)
    held = tmp_path / "held"
    os.mkfifo(held)
    hook.write(f"[ $1 != acquire ] || {{ sleep 600 >{held} & wait; }}")
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.5"])
        with await asyncio.to_thread(held.open, "rb") as pipe:
            await hook.trouble.wait()
            assert await asyncio.to_thread(pipe.read) == b""  # ends when nobody holds the other end
    assert hook.told[0] == (
        f"cannot announce 10.77.0.5: {hook.path} acquire did not end within 0.3 s; trying again in 0.5 s"
    )


async def test_a_run_ends_with_the_announcer(hook: Hook, tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    hook.write(f"[ $1 != acquire ] || exec sleep 600 >{held}")
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.5"])
        with await asyncio.to_thread(held.open, "rb") as pipe:
            await hook.stop()
            assert await asyncio.to_thread(pipe.read) == b""
        await announcer.close()
        calls = [await hook.call() for _ in range(3)]
    assert calls == [["reset"], ["acquire", "10.77.0.5"], ["release", "10.77.0.5"]]  # it may have been announced
    assert hook.told == []


async def test_a_process_that_is_left_behind_delays_nothing(hook: Hook, tmp_path: Path) -> None:
    hook.write(f"sleep 600 & echo $! >>{tmp_path}/left")
    try:
        async with hook.running() as announcer:
            announcer.acquired(["10.77.0.5"])
            await announcer.settled()
        assert hook.told == []
    finally:
        for pid in (tmp_path / "left").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


async def test_a_program_may_complain_at_length(hook: Hook) -> None:
    hook.write("yes no route | head -c 3000000 >&2; exit 1")
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.5"])
        await announcer.settled()
    assert hook.told[0] == (
        f"cannot withdraw what an earlier run may have announced: {hook.path} reset failed (exit status 1): no route"
    )
    assert hook.told[1].startswith(f"cannot announce 10.77.0.5: {hook.path} acquire failed (exit status 1): no route;")


@pytest.mark.parametrize(
    ("prepare", "why"),
    [(Path.unlink, "No such file or directory"), (lambda path: path.chmod(0o600), "Permission denied")],
)
async def test_a_program_that_cannot_run_is_named(hook: Hook, prepare: Callable[[Path], None], why: str) -> None:
    prepare(hook.path)
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.5"])
        await announcer.settled()
    assert f"cannot announce 10.77.0.5: cannot run {hook.path}: {why}; check announce.command; trying" in hook.told[1]


async def test_the_program_sees_nothing_of_our_environment(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "token")
    hook.write(f"env >{tmp_path}/env; pwd >>{tmp_path}/env; cat >>{tmp_path}/env")
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.5"])
        await announcer.settled()
    lines = (tmp_path / "env").read_text().split("\n")
    names = {line.partition("=")[0] for line in lines if "=" in line} - {
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    }  # the shell's own
    assert names == {"PATH", "LANG"}
    assert "/" in lines


async def test_close_releases_what_is_announced_and_nothing_else(hook: Hook) -> None:
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.5", "10.77.0.6", "10.77.0.7"])
        announcer.released(["10.77.0.8"])
        await announcer.settled()
        announcer.released(["10.77.0.6"])
        await announcer.settled()
        await announcer.close()
        announcer.acquired(["10.77.0.9"])
        await announcer.settled()
        calls = [await hook.call() for _ in range(5)]
    assert calls[0] == ["reset"]
    assert sorted(calls[1:3]) == [["acquire", "10.77.0.5", "10.77.0.6", "10.77.0.7"], ["release", "10.77.0.8"]]
    assert calls[3:] == [["release", "10.77.0.6"], ["release", "10.77.0.5", "10.77.0.7"]]


async def test_what_cannot_be_released_at_the_end_is_told(hook: Hook) -> None:
    async with hook.running() as announcer:
        announcer.acquired(f"10.77.1.{number}" for number in range(256))
        announcer.acquired(["fd77::1"])
        await announcer.settled()
        hook.write("echo bird is gone >&2; exit 1")
        await announcer.close()
        assert hook.told == [
            f"cannot withdraw 10.77.1.0 and 255 more: {hook.path} release failed (exit status 1): bird is gone",
            f"cannot withdraw fd77::1: {hook.path} release failed (exit status 1): bird is gone",
        ]


async def test_the_end_waits_for_a_slow_program_within_a_bound(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce_hook, "CLOSING_S", 0.3)
    async with hook.running() as announcer:
        announcer.acquired(["10.77.0.5", "10.77.0.6"])
        await announcer.settled()
        hook.write("exec sleep 600")
        await announcer.close()
    assert hook.told == [f"cannot withdraw 10.77.0.5 and 1 more: no time left; {hook.path} is too slow"]


async def test_addresses_outside_the_pools_are_refused_in_words(hook: Hook) -> None:
    async with hook.running() as announcer:
        announcer.acquired(["10.78.0.1/16", "fd78::1", "10.77.0.5"])
        assert await hook.call() == ["reset"]
        assert await hook.call() == ["acquire", "10.77.0.5"]
    assert hook.told == [
        f"cannot announce {address}: it is in none of the pools (10.77.0.0/16, fd77::/64); put it into tunnel.pool"
        for address in ("10.78.0.1", "fd78::1")
    ]


async def test_what_is_no_address_is_the_callers_mistake(hook: Hook) -> None:
    async with hook.running() as announcer:
        with pytest.raises(ValueError, match=r"'10\.77\.0\.256/16' is no address"):
            announcer.acquired(["10.77.0.256/16"])


async def test_the_number_of_addresses_is_bounded(hook: Hook) -> None:
    async with hook.running() as announcer:
        await hook.stop()
        announcer.acquired(f"fd77::1:{number >> 16:x}:{number & 0xFFFF:x}" for number in range(MOST_ADDRESSES + 1))
        announcer.released(["fd77::1:0:0"])  # a known one
        assert len(hook.told) == 1
        assert hook.told[0].startswith("cannot announce fd77::1:2:0: 131072 addresses are known already")


async def test_mode_none_does_nothing(tmp_path: Path) -> None:
    owner = await Ownership.claim(tmp_path / "owned.json")
    told: list[str] = []
    announcer = Announcer.create("none", None, (), owner, told.append, pools=(), tunnel="t0")
    announcer.acquired(["10.77.0.5"])
    await announcer.run()
    await announcer.settled()
    await announcer.close()
    assert (told, owner.items) == ([], ())
    await owner.release()
