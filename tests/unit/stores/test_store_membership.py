"""What gateways tell each other: read strictly, told apart from what others write."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from jumpvpn.runtime.stores.membership import ForeignMember, Member, Serving, decode_member, encode_member

MEMBER = Member(
    node="gw1", address="[2001:db8::1]:51820", public_key=b"k" * 32, run="ab12", state=Serving.DRAINING,
    program_version="1.2.0", formats=(2, 1), beat=7,
)  # fmt: skip


def changed(**fields: object) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(encode_member(MEMBER)), **fields})


def test_a_member_is_read_as_it_was_written() -> None:
    assert decode_member("held/gw1", encode_member(MEMBER)) == MEMBER
    assert MEMBER.name == "held/gw1"


def test_fields_of_a_later_program_are_passed_over() -> None:
    assert decode_member("held/gw1", changed(weight=3)) == MEMBER


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "not a membership record"),
        (b"\xff\xfe", "not a membership record"),
        (b"[1, 2]", "not a membership record"),
        (b"x" * 5000, "5000 bytes are no membership record"),
        (changed(format=2), "membership format 2, this program knows 1; upgrade"),
        (changed(state="resting"), "not a membership record"),
        (changed(beat="7"), "not a membership record"),
        (changed(beat=-1), "beat: not below 0"),
        (changed(public_key="AAAA"), "public_key: 32 bytes"),
        (changed(public_key="*"), "not a membership record"),
        (changed(formats=[]), "formats: 1 to"),
        (changed(address=""), "address: 1 to 255"),
        (changed(address="a\x1b[2J"), "address: 1 to 255"),
        (changed(node="gw2"), "is the membership record of 'gw2'"),
    ],
)
def test_whatever_else_is_held_is_ignored_with_a_reason(value: bytes, words: str) -> None:
    with pytest.raises(ForeignMember) as raised:
        decode_member("held/gw1", value)
    assert words in raised.value.reason
    assert raised.value.reason.startswith("held/gw1: ")
    assert raised.value.reason.isprintable()


def test_a_foreign_name_is_shown_safely() -> None:
    with pytest.raises(ForeignMember) as raised:
        decode_member("held/\x1b[2J\u00e9", b"")
    assert raised.value.reason.isascii()
    assert "\x1b" not in raised.value.reason


@pytest.mark.parametrize("field", ["node", "address", "run", "program_version"])
def test_a_member_that_cannot_be_told_is_not_made(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(MEMBER, **{field: ""})
