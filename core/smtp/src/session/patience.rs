//! Bounded patience with those who only err, only idle, or only guess (CONTRACT C23).

use crate::auth::FULL_FAILURE;
use crate::host::Context;

/// What a client has used up of it. Each method counts one more, and says whether that was one too many.
#[derive(Default)]
pub(super) struct Patience {
    errors: u8,
    idle_commands: u8,
    /// In units of half a failed login.
    auth_failures: u8,
}

impl Patience {
    /// A command was refused for good.
    pub(super) fn erred(&mut self, cx: &Context<'_>) -> bool {
        !cx.peer.exempt && one_more(&mut self.errors, cx.listener.limits.errors_max)
    }

    /// A command did nothing for the mail.
    pub(super) fn idled(&mut self, cx: &Context<'_>) -> bool {
        !cx.peer.exempt && one_more(&mut self.idle_commands, cx.listener.limits.idle_commands_max)
    }

    /// An exchange has failed, and counts as `weight`. Those who are exempt are not excepted: a guesser may be
    /// behind a trusted machine.
    pub(super) fn login_failed(&mut self, weight: u8, cx: &Context<'_>) -> bool {
        self.auth_failures = self.auth_failures.saturating_add(weight);
        let failures_max = cx.listener.limits.auth_failures_max.saturating_mul(FULL_FAILURE);
        weight > 0 && self.auth_failures >= failures_max
    }

    /// Somebody has proven who they are.
    pub(super) fn logged_in(&mut self) {
        (self.auth_failures, self.errors) = (0, 0);
    }

    /// A message was accepted.
    pub(super) fn accepted(&mut self) {
        (self.errors, self.idle_commands) = (0, 0);
    }
}

fn one_more(count: &mut u8, max: u8) -> bool {
    *count = count.saturating_add(1);
    *count > max
}
