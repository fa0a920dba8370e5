//! STARTTLS (RFC 3207): nothing of what was said in clear outlives it.

use super::Session;
use super::hello::Hello;
use super::lines::Lines;
use super::pipelining::Place;
use super::state::State;
use crate::host::Context;
use crate::listener::StarttlsTrailing;
use crate::reply;

impl Session {
    pub(super) fn starttls(&mut self, args: &[u8], place: Place, cx: &mut Context<'_>) {
        if cx.tls.is_some() || self.is_logged_in() {
            return self.reply(&reply::STARTTLS_ORDER, cx);
        }
        if !args.is_empty() {
            return self.reply(&reply::NO_ARGUMENTS, cx);
        }
        self.leave("starttls", cx);
        if place == Place::Within && cx.listener.starttls_trailing == StarttlsTrailing::Close {
            return self.close(&reply::STARTTLS_TRAILING, cx);
        }
        self.reply(&reply::READY_FOR_TLS, cx);
        self.state = State::StartTls;
    }

    /// The handshake after STARTTLS is done: everything that was said in clear is forgotten (RFC 3207 §4.2).
    pub fn tls_started(&mut self, _cx: &mut Context<'_>) {
        self.state = State::Ready;
        self.lines = Lines::default();
        (self.hello, self.name) = (Hello::None, None);
        (self.identity, self.anonymous) = (None, false);
    }
}
