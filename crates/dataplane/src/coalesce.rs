//! Opened packets joined to super-packets (GRO) and written to the TUN without another copy.
//!
//! Packets stay where they were opened; a super-packet is a rewritten header plus a list of places.
//! Order within a flow is kept. Only packets whose own checksum is right are joined, so that a packet
//! damaged before it entered the tunnel stays visibly damaged (the rule of the kernel's GRO).

use std::io::IoSlice;
use std::ops::Range;

use crate::checksum;
use crate::split::{
    pseudo_sum, transport_check, write_ipv4_check, VnetHeader, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET_LEN,
};

/// Longest header kept aside: IPv6 40 + TCP 60.
const MAX_HEADER: usize = 100;
/// Pieces per super-packet; with the two headers this stays far below the kernel's limit of 1024 vectors.
const MAX_PIECES: usize = 64;
/// An IP packet's length field has 16 bits.
const MAX_PACKET: usize = 65535;
/// How many recent slots are searched for a packet's flow: bounds the work per packet when many flows mix.
const SEARCH: usize = 16;

const TCP: u8 = 6;
const UDP: u8 = 17;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// What is known of a packet that could be joined with others.
#[derive(Clone, Copy, Debug)]
struct Shape {
    protocol: u8,
    transport_at: usize,
    header_len: usize,
    sequence: u32,
    payload: usize,
    joinable: bool,
}

#[derive(Debug)]
struct Slot {
    header: [u8; MAX_HEADER],
    shape: Shape,
    next_sequence: u32,
    total: usize,
    open: bool,
    whole: Range<usize>,
    pieces: Vec<Range<usize>>,
}

/// Collects the packets of one receive batch and hands out what to write.
#[derive(Debug, Default)]
pub struct Coalescer {
    slots: Vec<Slot>,
    used: usize,
}

impl Coalescer {
    /// Takes the packet at `place` of `bytes`; with `join` false it is passed on as it is.
    pub fn push(&mut self, bytes: &[u8], place: Range<usize>, join: bool) {
        let packet = &bytes[place.clone()];
        let shape = if join { parse(packet) } else { None };
        let Some(shape) = shape else {
            self.start(packet, place, None);
            return;
        };
        match self.find(packet, &shape) {
            Some(at) if self.slots[at].takes(packet, &shape) => self.slots[at].append(packet, place, &shape),
            Some(at) => {
                self.slots[at].open = false;
                self.start(packet, place, Some(shape));
            }
            None => self.start(packet, place, Some(shape)),
        }
    }

    /// Writes everything in order through `write`, which gets one vector per packet, and forgets it.
    ///
    /// With `vnet` each vector starts with a virtio header.
    pub fn flush(&mut self, bytes: &[u8], vnet: bool, mut write: impl FnMut(&[IoSlice<'_>])) {
        for slot in &mut self.slots[..self.used] {
            slot.emit(bytes, vnet, &mut write);
        }
        self.used = 0;
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn find(&self, packet: &[u8], shape: &Shape) -> Option<usize> {
        let first = self.used.saturating_sub(SEARCH);
        (first..self.used).rev().find(|at| self.slots[*at].open && self.slots[*at].same_flow(packet, shape))
    }

    fn start(&mut self, packet: &[u8], place: Range<usize>, shape: Option<Shape>) {
        if self.used == self.slots.len() {
            self.slots.push(Slot::empty());
        }
        let slot = &mut self.slots[self.used];
        self.used += 1;
        slot.begin(packet, place, shape);
    }
}

impl Slot {
    fn empty() -> Self {
        let shape = Shape { protocol: 0, transport_at: 0, header_len: 0, sequence: 0, payload: 0, joinable: false };
        Self {
            header: [0; MAX_HEADER],
            shape,
            next_sequence: 0,
            total: 0,
            open: false,
            whole: 0..0,
            pieces: Vec::with_capacity(MAX_PIECES),
        }
    }

    fn begin(&mut self, packet: &[u8], place: Range<usize>, shape: Option<Shape>) {
        self.pieces.clear();
        self.whole = place.clone();
        self.open = false;
        let Some(shape) = shape else { return };
        self.open = true;
        self.shape = shape;
        self.header[..shape.header_len].copy_from_slice(&packet[..shape.header_len]);
        self.next_sequence = shape.sequence.wrapping_add(shape.payload as u32);
        self.total = packet.len();
        self.pieces.push(place.start + shape.header_len..place.end);
        if !shape.joinable || (shape.protocol == TCP && packet[shape.transport_at + 13] & PSH != 0) {
            // The slot still guards the order of its flow: the next packet of the flow starts behind it.
            self.open = false;
        }
    }

    fn same_flow(&self, packet: &[u8], shape: &Shape) -> bool {
        let at = shape.transport_at;
        let addresses = if packet[0] >> 4 == 6 { 8..40 } else { 12..20 };
        self.shape.protocol == shape.protocol
            && self.shape.transport_at == at
            && self.header[addresses.clone()] == packet[addresses]
            && self.header[at..at + 4] == packet[at..at + 4]
    }

    /// True when `packet` continues this slot: the same headers but for lengths, IDs, sequence and checksums.
    fn takes(&self, packet: &[u8], shape: &Shape) -> bool {
        let at = shape.transport_at;
        shape.joinable
            && shape.header_len == self.shape.header_len
            && shape.payload <= self.shape.payload
            && self.total + shape.payload <= MAX_PACKET
            && self.pieces.len() < MAX_PIECES
            && same_network_header(&self.header, packet)
            && (shape.protocol == UDP
                || (shape.sequence == self.next_sequence
                    && self.header[at + 8..at + 13] == packet[at + 8..at + 13]
                    && self.header[at + 14..at + 16] == packet[at + 14..at + 16]
                    && self.header[at + 20..shape.header_len] == packet[at + 20..shape.header_len]))
    }

    fn append(&mut self, packet: &[u8], place: Range<usize>, shape: &Shape) {
        self.pieces.push(place.start + shape.header_len..place.end);
        self.total += shape.payload;
        self.next_sequence = self.next_sequence.wrapping_add(shape.payload as u32);
        let mut last = shape.payload < self.shape.payload;
        if shape.protocol == TCP {
            let flags = packet[shape.transport_at + 13];
            self.header[shape.transport_at + 13] |= flags & PSH;
            last |= flags & PSH != 0;
        }
        self.open = !last;
    }

    fn emit(&mut self, bytes: &[u8], vnet: bool, write: &mut impl FnMut(&[IoSlice<'_>])) {
        let plain = VnetHeader::default().bytes();
        if self.pieces.len() < 2 {
            let packet = IoSlice::new(&bytes[self.whole.clone()]);
            if vnet {
                write(&[IoSlice::new(&plain), packet]);
            } else {
                write(&[packet]);
            }
            return;
        }
        let vnet_header = self.finish();
        let mut vectors = [IoSlice::new(&[]); MAX_PIECES + 2];
        vectors[0] = IoSlice::new(&vnet_header);
        vectors[1] = IoSlice::new(&self.header[..self.shape.header_len]);
        for (vector, piece) in vectors[2..].iter_mut().zip(&self.pieces) {
            *vector = IoSlice::new(&bytes[piece.clone()]);
        }
        write(&vectors[..self.pieces.len() + 2]);
    }

    /// Rewrites lengths and checksums for the joined packet; returns its virtio header.
    fn finish(&mut self) -> [u8; VNET_LEN] {
        let shape = self.shape;
        let (at, total) = (shape.transport_at, self.total);
        let header = &mut self.header[..shape.header_len];
        let is_v6 = header[0] >> 4 == 6;
        if is_v6 {
            header[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        } else {
            header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            write_ipv4_check(header);
        }
        let pseudo = checksum::fold(pseudo_sum(header, shape.protocol, total - at));
        let (gso_type, offset) = match (shape.protocol, is_v6) {
            (UDP, _) => (GSO_UDP_L4, 6),
            (_, false) => (GSO_TCPV4, 16),
            (_, true) => (GSO_TCPV6, 16),
        };
        if shape.protocol == UDP {
            header[at + 4..at + 6].copy_from_slice(&((total - at) as u16).to_be_bytes());
        }
        header[at + offset..at + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: shape.header_len as u16,
            gso_size: shape.payload as u16,
            csum_start: at as u16,
            csum_offset: offset as u16,
        }
        .bytes()
    }
}

/// Type of service, DF bit, TTL (or class, flow label, hop limit) are equal; ID, lengths and checksums may differ.
fn same_network_header(header: &[u8], packet: &[u8]) -> bool {
    if packet[0] >> 4 == 6 {
        header[..4] == packet[..4] && header[6..8] == packet[6..8]
    } else {
        header[..2] == packet[..2] && header[6..10] == packet[6..10]
    }
}

/// Shape of an unfragmented TCP or UDP packet whose lengths are right, else None.
fn parse(packet: &[u8]) -> Option<Shape> {
    let (transport_at, protocol) = match packet.first()? {
        0x45 => parse_v4(packet)?,
        byte if byte >> 4 == 6 => parse_v6(packet)?,
        _ => return None,
    };
    match protocol {
        TCP => parse_tcp(packet, transport_at),
        UDP => parse_udp(packet, transport_at),
        _ => None,
    }
}

fn parse_v4(packet: &[u8]) -> Option<(usize, u8)> {
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let whole = packet.len() >= 20 && total == packet.len();
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    (whole && fragment == 0).then(|| (20, packet[9]))
}

fn parse_v6(packet: &[u8]) -> Option<(usize, u8)> {
    let payload = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    (packet.len() >= 40 && payload + 40 == packet.len()).then(|| (40, packet[6]))
}

fn parse_tcp(packet: &[u8], at: usize) -> Option<Shape> {
    let words = usize::from(*packet.get(at + 12)? >> 4);
    let header_len = at + 4 * words;
    if words < 5 || packet.len() < header_len {
        return None;
    }
    let payload = packet.len() - header_len;
    let plain = packet[at + 13] & !PSH == ACK && packet[at + 12] & 0x0f == 0;
    let joinable = plain && payload > 0 && intact(packet, at, TCP);
    let sequence = u32::from_be_bytes([packet[at + 4], packet[at + 5], packet[at + 6], packet[at + 7]]);
    Some(Shape { protocol: TCP, transport_at: at, header_len, sequence, payload, joinable })
}

fn parse_udp(packet: &[u8], at: usize) -> Option<Shape> {
    let header_len = at + 8;
    let length = usize::from(u16::from_be_bytes([*packet.get(at + 4)?, *packet.get(at + 5)?]));
    if length != packet.len() - at || length < 8 {
        return None;
    }
    let payload = packet.len() - header_len;
    // A datagram without checksum (zero) is not joined: the joined one would gain a checksum it never had.
    let checked = packet[at + 6..at + 8] != [0, 0];
    let joinable = checked && payload > 0 && intact(packet, at, UDP);
    Some(Shape { protocol: UDP, transport_at: at, header_len, sequence: 0, payload, joinable })
}

fn intact(packet: &[u8], at: usize, protocol: u8) -> bool {
    let network = packet[0] >> 4 == 6 || checksum::fold(checksum::sum(&packet[..20], 0)) == 0xffff;
    network && transport_check(packet, at, protocol) == 0
}
