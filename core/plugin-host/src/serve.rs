//! The work of a mechanism-host: it keeps the states of exchanges and answers the steps that shards of workers
//! send it, a packet of them at a time.
//!
//! ```text
//! a step           → here, at once                         the answer leaves with those of its packet
//! … that may block → a thread of the pool and back         the answer leaves when it is there; others go on
//! ```
//!
//! A step here that does not end within [`STEP_MS_MAX`] ends the process: nothing else could stop it, and whoever
//! waits learns of it at once because its link closes. One of the pool has [`OFFLOAD_MS_MAX`]; then its exchange
//! is over and its thread lost, and without any thread left the process has to end ([`Host::is_stuck`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use link::mechanism::{self as wire, Described, Description};
use link::{Link, Outbox, frames, sys};
use sasl::{FailureClass, Mechanism, MechanismName, Secret, flag};

use crate::exchange::{Exchange, Stepped, failure};
use crate::ffi::ticks;
use crate::gate::TICKS_LOOKED_AT;
use crate::numbered::Numbered;
use crate::peers::{Peer, Peers};
use crate::pool::{Done, Job, Pool, THREADS};
use crate::{LoadError, LogLine, Registry, Unfit, Watch};

/// Longest step.
pub const STEP_MS_MAX: u32 = 1000;
/// Longest step of the pool, with its wait for a thread. Shards give a host that does not answer up after five seconds.
pub const OFFLOAD_MS_MAX: u64 = 3000;
/// Exchanges of all shards together.
const EXCHANGES_MAX: usize = 100_000;
/// Answers that a shard does not take.
const OUTBOX_OCTETS_MAX: usize = 4 << 20;
/// How deep a step goes; what it leaves on the stack is wiped.
const STACK_OCTETS: usize = 16 * 1024;
/// Exchanges that are over and kept for the next ones.
const SPARE_MAX: usize = 256;

/// The mechanisms of this process and who uses them.
pub struct Host {
    registry: Registry,
    /// Our own, for the log.
    words: Vec<LogLine>,
    /// A few; looked through faster than hashed.
    mechanisms: Vec<Arc<dyn Mechanism>>,
    description: Vec<u8>,
    shards: Peers<Exchanges>,
    exchanges: usize,
    pool: Pool,
    /// Steps with the pool, by their tickets.
    away: HashMap<u64, Away>,
    /// Tickets so far.
    tickets: u64,
    /// Threads that have had their time and are not back.
    stuck: usize,
    stepper: Stepper,
}

/// What a step takes beside its exchange.
struct Stepper {
    scratch: Secret,
    /// Made of exchanges that are over.
    #[allow(clippy::vec_box, reason = "they move between here and the shards' tables without being copied")]
    spare: Vec<Box<Exchange>>,
}

/// Those of one shard.
type Exchanges = Numbered<Place>;

enum Place {
    Here(Box<Exchange>),
    /// With the pool, under this ticket.
    Away(u64),
}

/// Who waits for a step of the pool.
struct Away {
    shard: u64,
    exchange: u64,
    question: u64,
    since: Instant,
}

impl Host {
    /// Makes every mechanism of the loaded libraries ready, with settings that `settings` has for its name. One that
    /// is not believed ([`Unfit::SelfAsserts`]) is left out, with a word to the log.
    pub fn new(
        registry: Registry,
        settings: impl Fn(&MechanismName) -> String,
        watch: Watch,
        pool: Pool,
    ) -> Result<Self, LoadError> {
        let mut mechanisms = Vec::new();
        let listed = registry.list();
        let (mut described, mut words) = (Vec::new(), Vec::new());
        for one in listed.iter().flat_map(|library| &library.mechanisms) {
            match registry.mechanism(&one.name, &settings(&one.name)) {
                Ok(mechanism) => mechanisms.push(mechanism),
                Err(error @ LoadError::Unfit { unfit: Unfit::SelfAsserts, .. }) => {
                    words.push(LogLine { level: 2, text: error.to_string() });
                    continue;
                }
                Err(error) => return Err(error),
            }
            described.push(Described {
                name: one.name.as_str(),
                flags: one.traits.flags,
                needs: one.traits.needs,
                strength: one.traits.strength,
                message_octets_max: one.traits.message_octets_max as u32,
                output_octets_max: one.traits.output_octets_max as u32,
                steps_max: one.traits.steps_max,
                plus_of: one.traits.plus_of.as_ref().map_or("", MechanismName::as_str),
            });
        }
        let mut description = Vec::new();
        Description { mechanisms: described }.encode(&mut description);
        let octets = mechanisms.iter().map(|mechanism| mechanism.traits().output_octets_max).max();
        let scratch = Secret::new(vec![0; octets.unwrap_or_default()]);
        Ok(Self {
            registry,
            words,
            mechanisms,
            description,
            shards: Peers::new(watch, OUTBOX_OCTETS_MAX),
            exchanges: 0,
            pool,
            away: HashMap::new(),
            tickets: 0,
            stuck: 0,
            stepper: Stepper { scratch, spare: Vec::new() },
        })
    }

    /// A shard of a worker is there; it is told what there is.
    pub fn add(&mut self, link: Link) {
        self.shards.add(link, Exchanges::default(), wire::DESCRIPTION, &self.description);
    }

    /// Whether no thread is left for steps that may take long: the process is of no more use.
    pub fn is_stuck(&self) -> bool {
        self.stuck >= THREADS
    }

    /// Whether the library has closed what the host waits with: the process is of no more use either.
    pub fn is_deaf(&self) -> bool {
        self.shards.are_lost()
    }

    /// Whether nobody is there any more.
    pub fn is_left(&self) -> bool {
        self.shards.is_empty()
    }

    /// Exchanges now.
    pub fn exchanges(&self) -> usize {
        self.exchanges
    }

    /// Waits for something to do, at most so long; takes what has come, steps, answers. `true`: who was to be waited
    /// for outside of this crate has something to say.
    pub fn turn(&mut self, patience: Duration) -> bool {
        let first = self.away.values().map(|away| away.since + OFFLOAD_TIME).min();
        let patience = first.map_or(patience, |at| patience.min(at.saturating_duration_since(Instant::now())));
        let woken = self.shards.wait(patience);
        if woken.bell {
            self.welcome_back();
        }
        if !self.away.is_empty() {
            self.give_up();
        }
        let Self { shards, mechanisms, exchanges, pool, away, tickets, stepper, .. } = self;
        let mut turn = Turn { mechanisms, exchanges, pool, away, tickets, stepper };
        shards.receive(|shard, packet| {
            turn.packet(shard, packet);
            zeroize::zeroize_stack::<STACK_OCTETS>();
        });
        self.tell_log();
        let exchanges = &mut self.exchanges;
        self.shards.flush(|gone| *exchanges -= gone.len());
        woken.outside
    }

    /// What threads have finished goes to who waits for it. Who does not any more has ended the exchange.
    fn welcome_back(&mut self) {
        for Done { ticket, exchange, answer } in self.pool.done() {
            let Some(away) = self.away.remove(&ticket) else {
                // Too late, but the thread is free again.
                self.stuck = self.stuck.saturating_sub(1);
                continue;
            };
            let Some(shard) = self.shards.get_mut(away.shard) else { continue };
            if matches!(shard.kept.get(&away.exchange), Some(Place::Away(theirs)) if *theirs == ticket) {
                shard.kept.insert(away.exchange, Place::Here(exchange));
                let octets = answer.expose();
                // Without room the shard's own deadline answers.
                let encoded = |to: &mut Vec<u8>| to.extend_from_slice(octets);
                let _ = shard.outbox.push_sized(wire::ANSWER, away.question, octets.len(), encoded);
            }
        }
    }

    /// Ends what has taken too long.
    fn give_up(&mut self) {
        let now = Instant::now();
        let late = self.away.iter().filter(|(_, away)| now.duration_since(away.since) >= OFFLOAD_TIME);
        let late: Vec<u64> = late.map(|(ticket, _)| *ticket).collect();
        for ticket in late {
            let Some(away) = self.away.remove(&ticket) else { continue };
            // Whoever has begun it is somewhere inside of the library, with the exchange.
            self.stuck += usize::from(self.pool.withdraw(ticket).is_none());
            let Some(shard) = self.shards.get_mut(away.shard) else { continue };
            if matches!(shard.kept.get(&away.exchange), Some(Place::Away(theirs)) if *theirs == ticket) {
                shard.kept.remove(&away.exchange);
                self.exchanges -= 1;
                refuse(&mut shard.outbox, away.question, FailureClass::Temporary, b"the step took too long");
            }
        }
    }

    /// What the library had to say goes to whoever is here.
    fn tell_log(&mut self) {
        let Some(shard) = self.shards.first_mut() else { return };
        let said = self.registry.take_log().into_iter().map(|(_, line)| line);
        for line in self.words.drain(..).chain(said) {
            // A line that finds no room is lost; nothing depends on it.
            let _ = shard.outbox.push(wire::WORDS, line.level.unsigned_abs().into(), |to| {
                to.extend_from_slice(line.text.as_bytes());
            });
        }
    }
}

/// Packets being taken: the host without its shards.
struct Turn<'a> {
    mechanisms: &'a [Arc<dyn Mechanism>],
    exchanges: &'a mut usize,
    pool: &'a Pool,
    away: &'a mut HashMap<u64, Away>,
    tickets: &'a mut u64,
    stepper: &'a mut Stepper,
}

impl Turn<'_> {
    #[inline(never)]
    fn packet(&mut self, shard: &mut Peer<Exchanges>, packet: &[u8]) {
        let (mut armed, mut looked) = (Instant::now(), ticks());
        sys::end_after_ms(STEP_MS_MAX);
        for frame in frames(packet) {
            // Most frames need no clock to see that no time has passed.
            let now = ticks();
            if now.wrapping_sub(looked) > TICKS_LOOKED_AT {
                looked = now;
                if armed.elapsed() > Duration::from_millis(u64::from(STEP_MS_MAX) / 10) {
                    sys::end_after_ms(STEP_MS_MAX);
                    armed = Instant::now();
                }
            }
            let done = match frame {
                Ok(frame) if frame.kind == wire::STEP => match wire::Step::decode(frame.payload) {
                    Ok(step) => {
                        self.step(shard, frame.id, &step, frame.payload);
                        true
                    }
                    Err(_) => false,
                },
                Ok(frame) if frame.kind == wire::FINISH => {
                    let exchange = frame.payload.first_chunk().map(|octets| u64::from_le_bytes(*octets));
                    let over = exchange.and_then(|exchange| shard.kept.remove(&exchange));
                    over.into_iter().for_each(|over| self.end(over));
                    true
                }
                Ok(_) => true,
                Err(_) => false,
            };
            // A shard that talks nonsense is left; it is one of ours, so this is a bug.
            shard.closed |= !done;
        }
        sys::end_after_ms(0);
    }

    /// An exchange was taken out, and is over.
    fn end(&mut self, place: Place) {
        *self.exchanges -= 1;
        if let Place::Here(mut exchange) = place
            && self.stepper.spare.len() < SPARE_MAX
        {
            exchange.end();
            self.stepper.spare.push(exchange);
        }
    }

    fn step(&mut self, shard: &mut Peer<Exchanges>, question: u64, step: &wire::Step<'_>, payload: &[u8]) {
        let Peer { outbox, kept, .. } = &mut *shard;
        if let wire::Event::Start { mechanism: name, facts, .. } = &step.event {
            let Some(mechanism) = self.mechanisms.iter().find(|mechanism| mechanism.name().as_str() == *name) else {
                let why = b"no such mechanism in this process";
                return refuse(outbox, question, FailureClass::Internal, why);
            };
            if let Some(older) = kept.remove(&step.exchange) {
                self.end(older);
            }
            if *self.exchanges >= EXCHANGES_MAX {
                return refuse(outbox, question, FailureClass::Temporary, b"too many exchanges");
            }
            let exchange = match self.stepper.spare.pop() {
                Some(mut exchange) => {
                    exchange.begin(mechanism, facts);
                    exchange
                }
                None => Box::new(Exchange::new(mechanism, facts)),
            };
            kept.insert(step.exchange, Place::Here(exchange));
            *self.exchanges += 1;
        }
        let Some(Place::Here(exchange)) = kept.get_mut(&step.exchange) else {
            return refuse(outbox, question, FailureClass::Temporary, b"the exchange is not known here");
        };
        let offload = exchange.traits().flags & flag::OFFLOAD_ALL != 0;
        let tell = |answer: &wire::Answer<'_>| say(outbox, question, answer);
        if !offload && let Stepped::Answered = exchange.step(step, false, self.stepper.scratch.buffer(), tell) {
            return;
        }
        self.send_away(shard, question, step.exchange, payload, !offload);
    }

    /// Has a thread of the pool take a step.
    fn send_away(&mut self, shard: &mut Peer<Exchanges>, question: u64, exchange: u64, payload: &[u8], resume: bool) {
        *self.tickets += 1;
        let ticket = *self.tickets;
        let Some(Place::Here(state)) = shard.kept.insert(exchange, Place::Away(ticket)) else { return };
        let mut step = Secret::default();
        step.set(payload);
        if self.pool.take(Job { ticket, exchange: state, step, resume }) {
            let since = Instant::now();
            self.away.insert(ticket, Away { shard: shard.number, exchange, question, since });
        } else {
            shard.kept.remove(&exchange);
            *self.exchanges -= 1;
            let why = b"too many steps wait for a thread";
            refuse(&mut shard.outbox, question, FailureClass::Temporary, why);
        }
    }
}

fn say(outbox: &mut Outbox, question: u64, answer: &wire::Answer<'_>) {
    // Without room the shard's own deadline answers.
    let _ = outbox.push_sized(wire::ANSWER, question, answer.octets(), |to| answer.encode(to));
}

fn refuse(outbox: &mut Outbox, question: u64, class: FailureClass, why: &'static [u8]) {
    say(outbox, question, &failure(class, why));
}

const OFFLOAD_TIME: Duration = Duration::from_millis(OFFLOAD_MS_MAX);
