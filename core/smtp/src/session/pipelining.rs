//! Pipelining (RFC 2920): most commands may stand anywhere in a group. After EHLO, DATA, STARTTLS and an AUTH with a
//! challenge the client has to wait for the reply (RFC 2920 §3.1); one that did not is out of step, or somebody
//! has made it send what it does not know of.

use super::Session;
use crate::host::Context;
use crate::listener::SyncViolation;
use crate::reply;

/// Where a command stands in what the client has sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing came after it: the client waits.
    Last,
    /// More came with it.
    Within,
}

impl Place {
    /// Of a command of `wire` octets at the front of `input`.
    pub(super) fn of(wire: usize, input: &[u8]) -> Self {
        if input.len() > wire { Self::Within } else { Self::Last }
    }
}

impl Session {
    /// Of a command that had to be the last of its group: whether the client is let go for not having waited.
    pub(super) fn is_too_early(&self, place: Place, cx: &Context<'_>) -> bool {
        place == Place::Within && !cx.peer.exempt && cx.listener.sync_violation == SyncViolation::Close
    }

    /// Lets it go.
    pub(super) fn spoke_too_early(&mut self, cx: &mut Context<'_>) {
        self.leave_and_close("sync", &reply::TOO_EARLY, cx);
    }
}
