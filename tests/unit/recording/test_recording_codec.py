"""The codec: values come back, unknown types are refused, nothing that an engine keeps is forgotten."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taped import HMAC_KEY, RULES, TapedWorld

from jumpvpn.audit.addresses import shown_address
from jumpvpn.audit.checkpoints import Growth
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.engine import inputs as inp
from jumpvpn.engine.book import TransportBook
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.engine.place import Place
from jumpvpn.engine.plans import Plans
from jumpvpn.engine.seat import Seat
from jumpvpn.policy.model import Policy
from jumpvpn.recording import snapshot
from jumpvpn.recording.codec import BadValue, RecordedId, decode, encode
from jumpvpn.recording.entries import INPUTS, input_line, read
from jumpvpn.recording.veil import NodeVeil, ReaderSight, ReaderVeil, policy_of
from jumpvpn.session.reasons import Reason
from jumpvpn.values import DomainEvent, Epoch, Instant, Now, SessionId, TransportId, Version
from jumpvpn.wire.welcome import Limits


def veil() -> NodeVeil:
    return NodeVeil(b"s" * 32, lambda address, mode: shown_address(address, mode, HMAC_KEY), "full")


TEXT = st.text(max_size=20)
ADDRESS = TEXT.filter(lambda text: "#" not in text)  # of which a recording would make a name
NUMBER = st.integers(0, 2**63)
SHARE = st.floats(0, 1)
INPUT = st.one_of(
    st.builds(inp.PathMeasured, TEXT, TEXT.map(TransportId), NUMBER, NUMBER, SHARE, SHARE),
    st.builds(inp.PathSilent, TEXT, TEXT.map(TransportId), NUMBER, NUMBER),
    st.builds(inp.PeerMoved, TEXT, TEXT.map(TransportId), ADDRESS, ADDRESS),
    st.builds(inp.SocketFailed, TEXT.map(TransportId), TEXT, st.booleans()),
    st.builds(inp.PeerClosed, TEXT, st.sampled_from(Reason)),
    st.builds(inp.CommitEnded, TEXT, NUMBER, TEXT),
    st.builds(
        inp.ReattachAsked, NUMBER, st.none() | TEXT, TEXT.map(TransportId), ADDRESS, st.booleans(), st.booleans(),
        st.booleans(), TEXT, NUMBER.map(Epoch), NUMBER, NUMBER, NUMBER,
    ),
    st.builds(
        inp.TransportsChanged, st.lists(st.builds(inp.Reachable, *[ADDRESS] * 6), max_size=3).map(tuple),
        st.dictionaries(TEXT.map(TransportId), TEXT, max_size=3),
    ),
)  # fmt: skip


@given(INPUT)
def test_inputs_come_back_as_they_were(event: Any) -> None:
    kind = type(event)
    assert decode(encode(event, kind, veil()), kind, ReaderSight()) == event


def test_identifiers_come_back_as_their_public_names() -> None:
    session = SessionId(bytes(range(16)))
    answered = inp.HandshakeAnswered(session, TransportId("a/udp/g"), "p:1", "c0ffee", Policy(), Version(1))
    again = decode(encode(answered, inp.HandshakeAnswered, veil()), inp.HandshakeAnswered, ReaderSight())
    assert (again.session_id.uid, str(again.session_id)) == (session.uid, session.uid)
    assert again.session_id == RecordedId.named(session.uid)
    assert again.policy == answered.policy


def test_every_input_that_a_node_can_tell_can_be_recorded() -> None:
    told = {name for name, kind in vars(inp).items() if isinstance(kind, type) and kind.__module__ == inp.__name__}
    assert set(INPUTS) == told - {"Reachable"}
    for kind in INPUTS.values():
        snapshot.hints_of(kind)
        with pytest.raises(BadValue):
            decode(7, kind, ReaderSight())


@dataclass(frozen=True)
class Odd:
    value: complex


@pytest.mark.parametrize("hint", [complex, Odd, int | str, dict[str, complex]])
def test_types_that_nobody_vouched_for_are_refused(hint: Any) -> None:
    with pytest.raises(TypeError, match="cannot be recorded"):
        encode(None, hint, veil())
    with pytest.raises(TypeError, match="cannot be recorded"):
        decode(None, hint, ReaderSight())


def test_data_that_json_has_not_is_refused() -> None:
    with pytest.raises(TypeError, match="a set cannot be recorded"):
        encode(DomainEvent("x", "N", data={"odd": {1}}), DomainEvent, veil())


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, True, "is a bool, not a int"),
        (int, 2**65, "beyond"),
        (float, float("inf"), "is not a number"),
        (str, 7, "is a int, not a str"),
        (bytes, "xyz", "not hexadecimal"),
        (bytes, "00" * 40, "more than 64 digits"),
        (SessionId, "0123", "no session name"),
        (Reason, "nonsense", "is no Reason"),
        (tuple[str, int], ["a"], "1 entries instead of 2"),
        (inp.PathHeard, {"uid": "a"}, "PathHeard: missing or unknown: transport"),
        (inp.PathHeard, {"uid": 7, "transport": "a"}, "uid: is a int"),
        (Policy, [9], "policy 9 is named, but its body is missing"),
        (Policy, {}, "is no policy"),
        (Policy, [1, {}], "is no body of a policy"),
    ],
)
def test_values_of_another_type_are_refused_with_their_place(hint: Any, value: Any, words: str) -> None:
    with pytest.raises(BadValue, match=words):
        decode(value, hint, ReaderSight())


def test_counts_that_are_raised_to_powers_are_bounded() -> None:
    with pytest.raises(BadValue, match="beyond 1000000"):
        decode(2**40, int, ReaderSight(), "denials")


def test_what_is_one_policy_stays_one_and_equal_ones_stay_two() -> None:
    one, twin, names, sight = Policy(), Policy(), veil(), ReaderSight()
    told = [encode(p, Policy, names) for p in (one, twin, one)]
    first, second, third = (decode(value, Policy, sight) for value in told)
    assert first == second == one
    assert first is third is not second


def test_a_gateways_bounds_beyond_the_usual_come_back() -> None:
    limits = Limits(10**9, 0, 5, 0, 1, 7)
    policy = limits.applied_to(Policy())
    again = policy_of(policy.body())
    assert again.digest() == policy.digest()
    assert again.session.transport_ttl == 0
    with pytest.raises(BadValue, match="out of bounds"):
        policy_of({**policy.body(), "session": {**policy.body()["session"], "transport_ttl": -1}})
    with pytest.raises(BadValue, match="no section of a policy"):
        policy_of({**policy.body(), "session": {**policy.body()["session"], "transport_ttl": [1]}})


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_forgets_nothing_that_an_engine_keeps() -> None:
    client, gateway = ClientEngine(Policy()), GatewayEngine(Policy())
    sealer = Sealer(Origin("n", "c", "b", "r", "client"), Policy(), shown_address)
    parts = {"seat", "book", "plans"}
    assert set(vars(client)) == {*snapshot.ENGINES["client"], *parts}
    assert set(vars(gateway)) == {*snapshot.ENGINES["gateway"], "places", "alarms"}
    assert set(vars(TransportBook())) == set(snapshot.BOOK)
    assert set(vars(Plans(TransportBook()))) == {*snapshot.PLANS, "_book"}
    assert {f.name for f in fields(Seat)} == {*snapshot.SEAT, "pending", "waiting"}
    assert {f.name for f in fields(Place)} == {*snapshot.PLACE, "seat"}
    derived = {"origin", "_digest", "_show_address"}  # in the header, or computed
    assert set(vars(sealer)) == {*snapshot.SEALER, *derived, "_sessions", "_denials", "growth"}
    assert set(vars(sealer._denials)) == {"_interval", "_windows"}
    assert set(vars(Growth())) == {*snapshot.GROWTH, "_heads"}


@pytest.mark.parametrize("side", ["client", "gateway"])
def test_a_restored_engine_is_the_engine(side: str) -> None:
    world = TapedWorld(RULES).start("wlan0")
    world.down("wlan0")
    world.run(0.4)
    world.up("wlan0")
    world.run(9)
    engine: Any = world.client if side == "client" else world.gateway
    node = world.nodes[side][0]
    restoring = snapshot.Restoring(side, node.sealer.origin, ReaderSight())
    parts = list(snapshot.capture(engine, node.sealer, veil()))
    for kind, value in parts:
        restoring.take(kind, value)
    assert list(snapshot.capture(restoring.engine, restoring.sealer, ReaderVeil())) == parts
    assert restoring.engine.next_wakeup() == engine.next_wakeup()


def test_every_part_of_a_state_survives_json() -> None:
    header = b'["recording",{"format":2,"program":"1","role":"client","node_id":"n","cluster_id":"c","boot_id":"b"'
    header += b',"run":"r","segment":1,"missed":0,"began_ms":1,"address_mode":"full"}]\n'
    told = inp.OperatorSwitch(TransportId("wlan0/udp/gw1"))
    entries = list(read([header, input_line(told, Now(Instant(5), 6), veil())], ReaderSight()))
    assert [number for number, _ in entries] == [1, 2]
    assert getattr(entries[1][1], "event", None) == told
