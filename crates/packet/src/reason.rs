//! Why a datagram was dropped: one closed list, whose names are counter names.

use std::fmt;

macro_rules! drop_reasons {
    ($($variant:ident = $name:literal, $meaning:literal;)+) => {
        /// Why bytes from the network were dropped. Names are stable: adding is allowed, renaming never.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason {
            $(#[doc = $meaning] $variant,)+
        }

        impl DropReason {
            /// Every reason, in declaration order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The stable snake_case name, used as the counter's name.
            pub const fn as_str(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// One sentence for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(DropReason::$variant => $meaning,)+ }
            }
        }
    };
}

drop_reasons! {
    Truncated = "truncated", "Shorter than its kind demands.";
    Oversized = "oversized", "Longer than its kind allows.";
    UnknownKind = "unknown_kind", "The first nibble names no kind of version 1.";
    Malformed = "malformed", "A field holds a value that the format does not allow.";
    BadMac1 = "bad_mac1", "The sender does not know the receiver's public key.";
    BadMac2 = "bad_mac2", "A cookie is demanded and this one is missing or wrong.";
    BadFragment = "bad_fragment", "A handshake fragment contradicts the others of its message.";
    UnsupportedVersion = "unsupported_version", "The handshake names a protocol version that is not spoken here.";
    BadHandshake = "bad_handshake", "The handshake message does not authenticate.";
    UnknownHandshake = "unknown_handshake", "The handshake identifier names none that is under way.";
    UnknownCid = "unknown_cid", "No open epoch has this connection identifier.";
    WrongEpoch = "wrong_epoch", "The epoch named is not the one that the keys belong to.";
    ReplayOld = "replay_old", "The counter is below the replay window.";
    ReplayRepeated = "replay_repeated", "The counter was received before.";
    CounterLimit = "counter_limit", "The counter is beyond the limit of an epoch.";
    BadTag = "bad_tag", "The bytes do not authenticate under the key.";
    IntegrityLimit = "integrity_limit", "The key has met too many forgeries to be trusted further.";
    UnknownFrame = "unknown_frame", "The plaintext is neither an IP packet nor a frame of version 1.";
    BadPadding = "bad_padding", "Padding is not zero or not to the prescribed size.";
    BadTicket = "bad_ticket", "The ticket was not made under one of the cluster's ticket keys.";
    BadToken = "bad_token", "The return token does not belong to this address and session.";
    WrongGateway = "wrong_gateway", "The request or probe names another gateway.";
    StaleToken = "stale_token", "The return token is older than allowed or from the future.";
    ReassemblyFull = "reassembly_full", "The bound on unfinished control messages is reached.";
    BadRekey = "bad_rekey", "The rekey exchange names another epoch or invalid keys.";
    BadRecord = "bad_record", "The sealed session secret does not authenticate or has another format.";
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for DropReason {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_snake_case() {
        let mut seen = std::collections::BTreeSet::new();
        for reason in DropReason::ALL {
            assert!(reason.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            assert!(seen.insert(reason.as_str()), "{reason} twice");
            assert!(reason.meaning().ends_with('.'));
        }
    }
}
