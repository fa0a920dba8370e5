//! `portreeve serve` (and `demo`): checks the configuration, prepares folders and secrets, then is the
//! supervisor until the end.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use supervisor::{Bound, Changes, Hooks, Listener, Options, Plan, Plugin, Supervisor};
use telemetry::{Event, Level};
use zeroize::Zeroizing;

use crate::certificates::{self, Dates};
use crate::check::{self, Checked, Occasion};
use crate::cli::exit;
use crate::config::{Config, RouteKind};
use crate::report::Report;
use crate::roles::{BUILD_ID, Secrets, Told};
use crate::{files, rights, terminal};

/// After so long a draining worker is stopped, whatever it does (DECISIONS C17).
const DRAIN_SECONDS_MAX: u32 = 300;
/// What Ctrl-C in a demo may take.
const DEMO_DRAIN_SECONDS_MAX: u32 = 2;
/// Ticket keys are replaced so often, and three are kept (DECISIONS H7).
const TICKET_KEY_LIFE: Duration = Duration::from_secs(6 * 3600);
const TICKET_KEYS: usize = 3;

/// `portreeve serve`.
pub fn serve(file: &Path) -> ExitCode {
    run(file, None)
}

/// `portreeve demo`, with what is printed once everything answers.
pub fn demo(file: &Path, banner: String) -> ExitCode {
    run(file, Some(banner))
}

fn run(file: &Path, banner: Option<String>) -> ExitCode {
    if cfg!(feature = "test-hooks") && rustix::process::geteuid().is_root() {
        let text = "built with the feature test-hooks: not started as root; build without it";
        return terminal::fail(exit::FAILURE, text);
    }
    let (checked, report) = check::all(file, Occasion::Start);
    if banner.is_some() && checked.is_some() {
        // What a demo does on purpose needs no warning, except for this one.
        if checked.as_ref().is_some_and(|checked| rights::stays_root(&checked.config)) {
            terminal::warn("started as root: the demo keeps root's rights; start it as somebody else, or use `serve`");
        }
    } else {
        eprint!("{}", report.render(terminal::color()));
    }
    let Some(checked) = checked else { return ExitCode::from(exit::CONFIGURATION) };
    match begin(file, checked, banner) {
        Ok(code) => ExitCode::from(code),
        Err(error) => terminal::fail(exit::FAILURE, error),
    }
}

fn begin(file: &Path, checked: Checked, banner: Option<String>) -> Result<u8, String> {
    prepare(&checked.config)?;
    let program = Program {
        file: file.to_owned(),
        demo: banner.is_some(),
        banner,
        ticket_keys: vec![ticket_key()?],
        ticket_keys_since: Instant::now(),
        watched: stamps(&checked.config),
        serving: false,
        config: checked.config.clone(),
    };
    let mut options = Options::new(&checked.config.process.state_dir, BUILD_ID);
    options.ids = rights::ids(&checked.config)?;
    let plan = program.plan(checked)?;
    let (supervisor, _handle) = Supervisor::new(options, plan, program).map_err(|error| error.to_string())?;
    supervisor.run().map_err(|error| error.to_string())
}

/// Makes what a first start needs, and gives it to the user that children become.
fn prepare(config: &Config) -> Result<(), String> {
    let ids = rights::ids(config)?;
    files::state_folder(config)?;
    let state = &config.process.state_dir;
    // Keys are read here and nowhere else.
    files::private_folder(&state.join("secrets"))?;
    let mut folders = vec![state.join("run"), config.spool.path.clone()];
    folders.extend(config.users.file.parent().map(Path::to_owned));
    folders.extend(config.admin.socket.parent().map(Path::to_owned));
    for route in &config.routes {
        match &route.kind {
            RouteKind::Maildir(template) => folders.push(check::fixed_part(template)),
            RouteKind::Mx(_) => folders.push(state.join("sts")),
            _ => {}
        }
    }
    for folder in folders.iter().filter(|folder| !folder.exists()) {
        files::folder_of_children(folder, ids.as_ref())?;
    }
    if !config.users.file.exists() {
        files::write(&config.users.file, b"# Users of Portreeve; `portreeve user add NAME@DOMAIN` adds one.\n", 0o600)?;
        if let Some(ids) = &ids {
            files::give(&config.users.file, ids)?;
        }
    }
    Ok(())
}

fn ticket_key() -> Result<Zeroizing<[u8; 32]>, String> {
    let mut key = Zeroizing::new([0; 32]);
    files::random(&mut *key)?;
    Ok(key)
}

/// What tells that a file was written: a certificate is renewed by writing it anew or by a rename.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, SystemTime)>);

fn stamps(config: &Config) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let files = config.certificates.iter().flat_map(|certificate| [&certificate.cert, &certificate.key]);
    let stamp = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.size(), meta.modified().ok()?))
    };
    files.map(|path| Stamp(stamp(path))).collect()
}

/// The program's part of the supervisor.
struct Program {
    file: PathBuf,
    demo: bool,
    banner: Option<String>,
    ticket_keys: Vec<Zeroizing<[u8; 32]>>,
    ticket_keys_since: Instant,
    watched: Vec<Stamp>,
    serving: bool,
    config: Config,
}

impl Program {
    fn plan(&self, checked: Checked) -> Result<Plan, String> {
        let Checked { config, certificates, client_authorities, libraries } = checked;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let drain = u32::try_from(config.drain.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        let drain_seconds_max = if self.demo { DEMO_DRAIN_SECONDS_MAX } else { DRAIN_SECONDS_MAX.max(drain) };
        let listeners = config.listeners.iter().flat_map(|listener| {
            listener.bind.iter().map(|address| Listener { name: listener.name.clone(), address: *address })
        });
        Ok(Plan {
            configuration: Told::encode(
                &config,
                &client_authorities,
                &libraries,
                std::io::stderr().is_terminal(),
                terminal::color(),
            ),
            listeners: listeners.collect(),
            plugins: libraries
                .into_iter()
                .map(|library| Plugin {
                    mechanisms: library.mechanisms(),
                    terms: library.terms(&config),
                    backends: library.note.backends.keys().cloned().collect(),
                    settings: library.settings,
                    process: library.process,
                    id: library.id,
                    origin: library.path.display().to_string(),
                    library: Arc::new(library.fd),
                })
                .collect(),
            certificates: certificates::encode(&certificates).to_vec(),
            ticket_keys: self.ticket_key_octets(),
            secrets: Secrets::read(&config.process.state_dir.join("secrets"))?,
            workers: config.process.workers,
            shards: if config.process.shards == 0 { cores } else { config.process.shards },
            drain_seconds: if self.demo { drain.min(1) } else { drain },
            drain_seconds_max,
        })
    }

    fn ticket_key_octets(&self) -> Vec<u8> {
        self.ticket_keys.iter().flat_map(|key| key.iter().copied()).collect()
    }

    /// Certificates that were renewed; `None` when nothing changed or what came is not good.
    fn renewed(&mut self) -> Option<Vec<u8>> {
        let stamps = stamps(&self.config);
        if stamps == self.watched {
            return None;
        }
        // Told once, whatever comes of it: the next change is looked at again.
        self.watched = stamps;
        let mut report = Report::new(self.config.file.clone(), self.config.text.clone());
        match certificates::read(&self.config, Dates::Strict, &mut report) {
            Some(sets) => {
                self.say(Level::Info, "certificates.renewed", "new certificates are in service");
                Some(certificates::encode(&sets).to_vec())
            }
            None => {
                let why = format!("the old ones stay in service: {}", report.line());
                self.say(Level::Error, "certificates.refused", &why);
                None
            }
        }
    }

    /// A line of the supervisor itself, in the form of the log.
    fn say(&self, level: Level, name: &'static str, text: &str) {
        let event = Event::log(name, level, crate::control::unix_ms()).word("text", text.to_owned());
        self.write(&event);
    }

    fn write(&self, event: &Event<'_>) {
        let stderr = std::io::stderr();
        let human = self.config.log.format.is_human(stderr.is_terminal());
        let line = if human { event.human("supervisor", terminal::color()) } else { event.json("supervisor") };
        let _ = stderr.lock().write_all(line.as_bytes());
    }
}

impl Hooks for Program {
    fn reload(&mut self) -> Result<Plan, String> {
        let (checked, report) = check::all(&self.file, Occasion::Reload);
        let Some(checked) = checked else {
            return Err(report.line());
        };
        if let Some(option) = needs_restart(&self.config, &checked.config) {
            return Err(format!("{option} changed, which needs a restart: stop the server and start it again"));
        }
        prepare(&checked.config)?;
        let (config, watched) = (checked.config.clone(), stamps(&checked.config));
        let plan = self.plan(checked)?;
        (self.config, self.watched) = (config, watched);
        Ok(plan)
    }

    fn event(&mut self, event: &Event<'_>) {
        // Once the log writer runs it writes these; before that, somebody must hear why nothing serves.
        if !self.serving && event.level >= Level::Warning {
            self.write(event);
        }
    }

    fn serving(&mut self, bound: &[Bound]) {
        if !self.serving && !self.demo {
            let addresses: Vec<String> =
                bound.iter().map(|bound| format!("{} {}", bound.name, bound.address)).collect();
            self.say(Level::Info, "serving", &addresses.join(", "));
        }
        self.serving = true;
        if let Some(banner) = self.banner.take() {
            terminal::print(&banner);
        }
    }

    fn every_second(&mut self) -> Changes {
        let certificates = self.renewed();
        let mut ticket_keys = None;
        if self.ticket_keys_since.elapsed() >= TICKET_KEY_LIFE
            && let Ok(key) = ticket_key()
        {
            self.ticket_keys_since = Instant::now();
            self.ticket_keys.insert(0, key);
            self.ticket_keys.truncate(TICKET_KEYS);
            ticket_keys = Some(self.ticket_key_octets());
        }
        Changes { certificates, ticket_keys }
    }
}

/// The first option of the class "restart" that differs.
fn needs_restart(now: &Config, next: &Config) -> Option<&'static str> {
    let differs = |path: &str| {
        let value = |config: &Config| config.written.value(path, "mx");
        value(now) != value(next)
    };
    crate::options::all()
        .filter(|option| option.reload == crate::options::Reload::Restart && !option.path.contains("[]"))
        .map(|option| option.path)
        .find(|path| differs(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_reloaded_is_named() {
        let config = |more: &str| {
            let good = include_str!("../../../config/examples/mx.toml");
            let (config, report) = crate::config::parse(Path::new("/etc/p.toml"), &format!("{more}\n{good}"));
            config.unwrap_or_else(|| panic!("{}", report.render(false)))
        };
        let now = config("");
        assert_eq!(needs_restart(&now, &config("drain = \"5s\"\ntls.min = \"1.3\"")), None);
        assert_eq!(needs_restart(&now, &config("log.level = \"debug\"")), Some("log.level"));
        assert_eq!(needs_restart(&now, &config("spool.path = \"/elsewhere\"")), Some("spool.path"));
        // Writing a default changes nothing.
        assert_eq!(needs_restart(&now, &config("log.level = \"info\"")), None);
    }

    #[test]
    fn a_changed_file_is_seen_by_size_time_or_inode() {
        let dir = std::env::temp_dir().join(format!("portreeve-stamps-{}", std::process::id()));
        files::private_folder(&dir).unwrap();
        let text = "[[tls.certificate]]\ncert = \"c\"\nkey = \"k\"\n[[route]]\nkind = \"maildir\"\npath = \"m\"\n\
                    [[listener]]\nrole = \"mx\"\nbind = [\"127.0.0.1:25\"]\ndomains = [\"a.test\"]\n";
        let config = crate::config::parse(&dir.join("p.toml"), text).0.unwrap();
        let mut seen = vec![stamps(&config)];
        for change in [("c", "1"), ("k", "1"), ("c", "22"), ("k", "2")] {
            files::write(&dir.join(change.0), change.1.as_bytes(), 0o600).unwrap();
            let next = stamps(&config);
            assert!(!seen.contains(&next), "{change:?}");
            assert_eq!(next, stamps(&config));
            seen.push(next);
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
