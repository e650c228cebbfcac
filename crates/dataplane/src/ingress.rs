//! UDP to TUN: receive trains, open in place, join to super-packets, write; frames are handled on the way.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use jumpvpn_packet::control::{FIRST_APPLICATION_TYPE, TYPE_REKEY_REPLY, TYPE_REKEY_REQUEST};
use jumpvpn_packet::frames::Probe;
use jumpvpn_packet::header::{Kind, PathIndex};
use jumpvpn_packet::random::draw;
use jumpvpn_packet::reattach::Hint;
use jumpvpn_packet::{Cid, DropReason, SystemRandom};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use quinn_udp::RecvMeta;

use crate::coalesce::Coalescer;
use crate::counters::Counter;
use crate::facts::Fact;
use crate::path::{Moved, Path};
use crate::rx::{Arrival, Event, Sink, Way};
use crate::session::Session;
use crate::shared::Shared;
use crate::tun::Device;
use crate::tx::Tx;
use crate::udp::{Route, Socket};
use crate::{attempt, requests, standby, sys};

const WAKER: Token = Token(0);
/// Messages per receive call.
const BATCH: usize = 32;
/// A message may be a train of 64 KiB.
const MESSAGE: usize = 64 << 10;
/// Joined packets are handed on when this much waits: the receiver's core starts while this one opens the rest.
const FLUSH_BYTES: usize = 32 << 10;
/// Ready sockets are served this often before new readiness is asked for.
const TURNS_PER_POLL: u32 = 8;
/// A session gets at most one hint per this time.
const HINT_INTERVAL_NS: u64 = 20_000_000;
/// A reply is asked for again several times within this.
const REPLY_PATIENCE_NS: u64 = 1_000_000_000;
/// Cause in hints: this gateway may not send in the session's epoch.
const HINT_NO_EPOCH: u8 = 1;
/// A new source is challenged again at most this often.
const CHALLENGE_INTERVAL_NS: u64 = 100_000_000;
/// Sources of one path that are followed within that time: a NAT that is flushed under traffic maps twice.
const MOVES_PER_INTERVAL: u32 = 4;
/// The address of a standby path is proven anew after this, so that a switch to it needs no challenge.
const STANDBY_PROOF_NS: u64 = 5_000_000_000;

/// Where a datagram came from and when.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Socket it came to.
    pub socket: &'a Arc<Socket>,
    /// The way back.
    pub route: Route,
    /// Time of its batch.
    pub now_ns: u64,
}

/// State of the ingress thread.
#[derive(Debug)]
pub struct Ingress {
    shared: Arc<Shared>,
    device: Option<Arc<Device>>,
    poll: Poll,
    buffer: Vec<u8>,
    coalescer: Coalescer,
    waiting_bytes: usize,
    sink: Sink,
    ready: VecDeque<Arc<Socket>>,
    /// Sessions with packets that wait for the last ones of the gateway before, and until when.
    waiting: Vec<(u64, Arc<Session>)>,
    turns: u32,
}

impl Ingress {
    /// Watches nothing yet; sockets are added through the returned registry.
    pub fn new(shared: Arc<Shared>) -> io::Result<(Self, Registry, Arc<Waker>)> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = Arc::new(Waker::new(&registry, WAKER)?);
        let ingress = Self {
            device: shared.device(),
            shared,
            poll,
            buffer: vec![0; BATCH * MESSAGE],
            coalescer: Coalescer::default(),
            waiting_bytes: 0,
            sink: Sink::default(),
            ready: VecDeque::new(),
            waiting: Vec::new(),
            turns: 0,
        };
        Ok((ingress, registry, waker))
    }

    /// Waits for sockets if none is known to be ready, then takes one batch from one of them.
    pub fn turn(&mut self) -> io::Result<()> {
        self.turns = self.turns.wrapping_add(1);
        if self.ready.is_empty() || self.turns.is_multiple_of(TURNS_PER_POLL) {
            self.wait()?;
        }
        if let Some(socket) = self.ready.pop_front() {
            if self.receive(&socket) {
                self.ready.push_back(socket);
            }
            self.flush();
        }
        self.end_waits();
        Ok(())
    }

    /// Delivers what has waited long enough. Nobody but this thread delivers, so nothing of an older epoch comes after.
    fn end_waits(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let now_ns = sys::boottime_ns();
        let shared = &self.shared;
        self.waiting.retain(|(until_ns, session)| {
            if now_ns < *until_ns {
                return true;
            }
            let (closed, packets) = session.rx.lock().end_wait();
            shared.close_cids(&closed);
            packets.iter().for_each(|packet| shared.deliver_plain(packet));
            false
        });
    }

    fn note_wait(&mut self, session: &Arc<Session>, until_ns: u64) {
        match self.waiting.iter_mut().find(|(_, known)| Arc::ptr_eq(known, session)) {
            Some((at_ns, _)) => *at_ns = until_ns,
            None => self.waiting.push((until_ns, Arc::clone(session))),
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let until_ns = self.waiting.iter().map(|(until_ns, _)| *until_ns).min();
        let until_ns = if self.ready.is_empty() { until_ns } else { Some(0) };
        let timeout = until_ns.map(|at| Duration::from_nanos(at.saturating_sub(sys::boottime_ns())));
        let mut events = Events::with_capacity(64);
        match self.poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in events.iter().filter(|event| event.token() != WAKER) {
            let socket = self.shared.sockets.read().get(&(event.token().0 as u64)).cloned();
            let Some(socket) = socket else { continue };
            if event.is_error() {
                drain_errors(&self.shared, &socket);
            }
            if !self.ready.iter().any(|known| known.id == socket.id) {
                self.ready.push_back(socket);
            }
        }
        Ok(())
    }

    /// Takes one batch; true when more may wait.
    fn receive(&mut self, socket: &Arc<Socket>) -> bool {
        let mut meta = [RecvMeta::default(); BATCH];
        let received = {
            let mut chunks = self.buffer.chunks_exact_mut(MESSAGE);
            let mut slices: [IoSliceMut<'_>; BATCH] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            socket.receive(&mut slices, &mut meta)
        };
        let count = match received {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => {
                self.shared.counters.add(Counter::ReceiveError, 1);
                drain_errors(&self.shared, socket);
                return true;
            }
        };
        let now_ns = sys::boottime_ns();
        if self.shared.is_fenced(now_ns) {
            let datagrams = meta[..count].iter().map(|message| message.len.div_ceil(message.stride.max(1)) as u64);
            self.shared.counters.add(Counter::Fenced, datagrams.sum());
            return count == BATCH;
        }
        for (index, message) in meta[..count].iter().enumerate() {
            let source = message.dst_ip.filter(|_| socket.is_wildcard());
            let route = Route { peer: message.addr, source };
            let place = index * MESSAGE..index * MESSAGE + message.len;
            self.take_message(&Origin { socket, route, now_ns }, place, message.stride);
            if self.waiting_bytes >= FLUSH_BYTES {
                self.flush();
            }
        }
        count == BATCH
    }

    /// Handles the datagrams of one message; those of one session and epoch in a row are opened under one lock.
    fn take_message(&mut self, origin: &Origin<'_>, place: Range<usize>, stride: usize) {
        let shared = Arc::clone(&self.shared);
        let stride = stride.max(1);
        shared.counters.add(Counter::ReceivedDatagrams, place.len().div_ceil(stride) as u64);
        let mut at = place.start;
        while at < place.end {
            let first = at..place.end.min(at + stride);
            at = first.end;
            match Kind::of(&self.buffer[first.clone()]) {
                Ok(Kind::Data) if first.len() >= 8 => {
                    let same = |next: usize| {
                        next + 8 <= place.end
                            && self.buffer[next..next + 8] == self.buffer[first.start..first.start + 8]
                    };
                    while at < place.end && same(at) {
                        at = place.end.min(at + stride);
                    }
                    self.open_group(&shared, origin, first.start..at, stride);
                }
                Ok(kind) => take_other(&shared, origin, kind, &mut self.buffer[first]),
                Err(reason) => shared.counters.dropped(reason),
            }
        }
    }

    fn open_group(&mut self, shared: &Arc<Shared>, origin: &Origin<'_>, group: Range<usize>, stride: usize) {
        let count = group.len().div_ceil(stride);
        let mut cid: Cid = [0; 7];
        cid.copy_from_slice(&self.buffer[group.start + 1..group.start + 8]);
        let Some(session) = shared.session_of(&cid) else {
            (0..count).for_each(|_| shared.counters.dropped(DropReason::UnknownCid));
            return;
        };
        let (wake_ns, waits_ns) = {
            let mut rx = session.rx.lock();
            let arrival = Arrival {
                way: Way { socket: origin.socket.id, peer: origin.route.peer },
                now_ns: origin.now_ns,
                allowed: shared.is_gateway.then_some(&session.inner),
                counters: &shared.counters,
            };
            for start in group.clone().step_by(stride) {
                let place = start..group.end.min(start + stride);
                if let Err(reason) = rx.open(&mut self.buffer, place, &arrival, &mut self.sink) {
                    shared.counters.dropped(reason);
                }
            }
            rx.due_reports(origin.now_ns, &mut self.sink);
            (rx.report_deadline(), rx.waiting.as_ref().map(|waiting| waiting.until_ns))
        };
        self.pass_on();
        if let Some(until_ns) = waits_ns {
            self.note_wait(&session, until_ns);
        }
        if let Some(wake_ns) = wake_ns {
            session.look_by(shared, wake_ns);
        }
        handle_events(shared, &session, origin, &mut self.sink.events);
    }

    fn pass_on(&mut self) {
        let join = self.device.as_ref().is_some_and(|device| device.vnet());
        for place in self.sink.packets.drain(..) {
            self.waiting_bytes += place.len();
            self.coalescer.push(&self.buffer, place, join);
        }
    }

    fn flush(&mut self) {
        self.waiting_bytes = 0;
        if self.coalescer.is_empty() {
            return;
        }
        let (shared, device) = (&self.shared, self.device.as_deref());
        // A node that was frozen between opening and delivery must not deliver what it holds.
        let fenced = shared.is_fenced_now();
        self.coalescer.flush(&self.buffer, device.is_some_and(Device::vnet), |parts| {
            if fenced {
                shared.counters.add(Counter::Fenced, 1);
                return;
            }
            match device.map_or(Ok(0), |device| device.write(parts)) {
                Ok(_) => shared.counters.add(Counter::TunWrites, 1),
                Err(_) => shared.counters.add(Counter::TunWriteError, 1),
            }
        });
    }
}

/// Adds `socket` to what the ingress thread watches.
pub fn watch(registry: &Registry, socket: &Socket) -> io::Result<()> {
    let token = Token(usize::try_from(socket.id).map_err(io::Error::other)?);
    registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)
}

/// Ends the watch of `socket`.
pub fn unwatch(registry: &Registry, socket: &Socket) -> io::Result<()> {
    registry.deregister(&mut SourceFd(&socket.as_raw_fd()))
}

/// Errors the queue of one socket can hold are few; the bound keeps a flood of ICMP from holding the thread.
const ERRORS_PER_TURN: usize = 64;

fn drain_errors(shared: &Shared, socket: &Socket) {
    for _ in 0..ERRORS_PER_TURN {
        let Some(errno) = socket.next_error() else { return };
        let (session, path) = if shared.is_gateway { (0, -1) } else { path_of(shared, socket) };
        shared.tell_socket_error(socket, errno, session, path);
    }
}

/// The client's path that uses `socket`; (0, -1) when none does.
fn path_of(shared: &Shared, socket: &Socket) -> (u64, i16) {
    for session in shared.sessions.read().values() {
        let tx = session.tx.lock();
        let uses = |path: &Option<Path>| path.as_ref().is_some_and(|path| path.socket.id == socket.id);
        if let Some(at) = tx.paths.iter().position(uses) {
            return (session.handle, at as i16);
        }
    }
    (0, -1)
}

fn take_other(shared: &Arc<Shared>, origin: &Origin<'_>, kind: Kind, datagram: &mut [u8]) {
    let outcome = match (kind, shared.is_gateway) {
        (Kind::HandshakeInit, true) => shared.births.take_init(shared, origin, datagram),
        (Kind::ReattachRequest, true) => requests::take(shared, origin, datagram),
        (Kind::StandbyProbe, true) => standby::take_probe(shared, origin, datagram),
        (Kind::StandbyReply, false) => standby::take_reply(shared, origin, datagram),
        (Kind::HandshakeResponse, false) => shared.births.take_response(shared, origin, datagram),
        (Kind::CookieReply, false) => shared.births.take_cookie(shared, datagram),
        (Kind::ReattachReply, false) => attempt::take_reply(shared, datagram),
        (Kind::ReattachHint, false) => attempt::take_hint(shared, datagram),
        (Kind::Data, _) => Err(DropReason::Truncated),
        _ => {
            shared.counters.add(Counter::UnexpectedKind, 1);
            Ok(())
        }
    };
    if let Err(reason) = outcome {
        shared.counters.dropped(reason);
    }
}

/// Does what opened frames ask for, in order.
pub fn handle_events(shared: &Arc<Shared>, session: &Arc<Session>, origin: &Origin<'_>, events: &mut Vec<Event>) {
    for event in events.drain(..) {
        match event {
            Event::Probe { path, epoch, probe, counts } => {
                let mut tx = session.tx.lock();
                if tx.key.is_some() && !is_left_behind(session, &tx, epoch, origin.now_ns) {
                    tx.send_report(shared, path, counts, Some((probe, 0, origin.socket, origin.route)));
                    refresh_standby(shared, &mut tx, path, origin);
                } else {
                    drop(tx);
                    send_hint(shared, session, origin, path, epoch, &probe);
                }
            }
            Event::Report { path, epoch, report } => {
                let source = origin.route.peer;
                session.tx.lock().take_report(shared, path, epoch, &report, source, origin.now_ns);
            }
            Event::Control { path, message } => match message.message_type {
                TYPE_REKEY_REQUEST => crate::rekey::take_request(shared, session, path, &message),
                TYPE_REKEY_REPLY => crate::rekey::take_reply(shared, session, &message),
                kind if kind >= FIRST_APPLICATION_TYPE && !message.repeated => {
                    let kind = kind - FIRST_APPLICATION_TYPE;
                    let (session, path, payload) = (session.handle, path.get(), message.content);
                    shared.tell(Fact::Control { session, path, kind, payload });
                }
                _ => {}
            },
            Event::Confirmed { path, epoch } => {
                confirm(shared, session, epoch, origin.now_ns);
                let (session, path, peer) = (session.handle, path.get(), origin.route.peer);
                shared.tell(Fact::EpochConfirmed { session, epoch, path, peer });
            }
            Event::NewSource { path, active } => take_source(shared, session, origin, path, active),
            Event::Closed { cids } => shared.close_cids(&cids),
            Event::ReportDue { .. } => send_due_report(shared, &mut session.tx.lock(), &event),
        }
    }
}

/// Sends an unsolicited report.
pub fn send_due_report(shared: &Shared, tx: &mut Tx, event: &Event) {
    if let Event::ReportDue { path, counts } = event {
        tx.send_report(shared, *path, *counts, None);
    }
}

/// The newest epoch works in both directions: what only bridged to it ends.
fn confirm(shared: &Shared, session: &Session, epoch: u64, now_ns: u64) {
    let mut keys = session.keys.lock();
    if keys.epoch == epoch {
        keys.previous_root = None;
    }
    if let Some(sealing) = keys.rekey.take_switch(epoch) {
        let mut tx = session.tx.lock();
        let mut rx = session.rx.lock();
        tx.install_key(sealing);
        rx.current = epoch;
        rx.drain_old(now_ns + shared.settings.drain_ns);
    }
}

/// Whether the client still probes in an epoch before ours although the reply that opened ours had time to arrive, also
/// when asked for again: it cannot open what we seal.
fn is_left_behind(session: &Session, tx: &Tx, epoch: u64, now_ns: u64) -> bool {
    let older = tx.key.as_ref().is_some_and(|key| epoch < key.epoch());
    older && now_ns >= tx.granted_ns + REPLY_PATIENCE_NS && session.rx.lock().unproven
}

fn send_hint(shared: &Shared, session: &Session, origin: &Origin<'_>, path: PathIndex, epoch: u64, probe: &Probe) {
    let keys = session.keys.lock();
    let Some((_, cids)) = keys.hint_cids.as_ref().filter(|(known, _)| *known == epoch) else { return };
    let mut tx = session.tx.lock();
    if origin.now_ns < tx.last_hint_ns + HINT_INTERVAL_NS {
        shared.counters.add(Counter::RateLimited, 1);
        return;
    }
    tx.last_hint_ns = origin.now_ns;
    drop(tx);
    let hint = Hint { challenge: probe.challenge, epoch, cause: HINT_NO_EPOCH };
    let datagram = hint.seal(&keys.root.control(), &cids[path.index()], &draw(&mut SystemRandom));
    shared.counters.add(Counter::HintSent, 1);
    shared.transmit(origin.socket, origin.route, &datagram, datagram.len(), session.handle, path.get());
}

/// The path's datagrams come from a new source. A standby path follows it; an active one only after a challenge.
fn take_source(shared: &Shared, session: &Session, origin: &Origin<'_>, path: PathIndex, active: bool) {
    if !shared.is_gateway {
        return;
    }
    let mut tx = session.tx.lock();
    let limits = tx.limits[path.index()];
    let (new, now_ns) = (origin.route.peer, origin.now_ns);
    let known = tx.paths[path.index()].as_mut();
    if known.as_ref().is_some_and(|state| state.route.peer == new && active) {
        // The control plane followed while this event was on its way.
        return;
    }
    let Some(state) = known.filter(|_| active) else {
        // The peer's address of a standby path is only a note: nothing is sent there but answers, and one challenge, so
        // that a reattach on it need not wait for a proof.
        tx.paths[path.index()] = Some(Path::new(Arc::clone(origin.socket), origin.route, limits, now_ns));
        session.rx.lock().paths[path.index()].way = Some(Way { socket: origin.socket.id, peer: new });
        tx.send_probe(shared, path, None, true, now_ns);
        return;
    };
    let told = state.moved.is_some_and(|moved| moved.address == new);
    let Some(moved) = next_move(state.moved, new, now_ns) else { return };
    state.moved = Some(moved);
    let old = state.route.peer;
    if !told {
        shared.tell(Fact::PeerMoved { session: session.handle, path: path.get(), old, new });
    }
    tx.send_probe(shared, path, Some(new), true, now_ns);
}

/// The note of a source to challenge now; None when it has to wait.
fn next_move(last: Option<Moved>, address: SocketAddr, now_ns: u64) -> Option<Moved> {
    let first = Moved { address, challenged_ns: now_ns, count: 1, since_ns: now_ns };
    let Some(last) = last.filter(|last| now_ns < last.since_ns + CHALLENGE_INTERVAL_NS) else { return Some(first) };
    let changed = last.address != address && last.count < MOVES_PER_INTERVAL;
    changed.then_some(Moved { count: last.count + 1, since_ns: last.since_ns, ..first })
}

/// A standby path whose address was not proven lately is challenged when the client probes it.
fn refresh_standby(shared: &Shared, tx: &mut Tx, path: PathIndex, origin: &Origin<'_>) {
    let Some(state) = tx.paths[path.index()].as_ref().filter(|_| shared.is_gateway && tx.active != Some(path)) else {
        return;
    };
    let same = state.route.peer == origin.route.peer;
    if same && origin.now_ns >= state.last_probe_ns() + STANDBY_PROOF_NS {
        tx.send_probe(shared, path, None, true, origin.now_ns);
    }
}
