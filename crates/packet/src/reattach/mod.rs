//! Reattach: tickets, requests, replies, return tokens and hints. spec: WIRE-70 to WIRE-81

mod hint;
mod reply;
mod request;
mod ticket;
mod token;

pub use hint::{Hint, HintEnvelope, HINT_LEN};
pub use reply::{Reply, ReplyEnvelope, ReplyStatus, MAX_REPLY_TICKETS, REPLY_LEN};
pub use request::{Request, RequestEnvelope, REQUEST_LEN};
pub use ticket::{Ticket, TicketContents, TicketKey, TICKET_LEN};
pub use token::{ReturnTokenKey, Token, MAX_TOKEN, RETURN_TOKEN_LEN, RETURN_TOKEN_LIFE_MS};
