//! Who should run: every post has a holder, in an order that gives those who ask somebody to ask.
//!
//! ```text
//! directory, delivery, control → libraries → workers of the generation that accepts → of the one that a reload brings
//! ```

use std::time::Duration;

use link::Role;
use telemetry::Counter;

use super::{Stage, Supervisor};
use crate::plan::Hooks;
use crate::process::{Phase, Post};

/// One of each, always.
const SINGLETONS: [Role; 3] = [Role::Directory, Role::Delivery, Role::Control];

impl<H: Hooks> Supervisor<H> {
    /// Starts whoever is missing and may be started now.
    pub(super) fn fill_posts(&mut self) {
        for post in self.posts() {
            if self.processes.holder(post).is_some() || self.backoffs.forbid(post) {
                continue;
            }
            if let Err(error) = self.begin(post) {
                self.died(post, Duration::ZERO, &format!("cannot be started: {error}"));
                // Others may have gone with it, and with them their posts: who is left is seen in the next round.
                return;
            }
            self.slot.add(Counter::ProcessesStarted, 1);
        }
    }

    /// In the order in which they are filled.
    fn posts(&self) -> Vec<Post> {
        let draining = match &self.stage {
            Stage::Starting | Stage::Serving => false,
            // Workers need the others for as long as they finish what they have.
            Stage::Draining(_) if self.processes.of(Role::Worker).next().is_some() => true,
            Stage::Draining(_) | Stage::Over(_) => return Vec::new(),
        };
        let mut posts: Vec<Post> = SINGLETONS.map(Post::singleton).into();
        posts.extend(self.editions.posts());
        if !draining {
            let workers = |generation, workers| (0..workers).map(move |index| Post::worker(generation, index));
            posts.extend(workers(self.generation, self.plan.workers));
            if let Some(pending) = &self.pending
                && let Some(generation) = pending.generation
            {
                posts.extend(workers(generation, pending.plan.workers));
            }
        }
        posts
    }

    /// A process says that it serves; it may be the last one that was waited for.
    pub(super) fn on_ready(&mut self, i: usize) {
        if self.processes[i].role() == Role::Control {
            self.log.catch_up(&mut self.processes[i]);
        }
        if matches!(self.stage, Stage::Starting) && self.everybody_is_ready() {
            self.stage = Stage::Serving;
            self.hooks.serving(&self.sockets.bound);
        }
        let libraries = self.editions.are_ready(&self.processes);
        let processes = &self.processes;
        let pending = self.pending.take_if(|pending| {
            let workers = |generation| processes.is_ready(generation, pending.plan.workers);
            libraries && pending.generation.is_none_or(workers)
        });
        if let Some(pending) = pending {
            self.commit(pending);
        }
    }

    fn everybody_is_ready(&self) -> bool {
        let is_ready = |role| {
            let holder = self.processes.holder(Post::singleton(role));
            holder.is_some_and(|process| process.phase == Phase::Ready)
        };
        SINGLETONS.into_iter().all(is_ready)
            && self.editions.are_ready(&self.processes)
            && self.processes.is_ready(self.generation, self.plan.workers)
    }
}
