//! The loop: wait for children, signals, orders; start what is missing, bury what is dead.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use limits::Table;
use link::message::{AdminRequest, Message, messages};
use link::{LINK_VERSION, Link, Received, Role, sealed};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use telemetry::{Board, Counter, Event, Gauge, Level, Slot};

use crate::plan::{Changes, Hooks, Options, Plan, Plugin};
use crate::process::{Phase, Post, Process, runs_library};
use crate::sockets::{Bound, Lock, Sockets};

/// A child that is not ready by then never will be.
const START_SECONDS: u64 = 120;
/// A child that lived so long and then died is started again at once.
const STEADY_SECONDS: u64 = 30;
const RESTART_MS_MIN: u64 = 100;
const RESTART_MS_MAX: u64 = 10_000;
/// The others after the workers: nobody waits for them any more.
const LAST_SECONDS: u32 = 10;
/// Events kept for a log writer that does not run yet.
const EVENTS_MAX: usize = 256;
/// Reloads that wait for an older generation to go.
const WAITING_MAX: usize = 64;
/// Packets read from one child before the others have their turn.
const PACKETS_PER_TURN: usize = 64;

/// A library whose process died so often within a minute is not started again before the next reload.
const DEATHS_MAX: usize = 5;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);
/// Older editions of libraries that still finish exchanges; further reloads wait.
const LEAVING_MAX: usize = 16;
/// Most processes that run libraries, for the size of the board.
const HOSTS_MAX: usize = 128;

const SINGLETONS: [Role; 3] = [Role::Directory, Role::Delivery, Role::Control];

/// Why the supervisor could not begin, or not go on.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Tells a running supervisor what to do, from another thread.
#[derive(Clone, Debug)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    wake: Arc<UnixStream>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Reload,
    Drain,
    Kill,
}

impl Handle {
    /// As SIGHUP.
    pub fn reload(&self) {
        self.give(Order::Reload);
    }

    /// As SIGTERM.
    pub fn drain(&self) {
        self.give(Order::Drain);
    }

    /// As a second SIGINT.
    pub fn kill(&self) {
        self.give(Order::Kill);
    }

    fn give(&self, order: Order) {
        // Both fail only when the supervisor has ended, which is what the order was for or overtakes it.
        let _ = self.orders.send(order);
        let _ = (&*self.wake).write(&[0]);
    }
}

/// Starts, watches, replaces and stops all other processes.
pub struct Supervisor<H> {
    options: Options,
    hooks: H,
    plan: Arc<Plan>,
    sockets: Sockets,
    board: Board,
    slot: Slot,
    limits: Table,
    processes: Vec<Process>,
    instances: u32,
    /// The generation of workers that accepts, and the highest number given to one.
    generation: u32,
    generations: u32,
    pending: Option<Pending>,
    /// Reloads that wait until the older generation is gone; who asked.
    waiting: Vec<Option<Asker>>,
    backoffs: HashMap<(Role, usize), Backoff>,
    /// Libraries with processes of their own.
    editions: Vec<Edition>,
    /// Numbers given to editions so far.
    editions_made: u32,
    /// Mechanisms that nobody may offer, and why.
    quarantine: BTreeMap<String, String>,
    /// Every process of the first generation was ready once.
    serving: bool,
    stopping: Option<Stopping>,
    interrupts: u32,
    /// Ends the loop.
    end: Option<Result<u8, Error>>,
    unsent: VecDeque<Vec<u8>>,
    next_second: Instant,
    orders: mpsc::Receiver<Order>,
    wake: UnixStream,
    signals: Option<SignalDelivery<UnixStream, SignalOnly>>,
    _lock: Lock,
}

/// A generation that is being started.
struct Pending {
    plan: Arc<Plan>,
    generation: u32,
    /// Workers change, too; else only libraries do.
    workers: bool,
    asker: Option<Asker>,
}

/// One content of a library's file, and the process that runs it.
struct Edition {
    /// Unique while the supervisor lives, rising: its generation for workers, its post for us.
    number: u32,
    /// For its mechanisms or for its back ends.
    role: Role,
    plugin: Plugin,
    state: EditionState,
    deaths: VecDeque<Instant>,
    /// It died too often.
    given_up: bool,
}

impl Edition {
    /// Whether this is its process: numbers of editions are given once.
    fn has(&self, process: &Process) -> bool {
        process.role == self.role && process.index == self.number as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EditionState {
    /// Part of a reload that is not done.
    Coming,
    Current,
    /// Finishes its exchanges.
    Leaving,
}

/// An administrator behind a control process.
#[derive(Clone, Copy)]
struct Asker {
    instance: u32,
    id: u64,
}

struct Stopping {
    seconds: u32,
    seconds_max: u32,
}

/// How long a post stays empty after its holder died.
struct Backoff {
    deaths: u32,
    until: Instant,
}

/// What a child said, without its buffers.
enum Said {
    Hello { good: bool },
    Ready,
    Drained,
    Failed(String),
    Quarantine(String, String),
    Stuck(String, u32),
    Sandbox(String),
    Status(u64),
    Reload(u64),
    Drain(u64, u32),
    Other(u64, String),
    Unknown,
    Bad,
    Closed,
}

impl<H: Hooks> Supervisor<H> {
    /// Takes the lock, binds all addresses, makes the shared pages. Nothing is started yet.
    pub fn new(options: Options, plan: Plan, hooks: H) -> Result<(Supervisor<H>, Handle), Error> {
        let system = |error: io::Error| Error(format!("supervisor: {error}"));
        let lock = Lock::take(&options.state_directory).map_err(Error)?;
        let per_address = plan.workers.saturating_mul(plan.shards);
        fits(&plan, per_address).map_err(Error)?;
        let mut sockets = Sockets::new(per_address, options.backlog);
        sockets.bind_first(&plan.listeners, lock.after_a_kill).map_err(Error)?;
        // Two generations of as many workers as can ever share the sockets out, and the others.
        let rows = (2 * per_address).min(2 * WORKERS_MAX);
        let board = Board::create(rows + 12 + HOSTS_MAX).map_err(system)?;
        let slot = board
            .claim(0, Role::Supervisor, std::process::id(), unix_ms())
            .ok_or_else(|| Error("supervisor: the telemetry board has no slot for the supervisor".to_owned()))?;
        let limits = Table::create(rows).map_err(system)?;
        let (wake, waker) = UnixStream::pair().map_err(system)?;
        wake.set_nonblocking(true).map_err(system)?;
        waker.set_nonblocking(true).map_err(system)?;
        let signals = if options.signals {
            let (read, write) = UnixStream::pair().map_err(system)?;
            let signals = [SIGHUP, SIGTERM, SIGINT];
            Some(SignalDelivery::with_pipe(read, write, SignalOnly, signals).map_err(system)?)
        } else {
            None
        };
        let (orders, received) = mpsc::channel();
        let mut supervisor = Supervisor {
            options,
            hooks,
            plan: Arc::new(plan),
            sockets,
            board,
            slot,
            limits,
            processes: Vec::new(),
            instances: 0,
            generation: 1,
            generations: 1,
            pending: None,
            waiting: Vec::new(),
            backoffs: HashMap::new(),
            editions: Vec::new(),
            editions_made: 0,
            quarantine: BTreeMap::new(),
            serving: false,
            stopping: None,
            interrupts: 0,
            end: None,
            unsent: VecDeque::new(),
            next_second: Instant::now(),
            orders: received,
            wake,
            signals,
            _lock: lock,
        };
        let plan = Arc::clone(&supervisor.plan);
        supervisor.new_editions(&plan, EditionState::Current);
        Ok((supervisor, Handle { orders, wake: Arc::new(waker) }))
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
            if let Some(end) = self.end.take() {
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

    // What should run, runs.

    fn fill_posts(&mut self) {
        let workers_left = self.processes.iter().any(|process| process.role == Role::Worker);
        if self.stopping.is_some() && !workers_left {
            return;
        }
        for role in SINGLETONS {
            if !self.processes.iter().any(|process| process.role == role) {
                self.fill(role, 0, 0);
            }
        }
        // Before the workers, which want links to them.
        let missing = |edition: &&Edition| {
            let is_it = |process: &Process| edition.has(process);
            edition.state != EditionState::Leaving && !edition.given_up && !self.processes.iter().any(is_it)
        };
        let missing = self.editions.iter().filter(missing).map(|edition| (edition.role, edition.number));
        let missing: Vec<(Role, u32)> = missing.collect();
        missing.into_iter().for_each(|(role, number)| self.fill(role, number, number as usize));
        if self.stopping.is_some() {
            return;
        }
        let mut generations = vec![(self.generation, self.plan.workers)];
        generations.extend(
            self.pending
                .as_ref()
                .filter(|pending| pending.workers)
                .map(|pending| (pending.generation, pending.plan.workers)),
        );
        for (generation, workers) in generations {
            for index in 0..workers {
                let is_it = |process: &Process| {
                    (process.role, process.generation, process.index) == (Role::Worker, generation, index)
                };
                if !self.processes.iter().any(is_it) {
                    self.fill(Role::Worker, generation, index);
                }
            }
        }
    }

    fn fill(&mut self, role: Role, generation: u32, index: usize) {
        if self.backoffs.get(&(role, index)).is_some_and(|backoff| Instant::now() < backoff.until) {
            return;
        }
        match self.start(role, generation, index) {
            Ok(()) => self.slot.add(Counter::ProcessesStarted, 1),
            Err(error) => {
                let cause = format!("cannot be started: {error}");
                self.died(role, generation, index, Duration::ZERO, &cause);
            }
        }
    }

    fn start(&mut self, role: Role, generation: u32, index: usize) -> io::Result<()> {
        let coming = |edition: &Edition| edition.state == EditionState::Coming && edition.number as usize == index;
        let plan = match &self.pending {
            Some(pending) if role == Role::Worker && pending.workers && pending.generation == generation => {
                Arc::clone(&pending.plan)
            }
            // What comes runs as it will.
            Some(pending) if runs_library(role) && self.editions.iter().any(coming) => Arc::clone(&pending.plan),
            _ => Arc::clone(&self.plan),
        };
        let worker = role == Role::Worker;
        let slot = self.board.vacant(role).ok_or_else(|| io::Error::other("the telemetry board is full"))?;
        let free = |row: &usize| self.processes.iter().all(|process| process.row != Some(*row));
        let row = worker.then(|| (0..self.limits.rows()).find(free));
        if row == Some(None) {
            return Err(io::Error::other("the table of limits is full"));
        }
        let shards = if worker { u16::try_from(plan.shards).unwrap_or(u16::MAX) } else { 0 };
        self.instances += 1;
        let instance = self.instances;
        let edition = self.editions.iter().find(|edition| edition.number as usize == index);
        let plugin = edition.filter(|_| runs_library(role)).map(|edition| edition.plugin.clone());
        let library = plugin.as_ref().map(|plugin| plugin.id.clone());
        let post = Post { role, instance, generation, index, library, shards, slot, row: row.flatten() };
        let mut new = Process::start(&self.options, post)?;
        self.board.claim(slot, role, new.pid(), unix_ms());

        // From here on failing would leave a process behind: it ends when `new`'s link is dropped, and is
        // waited for below.
        let told = self.tell_beginning(&mut new, &plan, plugin.as_ref());
        if let Err(error) = told {
            new.end();
            self.board.retire(slot);
            return Err(error);
        }
        self.processes.push(new);
        let event = Event::log("process.started", Level::Info, unix_ms());
        let event = event.word("role", role.name()).number("instance", instance.into());
        let event = event.number("generation", generation.into());
        self.tell(match plugin {
            Some(plugin) => event.word("plugin", plugin.id),
            None => event,
        });
        Ok(())
    }

    /// Everything between Hello and Ready.
    fn tell_beginning(&mut self, new: &mut Process, plan: &Plan, own: Option<&Plugin>) -> io::Result<()> {
        let slot = u32::try_from(new.slot).unwrap_or(u32::MAX);
        new.say(&Message::Config, Some(sealed::create("configuration", &plan.configuration)?));
        // Strangers' code gets its library, and nothing that others believe in or keep for themselves.
        if let Some(plugin) = own {
            let message = Message::Plugin { id: &plugin.id, origin: &plugin.origin };
            new.say(&message, Some(plugin.library.try_clone()?));
            if new.role == Role::BackendHost {
                new.say(&Message::Secrets(&plugin.settings), None);
            }
        } else {
            new.say(&Message::Board { slot }, Some(self.board.as_fd().try_clone_to_owned()?));
            if new.role != Role::Control {
                new.say(&Message::Secrets(&plan.secrets), None);
            }
        }
        if let Some(row) = new.row {
            let row = u32::try_from(row).unwrap_or(u32::MAX);
            new.say(&Message::Limits { row }, Some(self.limits.as_fd().try_clone_to_owned()?));
            for plugin in plan.plugins.iter().filter(|plugin| !plugin.process && !plugin.mechanisms.is_empty()) {
                let message = Message::Plugin { id: &plugin.id, origin: &plugin.origin };
                new.say(&message, Some(plugin.library.try_clone()?));
            }
            new.say(&Message::Certificates, Some(sealed::create("certificates", &plan.certificates)?));
            new.say(&Message::TicketKeys(&plan.ticket_keys), None);
            self.share_sockets(new, plan)?;
            for (mechanism, cause) in &self.quarantine {
                new.say(&Message::Quarantine { mechanism, cause, over: false }, None);
            }
        }
        for i in 0..self.processes.len() {
            connect(new, &mut self.processes[i])?;
        }
        new.say(&Message::Start, None);
        Ok(())
    }

    /// Shard number `n` of the whole generation accepts from the sockets whose number is `n` modulo all shards,
    /// so that every socket has somebody.
    fn share_sockets(&self, worker: &mut Process, plan: &Plan) -> io::Result<()> {
        let all = plan.workers * plan.shards;
        for (number, listener) in plan.listeners.iter().enumerate() {
            let Some(bound) = self.sockets.find(listener) else { continue };
            for (socket, open) in bound.sockets.iter().enumerate() {
                let shard = socket % all;
                if shard / plan.shards == worker.index {
                    let message = Message::Listener {
                        listener: u16::try_from(number).unwrap_or(u16::MAX),
                        socket: u16::try_from(socket).unwrap_or(u16::MAX),
                        shard: u16::try_from(shard % plan.shards).unwrap_or(u16::MAX),
                        address: bound.address,
                    };
                    worker.say(&message, Some(OwnedFd::from(open.try_clone()?)));
                }
            }
        }
        Ok(())
    }

    // Waiting, orders, signals.

    fn wait(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let deadlines = self.processes.iter().flat_map(|process| [process.kill_at, process.stop_at]).flatten();
        let posts = self.backoffs.values().map(|backoff| backoff.until).filter(|until| *until > now);
        let until = deadlines.chain(posts).chain([self.next_second]).min().unwrap_or(self.next_second);
        let left = Timespec::try_from(until.saturating_duration_since(now)).ok();
        let mut interest: Vec<(BorrowedFd<'_>, PollFlags)> = vec![(self.wake.as_fd(), PollFlags::IN)];
        interest.extend(self.signals.as_ref().map(|signals| (signals.get_read().as_fd(), PollFlags::IN)));
        for process in &self.processes {
            interest.push((process.ended(), PollFlags::IN));
            if let Some(link) = process.link() {
                let out = if process.has_more_to_send() { PollFlags::OUT } else { PollFlags::empty() };
                interest.push((link.as_fd(), PollFlags::IN | out));
            }
        }
        let mut fds: Vec<_> = interest.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn obey(&mut self) {
        while matches!(self.wake.read(&mut [0; 64]), Ok(n) if n > 0) {}
        let mut orders: Vec<Order> = self.orders.try_iter().collect();
        let signals: Vec<i32> = self.signals.as_mut().map(|signals| signals.pending().collect()).unwrap_or_default();
        for signal in signals {
            match signal {
                SIGHUP => orders.push(Order::Reload),
                SIGINT => {
                    self.interrupts += 1;
                    orders.push(if self.interrupts > 1 { Order::Kill } else { Order::Drain });
                }
                _ => orders.push(Order::Drain),
            }
        }
        for order in orders {
            match order {
                Order::Reload => self.reload(None),
                Order::Drain => self.begin_drain(self.plan.drain_seconds),
                Order::Kill => self.end = Some(Ok(130)),
            }
        }
    }

    fn begin_drain(&mut self, seconds: u32) {
        if self.stopping.is_none() {
            self.stopping = Some(Stopping { seconds, seconds_max: self.plan.drain_seconds_max.max(seconds) });
            self.fail_pending("the supervisor is asked to stop");
            self.tell(Event::log("draining", Level::Info, unix_ms()).number("seconds", seconds.into()));
        }
    }

    /// Workers first: they still need the others. Control last: it writes what the others say at the end.
    fn drain_in_order(&mut self) {
        let Some(Stopping { seconds, seconds_max }) = self.stopping else { return };
        let order =
            [Role::Worker, Role::MechanismHost, Role::Delivery, Role::Directory, Role::BackendHost, Role::Control];
        let next = order.into_iter().find(|role| self.processes.iter().any(|process| process.role == *role));
        for process in self.processes.iter_mut().filter(|process| Some(process.role) == next) {
            match process.role {
                Role::Worker => process.drain(seconds, seconds_max),
                Role::Directory | Role::MechanismHost | Role::BackendHost => process.stop(),
                _ => process.drain(seconds.min(LAST_SECONDS), seconds_max.min(LAST_SECONDS)),
            }
        }
        if next.is_none() && self.end.is_none() {
            self.end = Some(Ok(0));
        }
    }

    // What children say.

    fn hear(&mut self) {
        let mut packet = Vec::new();
        for i in 0..self.processes.len() {
            self.hear_one(i, &mut packet);
        }
    }

    fn hear_one(&mut self, i: usize, packet: &mut Vec<u8>) {
        for _ in 0..PACKETS_PER_TURN {
            let process = &self.processes[i];
            let Some(link) = process.link() else { return };
            let said = match link.receive(packet) {
                Ok(Received::WouldBlock) => return,
                // It ended without reading everything from us. That is told once, before its last words.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Ok(Received::Closed) | Err(_) => vec![Said::Closed],
                Ok(Received::Packet { fds }) => read(packet, fds, process.role, &self.options.build_id),
            };
            for said in said {
                self.on(i, said);
            }
        }
    }

    fn on(&mut self, i: usize, said: Said) {
        let process = &mut self.processes[i];
        let asker = |id| Asker { instance: process.instance, id };
        match said {
            Said::Hello { good: true } => process.greeted = true,
            Said::Hello { good: false } => {
                process.failed = Some("it is another version or another build".to_owned());
                process.kill();
            }
            Said::Unknown => self.slot.add(Counter::LinkUnknown, 1),
            Said::Closed => process.hang_up(),
            // Nothing counts before Hello.
            Said::Bad => self.slot.add(Counter::LinkBad, 1),
            _ if !process.greeted => self.slot.add(Counter::LinkBad, 1),
            Said::Ready => {
                if process.phase == Phase::Starting {
                    process.phase = Phase::Ready;
                    self.on_ready(i);
                }
            }
            Said::Drained => {
                process.phase = Phase::Stopping;
                process.patience(Duration::from_secs(5));
            }
            Said::Failed(text) => process.failed = Some(text),
            Said::Sandbox(text) => process.sandbox = text,
            Said::Quarantine(mechanism, cause) => self.put_in_quarantine(mechanism, cause),
            Said::Stuck(id, generation) => {
                let is_it = |process: &&mut Process| {
                    runs_library(process.role)
                        && process.index == generation as usize
                        && process.library.as_ref() == Some(&id)
                };
                if let Some(host) = self.processes.iter_mut().find(is_it) {
                    host.failed = Some("it did not answer in time".to_owned());
                    host.kill();
                }
            }
            Said::Status(id) => {
                let asker = asker(id);
                let status = self.status();
                self.reply(Some(asker), Ok(status));
            }
            Said::Reload(id) => {
                let asker = asker(id);
                self.reload(Some(asker));
            }
            Said::Drain(id, seconds) => {
                let asker = asker(id);
                self.begin_drain(seconds);
                self.reply(Some(asker), Ok("draining".to_owned()));
            }
            Said::Other(id, request) => {
                let asker = asker(id);
                let answer = self.hooks.admin(&request);
                self.reply(Some(asker), answer);
            }
        }
    }

    fn on_ready(&mut self, i: usize) {
        if self.processes[i].role == Role::Control {
            for payload in std::mem::take(&mut self.unsent) {
                self.processes[i].say(&Message::Event(&payload), None);
            }
        }
        let all_ready = |processes: &[Process], generation: u32, workers: usize| {
            let ready = |process: &&Process| process.phase == Phase::Ready;
            let of = |process: &&Process| process.role == Role::Worker && process.generation == generation;
            processes.iter().filter(of).filter(ready).count() == workers
        };
        if !self.serving {
            let singletons = self.processes.iter().filter(|process| SINGLETONS.contains(&process.role));
            self.serving = all_ready(&self.processes, self.generation, self.plan.workers)
                && singletons.filter(|process| process.phase == Phase::Ready).count() == SINGLETONS.len()
                && self.hosts_ready();
            if self.serving {
                self.hooks.serving(&self.sockets.bound);
            }
        }
        let hosts_ready = self.hosts_ready();
        let complete = |pending: &mut Pending| {
            hosts_ready && (!pending.workers || all_ready(&self.processes, pending.generation, pending.plan.workers))
        };
        if let Some(pending) = self.pending.take_if(complete) {
            self.commit(pending);
        }
    }

    fn reply(&mut self, asker: Option<Asker>, answer: Result<String, String>) {
        let Some(asker) = asker else { return };
        if let Some(control) = self.processes.iter_mut().find(|process| process.instance == asker.instance) {
            let ok = answer.is_ok();
            let text = answer.unwrap_or_else(|text| text);
            control.answer(asker.id, &Message::AdminAnswer { ok, text: clip(&text) }, None);
        }
    }

    fn status(&self) -> String {
        let processes = self.processes.iter().map(|process| {
            json!({ "role": process.role.name(), "pid": process.pid(), "instance": process.instance,
                "generation": process.generation, "state": process.phase.name(),
                "seconds": process.started.elapsed().as_secs() })
        });
        let processes: Vec<_> = processes.collect();
        let listeners = self.sockets.bound.iter().map(
            |bound| json!({ "name": bound.name, "address": bound.address.to_string(), "sockets": bound.sockets.len() }),
        );
        let libraries = self.editions.iter().map(|edition| {
            let process = self.processes.iter().find(|process| edition.has(process));
            let none = Vec::new();
            let (mechanisms, backends) = match edition.role {
                Role::BackendHost => (&none, &edition.plugin.backends),
                _ => (&edition.plugin.mechanisms, &none),
            };
            json!({ "id": edition.plugin.id, "runner": "process", "generation": edition.number,
                "role": edition.role.name(), "mechanisms": mechanisms, "backends": backends, "deaths": edition.deaths.len(),
                "sandbox": process.map(|process| &process.sandbox), "pid": process.map(Process::pid),
                "state": match (edition.given_up, edition.state, process) {
                    (true, ..) => "quarantine",
                    (_, EditionState::Leaving, _) => "leaving",
                    (.., Some(process)) => process.phase.name(),
                    (.., None) => "dead",
                } })
        });
        json!({ "quarantine": self.quarantine, "libraries": libraries.collect::<Vec<_>>(), "pid": std::process::id(), "generation": self.generation, "draining": self.stopping.is_some(),
            "processes": processes, "listeners": listeners.collect::<Vec<_>>() })
        .to_string()
    }

    // Reload.

    /// Workers of another generation than the one that accepts.
    fn others_alive(&self) -> bool {
        self.processes.iter().any(|process| process.role == Role::Worker && process.generation != self.generation)
    }

    fn reload_if_waiting(&mut self) {
        let busy = self.pending.is_some() || self.others_alive() || self.leaving() >= LEAVING_MAX;
        if !busy && self.stopping.is_none() && !self.waiting.is_empty() {
            // All who asked meanwhile get what the last would have got.
            let mut askers = std::mem::take(&mut self.waiting);
            let last = askers.pop().flatten();
            for asker in askers {
                self.reply(asker, Ok("done together with a later reload".to_owned()));
            }
            self.reload(last);
        }
    }

    fn reload(&mut self, asker: Option<Asker>) {
        if self.stopping.is_some() {
            return self.reply(asker, Err("reload: the supervisor is stopping".to_owned()));
        }
        if self.pending.is_some() || self.others_alive() || self.leaving() >= LEAVING_MAX {
            if self.waiting.len() == WAITING_MAX {
                return self.reply(asker, Err("reload: too many wait already".to_owned()));
            }
            return self.waiting.push(asker);
        }
        let next = self.hooks.reload().and_then(|plan| {
            fits(&plan, self.sockets.per_address)?;
            if !self.plan.differs_in_certificates_only(&plan) {
                self.sockets.bind(&plan.listeners)?;
            }
            Ok(plan)
        });
        match next {
            Err(text) => self.reload_failed(asker, &text),
            Ok(plan) if self.plan.differs_in_certificates_only(&plan) => {
                let changes = Changes {
                    certificates: Some(plan.certificates.clone()),
                    ticket_keys: (plan.ticket_keys != self.plan.ticket_keys).then(|| plan.ticket_keys.clone()),
                };
                self.plan = Arc::new(plan);
                self.spread(changes);
                self.slot.add(Counter::ReloadsOk, 1);
                self.reply(asker, Ok("certificates exchanged".to_owned()));
            }
            Ok(plan) => {
                let workers = !self.plan.differs_in_processes_only(&plan);
                self.generations += u32::from(workers);
                let generation = if workers { self.generations } else { self.generation };
                self.new_editions(&plan, EditionState::Coming);
                // The new generation's posts are new; an old grudge does not concern them.
                self.backoffs.retain(|(role, _), _| *role != Role::Worker);
                self.pending = Some(Pending { plan: Arc::new(plan), generation, workers, asker });
            }
        }
    }

    fn reload_failed(&mut self, asker: Option<Asker>, text: &str) {
        self.slot.add(Counter::ReloadsFailed, 1);
        self.tell(Event::log("reload.failed", Level::Error, unix_ms()).untrusted("cause", text.as_bytes()));
        self.reply(asker, Err(format!("reload: {text}; the old configuration stays in force")));
    }

    /// The whole new generation accepts; the old one may go.
    fn commit(&mut self, pending: Pending) {
        let Pending { plan, generation, workers, asker } = pending;
        let (seconds, seconds_max) = (plan.drain_seconds, plan.drain_seconds_max.max(plan.drain_seconds));
        let reconfigured = plan.configuration != self.plan.configuration;
        for process in &mut self.processes {
            if process.role == Role::Worker && process.generation != generation {
                process.drain(seconds, seconds_max);
            } else if process.role != Role::Worker && !runs_library(process.role) && reconfigured {
                match sealed::create("configuration", &plan.configuration) {
                    Ok(fd) => {
                        process.reconfigured = true;
                        process.say(&Message::Config, Some(fd));
                    }
                    // It cannot be told, so it is replaced.
                    Err(_) => process.stop(),
                }
            }
        }
        self.sockets.keep(&plan.listeners);
        if plan.certificates != self.plan.certificates && !workers {
            self.spread(Changes { certificates: Some(plan.certificates.clone()), ticket_keys: None });
        }
        self.exchange_editions(&plan, seconds, seconds_max);
        self.plan = plan;
        self.generation = generation;
        self.serving = true;
        self.slot.add(Counter::ReloadsOk, 1);
        self.tell(Event::log("reloaded", Level::Info, unix_ms()).number("generation", generation.into()));
        self.hooks.serving(&self.sockets.bound);
        self.reply(
            asker,
            Ok(match workers {
                true => format!("generation {generation} serves"),
                false => "new editions of libraries serve".to_owned(),
            }),
        );
    }

    fn fail_pending(&mut self, text: &str) {
        let Some(pending) = self.pending.take() else { return };
        for process in &mut self.processes {
            let coming =
                self.editions.iter().any(|edition| edition.state == EditionState::Coming && edition.has(process));
            let worker = process.role == Role::Worker && pending.workers && process.generation == pending.generation;
            if coming || worker {
                process.stop();
            }
        }
        for edition in self.editions.iter_mut().filter(|edition| edition.state == EditionState::Coming) {
            edition.state = EditionState::Leaving;
        }
        // One whose process has died already leaves nobody behind who would be waited for.
        self.forget_editions();
        self.sockets.keep(&self.plan.listeners);
        self.reload_failed(pending.asker, text);
    }

    fn spread(&mut self, changes: Changes) {
        for process in self.processes.iter_mut().filter(|process| process.role == Role::Worker) {
            if let Some(octets) = &changes.certificates {
                match sealed::create("certificates", octets) {
                    Ok(fd) => process.say(&Message::Certificates, Some(fd)),
                    Err(_) => self.slot.add(Counter::CertificateReloadsFailed, 1),
                }
            }
            if let Some(octets) = &changes.ticket_keys {
                process.say(&Message::TicketKeys(octets), None);
            }
        }
        if changes.certificates.is_some() {
            self.slot.add(Counter::CertificateReloadsOk, 1);
        }
    }

    // Libraries with processes of their own.

    /// An edition for each library of `plan` whose content no edition has yet.
    fn new_editions(&mut self, plan: &Plan, state: EditionState) {
        let wanted = plan.plugins.iter().flat_map(|plugin| plugin.roles().into_iter().map(move |role| (plugin, role)));
        for (plugin, role) in wanted {
            let has = |edition: &Edition| {
                edition.state == EditionState::Current && edition.role == role && edition.plugin.same(plugin)
            };
            if !self.editions.iter().any(has) {
                self.editions_made += 1;
                self.editions.push(Edition {
                    number: self.editions_made,
                    role,
                    plugin: plugin.clone(),
                    state,
                    deaths: VecDeque::new(),
                    given_up: false,
                });
            }
        }
    }

    /// The new plan holds: its editions serve, the others finish. Whatever was in quarantine gets a new chance.
    fn exchange_editions(&mut self, plan: &Plan, seconds: u32, seconds_max: u32) {
        for edition in &mut self.editions {
            let is_it = |plugin: &Plugin| plugin.roles().contains(&edition.role) && edition.plugin.same(plugin);
            let wanted = plan.plugins.iter().any(is_it);
            edition.state = match edition.state {
                EditionState::Leaving => EditionState::Leaving,
                _ if wanted => EditionState::Current,
                _ => EditionState::Leaving,
            };
            edition.given_up = false;
            edition.deaths.clear();
        }
        for process in self.processes.iter_mut() {
            let leaving = |edition: &Edition| edition.state == EditionState::Leaving && edition.has(process);
            if self.editions.iter().any(leaving) {
                process.drain(seconds, seconds_max);
            }
        }
        self.forget_editions();
        for (mechanism, _) in std::mem::take(&mut self.quarantine) {
            self.tell_workers(&Message::Quarantine { mechanism: &mechanism, cause: "", over: true });
        }
    }

    /// Those that are wanted no more and whose process is gone.
    fn forget_editions(&mut self) {
        let processes = &self.processes;
        self.editions.retain(|edition| {
            edition.state != EditionState::Leaving || processes.iter().any(|process| edition.has(process))
        });
    }

    fn leaving(&self) -> usize {
        self.editions.iter().filter(|edition| edition.state == EditionState::Leaving).count()
    }

    /// Whether every library that should run does, save for those that were given up.
    fn hosts_ready(&self) -> bool {
        self.editions.iter().all(|edition| {
            let ready = |process: &Process| edition.has(process) && process.phase == Phase::Ready;
            edition.state == EditionState::Leaving || edition.given_up || self.processes.iter().any(ready)
        })
    }

    /// No worker offers this mechanism any more, until the next reload.
    fn put_in_quarantine(&mut self, mechanism: String, cause: String) {
        if self.quarantine.contains_key(&mechanism) {
            return;
        }
        self.tell_workers(&Message::Quarantine { mechanism: &mechanism, cause: &cause, over: false });
        let event = Event::log("plugin.quarantined", Level::Error, unix_ms()).word("mechanism", mechanism.clone());
        self.tell(event.untrusted("cause", cause.as_bytes()));
        self.quarantine.insert(mechanism, cause);
    }

    fn tell_workers(&mut self, message: &Message<'_>) {
        for process in self.processes.iter_mut().filter(|process| process.role == Role::Worker) {
            process.say(message, None);
        }
    }

    /// A process that runs a library died. It is replaced at once, unless that has happened too often.
    fn edition_died(&mut self, number: usize, cause: &str) {
        let now = Instant::now();
        let Some(edition) = self.editions.iter_mut().find(|edition| edition.number as usize == number) else { return };
        if edition.state == EditionState::Leaving {
            return self.forget_editions();
        }
        edition.deaths.push_back(now);
        edition.deaths.retain(|then| now.duration_since(*then) < DEATHS_WITHIN);
        if edition.deaths.len() >= DEATHS_MAX {
            edition.given_up = true;
            let cause =
                format!("the process of plugin {} died {DEATHS_MAX} times within a minute: {cause}", edition.plugin.id);
            let names = match edition.role {
                Role::BackendHost => edition.plugin.backends.iter().map(|name| format!("back end {name}")).collect(),
                _ => edition.plugin.mechanisms.clone(),
            };
            for mechanism in names {
                self.put_in_quarantine(mechanism, cause.clone());
            }
        }
    }

    // Time and death.

    fn clock(&mut self) {
        let now = Instant::now();
        for process in &mut self.processes {
            if process.stop_at.is_some_and(|at| at <= now) {
                process.stop_at = None;
                process.stop();
            }
            if process.phase == Phase::Starting && process.started.elapsed().as_secs() >= START_SECONDS {
                process.failed = Some(format!("not ready after {START_SECONDS} seconds"));
                process.kill();
            }
            if process.kill_at.is_some_and(|at| at <= now) {
                // Its end is seen through its descriptor; asking again would change nothing.
                process.kill_at = None;
                process.failed.get_or_insert_with(|| "it did not go when it had to and was killed".to_owned());
                process.kill();
            }
        }
        if now < self.next_second {
            return;
        }
        self.next_second = now + Duration::from_secs(1);
        self.slot.heartbeat(unix_ms());
        // They have no page of the board.
        for host in self.processes.iter().filter(|process| runs_library(process.role)) {
            if let Some(slot) = self.board.slot(host.slot) {
                slot.heartbeat(unix_ms());
            }
        }
        let alive: std::collections::BTreeSet<u32> = self
            .processes
            .iter()
            .filter(|process| process.role == Role::Worker)
            .map(|process| process.generation)
            .collect();
        self.slot.gauge_set(Gauge::Generation, self.generation.into());
        self.slot.gauge_set(Gauge::Generations, alive.len() as i64);
        let changes = self.hooks.every_second();
        if changes.certificates.is_some() || changes.ticket_keys.is_some() {
            let pending = self.pending.as_mut().map(|pending| &mut pending.plan);
            for plan in std::iter::once(&mut self.plan).chain(pending).map(Arc::make_mut) {
                plan.certificates.clone_from(changes.certificates.as_ref().unwrap_or(&plan.certificates.clone()));
                plan.ticket_keys.clone_from(changes.ticket_keys.as_ref().unwrap_or(&plan.ticket_keys.clone()));
            }
            self.spread(changes);
        }
    }

    fn bury(&mut self) {
        let mut packet = Vec::new();
        let mut i = 0;
        while i < self.processes.len() {
            let Some(status) = self.processes[i].exit_status() else {
                i += 1;
                continue;
            };
            // Its last words may still be in the socket.
            self.hear_one(i, &mut packet);
            let process = self.processes.swap_remove(i);
            self.board.retire(process.slot);
            if let Some(row) = process.row {
                self.limits.clear_row(row);
            }
            let asked = matches!(process.phase, Phase::Draining | Phase::Stopping)
                || process.reconfigured && status.code() == Some(0);
            if asked && runs_library(process.role) {
                self.forget_editions();
            }
            if asked {
                let level = if status.success() { Level::Info } else { Level::Warning };
                let mut event = Event::log("process.ended", level, unix_ms()).word("role", process.role.name());
                event = event.number("instance", process.instance.into()).number("pid", process.pid().into());
                if !status.success() {
                    event = event.untrusted("cause", process.cause(status).into_bytes());
                }
                self.tell(event);
            } else {
                let cause = process.cause(status);
                let lived = process.started.elapsed();
                let text = format!("process {} died: {cause}", process.pid());
                self.died(process.role, process.generation, process.index, lived, &text);
            }
        }
    }

    /// Nobody asked it to go. Says so, decides when the post is filled again, and whether that makes sense.
    fn died(&mut self, role: Role, generation: u32, index: usize, lived: Duration, cause: &str) {
        self.slot.add(Counter::ProcessesDied, 1);
        let now = Instant::now();
        let host = runs_library(role);
        let library = self.editions.iter().find(|edition| host && edition.number as usize == index);
        let library = library.map(|edition| (edition.plugin.id.clone(), edition.state));
        let lived = if host { Duration::MAX } else { lived };
        let backoff = self.backoffs.entry((role, index)).or_insert(Backoff { deaths: 0, until: now });
        backoff.deaths = if lived.as_secs() >= STEADY_SECONDS { 0 } else { backoff.deaths + 1 };
        let wait_ms = match backoff.deaths {
            0 => 0,
            n => (RESTART_MS_MIN << (n - 1).min(10)).min(RESTART_MS_MAX),
        };
        backoff.until = now + Duration::from_millis(wait_ms);
        let event = Event::log("process.died", Level::Error, unix_ms()).word("role", role.name());
        let event = event.untrusted("cause", cause.as_bytes()).number("restart_ms", wait_ms);
        self.tell(match &library {
            Some((id, _)) => event.word("plugin", id.clone()),
            None => event,
        });
        let in_reload = |pending: &Pending| match &library {
            Some((_, state)) => *state == EditionState::Coming,
            None => role == Role::Worker && pending.workers && pending.generation == generation,
        };
        if host && (self.serving || self.pending.is_some()) {
            self.backoffs.remove(&(role, index));
            self.edition_died(index, cause);
        }
        if self.pending.as_ref().is_some_and(in_reload) {
            self.fail_pending(&format!("the new {role} failed: {cause}"));
        } else if !self.serving && self.stopping.is_none() && self.end.is_none() {
            // Nothing has worked yet: somebody stands before the screen and can mend it.
            self.end = Some(Err(Error(format!("{role}: {cause}"))));
        }
    }

    fn tell(&mut self, event: Event<'_>) {
        self.hooks.event(&event);
        let mut payload = Vec::new();
        event.encode(&mut payload);
        let ready = |process: &&mut Process| process.role == Role::Control && process.phase != Phase::Starting;
        match self.processes.iter_mut().find(ready) {
            Some(control) => control.say(&Message::Event(&payload), None),
            None => {
                if self.unsent.len() == EVENTS_MAX {
                    self.unsent.pop_front();
                    self.slot.add(Counter::LogDropped, 1);
                }
                self.unsent.push_back(payload);
            }
        }
    }
}

/// Most worker processes of one generation.
const WORKERS_MAX: usize = 64;

fn fits(plan: &Plan, per_address: usize) -> Result<(), String> {
    let (workers, shards) = (plan.workers, plan.shards);
    if workers == 0 || workers > WORKERS_MAX || shards == 0 || shards > 1024 {
        return Err(format!(
            "workers = {workers}, shards = {shards}: between 1 and {WORKERS_MAX} workers with 1 to 1024 shards each"
        ));
    }
    if workers * shards > per_address {
        return Err(format!(
            "workers = {workers}, shards = {shards}: more than the {per_address} sockets per address that were \
             opened at the start; restart needed"
        ));
    }
    Ok(())
}

/// Makes the links that two processes have to each other, if any, and gives each its ends.
fn connect(a: &mut Process, b: &mut Process) -> io::Result<()> {
    let links = match (a.role, b.role) {
        (Role::Worker, Role::Directory | Role::Delivery) => a.shards,
        (Role::Directory | Role::Delivery, Role::Worker) => b.shards,
        (Role::Worker, Role::Control)
        | (Role::Control, Role::Worker)
        | (Role::Directory | Role::Delivery, Role::Control)
        | (Role::Control, Role::Directory | Role::Delivery) => 1,
        _ => 0,
    };
    if a.phase == Phase::Stopping || b.phase == Phase::Stopping {
        return Ok(());
    }
    let library = match (a.role, b.role) {
        (Role::Worker, Role::MechanismHost) | (Role::Directory, Role::BackendHost) => Some((&mut *a, &mut *b)),
        (Role::MechanismHost, Role::Worker) | (Role::BackendHost, Role::Directory) => Some((&mut *b, &mut *a)),
        _ => None,
    };
    // A host that finishes its exchanges gets no new ones.
    if let Some((user, host)) = library.filter(|(_, host)| host.phase != Phase::Draining) {
        let (id, generation) = (host.library.clone().unwrap_or_default(), host.generation);
        for shard in 0..user.shards.max(1) {
            let (for_user, for_host) = Link::pair()?;
            user.say(&Message::Runner { id: &id, shard, generation }, Some(for_user.into()));
            host.say(&Message::Peer { role: user.role, shard, instance: user.instance }, Some(for_host.into()));
        }
    }
    for shard in 0..links {
        let (for_a, for_b) = Link::pair()?;
        a.say(&Message::Peer { role: b.role, shard, instance: b.instance }, Some(for_a.into()));
        b.say(&Message::Peer { role: a.role, shard, instance: a.instance }, Some(for_b.into()));
    }
    Ok(())
}

/// Reads a child's packet. Only control may ask; what a child may not say is counted and ignored.
fn read(packet: &[u8], fds: Vec<OwnedFd>, role: Role, build_id: &str) -> Vec<Said> {
    let mut messages = messages(packet, fds);
    let mut all: Vec<Said> = messages
        .by_ref()
        .map(|item| match item {
            Ok((_, Message::Hello { link_version, build_id: theirs, role: claimed }, _)) => {
                Said::Hello { good: link_version == LINK_VERSION && theirs == build_id && claimed == role }
            }
            Ok((_, Message::Ready, _)) => Said::Ready,
            Ok((_, Message::Drained, _)) => Said::Drained,
            Ok((_, Message::Failed { text }, _)) => Said::Failed(clip(text).to_owned()),
            Ok((_, Message::Quarantine { mechanism, cause, .. }, _)) if role == Role::Worker => {
                Said::Quarantine(clip(mechanism).to_owned(), clip(cause).to_owned())
            }
            Ok((_, Message::Stuck { id, generation }, _)) if matches!(role, Role::Worker | Role::Directory) => {
                Said::Stuck(id.to_owned(), generation)
            }
            Ok((_, Message::Sandbox { text }, _)) if runs_library(role) => Said::Sandbox(clip(text).to_owned()),
            Ok((id, Message::AdminRequest(request), _)) if role == Role::Control => match request {
                AdminRequest::Status => Said::Status(id),
                AdminRequest::Reload => Said::Reload(id),
                AdminRequest::Drain { seconds } => Said::Drain(id, seconds),
                AdminRequest::Other(text) => Said::Other(id, text.to_owned()),
            },
            Ok(_) | Err(_) => Said::Bad,
        })
        .collect();
    all.extend((0..messages.unknown).map(|_| Said::Unknown));
    all
}

/// What fits a packet with room to spare.
fn clip(text: &str) -> &str {
    let end = (0..=text.len().min(100_000)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
