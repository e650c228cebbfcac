//! Jumping VPN on the wire: handshake, key schedule, sealed datagrams.
//!
//! Pure: no sockets, no clock, no threads. Time and randomness are arguments, except for ML-KEM-768, whose library draws its own.
//! `spec/wire-format.md` is normative; `WIRE-n` names one of its requirements.

#![forbid(unsafe_code)]

pub mod aead;
pub mod control;
pub mod frames;
pub mod handshake;
pub mod header;
pub mod kem;
pub mod keys;
pub mod random;
pub mod reason;
pub mod reattach;
pub mod record;
pub mod rekey;
pub mod replay;
pub mod schedule;
pub mod seal;

mod bytes;

pub use header::{Cid, PathIndex};
pub use random::{Random, SystemRandom};
pub use reason::DropReason;

/// The version in the first handshake payload; the only one this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// 128 random bits; never reused after the session ended.
pub type SessionId = [u8; 16];
