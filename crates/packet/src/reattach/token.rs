//! Return tokens: proof that a client receives at an address, without state at the gateway. spec: WIRE-78, WIRE-79

use crate::bytes::Reader;
use crate::schedule::{equal, mac16, ClusterKey, Secret};
use crate::{DropReason, SessionId};

/// Bytes of a token that a request or reply can carry.
pub const MAX_TOKEN: usize = 48;
/// `issued u64 | mac 16`
pub const RETURN_TOKEN_LEN: usize = 8 + 16;
/// A token outlives any round trip worth having, and no longer.
pub const RETURN_TOKEN_LIFE_MS: u64 = 10_000;

/// At most [`MAX_TOKEN`] opaque bytes; empty when none is shown.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Token(Vec<u8>);

impl Token {
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        if bytes.len() > MAX_TOKEN {
            return Err(DropReason::Oversized);
        }
        Ok(Self(bytes.to_vec()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `length u8 | bytes`
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, DropReason> {
        let len = usize::from(reader.u8()?);
        if len > MAX_TOKEN {
            return Err(DropReason::Malformed);
        }
        Self::parse(reader.take(len)?)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(self.0.len() as u8);
        out.extend_from_slice(&self.0);
    }
}

/// Makes and checks return tokens; any gateway of the cluster checks those of any other.
#[derive(Debug)]
pub struct ReturnTokenKey(Secret);

impl ReturnTokenKey {
    pub fn new(cluster: &ClusterKey) -> Self {
        Self(cluster.return_token())
    }

    /// `address` is 16 address bytes (IPv4 mapped into IPv6), then the port.
    pub fn make(&self, address: &[u8; 18], session: &SessionId, issued_ms: u64) -> Token {
        let mac = self.mac(address, session, issued_ms);
        Token([&issued_ms.to_be_bytes()[..], &mac].concat())
    }

    /// Was `token` made for this address and session within the last 10 s? `now_ms` is the clock that `make` was given.
    pub fn check(&self, token: &Token, address: &[u8; 18], session: &SessionId, now_ms: u64) -> Result<(), DropReason> {
        let mut reader = Reader::new(&token.0);
        let (issued_ms, mac) = (reader.u64()?, reader.array::<16>()?);
        reader.finish()?;
        if !equal(&self.mac(address, session, issued_ms), &mac) {
            return Err(DropReason::BadToken);
        }
        let age_ms = now_ms.checked_sub(issued_ms).ok_or(DropReason::StaleToken)?;
        (age_ms <= RETURN_TOKEN_LIFE_MS).then_some(()).ok_or(DropReason::StaleToken)
    }

    fn mac(&self, address: &[u8; 18], session: &SessionId, issued_ms: u64) -> [u8; 16] {
        mac16(self.0.expose(), &[address, session, &issued_ms.to_be_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_for_its_address_session_and_time() {
        let key = ReturnTokenKey::new(&ClusterKey::new([1; 32]));
        let token = key.make(&[2; 18], &[3; 16], 1000);
        assert_eq!(token.as_bytes().len(), RETURN_TOKEN_LEN);
        assert_eq!(key.check(&token, &[2; 18], &[3; 16], 1000), Ok(()));
        assert_eq!(key.check(&token, &[2; 18], &[3; 16], 11_000), Ok(()));
        assert_eq!(key.check(&token, &[2; 18], &[3; 16], 11_001), Err(DropReason::StaleToken));
        assert_eq!(key.check(&token, &[2; 18], &[3; 16], 999), Err(DropReason::StaleToken));
        assert_eq!(key.check(&token, &[9; 18], &[3; 16], 1000), Err(DropReason::BadToken));
        assert_eq!(key.check(&token, &[2; 18], &[9; 16], 1000), Err(DropReason::BadToken));
        for at in 0..RETURN_TOKEN_LEN {
            let mut bytes = token.0.clone();
            bytes[at] ^= 1;
            assert_eq!(key.check(&Token(bytes), &[2; 18], &[3; 16], 1000), Err(DropReason::BadToken));
            assert_eq!(key.check(&Token(token.0[..at].to_vec()), &[2; 18], &[3; 16], 1000), Err(DropReason::Truncated));
        }
        let longer = Token([token.0, vec![0]].concat());
        assert_eq!(key.check(&longer, &[2; 18], &[3; 16], 1000), Err(DropReason::Oversized));
    }
}
