//! The last sealed datagrams, kept to be sent again as they are after a switch.
//!
//! Bytes lie in fixed blocks; one train (datagrams of one send, consecutive counters) never crosses a block.

use std::collections::VecDeque;

use jumpvpn_packet::header::MAX_PATHS;

/// One block holds the longest train.
const BLOCK: usize = 64 << 10;
/// Blocks kept for reuse, so that steady traffic does not allocate.
const SPARE: usize = 4;

/// Where and when a train was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Epoch of the keys.
    pub epoch: u64,
    /// Path whose counters were used.
    pub path: u8,
    /// Counter of the first datagram.
    pub counter: u64,
    /// Time in ns.
    pub at_ns: u64,
}

#[derive(Debug)]
struct Train {
    seal: Seal,
    start: usize,
    len: usize,
    stride: usize,
}

#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    trains: VecDeque<Train>,
}

/// Sealed datagrams within a bound of bytes and age.
#[derive(Debug)]
pub struct ReplayBuffer {
    blocks: VecDeque<Block>,
    spare: Vec<Block>,
    held: usize,
    max_bytes: usize,
    max_age_ns: u64,
    /// Per path: epoch, and the first counter that the peer has not reported.
    covered: [(u64, u64); MAX_PATHS],
}

impl ReplayBuffer {
    /// Keeps at most `max_bytes` (0 keeps nothing) for at most `max_age_ns`.
    pub fn new(max_bytes: usize, max_age_ns: u64) -> Self {
        let covered = [(0, 0); MAX_PATHS];
        Self { blocks: VecDeque::new(), spare: Vec::new(), held: 0, max_bytes, max_age_ns, covered }
    }

    /// Keeps a copy of `bytes`, datagrams of `stride` bytes each but the last.
    pub fn push(&mut self, seal: Seal, bytes: &[u8], stride: usize) {
        if self.max_bytes == 0 || bytes.len() > BLOCK {
            return;
        }
        let fits = self.blocks.back().is_some_and(|block| block.bytes.len() + bytes.len() <= BLOCK);
        if !fits {
            self.trim(seal.at_ns);
            let block = self.spare.pop().unwrap_or_default();
            self.blocks.push_back(block);
        }
        let Some(block) = self.blocks.back_mut() else { return };
        if block.bytes.capacity() < block.bytes.len() + bytes.len() && block.bytes.len() > BLOCK / 8 {
            block.bytes.reserve_exact(BLOCK - block.bytes.len());
        }
        block.trains.push_back(Train { seal, start: block.bytes.len(), len: bytes.len(), stride });
        block.bytes.extend_from_slice(bytes);
        self.held += bytes.len();
        while self.held > self.max_bytes && self.drop_oldest() {}
    }

    /// Notes the peer's report: every counter of (`epoch`, `path`) up to `highest` needs no second sending.
    pub fn report(&mut self, epoch: u64, path: u8, highest: u64) {
        let covered = &mut self.covered[usize::from(path) % MAX_PATHS];
        if covered.0 < epoch {
            *covered = (epoch, highest + 1);
        } else if covered.0 == epoch {
            covered.1 = covered.1.max(highest + 1);
        }
    }

    /// Drops what is reported or too old; frees all memory when nothing is left.
    pub fn trim(&mut self, now_ns: u64) {
        while self.blocks.iter().find_map(|block| block.trains.front()).is_some_and(|train| self.is_done(train, now_ns))
        {
            self.drop_oldest();
        }
    }

    /// Frees the memory of an empty buffer; for sessions that went quiet.
    pub fn release(&mut self) {
        if self.is_empty() {
            self.blocks = VecDeque::new();
            self.spare = Vec::new();
        }
    }

    /// Hands every unreported datagram of epochs from `oldest_epoch` on to `send(bytes, stride)`, oldest first.
    ///
    /// Returns the number of datagrams handed out. They stay in the buffer until reported, aged or pushed out.
    pub fn resend(&mut self, now_ns: u64, oldest_epoch: u64, mut send: impl FnMut(&[u8], usize)) -> u64 {
        self.trim(now_ns);
        let mut count = 0;
        for block in &self.blocks {
            for train in block.trains.iter().filter(|train| train.seal.epoch >= oldest_epoch) {
                let skip = (self.first_missing(train).saturating_sub(train.seal.counter)) as usize * train.stride;
                if skip >= train.len || now_ns > train.seal.at_ns + self.max_age_ns {
                    continue;
                }
                let bytes = &block.bytes[train.start + skip..train.start + train.len];
                count += bytes.len().div_ceil(train.stride) as u64;
                send(bytes, train.stride);
            }
        }
        count
    }

    /// Forgets the datagrams of epochs that `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        let mut gone = 0;
        for block in &mut self.blocks {
            block.trains.retain(|train| {
                let keeps = keep(train.seal.epoch);
                gone += if keeps { 0 } else { train.len };
                keeps
            });
        }
        self.blocks.retain(|block| !block.trains.is_empty());
        self.held -= gone;
    }

    /// True when nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    fn first_missing(&self, train: &Train) -> u64 {
        let (epoch, next) = self.covered[usize::from(train.seal.path) % MAX_PATHS];
        if epoch == train.seal.epoch {
            next
        } else {
            0
        }
    }

    fn is_done(&self, train: &Train, now_ns: u64) -> bool {
        let after = train.seal.counter + train.len.div_ceil(train.stride) as u64;
        now_ns > train.seal.at_ns + self.max_age_ns || self.first_missing(train) >= after
    }

    fn drop_oldest(&mut self) -> bool {
        while let Some(block) = self.blocks.front_mut() {
            let dropped = block.trains.pop_front().map(|train| train.len);
            if block.trains.is_empty() {
                self.recycle_front();
            }
            if let Some(len) = dropped {
                self.held -= len;
                return true;
            }
        }
        false
    }

    fn recycle_front(&mut self) {
        let Some(mut block) = self.blocks.pop_front() else { return };
        block.bytes.clear();
        if self.spare.len() < SPARE {
            self.spare.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(counter: u64, at_ns: u64) -> Seal {
        Seal { epoch: 1, path: 0, counter, at_ns }
    }

    fn contents(buffer: &mut ReplayBuffer, now_ns: u64) -> Vec<u8> {
        let mut out = Vec::new();
        buffer.resend(now_ns, 0, |bytes, stride| out.extend(bytes.chunks(stride).map(|datagram| datagram[0])));
        out
    }

    #[test]
    fn unreported_datagrams_come_back_in_order() {
        let mut buffer = ReplayBuffer::new(1000, 100);
        buffer.push(seal(0, 0), &[1, 1, 2, 2, 3], 2);
        buffer.push(seal(3, 0), &[4, 4], 2);
        assert_eq!(contents(&mut buffer, 10), [1, 2, 3, 4]);
        buffer.report(1, 0, 1);
        assert_eq!(contents(&mut buffer, 10), [3, 4]);
        buffer.report(1, 0, 0);
        assert_eq!(contents(&mut buffer, 10), [3, 4]);
        buffer.report(1, 0, 3);
        assert!(contents(&mut buffer, 10).is_empty() && buffer.is_empty());
    }

    #[test]
    fn age_and_bytes_bound_what_is_kept() {
        let mut buffer = ReplayBuffer::new(3, 100);
        for counter in 0..5u8 {
            buffer.push(seal(counter.into(), u64::from(counter) * 10), &[counter], 1);
        }
        assert_eq!(contents(&mut buffer, 40), [2, 3, 4]);
        assert_eq!(contents(&mut buffer, 131), [4]);
        assert!(contents(&mut buffer, 141).is_empty());
    }

    #[test]
    fn an_older_epoch_is_left_out_and_reports_do_not_cross_epochs() {
        let mut buffer = ReplayBuffer::new(100, 100);
        buffer.push(seal(0, 0), &[1], 1);
        buffer.push(Seal { epoch: 2, path: 0, counter: 0, at_ns: 0 }, &[2], 1);
        buffer.report(2, 0, 7);
        assert_eq!(contents(&mut buffer, 0), [1]);
        let mut sent = 0;
        assert_eq!(buffer.resend(0, 2, |_, _| sent += 1), 0);
        assert_eq!(sent, 0);
    }

    #[test]
    fn epochs_can_be_forgotten() {
        let mut buffer = ReplayBuffer::new(200_000, 100);
        for epoch in [1, 1, 2, 1, 2] {
            buffer.push(Seal { epoch, path: 0, counter: 0, at_ns: 0 }, &[epoch as u8; 40_000], 40_000);
        }
        buffer.retain(|epoch| epoch != 1);
        assert_eq!(contents(&mut buffer, 0), [2, 2]);
        buffer.push(Seal { epoch: 3, path: 0, counter: 0, at_ns: 0 }, &[3; 100], 100);
        buffer.retain(|epoch| epoch == 3);
        assert_eq!((contents(&mut buffer, 0), buffer.held), (vec![3], 100));
        buffer.retain(|_| false);
        assert!(buffer.is_empty());
    }

    #[test]
    fn long_traffic_reuses_its_blocks() {
        let mut buffer = ReplayBuffer::new(200_000, 1 << 40);
        let train = vec![7; 60_000];
        for round in 0..1000u64 {
            buffer.push(seal(round * 50, round), &train, 1200);
        }
        assert!(buffer.blocks.len() <= 4 && buffer.spare.len() <= SPARE);
        assert_eq!(contents(&mut buffer, 1000).len(), 150);
    }

    #[test]
    fn zero_bytes_keeps_nothing() {
        let mut buffer = ReplayBuffer::new(0, 100);
        buffer.push(seal(0, 0), &[1], 1);
        assert!(buffer.is_empty());
    }
}
