//! What a library says without being run: the ELF note of `portreeve_plugin.h`, and its dynamic section.
//!
//! A file comes from who knows where: everything is bounded and checked, and nothing of it is executed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use object::Endianness;
use object::elf;
use object::read::elf::{Dyn, FileHeader, NoteIterator, SectionHeader, Sym};
use portreeve_plugin_abi as abi;
use sasl::MechanismName;
use serde_json::Value;

use crate::LoadError;

type Header = elf::FileHeader64<Endianness>;

/// What happens to a panic in the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicStrategy {
    /// Caught before it leaves the library.
    Unwind,
    /// Ends the process.
    Abort,
    /// The language has none.
    None,
}

/// The note of a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Major and minor of the ABI that it was built against.
    pub abi: (u16, u16),
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Free text on how it was built.
    pub build: String,
    /// What happens to a panic.
    pub panic: PanicStrategy,
    /// Its mechanisms, each with the effects that it needs.
    pub mechanisms: BTreeMap<MechanismName, Vec<String>>,
    /// Its credential back ends.
    pub backends: BTreeMap<String, NotedBackend>,
    /// Which of its mechanisms say themselves who somebody is; `None`: the note does not tell.
    pub self_asserts: Option<BTreeSet<MechanismName>>,
    /// Which of its mechanisms may take long; `None`: the note does not tell.
    pub offloads: Option<BTreeSet<MechanismName>>,
}

/// A back end as the note describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedBackend {
    /// The effects that it serves.
    pub provides: Vec<String>,
    /// JSON Schema of its settings, when the note has it.
    pub schema: Option<Value>,
}

impl NotedBackend {
    /// The effects as bits; names of a later minor have none.
    pub fn bits(&self) -> u64 {
        bits(&self.provides)
    }
}

/// Effects by name as bits; names of a later minor have none.
pub fn bits(names: &[String]) -> u64 {
    let known = |name: &String| abi::action::EFFECTS.iter().find(|(known, _)| known == name);
    names.iter().filter_map(known).fold(0, |bits, (_, number)| bits | abi::action::need(*number))
}

/// `[a-z0-9_-]{1,32}`, and not the name of our own back end.
pub fn is_backend_name(name: &str) -> bool {
    let letter = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || matches!(octet, b'_' | b'-');
    (1..=32).contains(&name.len()) && name.bytes().all(letter) && name != OWN_BACKEND
}

/// What the configuration calls the users file.
pub const OWN_BACKEND: &str = "users";

/// A library as read from its file.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub note: Note,
    /// Libraries that it needs (DT_NEEDED).
    pub needed: Vec<String>,
}

/// Reads a library's file; `path` is for the error.
pub(crate) fn read(file: &[u8], path: &Path) -> Result<Facts, LoadError> {
    let not_a_plugin = |cause: String| LoadError::NotAPlugin { path: path.to_owned(), cause };
    let facts = read_elf(file).map_err(not_a_plugin)?;
    if facts.note.abi.0 != abi::ABI_MAJOR {
        let (found, spoken) = (facts.note.abi.0, abi::ABI_MAJOR);
        return Err(LoadError::AbiMajor { path: path.to_owned(), found, spoken });
    }
    Ok(facts)
}

fn read_elf(file: &[u8]) -> Result<Facts, String> {
    let header = Header::parse(file).map_err(|_| "not a 64-bit ELF file")?;
    let endian = header.endian().map_err(|error| error.to_string())?;
    if !header.is_little_endian() || header.e_type(endian) != elf::ET_DYN {
        return Err("not a little-endian shared library".into());
    }
    if OUR_MACHINE.is_some_and(|ours| ours != header.e_machine(endian)) {
        return Err(format!("built for another machine than {}", std::env::consts::ARCH));
    }
    let sections = header.sections(endian, file).map_err(|error| error.to_string())?;
    let (_, note) = sections
        .section_by_name(endian, abi::NOTE_SECTION.as_bytes())
        .ok_or_else(|| format!("it has no section {}", abi::NOTE_SECTION))?;
    let note = note.data(endian, file).map_err(|error| error.to_string())?;
    // The section's own type and alignment are the linker's affair: ours are fixed.
    let note = NoteIterator::<Header>::new(endian, 4, note)
        .map_err(|error| error.to_string())?
        .find_map(|note| {
            note.ok()
                .filter(|note| note.name() == abi::NOTE_OWNER.as_bytes() && note.n_type(endian).0 == abi::NOTE_TYPE)
        })
        .ok_or_else(|| format!("section {} holds no note of {}", abi::NOTE_SECTION, abi::NOTE_OWNER))?;
    let note = Note::parse(note.desc())?;

    let symbols = sections.symbols(endian, file, elf::SHT_DYNSYM).map_err(|error| error.to_string())?;
    let exported = symbols.iter().any(|symbol| {
        symbol.name(endian, symbols.strings()).is_ok_and(|name| name == abi::ENTRY.to_bytes())
            && !symbol.is_undefined(endian)
    });
    if !exported {
        return Err(format!("it does not export {}", abi::ENTRY.to_string_lossy()));
    }
    let mut needed = Vec::new();
    if let Ok(Some((entries, link))) = sections.dynamic(endian, file)
        && let Ok(strings) = sections.strings(endian, file, link)
    {
        for entry in entries.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED) {
            let name = entry.string(endian, strings).unwrap_or_default();
            needed.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(Facts { note, needed })
}

impl Note {
    fn parse(octets: &[u8]) -> Result<Note, String> {
        if octets.len() > abi::NOTE_MAX + 4 {
            return Err(format!("its note is longer than {} octets", abi::NOTE_MAX));
        }
        let end = octets.iter().rposition(|octet| *octet != 0).map_or(0, |last| last + 1);
        let json: Value = serde_json::from_slice(octets.get(..end).unwrap_or_default())
            .map_err(|error| format!("its note is not JSON: {error}"))?;
        let text = |key: &str| match json.get(key).and_then(Value::as_str) {
            Some(text) if text.len() <= 128 && !text.contains(char::is_control) => Ok(text.to_owned()),
            _ => Err(format!("its note has no good `{key}`")),
        };
        let version = text("abi")?;
        let (major, minor) = version.split_once('.').ok_or_else(|| format!("its note has abi {version:?}"))?;
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("its note has abi {version:?}"));
        let mut mechanisms = BTreeMap::new();
        let listed = json.get("mechanisms").and_then(Value::as_object).ok_or("its note has no `mechanisms`")?;
        for (name, needs) in listed {
            let parsed = MechanismName::parse(name.as_bytes()).filter(|parsed| parsed.as_str() == name);
            let parsed = parsed.ok_or_else(|| format!("its note has the mechanism name {name:?}"))?;
            mechanisms.insert(parsed, strings(needs)?);
        }
        let some_of = |listed: &Value| -> Result<BTreeSet<MechanismName>, String> {
            let names = strings(listed)?;
            let known = |name: &String| {
                let parsed = MechanismName::parse(name.as_bytes()).filter(|parsed| mechanisms.contains_key(parsed));
                parsed.ok_or_else(|| format!("its note says something of {name:?}, which is no mechanism of its"))
            };
            names.iter().map(known).collect()
        };
        Ok(Note {
            abi: (number(major)?, number(minor)?),
            id: text("id")?,
            version: text("version")?,
            build: json.get("build").map(|_| text("build")).transpose()?.unwrap_or_default(),
            panic: match text("panic")?.as_str() {
                "unwind" => PanicStrategy::Unwind,
                "abort" => PanicStrategy::Abort,
                "none" => PanicStrategy::None,
                other => return Err(format!("its note has panic {other:?}")),
            },
            backends: backends(&json)?,
            self_asserts: json.get("self_asserts").map(some_of).transpose()?,
            offloads: json.get("offloads").map(some_of).transpose()?,
            mechanisms,
        })
    }
}

fn backends(json: &Value) -> Result<BTreeMap<String, NotedBackend>, String> {
    let mut backends = BTreeMap::new();
    for name in json.get("backends").map(strings).transpose()?.unwrap_or_default() {
        if !is_backend_name(&name) {
            return Err(format!(
                "its note has the back end name {name:?}: 1 to 32 of a-z, 0-9, - and _, not \"users\""
            ));
        }
        let provides = json.get("provides").and_then(|all| all.get(&name));
        let provides = provides.ok_or_else(|| format!("its note does not say in `provides` what {name} serves"))?;
        let provides = strings(provides)?;
        let schema = json.get("schemas").and_then(|all| all.get(&name)).cloned();
        backends.insert(name, NotedBackend { provides, schema });
    }
    Ok(backends)
}

fn strings(value: &Value) -> Result<Vec<String>, String> {
    let texts = value.as_array().map(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
    texts.flatten().ok_or_else(|| "its note has something else where an array of strings belongs".to_owned())
}

const OUR_MACHINE: Option<elf::Machine> = if cfg!(target_arch = "x86_64") {
    Some(elf::EM_X86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(elf::EM_AARCH64)
} else if cfg!(target_arch = "riscv64") {
    Some(elf::EM_RISCV)
} else {
    None
};

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"abi":"1.0","id":"x","version":"2","panic":"none","mechanisms":{"X-A":["FETCH_KEY"]}}"#;

    #[test]
    fn a_note_and_its_faults() {
        let note = Note::parse(format!("{GOOD}\0\0\0").as_bytes()).unwrap();
        assert_eq!((note.abi, note.id.as_str(), note.panic), ((1, 0), "x", PanicStrategy::None));
        assert_eq!(note.mechanisms.values().next().unwrap(), &["FETCH_KEY"]);
        for (from, to) in [
            ("1.0", "1"),
            ("1.0", "99999.0"),
            ("\"id\"", "\"di\""),
            ("none", "maybe"),
            ("X-A", "x a"),
            ("[\"FETCH_KEY\"]", "7"),
            ("}}", "}"),
            ("\"2\"", "\"\\n\""),
            ("{\"abi", "{\"self_asserts\":[\"X-B\"],\"abi"),
            ("{\"abi", "{\"offloads\":7,\"abi"),
        ] {
            assert!(Note::parse(GOOD.replace(from, to).as_bytes()).is_err(), "{from} → {to}");
        }
        assert!(Note::parse(&vec![b' '; 20_000]).unwrap_err().contains("longer"));
    }

    #[test]
    fn any_prefix_and_any_flipped_octet_of_a_library_is_survived() {
        let path = std::env::current_exe().unwrap();
        let library = std::fs::read(path.with_file_name("libportreeve_standard.so")).unwrap();
        assert!(read_elf(&library).is_ok());
        for cut in (0..library.len()).step_by(library.len() / 500 + 1) {
            let _ = read_elf(&library[..cut]);
        }
        let mut broken = library.clone();
        // The ELF header, and the section headers at the end.
        let tail = library.len() - 4096;
        for at in (0..64).chain(tail..library.len()) {
            broken[at] ^= 0xff;
            let _ = read_elf(&broken);
            broken[at] ^= 0xff;
        }
    }
}
