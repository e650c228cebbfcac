//! Ticket keys of a gateway: the one of the cluster key, or a list that the cluster rotates. spec: WIRE-71, WIRE-72

use std::sync::Arc;

use jumpvpn_packet::reattach::{Ticket, TicketContents, TicketKey};
use jumpvpn_packet::schedule::{ClusterKey, Secret};
use jumpvpn_packet::{DropReason, SessionId, SystemRandom};
use parking_lot::RwLock;

use crate::error::{Error, Result};
use crate::sys;

/// Keys that open tickets: the present one and three before it, so that a forged ticket costs at most four openings.
pub const MAX_KEYS: usize = 4;

/// The first key seals, all open.
#[derive(Debug)]
pub struct TicketKeys(RwLock<Arc<[TicketKey]>>);

impl TicketKeys {
    /// The single key that grows from the cluster key; a client has none.
    pub fn new(cluster: Option<&ClusterKey>) -> Self {
        Self(RwLock::new(cluster.map(TicketKey::new).into_iter().collect()))
    }

    /// Replaces the keys: a ticket under none of `keys` is refused from now on.
    pub fn set(&self, keys: Vec<Secret>) -> Result<()> {
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(Error::Invalid(format!("1 to {MAX_KEYS} ticket keys are needed, not {}", keys.len())));
        }
        *self.0.write() = keys.into_iter().map(TicketKey::listed).collect();
        Ok(())
    }

    /// What `ticket` says, if one of the keys made it.
    pub fn open(&self, ticket: &Ticket) -> std::result::Result<TicketContents, DropReason> {
        let keys = Arc::clone(&self.0.read());
        keys.iter().find_map(|key| key.open(ticket).ok()).ok_or(DropReason::BadTicket)
    }

    /// `count` fresh tickets of a session, numbered from `serial`.
    pub fn make(&self, session_id: &SessionId, serial: u64, count: usize) -> Vec<Ticket> {
        let keys = Arc::clone(&self.0.read());
        let Some(key) = keys.first() else { return Vec::new() };
        let contents = |index: usize| TicketContents {
            session_id: *session_id,
            issued_ms: sys::wall_ms(),
            serial: serial + index as u64,
        };
        (0..count).map(|index| key.seal(&contents(index), &mut SystemRandom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Secret> {
        bytes.iter().map(|byte| Secret::new([*byte; 32])).collect()
    }

    #[test]
    fn the_first_key_seals_and_all_of_the_list_open() {
        let table = TicketKeys::new(Some(&ClusterKey::new([9; 32])));
        let derived = table.make(&[5; 16], 0, 1).remove(0);
        assert_eq!(table.open(&derived).unwrap().session_id, [5; 16]);
        table.set(keys(&[1])).unwrap();
        assert_eq!(table.open(&derived), Err(DropReason::BadTicket));
        let first = table.make(&[5; 16], 7, 2).remove(1);
        table.set(keys(&[2, 1])).unwrap();
        assert_eq!(table.open(&first).unwrap().serial, 8);
        let second = table.make(&[5; 16], 0, 1).remove(0);
        table.set(keys(&[2])).unwrap();
        assert_eq!(table.open(&first), Err(DropReason::BadTicket));
        assert!(table.open(&second).is_ok());
    }

    #[test]
    fn the_list_is_bounded_and_never_empty() {
        let table = TicketKeys::new(None);
        assert!(table.make(&[5; 16], 0, 1).is_empty());
        assert!(table.set(keys(&[])).is_err());
        assert!(table.set(keys(&[1, 2, 3, 4, 5])).is_err());
        table.set(keys(&[1, 2, 3, 4])).unwrap();
    }
}
