//! Receiving side of one session: the open epochs with their windows, and what each path received.

use std::net::SocketAddr;
use std::ops::Range;

use jumpvpn_packet::control::{ControlMessage, ControlReassembler};
use jumpvpn_packet::frames::{Plaintext, Probe, Report};
use jumpvpn_packet::header::{DataHeader, PathIndex, HEADER_LEN, MAX_PATHS, TAG_LEN};
use jumpvpn_packet::seal::OpeningKey;
use jumpvpn_packet::{Cid, DropReason};

use crate::counters::{Counter, Counters};
use crate::inner::{self, Prefix};

/// Unsolicited reports leave at this interval while data comes in: loss and silence are known 40 times a second.
pub const REPORT_INTERVAL_NS: u64 = 25_000_000;
/// Datagrams of a next epoch held while its reattach is undecided: a decision takes milliseconds.
pub const MAX_HELD: usize = 256;
/// Inner packets of a new gateway that wait for the last ones of the gateway before: what 1 Gbit/s brings in 30 ms. More
/// than that ends the wait.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// What was received on one path in one epoch; all 0 when nothing was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub epoch: u64,
    pub highest: u64,
    pub received: u64,
    pub lowest_missing: u64,
}

/// What one path received, over all epochs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RxPath {
    /// Inner packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where its datagrams come from, as the sending side knows it.
    pub way: Option<Way>,
    /// Inner packets came since the last report.
    pub report_due: bool,
    /// When the last report was due.
    pub reported_ns: u64,
}

/// Our socket and the peer's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Handle of the socket.
    pub socket: u64,
    /// Source of what arrives.
    pub peer: SocketAddr,
}

/// One open epoch.
#[derive(Debug)]
pub struct RxEpoch {
    /// Its key and windows.
    pub key: OpeningKey,
    /// When its drain ends.
    pub expires_ns: Option<u64>,
    /// Nothing is delivered and nothing moves; only probes are opened, for hints to answer.
    pub probes_only: bool,
}

impl RxEpoch {
    /// An epoch whose windows are known.
    pub fn new(key: OpeningKey) -> Self {
        Self { key, expires_ns: None, probes_only: false }
    }
}

/// Inner packets of a new gateway that wait for the last ones of the gateway before; then they are delivered in order.
#[derive(Debug, Default)]
pub struct Waiting {
    /// When they are delivered.
    pub until_ns: u64,
    packets: Vec<Vec<u8>>,
    bytes: usize,
}

/// A next epoch whose reattach is undecided, with the plaintexts that came early.
#[derive(Debug)]
pub struct Held {
    /// The undecided request.
    pub request: u64,
    /// Key derived from the client's nonce.
    pub key: OpeningKey,
    /// (path, plaintext), oldest first.
    pub plaintexts: Vec<(PathIndex, Vec<u8>)>,
}

/// What an opened datagram asks for beside its delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Event {
    Probe {
        path: PathIndex,
        epoch: u64,
        probe: Probe,
        counts: Counts,
    },
    Report {
        path: PathIndex,
        epoch: u64,
        report: Report,
    },
    Control {
        path: PathIndex,
        message: ControlMessage,
    },
    Confirmed {
        path: PathIndex,
        epoch: u64,
    },
    /// Authenticated from a source other than the path's peer; `active` when the path carries data.
    NewSource {
        path: PathIndex,
        active: bool,
    },
    ReportDue {
        path: PathIndex,
        counts: Counts,
    },
    /// Connection IDs of epochs that ended.
    Closed {
        cids: Vec<Cid>,
    },
}

/// What one run over received datagrams leaves to do.
#[derive(Debug, Default)]
pub struct Sink {
    /// Places of the inner packets to deliver.
    pub packets: Vec<Range<usize>>,
    /// The rest, in order.
    pub events: Vec<Event>,
}

/// Receiving side of one session; guarded by one lock, held for a batch.
#[derive(Default)]
pub struct Rx {
    /// Open epochs, oldest first; the last is the newest.
    pub epochs: Vec<RxEpoch>,
    /// Undecided next epoch.
    pub held: Option<Held>,
    /// A datagram of the newest epoch was received.
    pub confirmed: bool,
    /// Gateway: nothing has shown yet that the client can open what we seal in the newest epoch. Inner packets do not:
    /// the client may send them before it has the reply.
    pub unproven: bool,
    /// Client: the newest epoch was opened by another gateway than those before. Its first inner packet ends them, so
    /// that no two gateways ever deliver in turn.
    pub is_handover: bool,
    /// Client: how long that packet waits for the last ones of a gateway that still delivers.
    pub patience_ns: u64,
    /// Client: it does.
    pub waiting: Option<Waiting>,
    /// Epoch that this node seals in, too: its counts are reported.
    pub current: u64,
    /// Path that carries data.
    pub active: Option<PathIndex>,
    /// Per path.
    pub paths: [RxPath; MAX_PATHS],
    /// Datagrams that came twice.
    pub duplicates: u64,
    /// Datagrams below the window.
    pub too_old: u64,
    /// Last inner packet received.
    pub last_data_ns: u64,
    /// Source of the last proven reattach request and until when datagrams from there are no sign of a moved peer:
    /// those of the old epoch that the client sends again come from its new address.
    pub expected: Option<(SocketAddr, u64)>,
    reassembler: ControlReassembler,
}

impl std::fmt::Debug for Rx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rx(epochs: {:?}, redacted)", self.epochs)
    }
}

/// Where a batch of datagrams came from and how to judge it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Where it came from.
    pub way: Way,
    /// Time of the batch.
    pub now_ns: u64,
    /// Inner ranges of the session, checked at the gateway; None at the client.
    pub allowed: Option<&'a [Prefix]>,
    /// Where refusals are counted.
    pub counters: &'a Counters,
}

impl Rx {
    /// Opens the datagram at `place` of `buffer` and puts what follows from it into `sink`.
    pub fn open(
        &mut self,
        buffer: &mut [u8],
        place: Range<usize>,
        arrival: &Arrival<'_>,
        sink: &mut Sink,
    ) -> Result<(), DropReason> {
        let header = DataHeader::parse(&buffer[place.clone()])?;
        if self.held.as_ref().is_some_and(|held| held.key.epoch() & 15 == u64::from(header.epoch_bits)) {
            return self.hold(&mut buffer[place], arrival);
        }
        let at = self.epochs.iter().position(|open| open.key.epoch() & 15 == u64::from(header.epoch_bits));
        let at = at.ok_or(DropReason::WrongEpoch)?;
        let opened = self.epochs[at].key.open(&mut buffer[place.clone()]);
        let opened = opened.inspect_err(|reason| match reason {
            DropReason::ReplayRepeated => self.duplicates += 1,
            DropReason::ReplayOld => self.too_old += 1,
            _ => {}
        })?;
        let (path, newest) = (opened.path, opened.newest);
        let is_inner = matches!(opened.plaintext.first(), Some(first) if matches!(first >> 4, 4 | 6));
        let current = self.epochs[at].key.epoch() == self.current;
        let muted = self.epochs[at].probes_only;
        if !muted {
            self.note_arrival(path, at, newest && current, arrival, sink);
        }
        let plain = place.start + HEADER_LEN..place.end - TAG_LEN;
        if is_inner && muted {
            arrival.counters.add(Counter::NotBound, 1);
            return Ok(());
        }
        if is_inner && at + 1 == self.epochs.len() && (self.is_handover || self.waiting.is_some()) {
            if self.waits(arrival.now_ns) {
                if self.take_inner(&buffer[plain.clone()], path, current, arrival) {
                    self.wait(&buffer[plain]);
                }
                return Ok(());
            }
            sink.events.push(Event::Closed { cids: self.close_older() });
        }
        if is_inner {
            self.take_inner(&buffer[plain.clone()], path, current, arrival).then(|| sink.packets.push(plain));
            return Ok(());
        }
        self.take_frame(&buffer[plain], path, at, arrival, sink)
    }

    fn note_arrival(&mut self, path: PathIndex, at: usize, newest: bool, arrival: &Arrival<'_>, sink: &mut Sink) {
        self.confirm(path, at, sink);
        // After a switch the peer sends again, on its new path and as it was sealed, what the old path swallowed.
        let resent =
            self.paths.iter().enumerate().any(|(at, other)| at != path.index() && other.way == Some(arrival.way));
        let asked = |(peer, until): (SocketAddr, u64)| peer == arrival.way.peer && arrival.now_ns < until;
        let expected = resent || self.expected.is_some_and(asked);
        if newest && !expected && self.paths[path.index()].way.map(|way| way.peer) != Some(arrival.way.peer) {
            let event = Event::NewSource { path, active: self.active == Some(path) };
            if sink.events.last() != Some(&event) {
                sink.events.push(event);
            }
        }
    }

    /// Notes that a datagram of the epoch at place `at` authenticated.
    pub fn confirm(&mut self, path: PathIndex, at: usize, sink: &mut Sink) {
        if at + 1 == self.epochs.len() && !self.confirmed {
            self.confirmed = true;
            sink.events.push(Event::Confirmed { path, epoch: self.epochs[at].key.epoch() });
        }
    }

    /// Whether inner packets of the newest epoch wait; the first one begins it.
    fn waits(&mut self, now_ns: u64) -> bool {
        if self.waiting.is_none() && self.is_handover && self.patience_ns > 0 {
            self.waiting = Some(Waiting { until_ns: now_ns + self.patience_ns, ..Waiting::default() });
        }
        self.waiting.is_some()
    }

    fn wait(&mut self, packet: &[u8]) {
        let Some(waiting) = &mut self.waiting else { return };
        waiting.bytes += packet.len();
        waiting.packets.push(packet.to_vec());
        if waiting.bytes >= MAX_WAITING_BYTES {
            waiting.until_ns = 0;
        }
    }

    /// Ends the epochs before and the wait for them: their connection IDs, and the packets to deliver.
    pub fn end_wait(&mut self) -> (Vec<Cid>, Vec<Vec<u8>>) {
        let closed = if self.is_handover { self.close_older() } else { Vec::new() };
        (closed, self.waiting.take().map_or_else(Vec::new, |waiting| waiting.packets))
    }

    fn hold(&mut self, datagram: &mut [u8], arrival: &Arrival<'_>) -> Result<(), DropReason> {
        let Some(held) = &mut self.held else { return Ok(()) };
        if held.plaintexts.len() >= MAX_HELD {
            arrival.counters.add(Counter::HeldOverflow, 1);
            return Ok(());
        }
        let opened = held.key.open(datagram)?;
        held.plaintexts.push((opened.path, opened.plaintext.to_vec()));
        Ok(())
    }

    /// Counts an inner packet; true when it may be delivered.
    pub fn take_inner(&mut self, packet: &[u8], path: PathIndex, current: bool, arrival: &Arrival<'_>) -> bool {
        let seen = &mut self.paths[path.index()];
        seen.packets += 1;
        seen.bytes += packet.len() as u64;
        // What comes another way, sent again after a switch, says nothing about this one: no report may vouch for it.
        seen.report_due |= current && seen.way.is_none_or(|way| way == arrival.way);
        self.last_data_ns = arrival.now_ns;
        let Some(allowed) = arrival.allowed else { return true };
        let source = inner::source(packet);
        let owned = source.is_some_and(|source| allowed.iter().any(|range| range.contains(source)));
        if !owned {
            arrival.counters.add(Counter::InnerSource, 1);
        }
        owned
    }

    /// Takes a frame that is no inner packet; `at` is its epoch's place.
    pub fn take_frame(
        &mut self,
        plaintext: &[u8],
        path: PathIndex,
        at: usize,
        arrival: &Arrival<'_>,
        sink: &mut Sink,
    ) -> Result<(), DropReason> {
        let (epoch, muted) = (self.epochs[at].key.epoch(), self.epochs[at].probes_only);
        if at + 1 == self.epochs.len() && self.unproven {
            self.prove(arrival.now_ns);
        }
        match Plaintext::parse(plaintext)? {
            Plaintext::Probe(probe) => {
                let counts = self.counts(at, path);
                sink.events.push(Event::Probe { path, epoch, probe, counts });
            }
            Plaintext::Report(_) | Plaintext::Control(_) if muted => {
                arrival.counters.add(Counter::NotBound, 1);
            }
            Plaintext::Report(report) => sink.events.push(Event::Report { path, epoch, report }),
            Plaintext::Control(frame) => {
                if let Some(message) = self.reassembler.accept(&frame, arrival.now_ns)? {
                    sink.events.push(Event::Control { path, message });
                }
            }
            Plaintext::Ipv4(_) | Plaintext::Ipv6(_) => {}
        }
        Ok(())
    }

    fn counts(&self, at: usize, path: PathIndex) -> Counts {
        let key = &self.epochs[at].key;
        let Some(window) = key.window(path) else { return Counts { epoch: key.epoch(), ..Counts::default() } };
        Counts {
            epoch: key.epoch(),
            highest: window.highest().unwrap_or(0),
            received: window.received(),
            lowest_missing: window.lowest_missing(),
        }
    }

    /// What `path` received in the current epoch.
    pub fn current_counts(&self, path: PathIndex) -> Counts {
        let at = self.epochs.iter().position(|open| open.key.epoch() == self.current);
        at.map_or_else(Counts::default, |at| self.counts(at, path))
    }

    /// Reports that are due by `now_ns`, taken off the list.
    pub fn due_reports(&mut self, now_ns: u64, sink: &mut Sink) {
        for path in PathIndex::all() {
            let seen = &mut self.paths[path.index()];
            if seen.report_due && now_ns >= seen.reported_ns + REPORT_INTERVAL_NS {
                seen.report_due = false;
                seen.reported_ns = now_ns;
                let counts = self.current_counts(path);
                sink.events.push(Event::ReportDue { path, counts });
            }
        }
    }

    /// When the next report is due.
    pub fn report_deadline(&self) -> Option<u64> {
        let due = self.paths.iter().filter(|seen| seen.report_due);
        due.map(|seen| seen.reported_ns + REPORT_INTERVAL_NS).min()
    }

    /// Opens `key`'s epoch as the newest; the one before drains until `drain_until_ns` (None: until told), older ones end.
    ///
    /// Returns the connection IDs that are no longer open.
    pub fn install(&mut self, key: OpeningKey, drain_until_ns: Option<u64>) -> Vec<Cid> {
        let mut closed: Vec<Cid> = Vec::new();
        while self.epochs.len() > 1 {
            // While the newest is unproven, the client may be in the oldest.
            closed.extend(self.epochs.remove(usize::from(self.unproven)).key.cids());
        }
        // The header tells epochs apart by four bits.
        let same_bits = |open: &RxEpoch| open.key.epoch() & 15 == key.epoch() & 15;
        closed.extend(self.epochs.iter().filter(|open| same_bits(open)).flat_map(|open| *open.key.cids()));
        self.epochs.retain(|open| !same_bits(open));
        if let Some(old) = self.epochs.last_mut().filter(|old| !old.probes_only) {
            old.expires_ns = old.expires_ns.or(drain_until_ns);
        }
        self.epochs.push(RxEpoch::new(key));
        self.confirmed = false;
        self.unproven = false;
        self.is_handover = false;
        closed
    }

    /// Ends every epoch but the newest; returns their connection IDs.
    pub fn close_older(&mut self) -> Vec<Cid> {
        self.is_handover = false;
        let older = self.epochs.len().saturating_sub(1);
        self.epochs.drain(..older).flat_map(|open| *open.key.cids()).collect()
    }

    /// The client can open what is sealed in the newest epoch: none before it needs hints any more.
    fn prove(&mut self, now_ns: u64) {
        self.unproven = false;
        self.epochs.iter_mut().filter(|open| open.probes_only).for_each(|open| open.expires_ns = Some(now_ns));
    }

    /// Closes the newest epoch again if it is `epoch`; the one before stays. Returns its connection IDs.
    pub fn retract(&mut self, epoch: u64) -> Vec<Cid> {
        if self.epochs.last().is_none_or(|open| open.key.epoch() != epoch) {
            return Vec::new();
        }
        let closed = self.epochs.pop().map_or_else(Vec::new, |open| open.key.cids().to_vec());
        if let Some(last) = self.epochs.last_mut() {
            last.expires_ns = None;
        }
        self.confirmed = true;
        self.is_handover = false;
        closed
    }

    /// Begins the drain of every epoch but the newest.
    pub fn drain_old(&mut self, until_ns: u64) {
        if let Some((_, old)) = self.epochs.split_last_mut() {
            old.iter_mut().for_each(|open| open.expires_ns = open.expires_ns.or(Some(until_ns)));
        }
    }

    /// Ends drains that are over; returns their connection IDs. An epoch that the client may still be in opens probes on.
    pub fn expire(&mut self, now_ns: u64) -> Vec<Cid> {
        if self.unproven {
            for open in self.epochs.iter_mut().filter(|open| open.expires_ns.is_some_and(|at| now_ns >= at)) {
                (open.expires_ns, open.probes_only) = (None, true);
            }
        }
        let over = |open: &RxEpoch| open.expires_ns.is_some_and(|at| now_ns >= at);
        let closed = self.epochs.iter().filter(|open| over(open)).flat_map(|open| *open.key.cids()).collect();
        self.epochs.retain(|open| !over(open));
        closed
    }

    /// When the next drain ends.
    pub fn drain_deadline(&self) -> Option<u64> {
        self.epochs.iter().filter_map(|open| open.expires_ns).min()
    }

    /// All connection IDs that lead here.
    pub fn all_cids(&self) -> Vec<Cid> {
        let held = self.held.iter().flat_map(|held| *held.key.cids());
        self.epochs.iter().flat_map(|open| *open.key.cids()).chain(held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_wait_in_order_and_too_many_end_the_wait() {
        let mut rx = Rx { is_handover: true, patience_ns: 30, ..Rx::default() };
        assert!(rx.waits(100));
        rx.wait(&[1; 100]);
        assert!(rx.waits(110));
        rx.wait(&[2; 100]);
        assert_eq!(rx.waiting.as_ref().map(|waiting| waiting.until_ns), Some(130));
        rx.wait(&vec![3; MAX_WAITING_BYTES]);
        assert_eq!(rx.waiting.as_ref().map(|waiting| waiting.until_ns), Some(0));
        let first: Vec<u8> = rx.end_wait().1.iter().map(|packet| packet[0]).collect();
        assert_eq!((first, rx.is_handover, rx.waits(140)), (vec![1, 2, 3], false, false));
    }

    #[test]
    fn nobody_waits_for_a_gateway_that_did_not_say_it_goes_on() {
        let mut rx = Rx { is_handover: true, ..Rx::default() };
        assert!(!rx.waits(100));
    }
}
