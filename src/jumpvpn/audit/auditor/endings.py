"""How a chain ends: closed by its own last event, vouched for by a checkpoint, or open at the end of the log."""

from __future__ import annotations

from dataclasses import dataclass

from jumpvpn.audit.auditor.chains import Chain

FRESH_MS = 25_000  # checkpoints come every 10 s while something happens: two may be late before the tail is in doubt


@dataclass(frozen=True, slots=True)
class Ending:
    """``word`` for the summary; ``doubt`` when the tail may be cut; ``note`` for what is open but in order."""

    word: str
    doubt: str = ""
    note: str = ""


def ending_of(chain: Chain) -> Ending:
    """Of a chain that is still open when the log ends.

    PASS needs a chain that is closed, or whose head a verified checkpoint names, or a living node whose newest
    verified checkpoint is at most ``FRESH_MS`` older than everything that the node wrote since.
    """
    if chain.kind == "n" and chain.closed:
        return Ending("stopped")
    if chain.vouched > chain.seq:
        return Ending("cut", doubt=f"a checkpoint vouches for record {chain.vouched}; the chain ends before it")
    if chain.covered and chain.covered >= chain.seq:
        return Ending("open, covered", note="open at the end of the log, up to the head that a checkpoint names")
    behind = chain.seq - chain.covered
    node = chain.node
    newest = node.keys.mono if node is not None else None
    if node is None or newest is None:
        return Ending("open", doubt="the tail is not covered by a checkpoint: what followed may have been cut off")
    boot, mono = newest
    fresh = boot == chain.last_boot == node.boot and node.latest - mono <= FRESH_MS
    if fresh and not node.stopped and chain.last_mono >= mono:
        return Ending("open, living", note=f"the last {behind} records are newer than the node's newest checkpoint")
    return Ending(
        "open", doubt=f"the last {behind} records are covered by no checkpoint: what followed may have been cut off"
    )
