"""The hash chain: canonical lines, linked; a head is kept or not."""

from __future__ import annotations

import hashlib
import json

import rfc8785

from jumpvpn.audit.chain import GENESIS, Chain, node_chain, session_chain


def a_chain(count: int = 5) -> tuple[bytes, ...]:
    _, lines = Chain("s:a").extend({"event": "x", "n": n} for n in range(count))
    return lines


def test_first_record_follows_sixty_four_zeros() -> None:
    chain, line = Chain("s:a").append({"event": "x"})
    record = json.loads(line)
    assert (record["seq"], record["prev"], record["chain"]) == (1, "0" * 64, "s:a")
    body = {key: value for key, value in record.items() if key != "hash"}
    assert record["hash"] == hashlib.sha256(rfc8785.dumps(body)).hexdigest() == chain.head
    assert line == rfc8785.dumps(record) + b"\n"


def test_a_head_that_is_not_kept_leaves_no_trace() -> None:
    chain = Chain("s:a")
    chain.append({"event": "not committed"})
    assert chain == Chain("s:a", 0, GENESIS)


def test_chains_are_named_after_what_they_tell() -> None:
    assert (session_chain("9f2c", "gateway"), session_chain("9f2c", "client")) == ("s:9f2c", "c:9f2c")
    assert node_chain("gw-1", "b7") == "n:gw-1:b7"
