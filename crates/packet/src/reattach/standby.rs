//! Standby probe and reply: is another gateway of the cluster reachable? Answered without state. spec: WIRE-83 to WIRE-87

use crate::aead::{append_sealed, open_sealed, SINGLE_USE};
use crate::bytes::{exact_len, Reader};
use crate::header::Kind;
use crate::keys::GatewayId;
use crate::schedule::{equal, expand, ClusterKey, Secret};
use crate::{DropReason, SessionId};

use super::ticket::{Ticket, TICKET_LEN};
use super::token::Token;

/// Bytes of a standby key.
pub const STANDBY_KEY_LEN: usize = 32;

const PROBE_LABEL: &str = "standby probe";
const PROBE_BODY_LEN: usize = 64;
const PROBE_HEAD_LEN: usize = 1 + TICKET_LEN + 16;
/// `kind u8 | ticket 60 | challenge 16 | body 64 | tag 16`
pub const STANDBY_PROBE_LEN: usize = PROBE_HEAD_LEN + PROBE_BODY_LEN + 16;

const REPLY_LABEL: &str = "standby reply";
const REPLY_BODY_LEN: usize = 96;
const REPLY_HEAD_LEN: usize = 1 + 8 + 16;
/// `kind u8 | first 8 bytes of the challenge | N 16 | body 96 | tag 16`: shorter than the probe that it answers.
pub const STANDBY_REPLY_LEN: usize = REPLY_HEAD_LEN + REPLY_BODY_LEN + 16;

/// Random, fresh for each probe; what its answer must echo.
pub type StandbyChallenge = [u8; 16];

/// Key of one session's standby probes: any gateway of the cluster derives it, and the client is told.
#[derive(Clone)]
pub struct StandbyKey(Secret);

impl StandbyKey {
    /// The key of `session`, as a gateway derives it.
    pub fn derive(cluster: &ClusterKey, session: &SessionId) -> Self {
        Self(cluster.standby(session))
    }

    /// The key as a client was told it.
    pub fn new(bytes: [u8; STANDBY_KEY_LEN]) -> Self {
        Self(Secret::new(bytes))
    }

    /// The bytes themselves: for a sealed message and for vectors, never for a log.
    pub fn expose(&self) -> &[u8; STANDBY_KEY_LEN] {
        self.0.expose()
    }

    fn key(&self, label: &str, context: &[&[u8]]) -> Secret {
        Secret::new(expand(&self.0, label, context))
    }
}

impl PartialEq for StandbyKey {
    fn eq(&self, other: &Self) -> bool {
        equal(self.expose(), other.expose())
    }
}

impl Eq for StandbyKey {}

impl std::fmt::Debug for StandbyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StandbyKey(redacted)")
    }
}

/// Asks a gateway whether it hears us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyProbe {
    /// The gateway that is asked: a copy that reaches another one is not answered.
    pub gateway: GatewayId,
}

impl StandbyProbe {
    /// Seals the probe. `challenge` keys this very message: it must be fresh for each.
    pub fn seal(&self, key: &StandbyKey, ticket: &Ticket, challenge: &StandbyChallenge) -> Vec<u8> {
        let mut body = self.gateway.to_vec();
        body.resize(PROBE_BODY_LEN, 0);
        let mut out = vec![Kind::StandbyProbe.byte()];
        out.extend_from_slice(ticket.as_bytes());
        out.extend_from_slice(challenge);
        append_sealed(key.key(PROBE_LABEL, &[challenge]).expose(), SINGLE_USE, &body, &mut out);
        out
    }
}

/// A probe before its key is known: the ticket says whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyProbeEnvelope<'a> {
    pub ticket: Ticket,
    pub challenge: StandbyChallenge,
    datagram: &'a [u8],
}

impl<'a> StandbyProbeEnvelope<'a> {
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DropReason> {
        if Kind::of(datagram)? != Kind::StandbyProbe {
            return Err(DropReason::UnknownKind);
        }
        exact_len(datagram, STANDBY_PROBE_LEN)?;
        let mut reader = Reader::new(datagram);
        if reader.u8()? != Kind::StandbyProbe.byte() {
            return Err(DropReason::Malformed);
        }
        Ok(Self { ticket: Ticket::parse(reader.take(TICKET_LEN)?)?, challenge: reader.array()?, datagram })
    }

    /// Opens the probe: success proves that a client of the session made it, not that it is fresh.
    pub fn open(&self, key: &StandbyKey) -> Result<StandbyProbe, DropReason> {
        let (head, sealed) = self.datagram.split_at(PROBE_HEAD_LEN);
        let key = key.key(PROBE_LABEL, &[&self.challenge]);
        let body = open_sealed(key.expose(), SINGLE_USE, head, sealed)?;
        let mut reader = Reader::new(&body);
        let probe = StandbyProbe { gateway: reader.array()? };
        reader.finish_padding()?;
        Ok(probe)
    }
}

/// The gateway's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyReply {
    /// Return token for the address that the probe came from.
    pub token: Token,
    /// The gateway is about to leave: it takes no sessions over.
    pub is_draining: bool,
}

impl StandbyReply {
    /// Seals the answer to the probe with `challenge`. `nonce` must be fresh for each distinct answer.
    pub fn seal(&self, key: &StandbyKey, challenge: &StandbyChallenge, nonce: &[u8; 16]) -> Vec<u8> {
        let mut body = challenge.to_vec();
        self.token.write(&mut body);
        body.push(u8::from(self.is_draining));
        body.resize(REPLY_BODY_LEN, 0);
        let mut out = vec![Kind::StandbyReply.byte()];
        out.extend_from_slice(&challenge[..8]);
        out.extend_from_slice(nonce);
        append_sealed(key.key(REPLY_LABEL, &[challenge, nonce]).expose(), SINGLE_USE, &body, &mut out);
        out
    }
}

/// An answer before its key is known: the echo says which probe it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyReplyEnvelope<'a> {
    /// First 8 bytes of the probe's challenge.
    pub echo: [u8; 8],
    nonce: [u8; 16],
    datagram: &'a [u8],
}

impl<'a> StandbyReplyEnvelope<'a> {
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DropReason> {
        if Kind::of(datagram)? != Kind::StandbyReply {
            return Err(DropReason::UnknownKind);
        }
        exact_len(datagram, STANDBY_REPLY_LEN)?;
        let mut reader = Reader::new(datagram);
        if reader.u8()? != Kind::StandbyReply.byte() {
            return Err(DropReason::Malformed);
        }
        Ok(Self { echo: reader.array()?, nonce: reader.array()?, datagram })
    }

    /// Opens the answer to the probe with `challenge`.
    pub fn open(&self, key: &StandbyKey, challenge: &StandbyChallenge) -> Result<StandbyReply, DropReason> {
        let (head, sealed) = self.datagram.split_at(REPLY_HEAD_LEN);
        let key = key.key(REPLY_LABEL, &[challenge, &self.nonce]);
        let body = open_sealed(key.expose(), SINGLE_USE, head, sealed)?;
        let mut reader = Reader::new(&body);
        if reader.array()? != *challenge {
            return Err(DropReason::Malformed);
        }
        let token = Token::read(&mut reader)?;
        let is_draining = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(DropReason::Malformed),
        };
        reader.finish_padding()?;
        Ok(StandbyReply { token, is_draining })
    }
}
