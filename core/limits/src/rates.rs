//! Rates: so many per minute, one word each (GCRA, the token bucket that stores a time instead of tokens).
//!
//! The word is the time at which the bucket will be full again, in microseconds. A charge moves it on by
//! the price of one; a charge that would move it further than a whole bucket away is refused. So a client
//! may do a minute's worth at once and then one at a time, and an old word needs no cleaning: it means "full".

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use crate::Config;
use crate::table::{RATE_SLOTS, Table, prefix_bits, probes};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rate {
    /// New connections.
    Connection = 0x10,
    /// AUTH commands.
    Auth = 0x11,
    /// MAIL commands.
    Message = 0x12,
    /// Accepted recipients.
    Recipient = 0x13,
}

/// Whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A client's IPv4 address or IPv6 /64.
    Prefix(IpAddr),
    /// An account, hashed by the caller under a key that clients do not know.
    Account(u64),
}

/// Prefixes fill the low 128 bits with real addresses; this address is nobody's (discard prefix, RFC 6666).
const ACCOUNTS: u128 = 0x0100_0000_0000_0000 << 64;

impl Table {
    /// Whether the subject may do this once more now. 0 per minute: no limit.
    pub fn charge(&self, rate: Rate, subject: Subject, per_minute: u32, now_ms: u64) -> bool {
        if per_minute == 0 {
            return true;
        }
        let subject = match subject {
            Subject::Prefix(ip) => prefix_bits(ip),
            Subject::Account(hash) => ACCOUNTS | u128::from(hash),
        };
        let price = 60_000_000 / u64::from(per_minute);
        let bucket = price * u64::from(per_minute);
        let now = now_ms.saturating_mul(1000);
        let slot = self.find_rate(self.key(rate as u8, subject), now);
        let full_at = self.word(self.rate_start(slot) + 1);
        let mut permitted = false;
        let _ = full_at.fetch_update(Relaxed, Relaxed, |at| {
            // Beyond a whole bucket only a clock that jumped back or a broken word can lead: pulled in, so that
            // nobody stays locked.
            let debt = at.saturating_sub(now).min(bucket);
            permitted = debt + price <= bucket;
            Some(now.saturating_add(if permitted { debt + price } else { debt }))
        });
        permitted
    }

    /// Whether this prefix may try AUTH once more now.
    pub fn auth_attempt(&self, config: &Config, ip: IpAddr, now_ms: u64) -> bool {
        self.charge(Rate::Auth, Subject::Prefix(ip), config.auth_per_minute, now_ms)
    }

    /// The key's slot; if it has none, the one in reach whose bucket was full first. A client that was
    /// pushed out begins with a full bucket; those who are furthest in debt stay.
    fn find_rate(&self, key: u64, now: u64) -> usize {
        let held = || probes(key, RATE_SLOTS).find(|&slot| self.word(self.rate_start(slot)).load(Relaxed) == key);
        if let Some(slot) = held() {
            return slot;
        }
        let full_at = |slot: usize| self.word(self.rate_start(slot) + 1).load(Relaxed);
        let stalest = probes(key, RATE_SLOTS).min_by_key(|&slot| full_at(slot)).unwrap_or(0);
        let owner = self.word(self.rate_start(stalest));
        let old = owner.load(Relaxed);
        let debt = full_at(stalest);
        if owner.compare_exchange(old, key, Relaxed, Relaxed).is_err() {
            // Another was faster. If it came for somebody else, that one is charged with us: rare and small.
            return held().unwrap_or(stalest);
        }
        if debt > now {
            // The new owner does not inherit a debt.
            let _ = self.word(self.rate_start(stalest) + 1).compare_exchange(debt, now, Relaxed, Relaxed);
        }
        stalest
    }
}
