//! Sealing and opening the datagrams of one epoch and direction. spec: WIRE-40 to WIRE-48

use std::sync::Arc;

use crate::aead::{Aead, AeadId, Key, NONCE_LEN};
use crate::header::{Cid, DataHeader, PathIndex, HEADER_LEN, MAX_PATHS, OVERHEAD, TAG_LEN};
use crate::replay::{ReplayWindow, COUNTER_LIMIT};
use crate::schedule::TrafficSecret;
use crate::DropReason;

/// Forgeries after which an opening key is given up: 2^36 keeps ChaCha20-Poly1305 below 2^-57 (RFC 9001 §6.6).
pub const INTEGRITY_LIMIT: u64 = 1 << 36;

/// Nonce of a data datagram: path and counter, so it never repeats under an epoch's key. spec: WIRE-42
pub fn data_nonce(path: PathIndex, counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[3] = path.get();
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// The key may not seal any more: a rekey is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyExhausted;

/// What sealing needs and no datagram changes.
struct Sealer {
    key: Key,
    epoch_bits: u8,
    cids: [Cid; MAX_PATHS],
}

/// Seals the datagrams of one epoch and direction: owns the counters, one per path.
pub struct SealingKey {
    sealer: Arc<Sealer>,
    epoch: u64,
    next: [u64; MAX_PATHS],
    blocks: u64,
    block_limit: u64,
}

impl SealingKey {
    pub fn new(aead: AeadId, secret: &TrafficSecret) -> Self {
        let epoch_bits = (secret.epoch() & 0x0f) as u8;
        let sealer = Sealer { key: Key::new(aead, secret.key().expose()), epoch_bits, cids: secret.cids() };
        let (next, block_limit) = ([0; MAX_PATHS], aead.block_limit());
        Self { sealer: Arc::new(sealer), epoch: secret.epoch(), next, blocks: 0, block_limit }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn cid(&self, path: PathIndex) -> Cid {
        self.sealer.cids[path.index()]
    }

    /// Counter of the next datagram on `path`, which is also how many were sealed.
    pub fn next_counter(&self, path: PathIndex) -> u64 {
        self.next[path.index()]
    }

    /// A quarter of the key's budget is used: time to rekey.
    pub fn wants_rekey(&self) -> bool {
        self.blocks >= self.block_limit / 4
    }

    /// Sets `count` counters aside for plaintexts of `bytes` in total, to be sealed without holding this key's lock.
    pub fn reserve(&mut self, path: PathIndex, count: u64, bytes: usize) -> Result<Reservation, KeyExhausted> {
        let first = self.next[path.index()];
        let blocks = self.blocks.saturating_add(bytes as u64 / 16).saturating_add(count.saturating_mul(2));
        if blocks > self.block_limit || first.saturating_add(count) > COUNTER_LIMIT {
            return Err(KeyExhausted);
        }
        self.blocks = blocks;
        self.next[path.index()] = first + count;
        Ok(Reservation { sealer: Arc::clone(&self.sealer), path, next: first, end: first + count })
    }

    /// Seals one datagram in place: `buffer` is 16 bytes for the header, the plaintext, 16 bytes for the tag. Returns its counter.
    pub fn seal(&mut self, path: PathIndex, buffer: &mut [u8]) -> Result<u64, KeyExhausted> {
        self.reserve(path, 1, buffer.len())?.seal(buffer)
    }

    /// Seals a super-buffer of datagrams of `stride` bytes each (the last may be shorter); each laid out as for [`Self::seal`].
    /// Returns the first counter.
    pub fn seal_segments(&mut self, path: PathIndex, buffer: &mut [u8], stride: usize) -> Result<u64, KeyExhausted> {
        let count = buffer.len().div_ceil(stride) as u64;
        self.reserve(path, count, buffer.len())?.seal_segments(buffer, stride)
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealingKey(epoch: {}, next: {:?}, redacted)", self.epoch, self.next)
    }
}

/// Counters set aside: each seals one datagram, and cannot be used twice.
pub struct Reservation {
    sealer: Arc<Sealer>,
    path: PathIndex,
    next: u64,
    end: u64,
}

impl Reservation {
    /// Counters left.
    pub fn remaining(&self) -> u64 {
        self.end - self.next
    }

    /// Seals one datagram in place; layout as for [`SealingKey::seal`]. Returns its counter.
    ///
    /// Panics if `buffer` has no room for header and tag: that is a defect of the caller.
    #[inline]
    pub fn seal(&mut self, buffer: &mut [u8]) -> Result<u64, KeyExhausted> {
        if self.next == self.end {
            return Err(KeyExhausted);
        }
        let counter = self.next;
        self.next += 1;
        let (head, body) = buffer.split_first_chunk_mut::<HEADER_LEN>().expect("16 bytes of headroom");
        let (plain, tail) = body.split_last_chunk_mut::<TAG_LEN>().expect("16 bytes of tailroom");
        let cid = self.sealer.cids[self.path.index()];
        *head = DataHeader { epoch_bits: self.sealer.epoch_bits, cid, counter }.to_bytes();
        *tail = self.sealer.key.seal_in_place(data_nonce(self.path, counter), head, plain);
        Ok(counter)
    }

    /// Seals consecutive datagrams of `stride` bytes (the last may be shorter). Returns the first counter.
    pub fn seal_segments(&mut self, buffer: &mut [u8], stride: usize) -> Result<u64, KeyExhausted> {
        let first = self.next;
        for segment in buffer.chunks_mut(stride) {
            self.seal(segment)?;
        }
        Ok(first)
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation(path: {}, {}..{})", self.path.get(), self.next, self.end)
    }
}

/// An authenticated plaintext, in the buffer it came in.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    pub path: PathIndex,
    pub counter: u64,
    pub plaintext: &'a mut [u8],
    /// No higher counter came before on this path: a changed source address counts only then (RFC 9000 §9.3).
    pub newest: bool,
}

/// Opens the datagrams of one epoch and direction: owns the replay windows, one per path in use.
pub struct OpeningKey {
    key: Key,
    epoch: u64,
    cids: [Cid; MAX_PATHS],
    windows: [Option<Box<ReplayWindow>>; MAX_PATHS],
    forgeries: u64,
}

impl OpeningKey {
    pub fn new(aead: AeadId, secret: &TrafficSecret) -> Self {
        let key = Key::new(aead, secret.key().expose());
        Self { key, epoch: secret.epoch(), cids: secret.cids(), windows: Default::default(), forgeries: 0 }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The identifiers that datagrams of this epoch carry, by path.
    pub fn cids(&self) -> &[Cid; MAX_PATHS] {
        &self.cids
    }

    pub fn path_of(&self, cid: &Cid) -> Option<PathIndex> {
        PathIndex::all().find(|path| self.cids[path.index()] == *cid)
    }

    /// What was received on `path`; `None` while nothing was.
    pub fn window(&self, path: PathIndex) -> Option<&ReplayWindow> {
        self.windows[path.index()].as_deref()
    }

    /// Opens one datagram in place, checks and records its counter. A datagram that fails changes no window.
    #[inline]
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, DropReason> {
        let (path, header) = self.admit(datagram)?;
        let (head, sealed) = datagram.split_first_chunk_mut::<HEADER_LEN>().ok_or(DropReason::Truncated)?;
        let opened = self.key.open_in_place(data_nonce(path, header.counter), head, sealed);
        let Ok(plaintext) = opened else {
            self.forgeries += 1;
            return Err(DropReason::BadTag);
        };
        let window = self.windows[path.index()].get_or_insert_default();
        let newest = window.highest().is_none_or(|highest| header.counter > highest);
        window.accept(header.counter)?;
        Ok(Opened { path, counter: header.counter, plaintext, newest })
    }

    /// Everything that can be refused before the key is used.
    #[inline]
    fn admit(&self, datagram: &[u8]) -> Result<(PathIndex, DataHeader), DropReason> {
        let header = DataHeader::parse(datagram)?;
        debug_assert!(datagram.len() > OVERHEAD);
        if u64::from(header.epoch_bits) != self.epoch & 0x0f {
            return Err(DropReason::WrongEpoch);
        }
        let path = self.path_of(&header.cid).ok_or(DropReason::UnknownCid)?;
        match &self.windows[path.index()] {
            Some(window) => window.check(header.counter)?,
            None if header.counter >= COUNTER_LIMIT => return Err(DropReason::CounterLimit),
            None => {}
        }
        if self.forgeries >= INTEGRITY_LIMIT {
            return Err(DropReason::IntegrityLimit);
        }
        Ok((path, header))
    }
}

impl std::fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpeningKey(epoch: {}, forgeries: {}, redacted)", self.epoch, self.forgeries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Root, Secret};
    use proptest::collection::vec;
    use proptest::prelude::*;

    const AEADS: [AeadId; 2] = [AeadId::Aes256Gcm, AeadId::ChaCha20Poly1305];

    fn secret(epoch: u64) -> TrafficSecret {
        Root::new(Secret::new([7; 32])).up(epoch, &[1; 32])
    }

    fn pair(aead: AeadId, epoch: u64) -> (SealingKey, OpeningKey) {
        (SealingKey::new(aead, &secret(epoch)), OpeningKey::new(aead, &secret(epoch)))
    }

    fn path(value: u8) -> PathIndex {
        PathIndex::new(value).unwrap()
    }

    fn framed(plain: &[u8]) -> Vec<u8> {
        [&[0; HEADER_LEN], plain, &[0; TAG_LEN]].concat()
    }

    fn sealed(key: &mut SealingKey, at: u8, plain: &[u8]) -> Vec<u8> {
        let mut buffer = framed(plain);
        key.seal(path(at), &mut buffer).unwrap();
        buffer
    }

    proptest! {
        #[test]
        fn sealed_then_opened(aes: bool, epoch in 1u64..100, at in 0u8..8, plain in vec(any::<u8>(), 1..1500)) {
            let (mut sealing, mut opening) = pair(AEADS[usize::from(aes)], epoch);
            let mut datagram = sealed(&mut sealing, at, &plain);
            prop_assert_eq!(datagram.len(), plain.len() + OVERHEAD);
            let opened = opening.open(&mut datagram).unwrap();
            prop_assert_eq!((opened.path, opened.counter, opened.newest), (path(at), 0, true));
            prop_assert_eq!(&*opened.plaintext, &plain[..]);
        }

        #[test]
        fn segments_equal_single_datagrams(stride in 33usize..200, total in 33usize..3000) {
            prop_assume!(total % stride == 0 || total % stride > OVERHEAD);
            let plain: Vec<u8> = (0..total).map(|at| at as u8).collect();
            let (mut together, _) = pair(AeadId::Aes256Gcm, 1);
            let (mut apart, _) = pair(AeadId::Aes256Gcm, 1);
            let (mut left, mut right) = (plain.clone(), plain);
            together.seal_segments(path(2), &mut left, stride).unwrap();
            for segment in right.chunks_mut(stride) {
                apart.seal(path(2), segment).unwrap();
            }
            prop_assert_eq!(left, right);
        }

        #[test]
        fn any_changed_bit_is_refused_and_changes_nothing(aes: bool, bit in 0usize..8 * 72) {
            let (mut sealing, mut opening) = pair(AEADS[usize::from(aes)], 5);
            let good = sealed(&mut sealing, 1, &[0x45; 40]);
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(opening.open(&mut bad).is_err());
            prop_assert!(opening.window(path(1)).is_none());
            prop_assert!(opening.open(&mut good.clone()).is_ok());
        }

        #[test]
        fn random_bytes_never_panic_nor_open(bytes in vec(any::<u8>(), 0..200), known: bool) {
            let (sealing, mut opening) = pair(AeadId::Aes256Gcm, 5);
            let mut bytes = bytes;
            if known && bytes.len() > 8 {
                bytes[0] = 0x45;
                bytes[1..8].copy_from_slice(&sealing.cid(path(0)));
            }
            prop_assert!(opening.open(&mut bytes).is_err());
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let (mut sealing, mut opening) = pair(AeadId::Aes256Gcm, 1);
        let good = sealed(&mut sealing, 0, &[0x45; 20]);
        for len in 0..good.len() {
            let expected = if len <= OVERHEAD { DropReason::Truncated } else { DropReason::BadTag };
            assert_eq!(opening.open(&mut good[..len].to_vec()), Err(expected), "{len}");
        }
    }

    #[test]
    fn a_datagram_opens_once() {
        let (mut sealing, mut opening) = pair(AeadId::ChaCha20Poly1305, 1);
        let datagram = sealed(&mut sealing, 0, &[0x45; 20]);
        assert!(opening.open(&mut datagram.clone()).is_ok());
        assert_eq!(opening.open(&mut datagram.clone()), Err(DropReason::ReplayRepeated));
    }

    #[test]
    fn a_replay_is_refused_before_the_key_is_used() {
        let (mut sealing, mut opening) = pair(AeadId::Aes256Gcm, 1);
        let datagram = sealed(&mut sealing, 0, &[0x45; 20]);
        assert!(opening.open(&mut datagram.clone()).is_ok());
        let mut forged = datagram;
        forged[20] ^= 1;
        assert_eq!(opening.open(&mut forged), Err(DropReason::ReplayRepeated));
        assert_eq!(opening.forgeries, 0);
    }

    #[test]
    fn an_older_datagram_is_not_newest() {
        let (mut sealing, mut opening) = pair(AeadId::Aes256Gcm, 1);
        let (mut first, mut second) = (sealed(&mut sealing, 0, &[0x45; 20]), sealed(&mut sealing, 0, &[0x45; 20]));
        assert!(opening.open(&mut second).unwrap().newest);
        assert!(!opening.open(&mut first).unwrap().newest);
    }

    #[test]
    fn paths_count_apart_and_cannot_stand_in_for_each_other() {
        let (mut sealing, mut opening) = pair(AeadId::Aes256Gcm, 1);
        let (zero, one) = (sealed(&mut sealing, 0, &[0x45; 20]), sealed(&mut sealing, 1, &[0x45; 20]));
        assert_ne!(zero[1..8], one[1..8]);
        assert_eq!((zero[8..16].to_vec(), one[8..16].to_vec()), (vec![0; 8], vec![0; 8]));
        assert_ne!(zero[16..], one[16..], "same plaintext and counter, other nonce");
        let mut moved = one.clone();
        moved[1..8].copy_from_slice(&zero[1..8]);
        assert_eq!(opening.open(&mut moved), Err(DropReason::BadTag));
    }

    #[test]
    fn other_epochs_refuse() {
        let (mut sealing, _) = pair(AeadId::Aes256Gcm, 1);
        let datagram = sealed(&mut sealing, 0, &[0x45; 20]);
        let (_, mut second) = pair(AeadId::Aes256Gcm, 2);
        assert_eq!(second.open(&mut datagram.clone()), Err(DropReason::WrongEpoch));
        let (_, mut seventeenth) = pair(AeadId::Aes256Gcm, 17);
        assert_eq!(seventeenth.open(&mut datagram.clone()), Err(DropReason::UnknownCid));
    }

    #[test]
    fn a_key_stops_at_its_counter_limit() {
        let (mut sealing, mut opening) = pair(AeadId::ChaCha20Poly1305, 1);
        sealing.next[0] = COUNTER_LIMIT - 1;
        let mut last = sealed(&mut sealing, 0, &[0x45; 20]);
        assert_eq!(opening.open(&mut last).unwrap().counter, COUNTER_LIMIT - 1);
        assert_eq!(sealing.seal(path(0), &mut framed(&[0x45; 20])), Err(KeyExhausted));
        assert!(sealing.seal(path(1), &mut framed(&[0x45; 20])).is_ok(), "the other paths go on");
    }

    #[test]
    fn a_key_stops_at_its_block_limit() {
        let (mut sealing, _) = pair(AeadId::Aes256Gcm, 1);
        assert!(!sealing.wants_rekey());
        sealing.blocks = sealing.block_limit / 4;
        assert!(sealing.wants_rekey());
        sealing.blocks = sealing.block_limit - 1;
        assert_eq!(sealing.seal(path(0), &mut framed(&[0x45; 20])), Err(KeyExhausted));
        assert_eq!(sealing.next_counter(path(0)), 0, "a refused datagram uses no counter");
    }

    #[test]
    fn a_key_is_given_up_after_too_many_forgeries() {
        let (mut sealing, mut opening) = pair(AeadId::Aes256Gcm, 1);
        let mut datagram = sealed(&mut sealing, 0, &[0x45; 20]);
        opening.forgeries = INTEGRITY_LIMIT;
        assert_eq!(opening.open(&mut datagram), Err(DropReason::IntegrityLimit));
    }

    #[test]
    fn a_reservation_seals_as_many_as_it_holds() {
        let (mut sealing, mut opening) = pair(AeadId::Aes256Gcm, 1);
        let mut early = sealing.reserve(path(0), 2, 200).unwrap();
        let mut late = sealed(&mut sealing, 0, &[0x45; 20]);
        assert_eq!(opening.open(&mut late).unwrap().counter, 2);
        for counter in 0..2 {
            let mut buffer = framed(&[0x45; 20]);
            assert_eq!(early.seal(&mut buffer), Ok(counter));
            assert_eq!(opening.open(&mut buffer).unwrap().counter, counter);
        }
        assert_eq!(early.remaining(), 0);
        assert_eq!(early.seal(&mut framed(&[0x45; 20])), Err(KeyExhausted));
    }

    #[test]
    fn debug_shows_no_key() {
        let (sealing, opening) = pair(AeadId::Aes256Gcm, 1);
        assert!(format!("{sealing:?} {opening:?}").matches("redacted").count() == 2);
    }
}
