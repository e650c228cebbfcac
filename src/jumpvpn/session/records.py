"""The durable form of a session: what a store keeps, and how it comes back after a restart or a reboot.

Instants are boot time of the node that wrote them. A reader on the same boot takes them as they are; after a reboot, or
on another node, they are moved by the wall clock, never into the future: a clock that went back cannot lengthen any
deadline. Where the client has proved how old the session is, small differences of wall clocks do not count.
"""

from __future__ import annotations

import msgspec

from jumpvpn.policy.model import Policy
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Binding, Role, Session, State, Totals
from jumpvpn.values import MILLISECOND, SECOND, Epoch, Instant, Now, SessionId, TransportId, Version, dataclass

FORMAT = 1
CLOCKS_APART = 30 * SECOND  # more between two nodes is no drift but a wrong clock: then the older age counts


class BadRecord(ValueError):
    """The bytes are no session record of a known format."""


class _BindingRecord(msgspec.Struct, frozen=True, array_like=True):
    transport: str
    peer: str
    epoch: int
    since: int


class _TotalsRecord(msgspec.Struct, frozen=True, array_like=True):
    switches: int = 0
    episodes: int = 0
    volatile: int = 0
    recovering: int = 0
    degraded: int = 0
    transportless: int = 0
    episode_degraded: int = 0
    episode_denials: int = 0
    episode_unseen: int | None = None


class _SessionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    boot_id: str
    boot_ns: int
    wall_ms: int
    id: bytes
    role: str
    state: str
    version: int
    epoch: int
    born_at: int
    entered_at: int
    keys_at: int
    reason: str | None
    binding: _BindingRecord | None
    incumbent: str | None
    transportless_at: int | None
    episode_at: int | None
    attempts: int
    bound_version: int
    prior_bound_version: int | None
    peer_version: int
    owner_epoch: int
    switches: tuple[int, ...]
    hold_until: int | None
    volatile_entries: tuple[int, ...]
    device: bytes
    device_name: str
    inner: tuple[str, ...]
    totals: _TotalsRecord = _TotalsRecord()  # a record without it is from a program that did not count


class _Inner(msgspec.Struct, frozen=True):
    """What is needed of a record before its client has proved anything."""

    inner: tuple[str, ...]


class _Booted(msgspec.Struct, frozen=True):
    """Which boot the instants are of."""

    boot_id: str


class _Formatted(msgspec.Struct, frozen=True):
    """What tells a record of another program, whatever else is in it."""

    format: int


_FORMATTED = msgspec.msgpack.Decoder(_Formatted)
_BOOTED = msgspec.msgpack.Decoder(_Booted)
_INNER = msgspec.msgpack.Decoder(_Inner)
_RECORD = msgspec.msgpack.Decoder(_SessionRecord)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a gateway keeps beside the machine's record: who the device is and which inner addresses it has."""

    device: bytes
    device_name: str
    inner: tuple[str, ...]

    @property
    def addresses(self) -> list[str]:
        """The inner addresses without their prefix lengths."""
        return _bare(self.inner)


def encode(session: Session, kept: Kept, now: Now, boot_id: str) -> bytes:
    """The record of ``session`` as bytes (MessagePack)."""
    bound = session.binding
    record = _SessionRecord(
        format=FORMAT, boot_id=boot_id, boot_ns=now.boot, wall_ms=now.wall_ms, id=session.id.raw,
        role=session.role.value, state=session.state.value, version=session.version, epoch=session.epoch,
        born_at=session.born_at, entered_at=session.entered_at, keys_at=session.keys_at,
        reason=session.reason.value if session.reason is not None else None,
        binding=_BindingRecord(bound.transport, bound.peer, bound.epoch, bound.since) if bound is not None else None,
        incumbent=session.incumbent, transportless_at=session.transportless_at, episode_at=session.episode_at,
        attempts=session.attempts, bound_version=session.bound_version,
        prior_bound_version=session.prior_bound_version, peer_version=session.peer_version,
        owner_epoch=session.owner_epoch, switches=session.switches, hold_until=session.hold_until,
        volatile_entries=session.volatile_entries, device=kept.device, device_name=kept.device_name, inner=kept.inner,
        totals=_totals(session.totals),
    )  # fmt: skip
    return msgspec.msgpack.encode(record)


def _totals(totals: Totals) -> _TotalsRecord:
    return _TotalsRecord(
        totals.switches, totals.episodes, totals.volatile, totals.recovering, totals.degraded, totals.transportless,
        totals.episode_degraded, totals.episode_denials, totals.episode_unseen,
    )  # fmt: skip


def decode(body: bytes, policy: Policy, now: Now, boot_id: str, age_ms: int | None = None) -> tuple[Session, Kept]:
    """The session that ``body`` describes, under ``policy``. Raises BadRecord.

    ``age_ms`` is the session's age as its client has proved to claim it.
    """
    _check_format(body)
    try:
        record = _RECORD.decode(body)
        state, role = State(record.state), Role(record.role)
        reason = Reason(record.reason) if record.reason is not None else None
        session_id = SessionId(record.id)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRecord(f"not a session record: {error}") from None
    shift = _shift(record, now, boot_id, age_ms)
    session = Session(
        id=session_id, role=role, policy=policy, state=state, version=Version(record.version),
        epoch=Epoch(record.epoch), born_at=_moved(record.born_at, shift), entered_at=_moved(record.entered_at, shift),
        keys_at=_moved(record.keys_at, shift), reason=reason, binding=_binding(record.binding, shift),
        incumbent=TransportId(record.incumbent) if record.incumbent is not None else None,
        transportless_at=_maybe(record.transportless_at, shift), episode_at=_maybe(record.episode_at, shift),
        attempts=record.attempts, bound_version=Version(record.bound_version),
        prior_bound_version=Version(record.prior_bound_version) if record.prior_bound_version is not None else None,
        peer_version=Version(record.peer_version), owner_epoch=record.owner_epoch,
        switches=tuple(_moved(at, shift) for at in record.switches), hold_until=_maybe(record.hold_until, shift),
        volatile_entries=tuple(_moved(at, shift) for at in record.volatile_entries),
        totals=Totals(*msgspec.structs.astuple(record.totals)),
    )  # fmt: skip
    return session, Kept(record.device, record.device_name, record.inner)


def is_of_boot(body: bytes, boot_id: str) -> bool:
    """Whether the record's instants are of that boot, so that no wall clock is asked about them. Raises BadRecord."""
    try:
        return _BOOTED.decode(body).boot_id == boot_id
    except msgspec.MsgspecError as error:
        raise BadRecord(f"not a session record: {error}") from None


def inner_addresses(body: bytes) -> list[str]:
    """Only the inner addresses of the record, without their prefix lengths. Raises BadRecord."""
    _check_format(body)
    try:
        return _bare(_INNER.decode(body).inner)
    except msgspec.MsgspecError as error:
        raise BadRecord(f"not a session record: {error}") from None


def _check_format(body: bytes) -> None:
    try:
        found = _FORMATTED.decode(body).format
    except msgspec.MsgspecError as error:
        raise BadRecord(f"not a session record: {error}") from None
    if found != FORMAT:
        raise BadRecord(f"it has record format {found}, this program knows {FORMAT}; upgrade the older program")


def _bare(inner: tuple[str, ...]) -> list[str]:
    return [address.split("/", maxsplit=1)[0] for address in inner]


def _shift(record: _SessionRecord, now: Now, boot_id: str, age_ms: int | None) -> int:
    """What to add (ns) to the record's instants so that they are boot time of this boot."""
    if record.boot_id == boot_id:
        return 0
    away = max(0, now.wall_ms - record.wall_ms) * MILLISECOND
    if age_ms is not None:
        # The client cannot be younger than the record, and not much younger than the wall clock says.
        claimed = max(0, age_ms * MILLISECOND - (record.boot_ns - record.born_at))
        away = claimed if abs(claimed - away) <= CLOCKS_APART else max(claimed, away)
    return now.boot - away - record.boot_ns


def _moved(at: int, shift: int) -> Instant:
    return Instant(at + shift)


def _maybe(at: int | None, shift: int) -> Instant | None:
    return Instant(at + shift) if at is not None else None


def _binding(record: _BindingRecord | None, shift: int) -> Binding | None:
    if record is None:
        return None
    return Binding(TransportId(record.transport), record.peer, Epoch(record.epoch), _moved(record.since, shift))
