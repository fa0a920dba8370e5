//! The supervisor: starts processes in order, watches them, replaces those that die, exchanges them at a reload, and
//! ends them in order.
//!
//! ```text
//! fill posts → send │ wait │ orders → what children say → who has ended → clock → a reload that waited → drain ┐
//!     ↑──────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//!
//! Starting ── all were ready ──→ Serving ── SIGTERM, an administrator ──→ Draining ── nobody is left ──→ Over
//!     └── one dies, with its cause ──────────────────── a second SIGINT, from anywhere ──────────────────────↑
//!
//! to start      posts      who should run, in which order; when all are ready
//!               beginning  one process, from its place on the board to its Start
//!               links      which links it has to others
//! to watch      wait       what the loop sleeps for
//!               orders     signals, and other threads
//!               hear       what children say
//!               clock      patience that ends, a pulse each second
//!               status     what an administrator sees
//!               log        what is told of all this
//! to replace    deaths     who ended: in order, or else; when the post is filled again
//!               quarantine mechanisms that nobody may offer
//! to exchange   reload     a new plan: workers, libraries, or certificates only
//!               editions   libraries that have processes of their own
//! to end        drain      role after role
//! ```
//!
//! One thread, no locks: whatever happens, happens in a step of the loop, and what should run is derived from the state
//! at its top.

mod beginning;
mod clock;
mod deaths;
mod drain;
mod editions;
mod hear;
mod links;
mod log;
mod orders;
mod posts;
mod processes;
mod quarantine;
mod reload;
mod status;
mod wait;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use limits::Table;
use link::Role;
use telemetry::{Board, Slot};

use self::deaths::Backoffs;
use self::drain::Patience;
use self::editions::{Editions, Standing};
use self::hear::Asker;
use self::log::Log;
pub use self::orders::Handle;
use self::orders::{Order, Orders};
use self::processes::Processes;
use self::reload::Pending;
use crate::plan::{Hooks, Options, Plan, WORKERS_MAX};
use crate::process::Process;
use crate::sockets::{Bound, Lock, Sockets};

/// Most processes that run libraries, for the size of the board.
const HOSTS_MAX: usize = 128;
/// And most of all others that are no workers, with those that are about to go.
const OTHERS_MAX: usize = 12;

/// Why the supervisor could not begin, or not go on.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Starts, watches, replaces and stops all other processes.
pub struct Supervisor<H> {
    options: Options,
    hooks: H,
    stage: Stage,
    /// What should run.
    plan: Arc<Plan>,
    sockets: Sockets,
    board: Board,
    /// Our own, on the board.
    slot: Slot,
    limits: Table,
    processes: Processes,
    /// Numbers given to processes so far.
    instances: u32,
    /// The generation of workers that accepts, and the highest number given to one.
    generation: u32,
    generations: u32,
    /// Libraries with processes of their own.
    editions: Editions,
    /// Mechanisms that nobody may offer, and why.
    quarantine: BTreeMap<String, String>,
    backoffs: Backoffs,
    pending: Option<Pending>,
    /// Reloads that wait until they may begin; who asked.
    waiting: Vec<Option<Asker>>,
    orders: Orders,
    log: Log,
    next_second: Instant,
    _lock: Lock,
}

/// How far the whole is.
enum Stage {
    /// Not all have been ready yet: whoever dies ends the program.
    Starting,
    /// Whoever dies is replaced.
    Serving,
    /// Nobody new is started but those who are needed to finish.
    Draining(Patience),
    /// With this exit code.
    Over(Result<u8, Error>),
}

impl<H: Hooks> Supervisor<H> {
    /// Takes the lock, binds all addresses, makes the shared pages. Nothing is started yet.
    pub fn new(options: Options, plan: Plan, hooks: H) -> Result<(Supervisor<H>, Handle), Error> {
        let system = |error: io::Error| Error(format!("supervisor: {error}"));
        let lock = Lock::take(&options.state_directory).map_err(Error)?;
        let per_address = plan.workers.saturating_mul(plan.shards);
        plan.fits(per_address).map_err(Error)?;
        let mut sockets = Sockets::new(per_address, options.backlog);
        sockets.bind_first(&plan.listeners, lock.after_a_kill).map_err(Error)?;
        // Two generations of as many workers as can ever share the sockets out, and the others.
        let rows = (2 * per_address).min(2 * WORKERS_MAX);
        let board = Board::create(rows + OTHERS_MAX + HOSTS_MAX).map_err(system)?;
        let slot = board
            .claim(0, Role::Supervisor, std::process::id(), unix_ms())
            .ok_or_else(|| Error("supervisor: the telemetry board has no slot for the supervisor".to_owned()))?;
        let limits = Table::create(rows).map_err(system)?;
        let (orders, handle) = Orders::new(options.signals).map_err(system)?;
        let mut editions = Editions::default();
        editions.add(&plan, Standing::Serving);
        let supervisor = Supervisor {
            options,
            hooks,
            stage: Stage::Starting,
            plan: Arc::new(plan),
            sockets,
            board,
            slot,
            limits,
            processes: Processes::default(),
            instances: 0,
            generation: 1,
            generations: 1,
            editions,
            quarantine: BTreeMap::new(),
            backoffs: Backoffs::default(),
            pending: None,
            waiting: Vec::new(),
            orders,
            log: Log::default(),
            next_second: Instant::now(),
            _lock: lock,
        };
        Ok((supervisor, handle))
    }

    /// The addresses.
    pub fn bound(&self) -> &[Bound] {
        &self.sockets.bound
    }

    /// Runs until everything has drained; returns the exit code. Children are killed when the thread that
    /// called this ends, so that none is ever left behind.
    pub fn run(mut self) -> Result<u8, Error> {
        let end = loop {
            self.fill_posts();
            self.processes.iter_mut().for_each(Process::flush);
            if let Stage::Over(end) = self.stage {
                break end;
            }
            if let Err(error) = self.wait() {
                break Err(Error(format!("supervisor: waiting: {error}")));
            }
            self.obey();
            self.hear();
            self.bury();
            self.clock();
            self.reload_if_waiting();
            self.drain_in_order();
        };
        self.processes.iter_mut().for_each(Process::end);
        end
    }

    fn obey(&mut self) {
        for order in self.orders.take() {
            match order {
                Order::Reload => self.reload(None),
                Order::Drain => self.begin_drain(self.plan.drain_seconds),
                Order::Kill => self.stage = Stage::Over(Ok(130)),
            }
        }
    }

    fn is_stopping(&self) -> bool {
        matches!(self.stage, Stage::Draining(_) | Stage::Over(_))
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
