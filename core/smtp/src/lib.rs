//! The SMTP session: bytes in; replies and at most one pending effect out.
//!
//! ```text
//! receive(bytes) → line → command → VERBS row → precedence → policy → state → reply
//!                                                               └→ effect … complete(outcome) → reply
//! ```
//!
//! Absent on purpose: sockets, clocks, threads, files. Whatever a call caused is in [`Context::out`] or
//! went to [`Host`] when it returns. While an effect is pending no line is parsed, so replies keep their
//! order (RFC 2920 §3.2) and a session has at most one effect outstanding.
//!
//! Reading order: `session` (the machine; its parts have files of their own beside it), `command` (the table of verbs),
//! `reply` (every reply), `transaction` and `body` (a message on its way in), `auth` (one AUTH), then the leaves: `line`,
//! `path`, `param`, `header`, `trace`. The other side of the dialogue is [`client`].
//!
//! ```
//! use smtp::{Context, Next, Session, testing};
//!
//! let listener = testing::listener(smtp::Role::Mx);
//! let mut world = testing::World::new();
//! let mut session = Session::new();
//! session.greet(&mut world.context(&listener));
//! let (used, next) = session.receive(b"EHLO client.example\r\nQUIT\r\n", &mut world.context(&listener));
//! assert_eq!((used, next), (27, Next::Close));
//! assert!(world.text().ends_with("221 2.0.0 Bye\r\n"));
//! session.end(&mut world.context(&listener));
//! ```
#![forbid(unsafe_code)]

mod auth;
mod body;
pub mod client;
mod command;
pub mod envelope;
pub mod header;
pub mod host;
pub mod id;
mod line;
pub mod listener;
pub mod param;
pub mod path;
pub mod policy;
pub mod reply;
mod session;
pub mod testing;
pub mod trace;
mod transaction;

pub use envelope::{Envelope, Recipient};
pub use host::{Context, Effect, Host, Identity, Note, Outcome, Peer, Pools, SessionId, TlsFacts};
pub use id::QueueId;
pub use listener::{Listener, Role};
pub use reply::Reply;
pub use session::{Farewell, Next, Phase, Session};

/// Parses a line and looks up its verb, for benches: the cost of one command before its meaning.
#[doc(hidden)]
pub fn dispatch(input: &[u8]) -> Option<u8> {
    match line::first(input, 0, 2048) {
        line::Scan::Line { line, .. } => Some(command::parse(line).0 as u8),
        _ => None,
    }
}
