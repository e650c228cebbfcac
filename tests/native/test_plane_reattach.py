"""Reattaches and rekeys between two planes over loopback: what is lost, repeated, refused or late."""

from __future__ import annotations

import secrets
import time

import pytest

from native.harness import CLIENT_INNER, Node, Pair, Proxy, down, liveness, up

REATTACH_REQUEST, REATTACH_REPLY = 0x50, 0x60  # kinds, spec: WIRE-73, WIRE-76


def test_reattach_moves_the_session_and_nothing_is_lost(pair: Pair) -> None:
    address = pair.second_path()
    pair.client.plane.deactivate(pair.client_session)
    pair.client.send(up(b"waited"))
    pair.ask(1)
    request = pair.gateway.wait("reattach_request")
    assert request[2:6] == (pair.gateway_session, pair.session_id, pair.gateway_socket, address)
    proof, _, next_epoch, version, _, path, cause, token_ok, fresh = request[6:]
    assert (proof, next_epoch, version, path, cause, token_ok, fresh) == (True, 2, 1, 1, 3, False, True)
    pair.commit(request)
    reply = pair.client.wait("reattach_reply")
    assert reply[3:8] == (0, 2, 2, 0, 1)
    assert pair.gateway.received(0.1) == []
    pair.client.plane.finish_reattach(pair.client_session)
    assert pair.gateway.receive() == up(b"waited")
    pair.gateway.send(down(b"back"))
    assert pair.client.receive() == down(b"back")
    assert pair.client.plane.session_stats(pair.client_session)["epoch"] == 2


def test_many_reattaches_in_a_row(pair: Pair) -> None:
    for round_number in range(12):
        path = 1 + round_number % 7
        pair.second_path(path)
        pair.reattach(path, zero_rtt=round_number % 2 == 0)
        pair.client.send(up(b"%d" % round_number))
        assert pair.gateway.receive() == up(b"%d" % round_number)
        pair.gateway.send(down(b"%d" % round_number))
        assert pair.client.receive() == down(b"%d" % round_number)


def test_data_may_follow_a_request_at_once(pair: Pair) -> None:
    pair.second_path()
    pair.ask(1, zero_rtt=True)
    request = pair.gateway.wait("reattach_request")
    packets = [up(b"early %d" % number) for number in range(20)]
    for packet in packets:
        pair.client.send(packet)
    assert pair.gateway.received(0.1) == []
    pair.commit(request)
    assert pair.gateway.received() == packets
    pair.client.wait("reattach_reply")
    pair.client.plane.finish_reattach(pair.client_session)
    pair.client.send(up(b"late"))
    assert pair.gateway.received() == [up(b"late")]
    pair.gateway.none("peer_moved", 0)


def test_early_data_waits_again_when_the_request_is_denied(pair: Pair) -> None:
    pair.second_path()
    pair.ask(1, zero_rtt=True)
    request = pair.gateway.wait("reattach_request")
    pair.client.send(up(b"early"))
    time.sleep(0.05)
    pair.gateway.plane.deny_reattach(request[1], 17, 5)
    reply = pair.client.wait("reattach_reply")
    assert (reply[3], reply[5], reply[6]) == (2, 5, 17)
    assert pair.gateway.received(0.1) == []
    pair.reattach(1)
    assert pair.gateway.received() == [up(b"early")]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_unreported_packets_are_sent_again_and_delivered_once(pair: Pair, direction: str) -> None:
    is_up = direction == "up"
    sender, receiver, packet_of = (pair.client, pair.gateway, up) if is_up else (pair.gateway, pair.client, down)
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        delivered = [packet_of(b"delivered %d" % number) for number in range(10)]
        for packet in delivered:
            sender.send(packet)
        assert receiver.received() == delivered
        proxy.blackhole = True
        lost = [packet_of(b"lost %d" % number) for number in range(10)]
        for packet in lost:
            sender.send(packet)
        time.sleep(0.1)
        pair.second_path(2)
        pair.reattach(2)
        assert receiver.received() == lost
        session = pair.client_session if is_up else pair.gateway_session
        assert sender.plane.session_stats(session)["resent"] == 10


def test_a_challenge_asks_for_the_address_and_its_token_is_accepted(pair: Pair) -> None:
    pair.second_path()
    pair.ask(1)
    pair.gateway.plane.challenge_reattach(pair.gateway.wait("reattach_request")[1])
    reply = pair.client.wait("reattach_reply")
    assert reply[3] == 1
    assert len(reply[8]) == 24
    pair.ask(1, token=reply[8])
    request = pair.gateway.wait("reattach_request")
    assert request[13] is True
    pair.gateway.plane.drop_reattach(request[1])
    pair.client.none("reattach_reply", 0.1)


def test_a_repeated_request_gets_the_same_reply_and_a_copied_one_no_fact(pair: Pair) -> None:
    pair.second_path()
    pair.ask(1)
    request = pair.gateway.wait("reattach_request")
    pair.client.plane.resend_reattach(pair.client_session)
    pair.gateway.none("reattach_request", 0.1)
    pair.commit(request)
    pair.client.wait("reattach_reply")
    assert pair.gateway.counter("duplicate_request") == 1


def lose_reply(pair: Pair) -> None:
    """The gateway grants a reattach whose reply the client gave up."""
    pair.ask(1, zero_rtt=True)
    pair.client.send(up(b"early"))
    request = pair.gateway.wait("reattach_request")
    pair.client.plane.abandon_reattach(pair.client_session)
    pair.commit(request)
    pair.client.none("reattach_reply", 0.1)


def test_a_client_whose_reply_was_lost_is_told_by_its_next_probes(pair: Pair) -> None:
    pair.second_path()
    for path in (0, 1):
        liveness(pair.client, pair.client_session, path, probe_busy=50, probe_idle=50, silence_idle=5000)
    for _ in range(2):
        lose_reply(pair)
        pair.epoch += 1  # the gateway's; the client proposes one more
        pair.client.facts.clear()
        assert pair.client.wait("hinted", seconds=5)[1] == pair.client_session
    pair.reattach(0)
    pair.client.plane.probe_now(pair.client_session, 0)
    pair.client.wait("path_validated")
    pair.gateway.send(down(b"bound"))
    assert pair.client.receive() == down(b"bound")


def test_a_restored_session_answers_probes_by_hints_and_delivers_nothing(pair: Pair) -> None:
    gateway = Node("gateway", pair.cluster_key, private_key=pair.gateway.private_key)
    pair.gateway.plane.close_socket(pair.gateway_socket)
    pair.gateway.stop()
    gateway.open(pair.gateway_address)
    restored = gateway.plane.restore(pair.session_id, pair.sealed, [CLIENT_INNER])
    pair.client.send(up(b"not bound"))
    pair.client.plane.probe_now(pair.client_session, 0)
    hint = pair.client.wait("hinted")
    assert hint[1:3] == (pair.client_session, 0)
    assert gateway.received(0.1) == []
    assert gateway.counter("not_bound") >= 1
    assert gateway.counter("hint_sent") == 1
    gateway.none("epoch_confirmed", 0)
    pair.gateway, pair.gateway_session = gateway, restored
    pair.reattach(0)
    pair.client.send(up(b"bound"))
    assert gateway.received()[-1] == up(b"bound")
    gateway.send(down(b"bound"))
    assert pair.client.receive() == down(b"bound")


def test_a_request_that_was_dropped_may_come_again_unless_it_was_on_its_way_to_a_grant(pair: Pair) -> None:
    pair.second_path()
    pair.ask(1)
    request = pair.gateway.wait("reattach_request")
    pair.gateway.plane.drop_reattach(request[1])
    pair.client.plane.resend_reattach(pair.client_session)
    again = pair.gateway.wait("reattach_request")
    assert (again[7], again[14]) == (request[7], True), "the same nonce, and it counts as fresh"
    pair.gateway.plane.prepare_reattach(again[1])
    pair.gateway.plane.drop_reattach(again[1])
    pair.client.plane.resend_reattach(pair.client_session)
    assert pair.gateway.wait("reattach_request")[14] is False


def test_a_record_opens_only_for_its_session_and_cluster(pair: Pair) -> None:
    with pytest.raises(ValueError, match="record"):
        pair.gateway.plane.restore(secrets.token_bytes(16), pair.sealed, [])
    other = Node("gateway", secrets.token_bytes(32))
    with pytest.raises(ValueError, match="record"):
        other.plane.restore(pair.session_id, pair.sealed, [])
    other.stop()


def test_a_request_for_an_absent_session_names_it(pair: Pair) -> None:
    pair.second_path()
    pair.gateway.plane.close_session(pair.gateway_session)
    pair.ask(1)
    request = pair.gateway.wait("reattach_request")
    assert (request[2], request[3], request[6]) == (0, pair.session_id, False)
    pair.gateway.plane.drop_reattach(request[1])
    restored = pair.gateway.plane.restore(pair.session_id, pair.sealed, [CLIENT_INNER])
    pair.client.plane.resend_reattach(pair.client_session)
    request = pair.gateway.wait("reattach_request")
    assert (request[2], request[6]) == (restored, True)


def test_rekey_changes_the_root_and_loses_nothing(pair: Pair) -> None:
    for epoch in range(2, 6):
        pair.client.plane.begin_rekey(pair.client_session)
        request = pair.gateway.wait("rekey_request")
        assert request[2:] == (pair.gateway_session, epoch)
        sealed = pair.gateway.plane.prepare_rekey(request[1])
        assert sealed != pair.sealed
        pair.gateway.plane.commit_rekey(request[1])
        pair.gateway.send(down(b"before"))
        assert pair.client.receive() == down(b"before")
        assert pair.client.wait("rekey_reply")[1:] == (pair.client_session, epoch)
        pair.client.plane.finish_rekey(pair.client_session)
        assert pair.gateway.wait("epoch_confirmed")[2] == epoch
        pair.client.send(up(b"after"))
        assert pair.gateway.receive() == up(b"after")
        pair.gateway.send(down(b"after"))
        assert pair.client.receive() == down(b"after")
    pair.epoch = 5
    pair.second_path()
    pair.reattach(1)


def test_a_rekey_that_the_client_never_heard_of_does_not_end_rekeying(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        pair.client.plane.begin_rekey(pair.client_session)
        request = pair.gateway.wait("rekey_request")
        proxy.blackhole = True
        pair.gateway.plane.prepare_rekey(request[1])
        pair.gateway.plane.commit_rekey(request[1])
        time.sleep(17)  # the client repeats its request for 16 s and tells nobody when it gives up
        proxy.blackhole = False
        pair.client.plane.begin_rekey(pair.client_session)
        again = pair.gateway.wait("rekey_request")
        assert again[3] == request[3] + 1
        pair.gateway.plane.prepare_rekey(again[1])
        pair.gateway.plane.commit_rekey(again[1])
        assert pair.client.wait("rekey_reply")[2] == again[3]
        pair.client.plane.finish_rekey(pair.client_session)
        assert pair.gateway.wait("epoch_confirmed", lambda fact: fact[2] == again[3])
        pair.gateway.send(down(b"after"))
        assert pair.client.receive() == down(b"after")


def test_a_prepared_request_outlives_a_slow_store(pair: Pair) -> None:
    pair.second_path()
    pair.ask(1)
    request = pair.gateway.wait("reattach_request")
    pair.gateway.plane.prepare_reattach(request[1])
    time.sleep(7)  # requests that nobody decides are forgotten after 5 s, and nobody is told
    pair.gateway.plane.commit_reattach(request[1], pair.version + 1)
    assert pair.client.wait("reattach_reply")[3] == 0


def test_a_path_that_was_told_dead_is_watched_anew_after_a_reattach(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        liveness(pair.gateway, pair.gateway_session, 1)
        for _ in range(2):
            proxy.blackhole = True
            pair.gateway.send(down(b"unheard"))
            pair.gateway.wait("path_dead")
            proxy.blackhole = False
            pair.reattach(1)


def test_a_client_watches_anew_what_a_gateway_granted_that_is_never_heard_again(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        liveness(pair.client, pair.client_session, 1)
        proxy.blackhole = True
        pair.client.send(up(b"unheard"))
        pair.client.wait("path_dead")
        proxy.passes = {REATTACH_REQUEST, REATTACH_REPLY}
        pair.ask(1)
        pair.commit(pair.gateway.wait("reattach_request"))
        pair.client.wait("reattach_reply")
        pair.client.plane.finish_reattach(pair.client_session)
        pair.client.send(up(b"unheard"))
        pair.client.wait("path_dead")
