//! The plane: what the control plane holds and orders; threads live and end with it.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jumpvpn_packet::control::{FIRST_APPLICATION_TYPE, MAX_MESSAGE};
use jumpvpn_packet::handshake::Capabilities;
use jumpvpn_packet::header::PathIndex;
use jumpvpn_packet::keys::GatewayId;
use jumpvpn_packet::record::SessionRecord;
use jumpvpn_packet::schedule::{ClusterKey, Secret};
use jumpvpn_packet::SessionId;
use mio::{Registry, Waker};
use parking_lot::Mutex;

use crate::attempt::{self, Handover, Wish};
use crate::counters::Counter;
use crate::egress::Egress;
use crate::error::{Error, Result};
use crate::facts::Fact;
use crate::ingress::{self, Ingress};
use crate::inner::Prefix;
use crate::session::{Keys, Session};
use crate::shared::{Identity, Settings, Shared};
use crate::tun::Device;
use crate::udp::Socket;
use crate::{decisions, orders, rekey, requests, stats, sys, timer};

/// What a plane is made with.
pub struct Config {
    /// Gateway or client.
    pub is_gateway: bool,
    /// Static X25519 key, 32 bytes.
    pub private_key: [u8; 32],
    /// Key of the cluster, 32 bytes; None at a client.
    pub cluster_key: Option<[u8; 32]>,
    /// Name of the TUN interface; empty for none.
    pub tun: String,
    /// Packet socket to use instead of a TUN interface.
    pub tun_fd: Option<RawFd>,
    /// MTU of the TUN interface, bytes.
    pub mtu: u32,
    /// True: announce AES instructions.
    pub has_aes: bool,
    /// Bounds.
    pub settings: Settings,
}

/// A running packet path. Dropping it stops it.
pub struct Plane {
    pub(crate) shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

/// What exists only while the threads run.
struct Running {
    registry: Registry,
    wakers: [Arc<Waker>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plane(redacted)")
    }
}

const STOPPED: Error = Error::State("the plane is stopped");
/// After a defect in a thread's turn it goes on, but not in a tight loop.
const AFTER_PANIC: Duration = Duration::from_millis(100);

impl Plane {
    /// Creates the device (not up) and starts the threads.
    pub fn new(config: Config) -> Result<Self> {
        let device = open_device(&config)?;
        let identity = Identity {
            is_gateway: config.is_gateway,
            private_key: Secret::new(config.private_key),
            cluster: config.cluster_key.map(ClusterKey::new),
            capabilities: if config.has_aes { Capabilities::AES } else { Capabilities(0) },
        };
        let shared = Arc::new(Shared::new(identity, config.settings, device)?);
        let (mut egress, egress_waker) = Egress::new(Arc::clone(&shared))?;
        let (mut ingress, registry, ingress_waker) = Ingress::new(Arc::clone(&shared))?;
        let mut threads = vec![
            spawn(&shared, "jumpvpn-egress", move |_| egress.turn())?,
            spawn(&shared, "jumpvpn-ingress", move |_| ingress.turn())?,
        ];
        let mut sweep_ns = 0;
        threads.push(spawn(&shared, "jumpvpn-timer", move |shared| {
            timer::turn(shared, &mut sweep_ns);
            Ok(())
        })?);
        if let Some(inbox) = shared.births.take_inbox().filter(|_| config.is_gateway) {
            threads.push(spawn(&shared, "jumpvpn-births", move |shared| {
                match inbox.recv_timeout(WORKER_WAIT) {
                    Ok(work) => shared.births.read_init(shared, work),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                }
                Ok(())
            })?);
        }
        let running = Running { registry, wakers: [egress_waker, ingress_waker], threads };
        Ok(Self { shared, running: Mutex::new(Some(running)) })
    }

    /// Ends the threads and closes sockets and device; a second call does nothing.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        let Some(running) = self.running.lock().take() else { return };
        for waker in &running.wakers {
            // Fails only when the poll is gone, and then nobody waits.
            let _ = waker.wake();
        }
        self.shared.timer.wake();
        for thread in running.threads {
            // A thread catches its own defects, so there is none to report here.
            let _ = thread.join();
        }
        let sessions: Vec<_> = self.shared.sessions.read().values().cloned().collect();
        sessions.iter().for_each(|session| session.end(&self.shared));
        self.shared.sockets.write().clear();
        self.shared.births.clear();
        self.shared.requests.lock().clear();
        self.shared.close_device();
    }

    /// Name of the TUN interface; empty without one.
    pub fn tun_name(&self) -> String {
        self.shared.device().map_or_else(String::new, |device| device.name().to_owned())
    }

    /// Index of the TUN interface; 0 without one.
    pub fn tun_index(&self) -> u32 {
        self.shared.device().map_or(0, |device| device.index())
    }

    /// Descriptor that is readable while facts wait.
    pub fn fact_fd(&self) -> RawFd {
        self.shared.facts.fd()
    }

    /// Up to `max` facts, oldest first.
    pub fn drain(&self, max: usize) -> Vec<Fact> {
        self.shared.facts.drain(max)
    }

    /// All counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.shared.counters.snapshot()
    }

    /// Opens a socket; returns its handle and bound address.
    pub fn open_socket(&self, bind: SocketAddr, interface: Option<&str>, mark: u32) -> Result<(u64, SocketAddr)> {
        let running = self.running.lock();
        let running = running.as_ref().ok_or(STOPPED)?;
        let socket = Arc::new(Socket::open(self.shared.new_handle(), bind, interface, mark)?);
        let (id, local) = (socket.id, socket.local());
        self.shared.sockets.write().insert(id, Arc::clone(&socket));
        if let Err(error) = ingress::watch(&running.registry, &socket) {
            self.shared.sockets.write().remove(&id);
            return Err(error.into());
        }
        Ok((id, local))
    }

    /// Closes a socket; paths that use it are dropped.
    pub fn close_socket(&self, id: u64) -> Result<()> {
        let socket = self.shared.sockets.write().remove(&id).ok_or(Error::Unknown("socket", id))?;
        if let Some(running) = self.running.lock().as_ref() {
            ingress::unwatch(&running.registry, &socket)?;
        }
        let sessions: Vec<_> = self.shared.sessions.read().values().cloned().collect();
        for session in sessions {
            let mut tx = session.tx.lock();
            for path in &mut tx.paths {
                path.take_if(|path| path.socket.id == id);
            }
        }
        Ok(())
    }

    /// Client: sends message 1; returns the handshake.
    pub fn begin_handshake(
        &self,
        socket: u64,
        peer: SocketAddr,
        gateway_key: [u8; 32],
        timestamp_ns: u64,
        credential: Vec<u8>,
    ) -> Result<u64> {
        let socket = self.socket(socket)?;
        self.shared.births.begin(&self.shared, socket, peer, gateway_key, timestamp_ns, credential)
    }

    /// Client: sends message 1 again, perhaps elsewhere.
    pub fn resend_handshake(&self, handshake: u64, socket: u64, peer: SocketAddr) -> Result<()> {
        let socket = self.socket(socket)?;
        self.shared.births.resend(&self.shared, handshake, socket, peer)
    }

    /// Client: forgets a handshake.
    pub fn cancel_handshake(&self, handshake: u64) -> Result<()> {
        self.shared.births.cancel(handshake)
    }

    /// Gateway: makes keys and answer; returns the sealed secret for the record.
    pub fn prepare_accept(
        &self,
        handshake: u64,
        session_id: SessionId,
        inner: &[String],
        welcome: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let inner = parse_inner(inner)?;
        self.shared.births.prepare_accept(&self.shared, handshake, session_id, inner, welcome)
    }

    /// Gateway: opens the session, binds it to path 0, answers; returns the session.
    pub fn finish_accept(&self, handshake: u64) -> Result<u64> {
        let (socket, route) = self.shared.births.source_of(handshake)?;
        let session = self.shared.births.finish_accept(&self.shared, handshake)?;
        let first = PathIndex::all().next().ok_or(Error::State("no path exists"))?;
        orders::set_path(&self.shared, &session, first, socket, route, &orders::Toward::default())?;
        orders::activate(&self.shared, &session, first)?;
        Ok(session.handle)
    }

    /// Gateway: forgets a handshake without a word.
    pub fn reject_handshake(&self, handshake: u64) -> Result<()> {
        self.shared.births.reject(handshake)
    }

    /// Gateway: a session as the store kept it: opens for reading only, answers probes with hints.
    ///
    /// Inner packets find it only with `routed`; else after a prepared reattach, or [`Self::route_inner`].
    pub fn restore(&self, session_id: SessionId, sealed: &[u8], inner: &[String], routed: bool) -> Result<u64> {
        let cluster = self.shared.cluster.as_ref().ok_or(Error::State("a client restores no sessions"))?;
        let record = SessionRecord::open(cluster, &session_id, sealed)
            .map_err(|reason| Error::Invalid(format!("sealed record refused: {reason}")))?;
        let session =
            Session::new(&self.shared, session_id, parse_inner(inner)?, Keys::restored(&record), GatewayId::default());
        let session = Arc::new(session);
        if !session.begin(&self.shared, None, &record.up()) {
            return Err(Error::State("connection IDs collide with another session"));
        }
        if routed {
            session.route_inner(&self.shared);
        }
        Ok(session.handle)
    }

    /// Gateway: lets inner packets find a session that was restored without its routes.
    pub fn route_inner(&self, session: u64) -> Result<()> {
        self.session(session)?.route_inner(&self.shared);
        Ok(())
    }

    /// Gateway: from `boot_ns` (CLOCK_BOOTTIME) on nothing is sealed, sent, opened or delivered; `u64::MAX` is never.
    pub fn set_deadline(&self, boot_ns: u64) -> Result<()> {
        if !self.shared.is_gateway {
            return Err(Error::State("a client has no deadline"));
        }
        let before_ns = self.shared.swap_deadline(boot_ns);
        let now_ns = sys::boottime_ns();
        if now_ns < before_ns || now_ns >= boot_ns {
            return Ok(());
        }
        let sessions: Vec<_> = self.shared.sessions.read().values().cloned().collect();
        for session in sessions {
            session.tx.lock().resume(&self.shared, now_ns);
            session.look_by(&self.shared, now_ns);
        }
        Ok(())
    }

    /// Gateway: whether answers to standby probes say that this gateway is about to leave.
    pub fn set_draining(&self, is_draining: bool) -> Result<()> {
        if !self.shared.is_gateway {
            return Err(Error::State("a client answers no standby probes"));
        }
        self.shared.is_draining.store(is_draining, Ordering::Relaxed);
        Ok(())
    }

    /// Gateway: the keys of tickets; the first seals, all open.
    pub fn set_ticket_keys(&self, keys: Vec<[u8; 32]>) -> Result<()> {
        if !self.shared.is_gateway {
            return Err(Error::State("a client makes no tickets"));
        }
        self.shared.tickets.set(keys.into_iter().map(Secret::new).collect())
    }

    /// Measurements of all paths that are set.
    pub fn path_stats(&self, session: u64) -> Result<Vec<stats::PathStats>> {
        Ok(stats::paths(&*self.session(session)?, self.shared.is_gateway, sys::boottime_ns()))
    }

    /// Totals of a session.
    pub fn session_stats(&self, session: u64) -> Result<stats::SessionStats> {
        Ok(stats::session(&*self.session(session)?))
    }

    /// Client: asks for a move; returns the first 8 bytes of the request's nonce.
    pub fn begin_reattach(&self, session: u64, wish: &Wish) -> Result<[u8; 8]> {
        let session = self.session(session)?;
        attempt::begin(&self.shared, &session, wish)
    }

    /// Client: sends the request under way again.
    pub fn resend_reattach(&self, session: u64) -> Result<()> {
        attempt::resend(&self.shared, &*self.session(session)?)
    }

    /// Client: gives up the request under way.
    pub fn abandon_reattach(&self, session: u64) -> Result<()> {
        attempt::abandon(&self.shared, &*self.session(session)?);
        Ok(())
    }

    /// Client: switches to the committed epoch.
    pub fn finish_reattach(&self, session: u64, handover: Handover) -> Result<()> {
        attempt::finish(&self.shared, &*self.session(session)?, handover)
    }

    /// Gateway: opens a request anew whose session was not here when it came; the outcome is a fact.
    pub fn retry_reattach(&self, request: u64) -> Result<()> {
        requests::retry(&self.shared, request)
    }

    /// Gateway: returns the sealed secret of the next epoch for the record.
    pub fn prepare_reattach(&self, request: u64) -> Result<Vec<u8>> {
        decisions::prepare(&self.shared, request)
    }

    /// Gateway: carries out a prepared reattach.
    pub fn commit_reattach(&self, request: u64, version: u64) -> Result<()> {
        decisions::commit(&self.shared, request, version)
    }

    /// Gateway: asks for proof of the address.
    pub fn challenge_reattach(&self, request: u64) -> Result<()> {
        decisions::challenge(&self.shared, request)
    }

    /// Gateway: denies with a reason.
    pub fn deny_reattach(&self, request: u64, reason: u16, version: u64) -> Result<()> {
        decisions::deny(&self.shared, request, reason, version)
    }

    /// Gateway: forgets a request without a word.
    pub fn drop_reattach(&self, request: u64) -> Result<()> {
        decisions::drop_silently(&self.shared, request)
    }

    /// Client: begins a rekey; it is repeated until answered or given up.
    pub fn begin_rekey(&self, session: u64) -> Result<()> {
        rekey::begin(&self.shared, &*self.session(session)?)
    }

    /// Gateway: returns the sealed secret of the new root for the record.
    pub fn prepare_rekey(&self, request: u64) -> Result<Vec<u8>> {
        rekey::prepare(&self.shared, request)
    }

    /// Gateway: carries out a prepared rekey.
    pub fn commit_rekey(&self, request: u64) -> Result<()> {
        rekey::commit(&self.shared, request)
    }

    /// Client: switches to the epoch of an answered rekey.
    pub fn finish_rekey(&self, session: u64) -> Result<()> {
        rekey::finish(&self.shared, &*self.session(session)?)
    }

    /// Sends a control message once, on `path` or the active one; `kind` is below 240.
    pub fn send_control(&self, session: u64, kind: u8, payload: &[u8], path: Option<u8>) -> Result<()> {
        let session = self.session(session)?;
        let kind = kind.checked_add(FIRST_APPLICATION_TYPE);
        let kind = kind.ok_or_else(|| Error::Invalid("control types are below 240".into()))?;
        if payload.len() > MAX_MESSAGE {
            return Err(Error::Invalid(format!("control messages have at most {MAX_MESSAGE} bytes")));
        }
        let mut tx = session.tx.lock();
        let path = match path {
            Some(path) => Some(index(path)?),
            None => tx.any_path(),
        };
        let path = path.ok_or(Error::State("no path is set"))?;
        if tx.paths[path.index()].as_ref().is_some_and(|state| state.is_standby) {
            return Err(Error::State("a standby path carries no messages"));
        }
        if tx.key.is_none() {
            return Err(Error::State("the session may not send before a reattach"));
        }
        tx.send_message(&self.shared, path, kind, payload);
        Ok(())
    }

    /// Erases a session and its keys.
    pub fn close_session(&self, session: u64) -> Result<()> {
        self.session(session)?.end(&self.shared);
        Ok(())
    }

    /// The session with this handle.
    pub(crate) fn session(&self, handle: u64) -> Result<Arc<Session>> {
        self.shared.sessions.read().get(&handle).cloned().ok_or(Error::Unknown("session", handle))
    }

    /// The socket with this handle.
    pub(crate) fn socket(&self, handle: u64) -> Result<Arc<Socket>> {
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(STOPPED);
        }
        self.shared.sockets.read().get(&handle).cloned().ok_or(Error::Unknown("socket", handle))
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The worker looks at the stop flag this often.
const WORKER_WAIT: Duration = Duration::from_millis(200);

fn open_device(config: &Config) -> Result<Option<Device>> {
    if let Some(fd) = config.tun_fd {
        return Ok(Some(Device::adopt(fd)?));
    }
    if config.tun.is_empty() {
        return Ok(None);
    }
    let device = Device::tun(&config.tun)?;
    sys::set_mtu(device.name(), config.mtu)?;
    Ok(Some(device))
}

/// Runs `turn` until the plane stops; a defect in one turn is caught, counted and told.
fn spawn(
    shared: &Arc<Shared>,
    name: &'static str,
    mut turn: impl FnMut(&Arc<Shared>) -> std::io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let run = move || {
        while !shared.stopping.load(Ordering::Acquire) {
            let outcome = catch_unwind(AssertUnwindSafe(|| turn(&shared)));
            if !matches!(outcome, Ok(Ok(()))) {
                shared.counters.add(Counter::Panics, 1);
                shared.tell(Fact::PlaneFailed { text: name });
                std::thread::sleep(AFTER_PANIC);
            }
        }
    };
    Ok(std::thread::Builder::new().name(name.into()).spawn(run)?)
}

/// `path` as an index.
pub(crate) fn index(path: u8) -> Result<PathIndex> {
    PathIndex::new(path).ok_or_else(|| Error::Invalid(format!("path {path} is not below 8")))
}

fn parse_inner(texts: &[String]) -> Result<Vec<Prefix>> {
    let parse = |text: &String| {
        Prefix::parse(text).ok_or_else(|| Error::Invalid(format!("{text:?} is no inner address or range")))
    };
    texts.iter().map(parse).collect()
}
