//! The control process: opens its doors, then [`crate::control`] does the rest.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use supervisor::child::Startup;

use super::{Told, give_up};
use crate::cli::exit;
use crate::config::{Config, Endpoint};
use crate::control::{Control, Door, Logs, Sink, about};

/// Runs it.
pub fn run(startup: Startup) -> ExitCode {
    let opened = Told::decode(&startup.configuration).and_then(|told| {
        let logs = logs(&told)?;
        let admin = unix_door(&told.config.admin.socket)?;
        let metrics = match &told.config.admin.metrics {
            None => None,
            Some(Endpoint::Unix(path)) => Some(Door::Unix(unix_door(path)?)),
            Some(Endpoint::Tcp(address)) => {
                let listener = TcpListener::bind(address);
                Some(Door::Tcp(
                    listener.map_err(|error| format!("admin.metrics: {address}: {error}; take another port"))?,
                ))
            }
        };
        Ok((told.config, logs, admin, metrics))
    });
    let (config, logs, admin, metrics) = match opened {
        Ok(opened) => opened,
        Err(why) => return give_up(&startup.supervisor, &why),
    };
    if startup.supervisor.ready().is_err() {
        return ExitCode::from(exit::FAILURE);
    }
    let socket = config.admin.socket.clone();
    let control = Control {
        supervisor: startup.supervisor.into_link(),
        peers: startup.peers,
        board: startup.board,
        slot: startup.slot,
        logs,
        admin,
        metrics,
        about: about(&config),
        about_of: Box::new(|octets| Told::decode(octets).ok().map(|told| about(&told.config))),
    };
    let outcome = control.run();
    // Whoever asks from now on is told that nobody answers.
    let _ = std::fs::remove_file(socket);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portreeve: control: {error}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn logs(told: &Told) -> Result<Logs, String> {
    let Config { log, .. } = &told.config;
    let to_stderr = log.file.is_none();
    let human = log.format.is_human(to_stderr && told.terminal);
    let sink = log.file.clone().map_or(Sink::Stderr, Sink::File);
    Logs::open(log.level, human, human && to_stderr && told.colour, sink, log.audit.clone().map(Sink::File))
}

/// A unix socket that only its owner may open. One that is left from a dead server is taken away: the
/// supervisor's lock says that there is no living one.
pub(super) fn unix_door(path: &Path) -> Result<UnixListener, String> {
    let told = |error: io::Error| {
        format!("{}: {error}; the folder must be there and writable for the server's user", path.display())
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(told(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(told)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(told)?;
    Ok(listener)
}
