//! Handshake messages cut into datagrams, and their bounded reassembly. spec: WIRE-11, WIRE-17, WIRE-18

use std::collections::HashMap;
use std::hash::Hash;

use crate::header::Kind;
use crate::DropReason;

use super::cookie::{mac2, Cookie, MacKey};
use super::HandshakeId;

/// Bytes of a handshake datagram: fits an IPv6 minimum MTU behind another tunnel's overhead.
pub const MAX_DATAGRAM: usize = 1200;
/// Datagrams of one message.
pub const MAX_FRAGMENTS: usize = 3;
/// Datagrams of message 1, whose bounds leave no other number: refusing others keeps a flood from filling the table with scraps.
const INIT_FRAGMENTS: u8 = 2;
/// `kind u8 | index and count u8 | handshake id 8`
const HEAD_LEN: usize = 10;
/// mac1 and mac2.
pub(super) const MACS_LEN: usize = 32;
/// Message bytes of one datagram.
pub const MAX_PAYLOAD: usize = MAX_DATAGRAM - HEAD_LEN - MACS_LEN;

/// One datagram of a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    pub kind: Kind,
    pub index: u8,
    pub count: u8,
    pub handshake_id: HandshakeId,
    pub payload: &'a [u8],
    pub mac1: [u8; 16],
    pub mac2: [u8; 16],
}

impl<'a> Fragment<'a> {
    /// Parses a datagram of kind 1 or 2; checks no MAC.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DropReason> {
        let kind = Kind::of(datagram)?;
        if !matches!(kind, Kind::HandshakeInit | Kind::HandshakeResponse) {
            return Err(DropReason::UnknownKind);
        }
        if datagram.len() > MAX_DATAGRAM {
            return Err(DropReason::Oversized);
        }
        if datagram.len() <= HEAD_LEN + MACS_LEN {
            return Err(DropReason::Truncated);
        }
        let (body, macs) = datagram.split_at(datagram.len() - MACS_LEN);
        let fragment = Self {
            kind,
            index: body[1] >> 4,
            count: body[1] & 0x0f,
            handshake_id: body[2..HEAD_LEN].try_into().map_err(|_| DropReason::Truncated)?,
            payload: &body[HEAD_LEN..],
            mac1: macs[..16].try_into().map_err(|_| DropReason::Truncated)?,
            mac2: macs[16..].try_into().map_err(|_| DropReason::Truncated)?,
        };
        (fragment.is_well_formed() && datagram[0] == kind.byte()).then_some(fragment).ok_or(DropReason::Malformed)
    }

    /// All fragments but the last are full, so a message has one way to be cut.
    fn is_well_formed(&self) -> bool {
        let last = self.index + 1 == self.count;
        (1..=MAX_FRAGMENTS).contains(&usize::from(self.count))
            && (self.kind != Kind::HandshakeInit || self.count == INIT_FRAGMENTS)
            && self.index < self.count
            && (last || self.payload.len() == MAX_PAYLOAD)
    }
}

/// Cuts `message` into datagrams; `None` if it is empty or needs more than [`MAX_FRAGMENTS`].
pub fn cut(
    kind: Kind,
    id: &HandshakeId,
    message: &[u8],
    receiver: &MacKey,
    cookie: Option<&Cookie>,
) -> Option<Vec<Vec<u8>>> {
    let count = message.len().div_ceil(MAX_PAYLOAD);
    if count == 0 || count > MAX_FRAGMENTS {
        return None;
    }
    let datagram = |(index, payload): (usize, &[u8])| {
        let mut out = vec![kind.byte(), (index as u8) << 4 | count as u8];
        out.extend_from_slice(id);
        out.extend_from_slice(payload);
        out.extend_from_slice(&receiver.mac1(&out));
        out.extend_from_slice(&cookie.map_or([0; 16], |cookie| mac2(cookie, &out)));
        out
    };
    Some(message.chunks(MAX_PAYLOAD).enumerate().map(datagram).collect())
}

/// Bounds of a reassembly table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentLimits {
    /// Unfinished messages.
    pub count: usize,
    /// Message bytes held.
    pub bytes: usize,
    /// Age of an unfinished message.
    pub age_ns: u64,
}

impl Default for FragmentLimits {
    /// 256 handshakes between their first and last datagram, which leave the sender together: 3 s cover any queue.
    fn default() -> Self {
        Self { count: 256, bytes: 512 * 1024, age_ns: 3_000_000_000 }
    }
}

struct Assembly {
    since_ns: u64,
    parts: [Option<Vec<u8>>; MAX_FRAGMENTS],
    count: u8,
}

impl Assembly {
    fn bytes(&self) -> usize {
        self.parts.iter().flatten().map(Vec::len).sum()
    }

    fn is_whole(&self) -> bool {
        self.parts[..usize::from(self.count)].iter().all(Option::is_some)
    }
}

/// Unfinished messages by key (source address and handshake identifier), bounded in count, bytes and age.
///
/// When full it forgets the oldest: a message's datagrams come together, so a flood must outrun that gap instead of filling a table once.
pub struct Assemblies<K> {
    limits: FragmentLimits,
    table: HashMap<K, Assembly>,
    bytes: usize,
}

impl<K: Hash + Eq + Clone> Assemblies<K> {
    pub fn new(limits: FragmentLimits) -> Self {
        Self { limits, table: HashMap::new(), bytes: 0 }
    }

    /// Adds a fragment whose mac1 was verified; returns the message when it is whole. `now_ns` is any rising clock.
    pub fn insert(&mut self, key: K, fragment: &Fragment<'_>, now_ns: u64) -> Result<Option<Vec<u8>>, DropReason> {
        if fragment.count == 1 {
            return Ok(Some(fragment.payload.to_vec()));
        }
        self.expire(now_ns);
        let fresh = || Assembly { since_ns: now_ns, parts: Default::default(), count: fragment.count };
        let assembly = self.table.entry(key.clone()).or_insert_with(fresh);
        if assembly.count != fragment.count {
            return Err(DropReason::BadFragment);
        }
        let part = &mut assembly.parts[usize::from(fragment.index)];
        match part {
            Some(held) if held != fragment.payload => return Err(DropReason::BadFragment),
            Some(_) => return Ok(None),
            None => *part = Some(fragment.payload.to_vec()),
        }
        self.bytes += fragment.payload.len();
        if assembly.is_whole() {
            return Ok(self.remove(&key).map(|whole| whole.parts.into_iter().flatten().flatten().collect()));
        }
        self.shrink(&key);
        Ok(None)
    }

    /// Forgets what is older than the limit.
    pub fn expire(&mut self, now_ns: u64) {
        let age_ns = self.limits.age_ns;
        self.table.retain(|_, assembly| now_ns.saturating_sub(assembly.since_ns) <= age_ns);
        self.bytes = self.table.values().map(Assembly::bytes).sum();
    }

    /// Unfinished messages: a measure of load.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Message bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, key: &K) -> Option<Assembly> {
        let assembly = self.table.remove(key)?;
        self.bytes -= assembly.bytes();
        Some(assembly)
    }

    /// Forgets the oldest others until the bounds hold again.
    fn shrink(&mut self, keep: &K) {
        while self.table.len() > self.limits.count || self.bytes > self.limits.bytes {
            let others = self.table.iter().filter(|(key, _)| *key != keep);
            let Some(oldest) = others.min_by_key(|(_, assembly)| assembly.since_ns).map(|(key, _)| key.clone()) else {
                return;
            };
            self.remove(&oldest);
        }
    }
}

impl<K> std::fmt::Debug for Assemblies<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Assemblies({} messages, {} bytes)", self.table.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn datagrams(id: u8, message: &[u8]) -> Vec<Vec<u8>> {
        cut(Kind::HandshakeResponse, &[id; 8], message, &MacKey::of(&[9; 32]), None).unwrap()
    }

    fn table(count: usize) -> Assemblies<u8> {
        Assemblies::new(FragmentLimits { count, bytes: 10_000, age_ns: 100 })
    }

    proptest! {
        #[test]
        fn any_order_and_repetition_reassembles(message in vec(any::<u8>(), MAX_PAYLOAD + 1..=3 * MAX_PAYLOAD),
                                                order in vec(0usize..3, 0..6)) {
            let cut = datagrams(1, &message);
            let mut table = table(4);
            let mut whole = None;
            for index in order.into_iter().map(|index| index % cut.len()).chain(0..cut.len()) {
                let fragment = Fragment::parse(&cut[index]).unwrap();
                whole = whole.or(table.insert(1, &fragment, 0).unwrap());
            }
            prop_assert_eq!(whole, Some(message));
        }

        #[test]
        fn parse_never_panics_and_is_exact(bytes in vec(any::<u8>(), 0..1300), kind in 1u8..3) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind << 4;
            }
            if let Ok(fragment) = Fragment::parse(&bytes) {
                prop_assert_eq!(fragment.payload.len(), bytes.len() - HEAD_LEN - MACS_LEN);
            }
        }

        #[test]
        fn bounds_hold_under_a_flood(steps in vec((any::<u8>(), 0usize..3, 0u64..60), 1..300)) {
            let message = vec![7; 3 * MAX_PAYLOAD];
            let (mut table, mut now) = (table(5), 0);
            for (id, index, later) in steps {
                now += later;
                let cut = datagrams(id, &message);
                let _ = table.insert(id, &Fragment::parse(&cut[index]).unwrap(), now);
                prop_assert!(table.len() <= 5 && table.bytes() <= 10_000);
                prop_assert_eq!(table.bytes(), table.table.values().map(Assembly::bytes).sum::<usize>());
            }
        }
    }

    #[test]
    fn a_contradicting_fragment_is_refused() {
        let (first, second) = (datagrams(1, &[1; 2000]), datagrams(1, &[2; 2000]));
        let mut table = table(4);
        table.insert(1, &Fragment::parse(&first[0]).unwrap(), 0).unwrap();
        assert_eq!(table.insert(1, &Fragment::parse(&second[0]).unwrap(), 0), Err(DropReason::BadFragment));
        let three = datagrams(1, &[1; 3000]);
        assert_eq!(table.insert(1, &Fragment::parse(&three[1]).unwrap(), 0), Err(DropReason::BadFragment));
    }

    #[test]
    fn a_full_table_forgets_the_oldest() {
        let insert = |table: &mut Assemblies<u8>, id, index: usize, now_ns| {
            table.insert(id, &Fragment::parse(&datagrams(id, &[id; 2000])[index]).unwrap(), now_ns).unwrap()
        };
        for limits in [(2, 10_000), (9, 2 * MAX_PAYLOAD)] {
            let mut table = Assemblies::new(FragmentLimits { count: limits.0, bytes: limits.1, age_ns: 100 });
            (1..=3).for_each(|id| drop(insert(&mut table, id, 0, u64::from(id))));
            assert_eq!((table.len(), table.bytes()), (2, 2 * MAX_PAYLOAD));
            assert_eq!(insert(&mut table, 3, 1, 4), Some(vec![3; 2000]));
            assert_eq!(insert(&mut table, 2, 1, 4), Some(vec![2; 2000]));
            assert_eq!(insert(&mut table, 1, 1, 4), None);
        }
    }

    #[test]
    fn old_fragments_are_forgotten() {
        let cut = datagrams(1, &[1; 2000]);
        let mut table = table(4);
        table.insert(1, &Fragment::parse(&cut[0]).unwrap(), 0).unwrap();
        assert_eq!(table.insert(1, &Fragment::parse(&cut[1]).unwrap(), 101), Ok(None));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn shapes_outside_the_format_are_malformed() {
        let good = datagrams(1, &[1; 2000]).remove(0);
        for (at, value) in [(0, 0x21), (0, 0x11), (1, 0x00), (1, 0x22), (1, 0x04), (1, 0x31)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Fragment::parse(&bad), Err(DropReason::Malformed), "{at} {value}");
        }
        let three = [&[0x10, 0x03][..], &good[2..]].concat();
        assert_eq!(Fragment::parse(&three), Err(DropReason::Malformed), "message 1 takes two datagrams");
        assert_eq!(Fragment::parse(&good[..good.len() - 1]), Err(DropReason::Malformed), "a short middle fragment");
        assert_eq!(Fragment::parse(&[&good[..], &[0]].concat()), Err(DropReason::Oversized));
        assert_eq!(Fragment::parse(&good[..HEAD_LEN + MACS_LEN]), Err(DropReason::Truncated));
        assert!(cut(Kind::HandshakeInit, &[1; 8], &[], &MacKey::of(&[9; 32]), None).is_none());
        assert!(cut(Kind::HandshakeInit, &[1; 8], &[0; 3 * MAX_PAYLOAD + 1], &MacKey::of(&[9; 32]), None).is_none());
    }
}
