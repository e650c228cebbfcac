//! BIRTH: Noise IKpsk2 with an ML-KEM-768 secret as the psk, in fragments of at most 1200 bytes. spec: WIRE-10 to WIRE-26

mod cookie;
mod fragment;
mod initiator;
mod message;
mod noise;
mod responder;

pub use cookie::{cookie_for, verify_mac1, verify_mac2, Cookie, CookieReply, MacKey};
pub use fragment::{cut, Assemblies, Fragment, FragmentLimits, MAX_DATAGRAM, MAX_FRAGMENTS, MAX_PAYLOAD};
pub use initiator::{Initiator, InitiatorConfig};
pub use message::{Capabilities, Credential, InitPayload, ResponsePayload, MAX_CREDENTIAL, MAX_TICKETS, MAX_WELCOME};
pub use responder::{Accepted, ReceivedInit, RespondError};

use crate::aead::AeadId;
use crate::reattach::{StandbyKey, Ticket};
use crate::schedule::{EpochNonce, Root, TrafficSecret};
use crate::SessionId;

/// Names one handshake on the wire; random.
pub type HandshakeId = [u8; 8];

/// The epoch that BIRTH opens.
pub const FIRST_EPOCH: u64 = 1;

/// What both sides hold after BIRTH.
#[derive(Clone, Debug)]
pub struct Established {
    pub session_id: SessionId,
    pub aead: AeadId,
    pub root: Root,
    /// The handshake hash; stands for both nonces of the first epoch.
    pub hash: EpochNonce,
    pub tickets: Vec<Ticket>,
    /// Key of probes to other gateways of the cluster.
    pub standby: StandbyKey,
    /// Opaque to this crate: tunnel addresses, routes, policy.
    pub welcome: Vec<u8>,
}

impl Established {
    pub fn up(&self) -> TrafficSecret {
        self.root.up(FIRST_EPOCH, &self.hash)
    }

    pub fn down(&self) -> TrafficSecret {
        self.root.down(FIRST_EPOCH, &self.hash, &self.hash)
    }
}

/// Our own use of the handshake was wrong; nothing came from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeMisuse {
    CredentialTooLong,
    WelcomeTooLong,
    TooManyTickets,
    /// The peer's static key is not a usable public key.
    BadPeerKey,
}

impl std::fmt::Display for HandshakeMisuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CredentialTooLong => "the credential is longer than 256 bytes",
            Self::WelcomeTooLong => "the welcome is longer than 1500 bytes",
            Self::TooManyTickets => "more than eight tickets",
            Self::BadPeerKey => "the peer's key is not a usable public key",
        })
    }
}

impl std::error::Error for HandshakeMisuse {}
