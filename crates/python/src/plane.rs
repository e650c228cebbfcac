//! Class `Plane`: one method per order.

use std::net::SocketAddr;
use std::sync::Arc;

use jumpvpn_dataplane::address::parse_address;
use jumpvpn_dataplane::attempt::{Handover, Wish};
use jumpvpn_dataplane::error::Result;
use jumpvpn_dataplane::liveness::Limits;
use jumpvpn_dataplane::orders::Toward;
use jumpvpn_dataplane::{Config, Settings};
use jumpvpn_packet::PathIndex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::{exact, facts, to_exception};

type Inner = jumpvpn_dataplane::Plane;

#[pyclass(module = "jumpvpn._native", frozen)]
pub struct Plane {
    inner: Arc<Inner>,
}

/// True when this CPU has AES instructions: AES-256-GCM is then fast and runs in constant time.
pub fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[allow(unreachable_code)]
    false
}

fn address(text: &str) -> PyResult<SocketAddr> {
    parse_address(text).map_err(to_exception)
}

fn path_index(path: u8) -> PyResult<PathIndex> {
    PathIndex::new(path).ok_or_else(|| PyValueError::new_err(format!("path {path} is not below 8")))
}

/// Runs `order` without the interpreter.
fn run<T: Send>(py: Python<'_>, plane: &Plane, order: impl FnOnce(&Inner) -> Result<T> + Send) -> PyResult<T> {
    let inner = Arc::clone(&plane.inner);
    py.detach(move || order(&inner)).map_err(to_exception)
}

fn sealed<'py>(
    py: Python<'py>,
    plane: &Plane,
    order: impl FnOnce(&Inner) -> Result<Vec<u8>> + Send,
) -> PyResult<Bound<'py, PyBytes>> {
    run(py, plane, order).map(|bytes| PyBytes::new(py, &bytes))
}

#[pymethods]
impl Plane {
    #[new]
    #[pyo3(signature = (*, role, private_key, cluster_key, tun, mtu, queue_bytes, replay_bytes, replay_ms,
                        aead = "auto", tun_fd = None, drain_ms = 10_000))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        role: &str,
        private_key: &[u8],
        cluster_key: &[u8],
        tun: String,
        mtu: u32,
        queue_bytes: usize,
        replay_bytes: usize,
        replay_ms: u64,
        aead: &str,
        tun_fd: Option<i32>,
        drain_ms: u64,
    ) -> PyResult<Self> {
        let is_gateway = match role {
            "gateway" => true,
            "client" => false,
            _ => return Err(PyValueError::new_err("role is \"client\" or \"gateway\"")),
        };
        let has_aes = match aead {
            "auto" => has_aes_instructions(),
            "aes" => true,
            "chacha" => false,
            _ => return Err(PyValueError::new_err("aead is \"auto\", \"aes\" or \"chacha\"")),
        };
        let cluster_key = if is_gateway { Some(exact(cluster_key, "cluster key")?) } else { None };
        let settings = Settings {
            queue_bytes,
            replay_bytes,
            replay_ns: replay_ms.saturating_mul(1_000_000),
            drain_ns: drain_ms.saturating_mul(1_000_000),
        };
        let private_key = exact(private_key, "private key")?;
        let config = Config { is_gateway, private_key, cluster_key, tun, tun_fd, mtu, has_aes, settings };
        let inner = py.detach(|| Inner::new(config)).map_err(to_exception)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.inner.stop());
    }

    #[getter]
    fn tun_name(&self) -> String {
        self.inner.tun_name()
    }

    #[getter]
    fn tun_index(&self) -> u32 {
        self.inner.tun_index()
    }

    #[getter]
    fn fact_fd(&self) -> i32 {
        self.inner.fact_fd()
    }

    fn drain<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.inner.drain(limit).into_iter().map(|fact| facts::to_tuple(py, fact)).collect()
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = PyDict::new(py);
        for (name, value) in self.inner.counters() {
            counters.set_item(name, value)?;
        }
        Ok(counters)
    }

    #[pyo3(signature = (*, bind, interface = None, mark = 0))]
    fn open_socket(&self, py: Python<'_>, bind: &str, interface: Option<&str>, mark: u32) -> PyResult<(u64, String)> {
        let bind = address(bind)?;
        let (socket, local) = run(py, self, |plane| plane.open_socket(bind, interface, mark))?;
        Ok((socket, local.to_string()))
    }

    fn close_socket(&self, py: Python<'_>, socket: u64) -> PyResult<()> {
        run(py, self, |plane| plane.close_socket(socket))
    }

    #[pyo3(signature = (*, socket, gateway, gateway_key, timestamp_ns, credential))]
    fn begin_handshake(
        &self,
        py: Python<'_>,
        socket: u64,
        gateway: &str,
        gateway_key: &[u8],
        timestamp_ns: u64,
        credential: Vec<u8>,
    ) -> PyResult<u64> {
        let (peer, key) = (address(gateway)?, exact(gateway_key, "gateway key")?);
        run(py, self, move |plane| plane.begin_handshake(socket, peer, key, timestamp_ns, credential))
    }

    fn resend_handshake(&self, py: Python<'_>, handshake: u64, socket: u64, gateway: &str) -> PyResult<()> {
        let peer = address(gateway)?;
        run(py, self, |plane| plane.resend_handshake(handshake, socket, peer))
    }

    fn cancel_handshake(&self, py: Python<'_>, handshake: u64) -> PyResult<()> {
        run(py, self, |plane| plane.cancel_handshake(handshake))
    }

    fn prepare_accept<'py>(
        &self,
        py: Python<'py>,
        handshake: u64,
        session_id: &[u8],
        inner: Vec<String>,
        welcome: Vec<u8>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let id = exact(session_id, "session id")?;
        sealed(py, self, move |plane| plane.prepare_accept(handshake, id, &inner, welcome))
    }

    fn finish_accept(&self, py: Python<'_>, handshake: u64) -> PyResult<u64> {
        run(py, self, |plane| plane.finish_accept(handshake))
    }

    fn reject_handshake(&self, py: Python<'_>, handshake: u64) -> PyResult<()> {
        run(py, self, |plane| plane.reject_handshake(handshake))
    }

    #[pyo3(signature = (session_id, sealed, inner, routed = true))]
    fn restore(
        &self,
        py: Python<'_>,
        session_id: &[u8],
        sealed: &[u8],
        inner: Vec<String>,
        routed: bool,
    ) -> PyResult<u64> {
        let id = exact(session_id, "session id")?;
        run(py, self, |plane| plane.restore(id, sealed, &inner, routed))
    }

    fn route_inner(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        run(py, self, |plane| plane.route_inner(session))
    }

    fn set_deadline(&self, py: Python<'_>, boot_ns: u64) -> PyResult<()> {
        run(py, self, |plane| plane.set_deadline(boot_ns))
    }

    fn set_draining(&self, py: Python<'_>, draining: bool) -> PyResult<()> {
        run(py, self, |plane| plane.set_draining(draining))
    }

    fn set_ticket_keys(&self, py: Python<'_>, keys: Vec<PyBackedBytes>) -> PyResult<()> {
        let keys = keys.iter().map(|key| exact(key, "ticket key")).collect::<PyResult<Vec<_>>>()?;
        run(py, self, |plane| plane.set_ticket_keys(keys))
    }

    #[pyo3(signature = (session, path, socket, peer, gateway_key = None, standby = false))]
    #[allow(clippy::too_many_arguments)]
    fn set_path(
        &self,
        py: Python<'_>,
        session: u64,
        path: u8,
        socket: u64,
        peer: &str,
        gateway_key: Option<&[u8]>,
        standby: bool,
    ) -> PyResult<()> {
        let peer = address(peer)?;
        let gateway = gateway_key.map(|key| exact(key, "gateway key")).transpose()?;
        let toward = Toward { gateway, is_standby: standby };
        run(py, self, move |plane| plane.set_path(session, path, socket, peer, &toward))
    }

    fn drop_path(&self, py: Python<'_>, session: u64, path: u8) -> PyResult<()> {
        run(py, self, |plane| plane.drop_path(session, path))
    }

    fn set_peer(&self, py: Python<'_>, session: u64, path: u8, peer: &str) -> PyResult<()> {
        let peer = address(peer)?;
        run(py, self, |plane| plane.set_peer(session, path, peer))
    }

    fn activate(&self, py: Python<'_>, session: u64, path: u8) -> PyResult<()> {
        run(py, self, |plane| plane.activate(session, path))
    }

    fn deactivate(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        run(py, self, |plane| plane.deactivate(session))
    }

    #[allow(clippy::too_many_arguments)]
    fn set_liveness(
        &self,
        py: Python<'_>,
        session: u64,
        path: u8,
        probe_busy_ns: u64,
        probe_idle_ns: u64,
        silence_busy_ns: u64,
        silence_idle_ns: u64,
        dead_factor: f64,
        loss_window_ns: u64,
    ) -> PyResult<()> {
        if !(1.0..=1000.0).contains(&dead_factor) {
            return Err(PyValueError::new_err("dead_factor is between 1 and 1000"));
        }
        let dead_milli = (dead_factor * 1000.0) as u64;
        let limits =
            Limits { probe_busy_ns, probe_idle_ns, silence_busy_ns, silence_idle_ns, dead_milli, loss_window_ns };
        run(py, self, |plane| plane.set_liveness(session, path, limits))
    }

    fn probe_now(&self, py: Python<'_>, session: u64, path: u8) -> PyResult<()> {
        run(py, self, |plane| plane.probe_now(session, path))
    }

    #[pyo3(name = "challenge")]
    fn challenge(&self, py: Python<'_>, session: u64, path: u8, peer: &str) -> PyResult<()> {
        let peer = address(peer)?;
        run(py, self, |plane| plane.challenge(session, path, peer))
    }

    fn path_stats<'py>(&self, py: Python<'py>, session: u64) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let all = run(py, self, |plane| plane.path_stats(session))?;
        let to_dict = |stats: &jumpvpn_dataplane::stats::PathStats| {
            let dict = PyDict::new(py);
            dict.set_item("path", stats.path)?;
            dict.set_item("peer", stats.peer.to_string())?;
            dict.set_item("srtt_ns", stats.srtt_ns)?;
            dict.set_item("rttvar_ns", stats.rttvar_ns)?;
            dict.set_item("min_rtt_ns", stats.min_rtt_ns)?;
            dict.set_item("loss_up_ppm", stats.loss_up_ppm)?;
            dict.set_item("loss_down_ppm", stats.loss_down_ppm)?;
            dict.set_item("last_heard_ns", stats.last_heard_ns)?;
            dict.set_item("owed_ns", stats.owed_ns)?;
            dict.set_item("silent", stats.silent)?;
            dict.set_item("sent_packets", stats.sent_packets)?;
            dict.set_item("sent_bytes", stats.sent_bytes)?;
            dict.set_item("received_packets", stats.received_packets)?;
            dict.set_item("received_bytes", stats.received_bytes)?;
            Ok(dict)
        };
        all.iter().map(to_dict).collect()
    }

    fn session_stats<'py>(&self, py: Python<'py>, session: u64) -> PyResult<Bound<'py, PyDict>> {
        let stats = run(py, self, |plane| plane.session_stats(session))?;
        let dict = PyDict::new(py);
        dict.set_item("epoch", stats.epoch)?;
        dict.set_item("active", stats.active)?;
        dict.set_item("sending", stats.sending)?;
        dict.set_item("tx_packets", stats.tx_packets)?;
        dict.set_item("tx_bytes", stats.tx_bytes)?;
        dict.set_item("rx_packets", stats.rx_packets)?;
        dict.set_item("rx_bytes", stats.rx_bytes)?;
        dict.set_item("queued", stats.queued)?;
        dict.set_item("shed", stats.shed)?;
        dict.set_item("resent", stats.resent)?;
        dict.set_item("duplicates", stats.duplicates)?;
        dict.set_item("replay_rejected", stats.replay_rejected)?;
        dict.set_item("wants_rekey", stats.wants_rekey)?;
        Ok(dict)
    }

    #[pyo3(signature = (session, *, path, next_epoch, expected_version, age_ms, cause, token, zero_rtt = false,
                        leaving = false))]
    #[allow(clippy::too_many_arguments)]
    fn begin_reattach(
        &self,
        py: Python<'_>,
        session: u64,
        path: u8,
        next_epoch: u64,
        expected_version: u64,
        age_ms: u64,
        cause: u8,
        token: Vec<u8>,
        zero_rtt: bool,
        leaving: bool,
    ) -> PyResult<String> {
        let path = path_index(path)?;
        let wish = Wish { path, next_epoch, expected_version, age_ms, cause, token, zero_rtt, leaving };
        let nonce = run(py, self, |plane| plane.begin_reattach(session, &wish))?;
        Ok(nonce.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn resend_reattach(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        run(py, self, |plane| plane.resend_reattach(session))
    }

    fn abandon_reattach(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        run(py, self, |plane| plane.abandon_reattach(session))
    }

    #[pyo3(signature = (session, handover = "same"))]
    fn finish_reattach(&self, py: Python<'_>, session: u64, handover: &str) -> PyResult<()> {
        let handover = match handover {
            "same" => Handover::Same,
            "lost" => Handover::Lost,
            "drained" => Handover::Drained,
            _ => return Err(PyValueError::new_err("handover is \"same\", \"lost\" or \"drained\"")),
        };
        run(py, self, |plane| plane.finish_reattach(session, handover))
    }

    fn retry_reattach(&self, py: Python<'_>, request: u64) -> PyResult<()> {
        run(py, self, |plane| plane.retry_reattach(request))
    }

    fn prepare_reattach<'py>(&self, py: Python<'py>, request: u64) -> PyResult<Bound<'py, PyBytes>> {
        sealed(py, self, |plane| plane.prepare_reattach(request))
    }

    fn commit_reattach(&self, py: Python<'_>, request: u64, version: u64) -> PyResult<()> {
        run(py, self, |plane| plane.commit_reattach(request, version))
    }

    fn challenge_reattach(&self, py: Python<'_>, request: u64) -> PyResult<()> {
        run(py, self, |plane| plane.challenge_reattach(request))
    }

    fn deny_reattach(&self, py: Python<'_>, request: u64, reason: u16, version: u64) -> PyResult<()> {
        run(py, self, |plane| plane.deny_reattach(request, reason, version))
    }

    fn drop_reattach(&self, py: Python<'_>, request: u64) -> PyResult<()> {
        run(py, self, |plane| plane.drop_reattach(request))
    }

    fn begin_rekey(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        run(py, self, |plane| plane.begin_rekey(session))
    }

    fn prepare_rekey<'py>(&self, py: Python<'py>, request: u64) -> PyResult<Bound<'py, PyBytes>> {
        sealed(py, self, |plane| plane.prepare_rekey(request))
    }

    fn commit_rekey(&self, py: Python<'_>, request: u64) -> PyResult<()> {
        run(py, self, |plane| plane.commit_rekey(request))
    }

    fn finish_rekey(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        run(py, self, |plane| plane.finish_rekey(session))
    }

    #[pyo3(signature = (session, kind, payload, path = None))]
    fn send_control(&self, py: Python<'_>, session: u64, kind: u8, payload: &[u8], path: Option<u8>) -> PyResult<()> {
        run(py, self, |plane| plane.send_control(session, kind, payload, path))
    }

    fn close_session(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        run(py, self, |plane| plane.close_session(session))
    }

    fn __repr__(&self) -> String {
        format!("<Plane tun={:?}>", self.inner.tun_name())
    }
}
