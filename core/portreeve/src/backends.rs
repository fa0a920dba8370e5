//! Back ends: which one knows a listener's users, what it can serve, and the settings of those in libraries.
//!
//! Everything here is known from the configuration and the libraries' notes: nothing of a library is run.

use std::path::Path;

use plugin_host::{OWN_BACKEND, bits, schema};
use sasl::EffectKind;
use serde_json::{Map, Value};

use crate::config::{Backend, Config, Listener};
use crate::plugins::Library;
use crate::report::Report;
use crate::values::Settings;

/// A back end of a loaded library, as processes are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// Its library.
    pub library: String,
    /// Its name.
    pub name: String,
    /// The effects that it serves.
    pub provides: u64,
    /// The library's mechanisms.
    pub mechanisms: Vec<String>,
}

/// Longest value that a file may give.
const SECRET_OCTETS_MAX: u64 = 64 << 10;

/// Those of these libraries.
pub fn outside(libraries: &[Library]) -> Vec<Outside> {
    let of = |library: &Library| {
        let mechanisms = library.mechanisms();
        let one = |(name, noted): (&String, &plugin_host::NotedBackend)| Outside {
            library: library.id.clone(),
            name: name.clone(),
            provides: noted.bits(),
            mechanisms: mechanisms.clone(),
        };
        library.note.backends.iter().map(one).collect::<Vec<_>>()
    };
    libraries.iter().flat_map(of).collect()
}

/// What mechanisms of `library` can ask for on a listener with this back end.
pub fn served(config: &Config, backend: &str, library: &str, outside: &[Outside]) -> u64 {
    let own = [EffectKind::VerifyPassword, EffectKind::FetchKey, EffectKind::VerifyExternal];
    let tokens = Some(EffectKind::VerifyToken).filter(|_| !config.issuers.is_empty());
    let listeners = match outside.iter().find(|one| one.name == backend) {
        Some(one) => one.provides,
        None => own.into_iter().chain(tokens).fold(0, |bits, kind| bits | kind.need()),
    };
    let librarys = outside.iter().filter(|one| one.library == library);
    let call = librarys.fold(0, |bits, one| bits | one.provides) & EffectKind::BackendCall.need();
    listeners | call | EffectKind::ChannelBinding.need()
}

/// Looks whether every back end that is named exists, once, and whether it serves the mechanisms beside it.
/// `false`: the report says what is wrong.
pub fn check(config: &Config, libraries: &[Library], report: &mut Report) -> bool {
    let outside = outside(libraries);
    let mut good = true;
    for (at, one) in outside.iter().enumerate() {
        if let Some(other) = outside[..at].iter().find(|other| other.name == one.name) {
            let cause = format!("the back end {:?} is in {:?} and in {:?}", one.name, other.library, one.library);
            report.error(Some(config.written.span("plugins.load")), "plugins.load", cause, "load one of them");
            good = false;
        }
    }
    let known = || {
        let names = std::iter::once(OWN_BACKEND).chain(outside.iter().map(|one| one.name.as_str()));
        format!("write one of: {}", names.collect::<Vec<_>>().join(", "))
    };
    for table in &config.plugins.backends {
        if !outside.iter().any(|one| one.name == table.name) {
            let cause = format!("no loaded library has a back end {:?}", table.name);
            let span = Some(table.written.span("plugins.backend[].name"));
            report.error(span, "plugins.backend.name", cause, known());
            good = false;
        }
    }
    let offering = config.listeners.iter().filter(|listener| listener.auth != smtp::listener::AuthOffer::Off);
    for listener in offering {
        if listener.backend != OWN_BACKEND && !outside.iter().any(|one| one.name == listener.backend) {
            let cause = format!("no loaded library has a back end {:?}", listener.backend);
            report.error(Some(listener.written.span("listener[].backend")), "listener.backend", cause, known());
            good = false;
            continue;
        }
        if !listener.mechanisms_auto {
            good &= matches(config, listener, libraries, &outside, report);
        }
    }
    good
}

/// Whether the listener's back end can do what its mechanisms need.
fn matches(
    config: &Config,
    listener: &Listener,
    libraries: &[Library],
    outside: &[Outside],
    report: &mut Report,
) -> bool {
    let mut good = true;
    for (index, name) in listener.mechanisms.iter().enumerate() {
        let found = libraries.iter().find_map(|library| {
            let needs = library.note.mechanisms.iter().find(|(known, _)| known.as_str() == name)?;
            Some((library, needs.1))
        });
        let Some((library, needs)) = found else { continue };
        let served = served(config, &listener.backend, &library.id, outside);
        let lacking: Vec<&str> =
            needs.iter().filter(|need| bits(std::slice::from_ref(need)) & !served != 0).map(String::as_str).collect();
        if lacking.is_empty() {
            continue;
        }
        let span = Some(listener.written.element("listener[].mechanisms", index));
        let wanted = lacking.join(", ");
        if listener.backend == OWN_BACKEND && lacking == ["VERIFY_TOKEN"] {
            let cause = format!("{name} is not offered: there is nobody whose tokens are believed");
            report.warning(span, "listener.mechanisms", cause, "add a [[tokens.issuer]] table, or take it out");
            continue;
        }
        let others = std::iter::once(OWN_BACKEND).chain(outside.iter().map(|one| one.name.as_str()));
        let able = others.filter(|other| bits(needs) & !self::served(config, other, &library.id, outside) == 0);
        let able: Vec<&str> = able.collect();
        let remedy = match able.is_empty() {
            true => "take it out, or write mechanisms = \"auto\"".to_owned(),
            false => format!("take it out, write mechanisms = \"auto\", or backend = \"{}\"", able.join("\" or \"")),
        };
        report.error(
            span,
            "listener.mechanisms",
            format!("{name} needs {wanted}, which the back end {:?} does not provide", listener.backend),
            remedy,
        );
        good = false;
    }
    good
}

/// The settings of a library's back ends as its process gets them: `{"name": {…}}`, with secrets read from where
/// they are. `None`: the report says what is wrong.
pub fn settings(config: &Config, library: &Library, report: &mut Report) -> Option<Vec<u8>> {
    let base = config.file.parent().unwrap_or(Path::new("."));
    let base = std::path::absolute(base).unwrap_or_else(|_| base.to_owned());
    let (mut all, mut good) = (Map::new(), true);
    for (name, noted) in &library.note.backends {
        let table = config.plugins.backends.iter().find(|table| table.name == *name);
        let mut value = table.map_or_else(|| Value::Object(Map::new()), |table| table.settings.json.clone());
        if let Some(table) = table {
            good &= resolve(&mut value, &mut Vec::new(), &base, table, report);
        }
        if let Some(Err(misfit)) = noted.schema.as_ref().map(|schema| schema::check(schema, &value)) {
            let span = table.map(|table| place(table, &misfit.path));
            let key = ["plugins.backend.settings".to_owned()].into_iter().chain(misfit.path).collect::<Vec<_>>();
            let remedy = format!("the settings of {name} are described by its library: see `portreeve plugin inspect`");
            report.error(span, key.join("."), format!("back end {name}: {}", misfit.cause), remedy);
            good = false;
        }
        all.insert(name.clone(), value);
    }
    good.then(|| Value::Object(all).to_string().into_bytes())
}

/// `{ file = "…" }` and `{ env = "…" }` become what they name.
fn resolve(value: &mut Value, path: &mut Vec<String>, base: &Path, table: &Backend, report: &mut Report) -> bool {
    match value {
        Value::Object(inner) => {
            let only = (inner.len() == 1).then(|| inner.iter().next()).flatten();
            let found = match only.map(|(key, value)| (key.as_str(), value.as_str())) {
                Some(("file", Some(file))) => file_value(&base.join(file)),
                Some(("env", Some(name))) => std::env::var(name).map_err(|_| {
                    (format!("the environment has no text {name}"), "set it for the server's own process".to_owned())
                }),
                _ => {
                    let mut good = true;
                    for (key, value) in inner.iter_mut() {
                        path.push(key.clone());
                        good &= resolve(value, path, base, table, report);
                        path.pop();
                    }
                    return good;
                }
            };
            match found {
                Ok(text) => {
                    *value = Value::String(text);
                    true
                }
                Err((cause, remedy)) => {
                    report.error(Some(place(table, path)), "plugins.backend.settings", cause, remedy);
                    false
                }
            }
        }
        Value::Array(list) => {
            let mut good = true;
            for (at, value) in list.iter_mut().enumerate() {
                path.push(at.to_string());
                good &= resolve(value, path, base, table, report);
                path.pop();
            }
            good
        }
        _ => true,
    }
}

fn file_value(file: &Path) -> Result<String, (String, String)> {
    let wrong = |cause: String| {
        let cause = format!("{}: {cause}", file.display());
        (cause, "name a text file that the server may read when it starts".to_owned())
    };
    let meta = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?;
    if meta.len() > SECRET_OCTETS_MAX {
        return Err(wrong("is larger than 64 KiB".into()));
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    // The end of the last line is the editor's, not the secret's.
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(text.to_owned())
}

/// Where a setting stands: itself, or what it is in.
fn place(table: &Backend, path: &[String]) -> std::ops::Range<usize> {
    let found = (1..=path.len()).rev().find_map(|end| table.settings.places.get(&path[..end].join(".")).cloned());
    found.unwrap_or_else(|| table.written.span("plugins.backend[].settings"))
}

impl Settings {
    /// Without any.
    pub fn none() -> Self {
        Self { json: Value::Object(Map::new()), places: Default::default() }
    }
}
