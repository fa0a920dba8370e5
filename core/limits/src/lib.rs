//! How much one client may do: sessions at once, rates, and the price of failed logins.
//!
//! ```text
//! Table, one for all workers, of fixed size, atomics only
//!   rows       per worker: sessions in all                      sum over rows ≤ sessions_max
//!   prefixes   per client prefix: sessions of each worker       sum over rows ≤ per_prefix_max
//!   rates      per prefix or account and kind: one GCRA word    connections, AUTH, messages, recipients
//!   failures   per (prefix, account) pair and per account       the delay before a failed login is answered
//! ```
//!
//! A prefix is an IPv4 address or an IPv6 /64. The supervisor makes the table and outlives all workers; it
//! clears the row of a worker that died ([`Table::clear_row`]), so no session is counted for ever. Nothing
//! here waits or grows: a slot is looked for in [`PROBES`] places, and when all are taken the one that
//! matters least gives way. Clients in exempt networks are not brought here at all.
//!
//! Time is an argument: milliseconds of the clock that all processes share ([`link::monotonic_ms`]).
//!
//! ```
//! use limits::{Config, Refusal, Table};
//!
//! let table = Table::create(2)?;
//! let config = Config { per_prefix_max: 1, ..Config::submission() };
//! let client = "192.0.2.7".parse().unwrap();
//! let ticket = table.try_connect(&config, client, 1000).unwrap();
//! assert_eq!(table.try_connect(&config, client, 1001), Err(Refusal::Prefix));
//! table.disconnect(ticket);
//! assert!(table.try_connect(&config, client, 1002).is_ok());
//! # Ok::<(), std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

mod failures;
mod rates;
mod sessions;
mod table;

pub use rates::{Rate, Subject};
pub use sessions::{Refusal, Ticket};
pub use table::{PROBES, Table, prefix};

/// The limits of a listener. 0 means no limit, except for the two session bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Sessions of all listeners and workers together; more are answered `421 4.3.2`.
    pub sessions_max: u32,
    /// Sessions of one prefix; more are answered `421 4.7.0`. At most 60,000.
    pub per_prefix_max: u32,
    /// Listeners with the same group share the count of [`Self::per_prefix_max`].
    pub group: u8,
    /// New connections of one prefix per minute.
    pub connections_per_minute: u32,
    /// AUTH commands of one prefix per minute, over all listeners.
    pub auth_per_minute: u32,
    /// Messages per minute of one account, or of one prefix where nobody has logged in.
    pub messages_per_minute: u32,
    /// Messages of anonymous sessions of one prefix.
    pub anonymous_per_minute: u32,
    /// Recipients per minute of one account, or of one prefix where nobody has logged in.
    pub recipients_per_minute: u32,
}

impl Config {
    /// Defaults of an `mx` listener: 50 sessions of one prefix, 30 AUTH per minute, other rates off.
    pub const fn mx() -> Config {
        Config {
            sessions_max: 10_000,
            per_prefix_max: 50,
            group: 0,
            connections_per_minute: 0,
            auth_per_minute: 30,
            messages_per_minute: 0,
            anonymous_per_minute: 0,
            recipients_per_minute: 0,
        }
    }

    /// Defaults of a submission listener: as [`Self::mx`], but 20 sessions of one prefix.
    pub const fn submission() -> Config {
        Config { per_prefix_max: 20, group: 1, ..Self::mx() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::mx()
    }
}

#[cfg(test)]
mod tests;
