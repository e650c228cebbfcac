"""Numbers in units that people say."""

from __future__ import annotations


def span(milliseconds: float) -> str:
    """A length of time in two units at most: ``212 ms``, ``1.5 s``, ``4 min 12 s``, ``23 h 59 min``, ``2 d 3 h``."""
    if milliseconds < 0:
        return f"-{span(-milliseconds)}"
    if milliseconds < 1:
        return "0 ms" if milliseconds < 0.05 else "under 1 ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return _two(minutes, "min", rest, "s")
    hours, minutes = divmod(minutes, 60)
    return _two(hours, "h", minutes, "min") if hours < 48 else _two(hours // 24, "d", hours % 24, "h")


def percent(ratio: float) -> str:
    """``31 %``; one decimal below ten."""
    shown = ratio * 100
    return f"{shown:.0f} %" if shown >= 10 or shown == 0 else f"{shown:.1f}".removesuffix(".0") + " %"


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 attempt``, ``3 attempts``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def listed(words: list[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"
