//! Sending side of one session: the newest epoch's key, the paths, and what waits or may be sent again.

use std::net::SocketAddr;
use std::sync::Arc;

use jumpvpn_packet::control::cut_message;
use jumpvpn_packet::frames::{Probe, Report, MEASUREMENT_LEN};
use jumpvpn_packet::header::{PathIndex, HEADER_LEN, MAX_PATHS, OVERHEAD};
use jumpvpn_packet::keys::GatewayId;
use jumpvpn_packet::random::draw;
use jumpvpn_packet::seal::SealingKey;
use jumpvpn_packet::SystemRandom;

use crate::counters::Counter;
use crate::facts::Fact;
use crate::liveness::Limits;
use crate::path::{Outstanding, Path};
use crate::queue::InnerQueue;
use crate::replay_buffer::{ReplayBuffer, Seal};
use crate::rx::{Counts, RxPath};
use crate::shared::Shared;
use crate::standby::Pass;
use crate::timer::BUSY_NS;
use crate::train::Train;
use crate::udp::{Route, Socket};

/// Longest control frame and its overhead.
const FRAME_ROOM: usize = 1200 + OVERHEAD;

/// Data of an epoch that is not confirmed yet (zero round trips).
#[derive(Debug)]
pub struct Early {
    /// Its key.
    pub key: SealingKey,
    /// The path it is meant for.
    pub path: PathIndex,
}

/// Where a sealed train goes once the lock is released.
#[derive(Debug)]
pub struct Outgoing {
    /// Socket to use.
    pub socket: Arc<Socket>,
    /// Peer.
    pub route: Route,
    /// Path, for error reports.
    pub path: PathIndex,
}

/// Totals of one session's sending side.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Totals {
    pub packets: u64,
    pub bytes: u64,
    pub shed: u64,
    pub resent: u64,
}

/// Sending side of one session; guarded by one lock, held for a batch.
#[derive(Debug)]
pub struct Tx {
    /// Handle of the session, for facts.
    pub session: u64,
    /// Key of the newest epoch; None when this node may not send (restored, or closed).
    pub key: Option<SealingKey>,
    /// Next epoch during a zero-round-trip reattach.
    pub early: Option<Early>,
    /// The paths that are set.
    pub paths: [Option<Path>; MAX_PATHS],
    /// Limits per path; they survive the path.
    pub limits: [Option<Limits>; MAX_PATHS],
    /// Path that carries data.
    pub active: Option<PathIndex>,
    /// Packets that wait for a binding.
    pub queue: InnerQueue,
    /// Datagrams that may be sent again.
    pub replay: ReplayBuffer,
    /// Totals.
    pub totals: Totals,
    /// Last inner packet sent or queued.
    pub last_data_ns: u64,
    /// Last hint sent.
    pub last_hint_ns: u64,
    /// Gateway: when the epoch that seals was granted by a reattach.
    pub granted_ns: u64,
    /// Client: what other gateways know the session by.
    pub pass: Pass,
    /// Client: the gateway that holds the session.
    pub gateway: GatewayId,
    next_message: u32,
}

impl Tx {
    /// A side without key or paths.
    pub fn new(session: u64, queue_bytes: usize, replay_bytes: usize, replay_ns: u64) -> Self {
        Self {
            session,
            key: None,
            early: None,
            paths: Default::default(),
            limits: [None; MAX_PATHS],
            active: None,
            queue: InnerQueue::new(queue_bytes),
            replay: ReplayBuffer::new(replay_bytes, replay_ns),
            totals: Totals::default(),
            last_data_ns: 0,
            last_hint_ns: 0,
            granted_ns: 0,
            pass: Pass::default(),
            gateway: GatewayId::default(),
            next_message: u32::from_be_bytes(draw(&mut SystemRandom)),
        }
    }

    /// Seals `train` for the active path and returns where to send it; None when its packets were queued or refused.
    pub fn seal_train(&mut self, shared: &Shared, train: &mut Train, now_ns: u64) -> Option<Outgoing> {
        let quiet_ns = now_ns.saturating_sub(self.last_data_ns);
        self.last_data_ns = now_ns;
        let fenced = shared.is_fenced(now_ns);
        let Some(path) = self.data_path().filter(|_| !fenced) else {
            self.enqueue(shared, train);
            shared.counters.add(Counter::Fenced, if fenced { train.count() as u64 } else { 0 });
            return None;
        };
        if self.early.is_some() {
            self.enqueue(shared, train);
            self.queue.take_early().for_each(drop);
        } else if !self.queue.is_empty() {
            // They waited behind a deadline that was moved: order is kept.
            self.send_waiting(shared, path, now_ns);
        }
        let busy = self.limits[path.index()].map(|limits| limits.silence_busy_ns);
        let sealed = self.seal_on(shared, path, train, now_ns);
        if sealed.is_some() && busy.is_some_and(|busy| quiet_ns >= busy) {
            self.send_probe(shared, path, None, false, now_ns);
        }
        sealed
    }

    fn data_path(&self) -> Option<PathIndex> {
        let path = match &self.early {
            Some(early) => early.path,
            None => self.active.filter(|_| self.key.is_some())?,
        };
        self.paths[path.index()].is_some().then_some(path)
    }

    fn enqueue(&mut self, shared: &Shared, train: &Train) {
        let shed: u64 = train.packets().map(|packet| self.queue.push(packet.to_vec())).sum();
        if shed > 0 {
            self.totals.shed += shed;
            shared.counters.add(Counter::Shed, shed);
        }
    }

    fn seal_on(&mut self, shared: &Shared, path: PathIndex, train: &mut Train, now_ns: u64) -> Option<Outgoing> {
        let key = match &mut self.early {
            Some(early) => &mut early.key,
            None => self.key.as_mut()?,
        };
        let (stride, count) = (train.stride(), train.count() as u64);
        let Ok(first) = key.seal_segments(path, train.bytes_mut(), stride) else {
            shared.counters.add(Counter::KeyExhausted, count);
            return None;
        };
        let seal = Seal { epoch: key.epoch(), path: path.get(), counter: first, at_ns: now_ns };
        self.replay.push(seal, train.bytes(), stride);
        let bytes = (train.bytes().len() - train.count() * OVERHEAD) as u64;
        self.totals.packets += count;
        self.totals.bytes += bytes;
        let state = self.paths[path.index()].as_mut()?;
        state.sent_packets += count;
        state.sent_bytes += bytes;
        if self.early.is_none() {
            state.live.sent_data(first, first + count, now_ns);
        }
        Some(Outgoing { socket: Arc::clone(&state.socket), route: state.route, path })
    }

    /// Sends what the peer has not reported, then what waited, in order; the active path or the early one is set.
    pub fn flush(&mut self, shared: &Shared, now_ns: u64) {
        let Some(path) = self.data_path().filter(|_| !shared.is_fenced(now_ns)) else { return };
        let Some(state) = &self.paths[path.index()] else { return };
        let (socket, route, session) = (Arc::clone(&state.socket), state.route, self.session);
        let epoch = self.early.as_ref().map(|early| &early.key).or(self.key.as_ref()).map_or(0, SealingKey::epoch);
        // The peer's drain keeps one epoch before the newest. Another gateway has none of it: what it would deliver, the
        // one before may have delivered.
        let oldest = if self.is_foreign(path) { epoch } else { epoch.saturating_sub(1) };
        let resent = self.replay.resend(now_ns, oldest, |bytes, stride| {
            shared.transmit(&socket, route, bytes, stride, session, path.get());
        });
        self.totals.resent += resent;
        self.send_waiting(shared, path, now_ns);
    }

    /// Client: `path` leads to a gateway that does not hold the session.
    pub fn is_foreign(&self, path: PathIndex) -> bool {
        let state = self.paths[path.index()].as_ref();
        state.is_some_and(|state| state.is_standby || state.gateway != self.gateway)
    }

    /// Client: the gateway at the end of `path` holds the session from now on; all others are standbys.
    pub fn meet_gateway(&mut self, path: PathIndex, now_ns: u64) {
        let Some(gateway) = self.paths[path.index()].as_ref().map(|state| state.gateway) else { return };
        self.gateway = gateway;
        for state in self.paths.iter_mut().flatten() {
            state.set_standby(state.gateway != gateway, now_ns);
        }
    }

    /// Seals what waited and sends it on `path`, in order.
    fn send_waiting(&mut self, shared: &Shared, path: PathIndex, now_ns: u64) {
        let mut train = Train::default();
        let waiting: Vec<Vec<u8>> = if self.early.is_some() {
            self.queue.take_early().map(<[u8]>::to_vec).collect()
        } else {
            std::iter::from_fn(|| self.queue.pop()).collect()
        };
        for packet in waiting {
            if !train.fits(packet.len()) {
                self.send_sealed(shared, path, &mut train, now_ns);
            }
            train.add(packet.len()).copy_from_slice(&packet);
        }
        self.send_sealed(shared, path, &mut train, now_ns);
    }

    fn send_sealed(&mut self, shared: &Shared, path: PathIndex, train: &mut Train, now_ns: u64) {
        if train.count() == 0 {
            return;
        }
        if let Some(to) = self.seal_on(shared, path, train, now_ns) {
            self.last_data_ns = now_ns;
            shared.transmit(&to.socket, to.route, train.bytes(), train.stride(), self.session, path.get());
        }
        train.clear();
    }

    /// The deadline was moved on: what waited goes out, and what was owed meanwhile says nothing about the paths.
    pub fn resume(&mut self, shared: &Shared, now_ns: u64) {
        self.paths.iter_mut().flatten().for_each(|path| path.live.watch_anew(now_ns));
        if let Some(path) = self.data_path().filter(|_| !self.queue.is_empty()) {
            self.send_waiting(shared, path, now_ns);
        }
    }

    /// Seals one frame under the newest epoch and sends it on `path`, to `route` when that is given.
    pub fn send_frame(&mut self, shared: &Shared, path: PathIndex, route: Option<(&Socket, Route)>, frame: &[u8]) {
        if shared.is_fenced_now() {
            shared.counters.add(Counter::Fenced, 1);
            return;
        }
        // A gateway that does not hold the session could not open it.
        let own = self.paths[path.index()].as_ref().filter(|state| !state.is_standby);
        let own = own.map(|state| (&*state.socket, state.route));
        let (Some(key), Some((socket, route))) = (&mut self.key, route.or(own)) else { return };
        let mut buffer = [0; FRAME_ROOM];
        let datagram = &mut buffer[..frame.len() + OVERHEAD];
        datagram[HEADER_LEN..HEADER_LEN + frame.len()].copy_from_slice(frame);
        if key.seal(path, datagram).is_err() {
            shared.counters.add(Counter::KeyExhausted, 1);
            return;
        }
        shared.transmit(socket, route, datagram, datagram.len(), self.session, path.get());
    }

    /// Probes `path`, at `address` instead of the path's own when that is given; `fresh` makes its answer a fact.
    pub fn send_probe(
        &mut self,
        shared: &Shared,
        path: PathIndex,
        address: Option<SocketAddr>,
        fresh: bool,
        now_ns: u64,
    ) {
        if self.key.is_none() {
            return;
        }
        if self.paths[path.index()].as_ref().is_some_and(|state| state.is_standby) {
            self.send_standby_probe(shared, path, now_ns);
            return;
        }
        let Some(state) = &mut self.paths[path.index()] else { return };
        let route = Route { peer: address.unwrap_or(state.route.peer), source: state.route.source };
        let challenge = draw(&mut SystemRandom);
        state.note_probe(Outstanding { challenge, address: route.peer, sent_ns: now_ns, fresh });
        if address.is_none() && state.live.limits.is_some() {
            state.live.sent_probe(now_ns);
        }
        let socket = Arc::clone(&state.socket);
        let probe = Probe { clock_ns: now_ns, challenge };
        self.send_frame(shared, path, Some((&socket, route)), &probe.to_bytes());
    }

    /// Reports on `path` what was received: `answer` is the probe that is answered and where it came from.
    pub fn send_report(
        &mut self,
        shared: &Shared,
        path: PathIndex,
        counts: Counts,
        answer: Option<(Probe, u32, &Socket, Route)>,
    ) {
        let Some(epoch) = self.key.as_ref().map(SealingKey::epoch) else { return };
        // Counts of another epoch than the one this report is sealed in would mislead.
        let counts = if counts.epoch == epoch { counts } else { Counts::default() };
        let mut report = Report {
            highest: counts.highest,
            received: counts.received,
            lowest_missing: counts.lowest_missing,
            ..Report::default()
        };
        if let Some((probe, delay_us, _, _)) = &answer {
            report.answers_probe = true;
            report.echo_clock_ns = probe.clock_ns;
            report.challenge = probe.challenge;
            report.delay_us = *delay_us;
        }
        let frame: [u8; MEASUREMENT_LEN] = report.to_bytes();
        self.send_frame(shared, path, answer.map(|(_, _, socket, route)| (socket, route)), &frame);
    }

    /// Takes the peer's report on `path`, sealed in `epoch`, which came from `source`.
    pub fn take_report(
        &mut self,
        shared: &Shared,
        path: PathIndex,
        epoch: u64,
        report: &Report,
        source: SocketAddr,
        now_ns: u64,
    ) {
        if report.received > 0 && report.lowest_missing > 0 {
            self.replay.report(epoch, path.get(), report.lowest_missing - 1);
        }
        let current = self.key.as_ref().is_some_and(|key| key.epoch() == epoch);
        let (session, index) = (self.session, path.get());
        let Some(state) = &mut self.paths[path.index()] else { return };
        let mut heard = false;
        if report.answers_probe {
            let sent_at = state.sent_at(&report.challenge);
            let answer = state.take_answer(report, source, now_ns);
            let (Some(sent_at), Some(answer)) = (sent_at, answer) else {
                shared.counters.add(Counter::UnsolicitedReport, 1);
                return;
            };
            if answer.address == state.route.peer {
                heard |= state.live.answered(sent_at, now_ns);
            }
            if answer.tell {
                let peer = answer.address;
                shared.tell(Fact::PathValidated { session, path: index, peer, rtt_ns: answer.rtt_ns });
            }
        }
        if current && report.received > 0 {
            let window_ns = state.loss_window_ns();
            state.loss_sent.update(report.highest + 1, report.received, now_ns, window_ns);
            heard |= state.live.reported(report.highest, now_ns);
        }
        if heard {
            shared.tell(Fact::PathHeard { session, path: index });
        }
    }

    /// Tells what was measured on `path` when that is due.
    pub fn tell_measured(&mut self, shared: &Shared, path: PathIndex, seen: &RxPath, counts: Counts, now_ns: u64) {
        let session = self.session;
        let Some(state) = &mut self.paths[path.index()] else { return };
        if counts.received > 0 {
            let window_ns = state.loss_window_ns();
            state.loss_received.update(counts.highest + 1, counts.received, now_ns, window_ns);
        }
        let Some(told) = state.take_measured(seen.packets, now_ns) else { return };
        let (sent, received) = (told.sent_ppm, told.received_ppm);
        let (loss_up_ppm, loss_down_ppm) = if shared.is_gateway { (received, sent) } else { (sent, received) };
        shared.tell(Fact::PathMeasured {
            session,
            path: path.get(),
            srtt_ns: told.srtt_ns,
            rttvar_ns: told.rttvar_ns,
            loss_up_ppm,
            loss_down_ppm,
            received: told.received,
        });
    }

    /// Sends a message in control frames on `path`; false when it is too long.
    pub fn send_message(&mut self, shared: &Shared, path: PathIndex, message_type: u8, content: &[u8]) -> bool {
        let message_id = self.new_message_id();
        self.repeat_message(shared, path, message_id, message_type, content)
    }

    /// Sends the message `message_id` (again).
    pub fn repeat_message(
        &mut self,
        shared: &Shared,
        path: PathIndex,
        message_id: u32,
        message_type: u8,
        content: &[u8],
    ) -> bool {
        let Some(frames) = cut_message(message_id, message_type, content) else { return false };
        frames.iter().for_each(|frame| self.send_frame(shared, path, None, frame));
        true
    }

    /// Identifier of the next control message.
    pub fn new_message_id(&mut self) -> u32 {
        self.next_message = self.next_message.wrapping_add(1);
        self.next_message
    }

    /// Makes `key` the one that seals; counts of all paths start anew.
    pub fn install_key(&mut self, key: SealingKey) {
        self.key = Some(key);
        self.paths.iter_mut().flatten().for_each(Path::new_epoch);
    }

    /// When this side wants to be looked at after it sent data.
    pub fn wake_ns(&self, now_ns: u64) -> u64 {
        let limits = self.active.and_then(|path| self.limits[path.index()]);
        now_ns + limits.map_or(BUSY_NS, |limits| limits.silence_busy_ns.min(limits.probe_busy_ns).min(BUSY_NS))
    }

    /// The active path, else the first that is set and leads to the peer that holds the session.
    pub fn any_path(&self) -> Option<PathIndex> {
        let leads = |path: &PathIndex| self.paths[path.index()].as_ref().is_some_and(|state| !state.is_standby);
        self.active.filter(leads).or_else(|| PathIndex::all().find(leads))
    }
}
