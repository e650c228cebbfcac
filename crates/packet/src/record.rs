//! The session secret as a gateway's store keeps it: sealed under the cluster key. spec: WIRE-37

use zeroize::Zeroizing;

use crate::aead::{append_sealed, open_sealed, AeadId, SINGLE_USE};
use crate::bytes::{exact_len, Reader};
use crate::random::draw;
use crate::schedule::{ClusterKey, EpochNonce, Root, Secret, TrafficSecret};
use crate::{DropReason, Random, SessionId};

/// Format of the blob; its first byte.
const FORMAT: u8 = 1;
/// `aead u8 | epoch u64 | Nc 32 | Ng 32 | root 32 | has previous u8 | previous root 32`
const BODY_LEN: usize = 1 + 8 + 32 + 32 + 32 + 1 + 32;
/// Bytes of a sealed record: `format u8 | salt 32 | body | tag 16`.
pub const RECORD_LEN: usize = 1 + 32 + BODY_LEN + 16;

/// What a gateway needs to take a session over: to open datagrams, reattach requests, and to send hints.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    pub aead: AeadId,
    pub epoch: u64,
    pub client_nonce: EpochNonce,
    pub gateway_nonce: EpochNonce,
    pub root: Root,
    /// The root before the last rekey, until the newest epoch is confirmed.
    pub previous_root: Option<Root>,
}

impl SessionRecord {
    pub fn up(&self) -> TrafficSecret {
        self.root.up(self.epoch, &self.client_nonce)
    }

    /// Who took a session over must not seal with it: counters already used are unknown. It names connection IDs in hints.
    pub fn down(&self) -> TrafficSecret {
        self.root.down(self.epoch, &self.client_nonce, &self.gateway_nonce)
    }

    /// Seals the record for `session`; a fresh salt gives each blob its own key.
    pub fn seal(&self, cluster: &ClusterKey, session: &SessionId, rng: &mut dyn Random) -> Vec<u8> {
        let salt: [u8; 32] = draw(rng);
        let mut out = vec![FORMAT];
        out.extend_from_slice(&salt);
        append_sealed(cluster.record(&salt, session).expose(), SINGLE_USE, &self.body(), &mut out);
        out
    }

    /// Opens a blob that was sealed for `session`.
    pub fn open(cluster: &ClusterKey, session: &SessionId, blob: &[u8]) -> Result<Self, DropReason> {
        exact_len(blob, RECORD_LEN)?;
        let (head, sealed) = blob.split_at(33);
        let salt: &[u8; 32] = head[1..].first_chunk().ok_or(DropReason::Truncated)?;
        if head[0] != FORMAT {
            return Err(DropReason::BadRecord);
        }
        let key = cluster.record(salt, session);
        let body = open_sealed(key.expose(), SINGLE_USE, head, sealed).map_err(|_| DropReason::BadRecord)?;
        Self::parse(&Zeroizing::new(body))
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        let none = Secret::new([0; 32]);
        let previous = self.previous_root.as_ref().map_or(&none, Root::secret);
        let parts: [&[u8]; 7] = [
            &[self.aead as u8],
            &self.epoch.to_be_bytes(),
            &self.client_nonce,
            &self.gateway_nonce,
            self.root.secret().expose(),
            &[u8::from(self.previous_root.is_some())],
            previous.expose(),
        ];
        Zeroizing::new(parts.concat())
    }

    fn parse(body: &[u8]) -> Result<Self, DropReason> {
        let mut reader = Reader::new(body);
        let aead = AeadId::parse(reader.u8()?)?;
        let (epoch, client_nonce, gateway_nonce) = (reader.u64()?, reader.array()?, reader.array()?);
        let root = Root::new(Secret::new(reader.array()?));
        let has_previous = reader.u8()? == 1;
        let previous = Secret::new(reader.array()?);
        reader.finish()?;
        let previous_root = has_previous.then(|| Root::new(previous));
        Ok(Self { aead, epoch, client_nonce, gateway_nonce, root, previous_root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemRandom;

    fn record(previous: Option<u8>) -> SessionRecord {
        let root = |byte| Root::new(Secret::new([byte; 32]));
        SessionRecord {
            aead: AeadId::Aes256Gcm,
            epoch: 9,
            client_nonce: [1; 32],
            gateway_nonce: [2; 32],
            root: root(3),
            previous_root: previous.map(root),
        }
    }

    #[test]
    fn round_trips() {
        let cluster = ClusterKey::new([8; 32]);
        for previous in [None, Some(4)] {
            let blob = record(previous).seal(&cluster, &[5; 16], &mut SystemRandom);
            assert_eq!(blob.len(), RECORD_LEN);
            let opened = SessionRecord::open(&cluster, &[5; 16], &blob).unwrap();
            assert_eq!(*opened.body(), *record(previous).body());
        }
    }

    #[test]
    fn other_session_key_length_or_bit_is_refused() {
        let cluster = ClusterKey::new([8; 32]);
        let blob = record(None).seal(&cluster, &[5; 16], &mut SystemRandom);
        assert_eq!(SessionRecord::open(&cluster, &[6; 16], &blob).err(), Some(DropReason::BadRecord));
        assert_eq!(SessionRecord::open(&ClusterKey::new([9; 32]), &[5; 16], &blob).err(), Some(DropReason::BadRecord));
        for len in 0..RECORD_LEN {
            assert_eq!(SessionRecord::open(&cluster, &[5; 16], &blob[..len]).err(), Some(DropReason::Truncated));
        }
        for at in 0..RECORD_LEN {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            assert_eq!(SessionRecord::open(&cluster, &[5; 16], &changed).err(), Some(DropReason::BadRecord), "{at}");
        }
    }
}
