"""Just enough of protocol buffers to read one small answer of etcd that the product has no use for."""

from __future__ import annotations

from typing import Any


def fields_of(message: bytes) -> dict[int, Any]:
    """The last value of each field: integers (wire type 0) and bytes (wire type 2). Raises ValueError for others."""
    found: dict[int, Any] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == 2:
            value, at = message[at : at + value], at + value  # type: ignore[assignment]
        elif tag & 7:
            raise ValueError(f"wire type {tag & 7} is not read here")
        found[tag >> 3] = value
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("the message ends within a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
