//! Named counters of everything the packet path drops or refuses, and of its traffic.

use std::sync::atomic::{AtomicU64, Ordering};

use jumpvpn_packet::DropReason;

macro_rules! counters {
    ($($variant:ident = $name:literal, $meaning:literal;)+) => {
        /// What the packet path counts beside the reasons of `DropReason`. Names are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $(#[doc = $meaning] $variant,)+
        }

        impl Counter {
            /// Every counter, in declaration order.
            pub const ALL: &'static [(Counter, &'static str)] = &[$((Counter::$variant, $name),)+];
        }
    };
}

counters! {
    InnerSource = "inner_source", "Opened packet whose inner source does not belong to its session.";
    InnerUnroutable = "inner_unroutable", "Packet from the TUN that no session owns, or that is no IP packet.";
    InnerOversized = "inner_oversized", "Packet from the TUN that is longer than a datagram may be.";
    InnerMalformed = "inner_malformed", "Packet from the TUN whose virtio header does not fit.";
    Shed = "shed", "Packet that left a full queue while no binding lived.";
    HeldOverflow = "held_overflow", "Next-epoch datagram beyond the bound while a reattach was undecided.";
    NotBound = "not_bound", "Data for a session that may not receive before a reattach.";
    Fenced = "fenced", "Packet or datagram that the deadline kept from being sealed, sent, opened or delivered.";
    RateLimited = "rate_limited", "Datagram of a source that sent too many requests.";
    PendingFull = "pending_full", "Request that met a full table of undecided ones.";
    DuplicateRequest = "duplicate_request", "Request that is already waiting for its decision.";
    UnknownSession = "unknown_session", "Reattach whose ticket is right and whose session is not here.";
    UnexpectedKind = "unexpected_kind", "Datagram of a kind that this role does not take.";
    UnsolicitedReport = "unsolicited_report", "Report whose challenge is not outstanding.";
    UnsolicitedReply = "unsolicited_reply", "Reply or hint that nothing under way asked for.";
    CidCollision = "cid_collision", "Next epoch whose connection IDs belong to another session.";
    CookieSent = "cookie_sent", "Cookie demanded under load.";
    StandbyAnswered = "standby_answered", "Standby probe of a session elsewhere that was answered.";
    HintSent = "hint_sent", "Hint sent because no binding is there to answer under.";
    ReplyRepeated = "reply_repeated", "Reply sent again for a repeated request.";
    SendBlocked = "send_blocked", "Datagram given up because the socket stayed full.";
    SendError = "send_error", "Datagram that the kernel refused.";
    ReceiveError = "receive_error", "Error that a receive call reported.";
    TunWriteError = "tun_write_error", "Packet that the TUN refused.";
    FactsLost = "facts_lost", "Fact that met a full ring.";
    Panics = "panics", "Defect that was caught in a packet thread.";
    KeyExhausted = "key_exhausted", "Packet not sealed because its key reached a limit.";
    ReceivedDatagrams = "received_datagrams", "Datagrams from all sockets.";
    SentDatagrams = "sent_datagrams", "Datagrams to all sockets.";
    TunReads = "tun_reads", "Super-packets and packets read from the TUN.";
    TunWrites = "tun_writes", "Super-packets and packets written to the TUN.";
}

/// One atomic per name; increments are relaxed, reads are a snapshot without a common instant.
#[derive(Debug)]
pub struct Counters {
    own: Vec<AtomicU64>,
    drops: Vec<AtomicU64>,
}

impl Default for Counters {
    fn default() -> Self {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { own: zeros(Counter::ALL.len()), drops: zeros(DropReason::ALL.len()) }
    }
}

impl Counters {
    /// Adds `amount` to `counter`.
    pub fn add(&self, counter: Counter, amount: u64) {
        self.own[counter as usize].fetch_add(amount, Ordering::Relaxed);
    }

    /// Counts one datagram dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Present value of `counter`.
    pub fn get(&self, counter: Counter) -> u64 {
        self.own[counter as usize].load(Ordering::Relaxed)
    }

    /// All names and values; drop reasons first.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let drops = DropReason::ALL.iter().map(|reason| (reason.as_str(), &self.drops[*reason as usize]));
        let own = Counter::ALL.iter().map(|(counter, name)| (*name, &self.own[*counter as usize]));
        drops.chain(own).map(|(name, value)| (name, value.load(Ordering::Relaxed))).collect()
    }
}
