//! Octets that sessions hold between two turns: pieces of lines and records, replies that do not leave.
//!
//! One count for the whole process. Each session is bounded by itself; the budget is for a crowd that agrees
//! to fill up to those bounds together. Beyond it the one who asks gets `421 4.3.2`; whoever has logged in
//! has a quarter more, so that strangers go first (DECISIONS C4).

use std::sync::atomic::{AtomicUsize, Ordering};

/// The count and its bound.
pub struct Budget {
    used: AtomicUsize,
    octets_max: usize,
}

impl Budget {
    /// Nothing used of `octets_max`.
    pub fn new(octets_max: usize) -> Self {
        Self { used: AtomicUsize::new(0), octets_max }
    }

    /// Moves a holder from `old` to `new` octets; `false` when the budget does not permit it, and then
    /// nothing has changed. Holding less is always permitted.
    pub fn hold(&self, old: usize, new: usize, known: bool) -> bool {
        if new <= old {
            self.used.fetch_sub(old - new, Ordering::Relaxed);
            return true;
        }
        let bound = if known { self.octets_max + self.octets_max / 4 } else { self.octets_max };
        let used = self.used.fetch_add(new - old, Ordering::Relaxed) + (new - old);
        if used > bound {
            self.used.fetch_sub(new - old, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Octets held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_go_first() {
        let budget = Budget::new(1000);
        assert!(budget.hold(0, 900, false));
        assert!(!budget.hold(0, 200, false));
        assert!(budget.hold(0, 200, true));
        assert!(!budget.hold(0, 200, true));
        assert!(budget.hold(900, 0, false));
        assert!(budget.hold(200, 0, true));
        assert_eq!(budget.used(), 0);
    }
}
