//! One way of a session to its peer, seen from the sending side: address, liveness, measurements, probes under way.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use jumpvpn_packet::frames::{Challenge, Report};
use jumpvpn_packet::keys::GatewayId;

use crate::liveness::{Limits, Liveness, RoundTrip};
use crate::standby::Shown;
use crate::udp::{Route, Socket};

/// Probes whose answer may still come. At the shortest probe interval (20 ms) this covers 640 ms.
const MAX_OUTSTANDING: usize = 32;
/// Measurements are told at most this often, unless they changed much.
const MEASURE_INTERVAL_NS: u64 = 500_000_000;
/// Even a big change waits this long, so that a storm of samples is no storm of facts.
const MEASURE_MINIMUM_NS: u64 = 50_000_000;
/// Loss is computed over at least this many datagrams, so that one lost datagram is no big change.
const LOSS_SAMPLE: u64 = 64;

/// A probe under way.
#[derive(Clone, Copy, Debug)]
pub struct Outstanding {
    /// What the answer must echo.
    pub challenge: Challenge,
    /// Where it was sent.
    pub address: SocketAddr,
    /// When it was sent.
    pub sent_ns: u64,
    /// Asked for by the control plane: its answer is told.
    pub fresh: bool,
}

/// Loss of one direction over the last sample, from counters that only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    sent: u64,
    received: u64,
    since_ns: u64,
    /// The first totals of an epoch are a starting point: what left before the peer could take it is no loss of the path.
    started: bool,
    /// Parts per million of the last complete sample.
    pub ppm: u32,
}

impl Loss {
    /// Takes the totals so far; a sample is complete when the window is over and enough were sent in it.
    pub fn update(&mut self, sent: u64, received: u64, now_ns: u64, window_ns: u64) {
        if !self.started || sent < self.sent || received < self.received {
            *self = Self { sent, received, since_ns: now_ns, started: true, ppm: self.ppm };
            return;
        }
        let (sent_now, received_now) = (sent - self.sent, received - self.received);
        if sent_now >= LOSS_SAMPLE && now_ns >= self.since_ns + window_ns {
            let ppm = (sent_now.saturating_sub(received_now) * 1_000_000 / sent_now) as u32;
            *self = Self { sent, received, since_ns: now_ns, started: true, ppm };
        }
    }
}

/// A new source of an active path, which was challenged.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// The newest one.
    pub address: SocketAddr,
    /// When it was challenged last.
    pub challenged_ns: u64,
    /// How many sources came since `since_ns`.
    pub count: u32,
    /// Start of that count.
    pub since_ns: u64,
}

/// What a probe's answer proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Address that received the probe.
    pub address: SocketAddr,
    /// Round trip less the peer's own delay.
    pub rtt_ns: u64,
    /// The control plane waits to hear of it.
    pub tell: bool,
}

/// Measurements of one path at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Smoothed round trip.
    pub srtt_ns: u64,
    /// Its mean deviation.
    pub rttvar_ns: u64,
    /// Loss of what we send.
    pub sent_ppm: u32,
    /// Loss of what we receive.
    pub received_ppm: u32,
    /// Inner packets received.
    pub received: u64,
}

/// Sending side of one path.
#[derive(Debug)]
pub struct Path {
    /// Socket it uses.
    pub socket: Arc<Socket>,
    /// Peer's address.
    pub route: Route,
    /// Client: the gateway at the other end.
    pub gateway: GatewayId,
    /// Client: that gateway does not hold the session, so nothing is sealed for it but standby probes and requests.
    pub is_standby: bool,
    /// Client: tickets and tokens of this path.
    pub shown: Shown,
    /// Is it alive?
    pub live: Liveness,
    /// How far is the peer?
    pub rtt: RoundTrip,
    /// Loss of what we send, by the peer's reports.
    pub loss_sent: Loss,
    /// Loss of what we receive, by our own windows.
    pub loss_received: Loss,
    /// When to probe next.
    pub next_probe_ns: u64,
    /// New source seen and not yet resolved.
    pub moved: Option<Moved>,
    /// Inner packets sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    validated: bool,
    last_probe_ns: u64,
    outstanding: VecDeque<Outstanding>,
    told_at_ns: u64,
    told: Measured,
}

impl Path {
    /// A path that is not validated and probes at once when it has limits.
    pub fn new(socket: Arc<Socket>, route: Route, limits: Option<Limits>, now_ns: u64) -> Self {
        Self {
            socket,
            route,
            gateway: GatewayId::default(),
            is_standby: false,
            shown: Shown::default(),
            live: Liveness::new(limits, now_ns),
            rtt: RoundTrip::default(),
            loss_sent: Loss::default(),
            loss_received: Loss::default(),
            next_probe_ns: now_ns,
            moved: None,
            sent_packets: 0,
            sent_bytes: 0,
            validated: false,
            last_probe_ns: 0,
            outstanding: VecDeque::new(),
            told_at_ns: 0,
            told: Measured::default(),
        }
    }

    /// True when this path already uses `socket` to reach `route`.
    pub fn leads(&self, socket: &Socket, route: Route) -> bool {
        self.socket.id == socket.id && self.route == route
    }

    /// How long a sample of loss lasts at least.
    pub fn loss_window_ns(&self) -> u64 {
        self.live.limits.map_or(0, |limits| limits.loss_window_ns)
    }

    /// Forgets validation: the next answer is told again.
    pub fn unvalidate(&mut self) {
        self.validated = false;
    }

    /// Notes a probe that is about to leave.
    pub fn note_probe(&mut self, probe: Outstanding) {
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        if probe.address == self.route.peer {
            self.last_probe_ns = probe.sent_ns;
        }
        self.outstanding.push_back(probe);
    }

    /// Notes a standby probe that is about to leave.
    pub fn note_standby_probe(&mut self, now_ns: u64) {
        self.last_probe_ns = now_ns;
        if self.live.limits.is_some() {
            self.live.sent_probe(now_ns);
        }
    }

    /// The gateway at the other end holds the session from now on, or no longer: the other kind of probe is owed.
    pub fn set_standby(&mut self, is_standby: bool, now_ns: u64) {
        if self.is_standby == is_standby {
            return;
        }
        self.is_standby = is_standby;
        self.outstanding.clear();
        self.shown.forget_probes();
        self.validated = false;
        self.live.watch_anew(now_ns);
        (self.next_probe_ns, self.last_probe_ns) = (now_ns, 0);
    }

    /// When the path itself was last probed; 0 for never.
    pub fn last_probe_ns(&self) -> u64 {
        self.last_probe_ns
    }

    /// True when a probe with this challenge is under way; it is answered now, so that a copy of the hint is not.
    pub fn take_hint(&mut self, challenge: &Challenge) -> bool {
        let at = self.outstanding.iter().position(|probe| probe.challenge == *challenge);
        at.and_then(|at| self.outstanding.remove(at)).is_some()
    }

    /// Takes the answer to a probe, which came from `source`; None when no probe to that address is under way.
    pub fn take_answer(&mut self, report: &Report, source: SocketAddr, now_ns: u64) -> Option<Answer> {
        let matches = |probe: &Outstanding| probe.challenge == report.challenge && probe.address == source;
        let at = self.outstanding.iter().position(matches)?;
        let probe = self.outstanding.remove(at)?;
        // Earlier probes stay: their answers may be on another way and still measure it.
        let rtt_ns = now_ns.saturating_sub(probe.sent_ns).saturating_sub(u64::from(report.delay_us) * 1000).max(1);
        let own = probe.address == self.route.peer;
        if own {
            self.rtt.sample(rtt_ns);
        }
        let tell = probe.fresh || !own || !self.validated || self.live.is_silent();
        self.validated |= own;
        Some(Answer { address: probe.address, rtt_ns, tell })
    }

    /// When the probe with `challenge` was sent.
    pub fn sent_at(&self, challenge: &Challenge) -> Option<u64> {
        self.outstanding.iter().find(|probe| probe.challenge == *challenge).map(|probe| probe.sent_ns)
    }

    /// What is measured, with `received` inner packets, when it should be told now; counts as told.
    ///
    /// What was told before is not told again: most paths of most sessions are quiet.
    pub fn take_measured(&mut self, received: u64, now_ns: u64) -> Option<Measured> {
        let (sent_ppm, received_ppm) = (self.loss_sent.ppm, self.loss_received.ppm);
        let RoundTrip { srtt_ns, rttvar_ns, .. } = self.rtt;
        let measured = Measured { srtt_ns, rttvar_ns, sent_ppm, received_ppm, received };
        let waited = now_ns.saturating_sub(self.told_at_ns);
        let change = self.told.srtt_ns.abs_diff(srtt_ns);
        let big = change > self.told.srtt_ns / 2 && change > 1_000_000 && waited >= MEASURE_MINIMUM_NS;
        if srtt_ns == 0 || measured == self.told || !(big || waited >= MEASURE_INTERVAL_NS) {
            return None;
        }
        self.told_at_ns = now_ns;
        self.told = measured;
        Some(measured)
    }

    /// Starts the counts of a new epoch.
    pub fn new_epoch(&mut self) {
        self.live.new_epoch();
        self.loss_sent = Loss { ppm: self.loss_sent.ppm, ..Loss::default() };
        self.loss_received = Loss { ppm: self.loss_received.ppm, ..Loss::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_taken_over_whole_samples() {
        let mut loss = Loss::default();
        loss.update(50, 0, 100, 10);
        assert_eq!(loss.ppm, 0, "only a starting point");
        loss.update(100, 45, 110, 10);
        assert_eq!(loss.ppm, 0, "too few");
        loss.update(150, 90, 109, 10);
        assert_eq!(loss.ppm, 0, "the window is not over");
        loss.update(150, 90, 110, 10);
        assert_eq!(loss.ppm, 100_000);
        loss.update(250, 190, 120, 10);
        assert_eq!(loss.ppm, 0);
        loss.update(0, 0, 130, 10);
        loss.update(64, 70, 140, 10);
        assert_eq!(loss.ppm, 0);
    }
}
