//! The packet path of Jumping VPN on Linux: TUN with offload, UDP with segmentation, sessions, liveness.
//!
//! Threads: `egress` (TUN to UDP), `ingress` (UDP to TUN), `timer` (probes, reports, silence), and at a gateway `births`
//! (handshakes). They are plain threads; the control plane gives orders through [`Plane`] and hears of
//! everything through facts. No decision of policy is made here.

#![deny(unsafe_code)]

pub mod address;
pub mod attempt;
mod births;
mod bucket;
mod checksum;
mod coalesce;
pub mod counters;
mod decisions;
mod egress;
pub mod error;
pub mod facts;
mod ingress;
mod inner;
pub mod liveness;
#[cfg(test)]
mod offload_tests;
pub mod orders;
mod path;
mod plane;
mod queue;
mod rekey;
mod replay_buffer;
mod requests;
mod rx;
mod session;
mod shared;
mod split;
mod standby;
pub mod stats;
mod sys;
mod tickets;
mod timer;
mod train;
mod tun;
mod tx;
mod udp;

pub use plane::{Config, Plane};
pub use shared::Settings;
pub use sys::boottime_ns;
