//! The only unsafe code of this crate: system calls that neither std nor the socket crates offer.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Receive checksummed packets without their checksum (`TUN_F_CSUM`), TSO for both families, and ECN with TSO.
const OFFLOAD_TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP segmentation offload, Linux 6.2 and later.
const OFFLOAD_UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Boot time (includes suspend) in nanoseconds.
pub fn boottime_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid, writable timespec for the whole call.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    debug_assert_eq!(rc, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A non-blocking, close-on-exec eventfd that starts at zero.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; a non-negative result is a descriptor that nobody else owns.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by the kernel, is open, and is owned by this function alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates a TUN interface with virtio headers and the largest offload set the kernel takes.
///
/// Returns the device and the name the kernel gave it. `name` may hold a `%d` pattern; it has at most 15 bytes.
pub fn open_tun(name: &str) -> io::Result<(File, String)> {
    if name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name has more than 15 bytes"));
    }
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data; all bytes zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    let offload = |flags: libc::c_uint| unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
    if offload(OFFLOAD_TCP | OFFLOAD_UDP) < 0 && offload(OFFLOAD_TCP) < 0 {
        return Err(io::Error::last_os_error());
    }
    let given = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    let given = String::from_utf8(given).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((file, given))
}

/// Index of the interface called `name` in the caller's network namespace.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(index)
}

/// Sets a socket buffer beyond the system limit where the caller may (CAP_NET_ADMIN), else up to the limit.
///
/// `send` chooses the send buffer, else the receive buffer; `bytes` is what a super-packet train needs.
pub fn set_socket_buffer(fd: BorrowedFd<'_>, send: bool, bytes: usize) {
    let (forced, plain) =
        if send { (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF) } else { (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF) };
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for option in [forced, plain] {
        // SAFETY: the option value is one c_int that outlives the call, and its size is passed.
        let rc = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if rc == 0 {
            return;
        }
    }
}

/// Waits until `fd` takes data again, at most `timeout_ms`; true when it does.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd is passed with count one and outlives the call.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) > 0 }
}

/// Makes `fd` (handed in by the caller of the library) our own, non-blocking device.
pub fn adopt_device(fd: i32) -> io::Result<File> {
    // SAFETY: F_DUPFD_CLOEXEC takes no pointer; the result, when not negative, is a new descriptor of our own.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `own` was just made by the kernel and has no other owner.
    let file = unsafe { File::from_raw_fd(own) };
    // SAFETY: F_GETFL and F_SETFL take no pointers; `file` is open.
    let rc = unsafe {
        let flags = libc::fcntl(own, libc::F_GETFL);
        libc::fcntl(own, libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Wall clock in milliseconds since 1970; 0 before it is set.
pub fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Sets the MTU of the interface `name`, in bytes.
pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    // SAFETY: ifreq is plain data; all bytes zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *target = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFMTU reads one ifreq, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
