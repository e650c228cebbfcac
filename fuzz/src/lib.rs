//! Bodies of the fuzz targets; `cargo test` runs the same functions over the vectors and mutations of them.

#![forbid(unsafe_code)]

pub mod targets;
