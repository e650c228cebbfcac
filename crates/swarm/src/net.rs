//! Sockets of one thread: waits without polling, receives and sends in trains (recvmmsg, UDP segmentation offload).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState, BATCH_SIZE};

/// Longest train that the kernel coalesces.
const LARGEST: usize = 65_535;
/// One send with segmentation carries at most this (65,535 less the longest network and UDP headers).
const MAX_TRAIN: usize = 65_000;
/// Asked for; the system may grant less. A storm's answers come while the thread seals requests.
const RECEIVE_BUFFER: usize = 4 << 20;
const WAKER: Token = Token(usize::MAX);

/// Datagrams of one size to one address, one after the other.
struct Train {
    to: SocketAddr,
    stride: usize,
    bytes: Vec<u8>,
}

struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    trains: Vec<Train>,
}

/// All sockets of a thread.
pub struct Net {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    sockets: Vec<Socket>,
    /// Sockets that may have more to read: readiness is told once.
    ready: VecDeque<usize>,
    buffers: Vec<Vec<u8>>,
    /// Datagrams sent.
    pub sent: u64,
}

impl Net {
    /// One socket for each address.
    pub fn new(binds: &[IpAddr]) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut sockets = Vec::with_capacity(binds.len());
        for (number, &bind) in binds.iter().enumerate() {
            let socket = UdpSocket::bind((bind, 0))?;
            let state = UdpSocketState::new((&socket).into())?;
            // Less than asked for loses datagrams under load; repetition is what clients have against that.
            let _ = state.set_recv_buffer_size((&socket).into(), RECEIVE_BUFFER);
            poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), Token(number), Interest::READABLE)?;
            sockets.push(Socket { socket, state, trains: Vec::new() });
        }
        let buffers = (0..BATCH_SIZE).map(|_| vec![0; LARGEST]).collect();
        Ok(Self { poll, events: Events::with_capacity(64), waker, sockets, ready: VecDeque::new(), buffers, sent: 0 })
    }

    /// Ends a wait from another thread.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Waits until something can be read, somebody woke the thread, or the time is over.
    pub fn wait(&mut self, longest: Duration) -> io::Result<()> {
        let longest = if self.ready.is_empty() { longest } else { Duration::ZERO };
        match self.poll.poll(&mut self.events, Some(longest)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &self.events {
            let Token(number) = event.token();
            if event.token() != WAKER && !self.ready.contains(&number) {
                self.ready.push_back(number);
            }
        }
        Ok(())
    }

    /// Gives every datagram of one batch of each ready socket to `take`.
    pub fn receive(&mut self, mut take: impl FnMut(&mut [u8], &mut Outbox<'_>)) -> io::Result<()> {
        for _ in 0..self.ready.len() {
            let Some(number) = self.ready.pop_front() else { break };
            let mut meta = [RecvMeta::default(); BATCH_SIZE];
            let mut slices: Vec<IoSliceMut<'_>> = self.buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
            let socket = &self.sockets[number];
            match socket.state.recv((&socket.socket).into(), &mut slices, &mut meta) {
                Ok(count) => {
                    self.ready.push_back(number);
                    let mut outbox = Outbox { sockets: &mut self.sockets, sent: &mut self.sent };
                    for (buffer, meta) in self.buffers.iter_mut().zip(meta).take(count) {
                        let stride = meta.stride.max(1);
                        buffer[..meta.len].chunks_mut(stride).for_each(|datagram| take(datagram, &mut outbox));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // A gateway that is gone is told of by ICMP: its clients find out by themselves.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => {
                    self.ready.push_back(number);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Where datagrams go.
    pub fn outbox(&mut self) -> Outbox<'_> {
        Outbox { sockets: &mut self.sockets, sent: &mut self.sent }
    }
}

/// Collects what is to be sent.
pub struct Outbox<'a> {
    sockets: &'a mut Vec<Socket>,
    sent: &'a mut u64,
}

impl Outbox<'_> {
    /// Sends `datagram` from a socket, at the latest with the next `flush`.
    pub fn push(&mut self, socket: usize, to: SocketAddr, datagram: &[u8]) {
        let Socket { socket, state, trains } = &mut self.sockets[socket];
        let stride = datagram.len();
        let at = trains.iter().position(|train| train.to == to && train.stride == stride).unwrap_or_else(|| {
            trains.push(Train { to, stride, bytes: Vec::new() });
            trains.len() - 1
        });
        let train = &mut trains[at];
        train.bytes.extend_from_slice(datagram);
        let segments = train.bytes.len() / stride + 1;
        if segments > state.max_gso_segments() || segments * stride > MAX_TRAIN {
            *self.sent += train.leave(socket, state);
        }
    }

    /// Sends what was collected.
    pub fn flush(&mut self) {
        for Socket { socket, state, trains } in self.sockets.iter_mut() {
            for train in trains.iter_mut().filter(|train| !train.bytes.is_empty()) {
                *self.sent += train.leave(socket, state);
            }
        }
    }
}

impl Train {
    /// Sends and empties it; how many datagrams left. A full queue or a gateway that is gone: the repetition is what a
    /// client has against both.
    fn leave(&mut self, socket: &UdpSocket, state: &UdpSocketState) -> u64 {
        let Self { to, stride, bytes } = self;
        let send = |contents: &[u8]| {
            let segment_size = (contents.len() > *stride).then_some(*stride);
            let transmit = Transmit { destination: *to, ecn: None, contents, segment_size, src_ip: None };
            state.try_send(socket.into(), &transmit).is_ok()
        };
        let count = bytes.len() / *stride;
        let sent = if send(bytes) {
            count
        } else if count > 1 {
            // An error of an earlier datagram was told, or the device takes no trains.
            bytes.chunks(*stride).filter(|single| send(single)).count()
        } else {
            0
        };
        bytes.clear();
        sent as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn net() -> (Net, SocketAddr) {
        let net = Net::new(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).unwrap();
        let address = net.sockets[0].socket.local_addr().unwrap();
        (net, address)
    }

    #[test]
    fn what_is_pushed_comes_whole_and_each_datagram_by_itself() {
        let (mut here, from) = net();
        let (mut there, to) = net();
        for number in 0..200_u8 {
            here.outbox().push(0, to, &[number; 237]);
            if number % 2 == 0 {
                here.outbox().push(0, to, &[number; 157]);
            }
        }
        here.outbox().flush();
        assert_eq!(here.sent, 300);
        let mut sizes = [0; 2];
        while sizes[0] + sizes[1] < 300 {
            there.wait(Duration::from_secs(10)).unwrap();
            assert!(!there.ready.is_empty(), "datagrams were lost: {sizes:?}");
            there
                .receive(|datagram, outbox| {
                    assert!(datagram.iter().all(|&byte| byte == datagram[0]));
                    sizes[usize::from(datagram.len() == 157)] += 1;
                    outbox.push(0, from, b"heard");
                })
                .unwrap();
            there.outbox().flush();
        }
        assert_eq!((sizes, there.sent), ([200, 100], 300));
    }

    #[test]
    fn a_wait_ends_when_another_thread_says_so() {
        let (mut net, _) = net();
        let waker = net.waker();
        let woken = std::thread::spawn(move || waker.wake());
        net.wait(Duration::from_secs(60)).unwrap();
        woken.join().unwrap().unwrap();
        assert!(net.ready.is_empty());
    }
}
