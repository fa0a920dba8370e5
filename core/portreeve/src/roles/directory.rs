//! The directory process: the users file, password hashing, recipients, sender rights.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backend::directory::Epoch;
use backend::serve::{Config as ServiceConfig, Control, Service};
use backend::token::Issuer;
use link::message::{Message, messages};
use link::{Link, Role, sealed};
use std::os::fd::AsFd as _;
use supervisor::child::Startup;
use telemetry::{Board, Level};

use super::{Secrets, Told, events, flush_at_end, give_up, tell};
use crate::cli::exit;
use crate::config::Config;
use crate::{tokens, users};

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
    let config = told.config;
    let issuers = match tokens::make_all(&config) {
        Ok(issuers) => issuers,
        Err(why) => return give_up(&startup.supervisor, &why),
    };
    let settings = ServiceConfig {
        issuers: issuers.clone(),
        options: users::options(&config),
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
                // What we were started with is no longer what is wanted: the supervisor starts us again.
                Ok((_, Message::Config, Some(fd))) if is_changed(&config, &issuers, fd.as_fd()) => {
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

/// Whether a new configuration has other users, another way to read them, or other issuers of tokens.
fn is_changed(config: &Config, issuers: &[Issuer], fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let next = sealed::read(fd).map_err(|error| error.to_string()).and_then(|octets| Told::decode(&octets));
    next.is_ok_and(|next| {
        // Also when a file that one of them was made from holds something else now.
        if tokens::make_all(&next.config).is_ok_and(|next| next != issuers) {
            return true;
        }
        let of = |users: &crate::config::Users| {
            (
                users.file.clone(),
                users.postmaster.clone(),
                users.tag,
                users.default_domain.clone(),
                users.secrets.clone(),
            )
        };
        of(&next.config.users) != of(&config.users)
    })
}
