//! A mail transaction: from MAIL to the end of its data. Its buffers are on loan from [`Pools`].

use crate::body::Decoder;
use crate::envelope::{Envelope, Notify};
use crate::header::Scanner;
use crate::host::{Context, Note, Pools, Trouble};
use crate::id::QueueId;
use crate::reply::{self, Reply};

/// One mail transaction.
#[derive(Default)]
pub(crate) struct Transaction {
    pub(crate) envelope: Envelope,
    /// The address that MAIL or RCPT asks for, while policy or the directory decides.
    pub(crate) address: String,
    /// Parameters of that RCPT.
    pub(crate) notify: Notify,
    pub(crate) orcpt: String,
    /// The message, once it was begun.
    pub(crate) id: Option<QueueId>,
    pub(crate) decoder: Decoder,
    pub(crate) header: Scanner,
    /// Message octets received.
    pub(crate) octets: u64,
    pub(crate) octets_max: u64,
    /// Why the message will be refused at its end.
    pub(crate) refusal: Option<&'static Reply>,
    /// Addresses of the header From that are still to be asked about.
    pub(crate) authors: Vec<String>,
    /// Received and fix-ups.
    pub(crate) prepend: Vec<u8>,
}

impl Transaction {
    /// An empty one.
    pub(crate) fn begin(pools: &mut Pools) -> Box<Self> {
        pools.transactions.pop().unwrap_or_default()
    }

    /// Octets of a message may come.
    pub(crate) fn begin_message(&mut self, cx: &mut Context<'_>) -> Result<(), &'static Reply> {
        let id = cx.host.begin_message(self.envelope.size).map_err(Trouble::reply)?;
        self.id = Some(id);
        self.header.reset(cx.listener.limits.header_octets_max, cx.listener.role.is_submission());
        Ok(())
    }

    /// Hands message octets to the sink, unless the message is refused already; then they are only counted.
    /// Returns how many were taken: fewer when the sink is full.
    pub(crate) fn keep(&mut self, text: &[u8], cx: &mut Context<'_>) -> usize {
        if self.decoder.saw_bare() {
            self.refuse(&reply::BARE_IN_MESSAGE, cx);
        }
        if self.octets + text.len() as u64 > self.octets_max {
            self.refuse(&reply::TOO_BIG, cx);
        }
        let taken = if self.refusal.is_some() { text.len() } else { cx.host.write(text).min(text.len()) };
        if self.refusal.is_none() && !self.header.is_done() {
            self.header.push(text.get(..taken).unwrap_or_default());
        }
        self.octets += taken as u64;
        taken
    }

    /// The message will be refused: what was kept of it is forgotten now, the rest is followed to its end.
    fn refuse(&mut self, reply: &'static Reply, cx: &mut Context<'_>) {
        if self.refusal.is_none() {
            self.refusal = Some(reply);
            if self.id.take().is_some() {
                cx.host.abort_message();
                cx.host.note(Note::Aborted { reason: reply.rule, octets: self.octets });
            }
        }
    }

    /// Ends it without a message: whatever was received is forgotten.
    pub(crate) fn abandon(self: Box<Self>, reason: &'static str, cx: &mut Context<'_>) {
        if self.id.is_some() {
            cx.host.abort_message();
            cx.host.note(Note::Aborted { reason, octets: self.octets });
        }
        self.recycle(cx.pools);
    }

    /// Gives the buffers back.
    pub(crate) fn recycle(mut self: Box<Self>, pools: &mut Pools) {
        let octets = self.envelope.text_octets() + self.header.octets_held();
        if pools.transactions.len() >= POOLED_MAX || octets > POOLED_OCTETS_MAX {
            return;
        }
        self.envelope.clear();
        self.address.clear();
        self.orcpt.clear();
        self.authors.clear();
        self.prepend.clear();
        (self.notify, self.id, self.refusal) = (Notify::default(), None, None);
        (self.octets, self.octets_max) = (0, 0);
        self.decoder = Decoder::default();
        self.header.reset(0, false);
        pools.transactions.push(self);
    }
}

/// How many idle sets of buffers an event loop keeps.
const POOLED_MAX: usize = 64;
/// Buffers that grew beyond this are not kept.
const POOLED_OCTETS_MAX: usize = 16 * 1024;
