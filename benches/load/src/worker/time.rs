//! What time brings: slow clients go on, half-open ones leave, idle ones say NOOP, and silent servers are given up.

use std::time::{Duration, Instant};

use super::{Alarm, PACE, Session, Worker};
use crate::dialogue::Trouble;

/// NOOPs in one turn of the loop: it must go on hearing, however many are asked for.
const NOOPS_MAX: usize = 256;

impl Session {
    /// The server is not waited for any longer: how far it had come, unless an end is what was wanted.
    pub(super) fn given_up(&mut self, code: &str, why: &str) -> Option<Trouble> {
        if self.transport.is_connecting() {
            return Some(Trouble::new("connect", code, why));
        }
        match self.transport.is_handshaking() {
            true => Some(Trouble::new("TLS handshake", code, why)),
            false => self.dialogue.lost(code, why).err(),
        }
    }
}

impl Worker {
    /// Alarms that are due, and NOOPs to idle sessions.
    pub(super) fn ring(&mut self, now: Instant) {
        while self.alarms.peek().is_some_and(|(at, ..)| at.0 <= now) {
            let Some((_, alarm, slot, generation)) = self.alarms.pop() else { return };
            if self.generations.get(slot) != Some(&generation) {
                continue;
            }
            match alarm {
                Alarm::Pace => {
                    let Some(session) = self.slots[slot].as_mut() else { continue };
                    let rate = self.plan.scenarios[usize::from(session.scenario)].octets_per_second;
                    session.transport.allow((f64::from(rate) * PACE.as_secs_f64()).ceil() as usize);
                    self.alarms.push((std::cmp::Reverse(now + PACE), Alarm::Pace, slot, generation));
                    self.turn(slot);
                }
                Alarm::Leave => {
                    if let Some(session) = self.slots[slot].take() {
                        self.close(slot, *session, now, None);
                    }
                }
            }
        }
        for _ in 0..NOOPS_MAX {
            let is_due = self.go.is_some() && self.plan.noop_rate > 0.0 && self.next_noop <= now;
            if !is_due || self.held.is_empty() {
                return;
            }
            self.next_noop += Duration::from_secs_f64(1.0 / self.plan.noop_rate);
            let slot = self.held[self.random.below(self.held.len() as u64) as usize];
            let Some(session) = self.slots[slot].as_mut() else { continue };
            self.out.clear();
            if session.dialogue.noop(&mut self.out, now) {
                session.moved = now;
                let _ = session.transport.queue(&self.out);
                self.turn(slot);
            }
        }
    }

    /// Gives up on servers that say nothing. Looks at a share of the sessions, so that nobody waits while all are looked at.
    pub(super) fn sweep(&mut self, now: Instant, share: f64) {
        if self.active == 0 && self.plan.noop_rate == 0.0 && self.is_gathered() {
            // Nothing is due on any of them, and whoever else has this core is not to wait for that to be found out.
            return;
        }
        let patience = Duration::from_secs_f64(self.plan.patience);
        let from = if self.swept < self.slots.len() { self.swept } else { 0 };
        self.swept = from + (self.slots.len() as f64 * share).ceil() as usize;
        for slot in from..self.swept.min(self.slots.len()) {
            let silent = |session: &Session| {
                !(session.held && session.dialogue.is_at_rest())
                    && now.saturating_duration_since(session.moved) > patience
            };
            if self.slots[slot].as_deref().is_some_and(silent)
                && let Some(mut session) = self.slots[slot].take()
            {
                let trouble = session.given_up("silence", &format!("nothing for {} s", self.plan.patience));
                self.close(slot, *session, now, trouble);
            }
        }
    }

    /// The run is over: whom the server has left waiting until now is counted with the stage that it came to. Those
    /// that are held want nothing, and those that we ourselves slow down had no time to ask.
    pub(super) fn leave(&mut self, now: Instant) {
        for slot in 0..self.slots.len() {
            let waits = |session: &Session| !session.held && !session.transport.is_slowed();
            if self.slots[slot].as_deref().is_some_and(waits)
                && let Some(mut session) = self.slots[slot].take()
            {
                let trouble = session.given_up("unfinished", "the run was over");
                self.close(slot, *session, now, trouble);
            }
        }
    }
}
