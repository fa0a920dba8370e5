//! What each process does between its start and its end.
//!
//! A child gets the text of the configuration, not the file: it reads the same bytes that were checked, and
//! needs no right to open anything. [`config::parse`] makes the same [`Config`] of it again.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use link::Role;
use sasl::MechanismName;
use serde_json::{Value, json};
use supervisor::child::{self, Requested, Startup};
use telemetry::{Event, EventSender, Level};
use zeroize::Zeroizing;

use crate::backends::{self, Outside};
use crate::cli::exit;
use crate::config::{self, Config};
use crate::plugins::Library;

mod backend_host;
mod control;
mod delivery;
mod directory;
mod guest;
mod mechanism_host;
mod worker;

/// Names this build: supervisor and children are of one.
pub const BUILD_ID: &str = concat!("portreeve ", env!("CARGO_PKG_VERSION"));

/// What a child is told about the configuration.
pub struct Told {
    /// The configuration.
    pub config: Config,
    /// Who vouches for clients, of each listener, PEM: files that only the supervisor reads.
    pub client_authorities: Vec<Option<String>>,
    /// Libraries with processes of their own, and their mechanisms.
    pub runners: Vec<(String, Vec<MechanismName>)>,
    /// Back ends of libraries.
    pub backends: Vec<Outside>,
    /// Whether somebody watches standard error.
    pub terminal: bool,
    /// And wants colour there.
    pub colour: bool,
}

impl Told {
    /// The octets that go to children.
    pub fn encode(
        config: &Config,
        client_authorities: &[Option<String>],
        libraries: &[Library],
        terminal: bool,
        colour: bool,
    ) -> Vec<u8> {
        let runners = libraries.iter().filter(|library| library.process);
        let runners: Vec<_> = runners.map(|library| json!([library.id, library.mechanisms()])).collect();
        let backends = backends::outside(libraries);
        let backends: Vec<_> =
            backends.iter().map(|one| json!([one.library, one.name, one.provides, one.mechanisms])).collect();
        let file = std::path::absolute(&config.file).unwrap_or_else(|_| config.file.clone());
        let value = json!({
            "file": file.to_string_lossy(), "text": &*config.text, "client_authorities": client_authorities,
            "runners": runners, "backends": backends, "terminal": terminal, "colour": colour,
        });
        value.to_string().into_bytes()
    }

    fn decode(octets: &[u8]) -> Result<Told, String> {
        let value: Value = serde_json::from_slice(octets).map_err(|error| format!("configuration: {error}"))?;
        let (Some(file), Some(text)) = (value["file"].as_str(), value["text"].as_str()) else {
            return Err("configuration: file or text is missing".into());
        };
        let (config, report) = config::parse(&PathBuf::from(file), text);
        let config = config.ok_or_else(|| format!("configuration: {}", report.render(false)))?;
        let bundles = value["client_authorities"].as_array().map(Vec::as_slice).unwrap_or_default();
        let client_authorities = bundles.iter().map(|bundle| bundle.as_str().map(str::to_owned)).collect();
        let names = |value: &Value| -> Vec<MechanismName> {
            let names = value.as_array().map(Vec::as_slice).unwrap_or_default();
            names.iter().filter_map(|name| MechanismName::parse(name.as_str()?.as_bytes())).collect()
        };
        let runners = value["runners"].as_array().map(Vec::as_slice).unwrap_or_default();
        let runners =
            runners.iter().filter_map(|runner| Some((runner[0].as_str()?.to_owned(), names(&runner[1])))).collect();
        let backends = value["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
        let outside = |one: &Value| {
            Some(Outside {
                library: one[0].as_str()?.to_owned(),
                name: one[1].as_str()?.to_owned(),
                provides: one[2].as_u64()?,
                mechanisms: names(&one[3]).iter().map(|name| name.as_str().to_owned()).collect(),
            })
        };
        let backends = backends.iter().filter_map(outside).collect();
        Ok(Told {
            config,
            client_authorities,
            runners,
            backends,
            terminal: value["terminal"] == true,
            colour: value["colour"] == true,
        })
    }
}

/// Secrets that the nodes of a fleet share (`secrets/`), as children get them.
pub struct Secrets {
    /// Makes keys for users who do not exist.
    pub decoy: Zeroizing<[u8; 32]>,
    /// Account names stand under it in the table of limits.
    pub accounts: Zeroizing<[u8; 32]>,
}

impl Secrets {
    /// Reads them from a folder; missing ones are made.
    pub fn read(folder: &std::path::Path) -> Result<Vec<u8>, String> {
        let mut octets = Vec::with_capacity(64);
        for name in ["decoy", "accounts"] {
            octets.extend_from_slice(&crate::files::secret(&folder.join(name))?);
        }
        Ok(octets)
    }

    fn decode(octets: &[u8]) -> Result<Secrets, String> {
        let wrong = || "the supervisor sent no secrets".to_owned();
        let (decoy, rest) = octets.split_first_chunk().ok_or_else(wrong)?;
        let accounts = rest.first_chunk().ok_or_else(wrong)?;
        Ok(Secrets { decoy: Zeroizing::new(*decoy), accounts: Zeroizing::new(*accounts) })
    }
}

/// Runs a child process.
pub fn run(requested: Result<Requested, String>) -> ExitCode {
    let started = requested.and_then(|requested| child::start(requested, BUILD_ID));
    let startup = match started {
        Ok(startup) => startup,
        Err(error) => {
            // Nobody else can be told yet; the supervisor reports how we ended.
            eprintln!("portreeve: {error}");
            return ExitCode::from(exit::FAILURE);
        }
    };
    match startup.role {
        Role::Worker => worker::run(startup),
        Role::Directory => directory::run(startup),
        Role::Delivery => delivery::run(startup),
        Role::Control => control::run(startup),
        Role::MechanismHost => mechanism_host::run(startup),
        Role::BackendHost => backend_host::run(startup),
        role @ Role::Supervisor => give_up(&startup.supervisor, &format!("{role}: not a process of this program")),
    }
}

/// Tells the supervisor why this process cannot go on.
fn give_up(supervisor: &child::Supervisor, why: &str) -> ExitCode {
    if supervisor.failed(why).is_err() {
        eprintln!("portreeve: {why}");
    }
    ExitCode::from(exit::FAILURE)
}

/// Room for events that wait for the log writer.
const EVENTS_OCTETS_MAX: usize = 4 << 20;

/// The least that the configuration of a starting process wants logged, so that busy processes do not send
/// what the log writer would throw away.
fn level_at_start(startup: &Startup) -> Level {
    Told::decode(&startup.configuration).map_or(Level::Debug, |told| told.config.log.level)
}

/// What the spool's disk keeps free.
fn floors(config: &Config) -> spool::Floors {
    let percent = config.spool.min_free_percent;
    spool::Floors { octets_percent: percent, octets_min: config.spool.min_free, inodes_percent: percent }
}

/// A process' way to the log writer, with the link to it when there is one already.
fn events(startup: &mut Startup) -> EventSender {
    let events = EventSender::new(EVENTS_OCTETS_MAX, startup.slot.clone());
    if let Some(at) = startup.peers.iter().position(|peer| peer.role == Role::Control) {
        events.connect(startup.peers.swap_remove(at).link);
    }
    events
}

/// An event of the process itself.
fn tell(events: &EventSender, name: &'static str, level: Level, text: &str) {
    let event = Event::log(name, level, crate::control::unix_ms()).word("text", text.to_owned());
    // A log record is dropped and counted when there is no room; nothing depends on it.
    let _ = events.send(&event);
    events.flush();
}

/// Sends what waits, for a moment: the process is about to end.
fn flush_at_end(events: &EventSender) {
    let until = Instant::now() + Duration::from_secs(1);
    while !events.flush() && Instant::now() < until {
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
