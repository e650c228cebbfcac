//! The sealed payloads of both handshake messages. spec: WIRE-20, WIRE-23

use crate::aead::AeadId;
use crate::bytes::Reader;
use crate::reattach::{StandbyKey, Ticket, TICKET_LEN};
use crate::{DropReason, SessionId, PROTOCOL_VERSION};

use super::HandshakeMisuse;

/// Bytes of a credential: an enrolment secret or a signed statement, not a certificate chain.
pub const MAX_CREDENTIAL: usize = 256;
/// Bytes of a welcome: keeps the response within three datagrams and three times the request.
pub const MAX_WELCOME: usize = 1500;
/// Tickets in a response: one for each path that an epoch can have.
pub const MAX_TICKETS: usize = 8;

/// What a side can do; unknown bits are ignored, so that later versions may add some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capabilities(pub u32);

impl Capabilities {
    /// AES instructions: AES-256-GCM is fast and runs in constant time.
    pub const AES: Capabilities = Capabilities(1);

    pub const fn has_aes(self) -> bool {
        self.0 & Self::AES.0 != 0
    }

    /// The algorithm of a session, by a rule that leaves nothing to choose. spec: WIRE-24
    pub const fn aead_with(self, other: Capabilities) -> AeadId {
        if self.has_aes() && other.has_aes() {
            AeadId::Aes256Gcm
        } else {
            AeadId::ChaCha20Poly1305
        }
    }
}

/// What a device shows beside its key; never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(pub Vec<u8>);

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential({} bytes, redacted)", self.0.len())
    }
}

/// Payload of message 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitPayload {
    /// Rises with each handshake of the device; replays are refused by it.
    pub timestamp_ns: u64,
    pub capabilities: Capabilities,
    /// SHA-256 of the encapsulation key that travels beside the Noise message.
    pub ek_hash: [u8; 32],
    pub credential: Credential,
}

impl InitPayload {
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, HandshakeMisuse> {
        let credential = &self.credential.0;
        if credential.len() > MAX_CREDENTIAL {
            return Err(HandshakeMisuse::CredentialTooLong);
        }
        let mut out = PROTOCOL_VERSION.to_be_bytes().to_vec();
        out.extend_from_slice(&self.timestamp_ns.to_be_bytes());
        out.extend_from_slice(&self.capabilities.0.to_be_bytes());
        out.extend_from_slice(&self.ek_hash);
        out.extend_from_slice(&(credential.len() as u16).to_be_bytes());
        out.extend_from_slice(credential);
        Ok(out)
    }

    /// Parses an authenticated payload; another version is refused before anything else is read.
    pub fn parse(payload: &[u8]) -> Result<Self, DropReason> {
        let mut reader = Reader::new(payload);
        if reader.u16()? != PROTOCOL_VERSION {
            return Err(DropReason::UnsupportedVersion);
        }
        let (timestamp_ns, capabilities, ek_hash) = (reader.u64()?, Capabilities(reader.u32()?), reader.array()?);
        let len = usize::from(reader.u16()?);
        if len > MAX_CREDENTIAL {
            return Err(DropReason::Oversized);
        }
        let credential = Credential(reader.take(len)?.to_vec());
        reader.finish()?;
        Ok(Self { timestamp_ns, capabilities, ek_hash, credential })
    }
}

/// Payload of message 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponsePayload {
    pub session_id: SessionId,
    pub aead: AeadId,
    pub tickets: Vec<Ticket>,
    /// Key of probes to other gateways of the cluster.
    pub standby: StandbyKey,
    pub welcome: Vec<u8>,
}

impl ResponsePayload {
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, HandshakeMisuse> {
        if self.welcome.len() > MAX_WELCOME {
            return Err(HandshakeMisuse::WelcomeTooLong);
        }
        if self.tickets.len() > MAX_TICKETS {
            return Err(HandshakeMisuse::TooManyTickets);
        }
        let mut out = self.session_id.to_vec();
        out.extend_from_slice(&[self.aead as u8, self.tickets.len() as u8]);
        self.tickets.iter().for_each(|ticket| out.extend_from_slice(ticket.as_bytes()));
        out.extend_from_slice(self.standby.expose());
        out.extend_from_slice(&self.welcome);
        Ok(out)
    }

    /// Parses an authenticated payload.
    pub fn parse(payload: &[u8]) -> Result<Self, DropReason> {
        let mut reader = Reader::new(payload);
        let (session_id, aead, count) = (reader.array()?, AeadId::parse(reader.u8()?)?, usize::from(reader.u8()?));
        if count > MAX_TICKETS {
            return Err(DropReason::Malformed);
        }
        let tickets = reader.take(count * TICKET_LEN)?.chunks_exact(TICKET_LEN);
        let tickets = tickets.map(Ticket::parse).collect::<Result<_, _>>()?;
        let standby = StandbyKey::new(reader.array()?);
        let welcome = reader.rest().to_vec();
        if welcome.len() > MAX_WELCOME {
            return Err(DropReason::Oversized);
        }
        Ok(Self { session_id, aead, tickets, standby, welcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    prop_compose! {
        fn init()(timestamp_ns: u64, bits: u32, ek_hash: [u8; 32], credential in vec(any::<u8>(), 0..=MAX_CREDENTIAL))
            -> InitPayload {
            InitPayload { timestamp_ns, capabilities: Capabilities(bits), ek_hash, credential: Credential(credential) }
        }
    }

    proptest! {
        #[test]
        fn init_round_trips_and_no_prefix_parses(payload in init(), cut: proptest::sample::Index) {
            let bytes = payload.to_bytes().unwrap();
            prop_assert_eq!(InitPayload::parse(&bytes), Ok(payload));
            prop_assert_eq!(InitPayload::parse(&bytes[..cut.index(bytes.len())]), Err(DropReason::Truncated));
        }

        #[test]
        fn response_round_trips(session_id: [u8; 16], count in 0usize..=MAX_TICKETS, standby: [u8; 32],
                                welcome in vec(any::<u8>(), 0..=MAX_WELCOME)) {
            let tickets = vec![Ticket::parse(&[3; TICKET_LEN]).unwrap(); count];
            let standby = StandbyKey::new(standby);
            let payload = ResponsePayload { session_id, aead: AeadId::Aes256Gcm, tickets, standby, welcome };
            prop_assert_eq!(ResponsePayload::parse(&payload.to_bytes().unwrap()), Ok(payload));
        }

        #[test]
        fn parsers_never_panic(bytes in vec(any::<u8>(), 0..700)) {
            let _ = (InitPayload::parse(&bytes), ResponsePayload::parse(&bytes));
        }
    }

    #[test]
    fn other_versions_are_refused() {
        assert_eq!(InitPayload::parse(&[0, 2]), Err(DropReason::UnsupportedVersion));
    }

    #[test]
    fn aes_only_if_both_have_it() {
        let (with, without) = (Capabilities(0xffff_ffff), Capabilities(0xffff_fffe));
        assert_eq!(with.aead_with(Capabilities::AES), AeadId::Aes256Gcm);
        for (a, b) in [(with, without), (without, with), (without, without)] {
            assert_eq!(a.aead_with(b), AeadId::ChaCha20Poly1305);
        }
    }

    #[test]
    fn debug_shows_no_credential() {
        assert_eq!(format!("{:?}", Credential(vec![1, 2])), "Credential(2 bytes, redacted)");
    }
}
