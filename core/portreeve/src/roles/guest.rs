//! What a process does that runs one library of a stranger, for its mechanisms or for its back ends. It has no network,
//! no page that others believe in, no way to the log, and no files but what the operator grants; it knows its supervisor
//! and those that ask it.
//!
//! The library runs behind two walls: limits, Landlock and a first filter from before it is opened, a narrow filter
//! before it is asked for the first time ([`link::sandbox`]).

use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::Duration;

use link::sandbox::{self, Demand, Guest};
use link::{Link, Role, sys};
use plugin_host::{LoadError, Registry, Terms, Watch};
use supervisor::child::{Later, Peer, Startup};

use super::{Told, give_up};
use crate::cli::exit;
use crate::config::Config;

/// Somebody looks around at least as often.
const PATIENCE: Duration = Duration::from_secs(1);

/// A library at work.
pub trait Host {
    /// Somebody asks it from now on.
    fn add(&mut self, link: Link);
    /// Waits for something to do, and does it. `true`: the supervisor has said something.
    fn turn(&mut self, patience: Duration) -> bool;
    /// Whether nobody asks it any more.
    fn is_left(&self) -> bool;
    /// Why it can be of no more use.
    fn is_lost(&self) -> Option<String>;
}

/// Why a host is lost that hears nothing any more.
pub const DEAF: &str = "the library has closed descriptors that are not its own";

/// How one kind of host comes to be.
pub struct Kind<Threads, Make> {
    /// For the sandbox.
    pub guest: Guest,
    /// Who asks it.
    pub asked_by: Role,
    /// How long opening the library and making it ready may take.
    pub load_ms_max: u32,
    /// Starts threads while that is possible.
    pub threads: Threads,
    /// Makes it of what was loaded, with those threads.
    pub make: Make,
}

/// Runs it.
pub fn run<H: Host, T>(
    mut startup: Startup,
    kind: Kind<
        impl FnOnce(&Watch) -> Result<T, String>,
        impl FnOnce(Registry, &Config, Watch, T) -> Result<H, LoadError>,
    >,
) -> ExitCode {
    let asked_by = kind.asked_by;
    let mut host = match start(&mut startup, kind) {
        Ok(host) => host,
        Err(why) => return give_up(&startup.supervisor, &why),
    };
    let Startup { mut supervisor, peers, .. } = startup;
    peers.into_iter().filter(|peer| peer.role == asked_by).for_each(|peer| host.add(peer.link));
    if supervisor.ready().is_err() {
        return ExitCode::from(exit::FAILURE);
    }
    let mut draining = false;
    loop {
        let spoken = host.turn(PATIENCE);
        for later in spoken.then(|| supervisor.receive()).into_iter().flatten() {
            match later {
                Later::Peer(Peer { role, link, .. }) if role == asked_by => host.add(link),
                // A newer edition serves. Who asks closes its link when the last thing that is open here is over.
                Later::Drain { .. } => draining = true,
                Later::Stop => return ExitCode::SUCCESS,
                _ => {}
            }
        }
        if let Some(why) = host.is_lost() {
            return give_up(&supervisor, &why);
        }
        if draining && host.is_left() {
            let told = supervisor.drained().is_ok();
            return if told { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) };
        }
    }
}

fn start<H, T>(
    startup: &mut Startup,
    kind: Kind<
        impl FnOnce(&Watch) -> Result<T, String>,
        impl FnOnce(Registry, &Config, Watch, T) -> Result<H, LoadError>,
    >,
) -> Result<H, String> {
    let Kind { guest, load_ms_max, threads, make, .. } = kind;
    let config = Told::decode(&startup.configuration)?.config;
    let demand = if config.process.sandbox_required { Demand::Require } else { Demand::BestEffort };
    let watch = Watch::new(Some(startup.supervisor.as_fd()))
        .map_err(|error| format!("no descriptor to wait with: {error}; raise the limit of open files"))?;
    let libraries = std::mem::take(&mut startup.plugins);
    let grants = libraries.first().map(|library| config.plugins.grants(&library.id)).unwrap_or_default();
    let mut started = None;
    let in_force = sandbox::load(demand, guest, &grants, || {
        started = Some(threads(&watch)?);
        Ok(())
    })?;
    let started = started.ok_or("no threads were started")?;
    startup.supervisor.sandbox(&in_force).map_err(|error| error.to_string())?;
    sys::end_after_ms(load_ms_max);
    let mut registry = Registry::new();
    for library in libraries {
        let origin = std::path::PathBuf::from(library.origin);
        let terms = Terms { process: true, self_asserts: config.plugins.self_asserts(&library.id) };
        registry.load(&library.id, library.library, &origin, terms).map_err(|error| error.to_string())?;
    }
    let host = make(registry, &config, watch, started).map_err(|error| error.to_string())?;
    sys::end_after_ms(0);
    // Whatever the library did to signals while it was opened ends here.
    sys::default_signals();
    sandbox::serve(demand, guest, &grants)?;
    Ok(host)
}
