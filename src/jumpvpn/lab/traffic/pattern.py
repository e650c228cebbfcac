"""The content of the download: seeded, cheap to make, and no two blocks alike, so that its SHA-256 proves order."""

import hashlib
import random
import struct
from collections.abc import Iterator

# Large enough that a system call dominates the cost per block, small enough to make at once.
BLOCK_BYTES = 1 << 18
_INDEX = struct.Struct(">Q")


def blocks(seed: int, size: int) -> Iterator[bytes | memoryview]:
    """Yield the content of `size` bytes in pieces: each block is its index, then the same pseudo-random bytes."""
    filling = memoryview(random.Random(seed).randbytes(BLOCK_BYTES - _INDEX.size))
    for index in range(-(-size // BLOCK_BYTES)):
        left = size - index * BLOCK_BYTES
        yield _INDEX.pack(index)[:left]
        if left > _INDEX.size:
            yield filling[: left - _INDEX.size]


def expected_sha256(seed: int, size: int) -> str:
    """Return the hexadecimal SHA-256 of the content."""
    digest = hashlib.sha256()
    for piece in blocks(seed, size):
        digest.update(piece)
    return digest.hexdigest()
