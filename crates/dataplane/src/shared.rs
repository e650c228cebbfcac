//! What all threads of a plane share: tables, counters, facts, the device, and the timer's inbox.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use jumpvpn_packet::handshake::Capabilities;
use jumpvpn_packet::keys::{gateway_id, GatewayId, PublicKey};
use jumpvpn_packet::reattach::ReturnTokenKey;
use jumpvpn_packet::schedule::{ClusterKey, Secret};
use jumpvpn_packet::{Cid, SessionId};
use parking_lot::{Mutex, RwLock};

use crate::births::Births;
use crate::bucket::Buckets;
use crate::counters::{Counter, Counters};
use crate::error::{Error, Result};
use crate::facts::{Fact, FactRing};
use crate::inner::InnerTable;
use crate::session::Session;
use crate::tickets::TicketKeys;
use crate::timer::{TimerQueue, NEVER};
use crate::tun::Device;
use crate::udp::{Route, Socket};

/// Bounds and times a plane is made with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of inner packets that wait per session.
    pub queue_bytes: usize,
    /// Bytes of sealed datagrams kept per session.
    pub replay_bytes: usize,
    /// Their age in ns.
    pub replay_ns: u64,
    /// How long an old epoch still receives, in ns.
    pub drain_ns: u64,
}

/// Shared state of one plane.
pub struct Shared {
    /// Gateway or client.
    pub is_gateway: bool,
    /// Static key.
    pub private_key: Secret,
    /// Its public half.
    pub public_key: PublicKey,
    /// Name of this gateway in requests and probes.
    pub gateway_id: GatewayId,
    /// Key of tokens and records; None at a client.
    pub cluster: Option<ClusterKey>,
    /// Keys of tickets.
    pub tickets: TicketKeys,
    /// Key of return tokens; None at a client.
    pub return_tokens: Option<ReturnTokenKey>,
    /// What this CPU does well.
    pub capabilities: Capabilities,
    /// Bounds.
    pub settings: Settings,
    /// Device of inner packets; gone after the stop.
    device: RwLock<Option<Arc<Device>>>,
    /// Counters.
    pub counters: Counters,
    /// Facts for the control plane.
    pub facts: FactRing,
    /// Sockets by handle.
    pub sockets: RwLock<HashMap<u64, Arc<Socket>>>,
    /// Sessions by handle.
    pub sessions: RwLock<HashMap<u64, Arc<Session>>>,
    /// Sessions by identifier.
    pub by_id: RwLock<HashMap<SessionId, Arc<Session>>>,
    /// Sessions by connection ID.
    pub cids: RwLock<HashMap<Cid, Arc<Session>>>,
    /// Client: sessions by the nonce of the reattach that they have under way.
    pub attempts: Mutex<HashMap<[u8; 8], Arc<Session>>>,
    /// Sessions by inner address.
    pub inner: RwLock<InnerTable<Arc<Session>>>,
    /// Rises with each change of `inner`, so that caches know.
    pub inner_generation: AtomicU64,
    /// Handshakes under way.
    pub births: Births,
    /// Reattach and rekey requests that wait for a decision.
    pub requests: Mutex<crate::requests::Requests>,
    /// Sessions that want to be looked at.
    pub timer: TimerQueue,
    /// Sources of standby probes: apart from those of requests, so that probing never keeps a session from moving.
    pub standby_buckets: Mutex<Buckets>,
    /// Gateway: said in answers to standby probes.
    pub is_draining: AtomicBool,
    /// Gateway: boot time from which nothing may be sent or delivered, [`NEVER`] without such a time.
    deadline_ns: AtomicU64,
    /// Threads end when this is set.
    pub stopping: AtomicBool,
    /// Picks buckets; random per plane, so that nobody can aim at one.
    pub hasher: RandomState,
    next_handle: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared(redacted)")
    }
}

/// What [`Shared::new`] takes beside defaults.
pub struct Identity {
    /// Gateway or client.
    pub is_gateway: bool,
    /// Static key.
    pub private_key: Secret,
    /// Key of the cluster; None at a client.
    pub cluster: Option<ClusterKey>,
    /// What this CPU does well.
    pub capabilities: Capabilities,
}

impl Shared {
    /// Empty tables.
    pub fn new(identity: Identity, settings: Settings, device: Option<Device>) -> io::Result<Self> {
        let public_key = jumpvpn_packet::keys::public_key(&identity.private_key);
        Ok(Self {
            is_gateway: identity.is_gateway,
            gateway_id: gateway_id(&public_key),
            public_key,
            private_key: identity.private_key,
            tickets: TicketKeys::new(identity.cluster.as_ref()),
            return_tokens: identity.cluster.as_ref().map(ReturnTokenKey::new),
            cluster: identity.cluster,
            capabilities: identity.capabilities,
            settings,
            device: RwLock::new(device.map(Arc::new)),
            counters: Counters::default(),
            facts: FactRing::new()?,
            sockets: RwLock::default(),
            sessions: RwLock::default(),
            by_id: RwLock::default(),
            cids: RwLock::default(),
            attempts: Mutex::default(),
            inner: RwLock::default(),
            inner_generation: AtomicU64::new(0),
            births: Births::new(&public_key),
            requests: Mutex::default(),
            timer: TimerQueue::default(),
            standby_buckets: Mutex::new(Buckets::new(crate::standby::PER_SOURCE)),
            is_draining: AtomicBool::new(false),
            deadline_ns: AtomicU64::new(NEVER),
            stopping: AtomicBool::new(false),
            hasher: RandomState::new(),
            next_handle: AtomicU64::new(1),
        })
    }

    /// True when the deadline has passed by `now_ns`.
    pub fn is_fenced(&self, now_ns: u64) -> bool {
        now_ns >= self.deadline_ns.load(Ordering::Acquire)
    }

    /// [`Self::is_fenced`] at this instant; reads the clock only when there is a deadline.
    pub fn is_fenced_now(&self) -> bool {
        let deadline_ns = self.deadline_ns.load(Ordering::Acquire);
        deadline_ns != NEVER && crate::sys::boottime_ns() >= deadline_ns
    }

    /// Fails when the deadline has passed.
    pub fn before_deadline(&self) -> Result<()> {
        if self.is_fenced_now() {
            return Err(Error::State("the deadline has passed: this gateway may decide nothing"));
        }
        Ok(())
    }

    /// Sets the deadline; returns the one before.
    pub fn swap_deadline(&self, boot_ns: u64) -> u64 {
        self.deadline_ns.swap(boot_ns, Ordering::AcqRel)
    }

    /// A number that no other object of this plane has.
    pub fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the control plane; false (and counted) when the ring is full.
    pub fn tell(&self, fact: Fact) -> bool {
        let told = self.facts.push(fact);
        if !told {
            self.counters.add(Counter::FactsLost, 1);
        }
        told
    }

    /// True when a fact would be lost now; counts as one that was.
    pub fn cannot_tell(&self) -> bool {
        let full = self.facts.is_full();
        if full {
            self.counters.add(Counter::FactsLost, 1);
        }
        full
    }

    /// Sends datagrams; a refusal is counted and told at a bounded rate. True when the kernel took them.
    pub fn transmit(&self, socket: &Socket, route: Route, bytes: &[u8], stride: usize, session: u64, path: u8) -> bool {
        let count = bytes.len().div_ceil(stride.max(1)) as u64;
        // Every datagram of the plane passes here: what was sealed just before the deadline stays here, too.
        if self.is_fenced_now() {
            self.counters.add(Counter::Fenced, count);
            return false;
        }
        match socket.send(route, bytes, stride) {
            Ok(()) => {
                self.counters.add(Counter::SentDatagrams, count);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.add(Counter::SendBlocked, count);
                false
            }
            Err(error) => {
                self.counters.add(Counter::SendError, count);
                self.tell_socket_error(socket, error.raw_os_error().unwrap_or(0), session, i16::from(path));
                false
            }
        }
    }

    /// Tells of a socket's error, at a bounded rate; `session` 0 and `path` -1 when not known.
    pub fn tell_socket_error(&self, socket: &Socket, errno: i32, session: u64, path: i16) {
        if socket.should_tell(errno, crate::sys::boottime_ns()) {
            self.tell(Fact::SocketError { socket: socket.id, errno, session, path });
        }
    }

    /// Session that owns a connection ID.
    pub fn session_of(&self, cid: &Cid) -> Option<Arc<Session>> {
        self.cids.read().get(cid).cloned()
    }

    /// Routes `cids` to `session`; false, and nothing done, when one of them belongs to another session.
    ///
    /// A client chooses the nonce that its connection IDs grow from, so it could aim at those of others.
    #[must_use]
    pub fn open_cids(&self, cids: &[Cid], session: &Arc<Session>) -> bool {
        let mut table = self.cids.write();
        let foreign = |cid: &Cid| table.get(cid).is_some_and(|owner| !Arc::ptr_eq(owner, session));
        if cids.iter().any(foreign) {
            self.counters.add(Counter::CidCollision, 1);
            return false;
        }
        for cid in cids {
            table.insert(*cid, Arc::clone(session));
        }
        true
    }

    /// Routes `cids` nowhere.
    pub fn close_cids(&self, cids: &[Cid]) {
        if cids.is_empty() {
            return;
        }
        let mut table = self.cids.write();
        for cid in cids {
            table.remove(cid);
        }
        if table.capacity() > 4 * table.len().max(1024) {
            table.shrink_to_fit();
        }
    }

    /// Device of inner packets, while there is one.
    pub fn device(&self) -> Option<Arc<Device>> {
        self.device.read().clone()
    }

    /// Lets the device go; the interface vanishes with its last user.
    pub fn close_device(&self) {
        self.device.write().take();
    }

    /// Writes one packet to the device.
    pub fn deliver_plain(&self, packet: &[u8]) {
        let Some(device) = self.device() else { return };
        match device.write_plain(packet) {
            Ok(_) => self.counters.add(Counter::TunWrites, 1),
            Err(_) => self.counters.add(Counter::TunWriteError, 1),
        }
    }

    /// Hash of an address by a key that only this plane knows.
    pub fn bucket_of(&self, address: IpAddr) -> u64 {
        // An IPv6 site has a /64 at least: its addresses count as one source.
        match address {
            IpAddr::V4(v4) => self.hasher.hash_one(v4.octets()),
            IpAddr::V6(v6) => self.hasher.hash_one(&v6.octets()[..8]),
        }
    }
}
