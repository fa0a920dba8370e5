//! What happens because time passes: patience ends, and once a second everybody's pulse is felt.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use link::Role;
use telemetry::Gauge;

use super::{Supervisor, unix_ms};
use crate::plan::Hooks;

impl<H: Hooks> Supervisor<H> {
    pub(super) fn clock(&mut self) {
        let now = Instant::now();
        self.processes.iter_mut().for_each(|process| process.look_at_clock(now));
        if now >= self.next_second {
            self.next_second = now + Duration::from_secs(1);
            self.feel_pulse();
            self.take_changes();
        }
    }

    fn feel_pulse(&mut self) {
        self.slot.heartbeat(unix_ms());
        // They have no page of the board.
        for host in self.processes.iter().filter(|process| process.post.runs_library()) {
            if let Some(slot) = self.board.slot(host.outfit.slot) {
                slot.heartbeat(unix_ms());
            }
        }
        let alive: BTreeSet<u32> = self.processes.of(Role::Worker).map(|worker| worker.post.generation).collect();
        self.slot.gauge_set(Gauge::Generation, self.generation.into());
        self.slot.gauge_set(Gauge::Generations, alive.len() as i64);
    }

    /// Renewed certificates, new ticket keys: for those who run, and for those who will be started.
    fn take_changes(&mut self) {
        let changes = self.hooks.every_second();
        if changes.certificates.is_none() && changes.ticket_keys.is_none() {
            return;
        }
        let pending = self.pending.as_mut().map(|pending| &mut pending.plan);
        for plan in std::iter::once(&mut self.plan).chain(pending) {
            Arc::make_mut(plan).take(&changes);
        }
        self.spread(&changes);
    }
}
