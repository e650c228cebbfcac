"""The right to act begins when a beat comes back through the watch, and ends by the clock, whatever the store says."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jumpvpn.config_cluster import ClusterConfig
from jumpvpn.gateway import lease as lease_module
from jumpvpn.gateway.lease import LeaseKeeper
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.leases import Lease, LeaseLost
from jumpvpn.runtime.stores.membership import Member, Serving, decode_member
from jumpvpn.values import MILLISECOND, SECOND, Instant

MEMBER = Member("gw1", "192.0.2.1:51900", b"k" * 32, "run1", Serving.SERVING, "0.1.0", (1,))
CONFIG = ClusterConfig.model_validate(
    {
        "name": "eu", "etcd": ("10.0.0.1:2379",), "ca": "ca.pem", "certificate": "gw1.pem", "key": "gw1.key",
        "advertise": "192.0.2.1:51900", "lease": "3s", "margin": "500ms",
    }
)  # fmt: skip


class Store:
    """Leases whose answers a test chooses; beats go into ``told``, for the watch."""

    def __init__(self) -> None:
        self.told: list[Member] = []
        self.revoked: list[int] = []
        self.failure: Exception | None = None
        self.free = True

    async def grant(self, ttl_seconds: int) -> Lease:
        self._fail()
        return Lease(77, Instant(0))

    async def revoke(self, lease: Lease) -> None:
        self._fail()
        self.revoked.append(lease.id)

    async def revoke_by_id(self, lease_id: int) -> None:
        self.revoked.append(lease_id)

    async def hold(self, lease: Lease, name: str, value: bytes) -> bool:
        self.told.append(decode_member(f"held/{name}", value))
        return self.free

    async def beat(self, lease: Lease, name: str, value: bytes) -> Lease:
        self._fail()
        self.told.append(decode_member(f"held/{name}", value))
        return lease

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class Clock:
    """Boot time that a test sets (ns)."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def boot_time(self) -> Instant:
        return Instant(self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(lease_module.clock, "boot_time", found.boot_time)
    return found


class Kept:
    """A keeper with its store, the deadlines that the packet core was given, and its complaints."""

    def __init__(self, directory: Path) -> None:
        self.store = Store()
        self.deadlines: list[int] = []
        self.complaints: list[str] = []
        self.keeper = LeaseKeeper(CONFIG, MEMBER, self.store, directory, self.deadlines.append, self.complaints.append)


@pytest.fixture
def kept(tmp_path: Path, clock: Clock) -> Kept:
    return Kept(tmp_path)


def test_the_right_to_act_begins_when_the_first_beat_is_seen(kept: Kept, clock: Clock) -> None:
    asyncio.run(kept.keeper.join())
    assert not kept.keeper.held
    clock.now += SECOND
    kept.keeper.seen(kept.store.told[0])
    assert kept.keeper.held
    assert kept.deadlines == [1_002 * SECOND + 500 * MILLISECOND], (
        "counted from before it was asked for, less the margin"
    )
    clock.now = kept.deadlines[0]
    assert not kept.keeper.held


def _beat(kept: Kept) -> Member:
    async def once() -> None:
        await kept.keeper._beat()

    asyncio.run(once())
    return kept.store.told[-1]


def test_a_renewal_counts_when_its_beat_comes_back_not_when_it_is_answered(kept: Kept, clock: Clock) -> None:
    asyncio.run(kept.keeper.join())
    kept.keeper.seen(kept.store.told[0])
    clock.now += SECOND
    beat = _beat(kept)
    assert len(kept.deadlines) == 1
    kept.keeper.seen(beat)
    assert kept.deadlines[1] - kept.deadlines[0] == SECOND


@pytest.mark.parametrize("other", [{"run": "another"}, {"beat": 99}])
def test_beats_of_others_and_unknown_ones_count_for_nothing(kept: Kept, other: dict[str, object]) -> None:
    asyncio.run(kept.keeper.join())
    kept.keeper.seen(replace(kept.store.told[0], **other))  # type: ignore[arg-type]
    assert kept.deadlines == []


def test_an_answer_after_the_deadline_revives_nothing(kept: Kept, clock: Clock) -> None:
    asyncio.run(kept.keeper.join())
    kept.keeper.seen(kept.store.told[0])
    clock.now += SECOND
    late = _beat(kept)
    clock.now = kept.deadlines[0]
    kept.keeper.seen(late)
    assert not kept.keeper.held
    assert len(kept.deadlines) == 1


@pytest.mark.parametrize("failure", [StoreUnavailable("etcd: nobody answers"), LeaseLost("etcd has ended the lease")])
def test_a_lease_that_cannot_be_kept_ends_with_everything_stopped(kept: Kept, clock: Clock, failure: Exception) -> None:
    async def story() -> None:
        await kept.keeper.join()
        kept.keeper.seen(kept.store.told[0])
        kept.store.failure = failure
        clock.now = kept.deadlines[0] - MILLISECOND
        await asyncio.wait_for(_passing(kept, clock), 10)

    asyncio.run(story())
    assert kept.deadlines[-1] == 0
    assert kept.complaints == [str(failure)]
    assert not kept.keeper.held


async def _passing(kept: Kept, clock: Clock) -> None:
    """Keep, with the clock standing still until the store has refused."""
    keeping = asyncio.ensure_future(kept.keeper.keep())
    while not keeping.done():
        await asyncio.sleep(0)
        if kept.complaints:
            clock.now = kept.deadlines[0]
    await keeping


def test_the_lease_of_a_former_run_is_revoked_first(kept: Kept, tmp_path: Path) -> None:
    asyncio.run(kept.keeper.join())
    assert kept.store.revoked == []
    again = Kept(tmp_path)
    asyncio.run(again.keeper.join())
    assert again.store.revoked == [77]


def test_a_copy_of_the_directory_leaves_the_lease_of_the_original_alone(kept: Kept, tmp_path: Path) -> None:
    asyncio.run(kept.keeper.join())
    copied = Kept(Path(shutil.copytree(tmp_path, tmp_path / "copy")))
    asyncio.run(copied.keeper.join())
    assert copied.store.revoked == []


def test_a_copy_of_the_machine_leaves_the_lease_of_the_original_alone(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(kept.keeper.join())
    monkeypatch.setattr(lease_module.clock, "boot_id", lambda: "another boot")
    cloned = Kept(tmp_path)
    asyncio.run(cloned.keeper.join())
    assert cloned.store.revoked == []


def test_a_name_that_another_gateway_holds_is_refused_with_words(kept: Kept) -> None:
    kept.store.free = False
    with pytest.raises(StartFailed, match="another gateway of cluster eu is named 'gw1'"):
        asyncio.run(kept.keeper.join())
    assert kept.store.revoked == [77]
    assert not kept.keeper.held


def test_leaving_stops_first_and_then_gives_the_lease_back(kept: Kept, tmp_path: Path) -> None:
    asyncio.run(kept.keeper.join())
    kept.keeper.seen(kept.store.told[0])
    asyncio.run(kept.keeper.leave())
    assert kept.deadlines[-1] == 0
    assert kept.store.revoked == [77]
    assert not (tmp_path / "lease").exists()


def test_a_change_of_state_is_told_with_the_next_beat(kept: Kept) -> None:
    asyncio.run(kept.keeper.join())
    kept.keeper.seen(kept.store.told[0])
    kept.keeper.announce(Serving.DRAINING)
    assert _beat(kept).state is Serving.DRAINING


def test_a_node_without_the_right_to_act_says_so_however_long_it_keeps_its_lease(kept: Kept, clock: Clock) -> None:
    asyncio.run(kept.keeper.join())
    assert [beat.state for beat in (kept.store.told[0], _beat(kept))] == [Serving.FENCED, Serving.FENCED]
    kept.keeper.announce(Serving.DRAINING)
    last = _beat(kept)
    assert last.state is Serving.FENCED, "nobody may count on it yet"
    kept.keeper.seen(last)
    assert _beat(kept).state is Serving.DRAINING, "as it was wished"
    clock.now += 3 * SECOND
    kept.keeper.stop_acting()
    asyncio.run(kept.keeper.join())
    assert kept.store.told[-1].state is Serving.FENCED
    assert kept.keeper.wish is Serving.DRAINING


def test_who_has_left_takes_no_lease_anew(kept: Kept) -> None:
    async def leaving() -> None:
        await kept.keeper.join()
        kept.keeper.seen(kept.store.told[0])
        keeping = asyncio.create_task(kept.keeper.keep())
        await asyncio.sleep(0)
        kept.keeper.announce(Serving.DRAINING)  # a beat is due at once
        await kept.keeper.leave()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not keeping.done(), "whoever waits for it would join again"
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(leaving())
    assert (kept.store.revoked, kept.keeper.taken, kept.keeper.held) == ([77], 1, False)
