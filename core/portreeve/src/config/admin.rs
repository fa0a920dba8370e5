//! `[log]` and `[admin]`: how an operator hears of the server, and asks it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use telemetry::Level;

use super::reader::Reader;

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// How lines look.
    pub format: Format,
    /// The least that is logged.
    pub level: Level,
    /// Instead of standard error.
    pub file: Option<PathBuf>,
    /// Audit records of their own.
    pub audit: Option<PathBuf>,
}

/// How lines of the log look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people where somebody watches.
    Auto,
    /// For people.
    Human,
    /// For programs.
    Json,
}

impl Format {
    /// Whether lines are for people, where somebody watches or nobody does.
    pub fn is_human(self, watched: bool) -> bool {
        match self {
            Self::Auto => watched,
            Self::Human => true,
            Self::Json => false,
        }
    }
}

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The admin socket.
    pub socket: PathBuf,
    /// Where figures are served.
    pub metrics: Option<Endpoint>,
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Unix socket.
    Unix(PathBuf),
    /// Loopback address.
    Tcp(SocketAddr),
}

impl Log {
    pub(super) fn read(top: &Reader<'_>) -> Self {
        Self {
            format: match top.word("log.format").as_str() {
                "human" => Format::Human,
                "json" => Format::Json,
                _ => Format::Auto,
            },
            level: match top.word("log.level").as_str() {
                "error" => Level::Error,
                "warning" => Level::Warning,
                "debug" => Level::Debug,
                _ => Level::Info,
            },
            file: top.path("log.file"),
            audit: top.path("log.audit"),
        }
    }
}

impl Admin {
    pub(super) fn read(top: &Reader<'_>, state_dir: &Path) -> Self {
        Self {
            socket: top.path("admin.socket").unwrap_or_else(|| state_dir.join("run/admin.sock")),
            metrics: top.text("admin.metrics").and_then(|text| endpoint(&text, top.base)),
        }
    }
}

fn endpoint(text: &str, base: &Path) -> Option<Endpoint> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(Endpoint::Unix(base.join(path))),
        None => text.parse().ok().map(Endpoint::Tcp),
    }
}
