//! The module `jumpvpn._native`: extract, release the interpreter, call, map the error. No decision is made here.

mod facts;
mod plane;

use jumpvpn_dataplane::error::Error;
use jumpvpn_packet::keys;
use jumpvpn_packet::schedule::Secret;
use jumpvpn_packet::SystemRandom;
use pyo3::exceptions::{PyKeyError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// Turns a refusal into the exception that Python code expects for it.
fn to_exception(error: Error) -> PyErr {
    match error {
        Error::Unknown(..) => PyKeyError::new_err(error.to_string()),
        Error::Invalid(text) => PyValueError::new_err(text),
        Error::State(text) => PyRuntimeError::new_err(text),
        Error::Io(error) => match error.raw_os_error() {
            Some(code) => PyOSError::new_err((code, error.to_string())),
            None => PyErr::from(error),
        },
    }
}

/// `bytes` as exactly `N` bytes; `name` is told when they are not, the bytes never are.
fn exact<const N: usize>(bytes: &[u8], name: &str) -> PyResult<[u8; N]> {
    bytes.try_into().map_err(|_| PyValueError::new_err(format!("{name} must have {N} bytes, not {}", bytes.len())))
}

#[pyfunction]
fn generate_private_key(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, keys::generate_private_key(&mut SystemRandom).expose())
}

#[pyfunction]
fn public_key<'py>(py: Python<'py>, private: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let secret = Secret::new(exact(private, "private key")?);
    Ok(PyBytes::new(py, &keys::public_key(&secret)))
}

#[pyfunction]
fn boottime_ns() -> u64 {
    jumpvpn_dataplane::boottime_ns()
}

#[pyfunction]
fn backend_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("protocol_version", jumpvpn_packet::PROTOCOL_VERSION)?;
    info.set_item("crypto", "aws-lc-rs")?;
    info.set_item("aes_instructions", plane::has_aes_instructions())?;
    Ok(info)
}

#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<plane::Plane>()?;
    module.add_function(wrap_pyfunction!(generate_private_key, module)?)?;
    module.add_function(wrap_pyfunction!(public_key, module)?)?;
    module.add_function(wrap_pyfunction!(boottime_ns, module)?)?;
    module.add_function(wrap_pyfunction!(backend_info, module)?)?;
    Ok(())
}
