//! What the house promises about itself: imports point downwards, `unsafe` stands in a few named files, cited
//! RFCs are accounted for, dialogues and errors name no workplace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::root;

/// Crates from the ground up (DESIGN §4); each may use those of the lines above its own, and no others of
/// ours. A new crate begins with a place here.
const LAYERS: &[(&str, &[&str])] = &[
    ("ground", &["sasl", "link", "tls", "portreeve-plugin-abi"]),
    ("pure", &["smtp", "telemetry", "limits", "portreeve-plugin-sdk"]),
    (
        "parts",
        &["policy", "spool", "plugin-host", "backend", "portreeve-standard", "portreeve-legacy", "portreeve-gssapi"],
    ),
    ("processes", &["engine", "delivery", "supervisor", "conformance"]),
    ("program", &["portreeve"]),
    ("outside", &["benches", "portreeve-load", "load", "it"]),
    // Drives the load tool.
    ("comparison", &["peers"]),
];

/// The only files with `unsafe` in them.
const UNSAFE: [&str; 9] = [
    "core/link/src/sys.rs",
    "core/plugin-host/src/ffi.rs",
    "core/plugin-host/src/ffi/bound.rs",
    "core/plugin-host/src/ffi/describe.rs",
    "plugins/sdk/src/export.rs",
    "plugins/sdk/src/export/exchange.rs",
    "plugins/sdk/src/export/request.rs",
    "plugins/conformance/src/sandbox.rs",
    // Calls of a C library: each block says what that one asks for.
    "plugins/gssapi/src/gss.rs",
];

/// Files below `folder` with this ending.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !matches!(name.as_str(), "target" | ".git" | "node_modules") {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Every manifest of the workspace: package name, and what it names under `[dependencies]`.
fn manifests() -> BTreeMap<String, BTreeSet<String>> {
    let mut manifests = BTreeMap::new();
    for file in files(root(), "Cargo.toml").into_iter().filter(|file| file.parent() != Some(root())) {
        let text = fs::read_to_string(&file).expect("a manifest");
        let (mut section, mut name, mut uses) = (String::new(), String::new(), BTreeSet::new());
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(header) = line.strip_prefix('[') {
                section = header.trim_end_matches(']').to_owned();
                if let Some(dependency) = section.strip_prefix("dependencies.") {
                    uses.insert(dependency.to_owned());
                }
            } else if let Some((key, value)) = line.split_once('=') {
                let key = key.trim().trim_end_matches(".workspace").to_owned();
                match section.as_str() {
                    "package" if key == "name" => name = value.trim().trim_matches('"').to_owned(),
                    "dependencies" => drop(uses.insert(key)),
                    _ => {}
                }
            }
        }
        manifests.insert(name, uses);
    }
    manifests
}

#[test]
fn imports_point_downwards() {
    let manifests = manifests();
    let layer = |name: &str| LAYERS.iter().position(|(_, crates)| crates.contains(&name));
    let mut wrong = Vec::new();
    for (name, uses) in &manifests {
        let Some(own) = layer(name) else {
            // Fixtures and examples (plugins under test) are nobody's ground.
            if uses.iter().any(|used| layer(used).is_some() && !used.starts_with("portreeve-plugin")) {
                wrong.push(format!("{name} has no place in LAYERS"));
            }
            continue;
        };
        for used in uses.iter().filter(|used| manifests.contains_key(*used)) {
            if layer(used).is_none_or(|used| used >= own) {
                wrong.push(format!("{name} ({}) uses {used}: not a layer below its own", LAYERS[own].0));
            }
            let plugin = ["portreeve-standard", "portreeve-legacy", "portreeve-gssapi"].contains(&name.as_str());
            if plugin && used != "portreeve-plugin-sdk" {
                wrong.push(format!("{name} uses {used}: a plugin knows the SDK and nothing of core"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(manifests.len() >= 18, "only {} manifests found", manifests.len());
}

#[test]
fn the_pure_crates_know_no_sockets() {
    for package in ["sasl", "smtp", "policy"] {
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--edges", "normal", "--prefix", "none", "--offline", "--locked", "-p", package])
            .current_dir(root())
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo runs");
        assert!(tree.status.success(), "cargo tree -p {package}");
        let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
        assert!(tree.starts_with(package), "{tree}");
        for banned in ["mio", "rustls", "libloading", "serde", "libc", "rustix", "tokio", "link", "telemetry"] {
            let found = tree.lines().any(|line| line.split(' ').next() == Some(banned));
            assert!(!found, "{package} depends on {banned}:\n{tree}");
        }
    }
}

/// Source without comments and without what stands in quotes.
fn code(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        code.extend(line.split('"').step_by(2));
        code.push('\n');
    }
    code
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

#[test]
fn unsafe_stands_in_named_files() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for file in files(root(), ".rs") {
        let name = shown(&file);
        let text = fs::read_to_string(&file).expect("source");
        let code = code(&text);
        // Function types of the C ABI are `unsafe extern`; where the crate forbids unsafe code that is all they are.
        let home = file.ancestors().find(|folder| folder.join("Cargo.toml").exists()).expect("a crate");
        let forbidden =
            fs::read_to_string(home.join("src/lib.rs")).is_ok_and(|text| text.contains("#![forbid(unsafe_code)]"));
        let all: Vec<&str> = words(&code).filter(|word| !word.is_empty()).collect();
        if all.iter().zip(all.iter().skip(1)).any(|(word, next)| *word == "unsafe" && !(forbidden && *next == "extern"))
        {
            if UNSAFE.contains(&name.as_str()) {
                seen.insert(name.clone());
                // Each block carries its argument; clippy wants it there, this wants it not to be a dash.
                assert!(text.contains("SAFETY"), "{name}: unsafe without an argument");
            } else if !name.contains("/fixtures/") && !name.contains("bad-plugins") {
                wrong.push(format!("{name}: unsafe; it belongs into one of {UNSAFE:?}"));
            }
        }
        let owner = UNSAFE.iter().any(|file| name.starts_with(file.split("/src/").next().unwrap_or_default()));
        let crate_root = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
        if crate_root && !owner && !text.contains("#![forbid(unsafe_code)]") && !name.contains("/fixtures/") {
            wrong.push(format!("{name}: does not forbid unsafe code"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen.len(), UNSAFE.len(), "of {UNSAFE:?} only {seen:?} use it: shorten the list");
}

/// Numbers behind `RFC ` (and `, ` or `and ` between several).
fn cited(text: &str) -> BTreeSet<u32> {
    text.match_indices("RFC ")
        .filter_map(|(at, _)| {
            let digits: String = text[at + 4..].chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok().filter(|number| (100..100_000).contains(number))
        })
        .collect()
}

#[test]
fn cited_documents_are_accounted_for() {
    let Ok(conformance) = fs::read_to_string(root().join("docs/conformance.md")) else { return };
    let numbers: BTreeSet<&str> = conformance.split(|c: char| !c.is_ascii_digit()).collect();
    let mut missing: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for file in files(&root().join("core"), ".rs") {
        for number in cited(&fs::read_to_string(&file).expect("source")) {
            if !numbers.contains(number.to_string().as_str()) {
                missing.entry(number).or_default().push(shown(&file));
            }
        }
    }
    assert!(missing.is_empty(), "docs/conformance.md does not know: {missing:#?}");
}

/// Where this was written is nobody's business; nor may a test depend on it.
#[test]
fn no_path_of_a_workplace_is_named() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(listed) = listed.ok().filter(|listed| listed.status.success()) else { return };
    let banned = [concat!("/wo", "rk/"), concat!("/tmp/", "brief")];
    let mut wrong = Vec::new();
    for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|name| !name.is_empty()) {
        let text = fs::read(root().join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = banned.iter().find(|word| line.contains(**word)) {
                wrong.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_checks_would_notice() {
    assert!(words(&code("fn f() { unsafe { g() } }")).any(|word| word == "unsafe"));
    assert!(!words(&code("#![forbid(unsafe_code)] // unsafe\nlet a = \"unsafe\";")).any(|word| word == "unsafe"));
    assert_eq!(cited("RFC 5321 §4, RFC 6409"), BTreeSet::from([5321, 6409]));
}
