//! Is one path alive in both directions? Pure: time comes in, changes come out.
//!
//! Only what the peer says about our own datagrams counts as hearing: a path that delivers one way is silent.

use std::collections::VecDeque;

/// Spacing of the marks that remember when counters were sent; the error of `owed` is below it.
const MARK_SPACING_NS: u64 = 5_000_000;
/// Marks kept: more than a report interval holds even when reports are late by 300 ms.
const MAX_MARKS: usize = 64;
/// Unanswered probes remembered; the oldest decides, so later ones may be forgotten.
const MAX_PROBES: usize = 16;

/// How often to probe and how long to wait; all in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Probe interval while traffic flows or the session has no active path.
    pub probe_busy_ns: u64,
    /// Probe interval otherwise.
    pub probe_idle_ns: u64,
    /// Longest wait for a report on data.
    pub silence_busy_ns: u64,
    /// Longest wait for the answer to a probe.
    pub silence_idle_ns: u64,
    /// Silence of this many thousandths of a limit is death.
    pub dead_milli: u64,
    /// Loss is taken over at least this long.
    pub loss_window_ns: u64,
}

/// What became of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The wait exceeded its limit.
    Silent {
        /// Wait so far.
        silent_ns: u64,
        /// The limit.
        limit_ns: u64,
    },
    /// The wait exceeded the limit by the factor of death.
    Dead {
        /// Wait so far.
        silent_ns: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Alive,
    Silent,
    Dead,
}

/// Data sent within a short interval.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// First counter.
    counter: u64,
    /// Earliest send that may be unreported.
    since_ns: u64,
    /// Last send.
    until_ns: u64,
}

/// Liveness of one path.
#[derive(Debug)]
pub struct Liveness {
    /// None: never probed, never silent.
    pub limits: Option<Limits>,
    /// Intervals of sends that are not yet fully reported.
    marks: VecDeque<Mark>,
    /// Counter after the last data datagram, and when it was sent.
    sent_next: u64,
    sent_at: u64,
    probes: VecDeque<u64>,
    last_heard_ns: u64,
    state: State,
}

impl Liveness {
    /// A path that owes nothing yet.
    pub fn new(limits: Option<Limits>, now_ns: u64) -> Self {
        Self {
            limits,
            marks: VecDeque::new(),
            sent_next: 0,
            sent_at: 0,
            probes: VecDeque::new(),
            last_heard_ns: now_ns,
            state: State::Alive,
        }
    }

    /// Inner packets left under counters `first..next`.
    pub fn sent_data(&mut self, first: u64, next: u64, now_ns: u64) {
        let full = self.marks.len() == MAX_MARKS;
        match self.marks.back_mut() {
            Some(last) if full || now_ns < last.since_ns + MARK_SPACING_NS => last.until_ns = now_ns,
            _ => self.marks.push_back(Mark { counter: first, since_ns: now_ns, until_ns: now_ns }),
        }
        self.sent_next = next;
        self.sent_at = now_ns;
    }

    /// A probe left.
    pub fn sent_probe(&mut self, now_ns: u64) {
        if self.probes.len() == MAX_PROBES {
            self.probes.pop_back();
        }
        self.probes.push_back(now_ns);
    }

    /// The peer reported `highest`; true when a silent path is heard again.
    pub fn reported(&mut self, highest: u64, now_ns: u64) -> bool {
        let next = highest.saturating_add(1);
        if self.marks.front().is_none_or(|front| next <= front.counter) {
            return false;
        }
        while !self.marks.is_empty() && next >= self.marks.get(1).map_or(self.sent_next, |mark| mark.counter) {
            self.marks.pop_front();
        }
        if let Some(front) = self.marks.front_mut() {
            front.counter = front.counter.max(next);
        }
        self.hear(now_ns)
    }

    /// The probe sent at `sent_ns` was answered; true when a silent path is heard again.
    pub fn answered(&mut self, sent_ns: u64, now_ns: u64) -> bool {
        self.probes.retain(|at| *at > sent_ns);
        while self.marks.front().is_some_and(|mark| mark.until_ns <= sent_ns) {
            self.marks.pop_front();
        }
        if let Some(front) = self.marks.front_mut() {
            front.since_ns = front.since_ns.max(sent_ns);
        }
        self.hear(now_ns)
    }

    fn hear(&mut self, now_ns: u64) -> bool {
        self.last_heard_ns = now_ns;
        std::mem::replace(&mut self.state, State::Alive) != State::Alive
    }

    /// Forgets what is owed under counters that ended; the wait of probes goes on.
    pub fn new_epoch(&mut self) {
        self.marks.clear();
        self.sent_next = 0;
        self.sent_at = 0;
    }

    /// Owes nothing and is alive, as a new path: what was told before is told again.
    pub fn watch_anew(&mut self, now_ns: u64) {
        *self = Self::new(self.limits, now_ns);
    }

    /// What has changed by now; call until None.
    pub fn check(&mut self, now_ns: u64) -> Option<Change> {
        let (since, limit_ns) = self.most_urgent()?;
        let silent_ns = now_ns.saturating_sub(since);
        let dead_ns = self.dead_after(limit_ns)?;
        if self.state == State::Alive && silent_ns >= limit_ns {
            self.state = State::Silent;
            return Some(Change::Silent { silent_ns, limit_ns });
        }
        if self.state == State::Silent && silent_ns >= dead_ns {
            self.state = State::Dead;
            return Some(Change::Dead { silent_ns });
        }
        None
    }

    /// When `check` has something to say if nothing is heard.
    pub fn deadline(&self) -> Option<u64> {
        let (since, limit_ns) = self.most_urgent()?;
        match self.state {
            State::Alive => Some(since + limit_ns),
            State::Silent => Some(since + self.dead_after(limit_ns)?),
            State::Dead => None,
        }
    }

    /// (start, limit) of the wait that ends first.
    fn most_urgent(&self) -> Option<(u64, u64)> {
        let limits = self.limits?;
        let data = self.marks.front().map(|mark| (mark.since_ns, limits.silence_busy_ns));
        let probe = self.probes.front().map(|at| (*at, limits.silence_idle_ns));
        [data, probe].into_iter().flatten().min_by_key(|(since, limit)| since.saturating_add(*limit))
    }

    fn dead_after(&self, limit_ns: u64) -> Option<u64> {
        Some((u128::from(limit_ns) * u128::from(self.limits?.dead_milli) / 1000) as u64)
    }

    /// Time since the earliest unreported send; 0 when nothing is owed.
    pub fn owed_ns(&self, now_ns: u64) -> u64 {
        let earliest =
            [self.marks.front().map(|mark| mark.since_ns), self.probes.front().copied()].into_iter().flatten().min();
        earliest.map_or(0, |at| now_ns.saturating_sub(at))
    }

    /// When the peer last said something about our datagrams (at first: when the path was set).
    pub fn last_heard_ns(&self) -> u64 {
        self.last_heard_ns
    }

    /// When inner packets last left; 0 for never.
    pub fn last_data_ns(&self) -> u64 {
        self.sent_at
    }

    /// True while silent or dead.
    pub fn is_silent(&self) -> bool {
        self.state != State::Alive
    }
}

/// Smoothed round-trip time (RFC 6298), in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip {
    /// Smoothed value; 0 before the first sample.
    pub srtt_ns: u64,
    /// Mean deviation.
    pub rttvar_ns: u64,
    /// Smallest sample.
    pub min_ns: u64,
}

impl RoundTrip {
    /// Takes one sample.
    pub fn sample(&mut self, rtt_ns: u64) {
        if self.srtt_ns == 0 {
            *self = Self { srtt_ns: rtt_ns.max(1), rttvar_ns: rtt_ns / 2, min_ns: rtt_ns };
            return;
        }
        let deviation = self.srtt_ns.abs_diff(rtt_ns);
        self.rttvar_ns = self.rttvar_ns - self.rttvar_ns / 4 + deviation / 4;
        self.srtt_ns = self.srtt_ns - self.srtt_ns / 8 + rtt_ns / 8;
        self.min_ns = self.min_ns.min(rtt_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn path() -> Liveness {
        let limits = Limits {
            probe_busy_ns: 50 * MS,
            probe_idle_ns: 1000 * MS,
            silence_busy_ns: 100 * MS,
            silence_idle_ns: 300 * MS,
            dead_milli: 2000,
            loss_window_ns: 0,
        };
        Liveness::new(Some(limits), 0)
    }

    #[test]
    fn unreported_data_is_silent_once_then_dead_once() {
        let mut path = path();
        path.sent_data(0, 5, 10 * MS);
        assert_eq!(path.deadline(), Some(110 * MS));
        assert_eq!(path.check(109 * MS), None);
        let silent = Change::Silent { silent_ns: 100 * MS, limit_ns: 100 * MS };
        assert_eq!(path.check(110 * MS), Some(silent));
        assert_eq!(path.check(150 * MS), None);
        assert_eq!(path.check(210 * MS), Some(Change::Dead { silent_ns: 200 * MS }));
        assert_eq!((path.check(999 * MS), path.deadline()), (None, None));
        assert!(path.reported(0, 1000 * MS));
    }

    #[test]
    fn a_report_that_covers_everything_ends_the_wait() {
        let mut path = path();
        path.sent_data(3, 5, 10 * MS);
        assert!(!path.reported(2, 12 * MS), "covers nothing of ours");
        assert_eq!(path.owed_ns(20 * MS), 10 * MS);
        assert!(!path.reported(4, 15 * MS));
        assert_eq!((path.owed_ns(20 * MS), path.deadline()), (0, None));
    }

    #[test]
    fn a_report_that_covers_a_part_moves_the_wait_forward() {
        let mut path = path();
        for step in 0..10 {
            path.sent_data(step, step + 1, step * 10 * MS);
        }
        path.reported(4, 95 * MS);
        assert_eq!(path.owed_ns(100 * MS), 50 * MS);
    }

    #[test]
    fn an_answered_probe_covers_what_was_sent_before_it() {
        let mut path = path();
        path.sent_data(0, 1, 0);
        path.sent_probe(10 * MS);
        path.sent_data(2, 3, 20 * MS);
        path.answered(10 * MS, 30 * MS);
        assert_eq!(path.owed_ns(30 * MS), 10 * MS);
        path.answered(25 * MS, 40 * MS);
        assert_eq!(path.deadline(), None);
    }

    #[test]
    fn an_unanswered_probe_has_the_longer_limit() {
        let mut path = path();
        path.sent_probe(0);
        path.sent_probe(50 * MS);
        assert_eq!(path.check(299 * MS), None);
        assert!(matches!(path.check(300 * MS), Some(Change::Silent { .. })));
        assert!(path.answered(50 * MS, 310 * MS));
        assert_eq!(path.check(900 * MS), None);
    }

    #[test]
    fn without_limits_nothing_is_said() {
        let mut path = Liveness::new(None, 0);
        path.sent_data(0, 1, 0);
        assert_eq!((path.check(u64::MAX), path.deadline()), (None, None));
    }

    #[test]
    fn round_trip_follows_rfc_6298() {
        let mut rtt = RoundTrip::default();
        rtt.sample(80 * MS);
        assert_eq!(rtt, RoundTrip { srtt_ns: 80 * MS, rttvar_ns: 40 * MS, min_ns: 80 * MS });
        rtt.sample(40 * MS);
        assert_eq!(rtt, RoundTrip { srtt_ns: 75 * MS, rttvar_ns: 40 * MS, min_ns: 40 * MS });
    }
}
