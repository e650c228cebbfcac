//! One client: datagrams in, datagrams out. No sockets and no clock; times are nanoseconds of any rising clock.

use jumpvpn_packet::aead::AeadId;
use jumpvpn_packet::frames::{Plaintext, Probe, Report, MEASUREMENT_LEN};
use jumpvpn_packet::handshake::{Capabilities, Credential, Established, Initiator, InitiatorConfig};
use jumpvpn_packet::header::{HEADER_LEN, OVERHEAD};
use jumpvpn_packet::kem::KemKeyPair;
use jumpvpn_packet::keys::{GatewayId, PublicKey};
use jumpvpn_packet::random::draw;
use jumpvpn_packet::reattach::{HintEnvelope, Reply, ReplyEnvelope, ReplyStatus, Request, StandbyReplyEnvelope, Token};
use jumpvpn_packet::schedule::{ControlSecret, EpochNonce, Root, Secret};
use jumpvpn_packet::seal::{OpeningKey, SealingKey};
use jumpvpn_packet::{Cid, DropReason, PathIndex, SystemRandom};

use crate::standby::{Leaving, Pass, Way};

/// The version of the record that a gateway welcomes a client with.
const BIRTH_VERSION: u64 = 1;
/// Control message by which a gateway ends a session, above the packet core's own types.
const CLOSE: u8 = jumpvpn_packet::control::FIRST_APPLICATION_TYPE + 1;
/// Cause of a move that a gateway's silence asks for: `transport_dead` in the registry of reasons.
const CAUSE: u8 = 7;
/// `stale_state_version` in the registry of reasons: the refusal tells what the next request has to name.
const STALE: u16 = 44;
/// Gateways grant no epoch further ahead than this.
const EPOCH_JUMP: u64 = 64;

/// A live session as the client knows it.
pub struct Live {
    aead: AeadId,
    root: Root,
    control: ControlSecret,
    pass: Pass,
    ways: Vec<Way>,
    born_ns: u64,
    version: u64,
    epoch: u64,
    /// The newest epoch that was asked for: no two requests name the same one.
    proposed: u64,
    path: PathIndex,
    up: SealingKey,
    down: OpeningKey,
    /// When anything authentic came last.
    pub heard_ns: u64,
    challenge: [u8; 8],
    probed_ns: u64,
}

/// A reattach under way.
pub struct Ask {
    /// Number of the gateway that is asked.
    pub gateway: usize,
    nonce: EpochNonce,
    path: PathIndex,
    epoch: u64,
    datagram: Vec<u8>,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The session is bound again; the datagram proves the epoch.
    Attached(Vec<u8>),
    /// Ask again with the token, by this request.
    Again(Vec<u8>),
    /// Refused.
    Denied {
        /// Of the reason.
        code: u16,
        /// The refusal told the version or epoch that the next request has to name.
        learned: bool,
    },
}

/// What a datagram of the session said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// A probe: answer by this datagram.
    Answer(Vec<u8>),
    /// The answer to our probe, after so many ns.
    RoundTrip(u64),
    /// The gateway ended the session.
    Closed,
    /// Nothing to do.
    Nothing,
}

/// A birth under way; `now_ns` of all calls come from one clock, `timestamp_ns` rises with each birth of the device.
pub fn begin_birth(private: Secret, gateway: &PublicKey, timestamp_ns: u64) -> Initiator {
    let (capabilities, credential) = (Capabilities::AES, Credential(Vec::new()));
    let config =
        InitiatorConfig { private_key: private, gateway_key: *gateway, timestamp_ns, capabilities, credential };
    Initiator::new(&config, KemKeyPair::generate(), &mut SystemRandom).expect("the gateway's key is a public key")
}

impl Live {
    /// The session that a birth gave, with ways to as many `gateways`.
    pub fn born(established: Established, gateways: usize, now_ns: u64) -> Self {
        let (up, down) = (established.up(), established.down());
        let Established { aead, root, tickets, standby, .. } = established;
        Self {
            aead,
            control: root.control(),
            root,
            pass: Pass::new(standby, tickets),
            ways: (0..gateways).map(|_| Way::default()).collect(),
            born_ns: now_ns,
            version: BIRTH_VERSION,
            epoch: up.epoch(),
            proposed: up.epoch(),
            path: PathIndex::new(0).expect("below eight"),
            up: SealingKey::new(aead, &up),
            down: OpeningKey::new(aead, &down),
            heard_ns: now_ns,
            challenge: [0; 8],
            probed_ns: 0,
        }
    }

    /// What datagrams of the gateway carry.
    pub fn cid(&self) -> Cid {
        self.down.cids()[self.path.index()]
    }

    /// A probe with a fresh challenge.
    pub fn probe(&mut self, now_ns: u64) -> Vec<u8> {
        self.challenge = draw(&mut SystemRandom);
        self.probed_ns = now_ns;
        let probe = Probe { clock_ns: now_ns, challenge: self.challenge };
        self.seal(&probe.to_bytes())
    }

    /// Opens a datagram of the gateway.
    pub fn hear(&mut self, datagram: &mut [u8], now_ns: u64) -> Result<Said, DropReason> {
        let opened = self.down.open(datagram)?;
        self.heard_ns = now_ns;
        match Plaintext::parse(opened.plaintext)? {
            Plaintext::Probe(probe) => {
                let window = self.down.window(self.path).expect("a datagram was opened on the path");
                let report = Report {
                    answers_probe: true,
                    echo_clock_ns: probe.clock_ns,
                    challenge: probe.challenge,
                    highest: window.highest().unwrap_or(0),
                    received: window.received(),
                    delay_us: 0,
                    lowest_missing: window.lowest_missing(),
                };
                Ok(Said::Answer(self.seal(&report.to_bytes())))
            }
            Plaintext::Report(report) if report.answers_probe && report.challenge == self.challenge => {
                Ok(Said::RoundTrip(now_ns - self.probed_ns))
            }
            Plaintext::Control(frame) if frame.message_type == CLOSE => Ok(Said::Closed),
            _ => Ok(Said::Nothing),
        }
    }

    /// Whether a hint answers our last probe: the gateway holds no binding for us.
    pub fn hinted(&self, envelope: &HintEnvelope<'_>) -> Result<bool, DropReason> {
        let hint = envelope.open(&self.control)?;
        Ok(hint.challenge == self.challenge && hint.epoch >= self.epoch)
    }

    /// A standby probe for the gateway with this number and name.
    pub fn standby_probe(&mut self, gateway: usize, name: GatewayId, now_ns: u64) -> Leaving {
        self.ways[gateway].probe(&mut self.pass, name, now_ns)
    }

    /// Takes the answer of a gateway to a standby probe; the round trip (ns).
    pub fn standby_answered(
        &mut self,
        gateway: usize,
        envelope: &StandbyReplyEnvelope<'_>,
        now_ns: u64,
    ) -> Result<u64, DropReason> {
        self.ways[gateway].answered(&self.pass, envelope, now_ns)
    }

    /// A request at the gateway with this number and name; `token` is that of a challenge.
    ///
    /// Without one it shows the return token of the last standby reply, if that is still valid.
    pub fn ask(&mut self, gateway: usize, name: GatewayId, token: Option<Token>, now_ns: u64) -> (Ask, Vec<u8>) {
        let nonce: EpochNonce = draw(&mut SystemRandom);
        let way = &mut self.ways[gateway];
        self.proposed = (self.proposed.max(self.epoch) + 1).min(self.epoch + EPOCH_JUMP);
        let path = PathIndex::new(gateway as u8).expect("at most eight gateways");
        let request = Request {
            next_epoch: self.proposed,
            expected_version: self.version,
            age_ms: (now_ns - self.born_ns) / 1_000_000,
            path,
            cause: CAUSE,
            gateway: name,
            token: token.or_else(|| way.token(now_ns).cloned()).unwrap_or_default(),
        };
        let datagram = request.seal(&self.control, &way.ticket(&mut self.pass), &nonce);
        (Ask { gateway, nonce, path, epoch: request.next_epoch, datagram: datagram.clone() }, datagram)
    }

    /// Opens the reply to `ask` of the gateway named `name`.
    pub fn answered(
        &mut self,
        ask: &mut Ask,
        envelope: &ReplyEnvelope<'_>,
        name: GatewayId,
        now_ns: u64,
    ) -> Result<Answer, DropReason> {
        let mut reply = envelope.open(&self.control, &ask.nonce)?;
        self.pass.renew(reply.standby.take(), std::mem::take(&mut reply.tickets));
        Ok(match reply.status {
            ReplyStatus::Challenge => {
                let (next, datagram) = self.ask(ask.gateway, name, Some(reply.token), now_ns);
                *ask = next;
                Answer::Again(datagram)
            }
            ReplyStatus::Denied => self.denied(&reply),
            ReplyStatus::Committed => Answer::Attached(self.bind(ask, envelope, &reply, now_ns)),
        })
    }

    fn denied(&mut self, reply: &Reply) -> Answer {
        let is_stale = reply.reason == STALE;
        let learned = is_stale && (reply.version > self.version || reply.epoch >= self.proposed);
        if is_stale {
            self.version = self.version.max(reply.version);
            self.proposed = self.proposed.max(reply.epoch);
        }
        Answer::Denied { code: reply.reason, learned }
    }

    fn bind(&mut self, ask: &Ask, envelope: &ReplyEnvelope<'_>, reply: &Reply, now_ns: u64) -> Vec<u8> {
        let (up, down) =
            (self.root.up(ask.epoch, &ask.nonce), self.root.down(ask.epoch, &ask.nonce, &envelope.gateway_nonce));
        self.up = SealingKey::new(self.aead, &up);
        self.down = OpeningKey::new(self.aead, &down);
        (self.epoch, self.version, self.path) = (ask.epoch, reply.version, ask.path);
        self.heard_ns = now_ns;
        self.probe(now_ns)
    }

    fn seal(&mut self, plaintext: &[u8; MEASUREMENT_LEN]) -> Vec<u8> {
        let mut datagram = vec![0; MEASUREMENT_LEN + OVERHEAD];
        datagram[HEADER_LEN..HEADER_LEN + MEASUREMENT_LEN].copy_from_slice(plaintext);
        self.up.seal(self.path, &mut datagram).expect("an idle session seals few datagrams");
        datagram
    }
}

impl Ask {
    /// The first bytes of the nonce, by which replies name their request.
    pub fn echo(&self) -> [u8; 8] {
        *self.nonce.first_chunk().expect("a nonce has 32 bytes")
    }

    /// The bytes to send again.
    pub fn datagram(&self) -> &[u8] {
        &self.datagram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jumpvpn_packet::handshake::{Accepted, Assemblies, Fragment, FragmentLimits, ReceivedInit};
    use jumpvpn_packet::keys::{gateway_id, public_key};
    use jumpvpn_packet::reattach::{
        RequestEnvelope, StandbyKey, StandbyProbeEnvelope, StandbyReply, Ticket, TICKET_LEN,
    };

    const MS: u64 = 1_000_000;

    /// What the gateway holds of a session.
    struct Gateway {
        name: GatewayId,
        session: Established,
    }

    fn born() -> (Live, Gateway) {
        let private = Secret::new([7; 32]);
        let key = public_key(&private);
        let mut initiator = begin_birth(Secret::new([9; 32]), &key, 1);
        let mut assemblies = Assemblies::new(FragmentLimits::default());
        let whole = initiator.datagrams().iter().find_map(|datagram| {
            let fragment = Fragment::parse(datagram).unwrap();
            assemblies.insert(fragment.handshake_id, &fragment, 0).unwrap()
        });
        let init = ReceivedInit::read(&private, *initiator.id(), &whole.unwrap(), &mut SystemRandom).unwrap();
        let tickets = vec![Ticket::parse(&[1; TICKET_LEN]).unwrap(), Ticket::parse(&[2; TICKET_LEN]).unwrap()];
        let accepted = Accepted {
            session_id: [3; 16],
            capabilities: Capabilities::AES,
            tickets,
            standby: StandbyKey::new([6; 32]),
            welcome: b"hello".to_vec(),
        };
        let (session, datagrams) = init.respond(accepted).unwrap();
        let established = datagrams.iter().find_map(|datagram| initiator.accept(datagram, 0).unwrap()).unwrap();
        (Live::born(established, 2, 5 * MS), Gateway { name: gateway_id(&key), session })
    }

    fn path(index: u8) -> PathIndex {
        PathIndex::new(index).unwrap()
    }

    fn reply(gateway: &Gateway, request: &Request, nonce: &EpochNonce, status: ReplyStatus, version: u64) -> Vec<u8> {
        let token = Token::parse(if status == ReplyStatus::Challenge { b"prove it" } else { b"" }).unwrap();
        let epoch = request.next_epoch;
        let reason = if status == ReplyStatus::Denied { STALE } else { 0 };
        let standby = (status == ReplyStatus::Committed).then(|| StandbyKey::new([6; 32]));
        let answer = Reply { status, epoch, version, path: request.path, reason, token, tickets: Vec::new(), standby };
        answer.seal(&gateway.session.root.control(), nonce, &[0xaa; 32])
    }

    #[test]
    fn a_probe_of_either_side_is_answered() {
        let (mut live, gateway) = born();
        let mut opening = OpeningKey::new(gateway.session.aead, &gateway.session.up());
        let mut sealing = SealingKey::new(gateway.session.aead, &gateway.session.down());
        let mut probe = live.probe(10 * MS);
        let plaintext = opening.open(&mut probe).unwrap().plaintext.to_vec();
        let Ok(Plaintext::Probe(asked)) = Plaintext::parse(&plaintext) else { panic!("no probe") };
        let seal = |sealing: &mut SealingKey, plaintext: &[u8; MEASUREMENT_LEN]| {
            let mut datagram = [&[0; HEADER_LEN][..], plaintext, &[0; 16]].concat();
            sealing.seal(path(0), &mut datagram).unwrap();
            datagram
        };
        let report = Report { answers_probe: true, challenge: asked.challenge, ..Report::default() };
        let heard = live.hear(&mut seal(&mut sealing, &report.to_bytes()), 12 * MS);
        assert_eq!(heard, Ok(Said::RoundTrip(2 * MS)));
        let theirs = Probe { clock_ns: 77, challenge: [4; 8] };
        let Ok(Said::Answer(mut answer)) = live.hear(&mut seal(&mut sealing, &theirs.to_bytes()), 13 * MS) else {
            panic!("no answer")
        };
        let plaintext = opening.open(&mut answer).unwrap().plaintext.to_vec();
        let Ok(Plaintext::Report(said)) = Plaintext::parse(&plaintext) else { panic!("no report") };
        assert_eq!((said.answers_probe, said.echo_clock_ns, said.challenge, said.received), (true, 77, [4; 8], 2));
    }

    #[test]
    fn a_request_is_challenged_then_granted_and_opens_the_next_epoch() {
        let (mut live, gateway) = born();
        let control = gateway.session.root.control();
        let (mut ask, first) = live.ask(1, gateway.name, None, 105 * MS);
        let envelope = RequestEnvelope::parse(&first).unwrap();
        let request = envelope.open(&control).unwrap();
        assert_eq!((request.next_epoch, request.expected_version, request.age_ms), (2, 1, 100));
        assert_eq!((request.gateway, request.token.is_empty()), (gateway.name, true));
        let sealed = reply(&gateway, &request, &envelope.nonce, ReplyStatus::Challenge, 1);
        let answer = live.answered(&mut ask, &ReplyEnvelope::parse(&sealed).unwrap(), gateway.name, 110 * MS).unwrap();
        let Answer::Again(second) = answer else { panic!("not asked again") };
        let envelope = RequestEnvelope::parse(&second).unwrap();
        let request = envelope.open(&control).unwrap();
        assert_eq!(request.token.as_bytes(), b"prove it");
        let sealed = reply(&gateway, &request, &envelope.nonce, ReplyStatus::Committed, 9);
        let answer = live.answered(&mut ask, &ReplyEnvelope::parse(&sealed).unwrap(), gateway.name, 120 * MS).unwrap();
        let Answer::Attached(mut probe) = answer else { panic!("not attached") };
        let up = gateway.session.root.up(3, &envelope.nonce);
        let mut opening = OpeningKey::new(gateway.session.aead, &up);
        assert_eq!(opening.open(&mut probe).unwrap().path, path(1));
        assert_eq!((live.epoch, live.version), (3, 9), "no two requests name the same epoch");
    }

    #[test]
    fn a_denial_tells_the_version_to_ask_with() {
        let (mut live, gateway) = born();
        let (mut ask, datagram) = live.ask(0, gateway.name, None, 6 * MS);
        let envelope = RequestEnvelope::parse(&datagram).unwrap();
        let request = envelope.open(&gateway.session.root.control()).unwrap();
        let sealed = reply(&gateway, &request, &envelope.nonce, ReplyStatus::Denied, 5);
        let answer = live.answered(&mut ask, &ReplyEnvelope::parse(&sealed).unwrap(), gateway.name, 7 * MS);
        assert_eq!(answer, Ok(Answer::Denied { code: STALE, learned: true }));
        let (_, datagram) = live.ask(0, gateway.name, None, 8 * MS);
        let request = RequestEnvelope::parse(&datagram).unwrap().open(&gateway.session.root.control()).unwrap();
        assert_eq!((request.expected_version, request.next_epoch), (5, 3));
    }

    #[test]
    fn a_proved_standby_gives_the_token_that_spares_the_challenge() {
        let (mut live, gateway) = born();
        let leaving = live.standby_probe(1, gateway.name, 10 * MS);
        let probe = StandbyProbeEnvelope::parse(&leaving.datagram).unwrap();
        let key = StandbyKey::new([6; 32]);
        assert_eq!(probe.open(&key).unwrap().gateway, gateway.name);
        let token = Token::parse(b"return").unwrap();
        let reply = StandbyReply { token, is_draining: false }.seal(&key, &probe.challenge, &[1; 16]);
        let heard = live.standby_answered(1, &StandbyReplyEnvelope::parse(&reply).unwrap(), 13 * MS);
        assert_eq!(heard, Ok(3 * MS));
        for (asked, shown) in [(1, &b"return"[..]), (0, &b""[..])] {
            let (_, datagram) = live.ask(asked, gateway.name, None, 20 * MS);
            let envelope = RequestEnvelope::parse(&datagram).unwrap();
            let request = envelope.open(&gateway.session.root.control()).unwrap();
            assert_eq!(request.token.as_bytes(), shown);
            assert_eq!(envelope.ticket == probe.ticket, asked == 1);
        }
    }
}
