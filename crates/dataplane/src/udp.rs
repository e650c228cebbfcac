//! UDP sockets with segmentation and receive offload, bound to an interface, marked, and with their errors readable.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Type};

use crate::sys;

/// One send with segmentation carries at most this (65,535 less the longest network and UDP headers).
pub const MAX_TRAIN: usize = 65_000;
/// Kernel buffers per socket: 20 ms at 3 Gbit/s.
const SOCKET_BUFFER: usize = 8 << 20;
/// A full socket buffer drains in less, or the link is down and its error follows.
const BLOCKED_WAIT_MS: i32 = 5;
/// The same error of a socket is told at most this often.
const ERROR_INTERVAL_NS: u64 = 100_000_000;
/// Errors that the kernel keeps from an earlier datagram (ICMP) and hands to the next call.
const PENDING_ERRORS: [i32; 4] = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EMSGSIZE];

/// Where a datagram goes and which of our addresses it leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Our address, when the socket is bound to a wildcard and the peer spoke to this one.
    pub source: Option<IpAddr>,
}

/// A bound, unconnected, non-blocking socket.
#[derive(Debug)]
pub struct Socket {
    /// Handle that the control plane knows.
    pub id: u64,
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    told: Mutex<(i32, u64)>,
    sent: AtomicU64,
}

impl Socket {
    /// Opens and binds a socket; `interface` binds it to a device, `mark` (not 0) sets its firewall mark.
    pub fn open(id: u64, bind: SocketAddr, interface: Option<&str>, mark: u32) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
        if let Some(name) = interface {
            socket.bind_device(Some(name.as_bytes()))?;
        }
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        if bind.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&bind.into())?;
        let socket = UdpSocket::from(socket);
        sys::set_socket_buffer(socket.as_fd(), true, SOCKET_BUFFER);
        sys::set_socket_buffer(socket.as_fd(), false, SOCKET_BUFFER);
        let state = UdpSocketState::new((&socket).into())?;
        state.enable_transport_errors((&socket).into())?;
        let local = socket.local_addr()?;
        Ok(Self { id, socket, state, local, told: Mutex::new((0, 0)), sent: AtomicU64::new(0) })
    }

    /// The bound address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Datagrams the kernel took so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// True when bound to all addresses, so that answers must name the one they leave from.
    pub fn is_wildcard(&self) -> bool {
        self.local.ip().is_unspecified()
    }

    /// Sends `bytes` as datagrams of `stride` bytes (the last may be shorter), at most `MAX_TRAIN` bytes.
    ///
    /// A full buffer is waited for shortly, then reported as `WouldBlock`.
    pub fn send(&self, route: Route, bytes: &[u8], stride: usize) -> io::Result<()> {
        let limit = stride.saturating_mul(self.state.max_gso_segments()).max(stride);
        for part in bytes.chunks(limit) {
            let sent = self.send_part(route, part, stride);
            let refused = matches!(&sent, Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EINVAL)));
            if refused && part.len() > stride {
                // The device takes no segmented sends; quinn-udp has noted it. These go one by one.
                part.chunks(stride).try_for_each(|single| self.send_part(route, single, stride))?;
            } else {
                sent?;
            }
            self.sent.fetch_add(part.len().div_ceil(stride) as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn send_part(&self, route: Route, contents: &[u8], stride: usize) -> io::Result<()> {
        let transmit = Transmit {
            destination: route.peer,
            ecn: None,
            contents,
            segment_size: (contents.len() > stride).then_some(stride),
            src_ip: route.source,
        };
        let attempt = || self.state.try_send((&self.socket).into(), &transmit);
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sys::wait_writable(self.socket.as_fd(), BLOCKED_WAIT_MS);
                attempt()
            }
            // An error that an earlier datagram caused must not cost this one.
            Err(error) if error.raw_os_error().is_some_and(|code| PENDING_ERRORS.contains(&code)) => attempt(),
            other => other,
        }
    }

    /// Receives up to one datagram train per buffer; returns how many buffers were filled.
    pub fn receive(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv((&self.socket).into(), buffers, meta)
    }

    /// Next error number of the socket's error queue (ICMP), if any.
    pub fn next_error(&self) -> Option<i32> {
        let error = self.state.recv_transport_error((&self.socket).into());
        error.ok().flatten().map(|error| error.raw_errno)
    }

    /// True when `errno` should be told now: each error at most ten times a second.
    pub fn should_tell(&self, errno: i32, now_ns: u64) -> bool {
        let mut told = self.told.lock();
        if told.0 == errno && now_ns < told.1 + ERROR_INTERVAL_NS {
            return false;
        }
        *told = (errno, now_ns);
        true
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
