//! Token buckets per source in a table of fixed size: a flood of sources takes no memory.

/// Sources share a bucket by chance beyond this number; 64 KiB in all.
const BUCKETS: usize = 4096;

/// Tokens per second and at most.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Refill per second, and the size of the bucket.
    pub per_second: u32,
}

/// The table. A new one holds full buckets.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    /// Time at which each bucket is full again, ns: the virtual-clock form of a token bucket.
    full_at_ns: Vec<u64>,
}

impl Buckets {
    /// Full buckets.
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at_ns: vec![0; BUCKETS] }
    }

    /// Takes one token of the bucket that `hash` picks; false when it is empty.
    pub fn take(&mut self, hash: u64, now_ns: u64) -> bool {
        let cost_ns = 1_000_000_000 / u64::from(self.rate.per_second.max(1));
        let full_at = &mut self.full_at_ns[hash as usize % BUCKETS];
        let start_ns = (*full_at).max(now_ns);
        if start_ns + cost_ns > now_ns + 1_000_000_000 {
            return false;
        }
        *full_at = start_ns + cost_ns;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_no_more() {
        let mut buckets = Buckets::new(Rate { per_second: 10 });
        let burst = (0..100).filter(|_| buckets.take(7, 0)).count();
        assert_eq!(burst, 10);
        assert!(buckets.take(8, 0), "another bucket is full");
        let second = (0..100).filter(|step| buckets.take(7, step * 10_000_000)).count();
        assert_eq!(second, 9);
    }
}
