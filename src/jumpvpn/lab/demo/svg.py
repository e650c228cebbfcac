"""Just enough SVG: shapes and text, written in the order in which they are painted."""

from collections.abc import Iterable
from html import escape

FONT = "Inter, 'DejaVu Sans', 'Segoe UI', Helvetica, Arial, sans-serif"
# Mean width of a character of these fonts, in parts of its size; for deciding whether a label fits.
_CHARACTER = 0.56
_BOLD_CHARACTER = 0.63


class Drawing:
    """A picture of fixed size (pixels), white at first."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height = width, height
        self._title = title
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, *, radius: float = 0, opacity: float = 1
    ) -> None:
        """A filled rectangle."""
        self._add("rect", x=x, y=y, width=max(0.0, width), height=height, fill=fill, rx=radius, opacity=opacity)

    def line(
        self, x1: float, y1: float, x2: float, y2: float, stroke: str, *, width: float = 1, dash: str = ""
    ) -> None:
        """A straight line."""
        self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, stroke_dasharray=dash)

    def circle(self, x: float, y: float, radius: float, fill: str) -> None:
        """A filled circle."""
        self._add("circle", cx=x, cy=y, r=radius, fill=fill)

    def polyline(self, points: Iterable[tuple[float, float]], stroke: str, *, width: float = 1.5) -> None:
        """An open line through points."""
        self._add(
            "polyline", points=_points(points), fill="none", stroke=stroke, stroke_width=width, stroke_linejoin="round"
        )

    def polygon(self, points: Iterable[tuple[float, float]], fill: str, *, opacity: float = 1) -> None:
        """A filled outline."""
        self._add("polygon", points=_points(points), fill=fill, opacity=opacity)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 12,
        fill: str = "#1f2933",
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """One line of text; `y` is its base line."""
        weight = "bold" if bold else ""
        attributes = _attributes(x=x, y=y, font_size=size, fill=fill, text_anchor=anchor, font_weight=weight)
        self._parts.append(f"<text {attributes}>{escape(words)}</text>")

    def render(self) -> str:
        """The whole document."""
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="{FONT}">\n'
            f"<title>{escape(self._title)}</title>\n"
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
        )

    def _add(self, element: str, **attributes: object) -> None:
        self._parts.append(f"<{element} {_attributes(**attributes)}/>")


def text_width(words: str, size: float, *, bold: bool = False) -> float:
    """About how wide a text will be."""
    return len(words) * size * (_BOLD_CHARACTER if bold else _CHARACTER)


def _attributes(**values: object) -> str:
    return " ".join(
        f'{name.replace("_", "-")}="{_number(value)}"' for name, value in values.items() if value not in ("", None)
    )


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escape(str(value))


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
