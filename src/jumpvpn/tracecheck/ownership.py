"""Exhaustive checks of the ownership protocol of a cluster: a model of the design, beside that of the session."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jumpvpn.tracecheck import model, tlc

MODULE = "Ownership"
CONFIGS = ("Ownership.cfg", "OwnershipDrift.cfg", "OwnershipTerms.cfg", "OwnershipThree.cfg", "OwnershipLive.cfg")
WORKERS = 2  # the larger runs gain from a second thread; a third would only heat a small machine
PROMISES = {
    "NO_DUAL_ACTIVE": "P-C1 the client would accept packets as current from one gateway at most",
    "ONLY_OWNER_FORWARDS": "P-C2 who forwards has its lease, and was replaced less than a lease ago if at all",
    "EPOCH": "P-C3 each owner has the next term; epochs never fall, a takeover's is the one asked for",
    "VERSION": "P-C3 each write raises the version by one above all that store and client know",
    "COMMIT_FENCED": "P-C4 what is written replaces the very record that the writer knew",
    "BINDING_NOT_INHERITED": "P-C5 a new owner has the binding that its client asks for, or none; never the former one",
    "GRANT_FOLLOWS_COMMIT": "P-C4 no answer to a request before its commit, or without knowing that it took place",
    "NONCE_ONCE": "P-C6 a request counts once, at whatever gateway",
    "NONCE_PROVED": "P-C6 a request that fails its proof uses up no nonce",
    "ABSORBING": "P-S5 nothing leaves TERMINATED",
    "ONE_HISTORY": "P-S1 no two gateways act under one ownership term, so (term, version) names a commit",
    "CLOCK_KEPT": "P-S11 only a new binding stops the transport clock; no change of owner sets it back",
    "ADOPT_SPARES_LIVING": "P-L2 nobody adopts a session that its owner may still serve",
    "CLIENT_ONWARD": "P-C3 epoch and version that the client accepts, and the epoch that it receives with, only rise",
    "HANDOVER_DRAINED": "P-C1 an epoch that is not the newest stays open only for a gateway that drains",
    "RECOVERS": "P-C7 in the end served for good or TERMINATED",
    "ATTEMPTS_SUFFICE": "P-C7 not for want of requests or terms, so a session ends by its TTL only",
    "TypeOK": "values are of their types",
}
ASSUMPTIONS = (
    "the store is linearizable: a compare-and-swap sees the latest record",
    (
        "clock rates err by at most rho, and margin >= rho * lease + the latency of fencing (here: lease 3, margin 1, "
        "one tick lost in any 3, latency 0 while the process runs); no wall clock matters"
    ),
    "a request's proof cannot be forged, and names its gateway; keys of an epoch mix the nonce that opened it",
    "the client has one attempt at a time, and asks for a higher epoch with each",
    (
        "a gateway's journal of nonces survives its crash; a process starts only when its predecessor is dead, whose "
        "last write to the store may still take place"
    ),
    "the watch tells changes and beats in the order of the store",
    (
        "RECOVERS: finitely many faults; a gateway that stays connected, running and undrained; weak fairness of time, "
        "renewals, fencing, grants and the client's asking, strong fairness of deliveries, takeovers and commits; "
        "renewals are quicker than a tick; requests that the client gave up come no more"
    ),
)

_NOTED = re.compile(r'(?:Note|Wrote)\("([a-z.]+)"')
_TAKEN = re.compile(r'<<\s*"action",\s*"([a-z.]+)"\s*>>')


@dataclass(frozen=True, slots=True)
class Protocol:
    """All runs. ``untaken`` are actions of the module that no behaviour of a run for safety takes."""

    runs: tuple[model.Checked, ...]
    actions: int
    untaken: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every promise holds and every action is taken."""
        return not self.untaken and all(run.violated is None for run in self.runs)


def check(progress: Callable[[str], None] = lambda config: None) -> Protocol:
    """Check the module of the checkout, about a minute; ``progress`` hears of each run before it begins.

    Raises TlcMissing, TlcFailed.
    """
    files = tlc.sources()
    runs = []
    for config in CONFIGS:
        progress(config)
        runs.append(check_one(config, files))
    actions = sorted(set(_NOTED.findall(files[f"{MODULE}.tla"])))
    taken = {action for run in runs for action in _TAKEN.findall(run.text)}
    broken = any(run.violated is not None for run in runs)  # such a run ends early: its silence says nothing
    return Protocol(tuple(runs), len(actions), () if broken else tuple(a for a in actions if a not in taken))


def check_one(config: str, files: Mapping[str, str]) -> model.Checked:
    """One configuration. Raises TlcMissing, TlcFailed."""
    return model.check_one(config, files, MODULE, WORKERS)
