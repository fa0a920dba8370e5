//! The machine.

use std::mem;
use std::sync::Arc;

use super::extensions::Extensions;
use super::failure::{Class, Failure, Stage, Verdict};
use super::reply::{Enhanced, Reader};
use super::sasl::{ChannelBindings, Exchange, Gs2, Mechanism};
use super::settings::{Cleartext, Login, Protocol, Settings, StartTls, Use};
use super::transaction::{Command, Message, RecipientResult, SMALL_OCTETS_MAX, Transaction};

/// One connection to an SMTP or LMTP server, without the connection.
///
/// An idle one holds no buffer but what its last message left; see the [module](super) for how it is driven.
pub struct Client {
    settings: Arc<Settings>,
    channel: Channel,
    state: State,
    /// The command that the state stands for is written, and its reply is awaited.
    asked: bool,
    reply: Reader,
    peer: Extensions,
    exchange: Option<Box<Exchange>>,
    bindings: Option<Box<ChannelBindings>>,
    transaction: Transaction,
    /// The next MAIL needs a RSET before it.
    unclean: bool,
    /// A message has just come to its end.
    delivered: bool,
    /// Say QUIT before closing.
    polite: bool,
    failure: Option<Box<(Verdict, String)>>,
    entropy: [u8; 24],
}

// The load tool holds crowds of them.
const _: () = assert!(mem::size_of::<Client>() <= 320);

/// Whether the connection is inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// As it is.
    Clear,
    /// Inside TLS, or where nobody else can listen.
    Tls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// EHLO or LHLO.
    Ehlo,
    Helo,
    StartTls,
    /// The driver is busy with TLS.
    Handshake,
    Auth,
    /// Between messages.
    Ready,
    /// Commands of a transaction.
    Envelope,
    /// Message octets.
    Body,
    /// The reply or replies to the message.
    Final,
    /// The reply to an empty message that nobody wants (RFC 2920 §3.1).
    Nobody,
    Quit,
    Closed,
}

/// What the driver does after a call. In every case it first sends what was appended to `out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read, and hand what came to [`Client::receive`].
    Read,
    /// Hand message octets to [`Client::body`]; what can be read meanwhile goes to [`Client::receive`].
    Write,
    /// Do the TLS handshake, then [`Client::tls_started`]; when it fails, [`Client::lost`].
    StartTls,
    /// Nothing to do: [`Client::deliver`], [`Client::quit`], or wait.
    Ready,
    /// The message came to its end: look at [`Client::results`]. Then as with `Ready`.
    Delivered,
    /// Close. [`Client::failure`] says why, unless it was asked for.
    Closed,
}

impl Client {
    /// For a connection that was just made: the greeting is awaited. `entropy` is fresh random octets, for
    /// SCRAM's nonce.
    pub fn new(settings: Arc<Settings>, channel: Channel, entropy: [u8; 24]) -> Self {
        Self {
            settings,
            channel,
            state: State::Greeting,
            asked: true,
            reply: Reader::default(),
            peer: Extensions::default(),
            exchange: None,
            bindings: None,
            transaction: Transaction::default(),
            unclean: false,
            delivered: false,
            polite: false,
            failure: None,
            entropy,
        }
    }

    /// What the TLS connection can be bound by; without it no mechanism with channel binding is used. To be told
    /// before the reply to EHLO comes.
    pub fn bind(&mut self, bindings: ChannelBindings) {
        let some = bindings.exporter.is_some() || bindings.server_end_point.is_some();
        self.bindings = some.then(|| Box::new(bindings));
    }

    /// What the peer offers.
    pub fn peer(&self) -> &Extensions {
        &self.peer
    }

    /// Whether the connection is inside TLS.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Why the connection ended; `None` while it lasts, and when it was ended by [`Client::quit`]. A
    /// permanent refusal of the connection (554 instead of a greeting, 535) is not one of the message:
    /// whoever knows another next hop, or an operator who mends the password, may still send it.
    pub fn failure(&self) -> Option<Failure<'_>> {
        self.failure.as_ref().map(|failure| failure.0.with(&failure.1))
    }

    /// What became of each recipient of the last message, in their order.
    pub fn results(&self) -> impl ExactSizeIterator<Item = RecipientResult<'_>> {
        self.transaction.results()
    }

    /// What is waited for; says how long ([`Stage::patience_seconds`]).
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Greeting => Stage::Greeting,
            State::Ehlo | State::Helo => Stage::Hello,
            State::StartTls | State::Handshake => Stage::StartTls,
            State::Auth => Stage::Auth,
            State::Ready => Stage::Idle,
            State::Envelope => match self.transaction.awaited() {
                Some(Command::Rset) => Stage::Reset,
                Some(Command::Mail) | None => Stage::Mail,
                Some(Command::Rcpt(_)) => Stage::Recipient,
                Some(Command::Transfer) if self.transaction.chunked => Stage::Final,
                Some(Command::Transfer) => Stage::Data,
            },
            State::Body => Stage::Message,
            State::Final | State::Nobody => Stage::Final,
            State::Quit | State::Closed => Stage::Quit,
        }
    }

    // ---------------------------------------------------------------------------------- the driver's calls

    /// Takes octets as they came off the wire (inside TLS: decrypted); appends what is to be sent; returns
    /// how many octets were used. What was not used is offered again, in front of newer octets; it is never
    /// more than one reply line of 2048.
    pub fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Next) {
        let mut used = 0;
        while self.state != State::Closed {
            let rest = input.get(used..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            if !self.may_speak(rest) {
                self.broken("peer spoke out of turn");
                break;
            }
            match self.reply.line(rest, self.awaits_message_reply()) {
                Ok(None) => break,
                Ok(Some(line)) => {
                    used += line.wire;
                    if self.state == State::Ehlo && self.reply.code == 250 {
                        match line.first {
                            true => self.peer = Extensions::default(),
                            false => self.peer.learn(line.text),
                        }
                    }
                    if line.last {
                        self.answered();
                    }
                }
                Err(fault) => self.broken(fault),
            }
        }
        if self.state == State::Closed {
            used = input.len();
        }
        // Nothing is said before everything that came is understood: what stands behind a reply although we
        // had asked no more is an intruder's (RFC 3207 §4.2, RFC 2920 §3.1), and gets no command to answer.
        if used == input.len() {
            self.advance(out);
        }
        (used, self.next())
    }

    /// TLS is there: everything that was said in clear is forgotten (RFC 3207 §4.2).
    pub fn tls_started(&mut self, out: &mut Vec<u8>) -> Next {
        if self.state == State::Handshake {
            self.channel = Channel::Tls;
            self.peer = Extensions::default();
            self.reply.reset();
            self.go(State::Ehlo);
            self.advance(out);
        }
        self.next()
    }

    /// Begins a message. On a connection that has ended, every recipient fails for that reason.
    ///
    /// # Panics
    /// In the middle of something: only after [`Next::Ready`], [`Next::Delivered`] or [`Next::Closed`].
    pub fn deliver(&mut self, message: &Message<'_>, out: &mut Vec<u8>) -> Next {
        assert!(matches!(self.state, State::Ready | State::Closed), "deliver in the middle of something");
        if self.state == State::Closed {
            self.transaction.clear(message.recipients.len());
            self.fail_recipients();
            return Next::Closed;
        }
        match self.transaction.prepare(message, &self.peer, &self.settings, self.unclean) {
            Ok(()) => {
                self.state = State::Envelope;
                self.advance(out);
            }
            Err(()) => self.delivered = true,
        }
        self.next()
    }

    /// Takes message octets, any number at a time: header and body, CRLF text, no dot stuffing. Only when
    /// [`Next::Write`] was the last word. Octets that are no CRLF text, or more than were announced, end the
    /// connection before the peer can take the message for complete.
    pub fn body(&mut self, octets: &[u8], out: &mut Vec<u8>) -> Next {
        if self.state != State::Body {
            return self.next();
        }
        self.push(octets, out);
        self.next()
    }

    /// The driver cannot go on: the connection broke, a deadline passed, the handshake failed, the message
    /// cannot be read.
    pub fn lost(&mut self, why: &str) -> Next {
        match self.state {
            State::Closed => {}
            State::Quit => self.state = State::Closed,
            _ => self.close(Verdict::own(Class::Lost, self.stage(), None), why),
        }
        Next::Closed
    }

    /// Says QUIT. The reply need not be waited for; [`Next::Closed`] follows it. In the middle of something
    /// it just ends the connection.
    pub fn quit(&mut self, out: &mut Vec<u8>) -> Next {
        if self.state == State::Ready {
            out.extend_from_slice(b"QUIT\r\n");
            (self.state, self.asked) = (State::Quit, true);
        } else if !matches!(self.state, State::Quit | State::Closed) {
            self.lost("closed by us");
        }
        self.next()
    }

    // ---------------------------------------------------------------------------------- replies

    fn next(&mut self) -> Next {
        match self.state {
            State::Closed => Next::Closed,
            State::Handshake => Next::StartTls,
            State::Ready if mem::take(&mut self.delivered) => Next::Delivered,
            State::Ready => Next::Ready,
            State::Body => Next::Write,
            _ => Next::Read,
        }
    }

    fn go(&mut self, state: State) {
        (self.state, self.asked) = (state, false);
    }

    /// Whether a reply is due.
    fn awaits(&self) -> bool {
        match self.state {
            State::Ready | State::Handshake | State::Closed => false,
            State::Envelope | State::Body => self.transaction.awaited().is_some(),
            State::Final => true,
            _ => self.asked,
        }
    }

    /// Whether the reply that is due may be the one that takes the message: its text is worth keeping.
    fn awaits_message_reply(&self) -> bool {
        let chunk = self.transaction.chunked && self.transaction.awaited() == Some(Command::Transfer);
        self.state == State::Final || (self.state == State::Envelope && chunk)
    }

    /// Whether the peer may say what `rest` begins with. Without being asked it may only say that it closes
    /// (RFC 5321 §3.8), or refuse a message whose octets are still coming.
    fn may_speak(&self, rest: &[u8]) -> bool {
        let closing = rest.iter().zip(b"421").all(|(octet, expected)| octet == expected);
        let refusing =
            self.state == State::Body && !self.transaction.chunked && matches!(rest.first(), Some(b'4' | b'5'));
        self.awaits() || self.reply.is_within() || closing || refusing
    }

    /// A reply is complete.
    fn answered(&mut self) {
        let class = self.reply.code / 100;
        match self.state {
            State::Quit => self.state = State::Closed,
            _ if self.reply.code == 421 => self.refused(),
            State::Greeting if self.reply.code == 220 => self.go(State::Ehlo),
            State::Ehlo | State::Helo if self.reply.code == 250 => self.greeted(),
            // RFC 5321 §3.2: a server that does not know EHLO may know HELO; LMTP has no other.
            State::Ehlo if class == 5 && self.settings.protocol == Protocol::Smtp => {
                self.peer = Extensions::default();
                self.go(State::Helo);
            }
            State::StartTls if self.reply.code == 220 => self.go(State::Handshake),
            State::StartTls if class >= 4 && self.settings.starttls == StartTls::IfOffered => self.authenticate(),
            State::Auth => self.auth_answered(),
            State::Envelope | State::Body => self.transaction_answered(),
            State::Final if class != 3 => {
                self.transaction.settle(&self.reply, self.settings.protocol);
                if self.transaction.accepted == 0 {
                    self.message_over(false);
                }
            }
            // What became of nobody's message is nobody's business.
            State::Nobody if class != 3 => self.message_over(false),
            _ if class >= 4 && self.state != State::Ready => {
                self.polite = true;
                self.refused();
            }
            _ => self.broken("reply that does not fit"),
        }
    }

    /// EHLO or HELO was accepted.
    fn greeted(&mut self) {
        if self.channel == Channel::Tls || self.settings.starttls == StartTls::Never {
            return self.authenticate();
        }
        if self.peer.starttls {
            return self.go(State::StartTls);
        }
        match self.settings.starttls {
            StartTls::Required => self.unfit(Stage::StartTls, Enhanced::new(4, 7, 4), "peer does not offer STARTTLS"),
            _ => self.authenticate(),
        }
    }

    /// Logs in, where that is asked for.
    fn authenticate(&mut self) {
        let Some(login) = &self.settings.login else { return self.go(State::Ready) };
        let clear = self.channel == Channel::Clear && login.cleartext == Cleartext::Refuse;
        let usable = |mechanism: &&Mechanism| {
            let hidden = !(clear && mechanism.is_plaintext());
            let can_bind = self.channel == Channel::Tls && self.bindings.is_some();
            let bound = can_bind || !mechanism.binds_channel();
            self.peer.offers(**mechanism) && hidden && bound && login.credentials.fit(**mechanism)
        };
        match login.mechanisms.iter().find(usable) {
            Some(&mechanism) => {
                self.exchange = Some(Box::new(Exchange::new(mechanism)));
                self.go(State::Auth);
            }
            None => {
                let text = "peer offers no mechanism that may be used on this connection";
                self.unfit(Stage::Auth, Enhanced::new(4, 7, 0), text);
            }
        }
    }

    /// What is said of channel binding. That we would bind is said only where we would: a server that offers it
    /// takes that for somebody's hand in between (RFC 5802 §6).
    fn gs2(&self, login: &Login, mechanism: Mechanism) -> Gs2<'_> {
        match self.bindings.as_deref().filter(|_| self.channel == Channel::Tls) {
            Some(bindings) if mechanism.binds_channel() => Gs2::Bound(bindings),
            Some(_) if login.mechanisms.iter().any(|other| other.binds_channel()) && !self.peer.binds_channel() => {
                Gs2::Would
            }
            _ => Gs2::No,
        }
    }

    fn auth_answered(&mut self) {
        let mechanism = self.exchange.as_ref().map(|exchange| exchange.mechanism);
        match self.reply.code {
            // The challenge is taken up in `advance`.
            334 => self.asked = false,
            235 if self.exchange.take().is_some_and(|exchange| exchange.is_proven()) => self.go(State::Ready),
            235 => self.broken("peer accepts a login without having proven itself"),
            // RFC 4954 §4, §6: not this mechanism, or not for this user; perhaps another.
            432 | 504 | 534 => {
                let reply = Verdict::of_reply(&self.reply, Stage::Auth);
                mechanism.into_iter().for_each(|mechanism| self.peer.strike(mechanism));
                self.authenticate();
                if self.state != State::Auth {
                    // Nothing else can be used: the peer's words say more than ours.
                    let text = mem::take(&mut self.reply.text);
                    self.failure = Some(Box::new((reply, text)));
                }
            }
            400..=599 => {
                self.polite = true;
                self.refused();
            }
            _ => self.broken("reply that does not fit"),
        }
    }

    fn transaction_answered(&mut self) {
        let (class, stage) = (self.reply.code / 100, self.stage());
        let Some(command) = self.transaction.awaited() else {
            // In the middle of DATA: the message is lost, and so is our place in the dialogue.
            return if class >= 4 { self.refused() } else { self.broken("reply that does not fit") };
        };
        let verdict = Verdict::of_reply(&self.reply, stage);
        let text = &self.reply.text;
        match (command, class) {
            (Command::Rset | Command::Mail, 2) => {}
            (Command::Rset, 4 | 5) => return self.refused(),
            (Command::Mail, 4 | 5) => {
                self.transaction.sender_refused = true;
                self.transaction.fail_open(verdict, text);
            }
            (Command::Rcpt(place), 2) => self.transaction.accept(place),
            (Command::Rcpt(place), 4 | 5) => self.transaction.fail(place, recipient_verdict(verdict), text),
            (Command::Transfer, 2 | 4 | 5) if self.transaction.chunked => return self.chunk_answered(verdict),
            (Command::Transfer, 3) if self.reply.code == 354 && !self.transaction.chunked => {
                self.go(if self.transaction.accepted > 0 { State::Body } else { State::Nobody });
            }
            (Command::Transfer, 4 | 5) => {
                self.transaction.fail_open(verdict, text);
                return self.message_over(true);
            }
            _ => return self.broken("reply that does not fit"),
        }
        self.transaction.answered += 1;
        // RFC 2033 §4.2: LMTP has no reply for a message that nobody gets, so what would follow is open.
        if self.state == State::Nobody && self.settings.protocol == Protocol::Lmtp {
            self.broken("peer wants a message for which it accepted nobody");
        }
    }

    /// BDAT is answered: the message is, or it is refused while its octets are still on their way.
    fn chunk_answered(&mut self, verdict: Verdict) {
        let taken = verdict.code.is_some_and(|code| code < 300);
        if self.transaction.octets_left > 0 {
            if taken {
                return self.broken("peer takes a message that it does not have");
            }
            self.transaction.answered += 1;
            self.transaction.fail_open(verdict, &self.reply.text);
            // RFC 3030 §2: the octets are followed to their end, which keeps the connection; where they are
            // many, a new connection is cheaper.
            self.transaction.chunk_refused = true;
            if self.transaction.octets_left > SMALL_OCTETS_MAX {
                self.refused();
            }
            return;
        }
        self.transaction.settle(&self.reply, self.settings.protocol);
        if self.transaction.accepted == 0 {
            self.message_over(!taken);
        }
    }

    /// The transaction is over. `unclean`: the peer may still hold something of it.
    fn message_over(&mut self, unclean: bool) {
        self.unclean = unclean;
        self.delivered = true;
        self.go(State::Ready);
    }

    // ---------------------------------------------------------------------------------- commands

    /// Says what is to be said now.
    fn advance(&mut self, out: &mut Vec<u8>) {
        match self.state {
            State::Closed if mem::take(&mut self.polite) => out.extend_from_slice(b"QUIT\r\n"),
            State::Envelope => self.write_commands(out),
            // An empty message is complete as soon as it may begin.
            State::Body if self.transaction.octets_left == 0 => self.push(b"", out),
            State::Ehlo | State::Helo if !self.asked => {
                out.extend_from_slice(match (self.state, self.settings.protocol) {
                    (State::Helo, _) => b"HELO ",
                    (_, Protocol::Smtp) => b"EHLO ",
                    (_, Protocol::Lmtp) => b"LHLO ",
                });
                out.extend_from_slice(self.settings.name().as_bytes());
                out.extend_from_slice(b"\r\n");
                self.asked = true;
            }
            State::StartTls if !self.asked => {
                out.extend_from_slice(b"STARTTLS\r\n");
                self.asked = true;
            }
            State::Nobody if !self.asked => {
                out.extend_from_slice(b".\r\n");
                self.asked = true;
            }
            State::Auth if !self.asked => {
                self.asked = true;
                let (Some(login), Some(mut exchange)) = (&self.settings.login, self.exchange.take()) else { return };
                let outcome = if exchange.has_begun() {
                    exchange.respond(&self.reply.text, &login.credentials, out)
                } else {
                    exchange.begin(&login.credentials, &self.entropy, self.gs2(login, exchange.mechanism), out);
                    Ok(())
                };
                self.exchange = Some(exchange);
                if let Err(fault) = outcome {
                    self.broken(fault);
                }
            }
            _ => {}
        }
    }

    /// As many commands as may wait for replies together.
    fn write_commands(&mut self, out: &mut Vec<u8>) {
        let group = self.peer.pipelining && self.settings.pipelining == Use::IfOffered;
        while !self.transaction.is_over() {
            match self.transaction.write_next(group, self.settings.protocol, out) {
                None => return,
                Some(Command::Transfer) if self.transaction.chunked => {
                    self.state = State::Body;
                    return self.advance(out);
                }
                Some(_) => {}
            }
        }
        self.message_over(!self.transaction.sender_refused);
    }

    /// Hands message octets on; the last of them end the message.
    fn push(&mut self, octets: &[u8], out: &mut Vec<u8>) {
        if self.transaction.push(octets, out).is_err() {
            let verdict = Verdict::own(Class::Permanent, Stage::Message, Some(Enhanced::new(5, 6, 0)));
            return self.close(verdict, "message has a bare CR or LF, or not the length that was announced");
        }
        if self.transaction.octets_left > 0 {
            return;
        }
        if self.transaction.chunk_refused {
            self.message_over(true);
        } else if self.transaction.chunked {
            // Replies to commands of the same group may still be due, then BDAT's.
            self.state = State::Envelope;
        } else {
            self.state = State::Final;
        }
    }

    // ---------------------------------------------------------------------------------- ends

    /// The peer's reply ends the connection.
    fn refused(&mut self) {
        let verdict = Verdict::of_reply(&self.reply, self.stage());
        let text = mem::take(&mut self.reply.text);
        self.close(verdict, &text);
    }

    /// The peer does not keep to the protocol.
    fn broken(&mut self, fault: &str) {
        self.close(Verdict::own(Class::Protocol, self.stage(), None), fault);
    }

    /// The peer is not what the settings ask for.
    fn unfit(&mut self, stage: Stage, enhanced: Enhanced, text: &str) {
        self.polite = true;
        self.close(Verdict::own(Class::Temporary, stage, Some(enhanced)), text);
    }

    fn close(&mut self, verdict: Verdict, text: &str) {
        self.failure = Some(Box::new((verdict, text.to_owned())));
        self.state = State::Closed;
        self.exchange = None;
        self.fail_recipients();
    }

    fn fail_recipients(&mut self) {
        match self.failure.as_deref() {
            Some((verdict, text)) => self.transaction.fail_open(*verdict, text),
            None => self.transaction.fail_open(Verdict::own(Class::Lost, Stage::Idle, None), "connection was closed"),
        }
    }
}

/// RFC 5321 §4.5.3.1.10: some say 552 when recipients are too many, where 452 is meant; one that means the
/// mailbox or the message says so in its enhanced code.
fn recipient_verdict(verdict: Verdict) -> Verdict {
    let too_many = verdict.enhanced.is_none_or(|code| (code.subject, code.detail) == (5, 3));
    match verdict.code {
        Some(552) if too_many => Verdict { class: Class::Temporary, ..verdict },
        _ => verdict,
    }
}
