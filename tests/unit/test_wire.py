"""What the gateway tells the client of itself and of its cluster: strict, bounded, readable by clients of before."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumpvpn.policy.model import Policy
from jumpvpn.wire.gateways import (
    ADDRESS_MAX,
    GATEWAYS_MAX,
    GATEWAYS_MAX_BYTES,
    NAME_MAX,
    BadControl,
    Gateway,
    decode_drain,
    decode_gateways,
    encode_drain,
    encode_gateways,
)
from jumpvpn.wire.welcome import WELCOME_MAX_BYTES, BadWelcome, Limits, Welcome, decode_welcome, encode_welcome

KEY = bytes(range(32))
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True)
PORTS = st.integers(1, 65535)
HOSTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", fullmatch=True) | st.ip_addresses(v=4).map(str)
ADDRESSES = st.builds("{}:{}".format, HOSTS, PORTS) | st.builds("[{}]:{}".format, st.ip_addresses(v=6), PORTS)
GATEWAY = st.builds(Gateway, NAMES, ADDRESSES, st.binary(min_size=32, max_size=32))
LISTS = st.lists(GATEWAY, max_size=12, unique_by=lambda gateway: gateway.name).map(tuple)


def welcome(gateways: tuple[Gateway, ...] = (), routes: tuple[str, ...] = ("0.0.0.0/0",)) -> Welcome:
    return Welcome("gw1", ("10.77.0.2/24",), routes, 1380, Limits.of(Policy()), 1, gateways)


def packed(*entry: Any) -> bytes:
    return msgspec.msgpack.encode([list(entry)])


# --- the list --------------------------------------------------------------------------------------------------------


@given(gateways=LISTS)
def test_the_nearest_of_a_list_come_back_as_they_went(gateways: tuple[Gateway, ...]) -> None:
    payload = encode_gateways(gateways)
    told = decode_gateways(payload)
    assert len(payload) <= GATEWAYS_MAX_BYTES
    assert told == gateways[: len(told)]
    room = GATEWAYS_MAX_BYTES - len(payload)
    assert len(told) in (GATEWAYS_MAX, len(gateways)) or room < len(msgspec.msgpack.encode(gateways[len(told)]))


def test_eight_gateways_with_ordinary_names_fit() -> None:
    many = tuple(Gateway(f"gateway-{n}", f"gateway-{n}.frankfurt.vpn.example.org:51900", KEY) for n in range(9))
    assert decode_gateways(encode_gateways(many)) == many[:8]


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "truncated"),
        (b"\x90\x90", "trailing"),
        (b"\xc1", "malformed"),
        (msgspec.msgpack.encode({"name": "gw1"}), "Expected `array`"),
        (packed("gw1", "h:1"), "length 3"),
        (packed("gw1", "h:1", KEY, 1), "length 3"),
        (packed("gw1", "h:1", KEY[1:]), "length"),
        (packed("gw1", "h:1", KEY.hex()), "Expected `bytes`"),
        (packed("", "h:1", KEY), "name"),
        (packed("a/b", "h:1", KEY), "name"),
        (packed("gw1\n", "h:1", KEY), "name"),
        (packed("é", "h:1", KEY), "name"),
        (packed("a" * (NAME_MAX + 1), "h:1", KEY), "length"),
        (packed("gw1", "h", KEY), "address"),
        (packed("gw1", "h:0", KEY), "address"),
        (packed("gw1", "h:65536", KEY), "address"),
        (packed("gw1", "h:1\n", KEY), "address"),
        (packed("gw1", "::1:1", KEY), "address"),
        (packed("gw1", "[1.2.3.4]:1", KEY), "address"),
        (packed("gw1", "h h:1", KEY), "address"),
        (packed("gw1", "h" * ADDRESS_MAX + ":1", KEY), "length"),
        (msgspec.msgpack.encode([["gw1", "h:1", KEY]] * 2), "same name"),
        (msgspec.msgpack.encode([[f"g{n}", "h:1", KEY] for n in range(9)]), "length"),
        (bytes(GATEWAYS_MAX_BYTES + 1), "at most 1000 are allowed"),
    ],
)
def test_a_list_that_breaks_a_rule_is_refused_as_a_whole(payload: bytes, complaint: str) -> None:
    with pytest.raises(BadControl, match=complaint):
        decode_gateways(payload)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=20,
)


@given(payload=st.binary(max_size=GATEWAYS_MAX_BYTES + 40) | JUNK.map(msgspec.msgpack.encode))
def test_any_bytes_are_a_list_or_refused(payload: bytes) -> None:
    try:
        told = decode_gateways(payload)
    except BadControl:
        return
    assert decode_gateways(encode_gateways(told)) == told


@given(gateways=LISTS.filter(bool), data=st.data())
def test_a_list_with_one_byte_changed_is_a_list_or_refused(gateways: tuple[Gateway, ...], data: st.DataObject) -> None:
    payload = bytearray(encode_gateways(gateways))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        told = decode_gateways(bytes(payload))
    except BadControl:
        return
    assert all(len(gateway.public_key) == len(KEY) and "/" not in gateway.name for gateway in told)


def test_names_decide_and_not_two_gateways_have_one() -> None:
    twice = (Gateway("gw1", "a:1", KEY), Gateway("gw1", "b:1", KEY))
    with pytest.raises(ValueError, match="same name"):
        encode_gateways(twice)
    with pytest.raises(ValueError, match="same name"):
        encode_welcome(welcome(twice))


@pytest.mark.parametrize("entry", [("a/b", "h:1", KEY), ("gw1", "h", KEY), ("gw1", "h:1", b"short")])
def test_a_gateway_that_no_client_would_take_is_not_made(entry: tuple[str, str, bytes]) -> None:
    with pytest.raises(ValueError, match="gateway's"):
        Gateway(*entry)


# --- drain -----------------------------------------------------------------------------------------------------------


@given(payload=st.binary(max_size=3))
def test_drain_is_on_off_or_refused(payload: bytes) -> None:
    if payload in (b"", encode_drain(on=True), encode_drain(on=False)):
        assert decode_drain(payload) is (payload != encode_drain(on=False))
    else:
        with pytest.raises(BadControl):
            decode_drain(payload)


# --- the welcome -----------------------------------------------------------------------------------------------------


@given(gateways=LISTS, routes=st.integers(1, 64))
def test_the_welcome_fits_with_as_many_gateways_as_there_is_room_for(
    gateways: tuple[Gateway, ...], routes: int
) -> None:
    announced = tuple(f"10.{n}.0.0/16" for n in range(routes))
    body = encode_welcome(welcome(gateways, announced))
    told = decode_welcome(body)
    assert len(body) <= WELCOME_MAX_BYTES
    assert told == welcome(gateways[: len(told.gateways)], announced)


def test_a_welcome_without_gateways_is_as_it_ever_was() -> None:
    class Former(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        gateway: str
        addresses: tuple[str, ...]
        routes: tuple[str, ...]
        mtu: int
        limits: Limits
        version: int

    told = welcome()
    former = Former(told.gateway, told.addresses, told.routes, told.mtu, told.limits, told.version)
    body = msgspec.msgpack.encode(former)
    assert decode_welcome(body) == told
    assert encode_welcome(told) == body


def test_routes_alone_may_be_too_many() -> None:
    routes = tuple(f"fd00:1111:2222:3333:4444:5555:{n:x}::/112" for n in range(64))
    with pytest.raises(ValueError, match="announce fewer routes"):
        encode_welcome(welcome((Gateway("gw1", "h:1", KEY),), routes))


def test_a_welcome_with_a_bad_gateway_is_refused() -> None:
    body = msgspec.msgpack.encode({**msgspec.to_builtins(welcome(), builtin_types=(bytes,)),
                                   "gateways": [["gw1", "h", KEY]]})  # fmt: skip
    with pytest.raises(BadWelcome, match="address"):
        decode_welcome(body)
