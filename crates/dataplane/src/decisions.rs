//! What each decision about a reattach request does.

use std::sync::Arc;

use jumpvpn_packet::header::PathIndex;
use jumpvpn_packet::random::draw;
use jumpvpn_packet::reattach::{Reply, ReplyStatus, Request, StandbyKey, Token};
use jumpvpn_packet::schedule::{EpochNonce, Root};
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::SystemRandom;

use crate::address::address18;
use crate::counters::Counter;
use crate::error::{Error, Result};
use crate::ingress::{handle_events, Origin};
use crate::path::Path;
use crate::requests::{release_held, Pending};
use crate::rx::{Arrival, Rx, Sink, Way};
use crate::session::{Keys, LastReply, Session};
use crate::shared::Shared;
use crate::sys;

/// Tickets in a committed reply: what a move to another network shows with two standby gateways, and one to spare.
const FRESH_TICKETS: usize = 4;

/// Draws the gateway's nonce; returns the sealed secret, with the next epoch, for the record. Sends nothing.
///
/// From here on inner packets find the session, and wait for the commit: the answers to what it delivers may come before
/// it returns, and packets that another gateway does not take any more before it begins.
pub fn prepare(shared: &Shared, request: u64) -> Result<Vec<u8>> {
    let cluster = shared.cluster.as_ref().ok_or(Error::State("a client decides no requests"))?;
    let (session, wish, root, nonce, gateway_nonce) = {
        let mut requests = shared.requests.lock();
        let pending = requests.get_mut(request)?;
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
    drop(keys);
    session.route_inner(shared);
    Ok(record.seal(cluster, &session.id, &mut SystemRandom))
}

/// Installs the epoch, moves the binding, replies, and sends what is owed and what waited.
pub fn commit(shared: &Arc<Shared>, request: u64, version: u64) -> Result<()> {
    let now_ns = sys::boottime_ns();
    let cluster = shared.cluster.as_ref().ok_or(Error::State("a client decides no requests"))?;
    shared.before_deadline()?;
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
    let standby = StandbyKey::derive(cluster, &session.id);
    let tickets = shared.tickets.make(&session.id, keys.ticket_serial, FRESH_TICKETS);
    keys.ticket_serial += FRESH_TICKETS as u64;
    let reply = Reply {
        status: ReplyStatus::Committed,
        epoch: wish.next_epoch,
        version,
        path: wish.path,
        reason: 0,
        token: Token::default(),
        tickets,
        standby: Some(standby),
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
    if shared.is_fenced_now() {
        // Unanswered it stays new: who may decide again decides about its repetition.
        shared.counters.add(Counter::Fenced, 1);
        keys.forget(&pending.nonce);
        return Ok(());
    }
    send_reply(shared, &mut keys, &pending, &reply, draw(&mut SystemRandom));
    Ok(())
}

/// Asks the client to prove its address: replies with a return token and forgets the request.
pub fn challenge(shared: &Shared, request: u64) -> Result<()> {
    let key = shared.return_tokens.as_ref().ok_or(Error::State("a client decides no requests"))?;
    refuse(shared, request, |wish, pending, session| Reply {
        status: ReplyStatus::Challenge,
        epoch: wish.next_epoch,
        version: wish.expected_version,
        path: wish.path,
        reason: 0,
        token: key.make(&address18(pending.route.peer), &session.id, sys::wall_ms()),
        tickets: Vec::new(),
        standby: None,
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
        standby: None,
    })
}

/// Forgets the request without a word. Nobody has decided on it: it may come again, unless it was on its way already.
pub fn drop_silently(shared: &Shared, request: u64) -> Result<()> {
    let pending = shared.requests.lock().remove(request)?;
    if let Some(session) = &pending.session {
        if pending.fresh && pending.gateway_nonce.is_none() {
            session.keys.lock().forget(&pending.nonce);
        }
        release_held(shared, session, request);
    }
    Ok(())
}
