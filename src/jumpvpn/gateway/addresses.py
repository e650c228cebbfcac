"""Inner addresses: every device of the list has its own, the same after every restart."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from jumpvpn.config import Device, GatewayConfig, decode_key
from jumpvpn.gateway.executor import Admitted
from jumpvpn.runtime.errors import StartFailed


def admitted_devices(config: GatewayConfig) -> dict[bytes, Admitted]:
    """Public key -> device with its inner addresses. Raises StartFailed when the pool is too small.

    Written addresses first; the others get the free ones in the order of the file.
    """
    tunnel = config.tunnel
    taken4 = {str(device.address) for device in config.device if device.address is not None}
    taken6 = {str(device.address6) for device in config.device if device.address6 is not None}
    free4 = _free(tunnel.pool, taken4)
    free6 = _free(tunnel.pool6, taken6) if tunnel.pool6 is not None else None
    found: dict[bytes, Admitted] = {}
    for device in config.device:
        addresses = [_with_prefix(device.address or _take(free4, device, tunnel.pool), tunnel.pool)]
        if tunnel.pool6 is not None and free6 is not None:
            addresses.append(_with_prefix(device.address6 or _take(free6, device, tunnel.pool6), tunnel.pool6))
        found[decode_key(device.public_key)] = Admitted(device.name, tuple(addresses))
    return found


def fixed_addresses(config: GatewayConfig) -> dict[bytes, tuple[str, ...]]:
    """Public key -> the inner addresses (without prefix) that the file gives to the device."""
    return {
        decode_key(device.public_key): tuple(str(a) for a in (device.address, device.address6) if a is not None)
        for device in config.device
    }


def _free(pool: ipaddress.IPv4Network | ipaddress.IPv6Network, taken: set[str]) -> Iterator[str]:
    hosts = pool.hosts()
    next(hosts, None)  # the first one is the gateway's
    return (str(host) for host in hosts if str(host) not in taken)


def _take(free: Iterator[str], device: Device, pool: object) -> str:
    address = next(free, None)
    if address is None:
        raise StartFailed(f"the pool {pool} has no address left for device {device.name!r}; enlarge tunnel.pool")
    return address


def _with_prefix(address: object, pool: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return f"{address}/{pool.prefixlen}"
