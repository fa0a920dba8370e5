//! Where a server is kept while it is measured: a control group, which knows what all its processes have cost
//! (also those that have ended), and a mount namespace for programs whose folders are built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portreeve_load::ground::Running;
use portreeve_load::process;
use rustix::process::{Pid, Signal, kill_process};

/// A server that runs; ended when dropped, with all its processes.
pub struct Caged {
    running: Option<Running>,
    pid: u32,
    group: Option<Group>,
}

/// A control group of our own.
struct Group {
    folder: PathBuf,
    /// Version 2, where processor time stands in `cpu.stat`.
    unified: bool,
}

/// Where control groups with processor time are, and whether they are of version 2.
fn hierarchy() -> Option<(&'static Path, bool)> {
    let unified = Path::new("/sys/fs/cgroup");
    let first = Path::new("/sys/fs/cgroup/cpuacct");
    if first.join("cgroup.procs").exists() {
        return Some((first, false));
    }
    unified.join("cgroup.controllers").exists().then_some((unified, true))
}

impl Group {
    fn new(name: &str) -> Option<Self> {
        let (root, unified) = hierarchy()?;
        let folder = root.join(format!("portreeve-peers-{}-{name}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        Some(Self { folder, unified })
    }

    fn cpu(&self) -> Option<Duration> {
        if !self.unified {
            let text = fs::read_to_string(self.folder.join("cpuacct.usage")).ok()?;
            return text.trim().parse().ok().map(Duration::from_nanos);
        }
        let text = fs::read_to_string(self.folder.join("cpu.stat")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        line.trim().parse().ok().map(Duration::from_micros)
    }

    fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// A command that begins in a private mount namespace in which some folders and files are others.
pub fn in_folders(binds: &[(&Path, &str)], program: &Path) -> Command {
    let mut script = String::new();
    for (ours, theirs) in binds {
        script += &format!("mount --bind '{}' '{theirs}' && ", ours.display());
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{script}exec \"$@\""), "sh"]);
    command.arg(program);
    command
}

impl Caged {
    /// Starts `command`; what it says goes to a file.
    pub fn start(name: &str, command: &Command, said: &Path) -> Result<Self, String> {
        let group = Group::new(name);
        let mut inside = match &group {
            // The shell enters the group and becomes the program: nobody of it is ever outside.
            Some(group) => {
                let mut shell = Command::new("sh");
                let procs = group.folder.join("cgroup.procs");
                shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs).arg(command.get_program());
                shell
            }
            None => Command::new(command.get_program()),
        };
        inside.args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(key, value),
                None => inside.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        let log = fs::File::create(said).map_err(|error| format!("{}: {error}", said.display()))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let running = Running::start(inside.stdin(Stdio::null()).stdout(log).stderr(errors))?;
        let pid = running.id();
        Ok(Self { running: Some(running), pid, group })
    }

    /// Of the first process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the first process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.running.as_mut().is_none_or(Running::has_ended)
    }

    /// How its cost is known.
    pub fn how(&self) -> &'static str {
        if self.group.is_some() {
            "control group"
        } else {
            "/proc, processes that live and children that were waited for"
        }
    }

    /// All processes.
    pub fn pids(&self) -> Vec<u32> {
        self.group.as_ref().map_or_else(|| process::family(self.pid), Group::pids)
    }

    fn cpu(&self) -> Duration {
        let of_group = self.group.as_ref().and_then(Group::cpu);
        of_group.unwrap_or_else(|| process::usage(self.pid).cpu)
    }

    /// What it has used once it stands still: servers go on for a while after their last reply.
    pub fn settled_cpu(&self) -> Duration {
        let mut last = self.cpu();
        let mut calm = 0;
        let until = Instant::now() + Duration::from_secs(5);
        while calm < 5 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.cpu();
            calm = if now.saturating_sub(last) < Duration::from_micros(500) { calm + 1 } else { 0 };
            last = now;
        }
        last
    }
}

impl Drop for Caged {
    fn drop(&mut self) {
        // The first one ends its children, where it can.
        self.running = None;
        let Some(group) = &self.group else { return };
        // Who has left the family is still in the group; nobody else ever was.
        let until = Instant::now() + Duration::from_secs(5);
        for signal in [Signal::TERM, Signal::KILL] {
            let signalled = group.pids();
            for pid in signalled.iter().filter_map(|&pid| Pid::from_raw(pid as i32)) {
                let _ = kill_process(pid, signal);
            }
            while !group.pids().is_empty() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
