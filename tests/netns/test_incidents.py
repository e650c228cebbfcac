"""A real gateway and a real client in the lab: whatever happens to the networks, the session is the same one."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from jumpvpn.lab import Lab, incidents
from jumpvpn.lab.deployment import CLIENT_INNER, SIDES, Deployment, lay_roaming_cable
from jumpvpn.lab.incidents import Incident
from jumpvpn.lab.workload import Load, Workload

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]

# A busy machine may keep a process waiting for longer than the 100 ms after which silence is suspicious by default,
# and for longer than the 500 ms for which sent packets are kept.
CALM = """
[policy.volatility]
silence_floor = "250ms"

[policy.recovery]
replay_time = "5s"

[policy.switching]
failback = {failback}
hold_down = "{hold_down}"
max_per_minute = {max_per_minute}
"""

SHORT_TTL = """
[policy.session]
transport_ttl = "3s"

[policy.volatility]
volatile_max = "500ms"
stability_window = "300ms"
probe_interval_idle = "400ms"

[policy.switching]
hold_down = "0s"

[policy.recovery]
window = "2s"
attempt_timeout = "500ms"

[policy.security]
reattach_max_age = "2s"
"""

LIGHT = Load(echo_rate=100, protocols=("udp",))


@dataclass
class Tunnel:
    """One running deployment with an echo through it."""

    vpn: Deployment
    work: Workload

    async def demand_one_session(self, incident: Incident | None = None, *, lossless: bool = False) -> None:
        """The session is the one of the beginning, its records are whole, and traffic flows after the incident.

        ``lossless``: until then every packet was delivered, once, there and back.
        """
        assert await self.addresses() == [f"{CLIENT_INNER}/24"]
        logs = await self.work.finish()
        if incident is not None:
            echo = logs.echoes["udp"]
            assert echo.deliveries[-1] > incident.settled_ns, "nothing was delivered afterwards"
            until = echo.window(0, incident.settled_ns)
            assert not lossless or (until.lost, until.duplicated) == (0, 0), until
        self.demand_whole_records()

    def demand_whole_records(self) -> None:
        records = self.vpn.journals.records
        assert len({r.fields["session_uid"] for r in records if r.fields["session_uid"]}) == 1
        handshakes = [r for r in records if r.side == "gateway" and r.reason == "handshake_ok" and r.turned("ATTACHED")]
        assert len(handshakes) == 1

    async def addresses(self) -> list[str]:
        return list((await self.vpn.status("client"))["tun"]["addresses"])


@contextlib.asynccontextmanager
async def tunnel(
    *,
    failback: str = '"never"',
    hold_down: str = "0s",
    max_per_minute: int = 20,
    policy: str = "",
    client_policy: str = "",
    roaming: bool = False,
) -> AsyncIterator[Tunnel]:
    """A session on Wi-Fi with a validated standby on LTE."""
    calm = CALM.format(failback=failback, hold_down=hold_down, max_per_minute=max_per_minute)
    with Lab() as lab:
        if roaming:
            lay_roaming_cable(lab)
        vpn = Deployment(lab, policy=policy or calm, client_policy=client_policy)
        async with vpn, contextlib.aclosing(Workload(lab, LIGHT)) as work:
            await vpn.event(lambda r: r.data.get("change") == "validated" and r.transport.startswith("wwan0"))
            await work.start()
            yield Tunnel(vpn, work)


async def test_link_down_moves_the_session_to_the_standby() -> None:
    async with tunnel() as one:
        incident = await incidents.link_down(one.vpn)
        assert (incident.reason, incident.outcome) == ("transport_dead", "reattach_success")
        assert incident.transport.startswith("wwan0")
        await one.demand_one_session(incident, lossless=True)


async def test_restored_network_gets_the_session_back() -> None:
    async with tunnel(failback='"1s"') as one:
        await incidents.link_down(one.vpn)
        incident = await incidents.failback(one.vpn)
        assert (incident.reason, incident.outcome) == ("failback", "reattach_success")
        assert incident.transport.startswith("wlan0")
        await one.demand_one_session(incident)


@pytest.mark.parametrize("direction", ["up", "down", "both"])
async def test_silent_black_hole_is_seen_in_every_direction(direction: str) -> None:
    async with tunnel() as one:
        incident = await incidents.blackhole(one.vpn, "wifi", direction)
        assert incident.outcome == "reattach_success"
        assert incident.transport.startswith("wwan0")
        await one.demand_one_session(incident, lossless=True)


@pytest.mark.parametrize("address", [False, True], ids=["port", "address"])
async def test_nat_rebinding_keeps_the_transport(address: bool) -> None:
    async with tunnel() as one:
        incident = await incidents.nat_rebinding(one.vpn, address=address)
        assert (incident.reason, incident.outcome) == ("nat_rebinding", "rebind_validated")
        assert incident.transport.startswith("wlan0")
        await one.demand_one_session(incident)


@pytest.mark.parametrize("cause", [incidents.address_gone, incidents.route_gone], ids=["address", "route"])
async def test_lost_address_or_route_is_a_signalled_death(cause: incidents.Cause) -> None:
    async with tunnel() as one:
        incident = await cause(one.vpn)
        assert incident.reason == "transport_dead"
        assert incident.transport.startswith("wwan0")
        await one.demand_one_session(incident)


async def test_both_networks_dead_for_five_seconds() -> None:
    async with tunnel() as one:
        incident = await incidents.both_dead(one.vpn)
        assert (incident.reason, incident.outcome) == ("transport_dead", "reattach_success")
        assert incident.settled_ms >= 5000
        await one.demand_one_session(incident)


async def test_killed_gateway_keeps_its_sessions() -> None:
    async with tunnel() as one:
        incident = await incidents.gateway_restart(one.vpn)
        assert incident.outcome == "reattach_success"
        assert [r.reason for r in one.vpn.journals.records].count("owner_changed") > 0
        await one.demand_one_session(incident)


async def test_session_ends_on_both_sides_when_the_transport_ttl_is_over() -> None:
    async with tunnel(policy=SHORT_TTL) as one:
        one.vpn.lab.down("lte")
        since = one.vpn.lab.down("wifi").before_ns
        for side in SIDES:
            ended = await one.vpn.event(lambda r, side=side: r.side == side and r.turned("TERMINATED"), since)
            assert ended.reason == "transport_ttl_exceeded"
            assert ended.at_ns - since >= 3e9
        assert await one.vpn.ended("client") != 0
        one.demand_whole_records()


async def test_operator_moves_the_session_and_hold_down_denies_the_next_move() -> None:
    async with tunnel(hold_down="2s") as one:
        moved = await incidents.operator_switch(one.vpn)
        assert (moved.reason, moved.outcome) == ("operator_switch", "reattach_success")
        denied = await incidents.denied_switch(one.vpn, "wlan0")
        assert denied.reason == "cooldown_active"
        assert denied.transport.startswith("wwan0")
        await one.demand_one_session(denied)


async def test_switch_budget_denies_and_names_itself() -> None:
    async with tunnel(max_per_minute=1) as one:
        await incidents.operator_switch(one.vpn)
        denied = await incidents.denied_switch(one.vpn, "wlan0")
        assert denied.reason == "switch_rate_limited"
        assert denied.detected.data["limit"] == 1
        await one.demand_one_session(denied)


async def test_policy_denies_a_transport_that_would_work() -> None:
    forbidden = '[policy.transports]\ndeny = ["tag:roaming"]\ntags = { "roam*" = ["roaming"] }\n'
    async with tunnel(client_policy=forbidden, roaming=True) as one:
        denied = await incidents.denied_switch(one.vpn, "roam0")
        assert denied.reason == "policy_denied"
        assert denied.transport.startswith("wlan0")
        await one.demand_one_session(denied)


@pytest.mark.parametrize("side", SIDES)
async def test_operator_ends_the_session_for_both_sides(side: str) -> None:
    async with tunnel() as one:
        incident = await incidents.terminated(one.vpn, side)
        assert incident.reason == "operator_terminated"
        await one.vpn.ended("client")
        one.demand_whole_records()
