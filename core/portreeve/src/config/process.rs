//! `[process]`: how many processes, as whom, where their files are.

use std::path::PathBuf;

use super::Config;
use super::reader::{About, Reader};
use crate::report::Report;

/// `[process]`.
#[derive(Clone, Debug)]
pub struct Process {
    /// Worker processes.
    pub workers: usize,
    /// Event loops in each; 0: one per core.
    pub shards: usize,
    /// Whom children become when started as root.
    pub user: Option<String>,
    /// Their group.
    pub group: Option<String>,
    /// Holds `run/`, `secrets/` and more.
    pub state_dir: PathBuf,
    /// Whether strangers' code runs only where it can be locked up completely.
    pub sandbox_required: bool,
}

impl Process {
    pub(super) fn read(top: &Reader<'_>) -> Self {
        Self {
            workers: top.count("process.workers"),
            shards: top.count("process.shards"),
            user: top.text("process.user"),
            group: top.text("process.group"),
            state_dir: top.path("process.state_dir").unwrap_or_else(|| top.base.join("state")),
            sandbox_required: top.word("process.sandbox") == "require",
        }
    }
}

pub(super) fn check(config: &Config, report: &mut Report) {
    if config.process.group.is_some() && config.process.user.is_none() {
        let cause = "has no user beside it: it goes with the user `portreeve`";
        About::new(&config.written, report).warning("process.group", cause, "add process.user");
    }
}
