"""Judges recorded sessions by the TLA+ module of the session (spec/tla): event journals in, verdicts by TLC out."""

from jumpvpn.tracecheck.journals import UnreadableJournal
from jumpvpn.tracecheck.tlc import TlcFailed, TlcMissing
from jumpvpn.tracecheck.traces import Finding, Report, Verdict, validate

__all__ = ["Finding", "Report", "TlcFailed", "TlcMissing", "UnreadableJournal", "Verdict", "validate"]
