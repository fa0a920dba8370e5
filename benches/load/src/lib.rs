//! `portreeve-load`: loads an SMTP or LMTP server, ours or anyone's, and says what it can take.
//!
//! ```text
//! flags, TOML → Plan → run ──spawns──→ worker, worker, …   one event loop each; sessions are dialogues over transports
//!                       ↑ ticks ────────────┘
//!                       └→ Report → text, JSON, HTML, comparison
//! ```
//!
//! What keeps it honest: every reply is checked; in an open loop latency counts from the intended start; the
//! warm-up is counted apart; its own processor time, its waiting and its lateness are measured, and said as
//! warnings when they may be what was measured; the result holds command, plan, machine and histograms.
//!
//! Absent on purpose: retries, certificate checks, DNS beyond one look-up, anything that finds targets.
#![forbid(unsafe_code)]

pub mod bars;
pub mod compare;
mod content;
pub mod dialogue;
pub mod doubts;
pub mod figures;
pub mod ground;
pub mod html;
pub mod live;
pub mod machine;
pub mod namespace;
pub mod output;
pub mod permission;
pub mod places;
pub mod plan;
pub mod process;
pub mod result;
pub mod run;
pub mod script;
pub mod sizes;
pub mod tick;
pub mod transport;
pub mod worker;
