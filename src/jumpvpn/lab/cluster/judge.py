"""What must hold after a scenario, whatever was done: identity, order, ownership, and who was heard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jumpvpn.lab.cluster.capture import Seen, carriages, forwarded, hardware, overlaps
from jumpvpn.lab.cluster.deployment import ClusterDeployment
from jumpvpn.lab.cluster.history import StoreChange, StoreRead, disorder, linearizable, operations_of
from jumpvpn.lab.cluster.scenario import Scenario
from jumpvpn.lab.journals import Record


def violations(
    deployment: ClusterDeployment,
    scenario: Scenario,
    uids: Mapping[str, str],
    client: Sequence[Seen],
    server: Sequence[Seen],
) -> list[str]:
    """Everything that broke a promise, one line each. `uids` are the sessions before; captures as they were taken."""
    gateways = {hardware(deployment.cluster_lab.mac_of(name, "in0")): name for name in deployment.gateways}
    owners = deployment.owners(uids["client"])
    records = deployment.journals.records
    accepted, sent = carriages(client, server, gateways), forwarded(server, gateways)
    births = len(deployment.births())
    return [
        *ends(records, scenario, uids),
        *([] if births == len(uids) else [f"{births} handshakes for {len(uids)} sessions"]),
        *terms(records, set(deployment.gateways)),
        *disorder(deployment.store.changes),
        *stale(deployment.store.changes, deployment.store.reads),
        *(f"accepted by the client: {fault}" for fault in overlaps(accepted, owners)),
        *(f"accepted from the client: {fault}" for fault in overlaps(sent, owners)),
        *([] if accepted and sent else ["the captures show no message: they prove nothing"]),
    ]  # fmt: skip


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
