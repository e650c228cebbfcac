"""What this process changed in the system: written down before it is done, undone on exit or at the next start."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import ipaddress
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from jumpvpn.runtime import nft
from jumpvpn.runtime.bulk import withdraw
from jumpvpn.runtime.clock import boot_id
from jumpvpn.runtime.errors import AlreadyRunning, RtnlFailed
from jumpvpn.runtime.nft import NftFailed
from jumpvpn.runtime.rtnl import delete_link, delete_route, delete_rule, flush_table

_NETWORK_NAMESPACE = Path("/proc/self/ns/net")


class PolicyRule(msgspec.Struct, frozen=True, tag="rule"):
    """A routing policy rule of ours, found again by family, priority and table."""

    family: int
    priority: int
    table: int


class RoutingTable(msgspec.Struct, frozen=True, tag="table"):
    """A routing table that holds only our routes."""

    family: int
    table: int


class MainRoute(msgspec.Struct, frozen=True, tag="route"):
    """A route of ours in the main table."""

    network: str
    interface: str


class NftTable(msgspec.Struct, frozen=True, tag="nft"):
    """An nftables table of family ``inet`` that is wholly ours."""

    name: str


class TunInterface(msgspec.Struct, frozen=True, tag="tun"):
    """A tunnel interface. It vanishes with its process, so only the very same one (``index``) is removed."""

    name: str
    index: int = 0


class Sysctl(msgspec.Struct, frozen=True, tag="sysctl"):
    """A kernel setting we changed from ``previous`` to ``ours``; ``path`` is below /proc/sys."""

    path: str
    previous: str
    ours: str


class SegmentEntries(msgspec.Struct, frozen=True, tag="segment"):
    """Our proxy neighbour entries and routes inside ``pools`` (such as ``10.77.0.0/24``), on the inside interface.

    However many there are, they are noted once, and found by listing. ``tunnel`` is where the other routes of ours
    inside the pools lead to.
    """

    interface: str
    pools: tuple[str, ...]
    tunnel: str = ""


Owned = PolicyRule | RoutingTable | MainRoute | NftTable | TunInterface | Sysctl | SegmentEntries


class _Record(msgspec.Struct, frozen=True):
    boot_id: str
    namespace: int
    items: list[Owned]


class Ownership:
    """The list of everything installed. ``note`` before installing; ``release`` undoes in reverse order.

    A lock next to the file tells a live owner from a killed one, because the kernel drops it with the process.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self._path = path
        self._lock = lock
        self._items: list[Owned] = []

    @classmethod
    async def claim(cls, path: Path) -> Ownership:
        """Become the owner of ``path`` and undo what a killed predecessor left; what cannot be undone is told.

        Raises AlreadyRunning, or OSError where the directory cannot be used.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(path.with_name(path.name + ".lock"), flags, 0o600)
        try:
            _take(lock, path)
            owner = cls(path, lock)
            owner._items = _leftovers(path)
            tell(await owner._undo_all())
        except BaseException:
            os.close(lock)
            raise
        return owner

    @property
    def items(self) -> tuple[Owned, ...]:
        """What is noted now, oldest first."""
        return tuple(self._items)

    def note(self, item: Owned) -> None:
        """Write ``item`` down, durably, before it is installed. Raises OSError."""
        if item not in self._items:
            self._items.append(item)
            self._save()

    async def undo(self, item: Owned) -> None:
        """Undo one item early, for example a route that is no longer wanted."""
        if item in self._items:
            await _undo(item)
            self.forget(item)

    def forget(self, item: Owned) -> None:
        """Take back a note: the item was not installed. Raises OSError."""
        self._items.remove(item)
        self._save()

    async def release(self) -> list[str]:
        """Undo everything and give up ownership; what could not be undone, in words (empty when all is well)."""
        failures = await self._undo_all()
        os.close(self._lock)
        return failures

    async def _undo_all(self) -> list[str]:
        failures: list[str] = []
        for item in reversed(self._items):
            try:
                await _undo(item)
            except (NftFailed, RtnlFailed, OSError) as error:
                failures.append(f"{item}: {error}")
        self._items = []
        self._path.unlink(missing_ok=True)
        return failures

    def _save(self) -> None:
        record = _Record(boot_id(), _namespace(), self._items)
        draft = self._path.with_name(self._path.name + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
                file.write(msgspec.json.encode(record) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise _named(error, self._path) from error


def tell(failures: Sequence[str]) -> None:
    """Say on stderr what could not be undone; the rest has been undone all the same."""
    for failure in failures:
        os.write(2, f"jumpvpn: clean-up: {failure}\n".encode())


async def install_table(owner: Ownership, name: str, content: Sequence[nft.Command]) -> None:
    """Make the nftables table ``name`` hold exactly ``content``. Raises NftFailed."""
    item = NftTable(name)
    owner.note(item)
    try:
        await nft.apply(nft.replacing(name, content))
    except nft.NftMissing:
        owner.forget(item)
        raise


def set_sysctl(owner: Ownership, path: str, value: str) -> None:
    """Set /proc/sys/``path`` and remember what it was. Raises OSError."""
    file = _sysctl_file(path)
    previous = file.read_text(encoding="ascii").strip()
    if previous != value:
        owner.note(Sysctl(path, previous, value))
        file.write_text(value, encoding="ascii")


def read_sysctl(path: str) -> str | None:
    """Value of /proc/sys/``path``, or None where the kernel has no such setting."""
    try:
        return _sysctl_file(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _sysctl_file(path: str) -> Path:
    return Path("/proc/sys") / path


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise AlreadyRunning(
            f"already running (process {pid} owns {path}); stop it with 'jumpvpn down' or set another state_dir"
        ) from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
    except OSError as error:
        raise _named(error, path) from error


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the name of the file, which calls on descriptors leave out."""
    return OSError(error.errno, error.strerror, str(path))


def _leftovers(path: Path) -> list[Owned]:
    """What a killed predecessor noted, if it still stands: a reboot or another namespace voids it."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
        return []
    is_same_world = record.boot_id == boot_id() and record.namespace == _namespace()
    return list(record.items) if is_same_world else []


def _namespace() -> int:
    return _NETWORK_NAMESPACE.stat().st_ino


async def _undo(item: Owned) -> None:
    undo = _UNDO[type(item)]
    await undo(item)


async def _undo_rule(item: PolicyRule) -> None:
    await delete_rule(item.family, item.priority, item.table)


async def _undo_table(item: RoutingTable) -> None:
    await flush_table(item.family, item.table)


async def _undo_route(item: MainRoute) -> None:
    await delete_route(item.network, item.interface)


async def _undo_nft(item: NftTable) -> None:
    await nft.delete_table(item.name)


async def _undo_tun(item: TunInterface) -> None:
    await delete_link(item.name, item.index)


async def _undo_segment(item: SegmentEntries) -> None:
    pools = [ipaddress.ip_network(pool) for pool in item.pools]
    networks = [(pool.network_address.packed, pool.prefixlen) for pool in pools]
    for interface in (item.interface, item.tunnel):
        if interface:
            await asyncio.to_thread(withdraw, interface, networks)


async def _undo_sysctl(item: Sysctl) -> None:
    """Only what is still as we set it: what someone else changed since is theirs."""
    with contextlib.suppress(FileNotFoundError):
        if _sysctl_file(item.path).read_text(encoding="ascii").strip() == item.ours:
            _sysctl_file(item.path).write_text(item.previous, encoding="ascii")


_UNDO: dict[type, Callable[..., Awaitable[None]]] = {
    PolicyRule: _undo_rule,
    RoutingTable: _undo_table,
    MainRoute: _undo_route,
    NftTable: _undo_nft,
    TunInterface: _undo_tun,
    Sysctl: _undo_sysctl,
    SegmentEntries: _undo_segment,
}
