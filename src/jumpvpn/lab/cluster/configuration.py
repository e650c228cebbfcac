"""The files of a cluster's nodes, as an administrator would write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jumpvpn.lab.cluster.store import CLUSTER
from jumpvpn.lab.cluster.topology import INNER_POOL, MEMBERS, Shape, gateway_public, member_address
from jumpvpn.lab.deployment import PORT
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.topology import INNER_NETWORK
from jumpvpn.runtime.keys import create_private_key, public_key_of

if TYPE_CHECKING:
    from jumpvpn.lab.cluster.deployment import ClusterDeployment

POOL_PREFIX = INNER_POOL.rpartition(".")[0]
_INIT_S = 60.0

_GATEWAY = """\
name = "{name}"
private_key_file = "{files}/gateway.key"
listen = ["0.0.0.0:{port}"]
state_dir = "{name}"
control = "{name}.sock"
events = "{name}-events.jsonl"

[cluster]
name = "{cluster}"
etcd = [{etcd}]
ca = "{files}/ca.pem"
certificate = "{files}/etcd-client.pem"
key = "{files}/etcd-client.key"
key_file = "{files}/cluster.key"
advertise = "{public}:{port}"
lease = "{options.lease}"
margin = "{options.margin}"
adopt_after = "{options.adopt_after}"

[announce]
mode = "arp"
interface = "in0"

[tunnel]
pool = "{pool}"
routes = ["{inside}"]

[forward]
masquerade = false
"""

_DEVICE = """
[[device]]
name = "{name}"
public_key = "{key}"
address = "{address}"
"""

_CLIENT = """\
name = "{name}"
private_key_file = "{name}.key"
state_dir = "{name}"
control = "{name}.sock"
events = "{name}-events.jsonl"

[interfaces]
prefer = ["wlan*", "wwan*"]
"""

_PEER = """
[[gateway]]
name = "{name}"
address = "{public}:{port}"
public_key = "{key}"
"""


def init(shape: Shape, directory: Path) -> None:
    """Make the cluster's files as an administrator does: ``jumpvpn cluster init``. Raises LabError with its words."""
    argv = [sys.executable, "-P", "-m", "jumpvpn.cli.main", "cluster", "init", str(directory), "--name", CLUSTER]
    for gateway in shape.gateway_names:
        argv += ["--gateway", f"{gateway}={gateway_public(gateway)}:{PORT},inside=in0"]
    for member in MEMBERS:
        argv += ["--etcd", f"{member}={member_address(member)}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_INIT_S, check=False)
    if done.returncode != 0:
        raise LabError(f"jumpvpn cluster init: {done.stderr.strip()[-500:]}")


def write(deployment: ClusterDeployment) -> None:
    """Write every node's configuration, beside the files of `init`."""
    directory = deployment.directory
    keys = {client: create_private_key(directory / f"{client}.key") for client in deployment.clients}
    for gateway in deployment.gateways:
        keys[gateway] = public_key_of(deployment.store.files / f"gateway-{gateway}" / "gateway.key")
    devices = "".join(
        _DEVICE.format(name=client, key=keys[client], address=inner_address(index))
        for index, client in enumerate(deployment.clients)
    )
    for gateway in deployment.gateways:
        text = _gateway(deployment, gateway) + devices
        deployment.config(gateway).write_text(f"{text}\n{deployment.options.policy}")
    for client in deployment.clients:
        first = (deployment.options.first or {}).get(client, deployment.gateways[0])
        others = [gateway for gateway in deployment.gateways if gateway != first]
        peers = "".join(
            _PEER.format(name=gateway, public=gateway_public(gateway), port=PORT, key=keys[gateway])
            for gateway in (first, *others)
        )
        text = _CLIENT.format(name=client)
        deployment.config(client).write_text(f"{text}{peers}\n{deployment.options.policy}")


def inner_address(index: int) -> str:
    """The inner address of the client with this place among all clients; the first is the gateways' own."""
    return f"{POOL_PREFIX}.{2 + index}"


def _gateway(deployment: ClusterDeployment, name: str) -> str:
    store = deployment.store
    return _GATEWAY.format(
        name=name,
        port=PORT,
        cluster=CLUSTER,
        etcd=", ".join(f'"{endpoint}"' for endpoint in store.endpoints),
        files=store.files / f"gateway-{name}",
        public=gateway_public(name),
        options=deployment.options,
        pool=INNER_POOL,
        inside=INNER_NETWORK,
    )
