"""What the ordered watch tells of members and owners; foreign bytes below our names are told and passed over."""

from __future__ import annotations

from collections import Counter

import pytest

from jumpvpn.gateway.view import HELD, LIVE, ClusterView, Owner, Watchers
from jumpvpn.runtime.stores.base import StoredSession
from jumpvpn.runtime.stores.etcd.records import decode_session, encode_session
from jumpvpn.runtime.stores.leases import Change, Listing
from jumpvpn.runtime.stores.membership import Member, Serving, encode_member
from jumpvpn.values import Instant

ID = bytes(range(16))


def _member(node: str, state: Serving = Serving.SERVING, beat: int = 1) -> Member:
    return Member(node, "192.0.2.1:51900", b"k" * 32, "run1", state, "0.1.0", (1,), beat)


def _record(owner: str, term: int, session_id: bytes = ID) -> bytes:
    return encode_session(
        StoredSession(session_id, 3, "ATTACHED", 1, b"body", b"sealed", "s:1", 4, "ab" * 32, "w", owner, term)
    )


class Seen:
    """A view with what it told."""

    def __init__(self) -> None:
        self.view = ClusterView(lambda name, value: decode_session(name.encode(), value))
        self.members: list[tuple[str, bool, bool]] = []
        self.owners: list[tuple[bytes, Owner | None]] = []
        self.foreign: list[str] = []

    @property
    def tell(self) -> Watchers:
        return Watchers(
            lambda node, before, after: self.members.append((node, before is not None, after is not None)),
            lambda session_id, owner: self.owners.append((session_id, owner)),
            self.foreign.append,
        )

    def apply(self, name: str, value: bytes | None, revision: int = 5) -> None:
        self.view.apply(Change(name, value, revision), self.tell)


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_members_come_and_go(seen: Seen) -> None:
    seen.apply("held/gw2", encode_member(_member("gw2")))
    seen.apply("held/gw1", encode_member(_member("gw1", Serving.DRAINING)))
    assert [member.node for member in seen.view.serving()] == ["gw2"]
    seen.apply("held/gw2", None)
    assert list(seen.view.members) == ["gw1"]
    assert seen.members == [("gw2", False, True), ("gw1", False, True), ("gw2", True, False)]


def test_owners_follow_the_records(seen: Seen) -> None:
    name = LIVE + ID.hex()
    seen.apply(name, _record("gw1", 1))
    seen.apply(name, _record("gw2", 2))
    assert seen.view.owned_by("gw2") == [ID]
    assert seen.view.owned_by("gw1") == []
    seen.apply(name, None)
    assert seen.view.owners == {}
    assert seen.owners == [(ID, Owner("gw1", 1, "ATTACHED")), (ID, Owner("gw2", 2, "ATTACHED")), (ID, None)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("held/gw1", b"{}"), ("held/gw1", encode_member(_member("gw2"))), (LIVE + ID.hex(), b"JVS\x01nonsense"),
        (LIVE + "00" * 16, _record("gw1", 1)), (LIVE + "no-hex", _record("gw1", 1)),
    ],
)  # fmt: skip
def test_foreign_bytes_are_told_and_change_nothing(seen: Seen, name: str, value: bytes) -> None:
    seen.apply(name, value)
    assert len(seen.foreign) == 1
    assert seen.view.owners == {}
    assert seen.view.members == {}


def test_what_never_was_a_member_s_leaves_without_a_word(seen: Seen) -> None:
    seen.apply("held/evil", b"hello")
    seen.apply("held/evil", None)
    assert seen.members == []


def test_since_when_an_owner_has_a_session_is_known_if_it_was_seen_to_come(seen: Seen) -> None:
    name, at = LIVE + ID.hex(), Instant(7)
    seen.view.start(Listing(1, {}), Listing(1, {name: _record("gw1", 1)}), seen.tell)
    assert seen.view.owners[ID].since is None
    seen.view.apply(Change(name, _record("gw2", 2), 5), seen.tell, at)
    assert seen.view.owners[ID].since == at
    seen.view.apply(Change(name, _record("gw2", 2), 6), seen.tell, Instant(9))
    assert seen.view.owners[ID].since == at, "a change that keeps the owner is not its beginning"
    seen.view.start(Listing(8, {}), Listing(8, {name: _record("gw1", 3)}), seen.tell)
    assert seen.view.owners[ID].since is None, "it came while nobody watched"


def test_a_listing_replaces_what_was_known(seen: Seen) -> None:
    seen.apply("held/gw1", encode_member(_member("gw1")))
    seen.apply(LIVE + ID.hex(), _record("gw1", 1))
    other = b"o" * 16
    held = Listing(9, {HELD + "gw2": encode_member(_member("gw2"))})
    live = Listing(10, {LIVE + other.hex(): _record("gw2", 4, other)})
    seen.view.start(held, live, seen.tell)
    assert list(seen.view.members) == ["gw2"]
    assert seen.view.owners == {other: Owner("gw2", 4, "ATTACHED")}
    assert seen.view.revision == 9, "what changed after the first listing is watched again"


def test_heirs_are_agreed_and_evenly_spread(seen: Seen) -> None:
    names = ("gw1", "gw2", "gw3")
    for name in names:
        seen.apply(f"held/{name}", encode_member(_member(name)))
    sessions = [number.to_bytes(16, "big") for number in range(3000)]
    heirs = {session_id: seen.view.heir(session_id) for session_id in sessions}
    assert all(900 < count < 1100 for count in Counter(heirs.values()).values())
    seen.apply("held/gw3", None)
    moved = [s for s in sessions if seen.view.heir(s) != heirs[s]]
    assert all(heirs[s] == "gw3" for s in moved), "only the share of the one that left is spread anew"
    seen.apply("held/gw1", None)
    seen.apply("held/gw2", encode_member(_member("gw2", Serving.DRAINING)))
    assert seen.view.heir(sessions[0]) is None
