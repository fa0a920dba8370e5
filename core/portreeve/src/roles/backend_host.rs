//! A backend-host: the credential back ends of one library, locked up, answering the directory. They may block, and
//! have threads to do so. Files and network are as far away as for a mechanism-host, save for what the operator granted;
//! our secrets are as far away, too.
//!
//! The library runs behind two walls: limits, Landlock and a first filter from before it is opened, a narrow filter
//! before its first call ([`link::sandbox`]).

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use link::sandbox::{self, Demand, Guest};
use link::{Role, sys};
use plugin_host::{BackendHost, Registry, Terms};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use supervisor::child::{Later, Peer, Startup, Supervisor};
use zeroize::Zeroize as _;

use super::{Told, give_up};
use crate::cli::exit;

/// How long opening the library and configuring its back ends may take: they may connect to a database.
const LOAD_MS_MAX: u32 = 30_000;

/// Runs it.
pub fn run(mut startup: Startup) -> ExitCode {
    let mut host = match start(&mut startup) {
        Ok(host) => host,
        Err(why) => return give_up(&startup.supervisor, &why),
    };
    let Startup { mut supervisor, peers, .. } = startup;
    peers.into_iter().filter(|peer| peer.role == Role::Directory).for_each(|peer| host.add(peer.link));
    if supervisor.ready().is_err() {
        return ExitCode::from(exit::FAILURE);
    }
    let mut draining: Option<Instant> = None;
    loop {
        wait(&supervisor, &host);
        for later in supervisor.receive() {
            match later {
                Later::Peer(Peer { role: Role::Directory, link, .. }) => host.add(link),
                // A newer edition serves. The directory closes its link when its last call here is answered.
                Later::Drain { .. } => draining = draining.or(Some(Instant::now())),
                Later::Stop => return ExitCode::SUCCESS,
                _ => {}
            }
        }
        host.turn();
        if draining.is_some() && host.is_left() {
            let told = supervisor.drained().is_ok();
            return if told { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) };
        }
    }
}

fn start(startup: &mut Startup) -> Result<BackendHost, String> {
    let config = Told::decode(&startup.configuration)?.config;
    let demand = if config.process.sandbox_required { Demand::Require } else { Demand::BestEffort };
    let settings = serde_json::from_slice(&startup.secrets).map_err(|error| format!("settings: {error}"))?;
    startup.secrets.zeroize();
    let libraries = std::mem::take(&mut startup.plugins);
    let bell: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
        .map_err(|error| format!("no descriptor for answers: {error}; raise the limit of open files"))?;
    let grants = libraries.first().map(|library| config.plugins.grants(&library.id)).unwrap_or_default();
    let in_force = sandbox::load(demand, Guest::BackEnds, &grants, || Ok(()))?;
    startup.supervisor.sandbox(&in_force).map_err(|error| error.to_string())?;
    sys::end_after_ms(LOAD_MS_MAX);
    let mut registry = Registry::new();
    for library in libraries {
        let origin = std::path::PathBuf::from(library.origin);
        let terms = Terms { process: true, self_asserts: config.plugins.self_asserts(&library.id) };
        registry.load(&library.id, library.library, &origin, terms).map_err(|error| error.to_string())?;
    }
    let host = BackendHost::new(registry, &settings, bell).map_err(|error| error.to_string())?;
    sys::end_after_ms(0);
    // Whatever the library did to signals while it was opened ends here.
    sys::default_signals();
    sandbox::serve(demand, Guest::BackEnds, &grants)?;
    Ok(host)
}

/// Until the supervisor or the directory says something, a call is over, or the directory takes what waits for it.
fn wait(supervisor: &Supervisor, host: &BackendHost) {
    let others: Vec<(BorrowedFd<'_>, bool)> = host.interest().collect();
    let mut fds = vec![PollFd::from_borrowed_fd(supervisor.as_fd(), PollFlags::IN)];
    fds.extend(others.into_iter().map(|(fd, unsent)| {
        let out = if unsent { PollFlags::OUT } else { PollFlags::empty() };
        PollFd::from_borrowed_fd(fd, PollFlags::IN | out)
    }));
    let second = Timespec::try_from(Duration::from_secs(1)).ok();
    // An error means one look too many at the links.
    let _ = poll(&mut fds, second.as_ref());
}
