//! What clients do by themselves: births, probes, the loss of a gateway, requests; and when.

use std::cmp::Reverse;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::client::begin_birth;
use crate::devices::private_key;
use crate::net::Outbox;
use crate::recovery::Step;
use crate::tally::Spans;
use crate::worker::{Phase, Worker, MS};

/// A birth's datagrams are sent again after this, and a birth begins anew after ten of it.
const BIRTH_AGAIN_NS: u64 = 500 * MS;
const BIRTH_TRIES: u32 = 10;
/// Times the first wait: the longest wait before a request is sent again.
const REPEAT_MAX: u64 = 8;
/// Births that a late turn makes up for: those of so long.
const BACKLOG_NS: u64 = 10 * MS;
/// Fibonacci hashing: neighbouring numbers come far apart.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

impl Worker {
    // --- births --------------------------------------------------------------------------------------------------

    /// Begins births as far as the bounds allow.
    pub fn launch(&mut self, outbox: &mut Outbox<'_>, now: u64) {
        let pause = 1_000_000_000 * self.options.threads as u64 / u64::from(self.options.births);
        while self.flights < self.most_flights() && now >= self.next_birth_ns {
            let Some(index) = self.unborn.pop_front() else { break };
            self.next_birth_ns = self.next_birth_ns.max(now.saturating_sub(BACKLOG_NS)) + pause;
            self.clients[index].since_ns = now;
            self.flights += 1;
            self.birth(outbox, index, now);
        }
    }

    /// Births that may be under way at once in this thread.
    pub fn most_flights(&self) -> usize {
        self.options.flights.div_ceil(self.options.threads)
    }

    fn birth(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        let client = &mut self.clients[index];
        let home = client.home;
        let private = private_key(self.options.seed, client.number);
        let mut initiator = begin_birth(private, &self.options.gateways[home].key, unix_ns());
        let datagrams = initiator.datagrams();
        self.births.insert(*initiator.id(), index);
        client.phase = Phase::Birth(Box::new(initiator));
        client.tries = 0;
        datagrams.iter().for_each(|datagram| self.send(outbox, index, home, datagram));
        self.wake(index, now + BIRTH_AGAIN_NS);
    }

    fn birth_again(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        let client = &mut self.clients[index];
        let Phase::Birth(initiator) = &mut client.phase else { return };
        client.tries += 1;
        if client.tries >= BIRTH_TRIES {
            self.births.remove(initiator.id());
            self.tally.births_again += 1;
            self.birth(outbox, index, now);
            return;
        }
        let (home, datagrams) = (client.home, initiator.datagrams());
        datagrams.iter().for_each(|datagram| self.send(outbox, index, home, datagram));
        self.wake(index, now + BIRTH_AGAIN_NS);
    }

    // --- attached ------------------------------------------------------------------------------------------------

    /// The client's gateway holds it from `now` on.
    pub fn attach(&mut self, index: usize, now: u64) {
        let interval = self.options.probe_ms * MS;
        let client = &mut self.clients[index];
        client.phase = Phase::Attached;
        let live = client.live.as_mut().expect("an attached client is alive");
        self.cids.insert(live.cid(), index);
        // Spread by number, so that ten thousand clients that came back together do not probe together for ever.
        let spread = u64::from(client.number).wrapping_mul(SCATTER) % interval;
        self.wake(index, now + interval / 2 + spread);
    }

    fn idle(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        let live = self.clients[index].live.as_ref().expect("an attached client is alive");
        if now - live.heard_ns > self.options.silence_ms * MS {
            self.leave(outbox, index, None, now);
            return;
        }
        self.probe_home(outbox, index, now);
        self.probe_standbys(outbox, index, now);
        self.wake(index, now + self.options.probe_ms * MS);
    }

    /// Sends a probe of the session to the gateway that holds it, or held it last.
    pub fn probe_home(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        let client = &mut self.clients[index];
        let home = client.home;
        let probe = client.live.as_mut().expect("only a session has probes").probe(now);
        self.send(outbox, index, home, &probe);
    }

    /// Sends a standby probe to each other gateway that the client keeps proved.
    pub fn probe_standbys(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        for gateway in self.known(index).into_iter().skip(1) {
            self.probe_standby(outbox, index, gateway, now);
        }
    }

    fn probe_standby(&mut self, outbox: &mut Outbox<'_>, index: usize, gateway: usize, now: u64) {
        let live = self.clients[index].live.as_mut().expect("only a session has probes");
        let leaving = live.standby_probe(gateway, self.names[gateway], now);
        if let Some(forgotten) = leaving.forgotten {
            self.standbys.remove(&forgotten);
        }
        self.standbys.insert(leaving.echo, (index, gateway));
        self.tally.standby.0 += 1;
        self.send(outbox, index, gateway, &leaving.datagram);
    }

    /// The gateways that the client may ask: its own first, then its standbys.
    fn known(&self, index: usize) -> Vec<usize> {
        let (home, count) = (self.clients[index].home, self.options.gateways.len());
        (0..count).take(1 + self.options.standbys).map(|step| (home + step) % count).collect()
    }

    /// The gateway ended the client's session.
    pub fn end(&mut self, index: usize) {
        if matches!(self.clients[index].phase, Phase::Attached) {
            self.clients[index].phase = Phase::Ended;
            self.clients[index].due_ns = u64::MAX;
        }
    }

    // --- away ----------------------------------------------------------------------------------------------------

    /// A gateway died: its clients notice one after the other.
    pub fn lost(&mut self, gateway: usize) {
        self.tally.back = Spans::default();
        let now = self.now();
        let within = self.options.notice_ms * MS;
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if client.home == gateway && matches!(client.phase, Phase::Attached) {
                (client.phase, client.since_ns) = (Phase::Unaware, now);
                let scattered = u128::from(u64::from(client.number).wrapping_mul(SCATTER));
                self.wake(index, now + ((u128::from(within) * scattered) >> 64) as u64);
            }
        }
    }

    /// Every client reattaches at `gateway`.
    pub fn move_to(&mut self, outbox: &mut Outbox<'_>, gateway: usize) {
        self.tally.back = Spans::default();
        let now = self.now();
        for index in 0..self.clients.len() {
            if matches!(self.clients[index].phase, Phase::Attached) {
                self.leave(outbox, index, Some(gateway), now);
            }
        }
    }

    /// No gateway holds the client from `now` on; `trusted` is asked at once, others once they were heard.
    pub fn leave(&mut self, outbox: &mut Outbox<'_>, index: usize, trusted: Option<usize>, now: u64) {
        let client = &mut self.clients[index];
        if !matches!(client.phase, Phase::Unaware) {
            client.since_ns = now;
        }
        (client.phase, client.asked_ns, client.probe_ns) = (Phase::Away, 0, now);
        client.recovery.begin(trusted, now);
        self.seek(outbox, index, now);
    }

    /// Does what the rules say while no gateway holds the client and no request is under way.
    pub fn seek(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        let known = self.known(index);
        match self.clients[index].recovery.step(&known, now) {
            Step::Ask(gateway) => self.ask(outbox, index, gateway, now),
            Step::Wait(until) => {
                self.probe_if_due(outbox, index, now);
                self.wake(index, until.min(self.clients[index].probe_ns));
            }
            Step::End => {
                self.tally.given_up += 1;
                self.clients[index].phase = Phase::Ended;
                self.clients[index].due_ns = u64::MAX;
            }
        }
    }

    fn probe_if_due(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        if now >= self.clients[index].probe_ns {
            self.clients[index].probe_ns = now + self.options.busy_ms * MS;
            self.probe_home(outbox, index, now);
            self.probe_standbys(outbox, index, now);
        }
    }

    fn ask(&mut self, outbox: &mut Outbox<'_>, index: usize, gateway: usize, now: u64) {
        let client = &mut self.clients[index];
        let live = client.live.as_mut().expect("a client that is away was born");
        let (ask, datagram) = live.ask(gateway, self.names[gateway], None, now);
        self.asks.insert(ask.echo(), index);
        let (wait_ns, until_ns) = (self.options.repeat_ms * MS, now + self.options.attempt_ms * MS);
        let repeat_ns = now + wait_ns;
        client.phase = Phase::Asking { ask: Box::new(ask), repeat_ns, wait_ns, until_ns };
        if client.asked_ns == 0 {
            client.asked_ns = now;
        }
        self.tally.requests += 1;
        self.tally.blind += u64::from(client.recovery.is_blind());
        let probe_ns = client.probe_ns;
        self.send(outbox, index, gateway, &datagram);
        self.wake(index, repeat_ns.min(until_ns).min(probe_ns));
    }

    fn asking(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        let client = &mut self.clients[index];
        let Phase::Asking { ask, repeat_ns, wait_ns, until_ns } = &mut client.phase else { return };
        let gateway = ask.gateway;
        if now >= *until_ns {
            self.asks.remove(&ask.echo());
            self.tally.timeouts += 1;
            client.phase = Phase::Away;
            client.recovery.timed_out(gateway, now);
            client.probe_ns = now; // whoever did not answer is probed at once: it has to answer before it is asked
            self.seek(outbox, index, now);
            return;
        }
        let mut again = None;
        if now >= *repeat_ns {
            *wait_ns = (2 * *wait_ns).min(REPEAT_MAX * self.options.repeat_ms * MS);
            *repeat_ns = now + *wait_ns;
            self.tally.repeats += 1;
            again = Some(ask.datagram().to_vec());
        }
        let next_ns = (*repeat_ns).min(*until_ns);
        if let Some(datagram) = again {
            self.send(outbox, index, gateway, &datagram);
        }
        self.probe_if_due(outbox, index, now);
        self.wake(index, next_ns.min(self.clients[index].probe_ns));
    }

    // --- timers --------------------------------------------------------------------------------------------------

    fn wake(&mut self, index: usize, due_ns: u64) {
        self.clients[index].due_ns = due_ns;
        self.timers.push(Reverse((due_ns, index)));
    }

    /// Does everything that is due.
    pub fn timers(&mut self, outbox: &mut Outbox<'_>, now: u64) {
        while let Some(&Reverse((due, index))) = self.timers.peek() {
            if due > now {
                return;
            }
            self.timers.pop();
            if self.clients[index].due_ns == due {
                self.clients[index].due_ns = u64::MAX;
                self.due(outbox, index, now);
            }
        }
    }

    fn due(&mut self, outbox: &mut Outbox<'_>, index: usize, now: u64) {
        match self.clients[index].phase {
            Phase::Attached => self.idle(outbox, index, now),
            Phase::Birth(_) => self.birth_again(outbox, index, now),
            Phase::Unaware => self.leave(outbox, index, None, now),
            Phase::Away => self.seek(outbox, index, now),
            Phase::Asking { .. } => self.asking(outbox, index, now),
            Phase::Waiting | Phase::Ended => {}
        }
    }
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
