"""Addresses of gateways, asked of the system's resolver."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

from jumpvpn.client.gateways import Known
from jumpvpn.config import split_address
from jumpvpn.runtime.netstate import IPAddress


class Names:
    """What was found, by gateway: one address each, IPv4 before IPv6. Bounded by the gateways that are known."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, IPAddress]] = {}

    def known(self, gateways: Iterable[Known]) -> list[tuple[str, IPAddress]]:
        """Name and address of each of ``gateways`` that was found, in their order."""
        return [(known.name, self._found[known.name][1]) for known in gateways if known.name in self._found]

    async def find(self, gateways: Iterable[Known]) -> list[str]:
        """Ask for those whose address text is new, all at a time; what failed, in words.

        A gateway that was found before keeps that address while its new one cannot be found.
        """
        wanted = tuple(gateways)
        names = {known.name for known in wanted}
        self._found = {name: found for name, found in self._found.items() if name in names}
        asked = [known for known in wanted if self._found.get(known.name, ("",))[0] != known.address]
        answers = await asyncio.gather(*(_address(known) for known in asked))
        failures: list[str] = []
        for known, answer in zip(asked, answers, strict=True):
            if isinstance(answer, str):
                failures.append(answer)
            else:
                self._found[known.name] = (known.address, answer)
        return failures


async def _address(known: Known) -> IPAddress | str:
    """The address, or why there is none."""
    host, port = split_address(known.address)
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        return f"{host}: {error.strerror}"
    addresses = {ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers}
    return min(addresses, key=lambda address: (address.version, address.packed))
