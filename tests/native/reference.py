"""An independent implementation of spec/wire-format.md in plain Python; for tests, not for traffic."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from native import mlkem

AES_256_GCM, CHACHA20_POLY1305 = 1, 2
MAX_PATHS = 8
MAX_DATAGRAM = 1200
FRAGMENT_PAYLOAD = MAX_DATAGRAM - 10 - 32
COUNTER_LIMIT = 1 << 48
WINDOW = 8192
BUCKETS = (64, 128, 256, 512, 1024, 1200)
ZERO_NONCE = bytes(12)


class DropError(Exception):
    """Bytes that must be dropped; the argument is the stable name of the reason."""


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def hmac_sha256(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


def mac16(key: bytes, *parts: bytes) -> bytes:
    return hmac_sha256(key, *parts)[:16]


# --- key schedule -----------------------------------------------------------------------------------------------------


def extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract-SHA256, RFC 5869 section 2.2."""
    return hmac_sha256(salt, ikm)


def expand(secret: bytes, label: str, context: bytes = b"", length: int = 32) -> bytes:
    """HKDF-Expand-SHA256 for at most one block, with the protocol's info."""
    assert length <= 32
    return hmac_sha256(secret, b"jumpvpn v1 ", label.encode(), b"\0", context, b"\x01")[:length]


@dataclass(frozen=True)
class Traffic:
    """One direction of one epoch."""

    secret: bytes

    @property
    def key(self) -> bytes:
        return expand(self.secret, "key")

    @property
    def cids(self) -> list[bytes]:
        return [expand(self.secret, "cid", bytes([path]), 7) for path in range(MAX_PATHS)]


def control_secret(root: bytes) -> bytes:
    return expand(root, "control")


def up(root: bytes, epoch: int, client: bytes) -> Traffic:
    return Traffic(expand(root, "epoch up", struct.pack(">Q", epoch) + client))


def down(root: bytes, epoch: int, client: bytes, gateway: bytes) -> Traffic:
    return Traffic(expand(root, "epoch down", struct.pack(">Q", epoch) + client + gateway))


def ratchet(root: bytes, x25519_secret: bytes, kem_secret: bytes, transcript: bytes) -> bytes:
    return extract(root, x25519_secret + kem_secret + transcript)


# --- AEAD and X25519 --------------------------------------------------------------------------------------------------


def seal(aead: int, key: bytes, nonce: bytes, aad: bytes, plain: bytes) -> bytes:
    return (AESGCM if aead == AES_256_GCM else ChaCha20Poly1305)(key).encrypt(nonce, plain, aad)


def open_(aead: int, key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> bytes:
    try:
        return (AESGCM if aead == AES_256_GCM else ChaCha20Poly1305)(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise DropError("bad_tag") from None


def public_key(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def dh(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


# --- Noise_IKpsk2_25519_ChaChaPoly_SHA256 -----------------------------------------------------------------------------


def noise_hkdf(chaining_key: bytes, ikm: bytes, outputs: int) -> list[bytes]:
    """Noise section 4.3."""
    temporary, previous, result = hmac_sha256(chaining_key, ikm), b"", []
    for index in range(1, outputs + 1):
        previous = hmac_sha256(temporary, previous, bytes([index]))
        result.append(previous)
    return result


class Symmetric:
    """SymmetricState of Noise section 5.2."""

    def __init__(self, prologue: bytes) -> None:
        name = b"Noise_IKpsk2_25519_ChaChaPoly_SHA256"
        self.h = self.ck = sha256(name)
        self.k, self.n = b"", 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.h = sha256(self.h, data)

    def mix_key(self, ikm: bytes) -> None:
        self.ck, self.k = noise_hkdf(self.ck, ikm, 2)
        self.n = 0

    def mix_key_and_hash(self, psk: bytes) -> None:
        self.ck, mixed, self.k = noise_hkdf(self.ck, psk, 3)
        self.mix_hash(mixed)
        self.n = 0

    def mix_ephemeral(self, public: bytes) -> None:
        """The token `e`: patterns with a psk also mix the key, Noise section 9.2."""
        self.mix_hash(public)
        self.mix_key(public)

    def _nonce(self) -> bytes:
        nonce, self.n = bytes(4) + struct.pack("<Q", self.n), self.n + 1
        return nonce

    def encrypt(self, plain: bytes) -> bytes:
        sealed = seal(CHACHA20_POLY1305, self.k, self._nonce(), self.h, plain)
        self.mix_hash(sealed)
        return sealed

    def decrypt(self, sealed: bytes) -> bytes:
        plain = open_(CHACHA20_POLY1305, self.k, self._nonce(), self.h, sealed)
        self.mix_hash(sealed)
        return plain

    def split(self) -> bytes:
        return b"".join(noise_hkdf(self.ck, b"", 2))


# --- BIRTH ------------------------------------------------------------------------------------------------------------


def kem_psk(secret: bytes, ek: bytes, ct: bytes) -> bytes:
    return expand(extract(b"", secret), "kem psk", sha256(ek, ct))


def init_payload(timestamp_ns: int, capabilities: int, ek: bytes, credential: bytes) -> bytes:
    head = struct.pack(">HQI", 1, timestamp_ns, capabilities)
    return head + sha256(ek) + struct.pack(">H", len(credential)) + credential


def response_payload(session_id: bytes, aead: int, tickets: list[bytes], standby_key: bytes, welcome: bytes) -> bytes:
    return session_id + bytes([aead, len(tickets)]) + b"".join(tickets) + standby_key + welcome


def choose_aead(client: int, gateway: int) -> int:
    return AES_256_GCM if client & gateway & 1 else CHACHA20_POLY1305


@dataclass
class Outcome:
    hash: bytes
    root: bytes

    @classmethod
    def of(cls, symmetric: Symmetric) -> Outcome:
        return cls(symmetric.h, extract(symmetric.h, symmetric.split()))


class Client:
    """The initiator: `message_1`, then `read_2`."""

    def __init__(self, private: bytes, ephemeral: bytes, gateway: bytes, kem: tuple[bytes, bytes]) -> None:
        self.private, self.ephemeral, self.gateway = private, ephemeral, gateway
        self.ek, self.dk = kem

    def message_1(self, payload: bytes) -> bytes:
        state = self.state = Symmetric(b"jumpvpn v1")
        state.mix_hash(self.gateway)
        ephemeral = public_key(self.ephemeral)
        state.mix_ephemeral(ephemeral)
        state.mix_key(dh(self.ephemeral, self.gateway))
        static = state.encrypt(public_key(self.private))
        state.mix_key(dh(self.private, self.gateway))
        return ephemeral + static + state.encrypt(payload) + self.ek

    def read_2(self, message: bytes) -> tuple[bytes, Outcome]:
        state = self.state
        ct, ephemeral, sealed = message[: mlkem.CT_LEN], message[mlkem.CT_LEN :][:32], message[mlkem.CT_LEN + 32 :]
        state.mix_ephemeral(ephemeral)
        state.mix_key(dh(self.ephemeral, ephemeral))
        state.mix_key(dh(self.private, ephemeral))
        state.mix_key_and_hash(kem_psk(mlkem.decaps(self.dk, ct), self.ek, ct))
        return state.decrypt(sealed), Outcome.of(state)


class Gateway:
    """The responder: `read_1`, then `message_2`."""

    def __init__(self, private: bytes, ephemeral: bytes) -> None:
        self.private, self.ephemeral = private, ephemeral

    def read_1(self, message: bytes) -> tuple[bytes, bytes]:
        """The device's static key and the payload."""
        noise, self.ek = message[: -mlkem.EK_LEN], message[-mlkem.EK_LEN :]
        state = self.state = Symmetric(b"jumpvpn v1")
        state.mix_hash(public_key(self.private))
        self.peer_ephemeral = noise[:32]
        state.mix_ephemeral(self.peer_ephemeral)
        state.mix_key(dh(self.private, self.peer_ephemeral))
        self.peer = state.decrypt(noise[32:80])
        state.mix_key(dh(self.private, self.peer))
        payload = state.decrypt(noise[80:])
        if payload[14:46] != sha256(self.ek):
            raise DropError("bad_handshake")
        return self.peer, payload

    def message_2(self, payload: bytes, secret: bytes, ct: bytes) -> tuple[bytes, Outcome]:
        state = self.state
        ephemeral = public_key(self.ephemeral)
        state.mix_ephemeral(ephemeral)
        state.mix_key(dh(self.ephemeral, self.peer_ephemeral))
        state.mix_key(dh(self.ephemeral, self.peer))
        state.mix_key_and_hash(kem_psk(secret, self.ek, ct))
        return ct + ephemeral + state.encrypt(payload), Outcome.of(state)


def mac1_key(receiver: bytes) -> bytes:
    return sha256(b"jumpvpn v1 mac1", receiver)


def cut(kind: int, handshake_id: bytes, message: bytes, receiver: bytes, cookie: bytes | None = None) -> list[bytes]:
    """Datagrams of one handshake message."""
    chunks = [message[at : at + FRAGMENT_PAYLOAD] for at in range(0, len(message), FRAGMENT_PAYLOAD)]
    datagrams = []
    for index, chunk in enumerate(chunks):
        body = bytes([kind << 4, index << 4 | len(chunks)]) + handshake_id + chunk
        body += mac16(mac1_key(receiver), body)
        datagrams.append(body + (mac16(cookie, body) if cookie else bytes(16)))
    return datagrams


def join(datagrams: list[bytes]) -> bytes:
    return b"".join(datagram[10:-32] for datagram in datagrams)


def cookie_for(secret: bytes, address: bytes) -> bytes:
    return mac16(secret, address)


def cookie_reply(gateway: bytes, init: bytes, nonce: bytes, cookie: bytes) -> bytes:
    key = sha256(b"jumpvpn v1 cookie", gateway)
    return b"\x30\0" + init[2:10] + nonce + seal(CHACHA20_POLY1305, key, nonce, init[-32:-16], cookie)


# --- sealed datagrams -------------------------------------------------------------------------------------------------


def seal_data(aead: int, traffic: Traffic, epoch: int, path: int, counter: int, plain: bytes) -> bytes:
    header = bytes([0x40 | epoch & 15]) + traffic.cids[path] + struct.pack(">Q", counter)
    return header + seal(aead, traffic.key, struct.pack(">IQ", path, counter), header, plain)


def open_data(aead: int, traffic: Traffic, epoch: int, datagram: bytes) -> tuple[int, int, bytes]:
    """Path, counter and plaintext; checks everything except replay, in the order of the specification."""
    if not datagram:
        raise DropError("truncated")
    if datagram[0] >> 4 != 4:
        raise DropError("unknown_kind")
    if len(datagram) <= 32:
        raise DropError("truncated")
    if datagram[0] & 15 != epoch & 15:
        raise DropError("wrong_epoch")
    if datagram[1:8] not in traffic.cids:
        raise DropError("unknown_cid")
    path, counter = traffic.cids.index(datagram[1:8]), struct.unpack(">Q", datagram[8:16])[0]
    if counter >= COUNTER_LIMIT:
        raise DropError("counter_limit")
    nonce = struct.pack(">IQ", path, counter)
    return path, counter, open_(aead, traffic.key, nonce, datagram[:16], datagram[16:])


class ReplayWindow:
    """The rules of the window over a plain set."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.highest: int | None = None

    def accept(self, counter: int) -> str:
        if counter >= COUNTER_LIMIT:
            return "counter_limit"
        if self.highest is not None and counter + WINDOW <= self.highest:
            return "replay_old"
        if counter in self.seen:
            return "replay_repeated"
        self.seen.add(counter)
        self.highest = max(self.highest or 0, counter)
        return "accepted"

    @property
    def lowest_missing(self) -> int:
        if self.highest is None:
            return 0
        counter = max(0, self.highest + 1 - WINDOW)
        while counter in self.seen:
            counter += 1
        return counter


# --- frames -----------------------------------------------------------------------------------------------------------


def probe(clock_ns: int, challenge: bytes) -> bytes:
    return (b"\x10\0" + struct.pack(">Q", clock_ns) + challenge).ljust(64, b"\0")


def report(
    *,
    answers_probe: bool,
    echo_clock_ns: int,
    challenge: bytes,
    highest: int,
    received: int,
    delay_us: int,
    lowest_missing: int,
) -> bytes:
    head = struct.pack(">BBQ8s", 0x11, answers_probe, echo_clock_ns, challenge)
    return (head + struct.pack(">QQIQ", highest, received, delay_us, lowest_missing)).ljust(64, b"\0")


def control_frames(message_id: int, message_type: int, content: bytes) -> list[bytes]:
    chunks = [content[at : at + 1190] for at in range(0, len(content), 1190)] or [b""]
    frames = []
    for index, chunk in enumerate(chunks):
        frame = struct.pack(">BIBBBH", 0x12, message_id, index, len(chunks), message_type, len(chunk)) + chunk
        frames.append(frame.ljust(next(size for size in BUCKETS if size >= len(frame)), b"\0"))
    return frames


# --- reattach ---------------------------------------------------------------------------------------------------------


def derived_ticket_key(cluster: bytes) -> bytes:
    return expand(cluster, "ticket")


def ticket(key: bytes, nonce: bytes, session_id: bytes, issued_ms: int, serial: int) -> bytes:
    plain = session_id + struct.pack(">QQ", issued_ms, serial)
    return nonce + seal(CHACHA20_POLY1305, key, nonce, b"jumpvpn v1 ticket", plain)


def open_ticket(key: bytes, sealed: bytes) -> tuple[bytes, int, int]:
    plain = open_(CHACHA20_POLY1305, key, sealed[:12], b"jumpvpn v1 ticket", sealed[12:])
    issued_ms, serial = struct.unpack(">QQ", plain[16:])
    return plain[:16], issued_ms, serial


def return_token(cluster: bytes, address: bytes, session_id: bytes, issued_ms: int) -> bytes:
    issued = struct.pack(">Q", issued_ms)
    return issued + mac16(expand(cluster, "return token"), address, session_id, issued)


def gateway_id(public: bytes) -> bytes:
    return sha256(public)[:8]


def single(secret: bytes, label: str, context: bytes, head: bytes, body: bytes) -> bytes:
    """A message sealed by a key that seals nothing else."""
    return head + seal(CHACHA20_POLY1305, expand(secret, label, context), ZERO_NONCE, head, body)


def request(
    control: bytes,
    *,
    ticket: bytes,
    client_nonce: bytes,
    next_epoch: int,
    expected_version: int,
    age_ms: int,
    path: int,
    cause: int,
    gateway_public_key: bytes,
    token: bytes,
) -> bytes:
    body = struct.pack(">QQQBB", next_epoch, expected_version, age_ms, path, cause)
    body += gateway_id(gateway_public_key) + bytes([len(token)]) + token
    return single(control, "reattach request", client_nonce, b"\x50" + ticket + client_nonce, body.ljust(128, b"\0"))


def reply(
    control: bytes,
    *,
    client_nonce: bytes,
    gateway_nonce: bytes,
    status: int,
    epoch: int,
    version: int,
    path: int,
    reason: int,
    token: bytes,
    tickets: list[bytes],
    standby_key: bytes,
) -> bytes:
    body = struct.pack(">BQQBHB", status, epoch, version, path, reason, len(token)) + token
    body += bytes([len(tickets)]) + b"".join(tickets) + standby_key
    head = b"\x60" + client_nonce[:8] + gateway_nonce
    return single(control, "reattach reply", client_nonce + gateway_nonce, head, body.ljust(384, b"\0"))


def hint(control: bytes, *, cid: bytes, nonce: bytes, challenge: bytes, epoch: int, cause: int) -> bytes:
    body = challenge + struct.pack(">QB", epoch, cause)
    return single(control, "hint", nonce, b"\x70" + cid + nonce, body.ljust(32, b"\0"))


def standby_key(cluster: bytes, session_id: bytes) -> bytes:
    return expand(cluster, "standby", session_id)


def standby_probe(key: bytes, *, ticket: bytes, challenge: bytes, gateway_public_key: bytes) -> bytes:
    head = b"\x80" + ticket + challenge
    return single(key, "standby probe", challenge, head, gateway_id(gateway_public_key).ljust(64, b"\0"))


def standby_reply(key: bytes, *, challenge: bytes, nonce: bytes, token: bytes, draining: bool) -> bytes:
    body = challenge + bytes([len(token)]) + token + bytes([draining])
    head = b"\x90" + challenge[:8] + nonce
    return single(key, "standby reply", challenge + nonce, head, body.ljust(96, b"\0"))


# --- rekey and record -------------------------------------------------------------------------------------------------


def rekey_request(epoch: int, private: bytes, ek: bytes) -> bytes:
    return struct.pack(">Q", epoch) + public_key(private) + ek


def rekey_reply(epoch: int, private: bytes, ct: bytes) -> bytes:
    return struct.pack(">Q", epoch) + public_key(private) + ct


def rekey_transcript(request: bytes, reply: bytes) -> bytes:
    return sha256(request[8:], reply[8:])


def record(
    cluster: bytes,
    session_id: bytes,
    *,
    salt: bytes,
    aead: int,
    epoch: int,
    client_nonce: bytes,
    gateway_nonce: bytes,
    root: bytes,
    previous_root: bytes | None,
) -> bytes:
    body = struct.pack(">BQ", aead, epoch) + client_nonce + gateway_nonce + root
    body += bytes([previous_root is not None]) + (previous_root or bytes(32))
    head = b"\x01" + salt
    key = expand(cluster, "record", salt + session_id)
    return head + seal(CHACHA20_POLY1305, key, ZERO_NONCE, head, body)
