"""One line of a log as a typed record, and whether its hash is right. Bounds everything before it is believed."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

import msgspec
import rfc8785

LINE_MAX = 1 << 20  # records aim at 1 KiB; what is longer was not written by a node
ENVELOPE_VERSION = 1
_SHOWN = 120  # of a decoder's complaint, which may quote the input

# Names are kept as long as their session lives, so their length is part of the bound on memory.
_Name = Annotated[str, msgspec.Meta(max_length=256)]
_Hash = Annotated[str, msgspec.Meta(min_length=64, max_length=64)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Some = Annotated[int, msgspec.Meta(ge=-(2**53) + 1, le=2**53 - 1)]

_Time = Annotated[float, msgspec.Meta(ge=-(2.0**53), le=2.0**53)]

NOTHING = msgspec.Raw(b"")  # a raw field that is absent

_HASH_MEMBER = b',"hash":"'
_MEMBER_BYTES = len(_HASH_MEMBER) + 64 + 1


class BadLine(ValueError):
    """The line is no event record; the text says why."""


class Transport(msgspec.Struct, gc=False):
    """Which transport a record speaks of."""

    id: _Name
    binding_gen: _Count = 0


class Bounds(msgspec.Struct, gc=False, frozen=True):
    """The bounds that a session runs under: milliseconds and counts."""

    lifetime_ms: _Count
    key_age_ms: _Count
    transport_ttl_ms: _Count
    episode_ms: _Count
    window_ms: _Count
    volatile_ms: _Count
    hold_down_ms: _Count
    switches_60s: _Count
    attempts: _Count


class Data(msgspec.Struct, gc=False):
    """The fields of all events that a rule looks at; every other field is only hashed."""

    row: _Name | None = None
    role: _Name | None = None
    client_id_hash: _Name | None = None
    bounds: Bounds | None = None
    dwell_ms: _Time | None = None
    transportless_ms: _Time | None = None
    episode_ms: _Time | None = None
    recovery_ms: _Time | None = None
    detect_ms: _Time | None = None
    validate_us: _Time | None = None
    interruption_ms: _Time | None = None
    session_age_ms: _Time | None = None
    age_ms: _Time | None = None
    silent_ms: _Time | None = None
    attempts: _Count | None = None
    attempt: _Count | None = None
    epoch: _Count | None = None
    key_epoch: _Count | None = None
    nonce_id: _Name | None = None
    status: _Name | None = None
    step: _Name | _Some | None = None
    kind: _Name | None = None
    from_id: _Name | None = None
    to_id: _Name | None = None
    rule: _Name | None = None
    by: _Name | None = None
    evidence: _Name | None = None
    code: _Name | None = None
    change: _Name | None = None
    limit: _Count | None = None
    candidate_count: _Count | None = None
    switch_count_60s: _Count | None = None
    cooldown_left_ms: _Time | None = None
    first_ms: _Count | None = None
    count: _Count | None = None
    version: _Name | _Some | None = None
    digest: _Name | None = None
    mode: _Name | None = None
    cause: _Name | None = None
    body: msgspec.Raw = NOTHING
    audit_key: _Name | None = None
    number: _Count | None = None
    heads: msgspec.Raw = NOTHING
    counts: msgspec.Raw = NOTHING
    prev_checkpoint: _Name | None = None
    next_key: _Name | None = None
    signature: _Name | None = None
    from_node: _Name | None = None
    floor: _Count | None = None
    lease_ms: _Time | None = None
    state: _Name | None = None


class Record(msgspec.Struct, gc=False):
    """The envelope."""

    v: int
    event: _Name
    time_ms: _Count
    mono_ms: _Count
    boot_id: _Name
    chain: _Name
    seq: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    prev: _Hash
    hash: _Hash
    session_uid: _Name | None
    state_version: _Count
    idx: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    n: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    prev_state: _Name | None
    state: _Name | None
    reason: _Name | None
    contributing: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=64)]
    node_id: _Name
    cluster_id: _Name
    owner_epoch: _Count
    policy_digest: _Name
    transport: Transport | None
    data: Data


_decode = msgspec.json.Decoder(Record).decode


def decode(line: bytes) -> Record:
    """The record in ``line``. Raises BadLine, with the reason, for anything else."""
    try:
        record = _decode(line)
    except msgspec.ValidationError as error:
        raise BadLine(
            f"JSON, but no event record: {_short(error)}".replace("Object missing required", "without the")
        ) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadLine(_not_json(line, error)) from None
    except RecursionError:
        raise BadLine("nested too deeply to be an event record") from None
    if record.v != ENVELOPE_VERSION:
        raise BadLine(f"envelope version {record.v} is not known here (this auditor reads {ENVELOPE_VERSION})")
    return record


def sealed(line: bytes, record: Record) -> bool:
    """Whether the record's hash is the SHA-256 of its canonical form (RFC 8785) without the member ``hash``.

    A line as its node wrote it is canonical, so cutting the member out of the bytes suffices; one that a collector
    wrote anew is made canonical first.
    """
    member = line.find(_HASH_MEMBER + record.hash.encode() + b'"')
    if member > 0:
        digest = hashlib.sha256(line[:member] + line[member + _MEMBER_BYTES :])
        if digest.hexdigest() == record.hash:
            return True
    return _canonical_hash(line) == record.hash


def canonical(value: Any) -> bytes:
    """The canonical form (RFC 8785). Raises ValueError."""
    return rfc8785.dumps(value)


def _canonical_hash(line: bytes) -> str | None:
    try:
        fields = json.loads(line)
        del fields["hash"]
        return hashlib.sha256(canonical(fields)).hexdigest()
    except (ValueError, RecursionError, KeyError, TypeError):  # rfc8785's errors are ValueErrors
        return None


def _not_json(line: bytes, error: Exception) -> str:
    if b"\0" in line:
        return "not text: it holds zero bytes"
    if line.startswith(b"\xef\xbb\xbf"):
        return "it begins with a byte order mark, which no node writes: remove it"
    return f"not JSON: {_short(error)}"


def _short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= _SHOWN else words[:_SHOWN] + "..."
