//! Datagrams of one session laid side by side at equal stride, to be sealed in place and sent by one call.

use jumpvpn_packet::header::{HEADER_LEN, OVERHEAD};

use crate::udp::MAX_TRAIN;

/// The kernel's limit of segments per send.
const MAX_SEGMENTS: usize = 64;

/// A train under construction; every datagram is header room, plaintext, tag room.
#[derive(Debug)]
pub struct Train {
    bytes: Vec<u8>,
    len: usize,
    stride: usize,
    count: usize,
    closed: bool,
}

impl Default for Train {
    fn default() -> Self {
        Self { bytes: vec![0; MAX_TRAIN], len: 0, stride: 0, count: 0, closed: false }
    }
}

impl Train {
    /// Longest inner packet that fits a datagram.
    pub const MAX_PACKET: usize = MAX_TRAIN - OVERHEAD;

    /// True when a packet of `length` bytes may follow: not longer than the first, and none after a shorter one.
    pub fn fits(&self, length: usize) -> bool {
        let datagram = length + OVERHEAD;
        self.count == 0
            || (!self.closed
                && datagram <= self.stride
                && self.count < MAX_SEGMENTS
                && self.len + datagram <= self.bytes.len())
    }

    /// Room for the next plaintext of `length` bytes; `fits(length)` holds and `length` is at most `MAX_PACKET`.
    pub fn add(&mut self, length: usize) -> &mut [u8] {
        let datagram = length + OVERHEAD;
        if self.count == 0 {
            self.stride = datagram;
        }
        self.closed = datagram < self.stride;
        let start = self.len + HEADER_LEN;
        self.len += datagram;
        self.count += 1;
        &mut self.bytes[start..start + length]
    }

    /// The datagrams so far.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// The datagrams so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Bytes of each datagram but the last, which may be shorter.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Number of datagrams.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The plaintexts, before sealing.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let plain = |datagram: &'_ [u8]| HEADER_LEN..datagram.len() - (OVERHEAD - HEADER_LEN);
        self.bytes().chunks(self.stride.max(1)).map(move |datagram| &datagram[plain(datagram)])
    }

    /// Starts anew.
    pub fn clear(&mut self) {
        (self.len, self.count, self.closed) = (0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_datagram_closes_the_train() {
        let mut train = Train::default();
        assert!(train.fits(1400));
        train.add(100).fill(1);
        assert!(!train.fits(101));
        train.add(100).fill(2);
        train.add(50).fill(3);
        assert!(!train.fits(50) && !train.fits(1));
        assert_eq!((train.stride(), train.count(), train.bytes().len()), (132, 3, 132 + 132 + 82));
        let packets: Vec<_> = train.packets().map(|packet| (packet[0], packet.len())).collect();
        assert_eq!(packets, [(1, 100), (2, 100), (3, 50)]);
    }

    #[test]
    fn a_train_is_bounded_in_bytes_and_segments() {
        let mut train = Train::default();
        let count = |train: &mut Train, length: usize| {
            train.clear();
            while train.fits(length) {
                train.add(length);
            }
            train.count()
        };
        assert_eq!(count(&mut train, 20), MAX_SEGMENTS);
        assert_eq!(count(&mut train, 1400), MAX_TRAIN / 1432);
        assert_eq!(count(&mut train, Train::MAX_PACKET), 1);
    }
}
