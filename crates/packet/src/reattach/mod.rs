//! Reattach: tickets, requests, replies, return tokens, hints and standby probes. spec: WIRE-70 to WIRE-87

mod hint;
mod reply;
mod request;
mod standby;
mod ticket;
mod token;

pub use hint::{Hint, HintEnvelope, HINT_LEN};
pub use reply::{Reply, ReplyEnvelope, ReplyStatus, MAX_REPLY_TICKETS, REPLY_LEN};
pub use request::{Request, RequestEnvelope, REQUEST_LEN};
pub use standby::{
    StandbyChallenge, StandbyKey, StandbyProbe, StandbyProbeEnvelope, StandbyReply, StandbyReplyEnvelope,
    STANDBY_KEY_LEN, STANDBY_PROBE_LEN, STANDBY_REPLY_LEN,
};
pub use ticket::{Ticket, TicketContents, TicketKey, TICKET_LEN};
pub use token::{ReturnTokenKey, Token, MAX_TOKEN, RETURN_TOKEN_LEN, RETURN_TOKEN_LIFE_MS};
