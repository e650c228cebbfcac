"""What one operation costs on real machines: measured by ``python -m bench.scale_store``, read from its JSON."""

from __future__ import annotations

from pathlib import Path

import msgspec

LONGEST_FILE = 1 << 20  # bytes; the file has some twenty numbers


class BadCosts(ValueError):
    """The file does not say what operations cost; the text says what is wrong."""


class Etcd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One etcd cluster.

    ``writes_per_s``: transactions of one session record each, with the event lines beside it, many under way;
    ``flushed_per_s``: records per second when a write-behind transaction carries many. ``latency_p50_ms`` and
    ``latency_p99_ms`` are of a single transaction without others. ``fanout_us`` is a
    member's CPU for one change told to one gateway that watches. ``quota_bytes`` and ``retention_s`` are what
    ``jumpvpn cluster init`` writes for etcd.
    """

    members: int
    writes_per_s: float
    flushed_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    fanout_us: float
    quota_bytes: int = 4 << 30
    retention_s: float = 3600.0


class GatewayCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One gateway process, whose control plane has one core.

    CPU is in microseconds: of a local commit, a takeover with all that belongs to it (read, owner change, reattach), a
    birth, a rekey, and of one event of the watch that concerns another gateway's session. ``session_bytes`` is resident
    memory for each session that it owns, ``known_bytes`` for each session of the etcd cluster, whosever it is.
    """

    commit_us: float
    takeover_us: float
    birth_us: float
    rekey_us: float
    watch_event_us: float
    session_bytes: int
    known_bytes: int


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both, and on what machine they were measured."""

    machine: str
    etcd: Etcd
    gateway: GatewayCosts


def read(path: Path) -> Costs:
    """The costs in a file. Raises BadCosts."""
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(LONGEST_FILE), type=Costs)
    except OSError as error:
        raise BadCosts(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise BadCosts(f"{path} is not what 'python -m bench.scale_store' writes: {error}") from None
    figures = [*msgspec.structs.astuple(found.etcd), *msgspec.structs.astuple(found.gateway)]
    if not all(figure > 0 for figure in figures):
        raise BadCosts(f"{path}: every figure is above 0")
    return found
