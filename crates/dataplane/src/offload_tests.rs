//! Cutting and joining against an oracle that builds each packet by the definitions of the RFCs.

use std::io::IoSlice;

use proptest::prelude::*;

use crate::coalesce::Coalescer;
use crate::split::{self, VnetHeader, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET_LEN};

/// One packet as the oracle sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    v6: bool,
    tcp: bool,
    flow: u16,
    id: u16,
    sequence: u32,
    ack: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

fn naive_sum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

impl Packet {
    fn transport(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(1000u16.to_be_bytes());
        out.extend(self.flow.to_be_bytes());
        if self.tcp {
            out.extend(self.sequence.to_be_bytes());
            out.extend(self.ack.to_be_bytes());
            out.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags, 1, 2, 0, 0, 0, 0]);
            out.extend(&self.options);
        } else {
            out.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            out.extend([0, 0]);
        }
        out.extend(&self.payload);
        out
    }

    fn addresses(&self) -> Vec<u8> {
        if self.v6 {
            [[0xfd; 16], [0xfe; 16]].concat()
        } else {
            vec![10, 0, 0, 1, 10, 0, 0, 2]
        }
    }

    fn header_len(&self) -> usize {
        let network = if self.v6 { 40 } else { 20 };
        network + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let protocol = if self.tcp { 6 } else { 17 };
        let length = (transport.len() as u32).to_be_bytes();
        let check = !naive_sum(&[&self.addresses(), &length, &[0, protocol], &transport]);
        let check = if !self.tcp && check == 0 { 0xffff } else { check };
        let at = if self.tcp { 16 } else { 6 };
        transport[at..at + 2].copy_from_slice(&check.to_be_bytes());
        let mut header = if self.v6 {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((transport.len() as u16).to_be_bytes());
            header.extend([protocol, 64]);
            header
        } else {
            let mut header = vec![0x45, 0];
            header.extend(((20 + transport.len()) as u16).to_be_bytes());
            header.extend(self.id.to_be_bytes());
            header.extend([0x40, 0, 64, protocol, 0, 0]);
            header
        };
        header.extend(self.addresses());
        if !self.v6 {
            let check = !naive_sum(&[&header]);
            header[10..12].copy_from_slice(&check.to_be_bytes());
        }
        header.extend(transport);
        header
    }

    /// The packets that a network card would cut this super-packet into.
    fn segments(&self, size: usize) -> Vec<Packet> {
        let count = self.payload.len().div_ceil(size);
        let segment = |(index, payload): (usize, &[u8])| Packet {
            id: self.id.wrapping_add(index as u16),
            sequence: self.sequence.wrapping_add((index * size) as u32),
            flags: if index + 1 < count { self.flags & !0x09 } else { self.flags },
            payload: payload.to_vec(),
            ..self.clone()
        };
        self.payload.chunks(size).enumerate().map(segment).collect()
    }

    fn vnet(&self, size: usize) -> VnetHeader {
        let gso_type = match (self.tcp, self.v6) {
            (false, _) => GSO_UDP_L4,
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
        };
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: self.header_len() as u16,
            gso_size: size as u16,
            csum_start: if self.v6 { 40 } else { 20 },
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let options = prop_oneof![Just(vec![]), Just([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2].to_vec())];
    let flags = prop_oneof![Just(0x10u8), Just(0x18)];
    let payload = proptest::collection::vec(any::<u8>(), 1..9000);
    (any::<(bool, bool, u16, u32, u32)>(), 1u16..4, flags, options, payload).prop_map(
        |((v6, tcp, id, sequence, ack), flow, flags, options, payload)| {
            let flags = if tcp { flags } else { 0 };
            let options = if tcp { options } else { vec![] };
            Packet { v6, tcp, flow, id, sequence, ack, flags, options, payload }
        },
    )
}

/// Joins `packets` and returns what would be written, header and packet.
fn join(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut coalescer = Coalescer::default();
    let buffer = packets.concat();
    let mut at = 0;
    for packet in packets {
        coalescer.push(&buffer, at..at + packet.len(), true);
        at += packet.len();
    }
    let mut written = Vec::new();
    coalescer.flush(&buffer, true, |parts: &[IoSlice<'_>]| {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let header = VnetHeader::parse(bytes[..VNET_LEN].try_into().unwrap());
        written.push((header, bytes[VNET_LEN..].to_vec()));
    });
    assert!(coalescer.is_empty());
    written
}

fn cut(header: VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let plan = split::plan(header, packet).expect("the header fits");
    let write = |index| {
        let mut out = vec![0xee; plan.len(index)];
        plan.write(index, packet, &mut out);
        out
    };
    (0..plan.count()).map(write).collect()
}

proptest! {
    #[test]
    fn cutting_equals_the_oracle(packet in packet(), size in 1usize..1500) {
        let size = size.max(packet.payload.len() / 60);
        let cut = cut(packet.vnet(size), &packet.bytes());
        let expected: Vec<Vec<u8>> = packet.segments(size).iter().map(Packet::bytes).collect();
        prop_assert_eq!(cut, expected);
    }

    #[test]
    fn joining_then_cutting_gives_the_same_packets(packet in packet(), size in 100usize..1500) {
        let segments: Vec<Vec<u8>> = packet.segments(size).iter().map(Packet::bytes).collect();
        let joined = join(&segments);
        prop_assert!(joined.len() <= segments.len().div_ceil(64) + 1);
        let again: Vec<Vec<u8>> = joined.iter().flat_map(|(header, bytes)| cut(*header, bytes)).collect();
        // The ID of a joined packet counts on from its first; the oracle's do, too.
        prop_assert_eq!(again, segments);
    }

    #[test]
    fn any_mix_keeps_every_packet_and_the_order_of_its_flow(
        packets in proptest::collection::vec(packet(), 1..12), size in 100usize..1500, shuffle: u64,
    ) {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for packet in &packets {
            all.extend(packet.segments(size).iter().map(Packet::bytes));
        }
        interleave(&mut all, shuffle);
        let again: Vec<Vec<u8>> = join(&all).iter().flat_map(|(header, bytes)| cut(*header, bytes)).collect();
        for key in all.iter().map(|packet| flow_of(packet)).collect::<std::collections::BTreeSet<_>>() {
            let of = |list: &[Vec<u8>]| -> Vec<Vec<u8>> {
                list.iter().filter(|packet| flow_of(packet) == key).map(|packet| without_id(packet)).collect()
            };
            prop_assert_eq!(of(&again), of(&all));
        }
    }

    #[test]
    fn damaged_packets_are_never_joined(packet in packet(), byte in 0usize..200) {
        let mut segments: Vec<Vec<u8>> = packet.segments(300).iter().map(Packet::bytes).collect();
        for segment in &mut segments {
            let at = packet.header_len() + byte % (segment.len() - packet.header_len());
            segment[at] ^= 0x55;
        }
        let joined: Vec<Vec<u8>> = join(&segments).into_iter().map(|(_, bytes)| bytes).collect();
        prop_assert_eq!(joined, segments);
    }

    #[test]
    fn garbage_passes_unchanged(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..120), 1..20)) {
        let written: Vec<Vec<u8>> = join(&packets).into_iter().map(|(_, bytes)| bytes).collect();
        prop_assert_eq!(written, packets);
    }

    #[test]
    fn a_wrong_header_is_refused_or_cut_within_bounds(
        bytes in proptest::collection::vec(any::<u8>(), 0..300), header: [u8; VNET_LEN],
    ) {
        if let Some(plan) = split::plan(VnetHeader::parse(&header), &bytes) {
            for index in 0..plan.count().min(400) {
                let mut out = vec![0; plan.len(index)];
                plan.write(index, &bytes, &mut out);
            }
        }
    }
}

fn interleave(packets: &mut [Vec<u8>], mut seed: u64) {
    // Swaps neighbours of different flows only: a flow's own order is what the test is about.
    for at in 1..packets.len() {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if seed >> 63 == 1 && flow_of(&packets[at]) != flow_of(&packets[at - 1]) {
            packets.swap(at, at - 1);
        }
    }
}

fn flow_of(packet: &[u8]) -> (u8, u8, [u8; 2]) {
    let (at, protocol) = if packet[0] >> 4 == 6 { (40, packet[6]) } else { (20, packet[9]) };
    (packet[0] >> 4, protocol, [packet[at + 2], packet[at + 3]])
}

/// A joined packet loses the IDs of all but its first (as with the kernel's own GRO when DF is set).
fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

#[test]
fn a_lone_packet_has_its_checksum_completed() {
    let packet = Packet {
        v6: false,
        tcp: true,
        flow: 1,
        id: 7,
        sequence: 1,
        ack: 2,
        flags: 0x10,
        options: vec![],
        payload: vec![3; 77],
    };
    let whole = packet.bytes();
    let mut partial = whole.clone();
    let length = ((whole.len() - 20) as u32).to_be_bytes();
    let pseudo = naive_sum(&[&packet.addresses(), &length, &[0, 6]]);
    partial[36..38].copy_from_slice(&pseudo.to_be_bytes());
    let header = VnetHeader { flags: NEEDS_CSUM, csum_start: 20, csum_offset: 16, ..VnetHeader::default() };
    assert_eq!(cut(header, &partial), [whole]);
}
