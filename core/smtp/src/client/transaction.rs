//! One message on its way to the peer: its commands, how far they are written and answered, and what
//! became of each recipient.
//!
//! The commands are made at once, into one buffer, and leave it as the window allows. Replies come in the
//! order of commands (RFC 2920 §3.1), so two counters say which command a reply answers.

use std::io::Write as _;

use memchr::memchr;

use crate::envelope::{Body, Envelope, Notify, Recipient, Ret};
use crate::param;
use crate::path::{self, Path};

use super::body::{Encoder, Framing};
use super::extensions::Extensions;
use super::failure::{Class, Failure, Stage, Verdict};
use super::reply::{Enhanced, Reader};
use super::settings::{EightBit, Protocol, Settings, Use};

/// A message for the peer.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// Sender and what goes with the message. Its recipients are not looked at.
    pub envelope: &'a Envelope,
    /// For whom, of the envelope's recipients.
    pub recipients: &'a [Recipient<'a>],
    /// Octets of the message, exactly: as many are asked for.
    pub octets: u64,
}

/// A reply that took the message for a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Three digits.
    pub code: u16,
    /// RFC 3463.
    pub enhanced: Option<Enhanced>,
    /// The peer's words, often with its own id for the message: one line, bounded, otherwise untrusted.
    pub text: &'a str,
}

/// What became of one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipientResult<'a> {
    /// The transaction is not over.
    Pending,
    /// The peer has taken the message for it.
    Taken(Answer<'a>),
    /// The peer has not.
    Failed(Failure<'a>),
}

/// Where a text lies in [`Transaction::texts`].
#[derive(Clone, Copy)]
struct Span(u32, u32);

#[derive(Clone, Copy)]
enum Slot {
    /// RCPT is not answered.
    Waiting,
    /// RCPT was accepted.
    Accepted,
    Taken {
        code: u16,
        enhanced: Option<Enhanced>,
        text: Span,
    },
    Failed {
        verdict: Verdict,
        text: Span,
    },
}

/// A command of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Rset,
    Mail,
    /// With the place of the recipient.
    Rcpt(usize),
    /// DATA or BDAT.
    Transfer,
}

#[derive(Default)]
pub(crate) struct Transaction {
    /// Command lines with CRLF.
    script: Vec<u8>,
    /// So much of the script is written.
    script_at: usize,
    slots: Vec<Slot>,
    texts: String,
    /// Places of the recipients that have a RCPT in the script.
    asked: Vec<u32>,
    /// The script begins with RSET.
    reset: bool,
    pub(crate) written: usize,
    pub(crate) answered: usize,
    /// Recipients whose RCPT was accepted and whose end is open.
    pub(crate) accepted: usize,
    /// MAIL was refused: nothing more is written.
    pub(crate) sender_refused: bool,
    /// BDAT was refused before its octets were sent; they follow all the same.
    pub(crate) chunk_refused: bool,
    pub(crate) chunked: bool,
    octets: u64,
    pub(crate) octets_left: u64,
    encoder: Encoder,
}

/// Commands that may wait for replies at a time. Their replies fit into any socket's buffer, so that a
/// driver that writes before it reads cannot come to a standstill (RFC 2920 §3.1).
const WINDOW: usize = 64;
/// A message of so many octets goes with its commands in one group when BDAT is used: one round trip.
pub(crate) const SMALL_OCTETS_MAX: u64 = 64 * 1024;

impl Transaction {
    /// Begins anew. `Err` when nothing needs to be asked: everybody has a result already.
    pub(crate) fn prepare(
        &mut self,
        message: &Message<'_>,
        peer: &Extensions,
        settings: &Settings,
        reset: bool,
    ) -> Result<(), ()> {
        let Message { envelope, recipients, octets } = *message;
        self.clear(recipients.len());
        (self.reset, self.octets, self.octets_left) = (reset, octets, octets);
        self.chunked = peer.chunking && settings.chunking == Use::IfOffered;
        if reset {
            self.script.extend_from_slice(b"RSET\r\n");
        }
        let ascii = |address: &str| address.is_ascii();
        let all_ascii = envelope.reverse_path().is_none_or(ascii) && recipients.iter().all(|to| ascii(to.address));
        let utf8 = peer.smtputf8 && (envelope.smtputf8 || !all_ascii);
        if let Err((enhanced, text)) = self.write_mail(envelope, octets, utf8, peer, settings) {
            self.fail_open(Verdict::own(Class::Permanent, Stage::Mail, Some(enhanced)), text);
            return Err(());
        }
        for (place, recipient) in recipients.iter().enumerate() {
            let start = self.script.len();
            match self.write_rcpt(recipient, utf8, peer) {
                Ok(()) => self.asked.push(place as u32),
                Err((enhanced, text)) => {
                    self.script.truncate(start);
                    self.fail(place, Verdict::own(Class::Permanent, Stage::Recipient, Some(enhanced)), text);
                }
            }
        }
        if self.chunked {
            self.script.extend_from_slice(b"BDAT ");
            put_number(octets, &mut self.script);
            self.script.extend_from_slice(b" LAST\r\n");
        } else {
            self.script.extend_from_slice(b"DATA\r\n");
        }
        if self.asked.is_empty() { Err(()) } else { Ok(()) }
    }

    /// Forgets the last message and keeps the buffers.
    pub(crate) fn clear(&mut self, recipients: usize) {
        self.script.clear();
        self.slots.clear();
        self.slots.resize(recipients, Slot::Waiting);
        self.texts.clear();
        self.asked.clear();
        (self.script_at, self.written, self.answered, self.accepted) = (0, 0, 0, 0);
        (self.reset, self.sender_refused, self.chunk_refused, self.chunked) = (false, false, false, false);
        (self.octets, self.octets_left, self.encoder) = (0, 0, Encoder::default());
    }

    fn write_mail(
        &mut self,
        envelope: &Envelope,
        octets: u64,
        utf8: bool,
        peer: &Extensions,
        settings: &Settings,
    ) -> Result<(), (Enhanced, &'static str)> {
        if peer.size_octets_max.is_some_and(|octets_max| octets > octets_max) {
            return Err((Enhanced::new(5, 3, 4), "message is larger than the peer takes"));
        }
        let script = &mut self.script;
        script.extend_from_slice(b"MAIL FROM:");
        let ascii = put_path(envelope.reverse_path().unwrap_or_default(), true, script)
            .ok_or((Enhanced::new(5, 1, 7), "sender address is none"))?;
        // RFC 6531 §3.5 and §4.2: which code when the address needs it, and which when only the header does.
        if !ascii && !utf8 {
            return Err((Enhanced::new(5, 6, 7), "sender address needs SMTPUTF8, which the peer does not offer"));
        }
        if envelope.smtputf8 && !utf8 {
            return Err((Enhanced::new(5, 6, 9), "message needs SMTPUTF8, which the peer does not offer"));
        }
        if peer.size {
            script.extend_from_slice(b" SIZE=");
            put_number(octets, script);
        }
        if envelope.body == Body::EightBitMime {
            if peer.eight_bit_mime {
                script.extend_from_slice(b" BODY=8BITMIME");
            } else if settings.eight_bit == EightBit::Refuse {
                return Err((Enhanced::new(5, 6, 3), "message needs 8BITMIME, which the peer does not offer"));
            }
        }
        if utf8 {
            script.extend_from_slice(b" SMTPUTF8");
        }
        if peer.dsn {
            match envelope.ret {
                None => {}
                Some(Ret::Full) => script.extend_from_slice(b" RET=FULL"),
                Some(Ret::Headers) => script.extend_from_slice(b" RET=HDRS"),
            }
            if let Some(envid) = envelope.envid().filter(|envid| !envid.is_empty() && param::is_xtext(envid)) {
                script.extend_from_slice(b" ENVID=");
                script.extend_from_slice(envid.as_bytes());
            }
        }
        // RFC 4954 §5: what a trusted client said goes on to a peer that has AUTH.
        if let Some(auth) = envelope.auth().filter(|auth| peer.auth && !auth.is_empty()) {
            script.extend_from_slice(b" AUTH=");
            put_xtext(auth, script);
        }
        script.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn write_rcpt(
        &mut self,
        recipient: &Recipient<'_>,
        utf8: bool,
        peer: &Extensions,
    ) -> Result<(), (Enhanced, &'static str)> {
        let script = &mut self.script;
        script.extend_from_slice(b"RCPT TO:");
        let ascii =
            put_path(recipient.address, false, script).ok_or((Enhanced::new(5, 1, 3), "recipient address is none"))?;
        if !ascii && !utf8 {
            return Err((Enhanced::new(5, 6, 7), "recipient address needs SMTPUTF8, which the peer does not offer"));
        }
        if peer.dsn {
            let words = [
                (Notify::NEVER, "NEVER"),
                (Notify::SUCCESS, "SUCCESS"),
                (Notify::FAILURE, "FAILURE"),
                (Notify::DELAY, "DELAY"),
            ];
            let mut lead = " NOTIFY=";
            for (_, word) in words.iter().filter(|(bit, _)| recipient.notify.0 & bit.0 != 0) {
                script.extend_from_slice(lead.as_bytes());
                script.extend_from_slice(word.as_bytes());
                lead = ",";
            }
            // RFC 6533 §3: the UTF-8 form only inside SMTPUTF8.
            if let Some(orcpt) = recipient.orcpt.filter(|orcpt| utf8 || orcpt.is_ascii()) {
                let start = script.len();
                script.extend_from_slice(b" ORCPT=");
                script.extend_from_slice(orcpt.as_bytes());
                // As with addresses: looked at again, and nothing but this one parameter.
                let written = param::rcpt(script.get(start..).unwrap_or_default());
                if !written.is_ok_and(|params| params.orcpt == Some(orcpt) && params.notify.is_none()) {
                    script.truncate(start);
                }
            }
        }
        script.extend_from_slice(b"\r\n");
        Ok(())
    }

    // ---------------------------------------------------------------------------------- commands

    /// The command of this number.
    fn command(&self, number: usize) -> Option<Command> {
        let number = match (self.reset, number) {
            (true, 0) => return Some(Command::Rset),
            (reset, number) => number - usize::from(reset),
        };
        match number {
            0 => Some(Command::Mail),
            _ if number == self.asked.len() + 1 => Some(Command::Transfer),
            _ => self.asked.get(number - 1).map(|&place| Command::Rcpt(place as usize)),
        }
    }

    /// The command that the next reply answers.
    pub(crate) fn awaited(&self) -> Option<Command> {
        if self.answered < self.written { self.command(self.answered) } else { None }
    }

    /// Whether nothing is left to be done before the message: nobody wants it.
    pub(crate) fn is_over(&self) -> bool {
        let decided = self.answered >= usize::from(self.reset) + 1 + self.asked.len();
        self.answered == self.written && (self.sender_refused || (decided && self.accepted == 0))
    }

    /// Writes the next command, if there is one that may be written now, and says which.
    pub(crate) fn write_next(&mut self, group: bool, protocol: Protocol, out: &mut Vec<u8>) -> Option<Command> {
        let command = self.command(self.written)?;
        let waiting = self.written - self.answered;
        let small = self.octets <= SMALL_OCTETS_MAX && protocol == Protocol::Smtp;
        let may = match command {
            _ if self.sender_refused => false,
            // Octets that nobody may want are sent unasked only when they are few. LMTP: how many replies
            // BDAT gets depends on the recipients (RFC 2033 §4.3), so they must be known.
            Command::Transfer if self.chunked => waiting == 0 || (group && small && waiting < WINDOW),
            _ => waiting < if group { WINDOW } else { 1 },
        };
        if !may {
            return None;
        }
        let rest = self.script.get(self.script_at..)?;
        let line = rest.get(..=memchr(b'\n', rest)?)?;
        out.extend_from_slice(line);
        self.script_at += line.len();
        self.written += 1;
        Some(command)
    }

    // ---------------------------------------------------------------------------------- the message

    /// Takes message octets; they are no more than are left.
    pub(crate) fn push(&mut self, octets: &[u8], out: &mut Vec<u8>) -> Result<(), ()> {
        let framing = if self.chunked { Framing::Counted } else { Framing::Dots };
        self.octets_left = self.octets_left.checked_sub(octets.len() as u64).ok_or(())?;
        self.encoder.push(octets, framing, out).map_err(|_| ())?;
        match self.octets_left {
            0 => self.encoder.finish(framing, out).map_err(|_| ()),
            _ => Ok(()),
        }
    }

    // ---------------------------------------------------------------------------------- results

    pub(crate) fn results(&self) -> impl ExactSizeIterator<Item = RecipientResult<'_>> {
        let text = |span: Span| self.texts.get(span.0 as usize..span.1 as usize).unwrap_or_default();
        self.slots.iter().map(move |slot| match *slot {
            Slot::Waiting | Slot::Accepted => RecipientResult::Pending,
            Slot::Taken { code, enhanced, text: span } => {
                RecipientResult::Taken(Answer { code, enhanced, text: text(span) })
            }
            Slot::Failed { verdict, text: span } => RecipientResult::Failed(verdict.with(text(span))),
        })
    }

    fn keep(&mut self, text: &str) -> Span {
        let start = self.texts.len() as u32;
        self.texts.push_str(text);
        Span(start, self.texts.len() as u32)
    }

    /// RCPT was accepted.
    pub(crate) fn accept(&mut self, place: usize) {
        if let Some(slot @ Slot::Waiting) = self.slots.get_mut(place) {
            *slot = Slot::Accepted;
            self.accepted += 1;
        }
    }

    /// This recipient will not get the message.
    pub(crate) fn fail(&mut self, place: usize, verdict: Verdict, text: &str) {
        if let Some(slot @ Slot::Waiting) = self.slots.get_mut(place) {
            let start = self.texts.len() as u32;
            self.texts.push_str(text);
            *slot = Slot::Failed { verdict, text: Span(start, self.texts.len() as u32) };
        }
    }

    /// Nobody whose end is open will get the message.
    pub(crate) fn fail_open(&mut self, verdict: Verdict, text: &str) {
        let text = self.keep(text);
        for slot in self.slots.iter_mut().filter(|slot| matches!(slot, Slot::Waiting | Slot::Accepted)) {
            *slot = Slot::Failed { verdict, text };
        }
        self.accepted = 0;
    }

    /// The reply to the message: for all that were accepted, or for the first of them (RFC 2033 §4.2).
    pub(crate) fn settle(&mut self, reply: &Reader, protocol: Protocol) {
        let text = self.keep(&reply.text);
        let result = match reply.code {
            code @ 200..=299 => Slot::Taken { code, enhanced: reply.enhanced, text },
            _ => Slot::Failed { verdict: Verdict::of_reply(reply, Stage::Final), text },
        };
        let some = if protocol == Protocol::Lmtp { 1 } else { self.accepted };
        // Those that were accepted before are passed over again for each; a thousand times a thousand is little.
        for slot in self.slots.iter_mut().filter(|slot| matches!(slot, Slot::Accepted)).take(some) {
            *slot = result;
        }
        self.accepted -= some.min(self.accepted);
    }
}

/// Appends `<address>`; returns whether it is ASCII, or `None` when it is no address. What was accepted
/// once is looked at again: nothing may become a second command here.
fn put_path(address: &str, null: bool, to: &mut Vec<u8>) -> Option<bool> {
    let start = to.len();
    to.push(b'<');
    to.extend_from_slice(address.as_bytes());
    to.push(b'>');
    match path::parse(to.get(start..)?) {
        Ok((Path::Null, b"")) if null => Some(true),
        Ok((Path::Postmaster, b"")) if !null => Some(true),
        Ok((Path::Mailbox(mailbox), b"")) => Some(!mailbox.needs_smtputf8()),
        _ => None,
    }
}

fn put_number(number: u64, to: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = write!(to, "{number}");
}

/// RFC 3461 §4.
fn put_xtext(text: &str, to: &mut Vec<u8>) {
    for b in text.bytes() {
        match b {
            b'!'..=b'~' if b != b'+' && b != b'=' => to.push(b),
            _ => drop(write!(to, "+{b:02X}")),
        }
    }
}
