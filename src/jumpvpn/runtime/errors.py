"""Failures that more than one part of the shell raises or reports."""

from __future__ import annotations


class KeyFileError(Exception):
    """A key file that must not or cannot be used; the text says what to do."""


class StartFailed(Exception):
    """The node cannot run; the text says why and what to do."""
