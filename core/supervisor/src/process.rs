//! One child, as the supervisor sees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use link::message::Message;
use link::{Link, Outbox, Role, sys};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::child::{ROLE_ARGUMENT, ids_argument};
use crate::plan::Options;

/// Start-up messages of a worker with many listeners and shards; descriptors are not counted.
const OUTBOX_OCTETS_MAX: usize = 8 << 20;

/// A child that is not ready by then never will be.
const START_SECONDS: u64 = 120;

/// From Stop, or from the end of its link, to SIGKILL.
const STOP_SECONDS: u64 = 5;

/// Whether processes of this role run one library of a stranger.
pub(crate) fn runs_library(role: Role) -> bool {
    matches!(role, Role::MechanismHost | Role::BackendHost)
}

/// How far a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Ready,
    /// Asked to finish; its end is expected from here on.
    Draining,
    Stopping,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

/// A place that some process should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Post {
    pub(crate) role: Role,
    /// Of a worker; the edition of a library; 0 for the others, of which there is one each.
    pub(crate) generation: u32,
    /// Which worker of its generation; 0 for the others.
    pub(crate) index: usize,
}

impl Post {
    pub(crate) fn singleton(role: Role) -> Post {
        Post { role, generation: 0, index: 0 }
    }

    pub(crate) fn worker(generation: u32, index: usize) -> Post {
        Post { role: Role::Worker, generation, index }
    }

    /// Of an edition's number, which no other edition ever has.
    pub(crate) fn library(role: Role, edition: u32) -> Post {
        Post { role, generation: edition, index: 0 }
    }

    /// Whether who holds it runs one library of a stranger.
    pub(crate) fn runs_library(&self) -> bool {
        runs_library(self.role)
    }
}

/// What a process has beside its post, from its start on.
pub(crate) struct Outfit {
    /// Unique while the supervisor lives.
    pub(crate) instance: u32,
    /// Whose mechanisms or back ends it runs.
    pub(crate) library: Option<String>,
    /// Event loops of a worker; each has links of its own.
    pub(crate) shards: u16,
    /// On the telemetry board.
    pub(crate) slot: usize,
    /// In the table of limits.
    pub(crate) row: Option<usize>,
}

pub(crate) struct Process {
    pub(crate) post: Post,
    pub(crate) outfit: Outfit,
    /// How a process that runs a library is locked up.
    pub(crate) sandbox: String,
    pub(crate) phase: Phase,
    pub(crate) started: Instant,
    /// What it said before it went.
    pub(crate) failed: Option<String>,
    /// It was given a new configuration and may exit with 0 to be started with it.
    pub(crate) reconfigured: bool,
    /// It said who it is, and that is who we started.
    pub(crate) greeted: bool,
    /// When draining ends: Stop.
    stop_at: Option<Instant>,
    /// When patience ends: SIGKILL.
    kill_at: Option<Instant>,
    link: Option<Link>,
    outbox: Outbox,
    child: Child,
    ended: OwnedFd,
}

impl Process {
    pub(crate) fn start(options: &Options, post: Post, outfit: Outfit) -> io::Result<Process> {
        let (ours, theirs) = Link::pair()?;
        let mut command = Command::new(&options.program);
        command.args(&options.arguments).args([ROLE_ARGUMENT, post.role.name()]);
        if let Some(ids) = &options.ids {
            command.arg(ids_argument(ids));
        }
        command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name == "RUST_BACKTRACE" || name == "TZ"));
        command.stdin(Stdio::null());
        // Only the log writer has something to say there; panics and plugins have standard error.
        if post.role != Role::Control {
            command.stdout(Stdio::null());
        }
        // A stranger's code has nothing to say on the operator's terminal; its log comes another way.
        if post.runs_library() {
            command.stderr(Stdio::null());
        }
        let child = sys::spawn(&mut command, theirs)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Process {
            post,
            outfit,
            sandbox: String::new(),
            phase: Phase::Starting,
            started: Instant::now(),
            failed: None,
            reconfigured: false,
            greeted: false,
            stop_at: None,
            kill_at: None,
            link: Some(ours),
            outbox: Outbox::new(OUTBOX_OCTETS_MAX),
            child,
            ended,
        })
    }

    pub(crate) fn role(&self) -> Role {
        self.post.role
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Queues a message; what does not fit any more goes to a child that reads nothing, and patience with it
    /// is bounded elsewhere.
    pub(crate) fn say(&mut self, message: &Message<'_>, fd: Option<OwnedFd>) {
        self.answer(0, message, fd);
    }

    pub(crate) fn answer(&mut self, id: u64, message: &Message<'_>, fd: Option<OwnedFd>) {
        let fds = fd.into_iter().collect();
        if self.outbox.push_with(message.kind(), id, fds, |to| message.encode(to)).is_err() {
            // Nothing but events may be lost; a child that misses anything else is not what we think it is.
            if !matches!(message, Message::Event(_)) {
                self.kill_at = Some(Instant::now());
            }
        }
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self) {
        if let Some(link) = &self.link
            && self.outbox.flush(link).is_err()
        {
            // It hears nothing any more. Its last words may still be in the link.
            self.outbox = Outbox::new(OUTBOX_OCTETS_MAX);
            self.patience(Duration::from_secs(STOP_SECONDS));
        }
    }

    /// The other end is closed: it is dying, or has a moment to do so.
    pub(crate) fn hang_up(&mut self) {
        self.link = None;
        self.patience(Duration::from_secs(STOP_SECONDS));
    }

    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Readable when the process has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    pub(crate) fn has_more_to_send(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Accept nothing new, finish what was begun.
    pub(crate) fn drain(&mut self, seconds: u32, seconds_max: u32) {
        if matches!(self.phase, Phase::Starting | Phase::Ready) {
            self.phase = Phase::Draining;
            self.say(&Message::Drain { seconds }, None);
        }
        let stop_at = Instant::now() + Duration::from_secs(u64::from(seconds_max));
        self.stop_at = Some(self.stop_at.map_or(stop_at, |earlier| earlier.min(stop_at)));
    }

    /// Exit now.
    pub(crate) fn stop(&mut self) {
        if self.phase != Phase::Stopping {
            self.phase = Phase::Stopping;
            self.say(&Message::Stop, None);
            self.patience(Duration::from_secs(STOP_SECONDS));
        }
    }

    pub(crate) fn patience(&mut self, left: Duration) {
        let kill_at = Instant::now() + left;
        self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
    }

    /// When it must be looked at next, if it does nothing by itself.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.stop_at.into_iter().chain(self.kill_at).min()
    }

    /// Does what is due: patience with a start, a drain, a stop ends.
    pub(crate) fn look_at_clock(&mut self, now: Instant) {
        if self.stop_at.is_some_and(|at| at <= now) {
            self.stop_at = None;
            self.stop();
        }
        if self.phase == Phase::Starting && self.started.elapsed().as_secs() >= START_SECONDS {
            self.failed = Some(format!("not ready after {START_SECONDS} seconds"));
            self.kill();
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            // Its end is seen through its descriptor; asking again would change nothing.
            self.kill_at = None;
            self.failed.get_or_insert_with(|| "it did not go when it had to and was killed".to_owned());
            self.kill();
        }
    }

    /// Whether this end is what it was asked for.
    pub(crate) fn was_to_end(&self, status: ExitStatus) -> bool {
        matches!(self.phase, Phase::Draining | Phase::Stopping) || self.reconfigured && status.code() == Some(0)
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// How it ended, if it has.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn end(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }

    /// Cause of death, for people.
    pub(crate) fn cause(&self, status: ExitStatus) -> String {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => {
                let name = match signal {
                    4 => " (SIGILL)",
                    6 => " (SIGABRT)",
                    7 => " (SIGBUS)",
                    9 => " (SIGKILL: out of memory, or killed by hand)",
                    11 => " (SIGSEGV)",
                    14 if self.phase == Phase::Starting => {
                        " (SIGALRM: a library did not come to an end while it was loaded)"
                    }
                    14 => " (SIGALRM: a step did not end)",
                    15 => " (SIGTERM)",
                    31 => " (SIGSYS: a system call that the sandbox forbids)",
                    _ => "",
                };
                format!("signal {signal}{name}")
            }
            (None, None) => "unknown".to_owned(),
        };
        match &self.failed {
            Some(text) => format!("{text} ({how})"),
            None if self.phase == Phase::Starting && status.code() == Some(101) => {
                format!("{how}: it panicked at start")
            }
            None => how,
        }
    }
}
