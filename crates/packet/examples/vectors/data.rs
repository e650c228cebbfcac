//! Sealed datagrams, the replay window, and frames.

use jumpvpn_packet::aead::AeadId;
use jumpvpn_packet::control::cut_message;
use jumpvpn_packet::frames::{Probe, Report};
use jumpvpn_packet::header::{HEADER_LEN, TAG_LEN};
use jumpvpn_packet::replay::ReplayWindow;
use jumpvpn_packet::schedule::{Root, TrafficSecret};
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::PathIndex;
use serde_json::{json, Value};

use crate::support::{hex, hexes, rising, secret};

const EPOCH: u64 = 0x1f;

fn traffic() -> TrafficSecret {
    Root::new(secret(0x11)).up(EPOCH, &rising(0x40))
}

fn seal(aead: AeadId, path: u8, counter: u64, plaintext: &[u8]) -> Vec<u8> {
    let mut key = SealingKey::new(aead, &traffic());
    let path = PathIndex::new(path).expect("below eight");
    key.reserve(path, counter, 0).expect("within the limits");
    let mut buffer = [&[0; HEADER_LEN], plaintext, &[0; TAG_LEN]].concat();
    assert_eq!(key.seal(path, &mut buffer), Ok(counter));
    buffer
}

fn sealed_case(aead: AeadId, path: u8, counter: u64, len: usize) -> Value {
    let mut plaintext: Vec<u8> = (0..len).map(|at| at as u8).collect();
    plaintext[0] = 0x45;
    let datagram = seal(aead, path, counter, &plaintext);
    json!({
        "aead": aead as u8,
        "path": path,
        "counter": counter,
        "plaintext": hex(&plaintext),
        "datagram": hex(&datagram),
    })
}

fn refused(name: &str, datagram: &[u8]) -> Value {
    let opened =
        OpeningKey::new(AeadId::Aes256Gcm, &traffic()).open(&mut datagram.to_vec()).map(|opened| opened.counter);
    json!({ "name": name, "datagram": hex(datagram), "reason": opened.expect_err("a refused datagram").as_str() })
}

fn refused_cases() -> Vec<Value> {
    let good = seal(AeadId::Aes256Gcm, 0, 1, &[0x45; 20]);
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let beyond = [&good[..8], &(1_u64 << 48).to_be_bytes(), &good[16..]].concat();
    vec![
        refused("empty", &[]),
        refused("no plaintext", &good[..32]),
        refused("last byte missing", &good[..good.len() - 1]),
        refused("other kind", &changed(0, 0x5f)),
        refused("unknown kind", &changed(0, 0xaf)),
        refused("other epoch", &changed(0, 0x4e)),
        refused("other connection identifier", &changed(1, good[1] ^ 1)),
        refused("other counter", &changed(15, 2)),
        refused("counter beyond the limit", &beyond),
        refused("changed tag", &changed(good.len() - 1, good[good.len() - 1] ^ 1)),
        refused("other algorithm", &seal(AeadId::ChaCha20Poly1305, 0, 1, &[0x45; 20])),
    ]
}

pub fn data() -> Value {
    let mut sealed = vec![
        sealed_case(AeadId::Aes256Gcm, 0, 0, 20),
        sealed_case(AeadId::Aes256Gcm, 0, 1, 1400),
        sealed_case(AeadId::Aes256Gcm, 7, 0x1_0000_0000, 64),
        sealed_case(AeadId::Aes256Gcm, 3, 255, 1),
    ];
    sealed.push(sealed_case(AeadId::ChaCha20Poly1305, 0, 0, 20));
    sealed.push(sealed_case(AeadId::ChaCha20Poly1305, 5, (1 << 48) - 1, 333));
    json!({
        "root": hex(secret(0x11).expose()),
        "epoch": EPOCH,
        "client_nonce": hex(&rising::<32>(0x40)),
        "sealed": sealed,
        "refused_by_aes_256_gcm": refused_cases(),
    })
}

pub fn replay() -> Value {
    let counters = [
        5,
        5,
        4,
        0,
        6,
        100,
        99,
        100,
        8191,
        8192,
        8197,
        5,
        6,
        7,
        8198,
        7,
        8,
        63,
        64,
        65,
        64,
        20_000,
        11_808,
        11_809,
        19_999,
        19_999,
        (1 << 48) - 1,
        1 << 48,
        20_000,
        20_001,
    ];
    let mut window = ReplayWindow::default();
    let step = |counter: u64| {
        let verdict = window.accept(counter).map_or_else(|reason| reason.as_str(), |()| "accepted");
        json!({
            "counter": counter,
            "verdict": verdict,
            "highest": window.highest(),
            "received": window.received(),
            "lowest_missing": window.lowest_missing(),
        })
    };
    Value::Array(counters.into_iter().map(step).collect())
}

fn control_case(message_id: u32, message_type: u8, len: usize) -> Value {
    let content: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let frames = cut_message(message_id, message_type, &content).expect("within the bound");
    json!({ "message_id": message_id, "message_type": message_type, "content": hex(&content), "frames": hexes(&frames) })
}

pub fn frames() -> Value {
    let probe = Probe { clock_ns: 0x0102_0304_0506_0708, challenge: rising(0x10) };
    let report = Report {
        answers_probe: true,
        echo_clock_ns: probe.clock_ns,
        challenge: probe.challenge,
        highest: 1000,
        received: 990,
        delay_us: 250,
        lowest_missing: 980,
    };
    let idle = Report::default();
    let fields = |report: &Report| {
        json!({
            "answers_probe": report.answers_probe,
            "echo_clock_ns": report.echo_clock_ns,
            "challenge": hex(&report.challenge),
            "highest": report.highest,
            "received": report.received,
            "delay_us": report.delay_us,
            "lowest_missing": report.lowest_missing,
            "plaintext": hex(&report.to_bytes()),
        })
    };
    json!({
        "probe": {
            "clock_ns": probe.clock_ns,
            "challenge": hex(&probe.challenge),
            "plaintext": hex(&probe.to_bytes()),
        },
        "reports": [fields(&report), fields(&idle)],
        "control": [
            control_case(0, 16, 0),
            control_case(1, 17, 54),
            control_case(2, 18, 55),
            control_case(0xffff_ffff, 255, 1190),
            control_case(4, 1, 1224),
        ],
    })
}
