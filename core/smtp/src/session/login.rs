//! AUTH (RFC 4954) as the session sees it: when an exchange may begin, what its end means, and what a login permits.
//! The exchange itself is `auth`.
//!
//! ```text
//! AUTH ─► order, limits ─► exchange ─► Continue, Pending: goes on
//!                                   ─► Success, Anonymous ─► 235
//!                                   ─► Over ─► its reply ─► one failure too many: 421
//! ```

use std::mem;

use super::Session;
use super::hello::Hello;
use super::pipelining::Place;
use super::state::State;
use crate::auth::{Authentication, Progress};
use crate::host::{Allowance, Charge, Context, Outcome};
use crate::policy::Facts;
use crate::reply::{self, Reply};

impl Session {
    pub(super) fn auth(&mut self, args: &[u8], place: Place, cx: &mut Context<'_>) {
        // Charged first: an AUTH out of place is an attempt, too.
        let allowance = cx.host.charge(Charge::AuthAttempt);
        if self.hello != Hello::Ehlo || self.is_logged_in() || !matches!(self.state, State::Ready) {
            return self.reply(&reply::AUTH_ORDER, cx);
        }
        if allowance == Allowance::Refuse {
            return self.reply(&reply::AUTH_RATE, cx);
        }
        if self.binding_spent {
            return self.close(&reply::BINDING_SPENT, cx);
        }
        let challenged_from = cx.out.len();
        let (exchange, progress) = Authentication::begin(args, cx);
        // With more than one round trip AUTH ends the group (RFC 4954 §4).
        if matches!(progress, Progress::Continue) && self.is_too_early(place, cx) {
            cx.out.truncate(challenged_from);
            exchange.recycle(cx);
            return self.spoke_too_early(cx);
        }
        self.auth_progress(exchange, progress, cx);
    }

    /// A line of the client within an exchange.
    pub(super) fn auth_response(&mut self, line: &[u8], cx: &mut Context<'_>) {
        self.with_exchange(cx, |exchange, cx| exchange.respond(line, cx));
    }

    /// What is no line ends the exchange.
    pub(super) fn auth_bad_line(&mut self, reply: &'static Reply, cx: &mut Context<'_>) {
        self.with_exchange(cx, |exchange, cx| exchange.bad_line(reply, cx));
    }

    fn with_exchange(
        &mut self,
        cx: &mut Context<'_>,
        advance: impl FnOnce(&mut Authentication, &mut Context<'_>) -> Progress,
    ) {
        match mem::take(&mut self.state) {
            State::Auth(mut exchange) => {
                let progress = advance(&mut exchange, cx);
                self.auth_progress(exchange, progress, cx);
            }
            other => self.state = other,
        }
    }

    /// What the exchange has waited for is there.
    pub(super) fn auth_complete(&mut self, mut exchange: Box<Authentication>, outcome: Outcome, cx: &mut Context<'_>) {
        let progress = exchange.complete(outcome, cx);
        self.auth_progress(exchange, progress, cx);
    }

    fn auth_progress(&mut self, exchange: Box<Authentication>, progress: Progress, cx: &mut Context<'_>) {
        let (reply, weight) = match progress {
            Progress::Continue | Progress::Pending => {
                self.state = State::Auth(exchange);
                return;
            }
            Progress::Over { reply, weight } => (reply, weight),
            Progress::Success(identity) => {
                self.identity = Some(identity);
                self.patience.logged_in();
                (&reply::AUTHENTICATED, 0)
            }
            Progress::Anonymous => {
                self.anonymous = true;
                (&reply::AUTHENTICATED, 0)
            }
        };
        self.binding_spent |= exchange.is_bound();
        exchange.recycle(cx);
        self.state = State::Ready;
        // The last failure gets its own reply before the end is told.
        self.reply(reply, cx);
        if self.patience.login_failed(weight, cx) && !matches!(self.state, State::Closed) {
            self.close(&reply::TOO_MANY_FAILURES, cx);
        }
    }

    /// Whether the client has been through AUTH, as somebody or as nobody.
    pub(super) fn is_logged_in(&self) -> bool {
        self.identity.is_some() || self.anonymous
    }

    /// The largest message that may come now.
    pub(super) fn octets_max(&self, cx: &Context<'_>) -> u64 {
        let limits = &cx.listener.limits;
        let own = match &self.identity {
            Some(identity) => identity.message_octets_max,
            None => self.anonymous.then_some(limits.anonymous_octets_max),
        };
        own.unwrap_or(u64::MAX).min(limits.message_octets_max)
    }

    /// The session as policy may see it.
    pub(super) fn facts<'a>(&'a self, cx: &'a Context<'_>) -> Facts<'a> {
        Facts {
            role: cx.listener.role,
            identity: self.identity.as_deref(),
            anonymous: self.anonymous,
            peer: cx.peer,
            tls: cx.tls.is_some(),
        }
    }
}
