//! Writes `spec/vectors/*.json` from fixed inputs: `cargo run -p jumpvpn-packet --example vectors [-- --check]`.

mod birth;
mod data;
mod moves;
pub mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

/// Every file this program owns; `kem.json` is an input, made by `tests/native/mlkem.py`.
pub fn files(kem: &Value) -> Vec<(&'static str, Value)> {
    vec![
        ("schedule.json", birth::schedule()),
        ("handshake.json", birth::handshake(&kem["handshake"])),
        ("data.json", data::data()),
        ("replay.json", data::replay()),
        ("frames.json", data::frames()),
        ("reattach.json", moves::reattach()),
        ("rekey.json", moves::rekey(&kem["rekey"])),
        ("record.json", moves::record()),
    ]
}

/// The text of one file.
pub fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// `spec/vectors` of this repository.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../spec/vectors")
}

/// Reads `kem.json`.
pub fn kem(directory: &Path) -> Value {
    let text = std::fs::read_to_string(directory.join("kem.json")).expect("kem.json is part of the repository");
    serde_json::from_str(&text).expect("kem.json is JSON")
}

#[allow(dead_code)]
fn main() -> ExitCode {
    let directory = directory();
    let check = std::env::args().any(|argument| argument == "--check");
    let mut stale = 0;
    for (name, value) in files(&kem(&directory)) {
        let (path, text) = (directory.join(name), text(&value));
        if !check {
            std::fs::write(&path, text).expect("spec/vectors is writable");
        } else if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            eprintln!("{name} is not what the code produces");
            stale += 1;
        }
    }
    ExitCode::from(u8::from(stale > 0))
}
