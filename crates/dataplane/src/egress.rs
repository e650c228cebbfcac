//! TUN to UDP: read super-packets, cut them into trains, seal in place, send each train by one call.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::counters::Counter;
use crate::inner;
use crate::session::Session;
use crate::shared::Shared;
use crate::split::{self, VnetHeader, VNET_LEN};
use crate::sys;
use crate::train::Train;
use crate::tun::{Device, READ_LEN};

const DEVICE: Token = Token(0);
const WAKER: Token = Token(1);
/// Packets read before the loop looks at its waker again.
const READS_PER_TURN: usize = 256;

/// State of the egress thread.
#[derive(Debug)]
pub struct Egress {
    shared: Arc<Shared>,
    device: Option<Arc<Device>>,
    poll: Poll,
    buffer: Vec<u8>,
    train: Train,
    owner: Option<Arc<Session>>,
    cache: Option<(IpAddr, u64, Arc<Session>)>,
    ready: bool,
    gone: bool,
}

impl Egress {
    /// Watches the device, if there is one; the waker ends a wait.
    pub fn new(shared: Arc<Shared>) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let device = shared.device();
        if let Some(device) = &device {
            poll.registry().register(&mut SourceFd(&device.as_raw_fd()), DEVICE, Interest::READABLE)?;
        }
        let buffer = vec![0; READ_LEN];
        let train = Train::default();
        Ok((Self { shared, device, poll, buffer, train, owner: None, cache: None, ready: true, gone: false }, waker))
    }

    /// Waits for packets if none are known to wait, then moves a bounded number of them.
    pub fn turn(&mut self) -> io::Result<()> {
        if !self.ready {
            let mut events = Events::with_capacity(4);
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => self.ready = events.iter().any(|event| event.token() == DEVICE) && !self.gone,
            }
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let Some(device) = self.device.clone() else {
            self.ready = false;
            return Ok(());
        };
        self.pump(&shared, &device);
        self.flush();
        Ok(())
    }

    fn pump(&mut self, shared: &Shared, device: &Device) {
        for _ in 0..READS_PER_TURN {
            match device.read(&mut self.buffer) {
                Ok(0) => {
                    (self.ready, self.gone) = (false, true);
                    return;
                }
                Ok(length) => {
                    shared.counters.add(Counter::TunReads, 1);
                    self.take(device.vnet(), length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // WouldBlock: drained. Anything else (interface down) is over when the device is readable again.
                    self.ready = false;
                    return;
                }
            }
        }
    }

    /// Cuts one read of `length` bytes and adds its packets to the train.
    fn take(&mut self, vnet: bool, length: usize) {
        let (header, start) = match self.buffer.first_chunk::<VNET_LEN>() {
            Some(bytes) if vnet => (VnetHeader::parse(bytes), VNET_LEN),
            _ => (VnetHeader::default(), 0),
        };
        if length <= start {
            return;
        }
        let buffer = std::mem::take(&mut self.buffer);
        self.take_packet(header, &buffer[start..length]);
        self.buffer = buffer;
    }

    fn take_packet(&mut self, header: VnetHeader, packet: &[u8]) {
        let Some(session) = self.owner_of(packet) else {
            self.shared.counters.add(Counter::InnerUnroutable, 1);
            return;
        };
        let Some(plan) = split::plan(header, packet) else {
            self.shared.counters.add(Counter::InnerMalformed, 1);
            return;
        };
        if plan.len(0) > Train::MAX_PACKET {
            self.shared.counters.add(Counter::InnerOversized, 1);
            return;
        }
        if !self.owner.as_ref().is_some_and(|owner| Arc::ptr_eq(owner, &session)) {
            self.flush();
            self.owner = Some(session);
        }
        for index in 0..plan.count() {
            let length = plan.len(index);
            if !self.train.fits(length) {
                self.flush_train();
            }
            plan.write(index, packet, self.train.add(length));
        }
    }

    fn owner_of(&mut self, packet: &[u8]) -> Option<Arc<Session>> {
        let destination = inner::destination(packet)?;
        let generation = self.shared.inner_generation.load(Ordering::Acquire);
        if let Some((address, at, session)) = &self.cache {
            if *address == destination && *at == generation {
                return Some(Arc::clone(session));
            }
        }
        let session = self.shared.inner.read().owner(destination).cloned()?;
        self.cache = Some((destination, generation, Arc::clone(&session)));
        Some(session)
    }

    fn flush(&mut self) {
        self.flush_train();
        self.owner = None;
    }

    fn flush_train(&mut self) {
        if self.train.count() == 0 {
            return;
        }
        if let Some(session) = &self.owner {
            let now_ns = sys::boottime_ns();
            let (outgoing, wake_ns) = {
                let mut tx = session.tx.lock();
                (tx.seal_train(&self.shared, &mut self.train, now_ns), tx.wake_ns(now_ns))
            };
            if let Some(to) = outgoing {
                let (bytes, stride) = (self.train.bytes(), self.train.stride());
                self.shared.transmit(&to.socket, to.route, bytes, stride, session.handle, to.path.get());
            }
            session.look_by(&self.shared, wake_ns);
        }
        self.train.clear();
    }
}
