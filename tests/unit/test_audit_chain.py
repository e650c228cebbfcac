"""The hash chain: canonical, and any alteration, gap or fork is found."""

from __future__ import annotations

import hashlib
import json

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from jumpvpn.audit.chain import GENESIS, Chain, find_breaks, genesis_digest, node_chain, session_chain


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


def test_an_honest_chain_holds_in_any_order_and_with_repeats() -> None:
    lines = a_chain()
    assert find_breaks(lines) == []
    assert find_breaks([*reversed(lines), lines[2]]) == []


def test_two_chains_in_one_file_do_not_disturb_each_other() -> None:
    _, other = Chain("n:gw:1").extend({"event": "y", "n": n} for n in range(3))
    mixed = [line for pair in zip(a_chain(3), other, strict=True) for line in pair]
    assert find_breaks(mixed) == []


def test_changed_missing_and_forked_records_are_found() -> None:
    lines = list(a_chain())
    changed = lines[2].replace(b'"n":2', b'"n":9')
    assert find_breaks([*lines[:2], changed, *lines[3:]]) == ["s:a/3: the record was changed"]
    assert find_breaks([*lines[:2], *lines[3:]]) == ["s:a/3: missing"]
    assert find_breaks(lines[1:]) == ["s:a/1: missing"]
    _, fork = Chain("s:a", 4, json.loads(lines[3])["hash"]).append({"event": "x", "n": 99})
    assert find_breaks([*lines, fork]) == ["s:a/5: two different records"]
    assert find_breaks([b"not json\n"]) == ["line 1: not an event record"]


@given(st.integers(min_value=0, max_value=4), st.data())
def test_every_flipped_bit_is_found(which: int, data: st.DataObject) -> None:
    lines = list(a_chain())
    position = data.draw(st.integers(min_value=0, max_value=len(lines[which]) - 2))
    bit = data.draw(st.integers(min_value=0, max_value=7))
    spoiled = bytearray(lines[which])
    spoiled[position] ^= 1 << bit
    assert find_breaks([*lines[:which], bytes(spoiled), *lines[which + 1 :]]) != []


def test_names_and_genesis_digest_depend_on_everything() -> None:
    assert (session_chain("9f2c", "gateway"), session_chain("9f2c", "client")) == ("s:9f2c", "c:9f2c")
    assert node_chain("gw-1", "b7") == "n:gw-1:b7"
    first = genesis_digest("u", b"h", "n", 1)
    others = {
        genesis_digest("v", b"h", "n", 1),
        genesis_digest("u", b"i", "n", 1),
        genesis_digest("u", b"h", "m", 1),
        genesis_digest("u", b"h", "n", 2),
    }
    assert len(others | {first}) == 5
