//! Reattach requests that wait for a decision at a gateway: proof first, then at most one fact for each.

use std::collections::HashMap;
use std::sync::Arc;

use jumpvpn_packet::reattach::{Request, RequestEnvelope, Token, REQUEST_LEN};
use jumpvpn_packet::schedule::{EpochNonce, Root};
use jumpvpn_packet::seal::OpeningKey;
use jumpvpn_packet::{DropReason, SessionId};

use crate::address::address18;
use crate::attempt::short;
use crate::bucket::{Buckets, Rate};
use crate::counters::Counter;
use crate::decisions::drop_silently;
use crate::error::{Error, Result};
use crate::facts::{Fact, ReattachRequest};
use crate::ingress::Origin;
use crate::rx::Held;
use crate::session::{Keys, Session};
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
/// An epoch this far ahead of the newest is no honest next one, and fewer bits of it would be on the wire.
const MAX_EPOCH_STEP: u64 = 8;

/// The bytes of a request whose session is not here, kept until it is.
type Unopened = Box<[u8; REQUEST_LEN]>;

/// One undecided request.
pub struct Pending {
    /// The session, when it is here.
    pub session: Option<Arc<Session>>,
    /// Its nonce.
    pub nonce: EpochNonce,
    /// What it asks for, and the root that opened it.
    pub request: Option<(Request, Root)>,
    /// Where it came to.
    pub socket: Arc<Socket>,
    /// The way back.
    pub route: Route,
    /// When its wait for a decision began.
    since_ns: u64,
    /// The nonce was new.
    pub fresh: bool,
    /// Drawn when it was prepared.
    pub gateway_nonce: Option<EpochNonce>,
    unopened: Option<(SessionId, Unopened)>,
}

/// Undecided requests of one plane.
pub struct Requests {
    pending: HashMap<u64, Pending>,
    by_nonce: HashMap<EpochNonce, u64>,
    buckets: Buckets,
    /// Undecided rekeys.
    pub rekeys: crate::rekey::Rekeys,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            pending: HashMap::new(),
            by_nonce: HashMap::new(),
            buckets: Buckets::new(PER_SOURCE),
            rekeys: crate::rekey::Rekeys::default(),
        }
    }
}

impl Requests {
    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The request with this handle.
    pub fn get_mut(&mut self, request: u64) -> Result<&mut Pending> {
        self.pending.get_mut(&request).ok_or(Error::Unknown("reattach request", request))
    }

    /// Takes the request with this handle out.
    pub fn remove(&mut self, request: u64) -> Result<Pending> {
        let pending = self.pending.remove(&request).ok_or(Error::Unknown("reattach request", request))?;
        self.by_nonce.remove(&pending.nonce);
        Ok(pending)
    }

    fn insert(&mut self, request: u64, pending: Pending) {
        self.by_nonce.insert(pending.nonce, request);
        self.pending.insert(request, pending);
    }

    /// True when a request with `nonce` from the source `hash` may wait here.
    fn admits(&mut self, shared: &Shared, hash: u64, nonce: &EpochNonce, now_ns: u64) -> bool {
        let refused = if !self.buckets.take(hash, now_ns) {
            Counter::RateLimited
        } else if self.by_nonce.contains_key(nonce) {
            Counter::DuplicateRequest
        } else if self.pending.len() >= MAX_PENDING {
            Counter::PendingFull
        } else {
            return true;
        };
        shared.counters.add(refused, 1);
        false
    }
}

/// Takes a request from the network.
pub fn take(shared: &Arc<Shared>, origin: &Origin<'_>, datagram: &[u8]) -> std::result::Result<(), DropReason> {
    let envelope = RequestEnvelope::parse(datagram)?;
    let hash = shared.bucket_of(origin.route.peer.ip());
    if !shared.requests.lock().admits(shared, hash, &envelope.nonce, origin.now_ns) {
        return Ok(());
    }
    let session_id = shared.tickets.open(&envelope.ticket)?.session_id;
    let request = shared.new_handle();
    let session = shared.by_id.read().get(&session_id).cloned();
    match session {
        Some(session) => take_known(shared, origin, &envelope, request, &session).map(drop),
        None => {
            shared.counters.add(Counter::UnknownSession, 1);
            let unopened = datagram.try_into().map_err(|_| DropReason::Truncated)?;
            let fact = fact_of(request, None, session_id, origin, &envelope.nonce);
            keep(shared, pending_of(origin, envelope.nonce, Some((session_id, Box::new(unopened)))), fact);
            Ok(())
        }
    }
}

/// Looks the session of a waiting request up again and opens the request with its keys; the outcome is a fact.
///
/// A request that cannot be opened is forgotten, and its fact has no proof.
pub fn retry(shared: &Arc<Shared>, request: u64) -> Result<()> {
    if shared.cannot_tell() {
        return Err(Error::State("the ring of facts is full: drain it first"));
    }
    let (origin, (session_id, unopened)) = {
        let mut requests = shared.requests.lock();
        let unopened = requests.get_mut(request)?.unopened.clone();
        let unopened = unopened.ok_or(Error::State("the session of the request was here when it came"))?;
        (requests.remove(request)?, unopened)
    };
    let origin = Origin { socket: &origin.socket, route: origin.route, now_ns: sys::boottime_ns() };
    let envelope = RequestEnvelope::parse(&unopened[..]).map_err(|reason| Error::Invalid(reason.to_string()))?;
    let session = shared.by_id.read().get(&session_id).cloned();
    let opened = match &session {
        Some(session) => take_known(shared, &origin, &envelope, request, session),
        None => Ok(false),
    };
    if let Err(reason) = opened {
        shared.counters.dropped(reason);
    }
    if !matches!(opened, Ok(true)) {
        let handle = session.map(|session| session.handle);
        shared.tell(Fact::ReattachRequest(Box::new(fact_of(request, handle, session_id, &origin, &envelope.nonce))));
    }
    Ok(())
}

/// Opens a request of `session` and lets it wait; false when it does not.
fn take_known(
    shared: &Arc<Shared>,
    origin: &Origin<'_>,
    envelope: &RequestEnvelope<'_>,
    request: u64,
    session: &Arc<Session>,
) -> std::result::Result<bool, DropReason> {
    let mut keys = session.keys.lock();
    if keys.ended {
        return Err(DropReason::BadTicket);
    }
    if repeat_reply(shared, &keys, &envelope.nonce) {
        return Ok(false);
    }
    let (wish, root) = open_with_roots(&keys, envelope)?;
    if wish.gateway != shared.gateway_id {
        return Err(DropReason::WrongGateway);
    }
    let fresh_nonce = keys.is_fresh(&envelope.nonce);
    let mut fact = fact_of(request, Some(session.handle), session.id, origin, &envelope.nonce);
    fact.proof = true;
    (fact.next_epoch, fact.expected_version, fact.age_ms) = (wish.next_epoch, wish.expected_version, wish.age_ms);
    (fact.path, fact.cause, fact.fresh_nonce) = (wish.path.get(), wish.cause, fresh_nonce);
    fact.token_ok = token_ok(shared, &wish.token, origin, &session.id);
    if fresh_nonce && !hold_next(shared, session, &keys, origin, request, &wish, &root, &envelope.nonce) {
        keys.forget(&envelope.nonce);
        return Ok(false);
    }
    let mut pending = pending_of(origin, envelope.nonce, None);
    (pending.session, pending.request, pending.fresh) = (Some(Arc::clone(session)), Some((wish, root)), fresh_nonce);
    let kept = keep(shared, pending, fact);
    if !kept {
        keys.forget(&envelope.nonce);
        release_held(shared, session, request);
    }
    Ok(kept)
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
    let Some(key) = shared.return_tokens.as_ref().filter(|_| !token.is_empty()) else { return false };
    key.check(token, &address18(origin.route.peer), session_id, sys::wall_ms()).is_ok()
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

/// Forgets what came early for `request`.
pub fn release_held(shared: &Shared, session: &Session, request: u64) {
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

fn pending_of(origin: &Origin<'_>, nonce: EpochNonce, unopened: Option<(SessionId, Unopened)>) -> Pending {
    let (socket, route, since_ns) = (Arc::clone(origin.socket), origin.route, origin.now_ns);
    let (session, request, gateway_nonce) = (None, None, None);
    Pending { session, nonce, request, socket, route, since_ns, fresh: false, gateway_nonce, unopened }
}

/// Enters the request and tells the control plane; false when that has no room.
fn keep(shared: &Shared, pending: Pending, fact: ReattachRequest) -> bool {
    let mut requests = shared.requests.lock();
    let request = fact.request;
    if !shared.tell(Fact::ReattachRequest(Box::new(fact))) {
        return false;
    }
    requests.insert(request, pending);
    true
}

/// Forgets requests that were never decided.
pub fn sweep(shared: &Shared, now_ns: u64) {
    let old: Vec<u64> = {
        let mut requests = shared.requests.lock();
        let life_ns = |prepared: bool| if prepared { PREPARED_LIFE_NS } else { LIFE_NS };
        let is_old = |since_ns: u64, prepared: bool| now_ns.saturating_sub(since_ns) >= life_ns(prepared);
        requests.rekeys.retain(|pending| !is_old(pending.since_ns, pending.is_prepared()));
        let is_old = |pending: &Pending| is_old(pending.since_ns, pending.gateway_nonce.is_some());
        requests.pending.iter().filter(|(_, pending)| is_old(pending)).map(|(handle, _)| *handle).collect()
    };
    for request in old {
        // Decided in the meantime: nothing is left to forget.
        let _ = drop_silently(shared, request);
    }
}
