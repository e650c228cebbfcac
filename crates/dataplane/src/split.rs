//! Super-packets from the TUN (TSO, USO) cut into packets, each written straight to where it will be sealed.

use crate::checksum;

/// Bytes of the virtio header before each packet of a TUN with `IFF_VNET_HDR`.
pub const VNET_LEN: usize = 10;
/// Header flag: the checksum at `csum_start + csum_offset` covers only the pseudo-header so far.
pub const NEEDS_CSUM: u8 = 1;
/// Segmentation kinds of the virtio header (linux/virtio_net.h).
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP datagrams of equal length.
pub const GSO_UDP_L4: u8 = 5;
/// Added to the kind when the flow uses ECN.
pub const GSO_ECN: u8 = 0x80;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;
/// Offset of the checksum in the TCP and the UDP header.
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;

/// The virtio header as the kernel wrote it; lengths in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Bit 0: `NEEDS_CSUM`.
    pub flags: u8,
    /// One of the `GSO_` kinds.
    pub gso_type: u8,
    /// Length of all headers, a hint only.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksummed part starts.
    pub csum_start: u16,
    /// Where the checksum lies, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Reads the header in host byte order.
    pub fn parse(bytes: &[u8; VNET_LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Writes the header in host byte order.
    pub fn bytes(&self) -> [u8; VNET_LEN] {
        let mut out = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (target, word) in out[2..].chunks_exact_mut(2).zip(words) {
            target.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

/// How one packet read from the TUN is cut; made by [`plan`], used by [`Plan::write`].
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    header_len: usize,
    transport_at: usize,
    check_at: usize,
    segment: usize,
    count: usize,
    length: usize,
    is_v6: bool,
    is_tcp: bool,
    partial: bool,
}

/// Plans how to cut `packet` (an IP packet without its virtio header). None when the two do not fit together.
pub fn plan(vnet: VnetHeader, packet: &[u8]) -> Option<Plan> {
    let is_v6 = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => false,
        6 if packet.len() >= 40 => true,
        _ => return None,
    };
    let kind = vnet.gso_type & !GSO_ECN;
    let transport_at = usize::from(vnet.csum_start);
    let single = Plan {
        header_len: 0,
        transport_at,
        check_at: transport_at + usize::from(vnet.csum_offset),
        segment: packet.len(),
        count: 1,
        length: packet.len(),
        is_v6,
        is_tcp: kind != GSO_UDP_L4,
        partial: vnet.flags & NEEDS_CSUM != 0,
    };
    if kind == GSO_NONE {
        let fits = !single.partial || (single.check_at + 2 <= packet.len() && transport_at >= 20);
        return fits.then_some(single);
    }
    plan_segments(single, kind, usize::from(vnet.gso_size), packet)
}

fn plan_segments(single: Plan, kind: u8, segment: usize, packet: &[u8]) -> Option<Plan> {
    let transport_at = single.transport_at;
    let minimum = if single.is_v6 { 40 } else { 20 };
    if transport_at < minimum || segment == 0 || !single.partial {
        return None;
    }
    let (header_len, check_at) = match kind {
        GSO_TCPV4 | GSO_TCPV6 => {
            let words = usize::from(*packet.get(transport_at + 12)? >> 4);
            if words < 5 {
                return None;
            }
            (transport_at + 4 * words, transport_at + TCP_CHECK)
        }
        GSO_UDP_L4 => (transport_at + 8, transport_at + UDP_CHECK),
        _ => return None,
    };
    if header_len >= packet.len() {
        return None;
    }
    let count = (packet.len() - header_len).div_ceil(segment);
    Some(Plan { header_len, check_at, segment, count, ..single })
}

impl Plan {
    /// Number of packets, at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of packet `index`; all but the last are equally long.
    pub fn len(&self, index: usize) -> usize {
        if index + 1 < self.count {
            self.header_len + self.segment
        } else {
            self.length - index * self.segment
        }
    }

    /// Writes packet `index` of `packet` to the start of `out` with right lengths and checksums.
    ///
    /// `out` has at least `len(index)` bytes; `packet` is the one the plan was made for.
    pub fn write(&self, index: usize, packet: &[u8], out: &mut [u8]) {
        let length = self.len(index);
        let out = &mut out[..length];
        let start = self.header_len + index * self.segment;
        out[..self.header_len].copy_from_slice(&packet[..self.header_len]);
        out[self.header_len..].copy_from_slice(&packet[start..start + length - self.header_len]);
        if self.header_len > 0 {
            self.fix_headers(index, out);
        } else if self.partial {
            let check = !checksum::fold(checksum::sum(&out[self.transport_at..], 0));
            self.put_check(out, check);
        }
    }

    fn fix_headers(&self, index: usize, out: &mut [u8]) {
        let length = out.len();
        if self.is_v6 {
            out[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        } else {
            out[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(index as u16);
            out[4..6].copy_from_slice(&id.to_be_bytes());
            write_ipv4_check(out);
        }
        if self.is_tcp {
            self.fix_tcp(index, out);
        } else {
            let udp_len = (length - self.transport_at) as u16;
            out[self.transport_at + 4..self.transport_at + 6].copy_from_slice(&udp_len.to_be_bytes());
        }
        out[self.check_at..self.check_at + 2].fill(0);
        let check = transport_check(out, self.transport_at, if self.is_tcp { 6 } else { 17 });
        self.put_check(out, check);
    }

    fn fix_tcp(&self, index: usize, out: &mut [u8]) {
        let at = self.transport_at;
        let sequence = u32::from_be_bytes([out[at + 4], out[at + 5], out[at + 6], out[at + 7]]);
        let sequence = sequence.wrapping_add((index * self.segment) as u32);
        out[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < self.count {
            out[at + 13] &= !FIN_PSH;
        }
        if index > 0 {
            out[at + 13] &= !CWR;
        }
    }

    fn put_check(&self, out: &mut [u8], check: u16) {
        // A UDP checksum of zero means "none" (RFC 768), so zero is sent as its other form.
        let is_udp = self.check_at == self.transport_at + UDP_CHECK;
        let check = if is_udp && check == 0 { 0xffff } else { check };
        out[self.check_at..self.check_at + 2].copy_from_slice(&check.to_be_bytes());
    }
}

/// Rewrites the header checksum of the IPv4 packet `ip`.
pub fn write_ipv4_check(ip: &mut [u8]) {
    let header_len = usize::from(ip[0] & 15) * 4;
    ip[10..12].fill(0);
    let check = !checksum::fold(checksum::sum(&ip[..header_len], 0));
    ip[10..12].copy_from_slice(&check.to_be_bytes());
}

/// Checksum over pseudo-header and everything from `transport_at` on; zero for a packet whose checksum is right.
pub fn transport_check(ip: &[u8], transport_at: usize, protocol: u8) -> u16 {
    let length = ip.len() - transport_at;
    !checksum::fold(checksum::sum(&ip[transport_at..], pseudo_sum(ip, protocol, length)))
}

/// Pseudo-header sum of the IP packet `ip` for a transport part of `length` bytes.
pub fn pseudo_sum(ip: &[u8], protocol: u8, length: usize) -> u64 {
    if ip[0] >> 4 == 6 {
        checksum::pseudo_header(&ip[8..24], &ip[24..40], protocol, length)
    } else {
        checksum::pseudo_header(&ip[12..16], &ip[16..20], protocol, length)
    }
}
