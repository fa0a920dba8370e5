//! The commands that measure, small: each does its work to the end, without an error of a session, and writes its record.
//! What they measure here, of a build for tests beside other tests, means nothing: a bar that is missed is none of ours.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::server::program;

/// Runs one; its record, and whether it ended with 0.
fn measure(name: &str, with: &[&str]) -> (Value, bool) {
    let out = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program().with_file_name(name));
    command.args(with).arg("--out").arg(out.path()).arg("--bin").arg(program().parent().expect("its folder"));
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{name}: {}: {said}", output.status);
    let records = std::fs::read_dir(out.path()).expect("the folder").flatten().map(|file| file.path());
    let (data, tables): (Vec<_>, Vec<_>) = records.partition(|path| path.extension().is_some_and(|end| end == "json"));
    assert!(data.len() == 1 && tables.iter().any(|path| path.extension().is_some_and(|end| end == "md")), "{said}");
    let text = std::fs::read_to_string(&data[0]).expect("its record");
    (serde_json::from_str(&text).expect("JSON"), output.status.success())
}

/// Whether we may have a network of our own.
fn may_have_a_network() -> bool {
    let unshare = Command::new("unshare").args(["--net", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    let may = Path::new("/usr/bin/unshare").exists() && unshare.is_ok_and(|status| status.success());
    if !may {
        eprintln!("left out: a network of our own needs root and the right to make one");
    }
    may
}

#[test]
fn idle_crowds_by_the_hundred() {
    if !may_have_a_network() {
        return;
    }
    let small = ["--plain", "0,300", "--tls", "200", "--workers", "2", "--rate", "20", "--duration", "2"];
    let (record, well) = measure("million", &small);
    assert!(well, "all are held: {record:#}");
    assert_eq!(record["runs"].as_array().expect("runs").len(), 3);
    let small = ["--exchanges", "200", "--workers", "2"];
    let (record, _) = measure("parked", &small);
    assert_eq!(record["exchanges"], 200, "{record:#}");
}

#[test]
fn a_pair_of_some_ratios() {
    let rows = ["connect", "tls-login", "submit", "idle"];
    let small = ["--pairs", "1", "--scale", "0.01", "--sessions", "200", "--server-core", "0", "--load-core", "0"];
    let (record, _) = measure("ratios", &[&small[..], &["--rows", &rows.join(",")]].concat());
    let measured = record["rows"].as_array().expect("rows");
    assert_eq!((measured.len(), &record["not_measured"]), (rows.len(), &Value::Array(Vec::new())), "{record:#}");
}

#[test]
fn a_round_of_handing_on() {
    let small = ["--rounds", "1", "--messages", "200", "--few", "40", "--concurrency", "4", "--without", "postfix"];
    let (record, _) = measure("handon", &[&small[..], &["--server-core", "0", "--load-core", "0"]].concat());
    let ways = record["ways"].as_array().expect("ways");
    assert_eq!(ways.len(), 4, "{record:#}");
    assert!(ways.iter().all(|way| way["samples"][0]["cpu_us"].as_f64() > Some(0.0)), "{record:#}");
}
