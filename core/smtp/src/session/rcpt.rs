//! RCPT (RFC 5321 §4.1.1.3): a forward-path, and whether it can be reached. One that is refused leaves the others.
//!
//! ```text
//! arguments ─► room in the envelope ─► limits ─► policy ─► Permit ─► envelope
//!                                                       ─► Ask: the directory, about the mailbox
//! ```

use std::mem;

use super::Session;
use super::state::{Question, State};
use crate::envelope::{Notify, Recipient};
use crate::host::{Allowance, Charge, Context, Effect, Outcome, RecipientOutcome};
use crate::param;
use crate::path::Path;
use crate::policy::Verdict;
use crate::reply::{self, Reply};
use crate::transaction::Transaction;

impl Session {
    pub(super) fn rcpt(&mut self, args: &[u8], cx: &mut Context<'_>) {
        let mut transaction = match mem::take(&mut self.state) {
            State::Transaction(transaction) => transaction,
            state => {
                let between_chunks = matches!(state, State::BetweenChunks(_));
                self.state = state;
                return self.reply(if between_chunks { &reply::BDAT_BEGUN } else { &reply::MAIL_FIRST }, cx);
            }
        };
        match self.read_rcpt(args, &mut transaction, cx) {
            Ok(Verdict::Permit) => self.rcpt_permitted(transaction, "", cx),
            Ok(Verdict::Refuse(reply)) | Err(reply) => self.rcpt_refused(transaction, reply, cx),
            Ok(Verdict::Ask) => match cx.host.perform(Effect::Recipient { address: &transaction.address }) {
                Some(outcome) => self.rcpt_answered(transaction, &outcome, cx),
                None => self.state = State::Asking(Question::Rcpt, transaction),
            },
        }
    }

    /// Reads the arguments into `transaction`, and says what policy says about them.
    fn read_rcpt(
        &self,
        args: &[u8],
        transaction: &mut Transaction,
        cx: &mut Context<'_>,
    ) -> Result<Verdict, &'static Reply> {
        let limits = &cx.listener.limits;
        let (path, rest) = self.path_argument(args, b"TO:", &reply::BAD_RCPT, &reply::BAD_RECIPIENT)?;
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

    pub(super) fn rcpt_answered(&mut self, transaction: Box<Transaction>, outcome: &Outcome, cx: &mut Context<'_>) {
        match outcome {
            Outcome::Recipient(RecipientOutcome::Exists { mailbox }) => self.rcpt_permitted(transaction, mailbox, cx),
            Outcome::Recipient(RecipientOutcome::Unknown) => {
                self.rcpt_refused(transaction, &reply::UNKNOWN_RECIPIENT, cx);
            }
            _ => self.rcpt_refused(transaction, &reply::DIRECTORY_TROUBLE, cx),
        }
    }

    fn rcpt_permitted(&mut self, mut transaction: Box<Transaction>, mailbox: &str, cx: &mut Context<'_>) {
        let Transaction { envelope, address, notify, orcpt, .. } = &mut *transaction;
        let orcpt = (!orcpt.is_empty()).then_some(&orcpt[..]);
        envelope.push(Recipient { address, mailbox, orcpt, notify: *notify });
        self.state = State::Transaction(transaction);
        self.reply(&reply::RECIPIENT_OK, cx);
    }

    fn rcpt_refused(&mut self, transaction: Box<Transaction>, reply: &'static Reply, cx: &mut Context<'_>) {
        self.state = State::Transaction(transaction);
        self.reply(reply, cx);
    }
}
