//! Key schedule: from the root secret to every key and connection identifier. spec: WIRE-30 to WIRE-36

use aws_lc_rs::{digest, hkdf, hmac};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::aead::KEY_LEN;
use crate::header::{Cid, PathIndex};
use crate::SessionId;

/// Public random value that opens an epoch, one from each side.
pub type EpochNonce = [u8; 32];

/// 32 secret bytes, erased on drop and never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; KEY_LEN]);

impl Secret {
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes themselves: for sealing a record and for vectors, never for a log.
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// SHA-256 of the parts one after the other.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// First 16 bytes of HMAC-SHA256 over the parts.
pub(crate) fn mac16(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let tag = hmac_sha256(key, parts);
    *tag.first_chunk().expect("a tag has 32 bytes")
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    context.sign().as_ref().try_into().expect("HMAC-SHA256 gives 32 bytes")
}

/// Are the two equal? Takes the same time wherever they differ.
pub(crate) fn equal(left: &[u8], right: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(left, right).is_ok()
}

/// HKDF-Extract-SHA256 (RFC 5869 §2.2), which is HMAC keyed by the salt.
pub fn extract(salt: &[u8], ikm: &[&[u8]]) -> Secret {
    Secret(hmac_sha256(salt, ikm))
}

/// HKDF-Expand-SHA256 with `info = "jumpvpn v1 " || label || 0x00 || context`, at most 32 bytes.
pub fn expand<const N: usize>(secret: &Secret, label: &str, context: &[&[u8]]) -> [u8; N] {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    debug_assert!(!label.as_bytes().contains(&0), "the label ends at its first zero byte");
    let context = context.concat();
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &secret.0);
    let info = [b"jumpvpn v1 ", label.as_bytes(), b"\0", &context];
    let mut out = [0; N];
    let okm = prk.expand(&info, Len(N)).expect("HKDF gives up to 8160 bytes");
    okm.fill(&mut out).expect("the length is the one asked for");
    out
}

fn expand_secret(secret: &Secret, label: &str, context: &[&[u8]]) -> Secret {
    Secret(expand(secret, label, context))
}

/// Which way datagrams flow: up is client to gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Up,
    Down,
}

/// The secret that all epochs of a session grow from until the next rekey.
#[derive(Clone, Debug)]
pub struct Root(Secret);

impl Root {
    pub fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// Root after the first handshake: its hash `h` and the two split keys. spec: WIRE-31
    pub fn from_handshake(hash: &[u8; 32], split_1: &Secret, split_2: &Secret) -> Self {
        Self(extract(hash, &[&split_1.0, &split_2.0]))
    }

    /// Root after a rekey; the old root cannot be computed from it. spec: WIRE-34
    pub fn ratchet(&self, x25519_secret: &[u8; 32], kem_secret: &[u8; 32], transcript: &[u8; 32]) -> Self {
        Self(extract(&self.0 .0, &[x25519_secret, kem_secret, transcript]))
    }

    /// Key material of reattach requests, replies and hints. spec: WIRE-32
    pub fn control(&self) -> ControlSecret {
        ControlSecret(expand_secret(&self.0, "control", &[]))
    }

    /// Client to gateway in `epoch`: needs the client's nonce alone, so that data can follow a reattach request. spec: WIRE-33
    pub fn up(&self, epoch: u64, client: &EpochNonce) -> TrafficSecret {
        let secret = expand_secret(&self.0, "epoch up", &[&epoch.to_be_bytes(), client]);
        TrafficSecret { secret, epoch, direction: Direction::Up }
    }

    /// Gateway to client in `epoch`. spec: WIRE-33
    pub fn down(&self, epoch: u64, client: &EpochNonce, gateway: &EpochNonce) -> TrafficSecret {
        let secret = expand_secret(&self.0, "epoch down", &[&epoch.to_be_bytes(), client, gateway]);
        TrafficSecret { secret, epoch, direction: Direction::Down }
    }

    pub fn secret(&self) -> &Secret {
        &self.0
    }
}

/// Source of the single-use keys of reattach messages.
#[derive(Clone, Debug)]
pub struct ControlSecret(Secret);

impl ControlSecret {
    /// Key of one message; `context` is fresh for each, so the key seals once.
    pub(crate) fn key(&self, label: &str, context: &[&[u8]]) -> Secret {
        expand_secret(&self.0, label, context)
    }

    pub fn secret(&self) -> &Secret {
        &self.0
    }
}

/// One direction of one epoch: its key and its connection identifiers.
#[derive(Clone, Debug)]
pub struct TrafficSecret {
    secret: Secret,
    epoch: u64,
    direction: Direction,
}

impl TrafficSecret {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The AEAD key. spec: WIRE-35
    pub fn key(&self) -> Secret {
        expand_secret(&self.secret, "key", &[])
    }

    /// The connection identifier of one path. spec: WIRE-36
    pub fn cid(&self, path: PathIndex) -> Cid {
        expand(&self.secret, "cid", &[&[path.get()]])
    }

    /// The identifiers of all paths, by index.
    pub fn cids(&self) -> [Cid; crate::header::MAX_PATHS] {
        let mut cids = [[0; 7]; crate::header::MAX_PATHS];
        for path in PathIndex::all() {
            cids[path.index()] = self.cid(path);
        }
        cids
    }
}

/// The secret that all gateways of a cluster share: tickets, records, return tokens and standby keys grow from it.
#[derive(Clone, Debug)]
pub struct ClusterKey(Secret);

impl ClusterKey {
    /// `bytes` are 32 uniformly random bytes.
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(Secret(bytes))
    }

    pub(crate) fn ticket(&self) -> Secret {
        expand_secret(&self.0, "ticket", &[])
    }

    pub(crate) fn return_token(&self) -> Secret {
        expand_secret(&self.0, "return token", &[])
    }

    /// Key of one session's standby probes. spec: WIRE-83
    pub(crate) fn standby(&self, session: &SessionId) -> Secret {
        expand_secret(&self.0, "standby", &[session])
    }

    /// Key of one record blob, by its salt. spec: WIRE-37
    pub(crate) fn record(&self, salt: &[u8; 32], session: &SessionId) -> Secret {
        expand_secret(&self.0, "record", &[salt, session])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(byte: u8) -> Root {
        Root::new(Secret::new([byte; 32]))
    }

    #[test]
    fn expand_equals_rfc5869_with_one_block() {
        let secret = Secret::new([9; 32]);
        let expected = hmac_sha256(secret.expose(), &[b"jumpvpn v1 label\0context\x01"]);
        assert_eq!(expand::<32>(&secret, "label", &[b"con", b"text"]), expected);
        assert_eq!(expand::<7>(&secret, "label", &[b"context"]), expected[..7]);
    }

    #[test]
    fn extract_equals_rfc5869_test_case_1() {
        let salt: Vec<u8> = (0..=12).collect();
        let prk = extract(&salt, &[&[0x0b; 22]]);
        assert_eq!(prk.expose()[..4], [0x07, 0x77, 0x09, 0x36]);
    }

    #[test]
    fn everything_separates_keys_and_identifiers() {
        let mut seen = std::collections::HashSet::new();
        for secret in [
            root(1).up(1, &[1; 32]),
            root(2).up(1, &[1; 32]),
            root(1).up(2, &[1; 32]),
            root(1).up(1, &[2; 32]),
            root(1).down(1, &[1; 32], &[1; 32]),
            root(1).down(1, &[1; 32], &[2; 32]),
        ] {
            assert!(seen.insert(secret.key().expose().to_vec()));
            for cid in secret.cids() {
                assert!(seen.insert(cid.to_vec()));
            }
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let shown = format!("{:?} {:?} {:?}", root(0xab), root(0xab).control(), root(0xab).up(1, &[0; 32]));
        assert!(shown.contains("redacted") && !shown.contains("171"), "{shown}");
    }
}
