"""Makes the network send packets for inner addresses to this gateway while it has their sessions, and not otherwise.

Three modes. ``none``: nothing is done. ``arp``: proxy ARP/NDP entries and unasked announcements on the segment behind
the gateways (``announce_arp``). ``command``: a program of the administrator's tells a routing daemon
(``announce_hook``). What each does to the network, and what it needs around it, is in docs/return-traffic.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol, Self

from jumpvpn.runtime.announce_arp import ArpBackend
from jumpvpn.runtime.announce_hook import HookBackend
from jumpvpn.runtime.cleanup import Ownership
from jumpvpn.runtime.wishes import Batch, Wishes

Mode = Literal["none", "arp", "command"]
Failed = Callable[[str], None]

MOST_ADDRESSES = 2 * 65536  # one of each family for as many devices as a gateway's file can hold


class Backend(Protocol):
    """How one mode carries out wishes. No call of it overlaps another, except ``run``."""

    most: int
    """Addresses per call of ``carry_out``."""

    async def start(self) -> None:
        """What comes before the first batch."""

    async def carry_out(self, batch: Batch) -> Mapping[str, str]:
        """Try the batch; per address that failed, why."""

    def expect(self, addresses: Sequence[str]) -> None:
        """Begin to take what comes for these into the tunnel, and claim nothing."""

    def ready(self, addresses: Sequence[str]) -> None:
        """Wait until what ``expect`` began is done."""

    def hush(self, *, on: bool) -> None:
        """Repeat no announcement unasked, or do so again."""

    def leave(self, addresses: Sequence[str]) -> None:
        """Claim these no more, and take what still comes for them into the tunnel: they are released soon."""

    async def run(self, again: Callable[[], None]) -> None:
        """What goes on beside; ``again`` asks for every standing wish to be carried out anew."""

    async def close(self, held: Sequence[str]) -> Sequence[str]:
        """Withdraw ``held`` (what may be announced) and all else; what could not be withdrawn, in words."""


class Announcer:
    """The inner addresses of this gateway's sessions, as the network behind it sees them.

    ``acquired`` and ``released`` return at once; ``run`` carries them out in the background, the newest wish per
    address only. What fails is told once per cause through ``failed`` and tried again, at most
    ``wishes.LONGEST_PAUSE_S`` later, for as long as the wish stands.
    """

    def __init__(self, backend: Backend | None, failed: Failed, pools: Sequence[str]) -> None:
        self._backend = backend
        self._failed = failed
        self._pools = ", ".join(pools)
        self._ranges = tuple(_range(pool) for pool in pools)
        self._wishes = Wishes()
        self._standing: dict[str, bool] = {}  # every address ever named and its newest wish
        self._held: dict[str, None] = {}  # what may be announced: tried, and not withdrawn since
        self._told: dict[bool, str] = {}
        self._work_there = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._busy = asyncio.Lock()
        self._closed = False

    @classmethod
    def create(
        cls, mode: Mode, interface: str | None, command: Sequence[str], owner: Ownership, failed: Failed, *,
        pools: Sequence[str], tunnel: str,
    ) -> Self:  # fmt: skip
        """The announcer for ``[announce]``; ``pools`` are the inner networks (``10.77.0.0/24``) of ``tunnel``.

        Mode ``arp`` must be created after forwarding is on; it notes with ``owner`` what it installs.
        Raises RtnlFailed, StartFailed, OSError.
        """
        backend: Backend | None = None
        if mode == "arp":
            assert interface is not None, "the configuration was checked"
            backend = ArpBackend.create(interface, tunnel, pools, owner, failed)
        elif mode == "command":
            backend = HookBackend(command, failed)
        return cls(backend, failed, pools)

    def acquired(self, addresses: Iterable[str]) -> None:
        """This gateway has the sessions of these inner addresses (with or without prefix length). Raises ValueError."""
        self._wish(addresses, acquire=True)

    def expected(self, addresses: Iterable[str]) -> None:
        """This gateway is about to have their sessions: what comes for them is taken, and nothing is claimed yet.

        Returns at once; ``ready`` tells when that is done. Raises ValueError.
        """
        if (backend := self._open_backend()) is not None:
            coming = [address for raw in map(_packed, addresses) if self._refusal(address := _text(raw), raw) is None]
            for address in coming:
                if self._standing.get(address) is False:
                    self._wishes.drop(address)  # a withdrawal that has not begun
            backend.expect(coming)

    def ready(self, addresses: Iterable[str]) -> None:
        """Wait until what comes for ``expected`` addresses is taken here; mostly it is already.

        To be called before their packets may come out of the tunnel: the answers to those go to the gateway that had
        the addresses, which passes them on to this one. If this one passed them back, they would go in a circle.
        Raises ValueError.
        """
        if (backend := self._open_backend()) is not None:
            backend.ready([_text(_packed(text)) for text in addresses])

    def hush(self, *, on: bool) -> None:
        """Repeat no announcement unasked, because another gateway may have made its own, or do so again."""
        if (backend := self._open_backend()) is not None:
            backend.hush(on=on)

    def leaving(self, addresses: Iterable[str]) -> None:
        """Another gateway has them: they are claimed no more. What still comes is taken until they are ``released``.

        Raises ValueError.
        """
        if (backend := self._open_backend()) is not None:
            left = [_text(_packed(text)) for text in addresses]
            for address in left:
                self._wishes.drop(address)  # nothing that has not begun is claimed any more
            backend.leave(left)

    def released(self, addresses: Iterable[str]) -> None:
        """Another gateway has them, or nobody. Raises ValueError."""
        self._wish(addresses, acquire=False)

    async def settled(self) -> None:
        """Until every wish was carried out or has failed at least once. Needs ``run``, unless closed."""
        await self._idle.wait()

    async def run(self) -> None:
        """Carry out wishes until cancelled or closed."""
        if self._backend is None:
            return
        beside = asyncio.ensure_future(self._backend.run(self._again))
        work = asyncio.ensure_future(self._work(self._backend))
        try:
            await asyncio.wait((beside, work), return_when=asyncio.FIRST_COMPLETED)
            for task in (beside, work):
                if task.done():
                    task.result()
        finally:
            for task in (beside, work):
                task.cancel()
            await asyncio.gather(beside, work, return_exceptions=True)

    async def close(self) -> None:
        """Withdraw everything and drop what waits; what could not be withdrawn is told. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._work_there.set()
        async with self._busy:
            self._idle.set()
            if self._backend is not None:
                for text in await self._backend.close(tuple(self._held)):
                    self._failed(text)
            self._held.clear()

    def _wish(self, addresses: Iterable[str], *, acquire: bool) -> None:
        if self._backend is None or self._closed:
            return
        for text in addresses:
            raw = _packed(text)
            address = _text(raw)
            if (complaint := self._refusal(address, raw)) is not None:
                self._failed(complaint)
                continue
            self._standing[address] = acquire
            self._wishes.put(address, acquire)
            self._idle.clear()
        self._work_there.set()

    def _open_backend(self) -> Backend | None:
        return None if self._closed else self._backend

    def _refusal(self, address: str, raw: bytes) -> str | None:
        number = int.from_bytes(raw, "big")
        if not any(size == len(raw) and number >> shift == start for size, shift, start in self._ranges):
            return f"cannot announce {address}: it is in none of the pools ({self._pools}); put it into tunnel.pool"
        if len(self._standing) >= MOST_ADDRESSES and address not in self._standing:
            return f"cannot announce {address}: {MOST_ADDRESSES} addresses are known already, the most that can be"
        return None

    async def _work(self, backend: Backend) -> None:
        now = asyncio.get_running_loop().time
        async with self._busy:
            await backend.start()
        while not self._closed:
            async with self._busy:
                batch = None if self._closed else self._wishes.take(now(), backend.most)
                if batch is not None:
                    await self._try(backend, batch)
                    continue
            self._idle.set()
            due = self._wishes.due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._work_there.wait()
            self._work_there.clear()

    async def _try(self, backend: Backend, batch: Batch) -> None:
        if batch.acquire:
            self._held |= dict.fromkeys(batch.addresses)
        failures = await backend.carry_out(batch)
        if not batch.acquire:
            for address in batch.addresses:
                if address not in failures:
                    self._held.pop(address, None)
        pause = self._wishes.settle(batch, failures, asyncio.get_running_loop().time())
        self._tell(batch.acquire, failures, pause)

    def _tell(self, acquire: bool, failures: Mapping[str, str], pause: float) -> None:
        """Say a failure once, until it goes away or another takes its place."""
        if not failures:
            self._told.pop(acquire, None)
            return
        address, why = next(iter(failures.items()))
        if self._told.get(acquire) == why:
            return
        self._told[acquire] = why
        others = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        what = "announce" if acquire else "withdraw"
        self._failed(f"cannot {what} {address}{others}: {why}; trying again in {pause:.1f} s")

    def _again(self) -> None:
        for address, acquire in self._standing.items():
            self._wishes.put(address, acquire)
            self._idle.clear()
        self._work_there.set()


def _range(pool: str) -> tuple[int, int, int]:
    """Length of an address in bytes, bits that may differ inside the pool, and the others, shifted by that."""
    network = ipaddress.ip_network(pool)
    shift = network.max_prefixlen - network.prefixlen
    return len(network.network_address.packed), shift, int(network.network_address) >> shift


def _packed(text: str) -> bytes:
    """An address with or without prefix length, as bytes: many may change at once, and ``ipaddress`` is slow."""
    plain = text.partition("/")[0]
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in plain else socket.AF_INET, plain)
    except OSError:
        raise ValueError(f"{text!r} is no address") from None


def _text(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
