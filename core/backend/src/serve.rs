//! The directory process: one loop over the links to the workers, beside threads that check passwords and
//! one that watches the users file.
//!
//! ```text
//! worker ⇄ link ─ question ─┬─ recipient, sender, stored key ─ answered in the loop ─┐
//! worker ⇄ link ─           ├─ password ─ pool ─ bell ───────────────────────────────┤
//! worker ⇄ link ─           ├─ bearer token ─ pool of its own, which may wait ─ bell ┤
//! worker ⇄ link ─           └─ effect for a library's back end ─ broker ⇄ its process ┴─ outbox of that link
//! supervisor ⇄ control link ─ the caller's closure: new links, stop
//! ```
//!
//! Each link has its own bounded outbox, sent once per turn. A worker that does not read its answers is not
//! read from either, and holds up nobody else.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use link::backend::Reply;
use link::directory::{ANSWER, QUESTION, Question};
use link::message::Message;
use link::{Frame, Link, Outbox, Received, frames};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::broker::{Broker, Ended, Now, Refusal, Spec};
use crate::decoy::Decoys;
use crate::directory::{Directory, Epoch, temporary};
use crate::event::{Event, Report};
use crate::pool::{Pool, Ticket};
use crate::scheme::StoredSecret;
use crate::token::Tokens;
use crate::users::{BadUsers, Options};
use crate::watch::{self, Watch};

#[cfg(test)]
mod tests;

/// Unsent answers of one link, octets.
const OUTBOX_OCTETS_MAX: usize = 4 * 1024 * 1024;
/// Packets taken from one link before the next link has its turn.
const PACKETS_PER_TURN: usize = 16;
/// Questions about tokens that wait for other servers at the same time.
const TOKEN_THREADS: usize = 16;

/// What the directory process is made from.
pub struct Config {
    /// The users file.
    pub path: PathBuf,
    /// How to read it.
    pub options: Options,
    /// Keys for users who do not exist.
    pub decoys: Decoys,
    /// What passwords of users who do not exist are checked against; see [`Directory::new`].
    pub decoy_secret: Option<StoredSecret>,
    /// Threads that check passwords; 0: one per core.
    pub threads: usize,
    /// Questions that may wait for them.
    pub queue_max: usize,
    /// Longest that a question may wait for them.
    pub wait_max: Duration,
    /// Who can tell whose a bearer token is.
    pub issuers: Vec<crate::token::Issuer>,
    /// Back ends of libraries.
    pub backends: Vec<Spec>,
}

impl Config {
    /// Everything by default, with `decoy_secret` as it stands in the fleet's `secrets/`.
    pub fn new(path: PathBuf, decoy_secret: [u8; 32]) -> Self {
        Self {
            path,
            options: Options::default(),
            decoys: Decoys::new(decoy_secret, Vec::new()),
            decoy_secret: None,
            threads: 0,
            queue_max: 4096,
            wait_max: Duration::from_secs(2),
            issuers: Vec::new(),
            backends: Vec::new(),
        }
    }
}

/// Why the directory could not start.
#[derive(Debug)]
pub enum StartError {
    /// The users file is bad.
    Users(BadUsers),
    /// The system gave no thread or descriptor.
    Io(io::Error),
    /// An issuer of tokens cannot be used.
    Tokens(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Users(bad) => bad.fmt(f),
            Self::Tokens(why) => f.write_str(why),
            Self::Io(error) => write!(f, "directory: {error}; raise the limits on threads and open files"),
        }
    }
}

impl std::error::Error for StartError {}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Questions answered or put in the queue.
    pub questions: u64,
    /// Questions turned away because the queue was full.
    pub refused: u64,
    /// Frames of unknown kinds.
    pub unknown: u64,
    /// Frames whose payload made no sense.
    pub damaged: u64,
    /// Answers that a worker did not take.
    pub dropped: u64,
    /// Questions in the queue now.
    pub queued: u64,
}

/// What the loop tells the closure of [`Service::run`].
pub enum Control<'a> {
    /// A packet from the supervisor.
    Packet {
        /// Its octets.
        octets: &'a [u8],
        /// Descriptors that came with it.
        fds: Vec<OwnedFd>,
    },
    /// The supervisor is gone.
    Closed,
    /// About a second has passed.
    Tick,
}

/// The directory process.
pub struct Service {
    directory: Arc<Directory>,
    pools: Pools,
    broker: Broker,
    links: Vec<Peer>,
    links_so_far: u64,
    counts: Counts,
    report: Report,
    supervisor: Outbox,
    /// Ends its thread when dropped.
    _watcher: Watcher,
}

/// Where questions go that take long.
struct Pools {
    passwords: Pool,
    /// They wait for other servers, and must not keep passwords waiting; without issuers there are none.
    tokens: Option<Pool>,
}

impl Pools {
    fn queued(&self) -> usize {
        self.passwords.queued() + self.tokens.as_ref().map_or(0, Pool::queued)
    }
}

struct Peer {
    key: u64,
    link: Link,
    outbox: Outbox,
}

impl Service {
    /// Reads the users file and starts the threads. Raises the epoch: whatever workers remember is from
    /// before this process.
    pub fn new(config: Config, epoch: Arc<dyn Epoch>, report: Report) -> Result<Self, StartError> {
        let started = Instant::now();
        let (path, options) = (config.path.clone(), Arc::new(config.options));
        let (watch, users) = Watch::open(config.path, options, report.clone()).map_err(StartError::Users)?;
        let (count, aliases) = (users.len(), users.aliases());
        let epoch_now = epoch.raise();
        let tokens = Tokens::new(config.issuers, report.clone()).map_err(StartError::Tokens)?;
        let directory = Directory::new(users, config.decoys, config.decoy_secret, epoch).with_tokens(tokens);
        let directory = Arc::new(directory);
        let ms = started.elapsed().as_millis() as u64;
        report(&Event::Loaded { path, users: count, aliases, ms, epoch: epoch_now });
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let pool = |name, threads| Pool::start(name, &directory, threads, config.queue_max, config.wait_max, &report);
        let passwords = pool("password", threads).map_err(StartError::Io)?;
        let tokens = directory.knows_tokens().then(|| pool("token", TOKEN_THREADS)).transpose();
        let tokens = tokens.map_err(StartError::Io)?;
        let watcher = Watcher::start(watch, directory.clone()).map_err(StartError::Io)?;
        Ok(Self {
            directory,
            pools: Pools { passwords, tokens },
            broker: Broker::new(config.backends, report.clone()),
            links: Vec::new(),
            links_so_far: 0,
            counts: Counts::default(),
            report,
            supervisor: Outbox::new(OUTBOX_OCTETS_MAX),
            _watcher: watcher,
        })
    }

    /// Serves one more worker.
    pub fn add_link(&mut self, link: Link) {
        self.links_so_far += 1;
        self.links.push(Peer { key: self.links_so_far, link, outbox: Outbox::new(OUTBOX_OCTETS_MAX) });
    }

    /// A process that runs the back ends of `library` is there. What workers remember is from before it.
    pub fn add_library(&mut self, library: &str, generation: u32, link: Link) {
        self.broker.connect(library, generation, link);
        self.directory.forget();
    }

    /// How many workers are served.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        Counts { queued: self.pools.queued() as u64, ..self.counts }
    }

    /// The users and what is told about them.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Says something to the supervisor; sent at the end of the turn.
    pub fn say(&mut self, kind: u16, id: u64, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), link::Full> {
        self.supervisor.push(kind, id, write)
    }

    /// Serves until `on` breaks. `on` hears of everything that comes over `control`.
    pub fn run(
        &mut self,
        control: Link,
        mut on: impl FnMut(Control<'_>, &mut Service) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut packet = Vec::new();
        let mut tick = Instant::now() + TICK;
        loop {
            self.wait(&control, tick)?;
            for _ in 0..PACKETS_PER_TURN {
                let heard = match control.receive(&mut packet)? {
                    Received::WouldBlock => break,
                    Received::Packet { fds } => on(Control::Packet { octets: &packet, fds }, self),
                    // Without a supervisor there is nobody who could stop us later.
                    Received::Closed => {
                        let _ = on(Control::Closed, self);
                        return Ok(());
                    }
                };
                link::wipe(&mut packet);
                if heard.is_break() {
                    let _ = self.supervisor.flush(&control);
                    return Ok(());
                }
            }
            if Instant::now() >= tick {
                tick = Instant::now() + TICK;
                if on(Control::Tick, self).is_break() {
                    let _ = self.supervisor.flush(&control);
                    return Ok(());
                }
            }
            self.turn(&mut packet);
            self.supervisor.flush(&control)?;
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self, control: &Link, until: Instant) -> io::Result<()> {
        let with_output = |outbox: &Outbox| if outbox.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut fds = Vec::with_capacity(self.links.len() + 8);
        fds.push(PollFd::new(control, PollFlags::IN | with_output(&self.supervisor)));
        fds.push(PollFd::new(&self.pools.passwords, PollFlags::IN));
        fds.extend(self.pools.tokens.iter().map(|pool| PollFd::new(pool, PollFlags::IN)));
        for peer in &self.links {
            // Whoever does not take answers may not ask.
            let flags = if peer.outbox.is_empty() { PollFlags::IN } else { PollFlags::OUT };
            fds.push(PollFd::new(&peer.link, flags));
        }
        for (link, unsent) in self.broker.interest() {
            fds.push(PollFd::new(link, PollFlags::IN | if unsent { PollFlags::OUT } else { PollFlags::empty() }));
        }
        let mut wait = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        if let Some(next_ms) = self.broker.next_ms() {
            wait = wait.min(Duration::from_millis(next_ms.saturating_sub(link::monotonic_ms()) + 1));
        }
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what came, answers, sends.
    fn turn(&mut self, packet: &mut Vec<u8>) {
        let dropped = self.counts.dropped;
        let (links, counts) = (&mut self.links, &mut self.counts);
        let now = now();
        let (directory, pools, broker) = (&self.directory, &mut self.pools, &mut self.broker);
        for pool in std::iter::once(&mut pools.passwords).chain(&mut pools.tokens) {
            pool.collect(|ticket, answer| {
                if let Some(peer) = links.iter_mut().find(|peer| peer.key == ticket.link) {
                    peer.answer(ticket.id, counts, |to| to.extend_from_slice(answer));
                }
            });
        }
        self.links.retain_mut(|peer| {
            let served = peer.serve(directory, pools, (broker, now), counts, packet);
            if let Err(Some(why)) = &served {
                (self.report)(&Event::LinkBroken { why: why.to_string() });
            }
            served.is_ok()
        });
        self.broker.turn(now);
        self.answer_outside(now);
        if self.counts.dropped > dropped {
            (self.report)(&Event::AnswersDropped { total: self.counts.dropped });
        }
    }
}

impl Service {
    /// Answers what back ends of libraries have answered, or have not in time.
    fn answer_outside(&mut self, now: Now) {
        for Ended { ticket, backend, question, reply } in self.broker.take_ended() {
            let Ok(Question::Backend { effect, .. }) = Question::decode(question.expose()) else { continue };
            let Some(spec) = self.broker.spec(backend) else { continue };
            let reply = reply.as_ref().and_then(|octets| Reply::decode(octets.expose()).ok());
            let mut answer = zeroize::Zeroizing::new(Vec::new());
            let looked_at = self.directory.outside(spec, &effect, reply.as_ref(), &mut answer);
            if let Err(fault) = looked_at {
                self.broker.broken(backend, fault, now);
            }
            if let Some(peer) = self.links.iter_mut().find(|peer| peer.key == ticket.link) {
                peer.answer(ticket.id, &mut self.counts, |to| to.extend_from_slice(&answer));
                // The worker should not wait for the next turn of the loop; what does not fit goes then.
                let _ = peer.outbox.flush(&peer.link);
            }
        }
        for (library, generation) in self.broker.take_stuck() {
            let message = Message::Stuck { id: &library, generation };
            let _ = self.supervisor.push(message.kind(), 0, |to| message.encode(to));
        }
    }
}

/// Both clocks.
fn now() -> Now {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Now { ms: link::monotonic_ms(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
}

impl Peer {
    /// One turn of one link. `Err`: the link is over, and why, if its peer did not simply close it.
    fn serve(
        &mut self,
        directory: &Directory,
        pools: &mut Pools,
        (broker, now): (&mut Broker, Now),
        counts: &mut Counts,
        packet: &mut Vec<u8>,
    ) -> Result<(), Option<io::Error>> {
        for _ in 0..PACKETS_PER_TURN {
            // Before reading on, so that a peer that does not take answers stops being read.
            if !self.outbox.flush(&self.link).map_err(gone)? {
                return Ok(());
            }
            match self.link.receive(packet).map_err(gone)? {
                Received::WouldBlock => return Ok(()),
                Received::Closed => return Err(None),
                Received::Packet { .. } => {}
            }
            let heard = frames(packet).try_for_each(|frame| {
                self.question(frame?, directory, pools, (broker, now), counts);
                Ok(())
            });
            link::wipe(packet);
            heard.map_err(|bad: link::BadPacket| Some(bad.into()))?;
        }
        self.outbox.flush(&self.link).map_err(gone).map(drop)
    }

    fn question(
        &mut self,
        frame: Frame<'_>,
        directory: &Directory,
        pools: &mut Pools,
        (broker, now): (&mut Broker, Now),
        counts: &mut Counts,
    ) {
        if frame.kind != QUESTION {
            counts.unknown += 1;
            return;
        }
        let Ok(question) = Question::decode(frame.payload) else {
            counts.damaged += 1;
            return;
        };
        counts.questions += 1;
        match question {
            Question::VerifyPassword { client_ip, .. }
            | Question::FetchKey { client_ip, .. }
            | Question::VerifyExternal { client_ip, .. }
            | Question::VerifyToken { client_ip, .. }
            | Question::Asserted { client_ip, .. }
                if directory.is_heavy(&question) =>
            {
                let pool = match (&question, &mut pools.tokens) {
                    (Question::VerifyToken { .. }, Some(tokens)) => tokens,
                    _ => &mut pools.passwords,
                };
                let ticket = Ticket { link: self.key, id: frame.id };
                if !pool.offer(ticket, client_ip, frame.payload) {
                    counts.refused += 1;
                    self.answer(frame.id, counts, |to| temporary(&question, to));
                }
            }
            Question::Backend { .. } => {
                let ticket = Ticket { link: self.key, id: frame.id };
                match broker.ask(ticket, frame.payload, now) {
                    Ok(()) => {}
                    Err(Refusal::Temporary) => {
                        counts.refused += 1;
                        self.answer(frame.id, counts, |to| temporary(&question, to));
                    }
                    // The directory itself has no back end for it, either.
                    Err(Refusal::Unsupported) => self.answer(frame.id, counts, |to| directory.answer(&question, to)),
                }
            }
            _ => self.answer(frame.id, counts, |to| directory.answer(&question, to)),
        }
    }

    fn answer(&mut self, id: u64, counts: &mut Counts, write: impl FnOnce(&mut Vec<u8>)) {
        if self.outbox.push(ANSWER, id, write).is_err() {
            counts.dropped += 1;
        }
    }
}

/// A worker that ended is no trouble of ours.
fn gone(error: io::Error) -> Option<io::Error> {
    let quiet = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
    (!quiet).then_some(error)
}

const TICK: Duration = Duration::from_secs(1);

/// The thread that watches the users file.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn start(mut watch: Watch, directory: Arc<Directory>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("users-watch".to_owned()).spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                std::thread::park_timeout(watch::INTERVAL);
                watch.check(&directory);
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
