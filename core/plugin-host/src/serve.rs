//! The work of a mechanism-host: it keeps the states of exchanges and answers the steps that shards of workers
//! send it, a packet of them at a time.
//!
//! A step that does not end within [`STEP_MS_MAX`] ends the process: nothing else could stop it, and whoever
//! waits learns of it at once because its link closes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use link::mechanism::{self as wire, Described, Description};
use link::{Link, Outbox, Received, frames, sys};
use sasl::{
    Event, Facts, FailureClass, Flat, Input, Mechanism, MechanismName, Outcome, Proof, ScramKey, Secret, State, Status,
    Step,
};

use crate::{LoadError, LogLine, Registry, Unfit};

/// Longest step.
pub const STEP_MS_MAX: u32 = 1000;
/// Exchanges of all shards together.
const EXCHANGES_MAX: usize = 100_000;
/// Answers that a shard does not take.
const OUTBOX_OCTETS_MAX: usize = 4 << 20;
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
    exchanges: usize,
    scratch: Secret,
    packet: Vec<u8>,
}

/// One shard of a worker.
struct Peer {
    link: Link,
    outbox: Outbox,
    exchanges: HashMap<u64, Exchange>,
    closed: bool,
}

struct Exchange {
    mechanism: Arc<dyn Mechanism>,
    state: State,
    /// The client's current message.
    message: Secret,
    facts: OwnedFacts,
}

struct OwnedFacts {
    tls: bool,
    tls_version: u16,
    client_certificate: bool,
    plus_offered: bool,
    channel_bindings: u32,
    client_ip: IpAddr,
    server_name: Box<str>,
    listener: Box<str>,
    sni: Box<str>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.mechanism.finish(&mut self.state);
    }
}

impl Host {
    /// Makes every mechanism of the loaded libraries ready, with settings that `settings` has for its name. One that
    /// is not believed ([`Unfit::SelfAsserts`]) is left out, with a word to the log.
    pub fn new(registry: Registry, settings: impl Fn(&MechanismName) -> String) -> Result<Self, LoadError> {
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
        let (peers, packet) = (Vec::new(), Vec::new());
        Ok(Self { registry, words, mechanisms, description, peers, exchanges: 0, scratch, packet })
    }

    /// A shard of a worker is there; it is told what there is.
    pub fn add(&mut self, link: Link) {
        let mut peer = Peer { link, outbox: Outbox::new(OUTBOX_OCTETS_MAX), exchanges: HashMap::new(), closed: false };
        let description = &self.description;
        let said = peer.outbox.push(wire::DESCRIPTION, 0, |to| to.extend_from_slice(description));
        peer.flush();
        if said.is_ok() {
            self.peers.push(peer);
        }
    }

    /// What to wait for; `true` where there is something to be sent, too.
    pub fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.peers.iter().map(|peer| (peer.link.as_fd(), !peer.outbox.is_empty()))
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
        let mut packet = std::mem::take(&mut self.packet);
        for mut peer in std::mem::take(&mut self.peers) {
            for _ in 0..PACKETS_PER_TURN {
                match peer.link.receive(&mut packet) {
                    Ok(Received::Packet { .. }) => self.packet(&mut peer, &packet),
                    Ok(Received::WouldBlock) => break,
                    Ok(Received::Closed) | Err(_) => {
                        peer.closed = true;
                        break;
                    }
                }
                zeroize::Zeroize::zeroize(packet.as_mut_slice());
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
                        self.step(peer, frame.id, &step);
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

    fn step(&mut self, peer: &mut Peer, question: u64, step: &wire::Step<'_>) {
        let refuse = |outbox: &mut Outbox, class, why: &'static [u8]| {
            answer(outbox, question, &Step::Failure { class, data: None, diagnosis: why });
        };
        if let wire::Event::Start { mechanism, facts, .. } = &step.event {
            let mechanism = MechanismName::parse(mechanism.as_bytes()).and_then(|name| self.mechanisms.get(&name));
            let Some(mechanism) = mechanism else {
                return refuse(&mut peer.outbox, FailureClass::Internal, b"no such mechanism in this process");
            };
            if peer.exchanges.remove(&step.exchange).is_some() {
                self.exchanges -= 1;
            }
            if self.exchanges >= EXCHANGES_MAX {
                return refuse(&mut peer.outbox, FailureClass::Temporary, b"too many exchanges");
            }
            let mut state = State::default();
            state.prepare(mechanism.traits().state_octets);
            let facts = OwnedFacts::of(facts);
            let message = Secret::default();
            let exchange = Exchange { mechanism: Arc::clone(mechanism), state, message, facts };
            peer.exchanges.insert(step.exchange, exchange);
            self.exchanges += 1;
        }
        let Some(exchange) = peer.exchanges.get_mut(&step.exchange) else {
            return refuse(&mut peer.outbox, FailureClass::Temporary, b"the exchange is not known here");
        };
        let event = match &step.event {
            wire::Event::Start { initial, .. } => {
                exchange.message.set(initial.unwrap_or_default());
                Event::Start { initial: initial.is_some() }
            }
            wire::Event::Message(message) => {
                exchange.message.set(message);
                Event::Message
            }
            wire::Event::Outcome { effect, status, proof, data, scram } => {
                let Some(effect) = sasl::EffectKind::from_abi(*effect) else {
                    return refuse(&mut peer.outbox, FailureClass::Internal, b"an effect of a later time");
                };
                let scram = scram.and_then(|layout| {
                    let (salt, keys) = data.split_at_checked(usize::from(layout.salt_octets))?;
                    let (stored_key, server_key) = keys.split_at_checked(usize::from(layout.hash_octets))?;
                    Some(ScramKey { iterations: layout.iterations, salt, stored_key, server_key })
                });
                let (status, proof) = (Status::from_abi(*status), Proof(*proof));
                Event::Outcome(Outcome { effect, status, proof, data, scram })
            }
        };
        let facts = exchange.facts.borrow(step.session);
        let input = Input {
            event,
            message: exchange.message.expose(),
            facts: &facts,
            entropy: step.entropy,
            unix_ms: step.unix_ms,
            exchange: step.session,
        };
        let said = exchange.mechanism.step(&mut exchange.state, input, self.scratch.buffer());
        answer(&mut peer.outbox, question, &said);
        self.scratch.buffer().fill(0);
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

fn answer(outbox: &mut Outbox, question: u64, step: &Step<'_>) {
    let Flat { action, arg, last, parts } = Flat::from(step);
    // Without room the shard's own deadline answers.
    let _ = outbox.push(wire::ANSWER, question, |to| wire::Answer { action, arg, last, parts }.encode(to));
}

impl Peer {
    fn flush(&mut self) {
        if self.outbox.flush(&self.link).is_err() {
            self.closed = true;
        }
    }
}

impl OwnedFacts {
    fn of(facts: &wire::Facts<'_>) -> Self {
        Self {
            tls: facts.tls,
            tls_version: facts.tls_version,
            client_certificate: facts.client_certificate,
            plus_offered: facts.plus_offered,
            channel_bindings: facts.channel_bindings,
            client_ip: facts.client_ip,
            server_name: facts.server_name.into(),
            listener: facts.listener.into(),
            sni: facts.sni.into(),
        }
    }

    fn borrow(&self, session: u64) -> Facts<'_> {
        Facts {
            tls: self.tls,
            tls_version: self.tls_version,
            client_certificate: self.client_certificate,
            plus_offered: self.plus_offered,
            channel_bindings: self.channel_bindings,
            server_name: &self.server_name,
            client_ip: self.client_ip,
            listener: &self.listener,
            sni: &self.sni,
            session,
        }
    }
}
