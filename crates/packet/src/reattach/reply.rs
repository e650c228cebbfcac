//! Reattach reply: commits, challenges, or denies. spec: WIRE-76, WIRE-77

use zeroize::Zeroizing;

use crate::aead::{append_sealed, open_sealed, SINGLE_USE};
use crate::bytes::{exact_len, Reader};
use crate::header::{Kind, PathIndex};
use crate::schedule::{ControlSecret, EpochNonce};
use crate::DropReason;

use super::standby::StandbyKey;
use super::ticket::{Ticket, TICKET_LEN};
use super::token::Token;

const LABEL: &str = "reattach reply";
const BODY_LEN: usize = 384;
const HEAD_LEN: usize = 1 + 8 + 32;
/// `kind u8 | first 8 bytes of Nc | Ng 32 | body 384 | tag 16`
pub const REPLY_LEN: usize = HEAD_LEN + BODY_LEN + 16;
/// Tickets that fit beside the longest token and the standby key: a move shows one, and its standby paths one each.
pub const MAX_REPLY_TICKETS: usize = 4;

/// What became of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplyStatus {
    Committed = 0,
    /// Prove the address: ask again with the token and a fresh nonce.
    Challenge = 1,
    Denied = 2,
}

impl ReplyStatus {
    fn parse(value: u8) -> Result<Self, DropReason> {
        match value {
            0 => Ok(Self::Committed),
            1 => Ok(Self::Challenge),
            2 => Ok(Self::Denied),
            _ => Err(DropReason::Malformed),
        }
    }
}

/// The gateway's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: ReplyStatus,
    pub epoch: u64,
    pub version: u64,
    pub path: PathIndex,
    /// Index in the control plane's registry of reasons.
    pub reason: u16,
    pub token: Token,
    /// At most [`MAX_REPLY_TICKETS`].
    pub tickets: Vec<Ticket>,
    /// In a committed reply, and in no other.
    pub standby: Option<StandbyKey>,
}

impl Reply {
    /// Seals the answer to the request that carried `client`. `gateway` must be fresh for each distinct reply.
    ///
    /// Panics on more than [`MAX_REPLY_TICKETS`] tickets, or a standby key in the wrong status: defects of the caller.
    pub fn seal(&self, control: &ControlSecret, client: &EpochNonce, gateway: &EpochNonce) -> Vec<u8> {
        let mut out = vec![Kind::ReattachReply.byte()];
        out.extend_from_slice(&client[..8]);
        out.extend_from_slice(gateway);
        append_sealed(control.key(LABEL, &[client, gateway]).expose(), SINGLE_USE, &self.body(), &mut out);
        out
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        assert!(self.tickets.len() <= MAX_REPLY_TICKETS, "a reply carries at most four tickets");
        let is_committed = self.status == ReplyStatus::Committed;
        assert!(self.standby.is_some() == is_committed, "a committed reply, and no other, carries the standby key");
        let mut body = Zeroizing::new(Vec::with_capacity(BODY_LEN));
        body.push(self.status as u8);
        body.extend_from_slice(&self.epoch.to_be_bytes());
        body.extend_from_slice(&self.version.to_be_bytes());
        body.push(self.path.get());
        body.extend_from_slice(&self.reason.to_be_bytes());
        self.token.write(&mut body);
        body.push(self.tickets.len() as u8);
        self.tickets.iter().for_each(|ticket| body.extend_from_slice(ticket.as_bytes()));
        self.standby.iter().for_each(|key| body.extend_from_slice(key.expose()));
        body.resize(BODY_LEN, 0);
        body
    }

    fn parse(body: &[u8]) -> Result<Self, DropReason> {
        let mut reader = Reader::new(body);
        let status = ReplyStatus::parse(reader.u8()?)?;
        let (epoch, version) = (reader.u64()?, reader.u64()?);
        let (path, reason) = (PathIndex::parse(reader.u8()?)?, reader.u16()?);
        let token = Token::read(&mut reader)?;
        let count = usize::from(reader.u8()?);
        if count > MAX_REPLY_TICKETS {
            return Err(DropReason::Malformed);
        }
        let tickets = reader.take(count * TICKET_LEN)?.chunks_exact(TICKET_LEN);
        let tickets = tickets.map(Ticket::parse).collect::<Result<_, _>>()?;
        let standby = match status {
            ReplyStatus::Committed => Some(StandbyKey::new(reader.array()?)),
            ReplyStatus::Challenge | ReplyStatus::Denied => None,
        };
        reader.finish_padding()?;
        Ok(Self { status, epoch, version, path, reason, token, tickets, standby })
    }
}

/// A reply before its key is known: the echo says which request it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyEnvelope<'a> {
    /// First 8 bytes of the request's nonce.
    pub echo: [u8; 8],
    pub gateway_nonce: EpochNonce,
    datagram: &'a [u8],
}

impl<'a> ReplyEnvelope<'a> {
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DropReason> {
        if Kind::of(datagram)? != Kind::ReattachReply {
            return Err(DropReason::UnknownKind);
        }
        exact_len(datagram, REPLY_LEN)?;
        let mut reader = Reader::new(datagram);
        if reader.u8()? != Kind::ReattachReply.byte() {
            return Err(DropReason::Malformed);
        }
        Ok(Self { echo: reader.array()?, gateway_nonce: reader.array()?, datagram })
    }

    /// Opens the answer to the request that carried `client`.
    pub fn open(&self, control: &ControlSecret, client: &EpochNonce) -> Result<Reply, DropReason> {
        let (head, sealed) = self.datagram.split_at(HEAD_LEN);
        let key = control.key(LABEL, &[client, &self.gateway_nonce]);
        Reply::parse(&Zeroizing::new(open_sealed(key.expose(), SINGLE_USE, head, sealed)?))
    }
}
