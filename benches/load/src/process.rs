//! What a server costs, read from /proc: processor time of all threads, private memory, context switches,
//! summed over a process and its descendants; and what we ourselves cost.

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
/// fork for each connection would cost nothing otherwise.
pub fn usage(root: u32) -> Usage {
    let mut usage = Usage::default();
    for pid in family(root) {
        usage.cpu += of_ended_children(pid);
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        usage.processes += 1;
        for task in tasks.flatten() {
            // First field: nanoseconds on a processor; far finer than the ticks of `stat`.
            let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            usage.cpu += Duration::from_nanos(number(&schedstat, 0));
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            for line in status.lines().filter(|line| line.contains("ctxt_switches")) {
                usage.context_switches += last_number(line);
            }
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if let Some(line) = status.lines().find(|line| line.starts_with("RssAnon")) {
            usage.anonymous_octets += last_number(line.trim_end_matches(" kB")) * 1024;
        }
    }
    usage
}

/// Time on a processor of children that have ended and were waited for, and of theirs.
fn of_ended_children(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `pid (name) state …`; the name may hold anything, so count from its end: cutime and cstime, in ticks.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = number(fields, 13) + number(fields, 14);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// The usage once it stands still: a server still closes sockets and writes its log after the last reply.
pub fn settled(root: u32) -> Usage {
    let mut last = usage(root);
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(20));
        let now = usage(root);
        if now.cpu.saturating_sub(last.cpu) < Duration::from_micros(200) {
            return now;
        }
        last = now;
    }
    last
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
}
