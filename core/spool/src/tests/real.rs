//! On a disk of the operating system, with real processes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use super::{append_all, body, commit, id, port, quiet, recover, small_options};
use crate::{Floors, Follower, Hooks, Message, Options, RealDisk, Writer};

#[test]
fn one_delivery_process_per_spool() {
    let folder = tempfile::tempdir().unwrap();
    let disk = || Arc::new(RealDisk::open(folder.path()).unwrap());
    let first = Follower::open(disk(), quiet()).unwrap();
    let second = Follower::open(disk(), quiet()).map(drop).unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    Follower::open(disk(), quiet()).unwrap();
}

#[test]
fn files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("spool");
    let writer = Writer::open(Arc::new(RealDisk::open(&root).unwrap()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    commit(&inbox, &port, 1, 20_000).unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    let home = std::fs::read_dir(&root).unwrap().next().unwrap().unwrap().path();
    assert_eq!(mode(&home), 0o700);
    for file in std::fs::read_dir(home).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
}

/// Prints; what the machine can do is not for a test to judge.
#[test]
fn throughput_on_a_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(folder.path()).unwrap());
    let options =
        Options { floors: Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 }, ..Options::default() };
    let writer = Writer::open(disk.clone(), options, Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    let (messages, window, body) = (20_000, 256, body(1, 4096));
    let started = Instant::now();
    for ticket in 0..messages {
        let mut entry = port.begin(id(ticket), None).unwrap();
        append_all(&inbox, &mut entry, &body);
        port.commit(entry, b"envelope", b"prepend", ticket);
        if ticket >= window {
            inbox.wait(ticket - window).unwrap();
        }
    }
    (messages - window..messages).for_each(|ticket| inbox.wait(ticket).unwrap());
    println!("{:.0} durable 4 KiB messages/s, {window} waiting", messages as f64 / started.elapsed().as_secs_f64());
    drop((port, writer));
    let started = Instant::now();
    let mut follower = Follower::open(disk, quiet()).unwrap();
    let mut message = Message::default();
    let mut found = 0;
    while follower.next(&mut message) {
        found += 1;
    }
    println!("{found} messages recovered in {:?}", started.elapsed());
    assert_eq!(found, messages);
}

const KILL_FOLDER: &str = "PORTREEVE_SPOOL_KILL_FOLDER";
const KILL_ROUND: &str = "PORTREEVE_SPOOL_KILL_ROUND";

/// The process that is killed below: writes, and says on its standard output what was acknowledged.
#[test]
fn child_that_is_killed() {
    let (Ok(folder), Ok(round)) = (std::env::var(KILL_FOLDER), std::env::var(KILL_ROUND)) else { return };
    let disk = Arc::new(RealDisk::open(folder.as_ref()).unwrap());
    let options = Options { segment_octets: 1 << 20, ..small_options() };
    let writer = Writer::open(disk, options, Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    let first = round.parse::<u64>().unwrap() * 1_000_000;
    for number in first.. {
        let mut entry = port.begin(id(number), None).unwrap();
        let octets = if number % 50 == 0 { 300_000 } else { 1000 };
        append_all(&inbox, &mut entry, &body(number, octets));
        port.commit(entry, b"envelope", b"prepend", number);
        // Eight are always under way.
        if number >= first + 8 {
            inbox.wait(number - 8).unwrap();
            // Past the test harness's own capture.
            let line = format!("\nACK {}\n", number - 8);
            if std::io::stdout().write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    }
}

#[test]
fn what_was_acknowledged_outlives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for (round, until) in [1, 40, 333, 1000, 77].into_iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::real::child_that_is_killed", "--nocapture"])
            .env(KILL_FOLDER, folder.path())
            .env(KILL_ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ack = |line: std::io::Result<String>| line.ok()?.strip_prefix("ACK ")?.parse::<u64>().ok();
        let mut heard = 0;
        while heard < until {
            let line = lines.next().expect("the child ended by itself");
            if let Some(number) = ack(line) {
                acknowledged.insert(id(number));
                heard += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died counts.
        acknowledged.extend(lines.filter_map(ack).map(id));
    }
    let found = recover(Arc::new(RealDisk::open(folder.path()).unwrap())).unwrap();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains_key(id)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acknowledged.len());
    assert!(acknowledged.len() >= 1451);
}
