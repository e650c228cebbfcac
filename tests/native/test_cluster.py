"""What gateways of one cluster owe each other: the deadline, takeovers, ticket keys."""

from __future__ import annotations

import secrets
import time

import pytest

from jumpvpn._native import boottime_ns, generate_private_key, public_key
from native.harness import CLIENT_INNER, MS, WELCOME, Node, Pair, Second, down, up

NEVER = 2**64 - 1


# --- the deadline -----------------------------------------------------------------------------------------------------


def test_past_the_deadline_nothing_is_sent_or_delivered_and_packets_wait(pair: Pair) -> None:
    gateway = pair.gateway
    gateway.plane.set_deadline(boottime_ns() + 3_600_000 * MS)
    pair.client.send(up(b"before"))
    assert gateway.receive() == up(b"before")
    gateway.plane.set_deadline(0)
    sent = gateway.counter("sent_datagrams")
    waiting = [down(b"%d" % number) for number in range(50)]
    for packet in waiting:
        gateway.send(packet)
    pair.client.send(up(b"unheard"))
    pair.client.plane.probe_now(pair.client_session, 0)
    gateway.plane.send_control(pair.gateway_session, 5, b"unsaid")
    pair.client.none("path_validated")
    assert (gateway.received(0.1), pair.client.received(0.1)) == ([], [])
    assert gateway.counter("sent_datagrams") == sent
    assert gateway.counter("fenced") >= 53
    assert gateway.plane.session_stats(pair.gateway_session)["queued"] == 50
    gateway.plane.set_deadline(NEVER)
    assert pair.client.received() == waiting
    pair.client.none("control", 0)
    pair.client.send(up(b"after"))
    assert gateway.received()[-1] == up(b"after")


def test_the_deadline_passes_by_itself(pair: Pair) -> None:
    pair.gateway.plane.set_deadline(boottime_ns() + 300 * MS)
    pair.gateway.send(down(b"in time"))
    assert pair.client.receive() == down(b"in time")
    time.sleep(0.35)  # the boot clock itself has to pass it
    pair.gateway.send(down(b"too late"))
    assert pair.client.received() == []


def test_past_the_deadline_a_full_queue_sheds() -> None:
    with Pair(gateway_options={"queue_bytes": 10 * len(down(b"x" * 1000))}) as pair:
        pair.establish()
        pair.gateway.plane.set_deadline(0)
        packets = [down(bytes([number]) * 1000) for number in range(25)]
        for packet in packets:
            pair.gateway.send(packet)
        assert pair.client.received() == []
        assert pair.gateway.counter("shed") == 15
        pair.gateway.plane.set_deadline(NEVER)
        assert pair.client.received() == packets[-10:]


def test_past_the_deadline_nothing_is_decided(pair: Pair) -> None:
    gateway = pair.gateway.plane
    other = Node("client")
    sock, _ = other.open()
    other.plane.begin_handshake(
        socket=sock,
        gateway=pair.gateway_address,
        gateway_key=public_key(pair.gateway.private_key),
        timestamp_ns=1,
        credential=b"",
    )
    handshake = pair.gateway.wait("handshake_request")[1]
    gateway.prepare_accept(handshake, secrets.token_bytes(16), ["10.9.0.9"], WELCOME)
    pair.second_path()
    pair.ask(1)
    request = pair.gateway.wait("reattach_request")
    pair.sealed = gateway.prepare_reattach(request[1])
    pair.client.plane.begin_rekey(pair.client_session)
    rekey = pair.gateway.wait("rekey_request")[1]
    gateway.prepare_rekey(rekey)
    gateway.set_deadline(boottime_ns())
    for order in (
        lambda: gateway.finish_accept(handshake),
        lambda: gateway.commit_reattach(request[1], 2),
        lambda: gateway.commit_rekey(rekey),
    ):
        with pytest.raises(RuntimeError, match="deadline"):
            order()
    gateway.set_deadline(NEVER)
    gateway.commit_reattach(request[1], 2)
    assert pair.client.wait("reattach_reply")[3] == 0
    gateway.finish_accept(handshake)
    other.wait("handshake_response")
    other.stop()


def test_a_denial_past_the_deadline_leaves_the_request_new(pair: Pair) -> None:
    pair.second_path()
    pair.ask(1)
    request = pair.gateway.wait("reattach_request")
    pair.gateway.plane.set_deadline(0)
    pair.gateway.plane.deny_reattach(request[1], 17, 1)
    pair.client.none("reattach_reply", 0.1)
    pair.gateway.plane.set_deadline(NEVER)
    pair.client.plane.resend_reattach(pair.client_session)
    again = pair.gateway.wait("reattach_request")
    assert (again[6], again[14]) == (True, True)


def test_past_the_deadline_nobody_is_heard(pair: Pair) -> None:
    pair.second_path()
    pair.gateway.plane.set_deadline(0)
    pair.ask(1)
    pair.begin_handshake()
    pair.gateway.none("reattach_request")
    pair.gateway.none("handshake_request", 0)
    pair.gateway.plane.set_deadline(NEVER)
    pair.client.plane.resend_reattach(pair.client_session)
    assert pair.gateway.wait("reattach_request")[6] is True


def test_a_client_has_no_deadline(pair: Pair) -> None:
    with pytest.raises(RuntimeError, match="client"):
        pair.client.plane.set_deadline(0)


# --- takeover ---------------------------------------------------------------------------------------------------------


def test_a_session_moves_to_a_gateway_that_restores_it_on_demand(pair: Pair, second: Second) -> None:
    address = second.path()
    pair.ask(1)
    unknown = second.node.wait("reattach_request")
    assert (unknown[2], unknown[3], unknown[6]) == (0, pair.session_id, False)
    session = second.candidate()
    second.node.plane.retry_reattach(unknown[1])
    request = second.node.wait("reattach_request")
    assert request[1:7] == (unknown[1], session, pair.session_id, second.socket, address, True)
    assert request[8:10] == (2, 1)
    assert (request[11], request[12], request[14]) == (1, 3, True)
    second.node.send(down(b"nobody's yet"))
    second.node.received(0.1)
    assert second.node.counter("inner_unroutable") == 1
    sealed = second.node.plane.prepare_reattach(request[1])
    second.node.plane.commit_reattach(request[1], 2)
    assert pair.client.wait("reattach_reply")[3:6] == (0, 2, 2)
    pair.client.plane.finish_reattach(pair.client_session)
    pair.client.send(up(b"here"))
    assert second.node.receive() == up(b"here")
    second.node.send(down(b"mine"))
    assert pair.client.receive() == down(b"mine")
    assert sealed != pair.sealed


def test_an_answer_that_comes_before_the_commit_waits_for_it(pair: Pair, second: Second) -> None:
    second.path()
    pair.ask(1)
    unknown = second.node.wait("reattach_request")
    session = second.candidate()
    second.node.plane.retry_reattach(unknown[1])
    request = second.node.wait("reattach_request")
    second.node.plane.prepare_reattach(request[1])
    answers = [down(b"answer %d" % number) for number in range(5)]
    for packet in answers:
        second.node.send(packet)
    second.node.received(0.1)
    assert second.node.plane.session_stats(session)["queued"] == len(answers)
    second.node.plane.commit_reattach(request[1], 2)
    pair.client.wait("reattach_reply")
    pair.client.plane.finish_reattach(pair.client_session, "lost")
    assert pair.client.received() == answers
    assert second.node.counter("inner_unroutable") == 0


def test_a_retry_that_cannot_be_opened_is_told_and_forgotten(pair: Pair, second: Second) -> None:
    second.path()
    pair.ask(1)
    unknown = second.node.wait("reattach_request")[1]
    second.node.plane.retry_reattach(unknown)
    absent = second.node.wait("reattach_request")
    assert absent[1:4] == (unknown, 0, pair.session_id)
    assert absent[6] is False
    with pytest.raises(KeyError):
        second.node.plane.retry_reattach(unknown)
    with Pair() as stranger:
        stranger.cluster_key, stranger.session_id = pair.cluster_key, pair.session_id
        stranger.gateway.stop()
        stranger.gateway = Node("gateway", pair.cluster_key)
        stranger.gateway_socket, stranger.gateway_address = stranger.gateway.open()
        stranger.establish()
        foreign = stranger.sealed
    pair.client.plane.resend_reattach(pair.client_session)
    unknown = second.node.wait("reattach_request")[1]
    session = second.node.plane.restore(pair.session_id, foreign, [CLIENT_INNER], routed=False)
    second.node.plane.retry_reattach(unknown)
    refused = second.node.wait("reattach_request")
    assert (refused[1], refused[2], refused[6]) == (unknown, session, False)
    with pytest.raises(KeyError):
        second.node.plane.drop_reattach(unknown)


def test_a_request_that_was_known_cannot_be_retried(pair: Pair) -> None:
    pair.second_path()
    pair.ask(1)
    request = pair.gateway.wait("reattach_request")[1]
    with pytest.raises(RuntimeError, match="was here"):
        pair.gateway.plane.retry_reattach(request)


def test_a_request_moves_a_session_only_to_the_gateway_that_it_names(pair: Pair, second: Second) -> None:
    second.path()
    session = pair.client_session
    pair.client.plane.set_path(session, 2, pair.client_socket, second.address)  # the birth's gateway is named
    pair.ask(2)
    unknown = second.node.wait("reattach_request")[1]
    second.candidate()
    second.node.plane.retry_reattach(unknown)
    assert second.node.wait("reattach_request")[6] is False
    assert second.node.counter("wrong_gateway") == 1
    pair.client.plane.resend_reattach(session)
    second.node.none("reattach_request")
    assert second.node.counter("wrong_gateway") == 2
    pair.client.plane.set_path(session, 3, pair.client_socket, pair.gateway_address, gateway_key=second.key)
    pair.ask(3)
    pair.gateway.none("reattach_request")
    assert pair.gateway.counter("wrong_gateway") == 1
    pair.ask(1)
    assert second.node.wait("reattach_request")[6] is True


def test_a_restored_session_replaces_the_one_that_is_here(pair: Pair) -> None:
    replaced = pair.gateway.plane.restore(pair.session_id, pair.sealed, [CLIENT_INNER])
    assert replaced != pair.gateway_session
    with pytest.raises(KeyError):
        pair.gateway.plane.session_stats(pair.gateway_session)
    pair.gateway_session = replaced
    pair.client.plane.probe_now(pair.client_session, 0)
    pair.client.wait("hinted")
    pair.second_path()
    pair.reattach(1)
    pair.gateway.send(down(b"routed"))
    assert pair.client.receive() == down(b"routed")


def test_a_candidate_is_routed_by_order(pair: Pair) -> None:
    restored = pair.gateway.plane.restore(pair.session_id, pair.sealed, [CLIENT_INNER], routed=False)
    pair.gateway.send(down(b"lost"))
    pair.gateway.received(0.1)
    assert pair.gateway.counter("inner_unroutable") == 1
    for _ in range(2):
        pair.gateway.plane.route_inner(restored)
    pair.gateway.send(down(b"waits"))
    pair.gateway.received(0.1)
    assert pair.gateway.plane.session_stats(restored)["queued"] == 1
    pair.gateway.plane.close_session(restored)
    pair.gateway.send(down(b"lost"))
    pair.gateway.received(0.1)
    assert pair.gateway.counter("inner_unroutable") == 2


# --- ticket keys ------------------------------------------------------------------------------------------------------


def test_ticket_keys_rotate_and_old_ones_end(pair: Pair) -> None:
    first, later = secrets.token_bytes(32), secrets.token_bytes(32)
    pair.gateway.plane.set_ticket_keys([first])
    pair.second_path()
    pair.ask(1)
    pair.gateway.none("reattach_request")
    assert pair.gateway.counter("bad_ticket") == 1
    with Pair() as fresh:
        fresh.gateway.plane.set_ticket_keys([first])
        fresh.establish()
        fresh.gateway.plane.set_ticket_keys([later, first])
        fresh.second_path()
        fresh.reattach(1)
        assert fresh.gateway.counter("bad_ticket") == 0


def test_ticket_keys_are_checked(pair: Pair) -> None:
    plane = pair.gateway.plane
    for keys in ([], [generate_private_key()] * 5):
        with pytest.raises(ValueError, match="1 to 4 ticket keys"):
            plane.set_ticket_keys(keys)
    with pytest.raises(ValueError, match="ticket key must have 32 bytes"):
        plane.set_ticket_keys([b"short"])
    with pytest.raises(RuntimeError, match="client"):
        pair.client.plane.set_ticket_keys([generate_private_key()])
