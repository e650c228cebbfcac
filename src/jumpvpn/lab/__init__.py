"""A laboratory of network namespaces: a client with two uplinks, NAT routers, a gateway and a server."""

from jumpvpn.lab.errors import LabError
from jumpvpn.lab.lab import Change, Lab
from jumpvpn.lab.link import Impairment, Link
from jumpvpn.lab.topology import (
    GATEWAY_INNER,
    GATEWAY_PUBLIC,
    INNER_NETWORK,
    SERVER_INNER,
    SERVER_PUBLIC,
    UPLINKS,
    Uplink,
)

__all__ = [
    "GATEWAY_INNER",
    "GATEWAY_PUBLIC",
    "INNER_NETWORK",
    "SERVER_INNER",
    "SERVER_PUBLIC",
    "UPLINKS",
    "Change",
    "Impairment",
    "Lab",
    "LabError",
    "Link",
    "Uplink",
]
