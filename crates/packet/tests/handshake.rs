//! BIRTH from datagram to datagram.

use jumpvpn_packet::aead::AeadId;
use jumpvpn_packet::handshake::{
    cut, verify_mac1, Accepted, Assemblies, Capabilities, Credential, Established, Fragment, FragmentLimits,
    HandshakeMisuse, Initiator, InitiatorConfig, MacKey, ReceivedInit, RespondError, MAX_CREDENTIAL, MAX_DATAGRAM,
    MAX_TICKETS, MAX_WELCOME,
};
use jumpvpn_packet::header::Kind;
use jumpvpn_packet::kem::KemKeyPair;
use jumpvpn_packet::keys::{generate_private_key, public_key};
use jumpvpn_packet::reattach::{StandbyKey, Ticket, TICKET_LEN};
use jumpvpn_packet::schedule::Secret;
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::{DropReason, PathIndex, SystemRandom};

struct World {
    gateway_private: Secret,
    device_private: Secret,
}

impl World {
    fn new() -> Self {
        Self {
            gateway_private: generate_private_key(&mut SystemRandom),
            device_private: generate_private_key(&mut SystemRandom),
        }
    }

    fn initiator(&self, credential: &[u8]) -> Initiator {
        self.initiator_with(credential, Capabilities::AES).unwrap()
    }

    fn initiator_with(&self, credential: &[u8], capabilities: Capabilities) -> Result<Initiator, HandshakeMisuse> {
        let config = InitiatorConfig {
            private_key: self.device_private.clone(),
            gateway_key: public_key(&self.gateway_private),
            timestamp_ns: 42,
            capabilities,
            credential: Credential(credential.to_vec()),
        };
        Initiator::new(&config, KemKeyPair::generate(), &mut SystemRandom)
    }

    fn receive(&self, datagrams: &[Vec<u8>]) -> Result<ReceivedInit, DropReason> {
        let (id, message) = assemble(datagrams, &MacKey::of(&public_key(&self.gateway_private)))?;
        ReceivedInit::read(&self.gateway_private, id, &message, &mut SystemRandom)
    }
}

fn assemble(datagrams: &[Vec<u8>], key: &MacKey) -> Result<([u8; 8], Vec<u8>), DropReason> {
    let mut table = Assemblies::new(FragmentLimits::default());
    for datagram in datagrams {
        let fragment = Fragment::parse(datagram)?;
        verify_mac1(datagram, &fragment, key)?;
        if let Some(message) = table.insert(fragment.handshake_id, &fragment, 0)? {
            return Ok((fragment.handshake_id, message));
        }
    }
    Err(DropReason::Truncated)
}

fn accepted(tickets: usize, welcome: usize) -> Accepted {
    Accepted {
        session_id: [7; 16],
        capabilities: Capabilities::AES,
        tickets: vec![Ticket::parse(&[1; TICKET_LEN]).unwrap(); tickets],
        standby: StandbyKey::new([4; 32]),
        welcome: vec![2; welcome],
    }
}

fn deliver(initiator: &mut Initiator, datagrams: &[Vec<u8>]) -> Result<Option<Established>, DropReason> {
    let mut last = Ok(None);
    for datagram in datagrams {
        last = initiator.accept(datagram, 0);
    }
    last
}

#[test]
fn both_sides_hold_the_same_session() {
    let world = World::new();
    let mut initiator = world.initiator(b"secret of enrolment");
    let received = world.receive(&initiator.datagrams()).unwrap();
    assert_eq!(received.device_key, public_key(&world.device_private));
    assert_eq!((received.timestamp_ns, &received.credential.0[..]), (42, &b"secret of enrolment"[..]));
    let (gateway, datagrams) = received.respond(accepted(2, 100)).unwrap();
    let client = deliver(&mut initiator, &datagrams).unwrap().unwrap();
    assert_eq!((client.session_id, client.aead, client.hash), (gateway.session_id, AeadId::Aes256Gcm, gateway.hash));
    assert_eq!((client.tickets.len(), &client.welcome), (2, &vec![2; 100]));
    assert_eq!(client.standby, StandbyKey::new([4; 32]));
    assert_eq!(client.root.secret().expose(), gateway.root.secret().expose());

    let (mut sealing, mut opening) =
        (SealingKey::new(client.aead, &client.up()), OpeningKey::new(gateway.aead, &gateway.up()));
    let mut datagram = [&[0; 16], &[0x45; 60][..], &[0; 16]].concat();
    sealing.seal(PathIndex::new(0).unwrap(), &mut datagram).unwrap();
    assert_eq!(&*opening.open(&mut datagram).unwrap().plaintext, &[0x45; 60]);
}

#[test]
fn every_datagram_fits_and_answers_stay_below_three_times_the_question() {
    let world = World::new();
    let size = |datagrams: &[Vec<u8>]| datagrams.iter().map(Vec::len).sum::<usize>();
    for credential in [0, MAX_CREDENTIAL] {
        let mut initiator = world.initiator(&vec![0; credential]);
        let question = initiator.datagrams();
        let received = world.receive(&question).unwrap();
        let (_, answer) = received.respond(accepted(MAX_TICKETS, MAX_WELCOME)).unwrap();
        assert!(question.iter().chain(&answer).all(|datagram| datagram.len() <= MAX_DATAGRAM));
        assert!(size(&answer) <= 3 * size(&question));
        assert!(deliver(&mut initiator, &answer).unwrap().is_some());
    }
}

#[test]
fn any_changed_byte_of_the_first_message_is_refused() {
    let world = World::new();
    let mut initiator = world.initiator(b"c");
    let key = MacKey::of(&public_key(&world.gateway_private));
    let (id, message) = assemble(&initiator.datagrams(), &key).unwrap();
    for at in 0..message.len() {
        let mut changed = message.clone();
        changed[at] ^= 1;
        let read = ReceivedInit::read(&world.gateway_private, id, &changed, &mut SystemRandom);
        assert_eq!(read.err(), Some(DropReason::BadHandshake), "{at}");
    }
    for len in (0..message.len()).step_by(7) {
        assert!(ReceivedInit::read(&world.gateway_private, id, &message[..len], &mut SystemRandom).is_err());
    }
}

#[test]
fn another_gateways_handshake_is_refused() {
    let (world, other) = (World::new(), World::new());
    let datagrams = world.initiator(b"").datagrams();
    assert_eq!(other.receive(&datagrams).err(), Some(DropReason::BadMac1));
    let (id, message) = assemble(&datagrams, &MacKey::of(&public_key(&world.gateway_private))).unwrap();
    let read = ReceivedInit::read(&other.gateway_private, id, &message, &mut SystemRandom);
    assert_eq!(read.err(), Some(DropReason::BadHandshake));
}

#[test]
fn forged_answers_do_not_stop_the_true_one() {
    let world = World::new();
    let mut initiator = world.initiator(b"");
    let received = world.receive(&initiator.datagrams()).unwrap();
    let (gateway, datagrams) = received.respond(accepted(2, 300)).unwrap();
    let device = MacKey::of(&public_key(&world.device_private));
    let (id, message) = assemble(&datagrams, &device).unwrap();
    for at in [0, 500, 1087, 1088, 1100, 1120, message.len() - 1] {
        let mut forged = message.clone();
        forged[at] ^= 1;
        let forged = cut(Kind::HandshakeResponse, &id, &forged, &device, None).unwrap();
        assert_eq!(deliver(&mut initiator, &forged).err(), Some(DropReason::BadHandshake), "{at}");
    }
    let poison = cut(Kind::HandshakeResponse, &id, &vec![0; message.len()], &device, None).unwrap();
    assert!(matches!(initiator.accept(&poison[0], 0), Ok(None)));
    assert_eq!(deliver(&mut initiator, &datagrams[..1]).err(), Some(DropReason::BadFragment));
    let client = deliver(&mut initiator, &datagrams).unwrap().unwrap();
    assert_eq!(client.root.secret().expose(), gateway.root.secret().expose());
}

#[test]
fn answers_of_another_handshake_kind_or_mac_are_refused() {
    let world = World::new();
    let (mut initiator, mut other) = (world.initiator(b""), world.initiator(b""));
    let (_, datagrams) = world.receive(&other.datagrams()).unwrap().respond(accepted(0, 0)).unwrap();
    assert_eq!(initiator.accept(&datagrams[0], 0).err(), Some(DropReason::UnknownHandshake));
    let own = initiator.datagrams();
    assert_eq!(initiator.accept(&own[0], 0).err(), Some(DropReason::UnknownKind));
    let mut changed = datagrams[0].clone();
    changed[100] ^= 1;
    assert_eq!(other.accept(&changed, 0).err(), Some(DropReason::BadMac1));
}

#[test]
fn without_aes_on_either_side_chacha_is_chosen() {
    let world = World::new();
    for (client, gateway) in [(Capabilities(0), Capabilities::AES), (Capabilities::AES, Capabilities(0))] {
        let mut initiator = world.initiator_with(b"", client).unwrap();
        let received = world.receive(&initiator.datagrams()).unwrap();
        let accepted = Accepted { capabilities: gateway, ..accepted(0, 0) };
        let (established, datagrams) = received.respond(accepted).unwrap();
        assert_eq!(established.aead, AeadId::ChaCha20Poly1305);
        assert_eq!(deliver(&mut initiator, &datagrams).unwrap().unwrap().aead, AeadId::ChaCha20Poly1305);
    }
}

#[test]
fn our_own_excesses_are_misuse() {
    let world = World::new();
    let long = world.initiator_with(&[0; MAX_CREDENTIAL + 1], Capabilities::AES);
    assert_eq!(long.err(), Some(HandshakeMisuse::CredentialTooLong));
    let respond = |accepted| world.receive(&world.initiator(b"").datagrams()).unwrap().respond(accepted).err();
    assert_eq!(respond(accepted(0, MAX_WELCOME + 1)), Some(RespondError::Misuse(HandshakeMisuse::WelcomeTooLong)));
    assert_eq!(respond(accepted(MAX_TICKETS + 1, 0)), Some(RespondError::Misuse(HandshakeMisuse::TooManyTickets)));
}
