//! Which session an inner address belongs to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An inner address range such as `10.9.0.2/32` or `fd00:9::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: u128,
    mask: u128,
    length: u8,
    is_v6: bool,
}

impl Prefix {
    /// Parses `address` or `address/length`; host bits must be zero.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address.parse::<IpAddr>().ok()?, Some(length.parse::<u8>().ok()?)),
            None => (text.parse::<IpAddr>().ok()?, None),
        };
        let bits: u8 = if address.is_ipv6() { 128 } else { 32 };
        let length = length.unwrap_or(bits);
        let prefix = Self::around(address, length)?;
        (to_bits(address) == prefix.address).then_some(prefix)
    }

    /// The range of `length` bits that holds `address`; None when it has fewer.
    fn around(address: IpAddr, length: u8) -> Option<Self> {
        let bits: u8 = if address.is_ipv6() { 128 } else { 32 };
        let spare = u32::from(bits).checked_sub(u32::from(length))?;
        let ones = u128::MAX.checked_shr(spare).unwrap_or(0);
        let mask = ones.checked_shl(spare).unwrap_or(0) & (u128::MAX >> (128 - u32::from(bits)));
        Some(Self { address: to_bits(address) & mask, mask, length, is_v6: address.is_ipv6() })
    }

    /// True when `address` lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_v6 == address.is_ipv6() && to_bits(address) & self.mask == self.address
    }

    fn host(&self) -> Option<IpAddr> {
        match (self.is_v6, self.length) {
            (true, 128) => Some(IpAddr::V6(Ipv6Addr::from(self.address))),
            (false, 32) => Some(IpAddr::V4(Ipv4Addr::from(self.address as u32))),
            _ => None,
        }
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// Source address of an IP packet; None when it is none.
pub fn source(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 12, 8)
}

/// Destination address of an IP packet; None when it is none.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 16, 24)
}

fn address(packet: &[u8], v4_at: usize, v6_at: usize) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let bytes: [u8; 4] = packet[v4_at..v4_at + 4].try_into().ok()?;
            Some(IpAddr::from(bytes))
        }
        6 if packet.len() >= 40 => {
            let bytes: [u8; 16] = packet[v6_at..v6_at + 16].try_into().ok()?;
            Some(IpAddr::from(bytes))
        }
        _ => None,
    }
}

/// Inner ranges of all sessions; the longest match wins, a later owner replaces an earlier one.
///
/// A look-up tries each length that is in use once, however many ranges there are.
#[derive(Debug)]
pub struct InnerTable<T> {
    hosts: HashMap<IpAddr, T>,
    ranges: BTreeMap<Reverse<u8>, HashMap<Prefix, T>>,
}

impl<T> Default for InnerTable<T> {
    fn default() -> Self {
        Self { hosts: HashMap::new(), ranges: BTreeMap::new() }
    }
}

impl<T: Clone> InnerTable<T> {
    /// Gives `prefix` to `owner`.
    pub fn insert(&mut self, prefix: Prefix, owner: T) {
        match prefix.host() {
            Some(host) => drop(self.hosts.insert(host, owner)),
            None => drop(self.ranges.entry(Reverse(prefix.length)).or_default().insert(prefix, owner)),
        }
    }

    /// Takes back all of `prefixes` whose owner `is_mine`.
    pub fn remove(&mut self, prefixes: &[Prefix], is_mine: impl Fn(&T) -> bool) {
        for prefix in prefixes {
            if let Some(host) = prefix.host() {
                if self.hosts.get(&host).is_some_and(&is_mine) {
                    self.hosts.remove(&host);
                }
            } else if let Some(same) = self.ranges.get_mut(&Reverse(prefix.length)) {
                if same.get(prefix).is_some_and(&is_mine) {
                    same.remove(prefix);
                }
            }
        }
        self.ranges.retain(|_, same| !same.is_empty());
    }

    /// Owner of `address`.
    pub fn owner(&self, address: IpAddr) -> Option<&T> {
        let within = || self.ranges.iter().find_map(|(length, same)| same.get(&Prefix::around(address, length.0)?));
        self.hosts.get(&address).or_else(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::parse(text).unwrap()
    }

    #[test]
    fn the_longest_match_owns_an_address() {
        let mut table = InnerTable::default();
        table.insert(prefix("0.0.0.0/0"), 1);
        table.insert(prefix("10.9.0.0/16"), 2);
        table.insert(prefix("10.9.0.7"), 3);
        table.insert(prefix("fd00::/64"), 4);
        let owner = |text: &str| table.owner(text.parse().unwrap()).copied();
        assert_eq!(owner("10.9.0.7"), Some(3));
        assert_eq!(owner("10.9.1.7"), Some(2));
        assert_eq!(owner("192.0.2.1"), Some(1));
        assert_eq!(owner("fd00::5"), Some(4));
        assert_eq!(owner("fd01::5"), None);
    }

    #[test]
    fn removal_spares_a_range_that_has_a_new_owner() {
        let mut table = InnerTable::default();
        let ranges = [prefix("10.9.0.7/32"), prefix("10.8.0.0/24")];
        ranges.iter().for_each(|range| table.insert(*range, 1));
        table.insert(ranges[0], 2);
        table.remove(&ranges, |owner| *owner == 1);
        assert_eq!(table.owner("10.9.0.7".parse().unwrap()), Some(&2));
        assert_eq!(table.owner("10.8.0.1".parse().unwrap()), None);
    }

    #[test]
    fn bad_prefixes_are_refused() {
        for text in ["", "10.0.0.0/33", "10.0.0.1/24", "x", "::/129", "10.0.0.0/"] {
            assert_eq!(Prefix::parse(text), None, "{text}");
        }
        assert!(prefix("::/0").contains("fd00::1".parse().unwrap()));
        assert!(!prefix("::/0").contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn addresses_of_short_packets_are_none() {
        assert_eq!(source(&[0x45; 19]), None);
        assert_eq!(destination(&[0x60; 39]), None);
        assert_eq!(source(&[]), None);
    }
}
