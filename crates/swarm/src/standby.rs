//! Ways to gateways that do not hold the session: tickets, standby probes, return tokens. The messages are
//! `jumpvpn_packet`'s; when they are sent follows the packet core's client (spec: WIRE-83 to WIRE-87).

use std::collections::VecDeque;

use jumpvpn_packet::keys::GatewayId;
use jumpvpn_packet::random::draw;
use jumpvpn_packet::reattach::{
    StandbyChallenge, StandbyKey, StandbyProbe, StandbyReplyEnvelope, Ticket, Token, RETURN_TOKEN_LIFE_MS,
};
use jumpvpn_packet::{DropReason, SystemRandom};

/// Probes of one way whose answer may still come. At the busy interval of 200 ms this covers 3.2 s.
const MAX_OUTSTANDING: usize = 16;
/// One for each path that an epoch can have.
const MAX_TICKETS: usize = 8;
/// A token is shown while it has a second of its life left: the request is still on its way by then.
const TOKEN_LIFE_NS: u64 = (RETURN_TOKEN_LIFE_MS - 1000) * 1_000_000;

/// What answers echo of a challenge.
pub type Echo = [u8; 8];

/// What makes the client known to gateways that do not hold its session.
pub struct Pass {
    key: StandbyKey,
    tickets: VecDeque<Ticket>,
}

impl Pass {
    /// With what a birth gave.
    pub fn new(key: StandbyKey, tickets: Vec<Ticket>) -> Self {
        Self { key, tickets: tickets.into() }
    }

    /// With what a committed reply gave.
    pub fn renew(&mut self, key: Option<StandbyKey>, tickets: Vec<Ticket>) {
        if let Some(key) = key {
            self.key = key;
        }
        self.tickets.extend(tickets);
        while self.tickets.len() > MAX_TICKETS {
            self.tickets.pop_front();
        }
    }

    /// A ticket to show; the last one is shown again rather than none.
    pub fn ticket(&mut self) -> Ticket {
        let last = self.tickets.front().expect("a birth gives tickets, and the last one is kept").clone();
        if self.tickets.len() > 1 {
            self.tickets.pop_front();
        }
        last
    }
}

/// A probe that is to leave.
pub struct Leaving {
    /// What its answer echoes.
    pub echo: Echo,
    /// What an older probe's answer echoes, which is waited for no more.
    pub forgotten: Option<Echo>,
    /// The bytes.
    pub datagram: Vec<u8>,
}

/// What was shown to one gateway, and had from it.
#[derive(Default)]
pub struct Way {
    ticket: Option<Ticket>,
    token: Option<(Token, u64)>,
    outstanding: VecDeque<(StandbyChallenge, u64)>,
}

impl Way {
    /// The ticket of this way; its probes and its request show the same one.
    pub fn ticket(&mut self, pass: &mut Pass) -> Ticket {
        self.ticket.get_or_insert_with(|| pass.ticket()).clone()
    }

    /// The return token while it is valid.
    pub fn token(&self, now_ns: u64) -> Option<&Token> {
        self.token.as_ref().filter(|(_, sent_ns)| now_ns < sent_ns + TOKEN_LIFE_NS).map(|(token, _)| token)
    }

    /// A probe with a fresh challenge.
    pub fn probe(&mut self, pass: &mut Pass, gateway: GatewayId, now_ns: u64) -> Leaving {
        let full = self.outstanding.len() == MAX_OUTSTANDING;
        let forgotten = full.then(|| self.outstanding.pop_front()).flatten().map(|(challenge, _)| echo(&challenge));
        let challenge: StandbyChallenge = draw(&mut SystemRandom);
        self.outstanding.push_back((challenge, now_ns));
        let ticket = self.ticket(pass);
        let datagram = StandbyProbe { gateway }.seal(&pass.key, &ticket, &challenge);
        Leaving { echo: echo(&challenge), forgotten, datagram }
    }

    /// Takes the answer to a probe that is still waited for; the round trip (ns).
    pub fn answered(
        &mut self,
        pass: &Pass,
        envelope: &StandbyReplyEnvelope<'_>,
        now_ns: u64,
    ) -> Result<u64, DropReason> {
        let at = self.outstanding.iter().position(|(challenge, _)| echo(challenge) == envelope.echo);
        let (at, (challenge, sent_ns)) = at.map(|at| (at, self.outstanding[at])).ok_or(DropReason::UnknownHandshake)?;
        let reply = envelope.open(&pass.key, &challenge)?;
        self.outstanding.remove(at);
        self.token = Some((reply.token, sent_ns));
        Ok(now_ns.saturating_sub(sent_ns))
    }
}

fn echo(challenge: &StandbyChallenge) -> Echo {
    *challenge.first_chunk().expect("a challenge has 16 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jumpvpn_packet::reattach::{StandbyProbeEnvelope, StandbyReply, TICKET_LEN};

    const NAME: GatewayId = [5; 8];

    fn pass() -> (Pass, StandbyKey) {
        let key = StandbyKey::new([6; 32]);
        let tickets = (1..4).map(|byte| Ticket::parse(&[byte; TICKET_LEN]).unwrap()).collect();
        (Pass::new(key.clone(), tickets), key)
    }

    fn reply(key: &StandbyKey, challenge: &StandbyChallenge) -> Vec<u8> {
        let token = Token::parse(b"return").unwrap();
        StandbyReply { token, is_draining: false }.seal(key, challenge, &[8; 16])
    }

    #[test]
    fn an_answered_probe_gives_a_token_for_nine_seconds_from_when_it_left() {
        let (mut pass, key) = pass();
        let mut way = Way::default();
        let leaving = way.probe(&mut pass, NAME, 1000);
        let probe = StandbyProbeEnvelope::parse(&leaving.datagram).unwrap();
        assert_eq!(probe.open(&key).unwrap().gateway, NAME);
        assert!(probe.ticket == way.ticket(&mut pass), "its request shows the ticket of its probes");
        assert_eq!(way.token(2000), None);
        let answer = reply(&key, &probe.challenge);
        let envelope = StandbyReplyEnvelope::parse(&answer).unwrap();
        assert_eq!(envelope.echo, leaving.echo);
        assert_eq!(way.answered(&pass, &envelope, 3000), Ok(2000));
        assert_eq!(way.answered(&pass, &envelope, 4000), Err(DropReason::UnknownHandshake), "taken once");
        assert_eq!(way.token(1000 + TOKEN_LIFE_NS - 1).map(Token::as_bytes), Some(&b"return"[..]));
        assert_eq!(way.token(1000 + TOKEN_LIFE_NS), None);
    }

    #[test]
    fn probes_under_way_are_bounded_and_the_forgotten_are_named() {
        let (mut pass, key) = pass();
        let mut way = Way::default();
        let first = way.probe(&mut pass, NAME, 1);
        for _ in 1..MAX_OUTSTANDING {
            assert_eq!(way.probe(&mut pass, NAME, 1).forgotten, None);
        }
        assert_eq!(way.probe(&mut pass, NAME, 1).forgotten, Some(first.echo));
        let probe = StandbyProbeEnvelope::parse(&first.datagram).unwrap();
        let late = reply(&key, &probe.challenge);
        let late = way.answered(&pass, &StandbyReplyEnvelope::parse(&late).unwrap(), 2);
        assert_eq!(late, Err(DropReason::UnknownHandshake));
    }

    #[test]
    fn each_way_has_a_ticket_of_its_own_until_one_is_left() {
        let (mut pass, _) = pass();
        let mut ways = [Way::default(), Way::default(), Way::default(), Way::default()];
        let shown: Vec<Ticket> = ways.iter_mut().map(|way| way.ticket(&mut pass)).collect();
        assert!(shown[0] != shown[1] && shown[1] != shown[2] && shown[2] == shown[3]);
        pass.renew(None, (10..30).map(|byte| Ticket::parse(&[byte; TICKET_LEN]).unwrap()).collect());
        assert_eq!(pass.tickets.len(), MAX_TICKETS);
    }
}
