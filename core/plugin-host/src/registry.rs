//! The libraries of one process, and the mechanisms made from them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portreeve_plugin_abi::{kv, mech_flag};
use sasl::{Mechanism, MechanismName, Traits};
use serde_json::Value;

use crate::adapter::Inline;
use crate::backend::Backend;
use crate::ffi::{self, Bound, BoundBackend, Entry, Library, LogLine, OpenError};
use crate::gate::{Complain, Gate};
use crate::note::{self, Note, PanicStrategy};
use crate::{LoadError, Unfit, resolve, schema};

/// The loaded libraries. Mechanisms made from it outlive it; a library is told goodbye when the last of both
/// is gone, and stays mapped.
#[derive(Default)]
pub struct Registry {
    loaded: Vec<Loaded>,
    complain: Option<Complain>,
}

struct Loaded {
    library: Arc<Library>,
    origin: PathBuf,
    terms: Terms,
}

/// On what terms a library is taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// This process does nothing else: its mechanisms may take long (OFFLOAD).
    pub process: bool,
    /// The operator believes it who somebody is (SELF_ASSERTS).
    pub self_asserts: bool,
}

/// A loaded library, for people.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// How it was built.
    pub build: String,
    /// The file that it was copied from.
    pub origin: PathBuf,
    /// What it offers.
    pub mechanisms: Vec<ListedMechanism>,
    /// The back ends that it has.
    pub backends: Vec<ListedBackend>,
}

/// A back end of a loaded library.
#[derive(Clone, Debug)]
pub struct ListedBackend {
    /// Its name.
    pub name: String,
    /// The effects that it serves.
    pub provides: u64,
    /// Calls at a time.
    pub parallel: u32,
    /// JSON Schema of its settings.
    pub settings_schema: Option<String>,
}

/// A mechanism of a loaded library.
#[derive(Clone, Debug)]
pub struct ListedMechanism {
    /// Its name.
    pub name: MechanismName,
    /// What it declares.
    pub traits: Traits,
    /// JSON Schema of its settings.
    pub settings_schema: Option<String>,
}

impl Registry {
    /// Without any library.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells `complain` about steps that take too long or break the contract, of mechanisms made from now on.
    pub fn on_fault(&mut self, complain: Complain) {
        self.complain = Some(complain);
    }

    /// Takes a library into this process. `fd` is the sealed copy that [`vet`](crate::vet) made, here or in
    /// the supervisor; `origin` is the file that it was made from, for messages.
    pub fn load(&mut self, id: &str, fd: OwnedFd, origin: &Path, terms: Terms) -> Result<(), LoadError> {
        if !resolve::is_id(id) {
            return Err(LoadError::BadId { id: id.to_owned() });
        }
        if self.loaded.iter().any(|loaded| loaded.library.id == id) {
            return Err(LoadError::DuplicateId { id: id.to_owned() });
        }
        let at = || origin.to_owned();
        let file = link::sealed::read(fd.as_fd()).map_err(|error| LoadError::Unsealed { origin: at(), error })?;
        let note = note::read(&file, origin)?.note;
        drop(file);
        // All that can be known before its code runs.
        if note.panic == PanicStrategy::Abort {
            return Err(LoadError::Aborts { path: at() });
        }
        if note.id != id {
            let cause = format!("it is the plugin {:?}, not {id:?}", note.id);
            return Err(LoadError::Handshake { origin: at(), cause });
        }
        for name in note.mechanisms.keys() {
            if let Some((first, _)) = self.find(name) {
                let (first, second) = (first.origin.clone(), at());
                return Err(LoadError::DuplicateName { name: *name, first, second });
            }
        }
        let library = Library::open(fd).map_err(|error| match error {
            OpenError::Linker(cause) => LoadError::Open { origin: at(), cause },
            OpenError::Refused(message) => LoadError::Refused { origin: at(), message },
            OpenError::Handshake(cause) => LoadError::Handshake { origin: at(), cause },
        })?;
        compare(&note, &library).map_err(|cause| LoadError::Handshake { origin: at(), cause })?;
        self.loaded.push(Loaded { library: Arc::new(library), origin: at(), terms });
        Ok(())
    }

    /// A mechanism with its settings, a JSON object (empty text: none). Each listener may have its own.
    pub fn mechanism(&self, name: &MechanismName, settings: &str) -> Result<Arc<dyn Mechanism>, LoadError> {
        let Some((loaded, index)) = self.find(name) else {
            let known = self.loaded.iter().flat_map(|loaded| loaded.library.mechanisms.iter().map(|m| m.name));
            return Err(LoadError::UnknownMechanism { name: *name, known: known.collect() });
        };
        let Some(declared) = loaded.library.mechanisms.get(index) else {
            return Err(LoadError::UnknownMechanism { name: *name, known: vec![] });
        };
        let Terms { process, self_asserts } = loaded.terms;
        let has = |flags| declared.flags & flags != 0;
        let unfit = if !process && has(mech_flag::OFFLOAD_ALL | mech_flag::MAY_OFFLOAD) {
            Some(Unfit::Offloads)
        } else if !self_asserts && has(mech_flag::SELF_ASSERTS) {
            Some(Unfit::SelfAsserts)
        } else if declared.needs & !ffi::EFFECTS != 0 {
            Some(Unfit::LaterMinor)
        } else {
            None
        };
        if let Some(unfit) = unfit {
            return Err(LoadError::Unfit { name: *name, origin: loaded.origin.clone(), unfit });
        }
        let wrong = |cause| LoadError::Settings { name: *name, origin: loaded.origin.clone(), cause };
        let (json, entries) = flatten(settings).map_err(wrong)?;
        let bound = Bound::new(&loaded.library, index, &json, &entries).map_err(wrong)?;
        let gate = Gate::new(self.complain.clone());
        Ok(Arc::new(Inline::new(
            *name,
            declared.traits.clone(),
            bound,
            has(mech_flag::OFFLOAD_ALL | mech_flag::MAY_OFFLOAD),
            gate,
        )))
    }

    /// Names, effects and calls at a time of all back ends.
    pub(crate) fn backend_names(&self) -> Vec<(String, u64, u32)> {
        let all = self.loaded.iter().flat_map(|loaded| &loaded.library.backends);
        all.map(|declared| (declared.name.clone(), declared.provides, declared.parallel)).collect()
    }

    /// A back end with its settings, a JSON object (empty text: none), which must fit its schema.
    pub fn backend(&self, name: &str, settings: &str) -> Result<Backend, LoadError> {
        let wrong = |cause| self.backend_fault(name, cause);
        let (json, _) = flatten(settings).map_err(wrong)?;
        let all = self.loaded.iter().flat_map(|loaded| &loaded.library.backends);
        let declared = all.into_iter().find(|declared| declared.name == name);
        if let Some(schema) = declared.and_then(|declared| declared.schema.as_deref()) {
            let schema = serde_json::from_str(schema).map_err(|error| wrong(format!("its config_schema: {error}")))?;
            let settings = serde_json::from_str(&json).unwrap_or_default();
            schema::check(&schema, &settings).map_err(|bad| wrong(bad.to_string()))?;
        }
        self.backend_unchecked(name, settings)
    }

    /// The same, with the library's own word on its settings: for tests of libraries.
    pub fn backend_unchecked(&self, name: &str, settings: &str) -> Result<Backend, LoadError> {
        let wrong = |cause| self.backend_fault(name, cause);
        let found = self.loaded.iter().find_map(|loaded| {
            let backends = &loaded.library.backends;
            let index = backends.iter().position(|declared| declared.name == name)?;
            Some((loaded, index, backends.get(index)?))
        });
        let (loaded, index, declared) = found.ok_or_else(|| wrong("no loaded library has it".into()))?;
        let (json, entries) = flatten(settings).map_err(wrong)?;
        let bound = BoundBackend::new(&loaded.library, index, &json, &entries).map_err(wrong)?;
        Ok(Backend { provides: declared.provides, parallel: declared.parallel, bound })
    }

    pub(crate) fn backend_fault(&self, name: &str, cause: String) -> LoadError {
        let has = |loaded: &&Loaded| loaded.library.backends.iter().any(|declared| declared.name == name);
        let origin = self.loaded.iter().find(has).map(|loaded| loaded.origin.clone()).unwrap_or_default();
        LoadError::Backend { name: name.to_owned(), origin, cause }
    }

    /// What is loaded.
    pub fn list(&self) -> Vec<Listed> {
        let listed = |loaded: &Loaded| Listed {
            id: loaded.library.id.clone(),
            version: loaded.library.version.clone(),
            build: loaded.library.build.clone(),
            origin: loaded.origin.clone(),
            mechanisms: (loaded.library.mechanisms.iter())
                .map(|declared| ListedMechanism {
                    name: declared.name,
                    traits: declared.traits.clone(),
                    settings_schema: declared.schema.clone(),
                })
                .collect(),
            backends: (loaded.library.backends.iter())
                .map(|declared| ListedBackend {
                    name: declared.name.clone(),
                    provides: declared.provides,
                    parallel: declared.parallel,
                    settings_schema: declared.schema.clone(),
                })
                .collect(),
        };
        self.loaded.iter().map(listed).collect()
    }

    /// What the libraries logged since the last call, each with its id.
    pub fn take_log(&self) -> Vec<(String, LogLine)> {
        let mut all = Vec::new();
        for Loaded { library, .. } in &self.loaded {
            all.extend(library.take_log().into_iter().map(|line| (library.id.clone(), line)));
        }
        all
    }

    fn find(&self, name: &MechanismName) -> Option<(&Loaded, usize)> {
        self.loaded.iter().find_map(|loaded| {
            let index = loaded.library.mechanisms.iter().position(|declared| declared.name == *name)?;
            Some((loaded, index))
        })
    }
}

/// A library must be what its note said: operators and `plugin inspect` decided by the note.
fn compare(note: &Note, library: &Library) -> Result<(), String> {
    if note.id != library.id {
        return Err(format!("its note has the id {:?}, its descriptor {:?}", note.id, library.id));
    }
    if note.version != library.version {
        return Err(format!("its note has the version {:?}, its descriptor {:?}", note.version, library.version));
    }
    let offered: BTreeSet<_> = library.mechanisms.iter().map(|declared| declared.name).collect();
    if !note.mechanisms.keys().eq(&offered) {
        return Err("its note and its descriptor list different mechanisms".into());
    }
    for declared in &library.mechanisms {
        let noted = note.mechanisms.get(&declared.name).into_iter().flatten();
        let bits = note::bits(&noted.cloned().collect::<Vec<_>>());
        if bits != declared.needs & ffi::EFFECTS {
            return Err(format!("its note and its descriptor differ about what {} needs", declared.name));
        }
        for (noted, flags, what) in [
            (&note.self_asserts, mech_flag::SELF_ASSERTS, "SELF_ASSERTS"),
            (&note.offloads, mech_flag::OFFLOAD_ALL | mech_flag::MAY_OFFLOAD, "OFFLOAD"),
        ] {
            let declares = declared.flags & flags != 0;
            if noted.as_ref().is_some_and(|noted| noted.contains(&declared.name) != declares) {
                return Err(format!("its note and its descriptor differ about {what} of {}", declared.name));
            }
        }
    }
    let offered: BTreeSet<_> = library.backends.iter().map(|declared| &declared.name).collect();
    if !note.backends.keys().eq(offered) {
        return Err("its note and its descriptor list different back ends".into());
    }
    for declared in &library.backends {
        let Some(noted) = note.backends.get(&declared.name) else { continue };
        if noted.bits() != declared.provides & ffi::EFFECTS {
            return Err(format!("its note and its descriptor differ about what {} provides", declared.name));
        }
        let schema = declared.schema.as_deref().and_then(|schema| serde_json::from_str::<Value>(schema).ok());
        if noted.schema.is_some() && noted.schema != schema {
            return Err(format!("its note and its descriptor differ about the settings of {}", declared.name));
        }
    }
    Ok(())
}

/// Settings as a mechanism gets them: canonical JSON, and the same as key, text and type (`PRV_KV_*`). Empty
/// text is an empty table.
pub fn flatten(settings: &str) -> Result<(String, Vec<Entry>), String> {
    let settings = if settings.trim().is_empty() { "{}" } else { settings };
    let value: Value = serde_json::from_str(settings).map_err(|error| format!("its settings are not JSON: {error}"))?;
    if !value.is_object() {
        return Err("its settings are no table".into());
    }
    let mut entries = Vec::new();
    flatten_into(&value, String::new(), &mut entries);
    Ok((value.to_string(), entries))
}

fn flatten_into(value: &Value, key: String, entries: &mut Vec<Entry>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(table) => table.iter().for_each(|(name, value)| flatten_into(value, below(name), entries)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| flatten_into(value, below(&at.to_string()), entries));
        }
        Value::String(text) => entries.push((key, text.clone(), kv::TEXT)),
        Value::Number(number) => entries.push((key, number.to_string(), kv::NUMBER)),
        Value::Bool(on) => entries.push((key, on.to_string(), kv::BOOL)),
        Value::Null => entries.push((key, String::new(), kv::NULL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_flattened() {
        let (json, entries) = flatten(r#"{ "b": {"y": [1, true]}, "a": "x", "n": null }"#).unwrap();
        assert_eq!(json, r#"{"a":"x","b":{"y":[1,true]},"n":null}"#);
        let text = |key: &str, value: &str, kind| (key.to_owned(), value.to_owned(), kind);
        assert_eq!(
            entries,
            [
                text("a", "x", kv::TEXT),
                text("b.y.0", "1", kv::NUMBER),
                text("b.y.1", "true", kv::BOOL),
                text("n", "", kv::NULL)
            ]
        );
        assert_eq!(flatten("").unwrap(), ("{}".into(), vec![]));
        assert!(flatten("[]").is_err() && flatten("{").is_err());
    }
}
