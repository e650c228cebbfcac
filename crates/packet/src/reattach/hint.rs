//! Hint: a gateway that can open a probe but may not send in the epoch asks the client to reattach. spec: WIRE-80, WIRE-81

use crate::aead::{append_sealed, open_sealed, SINGLE_USE};
use crate::bytes::{exact_len, Reader};
use crate::frames::Challenge;
use crate::header::{Cid, Kind};
use crate::schedule::ControlSecret;
use crate::DropReason;

const LABEL: &str = "hint";
const BODY_LEN: usize = 32;
const HEAD_LEN: usize = 1 + 7 + 16;
/// `kind u8 | cid 7 | N 16 | body 32 | tag 16`: shorter than the probe that it answers.
pub const HINT_LEN: usize = HEAD_LEN + BODY_LEN + 16;

/// Why a reattach is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Of the probe answered: the client believes no other hint, so none can be replayed.
    pub challenge: Challenge,
    /// Epoch of that probe.
    pub epoch: u64,
    /// The control plane's numbering.
    pub cause: u8,
}

impl Hint {
    /// Seals a hint for the path that the gateway's `cid` names. `nonce` must be fresh.
    pub fn seal(&self, control: &ControlSecret, cid: &Cid, nonce: &[u8; 16]) -> Vec<u8> {
        let mut body = [&self.challenge[..], &self.epoch.to_be_bytes(), &[self.cause]].concat();
        body.resize(BODY_LEN, 0);
        let mut out = vec![Kind::ReattachHint.byte()];
        out.extend_from_slice(cid);
        out.extend_from_slice(nonce);
        append_sealed(control.key(LABEL, &[nonce]).expose(), SINGLE_USE, &body, &mut out);
        out
    }
}

/// A hint before its key is known: the connection identifier says whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintEnvelope<'a> {
    pub cid: Cid,
    nonce: [u8; 16],
    datagram: &'a [u8],
}

impl<'a> HintEnvelope<'a> {
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DropReason> {
        if Kind::of(datagram)? != Kind::ReattachHint {
            return Err(DropReason::UnknownKind);
        }
        exact_len(datagram, HINT_LEN)?;
        let mut reader = Reader::new(datagram);
        if reader.u8()? != Kind::ReattachHint.byte() {
            return Err(DropReason::Malformed);
        }
        Ok(Self { cid: reader.array()?, nonce: reader.array()?, datagram })
    }

    pub fn open(&self, control: &ControlSecret) -> Result<Hint, DropReason> {
        let (head, sealed) = self.datagram.split_at(HEAD_LEN);
        let body = open_sealed(control.key(LABEL, &[&self.nonce]).expose(), SINGLE_USE, head, sealed)?;
        let mut reader = Reader::new(&body);
        let hint = Hint { challenge: reader.array()?, epoch: reader.u64()?, cause: reader.u8()? };
        reader.finish_padding()?;
        Ok(hint)
    }
}
