"""The packet path, by way of the module that the runtime uses: handshakes, packets, sockets, hostile datagrams."""

from __future__ import annotations

import gc
import resource
import secrets
import select
import socket
import time
from pathlib import Path
from typing import Any, cast

import pytest

from jumpvpn._native import Plane, backend_info, generate_private_key, public_key
from native.harness import CLIENT_INNER, CREDENTIAL, MS, SERVER_INNER, WELCOME, Node, Pair, Proxy, down, udp_packet, up


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


def test_control_messages_arrive_whole_and_once(pair: Pair) -> None:
    payload = secrets.token_bytes(5000)
    pair.gateway.plane.send_control(pair.gateway_session, 7, payload)
    assert pair.client.wait("control")[1:] == (pair.client_session, 0, 7, payload)
    pair.client.plane.send_control(pair.client_session, 0, b"", 0)
    assert pair.gateway.wait("control")[1:] == (pair.gateway_session, 0, 0, b"")
    with pytest.raises(ValueError, match="control"):
        pair.client.plane.send_control(pair.client_session, 240, b"")


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
