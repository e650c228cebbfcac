//! What a plaintext is: an IP packet, a probe, a report, or a control frame. spec: WIRE-50 to WIRE-53

use crate::bytes::{exact_len, pack, Reader};
use crate::control::ControlFrame;
use crate::DropReason;

/// First byte of a probe.
pub const PROBE: u8 = 0x10;
/// First byte of a report.
pub const REPORT: u8 = 0x11;
/// First byte of a control frame.
pub const CONTROL: u8 = 0x12;
/// Bytes of a probe or report, so that neither tells the other apart by its size.
pub const MEASUREMENT_LEN: usize = 64;

/// Random bytes that only a receiver at the probed address can echo.
pub type Challenge = [u8; 8];

/// Report flag: answers a probe, so its clock gives a round-trip time.
const ANSWERS_PROBE: u8 = 1;

/// Asks for a report on the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Sender's clock, ns; echoed, never interpreted by the peer.
    pub clock_ns: u64,
    pub challenge: Challenge,
}

impl Probe {
    pub fn to_bytes(self) -> [u8; MEASUREMENT_LEN] {
        pack(&[&[PROBE, 0], &self.clock_ns.to_be_bytes(), &self.challenge])
    }

    pub fn parse(plaintext: &[u8]) -> Result<Self, DropReason> {
        let mut reader = measurement(plaintext, PROBE)?;
        if reader.u8()? != 0 {
            return Err(DropReason::Malformed);
        }
        let probe = Probe { clock_ns: reader.u64()?, challenge: reader.array()? };
        reader.finish_padding()?;
        Ok(probe)
    }
}

/// What was received on this path in this epoch, and the echo of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// Answers a probe; otherwise sent on the report interval, with zero clock and challenge.
    pub answers_probe: bool,
    pub echo_clock_ns: u64,
    pub challenge: Challenge,
    /// Highest counter received; 0 if `received` is 0.
    pub highest: u64,
    /// Counters received, each once.
    pub received: u64,
    /// Time between the arrival of what is answered and this report.
    pub delay_us: u32,
    /// All counters below were received, or are below the replay window: none of them is worth sending again.
    pub lowest_missing: u64,
}

impl Report {
    pub fn to_bytes(self) -> [u8; MEASUREMENT_LEN] {
        pack(&[
            &[REPORT, u8::from(self.answers_probe)],
            &self.echo_clock_ns.to_be_bytes(),
            &self.challenge,
            &self.highest.to_be_bytes(),
            &self.received.to_be_bytes(),
            &self.delay_us.to_be_bytes(),
            &self.lowest_missing.to_be_bytes(),
        ])
    }

    pub fn parse(plaintext: &[u8]) -> Result<Self, DropReason> {
        let mut reader = measurement(plaintext, REPORT)?;
        let flags = reader.u8()?;
        if flags & !ANSWERS_PROBE != 0 {
            return Err(DropReason::Malformed);
        }
        let report = Report {
            answers_probe: flags == ANSWERS_PROBE,
            echo_clock_ns: reader.u64()?,
            challenge: reader.array()?,
            highest: reader.u64()?,
            received: reader.u64()?,
            delay_us: reader.u32()?,
            lowest_missing: reader.u64()?,
        };
        reader.finish_padding()?;
        report.is_consistent().then_some(report).ok_or(DropReason::Malformed)
    }

    /// Counts cannot exceed what the highest counter allows.
    fn is_consistent(&self) -> bool {
        match self.received {
            0 => self.highest == 0 && self.lowest_missing == 0,
            received => received - 1 <= self.highest && self.lowest_missing <= self.highest.saturating_add(1),
        }
    }
}

/// A plaintext, recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plaintext<'a> {
    Ipv4(&'a [u8]),
    Ipv6(&'a [u8]),
    Probe(Probe),
    Report(Report),
    Control(ControlFrame<'a>),
}

impl<'a> Plaintext<'a> {
    /// Recognises an authenticated plaintext by its first nibble and byte.
    pub fn parse(plaintext: &'a [u8]) -> Result<Self, DropReason> {
        let first = *plaintext.first().ok_or(DropReason::Truncated)?;
        match (first >> 4, first) {
            (4, _) => Ok(Plaintext::Ipv4(plaintext)),
            (6, _) => Ok(Plaintext::Ipv6(plaintext)),
            (_, PROBE) => Probe::parse(plaintext).map(Plaintext::Probe),
            (_, REPORT) => Report::parse(plaintext).map(Plaintext::Report),
            (_, CONTROL) => ControlFrame::parse(plaintext).map(Plaintext::Control),
            _ => Err(DropReason::UnknownFrame),
        }
    }
}

fn measurement(plaintext: &[u8], kind: u8) -> Result<Reader<'_>, DropReason> {
    exact_len(plaintext, MEASUREMENT_LEN)?;
    let mut reader = Reader::new(plaintext);
    if reader.u8()? != kind {
        return Err(DropReason::UnknownFrame);
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    prop_compose! {
        fn report()(highest in 0u64..1 << 48)
            (received in 0..=highest + 1, lowest_missing in 0..=highest + 1, highest in Just(highest),
             answers_probe in any::<bool>(), echo_clock_ns in any::<u64>(),
             challenge in any::<[u8; 8]>(), delay_us in any::<u32>()) -> Report {
            let none = received == 0;
            Report {
                answers_probe, echo_clock_ns, challenge, received, delay_us,
                highest: if none { 0 } else { highest },
                lowest_missing: if none { 0 } else { lowest_missing },
            }
        }
    }

    proptest! {
        #[test]
        fn probes_round_trip(clock_ns: u64, challenge: [u8; 8]) {
            let probe = Probe { clock_ns, challenge };
            let bytes = probe.to_bytes();
            prop_assert_eq!(Plaintext::parse(&bytes), Ok(Plaintext::Probe(probe)));
        }

        #[test]
        fn reports_round_trip(report in report()) {
            let bytes = report.to_bytes();
            prop_assert_eq!(Plaintext::parse(&bytes), Ok(Plaintext::Report(report)));
        }

        #[test]
        fn parse_never_panics(bytes in vec(any::<u8>(), 0..1300), kind in 0x10u8..0x13, fit: bool) {
            let mut bytes = bytes;
            if fit && !bytes.is_empty() {
                bytes[0] = kind;
                bytes.resize(64, 0);
            }
            let _ = Plaintext::parse(&bytes);
        }
    }

    #[test]
    fn ip_packets_are_told_by_their_version() {
        assert_eq!(Plaintext::parse(&[0x45, 0]), Ok(Plaintext::Ipv4(&[0x45, 0])));
        assert_eq!(Plaintext::parse(&[0x60]), Ok(Plaintext::Ipv6(&[0x60])));
        assert_eq!(Plaintext::parse(&[]), Err(DropReason::Truncated));
        for first in [0x00, 0x0f, 0x13, 0x1f, 0x20, 0x50, 0x70, 0xff] {
            assert_eq!(Plaintext::parse(&[first; 64]), Err(DropReason::UnknownFrame));
        }
    }

    #[test]
    fn sizes_flags_and_padding_are_exact() {
        let probe = Probe { clock_ns: 1, challenge: [2; 8] }.to_bytes();
        let report = Report::default().to_bytes();
        for frame in [probe, report] {
            for len in 1..MEASUREMENT_LEN {
                assert_eq!(Plaintext::parse(&frame[..len]), Err(DropReason::Truncated));
            }
            assert_eq!(Plaintext::parse(&[&frame[..], &[0]].concat()), Err(DropReason::Oversized));
            let (mut flagged, mut padded) = (frame, frame);
            flagged[1] = 2;
            assert_eq!(Plaintext::parse(&flagged), Err(DropReason::Malformed));
            padded[MEASUREMENT_LEN - 1] = 1;
            assert_eq!(Plaintext::parse(&padded), Err(DropReason::BadPadding));
        }
    }

    #[test]
    fn impossible_counts_are_malformed() {
        for (highest, received, lowest_missing) in [(1, 0, 0), (0, 0, 1), (5, 7, 0), (5, 1, 7)] {
            let report = Report { highest, received, lowest_missing, ..Report::default() };
            assert_eq!(Report::parse(&report.to_bytes()), Err(DropReason::Malformed));
        }
    }
}
