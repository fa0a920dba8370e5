//! The configuration as the program uses it: typed, complete, and free of contradictions.
//!
//! ```text
//! text ── values.rs, by the rows of options/ ──→ values of each table ── the parts here: read ──→ Config ── check ──→ findings
//!
//! process   [process]                     spool      [spool], [queue]
//! listener  [[listener]]                  route      [[route]]
//! tls       [[tls.certificate]]           limits     [limits], [timeouts]
//! users     [users]                       admin      [log], [admin]
//! tokens    [[tokens.issuer]]             reader     one table: its options, and findings about them
//! plugins   [plugins], [[plugins.library]], [[plugins.backend]]
//! ```
//!
//! Each part has the type, what reads it (`read`: what is wrong with one table by itself) and what looks at it beside the
//! others (`check`).
//!
//! [`parse`] is a pure function of a file's text: the same text gives the same [`Config`] in the
//! supervisor, in `check`, and in every child that is handed the text. What needs a look at the host
//! (files, ports, libraries) is in `check.rs`.

mod admin;
mod limits;
mod listener;
mod plugins;
mod process;
mod reader;
mod route;
mod spool;
mod tls;
mod tokens;
mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use self::admin::{Admin, Endpoint, Log};
pub use self::limits::{Limits, Timeouts};
pub use self::listener::{ClientCert, Listener};
pub use self::plugins::{Backend, Plugins};
pub use self::process::Process;
use self::reader::Reader;
pub use self::route::{HopRoute, MxRoute, Route, RouteKind};
pub use self::spool::{Queue, Spool};
pub use self::tls::Certificate;
pub use self::tokens::{TokenIssuer, TokenKind};
pub use self::users::Users;
use crate::report::Report;
use crate::values::{self, MechanismSettings, Table, Values};

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it came from.
    pub file: PathBuf,
    /// Its text: what children are handed.
    pub text: Arc<str>,
    /// The name in greeting and trace; `None`: the system's.
    pub hostname: Option<String>,
    /// How long old sessions may go on.
    pub drain: Duration,
    /// Whether losing mail is permitted.
    pub allow_data_loss: bool,
    /// `[process]`.
    pub process: Process,
    /// `[[listener]]`.
    pub listeners: Vec<Listener>,
    /// `tls.min = "1.3"`.
    pub tls_1_3_only: bool,
    /// `[[tls.certificate]]`.
    pub certificates: Vec<Certificate>,
    /// `[users]`.
    pub users: Users,
    /// `[[tokens.issuer]]`.
    pub issuers: Vec<TokenIssuer>,
    /// `[plugins]`.
    pub plugins: Plugins,
    /// `[mechanism.NAME]`.
    pub mechanisms: BTreeMap<String, MechanismSettings>,
    /// `[spool]`.
    pub spool: Spool,
    /// `[[route]]`.
    pub routes: Vec<Route>,
    /// `[queue]`.
    pub queue: Queue,
    /// `[limits]`.
    pub limits: Limits,
    /// `[timeouts]`.
    pub timeouts: Timeouts,
    /// `[log]`.
    pub log: Log,
    /// `[admin]`.
    pub admin: Admin,
    /// Everything outside repeated tables as written, for places in findings.
    pub written: Table,
}

/// Largest configuration file, octets.
const FILE_OCTETS_MAX: u64 = 1 << 20;

/// Reads and parses a file. The report tells everything that is wrong; the configuration is there when
/// nothing is.
pub fn load(file: &Path) -> (Option<Config>, Report) {
    let empty = || Report::new(file.to_owned(), "".into());
    let text = match std::fs::metadata(file) {
        Ok(meta) if meta.len() > FILE_OCTETS_MAX => Err("is larger than 1 MiB".to_owned()),
        _ => std::fs::read(file)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|octets| String::from_utf8(octets).map_err(|error| format!("is not UTF-8: {error}"))),
    };
    match text {
        Ok(text) => parse(file, &text),
        Err(cause) => {
            let mut report = empty();
            report.error(None, "", cause, "name the file with --config FILE, or make one with `portreeve init`");
            (None, report)
        }
    }
}

/// Parses a file's text.
pub fn parse(file: &Path, text: &str) -> (Option<Config>, Report) {
    let mut report = Report::new(file.to_owned(), text.into());
    let values = values::parse(&mut report);
    if report.has_errors() {
        // Still look for required keys and contradictions among what could be read: one run, all findings.
        build(file, &values, &mut report);
        return (None, report);
    }
    let config = build(file, &values, &mut report);
    (config.filter(|_| !report.has_errors()), report)
}

/// Tables that may be repeated, on their way into a [`Config`].
struct Repeated<'a> {
    values: &'a Values,
    base: &'a Path,
    /// Whether every one of them could be read so far.
    whole: bool,
}

impl Repeated<'_> {
    /// All that could be read of those at this path.
    fn each<T>(&mut self, path: &str, mut read: impl FnMut(&Reader<'_>) -> Option<T>) -> Vec<T> {
        let tables = self.values.repeated.get(path).map(Vec::as_slice).unwrap_or_default();
        let readers = tables.iter().map(|table| Reader { table, role: "mx", base: self.base });
        let all: Vec<T> = readers.filter_map(|reader| read(&reader)).collect();
        self.whole &= all.len() == tables.len();
        all
    }
}

fn build(file: &Path, values: &Values, report: &mut Report) -> Option<Config> {
    let base = base_of(file);
    let top = Reader { table: &values.root, role: "mx", base: &base };
    let mut tables = Repeated { values, base: &base, whole: true };
    let certificates = tables.each("tls.certificate[]", |read| tls::read(read, report));
    let listeners = tables.each("listener[]", |read| listener::read(read, &top, &certificates, report));
    let routes = tables.each("route[]", |read| route::read(read, report));
    let libraries = tables.each("plugins.library[]", |read| plugins::read_library(read, report));
    let issuers = tables.each("tokens.issuer[]", |read| tokens::read(read, report));
    let backends = tables.each("plugins.backend[]", |read| plugins::read_backend(read, report));

    let process = Process::read(&top);
    let config = Config {
        file: file.to_owned(),
        text: report.text.clone(),
        hostname: top.text("hostname"),
        drain: top.time("drain"),
        allow_data_loss: top.flag("allow_data_loss"),
        listeners,
        tls_1_3_only: top.word("tls.min") == "1.3",
        certificates,
        users: Users::read(&top, &process.state_dir),
        issuers,
        plugins: Plugins::read(&top, libraries, backends),
        mechanisms: values.mechanisms.clone(),
        spool: Spool::read(&top, &process.state_dir),
        routes,
        queue: Queue::read(&top),
        limits: Limits::read(&top),
        timeouts: Timeouts::read(&top),
        log: Log::read(&top),
        admin: Admin::read(&top, &process.state_dir),
        process,
        written: values.root.clone(),
    };
    // A table that could not be read would only cause findings that are not true.
    if tables.whole && !report.has_errors() {
        check(&config, report);
    }
    tables.whole.then_some(config)
}

/// What fits the table of options row by row, but not together.
fn check(config: &Config, report: &mut Report) {
    for part in [
        listener::check,
        tls::check,
        tokens::check,
        plugins::check,
        route::check,
        spool::check,
        users::check,
        process::check,
    ] {
        part(config, report);
    }
}

/// The folder that relative paths start at.
fn base_of(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::path::absolute(parent).unwrap_or_else(|_| parent.to_owned())
}

impl Config {
    /// The settings of a mechanism, a JSON object; empty when there are none.
    pub fn settings(&self, mechanism: &str) -> &str {
        self.mechanisms.get(mechanism).map_or("", |settings| &settings.json)
    }

    /// The route of a recipient domain.
    pub fn route_of(&self, domain: &str) -> Option<&Route> {
        let named = self.routes.iter().find(|route| route.domain == domain);
        named.or_else(|| self.routes.iter().find(|route| route.domain == "*"))
    }

    /// Whether mail may be lost, by choice.
    pub fn loses_data(&self) -> bool {
        !self.spool.durable || self.routes.iter().any(|route| route.kind == RouteKind::Discard)
    }

    /// Our name on a listener.
    pub fn hostname_of(&self, listener: &Listener) -> String {
        listener.hostname.clone().or_else(|| self.hostname.clone()).unwrap_or_else(system_hostname)
    }
}

/// The system's host name, lower case.
pub fn system_hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    if name.is_empty() || name == "(none)" { "localhost".into() } else { name }
}

#[cfg(test)]
mod tests;
