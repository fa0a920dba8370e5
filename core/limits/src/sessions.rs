//! Sessions at once, in all and per prefix.
//!
//! Each worker counts in its own place and everybody adds up, so that the count of a worker that died can be
//! taken back. Count first, then look: two that come at once for one free place are both refused rather
//! than both admitted. A slot whose sum is not zero never changes hands.

use std::net::IpAddr;
use std::sync::atomic::Ordering::SeqCst;

use crate::Config;
use crate::rates::{Rate, Subject};
use crate::table::{PREFIX_SLOTS, Table, prefix_bits, probes};

/// Proof of an admitted session, to be given back exactly once with [`Table::disconnect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the session is counted until this is given to disconnect"]
pub struct Ticket(u32);

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many sessions in all: `421 4.3.2`.
    Total,
    /// Too many sessions of this prefix: `421 4.7.0`.
    Prefix,
    /// This prefix connects too fast: `421 4.7.0`.
    Rate,
}

/// Counted in the total only: all places for this prefix are in use by others.
const NO_SLOT: u32 = u32::MAX;

/// The slots in reach kept changing hands: a worker died in the middle and its row is not cleared yet.
struct Busy;

/// Marks a slot that is changing hands; the low bits say in whose row.
const CHANGING: u64 = 1 << 63;

/// The count of one worker in one slot has 16 bits.
const PER_PREFIX_MAX: u64 = 60_000;

impl Table {
    /// Admits a session or says why not. Costs a handful of atomic operations; a connection is refused before
    /// anything was spent on it.
    pub fn try_connect(&self, config: &Config, ip: IpAddr, now_ms: u64) -> Result<Ticket, Refusal> {
        let total = self.word(self.row_start(self.row));
        total.fetch_add(1, SeqCst);
        if self.sessions() > u64::from(config.sessions_max) {
            self.take_back();
            return Err(Refusal::Total);
        }
        let slot = match self.admit(config, ip) {
            Ok(slot) => slot,
            Err(refusal) => {
                self.take_back();
                return Err(refusal);
            }
        };
        let ticket = Ticket(slot.map_or(NO_SLOT, |slot| slot as u32));
        if !self.charge(Rate::Connection, Subject::Prefix(ip), config.connections_per_minute, now_ms) {
            self.disconnect(ticket);
            return Err(Refusal::Rate);
        }
        Ok(ticket)
    }

    /// The session has ended.
    pub fn disconnect(&self, ticket: Ticket) {
        self.take_back();
        if ticket.0 != NO_SLOT && (ticket.0 as usize) < PREFIX_SLOTS {
            self.leave(ticket.0 as usize);
        }
    }

    /// Sessions of all workers.
    pub fn sessions(&self) -> u64 {
        (0..self.rows()).map(|row| self.word(self.row_start(row)).load(SeqCst)).sum()
    }

    /// Takes back what a dead worker had counted. Only the supervisor calls this, after the process is gone.
    pub fn clear_row(&self, row: usize) {
        if row >= self.rows() {
            return;
        }
        self.word(self.row_start(row)).store(0, SeqCst);
        let (word, shift) = place(row);
        for slot in 0..PREFIX_SLOTS {
            let start = self.prefix_start(slot);
            let counts = self.word(start + word);
            if counts.load(SeqCst) >> shift & 0xffff != 0 {
                counts.fetch_and(!(0xffff << shift), SeqCst);
            }
            // It died while it gave the slot to another prefix.
            let _ = self.word(start).compare_exchange(CHANGING | row as u64, 0, SeqCst, SeqCst);
        }
    }

    fn take_back(&self) {
        let total = self.word(self.row_start(self.row));
        // Never below zero: a count that is one short is better than one that refuses everybody.
        let _ = total.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
    }

    /// Counts the session in its prefix' slot; `None` when no slot can be had.
    fn admit(&self, config: &Config, ip: IpAddr) -> Result<Option<usize>, Refusal> {
        let key = self.key(config.group, prefix_bits(ip));
        let limit = u64::from(config.per_prefix_max).min(PER_PREFIX_MAX);
        // A slot may change hands between finding and counting; then look again, not for ever.
        for _ in 0..4 {
            let slot = match self.find_prefix(key) {
                Ok(Some(slot)) => slot,
                Ok(None) => return Ok(None),
                Err(Busy) => return Err(Refusal::Prefix),
            };
            if self.sum(slot) >= limit {
                // Full, unless the slot has just become another's.
                if self.word(self.prefix_start(slot)).load(SeqCst) == key {
                    return Err(Refusal::Prefix);
                }
                continue;
            }
            let (word, shift) = place(self.row);
            self.word(self.prefix_start(slot) + word).fetch_add(1 << shift, SeqCst);
            if self.word(self.prefix_start(slot)).load(SeqCst) != key {
                self.leave(slot);
                continue;
            }
            if self.sum(slot) > limit {
                self.leave(slot);
                return Err(Refusal::Prefix);
            }
            return Ok(Some(slot));
        }
        Err(Refusal::Prefix)
    }

    /// The key's slot, or one that had no sessions and is the key's now; `None` when all in reach are in use.
    fn find_prefix(&self, key: u64) -> Result<Option<usize>, Busy> {
        for attempt in 0..100 {
            if let Some(slot) = self.held_by(key) {
                return Ok(Some(slot));
            }
            let mut changing = false;
            let free = probes(key, PREFIX_SLOTS).find_map(|slot| {
                let old = self.word(self.prefix_start(slot)).load(SeqCst);
                changing |= old & CHANGING != 0;
                (old & CHANGING == 0 && self.sum(slot) == 0).then_some((slot, old))
            });
            if let Some((slot, old)) = free {
                if self.take_over(slot, old, key) {
                    return Ok(Some(slot));
                }
            } else if !changing {
                return Ok(None);
            }
            // Another thread is at it, for a few instructions.
            if attempt < 20 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        Err(Busy)
    }

    /// Marks the slot, looks around, then gives it to `key` or back.
    fn take_over(&self, slot: usize, old: u64, key: u64) -> bool {
        let owner = self.word(self.prefix_start(slot));
        if owner.compare_exchange(old, CHANGING | self.row as u64, SeqCst, SeqCst).is_err() {
            return false;
        }
        // Somebody may have counted between our look and our mark. Whoever counts looks at the owner
        // afterwards: either it saw the mark and takes its count back, or we see its count here.
        let unused = self.sum(slot) == 0;
        // Of two that bring the same prefix to different slots at least one sees the other here.
        let rival = probes(key, PREFIX_SLOTS).filter(|&other| other != slot).any(|other| {
            let other = self.word(self.prefix_start(other)).load(SeqCst);
            other == key || other & CHANGING != 0
        });
        let taken = unused && !rival;
        owner.store(if taken { key } else { old }, SeqCst);
        taken
    }

    fn held_by(&self, key: u64) -> Option<usize> {
        probes(key, PREFIX_SLOTS).find(|&slot| self.word(self.prefix_start(slot)).load(SeqCst) == key)
    }

    fn sum(&self, slot: usize) -> u64 {
        let start = self.prefix_start(slot);
        (1..self.prefix_words())
            .map(|word| self.word(start + word).load(SeqCst))
            .map(|four| (four & 0xffff) + (four >> 16 & 0xffff) + (four >> 32 & 0xffff) + (four >> 48))
            .sum()
    }

    fn leave(&self, slot: usize) {
        let (word, shift) = place(self.row);
        let counts = self.word(self.prefix_start(slot) + word);
        let one_less = |four: u64| if four >> shift & 0xffff == 0 { None } else { Some(four - (1 << shift)) };
        let _ = counts.fetch_update(SeqCst, SeqCst, one_less);
    }
}

/// In which word of a slot a row counts, and at which bit.
fn place(row: usize) -> (usize, u32) {
    (1 + row / 4, (row % 4) as u32 * 16)
}
