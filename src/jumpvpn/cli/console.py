"""Printing for people: what foreign text may do to a terminal, and what happens when nobody reads any more."""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.console import Console as RichConsole

from jumpvpn.leaving import CLOSED_PIPE, silence


class Console(RichConsole):
    """Leaves without words when the reader of a pipe has gone."""

    def on_broken_pipe(self) -> NoReturn:
        """rich's own way is exit status 1, which is a verdict of some commands."""
        silence()
        raise SystemExit(CLOSED_PIPE)


def console(plain_width: int) -> Console:
    """As wide as the terminal, or ``plain_width`` columns when there is none."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(width=plain_width, highlight=False)


def printable(text: str) -> str:
    """``text`` without what a terminal acts on: a log or a recording may come from anybody."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
