//! The client's side of BIRTH.

use crate::header::Kind;
use crate::kem::{KemKeyPair, CT_LEN};
use crate::keys::{public_key, PublicKey};
use crate::random::draw;
use crate::schedule::{sha256, Secret};
use crate::{DropReason, Random};

use super::cookie::{verify_mac1, Cookie, CookieReply, MacKey};
use super::fragment::{cut, Assemblies, Fragment, FragmentLimits, MAX_FRAGMENTS};
use super::message::{Capabilities, Credential, InitPayload, ResponsePayload};
use super::noise::{kem_psk, Noise, INIT_OVERHEAD, RESPONSE_OVERHEAD};
use super::{Established, HandshakeId, HandshakeMisuse};

/// What a client brings to a handshake.
#[derive(Clone, Debug)]
pub struct InitiatorConfig {
    pub private_key: Secret,
    pub gateway_key: PublicKey,
    /// Rises with each handshake of the device.
    pub timestamp_ns: u64,
    pub capabilities: Capabilities,
    pub credential: Credential,
}

/// A handshake under way: sends one message, accepts one answer, survives any number of forged ones.
pub struct Initiator {
    id: HandshakeId,
    noise: Noise,
    kem: KemKeyPair,
    gateway_key: PublicKey,
    capabilities: Capabilities,
    message: Vec<u8>,
    mac1s: Vec<[u8; 16]>,
    own_mac_key: MacKey,
    cookie: Option<Cookie>,
    fragments: Assemblies<()>,
}

impl Initiator {
    /// Makes message 1. `rng` gives the ephemeral key and the handshake identifier, in this order.
    pub fn new(config: &InitiatorConfig, kem: KemKeyPair, rng: &mut dyn Random) -> Result<Self, HandshakeMisuse> {
        let payload = InitPayload {
            timestamp_ns: config.timestamp_ns,
            capabilities: config.capabilities,
            ek_hash: sha256(&[kem.encapsulation_key()]),
            credential: config.credential.clone(),
        };
        let ephemeral = Secret::new(draw(rng));
        let noise = Noise::initiator(&config.private_key, ephemeral, &config.gateway_key);
        let mut noise = noise.map_err(|_| HandshakeMisuse::BadPeerKey)?;
        let mut message = noise.write(&payload.to_bytes()?, INIT_OVERHEAD).map_err(|_| HandshakeMisuse::BadPeerKey)?;
        message.extend_from_slice(kem.encapsulation_key());
        let limits = FragmentLimits { count: 1, ..FragmentLimits::default() };
        Ok(Self {
            id: draw(rng),
            noise,
            kem,
            gateway_key: config.gateway_key,
            capabilities: config.capabilities,
            message,
            mac1s: Vec::with_capacity(MAX_FRAGMENTS),
            own_mac_key: MacKey::of(&public_key(&config.private_key)),
            cookie: None,
            fragments: Assemblies::new(limits),
        })
    }

    pub fn id(&self) -> &HandshakeId {
        &self.id
    }

    /// The datagrams of message 1, for the first sending and each repetition; proves the address if a cookie came.
    pub fn datagrams(&mut self) -> Vec<Vec<u8>> {
        let key = MacKey::of(&self.gateway_key);
        let datagrams = cut(Kind::HandshakeInit, &self.id, &self.message, &key, self.cookie.as_ref());
        let datagrams = datagrams.expect("message 1 needs at most two datagrams");
        let mac1 = |datagram: &Vec<u8>| Fragment::parse(datagram).map(|fragment| fragment.mac1);
        self.mac1s = datagrams.iter().flat_map(mac1).collect();
        datagrams
    }

    /// Takes a cookie; afterwards [`Self::datagrams`] should be sent again at once.
    pub fn accept_cookie(&mut self, datagram: &[u8]) -> Result<(), DropReason> {
        let mut result = Err(DropReason::BadTag);
        for mac1 in &self.mac1s {
            result = CookieReply::open(&self.gateway_key, &self.id, mac1, datagram);
            if result.is_ok() {
                break;
            }
        }
        self.cookie = Some(result?);
        Ok(())
    }

    /// Takes a datagram of message 2; returns the session when it is whole. A forgery leaves the handshake as it was.
    pub fn accept(&mut self, datagram: &[u8], now_ns: u64) -> Result<Option<Established>, DropReason> {
        let fragment = Fragment::parse(datagram)?;
        if fragment.kind != Kind::HandshakeResponse {
            return Err(DropReason::UnknownKind);
        }
        if fragment.handshake_id != self.id {
            return Err(DropReason::UnknownHandshake);
        }
        verify_mac1(datagram, &fragment, &self.own_mac_key)?;
        let inserted = self.fragments.insert((), &fragment, now_ns);
        if inserted == Err(DropReason::BadFragment) {
            self.fragments = Assemblies::new(FragmentLimits { count: 1, ..FragmentLimits::default() });
        }
        inserted?.map(|message| self.read(&message)).transpose()
    }

    fn read(&mut self, message: &[u8]) -> Result<Established, DropReason> {
        if message.len() < CT_LEN + RESPONSE_OVERHEAD {
            return Err(DropReason::Truncated);
        }
        let (ct, noise_message) = message.split_at(CT_LEN);
        let secret = self.kem.decapsulate(ct).map_err(|_| DropReason::BadHandshake)?;
        let psk = kem_psk(&secret, self.kem.encapsulation_key(), ct);
        self.noise.set_psk(&psk).map_err(|_| DropReason::BadHandshake)?;
        let payload = self.noise.read(noise_message).map_err(|_| DropReason::BadHandshake)?;
        let payload = ResponsePayload::parse(&payload)?;
        self.established(payload)
    }

    /// Refuses an algorithm that our capabilities cannot have selected.
    fn established(&mut self, payload: ResponsePayload) -> Result<Established, DropReason> {
        let offered = [self.capabilities.aead_with(Capabilities::AES), self.capabilities.aead_with(Capabilities(0))];
        if !offered.contains(&payload.aead) {
            return Err(DropReason::BadHandshake);
        }
        let (hash, root) = self.noise.finish();
        let ResponsePayload { session_id, aead, tickets, standby, welcome } = payload;
        Ok(Established { session_id, aead, root, hash, tickets, standby, welcome })
    }
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Initiator(id: {:02x?}, redacted)", self.id)
    }
}
