"""A write that was given up takes place after its gateway has listed what it owns: the session is seen to all the same.

It can: a write's only condition is the record that it replaces. Not the lease under which it was sent, whose end says
nothing of what is still on its way, nor the process that sent it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from jumpvpn.engine import inputs as inp
from jumpvpn.gateway import strays
from jumpvpn.gateway.cluster import Cluster
from jumpvpn.gateway.lease import LeaseKeeper
from jumpvpn.gateway.strays import Strays
from jumpvpn.runtime.stores.base import StoredSession, StoreUnavailable
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.runtime.stores.shared import Exchange, Outcome, Unanswered
from jumpvpn.sim.cluster import etcd
from jumpvpn.sim.cluster.etcd import Records
from jumpvpn.sim.cluster.world import ClusterWorld
from jumpvpn.values import SECOND, SessionId, TransportId
from unit.small_cluster import small_cluster

LEASE = 2  # s
TTL = 12  # s, of a session without a transport


class Late:
    """Keeps the next claim from the store, and everything else of its gateway, too, until ``trouble`` is over.

    ``land`` lets it take place; ``after_listing`` does so when its gateway has read what it owns, but not yet acted.
    """

    def __init__(self, world: ClusterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.trouble: Callable[[str], None] = lambda _node: None
        self.after_listing = False
        self.node = self.deaf = ""
        self._sent: tuple[Records, Sequence[Exchange]] | None = None
        self._awaited = False
        exchange, load_owned = Records.exchange, ClusterStore.load_owned

        async def held_up(records: Records, changes: Sequence[Exchange], deadline: float) -> Outcome:
            if self._awaited and any(map(etcd._claims, changes)):
                self._awaited, self._sent, self.node = False, (records, changes), records._node
                world.later(0, self.trouble, self.node)
                raise Unanswered("it is on its way")
            if self._sent is not None and self.deaf == records._node:
                raise Unanswered("nothing comes through")
            return await exchange(records, changes, deadline)

        async def listed(store: ClusterStore, node: str) -> list[StoredSession]:
            found = await load_owned(store, node)
            if self.after_listing and self._sent is not None:
                self.land()
                await asyncio.sleep(0.01)  # so that the watch tells of it before anything is brought back
            return found

        monkeypatch.setattr(Records, "exchange", held_up)
        monkeypatch.setattr(ClusterStore, "load_owned", listed)

    def hold_up(self, trouble: Callable[[str], None]) -> None:
        """The next claim, whichever gateway makes it."""
        self.trouble, self._awaited = trouble, True

    def land(self) -> None:
        """The store carries it out; its answer reaches nobody."""
        assert self._sent is not None, "nothing was held up"
        (records, changes), self._sent = self._sent, None
        outcome = etcd._at_once(records._memory.exchange(changes, 0))
        assert outcome.found is None, "the record is no longer the one that it was made for"

    def cut(self, node: str) -> None:
        """Its gateway does not reach the store until its lease has ended; its client is silent from now on."""
        self.world.server.way(node).cut_up = True
        self.silence()
        self.world.later((LEASE + 1) * SECOND, self._rejoin, node)

    def _rejoin(self, node: str) -> None:
        self.world.server.way(node).heal()

    def kill(self, node: str) -> None:
        """Its gateway dies and begins anew; its client is silent from now on."""
        host = self.world.gateways[node]
        host.kill()
        self.silence()
        self.world.later(SECOND // 2, host.start)

    def revoke(self, node: str) -> None:
        """The store ends its gateway's lease, and answers none of its changes."""
        self.deaf = node
        held = self.world.server.get(f"held/{node}")
        assert held is not None
        self.world.server.end(held.lease)

    def silence(self) -> None:
        for client in self.world.clients:
            client.interfaces["wlan0"] = False
            client.refresh()


@pytest.fixture
def world() -> Iterator[ClusterWorld]:
    """Nobody adopts anything within the time of a test."""
    with small_cluster(LEASE, 60_000) as made:
        yield made


@pytest.fixture
def late(world: ClusterWorld, monkeypatch: pytest.MonkeyPatch) -> Late:
    return Late(world, monkeypatch)


def stored(world: ClusterWorld) -> StoredSession:
    """The newest session as the store has it."""
    return list(world.checker.known.values())[-1].stored


def held(world: ClusterWorld) -> bool:
    """Whether the owner that the store names holds the session, in the term that the store names."""
    record = stored(world)
    place = world.gateways[record.owner].engine.places.get(SessionId(record.session_id).uid)
    return place is not None and place.seat.session.owner_epoch == record.term


def moved_late(world: ClusterWorld, late: Late, trouble: Callable[[str], None], seconds: float) -> None:
    """gw1 dies, the client asks gw2, whose claim is held up; after ``seconds`` gw2 is back from its trouble."""
    late.hold_up(trouble)
    world.gateways["gw1"].kill()
    world.run(seconds)
    assert late.node == "gw2"
    assert world.gateways["gw2"].cluster is not None
    assert not world.gateways["gw2"].plane.fenced


def ends_by_its_ttl(world: ClusterWorld, owner: str) -> None:
    world.run(1)
    assert held(world)
    assert stored(world).owner == owner
    assert stored(world).state != "TERMINATED"
    world.run(TTL)
    assert (stored(world).owner, stored(world).state) == (owner, "TERMINATED")


def test_a_takeover_that_takes_place_under_the_next_lease(world: ClusterWorld, late: Late) -> None:
    moved_late(world, late, late.cut, 6)
    assert (stored(world).owner, stored(world).term) == ("gw1", 1)
    late.land()
    assert (stored(world).owner, stored(world).term) == ("gw2", 2)
    assert not held(world)
    ends_by_its_ttl(world, "gw2")
    told = b"".join(world.gateways["gw2"].journal.lines)
    assert told.count(b'"event":"ownership.acquired"') == 2, "the lines of the late commit are in the journal, too"


def test_a_takeover_of_a_process_that_has_died(world: ClusterWorld, late: Late) -> None:
    moved_late(world, late, late.kill, 4)
    late.land()
    ends_by_its_ttl(world, "gw2")


@pytest.mark.parametrize("trouble", ["cut", "kill"])
def test_a_takeover_that_takes_place_while_its_gateway_lists_what_it_owns(
    world: ClusterWorld, late: Late, trouble: str
) -> None:
    late.after_listing = True
    moved_late(world, late, getattr(late, trouble), 6)
    ends_by_its_ttl(world, "gw2")


def test_a_birth_of_a_process_that_has_died(world: ClusterWorld, late: Late) -> None:
    late.hold_up(late.kill)
    world.clients[0].begin()
    world.run(3)
    late.land()
    assert stored(world).state == "BIRTH"
    assert not held(world)
    world.run(1)
    assert (stored(world).owner, stored(world).state) == ("gw1", "TERMINATED"), "nobody can finish it any more"


def test_an_own_session_that_was_brought_back_in_an_older_term(world: ClusterWorld, late: Late) -> None:
    """The claim of one lease takes place when the next one's has been decided on: that one can never be committed."""
    late.silence()
    world.run(4)
    late.hold_up(late.cut)
    late.kill("gw1")
    world.run(1)
    assert (late.node, stored(world).term) == ("gw1", 1)
    late.after_listing = True
    world.run(LEASE + 3)
    assert stored(world).term == 3
    assert held(world)
    world.run(TTL)
    assert (stored(world).owner, stored(world).state) == ("gw1", "TERMINATED")


def test_what_was_asked_for_under_one_lease_is_not_asked_for_under_the_next(
    world: ClusterWorld, late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = list[tuple[str, int]]()
    stop_acting, join_again = LeaseKeeper.stop_acting, Cluster._join_again

    def stopped(keeper: LeaseKeeper) -> None:
        recorder = world.gateways["gw2"].recorder
        assert recorder is not None
        under_way.append(("the lease ends", len(recorder.under_way)))
        stop_acting(keeper)

    async def joins(cluster: Cluster) -> None:
        under_way.append(("the next one is asked for", len(cluster._recorder.under_way)))
        await join_again(cluster)

    monkeypatch.setattr(LeaseKeeper, "stop_acting", stopped)
    monkeypatch.setattr(Cluster, "_join_again", joins)
    moved_late(world, late, late.revoke, 6)
    assert under_way == [("the lease ends", 1), ("the next one is asked for", 0)]


def test_a_client_that_asks_for_a_stray_has_it(world: ClusterWorld, late: Late) -> None:
    moved_late(world, late, late.kill, 4)
    for client in world.clients:
        client.interfaces["wlan0"] = True
        client.refresh()
    late.land()
    world.run(6)
    assert held(world)
    assert world.clients[0].client_plane.home == "gw2"
    assert stored(world).state == "ATTACHED"


def test_what_was_let_go_does_not_come_back(world: ClusterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway hears late of its own changes: the session has left it before it has seen that it came."""
    taken = list[bytes]()
    take = ClusterStore.take

    def noted(store: ClusterStore, record: StoredSession) -> None:
        taken.append(record.owner.encode())
        take(store, record)

    monkeypatch.setattr(ClusterStore, "take", noted)
    for home, other in (("gw1", "gw2"), ("gw2", "gw1"), ("gw1", "gw2")):
        world.server.way(home).watch_delay = SECOND // 2
        client = world.clients[0]
        client.post("client", inp.OperatorSwitch(TransportId(f"wlan0/udp/{other}")))
        world.run(2)
        assert stored(world).owner == other
    assert taken == [b"gw1", b"gw2", b"gw1"], "each by its client's request, from its owner"
    assert held(world)
    assert world.gateways["gw1"].engine.places == {}


class Asked:
    """What ``Strays`` asks: verdicts by session, and what it has taken up."""

    def __init__(self) -> None:
        self.verdicts: dict[bytes, bool | None] = {}
        self.taken: list[bytes] = []
        self.told: list[str] = []
        self.looks = 0
        self.refuses = 0
        self.strays = Strays(self.verdict, self.take_up, self.told.append)

    def verdict(self, session_id: bytes) -> bool | None:
        self.looks += 1
        return self.verdicts.get(session_id, False)

    async def take_up(self, session_id: bytes) -> None:
        if self.refuses:
            self.refuses -= 1
            raise StoreUnavailable("the store is away")
        self.taken.append(session_id)
        self.verdicts[session_id] = False

    async def until(self, done: Callable[[], bool]) -> None:
        task = asyncio.create_task(self.strays.run())
        async with asyncio.timeout(20):
            while not done():
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(strays, "AGAIN_SECONDS", 0)
    return Asked()


async def test_strays_are_taken_up_once_and_others_are_not(asked: Asked) -> None:
    asked.verdicts = {b"a": True, b"b": False, b"c": True}
    for session_id in (b"a", b"b", b"c", b"a"):
        asked.strays.noticed(session_id)
    await asked.until(lambda: len(asked.taken) == 2)
    assert asked.taken == [b"a", b"c"]


async def test_what_is_no_stray_any_more_when_its_turn_comes_is_left_alone(asked: Asked) -> None:
    asked.verdicts = {b"a": True, b"b": True}
    asked.strays.noticed(b"a")
    asked.strays.noticed(b"b")
    asked.verdicts[b"a"] = False
    await asked.until(lambda: bool(asked.taken))
    assert asked.taken == [b"b"]


async def test_while_a_commit_is_under_way_it_is_looked_at_again(asked: Asked) -> None:
    asked.verdicts = {b"a": None}
    asked.strays.noticed(b"a")
    before = asked.looks
    await asked.until(lambda: asked.looks > before + 2)
    assert asked.taken == []
    asked.verdicts[b"a"] = True
    await asked.until(lambda: bool(asked.taken))
    assert asked.taken == [b"a"]


async def test_a_store_that_refuses_is_asked_again(asked: Asked) -> None:
    asked.verdicts, asked.refuses = {b"a": True}, 3
    asked.strays.noticed(b"a")
    await asked.until(lambda: bool(asked.taken))
    assert asked.told == ["the store is away"] * 3
