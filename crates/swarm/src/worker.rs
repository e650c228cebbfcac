//! One thread: its sockets, its share of the clients, what comes for them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jumpvpn_packet::handshake::{CookieReply, Fragment, HandshakeId, Initiator};
use jumpvpn_packet::header::{DataHeader, Kind};
use jumpvpn_packet::keys::{gateway_id, GatewayId};
use jumpvpn_packet::reattach::{HintEnvelope, ReplyEnvelope, StandbyReplyEnvelope};
use jumpvpn_packet::{Cid, DropReason};

use crate::client::{Answer, Ask, Live, Said};
use crate::net::{Net, Outbox};
use crate::options::Options;
use crate::recovery::Recovery;
use crate::standby::Echo;
use crate::tally::Tally;

/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;
/// What is counted is shown so often.
const SHOW_NS: u64 = 200 * MS;

/// What the standard input asks of every thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The gateway is dead.
    Lost(usize),
    /// All clients reattach at this gateway.
    Move(usize),
    /// No more orders come.
    End,
}

/// Where a client is.
pub enum Phase {
    /// Not yet begun.
    Waiting,
    /// Its birth is under way.
    Birth(Box<Initiator>),
    /// A gateway holds it.
    Attached,
    /// Its gateway died, and it has not noticed.
    Unaware,
    /// It looks for a gateway.
    Away,
    /// It has asked one.
    Asking {
        /// The request.
        ask: Box<Ask>,
        /// When to send it again.
        repeat_ns: u64,
        /// How long that is after it was sent last; doubled each time.
        wait_ns: u64,
        /// When to give it up.
        until_ns: u64,
    },
    /// For good.
    Ended,
}

/// One client.
pub struct Client {
    pub number: u32,
    pub socket: usize,
    /// The gateway that holds it, or held it last.
    pub home: usize,
    pub phase: Phase,
    pub live: Option<Box<Live>>,
    pub recovery: Recovery,
    /// When the birth or the absence began.
    pub since_ns: u64,
    /// When the first request of this absence left.
    pub asked_ns: u64,
    /// When to probe next.
    pub probe_ns: u64,
    pub tries: u32,
    pub due_ns: u64,
}

/// The thread's state without its sockets.
pub struct Worker {
    pub options: Arc<Options>,
    pub names: Vec<GatewayId>,
    began: Instant,
    pub clients: Vec<Client>,
    pub timers: BinaryHeap<Reverse<(u64, usize)>>,
    pub unborn: VecDeque<usize>,
    pub births: HashMap<HandshakeId, usize>,
    pub asks: HashMap<Echo, usize>,
    pub standbys: HashMap<Echo, (usize, usize)>,
    pub cids: HashMap<Cid, usize>,
    pub flights: usize,
    pub next_birth_ns: u64,
    pub tally: Tally,
    shown: Arc<Mutex<Tally>>,
}

/// Source addresses of the thread `place`, one for each of its sockets.
pub fn binds(options: &Options, place: usize) -> Vec<IpAddr> {
    let any = match options.gateways[0].address {
        address if address.is_ipv4() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let bind = |number: usize| match options.binds.len() {
        0 => any,
        count => options.binds[number % count],
    };
    (place..options.sockets).step_by(options.threads).map(bind).collect()
}

impl Worker {
    /// The worker of the clients whose sockets the thread `place` has; what it counts is put into `shown`.
    pub fn new(options: Arc<Options>, place: usize, began: Instant, shown: Arc<Mutex<Tally>>) -> Self {
        let socket_of = |number: u32| number as usize % options.sockets;
        let mine = |number: &u32| socket_of(*number) % options.threads == place;
        let client = |number| Client {
            number,
            socket: socket_of(number) / options.threads,
            home: options.home(number),
            phase: Phase::Waiting,
            live: None,
            recovery: Recovery::default(),
            since_ns: 0,
            asked_ns: 0,
            probe_ns: 0,
            tries: 0,
            due_ns: u64::MAX,
        };
        let clients: Vec<Client> = (options.first..options.first + options.clients).filter(mine).map(client).collect();
        Self {
            names: options.gateways.iter().map(|gateway| gateway_id(&gateway.key)).collect(),
            began,
            unborn: (0..clients.len()).collect(),
            clients,
            timers: BinaryHeap::new(),
            births: HashMap::new(),
            asks: HashMap::new(),
            standbys: HashMap::new(),
            cids: HashMap::new(),
            flights: 0,
            next_birth_ns: 0,
            tally: Tally::default(),
            shown,
            options,
        }
    }

    /// Runs until the order to end.
    pub fn run(mut self, mut net: Net, orders: &Receiver<Order>) -> std::io::Result<()> {
        let mut show_ns = 0;
        loop {
            let mut outbox = net.outbox();
            for order in orders.try_iter() {
                match order {
                    Order::Lost(gateway) => self.lost(gateway),
                    Order::Move(gateway) => self.move_to(&mut outbox, gateway),
                    Order::End => return Ok(()),
                }
            }
            let now = self.now();
            self.timers(&mut outbox, now);
            self.launch(&mut outbox, now);
            outbox.flush();
            if now >= show_ns {
                self.tally.datagrams.1 = net.sent;
                self.show();
                show_ns = now + SHOW_NS;
            }
            net.wait(Duration::from_nanos(self.next_ns().min(show_ns).saturating_sub(self.now())))?;
            net.receive(|datagram, outbox| {
                self.tally.datagrams.0 += 1;
                let now = self.now();
                if self.hear(outbox, datagram, now).is_err() {
                    self.tally.dropped += 1;
                }
            })?;
        }
    }

    /// Nanoseconds since the start, never 0.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64 + 1
    }

    fn next_ns(&self) -> u64 {
        let timer = self.timers.peek().map_or(u64::MAX, |Reverse((due, _))| *due);
        let may_birth = !self.unborn.is_empty() && self.flights < self.most_flights();
        timer.min(if may_birth { self.next_birth_ns } else { u64::MAX })
    }

    /// Sends a datagram of a client to a gateway.
    pub fn send(&self, outbox: &mut Outbox<'_>, index: usize, gateway: usize, datagram: &[u8]) {
        outbox.push(self.clients[index].socket, self.options.gateways[gateway].address, datagram);
    }

    // --- what comes ----------------------------------------------------------------------------------------------

    fn hear(&mut self, outbox: &mut Outbox<'_>, datagram: &mut [u8], now: u64) -> Result<(), DropReason> {
        match Kind::of(datagram)? {
            Kind::HandshakeResponse => self.responded(outbox, datagram, now),
            Kind::CookieReply => self.cookie(outbox, datagram),
            Kind::Data => self.data(outbox, datagram, now),
            Kind::ReattachReply => self.replied(outbox, datagram, now),
            Kind::ReattachHint => self.hinted(outbox, datagram, now),
            Kind::StandbyReply => self.standby_replied(outbox, datagram, now),
            _ => Err(DropReason::UnknownKind),
        }
    }

    fn responded(&mut self, outbox: &mut Outbox<'_>, datagram: &[u8], now: u64) -> Result<(), DropReason> {
        let id = Fragment::parse(datagram)?.handshake_id;
        let &index = self.births.get(&id).ok_or(DropReason::UnknownHandshake)?;
        let client = &mut self.clients[index];
        let Phase::Birth(initiator) = &mut client.phase else { return Err(DropReason::UnknownHandshake) };
        let Some(established) = initiator.accept(datagram, now)? else { return Ok(()) };
        self.births.remove(&id);
        self.flights -= 1;
        client.live = Some(Box::new(Live::born(established, self.options.gateways.len(), now)));
        self.tally.birth.add(now - client.since_ns);
        self.attach(index, now);
        self.probe_home(outbox, index, now);
        self.probe_standbys(outbox, index, now);
        Ok(())
    }

    fn cookie(&mut self, outbox: &mut Outbox<'_>, datagram: &[u8]) -> Result<(), DropReason> {
        let id = CookieReply::handshake_id(datagram)?;
        let &index = self.births.get(&id).ok_or(DropReason::UnknownHandshake)?;
        let client = &mut self.clients[index];
        let Phase::Birth(initiator) = &mut client.phase else { return Err(DropReason::UnknownHandshake) };
        initiator.accept_cookie(datagram)?;
        let (home, datagrams) = (client.home, initiator.datagrams());
        datagrams.iter().for_each(|datagram| self.send(outbox, index, home, datagram));
        Ok(())
    }

    fn data(&mut self, outbox: &mut Outbox<'_>, datagram: &mut [u8], now: u64) -> Result<(), DropReason> {
        let cid = DataHeader::parse(datagram)?.cid;
        let &index = self.cids.get(&cid).ok_or(DropReason::UnknownCid)?;
        let client = &mut self.clients[index];
        let live = client.live.as_mut().ok_or(DropReason::UnknownCid)?;
        let said = live.hear(datagram, now)?;
        let home = client.home;
        client.recovery.heard(home, now);
        match said {
            Said::Answer(report) => self.send(outbox, index, home, &report),
            Said::RoundTrip(ns) => self.tally.probe.add_recent(ns),
            Said::Closed => self.end(index),
            Said::Nothing => {}
        }
        Ok(())
    }

    fn replied(&mut self, outbox: &mut Outbox<'_>, datagram: &[u8], now: u64) -> Result<(), DropReason> {
        let envelope = ReplyEnvelope::parse(datagram)?;
        let &index = self.asks.get(&envelope.echo).ok_or(DropReason::UnknownHandshake)?;
        let client = &mut self.clients[index];
        let (Phase::Asking { ask, repeat_ns, wait_ns, .. }, Some(live)) = (&mut client.phase, &mut client.live) else {
            return Err(DropReason::UnknownHandshake);
        };
        let gateway = ask.gateway;
        let answer = live.answered(ask, &envelope, self.names[gateway], now)?;
        self.asks.remove(&envelope.echo);
        match answer {
            Answer::Again(datagram) => {
                // Part of the same attempt, whose end it does not move.
                *wait_ns = self.options.repeat_ms * MS;
                *repeat_ns = now + *wait_ns;
                self.asks.insert(ask.echo(), index);
                (self.tally.challenges, self.tally.requests) = (self.tally.challenges + 1, self.tally.requests + 1);
                client.recovery.heard(gateway, now);
                self.send(outbox, index, gateway, &datagram);
            }
            Answer::Denied { code, learned } => {
                self.tally.deny(code, 1);
                client.phase = Phase::Away;
                client.recovery.denied(gateway, learned, now);
                self.seek(outbox, index, now);
            }
            Answer::Attached(probe) => {
                self.tally.reattach.add(now - client.asked_ns);
                self.tally.back.add(now - client.since_ns);
                self.tally.returns += 1;
                client.home = gateway;
                client.recovery.granted(gateway, now);
                self.attach(index, now);
                self.send(outbox, index, gateway, &probe);
            }
        }
        Ok(())
    }

    fn hinted(&mut self, outbox: &mut Outbox<'_>, datagram: &[u8], now: u64) -> Result<(), DropReason> {
        let envelope = HintEnvelope::parse(datagram)?;
        let &index = self.cids.get(&envelope.cid).ok_or(DropReason::UnknownCid)?;
        let client = &mut self.clients[index];
        let live = client.live.as_ref().ok_or(DropReason::UnknownCid)?;
        if !live.hinted(&envelope)? {
            return Ok(());
        }
        client.recovery.heard(client.home, now);
        match client.phase {
            Phase::Attached => {
                let home = client.home;
                self.leave(outbox, index, Some(home), now);
            }
            Phase::Away => self.seek(outbox, index, now),
            _ => {}
        }
        Ok(())
    }

    fn standby_replied(&mut self, outbox: &mut Outbox<'_>, datagram: &[u8], now: u64) -> Result<(), DropReason> {
        let envelope = StandbyReplyEnvelope::parse(datagram)?;
        let &(index, gateway) = self.standbys.get(&envelope.echo).ok_or(DropReason::UnknownHandshake)?;
        let client = &mut self.clients[index];
        let live = client.live.as_mut().ok_or(DropReason::UnknownHandshake)?;
        live.standby_answered(gateway, &envelope, now)?;
        self.standbys.remove(&envelope.echo);
        self.tally.standby.1 += 1;
        client.recovery.heard(gateway, now);
        if matches!(client.phase, Phase::Away) {
            self.seek(outbox, index, now);
        }
        Ok(())
    }

    // --- counts --------------------------------------------------------------------------------------------------

    fn show(&mut self) {
        let tally = &mut self.tally;
        (tally.waiting, tally.births, tally.away, tally.ended, tally.attached) = (0, 0, 0, 0, [0; 8]);
        for client in &self.clients {
            match client.phase {
                Phase::Waiting => tally.waiting += 1,
                Phase::Birth(_) => tally.births += 1,
                Phase::Attached => tally.attached[client.home] += 1,
                Phase::Unaware | Phase::Away | Phase::Asking { .. } => tally.away += 1,
                Phase::Ended => tally.ended += 1,
            }
        }
        self.shown.lock().expect("no thread panics with it").clone_from(tally);
    }
}
