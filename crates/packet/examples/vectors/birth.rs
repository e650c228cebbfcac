//! Key schedule and BIRTH.

use jumpvpn_packet::handshake::{
    cookie_for, Accepted, Assemblies, Capabilities, CookieReply, Credential, Established, Fragment, FragmentLimits,
    Initiator, InitiatorConfig, ReceivedInit,
};
use jumpvpn_packet::kem::{Encapsulation, KemKeyPair};
use jumpvpn_packet::keys::public_key;
use jumpvpn_packet::reattach::{StandbyKey, Ticket, TICKET_LEN};
use jumpvpn_packet::schedule::{Root, Secret, TrafficSecret};
use serde_json::{json, Value};

use crate::support::{bytes, hex, hexes, rising, secret, Fixed};

fn traffic(secret: &TrafficSecret) -> Value {
    json!({ "key": hex(secret.key().expose()), "cids": secret.cids().map(|cid| hex(&cid)) })
}

fn root_vector(root: &Root) -> Value {
    let (epoch, client, gateway) = (0x0102_0304_0506_0708, rising(0x40), rising(0x60));
    json!({
        "root": hex(root.secret().expose()),
        "control": hex(root.control().secret().expose()),
        "epoch": epoch,
        "client_nonce": hex(&client),
        "gateway_nonce": hex(&gateway),
        "up": traffic(&root.up(epoch, &client)),
        "down": traffic(&root.down(epoch, &client, &gateway)),
    })
}

pub fn schedule() -> Value {
    let (hash, split_1, split_2) = (rising(0x01), secret(0x20), secret(0x30));
    let root = Root::from_handshake(&hash, &split_1, &split_2);
    let (x25519_secret, kem_secret, transcript) = (rising(0x80), rising(0xa0), rising(0xc0));
    let next = root.ratchet(&x25519_secret, &kem_secret, &transcript);
    json!({
        "hash": hex(&hash),
        "split": [hex(split_1.expose()), hex(split_2.expose())],
        "first": root_vector(&root),
        "x25519_secret": hex(&x25519_secret),
        "kem_secret": hex(&kem_secret),
        "transcript": hex(&transcript),
        "ratcheted": root_vector(&next),
    })
}

struct Case {
    name: &'static str,
    client: Capabilities,
    gateway: Capabilities,
    credential: usize,
    tickets: u8,
    welcome: usize,
}

const CASES: [Case; 3] = [
    Case {
        name: "typical",
        client: Capabilities::AES,
        gateway: Capabilities::AES,
        credential: 32,
        tickets: 2,
        welcome: 300,
    },
    Case {
        name: "smallest, without AES",
        client: Capabilities(0),
        gateway: Capabilities::AES,
        credential: 0,
        tickets: 0,
        welcome: 0,
    },
    Case {
        name: "largest, unknown capability bits",
        client: Capabilities(0xffff_ffff),
        gateway: Capabilities::AES,
        credential: 256,
        tickets: 8,
        welcome: 1500,
    },
];

pub fn handshake(kem: &Value) -> Value {
    Value::Array(CASES.iter().map(|case| handshake_case(case, kem)).collect())
}

fn initiator(case: &Case, kem: &Value, gateway_private: &Secret) -> Initiator {
    let config = InitiatorConfig {
        private_key: secret(0x21),
        gateway_key: public_key(gateway_private),
        timestamp_ns: 0x1122_3344_5566_7788,
        capabilities: case.client,
        credential: Credential(vec![0xcc; case.credential]),
    };
    let pair = KemKeyPair::from_bytes(&bytes(kem, "dk"), &bytes(kem, "ek")).expect("kem.json holds a key pair");
    let mut rng = Fixed([&rising::<32>(0x31)[..], &rising::<8>(0xd0)].concat());
    Initiator::new(&config, pair, &mut rng).expect("the inputs are within bounds")
}

fn receive(datagrams: &[Vec<u8>], gateway_private: &Secret) -> ReceivedInit {
    let mut table = Assemblies::new(FragmentLimits::default());
    let mut message = None;
    for datagram in datagrams {
        let fragment = Fragment::parse(datagram).expect("our own datagram");
        message = table.insert((), &fragment, 0).expect("our own datagram");
    }
    let message = message.expect("all datagrams were inserted");
    ReceivedInit::read(gateway_private, rising(0xd0), &message, &mut Fixed(rising::<32>(0x51).to_vec()))
        .expect("our own message")
}

fn cookie_vector(first: &[u8], gateway_private: &Secret) -> (Value, Vec<u8>) {
    let (cookie_secret, address) = (secret(0x61), rising::<18>(0x02));
    let cookie = cookie_for(&cookie_secret, &address);
    let fragment = Fragment::parse(first).expect("our own datagram");
    let nonce: [u8; 12] = rising(0xe0);
    let gateway = public_key(gateway_private);
    let reply = CookieReply::seal(&gateway, &fragment, &cookie, &mut Fixed(nonce.to_vec()));
    let value = json!({
        "secret": hex(cookie_secret.expose()),
        "address": hex(&address),
        "nonce": hex(&nonce),
        "cookie": hex(&cookie),
        "reply": hex(&reply),
    });
    (value, reply)
}

fn handshake_case(case: &Case, kem: &Value) -> Value {
    let gateway_private = secret(0x41);
    let mut client = initiator(case, kem, &gateway_private);
    let init = client.datagrams();
    let received = receive(&init, &gateway_private);
    let (cookie, cookie_reply) = cookie_vector(&init[0], &gateway_private);
    client.accept_cookie(&cookie_reply).expect("our own reply");
    let init_with_cookie = client.datagrams();
    let accepted = Accepted {
        session_id: rising(0x90),
        capabilities: case.gateway,
        tickets: (0..case.tickets).map(|n| Ticket::parse(&[n; TICKET_LEN]).expect("60 bytes")).collect(),
        standby: StandbyKey::new(rising(0x81)),
        welcome: (0..case.welcome).map(|at| at as u8).collect(),
    };
    let secret = bytes(kem, "secret").try_into().expect("32 bytes");
    let encapsulation = Encapsulation { ct: bytes(kem, "ct"), secret: Secret::new(secret) };
    let (established, response) = received.respond_with(accepted, encapsulation).expect("within bounds");
    let last = response.iter().map(|datagram| client.accept(datagram, 0).expect("our own datagram")).last();
    let agreed = last.flatten().expect("the response is whole");
    assert_eq!(agreed.root.secret().expose(), established.root.secret().expose());
    json!({
        "name": case.name,
        "kem": "handshake",
        "gateway_private": hex(gateway_private.expose()),
        "device_private": hex(&rising::<32>(0x21)),
        "initiator_ephemeral": hex(&rising::<32>(0x31)),
        "responder_ephemeral": hex(&rising::<32>(0x51)),
        "handshake_id": hex(&rising::<8>(0xd0)),
        "timestamp_ns": 0x1122_3344_5566_7788_u64,
        "client_capabilities": case.client.0,
        "gateway_capabilities": case.gateway.0,
        "credential": hex(&vec![0xcc; case.credential]),
        "cookie": cookie,
        "init": hexes(&init),
        "init_with_cookie": hexes(&init_with_cookie),
        "response": hexes(&response),
        "established": established_vector(&established),
    })
}

fn established_vector(established: &Established) -> Value {
    json!({
        "session_id": hex(&established.session_id),
        "aead": established.aead as u8,
        "tickets": established.tickets.iter().map(|ticket| hex(ticket.as_bytes())).collect::<Vec<_>>(),
        "standby_key": hex(established.standby.expose()),
        "welcome": hex(&established.welcome),
        "hash": hex(&established.hash),
        "root": hex(established.root.secret().expose()),
        "up": traffic(&established.up()),
        "down": traffic(&established.down()),
    })
}
