//! Silence towards strangers (mac1) and proof of address under load (mac2 and cookie). spec: WIRE-12 to WIRE-16

use crate::aead::{append_sealed, open_sealed};
use crate::bytes::exact_len;
use crate::header::Kind;
use crate::keys::PublicKey;
use crate::random::draw;
use crate::schedule::{equal, mac16, sha256, Secret};
use crate::{DropReason, Random};

use super::fragment::{Fragment, MACS_LEN};
use super::HandshakeId;

/// Proof that its holder receives at an address.
pub type Cookie = [u8; 16];

/// `kind u8 | 0 | handshake id 8 | nonce 12 | cookie 16 | tag 16`
const COOKIE_REPLY_LEN: usize = 2 + 8 + 12 + 16 + 16;

/// Key of mac1 for one receiver, computed once per peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// `receiver` is the static key of whoever gets the datagram.
    pub fn of(receiver: &PublicKey) -> Self {
        Self(sha256(&[b"jumpvpn v1 mac1", receiver]))
    }

    /// mac1 over all bytes before it.
    pub fn mac1(&self, before: &[u8]) -> [u8; 16] {
        mac16(&self.0, &[before])
    }
}

/// mac2 over all bytes before it, mac1 included.
pub(super) fn mac2(cookie: &Cookie, before: &[u8]) -> [u8; 16] {
    mac16(cookie, &[before])
}

/// Does the sender know our public key? First check of every handshake datagram.
pub fn verify_mac1(datagram: &[u8], fragment: &Fragment<'_>, key: &MacKey) -> Result<(), DropReason> {
    let before = &datagram[..datagram.len() - MACS_LEN];
    equal(&key.mac1(before), &fragment.mac1).then_some(()).ok_or(DropReason::BadMac1)
}

/// Does the sender hold the cookie of its address? Demanded under load only.
pub fn verify_mac2(datagram: &[u8], fragment: &Fragment<'_>, cookie: &Cookie) -> Result<(), DropReason> {
    let before = &datagram[..datagram.len() - MACS_LEN / 2];
    equal(&mac2(cookie, before), &fragment.mac2).then_some(()).ok_or(DropReason::BadMac2)
}

/// The cookie of `address` (16 address bytes, IPv4 mapped into IPv6, then the port) under a secret that lives 120 s.
pub fn cookie_for(secret: &Secret, address: &[u8; 18]) -> Cookie {
    mac16(secret.expose(), &[address])
}

/// A cookie on its way to whoever sent a fragment with the right mac1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieReply;

impl CookieReply {
    /// Answers `fragment` with the cookie of its source.
    pub fn seal(gateway: &PublicKey, fragment: &Fragment<'_>, cookie: &Cookie, rng: &mut dyn Random) -> Vec<u8> {
        let nonce: [u8; 12] = draw(rng);
        let mut sealed = fragment.mac1.to_vec();
        append_sealed(&cookie_key(gateway), nonce, cookie, &mut sealed);
        [&[Kind::CookieReply.byte(), 0][..], &fragment.handshake_id, &nonce, &sealed[16..]].concat()
    }

    /// Opens a reply to a fragment of handshake `id` that carried `mac1`.
    pub fn open(gateway: &PublicKey, id: &HandshakeId, mac1: &[u8; 16], datagram: &[u8]) -> Result<Cookie, DropReason> {
        if Kind::of(datagram)? != Kind::CookieReply {
            return Err(DropReason::UnknownKind);
        }
        exact_len(datagram, COOKIE_REPLY_LEN)?;
        if datagram[..2] != [Kind::CookieReply.byte(), 0] {
            return Err(DropReason::Malformed);
        }
        if datagram[2..10] != id[..] {
            return Err(DropReason::UnknownHandshake);
        }
        let nonce = datagram[10..22].try_into().map_err(|_| DropReason::Truncated)?;
        let cookie = open_sealed(&cookie_key(gateway), nonce, mac1, &datagram[22..])?;
        cookie.try_into().map_err(|_| DropReason::Malformed)
    }

    /// The handshake that a reply belongs to.
    pub fn handshake_id(datagram: &[u8]) -> Result<HandshakeId, DropReason> {
        exact_len(datagram, COOKIE_REPLY_LEN)?;
        datagram[2..10].try_into().map_err(|_| DropReason::Truncated)
    }
}

fn cookie_key(gateway: &PublicKey) -> [u8; 32] {
    sha256(&[b"jumpvpn v1 cookie", gateway])
}

#[cfg(test)]
mod tests {
    use super::super::fragment::cut;
    use super::*;
    use crate::SystemRandom;

    const GATEWAY: PublicKey = [9; 32];

    fn datagram(cookie: Option<&Cookie>) -> Vec<u8> {
        let key = MacKey::of(&GATEWAY);
        cut(Kind::HandshakeInit, &[1; 8], &[5; 1400], &key, cookie).unwrap().remove(0)
    }

    #[test]
    fn macs_cover_every_byte() {
        let (key, cookie) = (MacKey::of(&GATEWAY), [3; 16]);
        let good = datagram(Some(&cookie));
        let fragment = Fragment::parse(&good).unwrap();
        assert_eq!(verify_mac1(&good, &fragment, &key), Ok(()));
        assert_eq!(verify_mac2(&good, &fragment, &cookie), Ok(()));
        assert_eq!(verify_mac1(&good, &fragment, &MacKey::of(&[8; 32])), Err(DropReason::BadMac1));
        assert_eq!(verify_mac2(&good, &fragment, &[4; 16]), Err(DropReason::BadMac2));
        for at in 2..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let fragment = Fragment::parse(&bad).unwrap();
            let both = verify_mac1(&bad, &fragment, &key).and(verify_mac2(&bad, &fragment, &cookie));
            assert!(both.is_err(), "{at}");
        }
    }

    #[test]
    fn a_handshake_without_cookie_has_zero_mac2() {
        let bytes = datagram(None);
        assert_eq!(Fragment::parse(&bytes).unwrap().mac2, [0; 16]);
    }

    #[test]
    fn cookie_reply_opens_for_its_fragment_only() {
        let sent = datagram(None);
        let fragment = Fragment::parse(&sent).unwrap();
        let cookie = cookie_for(&Secret::new([1; 32]), &[7; 18]);
        let reply = CookieReply::seal(&GATEWAY, &fragment, &cookie, &mut SystemRandom);
        assert!(reply.len() < sent.len(), "answers are shorter than questions");
        assert_eq!(CookieReply::handshake_id(&reply), Ok([1; 8]));
        assert_eq!(CookieReply::open(&GATEWAY, &[1; 8], &fragment.mac1, &reply), Ok(cookie));
        assert_eq!(CookieReply::open(&GATEWAY, &[2; 8], &fragment.mac1, &reply), Err(DropReason::UnknownHandshake));
        assert_eq!(CookieReply::open(&GATEWAY, &[1; 8], &[0; 16], &reply), Err(DropReason::BadTag));
        assert_eq!(CookieReply::open(&[8; 32], &[1; 8], &fragment.mac1, &reply), Err(DropReason::BadTag));
        for at in 0..reply.len() {
            let mut bad = reply.clone();
            bad[at] ^= 1;
            assert!(CookieReply::open(&GATEWAY, &[1; 8], &fragment.mac1, &bad).is_err(), "{at}");
            assert!(CookieReply::open(&GATEWAY, &[1; 8], &fragment.mac1, &reply[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn cookies_differ_by_address_and_secret() {
        let cookie = cookie_for(&Secret::new([1; 32]), &[7; 18]);
        assert_ne!(cookie, cookie_for(&Secret::new([1; 32]), &[8; 18]));
        assert_ne!(cookie, cookie_for(&Secret::new([2; 32]), &[7; 18]));
    }
}
