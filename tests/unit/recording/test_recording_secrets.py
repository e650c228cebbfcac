"""What must not be readable is in no recording: identifiers, keys, tokens; addresses as policy shows them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from taped import HMAC_KEY, SALT, TapedWorld, lines_of, policy, troubled

from jumpvpn.audit.addresses import AddressMode, shown_address
from jumpvpn.engine import inputs as inp
from jumpvpn.policy.model import Policy
from jumpvpn.recording.entries import input_line
from jumpvpn.recording.replay import replay
from jumpvpn.recording.veil import NodeVeil, ReaderSight, without_ordinal
from jumpvpn.session.reasons import Reason
from jumpvpn.sim.birth import DEVICE_KEY, GATEWAY
from jumpvpn.values import Epoch, Instant, Now, SessionId, TransportId, Version

NOW = Now(Instant(1), 1)
FULL_ADDRESS = re.compile(rb"(?<![0-9.])(?:10\.[0-9]+\.[0-9]+\.[0-9]+|192\.0\.2\.1)(?::[0-9]+)?(?![0-9./])")


def rules(mode: AddressMode) -> Policy:
    return policy(
        transports={"prefer": ["eth0"]}, observability={"address_mode": mode}, switching={"max_per_minute": 30}
    )


def recordings(world: TapedWorld) -> list[bytes]:
    return [bytes(s) for nodes in world.nodes.values() for node in nodes for s in node.shelf.segments]


def faults(dice: Any) -> str:
    names = ("down", "up", "rebind", "readdress", "stop", "start", "client", "forged", "wait", "blackhole", "heal")
    return str(dice.choice(names))


@pytest.fixture(scope="module", params=["truncated", "hmac", "full"])
def world(request: pytest.FixtureRequest) -> TapedWorld:
    mode = request.param
    return troubled(11, rules(mode), rules(mode), faults=60, size=48_000, choose=faults)


def mode_of(world: TapedWorld) -> AddressMode:
    return world.client_rules.observability.address_mode


def test_no_identifier_and_no_key_is_in_any_recording(world: TapedWorld) -> None:
    ids = [row.session.id.raw for row in (*world.client_store.rows.values(), *world.gateway_store.rows.values())]
    assert len(ids) >= 2
    full = mode_of(world) == "full"  # in the simulation a token is the address that it proves
    tokens = [request.token for request, _ in world.requests if request.token and not full]
    everything = b"".join(recordings(world))
    for secret in (*ids, *tokens, DEVICE_KEY, SALT, HMAC_KEY):
        for shown in (secret, secret.hex().encode(), json.dumps(secret.decode("latin-1")).encode()[1:-1]):
            assert shown not in everything or shown in (b"device",), shown
    assert b'"device_key":"' in everything
    assert DEVICE_KEY.hex().encode() not in everything


def test_addresses_are_shown_as_policy_says_and_stay_distinct(world: TapedWorld) -> None:
    shown = [FULL_ADDRESS.findall(recording) for recording in recordings(world)]
    if mode_of(world) == "full":
        assert any(shown)
        return
    assert not any(shown), shown
    names = set(re.findall(rb'"(?:peer|local|old|new|birth_peer)":"([^"]+#[0-9]+)"', b"".join(recordings(world))))
    assert len({without_ordinal(name.decode()) for name in names}) < len(names), "different addresses look alike"


def test_every_recording_replays_whatever_it_hides(world: TapedWorld) -> None:
    for nodes in world.nodes.values():
        for node in nodes:
            for segment in node.shelf.segments:
                assert list(replay(lines_of(segment)))


def test_a_changed_mode_shows_known_addresses_in_the_new_way() -> None:
    world = TapedWorld(rules("full")).start("wlan0")
    for mode in ("hmac", "truncated", "full"):
        world.offer_policy("client", rules(mode))  # type: ignore[arg-type]
        world.offer_policy("gateway", rules(mode))  # type: ignore[arg-type]
        world.run(1)
        world.down("wlan0", "eth0")
        world.run(1)
        world.rebind("eth0", f"10.77.{len(mode)}.9:4000")
        world.up("wlan0", "eth0")
        world.run(5)
    world.close()
    for side in ("client", "gateway"):
        (node,) = world.nodes[side]
        (segment,) = node.shelf.segments
        produced: list[bytes] = []
        list(replay(lines_of(segment), None, produced.append))
        assert produced == node.journal
        peers = {(json.loads(line).get("transport") or {}).get("peer") for line in node.journal}
        assert any(str(peer).startswith("h:") for peer in peers)
        assert any("/24" in str(peer) for peer in peers)


def veil(mode: AddressMode = "truncated", salt: bytes = SALT) -> NodeVeil:
    return NodeVeil(salt, lambda address, m: shown_address(address, m, HMAC_KEY), mode)


def test_equal_secrets_have_equal_names_within_one_recording_only() -> None:
    one, other = veil(), veil(salt=b"another salt of another recording")
    assert one.secret(b"key") == one.secret(b"key") != one.secret(b"other key")
    assert one.secret(b"key") != other.secret(b"key")
    assert one.secret(b"") == ""
    assert re.fullmatch("[0-9a-f]{32}", one.secret(b"key"))


def test_names_of_addresses_are_injective_and_survive_a_new_segment() -> None:
    names = veil()
    first, second = names.address("10.0.0.1:1"), names.address("10.0.0.2:1")
    assert (first, second) == ("10.0.0.0/24#1", "10.0.0.0/24#2")
    assert names.address("") == ""
    names.begin_segment()
    assert names.address("10.0.0.2:1") == second
    names.forget()
    assert names.address("10.0.0.1:1") not in (first, second), "who is forgotten comes back under another name"
    assert ReaderSight().show(second, "truncated") == "10.0.0.0/24"


def test_an_address_in_full_that_looks_like_a_name_is_kept_apart() -> None:
    names = veil("full")
    assert names.address("fe80::1%a#7") == "fe80::1%a#7#1"
    assert names.address("10.0.0.1:1") == "10.0.0.1:1"


def test_the_inputs_that_hold_secrets_hide_them() -> None:
    session, names = SessionId(bytes(range(16))), veil()
    told = (
        inp.HandshakeAnswered(session, TransportId("a/udp/g"), GATEWAY, "c0ffee", Policy(), Version(1)),
        inp.HandshakeOffered(1, session, b"a device's key of 32 bytes......", None, GATEWAY, 7),
        inp.ReattachAnswered(
            TransportId("a/udp/g"), "n", "challenge", Epoch(2), Version(1), Reason.ADDRESS_UNVALIDATED, b"a token"
        ),
    )
    text = b"".join(input_line(event, NOW, names) for event in told)
    assert session.uid.encode() in text
    for secret in (session.raw, b"a device's key of 32 bytes......", b"a token"):
        assert secret not in text
        assert secret.hex().encode() not in text
    assert b"192.0.2.1" not in text
