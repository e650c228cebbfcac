"""What the gateway tells a client in the sealed part of the handshake response."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import msgspec

from jumpvpn.policy.model import Policy
from jumpvpn.wire.gateways import GATEWAYS_MAX, Gateway, Gateways, distinct

WELCOME_MAX_BYTES = 1500  # wire format: the response fits two datagrams

_Text = Annotated[str, msgspec.Meta(max_length=64)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class BadWelcome(ValueError):
    """The gateway's welcome cannot be understood."""


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """The gateway's bounds (ns and counts): a client never waits longer than its gateway does."""

    max_lifetime: _Count
    transport_ttl: _Count
    key_max_age: _Count
    rekey_after: _Count
    max_per_minute: _Count
    episode_max: _Count

    @classmethod
    def of(cls, policy: Policy) -> Limits:
        """The bounds of ``policy``."""
        return cls(
            policy.session.max_lifetime, policy.session.transport_ttl, policy.security.key_max_age,
            policy.security.rekey_after, policy.switching.max_per_minute, policy.recovery.episode_max,
        )  # fmt: skip

    def applied_to(self, policy: Policy) -> Policy:
        """``policy`` with each shared bound at most the gateway's."""
        session = {
            "max_lifetime": min(policy.session.max_lifetime, self.max_lifetime),
            "transport_ttl": min(policy.session.transport_ttl, self.transport_ttl),
        }
        security = {
            "key_max_age": min(policy.security.key_max_age, self.key_max_age),
            "rekey_after": min(policy.security.rekey_after, self.rekey_after),
        }
        switching = {"max_per_minute": min(policy.switching.max_per_minute, self.max_per_minute)}
        recovery = {"episode_max": min(policy.recovery.episode_max, self.episode_max)}
        return policy.model_copy(
            update={
                "session": policy.session.model_copy(update=session),
                "security": policy.security.model_copy(update=security),
                "switching": policy.switching.model_copy(update=switching),
                "recovery": policy.recovery.model_copy(update=recovery),
            }
        )


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Inner addresses (``address/prefix``) and routes for the client, and the gateway's bounds.

    ``gateways`` are those of the cluster, the nearest first, this one among them; a standalone gateway names none, and
    then the bytes are as if there were no such field.
    """

    gateway: _Text
    addresses: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=4)]
    routes: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=64)]
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=9000)]
    limits: Limits
    version: _Count
    gateways: Gateways = ()


def encode_welcome(welcome: Welcome) -> bytes:
    """The bytes for the handshake response. The farthest gateways are left out as far as there is no room for them:
    the client learns them later, by the control message. Raises ValueError if the rest does not fit.
    """
    gateways: tuple[Gateway, ...] = distinct(welcome.gateways)[:GATEWAYS_MAX]
    while True:
        body = msgspec.msgpack.encode(msgspec.structs.replace(welcome, gateways=gateways))
        if len(body) <= WELCOME_MAX_BYTES:
            return body
        if not gateways:
            raise ValueError(
                f"the welcome has {len(body)} bytes, at most {WELCOME_MAX_BYTES} fit: announce fewer routes"
            )
        gateways = gateways[:-1]


def decode_welcome(body: bytes) -> Welcome:
    """The welcome in ``body``, every address checked. Raises BadWelcome."""
    try:
        welcome = msgspec.msgpack.decode(body, type=Welcome)
        for address in welcome.addresses:
            ipaddress.ip_interface(address)
        for route in welcome.routes:
            ipaddress.ip_network(route)
        distinct(welcome.gateways)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadWelcome(f"the gateway's welcome is malformed: {error}") from None
    return welcome
