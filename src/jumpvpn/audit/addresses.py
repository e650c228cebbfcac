"""Addresses in the form that ``observability.address_mode`` asks for."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from functools import lru_cache
from typing import Literal

AddressMode = Literal["full", "truncated", "hmac"]
_KEPT_BITS = {4: 24, 6: 48}  # the network, not the host: enough to see a change of network
_HMAC_HEX = 16
_REMEMBERED = 4096  # endpoints, of some 200 bytes each: one endpoint is told of in several events of a commit


def shown_address(endpoint: str, mode: AddressMode, key: bytes = b"") -> str:
    """``endpoint`` ("ip:port" or "[ip6]:port") in full, cut to its network with port 0, or as a keyed hash."""
    if mode == "full":
        return endpoint
    if mode == "hmac":
        return "h:" + hmac.new(key, endpoint.encode(), hashlib.sha256).hexdigest()[:_HMAC_HEX]
    return source_prefix(endpoint)


@lru_cache(maxsize=_REMEMBERED)
def source_prefix(endpoint: str) -> str:
    """The /24 or /48 that ``endpoint`` lies in; ``unknown`` for anything that is not an address."""
    host = endpoint.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    return str(ipaddress.ip_network((address, _KEPT_BITS[address.version]), strict=False))
