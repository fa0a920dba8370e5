//! Mechanism libraries: found, vetted and sealed by whoever may read them, loaded by workers. What their authors
//! need (`check`, `run`, `new` and so on) is in `author`.

mod author;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use link::grant::Grants;
use plugin_host::{Complain, Demands, Note, Registry, Terms, Unfit, Vetted};
use sasl::MechanismName;
use serde_json::Value;
use smtp::listener::AuthOffer;

use crate::backends;
use crate::certificates::halves;
use crate::cli::{PluginCommand, exit};
use crate::config::{self, Config};
use crate::control::client;
use crate::report::Report;
use crate::terminal;

/// A library that was found good.
pub struct Library {
    /// Its id in the configuration.
    pub id: String,
    /// Where it came from.
    pub path: PathBuf,
    /// A sealed copy of what was looked at.
    pub fd: OwnedFd,
    /// What it says about itself.
    pub note: Note,
    /// Of its content.
    pub sha256: [u8; 32],
    /// It runs in a process of its own.
    pub process: bool,
    /// What it may have beside computing.
    pub grants: Grants,
    /// It is believed who somebody is.
    pub self_asserts: bool,
    /// Of its back ends, for their process.
    pub settings: Vec<u8>,
}

impl Library {
    /// The names of its mechanisms.
    pub fn mechanisms(&self) -> Vec<String> {
        self.note.mechanisms.keys().map(|name| name.as_str().to_owned()).collect()
    }

    /// Everything that the configuration says of it: a process that runs under other terms is another one.
    pub fn terms(&self, config: &Config) -> String {
        let settings = self.mechanisms().iter().map(|name| config.settings(name).to_owned()).collect::<Vec<_>>();
        format!("{} self_asserts={} {}", self.grants, self.self_asserts, settings.join(" "))
    }
}

/// Finds and vets all libraries, without running anything of them, and looks for every mechanism that a
/// listener offers.
pub fn read(config: &Config, report: &mut Report) -> Option<Vec<Library>> {
    let mut libraries: Vec<Library> = Vec::new();
    let mut failed = false;
    for (index, id) in config.plugins.load.iter().enumerate() {
        let span = config.written.entries.contains_key("plugins.load");
        let span = span.then(|| config.written.element("plugins.load", index));
        match vet(id, &config.plugins.path, config.plugins.sha256(id)) {
            Ok(Vetted { fd, note, sha256, path, remarks }) => {
                for remark in remarks {
                    let remedy = "others could put another library there: install it elsewhere on a real server";
                    report.warning(span.clone(), "plugins.load", remark, remedy);
                }
                let process = config.plugins.is_process(id);
                let settings = Vec::new();
                let (grants, self_asserts) = (config.plugins.grants(id), config.plugins.self_asserts(id));
                let id = id.clone();
                libraries.push(Library { id, path, fd, note, sha256, process, grants, self_asserts, settings });
            }
            Err(error) => {
                let (cause, remedy) = halves(&error);
                report.error(span, "plugins.load", cause, remedy);
                failed = true;
            }
        }
    }
    if failed {
        return None;
    }
    for library in &libraries {
        about_terms(config, library, report);
    }
    let mut offered: BTreeMap<&str, &str> = BTreeMap::new();
    for library in &libraries {
        for mechanism in library.note.mechanisms.keys() {
            if let Some(first) = offered.insert(mechanism.as_str(), &library.id) {
                let cause = format!("{} is in {first:?} and in {:?}", mechanism.as_str(), library.id);
                report.error(Some(config.written.span("plugins.load")), "plugins.load", cause, "load one of them");
                failed = true;
            }
        }
    }
    for (name, settings) in config.mechanisms.iter().filter(|(name, _)| !offered.contains_key(name.as_str())) {
        let (key, cause) = (format!("mechanism.{name}"), format!("no loaded library has the mechanism {name}"));
        report.error(Some(settings.span.clone()), key, cause, "load the library that has it, or take the table out");
        failed = true;
    }
    for listener in config.listeners.iter().filter(|listener| listener.auth != AuthOffer::Off) {
        for (index, name) in listener.mechanisms.iter().enumerate() {
            if !offered.contains_key(name.as_str()) {
                let loaded: Vec<&str> = offered.keys().copied().collect();
                let remedy = match bundled_in(name) {
                    Some(id) => format!("add \"{id}\" to plugins.load"),
                    None => format!("write one of {}, or load the library that has it", loaded.join(", ")),
                };
                report.error(
                    Some(listener.written.element("listener[].mechanisms", index)),
                    "listener.mechanisms",
                    format!("no loaded library has the mechanism {name}"),
                    remedy,
                );
                failed = true;
            }
        }
    }
    failed |= !backends::check(config, &libraries, report);
    for library in &mut libraries {
        match backends::settings(config, library, report) {
            Some(settings) => library.settings = settings,
            None => failed = true,
        }
    }
    (!failed).then_some(libraries)
}

/// What a library says of itself, held against what the configuration says of it.
fn about_terms(config: &Config, library: &Library, report: &mut Report) {
    let table = config.plugins.libraries.iter().find(|table| table.id == library.id);
    let table = table.map(|table| &table.written);
    let span =
        |option: &str| Some(table.map_or_else(|| config.written.span("plugins.load"), |table| table.span(option)));
    let wanted = |name: &MechanismName| {
        let mut listeners = config.listeners.iter().filter(|listener| listener.auth != AuthOffer::Off);
        listeners.any(|listener| listener.mechanisms.iter().any(|listed| listed == name.as_str()))
    };
    let mut unfit = |names: &Option<BTreeSet<MechanismName>>, option: &str, why: Unfit| {
        for name in names.iter().flatten().filter(|name| wanted(name)) {
            let (cause, remedy) = halves(&format!("{name} of {:?} {why}", library.id));
            report.error(
                span(&format!("plugins.library[].{option}")),
                format!("plugins.library.{option}"),
                cause,
                remedy,
            );
        }
    };
    if !library.process {
        unfit(&library.note.offloads, "runner", Unfit::Offloads);
    }
    if !library.self_asserts {
        unfit(&library.note.self_asserts, "self_asserts", Unfit::SelfAsserts);
    }
    let Grants { read, write, .. } = &library.grants;
    for path in read.iter().chain(write).filter(|path| !path.exists()) {
        let cause = format!("{}: is not there, so nothing is granted", path.display());
        report.warning(span("plugins.library[].grant"), "plugins.library.grant", cause, "make it, or grant its folder");
    }
}

/// Which of our own libraries has a mechanism.
fn bundled_in(mechanism: &str) -> Option<&'static str> {
    match mechanism {
        "PLAIN" | "LOGIN" | "EXTERNAL" | "OAUTHBEARER" | "XOAUTH2" => Some("standard"),
        _ if mechanism.starts_with("SCRAM-SHA-") => Some("standard"),
        "CRAM-MD5" | "DIGEST-MD5" | "ANONYMOUS" => Some("legacy"),
        "GSSAPI" => Some("gssapi"),
        _ => None,
    }
}

fn vet(id: &str, path: &[PathBuf], sha256: Option<[u8; 32]>) -> Result<Vetted, String> {
    let found = plugin_host::resolve(id, path).map_err(|error| error.to_string())?;
    let demands = Demands { ownership: found.ownership(), sha256 };
    plugin_host::vet(&found.path, &demands).map_err(|error| error.to_string())
}

/// Loads vetted libraries into this process.
pub fn load(
    libraries: impl IntoIterator<Item = (String, OwnedFd, PathBuf, Terms)>,
    complain: Option<Complain>,
) -> Result<Registry, String> {
    let mut registry = Registry::new();
    complain.into_iter().for_each(|complain| registry.on_fault(complain));
    for (id, fd, origin, terms) in libraries {
        registry.load(&id, fd, &origin, terms).map_err(|error| error.to_string())?;
    }
    Ok(registry)
}

/// Loads what was found good, for a look at it.
pub fn load_here(libraries: &[Library]) -> Result<Registry, String> {
    let copies = libraries.iter().map(|library| {
        let fd = library.fd.try_clone().map_err(|error| format!("{}: {error}", library.path.display()))?;
        let terms = Terms { process: library.process, self_asserts: library.self_asserts };
        Ok((library.id.clone(), fd, library.path.clone(), terms))
    });
    load(copies.collect::<Result<Vec<_>, String>>()?, None)
}

/// `portreeve plugin …`
pub fn command(command: &PluginCommand) -> ExitCode {
    match command {
        PluginCommand::List { config } => {
            let (config, mut report) = config::load(&config.file());
            // What a running server knows beyond the files; without one there is nothing to be known.
            let running = config.as_ref().and_then(|config| client::ask(&config.admin.socket, "status").ok());
            let running = running.map_or(Value::Null, |answer| answer["supervisor"].clone());
            let libraries = config.and_then(|config| read(&config, &mut report));
            eprint!("{}", report.render(terminal::color()));
            match libraries {
                Some(libraries) => terminal::print(&list(&libraries, &running)),
                None => ExitCode::from(exit::CONFIGURATION),
            }
        }
        PluginCommand::Inspect { file, json } => match plugin_host::inspect(file) {
            Ok(found) if *json => terminal::print(&format!("{:#}\n", inspected(&found))),
            Ok(found) => terminal::print(&inspect(&found)),
            Err(error) => terminal::fail(exit::NO_PLUGIN, error),
        },
        other => author::command(other),
    }
}

fn list(libraries: &[Library], running: &Value) -> String {
    let mut to = String::new();
    for library in libraries {
        let mechanisms: Vec<&str> = library.note.mechanisms.keys().map(|name| name.as_str()).collect();
        let backends = library.note.backends.keys().map(|name| format!("back end {name}"));
        let offers: Vec<String> = mechanisms.iter().map(|name| (*name).to_owned()).chain(backends).collect();
        let _ = writeln!(
            to,
            "{:<10} {:<8} runner {:<7}  {:<24} sha256 {}…  {}",
            library.id,
            library.note.version,
            if library.process { "process" } else { "inline" },
            offers.join(" "),
            &hex(&library.sha256)[..12],
            library.path.display()
        );
        if !library.grants.is_empty() {
            let _ = writeln!(to, "  granted: {}", library.grants);
        }
        if library.self_asserts {
            let _ = writeln!(to, "  believed who somebody is (self_asserts)");
        }
        let editions = running["libraries"].as_array().into_iter().flatten();
        for edition in editions.filter(|edition| edition["id"] == library.id) {
            to.push_str(&client::edition(edition));
        }
        for (mechanism, cause) in running["quarantine"].as_object().into_iter().flatten() {
            if offers.contains(mechanism) {
                let _ = writeln!(to, "  {mechanism} is in quarantine: {}", cause.as_str().unwrap_or_default());
            }
        }
    }
    to
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// For programs.
fn inspected(found: &plugin_host::Inspection) -> serde_json::Value {
    let note = &found.note;
    let names = |some: &Option<BTreeSet<MechanismName>>| -> Value {
        some.as_ref().map(|some| some.iter().map(|name| name.as_str()).collect()).unwrap_or(Value::Null)
    };
    let mechanisms: serde_json::Map<_, _> =
        note.mechanisms.iter().map(|(name, needs)| (name.as_str().to_owned(), needs.clone().into())).collect();
    let backends: serde_json::Map<_, _> = (note.backends.iter())
        .map(|(name, noted)| {
            (name.clone(), serde_json::json!({ "provides": noted.provides, "settings": noted.schema }))
        })
        .collect();
    serde_json::json!({
        "id": note.id, "version": note.version, "abi": format!("{}.{}", note.abi.0, note.abi.1), "build": note.build,
        "mechanisms": mechanisms, "backends": backends,
        "self_asserts": names(&note.self_asserts), "offloads": names(&note.offloads), "needs": found.needed, "octets": found.octets,
        "sha256": hex(&found.sha256),
    })
}

fn inspect(found: &plugin_host::Inspection) -> String {
    let note = &found.note;
    let mut to = String::new();
    let _ = writeln!(to, "id          {}", note.id);
    let _ = writeln!(to, "version     {}", note.version);
    let _ = writeln!(to, "ABI         {}.{}", note.abi.0, note.abi.1);
    let _ = writeln!(to, "build       {}", note.build);
    for (name, needs) in &note.mechanisms {
        let needs = if needs.is_empty() { String::new() } else { format!("  needs {}", needs.join(", ")) };
        let _ = writeln!(to, "mechanism   {}{needs}", name.as_str());
    }
    for name in note.self_asserts.iter().flatten() {
        let _ = writeln!(to, "asserts     {name} says itself who somebody is: needs self_asserts = true");
    }
    for name in note.offloads.iter().flatten() {
        let _ = writeln!(to, "offloads    {name} may take long: needs runner = \"process\"");
    }
    for (name, noted) in &note.backends {
        let _ = writeln!(to, "back end    {name}  provides {}", noted.provides.join(", "));
        if let Some(schema) = &noted.schema {
            let _ = writeln!(to, "            settings {schema}");
        }
    }
    let _ = writeln!(to, "needs       {}", found.needed.join(" "));
    let _ = writeln!(to, "size        {} octets\nsha256      {}", found.octets, hex(&found.sha256));
    to
}
