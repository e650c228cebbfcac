"""A client's ways to other gateways of a cluster: standby probes, and what a change of gateway closes and keeps."""

from __future__ import annotations

import secrets
import select
import socket
import time
from typing import Literal

import pytest

from jumpvpn._native import public_key
from native.harness import MS, Node, Pair, Proxy, Second, down, liveness, up

DATA_BYTES = 600  # of an inner packet: more than anything else of a session has

# --- standby paths ----------------------------------------------------------------------------------------------------


def test_a_standby_path_is_probed_and_answered_without_state(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    liveness(pair.client, pair.client_session, 1, probe_idle=20)
    answer = pair.client.wait("standby_answered")
    assert answer[1:4] == (pair.client_session, 1, second.address)
    assert 0 < answer[4] < 1000 * MS
    assert answer[5] is False
    second.node.plane.set_draining(True)
    pair.client.wait("standby_answered", lambda fact: fact[5])
    second.node.plane.set_draining(False)
    pair.client.facts.clear()
    pair.client.wait("standby_answered", lambda fact: not fact[5])
    assert second.node.counter("standby_answered") >= 3
    second.node.collect()
    assert second.node.facts == []
    stats = {path["path"]: path for path in pair.client.plane.path_stats(pair.client_session)}
    assert 0 < stats[1]["min_rtt_ns"] <= answer[4]
    assert not stats[1]["silent"]


def test_an_answer_proves_the_address_for_a_request(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    pair.client.plane.probe_now(pair.client_session, 1)
    pair.client.wait("standby_answered")
    assert second.grant()[13] is True


def test_without_an_answer_a_request_has_no_proof_of_its_address(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    assert second.grant()[13] is False


def test_a_standby_path_is_silent_then_dead_then_heard(pair: Pair, second: Second) -> None:
    with Proxy(second.address) as proxy:
        second.path(standby=True, through=proxy.address)
        liveness(pair.client, pair.client_session, 1, probe_idle=20)
        pair.client.wait("standby_answered")
        pair.client.none("path_silent", 0.4)
        proxy.blackhole = True
        silent = pair.client.wait("path_silent")
        assert silent[1:3] == (pair.client_session, 1)
        pair.client.wait("path_dead")
        proxy.blackhole = False
        pair.client.wait("path_heard")
        pair.client.facts.clear()
        pair.client.wait("standby_answered")


def test_standby_probes_are_answered_only_by_the_gateway_that_they_name(pair: Pair, second: Second) -> None:
    session, plane = pair.client_session, pair.client.plane
    plane.set_path(session, 1, pair.client_socket, pair.gateway_address, gateway_key=second.key, standby=True)
    plane.probe_now(session, 1)
    pair.client.none("standby_answered")
    assert pair.gateway.counter("wrong_gateway") == 1
    assert pair.gateway.counter("standby_answered") == 0
    stranger = Node("gateway", secrets.token_bytes(32))
    _, address = stranger.open()
    key = public_key(stranger.private_key)
    plane.set_path(session, 2, pair.client_socket, address, gateway_key=key, standby=True)
    plane.probe_now(session, 2)
    pair.client.none("standby_answered")
    assert stranger.counter("bad_ticket") == 1
    assert stranger.counter("sent_datagrams") == 0
    stranger.stop()


def test_forged_standby_probes_get_no_answer_and_a_copy_no_more_than_it_sent(pair: Pair, second: Second) -> None:
    with Proxy(second.address) as proxy:
        proxy.record = []
        second.path(standby=True, through=proxy.address)
        pair.client.plane.probe_now(pair.client_session, 1)
        pair.client.wait("standby_answered")
        (probe,) = proxy.record
    attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    host, port = second.address.split(":")
    attacker.connect((host, int(port)))
    for at in (0, 1, 40, 61, 80, 156):
        attacker.send(probe[:at] + bytes([probe[at] ^ 1]) + probe[at + 1 :])
    attacker.send(probe[:-1])
    attacker.send(probe + b"\0")
    assert select.select([attacker], [], [], 0.2)[0] == []
    attacker.send(probe)
    assert select.select([attacker], [], [], 2)[0]
    assert len(attacker.recv(2048)) <= len(probe)
    attacker.close()


def test_forged_and_repeated_answers_are_ignored(pair: Pair) -> None:
    gateway = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    gateway.bind(("127.0.0.1", 0))
    address = "{}:{}".format(*gateway.getsockname())
    session, plane = pair.client_session, pair.client.plane
    with Second(pair) as second:
        plane.set_path(session, 1, pair.client_socket, address, gateway_key=second.key, standby=True)
        plane.probe_now(session, 1)
        probe, client = gateway.recvfrom(2048)
        host, port = second.address.split(":")
        relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        relay.sendto(probe, (host, int(port)))
        answer = relay.recv(2048)
        gateway.sendto(answer[:-1] + bytes([answer[-1] ^ 1]), client)
        pair.client.none("standby_answered")
        assert pair.client.counter("bad_tag") == 1
        relay.sendto(answer, client)  # from an address that was not asked
        pair.client.none("standby_answered")
        gateway.sendto(answer, client)
        pair.client.wait("standby_answered")
        gateway.sendto(answer, client)
        pair.client.none("standby_answered")
        assert pair.client.counter("unsolicited_reply") == 2
        relay.close()
    gateway.close()


def test_a_gateway_past_its_deadline_answers_no_standby_probe(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    second.node.plane.set_deadline(0)
    pair.client.plane.probe_now(pair.client_session, 1)
    pair.client.none("standby_answered")
    assert second.node.counter("fenced") == 1


def test_a_standby_path_carries_nothing_before_a_reattach(pair: Pair, second: Second) -> None:
    session, plane = pair.client_session, pair.client.plane
    second.path(standby=True)
    with pytest.raises(RuntimeError, match="after a reattach"):
        plane.activate(session, 1)
    with pytest.raises(RuntimeError, match="no messages"):
        plane.send_control(session, 1, b"", 1)
    with pytest.raises(RuntimeError, match="no standby"):
        plane.set_path(session, 0, pair.client_socket, pair.gateway_address, standby=True)
    with pytest.raises(RuntimeError, match="client"):
        pair.gateway.plane.set_path(pair.gateway_session, 1, pair.gateway_socket, pair.client_address, standby=True)
    with pytest.raises(RuntimeError, match="client"):
        plane.set_draining(True)
    plane.drop_path(session, 0)
    with pytest.raises(RuntimeError, match="no path"):
        plane.send_control(session, 1, b"")
    pair.client.send(up(b"waits"))
    assert pair.gateway.received() == []
    assert second.node.counter("received_datagrams") == 0


# --- change of gateway ------------------------------------------------------------------------------------------------


def swallow(pair: Pair, proxy: Proxy) -> None:
    """The client sends packets on path 2 that nobody reports: they may have been delivered, for all it knows."""
    pair.path_through(proxy, 2)
    proxy.blackhole = True
    for number in range(10):
        pair.client.send(up(b"swallowed %d" % number))
    pair.client.none("path_heard", 0.1)


@pytest.mark.parametrize("handover", ["lost", "drained"])
def test_another_gateway_gets_nothing_that_the_one_before_may_have_delivered(
    pair: Pair, second: Second, handover: Literal["lost", "drained"]
) -> None:
    with Proxy(pair.gateway_address) as proxy:
        swallow(pair, proxy)
        second.path(standby=True)
        pair.client.plane.deactivate(pair.client_session)
        waited = [up(b"waited %d" % number) for number in range(5)]
        for packet in waited:
            pair.client.send(packet)
        second.take_over(handover)
        assert second.node.received() == waited
        assert second.node.counter("not_bound") == 0
        assert second.node.counter("unknown_cid") == 0
        assert pair.client.plane.session_stats(pair.client_session)["resent"] == 0


def test_early_data_to_another_gateway_leaves_alone_and_arrives_once(pair: Pair, second: Second) -> None:
    with Proxy(pair.gateway_address) as proxy:
        swallow(pair, proxy)
        second.path(standby=True)
        pair.ask(1, zero_rtt=True)
        early = [up(b"early %d" % number) for number in range(5)]
        for packet in early:
            pair.client.send(packet)
        unknown = second.node.wait("reattach_request")
        second.node.received(0.1)
        assert second.node.counter("unknown_cid") == len(early)
        second.candidate()
        second.node.plane.retry_reattach(unknown[1])
        request = second.node.wait("reattach_request")
        second.node.plane.prepare_reattach(request[1])
        second.node.plane.commit_reattach(request[1], 9)
        pair.client.wait("reattach_reply")
        pair.client.plane.finish_reattach(pair.client_session, "lost")
        assert second.node.received() == early
        assert second.node.counter("not_bound") == 0


def test_after_a_lost_gateway_nothing_of_it_is_taken(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    second.take_over("lost")
    pair.gateway.send(down(b"stale"))
    assert pair.client.received() == []
    assert pair.client.counter("unknown_cid") >= 1
    second.node.send(down(b"current"))
    assert pair.client.receive() == down(b"current")


def test_a_drained_gateway_is_heard_until_the_next_one_speaks(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    second.take_over("drained")
    pair.gateway.send(down(b"last words"))
    assert pair.client.receive() == down(b"last words")
    second.node.send(down(b"current"))
    assert pair.client.receive() == down(b"current")
    pair.gateway.send(down(b"stale"))
    assert pair.client.received() == []
    assert pair.client.counter("unknown_cid") >= 1


@pytest.mark.parametrize("ordered", [False, True])
def test_the_last_words_of_a_drained_gateway_come_before_the_next_ones(
    pair: Pair, second: Second, ordered: bool
) -> None:
    """They arrive later, because their way is longer; also when the move is not yet ordered, only asked for."""
    with Proxy(pair.gateway_address) as before, Proxy(second.address) as after:
        pair.path_through(before, 2)
        second.path(standby=True, through=after.address)
        second.grant(leaving=not ordered)
        if ordered:
            pair.client.plane.finish_reattach(pair.client_session, "drained")
            second.node.wait("epoch_confirmed")
        before.kept_down, after.kept_down = [], []
        last, next_ones = ([down(word + bytes(DATA_BYTES)) for word in words] for words in ((b"a", b"b"), (b"c", b"d")))
        for node, packets in (pair.gateway, last), (second.node, next_ones):
            for packet in packets:
                node.send(packet)
        forwarded(before, len(last))
        forwarded(after, len(next_ones))
        after.release()
        before.release()
        assert pair.client.received() == last + next_ones
        assert pair.client.counter("unknown_cid") == 0
        pair.gateway.send(down(b"stale" + bytes(DATA_BYTES)))
        forwarded(before, 1)
        before.release()
        assert pair.client.received() == []
        assert pair.client.counter("unknown_cid") >= 1


def forwarded(proxy: Proxy, count: int) -> None:
    """Waits until ``count`` datagrams with inner packets are kept by ``proxy``; those of measurements do not count."""
    deadline = time.monotonic() + 10
    while proxy.kept_down is None or len([one for one in proxy.kept_down if len(one) >= DATA_BYTES]) < count:
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.001)


def test_two_gateways_never_deliver_in_turn_even_before_the_order(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    second.grant()
    pair.gateway.send(down(b"old"))
    assert pair.client.receive() == down(b"old")
    second.node.send(down(b"current"))
    assert pair.client.receive() == down(b"current")
    pair.gateway.send(down(b"stale"))
    assert pair.client.received() == []
    pair.client.plane.finish_reattach(pair.client_session, "drained")
    second.node.send(down(b"goes on"))
    assert pair.client.receive() == down(b"goes on")


def test_an_abandoned_move_keeps_the_gateway(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    second.grant()
    pair.client.plane.abandon_reattach(pair.client_session)
    pair.gateway.send(down(b"still"))
    assert pair.client.receive() == down(b"still")
    pair.client.send(up(b"here"))
    assert pair.gateway.receive() == up(b"here")


def test_after_a_move_paths_are_probed_as_their_gateways_need(pair: Pair, second: Second) -> None:
    for path in (0, 1):
        liveness(pair.client, pair.client_session, path, probe_idle=20)
    second.path(standby=True)
    pair.client.wait("standby_answered", lambda fact: fact[2] == 1)
    second.take_over("lost")
    pair.client.wait("path_validated", lambda fact: fact[2] == 1)
    answer = pair.client.wait("standby_answered", lambda fact: fact[2] == 0)
    assert answer[3] == pair.gateway_address
    pair.client.none("path_silent", 0.3)
    with pytest.raises(RuntimeError, match="after a reattach"):
        pair.client.plane.activate(pair.client_session, 0)


def test_what_a_restored_epoch_brings_is_never_delivered(pair: Pair, second: Second) -> None:
    second.path(standby=True)
    with Proxy(pair.gateway_address) as proxy:
        pair.path_through(proxy, 2)
        proxy.record = []
        pair.client.send(up(b"delivered"))
        assert pair.gateway.receive() == up(b"delivered")
        second.take_over("lost")
        host, port = second.address.split(":")
        attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for datagram in proxy.record:
            attacker.sendto(datagram, (host, int(port)))
        attacker.close()
    assert second.node.received() == []
