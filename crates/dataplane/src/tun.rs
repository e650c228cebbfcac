//! The device that inner packets come from and go to: a TUN interface, or a packet socket handed in for tests.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use crate::split::VNET_LEN;
use crate::sys;

/// Largest read: virtio header and one super-packet.
pub const READ_LEN: usize = VNET_LEN + 65535;

/// An inner-packet device. Reads and writes are whole packets and never block.
#[derive(Debug)]
pub struct Device {
    file: File,
    name: String,
    index: u32,
    vnet: bool,
}

impl Device {
    /// Creates the TUN interface `name` (not up) with offload.
    ///
    /// Errors tell what was tried; the caller needs CAP_NET_ADMIN.
    pub fn tun(name: &str) -> io::Result<Self> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("TUN interface {name:?}: {error}"));
        let (file, name) = sys::open_tun(name).map_err(explain)?;
        let index = sys::interface_index(&name).map_err(explain)?;
        Ok(Self { file, name, index, vnet: true })
    }

    /// Uses a copy of the packet socket `fd` (SOCK_SEQPACKET or SOCK_DGRAM), which carries bare IP packets.
    pub fn adopt(fd: RawFd) -> io::Result<Self> {
        Ok(Self { file: sys::adopt_device(fd)?, name: String::new(), index: 0, vnet: false })
    }

    /// Interface name; empty for an adopted socket.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Interface index; 0 for an adopted socket.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// True when packets carry a virtio header.
    pub fn vnet(&self) -> bool {
        self.vnet
    }

    /// Reads one packet into `buffer`; an empty read means that the other end of an adopted socket is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet from its parts.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(parts)
    }

    /// Writes one packet as it is, without segmentation.
    pub fn write_plain(&self, packet: &[u8]) -> io::Result<usize> {
        if self.vnet {
            self.write(&[IoSlice::new(&[0; VNET_LEN]), IoSlice::new(packet)])
        } else {
            self.write(&[IoSlice::new(packet)])
        }
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
