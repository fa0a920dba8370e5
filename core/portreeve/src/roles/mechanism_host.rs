//! A mechanism-host: one library of a stranger, locked up, answering the steps of shards.

use std::process::ExitCode;
use std::time::Duration;

use link::sandbox::Guest;
use link::{Link, Role};
use plugin_host::{Host, Pool, THREADS};
use supervisor::child::Startup;

use super::guest::{self, Kind};

/// How long opening libraries and making their mechanisms may take, here and in workers.
pub const LOAD_MS_MAX: u32 = 10_000;

/// Runs it.
pub fn run(startup: Startup) -> ExitCode {
    let kind = Kind {
        guest: Guest::Mechanisms,
        asked_by: Role::Worker,
        load_ms_max: LOAD_MS_MAX,
        threads: |watch: &_| {
            Pool::start(watch).map_err(|error| format!("no threads for steps that take long: {error}"))
        },
        make: |registry, config: &crate::config::Config, watch, pool| {
            Host::new(registry, |name| config.settings(name.as_str()).to_owned(), watch, pool)
        },
    };
    guest::run(startup, kind)
}

impl guest::Host for Host {
    fn add(&mut self, link: Link) {
        Host::add(self, link);
    }

    fn turn(&mut self, patience: Duration) -> bool {
        Host::turn(self, patience)
    }

    fn is_left(&self) -> bool {
        Host::is_left(self)
    }

    fn is_lost(&self) -> Option<String> {
        let why = || format!("all {THREADS} threads of the library are stuck in steps that do not end");
        self.is_stuck().then(why).or_else(|| self.is_deaf().then(|| guest::DEAF.to_owned()))
    }
}
