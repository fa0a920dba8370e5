//! The last octet has arrived: what only the whole header can say. On submission roles every address in it is fully
//! qualified (RFC 6409 §4.2), and each author of From is one that the identity may send as (RFC 6409 §6.3).
//!
//! ```text
//! message_complete ─► header ─► authors, one after another ─► policy ─► Permit ─► the next one … commit
//!                                                                    └► Ask: the directory ─► author_answered
//! ```

use super::Session;
use super::mail::granted;
use super::state::{Question, State};
use crate::header::{self, Field};
use crate::host::{Context, Outcome};
use crate::listener::SenderCheck;
use crate::path;
use crate::policy::Verdict;
use crate::reply::{self, Reply};
use crate::transaction::Transaction;

impl Session {
    pub(super) fn message_complete(&mut self, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
        let checked = if let Some(reply) = transaction.refusal {
            Err(reply)
        } else if transaction.decoder.saw_bare() {
            Err(&reply::BARE_IN_MESSAGE)
        } else if transaction.header.received() >= cx.listener.limits.received_max {
            Err(&reply::LOOP)
        } else if cx.listener.role.is_submission() {
            read_header(&mut transaction, cx)
        } else {
            Ok(())
        };
        match checked {
            Ok(()) => self.check_authors(transaction, cx),
            Err(reply) => self.message_refused(transaction, reply, cx),
        }
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

    pub(super) fn author_answered(
        &mut self,
        mut transaction: Box<Transaction>,
        outcome: &Outcome,
        cx: &mut Context<'_>,
    ) {
        match granted(outcome, &reply::FROM_NOT_OWNED) {
            Ok(()) => {
                transaction.authors.pop();
                self.check_authors(transaction, cx);
            }
            Err(reply) => self.message_refused(transaction, reply, cx),
        }
    }
}

/// Refuses addresses that RFC 6409 §4.2 refuses, and collects the authors that §6.3 is about.
fn read_header(transaction: &mut Transaction, cx: &Context<'_>) -> Result<(), &'static Reply> {
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
