"""The observer: in a namespace of its own on the store's segment, it tells what the store does, one JSON line each.

Lines out: ``{"change": NAME, "revision": N, "at_ns": BOOT, "gone": BOOL, "record": {…}}`` for every change of the
cluster's keys from the first revision on, in order, and once for each etcd server; ``{"member": NAME, "leader": BOOL,
"serves": BOOL}`` when that changes; ``{"read": SESSION, "invoked_ns", "returned_ns", "revision", "record"}`` for each
linearizable read.
No value leaves that could hold a secret: of a session's record only what decides ownership is told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec

from jumpvpn.lab.cluster.varints import fields_of
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd.client import Client
from jumpvpn.runtime.stores.etcd.config import EtcdConfig, Identity
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases
from jumpvpn.runtime.stores.etcd.records import decode_session
from jumpvpn.runtime.stores.leases import Change, Compacted

_LOOK_S = 0.1  # how soon a member that serves again, or a new leader, is noticed
_ANSWER_S = 0.5
_RETRY_S = 0.1
_READ_S = 0.2  # between two reads of one session: some of them fall between the commits of any takeover
# What decides ownership and order; never the body, never the keys.
_TOLD = ("version", "state", "epoch", "owner", "term", "chain", "seq", "head")


class Observer:
    """Watches one cluster's keys and its etcd servers until it is ended."""

    def __init__(self, config: EtcdConfig, names: list[str]) -> None:
        self._config = config
        self._names = names
        self._sessions: set[str] = set()
        self._known: dict[str, tuple[bool, bool]] = {}

    async def run(self) -> None:
        """Tell everything; never returns."""
        endpoints = self._config.endpoints
        watches = [self._watch(endpoint) for endpoint in endpoints]
        await asyncio.gather(*watches, self._read(), *(self._look(index) for index in range(len(endpoints))))

    async def _watch(self, endpoint: str) -> None:
        """Follow the changes at one server: of a server that is stopped, a watch hears nothing, not even that."""
        following = 1
        client = _single(self._config, endpoint)
        while True:
            with contextlib.suppress(StoreUnavailable):
                async for change in EtcdLeases(client).watch("", following):
                    if isinstance(change, Compacted):
                        sys.exit("observer: the store has forgotten its history")
                    following = change.revision  # the rest of this revision may still come
                    self._tell(change)
            await asyncio.sleep(_RETRY_S)

    def _tell(self, change: Change) -> None:
        kind, _, name = change.name.partition("/")
        if kind == "live":
            (self._sessions.discard if change.value is None else self._sessions.add)(name)
        line = {"change": change.name, "revision": change.revision, "at_ns": boot_ns(), "gone": change.value is None}
        _print({**line, "record": _record(kind, change.name, change.value)})

    async def _read(self) -> None:
        """Linearizable reads of live sessions, each at the next member in turn."""
        clients = [_single(self._config, endpoint) for endpoint in self._config.endpoints]
        for client in itertools.cycle(clients):
            await asyncio.sleep(_READ_S)
            for session in sorted(self._sessions)[:_READ_SESSIONS]:
                with contextlib.suppress(StoreUnavailable):
                    invoked = boot_ns()
                    listing = await EtcdLeases(client).listing(f"live/{session}")
                    returned = boot_ns()
                    value = listing.entries.get(f"live/{session}")
                    times = {"invoked_ns": invoked, "returned_ns": returned, "revision": listing.revision}
                    _print({"read": session, **times, "record": _record("live", f"live/{session}", value)})

    async def _look(self, index: int) -> None:
        client = _single(self._config, self._config.endpoints[index])
        name = self._names[index]
        while True:
            state = await _status(client)
            if self._known.get(name) != state:
                self._known[name] = state
                _print({"member": name, "serves": state[0], "leader": state[1]})
            await asyncio.sleep(_LOOK_S)


_READ_SESSIONS = 4  # each read is a round of the store's consensus: enough to see order, too few to be a load


async def _status(client: Client) -> tuple[bool, bool]:
    """Whether a member serves (knows a leader), and whether it leads; source: etcd's rpc.proto, StatusResponse."""
    call = client.channel.unary_unary("/etcdserverpb.Maintenance/Status", bytes, bytes)
    try:
        answer = fields_of(await call(b"", timeout=_ANSWER_S))
    except grpc.aio.AioRpcError:
        return False, False
    leader = answer.get(4, 0)
    return leader != 0, leader != 0 and leader == fields_of(answer[1]).get(2)


def _single(config: EtcdConfig, endpoint: str) -> Client:
    one = replace(config, endpoints=[endpoint], timeout_ms=round(_ANSWER_S * 1000), attempt_ms=round(_ANSWER_S * 1000))
    return Client(one, Identity.read(one))


def _record(kind: str, name: str, value: bytes | None) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if kind in ("live", "dead"):
        found = decode_session(name.encode(), value)
        return {field: getattr(found, field) for field in _TOLD if hasattr(found, field)}
    if kind == "held":
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return _public(msgspec.json.decode(value) if value[:1] == b"{" else msgspec.msgpack.decode(value))
    return {"bytes": len(value)}


def _public(held: Any) -> Mapping[str, Any]:
    """A membership record, which is public by nature, in a form that JSON carries."""
    text = msgspec.json.encode(held)
    found = json.loads(text)
    return found if isinstance(found, dict) else {"value": found}


def _print(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    """Run as ``python -m jumpvpn.lab.cluster.observer``; ends with its namespace."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--member", required=True, action="append", help="NAME=HOST:PORT of an etcd server")
    for name in ("ca", "certificate", "key"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    options = parser.parse_args()
    members = dict(text.split("=", 1) for text in options.member)
    config = EtcdConfig(
        list(members.values()), options.ca, options.certificate, options.key, options.cluster, "observer"
    )
    asyncio.run(Observer(config, list(members)).run())


if __name__ == "__main__":
    main()
