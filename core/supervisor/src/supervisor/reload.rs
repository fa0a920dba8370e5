//! A reload: what the new plan brings runs beside what is there, and replaces it when all of it is ready.
//!
//! ```text
//! asked ─ busy? ─→ waiting: all who asked meanwhile get what the last would get
//!   └→ hooks read the plan, new addresses are bound ── an error ─→ failed: everything stays as it was
//!        ├ only certificates differ ─→ spread to running workers, done
//!        └→ Pending: new workers, new editions of libraries start
//!             ├ all are ready ─→ commit: the new accept, the old drain
//!             └ one dies, or a drain begins ─→ failed: the new stop, new addresses close
//! ```
//!
//! At most two generations live, so a reload waits for an older one to go.

use std::sync::Arc;

use link::message::Message;
use link::{Role, sealed};
use telemetry::{Counter, Event, Level};

use super::editions::{Editions, Standing};
use super::hear::Asker;
use super::{Stage, Supervisor, unix_ms};
use crate::plan::{Changes, Difference, Hooks, Plan};
use crate::process::Post;

/// Reloads that wait for an older generation to go.
const WAITING_MAX: usize = 64;

/// A reload that is under way.
pub struct Pending {
    pub plan: Arc<Plan>,
    /// The number of the new workers. `None`: workers go on, only libraries with processes of their own change.
    pub generation: Option<u32>,
    asker: Option<Asker>,
}

impl Pending {
    /// Whether a post is there because of it.
    pub fn brings(&self, post: Post, editions: &Editions) -> bool {
        match post.role {
            Role::Worker => self.generation == Some(post.generation),
            _ => editions.is_coming(post),
        }
    }
}

impl<H: Hooks> Supervisor<H> {
    /// Begins one, or has it wait. Whoever asked is answered when it is done.
    pub(super) fn reload(&mut self, asker: Option<Asker>) {
        if self.is_stopping() {
            return self.reply(asker, Err("reload: the supervisor is stopping".to_owned()));
        }
        if self.is_reloading() {
            if self.waiting.len() == WAITING_MAX {
                return self.reply(asker, Err("reload: too many wait already".to_owned()));
            }
            return self.waiting.push(asker);
        }
        match self.next_plan() {
            Err(cause) => self.reload_failed(asker, &cause),
            Ok(plan) => match self.plan.difference(&plan) {
                Difference::Certificates => self.exchange_certificates(plan, asker),
                Difference::Libraries => self.bring(plan, None, asker),
                Difference::Workers => {
                    self.generations += 1;
                    self.bring(plan, Some(self.generations), asker);
                }
            },
        }
    }

    /// Begins what waited, once: nobody who asked meanwhile asked for something else.
    pub(super) fn reload_if_waiting(&mut self) {
        if self.waiting.is_empty() || self.is_reloading() || self.is_stopping() {
            return;
        }
        let mut askers = std::mem::take(&mut self.waiting);
        let last = askers.pop().flatten();
        for asker in askers {
            self.reply(asker, Ok("done together with a later reload".to_owned()));
        }
        self.reload(last);
    }

    /// One is under way, or what the last one replaced is still there.
    fn is_reloading(&self) -> bool {
        let other = self.processes.of(Role::Worker).any(|worker| worker.post.generation != self.generation);
        self.pending.is_some() || other || self.editions.are_many_leaving()
    }

    /// What is to be from now on; all addresses are bound.
    fn next_plan(&mut self) -> Result<Plan, String> {
        let plan = self.hooks.reload()?;
        plan.fits(self.sockets.per_address)?;
        self.sockets.bind(&plan.listeners)?;
        Ok(plan)
    }

    fn exchange_certificates(&mut self, plan: Plan, asker: Option<Asker>) {
        let changes = self.plan.changes_to(&plan);
        self.plan = Arc::new(plan);
        self.spread(&changes);
        self.slot.add(Counter::ReloadsOk, 1);
        self.reply(asker, Ok("certificates exchanged".to_owned()));
    }

    /// From now on there are posts to be filled for it.
    fn bring(&mut self, plan: Plan, generation: Option<u32>, asker: Option<Asker>) {
        self.editions.add(&plan, Standing::Coming);
        self.pending = Some(Pending { plan: Arc::new(plan), generation, asker });
    }

    /// All that it brings is ready: it serves, and what was there before may go.
    pub(super) fn commit(&mut self, pending: Pending) {
        let Pending { plan, generation, asker } = pending;
        let old = std::mem::replace(&mut self.plan, plan);
        self.generation = generation.unwrap_or(self.generation);
        if matches!(self.stage, Stage::Starting) {
            // It mended a start that did not come to an end.
            self.stage = Stage::Serving;
        }
        self.sockets.keep(&self.plan.listeners);
        self.editions.exchange(&self.plan);
        self.drain_the_old();
        self.editions.forget(&self.processes);
        self.end_quarantine();
        self.forget_old_posts();
        if old.configuration != self.plan.configuration {
            self.reconfigure();
        }
        if generation.is_none() {
            self.spread(&old.changes_to(&self.plan));
        }
        self.slot.add(Counter::ReloadsOk, 1);
        self.tell(Event::log("reloaded", Level::Info, unix_ms()).number("generation", self.generation.into()));
        self.hooks.serving(&self.sockets.bound);
        self.reply(
            asker,
            Ok(match generation {
                Some(generation) => format!("generation {generation} serves"),
                None => "new editions of libraries serve".to_owned(),
            }),
        );
    }

    /// Workers of another generation, libraries that the plan does not want any more.
    fn drain_the_old(&mut self) {
        let plan = &self.plan;
        let leaving = |post| self.editions.of(post).is_some_and(|edition| edition.standing == Standing::Leaving);
        for process in self.processes.iter_mut() {
            let old = match process.role() {
                Role::Worker => process.post.generation != self.generation,
                _ => leaving(process.post),
            };
            if old {
                process.drain(plan.drain_seconds, plan.drain_seconds_max.max(plan.drain_seconds));
            }
        }
    }

    /// Those of whom there is one each stay, and take the new configuration or ask to be started again with it.
    fn reconfigure(&mut self) {
        let singletons = |post: Post| post.role != Role::Worker && !post.runs_library();
        for process in self.processes.iter_mut().filter(|process| singletons(process.post)) {
            match sealed::create("configuration", &self.plan.configuration) {
                Ok(fd) => {
                    process.reconfigured = true;
                    process.say(&Message::Config, Some(fd));
                }
                // It cannot be told, so it is replaced.
                Err(_) => process.stop(),
            }
        }
    }

    /// Ends the one that is under way, if there is one: what it brought goes, what was there stays.
    pub(super) fn fail_pending(&mut self, cause: &str) {
        let Some(pending) = self.pending.take() else { return };
        for process in self.processes.iter_mut().filter(|process| pending.brings(process.post, &self.editions)) {
            process.stop();
        }
        self.editions.withdraw();
        // One whose process has died already leaves nobody behind who would be waited for.
        self.editions.forget(&self.processes);
        self.forget_old_posts();
        self.sockets.keep(&self.plan.listeners);
        self.reload_failed(pending.asker, cause);
    }

    fn reload_failed(&mut self, asker: Option<Asker>, cause: &str) {
        self.slot.add(Counter::ReloadsFailed, 1);
        self.tell(Event::log("reload.failed", Level::Error, unix_ms()).untrusted("cause", cause.as_bytes()));
        self.reply(asker, Err(format!("reload: {cause}; the old configuration stays in force")));
    }

    /// A generation that comes owes nothing for the deaths of another.
    fn forget_old_posts(&mut self) {
        let generation = self.generation;
        self.backoffs.keep(|post| post.role != Role::Worker || post.generation == generation);
    }

    /// What workers exchange while they run.
    pub(super) fn spread(&mut self, changes: &Changes) {
        for process in self.processes.of_mut(Role::Worker) {
            if let Some(octets) = &changes.certificates {
                match sealed::create("certificates", octets) {
                    Ok(fd) => process.say(&Message::Certificates, Some(fd)),
                    Err(_) => self.slot.add(Counter::CertificateReloadsFailed, 1),
                }
            }
            if let Some(octets) = &changes.ticket_keys {
                process.say(&Message::TicketKeys(octets), None);
            }
        }
        if changes.certificates.is_some() {
            self.slot.add(Counter::CertificateReloadsOk, 1);
        }
    }
}
