//! The command line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use jumpvpn_packet::keys::PublicKey;

use crate::base64;

/// What `--help` says.
pub const USAGE: &str = "\
usage: jumpvpn-swarm --gateway ADDRESS:PORT=PUBLIC_KEY [--gateway ...] [options]
       jumpvpn-swarm --list-keys [--clients N] [--seed S] [--pool NETWORK]

Many clients in one process: births, idle probes, reattaches. Prints one JSON object a second.

  --gateway A:P=KEY   a gateway and its public key (base64)
  --spread            client N begins at gateway N modulo their number; otherwise all begin at the first
  --clients N         how many (default 100, at most 65533)
  --first N           number of the first device (default 0)
  --seed S            makes the devices' keys (default 1)
  --births N          births begun per second (default 500)
  --flights N         births under way at once (default 512)
  --threads N         threads, each with its share of the sockets (default 1)
  --sockets N         UDP sockets, each with its share of the clients (default 16)
  --bind ADDRESS      source address of the sockets in turn; may be repeated (default: the system's choice)
  --standbys N        other gateways that each client keeps a proved way to, and may move to (default 2)
  --probe MS          interval of probes, of standbys too, while attached (default 5000)
  --probe-busy MS     interval of probes while no gateway holds the client (default 200)
  --repeat MS         an unanswered request is sent again then; twice as long each time, up to 8 times (default 100)
  --attempt MS        an unanswered request is given up after so long, and another one made (default 2000)
  --notice MS         after 'lost', clients notice within this time, evenly (default 0: at once)
  --silence MS        unanswered for so long, a gateway is lost (default three probe intervals)
  --seconds N         end after so long (default: at 'quit' or the end of the input)
  --list-keys         print the [[device]] tables for a gateway's file
  --pool NETWORK      first address of the devices' pool, for --list-keys (default 10.64.0.0)

Commands, one a line on the standard input:
  counts              print the line of this second at once
  lost N              gateway N (0 is the first) died: its clients notice, and move to another one
  move N              every client reattaches at gateway N at once
  curve               print when each client of the last loss came back (ms)
  quit                end
";

/// Each gateway has its own path index, and there are eight.
pub const MAX_GATEWAYS: usize = 8;

/// A gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its static key.
    pub key: PublicKey,
}

/// Everything the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The gateways in order.
    pub gateways: Vec<Gateway>,
    /// Number of clients.
    pub clients: u32,
    /// Number of the first device.
    pub first: u32,
    /// Seed of the keys.
    pub seed: u64,
    /// Births per second.
    pub births: u32,
    /// Births under way at once.
    pub flights: usize,
    /// Clients begin at all gateways in turn.
    pub is_spread: bool,
    /// Threads.
    pub threads: usize,
    /// Sockets of all threads.
    pub sockets: usize,
    /// Gateways that are kept proved beside the one that holds the session.
    pub standbys: usize,
    /// Source addresses.
    pub binds: Vec<IpAddr>,
    /// Probe interval while attached, ms.
    pub probe_ms: u64,
    /// Probe interval while no gateway holds the client, ms.
    pub busy_ms: u64,
    /// Interval of repetitions of a request, ms.
    pub repeat_ms: u64,
    /// How long a request is waited for, ms.
    pub attempt_ms: u64,
    /// The death of a gateway is noticed within this time, ms.
    pub notice_ms: u64,
    /// Silence limit, ms; 0 stands for three probe intervals.
    pub silence_ms: u64,
    /// End after so many seconds.
    pub seconds: Option<u64>,
    /// Only print the devices.
    pub list_keys: bool,
    /// First address of the devices' pool.
    pub pool: Ipv4Addr,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            gateways: Vec::new(),
            clients: 100,
            first: 0,
            seed: 1,
            births: 500,
            flights: 512,
            is_spread: false,
            threads: 1,
            sockets: 16,
            standbys: 2,
            binds: Vec::new(),
            probe_ms: 5000,
            busy_ms: 200,
            repeat_ms: 100,
            attempt_ms: 2000,
            notice_ms: 0,
            silence_ms: 0,
            seconds: None,
            list_keys: false,
            pool: Ipv4Addr::new(10, 64, 0, 0),
        }
    }
}

impl Options {
    /// Reads the arguments after the program's name; `Ok(None)` asks for the usage.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self::default();
        while let Some(name) = arguments.next() {
            match name.as_str() {
                "--help" | "-h" => return Ok(None),
                "--list-keys" => options.list_keys = true,
                "--spread" => options.is_spread = true,
                _ => {
                    let value = arguments.next().ok_or_else(|| format!("{name} needs a value; see --help"))?;
                    options.set(&name, &value)?;
                }
            }
        }
        options.checked().map(Some)
    }

    /// Where client `number` begins.
    pub fn home(&self, number: u32) -> usize {
        if self.is_spread {
            number as usize % self.gateways.len()
        } else {
            0
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "--gateway" => self.gateways.push(gateway(value)?),
            "--clients" => self.clients = number(name, value, 1, 65_533)? as u32,
            "--first" => self.first = number(name, value, 0, 65_532)? as u32,
            "--seed" => self.seed = number(name, value, 0, u64::MAX)?,
            "--births" => self.births = number(name, value, 1, 100_000)? as u32,
            "--flights" => self.flights = number(name, value, 1, 65_536)? as usize,
            "--threads" => self.threads = number(name, value, 1, 64)? as usize,
            "--sockets" => self.sockets = number(name, value, 1, 256)? as usize,
            "--standbys" => self.standbys = number(name, value, 0, 7)? as usize,
            "--bind" => self.binds.push(value.parse().map_err(|_| format!("{name}: {value} is no IP address"))?),
            "--probe" => self.probe_ms = number(name, value, 10, 3_600_000)?,
            "--probe-busy" => self.busy_ms = number(name, value, 10, 3_600_000)?,
            "--repeat" => self.repeat_ms = number(name, value, 10, 60_000)?,
            "--attempt" => self.attempt_ms = number(name, value, 50, 60_000)?,
            "--notice" => self.notice_ms = number(name, value, 0, 600_000)?,
            "--silence" => self.silence_ms = number(name, value, 10, 3_600_000)?,
            "--seconds" => self.seconds = Some(number(name, value, 1, 1_000_000)?),
            "--pool" => {
                let network = value.split('/').next().unwrap_or(value);
                self.pool = network.parse().map_err(|_| format!("{name}: {value} is no IPv4 network"))?;
            }
            _ => return Err(format!("{name} is no option; see --help")),
        }
        Ok(())
    }

    fn checked(mut self) -> Result<Self, String> {
        if self.first + self.clients > 65_533 {
            return Err("--first and --clients go beyond the 65,533 devices of one pool".into());
        }
        if self.gateways.is_empty() && !self.list_keys {
            return Err("name a gateway: --gateway ADDRESS:PORT=PUBLIC_KEY".into());
        }
        if self.gateways.len() > MAX_GATEWAYS {
            return Err("at most 8 gateways: each has its own path index".into());
        }
        self.sockets = self.sockets.min(self.clients as usize);
        self.threads = self.threads.min(self.sockets);
        if self.silence_ms == 0 {
            self.silence_ms = 3 * self.probe_ms;
        }
        Ok(self)
    }
}

fn gateway(value: &str) -> Result<Gateway, String> {
    let (address, key) = value.split_once('=').ok_or("--gateway is written ADDRESS:PORT=PUBLIC_KEY")?;
    let address = address.parse().map_err(|_| format!("--gateway: {address} is no ADDRESS:PORT"))?;
    let key = base64::decode(key).ok_or("--gateway: the public key is not 32 bytes in base64")?;
    Ok(Gateway { address, key })
}

fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, String> {
    let found = value.parse().ok().filter(|found| (least..=most).contains(found));
    found.ok_or_else(|| format!("{name} is a whole number from {least} to {most}, not {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Options>, String> {
        Options::parse(text.split_whitespace().map(String::from))
    }

    #[test]
    fn a_whole_line() {
        let key = base64::encode(&[9; 32]);
        let line = format!("--gateway 127.0.0.1:51900={key} --clients 10 --births 7 --probe 1000 --bind 127.0.0.2");
        let options = parse(&line).unwrap().unwrap();
        assert_eq!((options.clients, options.births, options.silence_ms), (10, 7, 3000));
        assert_eq!(options.gateways[0].key, [9; 32]);
        assert_eq!(options.binds.len(), 1);
    }

    #[test]
    fn clients_begin_at_the_first_gateway_or_at_all_in_turn() {
        let key = base64::encode(&[9; 32]);
        let line = format!("--gateway 127.0.0.1:1={key} --gateway 127.0.0.1:2={key}");
        let homes = |line: &str| {
            let options = parse(line).unwrap().unwrap();
            (0..4).map(|number| options.home(number)).collect::<Vec<_>>()
        };
        assert_eq!(homes(&line), [0, 0, 0, 0]);
        assert_eq!(homes(&format!("{line} --spread")), [0, 1, 0, 1]);
    }

    #[test]
    fn there_are_no_more_threads_than_sockets_nor_sockets_than_clients() {
        let options = parse("--list-keys --clients 3 --sockets 8 --threads 5").unwrap().unwrap();
        assert_eq!((options.sockets, options.threads), (3, 3));
    }

    #[test]
    fn wrong_lines_say_what_to_write() {
        for (line, said) in [
            ("", "name a gateway"),
            ("--clients", "needs a value"),
            ("--list-keys --clients 0", "from 1 to 65533"),
            ("--list-keys --clients many", "whole number"),
            ("--gateway 127.0.0.1:1", "ADDRESS:PORT=PUBLIC_KEY"),
            ("--gateway nowhere=AAAA", "no ADDRESS:PORT"),
            ("--gateway 127.0.0.1:1=AAAA", "32 bytes in base64"),
            ("--list-keys --first 65000 --clients 1000", "65,533 devices"),
            ("--what 1", "no option"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    #[test]
    fn help_is_no_error() {
        assert_eq!(parse("--help"), Ok(None));
    }
}
