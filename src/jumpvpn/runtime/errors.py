"""Failures that more than one part of the shell raises or reports."""

from __future__ import annotations


class AlreadyRunning(Exception):
    """Another live process owns the same state; the text names it and what to do."""


class KeyFileError(Exception):
    """A key file that must not or cannot be used; the text says what to do."""


class RtnlFailed(Exception):
    """The kernel refused a change; the text says which and why."""


class StartFailed(Exception):
    """The node cannot run; the text says why and what to do."""
