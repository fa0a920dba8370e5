//! The machine. States own what is possible in them; each event takes the state by value and leaves the next.

use std::io::Write as _;
use std::mem;
use std::sync::Arc;

use crate::auth::{self, Authentication, FULL_FAILURE, Progress};
use crate::body::Piece;
use crate::command::{self, Verb};
use crate::envelope::{Notify, Recipient};
use crate::header::{self, Field};
use crate::host::{
    Allowance, Charge, Context, Effect, Identity, NextHopReply, Note, OUT_OCTETS_MAX, Outcome, Permission,
    RecipientOutcome, Trouble,
};
use crate::id::QueueId;
use crate::line::{self, Scan};
use crate::listener::{AuthOffer, SenderCheck, StarttlsTrailing, SyncViolation, Tls};
use crate::param;
use crate::path::{self, Path};
use crate::policy::{Facts, Verdict};
use crate::reply::{self, Reply};
use crate::trace::{self, Greeted};
use crate::transaction::Transaction;

/// One SMTP dialogue.
///
/// An idle one holds no buffer. Buffers of transactions and exchanges are on loan from
/// [`crate::host::Pools`]; [`Session::end`] gives them back.
pub struct Session {
    state: State,
    identity: Option<Arc<Identity>>,
    /// What the client called itself.
    name: Option<Box<str>>,
    /// Octets that a refused BDAT chunk still owes.
    swallow_left: u64,
    /// Octets swallowed for chunks that had nobody to go to (DECISIONS C10).
    swallowed: u32,
    /// The input before this position is known to hold no LF.
    scanned: u32,
    messages: u32,
    hello: Hello,
    skip: Skip,
    errors: u8,
    idle_commands: u8,
    /// In units of half a failed login.
    auth_failures: u8,
    /// Logged in as nobody: there is no identity, and none will be (RFC 4505).
    anonymous: bool,
    /// An exchange with channel binding has failed: no other may begin here (RFC 9266 §4.1).
    binding_spent: bool,
}

// A hundred thousand idle sessions should stay cheap; growing this is a decision, not an accident.
const _: () = assert!(mem::size_of::<Session>() <= 104);

enum State {
    /// Between transactions; also before EHLO.
    Ready,
    /// MAIL was accepted.
    Transaction(Box<Transaction>),
    /// The reply to MAIL, RCPT or the end of the message waits for an effect.
    Asking(Question, Box<Transaction>),
    /// Between 354 and the end of data.
    Data(Box<Transaction>),
    /// Within a BDAT chunk.
    Chunk(Box<Transaction>),
    /// Within a BDAT chunk that was refused: its octets are read and dropped, then comes the reply
    /// (RFC 3030 §2). `broken`: there was a transaction, and it is gone.
    Swallow { reply: &'static Reply, broken: bool },
    /// A BDAT failed within a transaction: RSET mends it (DECISIONS C9).
    Broken,
    /// An AUTH exchange.
    Auth(Box<Authentication>),
    /// 220 to STARTTLS was given; nothing is read until the handshake is done.
    StartTls,
    /// The last reply was given.
    Closed,
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Mail,
    Rcpt,
    Author,
    Commit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hello {
    None,
    Helo,
    Ehlo,
}

/// A line that is being thrown away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Skip {
    No,
    /// Too long: the reply comes at its end.
    Long {
        cr: bool,
        auth: bool,
    },
    /// The reply was given already.
    Told {
        cr: bool,
    },
}

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

/// Why we end the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// The client was silent for too long.
    Timeout,
    /// We are going down.
    Shutdown,
    /// We have too much to do.
    Overload,
    /// A bug of ours.
    Internal,
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

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A session to which nothing was said yet.
    pub fn new() -> Self {
        Self {
            state: State::Ready,
            identity: None,
            anonymous: false,
            name: None,
            swallow_left: 0,
            swallowed: 0,
            scanned: 0,
            messages: 0,
            hello: Hello::None,
            skip: Skip::No,
            errors: 0,
            idle_commands: 0,
            auth_failures: 0,
            binding_spent: false,
        }
    }

    /// Says 220. Once: after accept, or after the handshake where TLS is implicit.
    pub fn greet(&mut self, cx: &mut Context<'_>) {
        cx.out.extend_from_slice(b"220 ");
        cx.out.extend_from_slice(cx.listener.hostname.as_bytes());
        cx.out.extend_from_slice(b" ESMTP Portreeve\r\n");
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

    /// What the session waits for.
    pub fn phase(&self) -> Phase {
        let authenticated = self.identity.is_some();
        match &self.state {
            State::Ready | State::Broken => Phase::Command { authenticated, transaction: false },
            State::Transaction(_) => Phase::Command { authenticated, transaction: true },
            State::Asking(..) => Phase::Effect,
            State::Data(_) | State::Chunk(_) | State::Swallow { .. } => Phase::Data,
            State::Auth(exchange) if exchange.is_pending() => Phase::Effect,
            State::Auth(_) => Phase::Auth,
            State::StartTls | State::Closed => Phase::Closed,
        }
    }

    /// Takes octets as they came off the wire; returns how many were used and what to do next. What was
    /// not used is offered again, in front of newer octets.
    pub fn receive(&mut self, input: &[u8], cx: &mut Context<'_>) -> (usize, Next) {
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            match &self.state {
                State::Closed => return (input.len(), Next::Close),
                State::StartTls => {
                    if !rest.is_empty() {
                        cx.host.note(Note::StarttlsTrailing { octets: rest.len() });
                    }
                    return (input.len(), Next::StartTls);
                }
                State::Asking(..) => return (used, Next::Pending),
                State::Auth(exchange) if exchange.is_pending() => return (used, Next::Pending),
                _ if cx.out.len() >= OUT_OCTETS_MAX => return (used, Next::OutFull),
                State::Data(_) | State::Chunk(_) | State::Swallow { .. } => {
                    let (octets, more) = self.body(rest, cx);
                    used += octets;
                    if let Some(next) = more {
                        return (used, next);
                    }
                }
                _ => match self.line(rest, cx) {
                    Some(octets) => used += octets,
                    None => {
                        // A line that is being skipped is used up as it comes.
                        return (if self.skip == Skip::No { used } else { input.len() }, Next::Read);
                    }
                },
            }
        }
    }

    /// The effect that was pending has ended.
    pub fn complete(&mut self, outcome: Outcome, cx: &mut Context<'_>) -> Next {
        match mem::replace(&mut self.state, State::Ready) {
            State::Asking(question, transaction) => self.answered(question, transaction, outcome, cx),
            State::Auth(mut exchange) => {
                let progress = exchange.complete(outcome, cx);
                self.auth_progress(exchange, progress, cx);
            }
            // The engine drops late answers by their generation; one that gets here is ignored.
            other => self.state = other,
        }
        self.next()
    }

    fn next(&self) -> Next {
        match &self.state {
            State::Closed => Next::Close,
            State::StartTls => Next::StartTls,
            State::Asking(..) => Next::Pending,
            State::Auth(exchange) if exchange.is_pending() => Next::Pending,
            _ => Next::Read,
        }
    }

    /// The handshake after STARTTLS is done: everything that was said in clear is forgotten
    /// (RFC 3207 §4.2).
    pub fn tls_started(&mut self, _cx: &mut Context<'_>) {
        self.state = State::Ready;
        self.hello = Hello::None;
        self.name = None;
        (self.identity, self.anonymous) = (None, false);
        (self.scanned, self.skip) = (0, Skip::No);
    }

    /// Says 421. The engine closes after sending.
    pub fn farewell(&mut self, why: Farewell, cx: &mut Context<'_>) {
        if matches!(self.state, State::Closed | State::StartTls) {
            return;
        }
        self.drop_state("closed by us", cx);
        self.close(
            match why {
                Farewell::Timeout => &reply::TIMEOUT,
                Farewell::Shutdown => &reply::SHUTDOWN,
                Farewell::Overload => &reply::OVERLOAD,
                Farewell::Internal => &reply::INTERNAL,
            },
            cx,
        );
    }

    /// The connection is gone: buffers go back, a message in progress is forgotten. A commit that was
    /// handed over stays one.
    pub fn end(&mut self, cx: &mut Context<'_>) {
        self.drop_state("connection lost", cx);
        self.state = State::Closed;
    }

    fn drop_state(&mut self, reason: &'static str, cx: &mut Context<'_>) {
        match mem::replace(&mut self.state, State::Ready) {
            State::Asking(Question::Commit, transaction) => transaction.recycle(cx.pools),
            State::Transaction(transaction)
            | State::Asking(_, transaction)
            | State::Data(transaction)
            | State::Chunk(transaction) => transaction.abandon(reason, cx),
            State::Auth(exchange) => exchange.recycle(cx),
            State::Ready | State::Swallow { .. } | State::Broken | State::StartTls | State::Closed => {}
        }
    }

    // ---------------------------------------------------------------------------------- replies

    fn reply(&mut self, reply: &'static Reply, cx: &mut Context<'_>) {
        cx.out.extend_from_slice(reply.line.as_bytes());
        if reply.policy {
            cx.out.extend_from_slice(b" [");
            cx.out.extend_from_slice(&cx.session.text());
            cx.out.push(b']');
        }
        cx.out.extend_from_slice(b"\r\n");
        self.replied(reply.code, reply.rule, cx);
    }

    /// A reply was written.
    fn replied(&mut self, code: u16, rule: &'static str, cx: &mut Context<'_>) {
        cx.host.note(Note::Reply { code, rule });
        // Bounded patience with those who only err (CONTRACT C23).
        if code >= 500 && !cx.peer.exempt {
            self.errors = self.errors.saturating_add(1);
            if self.errors > cx.listener.limits.errors_max {
                self.drop_state("too many errors", cx);
                self.close(&reply::TOO_MANY_ERRORS, cx);
            }
        }
    }

    fn close(&mut self, reply: &'static Reply, cx: &mut Context<'_>) {
        // None of the closing replies is 5yz, so this does not come back here.
        self.reply(reply, cx);
        self.state = State::Closed;
    }

    // ---------------------------------------------------------------------------------- lines

    /// Takes one line from the front of `input`; returns its octets, or `None` when it is not all there.
    fn line(&mut self, input: &[u8], cx: &mut Context<'_>) -> Option<usize> {
        match &mut self.skip {
            Skip::No => {}
            Skip::Long { cr, .. } | Skip::Told { cr } => {
                let (octets, ended) = line::skip(input, cr);
                if !ended {
                    return None;
                }
                if let Skip::Long { auth, .. } = mem::replace(&mut self.skip, Skip::No) {
                    self.refuse_line(if auth { &reply::AUTH_LINE_TOO_LONG } else { &reply::LINE_TOO_LONG }, cx);
                }
                return Some(octets);
            }
        }
        let limits = &cx.listener.limits;
        let in_auth = matches!(self.state, State::Auth(_));
        let auth = in_auth || input.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"AUTH "));
        let octets_max = if auth { limits.sasl_line_octets_max } else { limits.line_octets_max };
        let scan = line::first(input, self.scanned as usize, octets_max);
        if let Scan::Partial = scan {
            self.scanned = input.len() as u32;
            return None;
        }
        self.scanned = 0;
        match scan {
            Scan::Line { line, wire } => {
                if in_auth {
                    self.auth_response(line, cx);
                } else {
                    self.command(line, input.len() > wire, cx);
                }
                Some(wire)
            }
            Scan::Dirty { wire } => {
                self.refuse_line(if auth { &reply::AUTH_LINE_DIRTY } else { &reply::BARE_CONTROL }, cx);
                Some(wire)
            }
            Scan::BareLf { wire } => {
                // Told at once, although the line goes on: somebody who types into a raw connection sees why.
                self.skip = Skip::Told { cr: false };
                self.refuse_line(if auth { &reply::AUTH_LINE_DIRTY } else { &reply::BARE_CONTROL }, cx);
                Some(wire)
            }
            Scan::TooLong { wire, ended: true } => {
                self.refuse_line(if auth { &reply::AUTH_LINE_TOO_LONG } else { &reply::LINE_TOO_LONG }, cx);
                Some(wire)
            }
            Scan::TooLong { wire, ended: false } => {
                self.skip = Skip::Long { cr: input.last() == Some(&b'\r'), auth };
                Some(wire)
            }
            Scan::Partial => None,
        }
    }

    /// A line that is no command is refused once, as a line; in an exchange it ends the exchange.
    fn refuse_line(&mut self, reply: &'static Reply, cx: &mut Context<'_>) {
        match mem::replace(&mut self.state, State::Ready) {
            State::Auth(mut exchange) => {
                let progress = exchange.bad_line(reply, cx);
                self.auth_progress(exchange, progress, cx);
            }
            state => {
                self.state = state;
                self.reply(reply, cx);
            }
        }
    }

    // ---------------------------------------------------------------------------------- commands

    /// One command. `more`: the client sent further octets without waiting for the reply.
    fn command(&mut self, line: &[u8], more: bool, cx: &mut Context<'_>) {
        let (verb, args) = command::parse(line);
        if verb == Verb::Unknown {
            if command::is_http(line) {
                self.drop_state("http", cx);
                return self.close(&reply::NOT_HTTP, cx);
            }
            return self.reply(&reply::UNKNOWN_COMMAND, cx);
        }
        let row = verb.row();
        if row.idle && !cx.peer.exempt {
            self.idle_commands = self.idle_commands.saturating_add(1);
            if self.idle_commands > cx.listener.limits.idle_commands_max {
                self.drop_state("too many idle commands", cx);
                return self.close(&reply::TOO_MANY_IDLE, cx);
            }
        }
        let refusal = self.precedence(verb, cx);
        if verb == Verb::Bdat {
            return self.bdat(args, refusal, cx);
        }
        if let Some(reply) = refusal {
            return self.reply(reply, cx);
        }
        match verb {
            Verb::Ehlo | Verb::Helo => self.hello(verb, args, more, cx),
            Verb::Mail => self.mail(args, cx),
            Verb::Rcpt => self.rcpt(args, cx),
            Verb::Data => self.data(args, more, cx),
            Verb::Auth => self.auth(args, more, cx),
            Verb::StartTls => self.starttls(args, more, cx),
            Verb::Rset if !args.is_empty() => self.reply(&reply::NO_ARGUMENTS, cx),
            Verb::Rset => {
                self.drop_state("reset", cx);
                self.reply(&reply::RESET, cx);
            }
            Verb::Noop => self.reply(&reply::OK, cx),
            Verb::Quit if !args.is_empty() => self.reply(&reply::NO_ARGUMENTS, cx),
            Verb::Quit => {
                self.drop_state("quit", cx);
                self.close(&reply::BYE, cx);
            }
            Verb::Vrfy if self.hello == Hello::None => self.reply(&reply::HELLO_FIRST, cx),
            Verb::Vrfy if args.is_empty() || !args.is_ascii() => self.reply(&reply::BAD_SYNTAX, cx),
            Verb::Vrfy => self.reply(&reply::CANNOT_VRFY, cx),
            Verb::Help => self.reply(&reply::HELP, cx),
            Verb::Bdat | Verb::Expn | Verb::Etrn | Verb::Unknown => self.reply(&reply::NOT_OFFERED, cx),
        }
    }

    /// Whether it has been through AUTH.
    fn is_admitted(&self) -> bool {
        self.identity.is_some() || self.anonymous
    }

    /// The largest message that may come now.
    fn octets_max(&self, cx: &Context<'_>) -> u64 {
        let limits = &cx.listener.limits;
        let own = match &self.identity {
            Some(identity) => identity.message_octets_max,
            None => self.anonymous.then_some(limits.anonymous_octets_max),
        };
        own.unwrap_or(u64::MAX).min(limits.message_octets_max)
    }

    /// What stands against a command before its arguments are looked at: PROTOCOL §2.9, first row that fits.
    fn precedence(&self, verb: Verb, cx: &Context<'_>) -> Option<&'static Reply> {
        let (row, listener) = (verb.row(), cx.listener);
        let offered = match verb {
            Verb::StartTls => listener.tls != Tls::Off,
            Verb::Auth => listener.auth != AuthOffer::Off && !listener.mechanisms.is_empty(),
            Verb::Etrn => false,
            _ => true,
        };
        let in_clear = cx.tls.is_none() && !cx.peer.cleartext_auth;
        let broken = matches!(self.state, State::Broken);
        if !offered {
            Some(&reply::NOT_OFFERED)
        } else if row.needs_tls && listener.require_tls && in_clear {
            Some(&reply::TLS_FIRST)
        } else if row.needs_auth && listener.require_auth && !self.is_admitted() {
            Some(&reply::AUTH_FIRST)
        } else if verb == Verb::Bdat && !listener.chunking {
            Some(&reply::NOT_OFFERED)
        } else if broken && (!row.mends || verb == Verb::Bdat) {
            Some(&reply::BROKEN)
        } else {
            None
        }
    }

    /// The client went on without waiting for a reply that it had to wait for (RFC 2920 §3.1). Returns
    /// whether that ended the session.
    fn spoke_too_early(&mut self, more: bool, cx: &mut Context<'_>) -> bool {
        if !more || cx.peer.exempt || cx.listener.sync_violation == SyncViolation::Log {
            return false;
        }
        self.drop_state("sync", cx);
        self.reply(&reply::TOO_EARLY, cx);
        self.state = State::Closed;
        true
    }

    fn hello(&mut self, verb: Verb, args: &[u8], more: bool, cx: &mut Context<'_>) {
        let name = match std::str::from_utf8(args) {
            Ok(name) if !name.is_empty() && name.len() <= 255 && name.is_ascii() && !args.contains(&b' ') => name,
            _ => return self.reply(&reply::HELLO_NEEDS_NAME, cx),
        };
        if self.spoke_too_early(more && verb == Verb::Ehlo, cx) {
            return;
        }
        self.drop_state("reset", cx);
        if self.name.as_deref() != Some(name) {
            self.name = Some(name.into());
        }
        self.hello = if verb == Verb::Ehlo { Hello::Ehlo } else { Hello::Helo };
        if verb == Verb::Helo {
            cx.out.extend_from_slice(b"250 ");
            cx.out.extend_from_slice(cx.listener.hostname.as_bytes());
            cx.out.extend_from_slice(b"\r\n");
        } else {
            self.list_extensions(cx);
        }
        cx.host.note(Note::Reply { code: 250, rule: "hello" });
    }

    /// The EHLO reply (RFC 5321 §4.1.1.1): only what this connection can use now (PROTOCOL §2.1).
    fn list_extensions(&self, cx: &mut Context<'_>) {
        let listener = cx.listener;
        let inside = cx.tls.is_some() || !listener.require_tls || cx.peer.cleartext_auth;
        cx.out.extend_from_slice(b"250-");
        cx.out.extend_from_slice(listener.hostname.as_bytes());
        cx.out.extend_from_slice(b"\r\n250-PIPELINING\r\n250-SIZE ");
        let size = self.octets_max(cx);
        use std::io::Write;
        // Writing to a Vec cannot fail.
        let _ = write!(cx.out, "{size}");
        if listener.tls == Tls::StartTls && cx.tls.is_none() {
            cx.out.extend_from_slice(b"\r\n250-STARTTLS");
        }
        let mut lead = "\r\n250-AUTH";
        for mechanism in &listener.mechanisms {
            if auth::is_offered(&**mechanism, cx) {
                cx.out.extend_from_slice(lead.as_bytes());
                cx.out.push(b' ');
                cx.out.extend_from_slice(mechanism.name().as_str().as_bytes());
                lead = "";
            }
        }
        if inside {
            cx.out.extend_from_slice(b"\r\n250-DSN");
            if listener.chunking {
                cx.out.extend_from_slice(b"\r\n250-CHUNKING");
            }
        }
        if listener.smtputf8 {
            cx.out.extend_from_slice(b"\r\n250-SMTPUTF8");
        }
        if listener.data_loss {
            cx.out.extend_from_slice(b"\r\n250-XDATALOSS accepted mail is not kept");
        }
        cx.out.extend_from_slice(b"\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n");
    }

    fn starttls(&mut self, args: &[u8], more: bool, cx: &mut Context<'_>) {
        if cx.tls.is_some() || self.is_admitted() {
            return self.reply(&reply::STARTTLS_ORDER, cx);
        }
        if !args.is_empty() {
            return self.reply(&reply::NO_ARGUMENTS, cx);
        }
        self.drop_state("starttls", cx);
        if more && cx.listener.starttls_trailing == StarttlsTrailing::Close {
            self.reply(&reply::STARTTLS_TRAILING, cx);
            self.state = State::Closed;
            return;
        }
        self.reply(&reply::READY_FOR_TLS, cx);
        self.state = State::StartTls;
    }

    // ---------------------------------------------------------------------------------- AUTH

    fn auth(&mut self, args: &[u8], more: bool, cx: &mut Context<'_>) {
        let refused = cx.host.charge(Charge::AuthAttempt) == Allowance::Refuse;
        if self.hello != Hello::Ehlo || self.is_admitted() || !matches!(self.state, State::Ready) {
            return self.reply(&reply::AUTH_ORDER, cx);
        }
        if refused {
            return self.reply(&reply::AUTH_RATE, cx);
        }
        if self.binding_spent {
            return self.close(&reply::BINDING_SPENT, cx);
        }
        let challenged_from = cx.out.len();
        let (exchange, progress) = Authentication::begin(args, cx);
        if matches!(progress, Progress::Continue) && more && !cx.peer.exempt {
            // More than one round trip: AUTH ends the group (RFC 4954 §4).
            if cx.listener.sync_violation == SyncViolation::Close {
                cx.out.truncate(challenged_from);
                exchange.recycle(cx);
                self.spoke_too_early(more, cx);
                return;
            }
        }
        self.auth_progress(exchange, progress, cx);
    }

    fn auth_response(&mut self, line: &[u8], cx: &mut Context<'_>) {
        if let State::Auth(mut exchange) = mem::replace(&mut self.state, State::Ready) {
            let progress = exchange.respond(line, cx);
            self.auth_progress(exchange, progress, cx);
        }
    }

    fn auth_progress(&mut self, exchange: Box<Authentication>, progress: Progress, cx: &mut Context<'_>) {
        let (reply, weight) = match progress {
            Progress::Continue | Progress::Pending => {
                self.state = State::Auth(exchange);
                return;
            }
            Progress::Over { reply, weight } => (reply, weight),
            Progress::Success(identity) => {
                self.identity = Some(identity);
                (self.auth_failures, self.errors) = (0, 0);
                (&reply::AUTHENTICATED, 0)
            }
            Progress::Anonymous => {
                self.anonymous = true;
                (&reply::AUTHENTICATED, 0)
            }
        };
        self.binding_spent |= exchange.is_bound();
        exchange.recycle(cx);
        self.state = State::Ready;
        self.reply(reply, cx);
        self.auth_failures = self.auth_failures.saturating_add(weight);
        let failures_max = cx.listener.limits.auth_failures_max.saturating_mul(FULL_FAILURE);
        if weight > 0 && self.auth_failures >= failures_max && !matches!(self.state, State::Closed) {
            // The last failure got its own reply before this one.
            self.close(&reply::TOO_MANY_FAILURES, cx);
        }
    }

    // ---------------------------------------------------------------------------------- MAIL and RCPT

    fn facts<'a>(&'a self, cx: &'a Context<'_>) -> Facts<'a> {
        Facts {
            role: cx.listener.role,
            identity: self.identity.as_deref(),
            anonymous: self.anonymous,
            peer: cx.peer,
            tls: cx.tls.is_some(),
        }
    }

    fn mail(&mut self, args: &[u8], cx: &mut Context<'_>) {
        if self.hello == Hello::None {
            return self.reply(&reply::HELLO_FIRST, cx);
        }
        if !matches!(self.state, State::Ready) {
            return self.reply(&reply::NESTED_MAIL, cx);
        }
        let mut transaction = Transaction::begin(cx.pools);
        match self.read_mail(args, &mut transaction, cx) {
            Ok(Verdict::Permit) => self.mail_permitted(transaction, cx),
            Ok(Verdict::Refuse(reply)) | Err(reply) => {
                transaction.recycle(cx.pools);
                self.reply(reply, cx);
                if reply.code == 421 {
                    self.state = State::Closed;
                }
            }
            Ok(Verdict::Ask) => match self.ask_sender(&transaction.address, cx) {
                Some(outcome) => self.answered(Question::Mail, transaction, outcome, cx),
                None => self.state = State::Asking(Question::Mail, transaction),
            },
        }
    }

    fn read_mail(
        &self,
        args: &[u8],
        transaction: &mut Transaction,
        cx: &mut Context<'_>,
    ) -> Result<Verdict, &'static Reply> {
        let limits = &cx.listener.limits;
        let rest = strip_keyword(args, b"FROM:").ok_or(&reply::BAD_MAIL)?;
        let (path, rest) = path::parse(rest).map_err(|_| &reply::BAD_SENDER)?;
        if self.hello == Hello::Helo && !rest.trim_ascii().is_empty() {
            return Err(&reply::UNKNOWN_PARAMETER);
        }
        let params = param::mail(rest)?;
        let mailbox = match path {
            Path::Null => None,
            Path::Mailbox(mailbox) => Some(mailbox),
            Path::Postmaster => return Err(&reply::BAD_SENDER),
        };
        if path.needs_smtputf8() && !(params.smtputf8 && cx.listener.smtputf8) {
            return Err(&reply::SENDER_NEEDS_UTF8);
        }
        if params.smtputf8 && !cx.listener.smtputf8 {
            return Err(&reply::UNKNOWN_PARAMETER);
        }
        transaction.octets_max = self.octets_max(cx);
        if params.size.is_some_and(|size| size > transaction.octets_max) {
            return Err(&reply::TOO_BIG);
        }
        if self.messages >= limits.messages_max && !cx.peer.exempt {
            return Err(&reply::TOO_MANY_MESSAGES);
        }
        if let Some(mailbox) = mailbox {
            mailbox.write_canonical(&mut transaction.address);
        }
        let envelope = &mut transaction.envelope;
        envelope.size = params.size;
        envelope.body = params.body.unwrap_or_default();
        envelope.smtputf8 = params.smtputf8;
        envelope.ret = params.ret;
        if let Some(envid) = params.envid {
            envelope.set_envid(envid);
        }
        if let Some(auth) = params.auth {
            self.read_auth_param(auth, transaction, cx)?;
        }
        let refused = self.anonymous && cx.host.charge(Charge::AnonymousMessage) == Allowance::Refuse;
        if refused || cx.host.charge(Charge::Message) == Allowance::Refuse {
            return Err(&reply::MAIL_RATE);
        }
        let sender = mailbox.map(|_| &transaction.address[..]);
        Ok(cx.listener.policy.mail(&self.facts(cx), sender))
    }

    /// AUTH= (RFC 4954 §5): always checked, believed only from those that the operator names.
    fn read_auth_param(
        &self,
        xtext: &str,
        transaction: &mut Transaction,
        cx: &Context<'_>,
    ) -> Result<(), &'static Reply> {
        let mut octets = [0; param::XTEXT_OCTETS_MAX];
        let decoded = param::decode_xtext(xtext, &mut octets).ok_or(&reply::BAD_PARAMETER)?;
        if decoded == "<>" {
            return Ok(());
        }
        path::mailbox(decoded).map_err(|_| &reply::BAD_PARAMETER)?;
        let trusted = self.identity.as_ref().is_some_and(|identity| {
            cx.listener.trust_auth_param_from.iter().any(|name| name.eq_ignore_ascii_case(&identity.name))
        });
        if trusted {
            transaction.envelope.set_auth(decoded);
        }
        Ok(())
    }

    /// Asks whether the identity may send as `address`.
    fn ask_sender(&self, address: &str, cx: &mut Context<'_>) -> Option<Outcome> {
        match &self.identity {
            Some(identity) => cx.host.perform(Effect::Sender { identity, address }),
            // Policy asks only about somebody; nobody may not.
            None => Some(Outcome::Sender(Permission::Denied)),
        }
    }

    fn mail_permitted(&mut self, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
        let Transaction { envelope, address, .. } = &mut *transaction;
        envelope.set_reverse_path((!address.is_empty()).then_some(&address[..]));
        if let Some(identity) = &self.identity {
            envelope.set_identity(&identity.name);
        }
        address.clear();
        self.state = State::Transaction(transaction);
        self.reply(&reply::SENDER_OK, cx);
    }

    fn rcpt(&mut self, args: &[u8], cx: &mut Context<'_>) {
        let mut transaction = match mem::replace(&mut self.state, State::Ready) {
            State::Transaction(transaction) => transaction,
            state => {
                self.state = state;
                return self.reply(&reply::MAIL_FIRST, cx);
            }
        };
        match self.read_rcpt(args, &mut transaction, cx) {
            Ok(Verdict::Permit) => self.rcpt_permitted(transaction, "", cx),
            Ok(Verdict::Refuse(reply)) | Err(reply) => {
                self.state = State::Transaction(transaction);
                self.reply(reply, cx);
            }
            Ok(Verdict::Ask) => match cx.host.perform(Effect::Recipient { address: &transaction.address }) {
                Some(outcome) => self.answered(Question::Rcpt, transaction, outcome, cx),
                None => self.state = State::Asking(Question::Rcpt, transaction),
            },
        }
    }

    fn read_rcpt(
        &self,
        args: &[u8],
        transaction: &mut Transaction,
        cx: &mut Context<'_>,
    ) -> Result<Verdict, &'static Reply> {
        if transaction.chunked {
            return Err(&reply::BDAT_BEGUN);
        }
        let limits = &cx.listener.limits;
        let rest = strip_keyword(args, b"TO:").ok_or(&reply::BAD_RCPT)?;
        let (path, rest) = path::parse(rest).map_err(|_| &reply::BAD_RECIPIENT)?;
        if self.hello == Hello::Helo && !rest.trim_ascii().is_empty() {
            return Err(&reply::UNKNOWN_PARAMETER);
        }
        let params = param::rcpt(rest)?;
        transaction.address.clear();
        match path {
            Path::Null => return Err(&reply::BAD_RECIPIENT),
            Path::Postmaster => transaction.address.push_str("postmaster"),
            Path::Mailbox(mailbox) => mailbox.write_canonical(&mut transaction.address),
        }
        if path.needs_smtputf8() && !transaction.envelope.smtputf8 {
            return Err(&reply::RECIPIENT_NEEDS_UTF8);
        }
        let recipients = transaction.envelope.recipients().len();
        let text = transaction.envelope.text_octets() + transaction.address.len() + params.orcpt.map_or(0, str::len);
        if recipients >= limits.recipients_max as usize || text > limits.envelope_octets_max {
            return Err(&reply::TOO_MANY_RECIPIENTS);
        }
        let own = self.identity.as_ref().and_then(|identity| identity.recipients_max);
        if own.is_some_and(|own| recipients >= own as usize) {
            return Err(&reply::RECIPIENT_QUOTA);
        }
        transaction.notify = params.notify.unwrap_or(Notify(0));
        transaction.orcpt.clear();
        transaction.orcpt.push_str(params.orcpt.unwrap_or_default());
        if cx.host.charge(Charge::Recipient) == Allowance::Refuse {
            return Err(&reply::RCPT_RATE);
        }
        Ok(cx.listener.policy.rcpt(&self.facts(cx), &transaction.envelope, &transaction.address))
    }

    fn rcpt_permitted(&mut self, mut transaction: Box<Transaction>, mailbox: &str, cx: &mut Context<'_>) {
        let Transaction { envelope, address, notify, orcpt, .. } = &mut *transaction;
        let orcpt = (!orcpt.is_empty()).then_some(&orcpt[..]);
        envelope.push(Recipient { address, mailbox, orcpt, notify: *notify });
        self.state = State::Transaction(transaction);
        self.reply(&reply::RECIPIENT_OK, cx);
    }

    /// The outcome of what MAIL, RCPT or the end of the message asked.
    fn answered(&mut self, question: Question, transaction: Box<Transaction>, outcome: Outcome, cx: &mut Context<'_>) {
        match (question, outcome) {
            (Question::Mail, outcome) => match granted(&outcome, &reply::SENDER_NOT_OWNED) {
                Ok(()) => self.mail_permitted(transaction, cx),
                Err(reply) => {
                    transaction.recycle(cx.pools);
                    self.reply(reply, cx);
                }
            },
            (Question::Rcpt, Outcome::Recipient(RecipientOutcome::Exists { mailbox })) => {
                self.rcpt_permitted(transaction, &mailbox, cx);
            }
            (Question::Rcpt, outcome) => {
                self.state = State::Transaction(transaction);
                let unknown = matches!(outcome, Outcome::Recipient(RecipientOutcome::Unknown));
                self.reply(if unknown { &reply::UNKNOWN_RECIPIENT } else { &reply::DIRECTORY_TROUBLE }, cx);
            }
            (Question::Author, outcome) => match granted(&outcome, &reply::FROM_NOT_OWNED) {
                Ok(()) => {
                    let mut transaction = transaction;
                    transaction.authors.pop();
                    self.check_authors(transaction, cx);
                }
                Err(reply) => self.message_refused(transaction, reply, cx),
            },
            (Question::Commit, Outcome::Commit(Ok(()))) => {
                let Some(id) = transaction.id else { return self.reply(&reply::LOCAL_TROUBLE, cx) };
                cx.out.extend_from_slice(b"250 2.0.0 Ok: queued as ");
                cx.out.extend_from_slice(&id.text());
                cx.out.extend_from_slice(b"\r\n");
                self.message_accepted(transaction, id, "queued", cx);
            }
            (Question::Commit, Outcome::Passed(reply)) => self.passed(transaction, &reply, cx),
            (Question::Commit, outcome) => {
                // The sink has forgotten the message already.
                transaction.recycle(cx.pools);
                let reply = match outcome {
                    Outcome::Commit(Err(trouble)) => trouble_reply(trouble),
                    _ => &reply::LOCAL_TROUBLE,
                };
                self.reply(reply, cx);
            }
        }
    }

    // ---------------------------------------------------------------------------------- the message

    fn data(&mut self, args: &[u8], more: bool, cx: &mut Context<'_>) {
        let State::Transaction(transaction) = &mut self.state else {
            return self.reply(&reply::MAIL_FIRST, cx);
        };
        if !args.is_empty() {
            return self.reply(&reply::NO_ARGUMENTS, cx);
        }
        if transaction.chunked {
            return self.reply(&reply::BDAT_BEGUN, cx);
        }
        // RFC 5321 §3.3: no go-ahead without a valid recipient, or a pipelining client would send a
        // message that we have nobody to give to.
        if transaction.envelope.recipients().len() == 0 {
            return self.reply(&reply::NO_VALID_RECIPIENTS, cx);
        }
        if self.spoke_too_early(more, cx) {
            return;
        }
        let State::Transaction(mut transaction) = mem::replace(&mut self.state, State::Ready) else { return };
        match begin_message(&mut transaction, cx) {
            Ok(()) => {
                self.state = State::Data(transaction);
                self.reply(&reply::START_MAIL_INPUT, cx);
            }
            Err(reply) => {
                self.state = State::Transaction(transaction);
                self.reply(reply, cx);
            }
        }
    }

    /// BDAT (RFC 3030 §2): whatever is wrong, exactly `n` octets follow and are read; then comes the one reply.
    fn bdat(&mut self, args: &[u8], refusal: Option<&'static Reply>, cx: &mut Context<'_>) {
        let (octets, last) = match read_bdat(args) {
            Ok(chunk) => chunk,
            Err(reply) if reply.code == 421 => {
                self.drop_state("chunk", cx);
                return self.close(reply, cx);
            }
            // How many octets follow cannot be known.
            Err(reply) => {
                if refusal.is_none() && matches!(self.state, State::Transaction(_)) {
                    self.drop_state("chunk", cx);
                    self.state = State::Broken;
                }
                return self.reply(refusal.unwrap_or(reply), cx);
            }
        };
        if let Some(reply) = refusal {
            return self.swallow(octets, reply, matches!(self.state, State::Broken), cx);
        }
        let mut transaction = match mem::replace(&mut self.state, State::Ready) {
            State::Transaction(transaction) => transaction,
            _ => return self.swallow(octets, &reply::MAIL_FIRST, false, cx),
        };
        let refused = if transaction.envelope.recipients().len() == 0 {
            Some(&reply::NO_VALID_RECIPIENTS)
        } else if octets > transaction.octets_max.saturating_sub(transaction.octets) {
            Some(&reply::TOO_BIG)
        } else if !transaction.chunked {
            begin_message(&mut transaction, cx).err()
        } else {
            None
        };
        if let Some(reply) = refused {
            transaction.abandon(reply.rule, cx);
            return self.swallow(octets, reply, true, cx);
        }
        transaction.chunked = true;
        (transaction.chunk_left, transaction.chunk_last) = (octets, last);
        if octets == 0 {
            self.chunk_done(transaction, cx);
        } else {
            self.state = State::Chunk(transaction);
        }
    }

    /// Reads and drops `octets`, then says `reply`.
    fn swallow(&mut self, octets: u64, reply: &'static Reply, broken: bool, cx: &mut Context<'_>) {
        self.drop_state(reply.rule, cx);
        // DECISIONS C10: octets that have nobody to go to are bounded for the whole session; those of a
        // message that is too big, by what a message may have.
        let too_big = std::ptr::eq(reply, &reply::TOO_BIG);
        let bound = match too_big {
            true => cx.listener.limits.message_octets_max,
            false => SWALLOW_OCTETS_MAX.saturating_sub(self.swallowed.into()),
        };
        if octets > bound {
            // A size that will never do is told as that, lest the client try again for days.
            if too_big {
                self.reply(reply, cx);
                self.state = State::Closed;
                return;
            }
            return self.close(&reply::TOO_MUCH_DATA, cx);
        }
        if !too_big {
            self.swallowed = self.swallowed.saturating_add(octets as u32);
        }
        self.swallow_left = octets;
        if octets > 0 {
            self.state = State::Swallow { reply, broken };
        } else {
            self.state = if broken { State::Broken } else { State::Ready };
            self.reply(reply, cx);
        }
    }

    /// Takes message octets from the front of `input`. Returns how many, and what to do when that is not
    /// simply to go on.
    fn body(&mut self, input: &[u8], cx: &mut Context<'_>) -> (usize, Option<Next>) {
        if input.is_empty() {
            return (0, Some(Next::Read));
        }
        match mem::replace(&mut self.state, State::Ready) {
            State::Data(transaction) => self.data_octets(transaction, input, cx),
            State::Chunk(transaction) => self.chunk_octets(transaction, input, cx),
            State::Swallow { reply, broken } => {
                let octets = input.len().min(usize::try_from(self.swallow_left).unwrap_or(usize::MAX));
                self.swallow_left -= octets as u64;
                if self.swallow_left > 0 {
                    self.state = State::Swallow { reply, broken };
                } else {
                    self.state = if broken { State::Broken } else { State::Ready };
                    self.reply(reply, cx);
                }
                (octets, None)
            }
            state => {
                self.state = state;
                (0, None)
            }
        }
    }

    fn data_octets(
        &mut self,
        mut transaction: Box<Transaction>,
        input: &[u8],
        cx: &mut Context<'_>,
    ) -> (usize, Option<Next>) {
        let mut used = 0;
        while let Some(rest) = input.get(used..).filter(|rest| !rest.is_empty()) {
            let before = transaction.decoder;
            match transaction.decoder.data(rest) {
                Piece::Framing(octets) => used += octets,
                Piece::Text(octets) => {
                    let text = rest.get(..octets).unwrap_or_default();
                    let taken = keep_octets(&mut transaction, text, cx);
                    used += taken;
                    if taken < octets {
                        // The sink is full in the middle: the decoder goes back to where it stopped.
                        transaction.decoder = before;
                        if taken > 0 {
                            transaction.decoder.data(text.get(..taken).unwrap_or_default());
                        }
                        self.state = State::Data(transaction);
                        return (used, Some(Next::SinkFull));
                    }
                    if transaction.octets > transaction.octets_max.saturating_mul(2).saturating_add(SWALLOW_OCTETS_MAX)
                    {
                        transaction.abandon("size", cx);
                        self.close(&reply::TOO_MUCH_DATA, cx);
                        return (used, None);
                    }
                }
                Piece::End(octets) => {
                    self.message_complete(transaction, cx);
                    return (used + octets, None);
                }
            }
        }
        self.state = State::Data(transaction);
        (used, None)
    }

    fn chunk_octets(
        &mut self,
        mut transaction: Box<Transaction>,
        input: &[u8],
        cx: &mut Context<'_>,
    ) -> (usize, Option<Next>) {
        let octets = input.len().min(usize::try_from(transaction.chunk_left).unwrap_or(usize::MAX));
        let text = input.get(..octets).unwrap_or_default();
        let taken = keep_octets(&mut transaction, text, cx);
        transaction.decoder.chunk(text.get(..taken).unwrap_or_default());
        transaction.chunk_left -= taken as u64;
        if taken < octets {
            self.state = State::Chunk(transaction);
            return (taken, Some(Next::SinkFull));
        }
        if transaction.chunk_left > 0 {
            self.state = State::Chunk(transaction);
        } else {
            self.chunk_done(transaction, cx);
        }
        (taken, None)
    }

    fn chunk_done(&mut self, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
        if transaction.chunk_last {
            transaction.decoder.finish_chunks();
            self.message_complete(transaction, cx);
        } else {
            self.state = State::Transaction(transaction);
            self.reply(&reply::CHUNK_OK, cx);
        }
    }

    /// The last octet has arrived: the checks that need the whole header, then the commit.
    fn message_complete(&mut self, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
        let limits = &cx.listener.limits;
        let header = &transaction.header;
        let checked = if let Some(reply) = transaction.refusal {
            Err(reply)
        } else if transaction.decoder.saw_bare() {
            Err(&reply::BARE_IN_MESSAGE)
        } else if header.received() >= limits.received_max {
            Err(&reply::LOOP)
        } else if cx.listener.role.is_submission() {
            self.read_header(&mut transaction, cx)
        } else {
            Ok(())
        };
        match checked {
            Ok(()) => self.check_authors(transaction, cx),
            Err(reply) => self.message_refused(transaction, reply, cx),
        }
    }

    /// RFC 6409 §4.2: every address in the header is fully qualified. Collects the authors that §6.3 is about.
    fn read_header(&self, transaction: &mut Transaction, cx: &Context<'_>) -> Result<(), &'static Reply> {
        let Transaction { header, authors, .. } = transaction;
        if header.is_truncated() {
            return Err(&reply::HEADER_TOO_BIG);
        }
        let check = cx.listener.sender_header != SenderCheck::Off;
        for (field, body) in header.kept() {
            let (mut qualified, mut bad_author, mut found) = (true, false, 0);
            let list = header::addresses(body, |address| {
                found += 1;
                match path::mailbox(address) {
                    Ok(mailbox) if path::is_qualified(mailbox.domain) => {
                        if check && field == Field::From {
                            let mut canonical = String::new();
                            mailbox.write_canonical(&mut canonical);
                            authors.push(canonical);
                        }
                    }
                    Ok(_) => qualified = false,
                    Err(_) if field == Field::From => bad_author = true,
                    // What has a domain but is no address is not ours to mend.
                    Err(_) => qualified &= address.contains('@'),
                }
            });
            if field == Field::From && (list.is_err() || found == 0 || bad_author) {
                return Err(&reply::BAD_FROM_HEADER);
            }
            if !qualified {
                return Err(&reply::UNQUALIFIED_HEADER);
            }
        }
        Ok(())
    }

    /// Holds each author against the identity; then commits. A loop: a header has room for thousands of authors, and
    /// the host may know the answer about each at once.
    fn check_authors(&mut self, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
        while let Some(author) = transaction.authors.last() {
            let permitted = match cx.listener.policy.header_from(&self.facts(cx), author) {
                Verdict::Permit => Ok(()),
                Verdict::Refuse(reply) => Err(reply),
                Verdict::Ask => match self.ask_sender(author, cx) {
                    Some(outcome) => granted(&outcome, &reply::FROM_NOT_OWNED),
                    None => {
                        self.state = State::Asking(Question::Author, transaction);
                        return;
                    }
                },
            };
            if let Err(reply) = permitted {
                return self.message_refused(transaction, reply, cx);
            }
            transaction.authors.pop();
        }
        self.commit(transaction, cx);
    }

    fn commit(&mut self, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
        let Transaction { id, envelope, header, prepend, .. } = &mut *transaction;
        let Some(id) = *id else { return self.message_refused(transaction, &reply::LOCAL_TROUBLE, cx) };
        let greeted = Greeted {
            name: self.name.as_deref().unwrap_or_default(),
            extended: self.hello == Hello::Ehlo,
            authenticated: self.identity.is_some(),
        };
        trace::write_received(&greeted, id, envelope, cx, prepend);
        // Never to signed mail: the signature may say that the field is absent (RFC 6376 §5.4).
        let fix = cx.listener.fixups && cx.listener.role.is_submission() && !header.has(Field::DkimSignature);
        let (date, message_id) = (!header.has(Field::Date), !header.has(Field::MessageId));
        trace::write_fixups(fix && date, fix && message_id, id, cx, prepend);
        match cx.host.perform(Effect::Commit { envelope, prepend }) {
            Some(outcome) => self.answered(Question::Commit, transaction, outcome, cx),
            None => self.state = State::Asking(Question::Commit, transaction),
        }
    }

    /// The next hop has decided, and its words go to the client.
    fn passed(&mut self, transaction: Box<Transaction>, reply: &NextHopReply, cx: &mut Context<'_>) {
        // Writing to a Vec cannot fail.
        let _ = write!(cx.out, "{} ", reply.code);
        cx.out.extend_from_slice(reply.text.as_bytes());
        cx.out.extend_from_slice(b"\r\n");
        match transaction.id {
            Some(id) if reply.code < 400 => self.message_accepted(transaction, id, "passed", cx),
            _ => {
                transaction.recycle(cx.pools);
                self.replied(reply.code, "passed.refused", cx);
            }
        }
    }

    /// The reply was given.
    fn message_accepted(
        &mut self,
        transaction: Box<Transaction>,
        id: QueueId,
        rule: &'static str,
        cx: &mut Context<'_>,
    ) {
        self.messages = self.messages.saturating_add(1);
        (self.errors, self.idle_commands) = (0, 0);
        cx.host.note(Note::Reply { code: 250, rule });
        cx.host.note(Note::Accepted {
            id,
            octets: transaction.octets,
            recipients: transaction.envelope.recipients().len(),
            reverse_path: transaction.envelope.reverse_path().unwrap_or_default(),
        });
        transaction.recycle(cx.pools);
    }

    fn message_refused(&mut self, transaction: Box<Transaction>, reply: &'static Reply, cx: &mut Context<'_>) {
        // A failed BDAT leaves the transaction broken only while chunks may still follow; this was the last.
        transaction.abandon(reply.rule, cx);
        self.reply(reply, cx);
    }
}

/// Octets that chunks without a recipient may have together (DECISIONS C10).
const SWALLOW_OCTETS_MAX: u64 = 1 << 20;

fn begin_message(transaction: &mut Transaction, cx: &mut Context<'_>) -> Result<(), &'static Reply> {
    let id = cx.host.begin_message(transaction.envelope.size).map_err(trouble_reply)?;
    transaction.id = Some(id);
    transaction.header.reset(cx.listener.limits.header_octets_max, cx.listener.role.is_submission());
    Ok(())
}

/// Hands message octets to the sink, unless the message is refused already; then they are only counted.
/// Returns how many were taken.
fn keep_octets(transaction: &mut Transaction, text: &[u8], cx: &mut Context<'_>) -> usize {
    if transaction.decoder.saw_bare() {
        transaction.refuse(&reply::BARE_IN_MESSAGE, cx);
    }
    if transaction.octets + text.len() as u64 > transaction.octets_max {
        transaction.refuse(&reply::TOO_BIG, cx);
    }
    let taken = if transaction.refusal.is_some() { text.len() } else { cx.host.write(text).min(text.len()) };
    if transaction.refusal.is_none() && !transaction.header.is_done() {
        transaction.header.push(text.get(..taken).unwrap_or_default());
    }
    transaction.octets += taken as u64;
    taken
}

/// The answer about a sender address; `denied` is the reply when it is no.
fn granted(outcome: &Outcome, denied: &'static Reply) -> Result<(), &'static Reply> {
    match outcome {
        Outcome::Sender(Permission::Granted) => Ok(()),
        Outcome::Sender(Permission::Denied) => Err(denied),
        _ => Err(&reply::DIRECTORY_TROUBLE),
    }
}

fn trouble_reply(trouble: Trouble) -> &'static Reply {
    match trouble {
        Trouble::Temporary => &reply::LOCAL_TROUBLE,
        Trouble::NoSpace => &reply::NO_SPACE,
        Trouble::Late => &reply::TOO_LATE,
    }
}

/// `FROM:` or `TO:` in any case. Blanks after the colon are no SMTP, but many senders write them.
fn strip_keyword<'a>(args: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = args.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_ascii_start())
}

/// `n` or `n LAST`: digits only (PROTOCOL §2.4).
fn read_bdat(args: &[u8]) -> Result<(u64, bool), &'static Reply> {
    let mut words = args.split(|&b| b == b' ').filter(|word| !word.is_empty());
    let (Some(size), last, None) = (words.next(), words.next(), words.next()) else { return Err(&reply::BAD_BDAT) };
    let last = match last {
        None => false,
        Some(word) if word.eq_ignore_ascii_case(b"LAST") => true,
        Some(_) => return Err(&reply::BAD_BDAT),
    };
    if !size.iter().all(u8::is_ascii_digit) {
        return Err(&reply::BAD_BDAT);
    }
    let size = std::str::from_utf8(size).ok().and_then(param::digits).ok_or(&reply::CHUNK_OVERFLOW)?;
    Ok((size, last))
}
