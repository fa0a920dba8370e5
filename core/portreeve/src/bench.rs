//! `portreeve bench spool`: what a disk gives, as messages per second that are durable.
//!
//! Each writer is a thread that waits for its own message before it sends the next one, as a session does. The
//! ways (`ways.rs`) take turns with the same number of writers, so that a ratio compares what was measured
//! within seconds. Everything is written into a folder of our own, which goes when we go, also after a Ctrl-C.

pub mod sasl;
mod ways;

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spool::{Disk as _, RealDisk, Room};

use self::ways::Way;
use crate::cli::{BenchSpool, exit};
use crate::terminal;

/// Octets of a message's body.
const BODY_OCTETS: usize = 4096;
/// What the operator keeps in any case, and of a large disk.
const KEEP_OCTETS: u64 = 512 << 20;
const KEEP_OCTETS_MAX: u64 = 2 << 30;
/// Below this nothing can be measured.
const ROOM_OCTETS_MIN: u64 = 1 << 30;
/// Of a message on the disk, with what a file system needs for a file.
const MESSAGE_OCTETS: u64 = 16 << 10;
/// Messages of the recovery that is timed; fewer when a line of the table takes less than a second.
const RECOVERED: f64 = 100_000.0;

/// Runs the command.
pub fn spool(wish: &BenchSpool) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        if let Err(error) = signal_hook::flag::register(signal, stop.clone()) {
            return terminal::fail(exit::FAILURE, format!("bench spool: signals: {error}"));
        }
    }
    match run(wish, &stop) {
        Ok(()) if stop.load(Ordering::Relaxed) => terminal::fail(
            exit::INTERRUPTED,
            "bench spool: ended before everything was measured; nothing is left behind",
        ),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => terminal::fail(exit::FAILURE, format!("bench spool: {error}")),
    }
}

/// The folder in which everything happens.
struct Ground {
    path: PathBuf,
}

impl Ground {
    fn new(dir: &Path) -> Result<Self, String> {
        if !dir.is_dir() {
            return Err(format!("{}: no such folder; name one on the disk that is to be measured", dir.display()));
        }
        let path = dir.join(format!("portreeve-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path })
    }

    /// A new folder for one measurement.
    fn folder(&self) -> io::Result<PathBuf> {
        let path = self.path.join("now");
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&path)?,
        }
        Ok(path)
    }

    fn room(&self) -> Result<Room, String> {
        let room = RealDisk::open(&self.path).and_then(|disk| disk.room());
        room.map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// One line of the table.
struct Row {
    way: Way,
    writers: usize,
    messages: u64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
    syncs: f64,
    /// Against a file for each message, without the folder's sync, with as many writers.
    ratio: f64,
}

impl Row {
    fn line(&self) -> String {
        format!(
            "{:<38} {:>7} {:>11.0} {:>8.2} {:>8.2} {:>8.1} {:>10.3} {:>6.1}x\n",
            self.way.name(),
            self.writers,
            self.per_second,
            self.p50_ms,
            self.p99_ms,
            self.cpu_us,
            self.syncs,
            self.ratio
        )
    }

    fn json(&self) -> Value {
        json!({
            "way": self.way.name(), "writers": self.writers, "messages": self.messages,
            "messages_per_second": self.per_second, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms,
            "cpu_us_per_message": self.cpu_us, "syncs_per_message": self.syncs, "ratio": self.ratio,
        })
    }
}

fn run(wish: &BenchSpool, stop: &AtomicBool) -> Result<(), String> {
    let ground = Ground::new(&wish.dir)?;
    enough(ground.room()?, &wish.dir)?;
    if on_memory(&ground.path) {
        terminal::warn(format!(
            "{}: lies in memory (tmpfs); nothing that is written there is durable",
            wish.dir.display()
        ));
    }
    let head = format!(
        "4 KiB messages with envelope and checksum in {}, {} s each\n{:<38} {:>7} {:>11} {:>8} {:>8} {:>8} {:>10} {:>7}\n",
        wish.dir.display(),
        wish.seconds,
        "way",
        "writers",
        "messages/s",
        "p50 ms",
        "p99 ms",
        "CPU us",
        "syncs/msg",
        "ratio"
    );
    let say = |text: &str| {
        if !wish.json {
            let _ = terminal::print(text);
        }
    };
    say(&head);
    let steps = wish.writers.len() * Way::ALL.len() + 1;
    let mut rows: Vec<Row> = Vec::new();
    'all: for &writers in &wish.writers {
        let mut files = f64::NAN;
        for way in Way::ALL {
            if stop.load(Ordering::Relaxed) {
                break 'all;
            }
            let progress = Progress::new(rows.len(), steps, format!("{}, {writers} writers", way.name()));
            let mut row = measure(&ground, way, writers, wish, stop, &progress)?;
            drop(progress);
            if way == Way::Files {
                files = row.per_second;
            }
            row.ratio = row.per_second / files;
            say(&row.line());
            rows.push(row);
        }
    }
    let mut recovered = None;
    if !stop.load(Ordering::Relaxed) {
        let progress = Progress::new(rows.len(), steps, "recovery".to_owned());
        let messages = most(ground.room()?).min((RECOVERED * wish.seconds.min(1.0)) as u64);
        let folder = ground.folder().map_err(|error| said(&ground.path, &error))?;
        let took = ways::recovery(&folder, messages, &progress).map_err(|error| said(&folder, &error))?;
        drop(progress);
        say(&format!("{messages} messages are found again in {:.2} s after a crash\n", took.as_secs_f64()));
        recovered = Some(json!({ "messages": messages, "seconds": took.as_secs_f64() }));
    }
    if wish.json {
        let uname = rustix::system::uname();
        terminal::print(&format!(
            "{:#}\n",
            json!({
                "version": 1, "portreeve": env!("CARGO_PKG_VERSION"), "unix_ms": crate::control::unix_ms(),
                "dir": wish.dir.display().to_string(), "seconds": wish.seconds, "body_octets": BODY_OCTETS,
                "kernel": uname.release().to_string_lossy(), "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
                "cores": std::thread::available_parallelism().map_or(0, usize::from),
                "whole": !stop.load(Ordering::Relaxed),
                "rows": rows.iter().map(Row::json).collect::<Vec<_>>(), "recovery": recovered,
            })
        ));
    }
    Ok(())
}

fn measure(
    ground: &Ground,
    way: Way,
    writers: usize,
    wish: &BenchSpool,
    stop: &AtomicBool,
    progress: &Progress,
) -> Result<Row, String> {
    let folder = ground.folder().map_err(|error| said(&ground.path, &error))?;
    let time = Duration::from_secs_f64(wish.seconds);
    let limits = ways::Limits { writers, time, messages_max: most(ground.room()?), stop };
    let mut figures = way.run(&folder, &limits, progress).map_err(|error| said(&folder, &error))?;
    fs::remove_dir_all(&folder).map_err(|error| said(&folder, &error))?;
    figures.micros.sort_unstable();
    let messages = figures.micros.len() as f64;
    let rank = |share: f64| {
        let place = (messages * share) as usize;
        figures.micros.get(place).map_or(0.0, |&micros| f64::from(micros) / 1000.0)
    };
    Ok(Row {
        way,
        writers,
        messages: figures.micros.len() as u64,
        per_second: messages / figures.elapsed.as_secs_f64(),
        p50_ms: rank(0.5),
        p99_ms: rank(0.99),
        cpu_us: figures.cpu.as_micros() as f64 / messages,
        syncs: figures.syncs as f64 / messages,
        ratio: f64::NAN,
    })
}

/// Messages that may be written without anybody missing the room.
fn most(room: Room) -> u64 {
    let octets =
        room.octets_free.saturating_sub((room.octets / 20).clamp(KEEP_OCTETS, KEEP_OCTETS_MAX)) / MESSAGE_OCTETS;
    let inodes = if room.inodes == 0 { u64::MAX } else { room.inodes_free / 2 };
    octets.min(inodes)
}

fn enough(room: Room, dir: &Path) -> Result<(), String> {
    if room.octets_free < ROOM_OCTETS_MIN || most(room) < 10_000 {
        let mebibytes = room.octets_free >> 20;
        return Err(format!(
            "{}: {mebibytes} MiB and {} inodes are free, which is too little to measure with; make room, or name a folder on another disk",
            dir.display(),
            room.inodes_free
        ));
    }
    Ok(())
}

/// What went wrong, for the operator.
fn said(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("{}: the disk is full ({error}); make room, or shorten it with --seconds", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    }
}

/// Whether the folder lies on a tmpfs.
fn on_memory(path: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(TMPFS_MAGIC))
}

/// The line that says what is going on, when somebody looks: gone when dropped.
pub struct Progress {
    shown: bool,
    head: String,
    started: Instant,
    /// Tenths of seconds after the start when it was last written.
    last: AtomicU64,
}

impl Progress {
    fn new(step: usize, steps: usize, what: String) -> Self {
        let progress = Self {
            shown: io::stderr().is_terminal(),
            head: format!("{}/{steps} {what}", step + 1),
            started: Instant::now(),
            last: AtomicU64::new(u64::MAX),
        };
        progress.show(0);
        progress
    }

    /// So many messages so far; cheap, called by every writer.
    pub fn show(&self, messages: u64) {
        if !self.shown {
            return;
        }
        let now = self.started.elapsed().as_millis() as u64 / 100;
        if self.last.swap(now, Ordering::Relaxed) != now {
            let _ = write!(io::stderr(), "\r\x1b[K{}: {messages} messages, {}.{} s", self.head, now / 10, now % 10);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
