"""What a link does to the frames that cross it: frozen values, checked once."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from jumpvpn.lab.errors import LabError

DIRECTIONS = ("up", "down")

# One second at 20 Mbit/s: deep enough to show bufferbloat, small enough that a scenario ends.
DEFAULT_QUEUE_BYTES = 256 * 1024

_PROBABILITIES = ("loss", "burst_enter", "burst_leave", "burst_loss", "duplicate", "reorder")


@dataclass(frozen=True, slots=True)
class Impairment:
    """One direction of a link. Probabilities are per packet; zero or None means that the impairment is absent.

    Bursts follow Gilbert and Elliott: each packet may enter the bad state (`burst_enter`) or leave it (`burst_leave`);
    in it, packets are lost with `burst_loss`, outside of it with `loss`. Jitter never reorders; `reorder` holds a
    packet back by `reorder_ms` so that later ones overtake it. `mtu` counts bytes of the IP packet; larger ones vanish.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    burst_enter: float = 0.0
    burst_leave: float = 0.25
    burst_loss: float = 1.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_ms: float = 5.0
    rate_bytes_s: int = 0
    queue_bytes: int = DEFAULT_QUEUE_BYTES
    blackhole: bool = False
    mtu: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)} is not within 0..1"
            for name in _PROBABILITIES
            if not 0.0 <= getattr(self, name) <= 1.0
        ]
        wrong += [
            f"{name}={getattr(self, name)} is negative"
            for name in ("delay_ms", "jitter_ms", "reorder_ms", "rate_bytes_s", "queue_bytes")
            if getattr(self, name) < 0
        ]
        if self.jitter_ms > self.delay_ms:
            wrong.append(f"jitter_ms={self.jitter_ms} exceeds delay_ms={self.delay_ms}")
        if wrong:
            raise LabError("impossible link: " + "; ".join(wrong))

    def changed(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced; raises LabError for an unknown field."""
        unknown = changes.keys() - {field.name for field in fields(self)}
        if unknown:
            raise LabError(f"a link has no {', '.join(sorted(unknown))}")
        return replace(self, **changes)

    @property
    def acts_per_packet(self) -> bool:
        """Whether segmentation offload must be off, because a super-packet of 64 KiB would be treated as one packet."""
        return any((self.loss, self.burst_enter, self.duplicate, self.reorder, self.rate_bytes_s, self.jitter_ms))


@dataclass(frozen=True, slots=True)
class Link:
    """One uplink between the client and its router: plain veth, or veth through the emulator."""

    emulated: bool = False
    up: Impairment = Impairment()
    down: Impairment = Impairment()
    mtu: int = 1500

    @classmethod
    def with_delay(cls, delay_ms: float, **impairments: Any) -> Self:
        """Return an emulated link with the same one-way delay, and the same other impairments, in both directions."""
        both = Impairment().changed(delay_ms=delay_ms, **impairments)
        return cls(emulated=True, up=both, down=both)

    @property
    def acts_per_packet(self) -> bool:
        return self.up.acts_per_packet or self.down.acts_per_packet
