"""Private keys in files: made, read and refused here."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from jumpvpn.config import KEY_BYTES, decode_key, encode_key
from jumpvpn.runtime import dataplane
from jumpvpn.runtime.errors import KeyFileError

_LONGEST_FILE = 4096  # a key is 45 bytes with its newline; anything long is the wrong file


def create_private_key(path: Path) -> str:
    """Write a fresh private key to ``path`` (mode 0600, never over an existing file); the public key in base64.

    Raises KeyFileError.
    """
    private = dataplane.generate_private_key()
    fd = _create(path)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(encode_key(private).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink()
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error
    return encode_key(dataplane.public_key(private))


def _create(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{path} exists already; choose another name, or remove it if no one needs it") from None
    except OSError as error:
        raise KeyFileError(f"cannot create {path}: {error.strerror}") from error


def read_private_key(path: Path) -> bytes:
    """The private key (32 bytes) in ``path``; only its owner may be able to read the file. Raises KeyFileError."""
    return _decoded(_secret(path, f"make one with 'jumpvpn keygen {path}'"), path)


def read_cluster_key(path: Path) -> bytes:
    """The key that the gateways of a cluster share (32 bytes, kept raw or as base64 text). Raises KeyFileError."""
    found = _secret(path, "copy it from the directory that 'jumpvpn cluster init' made")
    if len(found) == KEY_BYTES:
        return found
    try:
        return decode_key(found.decode("ascii").strip())
    except ValueError:
        raise KeyFileError(f"{path} holds no cluster key: 32 bytes or 44 characters of base64 are expected") from None


def _secret(path: Path, hint: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeyFileError(f"there is no key file {path}; {hint}") from None
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError(f"{path} is not a regular file")
        if found.st_mode & 0o077:
            raise KeyFileError(f"others may read the private key {path}; run: chmod 600 {path}")
        if found.st_uid not in (0, os.geteuid()):
            raise KeyFileError(f"the private key {path} belongs to another user; run: chown {os.geteuid()} {path}")
        return file.read(_LONGEST_FILE)


def public_key_of(path: Path) -> str:
    """The public key (base64) of the private key in ``path``. Raises KeyFileError."""
    return encode_key(dataplane.public_key(read_private_key(path)))


def _decoded(text: bytes, path: Path) -> bytes:
    try:
        return decode_key(text.decode("ascii").strip())
    except ValueError:
        raise KeyFileError(f"{path} holds no private key: 44 characters of base64 are expected") from None
