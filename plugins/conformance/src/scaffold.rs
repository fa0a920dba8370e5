//! `plugin new`: a folder with a mechanism that builds and passes `check`, and everything that it needs. The header
//! and the SDK are inside of the program, so the source tree is not needed.

use std::path::{Path, PathBuf};

use portreeve_plugin_abi as abi;

/// What the mechanism is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Rust, with the SDK.
    Rust,
    /// C, with the header.
    C,
}

/// What was made.
#[derive(Debug, PartialEq, Eq)]
pub struct Made {
    /// The folder.
    pub folder: PathBuf,
    /// The mechanism's name.
    pub mech: String,
    /// The library's id.
    pub id: String,
    /// How to build it, in the folder.
    pub build: &'static str,
    /// The built library, below the folder.
    pub library: String,
}

macro_rules! embedded {
    ($($path:literal),* $(,)?) => { [$(($path, include_str!(concat!("../../sdk/src/", $path)))),*] };
}

/// The SDK's source. A test compares it with the folder.
pub const SDK: &[(&str, &str)] = &embedded![
    "backend.rs",
    "cx.rs",
    "export.rs",
    "export/exchange.rs",
    "export/note.rs",
    "export/panics.rs",
    "export/request.rs",
    "lib.rs",
    "settings.rs",
    "testing.rs",
];
const ABI: &str = include_str!("../../abi/src/lib.rs");

/// Makes it below `folder`, or below the current folder by its name.
pub fn new(name: &str, language: Language, folder: Option<&Path>) -> Result<Made, String> {
    let is_name = name.len() <= 18
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|octet| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.ends_with('-');
    if !is_name {
        return Err(format!("{name:?}: a name begins with a letter and has at most 18 of a-z, 0-9 and -"));
    }
    let id = name.replace('-', "_");
    let mech = format!("X-{}", name.to_ascii_uppercase());
    let folder = folder.map_or_else(|| PathBuf::from(name), Path::to_owned);
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        return Err(format!("{}: exists already; choose another folder", folder.display()));
    }
    let type_name: String = name.split('-').map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect();
    let (build, library, files, steps) = match language {
        Language::Rust => (
            "cargo build --release",
            format!("target/release/libportreeve_{id}.so"),
            "`sdk/` and `abi/` are the SDK as it came with the program that made this folder; \
             `portreeve plugin new` of a later release brings later ones.",
            "      - run: cargo test\n      - run: cargo build --release",
        ),
        Language::C => (
            "make",
            format!("portreeve_{id}.so"),
            "`portreeve_plugin.h` is all that is needed from Portreeve, and says all that there is to know.",
            "      - run: make CC=gcc CFLAGS=-Werror\n      - run: make clean && make CC=clang CFLAGS=-Werror",
        ),
    };
    let fill = |template: &str| {
        [
            ("@NAME@", name),
            ("@ID@", &id),
            ("@MECH@", &mech),
            ("@TYPE@", &type_name),
            ("@BUILD@", build),
            ("@LIBRARY@", &library),
            ("@FILES@", files),
            ("@STEPS@", steps),
        ]
        .into_iter()
        .fold(template.to_owned(), |text, (from, to)| text.replace(from, to))
    };
    let write = |path: &str, text: String| {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(&folder);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|error| format!("{}: {error}", path.display()))
    };
    write("README.md", fill(include_str!("../templates/README.md.in")))?;
    write("vectors.json", fill(include_str!("../templates/vectors.json.in")))?;
    write("login.script", fill(include_str!("../templates/login.script.in")))?;
    write(".github/workflows/ci.yml", fill(include_str!("../templates/ci.yml.in")))?;
    match language {
        Language::C => {
            write(&format!("{id}.c"), fill(include_str!("../templates/c/plugin.c.in")))?;
            write("Makefile", fill(include_str!("../templates/c/Makefile.in")))?;
            write("portreeve_plugin.h", abi::HEADER.to_owned())?;
            write(".gitignore", "*.so\n".into())?;
        }
        Language::Rust => {
            write("Cargo.toml", fill(include_str!("../templates/rust/Cargo.toml.in")))?;
            write("src/lib.rs", fill(include_str!("../templates/rust/lib.rs.in")))?;
            write(".gitignore", "/target\n".into())?;
            write(
                "sdk/Cargo.toml",
                manifest("portreeve-plugin-sdk", "portreeve-plugin-abi = { path = \"../abi\" }\n"),
            )?;
            for (path, text) in SDK {
                // Its own tests stay where it is developed.
                let text = text.replace("\n#[cfg(test)]\nmod tests;\n", "\n");
                write(&format!("sdk/src/{path}"), format!("{LICENCE}{text}"))?;
            }
            write("abi/Cargo.toml", manifest("portreeve-plugin-abi", ""))?;
            write("abi/src/lib.rs", format!("{LICENCE}{ABI}"))?;
            write("abi/portreeve_plugin.h", abi::HEADER.to_owned())?;
        }
    }
    Ok(Made { folder, mech, id, build, library })
}

const LICENCE: &str = "// SPDX-License-Identifier: MIT OR Apache-2.0\n";

fn manifest(name: &str, dependencies: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2024\"\nlicense = \"MIT OR Apache-2.0\"\n\
         publish = false\n\n[dependencies]\n{dependencies}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_sdk_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/src");
        let files = |below: &str| -> Vec<String> {
            let entries = std::fs::read_dir(folder.join(below)).unwrap().map(|entry| entry.unwrap());
            let files = entries.filter(|entry| entry.path().is_file());
            files.map(|entry| format!("{below}{}", entry.file_name().into_string().unwrap())).collect()
        };
        let mut names = [files(""), files("export/")].concat();
        // Its own tests stay where it is developed.
        names.retain(|name| name != "export/tests.rs");
        names.sort();
        assert_eq!(names, SDK.iter().map(|(path, _)| *path).collect::<Vec<_>>(), "add the new file to SDK above");
    }

    #[test]
    fn names() {
        let folder = tempfile::tempdir().unwrap();
        let made = new("acme-token", Language::C, Some(&folder.path().join("a"))).unwrap();
        assert_eq!((made.id.as_str(), made.mech.as_str()), ("acme_token", "X-ACME-TOKEN"));
        for bad in ["", "Acme", "a_b", "1a", "a-", "../a", "a23456789012345678x"] {
            assert!(new(bad, Language::C, Some(&folder.path().join("b"))).is_err(), "{bad}");
        }
        assert!(new("x", Language::C, Some(&folder.path().join("a"))).unwrap_err().contains("exists"));
    }
}
