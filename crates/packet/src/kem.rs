//! ML-KEM-768 (FIPS 203) by aws-lc-rs, which draws its own randomness.

use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};

use crate::schedule::Secret;
use crate::DropReason;

/// Bytes of an encapsulation key.
pub const EK_LEN: usize = 1184;
/// Bytes of a ciphertext.
pub const CT_LEN: usize = 1088;

/// A key pair for one exchange.
pub struct KemKeyPair {
    decapsulation: DecapsulationKey,
    encapsulation: Vec<u8>,
}

impl KemKeyPair {
    pub fn generate() -> Self {
        let decapsulation = DecapsulationKey::generate(&ML_KEM_768).expect("the system's random generator failed");
        let key = decapsulation.encapsulation_key().expect("a generated key has its public half");
        let encapsulation = key.key_bytes().expect("a public key has bytes").as_ref().to_vec();
        Self { decapsulation, encapsulation }
    }

    /// Rebuilds a pair from its expanded form (FIPS 203 `dk`, 2400 bytes) and its encapsulation key, as vectors carry it.
    pub fn from_bytes(dk: &[u8], ek: &[u8]) -> Result<Self, DropReason> {
        let decapsulation = DecapsulationKey::new(&ML_KEM_768, dk).map_err(|_| DropReason::Malformed)?;
        EncapsulationKey::new(&ML_KEM_768, ek).map_err(|_| DropReason::Malformed)?;
        Ok(Self { decapsulation, encapsulation: ek.to_vec() })
    }

    /// The encapsulation key, [`EK_LEN`] bytes.
    pub fn encapsulation_key(&self) -> &[u8] {
        &self.encapsulation
    }

    /// The shared secret of `ct`. A forged ciphertext gives a secret that nobody else knows (implicit rejection).
    pub fn decapsulate(&self, ct: &[u8]) -> Result<Secret, DropReason> {
        let secret = self.decapsulation.decapsulate(Ciphertext::from(ct)).map_err(|_| DropReason::Malformed)?;
        Ok(Secret::new(secret.as_ref().try_into().map_err(|_| DropReason::Malformed)?))
    }
}

impl std::fmt::Debug for KemKeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KemKeyPair(redacted)")
    }
}

/// A shared secret and the ciphertext that carries it.
#[derive(Debug)]
pub struct Encapsulation {
    /// [`CT_LEN`] bytes.
    pub ct: Vec<u8>,
    pub secret: Secret,
}

impl Encapsulation {
    /// Encapsulates to `ek`; refuses a key that fails the modulus check of FIPS 203 §7.2.
    pub fn to(ek: &[u8]) -> Result<Self, DropReason> {
        let key = EncapsulationKey::new(&ML_KEM_768, ek).map_err(|_| DropReason::Malformed)?;
        let (ct, secret) = key.encapsulate().map_err(|_| DropReason::Malformed)?;
        let secret = Secret::new(secret.as_ref().try_into().expect("ML-KEM-768 gives 32 bytes"));
        Ok(Self { ct: ct.as_ref().to_vec(), secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree_and_sizes_hold() {
        let pair = KemKeyPair::generate();
        let sent = Encapsulation::to(pair.encapsulation_key()).unwrap();
        assert_eq!((pair.encapsulation_key().len(), sent.ct.len()), (EK_LEN, CT_LEN));
        assert_eq!(pair.decapsulate(&sent.ct).unwrap().expose(), sent.secret.expose());
    }

    #[test]
    fn a_forged_ciphertext_gives_another_secret() {
        let pair = KemKeyPair::generate();
        let mut sent = Encapsulation::to(pair.encapsulation_key()).unwrap();
        sent.ct[100] ^= 1;
        assert_ne!(pair.decapsulate(&sent.ct).unwrap().expose(), sent.secret.expose());
    }

    #[test]
    fn invalid_keys_and_ciphertexts_are_refused() {
        assert!(Encapsulation::to(&[0xff; EK_LEN]).is_err(), "coefficients at or above the modulus");
        assert!(Encapsulation::to(&[0; EK_LEN - 1]).is_err());
        assert!(KemKeyPair::generate().decapsulate(&[0; CT_LEN - 1]).is_err());
    }
}
