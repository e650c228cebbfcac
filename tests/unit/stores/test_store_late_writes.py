"""A takeover that was given up with its lease, and that etcd carries out later: nothing but the record forbids it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster_nodes import nodes
from etcd_lab import Cluster
from store_writes import SESSION, owned

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import CommitResult, CommitUnknown
from jumpvpn.runtime.stores.etcd.client import TXN
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases
from jumpvpn.runtime.stores.shared import Unanswered
from jumpvpn.values import SECOND, Instant


async def test_it_takes_place_under_the_next_lease_unless_the_record_has_changed(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        await first.store.commit(owned(1, "gw1"))
        leases = EtcdLeases(second.shared.client)
        lease = await leases.grant(60)
        assert await leases.hold(lease, "gw2", b"a member")
        await second.take()
        until = clock.boot_time() + SECOND // 2
        second.store._give_up_at = lambda: Instant(until)
        sent = []
        once = second.shared.client.once

        async def held_up(method: Any, request: Any, deadline: float) -> Any:
            if method is TXN and request.compare:
                sent.append(request)
                raise Unanswered("it is on its way")
            return await once(method, request, deadline)

        with monkeypatch.context() as patch:
            patch.setattr(second.shared.client, "once", held_up)
            with pytest.raises(CommitUnknown):
                await second.store.commit(owned(2, "gw2", term=2))
        await leases.revoke(lease)
        second.store._give_up_at = None
        assert await second.store.load_owned("gw2") == [], "as a gateway lists under its next lease"
        assert (await second.shared.client.ask(TXN, sent[0])).succeeded
        assert (await first.in_etcd()).owner == "gw2"
        assert not (await second.shared.client.ask(TXN, sent[-1])).succeeded, "at most once, as often as it was sent"
        found = await second.take()
        assert (found.owner, found.term, found.version) == ("gw2", 2, 2)
        assert await second.store.commit(owned(3, "gw2", term=3)) is CommitResult.COMMITTED
        (kept,) = await second.store.unexported("gw2")
        assert (kept.session_id, kept.lines) == (SESSION, (b"line 2\n",))
