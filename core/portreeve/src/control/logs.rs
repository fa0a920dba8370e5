//! Where lines go: rendered here, written by a thread of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use telemetry::{Event, Level};

/// Where one kind of lines goes.
#[derive(Clone, Debug)]
pub enum Sink {
    /// Standard error.
    Stderr,
    /// Appended to a file, which is opened again when it was moved away.
    File(PathBuf),
}

/// Renders and hands over lines.
pub struct Logs {
    level: Level,
    human: bool,
    colour: bool,
    /// Audit records have a file of their own, always JSON.
    audit_apart: bool,
    /// Lines of this turn, in order; they go to the writer together.
    log_lines: String,
    audit_lines: String,
    to_writer: Option<SyncSender<Lines>>,
    writer: Option<JoinHandle<()>>,
}

enum Lines {
    Log(String),
    Audit(String),
}

/// Log lines that may wait here while the writer is behind, octets; audit lines may have as much again.
const WAITING_OCTETS_MAX: usize = 256 * 1024;
/// Batches that may wait for the writer.
const BATCHES_MAX: usize = 8;

/// How often a file is looked at, and at most how long a line waits to be flushed.
const LOOK: Duration = Duration::from_secs(1);

impl Logs {
    /// Opens the sinks and starts the writer.
    pub fn open(level: Level, human: bool, colour: bool, log: Sink, audit: Option<Sink>) -> Result<Logs, String> {
        let audit_apart = audit.is_some();
        let mut log = Output::open(log)?;
        let mut audit = audit.map(Output::open).transpose()?;
        let (to_writer, lines) = sync_channel(BATCHES_MAX);
        let writer = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&lines, &mut log, audit.as_mut()))
            .map_err(|error| format!("no thread for the log: {error}"))?;
        let (log_lines, audit_lines, to_writer, writer) = (String::new(), String::new(), Some(to_writer), Some(writer));
        Ok(Logs { level, human, colour, audit_apart, log_lines, audit_lines, to_writer, writer })
    }

    /// An event as a line for its sink.
    pub fn render(&self, event: &Event<'_>, source: &str) -> String {
        if self.human && !(event.audit && self.audit_apart) {
            event.human(source, self.colour)
        } else {
            event.json(source)
        }
    }

    /// Takes a log record; `false` when it was dropped because the writer is behind.
    pub fn log(&mut self, event: &Event<'_>, source: &str) -> bool {
        if event.level < self.level {
            return true;
        }
        if self.log_lines.len() >= WAITING_OCTETS_MAX {
            self.flush();
            if !self.log_lines.is_empty() {
                return false;
            }
        }
        let line = self.render(event, source);
        self.log_lines.push_str(&line);
        true
    }

    /// Takes an audit line, or gives it back when the writer is behind.
    pub fn audit(&mut self, line: String) -> Result<(), String> {
        let (waiting, octets_max) = match self.audit_apart {
            true => (&self.audit_lines, WAITING_OCTETS_MAX),
            false => (&self.log_lines, WAITING_OCTETS_MAX * 2),
        };
        if waiting.len() >= octets_max {
            self.flush();
        }
        let waiting = if self.audit_apart { &mut self.audit_lines } else { &mut self.log_lines };
        if waiting.len() >= octets_max {
            return Err(line);
        }
        waiting.push_str(&line);
        Ok(())
    }

    /// Hands what has come to the writer; what it has no room for waits here. At the end of each turn.
    pub fn flush(&mut self) {
        let Some(to_writer) = &self.to_writer else { return };
        for (lines, kind) in [
            (&mut self.log_lines, Lines::Log as fn(String) -> Lines),
            (&mut self.audit_lines, Lines::Audit as fn(String) -> Lines),
        ] {
            if lines.is_empty() {
                continue;
            }
            match to_writer.try_send(kind(std::mem::take(lines))) {
                Ok(()) => {}
                Err(TrySendError::Full(Lines::Log(text) | Lines::Audit(text)))
                | Err(TrySendError::Disconnected(Lines::Log(text) | Lines::Audit(text))) => *lines = text,
            }
        }
    }

    /// Writes what waits, as far as that works within a second.
    pub fn finish(&mut self) {
        let until = Instant::now() + Duration::from_secs(1);
        self.flush();
        while !(self.log_lines.is_empty() && self.audit_lines.is_empty()) && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
            self.flush();
        }
        self.to_writer = None;
        let Some(writer) = self.writer.take() else { return };
        while !writer.is_finished() && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

fn write_lines(lines: &Receiver<Lines>, log: &mut Output, mut audit: Option<&mut Output>) {
    let mut looked = Instant::now();
    loop {
        let first = lines.recv_timeout(LOOK);
        if looked.elapsed() >= LOOK {
            log.look();
            audit.iter_mut().for_each(|audit| audit.look());
            looked = Instant::now();
        }
        let first = match first {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match (first, &mut audit) {
            (Lines::Audit(text), Some(audit)) => audit.write(&text),
            (Lines::Log(text) | Lines::Audit(text), _) => log.write(&text),
        }
    }
}

/// A sink that is open.
enum Output {
    Stderr,
    File { path: PathBuf, file: File },
}

impl Output {
    fn open(sink: Sink) -> Result<Output, String> {
        match sink {
            Sink::Stderr => Ok(Output::Stderr),
            Sink::File(path) => match append(&path) {
                Ok(file) => Ok(Output::File { path, file }),
                Err(error) => Err(format!("{}: cannot be opened for the log: {error}", path.display())),
            },
        }
    }

    /// A line that cannot be written is tried again: the file may have been moved, the disk may get room.
    /// Meanwhile the queue fills, and its users see that.
    fn write(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let outcome = match self {
                Output::Stderr => io::stderr().lock().write(rest),
                Output::File { file, .. } => file.write(rest),
            };
            match outcome {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody will ever read it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
                Err(_) => {
                    std::thread::park_timeout(LOOK);
                    self.look();
                }
            }
        }
    }

    /// Opens the file again when its name means another file by now.
    fn look(&mut self) {
        let Output::File { path, file } = self else { return };
        let inode = |meta: io::Result<std::fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
        if inode(std::fs::metadata(&*path)) != inode(file.metadata())
            && let Ok(fresh) = append(path)
        {
            *file = fresh;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("portreeve-logs-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn levels_formats_and_a_file_of_its_own_for_audit() {
        let dir = folder("kinds");
        let (log, audit) = (dir.join("log"), dir.join("audit"));
        let sinks = (Sink::File(log.clone()), Some(Sink::File(audit.clone())));
        let mut logs = Logs::open(Level::Info, true, false, sinks.0, sinks.1).unwrap();
        assert!(logs.log(&Event::log("shown", Level::Info, 0), "worker[1]"));
        assert!(logs.log(&Event::log("hidden", Level::Debug, 0), "worker[1]"));
        let login = Event::audit("login", 0).untrusted("authcid", &b"eve\n{\"event\":\"forged\"}"[..]);
        let line = logs.render(&login, "worker[1]");
        logs.audit(line).unwrap();
        logs.finish();
        let (log, audit) = (std::fs::read_to_string(log).unwrap(), std::fs::read_to_string(audit).unwrap());
        assert!(log.contains("shown") && !log.contains("hidden") && !log.contains("login"), "{log}");
        assert_eq!(audit.lines().count(), 1, "{audit}");
        let record: serde_json::Value = serde_json::from_str(&audit).unwrap();
        assert_eq!(record["event"], "login");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_sink_that_nobody_reads_gives_audit_lines_back_and_drops_log_lines() {
        let dir = folder("stuck");
        let fifo = dir.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        // Open for both, so that opening does not wait; nobody reads.
        let reader = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let mut logs = Logs::open(Level::Info, false, false, Sink::File(fifo.clone()), None).unwrap();
        let big = Event::log("x", Level::Info, 0).untrusted("pad", vec![b'x'; 1000]);
        let dropped = (0..6000).filter(|_| !logs.log(&big, "t")).count();
        assert!(dropped > 1000, "{dropped}");
        // Audit lines have room of their own behind the log lines; then they are given back.
        let line = "line\n".repeat(1000);
        let taken = (0..1000).take_while(|_| logs.audit(line.clone()).is_ok()).count();
        assert!((1..100).contains(&taken), "{taken}");
        drop(reader);
        logs.finish();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
