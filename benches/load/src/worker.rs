//! A load process: one event loop with many sessions, told by its parent what to do and when to stop.
//!
//! ```text
//! stdin   plan as one JSON line, then "go" when all processes have their idle sessions; its end means: stop
//! stdout  a Tick as one JSON line per interval, the last one with `done`
//! ```
//!
//! In an open loop every session has an intended start, which does not wait for the server: latency counts
//! from there, so a server that stalls cannot make its own measurement pause (no coordinated omission).

use std::collections::BinaryHeap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::dialogue::{Dialogue, Spec, Trouble};
use crate::plan::{Plan, Tls};
use crate::sizes::Random;
use crate::tick::{Interval, Tick};
use crate::transport::{TlsConfig, Transport};

mod begin;
mod time;
mod turn;

const TICK: Duration = Duration::from_millis(250);
/// Between looks for servers that are silent; each session is looked at once in a second.
const SWEEP: Duration = Duration::from_millis(50);
/// How often slow clients send.
const PACE: Duration = Duration::from_millis(100);
/// What a stopped run gives to sessions in progress.
const GRACE: Duration = Duration::from_millis(500);

const STDIN: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

struct Session {
    transport: Transport,
    dialogue: Dialogue,
    received: Vec<u8>,
    scenario: u16,
    intended: Instant,
    /// When octets last came or went.
    moved: Instant,
    /// Octets that came since the dialogue last took some: of a handshake, of a reply that is not whole, or of records
    /// without content.
    untaken: usize,
    warm: bool,
    spoiled: bool,
    secured: bool,
    held: bool,
    /// Of an idle one that is held: where it stands among them.
    place: usize,
    more: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    /// A slow client may send again.
    Pace,
    /// A half-open client goes.
    Leave,
}

/// The process.
pub fn main() -> Result<(), String> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(|error| format!("stdin: {error}"))?;
    let plan: Plan = serde_json::from_str(&line).map_err(|error| format!("plan: {error}"))?;
    // The hard limit is the operator's word; the soft one is for programs that use `select`.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .map_err(|error| format!("limit of open descriptors: {error}"))?;
    Worker::new(plan)?.run()
}

struct Worker {
    plan: Plan,
    poll: Poll,
    timer: rustix::fd::OwnedFd,
    /// When the timer goes off.
    set: Option<Instant>,
    specs: Vec<Arc<Spec>>,
    tls: Vec<TlsConfig>,
    slots: Vec<Option<Box<Session>>>,
    generations: Vec<u32>,
    free: Vec<usize>,
    alarms: BinaryHeap<(std::cmp::Reverse<Instant>, Alarm, usize, u32)>,
    random: Random,
    buffer: Vec<u8>,
    out: Vec<u8>,
    /// Since the process began; the beginning of the mix.
    start: Instant,
    go: Option<Instant>,
    next_tick: Instant,
    told_done: bool,
    stop: Option<Instant>,
    /// Idle sessions that are still to be begun, per scenario; slots of those that are held.
    to_gather: Vec<u64>,
    gathered: u64,
    crowd_lost: u64,
    held: Vec<usize>,
    /// Slots whose turn was ended before all was read and sent: the others come first.
    again: Vec<usize>,
    /// Slots before it were looked at, see `time`.
    swept: usize,
    /// Sessions of the mix that were begun, and that are in progress.
    begun: u64,
    active: usize,
    /// Intended start of the next session in an open loop.
    next: Instant,
    next_noop: Instant,
    /// What the server says of itself; told once.
    greeting: Option<String>,
    interval: Interval,
}

impl Worker {
    fn new(plan: Plan) -> Result<Self, String> {
        let told = |error: io::Error| error.to_string();
        let poll = Poll::new().map_err(told)?;
        let stdin = io::stdin();
        rustix::io::ioctl_fionbio(&stdin, true).map_err(|error| format!("stdin: {error}"))?;
        poll.registry().register(&mut SourceFd(&stdin.as_raw_fd()), STDIN, Interest::READABLE).map_err(told)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|error| format!("timerfd: {error}"))?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE).map_err(told)?;
        let named = |name: &str, error: String| format!("scenario {name:?}: {error}");
        let mut specs = Vec::new();
        let mut tls = Vec::new();
        for scenario in &plan.scenarios {
            specs.push(Arc::new(Spec::new(scenario).map_err(|error| named(&scenario.name, error))?));
            tls.push(TlsConfig::new(scenario).map_err(|error| named(&scenario.name, error))?);
        }
        if plan.scenarios.iter().any(|scenario| scenario.tls != Tls::None) {
            // A thread's first random octets take aws-lc some 50 ms, which would be the first handshakes'.
            let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
            random.fill(&mut [0; 32]).map_err(|_| "no random octets".to_owned())?;
        }
        let start = Instant::now();
        let interval = Interval::new(plan.scenarios.len(), start);
        Ok(Self {
            poll,
            timer,
            set: None,
            specs,
            tls,
            slots: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            alarms: BinaryHeap::new(),
            random: Random(plan.seed),
            buffer: vec![0; 64 * 1024],
            out: Vec::new(),
            start,
            go: None,
            next_tick: start + TICK,
            told_done: false,
            stop: None,
            to_gather: plan.scenarios.iter().map(|scenario| scenario.count).collect(),
            gathered: 0,
            crowd_lost: 0,
            held: Vec::new(),
            again: Vec::new(),
            swept: 0,
            begun: 0,
            active: 0,
            next: start,
            next_noop: start,
            greeting: None,
            interval,
            plan,
        })
    }

    fn run(mut self) -> Result<(), String> {
        let told = |error: io::Error| error.to_string();
        let mut events = Events::with_capacity(1024);
        let mut swept = self.start;
        let end = self.start + Duration::from_secs_f64(self.plan.time_max + self.plan.patience);
        loop {
            let now = Instant::now();
            self.gather(now);
            self.begin(now);
            self.ring(now);
            let mut until = self.next_tick;
            if let Some(due) = self.due() {
                until = until.min(due);
            }
            self.set_timer(until)?;
            let again = std::mem::take(&mut self.again);
            let wait = if again.is_empty() { TICK } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(told(error)),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    STDIN => self.hear_parent(),
                    TIMER => {
                        // Its count is of no use; reading it makes it quiet.
                        let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
                        self.set = None;
                    }
                    Token(slot) => self.turn(slot),
                }
                self.tell_between_turns().map_err(told)?;
            }
            for slot in again {
                self.turn(slot);
                self.tell_between_turns().map_err(told)?;
            }
            let now = Instant::now();
            if now >= swept + SWEEP {
                let share = (now - swept).as_secs_f64().min(1.0);
                swept = now;
                self.sweep(now, share);
            }
            let none_in_progress = self.active == 0 && self.under_way() == 0;
            let over = self.stop.is_some_and(|stop| none_in_progress || now > stop + GRACE) || now > end;
            if over {
                self.leave(now);
            }
            let done = self.is_done(now) || over;
            // The end is told at once: it is when the run is over.
            if now >= self.next_tick || over || (done && !self.told_done) {
                self.tell(now, done).map_err(told)?;
            }
            if over {
                return Ok(());
            }
        }
    }

    /// "go", or the end of stdin.
    fn hear_parent(&mut self) {
        let mut octets = [0; 64];
        loop {
            match io::stdin().lock().read(&mut octets) {
                Ok(0) => {
                    self.stop.get_or_insert_with(Instant::now);
                    return;
                }
                Ok(_) => {
                    let now = Instant::now();
                    (self.next, self.next_noop) = (now, now);
                    self.go.get_or_insert(now);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// What has to be done next without anybody asking.
    fn due(&self) -> Option<Instant> {
        let mut due = self.alarms.peek().map(|(at, ..)| at.0);
        let mut or = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
        if self.may_begin(self.next) && self.plan.rate.is_some() && self.active < self.plan.at_a_time() {
            or(self.next);
        }
        if self.go.is_some() && self.plan.noop_rate > 0.0 && !self.held.is_empty() {
            or(self.next_noop);
        }
        // The end of a duration is told when it is there: a quarter of a second later, rates would be too small.
        if let (Some(go), Some(duration)) = (self.go, self.plan.duration) {
            let end = go + Duration::from_secs_f64(self.plan.warm_up + duration);
            if end > Instant::now() {
                or(end);
            }
        }
        if self.to_gather.iter().any(|&left| left > 0) && self.stop.is_none() {
            or(Instant::now() + Duration::from_millis(2));
        }
        due
    }

    fn set_timer(&mut self, at: Instant) -> Result<(), String> {
        if self.set == Some(at) {
            return Ok(());
        }
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let value = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::time::timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: none, it_value: value },
        )
        .map_err(|error| format!("timerfd: {error}"))?;
        self.set = Some(at);
        Ok(())
    }

    /// Nothing more begins, and nothing is in progress.
    fn is_done(&self, now: Instant) -> bool {
        let none = !self.plan.has_mix();
        let next = if self.plan.rate.is_some() { self.next } else { now };
        let timed_out = self.plan.duration.is_some() && !self.may_begin(now) && !self.may_begin(next);
        let counted_out = self.plan.count.is_some_and(|count| self.begun >= count);
        self.go.is_some() && self.active == 0 && (none || timed_out || counted_out)
    }

    fn count_trouble(&mut self, scenario: usize, trouble: &Trouble, warm: bool) {
        if !warm {
            self.interval.trouble(scenario, trouble);
        }
    }

    /// Turns that cost a lot (keys of SCRAM) must not make the parent think that nobody is there.
    fn tell_between_turns(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if now >= self.next_tick { self.tell(now, self.is_done(now)) } else { Ok(()) }
    }

    fn tell(&mut self, now: Instant, done: bool) -> io::Result<()> {
        (self.next_tick, self.told_done) = (now + TICK, done);
        let names = self.plan.scenarios.iter().map(|scenario| scenario.name.as_str());
        let tick = Tick {
            at_us: (now - self.start).as_micros() as u64,
            running_us: self.go.map_or(0, |go| (now - go).as_micros() as u64),
            warm: self.go.is_some_and(|go| now < go + Duration::from_secs_f64(self.plan.warm_up)),
            gathered: self.is_gathered(),
            done,
            held: self.held.len() as u64,
            active: self.active as u64,
            // Empty from the second time on.
            greeting: self.greeting.as_mut().map(std::mem::take).unwrap_or_default(),
            ..self.interval.take(names.collect(), now)
        };
        let mut line = serde_json::to_vec(&tick).map_err(io::Error::other)?;
        line.push(b'\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(&line)?;
        stdout.flush()
    }
}
