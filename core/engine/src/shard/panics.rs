//! A panic in a session's work ends that session with 421 and is counted; the others do not notice (CONTRACT C27).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use telemetry::{Counter, Event, Level};

use super::Shard;
use crate::connection::{Stage, session_id};
use crate::setup::Notice;
use crate::slab::Token;

impl Shard {
    /// Runs a piece of a session's work; a panic in it ends that session only.
    pub(super) fn guarded(&mut self, token: Token, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.panicked(token);
        }
    }

    fn panicked(&mut self, token: Token) {
        let now = self.local.now;
        self.out.clear();
        self.wire.clear();
        self.shared.panics.fetch_add(1, Ordering::Relaxed);
        self.local.watch.add(Counter::Panics, 1);
        let id = session_id(self.local.session_base, token);
        let event = Event::log("panic", Level::Error, now.unix_ms).session(id.0);
        self.local.watch.tell(&event, now.ms);
        self.panics.push_back(now.ms);
        while self.panics.front().is_some_and(|&then| now.ms - then > 60_000) {
            self.panics.pop_front();
        }
        if self.panics.len() > PANICS_PER_MINUTE_MAX {
            self.panics.clear();
            (self.shared.notify)(Notice::Panicking);
        }
        // The session's own state is not to be trusted any more, so it is not asked for its last words.
        let said = catch_unwind(AssertUnwindSafe(|| {
            if self.slots.get_mut(token).is_some_and(|slot| slot.stage == Stage::Open && !slot.is_unsent()) {
                self.out.extend_from_slice(smtp::reply::INTERNAL.line.as_bytes());
                self.out.extend_from_slice(b"\r\n");
                if let Some(slot) = self.slots.get_mut(token) {
                    slot.stage = Stage::Closing;
                }
                self.flush(token);
            }
            self.end_session(token, "panic");
        }));
        if said.is_err() {
            self.out.clear();
            self.wire.clear();
        }
        self.forget(token);
    }
}

/// More panics than this in a minute, and the process should be replaced (CONTRACT C27).
const PANICS_PER_MINUTE_MAX: usize = 10;
