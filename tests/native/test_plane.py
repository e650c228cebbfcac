"""The packet path, by way of the module that the runtime uses: two planes over loopback."""

from __future__ import annotations

import gc
import resource
import secrets
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from jumpvpn._native import Plane, backend_info, generate_private_key, public_key
from native.harness import (
    CLIENT_INNER,
    CREDENTIAL,
    MS,
    SERVER_INNER,
    WELCOME,
    Node,
    Pair,
    Proxy,
    down,
    liveness,
    udp_packet,
    up,
)

REATTACH_REQUEST, REATTACH_REPLY = 0x50, 0x60  # kinds, spec: WIRE-73, WIRE-76


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair.establish()


def test_handshake_carries_device_credential_and_welcome() -> None:
    with Pair() as pair:
        timestamp = time.time_ns()
        handshake = pair.begin_handshake()
        request = pair.gateway.wait("handshake_request")
        _, accepted, sock, peer, device, sent, version, _, credential = request
        assert (sock, peer, device) == (pair.gateway_socket, pair.client_address, public_key(pair.client.private_key))
        assert (version, credential) == (1, CREDENTIAL)
        assert sent >= timestamp
        assert pair.gateway.plane.prepare_accept(accepted, pair.session_id, [CLIENT_INNER], WELCOME)
        pair.client.none("handshake_response", 0.05)
        pair.gateway.plane.finish_accept(accepted)
        response = pair.client.wait("handshake_response")
        assert response[1] == handshake
        assert response[3:] == (pair.session_id, WELCOME, pair.gateway_address)


def test_packets_flow_both_ways(pair: Pair) -> None:
    for packet in [up(b"a"), up(b"b" * 1300), up(b"")]:
        pair.client.send(packet)
        assert pair.gateway.receive() == packet
    pair.gateway.send(down(b"reply"))
    assert pair.client.receive() == down(b"reply")
    stats = pair.client.plane.session_stats(pair.client_session)
    assert (stats["epoch"], stats["tx_packets"], stats["rx_packets"]) == (1, 3, 1)


def test_a_repeated_handshake_gets_the_same_response_and_no_second_fact() -> None:
    with Pair() as pair:
        handshake = pair.begin_handshake()
        request = pair.gateway.wait("handshake_request")
        pair.client.plane.resend_handshake(handshake, pair.client_socket, pair.gateway_address)
        pair.gateway.none("handshake_request", 0.1)
        pair.gateway.plane.prepare_accept(request[1], pair.session_id, [CLIENT_INNER], WELCOME)
        pair.gateway.plane.finish_accept(request[1])
        assert pair.client.wait("handshake_response")
        assert pair.gateway.counter("duplicate_request") == 2


def test_a_rejected_handshake_is_answered_by_silence() -> None:
    with Pair() as pair:
        handshake = pair.begin_handshake()
        pair.gateway.plane.reject_handshake(pair.gateway.wait("handshake_request")[1])
        pair.client.plane.resend_handshake(handshake, pair.client_socket, pair.gateway_address)
        pair.gateway.none("handshake_request")
        assert pair.gateway.counter("sent_datagrams") == 0


def test_handshakes_beyond_the_calm_rate_need_a_cookie() -> None:
    with Pair() as pair:
        for _ in range(260):
            pair.client.plane.cancel_handshake(pair.begin_handshake())
            time.sleep(0.0005)
        pair.begin_handshake()
        deadline = time.monotonic() + 3
        while pair.client.counter("received_datagrams") == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pair.gateway.counter("cookie_sent") > 0
        assert pair.gateway.counter("bad_mac2") > 0
        pair.gateway.wait("handshake_request")


def test_inner_source_must_belong_to_the_session(pair: Pair) -> None:
    pair.client.send(udp_packet("10.9.0.3", SERVER_INNER, b"spoofed"))
    pair.client.send(up(b"honest"))
    assert pair.gateway.receive() == up(b"honest")
    assert pair.gateway.counter("inner_source") == 1


def test_gateway_routes_by_inner_destination(pair: Pair) -> None:
    pair.gateway.send(udp_packet(SERVER_INNER, "10.9.0.99", b"nobody"))
    pair.gateway.send(down(b"mine"))
    assert pair.client.receive() == down(b"mine")
    assert pair.gateway.counter("inner_unroutable") == 1


def test_probe_measures_and_validates(pair: Pair) -> None:
    pair.client.plane.probe_now(pair.client_session, 0)
    fact = pair.client.wait("path_validated")
    assert fact[1:4] == (pair.client_session, 0, pair.gateway_address)
    (stats,) = pair.client.plane.path_stats(pair.client_session)
    assert 0 < stats["min_rtt_ns"] <= stats["srtt_ns"] < 1_000 * MS
    assert stats["peer"] == pair.gateway_address


def test_packets_wait_in_order_while_no_binding_lives(pair: Pair) -> None:
    pair.client.plane.deactivate(pair.client_session)
    packets = [up(bytes([number]) * (1 + number % 7)) for number in range(200)]
    for packet in packets:
        pair.client.send(packet)
    assert pair.gateway.received(0.2) == []
    assert pair.client.plane.session_stats(pair.client_session)["queued"] == 200
    pair.client.plane.activate(pair.client_session, 0)
    assert pair.gateway.received() == packets


def test_a_full_queue_sheds_the_oldest_and_counts_them() -> None:
    with Pair(client_options={"queue_bytes": 10 * len(up(b"x" * 1000))}) as pair:
        pair.establish()
        pair.client.plane.deactivate(pair.client_session)
        packets = [up(bytes([number]) * 1000) for number in range(25)]
        for packet in packets:
            pair.client.send(packet)
        time.sleep(0.2)
        pair.client.plane.activate(pair.client_session, 0)
        assert pair.gateway.received() == packets[-10:]
        assert pair.client.counter("shed") == 15


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


def test_unreported_packets_are_sent_again_and_delivered_once(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        delivered = [up(b"delivered %d" % number) for number in range(10)]
        for packet in delivered:
            pair.client.send(packet)
        assert pair.gateway.received() == delivered
        proxy.blackhole = True
        lost = [up(b"lost %d" % number) for number in range(10)]
        for packet in lost:
            pair.client.send(packet)
        time.sleep(0.1)
        pair.second_path(2)
        pair.reattach(2)
        assert pair.gateway.received() == lost
        assert pair.client.plane.session_stats(pair.client_session)["resent"] == 10


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


def test_control_messages_arrive_whole_and_once(pair: Pair) -> None:
    payload = secrets.token_bytes(5000)
    pair.gateway.plane.send_control(pair.gateway_session, 7, payload)
    assert pair.client.wait("control")[1:] == (pair.client_session, 0, 7, payload)
    pair.client.plane.send_control(pair.client_session, 0, b"", 0)
    assert pair.gateway.wait("control")[1:] == (pair.gateway_session, 0, 0, b"")
    with pytest.raises(ValueError, match="control"):
        pair.client.plane.send_control(pair.client_session, 240, b"")


def test_silence_is_told_once_then_death_then_recovery(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        liveness(pair.client, pair.client_session, 1)
        pair.client.send(up(b"heard"))
        pair.client.none("path_silent", 0.4)
        proxy.blackhole = True
        began = time.monotonic()
        pair.client.send(up(b"unheard"))
        fact = pair.client.wait("path_silent")
        assert time.monotonic() - began < 0.15
        assert fact[1:3] == (pair.client_session, 1)
        assert fact[3] >= fact[4] == 80 * MS
        dead = pair.client.wait("path_dead")
        assert dead[3] >= 160 * MS
        pair.client.none("path_silent", 0.2)
        proxy.blackhole = False
        pair.client.wait("path_heard")
        pair.client.wait("path_validated")


def test_one_way_delivery_is_silence(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        liveness(pair.client, pair.client_session, 1)
        proxy.drop_up = True
        stop = time.monotonic() + 2
        while time.monotonic() < stop:
            pair.gateway.send(down(b"still coming"))
            pair.client.send(up(b"never arrives"))
            pair.client.collect()
            if any(fact[0] == "path_silent" for fact in pair.client.facts):
                break
            time.sleep(0.01)
        pair.client.wait("path_silent", seconds=0.1)


def test_what_is_sent_again_elsewhere_calls_forth_no_report_for_the_dead_path(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        liveness(pair.client, pair.client_session, 1)
        pair.client.send(up(b"arrives"))
        assert pair.gateway.receive() == up(b"arrives")
        pair.gateway.send(down(b"arrives, too"))
        assert pair.client.receive() == down(b"arrives, too")
        proxy.drop_up = True
        pair.client.send(up(b"swallowed"))
        pair.client.wait("path_silent", lambda fact: fact[2] == 1)
        pair.second_path(2)
        pair.reattach(2, zero_rtt=True)
        assert pair.gateway.receive() == up(b"swallowed")
        pair.client.none("path_heard", 0.3)


def test_an_idle_path_is_probed_slowly_and_its_silence_noticed(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        sock, _ = pair.client.open()
        pair.client.plane.set_path(pair.client_session, 1, sock, proxy.address)
        liveness(pair.client, pair.client_session, 1, probe_idle=100, silence_idle=150)
        pair.client.none("path_silent", 1.5)
        seen = proxy.forwarded
        time.sleep(1)
        assert 8 <= (proxy.forwarded - seen) / 2 <= 12
        proxy.blackhole = True
        pair.client.wait("path_silent", seconds=1)


def test_a_moved_peer_is_told_once_and_challenged_before_anything_moves(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        old = pair.gateway.plane.path_stats(pair.gateway_session)[-1]["peer"]
        assert old == proxy.upstream_address
        pair.client.send(up(b"first"))
        assert pair.gateway.receive() == up(b"first")
        proxy.rebind()
        pair.client.send(up(b"second"))
        pair.client.send(up(b"third"))
        assert pair.gateway.received() == [up(b"second"), up(b"third")]
        moved = pair.gateway.wait("peer_moved")
        assert moved[1:] == (pair.gateway_session, 1, old, proxy.upstream_address)
        validated = pair.gateway.wait("path_validated")
        assert validated[3] == proxy.upstream_address
        pair.gateway.none("peer_moved", 0.05)
        assert pair.gateway.plane.path_stats(pair.gateway_session)[-1]["peer"] == old
        pair.gateway.plane.set_peer(pair.gateway_session, 1, proxy.upstream_address)
        pair.gateway.send(down(b"follows"))
        assert pair.client.receive() == down(b"follows")


def test_what_went_to_the_old_address_is_sent_again_to_the_new_one(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        proxy.rebind()
        lost = [down(b"lost %d" % number) for number in range(10)]
        for packet in lost:
            pair.gateway.send(packet)
        assert pair.client.received(0.1) == []
        pair.client.send(up(b"from the new address"))
        moved = pair.gateway.wait("peer_moved")
        pair.gateway.wait("path_validated", lambda fact: fact[3] == moved[4])
        pair.gateway.plane.set_peer(pair.gateway_session, 1, moved[4])
        assert pair.client.received() == lost


def test_a_second_remapping_is_followed_at_once(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        for _ in range(3):
            proxy.rebind()
            pair.client.send(up(b"again"))
            assert pair.gateway.receive() == up(b"again")
            pair.gateway.wait("peer_moved", lambda fact: fact[4] == proxy.upstream_address, 0.5)
        pair.gateway.wait("path_validated", lambda fact: fact[3] == proxy.upstream_address)


def test_a_standby_address_is_proven_before_a_switch(pair: Pair) -> None:
    address = pair.second_path()
    pair.client.plane.probe_now(pair.client_session, 1)
    proven = pair.gateway.wait("path_validated")
    assert proven[1:4] == (pair.gateway_session, 1, address)


def test_replayed_datagrams_are_dropped_and_counted(pair: Pair) -> None:
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 1)
        proxy.record = []
        for number in range(5):
            pair.client.send(up(b"%d" % number))
        assert len(pair.gateway.received()) == 5
        attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        host, port = pair.gateway_address.split(":")
        for datagram in proxy.record:
            attacker.sendto(datagram, (host, int(port)))
        assert pair.gateway.received() == []
        assert pair.gateway.counter("replay_repeated") >= 5
        pair.gateway.none("peer_moved", 0)
        assert select.select([attacker], [], [], 0.1)[0] == []
        attacker.close()


def test_a_flood_of_junk_is_counted_and_gets_no_answer(pair: Pair) -> None:
    host, port = pair.gateway_address.split(":")
    junk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    junk.connect((host, int(port)))
    kinds = [bytes([kind << 4]) + secrets.token_bytes(length) for kind in range(16) for length in (0, 7, 40, 250, 1300)]
    before_sent = pair.gateway.counter("sent_datagrams")
    _send_junk(junk, kinds, 20_000)
    gc.collect()
    before = _resident_kib()
    _send_junk(junk, kinds, 80_000)
    deadline = time.monotonic() + 10
    dropped = 0
    while time.monotonic() < deadline and dropped < 20_000:
        counters = pair.gateway.plane.counters()
        names = (
            "truncated",
            "oversized",
            "unknown_kind",
            "malformed",
            "bad_mac1",
            "unknown_cid",
            "bad_ticket",
            "unexpected_kind",
        )
        dropped = sum(counters[name] for name in names)
        time.sleep(0.05)
    assert dropped >= 20_000
    assert pair.gateway.counter("sent_datagrams") == before_sent
    assert select.select([junk], [], [], 0.1)[0] == []
    assert _resident_kib() - before < 4096
    pair.client.send(up(b"still here"))
    assert pair.gateway.receive() == up(b"still here")
    junk.close()


def test_a_refused_port_is_a_socket_error() -> None:
    client = Node("client")
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.bind(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    number, _ = client.open()
    client.plane.begin_handshake(
        socket=number,
        gateway=f"127.0.0.1:{port}",
        gateway_key=public_key(generate_private_key()),
        timestamp_ns=1,
        credential=b"",
    )
    fact = client.wait("socket_error")
    assert fact[1:3] == (number, 111)
    client.stop()


def test_a_wildcard_gateway_answers_from_the_address_that_was_asked() -> None:
    with Pair() as pair:
        pair.gateway_socket, address = pair.gateway.open("0.0.0.0:0")
        pair.gateway_address = "127.0.0.7:" + address.split(":")[1]
        pair.establish()
        pair.client.send(up(b"ping"))
        assert pair.gateway.receive() == up(b"ping")
        pair.gateway.send(down(b"pong"))
        assert pair.client.receive() == down(b"pong")


def test_ipv6_transports_work() -> None:
    with Pair() as pair:
        pair.gateway_socket, pair.gateway_address = pair.gateway.open("[::1]:0")
        pair.client_socket, pair.client_address = pair.client.open("[::1]:0")
        pair.establish()
        pair.client.send(up(b"six"))
        assert pair.gateway.receive() == up(b"six")


@pytest.mark.parametrize("aead", ["aes", "chacha"])
def test_both_algorithms_carry_packets(aead: str) -> None:
    with Pair(client_options={"aead": aead}) as pair:
        pair.establish()
        pair.client.send(up(aead.encode()))
        assert pair.gateway.receive() == up(aead.encode())


def test_bad_arguments_are_named() -> None:
    key = generate_private_key()
    options: dict[str, Any] = {"mtu": 1400, "queue_bytes": 1, "replay_bytes": 0, "replay_ms": 0, "tun": ""}
    with pytest.raises(ValueError, match="role"):
        Plane(role=cast(Any, "server"), private_key=key, cluster_key=b"", **options)
    with pytest.raises(ValueError, match="private key must have 32 bytes"):
        Plane(role="client", private_key=b"short", cluster_key=b"", **options)
    with pytest.raises(ValueError, match="cluster key"):
        Plane(role="gateway", private_key=key, cluster_key=b"", **options)
    client = Node("client")
    with pytest.raises(ValueError, match="address"):
        client.plane.open_socket(bind="localhost")
    with pytest.raises(OSError, match="assign"):
        client.plane.open_socket(bind="192.0.2.1:0")
    with pytest.raises(KeyError):
        client.plane.session_stats(99)
    client.stop()


def test_stop_is_idempotent_and_frees_descriptors_and_threads() -> None:
    gc.collect()
    before = descriptors_and_threads()
    for _ in range(3):
        with Pair() as pair:
            pair.establish()
            pair.client.plane.stop()
            pair.client.plane.stop()
            with pytest.raises(RuntimeError, match="stopped"):
                pair.client.plane.open_socket(bind="127.0.0.1:0")
    del pair
    gc.collect()
    # Fewer is no fault: what earlier tests left to libraries of their own may end meanwhile.
    assert all(after <= earlier for after, earlier in zip(descriptors_and_threads(), before, strict=True))


def test_keys_never_show(pair: Pair) -> None:
    assert pair.client.private_key.hex() not in repr(pair.client.plane)
    assert backend_info()["protocol_version"] == 1


def _send_junk(sock: socket.socket, kinds: list[bytes], count: int) -> None:
    for number in range(count):
        try:
            sock.send(kinds[number % len(kinds)])
        except OSError:
            time.sleep(0.001)


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def descriptors_and_threads() -> tuple[int, int]:
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))
