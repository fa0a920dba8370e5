//! One event loop: what a shard is, and what happens in a round of its loop.
//!
//! ```text
//! poll → clocks → events │ run queue │ mail │ answers │ deadlines, drain │ accepts → questions leave → commits, counts
//!
//! clients come      arrivals     accepted, admitted or told why not
//! a connection      turn         its turn: octets in, the session, replies out
//!                   encrypted    the handshake; records into input
//!                   output       one write; what does not leave is kept
//!                   held         what is kept between two turns, and its budget
//!                   deadlines    when it is looked at, and what then
//!                   ends         last words, a close that does not cost them, the record
//! others speak      answers      the directory, mechanism-hosts, delivery
//!                   mail         other threads: the spool, the worker's handle
//! all of them       panics       end one session
//!                   drain        ends everybody, in time
//! ```
//!
//! These are parts of one machine: each is an `impl Shard`, and a connection is named by its token, since whatever
//! happens may have ended it.

mod answers;
mod arrivals;
mod deadlines;
mod drain;
mod encrypted;
mod ends;
mod held;
mod mail;
mod output;
mod panics;
mod turn;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::{Events, Poll};
use smtp::Farewell;
use smtp::host::{Outcome, Pools};
use telemetry::Histogram;

use self::drain::Drain;
pub use self::mail::Mail;
use crate::connection::{Slot, flag};
use crate::doors::{DOORS, Doors};
use crate::inbox::Inbox;
use crate::local::Local;
use crate::passing::{Doubt, News};
use crate::setup::Notice;
use crate::shared::Shared;
use crate::slab::{GenSlab, Token};
use crate::wheel::Wheel;

/// One event loop.
pub struct Shard {
    poll: Poll,
    shared: Arc<Shared>,
    local: Local,
    inbox: Inbox<Mail>,
    doors: Doors,
    slots: GenSlab<Slot>,
    slots_max: usize,
    wheel: Wheel,
    pools: Pools,
    /// Where reads go; behind a kept piece of input.
    input: Vec<u8>,
    /// Where records are opened into.
    plain: Vec<u8>,
    /// Replies of the batch, in clear.
    out: Vec<u8>,
    /// What goes to the kernel, when that is not `out` itself.
    wire: Vec<u8>,
    /// Connections with more to do than their share of a turn.
    run: VecDeque<Token>,
    /// Those who wait for room in the spool.
    sink_full: Vec<Token>,
    /// What sessions wait for and have not been told yet.
    answers: Vec<(Token, Outcome)>,
    /// From delivery.
    news: News,
    /// By session: what is in doubt when replies to it were not heard. It had shut its side before they were said.
    unheard: HashMap<u64, Vec<Doubt>>,
    drain: Option<Drain>,
    /// When sessions panicked, the last few.
    panics: VecDeque<u64>,
    /// Reads for handshakes in this turn.
    handshakes: usize,
    /// A descriptor came back in this turn.
    closed: bool,
    /// Whose time has come, while they are looked at.
    due: Vec<u32>,
}

/// Which links that sessions share have something to say.
#[derive(Default)]
struct Heard {
    directory: bool,
    delivery: bool,
}

/// Token numbers of the shard itself.
pub const INBOX: u32 = 0;
const DIRECTORY: u32 = 1;
const DELIVERY: u32 = 2;
/// And of links to mechanism-hosts, from here on.
const RUNNERS: u32 = 1 << 24;

/// What a shard begins with.
pub struct Beginning {
    pub poll: Poll,
    pub inbox: Inbox<Mail>,
    pub shared: Arc<Shared>,
    pub local: Local,
    pub sockets: Vec<(u16, OwnedFd)>,
    pub slots_max: usize,
}

impl Shard {
    /// A shard whose doors are open.
    pub fn new(beginning: Beginning) -> io::Result<Self> {
        let Beginning { poll, inbox, shared, local, sockets, slots_max } = beginning;
        let doors = Doors::open(poll.registry(), sockets)?;
        let shard = Self {
            doors,
            poll,
            shared,
            wheel: Wheel::new(local.now.tick),
            local,
            inbox,
            slots: GenSlab::default(),
            slots_max,
            pools: Pools::default(),
            input: Vec::new(),
            plain: Vec::new(),
            out: Vec::new(),
            wire: Vec::new(),
            run: VecDeque::new(),
            sink_full: Vec::new(),
            answers: Vec::new(),
            news: News::default(),
            unheard: HashMap::new(),
            drain: None,
            panics: VecDeque::new(),
            handshakes: 0,
            closed: false,
            due: Vec::new(),
        };
        shard.watch_link(shard.local.questions.link(), DIRECTORY)?;
        shard.watch_link(shard.local.passing.link(), DELIVERY)?;
        Ok(shard)
    }

    /// Goes round until everything has ended after a drain or a stop.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while self.drain.is_none() || !self.slots.is_empty() {
            match self.poll.poll(&mut events, Some(self.timeout())) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Without a poll there is nothing that this thread could do.
                Err(_) => {
                    (self.shared.notify)(Notice::Failed { shard: self.local.number });
                    break;
                }
            }
            self.local.now.read();
            self.round(&events);
        }
        self.end();
    }

    /// Everything that has happened by `now`, in this order.
    fn round(&mut self, events: &Events) {
        (self.handshakes, self.closed) = (0, false);

        // Connections that had more to do in the last round come after those that something has happened to.
        let waiting = self.run.len();
        let Heard { directory, delivery } = self.hear_events(events);
        self.run_queue(waiting);

        while let Some(mail) = self.inbox.take() {
            self.take_mail(mail);
        }
        if directory {
            self.hear_directory();
        }
        if delivery {
            // A lost link is replaced by the supervisor, as with the directory.
            let _ = self.local.passing.receive(self.local.now.ms, &mut self.news);
        }
        // Whoever has an answer hears it before it is seen whose time is over.
        self.tell_news();
        self.give_up_questions();

        self.look_at_due();
        self.drain_step();

        self.accept();
        self.doors.resume(self.poll.registry(), self.local.now.ms, self.closed);

        self.send_questions();
        self.end_of_turn();
    }

    /// Connections get their turns at once; links that sessions share are heard when all of it is known.
    fn hear_events(&mut self, events: &Events) -> Heard {
        let mut heard = Heard::default();
        for event in events {
            let token = Token::from_word(event.token().0 as u64);
            match token.outside_number() {
                None => self.event(token, event),
                Some(INBOX) => self.inbox.woken(),
                Some(DIRECTORY) => heard.directory = true,
                Some(DELIVERY) => heard.delivery = true,
                Some(runner @ RUNNERS..) => self.hear_runner(runner - RUNNERS),
                Some(door) => self.doors.knock((door - DOORS) as usize),
            }
        }
        heard
    }

    /// Turns of the first `waiting` in the run queue; who joins it meanwhile has had one.
    fn run_queue(&mut self, waiting: usize) {
        for _ in 0..waiting {
            let Some(token) = self.run.pop_front() else { return };
            if let Some(slot) = self.slots.get_mut(token) {
                slot.clear(flag::QUEUED);
                self.guarded(token, |shard| shard.turn(token));
            }
        }
    }

    fn end_of_turn(&mut self) {
        if std::mem::take(&mut self.local.queued) {
            self.local.spool.go();
        }
        let (shared, number) = (&self.shared, self.local.number);
        let now = self.local.now;
        // The process is as alive as its slowest shard (CONTRACT C26).
        if let Some(beat) = shared.beats.get(number)
            && now.unix_ms.saturating_sub(beat.load(Ordering::Relaxed)) >= HEARTBEAT_MS / 2
        {
            beat.store(now.unix_ms, Ordering::Relaxed);
            let slowest = shared.beats.iter().map(|beat| beat.load(Ordering::Relaxed)).min();
            self.local.watch.heartbeat(slowest.unwrap_or(now.unix_ms));
        }
        self.local.watch.observe(Histogram::TurnMicros, link::monotonic_us().saturating_sub(now.us));
        self.local.watch.turn(now.ms);
    }

    /// Only after a stop, a drain's hard end or a failure of the poll is there anybody left.
    fn end(&mut self) {
        for token in self.slots.tokens() {
            self.guarded(token, |shard| {
                shard.farewell(token, Farewell::Shutdown);
                shard.close(token, "shutdown");
            });
        }
        self.news.doubts.extend(std::mem::take(&mut self.unheard).into_values().flatten());
        self.tell_news();
        self.end_of_turn();
        self.local.watch.end();
    }

    /// How long the poll may sleep.
    fn timeout(&self) -> Duration {
        if !self.run.is_empty() || self.doors.is_ready() {
            return Duration::ZERO;
        }
        let now = &self.local.now;
        let drain = self.drain.as_ref().map(|drain| if now.ms < drain.idle_ms { drain.idle_ms } else { drain.hard_ms });
        let next = [
            self.wheel.next().map(|tick| now.at(tick)),
            self.local.questions.give_up_at(),
            self.local.passing.give_up_at(now.ms),
            self.doors.paused_until(),
            self.local.watch.due_ms(),
            drain,
        ];
        let next = next.into_iter().flatten().min().unwrap_or(u64::MAX);
        Duration::from_millis(next.saturating_sub(now.ms).min(HEARTBEAT_MS))
    }
}

fn mio_token(token: Token) -> mio::Token {
    mio::Token(token.word() as usize)
}

#[cfg(not(target_pointer_width = "64"))]
compile_error!("crate engine: a poll token holds index and generation, 64 bits");

/// How often a shard shows that it is alive, at least.
const HEARTBEAT_MS: u64 = 1000;

#[cfg(test)]
mod tests;
