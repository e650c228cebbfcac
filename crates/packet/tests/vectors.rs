//! The committed vectors are what the code produces.

#[path = "../examples/vectors/main.rs"]
mod vectors;

// The generator's modules name each other from its own root.
use vectors::support;

#[test]
fn committed_vectors_are_current() {
    let directory = vectors::directory();
    for (name, value) in vectors::files(&vectors::kem(&directory)) {
        let committed = std::fs::read_to_string(directory.join(name)).unwrap_or_default();
        assert!(committed == vectors::text(&value), "{name}: run the example `vectors` and review the difference");
    }
}
