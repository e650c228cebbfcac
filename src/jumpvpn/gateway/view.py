"""What this gateway has seen of its cluster through the ordered watch: the members, and who owns which session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jumpvpn.runtime.stores.base import StoredSession, StoreUnavailable
from jumpvpn.runtime.stores.leases import Change, Listing
from jumpvpn.runtime.stores.membership import PREFIX, ForeignMember, Member, Serving, decode_member
from jumpvpn.values import Instant

HELD, LIVE = PREFIX, "live/"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who acts for a session, and how many owners it has had. ``since``: when it came to this one, if that was seen."""

    node: str
    term: int
    state: str
    since: Instant | None = None


@dataclass(slots=True)
class Watchers:
    """Who is told of changes. ``foreign`` gets words about what cannot be read."""

    member: Callable[[str, Member | None, Member | None], None]
    owner: Callable[[bytes, Owner | None], None]
    foreign: Callable[[str], None]


class ClusterView:
    """Members by node and owners by session, as of the last change that was seen."""

    def __init__(self, decode_record: Callable[[str, bytes], StoredSession]) -> None:
        self.members: dict[str, Member] = {}
        self.owners: dict[bytes, Owner] = {}
        self.revision = 0
        self._decode = decode_record

    def apply(self, change: Change, tell: Watchers, at: Instant | None = None) -> None:
        """One change of the watch, in its order; ``at`` is when it took place, None if nobody saw that."""
        self.revision = max(self.revision, change.revision)
        try:
            if change.name.startswith(HELD):
                self._member(change.name.removeprefix(HELD), change.value, tell)
            elif change.name.startswith(LIVE):
                self._record(change, tell, at)
        except (StoreUnavailable, ForeignMember) as failure:
            tell.foreign(failure.reason)

    def start(self, held: Listing, live: Listing, tell: Watchers) -> None:
        """Everything under both prefixes, as listed; what is known and not listed is gone."""
        for node in set(self.members) - {name.removeprefix(HELD) for name in held.entries}:
            self.apply(Change(HELD + node, None, held.revision), tell)
        for session_id in set(self.owners) - {_session_id(name) for name in live.entries}:
            self.apply(Change(LIVE + session_id.hex(), None, held.revision), tell)
        for name, value in (*held.entries.items(), *live.entries.items()):
            self.apply(Change(name, value, held.revision), tell)

    def serving(self) -> Iterator[Member]:
        """Members that take sessions, in order of their names."""
        return (member for _, member in sorted(self.members.items()) if member.state is Serving.SERVING)

    def owned_by(self, node: str) -> list[bytes]:
        """The sessions of ``node``."""
        return [session_id for session_id, owner in self.owners.items() if owner.node == node]

    def heir(self, session_id: bytes) -> str | None:
        """Which serving member adopts the session if nobody else does: spread evenly, the same at every member."""
        names = [member.node for member in self.serving()]
        return max(names, key=lambda name: hashlib.sha256(session_id + name.encode()).digest(), default=None)

    def _member(self, node: str, value: bytes | None, tell: Watchers) -> None:
        after = decode_member(HELD + node, value) if value is not None else None
        before = self.members.pop(node, None)
        if after is not None:
            self.members[node] = after
        if before is not None or after is not None:  # else it was never a member's
            tell.member(node, before, after)

    def _record(self, change: Change, tell: Watchers, at: Instant | None) -> None:
        session_id = _session_id(change.name)
        if session_id is None:
            tell.foreign(f"etcd: {change.name!r} is no name of a session; something else writes there: remove it")
        elif change.value is None:
            self.owners.pop(session_id, None)
            tell.owner(session_id, None)
        else:
            stored = self._decode(change.name, change.value)
            before = self.owners.get(session_id)
            if before is not None and (before.node, before.term) == (stored.owner, stored.term):
                at = before.since
            owner = self.owners[session_id] = Owner(stored.owner, stored.term, stored.state, at)
            tell.owner(session_id, owner)


def _session_id(name: str) -> bytes | None:
    try:
        return bytes.fromhex(name.removeprefix(LIVE))
    except ValueError:
        return None
