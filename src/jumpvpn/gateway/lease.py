"""This node's lease: renewed by beats that come back through the ordered watch, given up by the clock alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from jumpvpn.config_cluster import ClusterConfig
from jumpvpn.runtime import clock
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.leases import Lease, LeaseLost
from jumpvpn.runtime.stores.membership import Member, Serving, encode_member
from jumpvpn.values import Instant, later

BEATS_PER_LEASE = 3  # two may be lost before the right to act is
RETRY_SECONDS = 0.2  # a beat that failed is tried again that soon: what remains of the lease is short
UNSEEN_MAX = 64  # beats on their way back through the watch; it is far behind, or dead, with more


class Leases(Protocol):
    """What of the store the lease needs; every method raises StoreUnavailable."""

    async def grant(self, ttl_seconds: int) -> Lease: ...
    async def revoke(self, lease: Lease) -> None: ...
    async def revoke_by_id(self, lease_id: int) -> None: ...
    async def hold(self, lease: Lease, name: str, value: bytes) -> bool: ...
    async def beat(self, lease: Lease, name: str, value: bytes) -> Lease: ...


class LeaseKeeper:
    """Keeps one lease, and tells the packet core until when it may forward.

    A renewal counts from before it was asked for, and only once its own beat was seen in the watch: then every change
    of ownership before it has been seen, too. A lease that has lapsed is never renewed: ``keep`` returns, and a new one
    is taken by ``join``. Until it is confirmed the others are told that this node is fenced: one that never sees its
    beats may keep its lease alive, and its sessions need somebody who may act.
    """

    def __init__(
        self, config: ClusterConfig, member: Member, leases: Leases, state_dir: Path,
        set_deadline: Callable[[int], None], complain: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.member = member
        self.wish = member.state  # what the others are told while this node may act
        self._config = config
        self._leases = leases
        self._directory, self._file = state_dir, state_dir / "lease"
        self._set_deadline = set_deadline
        self._complain = complain
        self._lease: Lease | None = None
        self._on_their_way: dict[int, Instant] = {}
        self._moved = asyncio.Event()
        self._urgent = asyncio.Event()
        self._left = False
        self.deadline = Instant(0)
        self.taken = 0  # leases so far

    @property
    def held(self) -> bool:
        """Whether this node may act now."""
        return clock.boot_time() < self.deadline

    @property
    def left_ns(self) -> int:
        """How long it may, unless it renews."""
        return max(0, self.deadline - clock.boot_time())

    async def join(self) -> None:
        """Take a lease and the node's name under it. Raises StoreUnavailable, StartFailed (the name is in use).

        The lease of a former run is revoked first: the lock on the state directory shows that it has ended. That says
        nothing of a copy of the directory, or of another machine that was started from a copy of the disk.
        """
        await self._revoke_former()
        before = clock.boot_time()
        lease = await self._leases.grant(self._config.lease_seconds)
        self._write(f"{lease.id} {self._place()}")
        self.taken += 1
        self.member = replace(self.member, beat=self.member.beat + 1, state=Serving.FENCED)
        self._lease, self._on_their_way = lease, {self.member.beat: later(before, self._config.lease)}
        if not await self._hold(lease):
            self.stop_acting()
            await self._leases.revoke(lease)
            raise StartFailed(
                f"another gateway of cluster {self._config.name} is named {self.member.node!r} and holds its lease; "
                "give this one another name, or wait until that lease has ended"
            )

    async def _hold(self, lease: Lease) -> bool:
        """Put the name under the lease. Raises StoreUnavailable, also when the store is so slow that it is over."""
        try:
            return await self._leases.hold(lease, self.member.node, encode_member(self.member))
        except LeaseLost as lost:
            self.stop_acting()
            raise StoreUnavailable(f"{lost}, before it could be used") from lost

    async def keep(self) -> None:
        """Beat until the lease has lapsed; returns then, but not after ``leave``: the node ends, nothing begins anew.

        Cancelled, it leaves the lease as it is.
        """
        pause = self._config.lease / 1e9 / BEATS_PER_LEASE
        while self._lease is not None and (self.held or self._on_their_way):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), min(pause, max(0.001, self._give_up_in())))
            self._urgent.clear()
            if self._give_up_in() <= 0:
                break
            pause = self._config.lease / 1e9 / BEATS_PER_LEASE if await self._beat() else RETRY_SECONDS
        self.stop_acting()
        if self._left:
            await asyncio.Event().wait()

    def stop_acting(self) -> None:
        """Fence: nothing more is forwarded."""
        self.deadline, self._lease = Instant(0), None
        self._on_their_way.clear()
        self._set_deadline(0)

    def seen(self, member: Member) -> None:
        """The watch has come to a beat of this node."""
        if member.run != self.member.run or self._lease is None:
            return
        good_until = self._on_their_way.pop(member.beat, None)
        for older in [beat for beat in self._on_their_way if beat < member.beat]:
            del self._on_their_way[older]
        if good_until is None:
            return
        deadline = later(good_until, -self._config.margin)
        if (self.deadline and not self.held) or deadline <= self.deadline:
            return  # after the deadline an answer is too late: first everything stops
        self.deadline = deadline
        self._set_deadline(int(deadline))
        self._moved.set()
        if self.member.state is Serving.FENCED:
            self.announce(self.wish)

    async def confirmed(self) -> None:
        """Return once this node may act."""
        while not self.held:
            self._moved.clear()
            await self._moved.wait()

    def announce(self, state: Serving) -> None:
        """Tell the other members with the next beat, which is due at once; if fenced, once this node may act."""
        self.wish = state
        self.member = replace(self.member, state=state if self.held else Serving.FENCED)
        self._urgent.set()

    async def leave(self) -> None:
        """Stop acting, then give the lease back: others need not wait for its end. An unreachable store ends it."""
        lease = self._lease
        self._left = True
        self.stop_acting()
        if lease is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._leases.revoke(lease)
                self._file.unlink(missing_ok=True)

    async def _beat(self) -> bool:
        """Ask for a renewal, which counts from before it; its beat may be seen before its answer comes."""
        assert self._lease is not None
        self.member = replace(self.member, beat=self.member.beat + 1)
        if len(self._on_their_way) < UNSEEN_MAX:
            self._on_their_way[self.member.beat] = later(clock.boot_time(), self._config.lease)
        try:
            self._lease = await self._leases.beat(self._lease, self.member.node, encode_member(self.member))
        except LeaseLost as lost:
            self._complain(str(lost))
            self._lease = None
            return False
        except StoreUnavailable as failure:
            self._complain(failure.reason)
            return False
        return True

    def _give_up_in(self) -> float:
        """Seconds until nothing can save the lease: to the deadline, or before the first beat to the lease's end."""
        end = self.deadline or max(self._on_their_way.values(), default=Instant(0))
        return (end - clock.boot_time()) / 1e9

    async def _revoke_former(self) -> None:
        try:
            number, place = self._file.read_text(encoding="ascii").split(maxsplit=1)
            former = int(number) if place == self._place() else None
        except (OSError, ValueError):
            return
        if former is not None:
            await self._leases.revoke_by_id(former)

    def _place(self) -> str:
        """This boot of this machine, and this directory: what its lock can speak for. Raises OSError."""
        directory = self._directory.stat()
        return f"{clock.boot_id()} {directory.st_dev}:{directory.st_ino}"

    def _write(self, text: str) -> None:
        try:
            self._file.write_text(text, encoding="ascii")
        except OSError as error:
            raise StartFailed(f"cannot write {self._file}: {error.strerror}") from error
