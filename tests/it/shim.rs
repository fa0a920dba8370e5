//! CONTRACT C1 (T2) and C15: a shim inside the real processes, the program otherwise as it is. It stops a process before
//! its n-th operation on files and sockets, or makes system calls short, interrupted or late by chance.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::crash::{Load, delivered, send_many, until};
use crate::server::{Options, PATIENCE, Server, alone, output, root};

/// The shim, compiled once; `None` where it cannot be.
pub fn library() -> Option<&'static Path> {
    static MADE: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            eprintln!("skipped: the shim is written for Linux on x86-64");
            return None;
        }
        let folder = TempDir::with_prefix("portreeve-shim-").expect("a temporary folder");
        let library = folder.path().join("shim.so");
        let mut compile = Command::new("cc");
        compile.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"]);
        let (status, text) = output(compile.arg(&library).arg(root().join("tests/it/fixtures/shim.c")));
        assert!(status.success(), "{text}");
        Some((folder, library))
    });
    made.as_ref().map(|(_, library)| &**library)
}

/// What a server is given so that the shim does this.
pub fn environment(wish: &str) -> Vec<(String, String)> {
    let library = library().expect("the shim").display().to_string();
    vec![("LD_PRELOAD".to_owned(), library), ("PORTREEVE_SHIM".to_owned(), wish.to_owned())]
}

fn long() -> bool {
    std::env::var_os("PORTREEVE_LONG").is_some_and(|value| !value.is_empty())
}

/// Messages of one run; with the start of the process they come to about two hundred operations.
const MESSAGES: usize = 24;

/// Sends until so many are acknowledged, coming again whenever a connection ends.
fn send_until_acknowledged(server: &mut Server, next: &AtomicU64) -> BTreeSet<u64> {
    let (stop, ledger) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    let deadline = Instant::now() + PATIENCE;
    let acknowledged = || ledger.lock().expect("not poisoned").len();
    while acknowledged() < MESSAGES {
        assert!(Instant::now() < deadline, "{} of {MESSAGES} are acknowledged\n{}", acknowledged(), server.log());
        server.revive();
        // One connection sends what is left; whatever ends it, the next one goes on.
        let left = MESSAGES - acknowledged();
        if send_many(server.mx(), 1, &stop, &ledger, next, left).is_err() {
            std::thread::yield_now();
        }
    }
    ledger.into_inner().expect("not poisoned")
}

fn kill_everything(server: &mut Server) {
    let all: Vec<Pid> = server.processes().into_values().flatten().collect();
    server.signal(Signal::KILL);
    for pid in all {
        let _ = kill_process(pid, Signal::KILL); // it may have followed its supervisor already
    }
    server.wait();
}

/// Stops `role` before every `step`-th operation of a run, until a run ends without having come so far.
fn stop_before_each(role: &str, step: u64) {
    let _one = alone();
    let mut server = Server::prepare(Options::default());
    let next = AtomicU64::new(0);
    let (mut place, mut fired, mut acknowledged) = (1, 0, 0);
    loop {
        let once = server.path(&format!("fired-{place}"));
        server.set_environment(environment(&format!("role={role} at={place} once={}", once.display())));
        server.run_patiently();
        let ledger = send_until_acknowledged(&mut server, &next);
        acknowledged += ledger.len();
        let deadline = Instant::now() + PATIENCE;
        while !ledger.iter().all(|number| delivered(&server).contains_key(number)) {
            let late = Instant::now() > deadline;
            assert!(!late, "{role} stopped before operation {place}: not delivered\n{}", server.log());
            server.revive();
            std::thread::sleep(Duration::from_millis(5)); // between two looks, not instead of one
        }
        // A Maildir finds a second copy by its name (CONTRACT C4): there is none, whoever was stopped.
        let twice: Vec<u64> = delivered(&server).into_iter().filter(|(_, count)| *count > 1).map(|(n, _)| n).collect();
        assert!(twice.is_empty(), "{role} stopped before operation {place}: twice: {twice:?}");
        // Then everybody at once; the next run begins with what that leaves.
        kill_everything(&mut server);
        let folder = server.path("mail/demo.test/alice/new");
        for file in std::fs::read_dir(folder).expect("a Maildir").flatten() {
            std::fs::remove_file(file.path()).expect("a message of this run");
        }
        if !once.exists() {
            break;
        }
        fired += 1;
        place += step;
    }
    println!("{role} was stopped {fired} times, before operation {place} at the most; {acknowledged} acknowledged");
    // Fewer than without it when several messages share a sync.
    assert!(place >= 90, "{role}: a run has only {place} operations");
    // Nothing is left behind.
    server.set_environment(Vec::new());
    server.run();
    until("an empty queue", &server, || {
        let (status, said) = output(&mut server.command(&["queue", "stats", "--json"]));
        status.success() && serde_json::from_str::<serde_json::Value>(&said).is_ok_and(|said| said["messages"] == 0)
    });
}

fn step() -> u64 {
    if long() { 1 } else { 23 }
}

#[test]
fn a_worker_that_stops_before_any_operation_loses_nothing() {
    if library().is_some() {
        stop_before_each("worker", step());
    }
}

#[test]
fn a_delivery_that_stops_before_any_operation_loses_nothing() {
    if library().is_some() {
        stop_before_each("delivery", step());
    }
}

/// System calls are short, interrupted, told to come again: no client notices.
#[test]
fn short_interrupted_and_late_system_calls_change_nothing() {
    if library().is_none() {
        return;
    }
    let _one = alone();
    for seed in 0..if long() { 20 } else { 2 } {
        let mut server = Server::prepare(Options::default());
        server.set_environment(environment(&format!("role=* seed={seed} one_in={}", 3 + seed % 5)));
        server.run();
        let load = Load::start(server.mx(), 4);
        until(&format!("mail with seed {seed}"), &server, || load.acknowledged() >= 150);
        let (ledger, failures) = load.end_with_failures();
        assert!(failures.is_empty(), "seed {seed}: clients noticed: {failures:?}\n{}", server.log());
        until(&format!("delivery with seed {seed}"), &server, || {
            let found = delivered(&server);
            ledger.iter().all(|number| found.contains_key(number))
        });
        assert!(delivered(&server).values().all(|&count| count == 1), "seed {seed}");
        server.signal(Signal::TERM);
        assert!(server.wait().success(), "seed {seed}: {}", server.log());
    }
}
