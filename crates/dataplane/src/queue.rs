//! Inner packets that wait while no binding lives, in order, oldest given up first.

use std::collections::VecDeque;

/// Packets beside the bound in bytes: small packets must not make the queue's own overhead the larger part.
pub const MAX_PACKETS: usize = 2048;

/// A bounded queue of inner packets.
#[derive(Debug)]
pub struct InnerQueue {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
    max_bytes: usize,
    /// How many at the front already left under a next epoch that is not confirmed yet.
    early: usize,
}

impl InnerQueue {
    /// A queue of at most `max_bytes`; it takes memory only for what it holds.
    pub fn new(max_bytes: usize) -> Self {
        Self { packets: VecDeque::new(), bytes: 0, max_bytes, early: 0 }
    }

    /// Appends `packet`; returns how many packets were given up for it.
    pub fn push(&mut self, packet: Vec<u8>) -> u64 {
        if packet.len() > self.max_bytes {
            return 1;
        }
        self.bytes += packet.len();
        self.packets.push_back(packet);
        let mut shed = 0;
        while self.bytes > self.max_bytes || self.packets.len() > MAX_PACKETS {
            let Some(oldest) = self.packets.pop_front() else { break };
            self.bytes -= oldest.len();
            // What already left is no loss.
            shed += u64::from(self.early == 0);
            self.early = self.early.saturating_sub(1);
        }
        shed
    }

    /// Takes the oldest packet.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        let packet = self.packets.pop_front();
        match &packet {
            Some(packet) => self.bytes -= packet.len(),
            None => self.packets = VecDeque::new(),
        }
        packet
    }

    /// The packets that did not leave early, oldest first; all count as left early from now on.
    pub fn take_early(&mut self) -> impl Iterator<Item = &[u8]> {
        let first = std::mem::replace(&mut self.early, self.packets.len());
        self.packets.iter().skip(first).map(Vec::as_slice)
    }

    /// Ends the early sending: `delivered` tells whether the next epoch became the present one.
    pub fn end_early(&mut self, delivered: bool) {
        let count = std::mem::take(&mut self.early);
        if delivered {
            self.packets.drain(..count).for_each(|packet| self.bytes -= packet.len());
        }
    }

    /// Number of waiting packets.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_leave_first_and_are_counted() {
        let mut queue = InnerQueue::new(100);
        let shed: u64 = (0..5u8).map(|byte| queue.push(vec![byte; 40])).sum();
        assert_eq!((shed, queue.len()), (3, 2));
        assert_eq!(queue.pop(), Some(vec![3; 40]));
        assert_eq!(queue.pop(), Some(vec![4; 40]));
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.push(vec![0; 101]), 1);
    }

    #[test]
    fn early_packets_come_back_when_their_epoch_fails() {
        let mut queue = InnerQueue::new(100);
        queue.push(vec![1; 10]);
        assert_eq!(queue.take_early().count(), 1);
        queue.push(vec![2; 10]);
        queue.end_early(false);
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.take_early().count(), 2);
        queue.push(vec![3; 10]);
        queue.end_early(true);
        assert_eq!(queue.pop(), Some(vec![3; 10]));
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn the_number_of_packets_is_bounded_too() {
        let mut queue = InnerQueue::new(1 << 30);
        let shed: u64 = (0..MAX_PACKETS + 7).map(|_| queue.push(vec![1])).sum();
        assert_eq!((shed, queue.len()), (7, MAX_PACKETS));
    }
}
