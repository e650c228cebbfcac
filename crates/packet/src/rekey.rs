//! Fresh X25519 and ML-KEM-768 keys inside a session; the root moves on. spec: WIRE-60 to WIRE-63
//!
//! Both messages travel as control messages of the epoch that they replace, so they are already authenticated.

use crate::bytes::{exact_len, Reader};
use crate::kem::{Encapsulation, KemKeyPair, CT_LEN, EK_LEN};
use crate::keys::{generate_private_key, public_key, shared_secret, PublicKey};
use crate::schedule::{sha256, EpochNonce, Root, Secret, TrafficSecret};
use crate::{DropReason, Random};

/// `epoch u64 | client x25519 32 | ek 1184`
pub const REQUEST_LEN: usize = 8 + 32 + EK_LEN;
/// `epoch u64 | gateway x25519 32 | ct 1088`
pub const REPLY_LEN: usize = 8 + 32 + CT_LEN;

/// What both sides hold after a rekey.
#[derive(Clone, Debug)]
pub struct Rekeyed {
    pub root: Root,
    /// The epoch that the exchange opens.
    pub epoch: u64,
    /// Stands for both nonces of that epoch.
    pub transcript: EpochNonce,
}

impl Rekeyed {
    pub fn up(&self) -> TrafficSecret {
        self.root.up(self.epoch, &self.transcript)
    }

    pub fn down(&self) -> TrafficSecret {
        self.root.down(self.epoch, &self.transcript, &self.transcript)
    }
}

/// The client's half, kept until the reply comes.
#[derive(Debug)]
pub struct RekeyInitiator {
    epoch: u64,
    private: Secret,
    kem: KemKeyPair,
    request: Vec<u8>,
}

impl RekeyInitiator {
    /// Begins the exchange that opens `epoch`.
    pub fn new(epoch: u64, kem: KemKeyPair, rng: &mut dyn Random) -> Self {
        let private = generate_private_key(rng);
        let request = [&epoch.to_be_bytes()[..], &public_key(&private), kem.encapsulation_key()].concat();
        Self { epoch, private, kem, request }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Content of the control message; the same bytes for every repetition.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Ends the exchange over `root`, the root of the epoch that carried it. A failure changes nothing.
    pub fn finish(&self, reply: &[u8], root: &Root) -> Result<Rekeyed, DropReason> {
        exact_len(reply, REPLY_LEN)?;
        let mut reader = Reader::new(reply);
        if reader.u64()? != self.epoch {
            return Err(DropReason::BadRekey);
        }
        let gateway: PublicKey = reader.array()?;
        let ct = reader.rest();
        let agreed = shared_secret(&self.private, &gateway)?;
        let decapsulated = self.kem.decapsulate(ct).map_err(|_| DropReason::BadRekey)?;
        let transcript = sha256(&[&self.request[8..], &gateway, ct]);
        Ok(ratchet(root, self.epoch, &agreed, &decapsulated, transcript))
    }
}

/// The epoch that a request wants to open, before any work is done for it.
pub fn requested_epoch(request: &[u8]) -> Result<u64, DropReason> {
    exact_len(request, REQUEST_LEN)?;
    Reader::new(request).u64()
}

/// The gateway's half: returns the reply's content and what it leads to.
pub fn respond(request: &[u8], root: &Root, rng: &mut dyn Random) -> Result<(Vec<u8>, Rekeyed), DropReason> {
    exact_len(request, REQUEST_LEN)?;
    let encapsulation = Encapsulation::to(&request[40..]).map_err(|_| DropReason::BadRekey)?;
    respond_with(request, root, encapsulation, rng)
}

/// [`respond`] with an encapsulation made before.
pub fn respond_with(
    request: &[u8],
    root: &Root,
    encapsulation: Encapsulation,
    rng: &mut dyn Random,
) -> Result<(Vec<u8>, Rekeyed), DropReason> {
    let epoch = requested_epoch(request)?;
    let client: &PublicKey = request[8..].first_chunk().ok_or(DropReason::Truncated)?;
    let private = generate_private_key(rng);
    let agreed = shared_secret(&private, client)?;
    let public = public_key(&private);
    let transcript = sha256(&[&request[8..], &public, &encapsulation.ct]);
    let reply = [&epoch.to_be_bytes()[..], &public, &encapsulation.ct].concat();
    Ok((reply, ratchet(root, epoch, &agreed, &encapsulation.secret, transcript)))
}

fn ratchet(root: &Root, epoch: u64, agreed: &Secret, decapsulated: &Secret, transcript: EpochNonce) -> Rekeyed {
    Rekeyed { root: root.ratchet(agreed.expose(), decapsulated.expose(), &transcript), epoch, transcript }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemRandom;

    fn root() -> Root {
        Root::new(Secret::new([5; 32]))
    }

    fn exchange() -> (RekeyInitiator, Vec<u8>, Rekeyed) {
        let client = RekeyInitiator::new(7, KemKeyPair::generate(), &mut SystemRandom);
        let (reply, gateway) = respond(client.request(), &root(), &mut SystemRandom).unwrap();
        (client, reply, gateway)
    }

    #[test]
    fn both_sides_reach_the_same_root() {
        let (client, reply, gateway) = exchange();
        let mine = client.finish(&reply, &root()).unwrap();
        assert_eq!(mine.root.secret().expose(), gateway.root.secret().expose());
        assert_eq!((mine.epoch, mine.transcript), (7, gateway.transcript));
        assert_eq!(mine.up().cids(), gateway.up().cids());
        assert_ne!(mine.up().cids(), gateway.down().cids());
    }

    #[test]
    fn the_new_root_depends_on_the_old_one() {
        let (client, reply, gateway) = exchange();
        let mine = client.finish(&reply, &Root::new(Secret::new([6; 32]))).unwrap();
        assert_ne!(mine.root.secret().expose(), gateway.root.secret().expose());
    }

    #[test]
    fn other_epoch_size_or_content_never_agrees() {
        let (client, reply, gateway) = exchange();
        for len in [0, 7, 8, 39, 40, REPLY_LEN - 1] {
            assert_eq!(client.finish(&reply[..len], &root()).err(), Some(DropReason::Truncated));
        }
        for at in [0, 7, 8, 20, 40, 500, REPLY_LEN - 1] {
            let mut changed = reply.clone();
            changed[at] ^= 1;
            if let Ok(mine) = client.finish(&changed, &root()) {
                assert_ne!(mine.root.secret().expose(), gateway.root.secret().expose());
            }
        }
        let small_order = [&client.request()[..8], &[0; 32], &client.request()[40..]].concat();
        assert_eq!(respond(&small_order, &root(), &mut SystemRandom).err(), Some(DropReason::BadRekey));
        assert_eq!(respond(&[0; 3], &root(), &mut SystemRandom).err(), Some(DropReason::Truncated));
    }
}
