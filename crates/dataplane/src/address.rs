//! Socket addresses as texts and as the bytes that cookies and tokens cover.

use std::net::{IpAddr, SocketAddr};

use crate::error::{Error, Result};

/// 16 address bytes (IPv4 mapped into IPv6), then the port.
pub fn address18(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut out = [0; 18];
    out[..16].copy_from_slice(&ip.octets());
    out[16..].copy_from_slice(&address.port().to_be_bytes());
    out
}

/// Parses `ip:port` or `[ip6]:port`.
pub fn parse_address(text: &str) -> Result<SocketAddr> {
    text.parse()
        .map_err(|_| Error::Invalid(format!("{text:?} is not an address like 192.0.2.1:443 or [2001:db8::1]:443")))
}
