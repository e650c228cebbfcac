"""Where the etcd cluster is and how this node proves itself to it."""

from __future__ import annotations

import datetime
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from jumpvpn.runtime.stores.base import StoreUnavailable

_LONGEST_FILE = 1 << 20  # a bundle of certificates is a few KiB; anything longer is another file
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ENDPOINT = re.compile(r"(?:https://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})/?")


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """One cluster of etcd servers. Raises ValueError, naming the field, for a value that cannot be used.

    ``endpoints``: ``HOST:PORT`` of the members, tried in turn. ``ca``, ``certificate``, ``key``: PEM files for mutual
    TLS, read again when a connection fails. ``cluster`` names the gateways that share records, ``node`` this one.
    ``remembered``: the file of the newest revision seen (None: only this process remembers). ``timeout_ms`` bounds
    every call as a whole, ``attempt_ms`` one try at one member.
    """

    endpoints: Sequence[str]
    ca: Path
    certificate: Path
    key: Path
    cluster: str
    node: str
    remembered: Path | None = None
    timeout_ms: int = 5_000
    attempt_ms: int = 1_500

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("endpoints: name at least one etcd server as HOST:PORT")
        for field in ("cluster", "node"):
            if not _NAME.fullmatch(getattr(self, field)):
                raise ValueError(f"{field}: 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit")
        if not 0 < self.attempt_ms <= self.timeout_ms:
            raise ValueError("timeout_ms: must be at least attempt_ms, and both more than 0")
        object.__setattr__(self, "endpoints", tuple(_endpoint(text) for text in self.endpoints))


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """The contents of the three files, checked."""

    ca: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def read(cls, config: EtcdConfig) -> Identity:
        """Read and check the files. Raises StoreUnavailable with what to do."""
        ca, certificate = _public_file(config.ca), _public_file(config.certificate)
        key = _private_file(config.key)
        for authority in _certificates(ca, config.ca):
            _check_dates(authority, config.ca)
        own = _certificates(certificate, config.certificate)[0]
        _check_dates(own, config.certificate)
        _check_pair(own, key, config)
        return cls(ca, certificate, key)

    def credentials(self) -> grpc.ChannelCredentials:
        """For channels."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


def _endpoint(text: str) -> str:
    if text.startswith("http://"):
        raise ValueError(f"endpoints: {text}: etcd is reached only over mutual TLS; name it as HOST:PORT or https://")
    match = _ENDPOINT.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise ValueError(f"endpoints: {text!r} is not HOST:PORT")
    return f"{match['host']}:{match['port']}"


def _public_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_FILE)
    except OSError as error:
        raise StoreUnavailable(f"cannot read {path}: {error.strerror}; etcd needs mutual TLS") from error


def _private_file(path: Path) -> bytes:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_mode & 0o077 or not stat.S_ISREG(found.st_mode):
                raise StoreUnavailable(f"others may read the private key {path}; run: chmod 600 {path}")
            return file.read(_LONGEST_FILE)
    except OSError as error:
        raise StoreUnavailable(f"cannot read {path}: {error.strerror}; etcd needs mutual TLS") from error


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise StoreUnavailable(f"{path} holds no certificate in PEM format") from error


def _check_dates(certificate: x509.Certificate, path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        ended = certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M UTC")
        raise StoreUnavailable(f"the certificate {path} expired on {ended}; issue a new one: jumpvpn cluster renew")
    if now < certificate.not_valid_before_utc:
        begins = certificate.not_valid_before_utc.strftime("%Y-%m-%d %H:%M UTC")
        raise StoreUnavailable(f"the certificate {path} is valid only from {begins}; check this machine's clock")


def _check_pair(own: x509.Certificate, key: bytes, config: EtcdConfig) -> None:
    try:
        public = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError):
        raise StoreUnavailable(f"{config.key} holds no private key in PEM format without a password") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public.public_bytes(*form) != own.public_key().public_bytes(*form):
        raise StoreUnavailable(f"the private key {config.key} does not belong to the certificate {config.certificate}")
