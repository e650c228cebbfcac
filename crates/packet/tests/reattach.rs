//! Reattach messages: every field, every byte, every length.

use jumpvpn_packet::reattach::{
    Hint, HintEnvelope, Reply, ReplyEnvelope, ReplyStatus, Request, RequestEnvelope, StandbyKey, StandbyProbe,
    StandbyProbeEnvelope, StandbyReply, StandbyReplyEnvelope, Ticket, Token, HINT_LEN, MAX_REPLY_TICKETS, MAX_TOKEN,
    REPLY_LEN, REQUEST_LEN, STANDBY_PROBE_LEN, STANDBY_REPLY_LEN, TICKET_LEN,
};
use jumpvpn_packet::schedule::{ControlSecret, Root, Secret};
use jumpvpn_packet::{DropReason, PathIndex};
use proptest::collection::vec;
use proptest::prelude::*;

fn control(byte: u8) -> ControlSecret {
    Root::new(Secret::new([byte; 32])).control()
}

fn standby(byte: u8) -> StandbyKey {
    StandbyKey::new([byte; 32])
}

fn ticket() -> Ticket {
    Ticket::parse(&[3; TICKET_LEN]).unwrap()
}

prop_compose! {
    fn request()(next_epoch: u64, expected_version: u64, age_ms: u64, path in 0u8..8, cause: u8,
                 gateway: [u8; 8], token in vec(any::<u8>(), 0..=MAX_TOKEN)) -> Request {
        let (path, token) = (PathIndex::new(path).unwrap(), Token::parse(&token).unwrap());
        Request { next_epoch, expected_version, age_ms, path, cause, gateway, token }
    }
}

prop_compose! {
    fn reply()(status in 0usize..3, epoch: u64, version: u64, path in 0u8..8, reason: u16,
               token in vec(any::<u8>(), 0..=MAX_TOKEN), tickets in 0..=MAX_REPLY_TICKETS) -> Reply {
        let status = [ReplyStatus::Committed, ReplyStatus::Challenge, ReplyStatus::Denied][status];
        let (path, token) = (PathIndex::new(path).unwrap(), Token::parse(&token).unwrap());
        let standby = (status == ReplyStatus::Committed).then(|| standby(reason as u8));
        Reply { status, epoch, version, path, reason, token, tickets: vec![ticket(); tickets], standby }
    }
}

proptest! {
    #[test]
    fn standby_messages_round_trip(gateway: [u8; 8], challenge: [u8; 16], nonce: [u8; 16], is_draining: bool,
                                   token in vec(any::<u8>(), 0..=MAX_TOKEN)) {
        let probe = StandbyProbe { gateway };
        let datagram = probe.seal(&standby(1), &ticket(), &challenge);
        prop_assert_eq!(datagram.len(), STANDBY_PROBE_LEN);
        let envelope = StandbyProbeEnvelope::parse(&datagram).unwrap();
        prop_assert_eq!((&envelope.ticket, envelope.challenge), (&ticket(), challenge));
        prop_assert_eq!(envelope.open(&standby(1)), Ok(probe));
        prop_assert_eq!(envelope.open(&standby(2)), Err(DropReason::BadTag));
        let reply = StandbyReply { token: Token::parse(&token).unwrap(), is_draining };
        let datagram = reply.seal(&standby(1), &challenge, &nonce);
        prop_assert_eq!(datagram.len(), STANDBY_REPLY_LEN);
        let envelope = StandbyReplyEnvelope::parse(&datagram).unwrap();
        prop_assert_eq!(&envelope.echo[..], &challenge[..8]);
        prop_assert_eq!(envelope.open(&standby(1), &challenge), Ok(reply));
        prop_assert_eq!(envelope.open(&standby(2), &challenge), Err(DropReason::BadTag));
        let mut other = challenge;
        other[15] ^= 1;
        prop_assert_eq!(envelope.open(&standby(1), &other), Err(DropReason::BadTag));
    }

    #[test]
    fn requests_round_trip(request in request(), nonce: [u8; 32]) {
        let datagram = request.seal(&control(1), &ticket(), &nonce);
        prop_assert_eq!(datagram.len(), REQUEST_LEN);
        let envelope = RequestEnvelope::parse(&datagram).unwrap();
        prop_assert_eq!((&envelope.ticket, envelope.nonce), (&ticket(), nonce));
        prop_assert_eq!(envelope.open(&control(1)), Ok(request));
        prop_assert_eq!(envelope.open(&control(2)), Err(DropReason::BadTag));
    }

    #[test]
    fn replies_round_trip(reply in reply(), client: [u8; 32], gateway: [u8; 32]) {
        let datagram = reply.seal(&control(1), &client, &gateway);
        prop_assert_eq!(datagram.len(), REPLY_LEN);
        let envelope = ReplyEnvelope::parse(&datagram).unwrap();
        prop_assert_eq!(&envelope.echo[..], &client[..8]);
        prop_assert_eq!(envelope.open(&control(1), &client), Ok(reply));
        prop_assert_eq!(envelope.open(&control(2), &client), Err(DropReason::BadTag));
        let mut other = client;
        other[31] ^= 1;
        prop_assert_eq!(envelope.open(&control(1), &other), Err(DropReason::BadTag));
    }

    #[test]
    fn hints_round_trip(challenge: [u8; 8], epoch: u64, cause: u8, cid: [u8; 7], nonce: [u8; 16]) {
        let hint = Hint { challenge, epoch, cause };
        let datagram = hint.seal(&control(1), &cid, &nonce);
        prop_assert_eq!(datagram.len(), HINT_LEN);
        let envelope = HintEnvelope::parse(&datagram).unwrap();
        prop_assert_eq!(envelope.cid, cid);
        prop_assert_eq!(envelope.open(&control(1)), Ok(hint));
        prop_assert_eq!(envelope.open(&control(2)), Err(DropReason::BadTag));
    }

    #[test]
    fn parsers_never_panic(bytes in vec(any::<u8>(), 0..400), kind in 5u8..10, fit: bool) {
        let mut bytes = bytes;
        if fit {
            let sizes = [REQUEST_LEN, REPLY_LEN, HINT_LEN, STANDBY_PROBE_LEN, STANDBY_REPLY_LEN];
            bytes.resize(sizes[usize::from(kind - 5)], 0);
            bytes[0] = kind << 4;
        }
        let _ = RequestEnvelope::parse(&bytes).and_then(|envelope| envelope.open(&control(1)));
        let _ = ReplyEnvelope::parse(&bytes).and_then(|envelope| envelope.open(&control(1), &[0; 32]));
        let _ = HintEnvelope::parse(&bytes).and_then(|envelope| envelope.open(&control(1)));
        let _ = StandbyProbeEnvelope::parse(&bytes).and_then(|envelope| envelope.open(&standby(1)));
        let _ = StandbyReplyEnvelope::parse(&bytes).and_then(|envelope| envelope.open(&standby(1), &[0; 16]));
    }
}

fn open_any(datagram: &[u8]) -> Result<(), DropReason> {
    match datagram.first().map(|first| first >> 4) {
        Some(5) => RequestEnvelope::parse(datagram)?.open(&control(1)).map(drop),
        Some(6) => ReplyEnvelope::parse(datagram)?.open(&control(1), &[4; 32]).map(drop),
        Some(7) => HintEnvelope::parse(datagram)?.open(&control(1)).map(drop),
        Some(8) => StandbyProbeEnvelope::parse(datagram)?.open(&standby(1)).map(drop),
        Some(9) => StandbyReplyEnvelope::parse(datagram)?.open(&standby(1), &[8; 16]).map(drop),
        _ => Err(DropReason::UnknownKind),
    }
}

fn samples() -> [Vec<u8>; 5] {
    let path = PathIndex::new(1).unwrap();
    let token = Token::default();
    let request = Request {
        next_epoch: 2,
        expected_version: 3,
        age_ms: 4,
        path,
        cause: 5,
        gateway: [6; 8],
        token: token.clone(),
    };
    let tickets = vec![ticket(); 2];
    let (status, key) = (ReplyStatus::Committed, Some(standby(9)));
    let reply = Reply { status, epoch: 2, version: 4, path, reason: 0, token: token.clone(), tickets, standby: key };
    let hint = Hint { challenge: [1; 8], epoch: 2, cause: 3 };
    [
        request.seal(&control(1), &ticket(), &[4; 32]),
        reply.seal(&control(1), &[4; 32], &[5; 32]),
        hint.seal(&control(1), &[6; 7], &[7; 16]),
        StandbyProbe { gateway: [6; 8] }.seal(&standby(1), &ticket(), &[8; 16]),
        StandbyReply { token, is_draining: true }.seal(&standby(1), &[8; 16], &[9; 16]),
    ]
}

#[test]
fn any_changed_byte_is_refused() {
    for datagram in samples() {
        assert_eq!(open_any(&datagram), Ok(()));
        for at in 0..datagram.len() {
            for bit in [0, 7] {
                let mut changed = datagram.clone();
                changed[at] ^= 1 << bit;
                // The echo in a reply is public and only selects the request; the tag covers it.
                assert!(open_any(&changed).is_err(), "{at}");
            }
        }
    }
}

#[test]
fn other_lengths_are_refused() {
    for datagram in samples() {
        for len in 1..datagram.len() {
            assert_eq!(open_any(&datagram[..len]), Err(DropReason::Truncated));
        }
        assert_eq!(open_any(&[&datagram[..], &[0]].concat()), Err(DropReason::Oversized));
    }
}

#[test]
fn answers_are_never_much_longer_than_questions() {
    let probe = 64 + 32;
    assert!(HINT_LEN < probe && REPLY_LEN < 3 * REQUEST_LEN && STANDBY_REPLY_LEN <= STANDBY_PROBE_LEN);
}

#[test]
fn tokens_are_bounded() {
    assert_eq!(Token::parse(&[0; MAX_TOKEN + 1]), Err(DropReason::Oversized));
}
