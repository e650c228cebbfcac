"""Durations and sizes as people write them, parsed once into integers."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from jumpvpn.values import HOUR, MILLISECOND, MINUTE, SECOND, Duration

# 100 days: every duration in nanoseconds stays below 2^53, so canonical JSON (RFC 8785) carries it exactly.
LONGEST_DURATION = Duration(100 * 24 * HOUR)

_DURATION_UNITS: dict[str, int] = {
    "ns": 1, "us": 1_000, "ms": MILLISECOND, "s": SECOND, "min": MINUTE, "m": MINUTE, "h": HOUR, "d": 24 * HOUR,
}  # fmt: skip
_SIZE_UNITS: dict[str, int] = {"b": 1, "kb": 1000, "mb": 1000**2, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_duration(value: object) -> Duration:
    """Nanoseconds of ``"200ms"``, ``"1.5s"``, ``"24h"``, or of a plain number of seconds.

    Raises ValueError naming the accepted forms.
    """
    amount, unit = _quantity(value, default_unit="s")
    if unit not in _DURATION_UNITS:
        raise ValueError('must be a duration such as "200ms", "1.5s", "10min", "24h", or a number of seconds')
    nanoseconds = amount * _DURATION_UNITS[unit]
    if nanoseconds > LONGEST_DURATION:
        raise ValueError("must be at most 100 days")
    return Duration(int(nanoseconds))


def parse_size(value: object) -> int:
    """Bytes of ``"1MiB"``, ``"64KiB"``, or of a plain integer. Raises ValueError naming the accepted forms."""
    amount, unit = _quantity(value, default_unit="b")
    if unit not in _SIZE_UNITS:
        raise ValueError('must be a size such as "1MiB" or "64KiB", or a number of bytes')
    return int(amount * _SIZE_UNITS[unit])


def format_duration(nanoseconds: int) -> str:
    """The shortest exact spelling that ``parse_duration`` reads back: ``1.5s``, ``200ms``, ``24h``."""
    for unit, size in (("h", HOUR), ("min", MINUTE), ("s", SECOND)):
        if nanoseconds and nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    unit, size = ("s", SECOND) if nanoseconds >= SECOND else ("ms", MILLISECOND)
    digits = format(Decimal(nanoseconds) / size, "f")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + unit


def format_size(size: int) -> str:
    """The shortest exact spelling that ``parse_size`` reads back."""
    for unit, scale in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return f"{size}B"


def _quantity(value: object, default_unit: str) -> tuple[Decimal, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return Decimal(0), "?"
    matched = _QUANTITY.fullmatch(str(value))
    if matched is None:
        return Decimal(0), "?"
    try:
        return Decimal(matched[1]), matched[2].lower() or default_unit
    except InvalidOperation:
        return Decimal(0), "?"


def span(least: int, most: int, *, or_word: str = "") -> BeforeValidator:
    """Pydantic field of a duration within ``least``..``most`` (ns); ``or_word`` is accepted as it stands ("off")."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if or_word and value == or_word:
            return value
        try:
            duration = Duration(value) if _is_canonical(value, info) else parse_duration(value)
        except ValueError as error:
            raise PydanticCustomError("span", "{text}", {"text": f"{error}{alternative}"}) from None
        if not least <= duration <= most:
            text = f"must be within {format_duration(least)} and {format_duration(most)}{alternative}"
            raise PydanticCustomError("span", "{text}", {"text": text})
        return duration

    alternative = f', or "{or_word}"' if or_word else ""
    return BeforeValidator(check)


def extent(least: int, most: int) -> BeforeValidator:
    """Pydantic field of a size within ``least``..``most`` (bytes)."""

    def check(value: Any) -> int:
        try:
            size = parse_size(value)
        except ValueError as error:
            raise PydanticCustomError("extent", "{text}", {"text": str(error)}) from None
        if not least <= size <= most:
            text = f"must be within {format_size(least)} and {format_size(most)}"
            raise PydanticCustomError("extent", "{text}", {"text": text})
        return size

    return BeforeValidator(check)


def _is_canonical(value: object, info: ValidationInfo) -> bool:
    """Canonical bodies (``Policy.body``) carry integer nanoseconds, files carry seconds or text."""
    return isinstance(info.context, dict) and info.context.get("unit") == "ns" and type(value) is int
