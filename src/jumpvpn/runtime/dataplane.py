"""The only door to the native packet core."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from jumpvpn import _native
from jumpvpn._native import Plane

Answer = TypeVar("Answer")
Fact = tuple[Any, ...]
FACTS_PER_DRAIN = 256  # one pass of the loop; more facts come back at once, the eventfd stays readable

CLOSE = 1  # control message that ends a session; payload: the reason's code, 2 bytes
CLOSE_COPIES = 3  # the keys are erased right after, so the message is sent thrice instead of acknowledged

# Errors that this host itself is the origin of. The others (ECONNREFUSED, EHOSTUNREACH …) come from ICMP, which a
# third party can forge: they are a reason to probe, never a proof of death.
LOCAL_ERRORS = frozenset({errno.ENETDOWN, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENXIO})


def generate_private_key() -> bytes:
    """A fresh X25519 private key (32 bytes)."""
    return _native.generate_private_key()


def public_key(private: bytes) -> bytes:
    """The public key (32 bytes) of a private one. Raises ValueError."""
    return _native.public_key(private)


class Overtaken(Exception):
    """An order came too late: what it names is gone or has moved on."""


class Race:
    """Gives the orders that the network or the clock may overtake; ``lost`` counts those that came too late.

    Losing is no failure: a fact or a deadline tells what happened instead. An argument out of bounds stays a defect.
    """

    def __init__(self) -> None:
        self.lost = 0

    def run(self, order: Callable[..., Answer], *args: object) -> Answer:
        """The order's answer. Raises Overtaken."""
        try:
            return order(*args)
        except (KeyError, RuntimeError) as error:
            self.lost += 1
            raise Overtaken(str(error)) from error

    def give(self, order: Callable[..., object], *args: object) -> None:
        """The same for an order whose answer nobody needs."""
        with suppress(Overtaken):
            self.run(order, *args)


def drain(plane: Plane, consume: Callable[[Fact], None]) -> None:
    """Hand the facts that wait to ``consume``, oldest first."""
    for fact in plane.drain(FACTS_PER_DRAIN):
        consume(fact)


def error_name(number: int) -> str:
    """``ENETUNREACH`` for 101."""
    return errno.errorcode.get(number, str(number))


def end_session(plane: Plane, race: Race, session: int, code: int, *, tell_peer: bool) -> None:
    """Erase a session's keys; first tell the peer the reason's ``code``, where a transport still leads to it."""
    if tell_peer:
        for _ in range(CLOSE_COPIES):
            race.give(plane.send_control, session, CLOSE, code.to_bytes(2, "big"), None)
    plane.close_session(session)


__all__ = [
    "CLOSE",
    "FACTS_PER_DRAIN",
    "LOCAL_ERRORS",
    "Fact",
    "Overtaken",
    "Plane",
    "Race",
    "drain",
    "end_session",
    "error_name",
    "generate_private_key",
    "public_key",
]
