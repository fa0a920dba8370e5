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
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use link::mechanism::{self as wire, Described, Description};
use link::{Link, Outbox, Received, frames, sys};
use sasl::{FailureClass, Mechanism, MechanismName, Secret, flag};

use crate::exchange::{Exchange, Stepped, failure};
use crate::pool::{Done, Job, Pool, THREADS};
use crate::{LoadError, LogLine, Registry, Unfit};

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
/// Packets read from one shard before the others have their turn.
const PACKETS_PER_TURN: usize = 16;

/// The mechanisms of this process and who uses them.
pub struct Host {
    registry: Registry,
    /// Our own, for the log.
    words: Vec<LogLine>,
    mechanisms: HashMap<MechanismName, Arc<dyn Mechanism>>,
    description: Vec<u8>,
    peers: Vec<Peer>,
    /// Peers so far.
    numbers: u64,
    exchanges: usize,
    pool: Pool,
    /// Steps with the pool, by their tickets.
    away: HashMap<u64, Away>,
    /// Tickets so far.
    tickets: u64,
    /// Threads that have had their time and are not back.
    stuck: usize,
    scratch: Secret,
    answer: Secret,
    packet: Vec<u8>,
}

/// One shard of a worker.
struct Peer {
    number: u64,
    link: Link,
    outbox: Outbox,
    exchanges: HashMap<u64, Place>,
    closed: bool,
}

enum Place {
    Here(Exchange),
    /// With the pool, under this ticket.
    Away(u64),
}

/// Who waits for a step of the pool.
struct Away {
    peer: u64,
    exchange: u64,
    question: u64,
    since: Instant,
}

impl Host {
    /// Makes every mechanism of the loaded libraries ready, with settings that `settings` has for its name. One that
    /// is not believed ([`Unfit::SelfAsserts`]) is left out, with a word to the log.
    pub fn new(registry: Registry, settings: impl Fn(&MechanismName) -> String, pool: Pool) -> Result<Self, LoadError> {
        let mut mechanisms = HashMap::new();
        let listed = registry.list();
        let (mut described, mut words) = (Vec::new(), Vec::new());
        for one in listed.iter().flat_map(|library| &library.mechanisms) {
            match registry.mechanism(&one.name, &settings(&one.name)) {
                Ok(mechanism) => drop(mechanisms.insert(one.name, mechanism)),
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
        let octets = mechanisms.values().map(|mechanism| mechanism.traits().output_octets_max).max();
        let scratch = Secret::new(vec![0; octets.unwrap_or_default()]);
        Ok(Self {
            registry,
            words,
            mechanisms,
            description,
            peers: Vec::new(),
            numbers: 0,
            exchanges: 0,
            pool,
            away: HashMap::new(),
            tickets: 0,
            stuck: 0,
            scratch,
            answer: Secret::default(),
            packet: Vec::new(),
        })
    }

    /// A shard of a worker is there; it is told what there is.
    pub fn add(&mut self, link: Link) {
        self.numbers += 1;
        let (number, outbox) = (self.numbers, Outbox::new(OUTBOX_OCTETS_MAX));
        let mut peer = Peer { number, link, outbox, exchanges: HashMap::new(), closed: false };
        let description = &self.description;
        let said = peer.outbox.push(wire::DESCRIPTION, 0, |to| to.extend_from_slice(description));
        peer.flush();
        if said.is_ok() {
            self.peers.push(peer);
        }
    }

    /// What to wait for; `true` where there is something to be sent, too.
    pub fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let peers = self.peers.iter().map(|peer| (peer.link.as_fd(), !peer.outbox.is_empty()));
        peers.chain([(self.pool.bell(), false)])
    }

    /// When to look again, whatever comes.
    pub fn look_at(&self) -> Option<Instant> {
        self.away.values().map(|away| away.since + OFFLOAD_TIME).min()
    }

    /// Whether no thread is left for steps that may take long: the process is of no more use.
    pub fn is_stuck(&self) -> bool {
        self.stuck >= THREADS
    }

    /// Whether nobody is there any more.
    pub fn is_left(&self) -> bool {
        self.peers.is_empty()
    }

    /// Exchanges now.
    pub fn exchanges(&self) -> usize {
        self.exchanges
    }

    /// Takes what has come, steps, answers.
    pub fn turn(&mut self) {
        self.welcome_back();
        self.give_up();
        let mut packet = std::mem::take(&mut self.packet);
        for mut peer in std::mem::take(&mut self.peers) {
            for _ in 0..PACKETS_PER_TURN {
                match peer.link.receive(&mut packet) {
                    Ok(Received::Packet { .. }) => {
                        self.packet(&mut peer, &packet);
                        zeroize::zeroize_stack::<STACK_OCTETS>();
                    }
                    Ok(Received::WouldBlock) => break,
                    Ok(Received::Closed) | Err(_) => {
                        peer.closed = true;
                        break;
                    }
                }
                link::wipe(&mut packet);
            }
            self.tell_log(&mut peer);
            peer.flush();
            if peer.closed {
                self.exchanges -= peer.exchanges.len();
            } else {
                self.peers.push(peer);
            }
        }
        self.packet = packet;
    }

    #[inline(never)]
    fn packet(&mut self, peer: &mut Peer, packet: &[u8]) {
        let mut armed = Instant::now();
        sys::end_after_ms(STEP_MS_MAX);
        for frame in frames(packet) {
            if armed.elapsed() > Duration::from_millis(u64::from(STEP_MS_MAX) / 10) {
                sys::end_after_ms(STEP_MS_MAX);
                armed = Instant::now();
            }
            let done = match frame {
                Ok(frame) if frame.kind == wire::STEP => match wire::Step::decode(frame.payload) {
                    Ok(step) => {
                        self.step(peer, frame.id, &step, frame.payload);
                        true
                    }
                    Err(_) => false,
                },
                Ok(frame) if frame.kind == wire::FINISH => {
                    let exchange = frame.payload.first_chunk().map(|octets| u64::from_le_bytes(*octets));
                    let over = exchange.and_then(|exchange| peer.exchanges.remove(&exchange));
                    self.exchanges -= usize::from(over.is_some());
                    true
                }
                Ok(_) => true,
                Err(_) => false,
            };
            // A shard that talks nonsense is left; it is one of ours, so this is a bug.
            peer.closed |= !done;
        }
        sys::end_after_ms(0);
    }

    fn step(&mut self, peer: &mut Peer, question: u64, step: &wire::Step<'_>, payload: &[u8]) {
        if let wire::Event::Start { mechanism, facts, .. } = &step.event {
            let mechanism = MechanismName::parse(mechanism.as_bytes()).and_then(|name| self.mechanisms.get(&name));
            let Some(mechanism) = mechanism else {
                return peer.refuse(question, FailureClass::Internal, b"no such mechanism in this process");
            };
            if peer.exchanges.remove(&step.exchange).is_some() {
                self.exchanges -= 1;
            }
            if self.exchanges >= EXCHANGES_MAX {
                return peer.refuse(question, FailureClass::Temporary, b"too many exchanges");
            }
            peer.exchanges.insert(step.exchange, Place::Here(Exchange::new(mechanism, facts)));
            self.exchanges += 1;
        }
        let Some(Place::Here(exchange)) = peer.exchanges.get_mut(&step.exchange) else {
            return peer.refuse(question, FailureClass::Temporary, b"the exchange is not known here");
        };
        let offload = exchange.traits().flags & flag::OFFLOAD_ALL != 0;
        let answer = self.answer.buffer();
        answer.clear();
        if !offload && let Stepped::Answered = exchange.step(step, false, self.scratch.buffer(), answer) {
            return peer.answer(question, &mut self.answer);
        }
        self.send_away(peer, question, step.exchange, payload, !offload);
    }

    /// Has a thread of the pool take a step.
    fn send_away(&mut self, peer: &mut Peer, question: u64, exchange: u64, payload: &[u8], resume: bool) {
        self.tickets += 1;
        let ticket = self.tickets;
        let Some(Place::Here(state)) = peer.exchanges.insert(exchange, Place::Away(ticket)) else { return };
        let mut step = Secret::default();
        step.set(payload);
        if self.pool.take(Job { ticket, exchange: state, step, resume }) {
            self.away.insert(ticket, Away { peer: peer.number, exchange, question, since: Instant::now() });
        } else {
            peer.exchanges.remove(&exchange);
            self.exchanges -= 1;
            peer.refuse(question, FailureClass::Temporary, b"too many steps wait for a thread");
        }
    }

    /// What threads have finished goes to who waits for it. Who does not any more has ended the exchange.
    fn welcome_back(&mut self) {
        for Done { ticket, exchange, mut answer } in self.pool.done() {
            let Some(away) = self.away.remove(&ticket) else {
                // Too late, but the thread is free again.
                self.stuck = self.stuck.saturating_sub(1);
                continue;
            };
            let Some(peer) = self.peers.iter_mut().find(|peer| peer.number == away.peer) else { continue };
            if matches!(peer.exchanges.get(&away.exchange), Some(Place::Away(theirs)) if *theirs == ticket) {
                peer.exchanges.insert(away.exchange, Place::Here(exchange));
                peer.answer(away.question, &mut answer);
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
            let Some(peer) = self.peers.iter_mut().find(|peer| peer.number == away.peer) else { continue };
            if matches!(peer.exchanges.get(&away.exchange), Some(Place::Away(theirs)) if *theirs == ticket) {
                peer.exchanges.remove(&away.exchange);
                self.exchanges -= 1;
                peer.refuse(away.question, FailureClass::Temporary, b"the step took too long");
            }
        }
    }

    /// What the library had to say goes to whoever is here.
    fn tell_log(&mut self, peer: &mut Peer) {
        let said = self.registry.take_log().into_iter().map(|(_, line)| line);
        for line in self.words.drain(..).chain(said) {
            // A line that finds no room is lost; nothing depends on it.
            let _ = peer.outbox.push(wire::WORDS, line.level.unsigned_abs().into(), |to| {
                to.extend_from_slice(line.text.as_bytes());
            });
        }
    }
}

impl Peer {
    /// Sends an encoded answer, and wipes it.
    fn answer(&mut self, question: u64, answer: &mut Secret) {
        // Without room the shard's own deadline answers.
        let _ = self.outbox.push(wire::ANSWER, question, |to| to.extend_from_slice(answer.expose()));
        answer.wipe();
    }

    fn refuse(&mut self, question: u64, class: FailureClass, why: &'static [u8]) {
        let _ = self.outbox.push(wire::ANSWER, question, |to| failure(class, why, to));
    }

    fn flush(&mut self) {
        if self.outbox.flush(&self.link).is_err() {
            self.closed = true;
        }
    }
}

const OFFLOAD_TIME: Duration = Duration::from_millis(OFFLOAD_MS_MAX);
