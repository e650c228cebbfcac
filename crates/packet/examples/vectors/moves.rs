//! Reattach, rekey, and the gateway's record.

use jumpvpn_packet::aead::AeadId;
use jumpvpn_packet::kem::{Encapsulation, KemKeyPair};
use jumpvpn_packet::keys::gateway_id;
use jumpvpn_packet::reattach::{
    Hint, Reply, ReplyStatus, Request, ReturnTokenKey, StandbyKey, StandbyProbe, StandbyReply, Ticket, TicketContents,
    TicketKey, Token,
};
use jumpvpn_packet::record::SessionRecord;
use jumpvpn_packet::rekey::{respond_with, RekeyInitiator};
use jumpvpn_packet::schedule::{ClusterKey, Root, Secret};
use jumpvpn_packet::PathIndex;
use serde_json::{json, Value};

use crate::support::{bytes, hex, rising, secret, Fixed};

const ISSUED_MS: u64 = 1_800_000_000_123;

fn ticket(key: &TicketKey, serial: u64) -> (Ticket, Value) {
    let contents = TicketContents { session_id: rising(0x90), issued_ms: ISSUED_MS, serial };
    let nonce: [u8; 12] = rising(serial as u8);
    let ticket = key.seal(&contents, &mut Fixed(nonce.to_vec()));
    let value = json!({
        "session_id": hex(&contents.session_id),
        "issued_ms": contents.issued_ms,
        "serial": serial,
        "nonce": hex(&nonce),
        "ticket": hex(ticket.as_bytes()),
    });
    (ticket, value)
}

fn request_case(root: &Root, ticket: &Ticket, token: Token, nonce: [u8; 32]) -> Value {
    let path = PathIndex::new(2).expect("below eight");
    let (age_ms, gateway) = (ISSUED_MS + 5, gateway_id(&rising(0xd1)));
    let request = Request { next_epoch: 9, expected_version: 17, age_ms, path, cause: 3, gateway, token };
    json!({
        "next_epoch": request.next_epoch,
        "expected_version": request.expected_version,
        "age_ms": request.age_ms,
        "path": request.path.get(),
        "cause": request.cause,
        "gateway_public_key": hex(&rising::<32>(0xd1)),
        "token": hex(request.token.as_bytes()),
        "ticket": hex(ticket.as_bytes()),
        "client_nonce": hex(&nonce),
        "datagram": hex(&request.seal(&root.control(), ticket, &nonce)),
    })
}

fn reply_case(root: &Root, status: ReplyStatus, token: Token, tickets: Vec<Ticket>) -> Value {
    let (client, gateway) = (rising(0x40), rising(0x60));
    let path = PathIndex::new(2).expect("below eight");
    let standby = (status == ReplyStatus::Committed).then(|| StandbyKey::new(rising(0x81)));
    let reply = Reply { status, epoch: 9, version: 18, path, reason: 0x0102, token, tickets, standby };
    json!({
        "status": reply.status as u8,
        "epoch": reply.epoch,
        "version": reply.version,
        "path": reply.path.get(),
        "reason": reply.reason,
        "token": hex(reply.token.as_bytes()),
        "tickets": reply.tickets.iter().map(|ticket| hex(ticket.as_bytes())).collect::<Vec<_>>(),
        "standby_key": reply.standby.as_ref().map(|key| hex(key.expose())),
        "client_nonce": hex(&client),
        "gateway_nonce": hex(&gateway),
        "datagram": hex(&reply.seal(&root.control(), &client, &gateway)),
    })
}

fn hint_case(root: &Root) -> Value {
    let hint = Hint { challenge: rising(0xb0), epoch: 8, cause: 1 };
    let (cid, nonce) = (rising(0xc0), rising(0xd0));
    json!({
        "challenge": hex(&hint.challenge),
        "epoch": hint.epoch,
        "cause": hint.cause,
        "cid": hex(&cid),
        "nonce": hex(&nonce),
        "datagram": hex(&hint.seal(&root.control(), &cid, &nonce)),
    })
}

fn standby_case(cluster: &ClusterKey) -> Value {
    let (session_id, challenge, nonce) = (rising(0x90), rising(0xe1), rising(0xf1));
    let key = StandbyKey::derive(cluster, &session_id);
    let (ticket, _) = ticket(&TicketKey::new(cluster), 4);
    let probe = StandbyProbe { gateway: gateway_id(&rising(0xd1)) };
    let token = ReturnTokenKey::new(cluster).make(&rising(0x02), &session_id, ISSUED_MS);
    let reply = |is_draining| {
        let reply = StandbyReply { token: token.clone(), is_draining };
        json!({ "draining": is_draining, "datagram": hex(&reply.seal(&key, &challenge, &nonce)) })
    };
    json!({
        "session_id": hex(&session_id),
        "key": hex(key.expose()),
        "ticket": hex(ticket.as_bytes()),
        "challenge": hex(&challenge),
        "gateway_public_key": hex(&rising::<32>(0xd1)),
        "probe": hex(&probe.seal(&key, &ticket, &challenge)),
        "nonce": hex(&nonce),
        "token": hex(token.as_bytes()),
        "replies": [reply(false), reply(true)],
    })
}

pub fn reattach() -> Value {
    let (cluster, root) = (ClusterKey::new(rising(0x71)), Root::new(secret(0x11)));
    let derived = TicketKey::new(&cluster);
    let ((first, first_value), (second, second_value)) = (ticket(&derived, 1), ticket(&derived, 2));
    let (_, listed_value) = ticket(&TicketKey::listed(secret(0xb1)), 3);
    let address: [u8; 18] = rising(0x02);
    let token = ReturnTokenKey::new(&cluster).make(&address, &rising(0x90), ISSUED_MS);
    json!({
        "cluster_key": hex(&rising::<32>(0x71)),
        "root": hex(root.secret().expose()),
        "tickets": [first_value, second_value],
        "listed_ticket_key": hex(secret(0xb1).expose()),
        "listed_ticket": listed_value,
        "return_token": {
            "address": hex(&address),
            "session_id": hex(&rising::<16>(0x90)),
            "issued_ms": ISSUED_MS,
            "token": hex(token.as_bytes()),
        },
        "requests": [
            request_case(&root, &first, Token::default(), rising(0x40)),
            request_case(&root, &second, token.clone(), rising(0x41)),
        ],
        "replies": [
            reply_case(&root, ReplyStatus::Committed, Token::default(), vec![first, second]),
            reply_case(&root, ReplyStatus::Challenge, token, vec![]),
            reply_case(&root, ReplyStatus::Denied, Token::default(), vec![]),
        ],
        "hint": hint_case(&root),
        "standby": standby_case(&cluster),
    })
}

pub fn rekey(kem: &Value) -> Value {
    let root = Root::new(secret(0x11));
    let pair = KemKeyPair::from_bytes(&bytes(kem, "dk"), &bytes(kem, "ek")).expect("kem.json holds a key pair");
    let client = RekeyInitiator::new(10, pair, &mut Fixed(rising::<32>(0x35).to_vec()));
    let kem_secret = bytes(kem, "secret").try_into().expect("32 bytes");
    let encapsulation = Encapsulation { ct: bytes(kem, "ct"), secret: Secret::new(kem_secret) };
    let mut rng = Fixed(rising::<32>(0x57).to_vec());
    let (reply, gateway) = respond_with(client.request(), &root, encapsulation, &mut rng).expect("our own request");
    let agreed = client.finish(&reply, &root).expect("our own reply");
    assert_eq!(agreed.root.secret().expose(), gateway.root.secret().expose());
    json!({
        "kem": "rekey",
        "root": hex(root.secret().expose()),
        "epoch": 10,
        "client_private": hex(&rising::<32>(0x35)),
        "gateway_private": hex(&rising::<32>(0x57)),
        "request": hex(client.request()),
        "reply": hex(&reply),
        "transcript": hex(&agreed.transcript),
        "next_root": hex(agreed.root.secret().expose()),
        "up_key": hex(agreed.up().key().expose()),
        "down_key": hex(agreed.down().key().expose()),
    })
}

fn record_case(previous_root: Option<u8>) -> Value {
    let record = SessionRecord {
        aead: AeadId::ChaCha20Poly1305,
        epoch: 9,
        client_nonce: rising(0x40),
        gateway_nonce: rising(0x60),
        root: Root::new(secret(0x11)),
        previous_root: previous_root.map(|first| Root::new(secret(first))),
    };
    let salt: [u8; 32] = rising(0xa1);
    let blob = record.seal(&ClusterKey::new(rising(0x71)), &rising(0x90), &mut Fixed(salt.to_vec()));
    json!({
        "aead": record.aead as u8,
        "epoch": record.epoch,
        "client_nonce": hex(&record.client_nonce),
        "gateway_nonce": hex(&record.gateway_nonce),
        "root": hex(record.root.secret().expose()),
        "previous_root": record.previous_root.as_ref().map(|root| hex(root.secret().expose())),
        "salt": hex(&salt),
        "blob": hex(&blob),
    })
}

pub fn record() -> Value {
    json!({
        "cluster_key": hex(&rising::<32>(0x71)),
        "session_id": hex(&rising::<16>(0x90)),
        "records": [record_case(None), record_case(Some(0x19))],
    })
}
