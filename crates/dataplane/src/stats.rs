//! Measurements for the control plane, taken when it asks.

use std::net::SocketAddr;

use jumpvpn_packet::header::PathIndex;
use jumpvpn_packet::seal::SealingKey;

use crate::session::Session;

/// One path, at one instant. Times in ns, loss in parts per million of the last sample.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct PathStats {
    pub path: u8,
    pub peer: SocketAddr,
    pub srtt_ns: u64,
    pub rttvar_ns: u64,
    pub min_rtt_ns: u64,
    /// Client to gateway.
    pub loss_up_ppm: u32,
    /// Gateway to client.
    pub loss_down_ppm: u32,
    /// Since the peer last said something about what we sent.
    pub last_heard_ns: u64,
    /// Since the earliest send that the peer has not reported; 0 when nothing is owed.
    pub owed_ns: u64,
    pub silent: bool,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub received_bytes: u64,
}

/// Totals of one session. Packets and bytes are inner ones.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct SessionStats {
    pub epoch: u64,
    pub active: Option<u8>,
    pub sending: bool,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub queued: u64,
    pub shed: u64,
    pub resent: u64,
    pub duplicates: u64,
    pub replay_rejected: u64,
    pub wants_rekey: bool,
}

/// All paths of `session` that are set.
pub fn paths(session: &Session, is_gateway: bool, now_ns: u64) -> Vec<PathStats> {
    let tx = session.tx.lock();
    let rx = session.rx.lock();
    let stats = |index: PathIndex| {
        let path = tx.paths[index.index()].as_ref()?;
        let seen = &rx.paths[index.index()];
        Some(PathStats {
            path: index.get(),
            peer: path.route.peer,
            srtt_ns: path.rtt.srtt_ns,
            rttvar_ns: path.rtt.rttvar_ns,
            min_rtt_ns: path.rtt.min_ns,
            loss_up_ppm: if is_gateway { path.loss_received.ppm } else { path.loss_sent.ppm },
            loss_down_ppm: if is_gateway { path.loss_sent.ppm } else { path.loss_received.ppm },
            last_heard_ns: now_ns.saturating_sub(path.live.last_heard_ns()),
            owed_ns: path.live.owed_ns(now_ns),
            silent: path.live.is_silent(),
            sent_packets: path.sent_packets,
            sent_bytes: path.sent_bytes,
            received_packets: seen.packets,
            received_bytes: seen.bytes,
        })
    };
    PathIndex::all().filter_map(stats).collect()
}

/// Totals of `session`.
pub fn session(session: &Session) -> SessionStats {
    let epoch = session.keys.lock().epoch;
    let tx = session.tx.lock();
    let rx = session.rx.lock();
    SessionStats {
        epoch,
        active: tx.active.map(PathIndex::get),
        sending: tx.key.is_some(),
        tx_packets: tx.totals.packets,
        tx_bytes: tx.totals.bytes,
        rx_packets: rx.paths.iter().map(|path| path.packets).sum(),
        rx_bytes: rx.paths.iter().map(|path| path.bytes).sum(),
        queued: tx.queue.len() as u64,
        shed: tx.totals.shed,
        resent: tx.totals.resent,
        duplicates: rx.duplicates,
        replay_rejected: rx.too_old,
        wants_rekey: tx.key.as_ref().is_some_and(SealingKey::wants_rekey),
    }
}
