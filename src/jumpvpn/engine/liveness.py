"""From policy and measurements to the limits that the packet core watches."""

from __future__ import annotations

from jumpvpn.engine.outputs import TuneLiveness
from jumpvpn.policy.model import Policy
from jumpvpn.session.reasons import Reason
from jumpvpn.values import MILLISECOND, SECOND, TransportId, dataclass

INITIAL_SILENCE = SECOND  # before the first measurement, as the initial RTO of RFC 6298
RETUNE_STEP = 5 * MILLISECOND  # a limit that moved less is not worth a call into the packet core
CHALLENGE_AGAIN = SECOND  # while DEGRADED, a transport that fell silent is asked that often whether it is back


@dataclass(frozen=True, slots=True)
class Liveness:
    """Probe intervals and silence limits of one path (ns)."""

    probe_busy: int
    probe_idle: int
    silence_busy: int
    silence_idle: int
    dead_factor: int
    loss_window: int

    def close_to(self, other: Liveness, step: int = RETUNE_STEP) -> bool:
        """Whether the change is too small to act on."""
        return abs(self.silence_busy - other.silence_busy) < step and self._rest() == other._rest()

    def _rest(self) -> tuple[int, ...]:
        return self.probe_busy, self.probe_idle, self.silence_idle, self.dead_factor, self.loss_window

    def order(self, uid: str, transport: TransportId) -> TuneLiveness:
        """The order that puts these limits into force."""
        return TuneLiveness(
            uid, transport, self.probe_busy, self.probe_idle, self.silence_busy, self.silence_idle, self.dead_factor,
            self.loss_window,
        )  # fmt: skip


def silence_reason(policy: Policy, limit_ns: int) -> Reason:
    """Why a path is silent: reports on data are owed, or so many probes in a row went unanswered."""
    idle = limit_ns >= policy.volatility.silence_limit_idle()
    return Reason.CONSECUTIVE_DROP_EXCEEDED if idle else Reason.PROBE_TIMEOUT


def liveness_of(policy: Policy, rtt_ns: int, rtt_dev_ns: int) -> Liveness:
    """The limits for a path with this smoothed RTT and deviation; 0 means not measured yet."""
    volatility = policy.volatility
    busy = volatility.silence_limit_busy(rtt_ns, rtt_dev_ns) if rtt_ns else INITIAL_SILENCE
    return Liveness(
        volatility.probe_interval, volatility.probe_interval_idle, int(busy), int(volatility.silence_limit_idle()),
        volatility.dead_factor, volatility.loss_window,
    )  # fmt: skip
