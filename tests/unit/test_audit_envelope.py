"""The envelope: every record has every field; what the catalogue does not know cannot be said."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
import rfc8785

from jumpvpn.audit.addresses import shown_address, source_prefix
from jumpvpn.audit.catalogue import CATALOGUE, Severity, severity_of
from jumpvpn.audit.chain import canonical
from jumpvpn.audit.envelope import Context, Record, build_record
from jumpvpn.values import DomainEvent, TransportId, TransportView

CONTEXT = Context("gw-1", "c1", "b7", 1_790_000_000_040, 81_240, "1.4", "d" * 64)
FIELDS = [
    "v", "event", "severity", "time_ms", "mono_ms", "boot_id", "session_uid", "state_version", "idx", "n", "prev_state",
    "state", "reason", "contributing", "node_id", "cluster_id", "owner_epoch", "policy_version", "policy_digest",
    "transport", "cause", "data", "chain", "seq", "prev", "hash",
]  # fmt: skip


def a_change(**changes: object) -> DomainEvent:
    values: dict[str, object] = {
        "name": "session.state_change",
        "reason": "reattach_success",
        "lane": "S",
        "session": "9f2c",
        "state_version": 4,
        "prev_state": "RECOVERING",
        "state": "ATTACHED",
        "owner_epoch": 3,
        "transport": TransportView(TransportId("lte-b"), "udp", "203.0.113.1:443", "198.51.100.7:40112", 2),
        "data": {"recovery_ms": 412, "attempts": 1},
    }
    return DomainEvent(**{**values, **changes})  # type: ignore[arg-type]


def test_every_record_has_every_field_of_the_envelope() -> None:
    record = build_record(a_change(), CONTEXT, idx=2, n=2)
    assert sorted(json.loads(canonical(record))) == sorted(FIELDS)
    assert (record.severity, record.idx, record.n) == (1, 2, 2)
    assert record.transport == {
        "id": "lte-b",
        "proto": "udp",
        "local": "203.0.113.1:443",
        "peer": "198.51.100.7:40112",
        "binding_gen": 2,
    }
    assert Record.__struct_fields__ == tuple(sorted(FIELDS)), "the order of canonical JSON"
    spoken = build_record(a_change(data={"dwell_ms": 1e-7, "row": "\u00e9"}), CONTEXT)
    for one in (record, spoken, build_record(DomainEvent("node.stopping", "N"), CONTEXT)):
        assert canonical(one) == rfc8785.dumps(msgspec.structs.asdict(one))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "session.invented"},
        {"data": {"private_key": "x"}},
        {"lane": "N"},
        {"reason": "Free text"},
        {"session": None},
        {"state": None},
        {"data": {"attempts": 2**53}},
        {"owner_epoch": 2**53},
        {"state_version": 2**53},
        {"transport": TransportView(TransportId("lte-b"), binding_gen=2**53)},
        {"data": {"attempts": b"bytes"}},
    ],
)
def test_what_the_catalogue_does_not_allow_is_our_own_defect(changes: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        build_record(a_change(**changes), CONTEXT)


def test_severity_of_transitions_follows_the_target_state_and_the_cause_of_an_end() -> None:
    assert severity_of("session.state_change", "ATTACHED", "handshake_ok") is Severity.INFORMATIONAL
    assert severity_of("session.state_change", "VOLATILE", "transport_dead") is Severity.LOW
    assert severity_of("session.state_change", "DEGRADED", "no_candidate_transports") is Severity.MEDIUM
    assert severity_of("session.terminated", "TERMINATED", "operator_terminated") is Severity.LOW
    assert severity_of("session.terminated", "TERMINATED", "transport_ttl_exceeded") is Severity.MEDIUM
    assert severity_of("session.terminated", "TERMINATED", "ownership_conflict") is Severity.HIGH


def test_catalogue_fields_are_flat_names_without_secrets() -> None:
    for event, entry in CATALOGUE.items():
        assert re.fullmatch(r"[a-z]+(\.[a-z_]+)", event)
        assert entry.lanes
        for name in entry.fields:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", name), (event, name)
            assert not re.search(r"secret|private|proof$|nonce$|payload", name), (event, name)


def test_addresses_are_shown_as_the_policy_asks() -> None:
    assert shown_address("198.51.100.7:40112", "full") == "198.51.100.7:40112"
    assert shown_address("198.51.100.7:40112", "truncated") == "198.51.100.0/24"
    assert shown_address("[2001:db8:1:2::3]:443", "truncated") == "2001:db8:1::/48"
    hashed = shown_address("198.51.100.7:40112", "hmac", b"key")
    assert hashed.startswith("h:")
    assert hashed != shown_address("198.51.100.7:40112", "hmac", b"other")
    assert source_prefix("nonsense") == "unknown"
    assert source_prefix("[fe80::1%eth0]:5") == "fe80::/48"
