//! `portreeve bench spool`, as an operator runs it. What the disk can do is not for a test to judge.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

fn bench(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
    command.args(["bench", "spool", "--dir"]).arg(folder).args(arguments);
    command
}

#[test]
fn the_table_is_whole_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let run = bench(folder.path(), &["--seconds", "0.1", "--writers", "1,8", "--json"]).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let told: Value = serde_json::from_slice(&run.stdout).unwrap();
    let rows = told["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 10);
    for row in rows {
        for figure in ["messages", "messages_per_second", "p50_ms", "p99_ms", "cpu_us_per_message", "ratio"] {
            assert!(row[figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {row}");
        }
        let (way, syncs) = (row["way"].as_str().unwrap(), row["syncs_per_message"].as_f64().unwrap());
        match way {
            "file + fsync + rename" | "one log, fdatasync per message" | "the same, zero-filled: the bare disk" => {
                assert_eq!(syncs, 1.0, "{row}")
            }
            "file + fsync + rename + fsync of folder" => assert_eq!(syncs, 2.0, "{row}"),
            _ => assert!(way == "spool" && syncs > 0.0, "{row}"),
        }
    }
    assert!(told["recovery"]["messages"].as_u64().is_some_and(|messages| messages >= 10_000), "{told}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // The same for people.
    let run = bench(folder.path(), &["--seconds", "0.05", "--writers", "2"]).output().unwrap();
    let table = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success() && table.lines().count() == 8, "{table}");
    assert!(run.stderr.is_empty(), "no progress line without a terminal");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut child =
        bench(folder.path(), &["--seconds", "600"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Its first message is there.
    let begun = || {
        let ours = std::fs::read_dir(folder.path()).unwrap().flatten().next()?;
        std::fs::read_dir(ours.path().join("now")).ok()?.flatten().next()
    };
    while begun().is_none() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = bench(&folder.path().join("nowhere"), &[]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(1));
    assert!(said.contains("nowhere: no such folder"), "{said}");
    for bad in [&["--seconds", "0"][..], &["--writers", "0"], &["--writers", "x"]] {
        assert_eq!(bench(folder.path(), bad).output().unwrap().status.code(), Some(2), "{bad:?}");
    }
}
