//! Rekey inside a live session: the client asks, the gateway answers, the first datagram of the new epoch switches.

use std::collections::HashMap;
use std::sync::Arc;

use jumpvpn_packet::control::{ControlMessage, TYPE_REKEY_REPLY, TYPE_REKEY_REQUEST};
use jumpvpn_packet::header::PathIndex;
use jumpvpn_packet::kem::KemKeyPair;
use jumpvpn_packet::rekey::{requested_epoch, respond, RekeyInitiator, Rekeyed};
use jumpvpn_packet::schedule::Root;
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::{DropReason, SystemRandom};

use crate::error::{Error, Result};
use crate::facts::Fact;
use crate::session::{Keys, Session};
use crate::shared::Shared;
use crate::sys;
use crate::timer::NEVER;

/// First repetition of an unanswered request; doubled each time.
const FIRST_REPEAT_NS: u64 = 250_000_000;
/// Repetitions before it is given up: 250 ms doubled five times is 16 s, beyond any live path's round trip.
const MAX_REPEATS: u32 = 6;

/// Epochs ahead that a rekey may ask for: each one that the client heard nothing of is one more, and four bits of the
/// epoch are in the header.
const MAX_JUMP: u64 = 8;

struct Asked {
    initiator: RekeyInitiator,
    message_id: u32,
    next_ns: u64,
    repeats: u32,
}

struct Answered {
    request_id: u32,
    reply_id: u32,
    reply: Vec<u8>,
}

/// Rekey of one session, either role.
#[derive(Default)]
pub struct Rekeying {
    asked: Option<Asked>,
    answer: Option<Rekeyed>,
    replied: Option<Answered>,
    switch: Option<SealingKey>,
    /// Client: the highest epoch asked for.
    tried: u64,
}

impl std::fmt::Debug for Rekeying {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rekeying(redacted)")
    }
}

impl Rekeying {
    /// Forgets everything: another exchange opened a newer epoch.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The sending key that waits for the first datagram of `epoch`.
    pub fn take_switch(&mut self, epoch: u64) -> Option<SealingKey> {
        self.switch.take_if(|key| key.epoch() == epoch)
    }
}

/// A request that waits for the gateway's decision.
pub struct Pending {
    session: Arc<Session>,
    message: ControlMessage,
    prepared: Option<(Vec<u8>, Rekeyed)>,
    /// When it came.
    pub since_ns: u64,
}

impl Pending {
    /// True when the new root is sealed and waits for the store.
    pub fn is_prepared(&self) -> bool {
        self.prepared.is_some()
    }
}

/// Rekeys that wait for a decision, one per session: a newer request replaces the one before.
#[derive(Default)]
pub struct Rekeys {
    pending: HashMap<u64, Pending>,
    by_session: HashMap<u64, u64>,
}

impl Rekeys {
    fn insert(&mut self, request: u64, pending: Pending) {
        if let Some(older) = self.by_session.insert(pending.session.handle, request) {
            self.pending.remove(&older);
        }
        self.pending.insert(request, pending);
    }

    fn get_mut(&mut self, request: u64) -> Result<&mut Pending> {
        self.pending.get_mut(&request).ok_or(Error::Unknown("rekey request", request))
    }

    fn remove(&mut self, request: u64) -> Result<Pending> {
        let pending = self.pending.remove(&request).ok_or(Error::Unknown("rekey request", request))?;
        self.by_session.remove(&pending.session.handle);
        Ok(pending)
    }

    /// Forgets those that `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(&Pending) -> bool) {
        self.pending.retain(|_, pending| keep(pending));
        self.by_session.retain(|_, request| self.pending.contains_key(request));
    }
}

/// Client: begins a rekey; a second order while one is under way changes nothing.
pub fn begin(shared: &Shared, session: &Session) -> Result<()> {
    if shared.is_gateway {
        return Err(Error::State("the client begins a rekey"));
    }
    let mut keys = session.keys.lock();
    keys.alive(session.handle)?;
    if keys.rekey.asked.is_some() {
        return Ok(());
    }
    // What was asked before may have been granted although nothing was heard of it.
    let last = if keys.rekey.tried < keys.epoch + MAX_JUMP { keys.rekey.tried } else { 0 };
    let tried = last.max(keys.epoch) + 1;
    let initiator = RekeyInitiator::new(tried, KemKeyPair::generate(), &mut SystemRandom);
    let message_id = session.tx.lock().new_message_id();
    let asked = Asked { initiator, message_id, next_ns: sys::boottime_ns(), repeats: 0 };
    keys.rekey = Rekeying { asked: Some(asked), tried, ..Rekeying::default() };
    drop(keys);
    session.look_by(shared, sys::boottime_ns());
    Ok(())
}

impl Session {
    /// Client: sends the request of a rekey under way when it is due; returns when to look again.
    pub fn repeat_rekey(&self, shared: &Shared, now_ns: u64) -> u64 {
        let Some(mut keys) = self.keys.try_lock() else { return now_ns };
        let Some(asked) = &mut keys.rekey.asked else { return NEVER };
        if now_ns < asked.next_ns {
            return asked.next_ns;
        }
        if asked.repeats == MAX_REPEATS {
            keys.rekey = Rekeying { tried: keys.rekey.tried, ..Rekeying::default() };
            return NEVER;
        }
        asked.next_ns = now_ns + (FIRST_REPEAT_NS << asked.repeats);
        asked.repeats += 1;
        let mut tx = self.tx.lock();
        if let Some(path) = tx.any_path() {
            tx.repeat_message(shared, path, asked.message_id, TYPE_REKEY_REQUEST, asked.initiator.request());
        }
        asked.next_ns
    }
}

/// Gateway: takes a request; a repeated one gets the same reply again.
pub fn take_request(shared: &Shared, session: &Arc<Session>, path: PathIndex, message: &ControlMessage) {
    if !shared.is_gateway {
        return;
    }
    let keys = session.keys.lock();
    if message.repeated {
        if let Some(answered) = keys.rekey.replied.as_ref().filter(|done| done.request_id == message.message_id) {
            let mut tx = session.tx.lock();
            tx.repeat_message(shared, path, answered.reply_id, TYPE_REKEY_REPLY, &answered.reply);
        }
        return;
    }
    let next = keys.epoch + 1..=keys.epoch + MAX_JUMP;
    let Some(epoch) = requested_epoch(&message.content).ok().filter(|epoch| next.contains(epoch)) else {
        shared.counters.dropped(DropReason::BadRekey);
        return;
    };
    drop(keys);
    let request = shared.new_handle();
    let since_ns = sys::boottime_ns();
    let pending = Pending { session: Arc::clone(session), message: message.clone(), prepared: None, since_ns };
    shared.requests.lock().rekeys.insert(request, pending);
    shared.tell(Fact::RekeyRequest { request, session: session.handle, epoch });
}

/// Gateway: makes the new root; returns the sealed secret for the record. Sends nothing.
pub fn prepare(shared: &Shared, request: u64) -> Result<Vec<u8>> {
    let cluster = shared.cluster.as_ref().ok_or(Error::State("a client decides no requests"))?;
    let (session, content) = {
        let mut requests = shared.requests.lock();
        let pending = requests.rekeys.get_mut(request)?;
        (Arc::clone(&pending.session), pending.message.content.clone())
    };
    let keys = session.keys.lock();
    keys.alive(session.handle)?;
    let base = base_root(&keys).clone();
    let prepared = respond(&content, &base, &mut SystemRandom)
        .map_err(|reason| Error::Invalid(format!("rekey cannot be answered: {reason}")))?;
    let mut record = keys.record();
    let rekeyed = &prepared.1;
    (record.epoch, record.client_nonce, record.gateway_nonce) = (rekeyed.epoch, rekeyed.transcript, rekeyed.transcript);
    (record.root, record.previous_root) = (rekeyed.root.clone(), Some(base));
    let sealed = record.seal(cluster, &session.id, &mut SystemRandom);
    drop(keys);
    let mut requests = shared.requests.lock();
    let pending = requests.rekeys.get_mut(request)?;
    pending.prepared = Some(prepared);
    Ok(sealed)
}

/// Gateway: opens the new epoch for receiving and replies; the sending side follows the client's first datagram.
pub fn commit(shared: &Shared, request: u64) -> Result<()> {
    shared.before_deadline()?;
    let pending = shared.requests.lock().rekeys.remove(request)?;
    let (reply, rekeyed) = pending.prepared.ok_or(Error::State("the rekey is not prepared"))?;
    let session = pending.session;
    let mut keys = session.keys.lock();
    keys.alive(session.handle)?;
    if rekeyed.epoch <= keys.epoch {
        return Err(Error::State("another epoch was opened in the meantime"));
    }
    let key = OpeningKey::new(keys.aead, &rekeyed.up());
    if !shared.open_cids(key.cids(), &session) {
        return Err(Error::State("connection IDs collide; the client has to ask again"));
    }
    let sealing = SealingKey::new(keys.aead, &rekeyed.down());
    let base = base_root(&keys).clone();
    let unheard = keys.rekey.switch.take().map(|key| key.epoch());
    adopt(&mut keys, &rekeyed, base);
    let mut tx = session.tx.lock();
    let closed = {
        let mut rx = session.rx.lock();
        let retracted = unheard.map(|epoch| rx.retract(epoch)).unwrap_or_default();
        [retracted, rx.install(key, None)].concat()
    };
    shared.close_cids(&closed);
    let reply_id = tx.new_message_id();
    if let Some(path) = tx.any_path() {
        tx.repeat_message(shared, path, reply_id, TYPE_REKEY_REPLY, &reply);
    }
    drop(tx);
    keys.rekey = Rekeying {
        replied: Some(Answered { request_id: pending.message.message_id, reply_id, reply }),
        switch: Some(sealing),
        ..Rekeying::default()
    };
    Ok(())
}

/// The root that the client has: a rekey that it has not confirmed it has not heard of, or it would not ask again.
fn base_root(keys: &Keys) -> &Root {
    keys.previous_root.as_ref().filter(|_| keys.rekey.switch.is_some()).unwrap_or(&keys.root)
}

fn adopt(keys: &mut Keys, rekeyed: &Rekeyed, base: Root) {
    (keys.root, keys.previous_root) = (rekeyed.root.clone(), Some(base));
    (keys.epoch, keys.client_nonce, keys.gateway_nonce) = (rekeyed.epoch, rekeyed.transcript, rekeyed.transcript);
}

/// Client: takes the reply; the new epoch is open for receiving from now on.
pub fn take_reply(shared: &Shared, session: &Arc<Session>, message: &ControlMessage) {
    let mut keys = session.keys.lock();
    let Some(asked) = keys.rekey.asked.as_ref().filter(|_| !message.repeated) else { return };
    let rekeyed = match asked.initiator.finish(&message.content, &keys.root) {
        Ok(rekeyed) => rekeyed,
        Err(reason) => {
            shared.counters.dropped(reason);
            return;
        }
    };
    let key = OpeningKey::new(keys.aead, &rekeyed.down());
    if !shared.open_cids(key.cids(), session) {
        return;
    }
    let closed = session.rx.lock().install(key, None);
    shared.close_cids(&closed);
    let epoch = rekeyed.epoch;
    keys.rekey = Rekeying { answer: Some(rekeyed), ..Rekeying::default() };
    shared.tell(Fact::RekeyReply { session: session.handle, epoch });
}

/// Client: makes the new epoch the one that sends, and probes so that the gateway follows.
pub fn finish(shared: &Shared, session: &Session) -> Result<()> {
    let now_ns = sys::boottime_ns();
    let mut keys = session.keys.lock();
    let rekeyed = keys.rekey.answer.take().ok_or(Error::State("no rekey was answered"))?;
    let base = keys.root.clone();
    adopt(&mut keys, &rekeyed, base);
    keys.previous_root = None;
    let mut tx = session.tx.lock();
    tx.install_key(SealingKey::new(keys.aead, &rekeyed.up()));
    {
        let mut rx = session.rx.lock();
        rx.current = rekeyed.epoch;
        rx.drain_old(now_ns + shared.settings.drain_ns);
    }
    if let Some(path) = tx.any_path() {
        tx.send_probe(shared, path, None, false, now_ns);
    }
    drop(tx);
    session.look_by(shared, now_ns);
    Ok(())
}
