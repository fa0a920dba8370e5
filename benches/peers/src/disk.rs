//! What is between a server and its disk: how long a sync takes there, and how many a message costs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The disk of the queues.
pub struct Disk {
    pub kind: String,
    /// Of 4 KiB appended and synced, microseconds.
    pub sync_us: u64,
}

/// Syncs that were seen.
#[derive(Clone, Default)]
pub struct Syncs {
    pub messages: u64,
    /// By system call.
    pub calls: BTreeMap<String, u64>,
}

impl Syncs {
    pub fn each(&self) -> f64 {
        self.calls.values().sum::<u64>() as f64 / self.messages.max(1) as f64
    }

    pub fn words(&self) -> String {
        let calls =
            self.calls.iter().map(|(name, count)| format!("{name} {:.2}", *count as f64 / self.messages.max(1) as f64));
        let calls: Vec<String> = calls.collect();
        if calls.is_empty() { "none".to_owned() } else { calls.join(", ") }
    }
}

impl Disk {
    /// The disk under `folder`.
    pub fn look(folder: &Path) -> Result<Self, String> {
        let told = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(folder).map_err(told)?;
        let kind = Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output().map_err(told)?;
        let path = folder.join("sync-probe");
        let mut file = File::create(&path).map_err(told)?;
        let mut times = Vec::new();
        for _ in 0..50 {
            let began = Instant::now();
            file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).map_err(told)?;
            times.push(began.elapsed());
        }
        times.sort();
        let _ = fs::remove_file(path);
        let sync_us = times.get(times.len() / 2).copied().unwrap_or_default().as_micros() as u64;
        Ok(Self { kind: String::from_utf8_lossy(&kind.stdout).trim().to_owned(), sync_us })
    }
}

/// Calls that make something durable, and opens that make each write so.
const CALLS: &str = "fsync,fdatasync,sync,syncfs,sync_file_range,msync,openat";

/// Counts syncs of `pids` and what they start while `work` sends messages. strace makes everything slow, so nothing
/// else is measured meanwhile.
pub fn syncs(pids: Vec<u32>, work: impl FnOnce() -> Result<u64, String>) -> Result<Syncs, String> {
    let log = std::env::temp_dir().join(format!("portreeve-peers-{}.strace", std::process::id()));
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", &format!("trace={CALLS}"), "-o"]).arg(&log).args(["-p", &pids.join(",")]);
    let mut strace = strace
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("strace: {error}; without it nobody looks"))?;
    // Attached to all when each has a tracer.
    let until = Instant::now() + Duration::from_secs(10);
    let is_traced = |pid: &String| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.is_empty() || status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    while !pids.iter().all(is_traced) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let messages = work();
    if let Some(pid) = rustix::process::Pid::from_raw(strace.id() as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    let _ = strace.wait();
    let text = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    Ok(Syncs { messages: messages?, calls: count(&text) })
}

fn count(text: &str) -> BTreeMap<String, u64> {
    let mut calls = BTreeMap::new();
    for line in text.lines() {
        // `1234  fdatasync(7) = 0`, or `<unfinished ...>`; the rest of such a one is `<... fdatasync resumed>`.
        let call = line.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
        let Some((name, _)) = call.split_once('(') else { continue };
        let name = match name {
            "openat" if call.contains("O_SYNC") || call.contains("O_DSYNC") => "open for synced writing",
            "openat" => continue,
            name if name.starts_with("<...") => continue,
            name => name,
        };
        *calls.entry(name.to_owned()).or_default() += 1;
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_once() {
        let text = "10  fdatasync(7)                    = 0\n11  fsync(3 <unfinished ...>\n10  openat(AT_FDCWD, \"a\", O_RDONLY) = 3\n\
                    11  <... fsync resumed>)                = 0\n12  openat(AT_FDCWD, \"b\", O_WRONLY|O_DSYNC) = 4\n\
                    12  +++ exited with 0 +++\n10 fdatasync(7) = 0\n";
        let calls = count(text);
        let found: Vec<(&str, u64)> = calls.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(found, [("fdatasync", 2), ("fsync", 1), ("open for synced writing", 1)]);
        assert_eq!(Syncs { messages: 4, calls }.each(), 1.0);
    }
}
