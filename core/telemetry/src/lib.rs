//! What the operator sees: numbers, events, audit records.
//!
//! ```text
//! table    every counter, gauge and histogram: name, label, whose it is, help; everything else is made from it
//! Board    the numbers of all processes in shared pages, one Slot each; reading them costs nobody a message,
//!          and a dead process leaves its numbers behind
//!            → exposition  Prometheus text          → snapshot  JSON for `status --json`
//! Event    one thing that happened, with fields; → a JSON object or a human line, at most 8 KiB
//! EventSender  hands events to the log writer (control) without ever waiting
//! ```
//!
//! Counting is one atomic addition without a lock. Shards that share a slot should still add once per turn
//! of their loop, not once per line: the word's cache line travels between cores.
//!
//! ```
//! use telemetry::{Board, Counter, Gauge};
//!
//! let board = Board::create(4)?;
//! let slot = board.claim(0, link::Role::Worker, 1234, 1_700_000_000_000).unwrap();
//! slot.add(Counter::ConnectionsAccepted, 3);
//! slot.gauge_add(Gauge::Sessions, 1);
//! assert!(telemetry::exposition(&board).contains("portreeve_connections_total{role=\"worker\",result=\"accepted\"} 3\n"));
//! # Ok::<(), std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

mod board;
mod event;
mod exposition;
mod sender;
mod table;

pub use board::{Board, Slot, State, Summary};
pub use event::{Event, FIELD_OCTETS_MAX, LINE_OCTETS_MAX, Level, Value, printable, rfc3339};
pub use exposition::{exposition, snapshot};
pub use sender::EventSender;
pub use table::{Counter, Gauge, Histogram, Row};
