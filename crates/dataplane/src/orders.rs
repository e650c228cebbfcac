//! Orders about the paths of a session.

use std::net::SocketAddr;
use std::sync::Arc;

use jumpvpn_packet::header::PathIndex;
use jumpvpn_packet::keys::{gateway_id, PublicKey};

use crate::error::{Error, Result};
use crate::liveness::Limits;
use crate::path::Path;
use crate::plane::{index, Plane};
use crate::rx::Way;
use crate::session::Session;
use crate::shared::Shared;
use crate::sys;
use crate::udp::{Route, Socket};

/// Shorter probe intervals would be a flood.
const MIN_INTERVAL_NS: u64 = 1_000_000;

/// Whom a client's path leads to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Toward {
    /// Public key of the gateway; None for that of the birth.
    pub gateway: Option<PublicKey>,
    /// The gateway does not hold the session.
    pub is_standby: bool,
}

impl Plane {
    /// Sets where a path leads; the same way again only asks for its validation to be told again.
    ///
    /// Client: `toward` says which gateway is at the other end, and whether it holds the session.
    pub fn set_path(&self, session: u64, path: u8, socket: u64, peer: SocketAddr, toward: &Toward) -> Result<()> {
        if self.shared.is_gateway && (toward.gateway.is_some() || toward.is_standby) {
            return Err(Error::State("only a client's paths lead to different gateways"));
        }
        let (session, path, socket) = (self.session(session)?, index(path)?, self.socket(socket)?);
        set_path(&self.shared, &session, path, socket, Route { peer, source: None }, toward)
    }

    /// Forgets a path; the session is without binding when it was the active one.
    pub fn drop_path(&self, session: u64, path: u8) -> Result<()> {
        let (session, path) = (self.session(session)?, index(path)?);
        let mut tx = session.tx.lock();
        let mut rx = session.rx.lock();
        tx.paths[path.index()] = None;
        rx.paths[path.index()].way = None;
        tx.active.take_if(|active| *active == path);
        rx.active.take_if(|active| *active == path);
        Ok(())
    }

    /// Follows a peer whose new address was validated; on the active path, what went to the old one is sent again.
    pub fn set_peer(&self, session: u64, path: u8, peer: SocketAddr) -> Result<()> {
        let (session, path) = (self.session(session)?, index(path)?);
        let mut tx = session.tx.lock();
        let state = tx.paths[path.index()].as_mut().ok_or(Error::State("the path is not set"))?;
        state.moved = None;
        let changed = std::mem::replace(&mut state.route.peer, peer) != peer;
        session.rx.lock().paths[path.index()].way = Some(Way { socket: state.socket.id, peer });
        if changed && tx.active == Some(path) {
            tx.flush(&self.shared, sys::boottime_ns());
        }
        Ok(())
    }

    /// Makes a path carry data: what is owed and what waited goes first.
    pub fn activate(&self, session: u64, path: u8) -> Result<()> {
        activate(&self.shared, &*self.session(session)?, index(path)?)
    }

    /// Ends the binding; packets wait from now on.
    pub fn deactivate(&self, session: u64) -> Result<()> {
        let session = self.session(session)?;
        let mut tx = session.tx.lock();
        tx.active = None;
        session.rx.lock().active = None;
        drop(tx);
        session.look_by(&self.shared, sys::boottime_ns());
        Ok(())
    }

    /// Sets how a path is probed and when it counts as silent; it holds for later uses of the index, too.
    pub fn set_liveness(&self, session: u64, path: u8, limits: Limits) -> Result<()> {
        if limits.probe_busy_ns < MIN_INTERVAL_NS || limits.probe_idle_ns < MIN_INTERVAL_NS {
            return Err(Error::Invalid("probe intervals are at least 1 ms".into()));
        }
        if limits.silence_busy_ns == 0 || limits.silence_idle_ns == 0 || limits.dead_milli < 1000 {
            return Err(Error::Invalid("silence limits are above 0 and the factor of death at least 1".into()));
        }
        let (session, path) = (self.session(session)?, index(path)?);
        let mut tx = session.tx.lock();
        tx.limits[path.index()] = Some(limits);
        if let Some(state) = &mut tx.paths[path.index()] {
            state.live.limits = Some(limits);
        }
        drop(tx);
        session.look_by(&self.shared, sys::boottime_ns());
        Ok(())
    }

    /// Probes a path now; its answer is told.
    pub fn probe_now(&self, session: u64, path: u8) -> Result<()> {
        self.probe(session, path, None)
    }

    /// Probes a new address of a path; its answer is told.
    pub fn challenge(&self, session: u64, path: u8, address: SocketAddr) -> Result<()> {
        self.probe(session, path, Some(address))
    }

    fn probe(&self, session: u64, path: u8, address: Option<SocketAddr>) -> Result<()> {
        let (session, path) = (self.session(session)?, index(path)?);
        let mut tx = session.tx.lock();
        let state = tx.paths[path.index()].as_mut().ok_or(Error::State("the path is not set"))?;
        if address.is_none() {
            // If this very probe is lost, the answer to a later one is told instead.
            state.unvalidate();
        }
        if tx.key.is_none() {
            return Err(Error::State("the session may not send before a reattach"));
        }
        tx.send_probe(&self.shared, path, address, true, sys::boottime_ns());
        Ok(())
    }
}

/// Sets where `path` leads.
pub fn set_path(
    shared: &Shared,
    session: &Session,
    path: PathIndex,
    socket: Arc<Socket>,
    route: Route,
    toward: &Toward,
) -> Result<()> {
    let now_ns = sys::boottime_ns();
    let gateway = toward.gateway.as_ref().map_or(session.home, gateway_id);
    let mut tx = session.tx.lock();
    if toward.is_standby && tx.active == Some(path) {
        return Err(Error::State("the path that carries data is no standby"));
    }
    let limits = tx.limits[path.index()];
    let way = Way { socket: socket.id, peer: route.peer };
    match &mut tx.paths[path.index()] {
        Some(state) if state.socket.id == socket.id && state.route.peer == route.peer && state.gateway == gateway => {
            state.unvalidate();
            state.set_standby(toward.is_standby, now_ns);
        }
        slot => {
            let state = slot.insert(Path::new(socket, route, limits, now_ns));
            (state.gateway, state.is_standby) = (gateway, toward.is_standby);
        }
    }
    session.rx.lock().paths[path.index()].way = Some(way);
    drop(tx);
    session.look_by(shared, now_ns);
    Ok(())
}

/// Makes `path` carry data.
pub fn activate(shared: &Shared, session: &Session, path: PathIndex) -> Result<()> {
    let now_ns = sys::boottime_ns();
    let mut tx = session.tx.lock();
    let state = tx.paths[path.index()].as_ref().ok_or(Error::State("the path is not set"))?;
    if state.is_standby {
        return Err(Error::State("a standby path carries data only after a reattach"));
    }
    if tx.key.is_none() {
        return Err(Error::State("the session may not send before a reattach"));
    }
    let changed = tx.active.replace(path) != Some(path);
    session.rx.lock().active = Some(path);
    if changed {
        tx.flush(shared, now_ns);
    }
    drop(tx);
    session.look_by(shared, now_ns);
    Ok(())
}
