"""The cluster's list of gateways on disk, so that a client finds them when those of its file are gone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from jumpvpn.config import encode_key
from jumpvpn.wire.gateways import GATEWAYS_MAX, Gateway, distinct

FILE_NAME = "gateways.json"
FILE_MAX = 1 << 16  # bytes; 8 gateways and the keys of 16 configured ones fill less than 4 KiB
FORMAT = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``configured`` are the keys (base64) of the configuration file under which the list was learned."""

    format: int
    configured: tuple[str, ...]
    gateways: Annotated[tuple[Gateway, ...], msgspec.Meta(max_length=GATEWAYS_MAX)]


class Damaged(Exception):
    """The file is there and cannot be used; the text says why, and what happens now."""


def read(state_dir: Path, configured: Iterable[bytes]) -> tuple[Gateway, ...]:
    """The list that was learned last; none if it was learned from another cluster. Raises Damaged.

    A list belongs to the gateways of the configuration file: it is used while one of those keys is still configured.
    """
    path = state_dir / FILE_NAME
    try:
        with path.open("rb") as file:
            body = file.read(FILE_MAX + 1)
        if len(body) > FILE_MAX:
            raise ValueError(f"it has more than {FILE_MAX} bytes")
        found = msgspec.json.decode(body, type=_File)
        if found.format != FORMAT:
            raise ValueError(f"it has format {found.format}, this program reads {FORMAT}")
        distinct(found.gateways)
    except FileNotFoundError:
        return ()
    except (msgspec.MsgspecError, ValueError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Damaged(
            f"cannot use {path}: {why}; going on with the gateways of the configuration file, "
            "it is written anew when a gateway tells its list"
        ) from None
    known = {encode_key(key) for key in configured}
    return found.gateways if known.intersection(found.configured) else ()


def write(state_dir: Path, configured: Iterable[bytes], gateways: tuple[Gateway, ...]) -> None:
    """Replace the list as one step, mode 0600. Raises OSError."""
    path = state_dir / FILE_NAME
    body = msgspec.json.encode(_File(FORMAT, tuple(encode_key(key) for key in configured), gateways))
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
