"""Which gateways a client knows, remembers and uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumpvpn.client import memory
from jumpvpn.client.gateways import Known, KnownGateways, Situation, chosen
from jumpvpn.config import GatewayPeer, encode_key
from jumpvpn.policy.model import TransportPolicy
from jumpvpn.wire.gateways import Gateway

KEYS = [bytes([number]) * 32 for number in range(32)]
FILE = (GatewayPeer(name="gw1", address="vpn.example.org:51900", public_key=encode_key(KEYS[1])),)


def gateway(number: int, address: str = "") -> Gateway:
    return Gateway(f"gw{number}", address or f"10.0.0.{number}:51900", KEYS[number])


# --- what is known ---------------------------------------------------------------------------------------------------


def test_the_file_wins_by_name_and_by_key() -> None:
    other_key = Gateway("gw1", "10.9.9.9:1", KEYS[9])
    other_name = Gateway("frankfurt", "10.9.9.9:1", KEYS[1])
    known = KnownGateways(FILE, (other_key, other_name, gateway(2)))
    assert known.all == (Known("gw1", "vpn.example.org:51900", KEYS[1]), Known("gw2", "10.0.0.2:51900", KEYS[2]))
    assert known.named("gw1").key == KEYS[1]


def test_the_newest_list_replaces_the_one_before() -> None:
    known = KnownGateways(FILE, (gateway(2), gateway(3)))
    assert known.learn((gateway(3), gateway(4)))
    assert not known.learn((gateway(3), gateway(4)))
    assert [found.name for found in known.all] == ["gw1", "gw3", "gw4"]
    with pytest.raises(KeyError):
        known.named("gw2")


def test_the_current_gateway_stays_as_it_is_until_it_is_left() -> None:
    known = KnownGateways(FILE, (gateway(2), gateway(3)))
    known.hold("gw2")
    known.learn((Gateway("gw2", "10.9.9.9:1", KEYS[9]), gateway(3)))
    assert known.named("gw2") == Known("gw2", "10.0.0.2:51900", KEYS[2])
    known.learn((gateway(3),))
    assert [found.name for found in known.all] == ["gw1", "gw3", "gw2"]
    known.hold("gw3")
    assert [found.name for found in known.all] == ["gw1", "gw3"]


# --- which are used --------------------------------------------------------------------------------------------------

SIX = tuple(Known(f"gw{n}", "", KEYS[n]) for n in range(1, 7))


def names(rules: TransportPolicy, now: Situation, known: tuple[Known, ...] = SIX) -> list[str]:
    return list(chosen(known, rules, now))


def test_the_current_one_and_as_many_others_as_policy_says() -> None:
    one = Situation(("wlan0",), "gw4")
    assert names(TransportPolicy(), one) == ["gw4", "gw1", "gw2"]
    assert names(TransportPolicy(standby_gateways=0), one) == ["gw4"]
    assert names(TransportPolicy(standby_gateways=7), one) == ["gw4", "gw1", "gw2", "gw3", "gw5", "gw6"]


def test_policy_ranks_before_the_order_of_the_file() -> None:
    rules = TransportPolicy(prefer=("gateway:gw6", "gateway:gw3"))
    assert names(rules, Situation(("wlan0",), "gw4")) == ["gw4", "gw6", "gw3"]


def test_what_leaves_comes_last_but_may_serve() -> None:
    now = Situation(("wlan0",), "gw4", leaving=("gw1", "gw2"))
    assert names(TransportPolicy(), now) == ["gw4", "gw3", "gw5"]
    assert names(TransportPolicy(), now, SIX[:4]) == ["gw4", "gw3", "gw1"]


def test_a_gateway_that_policy_forbids_everywhere_is_not_used() -> None:
    rules = TransportPolicy(deny=("gateway:gw1",))
    assert names(rules, Situation(("wlan0",), "gw4")) == ["gw4", "gw2", "gw3"]
    assert names(rules, Situation(("wlan0",), "gw1"))[0] == "gw1", "only the session may leave the current one"


def test_before_the_birth_the_next_ones_get_their_turn() -> None:
    rules = TransportPolicy()
    rounds = [names(rules, Situation(("wlan0",), passed=number)) for number in range(8)]
    assert rounds[:2] == [["gw1", "gw2", "gw3"], ["gw2", "gw3", "gw4"]]
    assert {name for turn in rounds for name in turn} == {known.name for known in SIX}
    assert names(rules, Situation(("wlan0",), passed=5), SIX[:3]) == ["gw1", "gw2", "gw3"]


@given(
    interfaces=st.integers(0, 12), standby=st.integers(0, 7), count=st.integers(1, 24),
    home=st.none() | st.integers(0, 23), passed=st.integers(0, 50),
)  # fmt: skip
def test_path_indexes_always_suffice(interfaces: int, standby: int, count: int, home: int | None, passed: int) -> None:
    known = tuple(Known(f"g{n}", "", KEYS[0]) for n in range(count))
    here = None if home is None else f"g{home % count}"
    now = Situation(tuple(f"i{n}" for n in range(interfaces)), here, (), passed)
    found = names(TransportPolicy(standby_gateways=standby), now, known)
    assert 1 <= len(found) == len(set(found)) <= 1 + standby
    assert len(found) * interfaces <= max(8, interfaces)
    assert here is None or found[0] == here


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_list_survives_the_process(tmp_path: Path) -> None:
    assert memory.read(tmp_path, [KEYS[1]]) == ()
    memory.write(tmp_path, [KEYS[1]], (gateway(2), gateway(3)))
    memory.write(tmp_path, [KEYS[1], KEYS[5]], (gateway(3), gateway(4)))
    assert memory.read(tmp_path, [KEYS[7], KEYS[5]]) == (gateway(3), gateway(4))
    assert [path.name for path in tmp_path.iterdir()] == [memory.FILE_NAME]
    assert (tmp_path / memory.FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_the_list_of_another_cluster_is_not_used(tmp_path: Path) -> None:
    memory.write(tmp_path, [KEYS[1]], (gateway(2),))
    assert memory.read(tmp_path, [KEYS[9]]) == ()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x00\xff", b"[]", b"{}", b'{"format":2,"configured":[],"gateways":[]}',
        b'{"format":1,"configured":[],"gateways":[["a/b","h:1","AA=="]]}',
        b'{"format":1,"configured":[],"gateways":[],"more":1}', b" " * (memory.FILE_MAX + 1),
    ],
)  # fmt: skip
def test_a_damaged_list_is_told_and_not_used(tmp_path: Path, body: bytes) -> None:
    (tmp_path / memory.FILE_NAME).write_bytes(body)
    with pytest.raises(memory.Damaged, match="going on with the gateways of the configuration file"):
        memory.read(tmp_path, [KEYS[1]])
    memory.write(tmp_path, [KEYS[1]], (gateway(2),))
    assert memory.read(tmp_path, [KEYS[1]]) == (gateway(2),)


def test_a_list_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.write(tmp_path, [KEYS[1]], (gateway(2),))

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        memory.write(tmp_path, [KEYS[1]], (gateway(3),))
    assert memory.read(tmp_path, [KEYS[1]]) == (gateway(2),)
    assert [path.name for path in tmp_path.iterdir()] == [memory.FILE_NAME]
