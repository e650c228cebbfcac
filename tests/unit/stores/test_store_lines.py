"""Event lines as etcd keeps them."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from jumpvpn.runtime.stores.base import ForeignRecord
from jumpvpn.runtime.stores.etcd.records import decode_lines, encode_lines

LINES = tuple(b'{"event":"session.state_change","n":%d,"policy_digest":"%064d"}\n' % (n, 7) for n in range(8))
KEY = b"/jumpvpn/c/outbox/gw1/ab.1.w.8"


def test_lines_are_kept_in_a_fraction_of_their_size() -> None:
    packed = encode_lines(LINES)
    assert decode_lines(KEY, packed) == list(LINES)
    assert len(packed) < len(b"".join(LINES)) / 3


def test_lines_that_are_not_packed_are_read_too() -> None:
    assert decode_lines(KEY, msgspec.msgpack.encode(LINES)) == list(LINES)


@pytest.mark.parametrize(
    "value",
    [
        encode_lines(LINES)[:-20],
        encode_lines(LINES)[:20] + bytes(4) + encode_lines(LINES)[24:],
        encode_lines(LINES[:7]),
        zlib.compress(b"buy milk"),
        zlib.compress(msgspec.msgpack.encode([b"a" * (5 << 20)] + 7 * [b"b"]), 9),
        b"x",
        b"",
    ],
    ids=["cut", "changed", "one too few", "no lines", "out of all proportion", "nothing packed", "empty"],
)
def test_what_cannot_be_ours_is_refused(value: bytes) -> None:
    with pytest.raises(ForeignRecord, match="event lines"):
        decode_lines(KEY, value)
