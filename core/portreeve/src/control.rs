//! The control process: writes the log, answers `portreeve status` and `reload`, serves figures.
//!
//! ```text
//! every process ──events──► log writer ──► standard error or files
//! portreeve status, reload ──JSON lines──► admin socket ──► supervisor, where only it can do it
//! Prometheus ──GET /metrics──► text from the shared pages
//! ```
//!
//! Unprivileged; parses what administrators and scrapers send, so that the supervisor need not. One thread
//! waits for all descriptors and never writes a file; a second one writes lines. When that one is stuck
//! (a full disk, a pipe that nobody reads) log records are dropped and counted, while audit records are left
//! in the links' queues, so that their senders see that they fill up and refuse new work (CONTRACT C36).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use link::message::{Message, messages};
use link::{Link, Outbox, Received, Role};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use telemetry::{Board, Counter, Event, Slot};

pub mod admin;
pub mod client;
mod logs;
mod metrics;

pub use logs::{Logs, Sink};
pub use metrics::Door;

use admin::Admin;
use metrics::Metrics;

/// What it needs to begin.
pub struct Control {
    /// To the supervisor.
    pub supervisor: Link,
    /// Processes that were there before us.
    pub peers: Vec<supervisor::child::Peer>,
    /// Everybody's numbers.
    pub board: Board,
    /// Our own.
    pub slot: Slot,
    /// Where lines go.
    pub logs: Logs,
    /// Where administrators come in.
    pub admin: UnixListener,
    /// Where scrapers come in.
    pub metrics: Option<metrics::Door>,
    /// What `status` says about the configuration.
    pub about: serde_json::Value,
    /// The same of a configuration that comes later.
    pub about_of: AboutOf,
}

/// From a configuration's octets to what `status` says about it.
pub type AboutOf = Box<dyn Fn(&[u8]) -> Option<serde_json::Value>>;

/// Another process whose events we write.
struct Source {
    link: Link,
    name: String,
    /// An audit record that the writer had no room for; nothing more is read from this link until it has.
    held: Option<String>,
}

/// How long what others still have to tell is waited for at the end.
const DRAIN: Duration = Duration::from_secs(1);

/// Ask at most so many packets of one link before the others get their turn.
const PACKETS_PER_TURN: usize = 64;

impl Control {
    /// Serves until the supervisor says that it is over, or is gone.
    pub fn run(self) -> io::Result<()> {
        let Control { supervisor, peers, board, slot, mut logs, admin, metrics, about, about_of } = self;
        let mut admin = Admin::new(admin, about)?;
        let mut metrics = metrics.map(Metrics::new).transpose()?;
        let mut to_supervisor = Outbox::new(1 << 20);
        let mut sources: HashMap<u64, Source> = HashMap::new();
        let mut next_source = 0u64;
        let mut add = |sources: &mut HashMap<u64, Source>, role: Role, instance: u32, link: Link| {
            next_source += 1;
            sources.insert(next_source, Source { link, name: format!("{role}[{instance}]"), held: None });
        };
        for peer in peers {
            add(&mut sources, peer.role, peer.instance, peer.link);
        }
        let mut packet = Vec::new();
        let mut draining: Option<Instant> = None;
        loop {
            let now = Instant::now();
            slot.heartbeat(unix_ms());
            for source in sources.values_mut() {
                if let Some(line) = source.held.take() {
                    source.held = logs.audit(line).err();
                }
            }
            ready(&supervisor, &to_supervisor, sources.values(), &admin, metrics.as_ref())?;

            // The supervisor: new links, answers, the end.
            let mut over = false;
            for _ in 0..PACKETS_PER_TURN {
                match supervisor.receive(&mut packet)? {
                    Received::WouldBlock => break,
                    Received::Closed => {
                        over = true;
                        break;
                    }
                    Received::Packet { fds } => {
                        for item in messages(&packet, fds) {
                            match item {
                                Ok((_, Message::Peer { role, instance, .. }, Some(fd))) => {
                                    add(&mut sources, role, instance, Link::from_fd(fd)?);
                                }
                                Ok((_, Message::Event(payload), _)) => {
                                    take_event(payload, "supervisor", &mut logs, &slot);
                                }
                                Ok((id, Message::AdminAnswer { ok, text }, _)) => {
                                    admin.answer(id, ok, text, || numbers(&board));
                                }
                                Ok((_, Message::Config, Some(fd))) => {
                                    let octets = link::sealed::read(fd.as_fd())?;
                                    if let Some(about) = about_of(&octets) {
                                        admin.set_about(about);
                                    }
                                }
                                Ok((_, Message::Drain { .. }, _)) => draining = draining.or(Some(now)),
                                Ok((_, Message::Stop, _)) => over = true,
                                Ok(_) => {}
                                Err(_) => slot.add(Counter::LinkBad, 1),
                            }
                        }
                    }
                }
            }

            // Everybody's events.
            sources.retain(|_, source| {
                let mut budget = PACKETS_PER_TURN;
                while source.held.is_none() && budget > 0 {
                    budget -= 1;
                    match source.link.receive(&mut packet) {
                        Ok(Received::Packet { fds }) => {
                            for item in messages(&packet, fds) {
                                match item {
                                    Ok((_, Message::Event(payload), _)) => {
                                        if let Some(line) = take_event(payload, &source.name, &mut logs, &slot) {
                                            source.held = Some(source.held.take().unwrap_or_default() + &line);
                                        }
                                    }
                                    Ok(_) => {}
                                    Err(_) => slot.add(Counter::LinkBad, 1),
                                }
                            }
                        }
                        Ok(Received::WouldBlock) => return true,
                        Ok(Received::Closed) | Err(_) => return source.held.is_some(),
                    }
                }
                true
            });

            logs.flush();

            // Administrators and scrapers.
            admin.turn(now, |id, request| {
                let message = Message::AdminRequest(request);
                let pushed = to_supervisor.push(message.kind(), id, |to| message.encode(to));
                pushed.map_err(|_| "the supervisor does not answer; try again".into())
            });
            if let Some(metrics) = &mut metrics {
                metrics.turn(now, || telemetry::exposition(&board));
            }
            let sent = to_supervisor.flush(&supervisor);
            over |= sent.is_err();
            // Draining ends when nobody is left who could still have something to tell.
            let done = |since: Instant| sources.is_empty() || now > since + DRAIN;
            if over || draining.is_some_and(done) {
                let last = Message::Drained;
                let _ = to_supervisor.push(last.kind(), 0, |to| last.encode(to));
                let _ = to_supervisor.flush(&supervisor);
                logs.finish();
                return Ok(());
            }
        }
    }
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Hands an event to the writer; gives an audit line back that it had no room for.
fn take_event(payload: &[u8], source: &str, logs: &mut Logs, slot: &Slot) -> Option<String> {
    match Event::decode(payload) {
        Ok(event) if event.audit => {
            let line = logs.render(&event, source);
            logs.audit(line).err()
        }
        Ok(event) => {
            if !logs.log(&event, source) {
                slot.add(Counter::LogDropped, 1);
            }
            None
        }
        Err(_) => {
            slot.add(Counter::LinkBad, 1);
            None
        }
    }
}

/// Waits until something can be done, at most a second (heartbeat, deadlines, held records).
fn ready<'a>(
    supervisor: &'a Link,
    to_supervisor: &Outbox,
    sources: impl Iterator<Item = &'a Source>,
    admin: &'a Admin,
    metrics: Option<&'a Metrics>,
) -> io::Result<()> {
    let mut interest: Vec<(BorrowedFd<'a>, PollFlags)> = Vec::new();
    let out = if to_supervisor.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
    interest.push((supervisor.as_fd(), PollFlags::IN | out));
    let mut wait = Duration::from_secs(1);
    for source in sources {
        if source.held.is_some() {
            wait = Duration::from_millis(50);
        } else {
            interest.push((source.link.as_fd(), PollFlags::IN));
        }
    }
    admin.interest(&mut interest);
    if let Some(metrics) = metrics {
        metrics.interest(&mut interest);
    }
    let mut fds: Vec<PollFd<'_>> = interest.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Everybody's numbers, with what the system counts for each process.
fn numbers(board: &Board) -> serde_json::Value {
    let mut numbers = telemetry::snapshot(board);
    for process in numbers["processes"].as_array_mut().into_iter().flatten() {
        let Some(pid) = process["pid"].as_u64() else { continue };
        if let Some((cpu_ms, memory_octets)) = usage(pid) {
            process["cpu_ms"] = json!(cpu_ms);
            process["memory_octets"] = json!(memory_octets);
        }
    }
    numbers
}

/// CPU time and resident memory of a process.
fn usage(pid: u64) -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, but ends with the last parenthesis; utime is the 14th field, rss the 24th.
    let fields: Vec<u64> =
        stat.rsplit_once(')')?.1.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    let ticks = fields.get(10)? + fields.get(11)?;
    let octets = fields.get(20)? * rustix::param::page_size() as u64;
    Some((ticks * 1000 / rustix::param::clock_ticks_per_second(), octets))
}

/// What `status` shows beside the numbers.
pub fn about(config: &crate::config::Config) -> serde_json::Value {
    let listeners: Vec<_> = config
        .listeners
        .iter()
        .map(|listener| {
            json!({
                "name": listener.name,
                "role": listener.role.name(),
                "bind": listener.bind.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "config": config.file.display().to_string(),
        "data_loss_allowed": config.allow_data_loss && config.loses_data(),
        "listeners": listeners,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_counts_for_us() {
        let (_, memory) = usage(u64::from(std::process::id())).unwrap();
        assert!((1 << 20..1 << 34).contains(&memory), "{memory}");
        assert_eq!(usage(u64::MAX), None);
    }
}
