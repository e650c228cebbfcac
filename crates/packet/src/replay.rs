//! Anti-replay window of one path in one epoch. Bit ring after RFC 6479. spec: WIRE-45

use crate::DropReason;

/// Counters below the highest that are still told apart. 8192 covers 80 ms of reordering at 100,000 packets a second.
pub const WINDOW: u64 = 8192;
/// Counters stop here: a data key seals far fewer datagrams, so a larger one is nonsense.
pub const COUNTER_LIMIT: u64 = 1 << 48;

/// One word more than the window, so that moving the window clears whole words.
const WORDS: usize = (WINDOW / 64) as usize + 1;

/// Which counters were received.
pub struct ReplayWindow {
    /// Bit ring: counter `c` is bit `c % 64` of word `c / 64 % WORDS`.
    words: [u64; WORDS],
    /// Highest counter received plus one; 0 when none was.
    next: u64,
    /// Counters received, each once.
    received: u64,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { words: [0; WORDS], next: 0, received: 0 }
    }
}

impl ReplayWindow {
    /// Would `counter` be accepted? Changes nothing; call before opening.
    #[inline]
    pub fn check(&self, counter: u64) -> Result<(), DropReason> {
        if counter >= COUNTER_LIMIT {
            return Err(DropReason::CounterLimit);
        }
        if counter >= self.next {
            return Ok(());
        }
        if self.next - counter > WINDOW {
            return Err(DropReason::ReplayOld);
        }
        if self.words[word(counter)] & bit(counter) != 0 {
            return Err(DropReason::ReplayRepeated);
        }
        Ok(())
    }

    /// Records `counter`; call only after its datagram authenticated.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> Result<(), DropReason> {
        self.check(counter)?;
        if counter >= self.next {
            self.advance(counter);
        }
        self.words[word(counter)] |= bit(counter);
        self.received += 1;
        Ok(())
    }

    /// Highest counter received, if any.
    pub fn highest(&self) -> Option<u64> {
        self.next.checked_sub(1)
    }

    /// How many counters were received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The lowest counter inside the window that was not received: all below it are covered or given up.
    pub fn lowest_missing(&self) -> u64 {
        let mut counter = self.next.saturating_sub(WINDOW);
        while counter < self.next {
            let ahead = (self.words[word(counter)] >> (counter % 64)).trailing_ones() as u64;
            if ahead == 0 {
                return counter;
            }
            let in_word = 64 - counter % 64;
            counter += ahead.min(in_word);
            if ahead < in_word {
                break;
            }
        }
        counter.min(self.next)
    }

    /// Clears the words between the old and the new highest counter.
    fn advance(&mut self, counter: u64) {
        let target = counter / 64;
        match self.next.checked_sub(1).map(|last| last / 64) {
            Some(current) if target - current < WORDS as u64 => {
                for index in current + 1..=target {
                    self.words[index as usize % WORDS] = 0;
                }
            }
            _ => self.words = [0; WORDS],
        }
        self.next = counter + 1;
    }
}

#[inline]
fn word(counter: u64) -> usize {
    (counter / 64) as usize % WORDS
}

#[inline]
fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

impl std::fmt::Debug for ReplayWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReplayWindow(highest: {:?}, received: {})", self.highest(), self.received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The same rules over a plain set.
    #[derive(Default)]
    struct Naive(BTreeSet<u64>);

    impl Naive {
        fn accept(&mut self, counter: u64) -> Result<(), DropReason> {
            let highest = self.0.last().copied();
            if counter >= COUNTER_LIMIT {
                return Err(DropReason::CounterLimit);
            }
            if highest.is_some_and(|h| h + 1 > counter + WINDOW) {
                return Err(DropReason::ReplayOld);
            }
            if self.0.insert(counter) {
                Ok(())
            } else {
                Err(DropReason::ReplayRepeated)
            }
        }

        fn lowest_missing(&self) -> u64 {
            let next = self.0.last().map_or(0, |h| h + 1);
            (next.saturating_sub(WINDOW)..next).find(|c| !self.0.contains(c)).unwrap_or(next)
        }
    }

    fn step() -> impl Strategy<Value = i64> {
        prop_oneof![6 => -3i64..4, 3 => -200i64..200, 1 => -9000i64..9000, 1 => 0i64..40_000]
    }

    proptest! {
        #[test]
        fn equals_the_naive_model(start in 0u64..20_000, steps in proptest::collection::vec(step(), 1..400)) {
            let (mut window, mut naive, mut at) = (ReplayWindow::default(), Naive::default(), start);
            for delta in steps {
                at = at.saturating_add_signed(delta);
                let checked = window.check(at);
                let accepted = window.accept(at);
                prop_assert_eq!(checked, accepted);
                prop_assert_eq!(accepted, naive.accept(at));
                prop_assert_eq!(window.highest(), naive.0.last().copied());
                prop_assert_eq!(window.received(), naive.0.len() as u64);
                prop_assert_eq!(window.lowest_missing(), naive.lowest_missing());
            }
        }
    }

    #[test]
    fn edges_of_the_window() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.lowest_missing(), 0);
        window.accept(WINDOW).unwrap();
        assert_eq!(window.check(0), Err(DropReason::ReplayOld));
        assert_eq!(window.check(1), Ok(()));
        assert_eq!(window.accept(WINDOW), Err(DropReason::ReplayRepeated));
        assert_eq!(window.check(COUNTER_LIMIT), Err(DropReason::CounterLimit));
        assert_eq!(window.check(COUNTER_LIMIT - 1), Ok(()));
    }

    #[test]
    fn a_full_prefix_has_no_gap() {
        let mut window = ReplayWindow::default();
        for counter in 0..20_000 {
            window.accept(counter).unwrap();
        }
        assert_eq!(window.lowest_missing(), 20_000);
    }
}
