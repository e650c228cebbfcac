"""ML-KEM-768 in plain Python, after FIPS 203; slow, not constant-time, for vectors only."""

from __future__ import annotations

import hashlib
import json
import sys

Q = 3329
K = 3
ETA = 2
DU, DV = 10, 4
N = 256

EK_LEN = 384 * K + 32
CT_LEN = 32 * (DU * K + DV)

Poly = list[int]


def _bit_reversed(value: int) -> int:
    return int(f"{value:07b}"[::-1], 2)


ZETAS = [pow(17, _bit_reversed(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _bit_reversed(i) + 1, Q) for i in range(128)]


def key_gen(d: bytes, z: bytes) -> tuple[bytes, bytes]:
    """ML-KEM.KeyGen_internal: two 32-byte seeds to (ek, dk). FIPS 203 algorithm 16."""
    rho, sigma = _g(d + bytes([K]))
    a = _matrix(rho)
    s = [_ntt(_cbd(_prf(sigma, i))) for i in range(K)]
    e = [_ntt(_cbd(_prf(sigma, K + i))) for i in range(K)]
    t = [_add(_dot(a[i], s), e[i]) for i in range(K)]
    ek = b"".join(_encode(p, 12) for p in t) + rho
    dk_pke = b"".join(_encode(p, 12) for p in s)
    return ek, dk_pke + ek + _h(ek) + z


def encaps(ek: bytes, m: bytes) -> tuple[bytes, bytes]:
    """ML-KEM.Encaps_internal: (shared secret, ciphertext). FIPS 203 algorithm 17."""
    secret, r = _g(m + _h(ek))
    return secret, _encrypt(ek, m, r)


def decaps(dk: bytes, ct: bytes) -> bytes:
    """ML-KEM.Decaps_internal: the shared secret, or a pseudo-random one if `ct` is forged. FIPS 203 algorithm 18."""
    dk_pke, ek, h, z = dk[: 384 * K], dk[384 * K : 768 * K + 32], dk[768 * K + 32 : 768 * K + 64], dk[768 * K + 64 :]
    m = _decrypt(dk_pke, ct)
    secret, r = _g(m + h)
    if _encrypt(ek, m, r) == ct:
        return secret
    return hashlib.shake_256(z + ct).digest(32)


def _encrypt(ek: bytes, m: bytes, r: bytes) -> bytes:
    t = [_decode(ek[384 * i : 384 * (i + 1)], 12) for i in range(K)]
    a = _matrix(ek[384 * K :])
    y = [_ntt(_cbd(_prf(r, i))) for i in range(K)]
    columns = [[a[j][i] for j in range(K)] for i in range(K)]
    u = [_add(_inverse_ntt(_dot(columns[i], y)), _cbd(_prf(r, K + i))) for i in range(K)]
    mu = [_decompress(bit, 1) for bit in _decode(m, 1)]
    v = _add(_add(_inverse_ntt(_dot(t, y)), _cbd(_prf(r, 2 * K))), mu)
    c1 = b"".join(_encode([_compress(x, DU) for x in p], DU) for p in u)
    return c1 + _encode([_compress(x, DV) for x in v], DV)


def _decrypt(dk: bytes, ct: bytes) -> bytes:
    size = 32 * DU
    u = [[_decompress(x, DU) for x in _decode(ct[size * i : size * (i + 1)], DU)] for i in range(K)]
    v = [_decompress(x, DV) for x in _decode(ct[size * K :], DV)]
    s = [_decode(dk[384 * i : 384 * (i + 1)], 12) for i in range(K)]
    product = _inverse_ntt(_dot(s, [_ntt(p) for p in u]))
    return _encode([_compress((x - y) % Q, 1) for x, y in zip(v, product, strict=True)], 1)


def _g(data: bytes) -> tuple[bytes, bytes]:
    digest = hashlib.sha3_512(data).digest()
    return digest[:32], digest[32:]


def _h(data: bytes) -> bytes:
    return hashlib.sha3_256(data).digest()


def _prf(seed: bytes, index: int) -> bytes:
    return hashlib.shake_256(seed + bytes([index])).digest(64 * ETA)


def _matrix(rho: bytes) -> list[list[Poly]]:
    return [[_sample(rho + bytes([j, i])) for j in range(K)] for i in range(K)]


def _sample(seed: bytes) -> Poly:
    """SampleNTT, algorithm 7: rejection sampling of uniform coefficients."""
    stream = hashlib.shake_128(seed).digest(4096)
    out: Poly = []
    for at in range(0, len(stream) - 2, 3):
        low = stream[at] | (stream[at + 1] & 15) << 8
        high = stream[at + 1] >> 4 | stream[at + 2] << 4
        out += [x for x in (low, high) if x < Q]
        if len(out) >= N:
            return out[:N]
    raise AssertionError("4096 bytes give 256 coefficients except with negligible probability")


def _cbd(data: bytes) -> Poly:
    """SamplePolyCBD, algorithm 8: small coefficients."""
    bits = int.from_bytes(data, "little")

    def ones(start: int) -> int:
        return (bits >> start & ((1 << ETA) - 1)).bit_count()

    return [(ones(2 * ETA * i) - ones(2 * ETA * i + ETA)) % Q for i in range(N)]


def _ntt(p: Poly) -> Poly:
    f, k, span = list(p), 1, 128
    while span >= 2:
        for start in range(0, N, 2 * span):
            zeta, k = ZETAS[k], k + 1
            for j in range(start, start + span):
                t = zeta * f[j + span] % Q
                f[j], f[j + span] = (f[j] + t) % Q, (f[j] - t) % Q
        span //= 2
    return f


def _inverse_ntt(p: Poly) -> Poly:
    f, k, span = list(p), 127, 2
    while span <= 128:
        for start in range(0, N, 2 * span):
            zeta, k = ZETAS[k], k - 1
            for j in range(start, start + span):
                t = f[j]
                f[j], f[j + span] = (t + f[j + span]) % Q, zeta * (f[j + span] - t) % Q
        span *= 2
    return [x * 3303 % Q for x in f]


def _dot(left: list[Poly], right: list[Poly]) -> Poly:
    total = [0] * N
    for a, b in zip(left, right, strict=True):
        total = _add(total, _multiply(a, b))
    return total


def _multiply(a: Poly, b: Poly) -> Poly:
    out: Poly = []
    for i in range(128):
        a0, a1, b0, b1 = a[2 * i], a[2 * i + 1], b[2 * i], b[2 * i + 1]
        out += [(a0 * b0 + a1 * b1 * GAMMAS[i]) % Q, (a0 * b1 + a1 * b0) % Q]
    return out


def _add(a: Poly, b: Poly) -> Poly:
    return [(x + y) % Q for x, y in zip(a, b, strict=True)]


def _compress(x: int, bits: int) -> int:
    return (((x << bits) + Q // 2) // Q) % (1 << bits)


def _decompress(y: int, bits: int) -> int:
    return (y * Q + (1 << bits - 1)) >> bits


def _encode(p: Poly, bits: int) -> bytes:
    return sum(x << bits * i for i, x in enumerate(p)).to_bytes(32 * bits, "little")


def _decode(data: bytes, bits: int) -> Poly:
    value = int.from_bytes(data, "little")
    p = [value >> bits * i & ((1 << bits) - 1) for i in range(N)]
    return [x % Q for x in p] if bits == 12 else p


def vector(name: str) -> dict[str, str]:
    """A key pair and an encapsulation whose three seeds are hashes of `name`."""
    d, z, m = (hashlib.sha256(f"jumpvpn vector {name} {seed}".encode()).digest() for seed in "dzm")
    ek, dk = key_gen(d, z)
    secret, ct = encaps(ek, m)
    values = {"d": d, "z": z, "m": m, "ek": ek, "dk": dk, "ct": ct, "secret": secret}
    return {key: value.hex() for key, value in values.items()}


def vectors() -> dict[str, dict[str, str]]:
    """Content of `spec/vectors/kem.json`."""
    return {name: vector(name) for name in ("handshake", "rekey")}


if __name__ == "__main__":
    json.dump(vectors(), sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")
