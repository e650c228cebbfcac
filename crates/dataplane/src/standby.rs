//! Standby paths: a client's ways to gateways that do not hold its session, probed and answered without state there.
//! spec: WIRE-83 to WIRE-87

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use jumpvpn_packet::header::PathIndex;
use jumpvpn_packet::random::draw;
use jumpvpn_packet::reattach::{
    StandbyChallenge, StandbyKey, StandbyProbe, StandbyProbeEnvelope, StandbyReply, StandbyReplyEnvelope, Ticket,
    Token, RETURN_TOKEN_LIFE_MS,
};
use jumpvpn_packet::{DropReason, SystemRandom};

use crate::address::address18;
use crate::bucket::Rate;
use crate::counters::Counter;
use crate::facts::Fact;
use crate::ingress::Origin;
use crate::session::Session;
use crate::shared::Shared;
use crate::sys;
use crate::tx::Tx;

/// Probes whose answer may still come, as on any path.
const MAX_OUTSTANDING: usize = 32;
/// Probes of one source: each device of a site of thousands behind one NAT probes now and then, on several paths.
pub const PER_SOURCE: Rate = Rate { per_second: 16_384 };
/// Tickets kept by a client: one for each path that an epoch can have.
const MAX_TICKETS: usize = 8;
/// A token is shown while it has this much of its life left: the request is still on its way by then.
const TOKEN_RESERVE_NS: u64 = 1_000_000_000;
const TOKEN_LIFE_NS: u64 = RETURN_TOKEN_LIFE_MS * 1_000_000 - TOKEN_RESERVE_NS;

/// What a client needs to be known to gateways that do not hold its session.
#[derive(Debug, Default)]
pub struct Pass {
    /// Key of standby probes; None at a gateway.
    pub key: Option<StandbyKey>,
    tickets: VecDeque<Ticket>,
}

impl Pass {
    /// With the tickets and the key of a birth.
    pub fn new(key: StandbyKey, tickets: Vec<Ticket>) -> Self {
        Self { key: Some(key), tickets: tickets.into() }
    }

    /// A ticket to show. The last one is shown again rather than none: linkable, but alive.
    pub fn take_ticket(&mut self) -> Option<Ticket> {
        if self.tickets.len() > 1 {
            self.tickets.pop_front()
        } else {
            self.tickets.front().cloned()
        }
    }

    /// Keeps fresh tickets; the oldest give way.
    pub fn add_tickets(&mut self, fresh: Vec<Ticket>) {
        self.tickets.extend(fresh);
        while self.tickets.len() > MAX_TICKETS {
            self.tickets.pop_front();
        }
    }
}

/// What one path has shown to the gateway at its end, and had from it.
#[derive(Debug, Default)]
pub struct Shown {
    /// Shown on this network already, so that it is shown here alone.
    ticket: Option<Ticket>,
    /// Last return token and when the probe left that it answers.
    token: Option<(Token, u64)>,
    /// Probes under way: challenge and time.
    outstanding: VecDeque<(StandbyChallenge, u64)>,
}

impl Shown {
    /// The ticket of this path; at first one of `pass`.
    pub fn ticket(&mut self, pass: &mut Pass) -> Option<Ticket> {
        if self.ticket.is_none() {
            self.ticket = pass.take_ticket();
        }
        self.ticket.clone()
    }

    /// The next probe takes another ticket: the key of this one may have left the cluster's list.
    pub fn forget_ticket(&mut self) {
        self.ticket = None;
    }

    /// The return token, while it is valid.
    pub fn token(&self, now_ns: u64) -> Option<&Token> {
        self.token.as_ref().filter(|(_, sent_ns)| now_ns < sent_ns + TOKEN_LIFE_NS).map(|(token, _)| token)
    }

    /// No answer is waited for any more.
    pub fn forget_probes(&mut self) {
        self.outstanding.clear();
    }

    fn note(&mut self, challenge: StandbyChallenge, now_ns: u64) {
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((challenge, now_ns));
    }

    fn find(&self, echo: [u8; 8]) -> Option<(StandbyChallenge, u64)> {
        self.outstanding.iter().find(|(challenge, _)| challenge[..8] == echo).copied()
    }
}

impl Tx {
    /// Client: probes the standby path `path`.
    pub fn send_standby_probe(&mut self, shared: &Shared, path: PathIndex, now_ns: u64) {
        let Some(state) = &mut self.paths[path.index()] else { return };
        // Without key or ticket no answer comes, and the path is silent: that is what it is.
        state.note_standby_probe(now_ns);
        let (Some(key), Some(ticket)) = (self.pass.key.clone(), state.shown.ticket(&mut self.pass)) else { return };
        let challenge: StandbyChallenge = draw(&mut SystemRandom);
        state.shown.note(challenge, now_ns);
        let datagram = StandbyProbe { gateway: state.gateway }.seal(&key, &ticket, &challenge);
        shared.transmit(&state.socket, state.route, &datagram, datagram.len(), self.session, path.get());
    }

    /// Client: takes the answer to a standby probe if one of this session waits for it; None when none does.
    fn take_standby_reply(
        &mut self,
        shared: &Shared,
        origin: &Origin<'_>,
        envelope: &StandbyReplyEnvelope<'_>,
    ) -> Option<Result<(), DropReason>> {
        let peer = origin.route.peer;
        let asked = |path: &PathIndex| {
            let state = self.paths[path.index()].as_ref().filter(|state| state.route.peer == peer);
            state.and_then(|state| state.shown.find(envelope.echo))
        };
        let (path, (challenge, sent_ns)) = PathIndex::all().find_map(|path| Some((path, asked(&path)?)))?;
        let (key, state) = (self.pass.key.as_ref()?, self.paths[path.index()].as_mut()?);
        let StandbyReply { token, is_draining } = match envelope.open(key, &challenge) {
            Ok(reply) => reply,
            Err(reason) => return Some(Err(reason)),
        };
        state.shown.outstanding.retain(|(other, _)| *other != challenge);
        state.shown.token = Some((token, sent_ns));
        let rtt_ns = origin.now_ns.saturating_sub(sent_ns).max(1);
        state.rtt.sample(rtt_ns);
        let (session, path) = (self.session, path.get());
        if state.live.answered(sent_ns, origin.now_ns) {
            shared.tell(Fact::PathHeard { session, path });
        }
        shared.tell(Fact::StandbyAnswered { session, path, peer, rtt_ns, is_draining });
        Some(Ok(()))
    }
}

/// Gateway: answers a probe. Nothing that outlives the call is kept, and who cannot open the answer gets no longer one
/// than what he sent.
pub fn take_probe(shared: &Shared, origin: &Origin<'_>, datagram: &[u8]) -> Result<(), DropReason> {
    let envelope = StandbyProbeEnvelope::parse(datagram)?;
    let hash = shared.bucket_of(origin.route.peer.ip());
    if !shared.standby_buckets.lock().take(hash, origin.now_ns) {
        shared.counters.add(Counter::RateLimited, 1);
        return Ok(());
    }
    let (Some(cluster), Some(tokens)) = (&shared.cluster, &shared.return_tokens) else {
        return Err(DropReason::BadTicket);
    };
    let session_id = shared.tickets.open(&envelope.ticket)?.session_id;
    let key = StandbyKey::derive(cluster, &session_id);
    if envelope.open(&key)?.gateway != shared.gateway_id {
        return Err(DropReason::WrongGateway);
    }
    let token = tokens.make(&address18(origin.route.peer), &session_id, sys::wall_ms());
    let is_draining = shared.is_draining.load(Ordering::Relaxed);
    let reply = StandbyReply { token, is_draining }.seal(&key, &envelope.challenge, &draw(&mut SystemRandom));
    shared.counters.add(Counter::StandbyAnswered, 1);
    shared.transmit(origin.socket, origin.route, &reply, reply.len(), 0, 0);
    Ok(())
}

/// Client: takes an answer.
pub fn take_reply(shared: &Shared, origin: &Origin<'_>, datagram: &[u8]) -> Result<(), DropReason> {
    let envelope = StandbyReplyEnvelope::parse(datagram)?;
    if shared.cannot_tell() {
        return Ok(());
    }
    // A client has one session, two while one replaces the other.
    let sessions: Vec<Arc<Session>> = shared.sessions.read().values().cloned().collect();
    for session in sessions {
        let taken = session.tx.lock().take_standby_reply(shared, origin, &envelope);
        if let Some(outcome) = taken {
            return outcome;
        }
    }
    shared.counters.add(Counter::UnsolicitedReply, 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(bytes: std::ops::Range<u8>) -> Vec<Ticket> {
        bytes.map(|byte| Ticket::parse(&[byte; 60]).unwrap()).collect()
    }

    #[test]
    fn tickets_are_shown_once_but_the_last() {
        let mut pass = Pass::new(StandbyKey::new([1; 32]), tickets(0..2));
        let shown: Vec<_> = (0..3).map(|_| pass.take_ticket().unwrap()).collect();
        assert!(shown[0] != shown[1] && shown[1] == shown[2]);
        pass.add_tickets(tickets(10..30));
        assert_eq!(pass.tickets.len(), MAX_TICKETS);
        assert!(pass.take_ticket() == tickets(22..23).pop(), "the oldest gave way");
        assert!(Pass::default().take_ticket().is_none());
    }

    #[test]
    fn a_path_keeps_its_ticket_until_it_died() {
        let mut pass = Pass::new(StandbyKey::new([1; 32]), tickets(0..4));
        let mut shown = Shown::default();
        let first = shown.ticket(&mut pass);
        assert!(first.is_some() && shown.ticket(&mut pass) == first);
        shown.forget_ticket();
        assert!(shown.ticket(&mut pass) != first);
    }

    #[test]
    fn a_token_is_shown_while_it_is_valid() {
        let token = Token::parse(&[7; 24]).unwrap();
        let shown = Shown { token: Some((token.clone(), 5)), ..Shown::default() };
        assert_eq!(shown.token(5 + TOKEN_LIFE_NS - 1), Some(&token));
        assert_eq!(shown.token(5 + TOKEN_LIFE_NS), None);
        assert_eq!(Shown::default().token(0), None);
    }

    #[test]
    fn probes_under_way_are_bounded() {
        let mut shown = Shown::default();
        for number in 0..=MAX_OUTSTANDING as u8 {
            shown.note([number; 16], u64::from(number));
        }
        assert_eq!(shown.outstanding.len(), MAX_OUTSTANDING);
        assert_eq!(shown.find([0; 8]), None);
        assert_eq!(shown.find([1; 8]), Some(([1; 16], 1)));
        shown.forget_probes();
        assert_eq!(shown.find([1; 8]), None);
    }
}
