"""Paths between two planes over loopback: silence, death, idleness, and peers that move."""

from __future__ import annotations

import time

from native.harness import MS, Pair, Proxy, down, liveness, up


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
