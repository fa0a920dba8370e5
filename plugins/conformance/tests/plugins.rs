//! Each bad plugin fails `check` with the rule that its first line names; the bundled ones, the examples and a
//! good one pass.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

const CHECKER: &str = env!("CARGO_BIN_EXE_plugin-check");

/// A library that this package's tests depend on.
fn bundled(id: &str) -> PathBuf {
    std::env::current_exe().unwrap().with_file_name(format!("libportreeve_{id}.so"))
}

fn compile(source: &Path, output: &Path) {
    let build = Command::new("cc")
        .args([
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-pthread",
        ])
        .arg("-I")
        .arg(root().join("plugins/abi"))
        .arg("-o")
        .args([output, source])
        .arg("-lcrypt")
        .output()
        .unwrap();
    assert!(build.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&build.stderr));
}

/// Findings, and the exit code.
fn check(library: &Path, seconds: &str) -> (Vec<Value>, Option<i32>) {
    let run = Command::new(CHECKER).arg(library).arg(seconds).output().unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (lines, run.status.code())
}

fn failures(lines: &[Value]) -> BTreeSet<String> {
    let failed = lines.iter().filter(|line| line["result"] == "fail");
    failed.map(|line| line["rule"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_bad_plugin_fails_with_its_rule() {
    let folder = tempfile::tempdir().unwrap();
    let mut sources: Vec<PathBuf> = std::fs::read_dir(root().join("tests/bad-plugins"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "c"))
        .collect();
    sources.sort();
    assert!(sources.len() >= 40, "{} fixtures", sources.len());
    let (next, wrong, seen) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let name = source.file_stem().unwrap().to_str().unwrap();
                    let library = folder.path().join(format!("{name}.so"));
                    compile(source, &library);
                    let text = std::fs::read_to_string(source).unwrap();
                    let expected = text.trim_start_matches("/* ").split(':').next().unwrap().to_owned();
                    let (lines, code) = check(&library, "0.4");
                    let failed = failures(&lines);
                    let good = match expected.as_str() {
                        "none" => failed.is_empty() && code == Some(0),
                        // Nothing else: who has broken one rule must not be sent after others.
                        rule => failed == BTreeSet::from([rule.to_owned()]) && code == Some(1),
                    };
                    if !good {
                        let told: Vec<String> = lines
                            .iter()
                            .filter(|line| line["result"] == "fail")
                            .map(|line| format!("{}: {}", line["rule"], line["text"]))
                            .collect();
                        wrong
                            .lock()
                            .unwrap()
                            .push(format!("{name}: {expected} expected, exit {code:?}, found {told:#?}"));
                    }
                    for line in lines.iter().filter(|line| line["result"] == "fail") {
                        assert!(line["remedy"].as_str().unwrap().len() > 20, "{line}");
                        assert!(line["text"].as_str().unwrap().len() > 5, "{line}");
                    }
                    seen.lock().unwrap().insert(expected);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // No rule without somebody who breaks it.
    let seen = seen.into_inner().unwrap();
    let missing: Vec<&str> =
        conformance::rules::RULES.iter().map(|rule| rule.id).filter(|id| !seen.contains(*id)).collect();
    assert!(missing.is_empty(), "no fixture for {missing:?}");
}

/// A Rust plugin that panics: contained as INTERNAL (P4), and refused when it would abort (A7).
#[test]
fn panics() {
    let folder = tempfile::tempdir().unwrap();
    for (strategy, expected) in [("unwind", "P4"), ("abort", "A7")] {
        let target = folder.path().join(strategy);
        let build = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--offline", "--manifest-path"])
            .arg(root().join("tests/bad-plugins/panics/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .env("CARGO_PROFILE_DEV_PANIC", strategy)
            .output()
            .unwrap();
        assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
        let (lines, code) = check(&target.join("debug/libpanics.so"), "0.4");
        assert!(failures(&lines).contains(expected) && code == Some(1), "{lines:#?}");
        if strategy == "unwind" {
            let text = lines.iter().find(|line| line["rule"] == "P4").unwrap()["text"].as_str().unwrap();
            assert!(text.contains("panic at src/lib.rs:"), "{text}");
        }
    }
}

#[test]
fn bundled_libraries_pass() {
    for id in ["standard", "legacy"] {
        let (lines, code) = check(&bundled(id), "0.6");
        let failed: Vec<&Value> = lines.iter().filter(|line| line["result"] == "fail").collect();
        assert!(failed.is_empty() && code == Some(0), "{id}: exit {code:?}, {failed:#?}, {} lines", lines.len());
        // A check that skips everything passes, too.
        let passed = |rule: &str| lines.iter().any(|line| line["rule"] == rule && line["result"] == "pass");
        for rule in conformance::rules::RULES {
            // Neither has back ends; the examples below do.
            let absent = rule.id.starts_with('B') || (rule.id == "P8" && id == "legacy");
            assert!(passed(rule.id) || absent, "{id}: nothing passed {}", rule.id);
        }
    }
}

/// The examples with back ends: B1 to B4 are decided for them, and hold.
#[test]
fn back_ends_of_the_examples_pass() {
    let folder = tempfile::tempdir().unwrap();
    let accounts = folder.path().join("accounts.so");
    compile(&root().join("plugins/examples/c-accounts/accounts.c"), &accounts);
    for (library, name) in [(accounts, "accounts"), (bundled("example_store"), "store")] {
        let (lines, code) = check(&library, "0.4");
        assert!(failures(&lines).is_empty() && code == Some(0), "{lines:#?}");
        for rule in ["D1", "B1", "B2", "B3", "B4"] {
            let passed = |line: &Value| line["rule"] == rule && line["mech"] == name && line["result"] == "pass";
            assert!(lines.iter().any(passed), "{rule} {name}: {lines:#?}");
        }
    }
}

#[test]
fn what_is_no_library_fails_by_name() {
    for (file, expected, code) in [("/bin/ls", "A1", 1), ("/etc/passwd", "A1", 1)] {
        let (lines, found) = check(Path::new(file), "0.2");
        assert!(failures(&lines).contains(expected) && found == Some(code), "{file}: {lines:#?}");
    }
    let (_, code) = check(Path::new("/nowhere/x.so"), "0.2");
    assert_eq!(code, Some(2));
}
