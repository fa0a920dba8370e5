//! The end of a message: our lines go before it, the sink makes it durable or its next hop takes it, and only then it
//! is 250 (RFC 5321 §6.1).
//!
//! ```text
//! commit ─► Received, fix-ups ─► sink ─► durable: 250, queued as
//!                                     ─► passed: the next hop's own words
//!                                     ─► trouble: 4yz, and the message is forgotten
//! ```

use std::io::Write as _;

use super::Session;
use super::hello::Hello;
use super::state::{Question, State};
use crate::header::Field;
use crate::host::{Context, Effect, NextHopReply, Note, Outcome};
use crate::id::QueueId;
use crate::reply::{self, Reply};
use crate::trace::{self, Greeted};
use crate::transaction::Transaction;

impl Session {
    pub(super) fn commit(&mut self, mut transaction: Box<Transaction>, cx: &mut Context<'_>) {
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
            Some(outcome) => self.committed(transaction, outcome, cx),
            None => self.state = State::Asking(Question::Commit, transaction),
        }
    }

    pub(super) fn committed(&mut self, transaction: Box<Transaction>, outcome: Outcome, cx: &mut Context<'_>) {
        let refusal = match (outcome, transaction.id) {
            (Outcome::Commit(Ok(())), Some(id)) => return self.queued(transaction, id, cx),
            (Outcome::Passed(reply), Some(id)) => return self.passed(transaction, id, &reply, cx),
            (Outcome::Commit(Err(trouble)), _) => trouble.reply(),
            _ => &reply::LOCAL_TROUBLE,
        };
        // The sink has forgotten the message already.
        transaction.recycle(cx.pools);
        self.reply(refusal, cx);
    }

    fn queued(&mut self, transaction: Box<Transaction>, id: QueueId, cx: &mut Context<'_>) {
        cx.out.extend_from_slice(b"250 2.0.0 Ok: queued as ");
        cx.out.extend_from_slice(&id.text());
        cx.out.extend_from_slice(b"\r\n");
        self.message_accepted(transaction, id, "queued", cx);
    }

    /// The next hop has decided, and its words go to the client.
    fn passed(&mut self, transaction: Box<Transaction>, id: QueueId, reply: &NextHopReply, cx: &mut Context<'_>) {
        // Writing to a Vec cannot fail.
        let _ = write!(cx.out, "{} ", reply.code);
        cx.out.extend_from_slice(reply.text.as_bytes());
        cx.out.extend_from_slice(b"\r\n");
        if reply.code < 400 {
            self.message_accepted(transaction, id, "passed", cx);
        } else {
            transaction.recycle(cx.pools);
            self.replied(reply.code, "passed.refused", cx);
        }
    }

    /// A reply was written that says so; `rule` names it.
    fn message_accepted(
        &mut self,
        transaction: Box<Transaction>,
        id: QueueId,
        rule: &'static str,
        cx: &mut Context<'_>,
    ) {
        self.messages = self.messages.saturating_add(1);
        self.patience.accepted();
        self.replied(250, rule, cx);
        cx.host.note(Note::Accepted {
            id,
            octets: transaction.octets,
            recipients: transaction.envelope.recipients().len(),
            reverse_path: transaction.envelope.reverse_path().unwrap_or_default(),
        });
        transaction.recycle(cx.pools);
    }

    /// The message has come to its end and is not taken. A failed BDAT leaves the transaction broken only while chunks may
    /// still follow; this was the last.
    pub(super) fn message_refused(
        &mut self,
        transaction: Box<Transaction>,
        reply: &'static Reply,
        cx: &mut Context<'_>,
    ) {
        transaction.abandon(reply.rule, cx);
        self.reply(reply, cx);
    }
}
