//! The delivery process's loop: doorbells in, jobs out to threads, results into the acknowledgement log.

mod links;
mod pace;
mod shared;
#[cfg(test)]
mod tests;
mod waiting;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use link::Link;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use spool::{Disk, Floors, Follower, Message, MessageKey, Notice};

use self::pace::{Pace, Step};
use self::shared::{Counts, Inbox, Outcome};
pub use self::shared::{Handle, Stats};
pub(crate) use self::shared::{Shared, unix_ms};
pub(crate) use self::waiting::{Next, Waiting, Wish};
use crate::attempt::{Attempted, Damage, Deferred, attempt_contained};
use crate::event::{Event, Events};
use crate::pass::{self, Passing};
use crate::queue::Held;
use crate::retry::Retry;
use crate::route::{Destination, Routes};

/// How delivery works.
pub struct Settings {
    /// Where mail goes.
    pub routes: Routes,
    /// When what failed is tried again.
    pub retry: Retry,
    /// Attempts at the same time, beside those of routes that may take long ([`crate::Route::slow_attempts`]).
    pub threads: usize,
    /// How old a message may become.
    pub expire: Duration,
    /// How old before its sender is told that it waits; `None`: never.
    pub delay_notice: Option<Duration>,
    /// Our name in notices.
    pub hostname: String,
    /// When what delivery writes itself (notices, the rest of a message that was passed through) finds no room.
    pub floors: Floors,
    /// Where the ids of held messages are kept; `None`: a hold ends with the process.
    pub held: Option<PathBuf>,
}

impl Settings {
    /// With the usual times and four threads.
    pub fn new(routes: Routes) -> Self {
        let expire = Duration::from_secs(5 * 24 * 3600);
        let hostname = "localhost".to_owned();
        let delay_notice = Some(Duration::from_secs(4 * 3600));
        Self {
            routes,
            retry: Retry::default(),
            threads: 4,
            expire,
            delay_notice,
            hostname,
            floors: Floors::default(),
            held: None,
        }
    }
}

/// Delivery, before it runs.
pub struct Service {
    pub(crate) follower: Follower,
    pub(crate) shared: Arc<Shared>,
    retry: Retry,
    threads: usize,
    links: Vec<Arc<Link>>,
    /// Messages that could not be handed on at once.
    pub(crate) waiting: HashMap<MessageKey, Waiting>,
    /// When they are tried again. What is no longer true of an entry is said in `waiting`.
    due: BinaryHeap<Reverse<(Instant, MessageKey)>>,
    /// To be tried as soon as a thread is free.
    pub(crate) ready: VecDeque<MessageKey>,
    /// By route and destination: messages that wait for a connection there.
    parked: HashMap<(usize, Destination), VecDeque<MessageKey>>,
    pub(crate) held: Held,
    pub(crate) in_flight: usize,
    spare: Vec<Message>,
    scan_at: Instant,
    /// When outcomes go to the log.
    pace: Pace,
    /// Looks in quick succession that are still to come after a worker's end.
    hurried: u32,
}

/// Between looks for writers that went without a word.
const SCAN_EVERY: Duration = Duration::from_secs(10);
/// A worker's link closes a little before its locks are free.
const HURRIED_EVERY: Duration = Duration::from_millis(100);
const HURRIED_SCANS: u32 = 10;
/// Jobs per thread, under way and waiting for it.
const JOBS_PER_THREAD: usize = 4;
/// Threads in all.
const THREADS_MAX: usize = 256;
/// Messages in one turn, when no route blocks.
const TURN_MESSAGES: usize = 512;
impl Service {
    /// Takes the spool (fails when another delivery process has it) and finds what earlier ones left.
    pub fn open(disk: Arc<dyn Disk>, settings: Settings, events: Arc<dyn Events>) -> io::Result<(Self, Handle)> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let held = Held::open(settings.held)?;
        let slow: usize = settings.routes.iter().map(|route| route.slow_attempts()).sum();
        let shared = Arc::new(Shared {
            routes: settings.routes,
            passing: Passing::default(),
            events: events.clone(),
            expire: settings.expire,
            delay_notice: settings.delay_notice,
            hostname: settings.hostname,
            floors: settings.floors,
            disk: disk.clone(),
            postbox: Mutex::new(None),
            inbox: Mutex::default(),
            rung: AtomicBool::new(false),
            wake,
            counts: Counts::default(),
        });
        let watch = move |notice: &Notice| events.event(&Event::Spool(notice));
        let service = Self {
            follower: Follower::open(disk, Arc::new(watch))?,
            shared: shared.clone(),
            retry: settings.retry,
            threads: settings.threads.max(1).saturating_add(slow).min(THREADS_MAX),
            links: Vec::new(),
            waiting: HashMap::new(),
            due: BinaryHeap::new(),
            ready: VecDeque::new(),
            parked: HashMap::new(),
            held,
            in_flight: 0,
            spare: Vec::new(),
            scan_at: Instant::now() + SCAN_EVERY,
            pace: Pace::new(Instant::now()),
            hurried: 0,
        };
        Ok((service, Handle { shared }))
    }

    /// Hands on until told to stop, then ends what is under way. What is left stays in the spool.
    pub fn run(mut self) -> io::Result<()> {
        let (jobs, work) = crossbeam_channel::bounded(self.threads * JOBS_PER_THREAD);
        let mut threads = Vec::new();
        if self.shared.routes.block() {
            for _ in 0..self.threads {
                let (shared, work) = (self.shared.clone(), work.clone());
                let thread = std::thread::Builder::new().name("delivery".to_owned());
                threads.push(thread.spawn(move || run_jobs(&shared, &work))?);
            }
        }
        drop(work);
        let waited_for: usize =
            self.shared.routes.iter().filter(|route| route.passes()).map(|route| route.slow_attempts()).sum();
        let mut pass_threads = Vec::new();
        for _ in 0..waited_for.min(THREADS_MAX) {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("pass".to_owned());
            pass_threads.push(thread.spawn(move || pass::run(&shared))?);
        }
        let ended = self.turn_until_stopped(&jobs, !threads.is_empty());
        drop(jobs);
        self.shared.passing.stop();
        for thread in threads.into_iter().chain(pass_threads) {
            let _ = thread.join();
        }
        // What they ended while we left, after an error too. Each message's outcome is among them: it says all.
        let outcomes = mem::take(&mut self.shared.inbox.lock().outcomes);
        outcomes.into_iter().for_each(|outcome| self.settle(outcome));
        self.follower.sync();
        // The last notices are whole before we go.
        drop(self.shared.postbox.lock().take());
        ended
    }

    fn turn_until_stopped(&mut self, jobs: &Sender<Message>, threaded: bool) -> io::Result<()> {
        loop {
            let inbox = self.take_inbox();
            self.links.extend(inbox.links.into_iter().map(Arc::new));
            inbox.bells.into_iter().for_each(|bell| self.follower.ring(bell));
            for (key, recipients, settled) in inbox.settled {
                self.follower.acknowledge(key, recipients, settled.into_iter());
                self.pace.must_last();
            }
            self.in_flight -= inbox.outcomes.len();
            inbox.outcomes.into_iter().for_each(|outcome| self.settle(outcome));
            for (request, answer) in inbox.requests {
                // Who asked may have gone.
                let _ = answer.send(self.answer(request));
            }
            self.unpark();
            self.read_links();
            self.look_for_the_dead();
            let mut more = false;
            if inbox.stop {
                self.shared.routes.iter().for_each(|route| route.stop());
                self.shared.passing.stop();
            } else {
                more = self.feed(jobs, threaded);
            }
            self.log(Instant::now(), inbox.stop);
            self.count();
            if inbox.stop && self.in_flight == 0 {
                return Ok(());
            }
            self.sleep(if more { Duration::ZERO } else { self.until_next(inbox.stop) })?;
        }
    }

    /// One sync for all that ended since the last turn. What may repeat is only written, once for several turns.
    fn log(&mut self, now: Instant, stopping: bool) {
        match if stopping { Some(Step::Sync) } else { self.pace.step(now) } {
            None => return,
            Some(Step::Write) => self.follower.write(),
            Some(Step::Sync) => self.follower.sync(),
        }
        self.pace.done(now, self.follower.has_unlogged());
    }

    fn take_inbox(&self) -> Inbox {
        // In this order: what is told after the flag is down wakes us again.
        let mut drained = [0; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut drained);
        self.shared.rung.store(false, Ordering::SeqCst);
        let mut inbox = self.shared.inbox.lock();
        let Inbox { links, bells, settled, outcomes, requests, stop } = &mut *inbox;
        Inbox {
            links: mem::take(links),
            bells: mem::take(bells),
            settled: mem::take(settled),
            outcomes: mem::take(outcomes),
            requests: mem::take(requests),
            // The word to stop stays said.
            stop: *stop,
        }
    }

    fn look_for_the_dead(&mut self) {
        let now = Instant::now();
        if now >= self.scan_at {
            self.follower.scan();
            self.shared.routes.iter().for_each(|route| route.tidy());
            self.hurried = self.hurried.saturating_sub(1);
            self.scan_at = now + if self.hurried > 0 { HURRIED_EVERY } else { SCAN_EVERY };
        }
    }

    /// Begins attempts; true when there is more to do at once.
    fn feed(&mut self, jobs: &Sender<Message>, threaded: bool) -> bool {
        let most = if threaded { self.threads * JOBS_PER_THREAD } else { TURN_MESSAGES };
        for _ in 0..TURN_MESSAGES {
            if threaded && self.in_flight >= most {
                return false;
            }
            let mut message = self.spare.pop().unwrap_or_default();
            if !self.next_due(&mut message) {
                if !self.follower.next(&mut message) {
                    self.spare.push(message);
                    return false;
                }
                if self.held.contains(message.id()) {
                    self.keep_held(&message);
                    self.spare.push(message);
                    continue;
                }
            }
            if !threaded {
                let attempted = attempt_contained(&self.shared, &message);
                self.settle(Outcome { message, attempted });
            } else if jobs.send(message).is_ok() {
                self.in_flight += 1;
            }
        }
        true
    }

    fn settle(&mut self, outcome: Outcome) {
        let Outcome { message, attempted } = outcome;
        let key = message.key();
        if !attempted.may_repeat {
            self.pace.must_last();
        }
        match &attempted.damage {
            Some(Damage::Body) => {
                self.follower.set_aside(key);
                self.shared.counts.set_aside.fetch_add(1, Ordering::Relaxed);
                self.forget(key);
            }
            Some(Damage::Stuck(reason)) => {
                self.shared.events.event(&Event::Stuck { id: message.id(), reason });
                let reason = reason.clone();
                let deferred = vec![Deferred { recipient: String::new(), route: None, reason }];
                self.defer(key, &message, Attempted { deferred, ..Attempted::default() });
            }
            None => {
                let Attempted { recipients, settled, told, .. } = &attempted;
                if !told.is_empty() {
                    self.follower.note_told(key, *recipients, told.iter().copied());
                }
                if !settled.is_empty() || *recipients == 0 {
                    self.follower.acknowledge(
                        key,
                        *recipients,
                        settled.iter().copied().chain((*recipients == 0).then_some(0)),
                    );
                }
                if attempted.deferred.is_empty() {
                    self.forget(key);
                } else {
                    self.defer(key, &message, attempted);
                }
            }
        }
        if self.spare.len() < self.threads * JOBS_PER_THREAD {
            self.spare.push(message);
        }
    }

    fn count(&self) {
        self.shared.counts.in_flight.store(self.in_flight as u64, Ordering::Relaxed);
        self.shared.counts.waiting.store(self.waiting.len() as u64, Ordering::Relaxed);
    }

    fn until_next(&self, stopping: bool) -> Duration {
        let due = self.due.peek().map(|Reverse((at, _))| *at).filter(|_| !stopping);
        let due = if self.ready.is_empty() || stopping { due } else { Some(Instant::now()) };
        // With every thread busy a due message waits for an outcome, which wakes us.
        let due = due.filter(|_| self.in_flight < self.threads * JOBS_PER_THREAD);
        let at = due.map_or(self.scan_at, |due| due.min(self.scan_at));
        let until = at.saturating_duration_since(Instant::now());
        let log = self.pace.at().saturating_duration_since(Instant::now());
        if self.follower.has_unlogged() { until.min(log) } else { until }
    }

    fn sleep(&self, most: Duration) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        fds.extend(self.links.iter().map(|link| PollFd::new(&**link, PollFlags::IN)));
        let timeout = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn run_jobs(shared: &Arc<Shared>, work: &Receiver<Message>) {
    for message in work {
        let attempted = attempt_contained(shared, &message);
        shared.tell(|inbox| inbox.outcomes.push(Outcome { message, attempted }));
    }
}
