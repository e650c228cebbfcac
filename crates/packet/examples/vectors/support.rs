//! Fixed randomness and hexadecimal text.

use jumpvpn_packet::schedule::Secret;
use jumpvpn_packet::Random;
use serde_json::Value;

/// Gives the bytes it was made from, in order.
pub struct Fixed(pub Vec<u8>);

impl Random for Fixed {
    fn fill(&mut self, out: &mut [u8]) {
        let rest = self.0.split_off(out.len());
        out.copy_from_slice(&self.0);
        self.0 = rest;
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn hexes(list: &[Vec<u8>]) -> Vec<String> {
    list.iter().map(|bytes| hex(bytes)).collect()
}

/// Bytes of a hexadecimal string in `value[key]`.
pub fn bytes(value: &Value, key: &str) -> Vec<u8> {
    let text = value[key].as_str().expect("a hexadecimal string");
    let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(pair).collect()
}

/// `N` bytes that rise by one from `first`, so that a vector shows where each input went.
pub fn rising<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|at| first.wrapping_add(at as u8))
}

pub fn secret(first: u8) -> Secret {
    Secret::new(rising(first))
}
