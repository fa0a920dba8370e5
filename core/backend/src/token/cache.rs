//! Tokens that were verified a short time ago, by their SHA-256: whoever reads this memory finds no token.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

/// Remembered tokens; the oldest make room.
const ENTRIES_MAX: usize = 16 * 1024;

/// See the module.
#[derive(Default)]
pub(super) struct Cache {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Whose it is, which issuer says so, and until when that is believed.
    entries: HashMap<[u8; 32], (Box<str>, usize, u64)>,
    /// In the order in which they came.
    order: VecDeque<[u8; 32]>,
}

impl Cache {
    /// The user and the issuer's number, if the token is believed until after `now`.
    pub(super) fn find(&self, key: &[u8; 32], now: u64) -> Option<(String, usize)> {
        let inner = self.inner.lock();
        inner.entries.get(key).filter(|(_, _, until)| now < *until).map(|(user, issuer, _)| (user.to_string(), *issuer))
    }

    pub(super) fn keep(&self, key: [u8; 32], (user, issuer): (&str, usize), until: u64, now: u64) {
        if until <= now {
            return;
        }
        let mut inner = self.inner.lock();
        if inner.entries.insert(key, (user.into(), issuer, until)).is_none() {
            inner.order.push_back(key);
        }
        while inner.order.len() > ENTRIES_MAX {
            if let Some(oldest) = inner.order.pop_front() {
                inner.entries.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn believed_until_its_end_and_no_more_than_there_is_room_for() {
        let cache = Cache::default();
        cache.keep([1; 32], ("alice", 3), 100, 50);
        assert_eq!(cache.find(&[1; 32], 99), Some(("alice".to_owned(), 3)));
        assert_eq!(cache.find(&[1; 32], 100), None);
        assert_eq!(cache.find(&[2; 32], 50), None);
        cache.keep([3; 32], ("late", 0), 50, 50);
        assert_eq!(cache.find(&[3; 32], 49), None);
        for n in 0..2 * ENTRIES_MAX as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            cache.keep(key, ("bob", 1), 100, 50);
        }
        let inner = cache.inner.lock();
        assert_eq!((inner.entries.len(), inner.order.len()), (ENTRIES_MAX, ENTRIES_MAX));
    }
}
