//! Who ended: in order, or by a death that is told, counted, and mended by filling the post again.
//!
//! | who died, and when                | then |
//! |-----------------------------------|------|
//! | anybody, before all were ready    | the program ends with the cause: somebody stands before the screen and can mend it |
//! | what a reload brings              | the reload fails, everything stays as it was |
//! | a library's process               | replaced at once; at the fifth death within a minute given up until a reload |
//! | another                           | replaced, later each time that it did not last |

use std::collections::HashMap;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use telemetry::{Counter, Event, Level};

use super::{Error, Stage, Supervisor, unix_ms};
use crate::plan::Hooks;
use crate::process::{Post, Process};

/// A child that lived so long and then died is started again at once.
const STEADY_SECONDS: u64 = 30;
const RESTART_MS_MIN: u64 = 100;
const RESTART_MS_MAX: u64 = 10_000;

/// Posts that stay empty for a moment because their holders died.
#[derive(Default)]
pub struct Backoffs(HashMap<Post, Backoff>);

struct Backoff {
    deaths: u32,
    until: Instant,
}

impl Backoffs {
    pub fn forbid(&self, post: Post) -> bool {
        self.0.get(&post).is_some_and(|backoff| Instant::now() < backoff.until)
    }

    /// When the next of them is over.
    pub fn next_end(&self, now: Instant) -> Option<Instant> {
        self.0.values().map(|backoff| backoff.until).filter(|until| *until > now).min()
    }

    /// Counts a death of somebody who lived so long; for how many milliseconds the post stays empty.
    fn count_death(&mut self, post: Post, lived: Duration) -> u64 {
        let now = Instant::now();
        let backoff = self.0.entry(post).or_insert(Backoff { deaths: 0, until: now });
        backoff.deaths = if lived.as_secs() >= STEADY_SECONDS { 0 } else { backoff.deaths + 1 };
        let wait_ms = match backoff.deaths {
            0 => 0,
            n => (RESTART_MS_MIN << (n - 1).min(10)).min(RESTART_MS_MAX),
        };
        backoff.until = now + Duration::from_millis(wait_ms);
        wait_ms
    }

    /// Forgets posts that are no more.
    pub fn keep(&mut self, is_one: impl Fn(Post) -> bool) {
        self.0.retain(|post, _| is_one(*post));
    }
}

impl<H: Hooks> Supervisor<H> {
    /// Those who have ended.
    pub(super) fn bury(&mut self) {
        let mut i = 0;
        while i < self.processes.len() {
            match self.processes[i].exit_status() {
                Some(status) => self.bury_one(i, status),
                None => i += 1,
            }
        }
    }

    fn bury_one(&mut self, i: usize, status: ExitStatus) {
        // Its last words may still be in the socket.
        self.hear_one(i, &mut Vec::new());
        let process = self.processes.take(i);
        self.board.retire(process.outfit.slot);
        if let Some(row) = process.outfit.row {
            self.limits.clear_row(row);
        }
        if process.was_to_end(status) {
            self.editions.forget(&self.processes);
            self.tell_end(&process, status);
        } else {
            let cause = format!("process {} died: {}", process.pid(), process.cause(status));
            self.died(process.post, process.started.elapsed(), &cause);
        }
    }

    fn tell_end(&mut self, process: &Process, status: ExitStatus) {
        let level = if status.success() { Level::Info } else { Level::Warning };
        let mut event = Event::log("process.ended", level, unix_ms()).word("role", process.role().name());
        event = event.number("instance", process.outfit.instance.into()).number("pid", process.pid().into());
        if !status.success() {
            event = event.untrusted("cause", process.cause(status).into_bytes());
        }
        self.tell(event);
    }

    /// Nobody asked it to go. Says so, decides when the post is filled again, and whether that makes sense.
    pub(super) fn died(&mut self, post: Post, lived: Duration, cause: &str) {
        self.slot.add(Counter::ProcessesDied, 1);
        let role = post.role;
        let wait_ms = if post.runs_library() { 0 } else { self.backoffs.count_death(post, lived) };
        let event = Event::log("process.died", Level::Error, unix_ms()).word("role", role.name());
        let event = event.untrusted("cause", cause.as_bytes()).number("restart_ms", wait_ms);
        self.tell(match self.editions.of(post).map(|edition| edition.plugin.id.clone()) {
            Some(id) => event.word("plugin", id),
            None => event,
        });
        let in_reload = self.pending.as_ref().is_some_and(|pending| pending.brings(post, &self.editions));
        self.editions.forget(&self.processes);
        if let Some(given_up) = self.editions.count_death(post, cause) {
            given_up.names.into_iter().for_each(|name| self.put_in_quarantine(name, given_up.cause.clone()));
        }
        if in_reload {
            self.fail_pending(&format!("the new {role} failed: {cause}"));
        } else if matches!(self.stage, Stage::Starting) {
            self.stage = Stage::Over(Err(Error(format!("{role}: {cause}"))));
        }
    }
}
