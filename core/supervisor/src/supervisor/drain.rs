//! The orderly end: workers first, since they still need the others; control last, since it writes what the others say.

use link::Role;
use telemetry::{Event, Level};

use super::{Stage, Supervisor, unix_ms};
use crate::plan::Hooks;

/// One role goes when nobody is left of those before it.
const ORDER: [Role; 6] =
    [Role::Worker, Role::MechanismHost, Role::Delivery, Role::Directory, Role::BackendHost, Role::Control];
/// The others after the workers: nobody waits for them any more.
const LAST_SECONDS: u32 = 10;

/// How long workers may finish.
#[derive(Clone, Copy)]
pub struct Patience {
    /// Idle sessions are closed after so long …
    pub seconds: u32,
    /// … and all are after so long.
    pub seconds_max: u32,
}

impl<H: Hooks> Supervisor<H> {
    pub(super) fn begin_drain(&mut self, seconds: u32) {
        if self.is_stopping() {
            return;
        }
        self.stage = Stage::Draining(Patience { seconds, seconds_max: self.plan.drain_seconds_max.max(seconds) });
        self.fail_pending("the supervisor is asked to stop");
        self.tell(Event::log("draining", Level::Info, unix_ms()).number("seconds", seconds.into()));
    }

    /// Asks whose turn it is; over when nobody is left.
    pub(super) fn drain_in_order(&mut self) {
        let Stage::Draining(Patience { seconds, seconds_max }) = self.stage else { return };
        let next = ORDER.into_iter().find(|role| self.processes.of(*role).next().is_some());
        let Some(role) = next else {
            self.stage = Stage::Over(Ok(0));
            return;
        };
        for process in self.processes.of_mut(role) {
            match role {
                Role::Worker => process.drain(seconds, seconds_max),
                Role::Directory | Role::MechanismHost | Role::BackendHost => process.stop(),
                _ => process.drain(seconds.min(LAST_SECONDS), seconds_max.min(LAST_SECONDS)),
            }
        }
    }
}
