//! A reply is written and counted; one too many, or one that says so, ends the session.

use super::Session;
use super::state::State;
use crate::host::{Context, Note};
use crate::reply::{self, Reply};

/// Why we end the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// The client was silent for too long.
    Timeout,
    /// We are going down.
    Shutdown,
    /// We have too much to do.
    Overload,
    /// A bug of ours.
    Internal,
}

impl Session {
    /// Says `reply`. Every other state must be in place before: this may be the reply that ends the session.
    pub(super) fn reply(&mut self, reply: &'static Reply, cx: &mut Context<'_>) {
        reply.write(cx.session, cx.out);
        self.replied(reply.code, reply.rule, cx);
    }

    /// Says `reply`, and nothing after it.
    pub(super) fn close(&mut self, reply: &'static Reply, cx: &mut Context<'_>) {
        self.reply(reply, cx);
        self.state = State::Closed;
    }

    /// Forgets what is in progress because of `reason`, says `reply`, and nothing after it.
    pub(super) fn leave_and_close(&mut self, reason: &'static str, reply: &'static Reply, cx: &mut Context<'_>) {
        self.leave(reason, cx);
        self.close(reply, cx);
    }

    /// A reply was written: by [`Session::reply`], or one with a parameter by whoever knows that.
    pub(super) fn replied(&mut self, code: u16, rule: &'static str, cx: &mut Context<'_>) {
        cx.host.note(Note::Reply { code, rule });
        if code >= 500 && self.patience.erred(cx) {
            // A 421, so this does not come back here.
            self.leave_and_close("too many errors", &reply::TOO_MANY_ERRORS, cx);
        }
    }

    /// Says 421. The engine closes after sending.
    pub fn farewell(&mut self, why: Farewell, cx: &mut Context<'_>) {
        if matches!(self.state, State::Closed | State::StartTls) {
            return;
        }
        let reply = match why {
            Farewell::Timeout => &reply::TIMEOUT,
            Farewell::Shutdown => &reply::SHUTDOWN,
            Farewell::Overload => &reply::OVERLOAD,
            Farewell::Internal => &reply::INTERNAL,
        };
        self.leave_and_close("closed by us", reply, cx);
    }
}
