"""What must hold after a scenario, whatever was done: identity, order, ownership, and who was heard."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from jumpvpn.lab.cluster.capture import Sightings, accepted, false_claims, hardware, opened, overlaps
from jumpvpn.lab.cluster.configuration import inner_address
from jumpvpn.lab.cluster.deployment import ClusterDeployment
from jumpvpn.lab.cluster.history import StoreChange, StoreRead, disorder, linearizable, operations_of
from jumpvpn.lab.cluster.scenario import LEASE_S, Scenario
from jumpvpn.lab.journals import Record

# An owner that is cut off from the store may act for as long as its lease lasts, and then has to withdraw.
_GRACE_NS = round((LEASE_S + 1.0) * 1e9)


def violations(
    deployment: ClusterDeployment, scenario: Scenario, uids: Mapping[str, str], seen: Sightings
) -> list[str]:
    """Everything that broke a promise, one line each. `uids` are the sessions before."""
    owners = deployment.owners(uids["client"])
    records = deployment.journals.records
    down, up = accepted(seen), opened(seen)
    births = len(deployment.births())
    return [
        *ends(records, scenario, uids),
        *([] if births == len(uids) else [f"{births} handshakes for {len(uids)} sessions"]),
        *terms(records, set(deployment.gateways)),
        *disorder(deployment.store.changes),
        *stale(deployment.store.changes, deployment.store.reads),
        *(f"accepted by the client: {fault}" for fault in overlaps(down, owners)),
        *(f"accepted from the client: {fault}" for fault in overlaps(up, owners)),
        *([] if down and up else ["the captures show no message: they prove nothing"]),
        *([] if len(owners) == 1 or not scenario.steady else [f"the owner was to stay; owners {', '.join(owners)}"]),
        *_claims(deployment, uids, seen),
    ]


def _claims(deployment: ClusterDeployment, uids: Mapping[str, str], seen: Sightings) -> list[str]:
    """False claims of any client's inner address."""
    gateways = {hardware(deployment.cluster_lab.mac_of(name, "in0")): name for name in deployment.gateways}
    found: list[str] = []
    for index, client in enumerate(deployment.clients):
        address, reigns = int(ipaddress.IPv4Address(inner_address(index))), deployment.reigns(uids[client])
        found += [f"{client}: {fault}" for fault in false_claims(seen["server"], address, reigns, gateways, _GRACE_NS)]
    return found


def ends(records: Iterable[Record], scenario: Scenario, uids: Mapping[str, str]) -> list[str]:
    """Sessions that changed their identity, or ended otherwise than the rules demand."""
    found: list[str] = []
    last: dict[str, Record] = {}
    for record in records:
        uid = record.fields["session_uid"]
        if record.side in uids and uid and uid != uids[record.side]:
            found.append(f"{record.side} became another session: {uids[record.side]}, then {uid}")
        if record.event == "session.state_change":
            last[record.side] = record
        if record.turned("TERMINATED") and record.reason not in scenario.ends:
            found.append(f"{record.side} ended session {uid} with {record.reason}")
    if scenario.must_end:
        left = [client for client in uids if client not in last or last[client].fields["state"] != "TERMINATED"]
        found += [f"{client} was to end ({', '.join(scenario.ends)}) and did not" for client in left]
    return list(dict.fromkeys(found))


def terms(records: Iterable[Record], gateways: set[str]) -> list[str]:
    """Owners that the gateways' own events contradict: one term, one owner, strictly rising."""
    owner: dict[tuple[str, int], str] = {}
    found: list[str] = []
    for record in records:
        if record.event != "ownership.acquired" or record.side not in gateways:
            continue
        key = (str(record.fields["session_uid"]), int(record.data["epoch"]))
        other = owner.setdefault(key, record.side)
        if other != record.side:
            found.append(f"session {key[0]}: {other} and {record.side} both own term {key[1]}")
    return found


def stale(changes: Sequence[StoreChange], reads: Sequence[StoreRead]) -> list[str]:
    """Sessions whose record, as reads and watches saw it, is not the history of one register."""
    sessions = sorted({change.session for change in changes if change.session})
    return [
        f"session {session[:8]}: no order of its reads and writes explains them"
        for session in sessions
        if not linearizable(operations_of(session, changes, reads))
    ]
