"""The configuration files that ``jumpvpn init`` writes: complete, commented, ready to run."""

from __future__ import annotations

import json

from jumpvpn.config import DEFAULT_MTU, DEFAULT_PORT

POLICY = """
# ---- policy: every key has a default; these are the ones people change ----------------------
# Durations are "200ms", "1.5s", "10min", "24h" or a number of seconds.
[policy]
version = "1.0"

[policy.session]
max_lifetime = "24h"        # then the device authenticates afresh
transport_ttl = "300s"      # how long a session may live without any network

[policy.volatility]
profile = "default"         # probes: "fast" (50 ms), "default" (200 ms), "battery" (1 s)

[policy.switching]
max_per_minute = 8          # switches in any 60 s
hold_down = "1.5s"          # quiet time after a switch; never delays leaving a dead network
failback = "30s"            # return to a preferred network after it was stable this long, or "never"

[policy.transports]
# allow = ["*"]             # patterns: "wl*", "interface:eth0", "gateway:gw-eu*", "tag:metered"
# deny = ["tag:metered"]
# prefer = ["eth*", "wl*"]
# tags = { "wwan*" = ["metered"] }
# standby_gateways = 2      # at so many gateways beside the current one standby transports are kept validated

[policy.observability]
address_mode = "truncated"  # addresses in events: "full", "truncated" (network only) or "hmac"
"""


RECORDING = """
# Keeps all that the session's machine is told, for "jumpvpn replay" and "jumpvpn policy dry-run": so many files (keep)
# of at most that size, without keys and identifiers, addresses as in the events. Nothing is recorded without this line.
# recording = {{ file = "/var/lib/jumpvpn/{role}-recording.jsonl", size = "16MiB", keep = 4 }}
"""


STANDALONE = """
# This gateway stands alone. "jumpvpn cluster init" writes files for several that share their sessions.
"""


def gateway(
    name: str,
    key_file: str,
    *,
    port: int = DEFAULT_PORT,
    v6: bool = False,
    masquerade: bool = True,
    cluster: str = STANDALONE,
) -> str:
    """A gateway's file; ``key_file`` is relative to it; ``cluster`` stands where the tables for a cluster belong."""
    more = f'"[::]:{port}"'
    listen = f'"0.0.0.0:{port}", {more}]' if v6 else f'"0.0.0.0:{port}"]          # add {more} for IPv6'
    return f"""\
# Jumping VPN gateway. Check with: jumpvpn config check THIS_FILE
name = {_text(name)}
private_key_file = {_text(key_file)}

# UDP addresses to listen on. Open this port in the firewall.
listen = [{listen}

state_dir = "/var/lib/jumpvpn"           # session records survive a restart here
control = "/run/jumpvpn/gateway.sock"    # for jumpvpn status, events, down …
events = "/var/lib/jumpvpn/events.jsonl" # one JSON object per event
store = "sqlite"                         # "memory" forgets all sessions at exit
# key_file = "/run/credentials/jumpvpn.service/cluster.key"  # seals the keys in the store; apart from state_dir, a
                                         # stolen disk tells nothing (systemd: LoadCredentialEncrypted=)
{RECORDING.format(role="gateway")}
{_inside(masquerade=masquerade)}{cluster}
# One block per device that may connect; `jumpvpn init client` prints it.
# [[device]]
# name = "laptop"
# public_key = "…44 characters…"
# address = "10.77.0.2"                  # optional: else the next free one
{POLICY}"""


def _inside(*, masquerade: bool) -> str:
    """The tables of the inner network and of the way out of it."""
    is_masked = "true " if masquerade else "false"
    return f"""\
[tunnel]
name = "jumpvpn0"
mtu = {DEFAULT_MTU}
pool = "10.77.0.0/24"                    # inner addresses; the first one is the gateway's
# pool6 = "fd77::/64"
routes = ["0.0.0.0/0"]                   # what clients may reach through the tunnel

[forward]
enabled = true                           # forward inner packets to other networks
masquerade = {is_masked}                       # … under this machine's own address
# interfaces = ["eth0"]                  # … only out of these
"""


def client(name: str, key_file: str, gateway_address: str, gateway_key: str) -> str:
    """A client's file; ``key_file`` is relative to it."""
    return f"""\
# Jumping VPN client. Check with: jumpvpn config check THIS_FILE
name = {_text(name)}
private_key_file = {_text(key_file)}

state_dir = "/var/lib/jumpvpn"
control = "/run/jumpvpn/client.sock"            # for jumpvpn status, events, down …
events = "/var/lib/jumpvpn/client-events.jsonl" # one JSON object per event
{RECORDING.format(role="client")}
# Our own packets carry this mark and so never enter the tunnel; a default route lives in this table.
# mark = 19030
# table = 19030

[tunnel]
name = "jumpvpn0"
mtu = {DEFAULT_MTU}
# routes = ["10.0.0.0/8"]                # default: all that the gateway announces

# Every interface with a route to a gateway becomes a transport, by itself, as it comes and goes.
[interfaces]
allow = ["*"]
# deny = ["docker*", "veth*"]            # replaces the built-in list of inner interfaces
# prefer = ["eth*", "wl*"]               # first is best

[[gateway]]
name = "gw1"
address = {_text(gateway_address)}
public_key = {_text(gateway_key)}
{POLICY}"""


def device(name: str, public_key: str) -> str:
    """The block to paste into the gateway's file."""
    return f"[[device]]\nname = {_text(name)}\npublic_key = {_text(public_key)}\n"


def _text(value: str) -> str:
    """``value`` as a TOML basic string, whose escapes are those of JSON."""
    return json.dumps(value)
