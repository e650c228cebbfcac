"""How many clients are back, over time after a loss, as one picture (SVG)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 960, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 46, 56
_COLOURS = ("#2186eb", "#d64545", "#199473", "#a368fc", "#f0883e")
_POINTS = 400  # of a curve: more cannot be seen


@dataclass(frozen=True, slots=True)
class Curve:
    """``times_ms`` are when each of ``of`` clients came back."""

    name: str
    times_ms: Sequence[float]
    of: int


def picture(title: str, curves: Sequence[Curve], target_ms: float | None = None, *, percent: bool = False) -> str:
    """The curves over one another; ``target_ms`` is drawn as a line. ``percent``: each time stands for one percent."""
    longest = max([times[-1] for curve in curves if (times := sorted(curve.times_ms))], default=1.0)
    longest = max(longest, target_ms or 0.0) * 1.05
    body = [_text(LEFT, 26, title, 17, weight="bold"), *_axes(longest)]
    if target_ms is not None:
        x = _x(target_ms, longest)
        body.append(_line(x, TOP, x, HEIGHT - BOTTOM, "#9aa5b1", dashed=True))
        body.append(_text(x - 6, TOP + 12, f"target {target_ms / 1000:g} s", 12, anchor="end"))
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{_points(curve, longest)}"/>')
        last = max(curve.times_ms, default=0.0)
        count = "all" if percent else f"{len(curve.times_ms)} of {curve.of}"
        words = f"{curve.name}: {count} back, the last after {last / 1000:.2f} s"
        body.append(_text(WIDTH - RIGHT - 8, HEIGHT - BOTTOM - 14 - 18 * number, words, 13, colour, "end"))
    inner = "\n".join(body)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="DejaVu Sans, sans-serif">'
    )
    return f'{head}\n<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{inner}\n</svg>\n'


def _x(at_ms: float, longest: float) -> float:
    return LEFT + at_ms / longest * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _points(curve: Curve, longest: float) -> str:
    times = sorted(curve.times_ms)
    every = max(1, len(times) // _POINTS)
    chosen = [(times[at], at + 1) for at in range(len(times)) if at % every == 0 or at == len(times) - 1]
    path, last = [(float(LEFT), _y(0.0))], 0
    for at_ms, count in chosen:
        path += [(_x(at_ms, longest), _y(last / curve.of)), (_x(at_ms, longest), _y(count / curve.of))]
        last = count
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in path)


def _axes(longest: float) -> list[str]:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent / 100)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y, "#e4e7eb"), _text(LEFT - 8, y + 4, f"{percent} %", 12, anchor="end")]
    step = next(
        size for size in (50, 100, 250, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 10**9) if longest / size <= 12
    )
    for number in range(int(longest // step) + 1):
        x = _x(number * step, longest)
        parts += [
            _line(x, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 5, "#616e7c"),
            _text(x, HEIGHT - BOTTOM + 20, f"{number * step / 1000:g}", 12, anchor="middle"),
        ]
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "seconds after the loss", 13, anchor="middle")]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'


def _text(
    x: float, y: float, words: str, size: int, colour: str = "#1f2933", anchor: str = "start", weight: str = "normal"
) -> str:
    safe = words.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{safe}</text>'
    )
