//! Deadlines: a hashed wheel whose lists run through the slab, so that arming allocates nothing.
//!
//! Moving a deadline *later* only writes it down: the entry is looked at when its old place comes round,
//! and hung up again. So a command that moves the deadline of its session costs one store. Moving it
//! *earlier* relinks at once.
//!
//! ```text
//! arm(deadline) ── linked at or before it? ── yes: write it down
//!                                          └─ no: unlink, hang up at min(deadline, horizon)
//! advance(now) ── entry due? ── yes: handed out    no: hung up again
//! ```

use crate::slab::GenSlab;

/// A point in time in units of [`TICK_MS`].
pub type Tick = u32;

/// Milliseconds of a tick: fine enough for the delay of a failed login, coarse enough for a million sessions.
pub const TICK_MS: u64 = 100;

/// An entry's place in a [`Wheel`].
#[derive(Clone, Copy, Debug)]
pub struct Link {
    next: u32,
    previous: u32,
    /// The tick at which it is looked at; [`UNLINKED`] when it hangs nowhere.
    at: Tick,
    /// The tick at which it is due.
    deadline: Tick,
}

impl Default for Link {
    fn default() -> Self {
        Self { next: NIL, previous: NIL, at: UNLINKED, deadline: UNLINKED }
    }
}

/// A value that can hang in a wheel.
pub trait Linked {
    /// Its place.
    fn link(&mut self) -> &mut Link;
}

/// The wheel of one slab.
pub struct Wheel {
    heads: Box<[u32]>,
    /// One bit per list that is not empty.
    occupied: Box<[u64]>,
    now: Tick,
}

impl Wheel {
    /// A wheel that stands at `now`.
    pub fn new(now: Tick) -> Self {
        Self { heads: vec![NIL; LISTS].into(), occupied: vec![0; LISTS / 64].into(), now }
    }

    /// Sets when `index` is due.
    pub fn arm<T: Linked>(&mut self, slab: &mut GenSlab<T>, index: u32, deadline: Tick) {
        let Some(entry) = slab.at_mut(index) else { return };
        let link = entry.link();
        link.deadline = deadline;
        if link.at != UNLINKED {
            if link.at <= deadline {
                return;
            }
            self.unlink(slab, index);
        }
        self.hang(slab, index);
    }

    /// Takes `index` out; must happen before the slab forgets it.
    pub fn disarm<T: Linked>(&mut self, slab: &mut GenSlab<T>, index: u32) {
        if slab.at_mut(index).is_some_and(|entry| entry.link().at != UNLINKED) {
            self.unlink(slab, index);
        }
    }

    /// Moves on to `now` and appends what is due to `due`; those hang nowhere afterwards.
    pub fn advance<T: Linked>(&mut self, slab: &mut GenSlab<T>, now: Tick, due: &mut Vec<u32>) {
        if now <= self.now {
            return;
        }
        // After a long sleep each list is visited once.
        let first = self.now + 1;
        let last = now.min(self.now + LISTS as u32);
        self.now = now;
        for tick in first..=last {
            let list = tick as usize % LISTS;
            let mut index = std::mem::replace(&mut self.heads[list], NIL);
            self.occupied[list / 64] &= !(1 << (list % 64));
            while let Some(entry) = slab.at_mut(index) {
                let link = entry.link();
                let next = link.next;
                *link = Link { deadline: link.deadline, ..Link::default() };
                if link.deadline <= now {
                    due.push(index);
                } else {
                    self.hang(slab, index);
                }
                index = next;
            }
        }
    }

    /// The next tick at which there is something to look at.
    pub fn next(&self) -> Option<Tick> {
        let start = (self.now as usize + 1) % LISTS;
        for step in 0..=LISTS / 64 {
            let word = (start / 64 + step) % (LISTS / 64);
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            } else if step == LISTS / 64 {
                bits &= !(u64::MAX << (start % 64));
            }
            if bits != 0 {
                let list = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (list + LISTS - start) % LISTS;
                return Some(self.now + 1 + ahead as u32);
            }
        }
        None
    }

    fn hang<T: Linked>(&mut self, slab: &mut GenSlab<T>, index: u32) {
        let Some(link) = slab.at_mut(index).map(Linked::link) else { return };
        let at = link.deadline.clamp(self.now + 1, self.now + LISTS as u32 - 1);
        let list = at as usize % LISTS;
        let next = std::mem::replace(&mut self.heads[list], index);
        self.occupied[list / 64] |= 1 << (list % 64);
        (link.at, link.next, link.previous) = (at, next, NIL);
        if let Some(next) = slab.at_mut(next) {
            next.link().previous = index;
        }
    }

    fn unlink<T: Linked>(&mut self, slab: &mut GenSlab<T>, index: u32) {
        let Some(entry) = slab.at_mut(index) else { return };
        let link = entry.link();
        let Link { next, previous, at, deadline } = *link;
        *link = Link { deadline, ..Link::default() };
        match slab.at_mut(previous) {
            Some(previous) => previous.link().next = next,
            None => {
                let list = at as usize % LISTS;
                self.heads[list] = next;
                if next == NIL {
                    self.occupied[list / 64] &= !(1 << (list % 64));
                }
            }
        }
        if let Some(next) = slab.at_mut(next) {
            next.link().previous = previous;
        }
    }
}

/// Lists of the wheel: 409 s, so that a command deadline of 300 s is looked at once.
const LISTS: usize = 4096;
/// No entry; no slab has as many.
const NIL: u32 = u32::MAX;
const UNLINKED: Tick = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Token;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Entry(Link);

    impl Linked for Entry {
        fn link(&mut self) -> &mut Link {
            &mut self.0
        }
    }

    /// A small generator, so that a failing seed is all that one needs.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % bound
        }
    }

    /// Against a map of deadlines: nothing fires early, nothing is missed, `next` never oversleeps.
    #[test]
    fn behaves_as_a_map_of_deadlines() {
        for seed in 0..300 {
            let mut random = Random(seed);
            let mut now = random.below(10_000) as Tick;
            let (mut slab, mut wheel) = (GenSlab::<Entry>::default(), Wheel::new(now));
            let mut model: HashMap<Token, Tick> = HashMap::new();
            let mut tokens = Vec::new();
            for _ in 0..400 {
                match random.below(10) {
                    0..3 => tokens.push(slab.insert(Entry::default())),
                    3..7 if !tokens.is_empty() => {
                        let token = tokens[random.below(tokens.len() as u64) as usize];
                        let ahead = [3, 300, 5_000, 900_000][random.below(4) as usize];
                        let deadline = now + random.below(ahead) as Tick;
                        wheel.arm(&mut slab, token.index(), deadline);
                        model.insert(token, deadline);
                    }
                    7 if !tokens.is_empty() => {
                        let token = tokens.swap_remove(random.below(tokens.len() as u64) as usize);
                        wheel.disarm(&mut slab, token.index());
                        slab.remove(token);
                        model.remove(&token);
                    }
                    _ => {
                        let earliest = model.values().min().copied();
                        if let Some(earliest) = earliest {
                            let next = wheel.next().expect("something is armed");
                            assert!(next <= earliest.max(now + 1), "seed {seed}: would sleep past {earliest}");
                        }
                        let step = [2, 100, 6_000][random.below(3) as usize];
                        now += 1 + random.below(step) as Tick;
                        let mut due = Vec::new();
                        wheel.advance(&mut slab, now, &mut due);
                        let mut fired: Vec<_> = due.iter().map(|&index| slab.token_at(index).unwrap()).collect();
                        let mut expected: Vec<_> =
                            model.iter().filter(|&(_, &deadline)| deadline <= now).map(|(&token, _)| token).collect();
                        fired.sort_by_key(|token| token.word());
                        expected.sort_by_key(|token| token.word());
                        assert_eq!(fired, expected, "seed {seed} at {now}");
                        model.retain(|_, deadline| *deadline > now);
                    }
                }
            }
            if model.is_empty() {
                assert_eq!(wheel.next(), None, "seed {seed}");
            }
        }
    }
}
