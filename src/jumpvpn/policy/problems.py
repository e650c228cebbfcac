"""What is wrong with a written configuration: every bad key, its value, and what is allowed, all at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

# A value is quoted in one line of a terminal; longer ones tell the reader nothing more.
_LONGEST_QUOTED_VALUE = 60

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One bad key. ``path`` as in the file (``("device", 0, "name")``), ``line`` counted from 1 where it is known."""

    path: Path
    message: str
    value: str | None = None
    line: int | None = None

    @property
    def key(self) -> str:
        """The key as a person writes it: ``device[0].name``."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text

    def under(self, *prefix: str | int) -> Problem:
        """The same problem seen from the table that holds this one."""
        return Problem((*prefix, *self.path), self.message, self.value, self.line)

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        shown = self.key if self.value is None else f"{self.key} = {self.value}"
        return f"{where}{shown}: {self.message}" if shown else f"{where}{self.message}"


class Rejected(ValueError):
    """A configuration or policy that must not be used; carries every problem found."""

    def __init__(self, problems: Iterable[Problem], source: str = "") -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.source = source
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.source}: " if self.source else ""
        if len(self.problems) == 1:
            return f"{head}{self.problems[0]}"
        return f"{head}{len(self.problems)} problems\n" + "\n".join(f"  {problem}" for problem in self.problems)


def problems_of(error: ValidationError) -> list[Problem]:
    """Pydantic's findings in words for the person who wrote the file."""
    problems = [_problem(item) for item in error.errors(include_url=False)]
    # A list whose entries are wrong is then also "too short": the entries say it better.
    return [p for p in problems if not any(other.path[: len(p.path)] == p.path for other in problems if other is not p)]


def quoted(value: object) -> str:
    """``value`` as TOML would show it, cut to one line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST_QUOTED_VALUE else text[:_LONGEST_QUOTED_VALUE] + "…"


def _problem(item: Mapping[str, Any]) -> Problem:
    path: Path = tuple(part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    kind = item["type"]
    if kind == "extra_forbidden":
        return Problem(path, "unknown key; remove it or correct its spelling")
    if kind == "missing":
        return Problem(path, "missing; this key is required")
    return Problem(path, _message(kind, item.get("ctx", {}), item["msg"]), quoted(item["input"]))


def _message(kind: str, ctx: Mapping[str, Any], fallback: str) -> str:
    words = {
        "greater_than": "must be greater than {gt}",
        "greater_than_equal": "must be at least {ge}",
        "less_than": "must be less than {lt}",
        "less_than_equal": "must be at most {le}",
        "literal_error": "must be {expected}",
        "string_type": "must be a text in quotes",
        "int_type": "must be a whole number",
        "bool_type": "must be true or false",
        "float_type": "must be a number",
        "model_type": "must be a table of keys",
        "dict_type": "must be a table of keys",
        "tuple_type": "must be a list",
        "too_short": "must have at least {min_length} entries",
        "too_long": "must have at most {max_length} entries",
        "string_too_short": "must not be empty",
        "string_too_long": "must have at most {max_length} characters",
    }
    template = words.get(kind)
    if template is None:
        return fallback[:1].lower() + fallback[1:]
    return template.format(**ctx)


def without(table: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """A copy of ``table`` without the keys at ``paths`` (only tables are entered, not lists)."""
    kept: dict[str, Any] = {}
    for key, value in table.items():
        below = [path[1:] for path in paths if path and path[0] == key]
        if any(not path or isinstance(path[0], int) for path in below):
            continue
        if not isinstance(value, Mapping):
            if not below:
                kept[key] = value
            continue
        kept[key] = without(value, below)
    return kept
