//! The program against two gateways that this test plays: births at both, standby probes, one of them falls silent, one
//! request for each session at the other, repeated byte for byte until it is answered.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jumpvpn_packet::handshake::{
    Accepted, Assemblies, Capabilities, Established, Fragment, FragmentLimits, HandshakeId, ReceivedInit,
};
use jumpvpn_packet::header::Kind;
use jumpvpn_packet::keys::{gateway_id, public_key, PublicKey};
use jumpvpn_packet::reattach::{
    Reply, ReplyStatus, RequestEnvelope, StandbyKey, StandbyProbeEnvelope, StandbyReply, Ticket, Token, TICKET_LEN,
};
use jumpvpn_packet::schedule::Secret;
use jumpvpn_packet::SystemRandom;

const CLIENTS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(60);

/// One gateway: it keeps every session, and its tickets are the number of the session.
struct Gateway {
    socket: UdpSocket,
    private: Secret,
    assemblies: Assemblies<HandshakeId>,
    /// Births that were answered: on the loopback no answer is lost.
    answered: HashSet<HandshakeId>,
    sessions: HashMap<u8, Established>,
    /// Standby probes by session.
    probed: HashMap<u8, u32>,
    /// Requests by session, as they came.
    requests: HashMap<u8, Vec<Vec<u8>>>,
}

impl Gateway {
    fn new(byte: u8) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let assemblies = Assemblies::new(FragmentLimits::default());
        Self {
            socket,
            private: Secret::new([byte; 32]),
            assemblies,
            answered: HashSet::new(),
            sessions: HashMap::new(),
            probed: HashMap::new(),
            requests: HashMap::new(),
        }
    }

    fn key(&self) -> PublicKey {
        public_key(&self.private)
    }

    fn argument(&self) -> String {
        let mut text = String::new();
        for chunk in self.key().chunks(3) {
            let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
            for place in 0..4 {
                let digit = (bits >> (18 - 6 * place) & 63) as u8;
                text.push(match digit {
                    _ if place > chunk.len() => '=',
                    0..=25 => char::from(b'A' + digit),
                    26..=51 => char::from(b'a' + digit - 26),
                    52..=61 => char::from(b'0' + digit - 52),
                    62 => '+',
                    _ => '/',
                });
            }
        }
        format!("{}={text}", self.socket.local_addr().unwrap())
    }

    /// What came, if anything did.
    fn receive(&mut self) -> Option<(Vec<u8>, SocketAddr)> {
        let mut buffer = [0; 2048];
        let (len, from) = self.socket.recv_from(&mut buffer).ok()?;
        Some((buffer[..len].to_vec(), from))
    }

    fn birth(&mut self, datagram: &[u8], from: SocketAddr, number: u8) -> bool {
        let fragment = Fragment::parse(datagram).unwrap();
        if self.answered.contains(&fragment.handshake_id) {
            return false;
        }
        let Some(whole) = self.assemblies.insert(fragment.handshake_id, &fragment, 0).unwrap() else { return false };
        let init = ReceivedInit::read(&self.private, fragment.handshake_id, &whole, &mut SystemRandom).unwrap();
        let accepted = Accepted {
            session_id: [number; 16],
            capabilities: Capabilities::AES,
            tickets: vec![Ticket::parse(&[number; TICKET_LEN]).unwrap()],
            standby: standby_key(number),
            welcome: Vec::new(),
        };
        let (session, datagrams) = init.respond(accepted).unwrap();
        self.answered.insert(fragment.handshake_id);
        self.sessions.insert(number, session);
        for datagram in &datagrams {
            self.socket.send_to(datagram, from).unwrap();
        }
        true
    }

    fn standby(&mut self, datagram: &[u8], from: SocketAddr) {
        let probe = StandbyProbeEnvelope::parse(datagram).unwrap();
        let number = probe.ticket.as_bytes()[0];
        let key = standby_key(number);
        assert_eq!(probe.open(&key).unwrap().gateway, gateway_id(&self.key()));
        *self.probed.entry(number).or_default() += 1;
        let token = Token::parse(&[number; 24]).unwrap();
        let reply = StandbyReply { token, is_draining: false }.seal(&key, &probe.challenge, &[1; 16]);
        self.socket.send_to(&reply, from).unwrap();
    }

    /// Answers the third send of each request.
    fn request(&mut self, datagram: &[u8], from: SocketAddr, session: &Established) {
        let envelope = RequestEnvelope::parse(datagram).unwrap();
        let number = envelope.ticket.as_bytes()[0];
        let request = envelope.open(&session.root.control()).unwrap();
        assert_eq!(request.gateway, gateway_id(&self.key()));
        assert_eq!(request.token.as_bytes(), [number; 24], "the token of the standby reply");
        let seen = self.requests.entry(number).or_default();
        seen.push(datagram.to_vec());
        if seen.len() < 3 {
            return;
        }
        let reply = Reply {
            status: ReplyStatus::Committed,
            epoch: request.next_epoch,
            version: 7,
            path: request.path,
            reason: 0,
            token: Token::default(),
            tickets: Vec::new(),
            standby: Some(standby_key(number)),
        };
        self.socket.send_to(&reply.seal(&session.root.control(), &envelope.nonce, &[2; 32]), from).unwrap();
    }
}

fn standby_key(number: u8) -> StandbyKey {
    StandbyKey::new([number; 32])
}

struct Swarm(Child);

impl Drop for Swarm {
    fn drop(&mut self) {
        // It may have ended already; either way it is waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(gateways: &[Gateway; 2]) -> Swarm {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jumpvpn-swarm"));
    for gateway in gateways {
        command.args(["--gateway", &gateway.argument()]);
    }
    command.args(["--clients", &CLIENTS.to_string(), "--spread", "--probe", "100", "--silence", "600000"]);
    // An answer is never so late that an attempt ends before it.
    command.args(["--attempt", "60000", "--repeat", "20", "--bind", "127.0.0.1"]);
    Swarm(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
}

#[test]
fn the_sessions_of_a_dead_gateway_ask_the_other_one_once_each() {
    let mut gateways = [Gateway::new(3), Gateway::new(4)];
    let mut swarm = start(&gateways);
    let (began, mut born, mut is_lost) = (Instant::now(), 0, false);
    let done = |gateways: &[Gateway; 2]| gateways[1].requests.values().filter(|seen| seen.len() >= 3).count();
    while done(&gateways) < CLIENTS / 2 {
        assert!(began.elapsed() < PATIENCE, "born {born}, lost {is_lost}");
        for at in 0..2 {
            let Some((datagram, from)) = gateways[at].receive() else { continue };
            match Kind::of(&datagram).unwrap() {
                _ if is_lost && at == 0 => {}
                Kind::HandshakeInit => born += u8::from(gateways[at].birth(&datagram, from, born)),
                Kind::StandbyProbe => gateways[at].standby(&datagram, from),
                Kind::ReattachRequest => {
                    let number = RequestEnvelope::parse(&datagram).unwrap().ticket.as_bytes()[0];
                    let session = gateways[0].sessions.remove(&number).expect("only the dead gateway's sessions ask");
                    gateways[1].request(&datagram, from, &session);
                    gateways[0].sessions.insert(number, session);
                }
                _ => {}
            }
        }
        let all_proved = gateways.iter().all(|gateway| gateway.probed.len() == CLIENTS / 2);
        if !is_lost && all_proved {
            swarm.0.stdin.as_mut().unwrap().write_all(b"lost 0\n").unwrap();
            is_lost = true;
        }
    }
    assert_eq!([gateways[0].sessions.len(), gateways[1].sessions.len()], [CLIENTS / 2, CLIENTS / 2]);
    for seen in gateways[1].requests.values() {
        assert!(seen.iter().all(|datagram| *datagram == seen[0]), "a repetition is the same request");
    }
}
