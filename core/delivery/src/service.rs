//! The delivery process's loop: doorbells in, jobs out to threads, results into the acknowledgement log.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use link::pass::{QUESTION, Question};
use link::{Link, Received, frames};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use smtp::envelope::{Envelope, Recipient};
use smtp::id::QueueId;
use spool::{Disk, Doorbell, Floors, Follower, Hooks, Message, MessageKey, Notice, Options, Writer};

mod pace;
#[cfg(test)]
mod tests;

use self::pace::{Pace, Step};
use crate::attempt::{Attempted, Damage, Deferred, attempt_contained};
use crate::event::{Event, Events};
use crate::notice::{self, Fate, Postbox};
use crate::pass::{self, Passing};
use crate::queue::{Answer, Held, Request};
use crate::retry::Retry;
use crate::route::{Destination, Mail, Routes};

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

/// Numbers for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Recipients that got their mail since the start.
    pub delivered: u64,
    /// Recipients that will not get it, since the start.
    pub failed: u64,
    /// Attempts that failed, per recipient, since the start.
    pub deferred: u64,
    /// Messages being handed on now.
    pub in_flight: u64,
    /// Messages that wait for another attempt.
    pub waiting: u64,
    /// Messages set aside as damaged since the start.
    pub set_aside: u64,
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

/// A message that could not be handed on at once.
pub(crate) struct Waiting {
    pub(crate) id: QueueId,
    pub(crate) unix_ms: u64,
    pub(crate) octets: u64,
    pub(crate) sender: Option<Box<str>>,
    pub(crate) recipients: Vec<Deferred>,
    pub(crate) attempts: u32,
    pub(crate) next: Next,
    pub(crate) wish: Option<Wish>,
}

/// What happens next to a message that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is with a thread.
    Trying,
    /// It is tried at this time.
    At(Instant),
    /// It waits for a connection of this route to this destination.
    Parked(usize, Destination),
    /// It is tried as soon as a thread is free.
    Ready,
    /// Nothing, until the operator says so.
    Held,
}

/// What the operator wants of a message that is being tried just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Hold,
    Retry,
    Remove,
}

/// What the process around gives to a service that runs.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) routes: Routes,
    /// Messages whose clients wait.
    pub(crate) passing: Passing,
    pub(crate) events: Arc<dyn Events>,
    pub(crate) expire: Duration,
    pub(crate) delay_notice: Option<Duration>,
    hostname: String,
    floors: Floors,
    disk: Arc<dyn Disk>,
    /// Made when the first notice is written.
    postbox: Mutex<Option<Arc<Postbox>>>,
    inbox: Mutex<Inbox>,
    /// Somebody has put something into the inbox since the loop looked.
    rung: AtomicBool,
    wake: OwnedFd,
    pub(crate) counts: Counts,
}

#[derive(Default)]
pub(crate) struct Inbox {
    links: Vec<Link>,
    bells: Vec<Doorbell>,
    /// Who has the message of an attempt that goes on: of how many, and who.
    pub(crate) settled: Vec<(MessageKey, u32, Vec<u32>)>,
    outcomes: Vec<Outcome>,
    requests: Vec<(Request, Sender<Answer>)>,
    stop: bool,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) delivered: AtomicU64,
    pub(crate) failed: AtomicU64,
    deferred: AtomicU64,
    in_flight: AtomicU64,
    waiting: AtomicU64,
    set_aside: AtomicU64,
}

/// A message and how its attempt ended.
struct Outcome {
    message: Message,
    attempted: Attempted,
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
/// Notices are few.
const NOTICE_SEGMENT_OCTETS: u64 = 1 << 20;
/// Messages in one turn, when no route blocks.
const TURN_MESSAGES: usize = 512;
/// How long somebody who asks about the queue is kept waiting.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Packets read from one link in one turn.
const TURN_PACKETS: usize = 64;

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

    fn read_links(&mut self) {
        let mut packet = Vec::new();
        let (follower, shared) = (&mut self.follower, &self.shared);
        let before = self.links.len();
        self.links.retain(|link| {
            for _ in 0..TURN_PACKETS {
                match link.receive(&mut packet) {
                    Ok(Received::Packet { fds }) => hear(follower, shared, link, &packet, fds),
                    Ok(Received::WouldBlock) => return true,
                    Ok(Received::Closed) => return false,
                    Err(error) => {
                        shared.events.event(&Event::Link { reason: &error.to_string() });
                        return false;
                    }
                }
            }
            true
        });
        if self.links.len() < before {
            self.hurried = HURRIED_SCANS;
            self.scan_at = Instant::now();
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

    /// A message whose time has come again.
    fn next_due(&mut self, message: &mut Message) -> bool {
        let now = Instant::now();
        loop {
            let (key, next) = match self.ready.pop_front() {
                Some(key) => (key, Next::Ready),
                None => match self.due.peek() {
                    Some(&Reverse((at, key))) if at <= now => {
                        self.due.pop();
                        (key, Next::At(at))
                    }
                    _ => return false,
                },
            };
            // It may have been moved, held or removed meanwhile.
            let Some(waiting) = self.waiting.get_mut(&key).filter(|waiting| waiting.next == next) else { continue };
            match self.follower.read(key, message) {
                Ok(()) => {
                    waiting.next = Next::Trying;
                    return true;
                }
                Err(spool::ReadTrouble::Unknown) => drop(self.waiting.remove(&key)),
                Err(spool::ReadTrouble::Unreadable) => {
                    let reason = "its record in the spool cannot be read now";
                    self.shared.events.event(&Event::Stuck { id: waiting.id, reason });
                    let at = now + self.retry.max;
                    waiting.next = Next::At(at);
                    self.due.push(Reverse((at, key)));
                }
            }
        }
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

    pub(crate) fn forget(&mut self, key: MessageKey) {
        if let Some(waiting) = self.waiting.remove(&key) {
            self.let_go(waiting.id);
        }
    }

    /// It is no longer held; when that cannot be written, a later start holds a message that is not there.
    pub(crate) fn let_go(&mut self, id: QueueId) {
        if let Err(error) = self.held.remove(id) {
            self.shared.events.event(&Event::Stuck { id, reason: &format!("list of held messages: {error}") });
        }
    }

    fn defer(&mut self, key: MessageKey, message: &Message, attempted: Attempted) {
        let Attempted { deferred, busy, postponed, sender, .. } = attempted;
        let waiting = self.waiting.entry(key).or_insert_with(|| Waiting::of(message, sender));
        let tried = busy.is_none() && postponed.is_none();
        waiting.attempts = waiting.attempts.saturating_add(u32::from(tried));
        let mut chance = [0; 4];
        // Without random numbers there is no spreading; nothing else depends on it.
        let _ = getrandom::fill(&mut chance);
        let chance = u32::from_le_bytes(chance);
        let after = match postponed {
            // A little later than the first who may try, and not all at once.
            Some(wait) => wait + self.retry.first.mul_f64(f64::from(chance) / f64::from(u32::MAX)),
            None => self.retry.after(waiting.attempts, chance),
        };
        let events = &self.shared.events;
        let (attempts, next_seconds) = (waiting.attempts, after.as_secs());
        if busy.is_none() {
            for Deferred { recipient, route, reason } in &deferred {
                self.shared.counts.deferred.fetch_add(1, Ordering::Relaxed);
                let route = route.and_then(|place| self.shared.routes.get(place)).map(|route| route.name());
                let (id, reason) = (message.id(), reason.as_str());
                events.event(&Event::Deferred { id, recipient, route, reason, attempts, next_seconds });
            }
        }
        waiting.recipients = deferred;
        let wish = waiting.wish.take();
        waiting.next = match (wish, busy) {
            (Some(Wish::Hold), _) => Next::Held,
            (Some(Wish::Retry), _) => Next::Ready,
            (_, Some((route, to))) => Next::Parked(route, to),
            (_, None) => Next::At(Instant::now() + after),
        };
        match waiting.next {
            Next::At(at) => self.due.push(Reverse((at, key))),
            Next::Ready => self.ready.push_back(key),
            Next::Parked(route, to) => self.parked.entry((route, to)).or_default().push_back(key),
            Next::Trying | Next::Held => {}
        }
        if wish == Some(Wish::Remove) {
            self.remove(key);
        }
    }

    /// A held message of an earlier life.
    fn keep_held(&mut self, message: &Message) {
        let envelope = Envelope::decode(message.envelope()).unwrap_or_default();
        let sender = envelope.reverse_path().map(Box::from);
        let mut waiting = Waiting::of(message, sender);
        waiting.next = Next::Held;
        waiting.recipients = (0..)
            .zip(envelope.recipients())
            .filter(|&(index, _)| !message.is_settled(index))
            .map(|(_, recipient)| Deferred {
                recipient: recipient.address.to_owned(),
                route: self.shared.routes.find(&recipient),
                reason: "held".to_owned(),
            })
            .collect();
        self.waiting.insert(message.key(), waiting);
    }

    /// Routes that have connections again get what waits for them.
    fn unpark(&mut self) {
        let Self { parked, shared, ready, waiting, .. } = self;
        parked.retain(|&(route, to), keys| {
            let mut room = shared.routes.get(route).map_or(usize::MAX, |route| route.room(to));
            while room > 0
                && let Some(key) = keys.pop_front()
            {
                if let Some(waiting) = waiting.get_mut(&key)
                    && waiting.next == Next::Parked(route, to)
                {
                    waiting.next = Next::Ready;
                    ready.push_back(key);
                    room -= 1;
                }
            }
            !keys.is_empty()
        });
    }

    /// Settles every recipient of a message without a word to anybody.
    pub(crate) fn remove(&mut self, key: MessageKey) {
        let mut message = Message::default();
        let recipients = match self.follower.read(key, &mut message) {
            Ok(()) => Envelope::decode(message.envelope()).ok().map(|envelope| envelope.recipients().len() as u32),
            Err(_) => None,
        };
        match recipients {
            Some(recipients) => self.follower.acknowledge(key, recipients.max(1), 0..recipients.max(1)),
            // What cannot be read goes where the operator can look at it.
            None => self.follower.set_aside(key),
        }
        self.pace.must_last();
        if let Some(waiting) = self.waiting.get(&key) {
            self.shared.events.event(&Event::Removed { id: waiting.id });
        }
        self.forget(key);
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

impl Handle {
    /// Doorbells of a worker arrive on this link; when it closes, its spool is looked at.
    pub fn follow(&self, link: Link) {
        self.shared.tell(|inbox| inbox.links.push(link));
    }

    /// A doorbell that came another way.
    pub fn ring(&self, bell: Doorbell) {
        self.shared.tell(|inbox| inbox.bells.push(bell));
    }

    /// Begin nothing new, end what is under way; then [`Service::run`] returns.
    pub fn stop(&self) {
        self.shared.tell(|inbox| inbox.stop = true);
    }

    /// What the operator asks about the queue, or wants done with it; `None` when the service has ended or
    /// does not answer.
    pub fn queue(&self, request: Request) -> Option<Answer> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        self.shared.tell(|inbox| inbox.requests.push((request, answer)));
        answered.recv_timeout(ANSWER_PATIENCE).ok()
    }

    /// Numbers now.
    pub fn stats(&self) -> Stats {
        let counts = &self.shared.counts;
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            delivered: now(&counts.delivered),
            failed: now(&counts.failed),
            deferred: now(&counts.deferred),
            in_flight: now(&counts.in_flight),
            waiting: now(&counts.waiting),
            set_aside: now(&counts.set_aside),
        }
    }
}

impl Waiting {
    fn of(message: &Message, sender: Option<Box<str>>) -> Self {
        Self {
            id: message.id(),
            unix_ms: message.unix_ms(),
            octets: message.prepend().len() as u64 + message.body_octets(),
            sender,
            recipients: Vec::new(),
            attempts: 0,
            next: Next::Trying,
            wish: None,
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Shared {
    /// Where notices are written.
    pub(crate) fn postbox(self: &Arc<Self>) -> io::Result<Arc<Postbox>> {
        let mut postbox = self.postbox.lock();
        if let Some(postbox) = &*postbox {
            return Ok(postbox.clone());
        }
        let (bells, trouble) = (Arc::downgrade(self), Arc::downgrade(self));
        let hooks = Hooks {
            doorbell: Box::new(move |bell| {
                if let Some(shared) = bells.upgrade() {
                    shared.tell(|inbox| inbox.bells.push(bell));
                }
            }),
            trouble: Box::new(move |reason| {
                if let Some(shared) = trouble.upgrade() {
                    shared.events.event(&Event::Link { reason });
                }
            }),
        };
        let options = Options {
            segment_octets: NOTICE_SEGMENT_OCTETS,
            pool_octets: 8 << 20,
            floors: self.floors,
            ..Options::default()
        };
        let made = Arc::new(Postbox::new(Writer::open(self.disk.clone(), options, hooks)?));
        *postbox = Some(made.clone());
        Ok(made)
    }

    /// Tells the sender what became of these recipients; well when it is durable.
    pub(crate) fn notify(
        self: &Arc<Self>,
        mail: &Mail<'_>,
        about: &[(Recipient<'_>, Fate)],
    ) -> Result<QueueId, String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let now = unix_ms();
        let id = QueueId::new(now, u128::from_le_bytes(random));
        let (envelope, message) =
            notice::make(mail, about, &self.hostname, id, now).map_err(|error| error.to_string())?;
        let postbox = self.postbox().map_err(|error| error.to_string())?;
        postbox.post(id, &envelope, &message)?;
        Ok(id)
    }

    pub(crate) fn tell(&self, what: impl FnOnce(&mut Inbox)) {
        what(&mut self.inbox.lock());
        if !self.rung.swap(true, Ordering::SeqCst) {
            // Full means that it is rung.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// What a worker says: how far its segment is durable, and what it wants to pass through.
fn hear(follower: &mut Follower, shared: &Shared, link: &Arc<Link>, packet: &[u8], fds: Vec<OwnedFd>) {
    let events = &*shared.events;
    let mut fds = fds.into_iter();
    for frame in frames(packet) {
        match frame {
            Ok(frame) if frame.kind == Doorbell::FRAME_KIND => match Doorbell::decode(frame.payload) {
                Some(bell) => follower.ring(bell),
                None => events.event(&Event::Link { reason: "a doorbell of the wrong length" }),
            },
            Ok(frame) if frame.kind == QUESTION => {
                let question = Question::decode(frame.payload).map_err(|bad| bad.to_string());
                let asked = question.and_then(|question| {
                    let file = fds.next().ok_or("a message came without its file")?;
                    shared.passing.ask(shared, link, frame.id, question, file)
                });
                // Its client is answered by the worker, at its deadline.
                asked.unwrap_or_else(|reason| events.event(&Event::Link { reason: &reason }));
            }
            // A newer worker may say what we do not know yet.
            Ok(_) => {}
            Err(bad) => return events.event(&Event::Link { reason: &bad.to_string() }),
        }
    }
}

fn run_jobs(shared: &Arc<Shared>, work: &Receiver<Message>) {
    for message in work {
        let attempted = attempt_contained(shared, &message);
        shared.tell(|inbox| inbox.outcomes.push(Outcome { message, attempted }));
    }
}
