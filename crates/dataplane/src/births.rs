//! BIRTH on both roles: fragments, cookies under load, one worker for the expensive part, bounded tables.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::sync::Arc;

use jumpvpn_packet::handshake::{
    cookie_for, verify_mac1, verify_mac2, Accepted, Assemblies, CookieReply, Credential, Established, Fragment,
    FragmentLimits, HandshakeId, Initiator, InitiatorConfig, MacKey, ReceivedInit,
};
use jumpvpn_packet::kem::KemKeyPair;
use jumpvpn_packet::keys::{gateway_id, GatewayId, PublicKey};
use jumpvpn_packet::random::draw;
use jumpvpn_packet::reattach::StandbyKey;
use jumpvpn_packet::schedule::Secret;
use jumpvpn_packet::{DropReason, SessionId, SystemRandom, PROTOCOL_VERSION};
use parking_lot::Mutex;

use crate::address::address18;
use crate::bucket::{Buckets, Rate};
use crate::counters::Counter;
use crate::error::{Error, Result};
use crate::facts::Fact;
use crate::ingress::Origin;
use crate::inner::Prefix;
use crate::session::{Keys, Session};
use crate::shared::Shared;
use crate::standby::Pass;
use crate::sys;
use crate::udp::{Route, Socket};

/// Authenticated handshakes that wait for a decision, about 3 KiB each.
const MAX_PENDING: usize = 1024;
/// Undecided and answered handshakes are forgotten after this; clients give up earlier.
const LIFE_NS: u64 = 10_000_000_000;
/// A client's own handshake is given up after this; the control plane normally cancels it.
const CLIENT_LIFE_NS: u64 = 60_000_000_000;
/// Whole messages that wait for the worker.
const WORK_QUEUE: usize = 256;
/// Handshakes per second above which cookies are demanded.
const CALM_PER_SECOND: u64 = 200;
/// Per source; with a proven address sixteen times as many pass.
const UNPROVEN: Rate = Rate { per_second: 256 };
const PROVEN: Rate = Rate { per_second: 4096 };
/// Answered handshakes whose repetition gets the same response, about 3 KiB each; beyond it, repetitions go to the control
/// plane, which refuses them by their timestamp.
const MAX_ANSWERED: usize = 4096;
/// A response is sent again at most this often.
const REPEAT_NS: u64 = 50_000_000;
/// A cookie secret lives this long, and its predecessor is taken as long.
const COOKIE_SECRET_NS: u64 = 120_000_000_000;
/// Tickets given with a new session: one for each path that its first epoch can have.
const FIRST_TICKETS: usize = 8;

type Key = (SocketAddr, HandshakeId);

#[derive(Debug)]
struct Source {
    key: Key,
    socket: Arc<Socket>,
    route: Route,
}

/// A whole message 1 on its way to the worker.
#[derive(Debug)]
pub struct Work {
    source: Source,
    message: Vec<u8>,
}

enum Stage {
    Received(Box<ReceivedInit>),
    Prepared { established: Box<Established>, inner: Vec<Prefix>, datagrams: Vec<Vec<u8>> },
}

struct Pending {
    source: Source,
    stage: Stage,
    since_ns: u64,
}

struct Answered {
    socket: Arc<Socket>,
    route: Route,
    datagrams: Vec<Vec<u8>>,
    since_ns: u64,
    repeated_ns: u64,
}

struct Gateway {
    fragments: Assemblies<Key>,
    pending: HashMap<u64, Pending>,
    /// Handshakes under way (in the worker or pending): repetitions of them are not read again.
    busy: HashMap<Key, u64>,
    answered: HashMap<Key, Answered>,
    unproven: Buckets,
    proven: Buckets,
    secrets: [Secret; 2],
    secret_since_ns: u64,
    second_ns: u64,
    in_second: u64,
}

struct Client {
    initiator: Initiator,
    gateway: GatewayId,
    socket: Arc<Socket>,
    route: Route,
    since_ns: u64,
}

/// Handshakes of one plane.
pub struct Births {
    mac_key: MacKey,
    gateway: Mutex<Gateway>,
    clients: Mutex<HashMap<u64, Client>>,
    work: SyncSender<Work>,
    inbox: Mutex<Option<Receiver<Work>>>,
}

impl Births {
    /// Empty tables for the node with this static key.
    pub fn new(own: &PublicKey) -> Self {
        let (work, inbox) = sync_channel(WORK_QUEUE);
        let secret = || Secret::new(draw(&mut SystemRandom));
        let gateway = Gateway {
            fragments: Assemblies::new(FragmentLimits::default()),
            pending: HashMap::new(),
            busy: HashMap::new(),
            answered: HashMap::new(),
            unproven: Buckets::new(UNPROVEN),
            proven: Buckets::new(PROVEN),
            secrets: [secret(), secret()],
            secret_since_ns: sys::boottime_ns(),
            second_ns: 0,
            in_second: 0,
        };
        Self {
            mac_key: MacKey::of(own),
            gateway: Mutex::new(gateway),
            clients: Mutex::default(),
            work,
            inbox: Mutex::new(Some(inbox)),
        }
    }

    /// The worker's end of the queue; given once.
    pub fn take_inbox(&self) -> Option<Receiver<Work>> {
        self.inbox.lock().take()
    }

    /// Gateway: takes a datagram of message 1.
    pub fn take_init(
        &self,
        shared: &Shared,
        origin: &Origin<'_>,
        datagram: &[u8],
    ) -> std::result::Result<(), DropReason> {
        let fragment = Fragment::parse(datagram)?;
        verify_mac1(datagram, &fragment, &self.mac_key)?;
        let key = (origin.route.peer, fragment.handshake_id);
        let mut gateway = self.gateway.lock();
        if gateway.answer_again(shared, &key, &fragment, origin.now_ns) {
            return Ok(());
        }
        if gateway.busy.contains_key(&key) {
            shared.counters.add(Counter::DuplicateRequest, 1);
            return Ok(());
        }
        let proven = gateway.has_cookie(datagram, &fragment, origin.route.peer);
        if gateway.is_loaded(origin.now_ns) && !proven {
            if fragment.index == 0 {
                gateway.demand_cookie(shared, origin, &fragment);
            }
            return Err(DropReason::BadMac2);
        }
        let Some(message) = gateway.fragments.insert(key, &fragment, origin.now_ns)? else { return Ok(()) };
        gateway.in_second += 1;
        let hash = shared.bucket_of(origin.route.peer.ip());
        let buckets = if proven { &mut gateway.proven } else { &mut gateway.unproven };
        if !buckets.take(hash, origin.now_ns) {
            shared.counters.add(Counter::RateLimited, 1);
            return Ok(());
        }
        if gateway.busy.len() >= MAX_PENDING {
            shared.counters.add(Counter::PendingFull, 1);
            return Ok(());
        }
        let source = Source { key, socket: Arc::clone(origin.socket), route: origin.route };
        match self.work.try_send(Work { source, message }) {
            Ok(()) => drop(gateway.busy.insert(key, origin.now_ns)),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                shared.counters.add(Counter::PendingFull, 1);
            }
        }
        Ok(())
    }

    /// Gateway: reads one whole message (the expensive part) and asks the control plane.
    pub fn read_init(&self, shared: &Shared, work: Work) {
        let Work { source, message } = work;
        let read = ReceivedInit::read(&shared.private_key, source.key.1, &message, &mut SystemRandom);
        let init = match read {
            Ok(init) => init,
            Err(reason) => {
                shared.counters.dropped(reason);
                self.gateway.lock().busy.remove(&source.key);
                return;
            }
        };
        let handshake = shared.new_handle();
        let fact = Fact::HandshakeRequest {
            handshake,
            socket: source.socket.id,
            peer: source.route.peer,
            device: init.device_key,
            timestamp_ns: init.timestamp_ns,
            version: PROTOCOL_VERSION,
            capabilities: init.capabilities.0,
            credential: init.credential.0.clone(),
        };
        let key = source.key;
        let pending = Pending { source, stage: Stage::Received(Box::new(init)), since_ns: sys::boottime_ns() };
        self.gateway.lock().pending.insert(handshake, pending);
        if !shared.tell(fact) {
            let mut gateway = self.gateway.lock();
            gateway.pending.remove(&handshake);
            gateway.busy.remove(&key);
        }
    }

    /// Gateway: makes the session's keys and message 2; returns the sealed secret for the record. Sends nothing.
    pub fn prepare_accept(
        &self,
        shared: &Shared,
        handshake: u64,
        session_id: SessionId,
        inner: Vec<Prefix>,
        welcome: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let cluster = shared.cluster.as_ref().ok_or(Error::State("a client accepts no handshakes"))?;
        let mut pending =
            self.gateway.lock().pending.remove(&handshake).ok_or(Error::Unknown("handshake", handshake))?;
        let Stage::Received(init) = pending.stage else {
            return Err(Error::State("the handshake is already prepared"));
        };
        let tickets = shared.tickets.make(&session_id, 0, FIRST_TICKETS);
        let standby = StandbyKey::derive(cluster, &session_id);
        let accepted = Accepted { session_id, capabilities: shared.capabilities, tickets, standby, welcome };
        let key = pending.source.key;
        let (established, datagrams) = init.respond(accepted).map_err(|error| {
            self.gateway.lock().busy.remove(&key);
            Error::Invalid(format!("handshake cannot be answered: {error:?}"))
        })?;
        let record = Keys::established(&established).record();
        let sealed = record.seal(cluster, &session_id, &mut SystemRandom);
        pending.stage = Stage::Prepared { established: Box::new(established), inner, datagrams };
        self.gateway.lock().pending.insert(handshake, pending);
        Ok(sealed)
    }

    /// Gateway: opens the session on path 0 towards the handshake's source and sends message 2; returns the session.
    pub fn finish_accept(&self, shared: &Shared, handshake: u64) -> Result<Arc<Session>> {
        shared.before_deadline()?;
        let mut gateway = self.gateway.lock();
        let pending = gateway.pending.remove(&handshake).ok_or(Error::Unknown("handshake", handshake))?;
        gateway.busy.remove(&pending.source.key);
        let Stage::Prepared { established, inner, datagrams } = pending.stage else {
            return Err(Error::State("the handshake is not prepared"));
        };
        let mut keys = Keys::established(&established);
        keys.ticket_serial = FIRST_TICKETS as u64;
        let session = Arc::new(Session::new(shared, established.session_id, inner, keys, GatewayId::default()));
        if !session.begin(shared, Some(&established.down()), &established.up()) {
            return Err(Error::State("connection IDs collide; the client has to begin again"));
        }
        session.route_inner(shared);
        let Source { key, socket, route } = pending.source;
        let (since_ns, repeated_ns) = (sys::boottime_ns(), 0);
        send_all(shared, &socket, route, &datagrams);
        gateway.remember(key, Answered { socket, route, datagrams, since_ns, repeated_ns });
        Ok(session)
    }

    /// Socket and way back of a handshake that waits for its decision.
    pub fn source_of(&self, handshake: u64) -> Result<(Arc<Socket>, Route)> {
        let gateway = self.gateway.lock();
        let pending = gateway.pending.get(&handshake).ok_or(Error::Unknown("handshake", handshake))?;
        Ok((Arc::clone(&pending.source.socket), pending.source.route))
    }

    /// Gateway: forgets a handshake without an answer; its repetitions are ignored for a while.
    pub fn reject(&self, handshake: u64) -> Result<()> {
        let mut gateway = self.gateway.lock();
        let pending = gateway.pending.remove(&handshake).ok_or(Error::Unknown("handshake", handshake))?;
        let Source { key, socket, route } = pending.source;
        gateway.busy.remove(&key);
        let since_ns = sys::boottime_ns();
        gateway.remember(key, Answered { socket, route, datagrams: Vec::new(), since_ns, repeated_ns: 0 });
        Ok(())
    }

    /// Client: makes message 1 and sends it; returns the handshake.
    pub fn begin(
        &self,
        shared: &Shared,
        socket: Arc<Socket>,
        peer: SocketAddr,
        gateway_key: PublicKey,
        timestamp_ns: u64,
        credential: Vec<u8>,
    ) -> Result<u64> {
        let config = InitiatorConfig {
            private_key: shared.private_key.clone(),
            gateway_key,
            timestamp_ns,
            capabilities: shared.capabilities,
            credential: Credential(credential),
        };
        let initiator = Initiator::new(&config, KemKeyPair::generate(), &mut SystemRandom)
            .map_err(|misuse| Error::Invalid(misuse.to_string()))?;
        let handshake = shared.new_handle();
        let route = Route { peer, source: None };
        let gateway = gateway_id(&gateway_key);
        let mut client = Client { initiator, gateway, socket, route, since_ns: sys::boottime_ns() };
        client.send(shared);
        self.clients.lock().insert(handshake, client);
        Ok(handshake)
    }

    /// Client: sends message 1 again, to `peer` through `socket`.
    pub fn resend(&self, shared: &Shared, handshake: u64, socket: Arc<Socket>, peer: SocketAddr) -> Result<()> {
        let mut clients = self.clients.lock();
        let client = clients.get_mut(&handshake).ok_or(Error::Unknown("handshake", handshake))?;
        (client.socket, client.route) = (socket, Route { peer, source: None });
        client.send(shared);
        Ok(())
    }

    /// Client: forgets a handshake.
    pub fn cancel(&self, handshake: u64) -> Result<()> {
        let removed = self.clients.lock().remove(&handshake);
        removed.map(drop).ok_or(Error::Unknown("handshake", handshake))
    }

    /// Client: takes a datagram of message 2; the session opens when it is whole.
    pub fn take_response(
        &self,
        shared: &Shared,
        origin: &Origin<'_>,
        datagram: &[u8],
    ) -> std::result::Result<(), DropReason> {
        let id = Fragment::parse(datagram)?.handshake_id;
        if shared.cannot_tell() {
            return Ok(());
        }
        let mut clients = self.clients.lock();
        let found = clients.iter_mut().find(|(_, client)| *client.initiator.id() == id);
        let (&handshake, client) = found.ok_or(DropReason::UnknownHandshake)?;
        let Some(established) = client.initiator.accept(datagram, origin.now_ns)? else { return Ok(()) };
        let home = client.gateway;
        clients.remove(&handshake);
        drop(clients);
        let everything = ["0.0.0.0/0", "::/0"].iter().filter_map(|range| Prefix::parse(range)).collect();
        let keys = Keys::established(&established);
        let session = Session::new(shared, established.session_id, everything, keys, home);
        session.tx.lock().pass = Pass::new(established.standby.clone(), established.tickets.clone());
        let session = Arc::new(session);
        if !session.begin(shared, Some(&established.up()), &established.down()) {
            shared.tell(Fact::HandshakeFailed { handshake, reason: "cid_collision" });
            return Ok(());
        }
        session.route_inner(shared);
        let (session_id, welcome) = (established.session_id, established.welcome);
        let (session, peer) = (session.handle, origin.route.peer);
        shared.tell(Fact::HandshakeResponse { handshake, session, session_id, welcome, peer });
        Ok(())
    }

    /// Client: takes a cookie and sends message 1 again with it.
    pub fn take_cookie(&self, shared: &Shared, datagram: &[u8]) -> std::result::Result<(), DropReason> {
        let id = CookieReply::handshake_id(datagram)?;
        let mut clients = self.clients.lock();
        let found = clients.values_mut().find(|client| *client.initiator.id() == id);
        let client = found.ok_or(DropReason::UnknownHandshake)?;
        client.initiator.accept_cookie(datagram)?;
        client.send(shared);
        Ok(())
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut gateway = self.gateway.lock();
        gateway.pending.clear();
        gateway.busy.clear();
        gateway.answered.clear();
        self.clients.lock().clear();
    }

    /// Forgets what is too old.
    pub fn sweep(&self, shared: &Shared, now_ns: u64) {
        let is_young = |since_ns: u64| now_ns.saturating_sub(since_ns) < LIFE_NS;
        let mut guard = self.gateway.lock();
        let gateway = &mut *guard;
        gateway.fragments.expire(now_ns);
        gateway.pending.retain(|_, pending| is_young(pending.since_ns));
        gateway.busy.retain(|_, since_ns| is_young(*since_ns));
        gateway.answered.retain(|_, answered| is_young(answered.since_ns));
        if now_ns.saturating_sub(gateway.secret_since_ns) >= COOKIE_SECRET_NS {
            gateway.secrets.swap(0, 1);
            gateway.secrets[0] = Secret::new(draw(&mut SystemRandom));
            gateway.secret_since_ns = now_ns;
        }
        drop(guard);
        self.clients.lock().retain(|handshake, client| {
            let keep = now_ns.saturating_sub(client.since_ns) < CLIENT_LIFE_NS;
            if !keep {
                shared.tell(Fact::HandshakeFailed { handshake: *handshake, reason: "expired" });
            }
            keep
        });
    }
}

impl Gateway {
    fn remember(&mut self, key: Key, answered: Answered) {
        if self.answered.len() < MAX_ANSWERED {
            self.answered.insert(key, answered);
        }
    }

    /// Sends the response of a repeated handshake again; true when the handshake was answered or rejected before.
    fn answer_again(&mut self, shared: &Shared, key: &Key, fragment: &Fragment<'_>, now_ns: u64) -> bool {
        let Some(answered) = self.answered.get_mut(key) else { return false };
        if fragment.index == 0 && now_ns >= answered.repeated_ns + REPEAT_NS {
            answered.repeated_ns = now_ns;
            if !answered.datagrams.is_empty() {
                shared.counters.add(Counter::ReplyRepeated, 1);
                send_all(shared, &answered.socket, answered.route, &answered.datagrams);
            }
        }
        true
    }

    fn has_cookie(&self, datagram: &[u8], fragment: &Fragment<'_>, peer: SocketAddr) -> bool {
        fragment.mac2 != [0; 16]
            && self
                .secrets
                .iter()
                .any(|secret| verify_mac2(datagram, fragment, &cookie_for(secret, &address18(peer))).is_ok())
    }

    fn is_loaded(&mut self, now_ns: u64) -> bool {
        if now_ns >= self.second_ns + 1_000_000_000 {
            (self.second_ns, self.in_second) = (now_ns, 0);
        }
        self.in_second > CALM_PER_SECOND || self.busy.len() > MAX_PENDING / 2
    }

    fn demand_cookie(&mut self, shared: &Shared, origin: &Origin<'_>, fragment: &Fragment<'_>) {
        let cookie = cookie_for(&self.secrets[0], &address18(origin.route.peer));
        let reply = CookieReply::seal(&shared.public_key, fragment, &cookie, &mut SystemRandom);
        shared.counters.add(Counter::CookieSent, 1);
        shared.transmit(origin.socket, origin.route, &reply, reply.len(), 0, 0);
    }
}

impl Client {
    fn send(&mut self, shared: &Shared) {
        let datagrams = self.initiator.datagrams();
        send_all(shared, &self.socket, self.route, &datagrams);
    }
}

fn send_all(shared: &Shared, socket: &Socket, route: Route, datagrams: &[Vec<u8>]) {
    for datagram in datagrams {
        shared.transmit(socket, route, datagram, datagram.len(), 0, 0);
    }
}
