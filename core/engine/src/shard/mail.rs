//! What other threads tell a shard: the spool about messages, the worker's handle about everything else.

use std::sync::Arc;

use link::Link;
use plugin_host::RemoteLibrary;
use telemetry::{Counter, Histogram};

use super::drain::Drain;
use super::{DELIVERY, DIRECTORY, RUNNERS, Shard};
use crate::connection::{Pending, flag};
use crate::host::committed;
use crate::slab::Token;

/// What other threads tell a shard.
pub enum Mail {
    /// A commit has ended.
    Committed(Token, Result<(), spool::Trouble>),
    /// The spool has room again.
    Room,
    /// A message that is not kept has its file; where it stands in [`crate::passing`].
    Handed(Token, Result<spool::Handed, spool::Trouble>),
    /// A new link to the directory.
    Directory(Link),
    /// A new link to delivery.
    Delivery(Link),
    /// A link to a process that runs mechanisms: which library, which edition, whether it has described itself.
    Runner(Arc<RemoteLibrary>, u32, Link, bool),
    /// Accept nobody; end idle sessions after the first time, all after the second, milliseconds from now.
    Drain(u64, u64),
    /// End all sessions now.
    Stop,
}

impl Shard {
    pub(super) fn take_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Committed(token, result) => {
                if result.is_err() {
                    self.local.watch.add(Counter::SpoolFailures, 1);
                }
                let waiting = self.slots.get_mut(token).filter(|slot| slot.pending == Pending::Commit);
                if let Some(began_us) = waiting.map(|slot| slot.question) {
                    let took_us = (link::monotonic_us() as u32).wrapping_sub(began_us);
                    self.local.watch.observe(Histogram::CommitMicros, took_us.into());
                    self.guarded(token, |shard| shard.resume(token, committed(result)));
                }
            }
            Mail::Room => {
                for token in std::mem::take(&mut self.sink_full) {
                    if let Some(slot) = self.slots.get_mut(token) {
                        slot.clear(flag::SINK_FULL);
                        self.guarded(token, |shard| shard.turn(token));
                    }
                }
            }
            Mail::Handed(at, result) => {
                if result.is_err() {
                    self.local.watch.add(Counter::SpoolFailures, 1);
                }
                self.local.passing.handed(at, result, &mut self.news);
            }
            Mail::Delivery(link) => {
                self.local.passing.connect(link, &mut self.news);
                // Unwatched it is as good as dead: what is asked ends at its deadline.
                let _ = self.watch_link(self.local.passing.link(), DELIVERY);
            }
            Mail::Directory(link) => {
                self.local.questions.connect(link);
                if self.watch_link(self.local.questions.link(), DIRECTORY).is_err() {
                    self.directory_lost();
                }
            }
            Mail::Runner(library, generation, link, described) => {
                let number = self.local.steps.connect(library, generation, link, described);
                // Unwatched it is as good as dead: its steps end at their deadline.
                let _ = self.watch_link(self.local.steps.link(number), RUNNERS + number);
                self.hear_runner(number);
            }
            Mail::Drain(idle_ms, hard_ms) => {
                let now = self.local.now.ms;
                self.drain_by(Drain { idle_ms: now.saturating_add(idle_ms), hard_ms: now.saturating_add(hard_ms) });
            }
            Mail::Stop => self.drain_by(Drain { idle_ms: 0, hard_ms: 0 }),
        }
    }
}
