//! Reattach request: moves a live session to another path and opens the next epoch. spec: WIRE-73 to WIRE-75

use crate::aead::{append_sealed, open_sealed, SINGLE_USE};
use crate::bytes::{exact_len, Reader};
use crate::header::{Kind, PathIndex};
use crate::keys::GatewayId;
use crate::schedule::{ControlSecret, EpochNonce};
use crate::DropReason;

use super::ticket::{Ticket, TICKET_LEN};
use super::token::Token;

const LABEL: &str = "reattach request";
const BODY_LEN: usize = 128;
const HEAD_LEN: usize = 1 + TICKET_LEN + 32;
/// `kind u8 | ticket 60 | Nc 32 | body 128 | tag 16`
pub const REQUEST_LEN: usize = HEAD_LEN + BODY_LEN + 16;

/// What the client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub next_epoch: u64,
    pub expected_version: u64,
    /// Client's wall clock, ms.
    pub age_ms: u64,
    /// Index of the new path in the next epoch.
    pub path: PathIndex,
    /// Cause of the move; the control plane's numbering.
    pub cause: u8,
    /// The gateway that is asked: a copy that reaches another one moves nothing.
    pub gateway: GatewayId,
    /// Return token of an earlier challenge, or empty.
    pub token: Token,
}

impl Request {
    /// Seals the request. `nonce` opens the epoch and keys this very message: it must be fresh for each distinct request; a
    /// repetition sends the same bytes.
    pub fn seal(&self, control: &ControlSecret, ticket: &Ticket, nonce: &EpochNonce) -> Vec<u8> {
        let mut out = vec![Kind::ReattachRequest.byte()];
        out.extend_from_slice(ticket.as_bytes());
        out.extend_from_slice(nonce);
        append_sealed(control.key(LABEL, &[nonce]).expose(), SINGLE_USE, &self.body(), &mut out);
        out
    }

    fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(BODY_LEN);
        for number in [self.next_epoch, self.expected_version, self.age_ms] {
            body.extend_from_slice(&number.to_be_bytes());
        }
        body.extend_from_slice(&[self.path.get(), self.cause]);
        body.extend_from_slice(&self.gateway);
        self.token.write(&mut body);
        body.resize(BODY_LEN, 0);
        body
    }

    fn parse(body: &[u8]) -> Result<Self, DropReason> {
        let mut reader = Reader::new(body);
        let request = Self {
            next_epoch: reader.u64()?,
            expected_version: reader.u64()?,
            age_ms: reader.u64()?,
            path: PathIndex::parse(reader.u8()?)?,
            cause: reader.u8()?,
            gateway: reader.array()?,
            token: Token::read(&mut reader)?,
        };
        reader.finish_padding()?;
        Ok(request)
    }
}

/// A request before its key is known: the ticket says whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestEnvelope<'a> {
    pub ticket: Ticket,
    pub nonce: EpochNonce,
    datagram: &'a [u8],
}

impl<'a> RequestEnvelope<'a> {
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DropReason> {
        if Kind::of(datagram)? != Kind::ReattachRequest {
            return Err(DropReason::UnknownKind);
        }
        exact_len(datagram, REQUEST_LEN)?;
        let mut reader = Reader::new(datagram);
        if reader.u8()? != Kind::ReattachRequest.byte() {
            return Err(DropReason::Malformed);
        }
        Ok(Self { ticket: Ticket::parse(reader.take(TICKET_LEN)?)?, nonce: reader.array()?, datagram })
    }

    /// Opens the request: success proves that the sender holds the session's keys, not that the request is fresh.
    pub fn open(&self, control: &ControlSecret) -> Result<Request, DropReason> {
        let (head, sealed) = self.datagram.split_at(HEAD_LEN);
        let key = control.key(LABEL, &[&self.nonce]);
        Request::parse(&open_sealed(key.expose(), SINGLE_USE, head, sealed)?)
    }
}
