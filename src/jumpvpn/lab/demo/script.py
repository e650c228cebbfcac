"""What the demonstration does to the session, in order, and what must come of each step."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from jumpvpn.lab import incidents
from jumpvpn.lab.deployment import Deployment
from jumpvpn.lab.incidents import Incident

ROAMING_INTERFACE = "roam0"

# Silence is seen in several ways, by either side first; all of them are right answers to it.
_SILENCE = ("probe_timeout", "consecutive_drop_exceeded", "loss_threshold_exceeded", "transport_dead", "peer_signalled")
# A NAT router that renews its mapping twice can make the client leave before the address is proved.
_REBOUND = ("rebind_validated", "reattach_success")


@dataclass(frozen=True, slots=True)
class Step:
    """One incident on stage.

    `reasons` and `outcomes` are those that may be on record; `before` and `transport` are the interfaces that must
    carry the session before and afterwards ("": any). `world` says what becomes of "wifi", "lte" and "gateway" at the
    cause, `back` when something returns, `afterwards` which uplinks are quietly mended before the next step.
    """

    title: str
    cause: Callable[[Deployment], Awaitable[Incident]]
    reasons: tuple[str, ...]
    outcomes: tuple[str, ...]
    transport: str = ""
    before: str = ""
    world: Mapping[str, str] = field(default_factory=dict)
    back: Mapping[str, str] = field(default_factory=dict)
    afterwards: tuple[str, ...] = ()


def denied(vpn: Deployment) -> Awaitable[Incident]:
    """Ask for the roaming uplink: it works, and policy forbids it."""
    return incidents.denied_switch(vpn, ROAMING_INTERFACE)


STEPS: tuple[Step, ...] = (
    Step(
        "Wi-Fi goes down",
        incidents.link_down,
        ("transport_dead",),
        ("reattach_success",),
        "wwan0",
        "wlan0",
        {"wifi": "down"},
    ),
    Step(
        "Wi-Fi comes back",
        incidents.restored,
        ("candidate_added",),
        ("candidate_validated",),
        "wwan0",
        "wwan0",
        {"wifi": "up"},
    ),
    Step(
        "LTE swallows everything",
        incidents.blackhole,
        _SILENCE,
        ("reattach_success",),
        "wlan0",
        "wwan0",
        {"lte": "blackhole"},
        afterwards=("lte",),
    ),
    Step("NAT forgets its mapping", incidents.nat_rebinding, ("nat_rebinding",), _REBOUND, before="wlan0"),
    Step("policy denies roaming", denied, ("policy_denied",), ("policy_denied",)),
    Step(
        "both networks are gone",
        incidents.both_dead,
        ("transport_dead",),
        ("reattach_success",),
        "wwan0",
        "",
        {"wifi": "down", "lte": "down"},
        {"lte": "up"},
    ),
    Step(
        "return to Wi-Fi",
        incidents.failback,
        ("failback",),
        ("reattach_success",),
        "wlan0",
        "wwan0",
        {"wifi": "up"},
    ),
    Step(
        "gateway is killed",
        incidents.gateway_restart,
        (*_SILENCE, "owner_changed"),
        ("reattach_success",),
        "",
        "",
        {"gateway": "killed"},
        {"gateway": "up"},
    ),
)

END = Step(
    "operator ends the session",
    incidents.terminated,
    ("operator_terminated",),
    ("operator_terminated",),
)

POLICY = """
[policy.switching]
failback = "{failback}"
hold_down = "{hold_down}"
max_per_minute = 16  # the script itself needs six; a machine that is too slow for its own links makes some more

[policy.observability]
address_mode = "full"
"""

CLIENT_POLICY = """
[policy.transports]
deny = ["tag:roaming"]
tags = { "roam*" = ["roaming"] }
"""
