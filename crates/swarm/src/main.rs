//! Many Jumping VPN clients in one process, to load gateways as a population would: births, idle probes, reattaches.
//!
//! The protocol is the real one (`crates/packet`); what carries inner packets is left out, and so is the rekey.

mod base64;
mod client;
mod devices;
mod moves;
mod net;
mod options;
mod recovery;
mod standby;
mod tally;
mod worker;

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use mio::Waker;
use net::Net;
use options::{Options, USAGE};
use tally::Tally;
use worker::{Order, Worker};

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)) {
        Ok(None) => print(USAGE),
        Ok(Some(options)) if options.list_keys => {
            let tables = devices::tables(options.seed, options.first + options.clients, options.pool);
            print(&tables)
        }
        Ok(Some(options)) => match run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error),
        },
        Err(error) => complain(&error),
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(error: &str) -> ExitCode {
    eprintln!("jumpvpn-swarm: {error}");
    ExitCode::from(2)
}

struct Swarm {
    options: Arc<Options>,
    began: Instant,
    orders: Vec<(Sender<Order>, Arc<Waker>)>,
    shown: Vec<Arc<Mutex<Tally>>>,
}

fn run(options: Options) -> Result<(), String> {
    let options = Arc::new(options);
    let began = Instant::now();
    let mut swarm = Swarm { options: Arc::clone(&options), began, orders: Vec::new(), shown: Vec::new() };
    let mut threads = Vec::new();
    for place in 0..options.threads {
        let shown = Arc::new(Mutex::new(Tally::default()));
        let net =
            Net::new(&worker::binds(&options, place)).map_err(|error| format!("cannot open a socket: {error}"))?;
        let worker = Worker::new(Arc::clone(&options), place, began, Arc::clone(&shown));
        let (sender, receiver) = channel();
        swarm.orders.push((sender, net.waker()));
        swarm.shown.push(shown);
        threads.push(thread::spawn(move || worker.run(net, &receiver)));
    }
    let said = swarm.listen(&commands()).and(swarm.tell(Order::End));
    for thread in threads {
        let ended = thread.join().map_err(|_| "a thread failed".to_string())?;
        ended.map_err(|error| format!("a socket failed: {error}"))?;
    }
    said
}

/// The lines of the standard input; the channel closes with it.
fn commands() -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Swarm {
    /// Prints a line a second and does what the commands say, until the end.
    fn listen(&self, commands: &Receiver<String>) -> Result<(), String> {
        let mut line_at = Duration::from_secs(1);
        loop {
            let now = self.began.elapsed();
            if self.options.seconds.is_some_and(|seconds| now >= Duration::from_secs(seconds)) {
                return Ok(());
            }
            if now >= line_at {
                line_at += Duration::from_secs(1);
                self.say(&self.sum().json(now.as_secs_f64(), self.options.gateways.len()))?;
            }
            match commands.recv_timeout(line_at.saturating_sub(self.began.elapsed())) {
                Ok(line) if line.trim() == "quit" => return Ok(()),
                Ok(line) => self.obey(line.trim())?,
                Err(RecvTimeoutError::Timeout) => {}
                // The end of the input ends the run, unless the command line says when.
                Err(RecvTimeoutError::Disconnected) if self.options.seconds.is_none() => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => thread::sleep(line_at.saturating_sub(self.began.elapsed())),
            }
        }
    }

    fn obey(&self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let gateway = rest.trim().parse().ok().filter(|&number: &usize| number < self.options.gateways.len());
        match (word, gateway) {
            ("", _) => Ok(()),
            ("counts", _) => {
                self.say(&self.sum().json(self.began.elapsed().as_secs_f64(), self.options.gateways.len()))
            }
            ("curve", _) => self.say(&format!("{{\"curve_ms\":[{}]}}", self.sum().back.curve())),
            ("lost", Some(gateway)) => self.tell(Order::Lost(gateway)),
            ("move", Some(gateway)) => self.tell(Order::Move(gateway)),
            _ => {
                eprintln!("jumpvpn-swarm: no such command: {line}; see --help");
                Ok(())
            }
        }
    }

    fn tell(&self, order: Order) -> Result<(), String> {
        let told = self.orders.iter().all(|(orders, waker)| orders.send(order).is_ok() && waker.wake().is_ok());
        told.then_some(()).ok_or_else(|| "a thread ended early".into())
    }

    fn sum(&self) -> Tally {
        let mut sum = Tally::default();
        self.shown.iter().for_each(|shown| sum.merge(&shown.lock().expect("no thread panics with it")));
        sum
    }

    fn say(&self, line: &str) -> Result<(), String> {
        writeln!(std::io::stdout(), "{line}").map_err(|error| format!("cannot write: {error}"))
    }
}
