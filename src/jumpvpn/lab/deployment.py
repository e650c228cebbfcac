"""A real gateway and a real client inside a lab: started from files as on two machines, watched by their journals."""

import asyncio
from pathlib import Path

from jumpvpn.lab.errors import LabError
from jumpvpn.lab.lab import Lab
from jumpvpn.lab.nodes import SETTLE_S, START_S, NodeSet
from jumpvpn.lab.topology import GATEWAY_PUBLIC, INNER_NETWORK, UPLINKS
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.runtime.control import Refused
from jumpvpn.runtime.keys import create_private_key

GATEWAY_NAME = "gw1"
CLIENT_INNER = "10.77.0.2"
PORT = 51900
SIDES = ("gateway", "client")
JOURNALS = {side: f"{side}-events.jsonl" for side in SIDES}

# How often a wish that hold-down refuses is repeated.
_COOLDOWN_STEP_S = 0.2

_GATEWAY = """\
name = "{name}"
private_key_file = "gateway.key"
listen = ["0.0.0.0:{port}"]
state_dir = "gateway"
control = "gateway.sock"
events = "{events}"
store = "{store}"

[tunnel]
pool = "10.77.0.0/24"
routes = ["{network}"]

[forward]
masquerade = false

[[device]]
name = "laptop"
public_key = "{device_key}"
address = "{inner}"
"""

_CLIENT = """\
name = "laptop"
private_key_file = "client.key"
state_dir = "client"
control = "client.sock"
events = "{events}"

[interfaces]
deny = ["in0"]
prefer = [{preferred}]

[[gateway]]
name = "{name}"
address = "{address}:{port}"
public_key = "{gateway_key}"
"""


class Deployment(NodeSet):
    """A gateway and a client with one session between them; use as ``async with``, inside a lab that is open.

    `policy` is TOML (tables `[policy.…]`) for both nodes, `client_policy` for the client alone; `prefer` orders the
    client's interfaces. Files live in `directory` (the lab's own by default): configurations, keys, control sockets,
    journals, and what each node says (`gateway.log`, `client.log`). Raises LabError with a node's own words.

    When it is closed, both journals are judged: see `NodeSet`.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        policy: str = "",
        client_policy: str = "",
        prefer: tuple[str, ...] = ("wlan*", "wwan*"),
        store: str = "sqlite",
        directory: Path | None = None,
        demand_verdict: bool = True,
    ) -> None:
        super().__init__(
            lab,
            directory or lab.directory,
            dict(zip(SIDES, SIDES, strict=True)),
            JOURNALS,
            demand_verdict=demand_verdict,
        )
        self._policies = {"gateway": policy, "client": policy + client_policy}
        self._prefer = prefer
        self._store = store

    async def start(self) -> None:
        """Write the files, start both nodes side by side, and return when both call the session ATTACHED."""
        if (missing := self.lab.missing_tun()) is not None:
            raise LabError(missing)
        self.write_configuration()
        self.journals.open()
        since = boot_ns()
        for side in SIDES:
            await self.start_node(side)
        for side in SIDES:
            await self.event(lambda r, side=side: r.side == side and r.turned("ATTACHED"), since, START_S)  # type: ignore[misc]

    def write_configuration(self) -> None:
        """Write both configurations, with fresh keys if there are none yet."""
        keys = {side: self._public_key(side) for side in SIDES}
        gateway = _GATEWAY.format(
            name=GATEWAY_NAME,
            port=PORT,
            events=JOURNALS["gateway"],
            store=self._store,
            network=INNER_NETWORK,
            device_key=keys["client"],
            inner=CLIENT_INNER,
        )
        client = _CLIENT.format(
            events=JOURNALS["client"],
            preferred=", ".join(f'"{pattern}"' for pattern in self._prefer),
            name=GATEWAY_NAME,
            address=GATEWAY_PUBLIC,
            port=PORT,
            gateway_key=keys["gateway"],
        )
        for side, text in (("gateway", gateway), ("client", client)):
            self.config(side).write_text(f"{text}\n{self._policies[side]}")

    async def switch(self, target: str) -> Refused | None:
        """Ask the client for another transport, as ``jumpvpn switch --to``; the refusal if it declines."""
        try:
            await self._ask("client", "switch", to=target)
        except Refused as refused:
            return refused
        return None

    async def terminate(self, side: str = "gateway") -> None:
        """End the session as an operator, as ``jumpvpn terminate``."""
        document = await self.status(side)
        await self._ask(side, "terminate", session=document["sessions"][0]["uid"])

    async def attached(self, since_ns: int = 0, *, on: str = "", sides: tuple[str, ...] = SIDES) -> int:
        """Wait until each side enters ATTACHED at or after `since_ns`; the later instant (ns). `on` is a transport."""
        latest = 0
        for side in sides:
            binding = on if side == "client" else ""  # the gateway names transports by their path index
            record = await self.event(
                lambda r, side=side, binding=binding: (  # type: ignore[misc]
                    r.side == side and r.turned("ATTACHED") and r.transport.startswith(binding)
                ),
                since_ns,
            )
            latest = max(latest, record.at_ns)
        return latest

    async def carried_by(self, interface: str) -> None:
        """See to it, as an operator, that the client's active transport is one of `interface` ("": any).

        Raises LabError if policy does not let it be within the time that an incident may take.
        """
        until = boot_ns() + int(SETTLE_S * 1e9)
        while not await self._is_carried_by(interface):
            before = boot_ns()
            refusal = await self.switch(interface)
            if refusal is None:
                await self.attached(before, on=interface)
            elif boot_ns() > until:
                raise LabError(f"the session cannot be brought to {interface}: {refusal}")
            else:
                await asyncio.sleep(_COOLDOWN_STEP_S)

    async def _is_carried_by(self, interface: str) -> bool:
        session = (await self.status("client"))["sessions"][0]
        binding = session["binding"]
        return binding is not None and session["state"] == "ATTACHED" and binding["transport"].startswith(interface)

    def _public_key(self, side: str) -> str:
        file = self.directory / f"{side}.key"
        file.unlink(missing_ok=True)
        return create_private_key(file)


def lay_roaming_cable(lab: Lab) -> str:
    """Give the client a third uplink that works, behind the LTE router; the name of its interface."""
    interface, network = "roam0", "192.168.30"
    lab.cable("client", interface, "lte", "lan1")
    behind = f"ip link set lan1 up; ip address add {network}.1/24 dev lan1"
    here = f"""
ip link set {interface} up
ip address add {network}.2/24 dev {interface}
ip route add default via {network}.1 dev {interface} metric 300
"""
    lab.run("lte", ["sh", "-ec", behind])
    lab.run("client", ["sh", "-ec", here])
    return interface


def interface_of(uplink: str) -> str:
    """The client's interface of an uplink: "wlan0" for "wifi"."""
    return UPLINKS[uplink].interface
