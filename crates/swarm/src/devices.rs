//! The devices that the clients are: their keys from a seed, their inner addresses from a pool, both by number.

use std::fmt::Write;
use std::net::Ipv4Addr;

use jumpvpn_packet::keys::public_key;
use jumpvpn_packet::schedule::{sha256, Secret};

use crate::base64;

/// The first device has the pool's second address: the first one is the gateway's.
const FIRST: u32 = 2;

/// The private key of device `number`: worth nothing outside a measurement, since whoever knows the seed has it.
pub fn private_key(seed: u64, number: u32) -> Secret {
    Secret::new(sha256(&[b"jumpvpn swarm device", &seed.to_be_bytes(), &number.to_be_bytes()]))
}

/// The `[[device]]` tables of `count` devices, for a gateway's file whose pool begins at `pool`.
pub fn tables(seed: u64, count: u32, pool: Ipv4Addr) -> String {
    let mut out = String::new();
    for number in 0..count {
        let address = Ipv4Addr::from(u32::from(pool) + FIRST + number);
        let key = base64::encode(&public_key(&private_key(seed, number)));
        writeln!(out, "[[device]]\nname = \"d{number}\"\npublic_key = \"{key}\"\naddress = \"{address}\"\n")
            .expect("a string takes everything");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_differ_and_come_again() {
        let first = private_key(1, 0);
        assert_eq!(first.expose(), private_key(1, 0).expose());
        assert_ne!(first.expose(), private_key(1, 1).expose());
        assert_ne!(first.expose(), private_key(2, 0).expose());
    }

    #[test]
    fn tables_name_every_device_once() {
        let text = tables(1, 300, Ipv4Addr::new(10, 64, 0, 0));
        assert_eq!(text.matches("[[device]]").count(), 300);
        assert!(text.contains("name = \"d0\"") && text.contains("\"10.64.0.2\"") && text.contains("\"10.64.1.45\""));
    }
}
