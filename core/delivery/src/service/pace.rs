//! When outcomes go to the acknowledgement log, and whether the disk is waited for.
//!
//! ```text
//! must_last ──────────────► Sync with the next step: one for all of a turn
//! what may repeat ────────► Write, at most every 5 ms: one for several turns, and no sync
//! one that failed ────────► the same again, a second later; sooner when something else must last
//! ```
//!
//! A message that nobody can tell from its twin ([`crate::Route::may_repeat`]) loses nothing when a crash of the
//! machine undoes its entry: no promise needs the sync. Everything else is synced before anything new is begun, so that
//! a crash makes a twin only of what was under way (CONTRACT C4).

use std::time::{Duration, Instant};

/// Between writes of what may repeat.
pub(super) const WRITE_EVERY: Duration = Duration::from_millis(5);
/// After one that failed.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Pace {
    /// When what may repeat is written, or what failed is tried again.
    at: Instant,
    lasting: Lasting,
}

/// Whether the log holds off something that has to be durable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Nothing,
    /// It failed, and waits for its time.
    Failed,
    Now,
}

/// What is to be done with the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Write,
    Sync,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: now, lasting: Lasting::Nothing }
    }

    /// Something ended that must be durable before anything else is begun.
    pub(super) fn must_last(&mut self) {
        self.lasting = Lasting::Now;
    }

    /// What is due.
    pub(super) fn step(&self, now: Instant) -> Option<Step> {
        match self.lasting {
            Lasting::Now => Some(Step::Sync),
            _ if now < self.at => None,
            Lasting::Failed => Some(Step::Sync),
            Lasting::Nothing => Some(Step::Write),
        }
    }

    /// It was done; `failed`: some of it has to be tried again.
    pub(super) fn done(&mut self, now: Instant, failed: bool) {
        self.at = now + if failed { AGAIN_AFTER } else { WRITE_EVERY };
        self.lasting = match self.lasting {
            Lasting::Now | Lasting::Failed if failed => Lasting::Failed,
            _ => Lasting::Nothing,
        };
    }

    /// When a step is due at the latest, if anything has ended.
    pub(super) fn at(&self) -> Instant {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_nanos(1);

    #[test]
    fn what_may_repeat_is_written_once_for_several_turns() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.step(start), Some(Step::Write));
        pace.done(start, false);
        assert_eq!(pace.step(start), None);
        assert_eq!(pace.step(start + WRITE_EVERY - MOMENT), None);
        assert_eq!(pace.at(), start + WRITE_EVERY);
        assert_eq!(pace.step(start + WRITE_EVERY), Some(Step::Write));
    }

    #[test]
    fn what_must_last_is_synced_with_the_turn() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for turn in 0..3 {
            let now = start + turn * MOMENT;
            pace.must_last();
            assert_eq!(pace.step(now), Some(Step::Sync));
            pace.done(now, false);
            assert_eq!(pace.step(now), None, "it took all others along");
        }
    }

    #[test]
    fn what_failed_is_tried_again_in_the_same_way() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.must_last();
        pace.done(start, true);
        assert_eq!(pace.step(start + AGAIN_AFTER - MOMENT), None, "a broken disk is not asked all the time");
        assert_eq!(pace.step(start + AGAIN_AFTER), Some(Step::Sync), "a write is not enough");
        pace.done(start + AGAIN_AFTER, true);
        pace.must_last();
        assert_eq!(pace.step(start + AGAIN_AFTER), Some(Step::Sync), "something new does not wait");
        pace.done(start + AGAIN_AFTER, false);
        assert_eq!(pace.step(start + AGAIN_AFTER + WRITE_EVERY), Some(Step::Write));
        pace.done(start + 2 * AGAIN_AFTER, true);
        assert_eq!(pace.step(start + 3 * AGAIN_AFTER - MOMENT), None);
        assert_eq!(pace.step(start + 3 * AGAIN_AFTER), Some(Step::Write));
    }
}
