//! What a failed login costs: time. Nobody is locked out: only the answer to a *failed* login is late, so a
//! stranger who knows a user's name cannot keep that user away.
//!
//! The delay doubles with each failure of the same (prefix, account) pair. An account that many prefixes try
//! makes every further failure as slow as possible, except for pairs that have succeeded in the last 30 days.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use crate::table::{FAILURE_SLOTS, Table, prefix_bits, probes};

const DELAY_MS_MIN: u64 = 2_000;
const DELAY_MS_MAX: u64 = 30_000;
/// Failures are forgotten after so long without another.
const MEMORY_MS: u64 = 3_600_000;
/// So many failures on one account, from anywhere, are an attack on it.
const ACCOUNT_FAILURES_MAX: u64 = 20;
/// So long a success keeps a pair apart from attacks on its account.
const SUCCESS_MS: u64 = 30 * 24 * 3_600_000;

const KIND_PAIR: u8 = 0x20;
const KIND_ACCOUNT: u8 = 0x21;

// A slot: key; failures in the upper 16 bits and when the last was in the lower 48; last success.
const STATE: usize = 1;
const SUCCESS: usize = 2;
const WHEN: u64 = (1 << 48) - 1;

impl Table {
    /// A login failed: how many milliseconds its answer has to wait. `account` is hashed by the caller under
    /// a key that clients do not know; unknown users are counted like known ones. `jitter` is any random
    /// number; it moves the delay by up to 10 %, so that answers do not tell how often somebody failed.
    pub fn auth_failed(&self, ip: IpAddr, account: u64, now_ms: u64, jitter: u32) -> u32 {
        let pair = self.find_failure(self.pair_key(ip, account), now_ms);
        let of_pair = self.count(pair, now_ms);
        let of_account = self.count(self.find_failure(self.key(KIND_ACCOUNT, u128::from(account)), now_ms), now_ms);
        let known = self.succeeded(pair, now_ms);
        let backoff =
            if of_account > ACCOUNT_FAILURES_MAX && !known { DELAY_MS_MAX } else { 1000 << (of_pair - 1).min(5) };
        let delay = backoff.clamp(DELAY_MS_MIN, DELAY_MS_MAX);
        let per_mille = 900 + u64::from(jitter % 201);
        u32::try_from(delay * per_mille / 1000).unwrap_or(u32::MAX)
    }

    /// A login succeeded: the pair's failures are forgotten, and it is known for 30 days.
    pub fn auth_succeeded(&self, ip: IpAddr, account: u64, now_ms: u64) {
        let pair = self.find_failure(self.pair_key(ip, account), now_ms);
        self.word(self.failure_start(pair) + STATE).store(0, Relaxed);
        self.word(self.failure_start(pair) + SUCCESS).store(now_ms.max(1), Relaxed);
    }

    fn pair_key(&self, ip: IpAddr, account: u64) -> u64 {
        let prefix = self.key(KIND_PAIR, prefix_bits(ip));
        self.key(KIND_PAIR, u128::from(prefix) << 64 | u128::from(account))
    }

    /// One more failure; how many there are now.
    fn count(&self, slot: usize, now_ms: u64) -> u64 {
        let state = self.word(self.failure_start(slot) + STATE);
        let mut failures = 1;
        let _ = state.fetch_update(Relaxed, Relaxed, |old| {
            let (n, last) = (old >> 48, old & WHEN);
            // Also after a clock that jumped back: a failure in the future is none.
            let remembered = last <= now_ms && now_ms - last < MEMORY_MS;
            failures = if remembered { (n + 1).min(0xffff) } else { 1 };
            Some(failures << 48 | now_ms & WHEN)
        });
        failures
    }

    fn succeeded(&self, slot: usize, now_ms: u64) -> bool {
        let success = self.word(self.failure_start(slot) + SUCCESS).load(Relaxed);
        success != 0 && now_ms.saturating_sub(success) < SUCCESS_MS
    }

    /// The key's slot; if it has none, the one in reach that was idle for longest, those with a recent
    /// success last.
    fn find_failure(&self, key: u64, now_ms: u64) -> usize {
        let held = || probes(key, FAILURE_SLOTS).find(|&slot| self.word(self.failure_start(slot)).load(Relaxed) == key);
        if let Some(slot) = held() {
            return slot;
        }
        let worth = |slot: usize| {
            let last = self.word(self.failure_start(slot) + STATE).load(Relaxed) & WHEN;
            let success = self.word(self.failure_start(slot) + SUCCESS).load(Relaxed);
            (self.succeeded(slot, now_ms), last.max(success))
        };
        let stalest = probes(key, FAILURE_SLOTS).min_by_key(|&slot| worth(slot)).unwrap_or(0);
        let start = self.failure_start(stalest);
        let old = self.word(start).load(Relaxed);
        if self.word(start).compare_exchange(old, key, Relaxed, Relaxed).is_err() {
            return held().unwrap_or(stalest);
        }
        self.word(start + STATE).store(0, Relaxed);
        self.word(start + SUCCESS).store(0, Relaxed);
        stalest
    }
}
