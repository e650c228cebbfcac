"""Which etcd members answer just now, for people: what the store's calls do not tell, since one member serves them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from jumpvpn.runtime.stores.etcd.config import EtcdConfig

_WITHIN_SECONDS = 1.0  # a member that takes longer for a handshake is of no use to a lease of a few seconds


async def answering(config: EtcdConfig) -> tuple[tuple[str, bool], ...]:
    """Each endpoint with whether a mutual TLS handshake with it succeeds within a second; all are tried at once."""
    try:
        context = ssl.create_default_context(cafile=config.ca)
        context.load_cert_chain(config.certificate, config.key)
    except OSError:  # also ssl.SSLError: without the files nobody can be asked
        return tuple((endpoint, False) for endpoint in config.endpoints)
    context.set_alpn_protocols(["h2"])  # as gRPC does; etcd calls anything else a rejected connection
    answers = await asyncio.gather(*(_answers(endpoint, context) for endpoint in config.endpoints))
    return tuple(zip(config.endpoints, answers, strict=True))


async def _answers(endpoint: str, context: ssl.SSLContext) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        async with asyncio.timeout(_WITHIN_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
    except OSError:  # also TimeoutError and ssl.SSLError
        return False
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_WITHIN_SECONDS):
            await writer.wait_closed()
    return True
