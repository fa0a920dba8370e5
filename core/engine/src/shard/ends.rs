//! How a connection ends: last words, a close that does not cost them, the session's record, and everything given back.
//!
//! ```text
//! farewell → Closing → unsent leaves → shut → Linger: the client's octets are thrown away → close
//! close    = end_session (told once) + Linger while a last reply matters and is under way + forget
//! ```

use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::net::Shutdown;
use smtp::Farewell;
use telemetry::{Event, Gauge, Histogram};

use super::Shard;
use super::turn::INPUT_OCTETS;
use crate::connection::{Pending, Stage, flag, session_id};
use crate::slab::Token;
use crate::wheel::TICK_MS;

impl Shard {
    /// Says 421 when that is possible, and lets the connection close.
    pub(super) fn farewell(&mut self, token: Token, why: Farewell) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.stage == Stage::Open {
            self.with_session(token, |session, cx| session.farewell(why, cx));
        }
        if let Some(slot) = self.slots.get_mut(token) {
            slot.stage = Stage::Closing;
        }
        self.drop_pending(token);
        self.flush(token);
    }

    fn drop_pending(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.pending == Pending::None {
            return;
        }
        if slot.pending == Pending::Question {
            self.local.questions.forget(token, slot.question);
        }
        if slot.pending == Pending::Step {
            self.local.steps.forget(token, slot.question);
        }
        if matches!(slot.pending, Pending::Passing | Pending::Keeping) {
            self.local.passing.forget(token, slot.question);
        }
        slot.pending = Pending::None;
        self.local.watch.gauge(Gauge::EffectsPending, -1);
    }

    /// Everything was sent. Closing with octets unread would make the kernel send a reset, which may
    /// overtake our last reply; then our side is shut and the rest is thrown away first.
    pub(super) fn shut(&mut self, token: Token) {
        let tick = self.local.now.tick;
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.has(flag::EOF) || !slot.has(flag::READABLE) {
            return self.close(token, "us");
        }
        if rustix::net::shutdown(&slot.fd, Shutdown::Write).is_err() {
            return self.close(token, "us");
        }
        (slot.stage, slot.started) = (Stage::Linger, tick);
        self.end_session(token, "us");
        self.linger(token);
    }

    pub(super) fn linger(&mut self, token: Token) {
        let mut input = std::mem::take(&mut self.input);
        input.resize(INPUT_OCTETS, 0);
        let mut left = 4;
        let ended = loop {
            let Some(slot) = self.slots.get_mut(token) else { break false };
            if left == 0 {
                self.queue(token);
                break false;
            }
            left -= 1;
            match rustix::io::read(&slot.fd, &mut input[..]) {
                Ok(0) => break true,
                // Whoever pipelines may have said a password.
                Ok(octets) => sasl::wipe(input.get_mut(..octets).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break false,
                Err(_) => {
                    slot.set(flag::GONE);
                    break true;
                }
            }
        };
        self.input = input;
        if ended {
            return self.close(token, "us");
        }
        self.arm(token);
    }

    /// Tells the session that it is over and writes its record. Once.
    pub(super) fn end_session(&mut self, token: Token, by: &'static str) {
        let now = self.local.now;
        let id = session_id(self.local.session_base, token);
        self.drop_pending(token);
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.has(flag::ENDED) {
            return;
        }
        slot.set(flag::ENDED);
        let seconds = u64::from(now.tick - slot.born) * TICK_MS / 1000;
        let listener = self.shared.ports.get(usize::from(slot.port)).map_or("", |port| &port.listener.name);
        let mut event = Event::audit("session.end", now.unix_ms)
            .session(id.0)
            .word("listener", listener)
            .word("client", slot.peer.ip.to_string())
            .number("port", slot.peer.port.into())
            .number("seconds", seconds)
            .number("messages", slot.session.messages().into())
            .word("by", by);
        if let Some(facts) = slot.tls.as_ref().and_then(|tls| tls.facts.as_ref()) {
            event = event.word("cipher", facts.cipher);
            if facts.client_certificate {
                event = event.word("client_certificate", "verified");
            } else if slot.tls.as_ref().is_some_and(|tls| tls.session.certificate_presented()) {
                event = event.word("client_certificate", "unverified");
            }
        }
        if let Some(identity) = slot.session.identity() {
            event = event.word("identity", identity.name.to_string());
        } else if slot.session.is_anonymous() {
            event = event.word("class", "anonymous");
        }
        let watch = &mut self.local.watch;
        watch.tell(&event, now.ms);
        watch.observe(Histogram::SessionMicros, u64::from(now.tick - slot.born) * TICK_MS * 1000);
        if slot.tls.as_ref().is_some_and(|tls| tls.facts.is_some()) {
            watch.gauge(Gauge::SessionsTls, -1);
        }
        if slot.has(flag::KNOWN) {
            watch.gauge(Gauge::SessionsAuthenticated, -1);
        }
        self.with_session(token, |session, cx| session.end(cx));
        self.out.clear();
    }

    /// The end of a connection.
    pub(super) fn close(&mut self, token: Token, by: &'static str) {
        self.end_session(token, by);
        if !self.unheard.is_empty() && self.is_reply_under_way(token) {
            return self.arm(token);
        }
        self.forget(token);
    }

    /// Whoever shut its side while its next hop was asked may only have done with speaking, or be gone: a reply to
    /// nobody looks like one that arrives. The client's kernel tells: it acknowledges our end behind the reply, or it
    /// resets. Who does neither for a while has not heard it.
    fn is_reply_under_way(&mut self, token: Token) -> bool {
        let tick = self.local.now.tick;
        let (Some(slot), true) = (self.slots.get_mut(token), self.unheard.contains_key(&token.word())) else {
            return false;
        };
        if slot.has(flag::GONE) || slot.is_unsent() {
            return false;
        }
        if slot.stage != Stage::Linger {
            (slot.stage, slot.started) = (Stage::Linger, tick);
            if rustix::net::shutdown(&slot.fd, Shutdown::Write).is_err() {
                return false;
            }
        }
        if !matches!(rustix::net::sockopt::socket_error(&slot.fd), Ok(Ok(()))) {
            return false;
        }
        // Without an error a connection has no other end any more once all that we sent was acknowledged.
        if rustix::net::getpeername(&slot.fd).is_err() {
            self.unheard.remove(&token.word());
            return false;
        }
        let port = self.shared.ports.get(usize::from(slot.port));
        port.is_some_and(|port| slot.due(&port.deadlines, false) > tick)
    }

    pub(super) fn forget(&mut self, token: Token) {
        self.news.doubts.extend(self.unheard.remove(&token.word()).into_iter().flatten());
        self.wheel.disarm(&mut self.slots, token.index());
        let Some(mut slot) = self.slots.remove(token) else { return };
        if let Some(held) = slot.held.take() {
            self.put_back(held);
        }
        if let Some(tls) = &slot.tls {
            self.shared.budget.hold(tls.charged, 0, true);
        }
        if let Some(ticket) = slot.ticket {
            self.shared.limits.disconnect(ticket);
        }
        self.count_sessions();
        self.local.watch.gauge(Gauge::Sessions, -1);
        self.closed = true;
    }

    pub(super) fn count_sessions(&self) {
        if let Some(sessions) = self.shared.sessions.get(self.local.number) {
            sessions.store(self.slots.len() as u64, Ordering::Relaxed);
        }
    }
}
