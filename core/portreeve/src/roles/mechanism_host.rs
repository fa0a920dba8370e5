//! A mechanism-host: one library of a stranger, locked up, answering steps. It has no files, no network, no page
//! that others believe in and no way to the log; it knows its supervisor and the shards that ask it.
//!
//! The library runs behind two walls: limits, Landlock and a first filter from before it is opened, a narrow
//! filter before its first step ([`link::sandbox`]).

use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use link::sandbox::{self, Demand, Guest};
use link::{Role, sys};
use plugin_host::{Host, Pool, Registry, THREADS, Terms};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use supervisor::child::{Later, Peer, Startup, Supervisor};

use super::{Told, give_up};
use crate::cli::exit;

/// How long opening the library and making its mechanisms may take.
const LOAD_MS_MAX: u32 = 10_000;

/// Runs it.
pub fn run(mut startup: Startup) -> ExitCode {
    let mut host = match start(&mut startup) {
        Ok(host) => host,
        Err(why) => return give_up(&startup.supervisor, &why),
    };
    let Startup { mut supervisor, peers, .. } = startup;
    peers.into_iter().filter(|peer| peer.role == Role::Worker).for_each(|peer| host.add(peer.link));
    if supervisor.ready().is_err() {
        return ExitCode::from(exit::FAILURE);
    }
    let mut draining: Option<Instant> = None;
    loop {
        wait(&supervisor, &host);
        for later in supervisor.receive() {
            match later {
                Later::Peer(Peer { role: Role::Worker, link, .. }) => host.add(link),
                // A newer edition serves. Shards close their links when their last exchange here is over.
                Later::Drain { .. } => draining = draining.or(Some(Instant::now())),
                Later::Stop => return ExitCode::SUCCESS,
                _ => {}
            }
        }
        host.turn();
        if host.is_stuck() {
            let why = format!("all {THREADS} threads of the library are stuck in steps that do not end");
            return give_up(&supervisor, &why);
        }
        if draining.is_some() && host.is_left() {
            let told = supervisor.drained().is_ok();
            return if told { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) };
        }
    }
}

fn start(startup: &mut Startup) -> Result<Host, String> {
    let config = Told::decode(&startup.configuration)?.config;
    let demand = if config.process.sandbox_required { Demand::Require } else { Demand::BestEffort };
    let libraries = std::mem::take(&mut startup.plugins);
    let grants = libraries.first().map(|library| config.plugins.grants(&library.id)).unwrap_or_default();
    let mut pool = None;
    let in_force = sandbox::load(demand, Guest::Mechanisms, &grants, || {
        let started = Pool::start().map_err(|error| format!("no threads for steps that take long: {error}"))?;
        pool = Some(started);
        Ok(())
    })?;
    let pool = pool.ok_or("no threads were started")?;
    startup.supervisor.sandbox(&in_force).map_err(|error| error.to_string())?;
    sys::end_after_ms(LOAD_MS_MAX);
    let mut registry = Registry::new();
    for library in libraries {
        let origin = std::path::PathBuf::from(library.origin);
        let terms = Terms { process: true, self_asserts: config.plugins.self_asserts(&library.id) };
        registry.load(&library.id, library.library, &origin, terms).map_err(|error| error.to_string())?;
    }
    let host = Host::new(registry, |name| config.settings(name.as_str()).to_owned(), pool)
        .map_err(|error| error.to_string())?;
    sys::end_after_ms(0);
    // Whatever the library did to signals while it was opened ends here.
    sys::default_signals();
    sandbox::serve(demand, Guest::Mechanisms, &grants)?;
    Ok(host)
}

/// Until the supervisor or a shard says something, or one takes what waits for it.
fn wait(supervisor: &Supervisor, host: &Host) {
    let shards: Vec<(BorrowedFd<'_>, bool)> = host.interest().collect();
    let mut fds = vec![PollFd::from_borrowed_fd(supervisor.as_fd(), PollFlags::IN)];
    fds.extend(shards.into_iter().map(|(fd, unsent)| {
        let out = if unsent { PollFlags::OUT } else { PollFlags::empty() };
        PollFd::from_borrowed_fd(fd, PollFlags::IN | out)
    }));
    let second = Duration::from_secs(1);
    let patience = host.look_at().map_or(second, |at| second.min(at.saturating_duration_since(Instant::now())));
    let second = Timespec::try_from(patience).ok();
    // An error means one look too many at the links.
    let _ = poll(&mut fds, second.as_ref());
}
