"""Talks to nftables: one JSON document, one atomic transaction."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

Command = Mapping[str, Any]

FAMILY = "inet"
_TIMEOUT_SECONDS = 10.0


class NftFailed(Exception):
    """nftables refused or is missing; the text says what and what to do."""


class NftMissing(NftFailed):
    """The program is not there, so nothing was changed either."""


async def apply(commands: Sequence[Command]) -> None:
    """Run ``commands`` as one transaction: all or none. Raises NftFailed."""
    document = json.dumps({"nftables": list(commands)}).encode()
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", "-j", "-f", "-",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise NftMissing("the program 'nft' is missing; install the package nftables") from None
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            _, complaint = await process.communicate(document)
    except TimeoutError:
        await _end(process)
        raise NftFailed(f"nft did not answer within {_TIMEOUT_SECONDS:.0f} s") from None
    except asyncio.CancelledError:  # it must not act after the caller has undone its work
        await _end(process)
        raise
    if process.returncode != 0:
        raise NftFailed(f"nft refused the rules: {_first_line(complaint)}")


def replacing(table: str, content: Sequence[Command]) -> list[Command]:
    """Commands that make ``table`` hold exactly ``content``, whether or not it exists."""
    this = {"table": {"family": FAMILY, "name": table}}
    return [{"add": this}, {"delete": this}, {"add": this}, *content]


async def delete_table(table: str) -> None:
    """Remove ``table``; one that is not there is fine. Raises NftFailed."""
    this = {"table": {"family": FAMILY, "name": table}}
    await apply([{"add": this}, {"delete": this}])


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _first_line(complaint: bytes) -> str:
    lines = [line for line in complaint.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[0].strip() if lines else "no reason given"
