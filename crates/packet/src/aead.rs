//! Authenticated encryption behind one small trait. spec: WIRE-41, WIRE-42

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM, CHACHA20_POLY1305};

use crate::header::TAG_LEN;
use crate::DropReason;

/// Bytes of a nonce, both algorithms.
pub const NONCE_LEN: usize = 12;
/// Bytes of a key, both algorithms.
pub const KEY_LEN: usize = 32;

/// The negotiated algorithm; the number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AeadId {
    Aes256Gcm = 1,
    ChaCha20Poly1305 = 2,
}

impl AeadId {
    pub fn parse(value: u8) -> Result<Self, DropReason> {
        match value {
            1 => Ok(AeadId::Aes256Gcm),
            2 => Ok(AeadId::ChaCha20Poly1305),
            _ => Err(DropReason::Malformed),
        }
    }

    /// Sealed 16-byte blocks after which a key must not seal again.
    ///
    /// AES-GCM: a distinguisher's advantage is at most blocks² / 2^129 (RFC 9001 appendix B.1), so 2^37 blocks keep it below 2^-55.
    /// ChaCha20-Poly1305 has no such limit before the counter's own.
    pub const fn block_limit(self) -> u64 {
        match self {
            AeadId::Aes256Gcm => 1 << 37,
            AeadId::ChaCha20Poly1305 => 1 << 60,
        }
    }
}

/// Seals and opens in place with explicit nonces; the caller owns the rule that no nonce seals twice.
pub trait Aead: Send + Sync {
    /// Encrypts `data` in place and returns its tag.
    fn seal_in_place(&self, nonce: [u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN];

    /// Opens ciphertext followed by its tag; returns the plaintext. On failure the content of `data` is meaningless.
    fn open_in_place<'a>(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        data: &'a mut [u8],
    ) -> Result<&'a mut [u8], DropReason>;
}

/// A key of aws-lc-rs, either algorithm.
pub struct Key {
    inner: LessSafeKey,
}

impl Key {
    pub fn new(id: AeadId, key: &[u8; KEY_LEN]) -> Self {
        let algorithm = match id {
            AeadId::Aes256Gcm => &AES_256_GCM,
            AeadId::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let unbound = UnboundKey::new(algorithm, key).expect("both algorithms take 32-byte keys");
        Self { inner: LessSafeKey::new(unbound) }
    }
}

impl Aead for Key {
    #[inline]
    fn seal_in_place(&self, nonce: [u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.inner.seal_in_place_separate_tag(nonce, Aad::from(aad), data);
        let tag = tag.expect("sealing fails only beyond 2^36 bytes of one message");
        tag.as_ref().try_into().expect("tags are 16 bytes")
    }

    #[inline]
    fn open_in_place<'a>(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        data: &'a mut [u8],
    ) -> Result<&'a mut [u8], DropReason> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.inner.open_in_place(nonce, Aad::from(aad), data).map_err(|_| DropReason::BadTag)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Nonce of keys that seal one message only.
pub(crate) const SINGLE_USE: [u8; NONCE_LEN] = [0; NONCE_LEN];

/// Seals `plain` with ChaCha20-Poly1305 and appends ciphertext and tag to `out`, whose present content is the associated data.
pub(crate) fn append_sealed(key: &[u8; KEY_LEN], nonce: [u8; NONCE_LEN], plain: &[u8], out: &mut Vec<u8>) {
    let mut body = plain.to_vec();
    let tag = Key::new(AeadId::ChaCha20Poly1305, key).seal_in_place(nonce, out, &mut body);
    out.extend_from_slice(&body);
    out.extend_from_slice(&tag);
}

/// Opens `sealed` (ciphertext and tag) with ChaCha20-Poly1305 into a new buffer.
pub(crate) fn open_sealed(
    key: &[u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, DropReason> {
    let mut body = sealed.to_vec();
    let len = Key::new(AeadId::ChaCha20Poly1305, key).open_in_place(nonce, aad, &mut body)?.len();
    body.truncate(len);
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(id: AeadId, key: [u8; 32], nonce: [u8; 12], aad: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut data = plain.to_vec();
        let tag = Key::new(id, &key).seal_in_place(nonce, aad, &mut data);
        [&data[..], &tag].concat()
    }

    proptest! {
        #[test]
        fn seal_then_open(aes: bool, key: [u8; 32], nonce: [u8; 12], aad: [u8; 16],
                          plain in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let id = if aes { AeadId::Aes256Gcm } else { AeadId::ChaCha20Poly1305 };
            let mut data = sealed(id, key, nonce, &aad, &plain);
            let opened = Key::new(id, &key).open_in_place(nonce, &aad, &mut data).unwrap();
            prop_assert_eq!(&*opened, &plain[..]);
        }

        #[test]
        fn any_changed_bit_is_refused(aes: bool, bit in 0usize..8 * 56, plain: [u8; 40]) {
            let id = if aes { AeadId::Aes256Gcm } else { AeadId::ChaCha20Poly1305 };
            let mut data = sealed(id, [1; 32], [2; 12], b"header", &plain);
            data[bit / 8] ^= 1 << (bit % 8);
            let opened = Key::new(id, &[1; 32]).open_in_place([2; 12], b"header", &mut data);
            prop_assert_eq!(opened, Err(DropReason::BadTag));
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", Key::new(AeadId::Aes256Gcm, &[0xaa; 32])), "Key(redacted)");
    }

    #[test]
    fn shorter_than_a_tag_is_refused() {
        for len in 0..TAG_LEN {
            let mut data = vec![0; len];
            let key = Key::new(AeadId::Aes256Gcm, &[1; 32]);
            assert_eq!(key.open_in_place([0; 12], b"", &mut data), Err(DropReason::BadTag));
        }
    }
}
