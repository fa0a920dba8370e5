//! Time: when a connection has to be looked at, and what happens when that time has come.
//!
//! Each connection hangs in the wheel once: at the deadline of its effect while one is pending, else at the earliest
//! of its clocks ([`Slot::due`](crate::connection::Slot::due)).

use smtp::host::{Outcome, Trouble};
use smtp::{Farewell, Phase};
use telemetry::{Counter, Gauge};

use super::Shard;
use crate::connection::{Clock, Pending, Stage, flag, ticks};
use crate::setup::Notice;
use crate::slab::Token;
use crate::wheel::Tick;

impl Shard {
    /// Moves the deadline's clock: a command or a new phase starts it, octets alone do not.
    pub(super) fn wind_clock(&mut self, token: Token, answered: bool) {
        let tick = self.local.now.tick;
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.is_known() != slot.has(flag::KNOWN) {
            slot.flags ^= flag::KNOWN;
            if let Some(tls) = &mut slot.tls {
                tls.session.forget_channel_bindings();
            }
            self.local.watch.gauge(Gauge::SessionsAuthenticated, if slot.has(flag::KNOWN) { 1 } else { -1 });
        }
        let clock = match slot.session.phase() {
            Phase::Command { .. } => Clock::Command,
            Phase::Auth => Clock::Auth,
            Phase::Data => Clock::Data,
            // What an effect interrupts goes on.
            Phase::Effect | Phase::Closed => return,
        };
        if clock != slot.clock || (clock == Clock::Command && answered) {
            (slot.clock, slot.started) = (clock, tick);
        }
    }

    fn is_crowded(&self) -> bool {
        self.slots.len() * 10 >= self.slots_max * 9
    }

    /// Hangs the connection up at its deadline. Later than before: one store.
    pub(super) fn arm(&mut self, token: Token) {
        let crowded = self.is_crowded();
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.pending != Pending::None {
            return;
        }
        let Some(port) = self.shared.ports.get(usize::from(slot.port)) else { return };
        let due = slot.due(&port.deadlines, crowded);
        self.wheel.arm(&mut self.slots, token.index(), due);
    }

    pub(super) fn arm_effect(&mut self, token: Token) {
        let now = self.local.now.tick;
        let ms = self.local.effect_ms;
        let Some(slot) = self.slots.get_mut(token) else { return };
        let due = match slot.pending {
            // Once handed over, the answer is the sync's, however late (DECISIONS H12).
            Pending::Commit | Pending::Keeping => Tick::MAX / 2,
            Pending::Question | Pending::Step | Pending::Passing => now.saturating_add(ticks(ms)),
            Pending::Delay => {
                // A delay stops the clock before login (DECISIONS C7). One tick more: ticks are rounded down.
                slot.paused = slot.paused.saturating_add(u16::try_from(ticks(ms)).unwrap_or(u16::MAX));
                now.saturating_add(ticks(ms)).saturating_add(1)
            }
            Pending::None => return,
        };
        self.wheel.arm(&mut self.slots, token.index(), due);
    }

    /// Those whose time has come.
    pub(super) fn look_at_due(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(&mut self.slots, self.local.now.tick, &mut due);
        for index in due.drain(..) {
            if let Some(token) = self.slots.token_at(index) {
                self.guarded(token, |shard| shard.expired(token));
            }
        }
        self.due = due;
    }

    /// The wheel came round to this connection.
    fn expired(&mut self, token: Token) {
        let crowded = self.is_crowded();
        let tick = self.local.now.tick;
        let Some(slot) = self.slots.get_mut(token) else { return };
        match slot.pending {
            Pending::Delay => return self.resume(token, Outcome::Elapsed),
            Pending::Question => {
                let question = slot.question;
                self.local.watch.add(Counter::EffectsTimedOut, 1);
                self.local.watch.add(Counter::DirectoryTemporary, 1);
                let Some(outcome) = self.local.questions.forget(token, question) else {
                    self.farewell(token, Farewell::Internal);
                    return self.turn(token);
                };
                return self.resume(token, outcome);
            }
            Pending::Step => {
                let question = slot.question;
                if !self.local.steps.is_asked(token, question) {
                    // Its process was just left for somebody else's sake: it is told with the others.
                    return;
                }
                self.local.watch.add(Counter::EffectsTimedOut, 1);
                // Those who wait for the same process are told at the end of this turn.
                let mut others = Vec::new();
                if let Some((runner, generation)) = self.local.steps.leave_debtor(question, &mut others) {
                    (self.shared.notify)(Notice::RunnerStuck { runner, generation });
                }
                self.local.steps.forget(token, question);
                others.retain(|(other, _)| *other != token);
                self.answers.append(&mut others);
                let late = sasl::OwnedStep::failure(sasl::FailureClass::Temporary, "no answer of its process in time");
                return self.resume(token, Outcome::Step(late));
            }
            Pending::Commit | Pending::Keeping => return self.arm_effect(token),
            Pending::Passing => {
                let question = slot.question;
                self.local.watch.add(Counter::EffectsTimedOut, 1);
                self.local.passing.forget(token, question);
                return self.resume(token, Outcome::Commit(Err(Trouble::Late)));
            }
            Pending::None => {}
        }
        let Some(port) = self.shared.ports.get(usize::from(slot.port)) else { return };
        slot.look_for_slowness(tick);
        if slot.has(flag::SINK_FULL) {
            // It is us who are slow.
            slot.started = tick;
        }
        if slot.due(&port.deadlines, crowded) > tick {
            return self.arm(token);
        }
        self.local.watch.add(Counter::SessionsTimedOut, 1);
        if slot.is_unsent() || slot.stage != Stage::Open {
            return self.close(token, "timeout");
        }
        self.farewell(token, Farewell::Timeout);
        self.turn(token);
    }
}
