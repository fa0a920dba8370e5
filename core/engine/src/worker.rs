//! The worker from outside: starting its shards, telling them things, waiting for their end.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hmac::KeyInit;
use link::Link;
use mio::Poll;
use plugin_host::RemoteLibrary;
use spool::Completions;

use crate::budget::Budget;
use crate::cache::{Addresses, Passwords};
use crate::entropy::Entropy;
use crate::inbox::Inbox;
use crate::local::Local;
use crate::now::Now;
use crate::passing::Passing;
use crate::questions::Questions;
use crate::setup::{Notice, Setup, Socket};
use crate::shard::{Beginning, INBOX, Mail, Shard};
use crate::shared::Shared;
use crate::slab::Token;
use crate::steps::Steps;
use crate::watch::Watch;

/// Event loops that serve listeners.
pub struct Worker;

/// A running worker. Dropped, it stops.
pub struct Handle {
    shared: Arc<Shared>,
    shards: Vec<Inbox<Mail>>,
    threads: Vec<JoinHandle<()>>,
    /// Finishes what was committed when the last shard is gone.
    spool: Option<spool::Writer>,
}

/// A worker in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions now.
    pub sessions: u64,
    /// Octets of partial input and unsent replies now.
    pub parts_octets: usize,
    /// Sessions ended by a panic so far.
    pub panics: u64,
}

/// Why a worker did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// Something of the operating system is missing.
    Io {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        cause: io::Error,
    },
    /// A listener wants TLS and was given none.
    TlsMissing {
        /// Its name.
        listener: String,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, cause } => write!(f, "worker: {what}: {cause}"),
            Self::TlsMissing { listener } => {
                write!(f, "listener {listener}: TLS is on, but there is no certificate; name one, or set tls = \"off\"")
            }
        }
    }
}

impl std::error::Error for StartError {}

impl Worker {
    /// Starts one thread per shard. Returns when all doors are open.
    pub fn start(setup: Setup) -> Result<Handle, StartError> {
        let shards = setup.shards.max(1);
        let mut ports = setup.ports;
        let mut sockets: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
        for (number, port) in ports.iter_mut().enumerate() {
            if port.listener.tls != smtp::listener::Tls::Off && port.tls.is_none() {
                return Err(StartError::TlsMissing { listener: port.listener.name.clone() });
            }
            for Socket { shard, fd } in std::mem::take(&mut port.sockets) {
                if let Some(sockets) = sockets.get_mut(shard % shards) {
                    sockets.push((number as u16, fd));
                }
            }
        }
        let passwords = Passwords::new(setup.bounds.password_cache_ms)
            .map_err(|cause| StartError::Io { what: "random numbers", cause: io::Error::other(cause) })?;
        let account_key = KeyInit::new_from_slice(setup.account_key.expose()).expect("HMAC takes a key of any length");
        let counters = || (0..shards).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            ports,
            passwords,
            budget: Budget::new(setup.bounds.parts_octets_max),
            limits: setup.limits,
            account_key,
            notify: setup.notify,
            passes: setup.passes,
            beats: counters(),
            sessions: counters(),
            panics: AtomicU64::new(0),
        });

        let mut handle = Handle { shared, shards: Vec::new(), threads: Vec::new(), spool: None };
        let living = Arc::new(AtomicUsize::new(shards));
        let mut links = setup.directory.into_iter();
        let mut ways = setup.delivery.into_iter();
        for (number, sockets) in sockets.into_iter().enumerate() {
            let poll = Poll::new().map_err(|cause| StartError::Io { what: "epoll", cause })?;
            let token = mio::Token(Token::outside(INBOX).word() as usize);
            let inbox =
                Inbox::new(poll.registry(), token).map_err(|cause| StartError::Io { what: "eventfd", cause })?;
            let now = Now::first();
            let mut entropy = Entropy::new();
            let session_base = u64::from_le_bytes(entropy.take());
            let local = Local {
                now,
                number,
                questions: Questions::new(links.next(), setup.bounds.questions_max, now.ms),
                steps: Steps::new(setup.bounds.questions_max),
                passing: Passing::new(ways.next(), setup.bounds.questions_max, now.ms),
                addresses: Addresses::new(setup.bounds.addresses_max),
                entropy,
                spool: setup.spool.port(Arc::new(Results(inbox.clone()))),
                watch: Watch::new(setup.counts.clone(), setup.events.clone()),
                envelope: Vec::new(),
                effect_ms: 0,
                secret: false,
                authenticated: false,
                queued: false,
                session_base,
                spare: Vec::new(),
            };
            if let Some(beat) = handle.shared.beats.get(number) {
                beat.store(now.unix_ms, Ordering::Relaxed);
            }
            let shard = Shard::new(Beginning {
                poll,
                inbox: inbox.clone(),
                shared: Arc::clone(&handle.shared),
                local,
                sockets,
                slots_max: setup.sessions_max.div_ceil(shards).max(1),
            })
            .map_err(|cause| StartError::Io { what: "watching the listening sockets", cause })?;
            handle.shards.push(inbox);
            let (shared, living) = (Arc::clone(&handle.shared), Arc::clone(&living));
            let work = move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shard.run()));
                if let Some(sessions) = shared.sessions.get(number) {
                    sessions.store(0, Ordering::Relaxed);
                }
                if result.is_err() {
                    (shared.notify)(Notice::Failed { shard: number });
                }
                if living.fetch_sub(1, Ordering::AcqRel) == 1 {
                    (shared.notify)(Notice::Drained);
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("shard-{number}"))
                .spawn(work)
                .map_err(|cause| StartError::Io { what: "starting a thread", cause })?;
            handle.threads.push(thread);
        }
        handle.spool = Some(setup.spool);
        Ok(handle)
    }
}

impl Handle {
    /// Accepts nobody any more; the listening sockets stay open for others. Idle sessions get 421 at their
    /// next command, or after `idle`; everything ends after `hard` (DECISIONS C17). [`Notice::Drained`] says
    /// when the last session has ended. A drain or a stop that was begun earlier is not put off by it.
    pub fn drain(&self, idle: Duration, hard: Duration) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.tell(|| Mail::Drain(ms(idle), ms(hard)));
    }

    /// Ends all sessions now, with 421 where that is possible.
    pub fn stop(&self) {
        self.tell(|| Mail::Stop);
    }

    /// Gives a shard a new link to the directory; what it had asked is asked again.
    pub fn connect_directory(&self, shard: usize, link: Link) {
        if let Some(inbox) = self.shards.get(shard) {
            inbox.send(Mail::Directory(link));
        }
    }

    /// Gives a shard a new link to the delivery process; what had not left yet is asked again.
    pub fn connect_delivery(&self, shard: usize, link: Link) {
        if let Some(inbox) = self.shards.get(shard) {
            inbox.send(Mail::Delivery(link));
        }
    }

    /// Gives a shard a link to a process that runs a library's mechanisms. `described`: what it said first was
    /// read already ([`RemoteLibrary::describe`]).
    pub fn connect_runner(
        &self,
        library: &Arc<RemoteLibrary>,
        shard: usize,
        generation: u32,
        link: Link,
        described: bool,
    ) {
        if let Some(inbox) = self.shards.get(shard) {
            inbox.send(Mail::Runner(Arc::clone(library), generation, link, described));
        }
    }

    /// The worker in numbers.
    pub fn stats(&self) -> Stats {
        Stats {
            sessions: self.shared.sessions.iter().map(|sessions| sessions.load(Ordering::Relaxed)).sum(),
            parts_octets: self.shared.budget.used(),
            panics: self.shared.panics.load(Ordering::Relaxed),
        }
    }

    /// Whether all shards have ended.
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// The spool, for its doorbell's position and its state.
    pub fn spool(&self) -> Option<&spool::Writer> {
        self.spool.as_ref()
    }

    /// Waits until all shards have ended, after [`Handle::drain`] or [`Handle::stop`], and everything that was
    /// committed is durable.
    pub fn join(mut self) {
        self.join_threads();
    }

    fn join_threads(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic was noticed in the thread itself.
            let _ = thread.join();
        }
        self.spool = None;
    }

    fn tell(&self, mail: impl Fn() -> Mail) {
        for inbox in &self.shards {
            inbox.send(mail());
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
        self.join_threads();
    }
}

/// Where the spool reports to.
pub struct Results(pub Inbox<Mail>);

impl Completions for Results {
    fn done(&self, ticket: u64, result: Result<(), spool::Trouble>) {
        self.0.send(Mail::Committed(Token::from_word(ticket), result));
    }

    fn room(&self) {
        self.0.send(Mail::Room);
    }

    fn handed(&self, ticket: u64, result: Result<spool::Handed, spool::Trouble>) {
        self.0.send(Mail::Handed(Token::from_word(ticket), result));
    }
}
