//! The client's side of a reattach: one request under way, its reply, and hints that ask for one.

use std::sync::Arc;

use jumpvpn_packet::header::PathIndex;
use jumpvpn_packet::keys::GatewayId;
use jumpvpn_packet::random::draw;
use jumpvpn_packet::reattach::{HintEnvelope, Reply, ReplyEnvelope, ReplyStatus, Request, Ticket, Token};
use jumpvpn_packet::schedule::EpochNonce;
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::{Cid, DropReason, SystemRandom};

use crate::counters::Counter;
use crate::error::{Error, Result};
use crate::facts::Fact;
use crate::rx::Rx;
use crate::session::{Keys, Session};
use crate::shared::Shared;
use crate::sys;
use crate::tx::{Early, Tx};

/// How much later than the first packet of a new gateway the last one of the gateway before may come, beside what their
/// paths differ by: queues on the way, and machines that are busy while their sessions move.
const LAST_WORDS_NS: u64 = 20_000_000;
/// What comes from a gateway that was left is not waited for any longer: those who answer it notice 100 ms.
const MAX_PATIENCE_NS: u64 = 100_000_000;

/// A request under way.
#[derive(Debug)]
pub struct Attempt {
    nonce: EpochNonce,
    next_epoch: u64,
    path: PathIndex,
    leaving: bool,
    datagram: Vec<u8>,
}

/// A committed reattach that waits for the control plane's word.
#[derive(Debug)]
pub struct Committed {
    epoch: u64,
    path: PathIndex,
    client_nonce: EpochNonce,
    gateway_nonce: EpochNonce,
}

/// What the control plane asks for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Path to move to.
    pub path: PathIndex,
    /// Epoch to open.
    pub next_epoch: u64,
    /// Version of the session record that the client believes in.
    pub expected_version: u64,
    /// Wall clock, ms.
    pub age_ms: u64,
    /// Cause in the control plane's numbering.
    pub cause: u8,
    /// Return token of a challenge, or empty.
    pub token: Vec<u8>,
    /// Send data of the next epoch at once.
    pub zero_rtt: bool,
    /// The gateway of the present epoch asked for it, and goes on to deliver until another one does.
    pub leaving: bool,
}

/// Begins a reattach and sends its request; an earlier one is abandoned. Returns the first 8 bytes of its nonce.
pub fn begin(shared: &Shared, session: &Arc<Session>, wish: &Wish) -> Result<[u8; 8]> {
    let token = Token::parse(&wish.token).map_err(|_| Error::Invalid("token longer than 48 bytes".into()))?;
    let now_ns = sys::boottime_ns();
    let mut keys = session.keys.lock();
    keys.alive(session.handle)?;
    if wish.next_epoch <= keys.epoch {
        return Err(Error::State("the next epoch must be newer than the present one"));
    }
    if session.tx.lock().paths[wish.path.index()].is_none() {
        return Err(Error::State("the path is not set"));
    }
    abandon_locked(shared, session, &mut keys);
    let (gateway, ticket, token) = show(&mut session.tx.lock(), wish.path, token, now_ns)?;
    let nonce: EpochNonce = draw(&mut SystemRandom);
    let request = Request {
        next_epoch: wish.next_epoch,
        expected_version: wish.expected_version,
        age_ms: wish.age_ms,
        path: wish.path,
        cause: wish.cause,
        gateway,
        token,
    };
    let datagram = request.seal(&keys.root.control(), &ticket, &nonce);
    let attempt = Attempt { nonce, next_epoch: wish.next_epoch, path: wish.path, leaving: wish.leaving, datagram };
    let mut tx = session.tx.lock();
    send(shared, &tx, &attempt);
    if wish.zero_rtt {
        let key = SealingKey::new(keys.aead, &keys.root.up(wish.next_epoch, &nonce));
        tx.early = Some(Early { key, path: wish.path });
        tx.flush(shared, now_ns);
    }
    keys.attempt = Some(attempt);
    shared.attempts.lock().insert(short(&nonce), Arc::clone(session));
    Ok(short(&nonce))
}

/// What a request on `path` shows: the name of its gateway, a ticket, and a return token if there is one.
fn show(tx: &mut Tx, path: PathIndex, token: Token, now_ns: u64) -> Result<(GatewayId, Ticket, Token)> {
    let (paths, pass) = (&mut tx.paths, &mut tx.pass);
    let state = paths[path.index()].as_mut().ok_or(Error::State("the path is not set"))?;
    // On a standby path the ticket of its probes was seen already.
    let ticket = if state.is_standby { state.shown.ticket(pass) } else { pass.take_ticket() };
    let ticket = ticket.ok_or(Error::State("no ticket is left"))?;
    let proven = state.shown.token(now_ns).filter(|_| token.is_empty()).cloned();
    Ok((state.gateway, ticket, proven.unwrap_or(token)))
}

/// First 8 bytes of a nonce: what replies echo.
pub fn short(nonce: &EpochNonce) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&nonce[..8]);
    out
}

fn send(shared: &Shared, tx: &Tx, attempt: &Attempt) {
    if let Some(path) = &tx.paths[attempt.path.index()] {
        let bytes = &attempt.datagram;
        shared.transmit(&path.socket, path.route, bytes, bytes.len(), tx.session, attempt.path.get());
    }
}

/// Sends the request under way again, byte for byte.
pub fn resend(shared: &Shared, session: &Session) -> Result<()> {
    let keys = session.keys.lock();
    let attempt = keys.attempt.as_ref().ok_or(Error::State("no reattach is under way"))?;
    send(shared, &session.tx.lock(), attempt);
    Ok(())
}

/// Gives up the reattach under way: what left early waits again, a committed epoch is closed.
pub fn abandon(shared: &Shared, session: &Session) {
    abandon_locked(shared, session, &mut session.keys.lock());
}

fn abandon_locked(shared: &Shared, session: &Session, keys: &mut Keys) {
    if let Some(attempt) = keys.attempt.take() {
        shared.attempts.lock().remove(&short(&attempt.nonce));
    }
    if let Some(committed) = keys.committed.take() {
        let closed = session.rx.lock().retract(committed.epoch);
        shared.close_cids(&closed);
    }
    take_early_back(&mut session.tx.lock());
}

/// What left under an epoch that never came waits again.
fn take_early_back(tx: &mut Tx) {
    if let Some(early) = tx.early.take() {
        tx.queue.end_early(false);
        // Sealed for nobody: another attempt seals it anew.
        tx.replay.retain(|epoch| epoch != early.key.epoch());
    }
}

/// Takes a reply; a committed one opens the new epoch for receiving at once.
pub fn take_reply(shared: &Shared, datagram: &[u8]) -> std::result::Result<(), DropReason> {
    let envelope = ReplyEnvelope::parse(datagram)?;
    if shared.cannot_tell() {
        return Ok(());
    }
    let session = shared.attempts.lock().get(&envelope.echo).cloned();
    let Some(session) = session else {
        shared.counters.add(Counter::UnsolicitedReply, 1);
        return Ok(());
    };
    let mut keys = session.keys.lock();
    let Some(attempt) = keys.attempt.as_ref().filter(|attempt| short(&attempt.nonce) == envelope.echo) else {
        return Ok(());
    };
    let reply = envelope.open(&keys.root.control(), &attempt.nonce)?;
    shared.attempts.lock().remove(&envelope.echo);
    take_opened(shared, &session, &mut keys, &envelope, reply)
}

fn take_opened(
    shared: &Shared,
    session: &Arc<Session>,
    keys: &mut Keys,
    envelope: &ReplyEnvelope<'_>,
    reply: Reply,
) -> std::result::Result<(), DropReason> {
    let Some(attempt) = keys.attempt.take() else { return Ok(()) };
    if reply.status == ReplyStatus::Committed {
        if reply.epoch != attempt.next_epoch || reply.path != attempt.path {
            return Err(DropReason::WrongEpoch);
        }
        let secret = keys.root.down(reply.epoch, &attempt.nonce, &envelope.gateway_nonce);
        let key = OpeningKey::new(keys.aead, &secret);
        if !shared.open_cids(key.cids(), session) {
            return Ok(());
        }
        let drain_until = sys::boottime_ns() + shared.settings.drain_ns;
        let (is_handover, patience_ns) = {
            let tx = session.tx.lock();
            (tx.is_foreign(reply.path), if attempt.leaving { patience_ns(&tx, reply.path) } else { 0 })
        };
        let closed = {
            let mut rx = session.rx.lock();
            let closed = rx.install(key, Some(drain_until));
            (rx.is_handover, rx.patience_ns) = (is_handover, patience_ns);
            closed
        };
        shared.close_cids(&closed);
        keys.committed = Some(Committed {
            epoch: reply.epoch,
            path: reply.path,
            client_nonce: attempt.nonce,
            gateway_nonce: envelope.gateway_nonce,
        });
    } else {
        take_early_back(&mut session.tx.lock());
    }
    {
        let pass = &mut session.tx.lock().pass;
        pass.add_tickets(reply.tickets);
        pass.key = reply.standby.or(pass.key.take());
    }
    shared.tell(Fact::ReattachReply {
        session: session.handle,
        nonce: short(&attempt.nonce),
        status: reply.status as u8,
        epoch: reply.epoch,
        version: reply.version,
        reason: reply.reason,
        path: reply.path.get(),
        token: reply.token.as_bytes().to_vec(),
    });
    Ok(())
}

/// How long inner packets that come on `path` wait for the last ones of the active path.
fn patience_ns(tx: &Tx, path: PathIndex) -> u64 {
    let one_way_ns = |path: PathIndex| tx.paths[path.index()].as_ref().map_or(0, |state| state.rtt.srtt_ns / 2);
    let later_ns = tx.active.map_or(0, one_way_ns).saturating_sub(one_way_ns(path));
    MAX_PATIENCE_NS.min(LAST_WORDS_NS + later_ns)
}

/// What became of the gateway that held the session before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// It is the same.
    Same,
    /// It is lost: nothing of it is taken any more.
    Lost,
    /// It gave the session away: what it still sends is taken until inner packets of the other one are delivered.
    Drained,
}

/// Makes the committed epoch the one that sends, its path active, and sends what is owed and what waited.
pub fn finish(shared: &Shared, session: &Session, handover: Handover) -> Result<()> {
    let now_ns = sys::boottime_ns();
    let mut keys = session.keys.lock();
    let committed = keys.committed.take().ok_or(Error::State("no reattach is committed"))?;
    (keys.epoch, keys.client_nonce, keys.gateway_nonce) =
        (committed.epoch, committed.client_nonce, committed.gateway_nonce);
    keys.rekey.forget();
    let mut tx = session.tx.lock();
    let early = tx.early.take();
    tx.queue.end_early(early.is_some());
    let key = match early {
        Some(early) => early.key,
        None => SealingKey::new(keys.aead, &keys.root.up(committed.epoch, &committed.client_nonce)),
    };
    let patience_ns = patience_ns(&tx, committed.path);
    tx.install_key(key);
    tx.active = Some(committed.path);
    let closed = {
        let mut rx = session.rx.lock();
        rx.current = committed.epoch;
        rx.active = Some(committed.path);
        hand_over(&mut rx, handover, patience_ns)
    };
    shared.close_cids(&closed);
    if handover != Handover::Same {
        // The gateway before may have delivered it, and the one now has no window that would tell.
        tx.replay.retain(|epoch| epoch >= committed.epoch);
    }
    tx.meet_gateway(committed.path, now_ns);
    if let Some(path) = tx.paths[committed.path.index()].as_mut() {
        // It may have been told dead before, and its gateway may die before it answers: it is told again.
        path.live.watch_anew(now_ns);
    }
    tx.send_probe(shared, committed.path, None, true, now_ns);
    tx.flush(shared, now_ns);
    drop(tx);
    session.look_by(shared, now_ns);
    Ok(())
}

/// Ends what the gateway before may still send; returns the connection IDs that are no longer open.
fn hand_over(rx: &mut Rx, handover: Handover, patience_ns: u64) -> Vec<Cid> {
    rx.is_handover &= handover != Handover::Same;
    match handover {
        Handover::Same => Vec::new(),
        Handover::Lost => rx.close_older(),
        Handover::Drained => {
            // Unless its first packet came before this order: then the older epochs are closed already.
            rx.is_handover = rx.epochs.len() > 1;
            rx.patience_ns = rx.patience_ns.max(patience_ns);
            Vec::new()
        }
    }
}

/// Takes a hint: believed only when it answers a probe of ours, and not of an epoch that we have left.
pub fn take_hint(shared: &Shared, datagram: &[u8]) -> std::result::Result<(), DropReason> {
    let envelope = HintEnvelope::parse(datagram)?;
    let session = shared.session_of(&envelope.cid).ok_or(DropReason::UnknownCid)?;
    let keys = session.keys.lock();
    let hint = envelope.open(&keys.root.control())?;
    let rx = session.rx.lock();
    let path = rx.epochs.iter().find_map(|open| open.key.path_of(&envelope.cid)).ok_or(DropReason::UnknownCid)?;
    drop(rx);
    if hint.epoch < keys.epoch || keys.committed.is_some() {
        return Err(DropReason::WrongEpoch);
    }
    let mut tx = session.tx.lock();
    let expected = tx.paths[path.index()].as_mut().is_some_and(|state| state.take_hint(&hint.challenge));
    drop(tx);
    if !expected {
        shared.counters.add(Counter::UnsolicitedReply, 1);
        return Ok(());
    }
    shared.tell(Fact::Hinted { session: session.handle, path: path.get(), cause: hint.cause });
    Ok(())
}
