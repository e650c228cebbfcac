//! The gateway's side of BIRTH.

use crate::aead::AeadId;
use crate::header::Kind;
use crate::kem::{Encapsulation, EK_LEN};
use crate::keys::PublicKey;
use crate::random::draw;
use crate::reattach::{StandbyKey, Ticket};
use crate::schedule::{equal, sha256, Secret};
use crate::{DropReason, Random, SessionId};

use super::cookie::MacKey;
use super::fragment::cut;
use super::message::{Capabilities, Credential, InitPayload, ResponsePayload};
use super::noise::{kem_psk, Noise, INIT_OVERHEAD, RESPONSE_OVERHEAD};
use super::{Established, HandshakeId, HandshakeMisuse};

/// An authenticated message 1, waiting for a decision.
pub struct ReceivedInit {
    noise: Noise,
    id: HandshakeId,
    ek: Vec<u8>,
    pub device_key: PublicKey,
    pub timestamp_ns: u64,
    pub capabilities: Capabilities,
    pub credential: Credential,
}

/// What the gateway decided to give.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub session_id: SessionId,
    /// The gateway's own capabilities; with the device's they select the algorithm.
    pub capabilities: Capabilities,
    pub tickets: Vec<Ticket>,
    /// Key of probes to other gateways of the cluster.
    pub standby: StandbyKey,
    pub welcome: Vec<u8>,
}

impl ReceivedInit {
    /// Reads a whole message 1. `rng` gives the ephemeral key of the answer.
    pub fn read(
        private_key: &Secret,
        id: HandshakeId,
        message: &[u8],
        rng: &mut dyn Random,
    ) -> Result<Self, DropReason> {
        if message.len() < INIT_OVERHEAD + EK_LEN {
            return Err(DropReason::Truncated);
        }
        let (noise_message, ek) = message.split_at(message.len() - EK_LEN);
        let noise = Noise::responder(private_key, Secret::new(draw(rng)));
        let mut noise = noise.map_err(|_| DropReason::BadHandshake)?;
        let payload = noise.read(noise_message).map_err(|_| DropReason::BadHandshake)?;
        let payload = InitPayload::parse(&payload)?;
        if !equal(&sha256(&[ek]), &payload.ek_hash) {
            return Err(DropReason::BadHandshake);
        }
        let device_key = noise.peer().ok_or(DropReason::BadHandshake)?;
        let InitPayload { timestamp_ns, capabilities, credential, .. } = payload;
        Ok(Self { noise, id, ek: ek.to_vec(), device_key, timestamp_ns, capabilities, credential })
    }

    /// Names the handshake on the wire.
    pub fn id(&self) -> &HandshakeId {
        &self.id
    }

    /// Makes message 2: the session, and the datagrams to send once it is recorded.
    pub fn respond(self, accepted: Accepted) -> Result<(Established, Vec<Vec<u8>>), RespondError> {
        let encapsulation = Encapsulation::to(&self.ek).map_err(RespondError::Peer)?;
        self.respond_with(accepted, encapsulation)
    }

    /// [`Self::respond`] with an encapsulation made before.
    pub fn respond_with(
        mut self,
        accepted: Accepted,
        encapsulation: Encapsulation,
    ) -> Result<(Established, Vec<Vec<u8>>), RespondError> {
        let aead: AeadId = self.capabilities.aead_with(accepted.capabilities);
        let Accepted { session_id, tickets, standby, welcome, .. } = accepted;
        let payload = ResponsePayload { session_id, aead, tickets, standby, welcome };
        let bytes = payload.to_bytes().map_err(RespondError::Misuse)?;
        let psk = kem_psk(&encapsulation.secret, &self.ek, &encapsulation.ct);
        self.noise.set_psk(&psk).map_err(|_| RespondError::Peer(DropReason::BadHandshake))?;
        let sealed = self.noise.write(&bytes, RESPONSE_OVERHEAD);
        let sealed = sealed.map_err(|_| RespondError::Peer(DropReason::BadHandshake))?;
        let message = [&encapsulation.ct[..], &sealed].concat();
        let key = MacKey::of(&self.device_key);
        let datagrams = cut(Kind::HandshakeResponse, &self.id, &message, &key, None);
        let datagrams = datagrams.expect("the payload's bounds keep message 2 within three datagrams");
        let (hash, root) = self.noise.finish();
        let ResponsePayload { session_id, aead, tickets, standby, welcome } = payload;
        Ok((Established { session_id, aead, root, hash, tickets, standby, welcome }, datagrams))
    }
}

/// Why no answer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RespondError {
    /// The device's message cannot be answered.
    Peer(DropReason),
    /// Our own decision breaks a bound.
    Misuse(HandshakeMisuse),
}

impl std::fmt::Debug for ReceivedInit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReceivedInit(id: {:02x?}, timestamp_ns: {}, redacted)", self.id, self.timestamp_ns)
    }
}
