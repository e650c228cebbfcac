"""A ticket names a session and proves nothing: forged, stolen and outlived ones move nobody and leave nothing."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator

import pytest

from native import reference as ref
from native.harness import Pair, Proxy, Second, down, up

TICKET = slice(1, 61)
KINDS = {0x50: "reattach request", 0x80: "standby probe"}


class Stranger:
    """Sends datagrams to a gateway in his own name and hears what comes back."""

    def __init__(self, gateway: str) -> None:
        host, _, port = gateway.rpartition(":")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((host, int(port)))
        self._socket.settimeout(0.2)

    def send(self, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            self._socket.send(datagram)

    def close(self) -> None:
        """Fails if anything has come back."""
        with self._socket, contextlib.suppress(TimeoutError):
            assert self._socket.recv(2048) == b"", "a stranger hears nothing"


@contextlib.contextmanager
def stranger(gateway: str) -> Iterator[Stranger]:
    one = Stranger(gateway)
    yield one
    one.close()


@pytest.fixture
def seen(pair: Pair) -> Iterator[dict[int, bytes]]:
    """What an observer has seen of a session that lives on, on its way to its gateway and to another one, by kind."""
    with Proxy(pair.gateway_address) as proxy, Second(pair) as second, Proxy(second.address) as elsewhere:
        proxy.record, elsewhere.record = [], []
        pair.path_through(proxy, 1)
        second.path(2, standby=True, through=elsewhere.address)
        pair.client.plane.probe_now(pair.client_session, 2)
        pair.client.wait("standby_answered")
        found = {datagram[0]: datagram for datagram in (*proxy.record, *elsewhere.record) if datagram[0] in KINDS}
        assert set(found) == set(KINDS)
        pair.client.plane.drop_path(pair.client_session, 2)
        yield found


def stolen(ticket: bytes, pair: Pair) -> bytes:
    """A request with a ticket of somebody else, sealed with keys of the thief's own."""
    return ref.request(
        secrets.token_bytes(32), ticket=ticket, client_nonce=secrets.token_bytes(32), next_epoch=pair.epoch + 1,
        expected_version=pair.version, age_ms=0, path=1, cause=3,
        gateway_public_key=ref.public_key(pair.gateway.private_key), token=b"",
    )  # fmt: skip


def lives(pair: Pair) -> None:
    """The session carries packets both ways and still moves."""
    pair.client.send(up(b"there"))
    assert pair.gateway.receive() == up(b"there")
    pair.gateway.send(down(b"back"))
    assert pair.client.receive() == down(b"back")
    pair.second_path(3)
    pair.reattach(3)


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
def test_a_ticket_with_any_byte_changed_is_counted_and_dropped(pair: Pair, seen: dict[int, bytes], kind: int) -> None:
    forged = []
    for place in range(TICKET.start, TICKET.stop):
        datagram = bytearray(seen[kind])
        datagram[place] ^= 1 << secrets.randbelow(8)
        forged.append(bytes(datagram))
    with stranger(pair.gateway_address) as thief:
        thief.send(forged)
        pair.gateway.none("reattach_request")
    assert pair.gateway.counter("bad_ticket") == len(forged) == 60
    lives(pair)


def test_the_ticket_of_another_cluster_names_nobody(pair: Pair, seen: dict[int, bytes]) -> None:
    key = ref.derived_ticket_key(secrets.token_bytes(32))
    ticket = ref.ticket(key, secrets.token_bytes(12), pair.session_id, 0, 1)
    probe = ref.standby_probe(
        secrets.token_bytes(32), ticket=ticket, challenge=secrets.token_bytes(16),
        gateway_public_key=ref.public_key(pair.gateway.private_key),
    )  # fmt: skip
    with stranger(pair.gateway_address) as thief:
        thief.send([stolen(ticket, pair), probe])
        pair.gateway.none("reattach_request")
    assert pair.gateway.counter("bad_ticket") == 2
    lives(pair)


def test_a_stolen_ticket_moves_nothing_at_the_gateway_that_has_the_session(pair: Pair, seen: dict[int, bytes]) -> None:
    with stranger(pair.gateway_address) as thief:
        thief.send([stolen(seen[0x50][TICKET], pair) for _ in range(50)])
        pair.gateway.none("reattach_request")
    assert pair.gateway.counter("bad_tag") == 50
    lives(pair)


def test_a_stolen_ticket_takes_nothing_to_another_gateway(pair: Pair, second: Second, seen: dict[int, bytes]) -> None:
    with stranger(second.address) as thief:
        thief.send([stolen(seen[0x50][TICKET], pair)])
        unknown = second.node.wait("reattach_request")
        assert (unknown[2], unknown[3], unknown[6]) == (0, pair.session_id, False)
        candidate = second.candidate()
        second.node.plane.retry_reattach(unknown[1])
        refused = second.node.wait("reattach_request")
        assert (refused[1], refused[2], refused[6]) == (unknown[1], candidate, False)
    second.node.plane.close_session(candidate)
    with pytest.raises(KeyError):
        second.node.plane.drop_reattach(unknown[1])
    lives(pair)
    second.path(1)
    second.grant()
    pair.client.plane.finish_reattach(pair.client_session)
    pair.client.send(up(b"by right"))
    assert second.node.receive() == up(b"by right")


def test_the_ticket_of_a_session_that_has_ended_brings_nothing_back(pair: Pair, seen: dict[int, bytes]) -> None:
    pair.gateway.plane.close_session(pair.gateway_session)
    copied = [seen[0x50], stolen(seen[0x50][TICKET], pair)]
    with stranger(pair.gateway_address) as thief:
        thief.send(copied)
        for _ in copied:
            fact = pair.gateway.wait("reattach_request")
            assert (fact[2], fact[3], fact[6]) == (0, pair.session_id, False)
            pair.gateway.plane.drop_reattach(fact[1])
            with pytest.raises(KeyError):
                pair.gateway.plane.drop_reattach(fact[1])
    assert pair.gateway.counter("unknown_session") == len(copied)
    pair.gateway.send(down(b"nobody's"))
    pair.gateway.received()
    assert pair.gateway.counter("inner_unroutable") == 1
