//! BDAT (RFC 3030 §2): whatever is wrong, exactly as many octets follow as it says, and are read; then comes the one
//! reply.
//!
//! ```text
//! BDAT n ─► accepted ─► Chunk ─► n octets into the message ─► BetweenChunks, or its end when it is the LAST
//!        ─► refused  ─► Swallow ─► n octets dropped ─► the reply ─► Broken, where there was a transaction
//!        ─► n is no number: the reply now, Broken            ─► n is beyond all bounds: 421
//! ```

use std::mem;

use super::state::{State, Then};
use super::{Next, Session};
use crate::host::Context;
use crate::param;
use crate::reply::{self, Reply};
use crate::transaction::Transaction;

impl Session {
    /// `refusal`: what stands against the command before its arguments are looked at.
    pub(super) fn bdat(&mut self, args: &[u8], refusal: Option<&'static Reply>, cx: &mut Context<'_>) {
        let then = match self.state {
            State::Transaction(_) | State::BetweenChunks(_) | State::Broken => Then::Broken,
            _ => Then::Ready,
        };
        let (octets, last) = match (read_bdat(args), refusal) {
            (Ok((octets, _)), Some(reply)) => {
                self.leave(reply.rule, cx);
                return self.swallow(octets, reply, then, cx);
            }
            (Ok(chunk), None) => chunk,
            (Err(reply), _) if reply.code == 421 => return self.leave_and_close("chunk", reply, cx),
            // How many octets follow cannot be known.
            (Err(reply), refusal) => {
                self.leave("chunk", cx);
                self.state = then.into();
                return self.reply(refusal.unwrap_or(reply), cx);
            }
        };
        let (mut transaction, first) = match mem::take(&mut self.state) {
            State::Transaction(transaction) => (transaction, true),
            State::BetweenChunks(transaction) => (transaction, false),
            _ => return self.swallow(octets, &reply::MAIL_FIRST, then, cx),
        };
        let accepted = if transaction.envelope.recipients().len() == 0 {
            Err(&reply::NO_VALID_RECIPIENTS)
        } else if octets > transaction.octets_max.saturating_sub(transaction.octets) {
            Err(&reply::TOO_BIG)
        } else if first {
            transaction.begin_message(cx)
        } else {
            Ok(())
        };
        match accepted {
            Ok(()) if octets == 0 => self.chunk_done(last, transaction, cx),
            Ok(()) => self.state = State::Chunk { left: octets, last, transaction },
            Err(reply) => {
                transaction.abandon(reply.rule, cx);
                self.swallow(octets, reply, then, cx);
            }
        }
    }

    /// Takes octets of an accepted chunk from the front of `input`. Returns how many, and what to do when that is not
    /// simply to go on.
    pub(super) fn chunk_octets(&mut self, input: &[u8], cx: &mut Context<'_>) -> (usize, Option<Next>) {
        if input.is_empty() {
            return (0, Some(Next::Read));
        }
        let State::Chunk { left, last, mut transaction } = mem::take(&mut self.state) else { return (0, None) };
        let text = front(input, left);
        let taken = transaction.keep(text, cx);
        transaction.decoder.chunk(text.get(..taken).unwrap_or_default());
        let left = left - taken as u64;
        if left == 0 {
            self.chunk_done(last, transaction, cx);
            return (taken, None);
        }
        self.state = State::Chunk { left, last, transaction };
        (taken, (taken < text.len()).then_some(Next::SinkFull))
    }

    fn chunk_done(&mut self, last: bool, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
        if last {
            transaction.decoder.finish_chunks();
            self.message_complete(transaction, cx);
        } else {
            self.state = State::BetweenChunks(transaction);
            self.reply(&reply::CHUNK_OK, cx);
        }
    }

    /// Begins to drop the `octets` of a refused chunk. Those that have nobody to go to are bounded for the whole session
    /// (DECISIONS C10); those of a message that is too big, by what a message may have.
    fn swallow(&mut self, octets: u64, reply: &'static Reply, then: Then, cx: &mut Context<'_>) {
        if std::ptr::eq(reply, &reply::TOO_BIG) {
            // A size that will never do is told as that, lest the client try again for days.
            if octets > cx.listener.limits.message_octets_max {
                return self.close(reply, cx);
            }
        } else {
            if octets > SWALLOW_OCTETS_MAX.saturating_sub(self.swallowed.into()) {
                return self.close(&reply::TOO_MUCH_DATA, cx);
            }
            self.swallowed = self.swallowed.saturating_add(octets as u32);
        }
        self.swallow_rest(octets, reply, then, cx);
    }

    /// Drops octets of a refused chunk from the front of `input`. Returns as [`Session::chunk_octets`].
    pub(super) fn swallow_octets(&mut self, input: &[u8], cx: &mut Context<'_>) -> (usize, Option<Next>) {
        if input.is_empty() {
            return (0, Some(Next::Read));
        }
        let State::Swallow { left, reply, then } = self.state else { return (0, None) };
        let octets = front(input, left).len();
        self.swallow_rest(left - octets as u64, reply, then, cx);
        (octets, None)
    }

    fn swallow_rest(&mut self, left: u64, reply: &'static Reply, then: Then, cx: &mut Context<'_>) {
        if left > 0 {
            self.state = State::Swallow { left, reply, then };
        } else {
            self.state = then.into();
            self.reply(reply, cx);
        }
    }
}

/// What of `input` belongs to a chunk that owes `left` octets.
fn front(input: &[u8], left: u64) -> &[u8] {
    let octets = usize::try_from(left).unwrap_or(usize::MAX);
    input.get(..octets).unwrap_or(input)
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

/// Octets that chunks without a recipient may have together (DECISIONS C10).
pub(super) const SWALLOW_OCTETS_MAX: u64 = 1 << 20;
