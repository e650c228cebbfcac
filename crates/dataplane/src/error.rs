//! What the control plane gets when an order cannot be carried out.

use std::fmt;
use std::io;

/// Why an order was refused.
#[derive(Debug)]
pub enum Error {
    /// A handle names nothing (any more): the kind of object and the handle.
    Unknown(&'static str, u64),
    /// An argument is outside its bounds.
    Invalid(String),
    /// The order does not fit the object's present state.
    State(&'static str),
    /// The system refused.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unknown(kind, handle) => write!(f, "no {kind} {handle}"),
            Error::Invalid(text) => f.write_str(text),
            Error::State(text) => f.write_str(text),
            Error::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error)
    }
}

/// Outcome of an order.
pub type Result<T> = std::result::Result<T, Error>;
