//! What a connection holds between two turns: input that its session has not taken, output that has not left,
//! records that are not complete. All of it is charged to the budget, and the box goes back when it is empty.

use smtp::Farewell;

use super::Shard;
use crate::connection::{Held, flag, keep};
use crate::slab::Token;

impl Shard {
    pub(super) fn take_input(&mut self, token: Token) -> Vec<u8> {
        let Some(slot) = self.slots.get_mut(token) else { return Vec::new() };
        slot.clear(flag::INPUT);
        let input = slot.held.as_mut().map(|held| std::mem::take(&mut held.input)).unwrap_or_default();
        self.give_back(token);
        input
    }

    /// Keeps what the session has not taken. `whole`: it may hold whole lines, so it is offered again
    /// without waiting for the client.
    pub(super) fn keep_input(&mut self, token: Token, rest: &[u8], whole: bool) {
        if rest.is_empty() {
            return self.give_back(token);
        }
        let Some(slot) = self.slots.get_mut(token) else { return };
        let spare = &mut self.local.spare;
        let held = slot.held.get_or_insert_with(|| spare.pop().unwrap_or_default());
        keep(&mut held.input, rest);
        if whole {
            slot.set(flag::INPUT);
        }
        if !self.charge(token) {
            self.take_input(token);
            self.farewell(token, Farewell::Overload);
        }
    }

    /// Squares the budget with what is held; `false` when it does not permit that.
    pub(super) fn charge(&mut self, token: Token) -> bool {
        let Some(slot) = self.slots.get_mut(token) else { return true };
        let known = slot.is_known();
        let Some(held) = &mut slot.held else { return true };
        let octets = held.octets();
        let permitted = self.shared.budget.hold(held.charged, octets, known);
        if permitted {
            held.charged = octets;
        }
        permitted
    }

    /// The same for records that are not complete.
    pub(super) fn charge_records(&mut self, token: Token) -> bool {
        let Some(slot) = self.slots.get_mut(token) else { return true };
        let known = slot.is_known();
        let Some(tls) = &mut slot.tls else { return true };
        let octets = tls.session.pending_octets();
        let permitted = self.shared.budget.hold(tls.charged, octets, known);
        if permitted {
            tls.charged = octets;
        }
        permitted
    }

    /// Gives the box back when nothing is in it any more; else counts anew what is.
    pub(super) fn give_back(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.held.as_ref().is_some_and(|held| held.is_empty())
            && let Some(held) = slot.held.take()
        {
            self.put_back(held);
        } else {
            // What is still held is less than it was, and always permitted.
            self.charge(token);
        }
    }

    /// A box that its connection does not need any more is wiped, and the next one's.
    pub(super) fn put_back(&mut self, mut held: Box<Held>) {
        self.shared.budget.hold(held.charged, 0, true);
        held.wipe();
        if self.local.spare.len() < SPARE_MAX {
            self.local.spare.push(held);
        }
    }
}

/// Boxes kept for the next connection that needs one.
const SPARE_MAX: usize = 256;
