"""The promises of the session, by name: explorer, simulation, auditor and documents all speak of these."""

from __future__ import annotations

from enum import Enum


class Property(Enum):
    """One promise, known by its ``name``. ``text`` says it; ``formal`` are its numbers in the formal plan."""

    SINGLE_BINDING = ("P-S1 P-S2", "at most one active binding; ATTACHED has one, TERMINATED has none")
    IDENTITY = ("P-S3", "the identifier never changes; a session is created once, from nothing")
    EDGES = ("P-S4", "the state moves only along the seven live edges or into TERMINATED, by a listed reason")
    ABSORBING = ("P-S5", "nothing leaves TERMINATED")
    VERSION = ("P-S6", "each mutation raises the version by exactly one and has its event")
    PROOF = ("P-S7", "no way into ATTACHED without a fresh, validated proof; a proof counts once")
    REJECTION = ("P-S8", "a refused or unlisted input changes nothing durable")
    BOUNDED_SWITCHING = ("P-S9", "switches in any sliding 60 s stay within policy")
    DEATH_IS_NOT_THE_END = ("P-S10", "the death of a transport alone never ends a session")
    CLOCKS = ("P-S11 P-S12", "the clocks of an excursion restart only in ATTACHED; no running deadline moves later")
    TOTALITY = ("P-S13", "for each state, input and facts exactly one row applies; equal inputs give equal events")
    PRIORITY = ("P-S14", "of simultaneous inputs the first in the published order decides; the others are named")
    PROGRESS = ("P-S15", "no cycle without the passing of time, no endless excursion")
    MUST_RECOVER = ("P-L1", "candidate, TTL, policy and proof together lead to ATTACHED within the bound")
    FINITE = ("P-L2 P-L3", "lifetime, key age, transport TTL and episode end the session at the next step")
    BOUNDED_RECOVERY = ("P-L4", "RECOVERING and VOLATILE are left by their deadlines")
    VISIBLE = ("P-L5", "instability of the active transport leads to VOLATILE; every change has its events")
    PAIRED = ("P-L6", "every attempt has a result; every wish to switch has a switch, a denial or a failure")
    EPOCH = ("P-C3", "epochs and owner epochs never fall; a binding never survives a change of owner")
    CHAIN = ("A-1", "no event is lost, altered or forked unseen")
    POLICY_IN_FORCE = ("A-13", "every policy in use was announced; a tighter one counts at once, a looser one later")

    def __init__(self, formal: str, text: str) -> None:
        self.formal = formal
        self.text = text
