"""Processes that work for a command: fresh ones, which share nothing with it but what they are handed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.pool import Pool


def workers(jobs: int, *, preload: Sequence[str] = (), tasks_each: int | None = None) -> Pool:
    """A pool of ``jobs`` processes that have loaded ``preload``; each is replaced after ``tasks_each`` tasks.

    They are forked from a process that has one thread and has loaded nothing else: what this one has patched, and what
    its threads have locked at that moment, is not theirs. They are deaf to Ctrl-C, which goes to all processes of a
    terminal: the command ends them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # from their very beginning: they inherit it
    try:
        return context.Pool(jobs, maxtasksperchild=tasks_each)
    finally:
        signal.signal(signal.SIGINT, heard)
