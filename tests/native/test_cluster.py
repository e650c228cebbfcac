"""What gateways of one cluster owe each other: the deadline, takeovers, standby probes, ticket keys."""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from jumpvpn._native import boottime_ns, generate_private_key, public_key
from native.harness import CLIENT_INNER, MS, WELCOME, Node, Pair, Proxy, down, liveness, up

NEVER = 2**64 - 1


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair.establish()


class Second:
    """Another gateway of a pair's cluster, with a path of the client to it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.node = Node("gateway", pair.cluster_key)
        self.key = public_key(self.node.private_key)
        self.socket, self.address = self.node.open()
        self.session = 0

    def __enter__(self) -> Second:
        return self

    def __exit__(self, *_: object) -> None:
        self.node.stop()

    def path(self, path: int = 1, *, standby: bool = False, through: str = "") -> str:
        """Opens a path of the client to this gateway; returns the client's address."""
        number, address = self.pair.client.open()
        session, peer = self.pair.client_session, through or self.address
        self.pair.client.plane.set_path(session, path, number, peer, gateway_key=self.key, standby=standby)
        return address

    def candidate(self) -> int:
        """Restores the session from its record, without routes."""
        self.session = self.node.plane.restore(self.pair.session_id, self.pair.sealed, [CLIENT_INNER], routed=False)
        return self.session

    def grant(self, *, zero_rtt: bool = False) -> tuple[Any, ...]:
        """The client asks on path 1 and this gateway takes the session over; returns the request with its proof."""
        self.pair.ask(1, zero_rtt=zero_rtt)
        unknown = self.node.wait("reattach_request")
        self.candidate()
        self.node.plane.retry_reattach(unknown[1])
        request = self.node.wait("reattach_request")
        self.node.plane.prepare_reattach(request[1])
        self.node.plane.commit_reattach(request[1], self.pair.version + 1)
        assert self.pair.client.wait("reattach_reply")[3] == 0
        return request

    def take_over(self, handover: Literal["same", "lost", "drained"], *, zero_rtt: bool = False) -> None:
        """All of a move to this gateway."""
        self.grant(zero_rtt=zero_rtt)
        self.pair.client.plane.finish_reattach(self.pair.client_session, handover)
        self.node.wait("epoch_confirmed")


@pytest.fixture
def second(pair: Pair) -> Iterator[Second]:
    with Second(pair) as second:
        yield second


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
