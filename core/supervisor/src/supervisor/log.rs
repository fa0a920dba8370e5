//! What is told of processes: to the program at once, to the log writer once it runs.

use std::collections::VecDeque;

use link::Role;
use link::message::Message;
use telemetry::{Counter, Event};

use super::Supervisor;
use crate::plan::Hooks;
use crate::process::{Phase, Process};

/// Events kept for a log writer that does not run yet.
const EVENTS_MAX: usize = 256;

/// Events that no log writer has got.
#[derive(Default)]
pub struct Log {
    unsent: VecDeque<Vec<u8>>,
}

impl Log {
    /// Gives a log writer that has begun what it has missed.
    pub fn catch_up(&mut self, control: &mut Process) {
        for payload in self.unsent.drain(..) {
            control.say(&Message::Event(&payload), None);
        }
    }

    /// Whether an older one had to go for it.
    fn keep(&mut self, payload: Vec<u8>) -> bool {
        let full = self.unsent.len() == EVENTS_MAX;
        if full {
            self.unsent.pop_front();
        }
        self.unsent.push_back(payload);
        full
    }
}

impl<H: Hooks> Supervisor<H> {
    pub(super) fn tell(&mut self, event: Event<'_>) {
        self.hooks.event(&event);
        let mut payload = Vec::new();
        event.encode(&mut payload);
        match self.processes.of_mut(Role::Control).find(|control| control.phase != Phase::Starting) {
            Some(control) => control.say(&Message::Event(&payload), None),
            None => {
                if self.log.keep(payload) {
                    self.slot.add(Counter::LogDropped, 1);
                }
            }
        }
    }
}
