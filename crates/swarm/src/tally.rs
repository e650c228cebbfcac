//! What is counted, and how it is printed: JSON lines without a library, since all of it is numbers.

use std::fmt::Write;

/// Spans kept of what goes on for ever: enough for a 99th percentile, cheap to copy.
const RECENT: usize = 4096;

/// Durations of one kind, ns.
#[derive(Clone, Debug, Default)]
pub struct Spans(Vec<u64>);

impl Spans {
    /// Adds one.
    pub fn add(&mut self, ns: u64) {
        self.0.push(ns);
    }

    /// Adds one; the oldest half gives way when there are too many.
    pub fn add_recent(&mut self, ns: u64) {
        if self.0.len() == RECENT {
            self.0.drain(..RECENT / 2);
        }
        self.add(ns);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Spans) {
        self.0.extend_from_slice(&other.0);
    }

    /// `{"count":…,"p50":…,"p99":…,"max":…}` in ms; null where there is none.
    pub fn json(&self) -> String {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |share: f64| match sorted.len() {
            0 => "null".into(),
            // Nearest rank: the least value that at least this share does not exceed.
            len => ms(sorted[((share * len as f64).ceil() as usize).clamp(1, len) - 1]),
        };
        format!("{{\"count\":{},\"p50\":{},\"p99\":{},\"max\":{}}}", sorted.len(), at(0.5), at(0.99), at(1.0))
    }

    /// All of them in ms, rising.
    pub fn curve(&self) -> String {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.iter().map(|&ns| ms(ns)).collect::<Vec<_>>().join(",")
    }
}

fn ms(ns: u64) -> String {
    format!("{:.3}", ns as f64 / 1e6)
}

/// Where the clients are, and what has happened to them since the start.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Not yet begun.
    pub waiting: u64,
    /// Births under way.
    pub births: u64,
    /// Attached, by gateway.
    pub attached: [u64; 8],
    /// Lost, and not yet back.
    pub away: u64,
    /// Ended, for good.
    pub ended: u64,
    /// Datagrams received and sent.
    pub datagrams: (u64, u64),
    /// Datagrams that did not open, or named nothing known.
    pub dropped: u64,
    /// Births begun again because no answer came.
    pub births_again: u64,
    /// Clients that came back, each time.
    pub returns: u64,
    /// Requests made, each with a nonce of its own.
    pub requests: u64,
    /// Sends of a request that was sent before.
    pub repeats: u64,
    /// Attempts that ran out of time: another request is made.
    pub timeouts: u64,
    /// Requests without evidence that the gateway lives.
    pub blind: u64,
    /// Standby probes sent, and answered.
    pub standby: (u64, u64),
    /// Clients that ended because all their attempts were used up.
    pub given_up: u64,
    /// Challenges answered.
    pub challenges: u64,
    /// Denials, by reason code.
    pub denials: Vec<(u16, u64)>,
    /// From the first datagram of a birth to its answer.
    pub birth: Spans,
    /// From the first request to the committed reply.
    pub reattach: Spans,
    /// From the loss of the gateway to the committed reply, of the last loss.
    pub back: Spans,
    /// Round trips of the newest probes.
    pub probe: Spans,
}

impl Tally {
    /// Adds another thread's.
    pub fn merge(&mut self, other: &Tally) {
        self.waiting += other.waiting;
        self.births += other.births;
        self.away += other.away;
        self.ended += other.ended;
        self.attached.iter_mut().zip(other.attached).for_each(|(mine, theirs)| *mine += theirs);
        self.datagrams = (self.datagrams.0 + other.datagrams.0, self.datagrams.1 + other.datagrams.1);
        self.dropped += other.dropped;
        self.births_again += other.births_again;
        self.returns += other.returns;
        self.requests += other.requests;
        self.repeats += other.repeats;
        self.timeouts += other.timeouts;
        self.blind += other.blind;
        self.standby = (self.standby.0 + other.standby.0, self.standby.1 + other.standby.1);
        self.given_up += other.given_up;
        self.challenges += other.challenges;
        other.denials.iter().for_each(|&(code, count)| self.deny(code, count));
        self.birth.merge(&other.birth);
        self.reattach.merge(&other.reattach);
        self.back.merge(&other.back);
        self.probe.merge(&other.probe);
    }

    /// Counts denials.
    pub fn deny(&mut self, code: u16, count: u64) {
        match self.denials.iter_mut().find(|(known, _)| *known == code) {
            Some((_, sum)) => *sum += count,
            None => self.denials.push((code, count)),
        }
    }

    /// One line; `seconds` since the start.
    pub fn json(&self, seconds: f64, gateways: usize) -> String {
        let mut out = format!("{{\"t\":{seconds:.3}");
        let attached: u64 = self.attached.iter().sum();
        let by_gateway = self.attached[..gateways].iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let denials =
            self.denials.iter().map(|(code, count)| format!("\"{code}\":{count}")).collect::<Vec<_>>().join(",");
        let numbers = [
            ("waiting", self.waiting),
            ("births", self.births),
            ("attached", attached),
            ("away", self.away),
            ("ended", self.ended),
            ("received", self.datagrams.0),
            ("sent", self.datagrams.1),
            ("dropped", self.dropped),
            ("births_again", self.births_again),
            ("returns", self.returns),
            ("requests", self.requests),
            ("repeats", self.repeats),
            ("timeouts", self.timeouts),
            ("blind", self.blind),
            ("standby_probes", self.standby.0),
            ("standby_answers", self.standby.1),
            ("given_up", self.given_up),
            ("challenges", self.challenges),
        ];
        for (name, value) in numbers {
            write!(out, ",\"{name}\":{value}").expect("a string takes everything");
        }
        write!(out, ",\"at\":[{by_gateway}],\"denials\":{{{denials}}}").expect("a string takes everything");
        let spans =
            [("birth", &self.birth), ("reattach", &self.reattach), ("back", &self.back), ("probe", &self.probe)];
        for (name, value) in spans {
            write!(out, ",\"{name}_ms\":{}", value.json()).expect("a string takes everything");
        }
        out + "}"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let mut spans = Spans::default();
        assert_eq!(spans.json(), "{\"count\":0,\"p50\":null,\"p99\":null,\"max\":null}");
        (1..=100).rev().for_each(|ms| spans.add(ms * 1_000_000));
        assert_eq!(spans.json(), "{\"count\":100,\"p50\":50.000,\"p99\":99.000,\"max\":100.000}");
        assert!(spans.curve().starts_with("1.000,2.000,"));
    }

    #[test]
    fn of_what_goes_on_for_ever_the_newest_are_kept() {
        let mut spans = Spans::default();
        (0..3 * RECENT as u64).for_each(|ns| spans.add_recent(ns));
        assert!(spans.0.len() <= RECENT && spans.0.last() == Some(&(3 * RECENT as u64 - 1)));
    }

    #[test]
    fn a_line_sums_the_threads() {
        let mut left = Tally { waiting: 1, attached: [2, 0, 0, 0, 0, 0, 0, 0], ..Tally::default() };
        left.deny(40, 1);
        let attached = [1, 4, 0, 0, 0, 0, 0, 0];
        let mut right = Tally { attached, requests: 7, standby: (3, 2), ..Tally::default() };
        right.deny(40, 2);
        left.merge(&right);
        let line = left.json(1.5, 2);
        assert!(line.starts_with("{\"t\":1.500,\"waiting\":1,\"births\":0,\"attached\":7,"), "{line}");
        assert!(line.contains("\"requests\":7,") && line.contains("\"standby_answers\":2,"), "{line}");
        assert!(line.contains("\"at\":[3,4],\"denials\":{\"40\":3}"), "{line}");
    }
}
