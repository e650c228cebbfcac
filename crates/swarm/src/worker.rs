//! One thread: a socket, a share of the clients, their timers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jumpvpn_packet::handshake::{CookieReply, Fragment, HandshakeId, Initiator};
use jumpvpn_packet::header::{DataHeader, Kind};
use jumpvpn_packet::reattach::{HintEnvelope, ReplyEnvelope, Token};
use jumpvpn_packet::{Cid, DropReason, PathIndex};

use crate::client::{begin_birth, Answer, Ask, Live, Said};
use crate::devices::private_key;
use crate::options::{Gateway, Options};
use crate::tally::{Spans, Tally};

const MS: u64 = 1_000_000;
/// A birth's datagrams are sent again after this, and a birth begins anew after ten of it.
const BIRTH_AGAIN_NS: u64 = 500 * MS;
const BIRTH_TRIES: u32 = 10;
/// A request is sent again after this, twice as long each time up to the limit, and is made anew after that many.
const ASK_AGAIN_NS: u64 = 250 * MS;
const ASK_AGAIN_MAX_NS: u64 = 1000 * MS;
const ASK_TRIES: u32 = 5;
/// A refused client asks again after this.
const DENIED_NS: u64 = 500 * MS;
/// The socket is waited for at most so long, so that commands are heard.
const NAP: Duration = Duration::from_millis(5);
const LARGEST: usize = 2048;

/// What the standard input asks of every thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The gateway is dead.
    Lost(usize),
    /// All clients go to this gateway.
    Move(usize),
}

enum Phase {
    Waiting,
    Birth(Box<Initiator>),
    Attached,
    /// Away, and in the queue for a flight.
    Away,
    Asking(Box<Ask>),
    Ended,
}

struct Client {
    number: u32,
    gateway: usize,
    phase: Phase,
    live: Option<Box<Live>>,
    /// When the birth or the absence began.
    since_ns: u64,
    /// When the first request of this absence left.
    asked_ns: u64,
    tries: u32,
    due_ns: u64,
}

/// The thread's state. ``run`` ends when the orders' sender is gone.
pub struct Worker {
    options: Arc<Options>,
    socket: UdpSocket,
    began: Instant,
    clients: Vec<Client>,
    timers: BinaryHeap<Reverse<(u64, usize)>>,
    unborn: VecDeque<usize>,
    away: VecDeque<usize>,
    births: HashMap<HandshakeId, usize>,
    asks: HashMap<[u8; 8], usize>,
    cids: HashMap<Cid, usize>,
    flights: usize,
    next_birth_ns: u64,
    share: u64,
    tally: Tally,
    shown: Arc<Mutex<Tally>>,
}

impl Worker {
    /// The worker of every `options.sockets`-th client from `place` on; what it counts is put into `shown`.
    pub fn new(options: Arc<Options>, place: usize, began: Instant, shown: Arc<Mutex<Tally>>) -> std::io::Result<Self> {
        let any = if options.gateways[0].address.is_ipv4() { "0.0.0.0" } else { "::" };
        let bind = match options.binds.len() {
            0 => any.parse().expect("an address"),
            count => options.binds[place % count],
        };
        let socket = UdpSocket::bind((bind, 0))?;
        let numbers = (options.first..options.first + options.clients).skip(place).step_by(options.sockets);
        let client = |number| Client {
            number,
            gateway: 0,
            phase: Phase::Waiting,
            live: None,
            since_ns: 0,
            asked_ns: 0,
            tries: 0,
            due_ns: u64::MAX,
        };
        let clients: Vec<Client> = numbers.map(client).collect();
        let share = options.sockets as u64;
        Ok(Self {
            socket,
            began,
            unborn: (0..clients.len()).collect(),
            clients,
            timers: BinaryHeap::new(),
            away: VecDeque::new(),
            births: HashMap::new(),
            asks: HashMap::new(),
            cids: HashMap::new(),
            flights: 0,
            next_birth_ns: 0,
            share,
            tally: Tally::default(),
            shown,
            options,
        })
    }

    /// Runs until nobody gives orders any more.
    pub fn run(mut self, orders: &Receiver<Order>) -> std::io::Result<()> {
        let mut buffer = [0; LARGEST];
        let mut shown_ns = 0;
        loop {
            match orders.try_recv() {
                Ok(Order::Lost(gateway)) => self.lose(gateway),
                Ok(Order::Move(gateway)) => self.move_to(gateway),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
            let now = self.now();
            self.timers(now);
            self.launch(now);
            if now >= shown_ns {
                self.show();
                shown_ns = now + 50 * MS;
            }
            self.socket.set_read_timeout(Some(self.nap(now)))?;
            self.receive(&mut buffer)?;
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64 + 1
    }

    fn nap(&self, now: u64) -> Duration {
        let timer = self.timers.peek().map_or(u64::MAX, |Reverse((due, _))| *due);
        let birth = if self.unborn.is_empty() { u64::MAX } else { self.next_birth_ns };
        let until = Duration::from_nanos(timer.min(birth).saturating_sub(now));
        until.clamp(Duration::from_micros(50), NAP)
    }

    fn receive(&mut self, buffer: &mut [u8; LARGEST]) -> std::io::Result<()> {
        // One wait, then whatever has come meanwhile: a second wait per datagram would halve the rate.
        for turn in 0..64 {
            if turn == 1 {
                self.socket.set_nonblocking(true)?;
            }
            let got = self.socket.recv_from(buffer);
            match got {
                Ok((len, _)) => {
                    self.tally.datagrams.0 += 1;
                    let now = self.now();
                    if self.hear(&mut buffer[..len], now).is_err() {
                        self.tally.dropped += 1;
                    }
                }
                // A gateway that is gone is told of by ICMP: its clients find out by themselves.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) =>
                {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.socket.set_nonblocking(false)
    }

    // --- what comes ----------------------------------------------------------------------------------------------

    fn hear(&mut self, datagram: &mut [u8], now: u64) -> Result<(), DropReason> {
        match Kind::of(datagram)? {
            Kind::HandshakeResponse => self.responded(datagram, now),
            Kind::CookieReply => self.cookie(datagram),
            Kind::Data => self.data(datagram, now),
            Kind::ReattachReply => self.replied(datagram, now),
            Kind::ReattachHint => self.hinted(datagram, now),
            _ => Err(DropReason::UnknownKind),
        }
    }

    fn responded(&mut self, datagram: &[u8], now: u64) -> Result<(), DropReason> {
        let id = Fragment::parse(datagram)?.handshake_id;
        let &index = self.births.get(&id).ok_or(DropReason::UnknownHandshake)?;
        let client = &mut self.clients[index];
        let Phase::Birth(initiator) = &mut client.phase else { return Err(DropReason::UnknownHandshake) };
        let Some(established) = initiator.accept(datagram, now)? else { return Ok(()) };
        self.births.remove(&id);
        self.flights -= 1;
        client.live = Some(Box::new(Live::born(established, now)));
        self.tally.birth.add(now - client.since_ns);
        let probe = self.attach(index, now, None);
        self.send(index, &probe);
        Ok(())
    }

    fn cookie(&mut self, datagram: &[u8]) -> Result<(), DropReason> {
        let id = CookieReply::handshake_id(datagram)?;
        let &index = self.births.get(&id).ok_or(DropReason::UnknownHandshake)?;
        let Phase::Birth(initiator) = &mut self.clients[index].phase else { return Err(DropReason::UnknownHandshake) };
        initiator.accept_cookie(datagram)?;
        let datagrams = initiator.datagrams();
        datagrams.iter().for_each(|datagram| self.send(index, datagram));
        Ok(())
    }

    fn data(&mut self, datagram: &mut [u8], now: u64) -> Result<(), DropReason> {
        let cid = DataHeader::parse(datagram)?.cid;
        let &index = self.cids.get(&cid).ok_or(DropReason::UnknownCid)?;
        let client = &mut self.clients[index];
        let live = client.live.as_mut().ok_or(DropReason::UnknownCid)?;
        match live.hear(datagram, now)? {
            Said::Answer(report) => self.send(index, &report),
            Said::RoundTrip(ns) => self.tally.probe.add(ns),
            Said::Closed => self.end(index),
            Said::Nothing => {}
        }
        Ok(())
    }

    fn replied(&mut self, datagram: &[u8], now: u64) -> Result<(), DropReason> {
        let envelope = ReplyEnvelope::parse(datagram)?;
        let &index = self.asks.get(&envelope.echo).ok_or(DropReason::UnknownHandshake)?;
        let client = &mut self.clients[index];
        let key = self.options.gateways[client.gateway].key;
        let (Phase::Asking(ask), Some(live)) = (&mut client.phase, &mut client.live) else {
            return Err(DropReason::UnknownHandshake);
        };
        let answer = live.answered(ask, &envelope, &key, now)?;
        self.asks.remove(&envelope.echo);
        match answer {
            Answer::Again(datagram) => {
                self.asks.insert(ask.echo(), index);
                self.tally.challenges += 1;
                self.send(index, &datagram);
                self.wake(index, now + ASK_AGAIN_NS);
            }
            Answer::Denied(code) => {
                self.tally.deny(code, 1);
                self.flights -= 1;
                client.phase = Phase::Away;
                self.wake(index, now + DENIED_NS);
            }
            Answer::Attached(probe) => {
                self.flights -= 1;
                self.tally.reattach.add(now - client.asked_ns);
                self.tally.back.add(now - client.since_ns);
                self.attach(index, now, Some(probe.clone()));
                self.send(index, &probe);
            }
        }
        Ok(())
    }

    fn hinted(&mut self, datagram: &[u8], now: u64) -> Result<(), DropReason> {
        let envelope = HintEnvelope::parse(datagram)?;
        let &index = self.cids.get(&envelope.cid).ok_or(DropReason::UnknownCid)?;
        let client = &self.clients[index];
        let live = client.live.as_ref().ok_or(DropReason::UnknownCid)?;
        if matches!(client.phase, Phase::Attached) && live.hinted(&envelope)? {
            self.leave(index, client.gateway, now);
        }
        Ok(())
    }

    // --- what follows ----------------------------------------------------------------------------------------------

    fn attach(&mut self, index: usize, now: u64, probe: Option<Vec<u8>>) -> Vec<u8> {
        let interval = self.options.probe_ms * MS;
        let client = &mut self.clients[index];
        client.phase = Phase::Attached;
        client.tries = 0;
        let live = client.live.as_mut().expect("an attached client is alive");
        self.cids.insert(live.cid(), index);
        let probe = probe.unwrap_or_else(|| live.probe(now));
        // Spread by number, so that ten thousand clients that came back together do not probe together for ever.
        let spread = u64::from(client.number).wrapping_mul(0x9e37_79b9_7f4a_7c15) % interval;
        self.wake(index, now + interval / 2 + spread);
        probe
    }

    fn leave(&mut self, index: usize, gateway: usize, now: u64) {
        let client = &mut self.clients[index];
        (client.gateway, client.since_ns, client.asked_ns, client.tries) = (gateway, now, 0, 0);
        client.phase = Phase::Away;
        client.due_ns = u64::MAX;
        self.away.push_back(index);
    }

    fn end(&mut self, index: usize) {
        if matches!(self.clients[index].phase, Phase::Attached) {
            self.clients[index].phase = Phase::Ended;
            self.clients[index].due_ns = u64::MAX;
        }
    }

    fn lose(&mut self, gateway: usize) {
        self.tally.back = Spans::default();
        let now = self.now();
        let next = (gateway + 1) % self.options.gateways.len();
        for index in 0..self.clients.len() {
            if self.clients[index].gateway == gateway && matches!(self.clients[index].phase, Phase::Attached) {
                self.leave(index, next, now);
            }
        }
    }

    fn move_to(&mut self, gateway: usize) {
        self.tally.back = Spans::default();
        let now = self.now();
        for index in 0..self.clients.len() {
            if matches!(self.clients[index].phase, Phase::Attached) {
                self.leave(index, gateway, now);
            }
        }
    }

    /// Begins births and requests as far as the bounds allow.
    fn launch(&mut self, now: u64) {
        let most = (self.options.flights as u64).div_ceil(self.share) as usize;
        while self.flights < most {
            let Some(index) = self.away.pop_front() else { break };
            if matches!(self.clients[index].phase, Phase::Away) {
                self.ask(index, now);
            }
        }
        let pause = 1_000_000_000 * self.share / u64::from(self.options.births);
        while self.flights < most && now >= self.next_birth_ns {
            let Some(index) = self.unborn.pop_front() else { break };
            self.next_birth_ns = self.next_birth_ns.max(now.saturating_sub(10 * pause)) + pause;
            self.clients[index].since_ns = now;
            self.birth(index, now);
        }
    }

    fn birth(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        let Gateway { key, .. } = self.options.gateways[client.gateway];
        let mut initiator = begin_birth(private_key(self.options.seed, client.number), &key, unix_ns());
        let datagrams = initiator.datagrams();
        self.births.insert(*initiator.id(), index);
        client.phase = Phase::Birth(Box::new(initiator));
        client.tries = 0;
        self.flights += 1;
        datagrams.iter().for_each(|datagram| self.send(index, datagram));
        self.wake(index, now + BIRTH_AGAIN_NS);
    }

    fn ask(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        let Gateway { key, .. } = self.options.gateways[client.gateway];
        let path = PathIndex::new(client.gateway as u8).expect("at most eight gateways");
        let live = client.live.as_mut().expect("a client that is away was born");
        let (ask, datagram) = live.ask(&key, path, Token::default(), now);
        self.asks.insert(ask.echo(), index);
        client.phase = Phase::Asking(Box::new(ask));
        client.tries = 0;
        if client.asked_ns == 0 {
            client.asked_ns = now;
        }
        self.flights += 1;
        self.send(index, &datagram);
        self.wake(index, now + ASK_AGAIN_NS);
    }

    // --- timers --------------------------------------------------------------------------------------------------

    fn wake(&mut self, index: usize, due_ns: u64) {
        self.clients[index].due_ns = due_ns;
        self.timers.push(Reverse((due_ns, index)));
    }

    fn timers(&mut self, now: u64) {
        while let Some(&Reverse((due, index))) = self.timers.peek() {
            if due > now {
                return;
            }
            self.timers.pop();
            if self.clients[index].due_ns == due {
                self.due(index, now);
            }
        }
    }

    fn due(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        client.tries += 1;
        match &mut client.phase {
            Phase::Attached => self.idle(index, now),
            Phase::Away => self.away.push_back(index),
            Phase::Birth(initiator) if client.tries >= BIRTH_TRIES => {
                self.births.remove(initiator.id());
                self.flights -= 1;
                self.tally.births_again += 1;
                self.birth(index, now);
            }
            Phase::Birth(initiator) => {
                let datagrams = initiator.datagrams();
                datagrams.iter().for_each(|datagram| self.send(index, datagram));
                self.wake(index, now + BIRTH_AGAIN_NS);
            }
            Phase::Asking(ask) if client.tries >= ASK_TRIES => {
                self.asks.remove(&ask.echo());
                // Nobody answers there: the next one, as a real client's next transport.
                client.gateway = (client.gateway + 1) % self.options.gateways.len();
                self.flights -= 1;
                self.tally.asks_again += 1;
                self.ask(index, now);
            }
            Phase::Asking(ask) => {
                let datagram = ask.datagram().to_vec();
                let again = (ASK_AGAIN_NS << client.tries).min(ASK_AGAIN_MAX_NS);
                self.send(index, &datagram);
                self.wake(index, now + again);
            }
            Phase::Waiting | Phase::Ended => {}
        }
    }

    fn idle(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        let live = client.live.as_mut().expect("an attached client is alive");
        if now - live.heard_ns > self.options.silence_ms * MS {
            let next = (client.gateway + 1) % self.options.gateways.len();
            self.leave(index, next, now);
            return;
        }
        let probe = live.probe(now);
        self.send(index, &probe);
        self.wake(index, now + self.options.probe_ms * MS);
    }

    fn send(&mut self, index: usize, datagram: &[u8]) {
        let gateway = self.options.gateways[self.clients[index].gateway].address;
        // A full queue or a gateway that is gone: the repetition is what a client has against both.
        if self.socket.send_to(datagram, gateway).is_ok() {
            self.tally.datagrams.1 += 1;
        }
    }

    // --- counts --------------------------------------------------------------------------------------------------

    fn show(&mut self) {
        let tally = &mut self.tally;
        (tally.waiting, tally.births, tally.away, tally.ended, tally.attached) = (0, 0, 0, 0, [0; 8]);
        for client in &self.clients {
            match client.phase {
                Phase::Waiting => tally.waiting += 1,
                Phase::Birth(_) => tally.births += 1,
                Phase::Attached => tally.attached[client.gateway] += 1,
                Phase::Away | Phase::Asking(_) => tally.away += 1,
                Phase::Ended => tally.ended += 1,
            }
        }
        self.shown.lock().expect("no thread panics with it").clone_from(tally);
    }
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
