//! `[plugins]`, `[[plugins.library]]`, `[[plugins.backend]]`: libraries, on which terms they run, and their back ends.

use std::path::PathBuf;
use std::time::Duration;

use link::grant::{BadGrant, Grants};
use smtp::listener::AuthOffer;

use super::Config;
use super::reader::{About, Reader, called_twice};
use crate::report::Report;
use crate::values::{Settings, Table};

/// `[plugins]`.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// Folders searched first.
    pub path: Vec<PathBuf>,
    /// Library ids.
    pub load: Vec<String>,
    /// How single ones are run.
    pub libraries: Vec<PluginLibrary>,
    /// How single back ends are run.
    pub backends: Vec<Backend>,
}

/// `[[plugins.library]]`.
#[derive(Clone, Debug)]
pub struct PluginLibrary {
    /// Its table as written.
    pub written: Table,
    /// Its id.
    pub id: String,
    /// Whether it has a process of its own; `None`: as usual.
    pub process: Option<bool>,
    /// The only content that is loaded.
    pub sha256: Option<[u8; 32]>,
    /// What it may have beside computing.
    pub grants: Grants,
    /// Whether it is believed who somebody is.
    pub self_asserts: bool,
}

/// `[[plugins.backend]]`.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its table as written.
    pub written: Table,
    /// Its name.
    pub name: String,
    /// For the library, secrets not yet read.
    pub settings: Settings,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Calls at a time; `None`: what the library declares.
    pub parallel: Option<usize>,
    /// Logins that may wait.
    pub queue: usize,
    /// Of keys for users whom it does not know.
    pub decoy_iterations: u32,
}

impl Plugins {
    pub(super) fn read(top: &Reader<'_>, libraries: Vec<PluginLibrary>, backends: Vec<Backend>) -> Self {
        Self {
            path: top.words("plugins.path").iter().map(|path| top.base.join(path)).collect(),
            load: top.words("plugins.load"),
            libraries,
            backends,
        }
    }

    /// Whether a library has a process of its own.
    pub fn is_process(&self, id: &str) -> bool {
        const BUNDLED: [&str; 2] = ["standard", "legacy"];
        let written = self.libraries.iter().find(|library| library.id == id);
        written.and_then(|library| library.process).unwrap_or(!BUNDLED.contains(&id))
    }

    /// The pinned content of a library.
    pub fn sha256(&self, id: &str) -> Option<[u8; 32]> {
        self.libraries.iter().find(|library| library.id == id)?.sha256
    }

    /// What a library may have beside computing.
    pub fn grants(&self, id: &str) -> Grants {
        self.libraries.iter().find(|library| library.id == id).map(|library| library.grants.clone()).unwrap_or_default()
    }

    /// Whether a library is believed who somebody is.
    pub fn self_asserts(&self, id: &str) -> bool {
        self.libraries.iter().any(|library| library.id == id && library.self_asserts)
    }
}

pub(super) fn read_library(read: &Reader<'_>, report: &mut Report) -> Option<PluginLibrary> {
    let id = read.required("plugins.library[].id", report)?;
    let process = read.text("plugins.library[].runner").map(|runner| runner == "process");
    let sha256 = match read.text("plugins.library[].sha256") {
        None => None,
        Some(text) => match plugin_host::parse_sha256(&text) {
            Some(pin) => Some(pin),
            None => {
                let cause = "is no SHA-256: that has 64 hexadecimal digits";
                let remedy = "write what `sha256sum FILE` prints";
                About::new(read.table, report).error("plugins.library[].sha256", cause, remedy);
                return None;
            }
        },
    };
    let words = read.words("plugins.library[].grant");
    let grants = match Grants::parse(words.iter().map(String::as_str)) {
        Ok(grants) => grants,
        Err(BadGrant { index, cause, remedy }) => {
            About::new(read.table, report).error_in("plugins.library[].grant", index, cause, remedy);
            return None;
        }
    };
    let self_asserts = read.flag("plugins.library[].self_asserts");
    Some(PluginLibrary { written: read.table.clone(), id, process, sha256, grants, self_asserts })
}

pub(super) fn read_backend(read: &Reader<'_>, report: &mut Report) -> Option<Backend> {
    Some(Backend {
        name: read.required("plugins.backend[].name", report)?,
        settings: read.settings("plugins.backend[].settings"),
        timeout: read.time("plugins.backend[].timeout"),
        parallel: read.number("plugins.backend[].parallel").and_then(|number| usize::try_from(number).ok()),
        queue: read.count("plugins.backend[].queue"),
        decoy_iterations: read.count("plugins.backend[].decoy_iterations"),
        written: read.table.clone(),
    })
}

pub(super) fn check(config: &Config, report: &mut Report) {
    let plugins = &config.plugins;
    if plugins.load.is_empty() && config.listeners.iter().any(|listener| listener.auth != AuthOffer::Off) {
        About::new(&config.written, report).error(
            "plugins.load",
            "is empty, but listeners offer AUTH",
            "write [\"standard\"], or auth = \"off\" on each listener",
        );
    }
    for library in called_twice(&plugins.libraries, |library| &library.id) {
        let cause = format!("two tables for the library {:?}", library.id);
        About::new(&library.written, report).error("plugins.library[].id", cause, "keep one of them");
    }
    for library in &plugins.libraries {
        let (id, mut about) = (&library.id, About::new(&library.written, report));
        if !plugins.load.contains(id) {
            let remedy = format!("add \"{id}\" to plugins.load, or take the table out");
            about.error("plugins.library[].id", format!("{id:?} is not in plugins.load"), remedy);
        }
        if !library.grants.is_empty() && !plugins.is_process(id) {
            about.error(
                "plugins.library[].grant",
                format!("{id:?} runs inside of the workers, which have no files and no network to give"),
                "write runner = \"process\" beside it",
            );
        }
    }
    for backend in called_twice(&plugins.backends, |backend| &backend.name) {
        let cause = format!("two tables for the back end {:?}", backend.name);
        About::new(&backend.written, report).error("plugins.backend[].name", cause, "keep one of them");
    }
    for backend in plugins.backends.iter().filter(|backend| backend.timeout >= config.timeouts.directory) {
        About::new(&backend.written, report).error(
            "plugins.backend[].timeout",
            "is not shorter than timeouts.directory: the login would be over before",
            "make it shorter, or timeouts.directory longer",
        );
    }
}
