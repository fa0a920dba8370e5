//! When delivery is told how far the log is durable: it need not wake up for every group of a busy writer.
//!
//! ```text
//! sync ─► note ─► waits ─┬─ the last one was long ago ──────────────► take
//!                        └─ it was just now: with a later sync, or when the committer has had nothing to do until `due`
//! ```

use std::time::{Duration, Instant};

use crate::Doorbell;

/// Between doorbells of one writer.
pub(crate) const BELL_EVERY: Duration = Duration::from_millis(2);

/// What delivery has been told, and when.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Option<Instant>,
    /// The newest, if it has not been told yet.
    waits: Option<Doorbell>,
}

impl Bell {
    /// So far it is durable now; what was noted before and not told is forgotten.
    pub(crate) fn note(&mut self, bell: Doorbell) {
        self.waits = Some(bell);
    }

    /// When the one that waits may be told; `None`: none does, or there was none before it.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waits.and(self.rung).map(|rung| rung + BELL_EVERY)
    }

    /// The one to tell, unless the last one was just now.
    pub(crate) fn take_if_due(&mut self, now: Instant) -> Option<Doorbell> {
        if self.due().is_none_or(|due| due <= now) { self.take(now) } else { None }
    }

    /// The one to tell, whenever the last one was.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Doorbell> {
        let bell = self.waits.take();
        if bell.is_some() {
            self.rung = Some(now);
        }
        bell
    }
}
