"""The key that signs a node's checkpoints: it changes with each, and what it was is erased.

The key file always holds two private keys: ``current``, which signs the next checkpoint, and ``next``, which that
checkpoint announces. After a checkpoint is in the journal the file is replaced by one that starts with ``next``.
A kill in between leaves the old file beside a journal that is one checkpoint ahead; the start that follows sees that
the last checkpoint in the journal was signed by ``current`` and announced ``next``, and catches up. So the key in
force is always known, and no key signs twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jumpvpn.audit.chain import GENESIS, record_hash
from jumpvpn.audit.checkpoints import EVENT, Link, signed_part
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.journal import JournalFailed

KEY_FILE = "audit.key"
PUBLIC_SUFFIX = ".pub"
FORMAT = 1
# A checkpoint comes every 1000 events of about 1 KiB and may itself take 0.5 MiB: the last one lies well within this.
TAIL_BYTES = 8 << 20
_LONGEST_FILE = 4096  # the file takes about 500 bytes
_MARK = f'"event":"{EVENT}"'.encode()  # canonical JSON writes it so, and no string can hold it unescaped

_Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Seen:
    """The last checkpoint of this node that the journal holds."""

    number: int
    hash: str
    previous: str
    next_key: str
    message: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class _State:
    """What the key file holds. ``number`` and ``previous`` (hash) are of the last checkpoint made with these keys.

    ``before`` is the last checkpoint that the journal held when this chain of keys began: of an earlier one, if any.
    """

    node: str
    role: str
    number: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
    previous: _Hex32
    before: _Hex32
    current: _Hex32 = field(repr=False)
    next: _Hex32 = field(repr=False)
    format: int = FORMAT

    def follows(self, seen: Seen) -> bool:
        """Whether ``seen`` is the checkpoint that comes next, made with these keys."""
        if (seen.number, seen.previous, seen.next_key) != (self.number + 1, self.previous, _public(self.next)):
            return False
        try:
            _private(self.current).public_key().verify(seen.signature, seen.message)
        except InvalidSignature:
            return False
        return True

    def advanced(self, checkpoint: str) -> _State:
        """The keys after the checkpoint with this hash: the announced one is in force, and there is a fresh one."""
        return replace(self, number=self.number + 1, previous=checkpoint, current=self.next, next=_fresh())


class CheckpointKeys:
    """The evolving key of one node. Only ``advance`` touches the disk and may run beside the loop."""

    def __init__(self, path: Path, state: _State, *, first: bool = False) -> None:
        self._path = path
        self._state = state
        self._first = first
        self._signed: str | None = None

    @classmethod
    def open(cls, state_dir: Path, node: str, role: str, journal: Path) -> CheckpointKeys:
        """The keys in ``state_dir``, made at the first start, in step with what ``journal`` holds. Raises StartFailed.

        A first start writes the public key beside them; ``introduce`` says so once the node is up.
        """
        path = state_dir / KEY_FILE
        try:
            path = _key_file(state_dir, role)
            seen = last_checkpoint(journal, node)
            state = _read(path)
            if state is None:
                return cls(path, _begin(path, node, role, seen), first=True)
            if (state.node, state.role) != (node, role):
                raise _refusal(path, f"belongs to the {state.role} {state.node!r}, not to the {role} {node!r}")
            return cls(path, _in_step(path, state, seen, journal))
        except OSError as error:
            raise StartFailed(f"cannot use {path}: {error.strerror}") from error

    def introduce(self) -> None:
        """After a first start, tell on stderr which key verifies the events."""
        if self._first:
            public = self._path.with_suffix(PUBLIC_SUFFIX)
            sys.stderr.write(f"jumpvpn: {public} verifies the events of this node: keep a copy on another machine\n")
            self._first = False

    @property
    def link(self) -> Link:
        """What the next checkpoint has to say of its neighbours."""
        state = self._state
        return Link(state.number + 1, state.previous, _public(state.next))

    @property
    def public(self) -> str:
        """The key (hex) that verifies the next checkpoint."""
        return _public(self._state.current)

    def sign(self, message: bytes) -> bytes:
        """The signature of the next checkpoint."""
        assert self._signed is None, "a key signs one checkpoint"
        return _private(self._state.current).sign(message)

    def signed(self, checkpoint: str) -> None:
        """The journal has the checkpoint with this hash; ``advance`` is due."""
        self._signed = checkpoint

    def advance(self) -> None:
        """Put the announced key in force and erase the one that signed; nothing to do unless one has.

        Raises JournalFailed: a node that cannot change its key must not go on vouching.
        """
        if self._signed is None:
            return
        state = self._state.advanced(self._signed)
        try:
            _replace(self._path, state)
        except OSError as error:
            advice = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise JournalFailed(f"cannot write {self._path}: {error.strerror}{advice}") from error
        self._state, self._signed = state, None


def last_checkpoint(journal: Path, node: str) -> Seen | None:
    """The last intact checkpoint of ``node`` in the last TAIL_BYTES of ``journal``; None if there is none.

    Raises OSError; a journal that is not there, because it was moved away, holds none.
    """
    try:
        with journal.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            tail = file.read(TAIL_BYTES)
    except FileNotFoundError:
        return None
    at = tail.rfind(_MARK)
    while at >= 0:
        start = tail.rfind(b"\n", 0, at) + 1
        found = _seen(tail[start : tail.find(b"\n", at)], node)
        if found is not None:
            return found
        at = tail.rfind(_MARK, 0, start)
    return None


def _seen(line: bytes, node: str) -> Seen | None:
    try:
        record: Any = json.loads(line)
        data = record["data"]
        if record["node_id"] != node or record["event"] != EVENT or record_hash(record) != record["hash"]:
            return None
        return Seen(
            int(data["number"]), record["hash"], data["prev_checkpoint"], data["next_key"],
            signed_part(record["chain"], data), bytes.fromhex(data["signature"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _in_step(path: Path, state: _State, seen: Seen | None, journal: Path) -> _State:
    """Which keys are in force: the file's, or those that its ``next`` begins with.

    The journal may be shorter than what was vouched for: it was rotated or replaced. That is the auditor's to judge.
    """
    if seen is None or seen.hash in (state.previous, state.before):
        return state
    if state.follows(seen):  # killed between writing the checkpoint and changing the key
        state = state.advanced(seen.hash)
        _replace(path, state)
        return state
    if seen.number <= state.number:
        return state
    raise _refusal(
        path, f"is older than the journal {journal} (at checkpoint {state.number}, the journal at {seen.number})"
    )


def _key_file(state_dir: Path, role: str) -> Path:
    """``audit.key``, or ``<role>-audit.key`` where the other role of this machine has that already."""
    own, shared = state_dir / f"{role}-{KEY_FILE}", state_dir / KEY_FILE
    if own.exists():
        return own
    found = _read(shared)
    return shared if found is None or found.role == role else own


def _begin(path: Path, node: str, role: str, seen: Seen | None) -> _State:
    """The first keys. The public one comes first: a kill in between leaves nothing that would be used without it."""
    state = _State(node, role, 0, GENESIS, GENESIS if seen is None else seen.hash, _fresh(), _fresh())
    public = path.with_suffix(PUBLIC_SUFFIX)
    _write(public, f"{_public(state.current)}\n".encode(), 0o644)
    draft = _draft(path, state)
    try:
        os.link(draft, path)
    except FileExistsError:
        raise StartFailed(f"another node of this machine has just made {path}; start again") from None
    finally:
        draft.unlink()
    _sync_directory(path)
    return state


def _read(path: Path) -> _State | None:
    """The keys in ``path``, None if there is no such file. Raises StartFailed, OSError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(path, "is not a regular file")
    if found.st_mode & 0o077:
        raise StartFailed(f"others may read the private keys in {path}; run: chmod 600 {path}")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        text = file.read(_LONGEST_FILE)
    try:
        state = msgspec.json.decode(text, type=_State)
    except (msgspec.MsgspecError, ValueError):
        raise _refusal(path, "is damaged") from None  # the decoder's words may quote what the file holds
    if state.format != FORMAT:
        raise _refusal(path, f"has format {state.format}, this program knows {FORMAT}")
    return state


def _refusal(path: Path, what: str) -> StartFailed:
    return StartFailed(
        f"{path} {what}; restore the right one, or move it away: the node then begins a new chain of keys, "
        "which auditors must be told"
    )


def _replace(path: Path, state: _State) -> None:
    """Put ``state`` in the place of the keys in ``path`` and overwrite those, unless they were moved away.

    Overwriting reaches what the file system writes in place; its journal and flash memory may keep more. Raises
    OSError.
    """
    with contextlib.ExitStack() as stack:
        old = None
        with contextlib.suppress(FileNotFoundError):
            old = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, old)
        _draft(path, state).replace(path)
        _sync_directory(path)
        if old is not None:
            os.pwrite(old, bytes(os.fstat(old).st_size), 0)
            os.fsync(old)


def _draft(path: Path, state: _State) -> Path:
    draft = path.with_name(path.name + ".new")
    try:
        _write(draft, msgspec.json.encode(state) + b"\n", 0o600)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _write(path: Path, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fresh() -> str:
    return Ed25519PrivateKey.generate().private_bytes_raw().hex()


def _private(key: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))


def _public(key: str) -> str:
    return _private(key).public_key().public_bytes_raw().hex()
