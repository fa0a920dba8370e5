//! What a server costs, read from /proc: processor time of all threads, private memory, context switches,
//! summed over a process and its descendants; and what we ourselves cost.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// How many.
    pub processes: usize,
    /// Time on a processor, all threads.
    pub cpu: Duration,
    /// RssAnon, octets.
    pub anonymous_octets: u64,
    /// Voluntary and not.
    pub context_switches: u64,
}

/// Looks at a process and its descendants again and again: of those that end in between, what was seen last is kept.
/// /proc knows nothing more of them.
pub struct Watch {
    root: u32,
    /// Context switches of the threads that were there at the last look.
    seen: HashMap<u32, u64>,
    /// Of those that have ended, as far as they were seen.
    ended: u64,
}

impl Watch {
    /// Of `root` and everything below it.
    pub fn new(root: u32) -> Self {
        Self { root, seen: HashMap::new(), ended: 0 }
    }

    /// The usage now, with the context switches of threads that have ended since the first look.
    pub fn look(&mut self) -> Usage {
        let (mut usage, seen) = read(self.root);
        for (thread, before) in &self.seen {
            // With fewer than before it is another one of the same number.
            if seen.get(thread).is_none_or(|now| now < before) {
                self.ended += before;
            }
        }
        self.seen = seen;
        usage.context_switches += self.ended;
        usage
    }

    /// The usage once it stands still: a server still closes sockets and writes its log after the last reply.
    pub fn settle(&mut self) -> Usage {
        let mut last = self.look();
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.look();
            if now.cpu.saturating_sub(last.cpu) < Duration::from_micros(200) {
                return now;
            }
            last = now;
        }
        last
    }
}

/// `root` and everything below it.
pub fn family(root: u32) -> Vec<u32> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(&pid) = pids.get(next) {
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    pids
}

/// Reads the usage of `root` and its descendants, with what those have used that have ended since: servers that
/// fork for each connection would cost nothing otherwise. Context switches are only those of who is there.
pub fn usage(root: u32) -> Usage {
    read(root).0
}

/// See [`usage`]; and the context switches of each thread.
fn read(root: u32) -> (Usage, HashMap<u32, u64>) {
    let (mut usage, mut threads) = (Usage::default(), HashMap::new());
    for pid in family(root) {
        let (whole, ended_children) = ticks(pid);
        usage.cpu += ended_children;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        usage.processes += 1;
        let mut cpu = Duration::ZERO;
        for task in tasks.flatten() {
            // First field: nanoseconds on a processor; far finer than the ticks of `stat`.
            let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            cpu += Duration::from_nanos(number(&schedstat, 0));
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let switches = status.lines().filter(|line| line.contains("ctxt_switches")).map(last_number).sum();
            usage.context_switches += switches;
            if let Some(thread) = task.file_name().to_str().and_then(|name| name.parse().ok()) {
                threads.insert(thread, switches);
            }
        }
        // Threads that have ended are in the ticks of the process alone.
        usage.cpu += cpu.max(whole);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if let Some(line) = status.lines().find(|line| line.starts_with("RssAnon")) {
            usage.anonymous_octets += last_number(line.trim_end_matches(" kB")) * 1024;
        }
    }
    (usage, threads)
}

/// Time on a processor of a process, with its threads that have ended; and of its children that have ended and were
/// waited for, and of theirs.
fn ticks(pid: u32) -> (Duration, Duration) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `pid (name) state …`; the name may hold anything, so count from its end: utime, stime, cutime and cstime.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let per_second = rustix::param::clock_ticks_per_second().max(1) as f64;
    let sum = |place| Duration::from_secs_f64((number(fields, place) + number(fields, place + 1)) as f64 / per_second);
    (sum(11), sum(13))
}

/// The usage once it stands still; see [`Watch::settle`].
pub fn settled(root: u32) -> Usage {
    Watch::new(root).settle()
}

/// Time on a processor of this thread, and time that it waited for one.
pub fn own() -> (Duration, Duration) {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    (Duration::from_nanos(number(&schedstat, 0)), Duration::from_nanos(number(&schedstat, 1)))
}

/// Memory of the whole kernel's objects, octets: sockets, descriptors and what belongs to them. Of both ends,
/// when both are on this machine.
pub fn kernel_octets() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Slab:")).unwrap_or_default();
    last_number(line.trim_end_matches(" kB")) * 1024
}

fn number(text: &str, place: usize) -> u64 {
    text.split_whitespace().nth(place).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn last_number(line: &str) -> u64 {
    line.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_children_have_used_is_counted() {
        let before = usage(std::process::id());
        // Nothing but its own time: a loop in a shell that ends.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"])
            .spawn()
            .expect("a shell");
        assert!(child.wait().expect("our child").success());
        let own = |usage: Usage| usage.cpu.saturating_sub(before.cpu);
        let used = own(usage(std::process::id()));
        assert!(used >= Duration::from_millis(20), "{used:?}");
        assert!(family(std::process::id()).contains(&std::process::id()));
    }

    #[test]
    fn a_watch_keeps_what_it_saw_of_those_that_have_ended() {
        use std::io::{Read as _, Write as _};
        use std::process::Stdio;
        let mut child = std::process::Command::new("cat");
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
        let (mut to, mut from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        // It waits for each of them.
        for _ in 0..1000 {
            to.write_all(b"x").expect("it reads");
            from.read_exact(&mut [0]).expect("it writes");
        }
        // Of the child alone: the other tests of this process have threads that come and go.
        let mut watch = Watch::new(child.id());
        let there = watch.look().context_switches;
        assert!(there >= 1000, "{there}");
        drop(to);
        assert!(child.wait().expect("our child").success());
        assert_eq!(usage(child.id()).context_switches, 0);
        assert_eq!((watch.look().context_switches, watch.look().context_switches), (there, there));
    }

    #[test]
    fn what_ended_threads_have_used_is_counted() {
        let before = usage(std::process::id()).cpu;
        let used = std::thread::spawn(|| {
            while own().0 < Duration::from_millis(100) {
                std::hint::spin_loop();
            }
        });
        used.join().expect("it ends");
        let after = usage(std::process::id()).cpu.saturating_sub(before);
        assert!(after >= Duration::from_millis(70), "{after:?}");
    }
}
