//! `[spool]` and `[queue]`: where mail is until it has been handed on, and for how long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Config;
use super::reader::{About, Reader};
use crate::report::Report;

/// `[spool]`.
#[derive(Clone, Debug)]
pub struct Spool {
    /// Its folder.
    pub path: PathBuf,
    /// Size of a segment file.
    pub segment: u64,
    /// Whether 250 waits for the disk.
    pub durable: bool,
    /// Free room below which mail is refused.
    pub min_free: u64,
    /// The same in per cent.
    pub min_free_percent: u8,
    /// Memory of a worker for messages.
    pub memory: usize,
}

/// `[queue]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// How old a message may become.
    pub expire: Duration,
    /// How old before its sender is told that it waits; zero: never.
    pub delay_notice: Duration,
    /// To the second attempt.
    pub retry: Duration,
    /// Between attempts at most.
    pub retry_max: Duration,
}

impl Spool {
    pub(super) fn read(top: &Reader<'_>, state_dir: &Path) -> Self {
        Self {
            path: top.path("spool.path").unwrap_or_else(|| state_dir.join("spool")),
            segment: top.count("spool.segment"),
            durable: top.word("spool.durability") != "none",
            min_free: top.count("spool.min_free"),
            min_free_percent: top.count("spool.min_free_percent"),
            memory: top.count("spool.memory"),
        }
    }
}

impl Queue {
    pub(super) fn read(top: &Reader<'_>) -> Self {
        Self {
            expire: top.time("queue.expire"),
            delay_notice: top.time("queue.delay_notice"),
            retry: top.time("queue.retry"),
            retry_max: top.time("queue.retry_max"),
        }
    }
}

/// What loses mail must be permitted, and what is permitted should be needed.
pub(super) fn check(config: &Config, report: &mut Report) {
    let mut about = About::new(&config.written, report);
    if !config.spool.durable && !config.allow_data_loss {
        about.error(
            "spool.durability",
            "\"none\" can lose acknowledged mail",
            "write \"group-fsync\", or allow_data_loss = true at the top of the file (benches only)",
        );
    }
    if config.allow_data_loss && !config.loses_data() {
        about.warning("allow_data_loss", "permits losing mail, but nothing here does", "take it out");
    }
}
