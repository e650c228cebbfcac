"""What people and programs see of a cluster: the document, its text, and the lines in ``status``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from jumpvpn.cli.cluster_status import cluster_view
from jumpvpn.cli.show_status import status_view
from jumpvpn.runtime import status
from jumpvpn.runtime.status import MemberFacts, OwnedSession, StoreFacts, cluster_part, of_cluster
from jumpvpn.values import MILLISECOND, SECOND

MEMBERS = (
    MemberFacts("gw2", "203.0.113.2:51900", "draining", 3 * SECOND, "0.1.0"),
    MemberFacts("gw1", "vpn1.example.org:51900", "serving", 4210 * MILLISECOND, "0.1.0"),
)
SESSIONS = (
    OwnedSession("bb00", "tablet", "ATTACHED", "gw1", 1, 63 * SECOND),
    OwnedSession("aa00", "laptop", "RECOVERING", "gw3", 2),
    OwnedSession("cc00", "phone", "ATTACHED", "gw1", 4, 5 * SECOND),
)
STORE = StoreFacts(
    (("10.0.0.11:2379", True), ("10.0.0.12:2379", False), ("10.0.0.13:2379", None)), 4711, 3, 240_000_000
)


def document(*, with_sessions: bool = False) -> dict[str, Any]:
    return of_cluster(
        "eu", "gw1", MEMBERS, SESSIONS, STORE, with_sessions=with_sessions, adopted_after=15 * SECOND,
        transport_ttl=300 * SECOND,
    )  # fmt: skip


def shown(view: Any) -> str:
    console = Console(width=140, no_color=True)
    with console.capture() as captured:
        console.print(view)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def test_the_document_counts_owners_and_lists_owners_that_are_gone() -> None:
    told = json.loads(json.dumps(document()))
    end = {"reason": "transport_ttl_exceeded", "policy": "session.transport_ttl", "in_ms": 300_000.0}
    no_heir = {"heirs": [], "adopted_after_ms": None, "ends": end}
    heir = {"heirs": ["gw1"], "adopted_after_ms": 15_000.0, "ends": None}
    assert told["members"] == [
        {"node": "gw1", "address": "vpn1.example.org:51900", "state": "serving", "lease_left_ms": 4210.0,
         "sessions": 2, "version": "0.1.0", "if_lost": no_heir},
        {"node": "gw2", "address": "203.0.113.2:51900", "state": "draining", "lease_left_ms": 3000.0,
         "sessions": 0, "version": "0.1.0", "if_lost": heir},
        {"node": "gw3", "address": "", "state": "gone", "lease_left_ms": None, "sessions": 1, "version": "",
         "if_lost": heir},
    ]  # fmt: skip
    assert (told["cluster"], told["node"], told["owners"]) == ("eu", "gw1", {"gw1": 2, "gw3": 1})
    assert (told["sessions"], told["sessions_total"]) == ([], 3)
    assert told["store"] == {
        "endpoints": [
            {"address": "10.0.0.11:2379", "reachable": True},
            {"address": "10.0.0.12:2379", "reachable": False},
            {"address": "10.0.0.13:2379", "reachable": None},
        ],
        "revision": 4711,
        "behind": 3,
        "behind_oldest_ms": 240.0,
    }


def test_sessions_are_listed_when_asked_for_and_never_more_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert document(with_sessions=True)["sessions"][0] == {
        "uid": "aa00", "device": "laptop", "state": "RECOVERING", "owner": "gw3", "term": 2, "since_ms": None,
    }  # fmt: skip
    assert [row["uid"] for row in document(with_sessions=True)["sessions"]] == ["aa00", "bb00", "cc00"]
    monkeypatch.setattr(status, "MOST_SESSION_ROWS", 2)
    told = document(with_sessions=True)
    assert ([row["uid"] for row in told["sessions"]], told["sessions_total"]) == (["aa00", "bb00"], 3)
    assert shown(cluster_view(told)).endswith("\nand 1 more")


def test_a_session_without_an_owner_makes_no_member() -> None:
    told = of_cluster("eu", "gw1", MEMBERS, [OwnedSession("aa", "x", "ATTACHED", "", 0)], STORE)
    assert [member["node"] for member in told["members"]] == ["gw1", "gw2"]


OVERVIEW = """\
cluster eu  sessions 3  seen by gw1

gateway  address                 state     lease left  sessions  version
gw1      vpn1.example.org:51900  serving        4.2 s         2  0.1.0
gw2      203.0.113.2:51900       draining         3 s         0  0.1.0
gw3      –                       gone               –         1  –

store   10.0.0.11:2379 answers  10.0.0.12:2379 silent  10.0.0.13:2379 untried  revision 4711
behind  3 changes, the oldest for 240 ms

ahead   if gw1 dies, no other gateway serves: its sessions end with transport_ttl_exceeded after 5 min \
(session.transport_ttl), unless it is
        back before"""

OWNERS = """\

session  device  state       owner  term      since
aa00     laptop  RECOVERING  gw3       2          –
bb00     tablet  ATTACHED    gw1       1  1 min 3 s
cc00     phone   ATTACHED    gw1       4        5 s"""


def test_people_see_members_store_and_counts() -> None:
    assert shown(cluster_view(document())) == OVERVIEW


def test_people_see_who_serves_in_the_place_of_a_gateway_that_dies() -> None:
    other = MemberFacts("gw4", "203.0.113.4:51900", "serving", None, "0.1.0")
    told = of_cluster(
        "eu", "gw1", (*MEMBERS, other), SESSIONS, STORE, adopted_after=15 * SECOND, transport_ttl=300 * SECOND
    )
    assert (
        "ahead   if gw1 dies, its clients ask gw4; sessions whose clients stay silent are adopted after 15 s"
        in shown(cluster_view(told))
    )
    heirs = {member["node"]: member["if_lost"]["heirs"] for member in told["members"]}
    assert heirs == {"gw1": ["gw4"], "gw2": ["gw1", "gw4"], "gw3": ["gw1", "gw4"], "gw4": ["gw1"]}


def test_people_see_every_session_when_they_ask() -> None:
    assert shown(cluster_view(document(with_sessions=True))) == f"{OVERVIEW}\n{OWNERS}"


def test_missing_parts_and_foreign_words_do_no_harm() -> None:
    assert shown(cluster_view({})).startswith("cluster –  sessions –  seen by –")
    member = {"node": "gw\x1b[31m1", "address": "a\nb", "state": "[bold]odd", "lease_left_ms": None, "sessions": 0}
    text = shown(cluster_view({**document(), "members": [member]}))
    assert "gw?[31m1" in text
    assert "a?b" in text
    assert "[bold]odd" in text


FENCED = (
    "cluster eu  fenced  no lease: nothing is forwarded until there is one again  sessions owned 0  "
    "behind 3 changes, the oldest for 240 ms"
)


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (
            cluster_part("eu", "serving", 4210 * MILLISECOND, 12, StoreFacts((), 9)),
            "cluster eu  serving  lease left 4.2 s  sessions owned 12  behind nothing",
        ),
        (
            cluster_part("eu", "draining", SECOND, 1, StoreFacts((), 9, 1, 2 * SECOND)),
            "cluster eu  draining  lease left 1 s  sessions owned 1  behind 1 change, the oldest for 2 s",
        ),
        (
            cluster_part("eu", "fenced", 0, 0, STORE),
            FENCED,
        ),
    ],
)
def test_a_gateways_status_has_one_line_for_its_cluster(part: Mapping[str, Any], line: str) -> None:
    text = shown(status_view({"role": "gateway", "node": "gw1", "cluster": part}))
    assert [found for found in text.splitlines() if found.startswith("cluster")] == [line]


def test_a_standalone_gateways_status_speaks_of_no_cluster() -> None:
    assert "cluster" not in shown(status_view({"role": "gateway", "node": "gw1", "cluster": None}))


GATEWAYS = """\
gateway  address                 state        rtt
gw1      vpn1.example.org:51900  current  12.3 ms
gw2      203.0.113.2:51900       standby   8.0 ms
gw3      203.0.113.3:51900       silent         –"""


def test_a_clients_status_lists_the_gateways_it_knows() -> None:
    known = [
        {"name": "gw1", "address": "vpn1.example.org:51900", "state": "current", "rtt_ms": 12.34},
        {"name": "gw2", "address": "203.0.113.2:51900", "state": "standby", "rtt_ms": 8.0},
        {"name": "gw3", "address": "203.0.113.3:51900", "state": "silent", "rtt_ms": None},
    ]
    assert GATEWAYS in shown(status_view({"role": "client", "node": "laptop", "gateways": known}))
    assert "gateway " not in shown(status_view({"role": "client", "node": "laptop", "gateways": []}))


def test_a_gateway_without_a_lease_says_that_it_knows_only_what_was() -> None:
    fenced = MemberFacts("gw1", "vpn1.example.org:51900", "fenced", 0, "0.1.0")
    told = of_cluster("eu", "gw1", (fenced, MEMBERS[0]), SESSIONS, STORE, adopted_after=SECOND, transport_ttl=SECOND)
    text = shown(cluster_view(told))
    assert "it has no lease, and forwards nothing; the others are shown as they were seen last" in text
    assert "ahead" not in text
    assert "if gw1 dies" in shown(cluster_view(document()))
