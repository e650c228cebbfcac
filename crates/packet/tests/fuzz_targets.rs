//! Runs the bodies of the fuzz targets over the vectors and seeded mutations of them.

#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

use serde_json::Value;

/// Mutations of each seed and target; a minute of CI buys far more from `cargo fuzz`.
const MUTATIONS: u64 = 8;

fn collect(value: &Value, into: &mut Vec<Vec<u8>>) {
    match value {
        Value::String(text) => into.extend(unhex(text)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        Value::Object(items) => items.values().for_each(|item| collect(item, into)),
        _ => {}
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(pair).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../spec/vectors");
    let mut seeds = vec![Vec::new(), vec![0; 1], vec![0xff; 64], vec![0x12; 1200], vec![0x40; 65_535]];
    for entry in std::fs::read_dir(directory).expect("spec/vectors exists") {
        let text = std::fs::read_to_string(entry.expect("a readable entry").path()).expect("a text file");
        collect(&serde_json::from_str(&text).expect("JSON"), &mut seeds);
    }
    seeds.sort();
    seeds.dedup();
    seeds
}

/// SplitMix64: small, seeded, good enough to pick bytes.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % below.max(1) as u64) as usize
    }

    fn mutate(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        match self.roll(4) {
            0 => bytes.truncate(self.roll(seed.len() + 1)),
            1 => bytes.extend((0..self.roll(80)).map(|at| at as u8)),
            _ => {}
        }
        for _ in 0..self.roll(6) {
            let (at, value) = (self.roll(bytes.len()), self.roll(256) as u8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes
    }
}

#[test]
fn no_target_falls_over_its_seeds_or_their_mutations() {
    let (seeds, mut dice) = (seeds(), Dice(1));
    assert!(seeds.len() > 100, "the vectors were found");
    for (name, target) in targets::ALL {
        println!("{name}");
        for seed in &seeds {
            target(seed);
            (0..MUTATIONS).for_each(|_| target(&dice.mutate(seed)));
        }
    }
}

#[test]
fn every_target_has_its_file() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let mut files: Vec<_> = std::fs::read_dir(directory).expect("fuzz_targets exists").flatten().collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    let files: Vec<_> = files.iter().map(|file| file.file_name().to_string_lossy().replace(".rs", "")).collect();
    let mut names: Vec<_> = targets::ALL.iter().map(|(name, _)| (*name).to_string()).collect();
    names.sort();
    assert_eq!(files, names);
}
