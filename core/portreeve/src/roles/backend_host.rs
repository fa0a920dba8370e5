//! A backend-host: the credential back ends of one library, locked up, answering the directory. They may block, and
//! have threads to do so. Our secrets are as far away as for a mechanism-host.

use std::process::ExitCode;
use std::time::Duration;

use link::sandbox::Guest;
use link::{Link, Role};
use plugin_host::BackendHost;
use supervisor::child::Startup;
use zeroize::Zeroize as _;

use super::give_up;
use super::guest::{self, Kind};

/// How long opening the library and configuring its back ends may take: they may connect to a database.
const LOAD_MS_MAX: u32 = 30_000;

/// Runs it.
pub fn run(mut startup: Startup) -> ExitCode {
    let settings = serde_json::from_slice::<serde_json::Value>(&startup.secrets);
    startup.secrets.zeroize();
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => return give_up(&startup.supervisor, &format!("settings: {error}")),
    };
    let kind = Kind {
        guest: Guest::BackEnds,
        asked_by: Role::Directory,
        load_ms_max: LOAD_MS_MAX,
        threads: |_: &_| Ok(()),
        make: |registry, _: &_, watch, ()| BackendHost::new(registry, &settings, watch),
    };
    guest::run(startup, kind)
}

impl guest::Host for BackendHost {
    fn add(&mut self, link: Link) {
        BackendHost::add(self, link);
    }

    fn turn(&mut self, patience: Duration) -> bool {
        BackendHost::turn(self, patience)
    }

    fn is_left(&self) -> bool {
        BackendHost::is_left(self)
    }

    fn is_lost(&self) -> Option<String> {
        self.is_deaf().then(|| guest::DEAF.to_owned())
    }
}
