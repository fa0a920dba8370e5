//! The beginning of one process: its place on the board, its start, and everything that it is told before Start.
//!
//! ```text
//! spawn → Config → Board, Secrets            to everybody but a library's process …
//!              └─→ Plugin, a back end's settings          … which gets its library, and nothing that others believe in
//!         → Limits, Plugin…, Certificates, TicketKeys, Listener…, Quarantine…        to a worker
//!         → Peer…, Runner…       links to all that live → Start
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use link::message::Message;
use link::{Role, sealed};
use telemetry::{Event, Level};

use super::{Supervisor, links, unix_ms};
use crate::plan::{Hooks, Plan, Plugin};
use crate::process::{Outfit, Post, Process};

impl<H: Hooks> Supervisor<H> {
    pub(super) fn begin(&mut self, post: Post) -> io::Result<()> {
        let plan = Arc::clone(self.plan_of(post));
        let plugin = self.editions.of(post).map(|edition| edition.plugin.clone());
        let slot = self.board.vacant(post.role).ok_or_else(|| io::Error::other("the telemetry board is full"))?;
        let (mut row, mut shards) = (None, 0);
        if post.role == Role::Worker {
            let free = |row: &usize| self.processes.iter().all(|process| process.outfit.row != Some(*row));
            row = (0..self.limits.rows()).find(free);
            row.ok_or_else(|| io::Error::other("the table of limits is full"))?;
            shards = u16::try_from(plan.shards).unwrap_or(u16::MAX);
        }
        self.instances += 1;
        let instance = self.instances;
        let library = plugin.as_ref().map(|plugin| plugin.id.clone());
        let mut new = Process::start(&self.options, post, Outfit { instance, library, shards, slot, row })?;
        self.board.claim(slot, post.role, new.pid(), unix_ms());

        if let Err(error) = self.tell_beginning(&mut new, &plan, plugin.as_ref()) {
            // Else it would be left behind, waiting for its Start.
            new.end();
            self.board.retire(slot);
            return Err(error);
        }
        self.processes.add(new);
        let event = Event::log("process.started", Level::Info, unix_ms());
        let event = event.word("role", post.role.name()).number("instance", instance.into());
        let event = event.number("generation", post.generation.into());
        self.tell(match plugin {
            Some(plugin) => event.word("plugin", plugin.id),
            None => event,
        });
        Ok(())
    }

    /// What a reload brings runs as it will; all others run as things are.
    fn plan_of(&self, post: Post) -> &Arc<Plan> {
        let brought = self.pending.as_ref().filter(|pending| pending.brings(post, &self.editions));
        brought.map_or(&self.plan, |pending| &pending.plan)
    }

    /// Everything between Hello and Ready.
    fn tell_beginning(&mut self, new: &mut Process, plan: &Plan, own: Option<&Plugin>) -> io::Result<()> {
        new.say(&Message::Config, Some(sealed::create("configuration", &plan.configuration)?));
        match own {
            // Strangers' code gets its library, and nothing that others believe in or keep for themselves.
            Some(plugin) => {
                tell_library(new, plugin)?;
                if new.role() == Role::BackendHost {
                    new.say(&Message::Secrets(&plugin.settings), None);
                }
            }
            None => {
                let slot = u32::try_from(new.outfit.slot).unwrap_or(u32::MAX);
                new.say(&Message::Board { slot }, Some(self.board.as_fd().try_clone_to_owned()?));
                if new.role() != Role::Control {
                    new.say(&Message::Secrets(&plan.secrets), None);
                }
            }
        }
        if let Some(row) = new.outfit.row {
            self.tell_worker(new, row, plan)?;
        }
        for other in self.processes.iter_mut() {
            links::connect(new, other)?;
        }
        new.say(&Message::Start, None);
        Ok(())
    }

    fn tell_worker(&self, worker: &mut Process, row: usize, plan: &Plan) -> io::Result<()> {
        let row = u32::try_from(row).unwrap_or(u32::MAX);
        worker.say(&Message::Limits { row }, Some(self.limits.as_fd().try_clone_to_owned()?));
        for plugin in plan.plugins.iter().filter(|plugin| !plugin.process && !plugin.mechanisms.is_empty()) {
            tell_library(worker, plugin)?;
        }
        worker.say(&Message::Certificates, Some(sealed::create("certificates", &plan.certificates)?));
        worker.say(&Message::TicketKeys(&plan.ticket_keys), None);
        self.share_sockets(worker, plan)?;
        for (mechanism, cause) in &self.quarantine {
            worker.say(&Message::Quarantine { mechanism, cause, over: false }, None);
        }
        Ok(())
    }

    /// Shard number `n` of the whole generation accepts from the sockets whose number is `n` modulo all shards,
    /// so that every socket has somebody.
    fn share_sockets(&self, worker: &mut Process, plan: &Plan) -> io::Result<()> {
        let all = plan.workers * plan.shards;
        for (number, listener) in plan.listeners.iter().enumerate() {
            let Some(bound) = self.sockets.find(listener) else { continue };
            for (socket, open) in bound.sockets.iter().enumerate() {
                let shard = socket % all;
                if shard / plan.shards == worker.post.index {
                    let message = Message::Listener {
                        listener: u16::try_from(number).unwrap_or(u16::MAX),
                        socket: u16::try_from(socket).unwrap_or(u16::MAX),
                        shard: u16::try_from(shard % plan.shards).unwrap_or(u16::MAX),
                        address: bound.address,
                    };
                    worker.say(&message, Some(OwnedFd::from(open.try_clone()?)));
                }
            }
        }
        Ok(())
    }
}

fn tell_library(process: &mut Process, plugin: &Plugin) -> io::Result<()> {
    let message = Message::Plugin { id: &plugin.id, origin: &plugin.origin };
    process.say(&message, Some(plugin.library.try_clone()?));
    Ok(())
}
