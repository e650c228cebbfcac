//! The first byte of every datagram and the header of sealed data. spec: WIRE-1, WIRE-40

use crate::bytes::Reader;
use crate::DropReason;

/// Connection identifier: seven bytes derived per epoch, direction and path.
pub type Cid = [u8; 7];

/// Bytes of the data header.
pub const HEADER_LEN: usize = 16;
/// Bytes of an authentication tag, both algorithms.
pub const TAG_LEN: usize = 16;
/// What sealing adds to an inner packet.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Paths of one epoch. Eight candidates are more than a device has networks × gateways worth probing.
pub const MAX_PATHS: usize = 8;

/// What a datagram is, by its first nibble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    HandshakeInit = 1,
    HandshakeResponse = 2,
    CookieReply = 3,
    Data = 4,
    ReattachRequest = 5,
    ReattachReply = 6,
    ReattachHint = 7,
    StandbyProbe = 8,
    StandbyReply = 9,
}

impl Kind {
    /// Reads the kind of a datagram without looking further.
    pub fn of(datagram: &[u8]) -> Result<Kind, DropReason> {
        let first = *datagram.first().ok_or(DropReason::Truncated)?;
        match first >> 4 {
            1 => Ok(Kind::HandshakeInit),
            2 => Ok(Kind::HandshakeResponse),
            3 => Ok(Kind::CookieReply),
            4 => Ok(Kind::Data),
            5 => Ok(Kind::ReattachRequest),
            6 => Ok(Kind::ReattachReply),
            7 => Ok(Kind::ReattachHint),
            8 => Ok(Kind::StandbyProbe),
            9 => Ok(Kind::StandbyReply),
            _ => Err(DropReason::UnknownKind),
        }
    }

    /// The first byte of a datagram of this kind that carries no epoch.
    pub const fn byte(self) -> u8 {
        (self as u8) << 4
    }
}

/// Index of one candidate instance within one epoch, below [`MAX_PATHS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathIndex(u8);

impl PathIndex {
    /// `None` if out of range.
    pub const fn new(value: u8) -> Option<Self> {
        if (value as usize) < MAX_PATHS {
            Some(Self(value))
        } else {
            None
        }
    }

    /// Reads a path index off the wire.
    pub fn parse(value: u8) -> Result<Self, DropReason> {
        Self::new(value).ok_or(DropReason::Malformed)
    }

    pub const fn get(self) -> u8 {
        self.0
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// All indices, rising.
    pub fn all() -> impl Iterator<Item = PathIndex> {
        (0..MAX_PATHS as u8).map(PathIndex)
    }
}

/// Header of a sealed datagram: `[0x4|epoch low nibble][cid 7][counter u64]`; all of it is associated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// Epoch modulo 16.
    pub epoch_bits: u8,
    pub cid: Cid,
    pub counter: u64,
}

impl DataHeader {
    /// Parses the first 16 bytes of a datagram that must also have room for a tag.
    pub fn parse(datagram: &[u8]) -> Result<DataHeader, DropReason> {
        if Kind::of(datagram)? != Kind::Data {
            return Err(DropReason::UnknownKind);
        }
        if datagram.len() <= OVERHEAD {
            return Err(DropReason::Truncated);
        }
        let mut reader = Reader::new(datagram);
        Ok(DataHeader { epoch_bits: reader.u8()? & 0x0f, cid: reader.array()?, counter: reader.u64()? })
    }

    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = Kind::Data.byte() | (self.epoch_bits & 0x0f);
        out[1..8].copy_from_slice(&self.cid);
        out[8..].copy_from_slice(&self.counter.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn header_round_trips(epoch_bits in 0u8..16, cid: [u8; 7], counter: u64) {
            let header = DataHeader { epoch_bits, cid, counter };
            let mut datagram = header.to_bytes().to_vec();
            datagram.extend([0; TAG_LEN + 1]);
            prop_assert_eq!(DataHeader::parse(&datagram), Ok(header));
        }

        #[test]
        fn parse_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (Kind::of(&bytes), DataHeader::parse(&bytes));
        }
    }

    #[test]
    fn every_shorter_datagram_is_truncated() {
        let full = [&DataHeader { epoch_bits: 3, cid: [7; 7], counter: 9 }.to_bytes()[..], &[0; 17]].concat();
        for len in 0..full.len() {
            assert_eq!(DataHeader::parse(&full[..len]), Err(DropReason::Truncated), "{len}");
        }
    }

    #[test]
    fn first_nibbles_outside_one_to_nine_are_unknown() {
        for nibble in [0u8, 10, 11, 12, 13, 14, 15] {
            assert_eq!(Kind::of(&[nibble << 4; 40]), Err(DropReason::UnknownKind));
        }
    }

    #[test]
    fn path_index_is_bounded() {
        assert_eq!(PathIndex::all().count(), MAX_PATHS);
        assert_eq!(PathIndex::new(8), None);
    }
}
