//! Tickets: name a session to any gateway of the cluster and to nobody else. spec: WIRE-71, WIRE-72

use crate::aead::{append_sealed, open_sealed};
use crate::bytes::{exact_len, Reader};
use crate::random::draw;
use crate::schedule::{ClusterKey, Secret};
use crate::{DropReason, Random, SessionId};

const AAD: &[u8] = b"jumpvpn v1 ticket";

/// `nonce 12 | session id 16 | issued u64 | serial u64 | tag 16`
pub const TICKET_LEN: usize = 12 + 32 + 16;

/// A ticket as the client keeps it: opaque, shown once.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket([u8; TICKET_LEN]);

impl Ticket {
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        exact_len(bytes, TICKET_LEN)?;
        bytes.try_into().map(Ticket).map_err(|_| DropReason::Truncated)
    }

    pub fn as_bytes(&self) -> &[u8; TICKET_LEN] {
        &self.0
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(redacted)")
    }
}

/// What a ticket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketContents {
    pub session_id: SessionId,
    /// Wall clock at issue, ms.
    pub issued_ms: u64,
    /// Differs for each ticket of a session.
    pub serial: u64,
}

/// Seals and opens tickets. Random nonces: replace the key before 2^32 tickets.
#[derive(Debug)]
pub struct TicketKey(Secret);

impl TicketKey {
    /// The key of a cluster that rotates none.
    pub fn new(cluster: &ClusterKey) -> Self {
        Self(cluster.ticket())
    }

    /// A key of the cluster's own list; `key` is 32 uniformly random bytes.
    pub fn listed(key: Secret) -> Self {
        Self(key)
    }

    pub fn seal(&self, contents: &TicketContents, rng: &mut dyn Random) -> Ticket {
        let nonce: [u8; 12] = draw(rng);
        let plain =
            [&contents.session_id[..], &contents.issued_ms.to_be_bytes(), &contents.serial.to_be_bytes()].concat();
        let mut sealed = AAD.to_vec();
        append_sealed(self.0.expose(), nonce, &plain, &mut sealed);
        let mut ticket = [0; TICKET_LEN];
        ticket[..12].copy_from_slice(&nonce);
        ticket[12..].copy_from_slice(&sealed[AAD.len()..]);
        Ticket(ticket)
    }

    pub fn open(&self, ticket: &Ticket) -> Result<TicketContents, DropReason> {
        let (nonce, sealed) = ticket.0.split_first_chunk().ok_or(DropReason::Truncated)?;
        let plain = open_sealed(self.0.expose(), *nonce, AAD, sealed).map_err(|_| DropReason::BadTicket)?;
        let mut reader = Reader::new(&plain);
        Ok(TicketContents { session_id: reader.array()?, issued_ms: reader.u64()?, serial: reader.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemRandom;

    const CONTENTS: TicketContents = TicketContents { session_id: [4; 16], issued_ms: 5, serial: 6 };

    #[test]
    fn round_trips_and_two_never_look_alike() {
        let key = TicketKey::new(&ClusterKey::new([1; 32]));
        let ticket = key.seal(&CONTENTS, &mut SystemRandom);
        assert_eq!(key.open(&ticket), Ok(CONTENTS));
        assert_ne!(key.seal(&CONTENTS, &mut SystemRandom), ticket);
    }

    #[test]
    fn other_keys_bits_and_lengths_are_refused() {
        let key = TicketKey::new(&ClusterKey::new([1; 32]));
        let ticket = key.seal(&CONTENTS, &mut SystemRandom);
        assert_eq!(TicketKey::new(&ClusterKey::new([2; 32])).open(&ticket), Err(DropReason::BadTicket));
        for at in 0..TICKET_LEN {
            let mut bytes = *ticket.as_bytes();
            bytes[at] ^= 0x80;
            assert_eq!(key.open(&Ticket(bytes)), Err(DropReason::BadTicket));
            assert_eq!(Ticket::parse(&bytes[..at]), Err(DropReason::Truncated));
        }
    }
}
