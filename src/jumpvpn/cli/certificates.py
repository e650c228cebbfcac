"""Certificates of a cluster: one authority, and what it issues to etcd members and gateways.

ECDSA on P-256, which every TLS 1.2 and 1.3 stack that etcd was built with accepts. Nothing here touches a file.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

AUTHORITY_DAYS = 3650
LEAF_DAYS = 825  # the longest that common TLS clients accept of a server; more than two yearly renewals
LEEWAY = datetime.timedelta(hours=1)  # a machine whose clock is a little behind must accept what was issued just now

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


class BadAuthority(Exception):
    """The authority's files cannot issue certificates; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    ends: datetime.datetime


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority."""

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, name: str, now: datetime.datetime) -> Authority:
        """A fresh authority called ``name``."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(name)
        usage = _key_usage(signs_certificates=True)
        builder = x509.CertificateBuilder(
            subject, subject, key.public_key(), x509.random_serial_number(),
            now - LEEWAY, now + datetime.timedelta(days=AUTHORITY_DAYS),
        )  # fmt: skip
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> Authority:
        """The authority of two PEM files. Raises BadAuthority."""
        try:
            own = x509.load_pem_x509_certificate(certificate)
            private = load_pem_private_key(key, password=None)
        except (ValueError, TypeError):
            raise BadAuthority("holds no certificate and private key in PEM format") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise BadAuthority("its key is not an elliptic curve key; 'jumpvpn cluster init' makes such a one")
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*form) != own.public_key().public_bytes(*form):
            raise BadAuthority("its private key does not belong to its certificate")
        return cls(own, private)

    def pair(self) -> Pair:
        """Its own certificate and key."""
        return Pair(_pem(self.certificate), _private_pem(self._key), self.certificate.not_valid_after_utc)

    def issue(
        self, name: str, hosts: tuple[str, ...], usages: tuple[ObjectIdentifier, ...], now: datetime.datetime
    ) -> Pair:
        """A certificate with a fresh key for ``name``, valid at ``hosts`` (addresses or DNS names).

        Raises BadAuthority when the authority's own time is over.
        """
        names = [x509.SubjectAlternativeName([_general(host) for host in hosts])] if hosts else []
        return self._signed(_named(name), [*names, x509.ExtendedKeyUsage(usages)], now)

    def renew(self, old: bytes, now: datetime.datetime) -> Pair:
        """A fresh certificate and key with the names and uses of ``old`` (PEM). Raises BadAuthority, ValueError."""
        previous = x509.load_pem_x509_certificate(old)
        try:
            previous.verify_directly_issued_by(self.certificate)
        except Exception:  # the library raises ValueError, TypeError or InvalidSignature for the one thing meant here
            raise ValueError("was not issued by this authority") from None
        kept = (x509.SubjectAlternativeName, x509.ExtendedKeyUsage)
        return self._signed(previous.subject, [e.value for e in previous.extensions if isinstance(e.value, kept)], now)

    def _signed(self, subject: x509.Name, extensions: list[x509.ExtensionType], now: datetime.datetime) -> Pair:
        ends = min(now + datetime.timedelta(days=LEAF_DAYS), self.certificate.not_valid_after_utc)
        if ends <= now:
            raise BadAuthority(f"expired on {ends:%Y-%m-%d}; a fresh cluster directory has a fresh authority")
        key = ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateBuilder(
            self.certificate.subject, subject, key.public_key(), x509.random_serial_number(), now - LEEWAY, ends
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        own = self._key.public_key()
        for extension in (
            *extensions,
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(own),
        ):
            builder = builder.add_extension(extension, critical=False)
        return Pair(_pem(builder.sign(self._key, hashes.SHA256())), _private_pem(key), ends)


def hosts_of(certificate: bytes) -> tuple[str, ...]:
    """The addresses and DNS names of a certificate (PEM)."""
    try:
        names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names.value)


def subject_of(certificate: bytes) -> str:
    """The common name of a certificate (PEM)."""
    found = x509.load_pem_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])  # ub-common-name (RFC 5280)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
