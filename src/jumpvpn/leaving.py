"""How commands leave when they are stopped, or when nobody reads their output any more: without a traceback."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
CLOSED_PIPE = 141  # 128 + SIGPIPE: no verdict, so neither 0 nor any code that a command gives a meaning to


def quietly(name: str, main: Callable[[], int]) -> int:
    """The exit code of ``main``, or that of Ctrl-C or of a closed pipe, which needs no words."""
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError):
            sys.stderr.write(f"{name}: stopped\n")
        return INTERRUPTED
    except BrokenPipeError:
        silence()
        return CLOSED_PIPE
    return code


def reader_is_gone() -> bool:
    """Whether the other end of the pipe on standard output is closed."""
    look = select.poll()
    try:
        look.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no descriptor, or none that is open
        return False
    return bool(look.poll(0))


def nothing_left() -> bool:
    """Write what is buffered; False if nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True


def silence() -> None:
    """Let what is still buffered for a reader that has gone vanish; else the interpreter complains at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
