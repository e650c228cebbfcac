//! Randomness as an argument.

use aws_lc_rs::rand;

/// A source of uniformly random bytes. Tests and vectors pass a fixed one; everything else passes [`SystemRandom`].
pub trait Random {
    /// Fills `out` entirely.
    fn fill(&mut self, out: &mut [u8]);
}

/// The operating system's generator by way of aws-lc-rs.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    /// Panics if the system has no randomness: no key may be made then.
    fn fill(&mut self, out: &mut [u8]) {
        rand::fill(out).expect("the system's random generator failed");
    }
}

/// Draws `N` bytes.
pub fn draw<const N: usize>(rng: &mut dyn Random) -> [u8; N] {
    let mut out = [0; N];
    rng.fill(&mut out);
    out
}
