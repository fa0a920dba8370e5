//! The session machine: octets in, replies and at most one pending effect out.
//!
//! ```text
//! receive(octets) ─► lines ─► precedence ─► the command's own part ─► state, reply
//!    │                 └─► in an exchange: login                  └─► effect … complete(outcome) ─► the part that asked
//!    └─► after 354, in a chunk: data, chunks ─► sink … the last octet: authors ─► commit
//!
//! state        what the session is in the middle of
//! lines        octets become a line, or the reply to what is none
//! precedence   what stands against a command before its arguments are looked at
//! pipelining   who has to wait for a reply, and did not
//! hello        EHLO, HELO: who speaks, and what is offered
//! starttls     STARTTLS
//! login        AUTH, and what its end means for the session
//! mail, rcpt   the envelope
//! data         DATA: octets up to CRLF "." CRLF
//! chunks       BDAT: octets that are counted; those of a refused chunk
//! authors      the header From against the identity
//! commit       the message is kept, handed over or refused
//! replies      a reply is written and counted, the last one closes
//! patience     how often a client may err
//! ```
//!
//! These are parts of one machine: each is an `impl Session`. A command takes what it continues out of the state and
//! leaves the next state before it replies, since any reply may be the one that ends the session.

mod authors;
mod chunks;
mod commit;
mod data;
mod hello;
mod lines;
mod login;
mod mail;
mod patience;
mod pipelining;
mod precedence;
mod rcpt;
mod replies;
mod starttls;
mod state;

use std::mem;
use std::sync::Arc;

use self::hello::Hello;
use self::lines::{Lines, Taken};
use self::patience::Patience;
use self::pipelining::Place;
pub use self::replies::Farewell;
pub use self::state::Phase;
use self::state::{Question, State};
use crate::command::{self, Verb};
use crate::host::{Context, Identity, Note, OUT_OCTETS_MAX, Outcome};
use crate::reply;

/// One SMTP dialogue.
///
/// An idle one holds no buffer. Buffers of transactions and exchanges are on loan from
/// [`crate::host::Pools`]; [`Session::end`] gives them back.
#[derive(Default)]
pub struct Session {
    state: State,
    lines: Lines,
    hello: Hello,
    /// What the client called itself.
    name: Option<Box<str>>,
    identity: Option<Arc<Identity>>,
    /// Logged in as nobody: there is no identity, and none will be (RFC 4505).
    anonymous: bool,
    /// An exchange with channel binding has failed: no other may begin here (RFC 9266 §4.1).
    binding_spent: bool,
    patience: Patience,
    /// Messages accepted.
    messages: u32,
    /// Octets swallowed for chunks that had nobody to go to (DECISIONS C10).
    swallowed: u32,
}

// A hundred thousand idle sessions should stay cheap; growing this is a decision, not an accident.
const _: () = assert!(mem::size_of::<Session>() <= 72);

/// What the engine does after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for more input; a partial line may be left unused.
    Read,
    /// An effect is pending: no [`Session::receive`] until [`Session::complete`].
    Pending,
    /// The message sink is full: offer the rest again when there is room.
    SinkFull,
    /// [`Context::out`] is full: send it, then offer the rest again.
    OutFull,
    /// Send what is in out, drop every octet already read, start TLS, then [`Session::tls_started`].
    StartTls,
    /// Send what is in out, then close.
    Close,
}

impl Session {
    /// A session to which nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says 220. Once: after accept, or after the handshake where TLS is implicit.
    pub fn greet(&mut self, cx: &mut Context<'_>) {
        cx.out.extend_from_slice(b"220 ");
        cx.out.extend_from_slice(cx.listener.hostname.as_bytes());
        cx.out.extend_from_slice(b" ESMTP Portreeve\r\n");
    }

    /// Takes octets as they came off the wire; returns how many were used and what to do next. What was
    /// not used is offered again, in front of newer octets.
    pub fn receive(&mut self, input: &[u8], cx: &mut Context<'_>) -> (usize, Next) {
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            let (octets, next) = match &self.state {
                State::Closed => return (input.len(), Next::Close),
                State::StartTls => {
                    if !rest.is_empty() {
                        cx.host.note(Note::StarttlsTrailing { octets: rest.len() });
                    }
                    return (input.len(), Next::StartTls);
                }
                state if state.is_pending() => return (used, Next::Pending),
                _ if cx.out.len() >= OUT_OCTETS_MAX => return (used, Next::OutFull),
                State::Data(_) => self.data_octets(rest, cx),
                State::Chunk { .. } => self.chunk_octets(rest, cx),
                State::Swallow { .. } => self.swallow_octets(rest, cx),
                _ => self.line(rest, cx),
            };
            used += octets;
            if let Some(next) = next {
                return (used, next);
            }
        }
    }

    /// Takes one line from the front of `input`. Returns its octets, and what to do when that is not simply to go on.
    fn line(&mut self, input: &[u8], cx: &mut Context<'_>) -> (usize, Option<Next>) {
        let in_exchange = matches!(self.state, State::Auth(_));
        match self.lines.take(input, in_exchange, &cx.listener.limits) {
            Taken::Line { line, wire } => {
                if in_exchange {
                    self.auth_response(line, cx);
                } else {
                    self.command(line, Place::of(wire, input), cx);
                }
                (wire, None)
            }
            Taken::NoLine { reply, wire } => {
                if in_exchange {
                    self.auth_bad_line(reply, cx);
                } else {
                    self.reply(reply, cx);
                }
                (wire, None)
            }
            Taken::Nothing { wire } => (wire, None),
            Taken::Partial { wire } => (wire, Some(Next::Read)),
        }
    }

    /// One command, which stands at `place` in what the client has sent.
    fn command(&mut self, line: &[u8], place: Place, cx: &mut Context<'_>) {
        let (verb, args) = command::parse(line);
        if verb == Verb::Unknown {
            if command::is_http(line) {
                return self.leave_and_close("http", &reply::NOT_HTTP, cx);
            }
            return self.reply(&reply::UNKNOWN_COMMAND, cx);
        }
        if verb.row().idle && self.patience.idled(cx) {
            return self.leave_and_close("too many idle commands", &reply::TOO_MANY_IDLE, cx);
        }
        match (verb, self.precedence(verb, cx)) {
            // Whatever stands against it, its octets follow.
            (Verb::Bdat, refusal) => self.bdat(args, refusal, cx),
            (_, Some(reply)) => self.reply(reply, cx),
            (Verb::Ehlo | Verb::Helo, None) => self.hello(verb, args, place, cx),
            (Verb::StartTls, None) => self.starttls(args, place, cx),
            (Verb::Auth, None) => self.auth(args, place, cx),
            (Verb::Mail, None) => self.mail(args, cx),
            (Verb::Rcpt, None) => self.rcpt(args, cx),
            (Verb::Data, None) => self.data(args, place, cx),
            (Verb::Rset | Verb::Quit, None) if !args.is_empty() => self.reply(&reply::NO_ARGUMENTS, cx),
            (Verb::Rset, None) => {
                self.leave("reset", cx);
                self.reply(&reply::RESET, cx);
            }
            (Verb::Quit, None) => self.leave_and_close("quit", &reply::BYE, cx),
            (Verb::Noop, None) => self.reply(&reply::OK, cx),
            (Verb::Help, None) => self.reply(&reply::HELP, cx),
            (Verb::Vrfy, None) if self.hello == Hello::None => self.reply(&reply::HELLO_FIRST, cx),
            (Verb::Vrfy, None) if args.is_empty() || !args.is_ascii() => self.reply(&reply::BAD_SYNTAX, cx),
            (Verb::Vrfy, None) => self.reply(&reply::CANNOT_VRFY, cx),
            (Verb::Expn | Verb::Etrn | Verb::Unknown, None) => self.reply(&reply::NOT_OFFERED, cx),
        }
    }

    /// The effect that was pending has ended.
    pub fn complete(&mut self, outcome: Outcome, cx: &mut Context<'_>) -> Next {
        match mem::take(&mut self.state) {
            State::Asking(Question::Mail, transaction) => self.mail_answered(transaction, &outcome, cx),
            State::Asking(Question::Rcpt, transaction) => self.rcpt_answered(transaction, &outcome, cx),
            State::Asking(Question::Author, transaction) => self.author_answered(transaction, &outcome, cx),
            State::Asking(Question::Commit, transaction) => self.committed(transaction, outcome, cx),
            State::Auth(exchange) => self.auth_complete(exchange, outcome, cx),
            // The engine drops late answers by their generation; one that gets here is ignored.
            other => self.state = other,
        }
        match &self.state {
            State::Closed => Next::Close,
            State::StartTls => Next::StartTls,
            state if state.is_pending() => Next::Pending,
            _ => Next::Read,
        }
    }

    /// The connection is gone: buffers go back, a message in progress is forgotten. A commit that was
    /// handed over stays one.
    pub fn end(&mut self, cx: &mut Context<'_>) {
        self.leave("connection lost", cx);
        self.state = State::Closed;
    }

    /// What the session waits for.
    pub fn phase(&self) -> Phase {
        self.state.phase(self.identity.is_some())
    }

    /// Who the client has proven to be.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }

    /// Whether the client has logged in as nobody.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous
    }

    /// What the client called itself, as sent; untrusted.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Messages accepted.
    pub fn messages(&self) -> u32 {
        self.messages
    }
}
