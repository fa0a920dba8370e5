//! The directory process: the users file, password hashing, recipients, sender rights.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backend::broker::Spec;
use backend::decoy::{Decoys, Profile};
use backend::directory::Epoch;
use backend::serve::{Config as ServiceConfig, Control, Service};
use backend::token::Issuer;
use link::message::{Message, messages};
use link::{Link, Role, sealed};
use std::os::fd::AsFd as _;
use supervisor::child::Startup;
use telemetry::{Board, Level};

use super::{Secrets, Told, events, flush_at_end, give_up, tell};
use crate::backends::Outside;
use crate::cli::exit;
use crate::config::Config;
use crate::{tokens, users};

/// Of a back end without a table: the defaults of the options.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_QUEUE: usize = 1024;

/// The word that workers compare before they believe their caches.
struct SharedEpoch(Board);

impl Epoch for SharedEpoch {
    fn raise(&self) -> u64 {
        self.0.directory_epoch().fetch_add(1, Ordering::SeqCst) + 1
    }
    fn current(&self) -> u64 {
        self.0.directory_epoch().load(Ordering::SeqCst)
    }
}

/// Runs it.
pub fn run(mut startup: Startup) -> ExitCode {
    let events = events(&mut startup);
    let (told, secrets) = match (Told::decode(&startup.configuration), Secrets::decode(&startup.secrets)) {
        (Ok(told), Ok(secrets)) => (told, secrets),
        (Err(why), _) | (_, Err(why)) => return give_up(&startup.supervisor, &why),
    };
    let (config, outside) = (told.config, told.backends.clone());
    let issuers = match tokens::make_all(&config) {
        Ok(issuers) => issuers,
        Err(why) => return give_up(&startup.supervisor, &why),
    };
    let settings = ServiceConfig {
        issuers: issuers.clone(),
        options: users::options(&config),
        backends: specs(&config, told.backends, *secrets.decoy),
        ..ServiceConfig::new(config.users.file.clone(), *secrets.decoy)
    };
    let reporter = events.clone();
    let report = Arc::new(move |event: &backend::event::Event| {
        let level = if event.is_error() { Level::Error } else { Level::Info };
        tell(&reporter, event.name(), level, &event.to_string());
    });
    let mut service = match Service::new(settings, Arc::new(SharedEpoch(startup.board.clone())), report) {
        Ok(service) => service,
        Err(error) => return give_up(&startup.supervisor, &error.to_string()),
    };
    for peer in startup.peers {
        if peer.role == Role::Worker {
            service.add_link(peer.link);
        }
    }
    for runner in startup.runners {
        service.add_library(&runner.id, runner.generation, runner.link);
    }
    if startup.supervisor.ready().is_err() {
        return ExitCode::from(exit::FAILURE);
    }
    let slot = startup.slot;
    let outcome = service.run(startup.supervisor.into_link(), |heard, service| {
        slot.heartbeat(crate::control::unix_ms());
        let (octets, fds) = match heard {
            Control::Tick => {
                events.flush();
                return ControlFlow::Continue(());
            }
            Control::Closed => return ControlFlow::Break(()),
            Control::Packet { octets, fds } => (octets, fds),
        };
        for item in messages(octets, fds) {
            match item {
                Ok((_, Message::Peer { role: Role::Worker, .. }, Some(fd))) => {
                    if let Ok(link) = Link::from_fd(fd) {
                        service.add_link(link);
                    }
                }
                Ok((_, Message::Peer { role: Role::Control, .. }, Some(fd))) => {
                    if let Ok(link) = Link::from_fd(fd) {
                        events.connect(link);
                    }
                }
                Ok((_, Message::Runner { id, generation, .. }, Some(fd))) => {
                    if let Ok(link) = Link::from_fd(fd) {
                        service.add_library(id, generation, link);
                    }
                }
                // What we were started with is no longer what is wanted: the supervisor starts us again.
                Ok((_, Message::Config, Some(fd))) if is_changed(&config, &outside, &issuers, fd.as_fd()) => {
                    return ControlFlow::Break(());
                }
                Ok((_, Message::Drain { .. }, _)) => {
                    let drained = Message::Drained;
                    let _ = service.say(drained.kind(), 0, |to| drained.encode(to));
                    return ControlFlow::Break(());
                }
                Ok((_, Message::Stop, _)) => return ControlFlow::Break(()),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    });
    flush_at_end(&events);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portreeve: directory: {error}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

/// Whether a new configuration has other users, another way to read them, or other back ends or issuers of tokens.
fn is_changed(config: &Config, outside: &[Outside], issuers: &[Issuer], fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let next = sealed::read(fd).map_err(|error| error.to_string()).and_then(|octets| Told::decode(&octets));
    next.is_ok_and(|next| {
        // Also when a file that one of them was made from holds something else now.
        if tokens::make_all(&next.config).is_ok_and(|next| next != issuers) {
            return true;
        }
        let run = |config: &Config| -> Vec<_> {
            let backends = config.plugins.backends.iter();
            backends.map(|one| (one.name.clone(), one.timeout, one.parallel, one.queue, one.decoy_iterations)).collect()
        };
        let changed = run(config) != run(&next.config) || outside != next.backends;
        let of = |users: &crate::config::Users| {
            (users.file.clone(), users.postmaster.clone(), users.tag, users.names.clone(), users.secrets.clone())
        };
        changed || of(&next.config.users) != of(&config.users)
    })
}

/// The back ends of libraries, each with its table or the defaults.
fn specs(config: &Config, outside: Vec<Outside>, decoy_secret: [u8; 32]) -> Vec<Spec> {
    let spec = |one: Outside| {
        let table = config.plugins.backends.iter().find(|table| table.name == one.name);
        let timeout = table.map_or(DEFAULT_TIMEOUT, |table| table.timeout);
        let iterations = table.map_or(backend::scheme::SCRAM_ITERATIONS, |table| table.decoy_iterations);
        Spec {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            queue_max: table.map_or(DEFAULT_QUEUE, |table| table.queue),
            parallel: table.and_then(|table| table.parallel),
            decoys: Decoys::new(decoy_secret, vec![Profile { weight: 1, iterations, salt_octets: 16 }]),
            library: one.library,
            name: one.name,
            mechanisms: one.mechanisms,
            provides: one.provides,
        }
    };
    outside.into_iter().map(spec).collect()
}
