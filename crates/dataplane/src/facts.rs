//! Facts for the control plane: a bounded ring and an eventfd that is readable while the ring holds something.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};

use parking_lot::Mutex;

use crate::sys;

/// Facts kept for the control plane: a second of a reattach storm at 4,000 requests.
pub const CAPACITY: usize = 4096;

/// Something that happened, in the order it happened. Times in nanoseconds.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    HandshakeRequest {
        handshake: u64,
        socket: u64,
        peer: SocketAddr,
        device: [u8; 32],
        timestamp_ns: u64,
        version: u16,
        capabilities: u32,
        credential: Vec<u8>,
    },
    HandshakeResponse {
        handshake: u64,
        session: u64,
        session_id: [u8; 16],
        welcome: Vec<u8>,
        peer: SocketAddr,
    },
    HandshakeFailed {
        handshake: u64,
        reason: &'static str,
    },
    EpochConfirmed {
        session: u64,
        epoch: u64,
        path: u8,
        peer: SocketAddr,
    },
    ReattachRequest(Box<ReattachRequest>),
    ReattachReply {
        session: u64,
        nonce: [u8; 8],
        status: u8,
        epoch: u64,
        version: u64,
        reason: u16,
        path: u8,
        token: Vec<u8>,
    },
    PathValidated {
        session: u64,
        path: u8,
        peer: SocketAddr,
        rtt_ns: u64,
    },
    PathMeasured {
        session: u64,
        path: u8,
        srtt_ns: u64,
        rttvar_ns: u64,
        loss_up_ppm: u32,
        loss_down_ppm: u32,
        received: u64,
    },
    PathSilent {
        session: u64,
        path: u8,
        silent_ns: u64,
        limit_ns: u64,
    },
    PathDead {
        session: u64,
        path: u8,
        silent_ns: u64,
    },
    PathHeard {
        session: u64,
        path: u8,
    },
    StandbyAnswered {
        session: u64,
        path: u8,
        peer: SocketAddr,
        rtt_ns: u64,
        is_draining: bool,
    },
    PeerMoved {
        session: u64,
        path: u8,
        old: SocketAddr,
        new: SocketAddr,
    },
    Hinted {
        session: u64,
        path: u8,
        cause: u8,
    },
    SocketError {
        socket: u64,
        errno: i32,
        session: u64,
        path: i16,
    },
    Control {
        session: u64,
        path: u8,
        kind: u8,
        payload: Vec<u8>,
    },
    RekeyRequest {
        request: u64,
        session: u64,
        epoch: u64,
    },
    RekeyReply {
        session: u64,
        epoch: u64,
    },
    PlaneFailed {
        text: &'static str,
    },
}

/// A reattach that waits for its decision; `session` is 0 when the ticket names one that is not here.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReattachRequest {
    pub request: u64,
    pub session: u64,
    pub session_id: [u8; 16],
    pub socket: u64,
    pub peer: SocketAddr,
    pub proof: bool,
    pub nonce: [u8; 8],
    pub next_epoch: u64,
    pub expected_version: u64,
    pub age_ms: u64,
    pub path: u8,
    pub cause: u8,
    pub token_ok: bool,
    pub fresh_nonce: bool,
}

/// The ring. Writers never wait for the reader.
#[derive(Debug)]
pub struct FactRing {
    ring: Mutex<VecDeque<Fact>>,
    event: File,
}

impl FactRing {
    /// An empty ring; fails when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { ring: Mutex::new(VecDeque::new()), event: File::from(sys::eventfd()?) })
    }

    /// Appends `fact`; false when the ring is full and the fact is lost.
    #[must_use]
    pub fn push(&self, fact: Fact) -> bool {
        let mut ring = self.ring.lock();
        if ring.len() >= CAPACITY {
            return false;
        }
        ring.push_back(fact);
        if ring.len() == 1 {
            // An eventfd refuses only beyond 2^64 - 2 unread signals.
            let _ = (&self.event).write(&1u64.to_ne_bytes());
        }
        true
    }

    /// True when the next fact would be lost: what can be sent again by the peer is better refused before it changes anything.
    pub fn is_full(&self) -> bool {
        self.ring.lock().len() >= CAPACITY
    }

    /// Takes up to `max` facts, oldest first; the descriptor stays readable while more wait.
    pub fn drain(&self, max: usize) -> Vec<Fact> {
        let mut ring = self.ring.lock();
        let count = max.min(ring.len());
        let facts = ring.drain(..count).collect();
        if ring.is_empty() {
            ring.shrink_to(64);
            let _ = (&self.event).read(&mut [0; 8]);
        }
        facts
    }

    /// Descriptor to wait on for readability.
    pub fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_ring_refuses_and_order_is_kept() {
        let ring = FactRing::new().unwrap();
        for session in 0..CAPACITY as u64 {
            assert!(ring.push(Fact::PathHeard { session, path: 0 }));
        }
        assert!(!ring.push(Fact::PathHeard { session: 0, path: 1 }));
        let first = ring.drain(10);
        assert_eq!(first.len(), 10);
        assert_eq!(first[9], Fact::PathHeard { session: 9, path: 0 });
        assert_eq!(ring.drain(usize::MAX).len(), CAPACITY - 10);
        assert!(ring.drain(1).is_empty());
    }
}
