"""How a chain ends: closed by its own last event, vouched for by a checkpoint, or open at the end of the log."""

from __future__ import annotations

from dataclasses import dataclass

from jumpvpn.audit.auditor.chains import Chain
from jumpvpn.audit.auditor.rules import counted

FRESH_MS = 25_000  # checkpoints come every 10 s while something happens: two may be late before the tail is in doubt


@dataclass(frozen=True, slots=True)
class Ending:
    """``word`` for the summary; ``doubt`` when the tail may be cut; ``note`` for what is open but in order."""

    word: str
    doubt: str = ""
    note: str = ""


def ending_of(chain: Chain, *, anchored: bool) -> Ending:
    """Of a chain that has not ended with its session.

    PASS needs a chain that is closed, or whose head a verified checkpoint names, or a living node whose newest
    verified checkpoint is at most ``FRESH_MS`` older than everything that the node wrote since. ``anchored``: a key
    from outside the log was given, so a closed chain has to be vouched for, too.
    """
    if chain.kind == "n" and chain.closed:
        return Ending("stopped", doubt=_unvouched(chain, chain.seq - 1) if anchored else "")
    return _open_end(chain)


def doubt_of_ended(chain: Chain) -> str:
    """Why a session's record that is closed may not be the one that its node wrote; "" if a checkpoint says it is.

    Asked when a key from outside the log was given: whoever has no key can write a whole record anew, end and all.
    """
    return _unvouched(chain, chain.seq) if _open_end(chain).doubt else ""


def _unvouched(chain: Chain, last: int) -> str:
    """``last`` is the newest record that a checkpoint can name: ``node.stopped`` comes after the run's last one."""
    if chain.covered >= last:
        return ""
    return f"no checkpoint covers {_the_last(chain.seq - chain.covered)}: what stood there may have been replaced"


def _open_end(chain: Chain) -> Ending:
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
        return Ending(
            "open, living",
            note=f"no checkpoint covers {_the_last(behind)} yet; if the node runs no more, the tail is cut off",
        )
    return Ending("open", doubt=f"no checkpoint covers {_the_last(behind)}: what followed may have been cut off")


def _the_last(count: int) -> str:
    return "the last record" if count == 1 else f"the last {counted(count, 'record')}"
