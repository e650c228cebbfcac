"""The plain-Python implementation reproduces every vector that the Rust core wrote, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from native import mlkem
from native import reference as ref

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


def unhex(case: dict[str, Any], *names: str) -> dict[str, bytes]:
    return {name: raw(case[name]) for name in names}


def test_kem_vectors_are_what_their_seeds_give() -> None:
    assert mlkem.vectors() == load("kem")


@pytest.mark.parametrize("name", ["handshake", "rekey"])
def test_kem_agrees_with_cryptography(name: str) -> None:
    case = unhex(load("kem")[name], "d", "z", "ek", "dk", "ct", "secret")
    key = MLKEM768PrivateKey.from_seed_bytes(case["d"] + case["z"])
    assert key.public_key().public_bytes_raw() == case["ek"]
    assert key.decapsulate(case["ct"]) == case["secret"] == mlkem.decaps(case["dk"], case["ct"])
    forged = bytes([case["ct"][0] ^ 1]) + case["ct"][1:]
    assert key.decapsulate(forged) == mlkem.decaps(case["dk"], forged)


@pytest.mark.parametrize("part", ["first", "ratcheted"])
def test_key_schedule(part: str) -> None:
    vector = load("schedule")
    root = ref.extract(raw(vector["hash"]), raw(vector["split"][0]) + raw(vector["split"][1]))
    if part == "ratcheted":
        root = ref.ratchet(root, raw(vector["x25519_secret"]), raw(vector["kem_secret"]), raw(vector["transcript"]))
    case = vector[part]
    client, gateway = raw(case["client_nonce"]), raw(case["gateway_nonce"])
    assert root.hex() == case["root"]
    assert ref.control_secret(root).hex() == case["control"]
    assert_traffic(ref.up(root, case["epoch"], client), case["up"])
    assert_traffic(ref.down(root, case["epoch"], client, gateway), case["down"])


def assert_traffic(traffic: ref.Traffic, expected: dict[str, Any]) -> None:
    assert traffic.key.hex() == expected["key"]
    assert [cid.hex() for cid in traffic.cids] == expected["cids"]


def handshake_inputs(case: dict[str, Any]) -> tuple[ref.Client, ref.Gateway, dict[str, bytes]]:
    kem = unhex(load("kem")[case["kem"]], "ek", "dk", "ct", "secret")
    keys = unhex(case, "gateway_private", "device_private", "initiator_ephemeral", "responder_ephemeral")
    gateway_public = ref.public_key(keys["gateway_private"])
    client = ref.Client(keys["device_private"], keys["initiator_ephemeral"], gateway_public, (kem["ek"], kem["dk"]))
    return client, ref.Gateway(keys["gateway_private"], keys["responder_ephemeral"]), kem


@pytest.mark.parametrize("case", load("handshake"), ids=lambda case: case["name"])
def test_handshake(case: dict[str, Any]) -> None:
    client, gateway, kem = handshake_inputs(case)
    handshake_id, cookie = raw(case["handshake_id"]), raw(case["cookie"]["cookie"])
    payload_1 = ref.init_payload(case["timestamp_ns"], case["client_capabilities"], kem["ek"], raw(case["credential"]))
    message_1 = client.message_1(payload_1)
    for expected, held in ((case["init"], None), (case["init_with_cookie"], cookie)):
        datagrams = ref.cut(1, handshake_id, message_1, client.gateway, held)
        assert [datagram.hex() for datagram in datagrams] == expected

    device, received = gateway.read_1(ref.join([raw(datagram) for datagram in case["init"]]))
    assert (device, received) == (ref.public_key(client.private), payload_1)

    expected = case["established"]
    tickets = [raw(ticket) for ticket in expected["tickets"]]
    aead = ref.choose_aead(case["client_capabilities"], case["gateway_capabilities"])
    assert aead == expected["aead"]
    payload_2 = ref.response_payload(
        raw(expected["session_id"]), aead, tickets, raw(expected["standby_key"]), raw(expected["welcome"])
    )
    message_2, given = gateway.message_2(payload_2, kem["secret"], kem["ct"])
    assert [datagram.hex() for datagram in ref.cut(2, handshake_id, message_2, device)] == case["response"]

    opened, taken = client.read_2(message_2)
    assert opened == payload_2
    assert given == taken == ref.Outcome(raw(expected["hash"]), raw(expected["root"]))
    assert_traffic(ref.up(taken.root, 1, taken.hash), expected["up"])
    assert_traffic(ref.down(taken.root, 1, taken.hash, taken.hash), expected["down"])


@pytest.mark.parametrize("case", load("handshake"), ids=lambda case: case["name"])
def test_cookie(case: dict[str, Any]) -> None:
    cookie, gateway = case["cookie"], ref.public_key(raw(case["gateway_private"]))
    assert ref.cookie_for(raw(cookie["secret"]), raw(cookie["address"])).hex() == cookie["cookie"]
    reply = ref.cookie_reply(gateway, raw(case["init"][0]), raw(cookie["nonce"]), raw(cookie["cookie"]))
    assert reply.hex() == cookie["reply"]


def data_traffic(vector: dict[str, Any]) -> ref.Traffic:
    return ref.up(raw(vector["root"]), vector["epoch"], raw(vector["client_nonce"]))


def test_sealed_datagrams() -> None:
    vector = load("data")
    traffic, epoch = data_traffic(vector), vector["epoch"]
    for case in vector["sealed"]:
        plain, place = raw(case["plaintext"]), (case["path"], case["counter"])
        assert ref.seal_data(case["aead"], traffic, epoch, *place, plain).hex() == case["datagram"]
        assert ref.open_data(case["aead"], traffic, epoch, raw(case["datagram"])) == (*place, plain)


@pytest.mark.parametrize("case", load("data")["refused_by_aes_256_gcm"], ids=lambda case: case["name"])
def test_refused_datagrams(case: dict[str, Any]) -> None:
    vector = load("data")
    with pytest.raises(ref.DropError, match=f"^{case['reason']}$"):
        ref.open_data(ref.AES_256_GCM, data_traffic(vector), vector["epoch"], raw(case["datagram"]))


def test_replay_window() -> None:
    window = ref.ReplayWindow()
    for step in load("replay"):
        assert window.accept(step["counter"]) == step["verdict"]
        state = (window.highest, len(window.seen), window.lowest_missing)
        assert state == (step["highest"], step["received"], step["lowest_missing"]), step


def test_frames() -> None:
    vector = load("frames")
    probe = vector["probe"]
    assert ref.probe(probe["clock_ns"], raw(probe["challenge"])).hex() == probe["plaintext"]
    for case in vector["reports"]:
        fields = {name: value for name, value in case.items() if name != "plaintext"}
        assert ref.report(**{**fields, "challenge": raw(case["challenge"])}).hex() == case["plaintext"]
    for case in vector["control"]:
        frames = ref.control_frames(case["message_id"], case["message_type"], raw(case["content"]))
        assert [frame.hex() for frame in frames] == case["frames"]


def test_tickets_and_return_token() -> None:
    vector = load("reattach")
    cluster = raw(vector["cluster_key"])
    derived = ref.derived_ticket_key(cluster)
    cases = [(derived, case) for case in vector["tickets"]]
    for key, case in [*cases, (raw(vector["listed_ticket_key"]), vector["listed_ticket"])]:
        contents = (raw(case["session_id"]), case["issued_ms"], case["serial"])
        assert ref.ticket(key, raw(case["nonce"]), *contents).hex() == case["ticket"]
        assert ref.open_ticket(key, raw(case["ticket"])) == contents
    token = vector["return_token"]
    made = ref.return_token(cluster, raw(token["address"]), raw(token["session_id"]), token["issued_ms"])
    assert made.hex() == token["token"]


def test_reattach_messages() -> None:
    vector = load("reattach")
    control = ref.control_secret(raw(vector["root"]))
    for case in vector["requests"]:
        fields = {**case, **unhex(case, "ticket", "client_nonce", "gateway_public_key", "token")}
        assert ref.request(control, **without(fields, "datagram")).hex() == case["datagram"]
    for case in vector["replies"]:
        fields = {**case, **unhex(case, "client_nonce", "gateway_nonce", "token")}
        fields["tickets"] = [raw(ticket) for ticket in case["tickets"]]
        fields["standby_key"] = raw(case["standby_key"] or "")
        assert ref.reply(control, **without(fields, "datagram")).hex() == case["datagram"]
    case = vector["hint"]
    fields = {**case, **unhex(case, "cid", "nonce", "challenge")}
    assert ref.hint(control, **without(fields, "datagram")).hex() == case["datagram"]


def test_standby_messages() -> None:
    vector = load("reattach")
    case = unhex(vector["standby"], "session_id", "key", "ticket", "challenge", "gateway_public_key", "nonce", "token")
    assert ref.standby_key(raw(vector["cluster_key"]), case["session_id"]) == case["key"]
    key, challenge, nonce, token = case["key"], case["challenge"], case["nonce"], case["token"]
    public = case["gateway_public_key"]
    probe = ref.standby_probe(key, ticket=case["ticket"], challenge=challenge, gateway_public_key=public)
    assert probe.hex() == vector["standby"]["probe"]
    for reply in vector["standby"]["replies"]:
        made = ref.standby_reply(key, challenge=challenge, nonce=nonce, token=token, draining=reply["draining"])
        assert made.hex() == reply["datagram"]
        assert len(made) <= len(probe)


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def test_rekey() -> None:
    vector = load("rekey")
    kem = unhex(load("kem")[vector["kem"]], "ek", "dk", "ct")
    client, gateway, root, epoch = *unhex(vector, "client_private", "gateway_private", "root").values(), vector["epoch"]
    request, reply = ref.rekey_request(epoch, client, kem["ek"]), ref.rekey_reply(epoch, gateway, kem["ct"])
    assert (request.hex(), reply.hex()) == (vector["request"], vector["reply"])
    transcript = ref.rekey_transcript(request, reply)
    assert transcript.hex() == vector["transcript"]
    agreed = ref.dh(client, reply[8:40])
    assert agreed == ref.dh(gateway, request[8:40])
    following = ref.ratchet(root, agreed, mlkem.decaps(kem["dk"], reply[40:]), transcript)
    assert following.hex() == vector["next_root"]
    assert ref.up(following, epoch, transcript).key.hex() == vector["up_key"]
    assert ref.down(following, epoch, transcript, transcript).key.hex() == vector["down_key"]


def test_record() -> None:
    vector = load("record")
    for case in vector["records"]:
        fields = {**case, **unhex(case, "salt", "client_nonce", "gateway_nonce", "root")}
        fields["previous_root"] = raw(case["previous_root"]) if case["previous_root"] else None
        blob = ref.record(raw(vector["cluster_key"]), raw(vector["session_id"]), **without(fields, "blob"))
        assert blob.hex() == case["blob"]
