//! One function per parser: any input must be refused or understood, without panic and within bounds.

use jumpvpn_packet::aead::{Aead, AeadId, Key};
use jumpvpn_packet::control::{cut_message, ControlFrame, ControlReassembler, MAX_UNFINISHED};
use jumpvpn_packet::frames::Plaintext;
use jumpvpn_packet::handshake::{
    cut, Assemblies, Capabilities, CookieReply, Credential, Fragment, FragmentLimits, InitPayload, Initiator,
    InitiatorConfig, MacKey, ReceivedInit, ResponsePayload,
};
use jumpvpn_packet::header::{DataHeader, Kind, OVERHEAD};
use jumpvpn_packet::kem::KemKeyPair;
use jumpvpn_packet::keys::public_key;
use jumpvpn_packet::reattach::{
    HintEnvelope, ReplyEnvelope, RequestEnvelope, ReturnTokenKey, StandbyKey, StandbyProbeEnvelope,
    StandbyReplyEnvelope, Ticket, TicketKey, Token,
};
use jumpvpn_packet::record::SessionRecord;
use jumpvpn_packet::rekey::{respond, RekeyInitiator};
use jumpvpn_packet::replay::{ReplayWindow, WINDOW};
use jumpvpn_packet::schedule::{expand, ClusterKey, Root, Secret, TrafficSecret};
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::{PathIndex, SystemRandom};

/// A target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by the name of its file in `fuzz_targets`.
pub const ALL: &[Target] = &[
    ("datagram", datagram),
    ("data", data),
    ("plaintext", plaintext),
    ("control", control),
    ("fragments", fragments),
    ("init", init),
    ("response", response),
    ("reattach_body", reattach_body),
    ("standby_body", standby_body),
    ("stored", stored),
    ("rekey", rekey),
    ("replay", replay),
];

/// Parsing is the test; what comes of it is not.
fn ignore<T>(_: T) {}

fn root() -> Root {
    Root::new(Secret::new([7; 32]))
}

fn standby() -> StandbyKey {
    StandbyKey::new([6; 32])
}

fn traffic() -> TrafficSecret {
    root().up(1, &[1; 32])
}

/// A datagram of any kind as it comes from the network.
pub fn datagram(input: &[u8]) {
    let control = root().control();
    match Kind::of(input) {
        Ok(Kind::HandshakeInit | Kind::HandshakeResponse) => ignore(Fragment::parse(input)),
        Ok(Kind::CookieReply) => {
            let id = CookieReply::handshake_id(input).unwrap_or_default();
            ignore(CookieReply::open(&[1; 32], &id, &[0; 16], input));
        }
        Ok(Kind::Data) => ignore(DataHeader::parse(input)),
        Ok(Kind::ReattachRequest) => ignore(RequestEnvelope::parse(input).and_then(|envelope| envelope.open(&control))),
        Ok(Kind::ReattachReply) => {
            ignore(ReplyEnvelope::parse(input).and_then(|envelope| envelope.open(&control, &[0; 32])));
        }
        Ok(Kind::ReattachHint) => ignore(HintEnvelope::parse(input).and_then(|envelope| envelope.open(&control))),
        Ok(Kind::StandbyProbe) => {
            ignore(StandbyProbeEnvelope::parse(input).and_then(|envelope| envelope.open(&standby())));
        }
        Ok(Kind::StandbyReply) => {
            ignore(StandbyReplyEnvelope::parse(input).and_then(|envelope| envelope.open(&standby(), &[0; 16])));
        }
        Err(_) => {}
    }
}

/// Bytes behind a known connection identifier never open, and what is sealed does.
pub fn data(input: &[u8]) {
    let mut opening = OpeningKey::new(AeadId::Aes256Gcm, &traffic());
    let path = PathIndex::new(input.len() as u8 % 8).expect("below eight");
    let mut forged = [&[0x41], &opening.cids()[path.index()][..], input].concat();
    assert!(opening.open(&mut forged).is_err() && opening.window(path).is_none());
    if input.is_empty() {
        return;
    }
    let mut sealed = [&[0; 16], input, &[0; 16]].concat();
    let counter = SealingKey::new(AeadId::Aes256Gcm, &traffic()).seal(path, &mut sealed);
    assert_eq!(sealed.len(), input.len() + OVERHEAD);
    let opened = opening.open(&mut sealed).expect("what was sealed opens");
    assert_eq!((Ok(opened.counter), opened.path, &*opened.plaintext), (counter, path, input));
}

/// What a plaintext parses to, encodes to the same plaintext.
pub fn plaintext(input: &[u8]) {
    match Plaintext::parse(input) {
        Ok(Plaintext::Probe(probe)) => assert_eq!(&probe.to_bytes()[..], input),
        Ok(Plaintext::Report(report)) => assert_eq!(&report.to_bytes()[..], input),
        _ => {}
    }
}

/// Control frames in any order stay within the bounds; a message that is cut comes back whole.
pub fn control(input: &[u8]) {
    let mut reassembler = ControlReassembler::default();
    for (now_ns, chunk) in input.chunks(64).enumerate() {
        let mut frame = chunk.to_vec();
        frame.resize(64, 0);
        frame[0] = 0x12;
        if let Ok(frame) = ControlFrame::parse(&frame) {
            ignore(reassembler.accept(&frame, now_ns as u64));
        }
        assert!(reassembler.unfinished() <= MAX_UNFINISHED);
    }
    let mut fresh = ControlReassembler::default();
    let frames = cut_message(1, 16, input).unwrap_or_default();
    let accept = |frame: &Vec<u8>| fresh.accept(&ControlFrame::parse(frame).expect("our own frame"), 0);
    if let Some(last) = frames.iter().map(accept).last() {
        assert_eq!(last.expect("our own frames").expect("the message is whole").content, input);
    }
}

/// Fragments from several senders stay within the table's bounds.
pub fn fragments(input: &[u8]) {
    let limits = FragmentLimits { count: 3, bytes: 6000, age_ns: 5 };
    let mut table = Assemblies::new(limits);
    for (now_ns, step) in input.chunks(4).enumerate() {
        let (count, sender) = (step[0] % 4, step.get(1).map_or(0, |byte| byte % 8));
        let mut datagram = vec![step.get(2).copied().unwrap_or(0); 1200];
        datagram[0] = 0x20;
        datagram[1] = step.get(3).map_or(0, |byte| byte % 4) << 4 | count;
        if let Ok(fragment) = Fragment::parse(&datagram) {
            if let Ok(Some(message)) = table.insert(sender, &fragment, now_ns as u64) {
                assert!(message.len() <= 3600);
            }
        }
        assert!(table.len() <= limits.count && table.bytes() <= limits.bytes);
    }
}

/// A first message, whole; and its payload as if it had authenticated.
pub fn init(input: &[u8]) {
    assert!(ReceivedInit::read(&Secret::new([3; 32]), [0; 8], input, &mut SystemRandom).is_err());
    ignore(InitPayload::parse(input));
    ignore(ResponsePayload::parse(input));
}

/// A datagram of an answer never completes a handshake that nobody answered.
pub fn response(input: &[u8]) {
    let config = InitiatorConfig {
        private_key: Secret::new([3; 32]),
        gateway_key: public_key(&Secret::new([4; 32])),
        timestamp_ns: 1,
        capabilities: Capabilities::AES,
        credential: Credential(Vec::new()),
    };
    let initiator = Initiator::new(&config, KemKeyPair::generate(), &mut SystemRandom);
    let mut initiator = initiator.expect("the inputs are within bounds");
    let key = MacKey::of(&public_key(&config.private_key));
    let forged = cut(Kind::HandshakeResponse, initiator.id(), input, &key, None);
    for datagram in forged.unwrap_or_default() {
        assert!(!matches!(initiator.accept(&datagram, 0), Ok(Some(_))));
    }
    assert!(!matches!(initiator.accept(input, 0), Ok(Some(_))));
    assert!(initiator.accept_cookie(input).is_err());
}

/// Bodies of reattach messages with a right tag: the parsers behind it see any bytes, and what they take has one encoding.
pub fn reattach_body(input: &[u8]) {
    let control = root().control();
    let head = [&[0x50][..], &[0; 60], &[2; 32]].concat();
    let request = sealed(control.secret(), "reattach request", &[2; 32], &head, 128, input);
    if let Ok(parsed) = RequestEnvelope::parse(&request).expect("the size is right").open(&control) {
        let ticket = Ticket::parse(&[0; 60]).expect("60 bytes");
        assert_eq!(parsed.seal(&control, &ticket, &[2; 32]), request);
    }
    let head = [&[0x60][..], &[3; 8], &[4; 32]].concat();
    let reply = sealed(control.secret(), "reattach reply", &[[3; 32], [4; 32]].concat(), &head, 384, input);
    if let Ok(parsed) = ReplyEnvelope::parse(&reply).expect("the size is right").open(&control, &[3; 32]) {
        assert_eq!(parsed.seal(&control, &[3; 32], &[4; 32]), reply);
    }
    let head = [&[0x70][..], &[5; 7], &[6; 16]].concat();
    let hint = sealed(control.secret(), "hint", &[6; 16], &head, 32, input);
    if let Ok(parsed) = HintEnvelope::parse(&hint).expect("the size is right").open(&control) {
        assert_eq!(parsed.seal(&control, &[5; 7], &[6; 16]), hint);
    }
}

/// Bodies of standby probes and replies with a right tag, as above.
pub fn standby_body(input: &[u8]) {
    let (key, secret) = (standby(), Secret::new(*standby().expose()));
    let (ticket, challenge, nonce) = (Ticket::parse(&[0; 60]).expect("60 bytes"), [2; 16], [3; 16]);
    let head = [&[0x80][..], ticket.as_bytes(), &challenge].concat();
    let probe = sealed(&secret, "standby probe", &challenge, &head, 64, input);
    if let Ok(parsed) = StandbyProbeEnvelope::parse(&probe).expect("the size is right").open(&key) {
        assert_eq!(parsed.seal(&key, &ticket, &challenge), probe);
    }
    let head = [&[0x90][..], &challenge[..8], &nonce].concat();
    // Half of the inputs get past the echo.
    let echoed = if input.first().is_some_and(|byte| byte % 2 == 0) { &challenge[..] } else { &[] };
    let body = [echoed, input.get(..80.min(input.len())).unwrap_or_default()].concat();
    let reply = sealed(&secret, "standby reply", &[challenge, nonce].concat(), &head, 96, &body);
    if let Ok(parsed) = StandbyReplyEnvelope::parse(&reply).expect("the size is right").open(&key, &challenge) {
        assert_eq!(parsed.seal(&key, &challenge, &nonce), reply);
    }
}

fn sealed(secret: &Secret, label: &str, context: &[u8], head: &[u8], len: usize, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(len, 0);
    let key = Key::new(AeadId::ChaCha20Poly1305, &expand(secret, label, &[context]));
    let tag = key.seal_in_place([0; 12], head, &mut body);
    [head, &body, &tag].concat()
}

/// What a store or a client gives back: records, tickets, tokens.
pub fn stored(input: &[u8]) {
    let cluster = ClusterKey::new([8; 32]);
    assert!(SessionRecord::open(&cluster, &[1; 16], input).is_err());
    if let Ok(ticket) = Ticket::parse(input) {
        assert!(TicketKey::new(&cluster).open(&ticket).is_err());
    }
    if let Ok(token) = Token::parse(input) {
        assert!(ReturnTokenKey::new(&cluster).check(&token, &[2; 18], &[1; 16], 0).is_err());
    }
}

/// Both messages of a rekey, authenticated but hostile.
pub fn rekey(input: &[u8]) {
    ignore(respond(input, &root(), &mut SystemRandom));
    let client = RekeyInitiator::new(5, KemKeyPair::generate(), &mut SystemRandom);
    ignore(client.finish(input, &root()));
}

/// The window agrees with a plain set.
pub fn replay(input: &[u8]) {
    let (mut window, mut seen, mut at) = (ReplayWindow::default(), std::collections::BTreeSet::new(), WINDOW);
    for step in input.chunks_exact(2) {
        let delta = i64::from(i16::from_be_bytes([step[0], step[1]]));
        at = at.saturating_add_signed(delta);
        let inside = seen.last().is_none_or(|highest| at + WINDOW > *highest);
        assert_eq!(window.accept(at).is_ok(), inside && seen.insert(at));
        assert_eq!(window.highest(), seen.last().copied());
    }
    assert_eq!(window.received(), seen.len() as u64);
}
