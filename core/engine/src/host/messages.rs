//! A message: begun in the spool, written, and made durable, or handed over where its next hop decides.
//!
//! ```text
//! begin ─► entry ─► write … ─► commit ─► late? ─► queue: with the others of this turn, at its end
//!                                              └► hand over: delivery asks the next hop; its word comes back through `passing`
//! ```

use smtp::host::{Outcome, Trouble};
use smtp::id::QueueId;
use spool::Commit;

use super::TurnHost;
use crate::connection::{Message, Pending};
use crate::now::Now;

impl TurnHost<'_> {
    pub(super) fn begin(&mut self, size: Option<u64>) -> Result<QueueId, Trouble> {
        let id = QueueId::new(self.local.now.unix_ms, u128::from_le_bytes(self.local.entropy.take()));
        let entry = self.local.spool.begin(id, size).map_err(trouble)?;
        let spare = &mut self.local.spare;
        let held = self.held.get_or_insert_with(|| spare.pop().unwrap_or_default());
        held.message = Some(Message { entry, last_ms: self.local.now.ms });
        (held.data_octets, held.looked, held.looked_octets) = (0, self.local.now.tick, 0);
        Ok(id)
    }

    /// How many of `octets` there is room for, now that they are kept.
    pub(super) fn append(&mut self, octets: &[u8]) -> usize {
        let Some(held) = self.held else { return octets.len() };
        let Some(message) = &mut held.message else { return octets.len() };
        let taken = message.entry.append(octets);
        message.last_ms = self.local.now.ms;
        held.data_octets += taken as u64;
        taken
    }

    pub(super) fn commit(&mut self, envelope: &smtp::Envelope, prepend: &[u8]) -> Result<Commit, Trouble> {
        let held = self.held.as_mut().ok_or(Trouble::Temporary)?;
        let Message { entry, last_ms } = held.message.take().ok_or(Trouble::Temporary)?;
        // Looked at before the commit is handed over; from then on the answer is the sync's (DECISIONS H12).
        if self.local.now.ms.saturating_sub(last_ms) > self.port.deadlines.data_deadline_ms {
            return Err(Trouble::Late);
        }
        self.local.envelope.clear();
        envelope.encode(&mut self.local.envelope);
        if self.shared.passes.as_ref().is_some_and(|passes| envelope.recipients().any(|to| passes(&to))) {
            return self.hand_over(entry, last_ms, prepend);
        }
        // Those of one turn go together: the shard gives the word at its end.
        let commit = self.local.spool.queue(entry, &self.local.envelope, prepend, self.token.word());
        if commit == Commit::Pending {
            self.local.queued = true;
            // Nobody is asked: the place for a question is when it began.
            (*self.pending, *self.question) = (Pending::Commit, link::monotonic_us() as u32);
        }
        Ok(commit)
    }

    /// Gives the message to delivery, which asks its next hop. The client is answered in time, whatever happens;
    /// delivery hears of an earlier end, so that its answer can come first (DECISIONS B4).
    fn hand_over(&mut self, entry: spool::Entry, last_ms: u64, prepend: &[u8]) -> Result<Commit, Trouble> {
        let Now { ms, unix_ms, .. } = self.local.now;
        let deadline_ms = self.port.deadlines.data_deadline_ms;
        let until_ms = last_ms + deadline_ms.saturating_sub(ANSWER_AHEAD_MS).max(deadline_ms / 2);
        let at = self.local.passing.begin(self.token, entry.id(), unix_ms, until_ms, ms).ok_or(Trouble::Temporary)?;
        self.local.spool.hand_over(entry, &self.local.envelope, prepend, at.word());
        self.wait_for(Pending::Passing, at.index(), (last_ms + deadline_ms).saturating_sub(ms));
        Ok(Commit::Pending)
    }
}

fn trouble(trouble: spool::Trouble) -> Trouble {
    match trouble {
        spool::Trouble::Temporary => Trouble::Temporary,
        spool::Trouble::NoSpace => Trouble::NoSpace,
    }
}

/// The outcome of a commit.
pub fn committed(result: Result<(), spool::Trouble>) -> Outcome {
    Outcome::Commit(result.map_err(trouble))
}

/// How much earlier than its client delivery gives up.
const ANSWER_AHEAD_MS: u64 = 10_000;
