//! Every setting there is, in one table.
//!
//! The parser (`values.rs`), the sample file (`config/portreeve.toml`) and the reference
//! (`docs/configuration.md`) are made from [`sections`]; nothing else in the program knows which keys
//! exist. A new option begins as a row in the part for its table, and as a field of the part of `config/` that reads it.

mod admin;
mod documents;
mod limits;
mod listener;
mod plugins;
mod process;
mod queue;
mod route;
mod spool;
mod tls;
mod tokens;
mod users;

pub use self::documents::{reference, sample};

/// One setting.
pub struct Opt {
    /// Where it stands: `spool.path`, `listener[].bind`. `[]` marks a table that may be repeated.
    pub path: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// What holds when it is not written.
    pub default: Default,
    /// What a change needs.
    pub reload: Reload,
    /// For the reference and the sample file.
    pub help: &'static str,
    /// A value that shows the form, as TOML.
    pub example: &'static str,
}

/// What may be written as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text without control characters.
    Text,
    /// A host name.
    Host,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A number of octets: `65536`, `"64KiB"`, `"50MiB"`.
    Octets {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A span of time: `"250ms"`, `"30s"`, `"5m"`, `"2h"`.
    Duration {
        /// Smallest, milliseconds.
        min: u64,
        /// Largest, milliseconds.
        max: u64,
    },
    /// So many per time: `"30/min"`, `"5/s"`, or `"off"`.
    Rate,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A file or folder; relative ones start at the folder of the configuration file.
    Path,
    /// Addresses with port: `["0.0.0.0:25", "[::]:25"]`.
    Addresses,
    /// Networks: `["127.0.0.0/8", "::1"]`.
    Networks,
    /// Domains: `["example.org"]`.
    Domains,
    /// SASL mechanism names, strongest first.
    Mechanisms,
    /// A list of words.
    Words,
    /// A list of files or folders.
    Paths,
    /// Where a service is reached: `"unix:run/x.sock"`, `"127.0.0.1:9025"` or `"off"`.
    Endpoint,
    /// A mail domain, or `"*"` for all others.
    RouteDomain,
    /// A table whose keys a library knows.
    Settings,
}

/// What holds when an option is not written.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// This value, as TOML.
    Is(&'static str),
    /// It depends on the listener's role; values as TOML.
    ByRole {
        /// For `mx`.
        mx: &'static str,
        /// For `submission`.
        submission: &'static str,
        /// For `submissions`.
        submissions: &'static str,
    },
    /// Nothing is set; the words say what happens then.
    Unset(&'static str),
    /// It must be written.
    Required,
}

/// What a change of an option needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// `portreeve reload`: new sessions see it.
    Command,
    /// Stop and start.
    Restart,
    /// Seen within seconds, by itself.
    Watched,
}

/// A table of the file.
pub struct Section {
    /// `listener[]`, `limits`; empty for the top of the file.
    pub path: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// Its rows, in the order of the sample file.
    pub options: &'static [Opt],
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The role names.
pub const ROLES: &[&str] = &["mx", "submission", "submissions"];

/// All tables, in the order of the sample file.
const PARTS: &[&[Section]] = &[
    process::SECTIONS,
    listener::SECTIONS,
    tls::SECTIONS,
    users::SECTIONS,
    tokens::SECTIONS,
    plugins::SECTIONS,
    spool::SECTIONS,
    route::SECTIONS,
    queue::SECTIONS,
    limits::SECTIONS,
    admin::SECTIONS,
];

/// The tables of the file.
pub fn sections() -> impl Iterator<Item = &'static Section> {
    PARTS.iter().copied().flatten()
}

/// All settings.
pub fn all() -> impl Iterator<Item = &'static Opt> {
    sections().flat_map(|section| section.options)
}

/// The row of a path, `listener[].role`.
pub fn find(path: &str) -> Option<&'static Opt> {
    all().find(|option| option.path == path)
}

impl Opt {
    /// The path of the table it stands in.
    pub fn section(&self) -> &'static str {
        sections()
            .map(|section| section.path)
            .filter(|&section| {
                section.is_empty() || self.path.strip_prefix(section).is_some_and(|r| r.starts_with('.'))
            })
            .max_by_key(|section| section.len())
            .unwrap_or_default()
    }

    /// The key as written inside its table: `received.hide_client`.
    pub fn key(&self) -> &'static str {
        let section = self.section();
        if section.is_empty() { self.path } else { &self.path[section.len() + 1..] }
    }
}

impl Kind {
    /// What may be written, for the reference and for errors.
    pub fn describe(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Host => "host name".into(),
            Self::Flag => "true or false".into(),
            Self::Count { min, max } => format!("whole number, {min} to {max}"),
            Self::Octets { min, max } => format!("octets, {} to {}", octets(min), octets(max)),
            Self::Duration { min, max } => format!("time, {} to {}", duration(min), duration(max)),
            Self::Rate => "number per s or min, like \"30/min\"; or \"off\"".into(),
            Self::Choice(words) => words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(" or "),
            Self::Path => "path".into(),
            Self::Addresses => "list of address:port".into(),
            Self::Networks => "list of networks".into(),
            Self::Domains => "list of domains".into(),
            Self::Mechanisms => "list of SASL mechanism names, or \"auto\"".into(),
            Self::Words => "list of names".into(),
            Self::Paths => "list of paths".into(),
            Self::Endpoint => "\"unix:PATH\", loopback address:port, or \"off\"".into(),
            Self::RouteDomain => "domain or \"*\"".into(),
            Self::Settings => "table, as the library describes it".into(),
        }
    }
}

/// `1048576` as `1MiB`.
pub fn octets(number: u64) -> String {
    for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if number >= unit && number.is_multiple_of(unit) {
            return format!("{}{name}", number / unit);
        }
    }
    number.to_string()
}

/// `300000` as `5m`.
pub fn duration(ms: u64) -> String {
    for (unit, name) in [(HOUR, "h"), (MINUTE, "m"), (SECOND, "s")] {
        if ms >= unit && ms.is_multiple_of(unit) {
            return format!("{}{name}", ms / unit);
        }
    }
    format!("{ms}ms")
}

impl Default {
    fn describe(self) -> String {
        match self {
            Self::Is(value) => format!("`{value}`"),
            Self::ByRole { mx, submission, submissions } if submission == submissions => {
                format!("`{mx}` for mx, `{submission}` for submission and submissions")
            }
            Self::ByRole { mx, submission, submissions } => {
                format!("`{mx}` for mx, `{submission}` for submission, `{submissions}` for submissions")
            }
            Self::Unset(words) => words.into(),
            Self::Required => "none: must be written".into(),
        }
    }
}
