//! Noise_IKpsk2_25519_ChaChaPoly_SHA256 by `snow`, with its randomness handed in.

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash};
use snow::{Builder, HandshakeState};
use zeroize::Zeroize;

use crate::keys::PublicKey;
use crate::schedule::{expand, extract, sha256, Root, Secret};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"jumpvpn v1";
const PSK_POSITION: usize = 2;
/// What Noise adds to the payload of message 1: ephemeral key, sealed static key, tag.
pub(super) const INIT_OVERHEAD: usize = 32 + 48 + 16;
/// What Noise adds to the payload of message 2: ephemeral key, tag.
pub(super) const RESPONSE_OVERHEAD: usize = 32 + 16;

/// Gives `snow` the ephemeral private key instead of a generator.
struct FixedRandom([u8; 32]);

impl snow::types::Random for FixedRandom {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.get(..out.len()).ok_or(snow::Error::Rng)?;
        out.copy_from_slice(bytes);
        self.0.zeroize();
        Ok(())
    }
}

impl Drop for FixedRandom {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

struct Resolver(Secret);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn snow::types::Random>> {
        Some(Box::new(FixedRandom(*self.0.expose())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// One side's handshake state.
pub(super) struct Noise(HandshakeState);

impl Noise {
    /// The client's side; `ephemeral` is used once and must be fresh.
    pub(super) fn initiator(private: &Secret, ephemeral: Secret, gateway: &PublicKey) -> Result<Self, snow::Error> {
        let builder = builder(ephemeral).local_private_key(private.expose())?.remote_public_key(gateway)?;
        builder.prologue(PROLOGUE)?.build_initiator().map(Noise)
    }

    /// The gateway's side; `ephemeral` as above.
    pub(super) fn responder(private: &Secret, ephemeral: Secret) -> Result<Self, snow::Error> {
        let builder = builder(ephemeral).local_private_key(private.expose())?;
        builder.prologue(PROLOGUE)?.build_responder().map(Noise)
    }

    pub(super) fn write(&mut self, payload: &[u8], overhead: usize) -> Result<Vec<u8>, snow::Error> {
        let mut out = vec![0; payload.len() + overhead];
        let len = self.0.write_message(payload, &mut out)?;
        out.truncate(len);
        Ok(out)
    }

    /// A failed read leaves the state as it was.
    pub(super) fn read(&mut self, message: &[u8]) -> Result<Vec<u8>, snow::Error> {
        let mut out = vec![0; message.len()];
        let len = self.0.read_message(message, &mut out)?;
        out.truncate(len);
        Ok(out)
    }

    pub(super) fn set_psk(&mut self, psk: &Secret) -> Result<(), snow::Error> {
        self.0.set_psk(PSK_POSITION, psk.expose())
    }

    /// The peer's static key, known after message 1.
    pub(super) fn peer(&self) -> Option<PublicKey> {
        self.0.get_remote_static()?.try_into().ok()
    }

    /// Handshake hash and root after message 2. spec: WIRE-31
    pub(super) fn finish(&mut self) -> ([u8; 32], Root) {
        let hash = self.0.get_handshake_hash().try_into().expect("SHA-256 gives 32 bytes");
        let (split_1, split_2) = self.0.dangerously_get_raw_split();
        (hash, Root::from_handshake(&hash, &Secret::new(split_1), &Secret::new(split_2)))
    }
}

fn builder<'a>(ephemeral: Secret) -> Builder<'a> {
    Builder::with_resolver(PATTERN.parse().expect("a pattern of snow"), Box::new(Resolver(ephemeral)))
}

/// The psk of message 2: the KEM secret bound to key and ciphertext, which travel outside Noise. spec: WIRE-22
pub(super) fn kem_psk(kem_secret: &Secret, ek: &[u8], ct: &[u8]) -> Secret {
    let psk = extract(&[], &[kem_secret.expose()]);
    Secret::new(expand(&psk, "kem psk", &[&sha256(&[ek, ct])]))
}
