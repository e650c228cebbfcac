//! When a client that lost its gateway asks which one: the rules of the shipped client (`engine/plans.py`,
//! `engine/gateways.py`) for a device with one network and the default policy. Pure; times are ns of any rising clock.

use crate::options::MAX_GATEWAYS;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// Policy `recovery.max_attempts`: whoever would try once more gives the session up.
const MAX_ATTEMPTS: u32 = 8;
/// A silent transport is dead after as long again (`silence_floor`, `dead_factor`): the first recovery begins.
const DEAD_AFTER_NS: u64 = 100 * MS;
/// Attempts without patience; then 2, 4, 8 … s once more gateways let the client down that had answered its probe.
const PROMPT_TRIES: u32 = 2;
const PATIENCE_MAX_NS: u64 = 60 * SECOND;
/// Doubled per attempt: then even a gateway that answers no probe is asked.
const BLIND_NS: u64 = 4 * SECOND;
/// A gateway that denied is not asked again before; doubled for each further denial.
const DENIAL_NS: u64 = 5 * SECOND;
const DENIAL_MAX_NS: u64 = 60 * SECOND;
/// Policy `session.transport_ttl` less `recovery.window`: the last attempt is kept for then, if no gateway answers.
const LAST_NS: u64 = 292 * SECOND;

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a request of this gateway.
    Ask(usize),
    /// Nothing before this instant, unless a gateway is heard.
    Wait(u64),
    /// All attempts are used up.
    End,
}

/// What is known while no gateway holds the client, and what gateways did to it.
#[derive(Default)]
pub struct Recovery {
    lost_ns: u64,
    entered_ns: u64,
    attempts: u32,
    let_down: u32,
    is_corrected: bool,
    is_blind: bool,
    tried: u8,
    heard_ns: [u64; MAX_GATEWAYS],
    doubted_ns: [u64; MAX_GATEWAYS],
    denied: [(u64, u32); MAX_GATEWAYS],
}

impl Recovery {
    /// `gateway` proved at `now` that it lives.
    pub fn heard(&mut self, gateway: usize, now_ns: u64) {
        self.heard_ns[gateway] = now_ns;
    }

    /// No gateway holds the client any more. What was heard before counts only for `trusted`.
    pub fn begin(&mut self, trusted: Option<usize>, now_ns: u64) {
        (self.lost_ns, self.entered_ns) = (now_ns, now_ns + DEAD_AFTER_NS);
        (self.attempts, self.let_down, self.tried) = (0, 0, 0);
        (self.is_corrected, self.is_blind) = (false, false);
        self.doubted_ns = [now_ns; MAX_GATEWAYS];
        if let Some(gateway) = trusted {
            self.doubted_ns[gateway] = 0;
            self.heard_ns[gateway] = now_ns;
        }
    }

    /// What to do; `gateways` are those that may be asked, the best first.
    pub fn step(&mut self, gateways: &[usize], now_ns: u64) -> Step {
        if self.tried != 0 {
            // Still in the recovery that an attempt belonged to: its other candidates come at once.
            if let Some(gateway) = self.candidate(gateways, now_ns) {
                return self.ask(gateway);
            }
            (self.tried, self.is_blind, self.entered_ns) = (0, false, now_ns);
        } else if self.attempts == 0 && now_ns >= self.entered_ns {
            self.attempts = 1; // a recovery that found nobody to ask
        }
        let ready = self.candidate(gateways, now_ns);
        let due_ns = ready.map_or_else(|| self.blind_at(gateways), |_| self.patient_until());
        if now_ns < due_ns {
            let first = if self.attempts == 0 { self.entered_ns } else { u64::MAX };
            return Step::Wait(due_ns.min(first));
        }
        if self.attempts >= MAX_ATTEMPTS {
            return Step::End;
        }
        self.attempts += 1;
        self.is_blind = ready.is_none();
        match self.candidate(gateways, now_ns) {
            Some(gateway) => self.ask(gateway),
            None => Step::End,
        }
    }

    /// Whether the request under way was made without evidence that its gateway lives.
    pub fn is_blind(&self) -> bool {
        self.is_blind
    }

    /// The request of `gateway` ran out of time: it has to be heard before it is asked again.
    pub fn timed_out(&mut self, gateway: usize, now_ns: u64) {
        self.let_down += u32::from(self.is_heard(gateway));
        self.doubted_ns[gateway] = now_ns;
    }

    /// `gateway` refused. `learned`: the refusal told what the next request has to name.
    pub fn denied(&mut self, gateway: usize, learned: bool, now_ns: u64) {
        self.heard(gateway, now_ns);
        (self.tried, self.is_blind, self.is_corrected, self.entered_ns) = (0, false, learned, now_ns);
        if !learned {
            let (until_ns, count) = &mut self.denied[gateway];
            *until_ns = now_ns + (DENIAL_NS << (*count).min(8)).min(DENIAL_MAX_NS);
            *count += 1;
        }
    }

    /// `gateway` holds the session.
    pub fn granted(&mut self, gateway: usize, now_ns: u64) {
        self.denied[gateway] = (0, 0);
        self.tried = 0;
        self.heard(gateway, now_ns);
    }

    fn ask(&mut self, gateway: usize) -> Step {
        self.tried |= 1 << gateway;
        self.is_corrected = false;
        Step::Ask(gateway)
    }

    fn is_heard(&self, gateway: usize) -> bool {
        self.heard_ns[gateway] > self.doubted_ns[gateway]
    }

    fn candidate(&self, gateways: &[usize], now_ns: u64) -> Option<usize> {
        let open = |&&gateway: &&usize| {
            let worth = self.is_heard(gateway) || self.is_blind;
            worth && self.tried & 1 << gateway == 0 && now_ns >= self.denied[gateway].0
        };
        gateways.iter().find(open).copied()
    }

    fn patient_until(&self) -> u64 {
        let is_prompt = self.is_corrected || self.attempts <= PROMPT_TRIES || self.let_down <= PROMPT_TRIES;
        let patience = if is_prompt { 0 } else { SECOND << (self.let_down - PROMPT_TRIES).min(8) };
        // Before the transport is dead, an answer of another gateway starts the first attempt at once.
        let from = if self.attempts == 0 { self.lost_ns } else { self.entered_ns };
        from + patience.min(PATIENCE_MAX_NS)
    }

    fn blind_at(&self, gateways: &[usize]) -> u64 {
        let denied_ns = gateways.iter().map(|&gateway| self.denied[gateway].0).min().unwrap_or(0);
        match MAX_ATTEMPTS.saturating_sub(self.attempts) {
            0 => u64::MAX,
            1 => self.entered_ns.max(self.lost_ns + LAST_NS),
            _ if denied_ns > self.entered_ns => denied_ns,
            _ => self.entered_ns + (BLIND_NS << self.attempts.saturating_sub(1).min(8)).min(PATIENCE_MAX_NS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEMPT_NS: u64 = 2 * SECOND;
    const HOME: usize = 0;
    const OTHER: usize = 1;
    const BOTH: [usize; 2] = [HOME, OTHER];

    fn lost() -> Recovery {
        let mut recovery = Recovery::default();
        recovery.heard(HOME, SECOND);
        recovery.heard(OTHER, SECOND);
        recovery.begin(None, 10 * SECOND);
        recovery
    }

    #[test]
    fn a_standby_is_asked_when_it_has_answered_since_the_loss() {
        let mut recovery = lost();
        assert_eq!(recovery.step(&BOTH, 10 * SECOND), Step::Wait(10 * SECOND + DEAD_AFTER_NS));
        recovery.heard(OTHER, 10 * SECOND + MS);
        assert_eq!(recovery.step(&BOTH, 10 * SECOND + MS), Step::Ask(OTHER));
        assert!(!recovery.is_blind());
    }

    /// Runs until `End` with a standby that answers every probe and no request; when requests were made, s.
    #[test]
    fn attempts_follow_at_once_then_after_2_4_8_16_s_and_the_eighth_is_the_last() {
        let (mut recovery, mut now, mut asked) = (lost(), 10 * SECOND + MS, Vec::new());
        recovery.heard(OTHER, now);
        loop {
            match recovery.step(&BOTH, now) {
                Step::Ask(gateway) => {
                    assert_eq!(gateway, OTHER);
                    asked.push((now - 10 * SECOND) / SECOND);
                    now += ATTEMPT_NS;
                    recovery.timed_out(OTHER, now);
                    assert!(matches!(recovery.step(&BOTH, now), Step::Wait(_)), "it has to answer first");
                    recovery.heard(OTHER, now + 1);
                    now += 1;
                }
                Step::Wait(until) => now = until,
                Step::End => break,
            }
        }
        assert_eq!(asked, [0, 2, 4, 8, 14, 24, 42, 76]);
    }

    #[test]
    fn where_nobody_answers_all_are_asked_blindly_after_4_s_then_8_s() {
        let mut recovery = lost();
        let dead = 10 * SECOND + DEAD_AFTER_NS;
        assert_eq!(recovery.step(&BOTH, dead), Step::Wait(dead + BLIND_NS));
        assert_eq!(recovery.step(&BOTH, dead + BLIND_NS), Step::Ask(HOME));
        assert!(recovery.is_blind());
        recovery.timed_out(HOME, dead + BLIND_NS + ATTEMPT_NS);
        assert_eq!(recovery.step(&BOTH, dead + BLIND_NS + ATTEMPT_NS), Step::Ask(OTHER));
        let failed = dead + BLIND_NS + 2 * ATTEMPT_NS;
        recovery.timed_out(OTHER, failed);
        assert_eq!(recovery.step(&BOTH, failed), Step::Wait(failed + 2 * BLIND_NS));
    }

    #[test]
    fn a_refusal_that_teaches_is_followed_at_once_and_any_other_after_5_s_then_10_s() {
        let mut recovery = lost();
        recovery.heard(OTHER, 11 * SECOND);
        assert_eq!(recovery.step(&BOTH, 11 * SECOND), Step::Ask(OTHER));
        recovery.denied(OTHER, true, 12 * SECOND);
        assert_eq!(recovery.step(&BOTH, 12 * SECOND), Step::Ask(OTHER));
        recovery.denied(OTHER, false, 13 * SECOND);
        recovery.heard(OTHER, 14 * SECOND);
        assert_eq!(recovery.step(&[OTHER], 14 * SECOND), Step::Wait(18 * SECOND));
        assert_eq!(recovery.step(&[OTHER], 18 * SECOND), Step::Ask(OTHER));
        recovery.denied(OTHER, false, 19 * SECOND);
        assert_eq!(recovery.step(&[OTHER], 19 * SECOND), Step::Wait(29 * SECOND));
        recovery.granted(OTHER, 30 * SECOND);
        recovery.begin(Some(OTHER), 31 * SECOND);
        assert_eq!(recovery.step(&[OTHER], 31 * SECOND), Step::Ask(OTHER), "a grant ends what refusals mean");
    }

    #[test]
    fn a_gateway_that_forgot_the_session_is_asked_at_once() {
        let mut recovery = lost();
        recovery.begin(Some(HOME), 20 * SECOND);
        assert_eq!(recovery.step(&BOTH, 20 * SECOND), Step::Ask(HOME));
    }
}
