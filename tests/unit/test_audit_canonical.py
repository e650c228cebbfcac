"""The fast encoder of event lines gives the bytes of RFC 8785, or leaves the value to the plain one."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as plain_replace
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from jumpvpn.audit.chain import Chain, canonical
from jumpvpn.values import DomainEvent, TransportView, replace

NUMBERS = st.one_of(
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(min_value=1e-9, max_value=1e-3),
    st.integers(-(2**53) + 1, 2**53 - 1).map(float),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
@example({"\ue000": 1, "\U00010000": 2})
@example('\x00\x1f\x7f\u2028\\"/\b\f\n\r\t')
@example([300.0, -0.0, 1e-5, 1e-7, 1e16, 1e21, 1e22, 5e-324, 0.0001, 1.7976931348623157e308])
def test_same_bytes_as_the_plain_encoder(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [2**53, -(2**53), float("nan"), float("inf"), "\ud800", {"\udfff": 1}, {1: 2}, b"x"])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical({"data": value})


@given(st.dictionaries(st.text().filter(lambda name: name != "hash"), VALUES, max_size=6))
def test_a_line_is_the_canonical_form_of_the_linked_record(record: dict[str, Any]) -> None:
    chain, line = Chain("s:a", 6, "f" * 64).append(record)
    linked = {**record, "chain": "s:a", "seq": 7, "prev": "f" * 64}
    assert line == rfc8785.dumps({**linked, "hash": chain.head}) + b"\n"


@dataclass(frozen=True, slots=True)
class _Point:
    x: int
    y: int = 2


def test_replace_is_that_of_dataclasses() -> None:
    event = DomainEvent("a", "S", session="9f", data={"k": 1})
    changed = {"transport": TransportView("wlan0/udp/gw1"), "data": {"k": 2}}
    assert replace(event, **changed) == plain_replace(event, **changed)
    assert replace(_Point(1), y=3) == _Point(1, 3)
    with pytest.raises(KeyError):
        replace(_Point(1), z=3)
