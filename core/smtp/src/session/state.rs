//! What a session is in the middle of. Whatever belongs to a state is owned by it, so that leaving it leaves nothing.
//!
//! ```text
//! Ready ─ MAIL ─► Transaction ─ DATA ─► Data ────────────────► Asking(Author), Asking(Commit) ─► Ready
//!   │             │ RCPT ↺   └─ BDAT ─► Chunk ─ LAST ─────────►─┘
//!   │             │                     │  ▲ └─► BetweenChunks ─ BDAT ─► Chunk
//!   │             └── BDAT refused ─► Swallow ─► Broken ─ RSET, EHLO ─► Ready
//!   ├─ AUTH ─► Auth ─► Ready
//!   └─ STARTTLS ─► StartTls ─ handshake ─► Ready             from everywhere: QUIT, 421, connection lost ─► Closed
//! ```
//!
//! MAIL, RCPT and authors may ask the directory, and wait in `Asking` when it does not know at once.

use std::mem;

use super::Session;
use crate::auth::Authentication;
use crate::host::Context;
use crate::reply::Reply;
use crate::transaction::Transaction;

#[derive(Default)]
pub(super) enum State {
    /// Between transactions; also before EHLO.
    #[default]
    Ready,
    /// MAIL was accepted.
    Transaction(Box<Transaction>),
    /// The reply to MAIL, RCPT or the end of the message waits for an effect.
    Asking(Question, Box<Transaction>),
    /// Between 354 and the end of data.
    Data(Box<Transaction>),
    /// Within a BDAT chunk that still owes `left` octets. `last`: it is marked LAST.
    Chunk { left: u64, last: bool, transaction: Box<Transaction> },
    /// A chunk was accepted, and it was not the last: DATA and RCPT are out of place now (RFC 3030 §2).
    BetweenChunks(Box<Transaction>),
    /// Within a BDAT chunk that was refused: its octets are read and dropped, then comes the reply (RFC 3030 §2).
    Swallow { left: u64, reply: &'static Reply, then: Then },
    /// A BDAT failed within a transaction: RSET mends it (DECISIONS C9).
    Broken,
    /// An AUTH exchange.
    Auth(Box<Authentication>),
    /// 220 to STARTTLS was given; nothing is read until the handshake is done.
    StartTls,
    /// The last reply was given.
    Closed,
}

/// Whose reply waits for an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// May the identity send as this reverse-path?
    Mail,
    /// Does this recipient exist?
    Rcpt,
    /// May the identity stand in the header From as this author?
    Author,
    /// Is the message durable, or with its next hop?
    Commit,
}

/// What a refused chunk leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing: there was no transaction.
    Ready,
    /// A transaction that is gone; the client has to say that it knows.
    Broken,
}

impl From<Then> for State {
    fn from(then: Then) -> Self {
        match then {
            Then::Ready => Self::Ready,
            Then::Broken => Self::Broken,
        }
    }
}

/// What the session waits for; decides which deadline applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A command.
    Command {
        /// An identity was proven.
        authenticated: bool,
        /// Within a mail transaction.
        transaction: bool,
    },
    /// The next line of an AUTH exchange.
    Auth,
    /// Message octets.
    Data,
    /// An effect.
    Effect,
    /// Nothing any more.
    Closed,
}

impl State {
    /// Whether an effect is pending, and input has to wait.
    pub(super) fn is_pending(&self) -> bool {
        match self {
            Self::Asking(..) => true,
            Self::Auth(exchange) => exchange.is_pending(),
            _ => false,
        }
    }

    pub(super) fn phase(&self, authenticated: bool) -> Phase {
        match self {
            Self::Ready | Self::Broken => Phase::Command { authenticated, transaction: false },
            Self::Transaction(_) | Self::BetweenChunks(_) => Phase::Command { authenticated, transaction: true },
            Self::Asking(..) => Phase::Effect,
            Self::Data(_) | Self::Chunk { .. } | Self::Swallow { .. } => Phase::Data,
            Self::Auth(exchange) if exchange.is_pending() => Phase::Effect,
            Self::Auth(_) => Phase::Auth,
            Self::StartTls | Self::Closed => Phase::Closed,
        }
    }
}

impl Session {
    /// Back to [`State::Ready`]; a transaction or exchange in progress is forgotten because of `reason`.
    pub(super) fn leave(&mut self, reason: &'static str, cx: &mut Context<'_>) {
        match mem::take(&mut self.state) {
            // The sink has it already, and what was handed over is not taken back.
            State::Asking(Question::Commit, transaction) => transaction.recycle(cx.pools),
            State::Transaction(transaction)
            | State::BetweenChunks(transaction)
            | State::Asking(_, transaction)
            | State::Data(transaction)
            | State::Chunk { transaction, .. } => transaction.abandon(reason, cx),
            State::Auth(exchange) => exchange.recycle(cx),
            State::Ready | State::Swallow { .. } | State::Broken | State::StartTls | State::Closed => {}
        }
    }
}
