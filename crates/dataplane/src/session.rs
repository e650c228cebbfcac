//! One session: its keys, its two sides, and its place in the plane's tables.
//!
//! Locks are taken in the order `keys`, `tx`, `rx`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use jumpvpn_packet::aead::AeadId;
use jumpvpn_packet::handshake::Established;
use jumpvpn_packet::keys::GatewayId;
use jumpvpn_packet::record::SessionRecord;
use jumpvpn_packet::schedule::{EpochNonce, Root, Secret, TrafficSecret};
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::{Cid, SessionId};
use parking_lot::Mutex;

use crate::attempt::{Attempt, Committed};
use crate::error::{Error, Result};
use crate::inner::Prefix;
use crate::rekey::Rekeying;
use crate::rx::Rx;
use crate::shared::Shared;
use crate::timer::NEVER;
use crate::tx::Tx;
use crate::udp::{Route, Socket};

/// Nonces of reattach requests remembered per session: more than a client sends before its next epoch.
const MAX_NONCES: usize = 64;

/// A reply that is sent again when its request comes again.
#[derive(Debug)]
pub struct LastReply {
    /// Nonce of the request.
    pub nonce: EpochNonce,
    /// The reply.
    pub datagram: Vec<u8>,
    /// Where it went.
    pub socket: Arc<Socket>,
    /// Where it went.
    pub route: Route,
}

/// Secrets of a session and the exchanges that change them.
#[derive(Debug)]
pub struct Keys {
    /// Negotiated algorithm.
    pub aead: AeadId,
    /// Root of the newest epoch.
    pub root: Root,
    /// Root before the last rekey, until the newest epoch is confirmed.
    pub previous_root: Option<Root>,
    /// Newest epoch.
    pub epoch: u64,
    /// Its nonces.
    pub client_nonce: EpochNonce,
    /// Its nonces.
    pub gateway_nonce: EpochNonce,
    /// Client: reattach under way.
    pub attempt: Option<Attempt>,
    /// Client: reattach that the gateway committed.
    pub committed: Option<Committed>,
    /// Rekey under way.
    pub rekey: Rekeying,
    /// Gateway: nonces seen.
    nonces: VecDeque<EpochNonce>,
    /// Gateway: last reply.
    pub last_reply: Option<LastReply>,
    /// Gateway: serial of the next ticket.
    pub ticket_serial: u64,
    /// Gateway: the last epoch that the client was known to be in, and its connection IDs, for hints.
    pub hint_cids: Option<(u64, [Cid; 8])>,
    /// The session ended: nothing may be derived any more.
    pub ended: bool,
}

impl Keys {
    /// Keys after BIRTH.
    pub fn established(established: &Established) -> Self {
        Self::new(
            established.aead,
            established.root.clone(),
            None,
            (jumpvpn_packet::handshake::FIRST_EPOCH, established.hash, established.hash),
        )
    }

    /// Keys of a record after a restart.
    pub fn restored(record: &SessionRecord) -> Self {
        let epoch = (record.epoch, record.client_nonce, record.gateway_nonce);
        let mut keys = Self::new(record.aead, record.root.clone(), record.previous_root.clone(), epoch);
        keys.hint_cids = Some((record.epoch, record.down().cids()));
        keys
    }

    fn new(
        aead: AeadId,
        root: Root,
        previous_root: Option<Root>,
        (epoch, client_nonce, gateway_nonce): (u64, EpochNonce, EpochNonce),
    ) -> Self {
        Self {
            aead,
            root,
            previous_root,
            epoch,
            client_nonce,
            gateway_nonce,
            attempt: None,
            committed: None,
            rekey: Rekeying::default(),
            nonces: VecDeque::new(),
            last_reply: None,
            ticket_serial: 0,
            hint_cids: None,
            ended: false,
        }
    }

    /// What the store keeps of these keys.
    pub fn record(&self) -> SessionRecord {
        SessionRecord {
            aead: self.aead,
            epoch: self.epoch,
            client_nonce: self.client_nonce,
            gateway_nonce: self.gateway_nonce,
            root: self.root.clone(),
            previous_root: self.previous_root.clone(),
        }
    }

    /// Erases all secrets.
    fn end(&mut self) {
        *self = Self::new(self.aead, Root::new(Secret::new([0; 32])), None, (0, [0; 32], [0; 32]));
        self.ended = true;
    }

    /// Fails when the session `handle` ended.
    pub fn alive(&self, handle: u64) -> Result<()> {
        if self.ended {
            Err(Error::Unknown("session", handle))
        } else {
            Ok(())
        }
    }

    /// Remembers `nonce`; false when it was seen before.
    pub fn is_fresh(&mut self, nonce: &EpochNonce) -> bool {
        if self.nonces.contains(nonce) {
            return false;
        }
        if self.nonces.len() == MAX_NONCES {
            self.nonces.pop_front();
        }
        self.nonces.push_back(*nonce);
        true
    }

    /// Forgets `nonce`: its request was not taken after all.
    pub fn forget(&mut self, nonce: &EpochNonce) {
        self.nonces.retain(|seen| seen != nonce);
    }
}

/// A session of this plane.
#[derive(Debug)]
pub struct Session {
    /// Handle that the control plane knows.
    pub handle: u64,
    /// Identifier.
    pub id: SessionId,
    /// Inner ranges that it owns.
    pub inner: Vec<Prefix>,
    /// Secrets.
    pub keys: Mutex<Keys>,
    /// Sending side.
    pub tx: Mutex<Tx>,
    /// Receiving side.
    pub rx: Mutex<Rx>,
    /// Client: the gateway of the birth. Zeros at a gateway, as in its paths: all of them lead to the one client.
    pub home: GatewayId,
    /// When the timer looks at it.
    pub armed_ns: AtomicU64,
    /// Inner packets find it.
    is_routed: AtomicBool,
}

impl Session {
    /// A session in no table yet.
    pub fn new(shared: &Shared, id: SessionId, inner: Vec<Prefix>, keys: Keys, home: GatewayId) -> Self {
        let handle = shared.new_handle();
        let settings = &shared.settings;
        let mut tx = Tx::new(handle, settings.queue_bytes, settings.replay_bytes, settings.replay_ns);
        tx.gateway = home;
        Self {
            handle,
            id,
            inner,
            keys: Mutex::new(keys),
            tx: Mutex::new(tx),
            rx: Mutex::default(),
            home,
            armed_ns: AtomicU64::new(NEVER),
            is_routed: AtomicBool::new(false),
        }
    }

    /// Opens `sealing` and `opening` as the first epoch and enters the tables; false on a connection-ID collision.
    ///
    /// A session with the same identifier ends before: two of them would share connection IDs. Inner packets find the
    /// session only after [`Self::route_inner`].
    pub fn begin(self: &Arc<Self>, shared: &Shared, sealing: Option<&TrafficSecret>, opening: &TrafficSecret) -> bool {
        let replaced = shared.by_id.write().remove(&self.id);
        if let Some(old) = replaced {
            old.end(shared);
        }
        let aead = self.keys.lock().aead;
        let key = OpeningKey::new(aead, opening);
        if !shared.open_cids(key.cids(), self) {
            return false;
        }
        self.tx.lock().key = sealing.map(|secret| SealingKey::new(aead, secret));
        let mut rx = self.rx.lock();
        rx.current = key.epoch();
        // Without windows a restored epoch would deliver again what it delivered before.
        rx.epochs.push(crate::rx::RxEpoch { probes_only: sealing.is_none(), ..crate::rx::RxEpoch::new(key) });
        drop(rx);
        shared.sessions.write().insert(self.handle, Arc::clone(self));
        shared.by_id.write().insert(self.id, Arc::clone(self));
        true
    }

    /// Enters the inner routes, unless they are.
    pub fn route_inner(self: &Arc<Self>, shared: &Shared) {
        if self.is_routed.load(Ordering::Acquire) {
            return;
        }
        let mut table = shared.inner.write();
        // Under the table's lock, so that a session that ends meanwhile leaves no route behind.
        if self.keys.lock().ended || self.is_routed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.inner.iter().for_each(|range| table.insert(*range, Arc::clone(self)));
        drop(table);
        shared.inner_generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Leaves all tables and erases the keys.
    pub fn end(&self, shared: &Shared) {
        // First of all: whoever looks at it under a lock finds that it ended, and enters it nowhere again.
        self.keys.lock().end();
        shared.sessions.write().remove(&self.handle);
        {
            let mut by_id = shared.by_id.write();
            if by_id.get(&self.id).is_some_and(|owner| owner.handle == self.handle) {
                by_id.remove(&self.id);
            }
        }
        shared.inner.write().remove(&self.inner, |owner| owner.handle == self.handle);
        shared.inner_generation.fetch_add(1, Ordering::AcqRel);
        shared.attempts.lock().retain(|_, owner| owner.handle != self.handle);
        let mut tx = self.tx.lock();
        let mut rx = self.rx.lock();
        shared.close_cids(&rx.all_cids());
        *rx = Rx::default();
        *tx = Tx::new(self.handle, 0, 0, 0);
    }

    /// Has the timer look at this session by `due_ns`.
    pub fn look_by(&self, shared: &Shared, due_ns: u64) {
        shared.timer.arm(&self.armed_ns, self.handle, due_ns);
    }

    /// Takes the timer's entry for `armed_ns`; false when a later order replaced it.
    pub fn disarm(&self, armed_ns: u64) -> bool {
        self.armed_ns.compare_exchange(armed_ns, NEVER, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
