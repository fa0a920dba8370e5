//! The delivery process's loop: doorbells in, jobs out to threads, results into the acknowledgement log.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use link::{Link, Received, frames};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use smtp::envelope::{Envelope, Recipient};
use smtp::id::QueueId;
use spool::{BodyTrouble, Disk, Doorbell, Follower, Message, MessageKey, Notice};

use crate::event::{Event, Events};
use crate::retry::Retry;
use crate::route::{Mail, Routes, Verdict};

/// How delivery works.
pub struct Settings {
    /// Where mail goes.
    pub routes: Routes,
    /// When what failed is tried again.
    pub retry: Retry,
    /// Attempts at the same time.
    pub threads: usize,
}

impl Settings {
    /// With the usual times and four threads.
    pub fn new(routes: Routes) -> Self {
        Self { routes, retry: Retry::default(), threads: 4 }
    }
}

/// Numbers for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Recipients that got their mail since the start.
    pub delivered: u64,
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
    follower: Follower,
    shared: Arc<Shared>,
    retry: Retry,
    threads: usize,
    links: Vec<Link>,
    /// Messages whose attempt failed.
    waiting: HashMap<MessageKey, Waiting>,
    due: BinaryHeap<Reverse<(Instant, MessageKey)>>,
    in_flight: usize,
    spare: Vec<Message>,
    scan_at: Instant,
    /// Looks in quick succession that are still to come after a worker's end.
    hurried: u32,
}

struct Waiting {
    id: QueueId,
    attempts: u32,
}

/// What the process around gives to a service that runs.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    routes: Routes,
    events: Arc<dyn Events>,
    inbox: Mutex<Inbox>,
    /// Somebody has put something into the inbox since the loop looked.
    rung: AtomicBool,
    wake: OwnedFd,
    counts: Counts,
}

#[derive(Default)]
struct Inbox {
    links: Vec<Link>,
    bells: Vec<Doorbell>,
    outcomes: Vec<Outcome>,
    stop: bool,
}

#[derive(Default)]
struct Counts {
    delivered: AtomicU64,
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

/// One attempt's end.
#[derive(Default)]
struct Attempted {
    recipients: u32,
    settled: Vec<u32>,
    deferred: Vec<Deferred>,
    damage: Option<Damage>,
}

struct Deferred {
    recipient: String,
    /// Place of the route.
    route: Option<usize>,
    reason: String,
}

enum Damage {
    /// Its octets are not those that were accepted.
    Body,
    /// Cannot be tried by this program.
    Stuck(String),
}

/// Between looks for writers that went without a word.
const SCAN_EVERY: Duration = Duration::from_secs(10);
/// A worker's link closes a little before its locks are free.
const HURRIED_EVERY: Duration = Duration::from_millis(100);
const HURRIED_SCANS: u32 = 10;
/// Jobs per thread, under way and waiting for it.
const JOBS_PER_THREAD: usize = 4;
/// Messages in one turn, when no route blocks.
const TURN_MESSAGES: usize = 512;
/// Packets read from one link in one turn.
const TURN_PACKETS: usize = 64;

impl Service {
    /// Takes the spool (fails when another delivery process has it) and finds what earlier ones left.
    pub fn open(disk: Arc<dyn Disk>, settings: Settings, events: Arc<dyn Events>) -> io::Result<(Self, Handle)> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            routes: settings.routes,
            events: events.clone(),
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
            threads: settings.threads.max(1),
            links: Vec::new(),
            waiting: HashMap::new(),
            due: BinaryHeap::new(),
            in_flight: 0,
            spare: Vec::new(),
            scan_at: Instant::now() + SCAN_EVERY,
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
        let ended = self.turn_until_stopped(&jobs, !threads.is_empty());
        drop(jobs);
        for thread in threads {
            let _ = thread.join();
        }
        // What they ended while we left, after an error too.
        let outcomes = mem::take(&mut self.shared.inbox.lock().outcomes);
        outcomes.into_iter().for_each(|outcome| self.settle(outcome));
        self.follower.sync();
        ended
    }

    fn turn_until_stopped(&mut self, jobs: &Sender<Message>, threaded: bool) -> io::Result<()> {
        loop {
            let inbox = self.take_inbox();
            self.links.extend(inbox.links);
            inbox.bells.into_iter().for_each(|bell| self.follower.ring(bell));
            self.in_flight -= inbox.outcomes.len();
            inbox.outcomes.into_iter().for_each(|outcome| self.settle(outcome));
            self.read_links();
            self.look_for_the_dead();
            let mut more = false;
            if !inbox.stop {
                more = self.feed(jobs, threaded);
            }
            // One sync for all that ended since the last turn.
            self.follower.sync();
            self.count();
            if inbox.stop && self.in_flight == 0 {
                return Ok(());
            }
            self.sleep(if more { Duration::ZERO } else { self.until_next(inbox.stop) })?;
        }
    }

    fn take_inbox(&self) -> Inbox {
        // In this order: what is told after the flag is down wakes us again.
        let mut drained = [0; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut drained);
        self.shared.rung.store(false, Ordering::SeqCst);
        let mut inbox = self.shared.inbox.lock();
        let Inbox { links, bells, outcomes, stop } = &mut *inbox;
        // The word to stop stays said.
        Inbox { links: mem::take(links), bells: mem::take(bells), outcomes: mem::take(outcomes), stop: *stop }
    }

    fn read_links(&mut self) {
        let mut packet = Vec::new();
        let (follower, events) = (&mut self.follower, &self.shared.events);
        let before = self.links.len();
        self.links.retain(|link| {
            for _ in 0..TURN_PACKETS {
                match link.receive(&mut packet) {
                    Ok(Received::Packet { .. }) => ring_all(follower, &**events, &packet),
                    Ok(Received::WouldBlock) => return true,
                    Ok(Received::Closed) => return false,
                    Err(error) => {
                        events.event(&Event::Link { reason: &error.to_string() });
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
            if !self.next_due(&mut message) && !self.follower.next(&mut message) {
                self.spare.push(message);
                return false;
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
        while let Some(&Reverse((at, key))) = self.due.peek() {
            if at > now {
                return false;
            }
            self.due.pop();
            match self.follower.read(key, message) {
                Ok(()) => return true,
                Err(spool::ReadTrouble::Unknown) => drop(self.waiting.remove(&key)),
                Err(spool::ReadTrouble::Unreadable) => {
                    let reason = "its record in the spool cannot be read now";
                    if let Some(waiting) = self.waiting.get(&key) {
                        self.shared.events.event(&Event::Stuck { id: waiting.id, reason });
                    }
                    self.due.push(Reverse((now + self.retry.max, key)));
                }
            }
        }
        false
    }

    fn settle(&mut self, outcome: Outcome) {
        let Outcome { message, attempted: Attempted { recipients, settled, deferred, damage } } = outcome;
        let key = message.key();
        match damage {
            Some(Damage::Body) => {
                self.follower.set_aside(key);
                self.shared.counts.set_aside.fetch_add(1, Ordering::Relaxed);
                self.waiting.remove(&key);
            }
            Some(Damage::Stuck(reason)) => {
                self.shared.events.event(&Event::Stuck { id: message.id(), reason: &reason });
                self.defer(key, &message, &[]);
            }
            None => {
                if !settled.is_empty() || recipients == 0 {
                    self.follower.acknowledge(
                        key,
                        recipients,
                        settled.into_iter().chain((recipients == 0).then_some(0)),
                    );
                }
                if deferred.is_empty() {
                    self.waiting.remove(&key);
                } else {
                    self.defer(key, &message, &deferred);
                }
            }
        }
        if self.spare.len() < self.threads * JOBS_PER_THREAD {
            self.spare.push(message);
        }
    }

    fn defer(&mut self, key: MessageKey, message: &Message, deferred: &[Deferred]) {
        let waiting = self.waiting.entry(key).or_insert(Waiting { id: message.id(), attempts: 0 });
        waiting.attempts = waiting.attempts.saturating_add(1);
        let attempts = waiting.attempts;
        let mut chance = [0; 4];
        // Without random numbers there is no spreading; nothing else depends on it.
        let _ = getrandom::fill(&mut chance);
        let after = self.retry.after(attempts, u32::from_le_bytes(chance));
        self.due.push(Reverse((Instant::now() + after, key)));
        for Deferred { recipient, route, reason } in deferred {
            self.shared.counts.deferred.fetch_add(1, Ordering::Relaxed);
            self.shared.events.event(&Event::Deferred {
                id: message.id(),
                recipient,
                route: route.and_then(|place| self.shared.routes.get(place)).map(|route| route.name()),
                reason,
                attempts,
                next_seconds: after.as_secs(),
            });
        }
    }

    fn count(&self) {
        self.shared.counts.in_flight.store(self.in_flight as u64, Ordering::Relaxed);
        self.shared.counts.waiting.store(self.waiting.len() as u64, Ordering::Relaxed);
    }

    fn until_next(&self, stopping: bool) -> Duration {
        let due = self.due.peek().map(|Reverse((at, _))| *at).filter(|_| !stopping);
        // With every thread busy a due message waits for an outcome, which wakes us.
        let due = due.filter(|_| self.in_flight < self.threads * JOBS_PER_THREAD);
        let at = due.map_or(self.scan_at, |due| due.min(self.scan_at));
        let until = at.saturating_duration_since(Instant::now());
        // Acknowledgements that the disk refused are tried again soon.
        if self.follower.has_unlogged() { until.min(Duration::from_secs(1)) } else { until }
    }

    fn sleep(&self, most: Duration) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        fds.extend(self.links.iter().map(|link| PollFd::new(link, PollFlags::IN)));
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

    /// Numbers now.
    pub fn stats(&self) -> Stats {
        let counts = &self.shared.counts;
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            delivered: now(&counts.delivered),
            deferred: now(&counts.deferred),
            in_flight: now(&counts.in_flight),
            waiting: now(&counts.waiting),
            set_aside: now(&counts.set_aside),
        }
    }
}

impl Shared {
    fn tell(&self, what: impl FnOnce(&mut Inbox)) {
        what(&mut self.inbox.lock());
        if !self.rung.swap(true, Ordering::SeqCst) {
            // Full means that it is rung.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

fn ring_all(follower: &mut Follower, events: &dyn Events, packet: &[u8]) {
    for frame in frames(packet) {
        match frame {
            Ok(frame) if frame.kind == Doorbell::FRAME_KIND => match Doorbell::decode(frame.payload) {
                Some(bell) => follower.ring(bell),
                None => events.event(&Event::Link { reason: "a doorbell of the wrong length" }),
            },
            // A newer worker may say what we do not know yet.
            Ok(_) => {}
            Err(bad) => return events.event(&Event::Link { reason: &bad.to_string() }),
        }
    }
}

fn run_jobs(shared: &Shared, work: &Receiver<Message>) {
    for message in work {
        let attempted = attempt_contained(shared, &message);
        shared.tell(|inbox| inbox.outcomes.push(Outcome { message, attempted }));
    }
}

/// A panic in a route is that message's trouble and nobody else's.
fn attempt_contained(shared: &Shared, message: &Message) -> Attempted {
    std::panic::catch_unwind(AssertUnwindSafe(|| attempt(shared, message))).unwrap_or_else(|_| {
        let damage = Damage::Stuck("its route panicked; this is a bug".to_owned());
        Attempted { damage: Some(damage), ..Attempted::default() }
    })
}

/// One attempt for all recipients that are not settled.
fn attempt(shared: &Shared, message: &Message) -> Attempted {
    let mut outcome = Attempted::default();
    let envelope = match Envelope::decode(message.envelope()) {
        Ok(envelope) => envelope,
        Err(bad) => {
            outcome.damage = Some(Damage::Stuck(format!("its envelope is {bad}")));
            return outcome;
        }
    };
    match message.verify() {
        Ok(()) => {}
        Err(BodyTrouble::Damaged) => {
            outcome.damage = Some(Damage::Body);
            return outcome;
        }
        Err(BodyTrouble::Unreadable(error)) => {
            outcome.damage = Some(Damage::Stuck(format!("its body cannot be read: {error}")));
            return outcome;
        }
    }
    outcome.recipients = envelope.recipients().len() as u32;
    let open: Vec<(u32, Recipient<'_>)> =
        (0..).zip(envelope.recipients()).filter(|&(index, _)| !message.is_settled(index)).collect();
    let places: Vec<Option<usize>> = open.iter().map(|(_, recipient)| shared.routes.find(recipient)).collect();
    for place in places.iter().copied().collect::<BTreeSet<_>>() {
        let here: Vec<&(u32, Recipient<'_>)> =
            open.iter().zip(&places).filter(|&(_, at)| *at == place).map(|(recipient, _)| recipient).collect();
        let recipients: Vec<Recipient<'_>> = here.iter().map(|&&(_, recipient)| recipient).collect();
        let route = place.and_then(|place| shared.routes.get(place));
        let verdicts = match route {
            Some(route) => route.deliver(&Mail::new(&envelope, message), &recipients),
            None => Vec::new(),
        };
        let mut verdicts = verdicts.into_iter();
        for &&(index, recipient) in &here {
            let reason = match verdicts.next() {
                Some(Verdict::Delivered) => {
                    outcome.settled.push(index);
                    shared.counts.delivered.fetch_add(1, Ordering::Relaxed);
                    if let Some(route) = route {
                        let (id, recipient, route) = (message.id(), recipient.address, route.name());
                        shared.events.event(&Event::Delivered { id, recipient, route });
                    }
                    continue;
                }
                Some(Verdict::Later(reason)) => reason,
                Some(Verdict::Never(reason)) => format!("will not work as it is: {reason}"),
                None if route.is_none() => {
                    "its domain has no route and there is no default one; add a route".to_owned()
                }
                None => "the route gave no verdict".to_owned(),
            };
            outcome.deferred.push(Deferred { recipient: recipient.address.to_owned(), route: place, reason });
        }
    }
    outcome
}
