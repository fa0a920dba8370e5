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
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::dialogue::{Dialogue, Notes, Spec, Then, Trouble};
use crate::plan::{Arrivals, Kind, Plan, Tls};
use crate::sizes::Random;
use crate::tick::{Interval, Tick};
use crate::transport::{TlsConfig, Transport};

const TICK: Duration = Duration::from_millis(250);
/// Sockets that are opened in one turn: the loop must go on hearing.
const OPEN_MAX: usize = 256;
/// Idle sessions of all processes that may be on their way to being idle.
const GATHER_MAX: u64 = 512;
/// Between looks for servers that are silent; each session is looked at once in a second.
const SWEEP: Duration = Duration::from_millis(50);
/// How often slow clients send.
const PACE: Duration = Duration::from_millis(100);
/// What a stopped run gives to sessions in progress.
const GRACE: Duration = Duration::from_millis(500);
/// Characters of a greeting that are kept.
const GREETING_MAX: usize = 200;

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
    warm: bool,
    spoiled: bool,
    secured: bool,
    held: bool,
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
    told_done: bool,
    stop: Option<Instant>,
    /// Idle sessions that are still to be begun, per scenario; slots of those that are held.
    to_gather: Vec<u64>,
    gathered: u64,
    crowd_lost: u64,
    held: Vec<usize>,
    /// Slots before it were looked at, see [`Self::sweep`].
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
            told_done: false,
            stop: None,
            to_gather: plan.scenarios.iter().map(|scenario| scenario.count).collect(),
            gathered: 0,
            crowd_lost: 0,
            held: Vec::new(),
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
        let mut next_tick = self.start + TICK;
        let mut swept = self.start;
        let end = self.start + Duration::from_secs_f64(self.plan.time_max + self.plan.patience);
        loop {
            let now = Instant::now();
            self.gather(now);
            self.begin(now);
            self.ring(now);
            let mut until = next_tick;
            if let Some(due) = self.due() {
                until = until.min(due);
            }
            self.set_timer(until)?;
            match self.poll.poll(&mut events, Some(TICK)) {
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
            }
            let now = Instant::now();
            if now >= swept + SWEEP {
                let share = (now - swept).as_secs_f64().min(1.0);
                swept = now;
                self.sweep(now, share);
            }
            let over = self.stop.is_some_and(|stop| self.active == 0 || now > stop + GRACE) || now > end;
            let done = self.is_done(now) || over;
            // The end is told at once: it is when the run is over.
            if now >= next_tick || over || (done && !self.told_done) {
                next_tick = now + TICK;
                self.told_done = done;
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
        if self.may_begin(self.next) && self.plan.rate.is_some() && self.active < self.plan.concurrency {
            or(self.next);
        }
        if self.go.is_some() && self.plan.noop_rate > 0.0 && !self.held.is_empty() {
            or(self.next_noop);
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

    // ---------------------------------------------------------------------------------- beginnings

    /// Begins idle sessions, no faster than was asked for.
    fn gather(&mut self, now: Instant) {
        if self.stop.is_some() {
            return;
        }
        let due = (now - self.start).as_secs_f64() * self.plan.gather_rate;
        // Nor faster than they get there: a crowd of handshakes would only wait for each other until they time out.
        let most = (GATHER_MAX / u64::from(self.plan.processes)).max(4);
        let under_way = self.gathered - self.held.len() as u64 - self.crowd_lost;
        let mut room = (due as u64).saturating_sub(self.gathered).min(most.saturating_sub(under_way));
        for scenario in 0..self.to_gather.len() {
            while room > 0 && self.to_gather[scenario] > 0 {
                self.to_gather[scenario] -= 1;
                self.gathered += 1;
                room -= 1;
                self.open(scenario, now, false);
            }
        }
    }

    fn is_gathered(&self) -> bool {
        self.to_gather.iter().all(|&left| left == 0) && self.held.len() as u64 + self.crowd_lost >= self.gathered
    }

    /// Whether a session with this intended start belongs to the run.
    fn may_begin(&self, intended: Instant) -> bool {
        let Some(go) = self.go else { return false };
        self.stop.is_none()
            && self.plan.has_mix()
            && self.plan.count.is_none_or(|count| self.begun < count)
            && self
                .plan
                .duration
                .is_none_or(|duration| intended < go + Duration::from_secs_f64(self.plan.warm_up + duration))
    }

    /// Begins sessions of the mix.
    fn begin(&mut self, now: Instant) {
        for _ in 0..OPEN_MAX {
            let intended = if self.plan.rate.is_some() { self.next } else { now };
            if !self.may_begin(intended) || self.active >= self.plan.concurrency || intended > now {
                return;
            }
            if let Some(rate) = self.plan.rate {
                let distance = match self.plan.arrivals {
                    Arrivals::Even => 1.0,
                    Arrivals::Poisson => -(1.0 - self.random.share()).ln(),
                };
                self.next += Duration::from_secs_f64(distance / rate);
                let late = now.saturating_duration_since(intended).as_micros() as u64;
                self.interval.late.saturating_record(late.max(1));
            }
            self.begun += 1;
            let scenario = self.pick();
            let warm_until = self.go.unwrap_or(now) + Duration::from_secs_f64(self.plan.warm_up);
            self.open(scenario, intended, intended < warm_until);
        }
    }

    /// A scenario by weight.
    fn pick(&mut self) -> usize {
        let mut at = self.random.share() * self.plan.mix_weight();
        let mut last = 0;
        for (index, scenario) in self.plan.scenarios.iter().enumerate() {
            if scenario.kind == Kind::Idle || scenario.weight <= 0.0 {
                continue;
            }
            last = index;
            if at < scenario.weight {
                break;
            }
            at -= scenario.weight;
        }
        last
    }

    fn open(&mut self, scenario: usize, intended: Instant, warm: bool) {
        let number = self.interval_begun(scenario, warm);
        let told = &self.plan.scenarios[scenario];
        let is_idle = told.kind == Kind::Idle;
        let sources = &self.plan.source_addresses;
        let source = sources.get((self.begun + self.gathered) as usize % sources.len().max(1)).copied();
        let Some(target) = told.address() else { return };
        let is_paced = told.octets_per_second > 0;
        let resume = told.tls != Tls::None && self.random.share() < told.resume;
        let opened = Transport::connect(target, source).and_then(|mut transport| {
            if told.tls == Tls::Implicit {
                transport.start_tls(&self.tls[scenario], resume)?;
            }
            if told.octets_per_second > 0 {
                transport.allow(0);
            }
            Ok(transport)
        });
        let transport = match opened {
            Ok(transport) => transport,
            Err(error) => {
                let trouble = Trouble::new("connect", &kind(&error), error.to_string());
                self.count_trouble(scenario, &trouble, warm);
                if !warm {
                    self.interval.counts[scenario].failed += 1;
                }
                self.crowd_lost += u64::from(is_idle);
                return;
            }
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.generations.push(0);
            self.slots.len() - 1
        });
        let dialogue = self.specs[scenario].begin(number, &mut self.random, intended);
        let mut session = Box::new(Session {
            transport,
            dialogue,
            received: Vec::new(),
            scenario: scenario as u16,
            intended,
            moved: Instant::now(),
            warm,
            spoiled: false,
            secured: false,
            held: false,
            more: false,
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut session.transport.stream, Token(slot), interest) {
            let trouble = Trouble::new("connect", &kind(&error), error.to_string());
            self.count_trouble(scenario, &trouble, warm);
        }
        if is_paced {
            let at = std::cmp::Reverse(Instant::now() + PACE);
            self.alarms.push((at, Alarm::Pace, slot, self.generations[slot]));
        }
        self.active += usize::from(!is_idle);
        self.slots[slot] = Some(session);
    }

    fn interval_begun(&mut self, scenario: usize, warm: bool) -> u64 {
        if !warm {
            self.interval.counts[scenario].begun += 1;
        }
        self.begun + self.gathered
    }

    // ---------------------------------------------------------------------------------- turns

    fn turn(&mut self, slot: usize) {
        let Some(mut session) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        let mut notes = Notes::default();
        let outcome = self.advance(slot, &mut session, &mut notes);
        let now = Instant::now();
        let scenario = usize::from(session.scenario);
        if !session.warm {
            let counts = &mut self.interval.counts[scenario];
            counts.messages += notes.messages;
            counts.message_octets += notes.message_octets;
            for (measure, micros) in notes.times {
                self.interval.part(scenario, measure, micros);
            }
        }
        session.spoiled |= !notes.troubles.is_empty();
        for trouble in &notes.troubles {
            self.count_trouble(scenario, trouble, session.warm);
        }
        match outcome {
            Ok(false) => self.slots[slot] = Some(session),
            Ok(true) => self.close(slot, *session, now, None),
            Err(trouble) => self.close(slot, *session, now, Some(trouble)),
        }
    }

    /// Receives and sends all that is possible; true when the session is over.
    fn advance(&mut self, slot: usize, session: &mut Session, notes: &mut Notes) -> Result<bool, Trouble> {
        // A server that answers at once is read several times in one turn: the clock is read as often.
        let mut now = Instant::now();
        loop {
            let sent = session.transport.octets_sent;
            if let Err(error) = session.transport.flush() {
                // What the server said before it closed is still to be read.
                if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                    return self.lost(session, &error);
                }
            }
            if session.transport.octets_sent > sent {
                session.moved = now;
            }
            if session.more && session.transport.waiting() == 0 {
                session.more = false;
                self.out.clear();
                let then = session.dialogue.send_more(&mut self.out, &mut self.random, now, notes)?;
                if self.follow(slot, session, then, now)? {
                    return Ok(true);
                }
                continue;
            }
            let octets = match session.transport.read(&mut self.buffer, &mut session.received) {
                Ok(None) => return Ok(false),
                Ok(Some(0)) => {
                    let ended = io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server");
                    return self.lost(session, &ended);
                }
                Ok(Some(octets)) => octets,
                Err(error) => return self.lost(session, &error),
            };
            debug_assert!(octets > 0);
            now = Instant::now();
            session.moved = now;
            if session.transport.is_handshaking() {
                continue;
            }
            if self.greeting.is_none() {
                self.greeting = greeting(&session.received);
            }
            if !session.secured
                && let Some((words, resumed)) = session.transport.tls_words()
            {
                session.secured = true;
                *self.interval.tls.entry(words).or_default() += 1;
                self.interval.counts[usize::from(session.scenario)].resumed += u64::from(resumed);
                let scenario = usize::from(session.scenario);
                if self.specs[scenario].may_bind() {
                    let wanted = self.plan.scenarios[scenario].channel_binding;
                    let failed = |error: io::Error| Trouble::new("TLS handshake", "no binding", error.to_string());
                    session.dialogue.bind(session.transport.bindings(wanted).map_err(failed)?);
                }
                if self.plan.scenarios[scenario].tls == Tls::Starttls {
                    self.out.clear();
                    let then = session.dialogue.tls_started(&mut self.out, &mut self.random, now, notes)?;
                    if self.follow(slot, session, then, now)? {
                        return Ok(true);
                    }
                }
            }
            while !session.received.is_empty() {
                self.out.clear();
                let (used, then) = session
                    .dialogue
                    .receive(&session.received, &mut self.out, &mut self.random, now, notes)
                    .inspect_err(|_| {
                        let _ = session.transport.queue(&self.out);
                        let _ = session.transport.flush();
                    })?;
                session.received.drain(..used);
                if self.follow(slot, session, then, now)? {
                    return Ok(true);
                }
                if used == 0 || then == Then::StartTls {
                    break;
                }
            }
            if session.received.is_empty() {
                // An idle connection holds no buffer.
                session.received = Vec::new();
            }
        }
    }

    /// Does what the dialogue wants; true when the session is over.
    fn follow(&mut self, slot: usize, session: &mut Session, then: Then, now: Instant) -> Result<bool, Trouble> {
        let failed = |error: io::Error| Trouble::new("send", &kind(&error), error.to_string());
        session.transport.queue(&self.out).map_err(failed)?;
        match then {
            Then::Going => {}
            Then::More => session.more = true,
            Then::StartTls => {
                let scenario = usize::from(session.scenario);
                let resume = self.random.share() < self.plan.scenarios[scenario].resume;
                session.transport.start_tls(&self.tls[scenario], resume).map_err(failed)?;
            }
            Then::Held(seconds) if !session.held => {
                session.held = true;
                match seconds {
                    // Idle sessions belong to the crowd, others go after a while.
                    None => {
                        self.held.push(slot);
                        self.interval.counts[usize::from(session.scenario)].done += 1;
                        let micros = now.saturating_duration_since(session.intended).as_micros() as u64;
                        self.interval.session(usize::from(session.scenario), micros);
                    }
                    Some(seconds) => {
                        let at = std::cmp::Reverse(now + Duration::from_secs_f64(seconds));
                        self.alarms.push((at, Alarm::Leave, slot, self.generations[slot]));
                    }
                }
            }
            Then::Held(_) => {}
            Then::Done => {
                let _ = session.transport.flush();
                return Ok(true);
            }
            Then::Reset => {
                let _ = session.transport.flush();
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lost(&mut self, session: &mut Session, error: &io::Error) -> Result<bool, Trouble> {
        if session.transport.is_handshaking() {
            return Err(Trouble::new("TLS handshake", &kind(error), error.to_string()));
        }
        let code = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "lost",
            _ => &kind(error),
        };
        session.dialogue.lost(code, &error.to_string()).map(|()| true)
    }

    fn close(&mut self, slot: usize, session: Session, now: Instant, trouble: Option<Trouble>) {
        let scenario = usize::from(session.scenario);
        let is_idle = self.plan.scenarios[scenario].kind == Kind::Idle;
        let was_held = is_idle && session.held;
        let good = trouble.is_none() && !session.spoiled;
        if let Some(trouble) = &trouble {
            self.count_trouble(scenario, trouble, session.warm);
        }
        if was_held {
            self.held.retain(|&held| held != slot);
            self.crowd_lost += 1;
        } else if is_idle {
            self.crowd_lost += 1;
        } else {
            self.active -= 1;
        }
        if !session.warm {
            let counts = &mut self.interval.counts[scenario];
            match good {
                true if !was_held => {
                    counts.done += 1;
                    counts.writes += session.transport.writes;
                    counts.octets_sent += session.transport.octets_sent;
                    let micros = now.saturating_duration_since(session.intended).as_micros() as u64;
                    self.interval.session(scenario, micros);
                }
                _ => counts.failed += 1,
            }
        }
        if self.plan.scenarios[scenario].kind == Kind::Rude {
            session.transport.reset();
        }
        // Dropping closes; the registration goes with the descriptor.
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        self.free.push(slot);
    }

    // ---------------------------------------------------------------------------------- time

    /// Alarms that are due, and NOOPs to idle sessions.
    fn ring(&mut self, now: Instant) {
        while self.alarms.peek().is_some_and(|(at, ..)| at.0 <= now) {
            let Some((_, alarm, slot, generation)) = self.alarms.pop() else { return };
            if self.generations.get(slot) != Some(&generation) {
                continue;
            }
            match alarm {
                Alarm::Pace => {
                    let Some(session) = self.slots[slot].as_mut() else { continue };
                    let rate = self.plan.scenarios[usize::from(session.scenario)].octets_per_second;
                    session.transport.allow((f64::from(rate) * PACE.as_secs_f64()).ceil() as usize);
                    self.alarms.push((std::cmp::Reverse(now + PACE), Alarm::Pace, slot, generation));
                    self.turn(slot);
                }
                Alarm::Leave => {
                    if let Some(session) = self.slots[slot].take() {
                        self.close(slot, *session, now, None);
                    }
                }
            }
        }
        while self.go.is_some() && self.plan.noop_rate > 0.0 && self.next_noop <= now && !self.held.is_empty() {
            self.next_noop += Duration::from_secs_f64(1.0 / self.plan.noop_rate);
            let slot = self.held[self.random.below(self.held.len() as u64) as usize];
            let Some(session) = self.slots[slot].as_mut() else { continue };
            self.out.clear();
            if session.dialogue.noop(&mut self.out, now) {
                session.moved = now;
                let _ = session.transport.queue(&self.out);
                self.turn(slot);
            }
        }
    }

    /// Gives up on servers that say nothing. Looks at a share of the sessions, so that nobody waits while all are looked at.
    fn sweep(&mut self, now: Instant, share: f64) {
        if self.active == 0 && self.plan.noop_rate == 0.0 && self.is_gathered() {
            // Nothing is due on any of them, and whoever else has this core is not to wait for that to be found out.
            return;
        }
        let patience = Duration::from_secs_f64(self.plan.patience);
        let from = if self.swept < self.slots.len() { self.swept } else { 0 };
        self.swept = from + (self.slots.len() as f64 * share).ceil() as usize;
        for slot in from..self.swept.min(self.slots.len()) {
            let silent = |session: &Session| {
                !(session.held && session.dialogue.is_at_rest())
                    && now.saturating_duration_since(session.moved) > patience
            };
            if self.slots[slot].as_deref().is_some_and(silent)
                && let Some(mut session) = self.slots[slot].take()
            {
                let why = format!("nothing for {} s", self.plan.patience);
                let stage = if session.transport.is_handshaking() { Some("TLS handshake") } else { None };
                let trouble = match stage {
                    Some(stage) => Some(Trouble::new(stage, "silence", why)),
                    None => session.dialogue.lost("silence", &why).err(),
                };
                self.close(slot, *session, now, trouble);
            }
        }
    }

    fn is_done(&self, now: Instant) -> bool {
        let none = !self.plan.has_mix();
        let next = if self.plan.rate.is_some() { self.next } else { now };
        let timed_out = self.plan.duration.is_some() && !self.may_begin(now) && !self.may_begin(next);
        let counted_out = self.plan.count.is_some_and(|count| self.begun >= count);
        self.go.is_some() && self.active == 0 && (none || timed_out || counted_out)
    }

    // ---------------------------------------------------------------------------------- counts

    fn count_trouble(&mut self, scenario: usize, trouble: &Trouble, warm: bool) {
        if !warm {
            self.interval.trouble(scenario, trouble);
        }
    }

    fn tell(&mut self, now: Instant, done: bool) -> io::Result<()> {
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

/// The words of a whole greeting: mostly they name the program and its version.
fn greeting(received: &[u8]) -> Option<String> {
    let line = received.split(|&octet| octet == b'\n').next().filter(|line| line.len() < received.len())?;
    let words = String::from_utf8_lossy(line.strip_prefix(b"220")?.get(1..)?).into_owned();
    Some(words.chars().filter(|c| !c.is_control()).take(GREETING_MAX).collect())
}

/// A short name of an error.
fn kind(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::Other { error.to_string() } else { error.kind().to_string() }
}
