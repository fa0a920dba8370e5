//! Mechanisms that nobody may offer, until the next reload.

use link::message::Message;
use telemetry::{Event, Level};

use super::{Supervisor, unix_ms};
use crate::plan::Hooks;

impl<H: Hooks> Supervisor<H> {
    /// No worker offers this mechanism any more; those that start later hear of it at their beginning.
    pub(super) fn put_in_quarantine(&mut self, mechanism: String, cause: String) {
        if self.quarantine.contains_key(&mechanism) {
            return;
        }
        self.processes.tell_workers(&Message::Quarantine { mechanism: &mechanism, cause: &cause, over: false });
        let event = Event::log("plugin.quarantined", Level::Error, unix_ms()).word("mechanism", mechanism.clone());
        self.tell(event.untrusted("cause", cause.as_bytes()));
        self.quarantine.insert(mechanism, cause);
    }

    /// Everybody gets a new chance.
    pub(super) fn end_quarantine(&mut self) {
        for (mechanism, _) in std::mem::take(&mut self.quarantine) {
            self.processes.tell_workers(&Message::Quarantine { mechanism: &mechanism, cause: "", over: true });
        }
    }
}
