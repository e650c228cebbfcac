//! Facts as tuples, whose first item names the fact.

use jumpvpn_dataplane::facts::{Fact, ReattachRequest};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use pyo3::IntoPyObjectExt;

macro_rules! tuple {
    ($py:expr, $($item:expr),+ $(,)?) => {
        PyTuple::new($py, [$($item.into_bound_py_any($py)?),+])
    };
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One fact; the items are listed in `_native.pyi`.
pub fn to_tuple<'py>(py: Python<'py>, fact: Fact) -> PyResult<Bound<'py, PyTuple>> {
    let bytes = |data: &[u8]| PyBytes::new(py, data);
    match fact {
        Fact::HandshakeRequest { handshake, socket, peer, device, timestamp_ns, version, capabilities, credential } => {
            tuple!(
                py,
                "handshake_request",
                handshake,
                socket,
                peer.to_string(),
                bytes(&device),
                timestamp_ns,
                version,
                capabilities,
                bytes(&credential)
            )
        }
        Fact::HandshakeResponse { handshake, session, session_id, welcome, peer } => {
            let (id, welcome) = (bytes(&session_id), bytes(&welcome));
            tuple!(py, "handshake_response", handshake, session, id, welcome, peer.to_string())
        }
        Fact::HandshakeFailed { handshake, reason } => tuple!(py, "handshake_failed", handshake, reason),
        Fact::EpochConfirmed { session, epoch, path, peer } => {
            tuple!(py, "epoch_confirmed", session, epoch, path, peer.to_string())
        }
        Fact::ReattachRequest(request) => reattach_request(py, &request),
        Fact::ReattachReply { session, nonce, status, epoch, version, reason, path, token } => {
            let (nonce, token) = (hex(&nonce), bytes(&token));
            tuple!(py, "reattach_reply", session, nonce, status, epoch, version, reason, path, token)
        }
        other => path_fact(py, other),
    }
}

fn reattach_request<'py>(py: Python<'py>, request: &ReattachRequest) -> PyResult<Bound<'py, PyTuple>> {
    tuple!(
        py,
        "reattach_request",
        request.request,
        request.session,
        PyBytes::new(py, &request.session_id),
        request.socket,
        request.peer.to_string(),
        request.proof,
        hex(&request.nonce),
        request.next_epoch,
        request.expected_version,
        request.age_ms,
        request.path,
        request.cause,
        request.token_ok,
        request.fresh_nonce
    )
}

fn path_fact<'py>(py: Python<'py>, fact: Fact) -> PyResult<Bound<'py, PyTuple>> {
    match fact {
        Fact::PathValidated { session, path, peer, rtt_ns } => {
            tuple!(py, "path_validated", session, path, peer.to_string(), rtt_ns)
        }
        Fact::PathMeasured { session, path, srtt_ns, rttvar_ns, loss_up_ppm, loss_down_ppm, received } => {
            tuple!(py, "path_measured", session, path, srtt_ns, rttvar_ns, loss_up_ppm, loss_down_ppm, received)
        }
        Fact::PathSilent { session, path, silent_ns, limit_ns } => {
            tuple!(py, "path_silent", session, path, silent_ns, limit_ns)
        }
        Fact::PathDead { session, path, silent_ns } => tuple!(py, "path_dead", session, path, silent_ns),
        Fact::PathHeard { session, path } => tuple!(py, "path_heard", session, path),
        Fact::StandbyAnswered { session, path, peer, rtt_ns, is_draining } => {
            tuple!(py, "standby_answered", session, path, peer.to_string(), rtt_ns, is_draining)
        }
        Fact::PeerMoved { session, path, old, new } => {
            tuple!(py, "peer_moved", session, path, old.to_string(), new.to_string())
        }
        Fact::Hinted { session, path, cause } => tuple!(py, "hinted", session, path, cause),
        Fact::SocketError { socket, errno, session, path } => tuple!(py, "socket_error", socket, errno, session, path),
        Fact::Control { session, path, kind, payload } => {
            tuple!(py, "control", session, path, kind, PyBytes::new(py, &payload))
        }
        Fact::RekeyRequest { request, session, epoch } => tuple!(py, "rekey_request", request, session, epoch),
        Fact::RekeyReply { session, epoch } => tuple!(py, "rekey_reply", session, epoch),
        Fact::PlaneFailed { text } => tuple!(py, "plane_failed", text),
        Fact::HandshakeRequest { .. }
        | Fact::HandshakeResponse { .. }
        | Fact::HandshakeFailed { .. }
        | Fact::EpochConfirmed { .. }
        | Fact::ReattachRequest(_)
        | Fact::ReattachReply { .. } => to_tuple(py, fact),
    }
}
