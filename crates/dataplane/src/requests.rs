//! The gateway's side of reattach: requests that wait for a decision, and what each decision does.

use std::collections::HashMap;
use std::sync::Arc;

use jumpvpn_packet::header::PathIndex;
use jumpvpn_packet::random::draw;
use jumpvpn_packet::reattach::{Reply, ReplyStatus, Request, RequestEnvelope, ReturnTokenKey, TicketKey, Token};
use jumpvpn_packet::schedule::{EpochNonce, Root};
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::{DropReason, SessionId, SystemRandom};

use crate::address::address18;
use crate::attempt::short;
use crate::births::make_tickets;
use crate::bucket::{Buckets, Rate};
use crate::counters::Counter;
use crate::error::{Error, Result};
use crate::facts::{Fact, ReattachRequest};
use crate::ingress::{handle_events, Origin};
use crate::path::Path;
use crate::rx::{Arrival, Held, Rx, Sink, Way};
use crate::session::{Keys, LastReply, Session};
use crate::shared::Shared;
use crate::sys;
use crate::udp::{Route, Socket};

/// Undecided requests, below 1 KiB each: 10,000 sessions may come at once.
const MAX_PENDING: usize = 16_384;
/// A request undecided for so long is forgotten; the client has asked again by then.
const LIFE_NS: u64 = 5_000_000_000;
/// A prepared one is on its way into the store: a record that wins must find it here. No store takes longer.
const PREPARED_LIFE_NS: u64 = 120_000_000_000;
/// Requests of one source: a site of thousands behind one NAT may come at once.
const PER_SOURCE: Rate = Rate { per_second: 4096 };
/// Tickets in a committed reply.
const FRESH_TICKETS: usize = 2;
/// An epoch this far ahead of the newest is no honest next one, and fewer bits of it would be on the wire.
const MAX_EPOCH_STEP: u64 = 8;

struct Pending {
    session: Option<Arc<Session>>,
    nonce: EpochNonce,
    request: Option<(Request, Root)>,
    socket: Arc<Socket>,
    route: Route,
    since_ns: u64,
    fresh: bool,
    gateway_nonce: Option<EpochNonce>,
}

/// Undecided requests of one plane.
pub struct Requests {
    pending: HashMap<u64, Pending>,
    by_nonce: HashMap<EpochNonce, u64>,
    buckets: Buckets,
    keys: Option<(TicketKey, ReturnTokenKey)>,
    /// Undecided rekeys.
    pub rekeys: HashMap<u64, crate::rekey::Pending>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            pending: HashMap::new(),
            by_nonce: HashMap::new(),
            buckets: Buckets::new(PER_SOURCE),
            keys: None,
            rekeys: HashMap::new(),
        }
    }
}

impl Requests {
    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn remove(&mut self, request: u64) -> Result<Pending> {
        let pending = self.pending.remove(&request).ok_or(Error::Unknown("reattach request", request))?;
        self.by_nonce.remove(&pending.nonce);
        Ok(pending)
    }
}

/// Takes a request: proof first, then at most one fact.
pub fn take(shared: &Arc<Shared>, origin: &Origin<'_>, datagram: &[u8]) -> std::result::Result<(), DropReason> {
    let envelope = RequestEnvelope::parse(datagram)?;
    let Some(cluster) = &shared.cluster else { return Err(DropReason::BadTicket) };
    let hash = shared.bucket_of(origin.route.peer.ip());
    let session_id = {
        let mut requests = shared.requests.lock();
        if !requests.buckets.take(hash, origin.now_ns) {
            shared.counters.add(Counter::RateLimited, 1);
            return Ok(());
        }
        if requests.by_nonce.contains_key(&envelope.nonce) {
            shared.counters.add(Counter::DuplicateRequest, 1);
            return Ok(());
        }
        if requests.pending.len() >= MAX_PENDING {
            shared.counters.add(Counter::PendingFull, 1);
            return Ok(());
        }
        let keys = requests.keys.get_or_insert_with(|| (TicketKey::new(cluster), ReturnTokenKey::new(cluster)));
        keys.0.open(&envelope.ticket)?.session_id
    };
    let session = shared.by_id.read().get(&session_id).cloned();
    match session {
        Some(session) => take_known(shared, origin, &envelope, session),
        None => take_unknown(shared, origin, &envelope, session_id),
    }
}

fn take_unknown(
    shared: &Shared,
    origin: &Origin<'_>,
    envelope: &RequestEnvelope<'_>,
    session_id: SessionId,
) -> std::result::Result<(), DropReason> {
    shared.counters.add(Counter::UnknownSession, 1);
    let request = shared.new_handle();
    let fact = fact_of(request, None, session_id, origin, &envelope.nonce);
    keep(shared, origin, request, None, envelope.nonce, None, fact);
    Ok(())
}

fn take_known(
    shared: &Arc<Shared>,
    origin: &Origin<'_>,
    envelope: &RequestEnvelope<'_>,
    session: Arc<Session>,
) -> std::result::Result<(), DropReason> {
    let mut keys = session.keys.lock();
    if keys.ended {
        return Err(DropReason::BadTicket);
    }
    if repeat_reply(shared, &keys, &envelope.nonce) {
        return Ok(());
    }
    let (wish, root) = open_with_roots(&keys, envelope)?;
    let fresh_nonce = keys.is_fresh(&envelope.nonce);
    let request = shared.new_handle();
    let mut fact = fact_of(request, Some(session.handle), session.id, origin, &envelope.nonce);
    fact.proof = true;
    (fact.next_epoch, fact.expected_version, fact.age_ms) = (wish.next_epoch, wish.expected_version, wish.age_ms);
    (fact.path, fact.cause, fact.fresh_nonce) = (wish.path.get(), wish.cause, fresh_nonce);
    fact.token_ok = token_ok(shared, &wish.token, origin, &session.id);
    if fresh_nonce && !hold_next(shared, &session, &keys, origin, request, &wish, &root, &envelope.nonce) {
        keys.forget(&envelope.nonce);
        return Ok(());
    }
    let kept = keep(shared, origin, request, Some(Arc::clone(&session)), envelope.nonce, Some((wish, root)), fact);
    if !kept {
        keys.forget(&envelope.nonce);
        release_held(shared, &session, request);
    }
    Ok(())
}

/// Sends the last reply again when `nonce` is that of its request.
fn repeat_reply(shared: &Shared, keys: &Keys, nonce: &EpochNonce) -> bool {
    let Some(last) = keys.last_reply.as_ref().filter(|last| last.nonce == *nonce) else { return false };
    shared.counters.add(Counter::ReplyRepeated, 1);
    // To where it went first: a copied request must not turn a reply to somebody else.
    shared.transmit(&last.socket, last.route, &last.datagram, last.datagram.len(), 0, 0);
    true
}

fn open_with_roots(keys: &Keys, envelope: &RequestEnvelope<'_>) -> std::result::Result<(Request, Root), DropReason> {
    match envelope.open(&keys.root.control()) {
        Ok(request) => Ok((request, keys.root.clone())),
        Err(reason) => {
            let previous = keys.previous_root.as_ref().ok_or(reason)?;
            Ok((envelope.open(&previous.control())?, previous.clone()))
        }
    }
}

fn token_ok(shared: &Shared, token: &Token, origin: &Origin<'_>, session_id: &SessionId) -> bool {
    let requests = shared.requests.lock();
    let Some((_, return_key)) = &requests.keys else { return false };
    !token.is_empty() && return_key.check(token, &address18(origin.route.peer), session_id, sys::wall_ms()).is_ok()
}

/// Opens the next epoch for holding; false when its connection IDs collide with another session's.
#[allow(clippy::too_many_arguments)]
fn hold_next(
    shared: &Shared,
    session: &Arc<Session>,
    keys: &Keys,
    origin: &Origin<'_>,
    request: u64,
    wish: &Request,
    root: &Root,
    nonce: &EpochNonce,
) -> bool {
    if wish.next_epoch <= keys.epoch || wish.next_epoch - keys.epoch > MAX_EPOCH_STEP {
        return true;
    }
    let key = OpeningKey::new(keys.aead, &root.up(wish.next_epoch, nonce));
    if !shared.open_cids(key.cids(), session) {
        return false;
    }
    let held = Held { request, key, plaintexts: Vec::new() };
    let mut rx = session.rx.lock();
    rx.expected = Some((origin.route.peer, origin.now_ns + LIFE_NS));
    let replaced = rx.held.replace(held);
    drop(rx);
    if let Some(old) = replaced {
        shared.close_cids(old.key.cids());
    }
    true
}

fn release_held(shared: &Shared, session: &Session, request: u64) {
    let mut rx = session.rx.lock();
    if rx.held.as_ref().is_some_and(|held| held.request == request) {
        if let Some(held) = rx.held.take() {
            shared.close_cids(held.key.cids());
        }
    }
}

fn fact_of(
    request: u64,
    session: Option<u64>,
    session_id: SessionId,
    origin: &Origin<'_>,
    nonce: &EpochNonce,
) -> ReattachRequest {
    ReattachRequest {
        request,
        session: session.unwrap_or(0),
        session_id,
        socket: origin.socket.id,
        peer: origin.route.peer,
        proof: false,
        nonce: short(nonce),
        next_epoch: 0,
        expected_version: 0,
        age_ms: 0,
        path: 0,
        cause: 0,
        token_ok: false,
        fresh_nonce: false,
    }
}

/// Enters the request and tells the control plane; false when that has no room.
#[allow(clippy::too_many_arguments)]
fn keep(
    shared: &Shared,
    origin: &Origin<'_>,
    handle: u64,
    session: Option<Arc<Session>>,
    nonce: EpochNonce,
    request: Option<(Request, Root)>,
    fact: ReattachRequest,
) -> bool {
    let (socket, route, since_ns) = (Arc::clone(origin.socket), origin.route, origin.now_ns);
    let fresh = fact.fresh_nonce;
    let gateway_nonce = None;
    let pending = Pending { session, nonce, request, socket, route, since_ns, fresh, gateway_nonce };
    let mut requests = shared.requests.lock();
    if !shared.tell(Fact::ReattachRequest(Box::new(fact))) {
        return false;
    }
    requests.pending.insert(handle, pending);
    requests.by_nonce.insert(nonce, handle);
    true
}

/// Draws the gateway's nonce; returns the sealed secret, with the next epoch, for the record. Sends nothing.
pub fn prepare(shared: &Shared, request: u64) -> Result<Vec<u8>> {
    let cluster = shared.cluster.as_ref().ok_or(Error::State("a client decides no requests"))?;
    let (session, wish, root, nonce, gateway_nonce) = {
        let mut requests = shared.requests.lock();
        let pending = requests.pending.get_mut(&request).ok_or(Error::Unknown("reattach request", request))?;
        let (wish, root) = pending.request.clone().ok_or(Error::State("the request has no proof"))?;
        let session = pending.session.clone().ok_or(Error::State("the session is not here"))?;
        let gateway_nonce = *pending.gateway_nonce.get_or_insert_with(|| draw(&mut SystemRandom));
        (session, wish, root, pending.nonce, gateway_nonce)
    };
    let keys = session.keys.lock();
    keys.alive(session.handle)?;
    if wish.next_epoch <= keys.epoch {
        return Err(Error::State("the next epoch must be newer than the present one"));
    }
    let mut record = keys.record();
    (record.epoch, record.client_nonce, record.gateway_nonce) = (wish.next_epoch, nonce, gateway_nonce);
    (record.root, record.previous_root) = (root, None);
    Ok(record.seal(cluster, &session.id, &mut SystemRandom))
}

/// Installs the epoch, moves the binding, replies, and sends what is owed and what waited.
pub fn commit(shared: &Arc<Shared>, request: u64, version: u64) -> Result<()> {
    let now_ns = sys::boottime_ns();
    let pending = shared.requests.lock().remove(request)?;
    let session = pending.session.clone().ok_or(Error::State("the session is not here"))?;
    let (wish, root) = pending.request.clone().ok_or(Error::State("the request has no proof"))?;
    let gateway_nonce = pending.gateway_nonce.ok_or(Error::State("the request is not prepared"))?;
    let mut keys = session.keys.lock();
    keys.alive(session.handle)?;
    if wish.next_epoch <= keys.epoch {
        return Err(Error::State("the next epoch must be newer than the present one"));
    }
    let (key, early) = take_key(shared, &session, &keys, request, &wish, &root, &pending.nonce)?;
    let sealing = SealingKey::new(keys.aead, &root.down(wish.next_epoch, &pending.nonce, &gateway_nonce));
    if keys.hint_cids.is_none() || !session.rx.lock().unproven {
        keys.hint_cids = Some((keys.epoch, keys.record().down().cids()));
    }
    keys.root = root;
    keys.previous_root = None;
    (keys.epoch, keys.client_nonce, keys.gateway_nonce) = (wish.next_epoch, pending.nonce, gateway_nonce);
    keys.rekey.forget();
    let tickets = make_tickets(shared, &session.id, keys.ticket_serial, FRESH_TICKETS);
    keys.ticket_serial += FRESH_TICKETS as u64;
    let reply = Reply {
        status: ReplyStatus::Committed,
        epoch: wish.next_epoch,
        version,
        path: wish.path,
        reason: 0,
        token: Token::default(),
        tickets,
    };
    let origin = Origin { socket: &pending.socket, route: pending.route, now_ns };
    let mut sink = Sink::default();
    {
        let mut tx = session.tx.lock();
        let limits = tx.limits[wish.path.index()];
        tx.install_key(sealing);
        tx.early = None;
        tx.granted_ns = now_ns;
        let slot = &mut tx.paths[wish.path.index()];
        match slot {
            // It may have been told dead before: from here on it is watched anew, and told again.
            Some(path) if path.leads(&pending.socket, pending.route) => path.live.watch_anew(now_ns),
            _ => *slot = Some(Path::new(Arc::clone(&pending.socket), pending.route, limits, now_ns)),
        }
        tx.active = Some(wish.path);
        let mut rx = session.rx.lock();
        let closed = rx.install(key, Some(now_ns + shared.settings.drain_ns));
        shared.close_cids(&closed);
        rx.unproven = true;
        rx.current = wish.next_epoch;
        rx.active = Some(wish.path);
        rx.paths[wish.path.index()].way = Some(Way { socket: pending.socket.id, peer: pending.route.peer });
        send_reply(shared, &mut keys, &pending, &reply, gateway_nonce);
        deliver_early(shared, &session, &mut rx, early, &origin, &mut sink);
        drop(rx);
        tx.flush(shared, now_ns);
    }
    drop(keys);
    handle_events(shared, &session, &origin, &mut sink.events);
    session.look_by(shared, now_ns);
    Ok(())
}

type Early = Vec<(PathIndex, Vec<u8>)>;

/// The key that held data of this request, with what it held; else a new one.
fn take_key(
    shared: &Shared,
    session: &Arc<Session>,
    keys: &Keys,
    request: u64,
    wish: &Request,
    root: &Root,
    nonce: &EpochNonce,
) -> Result<(OpeningKey, Early)> {
    let mut rx = session.rx.lock();
    if rx.held.as_ref().is_some_and(|held| held.request == request) {
        if let Some(held) = rx.held.take() {
            return Ok((held.key, held.plaintexts));
        }
    }
    if let Some(other) = rx.held.take() {
        shared.close_cids(other.key.cids());
    }
    drop(rx);
    let key = OpeningKey::new(keys.aead, &root.up(wish.next_epoch, nonce));
    if !shared.open_cids(key.cids(), session) {
        return Err(Error::State("connection IDs collide; the client has to ask again"));
    }
    Ok((key, Vec::new()))
}

/// Delivers what came before the commit, as if it came now.
fn deliver_early(shared: &Shared, session: &Session, rx: &mut Rx, early: Early, origin: &Origin<'_>, sink: &mut Sink) {
    let way = Way { socket: origin.socket.id, peer: origin.route.peer };
    let allowed = Some(&session.inner[..]);
    let arrival = Arrival { way, now_ns: origin.now_ns, allowed, counters: &shared.counters };
    let newest = rx.epochs.len() - 1;
    if let Some((path, _)) = early.first() {
        rx.confirm(*path, newest, sink);
    }
    for (path, plaintext) in early {
        if matches!(plaintext.first(), Some(first) if matches!(first >> 4, 4 | 6)) {
            if rx.take_inner(&plaintext, path, true, &arrival) {
                shared.deliver_plain(&plaintext);
            }
        } else if let Err(reason) = rx.take_frame(&plaintext, path, newest, &arrival, sink) {
            shared.counters.dropped(reason);
        }
    }
}

fn send_reply(shared: &Shared, keys: &mut Keys, pending: &Pending, reply: &Reply, gateway_nonce: EpochNonce) {
    let root = pending.request.as_ref().map_or(&keys.root, |(_, root)| root);
    let datagram = reply.seal(&root.control(), &pending.nonce, &gateway_nonce);
    let (socket, route) = (Arc::clone(&pending.socket), pending.route);
    shared.transmit(&socket, route, &datagram, datagram.len(), 0, 0);
    keys.last_reply = Some(LastReply { nonce: pending.nonce, datagram, socket, route });
}

fn refuse(shared: &Shared, request: u64, make: impl FnOnce(&Request, &Pending, &Session) -> Reply) -> Result<()> {
    let pending = shared.requests.lock().remove(request)?;
    let (Some(session), Some((wish, _))) = (&pending.session, &pending.request) else {
        return Err(Error::State("a request without proof gets no reply"));
    };
    release_held(shared, session, request);
    if !pending.fresh {
        // A copy of an old request: its sender may be anybody, and the live request keeps its reply.
        return Ok(());
    }
    let reply = make(wish, &pending, session);
    let mut keys = session.keys.lock();
    send_reply(shared, &mut keys, &pending, &reply, draw(&mut SystemRandom));
    Ok(())
}

/// Asks the client to prove its address: replies with a return token and forgets the request.
pub fn challenge(shared: &Shared, request: u64) -> Result<()> {
    let cluster = shared.cluster.as_ref().ok_or(Error::State("a client decides no requests"))?;
    refuse(shared, request, |wish, pending, session| Reply {
        status: ReplyStatus::Challenge,
        epoch: wish.next_epoch,
        version: wish.expected_version,
        path: wish.path,
        reason: 0,
        token: ReturnTokenKey::new(cluster).make(&address18(pending.route.peer), &session.id, sys::wall_ms()),
        tickets: Vec::new(),
    })
}

/// Denies the request with the control plane's reason and the version it holds.
pub fn deny(shared: &Shared, request: u64, reason: u16, version: u64) -> Result<()> {
    refuse(shared, request, |wish, _, session| Reply {
        status: ReplyStatus::Denied,
        epoch: session.keys.lock().epoch,
        version,
        path: wish.path,
        reason,
        token: Token::default(),
        tickets: Vec::new(),
    })
}

/// Forgets the request without a word.
pub fn drop_silently(shared: &Shared, request: u64) -> Result<()> {
    let pending = shared.requests.lock().remove(request)?;
    if let Some(session) = &pending.session {
        release_held(shared, session, request);
    }
    Ok(())
}

/// Forgets requests that were never decided.
pub fn sweep(shared: &Shared, now_ns: u64) {
    let old: Vec<u64> = {
        let mut requests = shared.requests.lock();
        let life_ns = |prepared: bool| if prepared { PREPARED_LIFE_NS } else { LIFE_NS };
        let is_old = |since_ns: u64, prepared: bool| now_ns.saturating_sub(since_ns) >= life_ns(prepared);
        requests.rekeys.retain(|_, pending| !is_old(pending.since_ns, pending.is_prepared()));
        let is_old = |pending: &Pending| is_old(pending.since_ns, pending.gateway_nonce.is_some());
        requests.pending.iter().filter(|(_, pending)| is_old(pending)).map(|(handle, _)| *handle).collect()
    };
    for request in old {
        // Decided in the meantime: nothing is left to forget.
        let _ = drop_silently(shared, request);
    }
}
