"""The texts that ``jumpvpn cluster init`` writes: etcd's configuration, the gateways' tables, the clients' tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from jumpvpn.cli import templates
from jumpvpn.cli.cluster_plan import Gateway, Member, Plan
from jumpvpn.config import split_address

ETCD_DIR = Path("/etc/etcd")
ETCD_DATA = Path("/var/lib/etcd")
_QUOTA_BYTES = 4 * 1024**3


def gateway(plan: Plan, one: Gateway) -> str:
    """``gateway.toml`` of one member; its other files lie beside it."""
    host, port = split_address(one.address)
    tables = _CLUSTER.format(
        name=_text(plan.name),
        etcd=json.dumps(list(plan.endpoints)),
        advertise=_text(one.address),
        announce=_announce(one),
    )
    v6, masquerade = ":" in host, one.inside is None
    return templates.gateway(one.name, "gateway.key", port=port, v6=v6, masquerade=masquerade, cluster=tables)


def clients(plan: Plan, public_keys: Mapping[str, str]) -> str:
    """The ``[[gateway]]`` tables of every client's file; ``public_keys`` by gateway."""
    blocks = [
        f"\n[[gateway]]\nname = {_text(one.name)}\naddress = {_text(one.address)}\n"
        f"public_key = {_text(public_keys[one.name])}\n"
        for one in plan.gateways
    ]
    return _CLIENTS.format(name=plan.name) + "".join(blocks)


def etcd(plan: Plan, one: Member) -> str:
    """``etcd.yaml`` of one member."""
    listening = one.host if one.is_address else "0.0.0.0"  # noqa: S104  # etcd listens on addresses, not on names
    here = Member(one.name, listening, one.port)
    peers = ",".join(f"{m.name}=https://{m.at(m.port + 1)}" for m in plan.members)
    return _ETCD.format(
        cluster=plan.name,
        name=_text(one.name),
        directory=ETCD_DIR,
        data=ETCD_DATA / plan.name,
        listen=here.at(one.port),
        listen_peer=here.at(one.port + 1),
        client=one.at(one.port),
        peer=one.at(one.port + 1),
        peers=peers,
        metrics=one.port + 2,
        quota=_QUOTA_BYTES,
    )


def etcd_environment() -> str:
    """The environment of etcd's service, which sends it to ``etcd.yaml``."""
    return (
        "# Copy to /etc/default/etcd: Debian's etcd.service reads it. All settings are in the file that it names.\n"
        f"ETCD_CONFIG_FILE={ETCD_DIR}/etcd.yaml\n"
    )


def readme(plan: Plan, leaf_days: int, authority_ends: str) -> str:
    """What lies where, what goes where, what is secret."""
    return _README.format(
        name=plan.name,
        members="\n".join(f"  {m.folder + '/':<24} to {ETCD_DIR}/ on {m.host}" for m in plan.members),
        gateways="\n".join(
            f"  {g.folder + '/':<24} to /etc/jumpvpn/ on the gateway {g.name} ({g.address})" for g in plan.gateways
        ),
        leaf_days=leaf_days,
        authority_ends=authority_ends,
        client_ports=_joined(m.port for m in plan.members),
        peer_ports=_joined(m.port + 1 for m in plan.members),
        endpoints=",".join(f"https://{endpoint}" for endpoint in plan.endpoints),
        etcd_dir=ETCD_DIR,
        data=ETCD_DATA / plan.name,
        metrics=plan.members[0].port + 2,
    )


def _announce(one: Gateway) -> str:
    if one.inside is None:
        return _ANNOUNCE_NONE
    return f'[announce]\nmode = "arp"                             # {_ARP}\ninterface = {_text(one.inside)}\n'


def _joined(ports: object) -> str:
    assert hasattr(ports, "__iter__")
    return ", ".join(str(port) for port in sorted(set(ports)))


def _text(value: str) -> str:
    """``value`` as a TOML or YAML string, whose escapes are those of JSON."""
    return json.dumps(value)


_ARP = "gratuitous ARP and NDP for the inner addresses that it owns"

_ANNOUNCE_NONE = f"""\
# How the network behind the gateways finds the one that owns an inner address. Without this table nothing is announced
# and masquerade (above) brings packets back: connections out of the tunnel do not outlive a change of gateway.
# [announce]                             # needs masquerade = false
# mode = "arp"                           # {_ARP}
# interface = "eth1"                     # … on the network behind the gateways
# mode = "command"                       # or a program of yours, for bird, FRR, exabgp
# command = ["/usr/local/sbin/inner-route"]
"""

_CLUSTER = """
# Gateways with the same name here, the same etcd and the same key_file share their sessions.
[cluster]
name = {name}
etcd = {etcd}
ca = "ca.pem"                            # who issued etcd's certificates and this gateway's
certificate = "etcd-client.pem"          # this gateway, to etcd
key = "etcd-client.key"
key_file = "cluster.key"                 # the same at every gateway; whoever has it can read the stored sessions
advertise = {advertise}
# lease = "5s"                           # whole seconds; a gateway that cannot renew it stops forwarding by itself
# margin = "500ms"                       # … this much before its own clock says that the lease is over
# adopt_after = "10s"                    # sessions of a gateway that is gone wait so long for their clients

{announce}"""

_CLIENTS = """\
# The gateways of the cluster {name}: replace the [[gateway]] tables of every client's client.toml by these.
"""

_ETCD = """\
# etcd member of the Jumping VPN cluster {cluster}; for etcd 3.4 and later.
# This file and the certificates beside it belong into {directory}, owned by the user that etcd runs as.
name: {name}
data-dir: "{data}"

# Gateways come in here. Only certificates of ca.pem are let in.
listen-client-urls: "https://{listen}"
advertise-client-urls: "https://{client}"
client-transport-security:
  cert-file: "{directory}/server.pem"
  key-file: "{directory}/server.key"
  client-cert-auth: true
  trusted-ca-file: "{directory}/ca.pem"

# The members among themselves. A member's certificate names its host: others accept it only from there.
listen-peer-urls: "https://{listen_peer}"
initial-advertise-peer-urls: "https://{peer}"
peer-transport-security:
  cert-file: "{directory}/peer.pem"
  key-file: "{directory}/peer.key"
  client-cert-auth: true
  trusted-ca-file: "{directory}/ca.pem"

# Read when the data directory is empty, never again. A member that lost its disk is removed and added again with
# "etcdctl member", and starts with "existing" here.
initial-cluster: "{peers}"
initial-cluster-token: "jumpvpn-{cluster}"
initial-cluster-state: "new"

# Health and figures, on this machine only: curl http://127.0.0.1:{metrics}/health
listen-metrics-urls: "http://127.0.0.1:{metrics}"

# Round-trip times between members of up to 10 ms are fine with these. Across regions raise both, ten to one; the
# shortest lease of a gateway is one and a half election timeouts, so raise "lease" in every gateway.toml too.
heartbeat-interval: 100
election-timeout: 1000

# Old revisions are dropped after five minutes; a gateway that was away for longer reads all records anew. The quota
# (bytes) stops writes before the disk is full; docs/scale.md says what so many sessions need.
auto-compaction-mode: "periodic"
auto-compaction-retention: "5m"
quota-backend-bytes: {quota}

logger: "zap"
log-outputs: ["stderr"]
"""

_README = """\
Jumping VPN cluster {name}: certificates, keys and configuration
================================================================

Copy each directory to its machine, over a channel that keeps secrets (scp, not mail):

{members}
{gateways}
  clients.toml             into every client's client.toml: [[gateway]] tables, nothing secret

What must stay secret (mode 0600 here; keep it so):

  ca/ca.key                Whoever has it can make himself a gateway or an etcd member. It belongs on no node: keep
                           this whole directory on a machine of the administrator, or offline. It is needed again
                           only for "jumpvpn cluster renew" and "jumpvpn cluster add".
  cluster.key              Opens the session records in etcd. The same file is in every gateway-*/ directory.
  gateway-*/gateway.key    The identity of one gateway. Never on two machines.
  gateway-*/etcd-client.key, etcd-*/server.key, etcd-*/peer.key
                           Prove a node to etcd. On the node that they are for, nowhere else.

When the keys are on their nodes, the *.key files in the gateway-*/ and etcd-*/ directories here may be deleted;
the *.pem files must stay, since renewal reads the names from them. Keep cluster.key and ca/.

On each etcd machine (Debian: apt install etcd-server), before the first start:

  systemctl stop etcd                           # Debian starts one with defaults; its data is left alone
  install -d -o etcd -g etcd -m 0700 {etcd_dir}
  cp etcd-NAME/* {etcd_dir}/ && chown etcd: {etcd_dir}/* && cp etcd-NAME/etcd.default /etc/default/etcd
  systemctl restart etcd                        # waits for the other members: start all within a few minutes
  curl http://127.0.0.1:{metrics}/health            # {{"health":"true"}} once more than half of them are there

  Open TCP {client_ports} to the gateways and TCP {peer_ports} among the etcd machines, to nobody else.
  The data is in {data}.

On each gateway:

  cp gateway-NAME/* /etc/jumpvpn/ && chmod 600 /etc/jumpvpn/*.key
  Put the same [[device]] blocks into every gateway.toml, and the same [tunnel] pool.
  jumpvpn config check /etc/jumpvpn/gateway.toml && jumpvpn gateway
  jumpvpn cluster status                        # every gateway is listed

Certificates end {leaf_days} days after they were issued ("openssl x509 -enddate -noout -in FILE" tells), the authority
(ca/ca.pem) on {authority_ends}. "jumpvpn cluster renew THIS_DIRECTORY" issues fresh ones from the same authority. Copy
them over the old ones: nothing has to be restarted. etcd reads them at the next connection, a gateway when a connection
to etcd fails. For etcdctl (Debian: apt install etcd-client), in /etc/jumpvpn on a gateway:

  ETCDCTL_API=3 etcdctl --cacert ca.pem --cert etcd-client.pem --key etcd-client.key \\
    --endpoints {endpoints} endpoint health
"""
