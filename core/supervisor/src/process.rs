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

pub(crate) struct Process {
    pub(crate) role: Role,
    /// Unique while the supervisor lives.
    pub(crate) instance: u32,
    /// Of workers; 0 for the others, which belong to none.
    pub(crate) generation: u32,
    /// Which worker of its generation; which edition of a library.
    pub(crate) index: usize,
    /// Whose mechanisms it runs.
    pub(crate) library: Option<String>,
    /// How a mechanism-host is locked up.
    pub(crate) sandbox: String,
    /// Links that it has to the directory.
    pub(crate) shards: u16,
    /// On the telemetry board.
    pub(crate) slot: usize,
    /// In the table of limits.
    pub(crate) row: Option<usize>,
    pub(crate) phase: Phase,
    pub(crate) started: Instant,
    /// When patience ends: SIGKILL.
    pub(crate) kill_at: Option<Instant>,
    /// When draining ends: Stop.
    pub(crate) stop_at: Option<Instant>,
    /// What it said before it went.
    pub(crate) failed: Option<String>,
    /// It was given a new configuration and may exit with 0 to be started with it.
    pub(crate) reconfigured: bool,
    /// It said who it is, and that is who we started.
    pub(crate) greeted: bool,
    link: Option<Link>,
    outbox: Outbox,
    child: Child,
    ended: OwnedFd,
}

/// What a process is started as.
pub(crate) struct Post {
    pub(crate) role: Role,
    pub(crate) instance: u32,
    pub(crate) generation: u32,
    pub(crate) index: usize,
    pub(crate) library: Option<String>,
    pub(crate) shards: u16,
    pub(crate) slot: usize,
    pub(crate) row: Option<usize>,
}

impl Process {
    pub(crate) fn start(options: &Options, post: Post) -> io::Result<Process> {
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
        if runs_library(post.role) {
            command.stderr(Stdio::null());
        }
        let child = sys::spawn(&mut command, theirs)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        let Post { role, instance, generation, index, library, shards, slot, row } = post;
        Ok(Process {
            role,
            instance,
            generation,
            index,
            library,
            sandbox: String::new(),
            shards,
            slot,
            row,
            phase: Phase::Starting,
            started: Instant::now(),
            kill_at: None,
            stop_at: None,
            failed: None,
            reconfigured: false,
            greeted: false,
            link: Some(ours),
            outbox: Outbox::new(OUTBOX_OCTETS_MAX),
            child,
            ended,
        })
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
