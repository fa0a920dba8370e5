//! DATA (RFC 5321 §4.1.1.4): from 354 to CRLF "." CRLF, in whatever pieces it comes.

use std::mem;

use super::chunks::SWALLOW_OCTETS_MAX;
use super::pipelining::Place;
use super::state::State;
use super::{Next, Session};
use crate::body::Piece;
use crate::host::Context;
use crate::reply;

impl Session {
    pub(super) fn data(&mut self, args: &[u8], place: Place, cx: &mut Context<'_>) {
        let refusal = match &self.state {
            State::Transaction(_) | State::BetweenChunks(_) if !args.is_empty() => Some(&reply::NO_ARGUMENTS),
            State::BetweenChunks(_) => Some(&reply::BDAT_BEGUN),
            // RFC 5321 §3.3: no go-ahead without a valid recipient, or a pipelining client would send a
            // message that we have nobody to give to.
            State::Transaction(transaction) if transaction.envelope.recipients().len() == 0 => {
                Some(&reply::NO_VALID_RECIPIENTS)
            }
            State::Transaction(_) => None,
            _ => Some(&reply::MAIL_FIRST),
        };
        if let Some(reply) = refusal {
            return self.reply(reply, cx);
        }
        if self.is_too_early(place, cx) {
            return self.spoke_too_early(cx);
        }
        let State::Transaction(mut transaction) = mem::take(&mut self.state) else { return };
        match transaction.begin_message(cx) {
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

    /// Takes message octets from the front of `input`. Returns how many, and what to do when that is not
    /// simply to go on.
    pub(super) fn data_octets(&mut self, input: &[u8], cx: &mut Context<'_>) -> (usize, Option<Next>) {
        if input.is_empty() {
            return (0, Some(Next::Read));
        }
        let State::Data(mut transaction) = mem::take(&mut self.state) else { return (0, None) };
        let mut used = 0;
        while let Some(rest) = input.get(used..).filter(|rest| !rest.is_empty()) {
            let before = transaction.decoder;
            match transaction.decoder.data(rest) {
                Piece::Framing(octets) => used += octets,
                Piece::Text(octets) => {
                    let text = rest.get(..octets).unwrap_or_default();
                    let taken = transaction.keep(text, cx);
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
}
