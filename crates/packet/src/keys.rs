//! Static X25519 keys of devices and gateways, and the agreement of a rekey.

use aws_lc_rs::agreement::{agree, PrivateKey, UnparsedPublicKey, X25519};

use crate::random::draw;
use crate::schedule::{sha256, Secret};
use crate::{DropReason, Random};

/// An X25519 public key.
pub type PublicKey = [u8; 32];

/// Names a gateway inside sealed messages: the first 8 bytes of SHA-256 of its public key. spec: WIRE-82
pub type GatewayId = [u8; 8];

/// The name of the gateway with this static key.
pub fn gateway_id(public: &PublicKey) -> GatewayId {
    *sha256(&[public]).first_chunk().expect("SHA-256 gives 32 bytes")
}

/// Makes a private key.
pub fn generate_private_key(rng: &mut dyn Random) -> Secret {
    Secret::new(draw(rng))
}

/// The public key of a private key. RFC 7748 §6.1
pub fn public_key(private: &Secret) -> PublicKey {
    let public = load(private).compute_public_key().expect("every 32 bytes are a private key");
    public.as_ref().try_into().expect("public keys are 32 bytes")
}

/// The shared secret; refuses a peer key of small order, whose result is all zero.
pub(crate) fn shared_secret(private: &Secret, peer: &PublicKey) -> Result<Secret, DropReason> {
    let peer = UnparsedPublicKey::new(&X25519, peer);
    agree(&load(private), peer, DropReason::BadRekey, |bytes| {
        Ok(Secret::new(bytes.try_into().expect("X25519 gives 32 bytes")))
    })
}

fn load(private: &Secret) -> PrivateKey {
    PrivateKey::from_private_key(&X25519, private.expose()).expect("every 32 bytes are a private key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemRandom;

    #[test]
    fn both_sides_agree() {
        let (a, b) = (generate_private_key(&mut SystemRandom), generate_private_key(&mut SystemRandom));
        let left = shared_secret(&a, &public_key(&b)).unwrap();
        assert_eq!(left.expose(), shared_secret(&b, &public_key(&a)).unwrap().expose());
    }

    #[test]
    fn small_order_keys_are_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        for peer in [[0; 32], one] {
            assert_eq!(shared_secret(&Secret::new([7; 32]), &peer).err(), Some(DropReason::BadRekey));
        }
    }
}
