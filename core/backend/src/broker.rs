//! Back ends of libraries, as the directory sees them: questions wait for a free place, are sent to the process
//! that runs the library, and are answered by it or for want of it.
//!
//! ```text
//! ask ─┬─ breaker open, queue full ───────────────────────────────► temporary, at once
//!      └─ queue ─ at most `parallel` at a time ─► CALL ─┬─ REPLY ──► looked at by `outside`
//!                                                       └─ deadline ► temporary; the place stays taken until the
//!                                                                     process answers, dies, or is ended
//! ```
//!
//! What a back end does with its time costs its own callers an answer, and nobody else anything: the loop never
//! waits, places and queue are bounded. After [`FAILURES_MAX`] failures in a row the breaker opens: everybody is
//! answered at once, until after [`OPEN_MS`] a single probe finds the back end well again. A process that is stuck
//! in a call for [`STUCK_TIMEOUTS`] times its timeout is ended.
//!
//! No socket is waited for here and no clock is read; [`crate::serve`] does both.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use link::backend::{BROKEN, CALL, Call, DESCRIPTION, Description, Effect, REPLY, Reply, WORDS};
use link::directory::Question;
use link::{Frame, Link, Outbox, Received, frames};
use sasl::{EffectKind, Secret};
use zeroize::Zeroize as _;

use crate::decoy::Decoys;
use crate::event::{Event, Report};
use crate::pool::{Ticket, source};

#[cfg(test)]
mod tests;

/// Failures in a row that open the breaker.
pub const FAILURES_MAX: u32 = 5;
/// How long it stays open before a probe.
pub const OPEN_MS: u64 = 2_000;
/// A call that is not over this many timeouts after its deadline ends its process.
pub const STUCK_TIMEOUTS: u64 = 3;
/// Most calls of one back end at a time.
pub const PARALLEL_MAX: usize = 64;
/// Unsent calls of one process, octets.
const OUTBOX_OCTETS_MAX: usize = 16 << 20;
/// Packets taken from one process before the others have their turn.
const PACKETS_PER_TURN: usize = 16;
/// Octets of a library's own words in a log line.
const WORDS_OCTETS_MAX: usize = 256;
/// Lines about one back end's troubles come no faster.
const TROUBLE_EVERY_MS: u64 = 1_000;

/// A back end of the configuration.
pub struct Spec {
    /// The library that it is in.
    pub library: String,
    /// Its name.
    pub name: String,
    /// The library's mechanisms: they may call it by its name on every listener.
    pub mechanisms: Vec<String>,
    /// The effects that it serves.
    pub provides: u64,
    /// How long an answer may take, queue included.
    pub timeout_ms: u64,
    /// Questions that may wait for a free place.
    pub queue_max: usize,
    /// Calls at a time, if the operator wants fewer than the library.
    pub parallel: Option<usize>,
    /// Keys for users whom it does not know.
    pub decoys: Decoys,
}

/// The time, twice.
#[derive(Clone, Copy)]
pub struct Now {
    /// Monotonic, milliseconds.
    pub ms: u64,
    /// Since 1970, milliseconds.
    pub unix_ms: u64,
}

/// A question that is over.
pub struct Ended {
    /// Whose.
    pub ticket: Ticket,
    /// Number of the back end.
    pub backend: usize,
    /// The encoded question.
    pub question: Secret,
    /// The encoded reply; `None`: there is none.
    pub reply: Option<Secret>,
}

/// Why a question is not even asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No back end here serves that.
    Unsupported,
    /// Later, perhaps.
    Temporary,
}

/// All back ends.
pub struct Broker {
    backends: Vec<Backend>,
    hosts: Vec<Host>,
    running: HashMap<u64, Running>,
    calls: u64,
    ended: Vec<Ended>,
    stuck: Vec<(String, u32)>,
    report: Report,
    packet: Vec<u8>,
}

struct Backend {
    spec: Spec,
    waiting: VecDeque<Waiting>,
    breaker: Breaker,
    told_ms: Option<u64>,
}

struct Waiting {
    ticket: Ticket,
    source: IpAddr,
    question: Secret,
    deadline_ms: u64,
    probe: bool,
}

struct Running {
    backend: usize,
    ticket: Ticket,
    /// Gone when the deadline has answered.
    question: Option<Secret>,
    deadline_ms: u64,
    /// Its key.
    host: usize,
    probe: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    /// So many failures in a row.
    Closed(u32),
    Open {
        until_ms: u64,
    },
    /// One question is under way, and shows whether it may close.
    Probing,
}

/// A process that runs a library.
struct Host {
    key: usize,
    library: String,
    generation: u32,
    link: Link,
    outbox: Outbox,
    /// Calls at a time, for each back end that it has described.
    parallel: HashMap<usize, usize>,
    /// It is to be ended; nothing is asked there.
    condemned: bool,
}

impl Broker {
    /// For these back ends; none has a process yet.
    pub fn new(specs: Vec<Spec>, report: Report) -> Self {
        let backend = |spec| Backend { spec, waiting: VecDeque::new(), breaker: Breaker::Closed(0), told_ms: None };
        Self {
            backends: specs.into_iter().map(backend).collect(),
            hosts: Vec::new(),
            running: HashMap::new(),
            calls: 0,
            ended: Vec::new(),
            stuck: Vec::new(),
            report,
            packet: Vec::new(),
        }
    }

    /// What the configuration says of a back end.
    pub fn spec(&self, backend: usize) -> Option<&Spec> {
        self.backends.get(backend).map(|backend| &backend.spec)
    }

    /// A process that runs `library` is there; a newer generation takes over once it has described itself.
    pub fn connect(&mut self, library: &str, generation: u32, link: Link) {
        self.calls += 1;
        let key = usize::try_from(self.calls).unwrap_or(usize::MAX);
        let outbox = Outbox::new(OUTBOX_OCTETS_MAX);
        let (library, parallel) = (library.to_owned(), HashMap::new());
        self.hosts.push(Host { key, library, generation, link, outbox, parallel, condemned: false });
    }

    /// The links, to be waited for; `true` where something is to be sent, too.
    pub fn interest(&self) -> impl Iterator<Item = (&Link, bool)> {
        self.hosts.iter().map(|host| (&host.link, !host.outbox.is_empty()))
    }

    /// Takes a question, an encoded [`Question::Backend`].
    pub fn ask(&mut self, ticket: Ticket, question: &[u8], now: Now) -> Result<(), Refusal> {
        let Ok(Question::Backend { backend, effect }) = Question::decode(question) else {
            return Err(Refusal::Unsupported);
        };
        let index = self.find(backend, &effect).ok_or(Refusal::Unsupported)?;
        let one = self.backends.get_mut(index).ok_or(Refusal::Unsupported)?;
        let probe = match one.breaker {
            Breaker::Closed(_) => false,
            Breaker::Open { until_ms } if until_ms <= now.ms => {
                one.breaker = Breaker::Probing;
                true
            }
            Breaker::Open { .. } | Breaker::Probing => return Err(Refusal::Temporary),
        };
        let source = source(effect.client_ip);
        // As for passwords: when it gets tight, nobody may hold more than a quarter of the queue.
        let (waiting, most) = (one.waiting.len(), one.spec.queue_max.max(1));
        let held = || one.waiting.iter().filter(|other| other.source == source).count();
        if waiting >= most || waiting > most / 2 && held() > most / 4 {
            return Err(Refusal::Temporary);
        }
        let deadline_ms = now.ms + one.spec.timeout_ms;
        let question = Secret::new(question.to_vec());
        one.waiting.push_back(Waiting { ticket, source, question, deadline_ms, probe });
        self.send(index, now);
        Ok(())
    }

    /// Who answers: for BACKEND_CALL the back end that the mechanism names, if it is of the same library or the
    /// listener's own; otherwise the listener's.
    fn find(&self, listeners: &str, effect: &Effect<'_>) -> Option<usize> {
        let kind = EffectKind::from_abi(effect.effect)?;
        let named = match kind {
            EffectKind::BackendCall => std::str::from_utf8(effect.service).ok()?,
            EffectKind::ChannelBinding => return None,
            _ => listeners,
        };
        let index = self.backends.iter().position(|backend| backend.spec.name == named)?;
        let spec = &self.backends.get(index)?.spec;
        let may = kind != EffectKind::BackendCall
            || named == listeners
            || spec.mechanisms.iter().any(|name| name == effect.mechanism);
        (may && spec.provides & kind.need() != 0).then_some(index)
    }

    /// Sends what waits, as far as there are places.
    fn send(&mut self, index: usize, now: Now) {
        let Some(backend) = self.backends.get_mut(index) else { return };
        let has = |host: &&mut Host| !host.condemned && host.parallel.contains_key(&index);
        let Some(host) = self.hosts.iter_mut().filter(has).max_by_key(|host| host.generation) else { return };
        let declared = host.parallel.get(&index).copied().unwrap_or(1);
        let parallel = backend.spec.parallel.map_or(declared, |most| most.min(declared)).max(1);
        let mut unsent = Vec::new();
        let here = |call: &&Running| call.backend == index && call.host == host.key;
        let mut taken = self.running.values().filter(here).count();
        while taken < parallel {
            let Some(Waiting { ticket, question, deadline_ms, probe, .. }) = backend.waiting.pop_front() else { break };
            let Ok(Question::Backend { effect, .. }) = Question::decode(question.expose()) else { continue };
            self.calls += 1;
            let left_ms = deadline_ms.saturating_sub(now.ms);
            let call = Call { backend: &backend.spec.name, deadline_ms: now.unix_ms + left_ms, effect };
            let said = host.outbox.push(CALL, self.calls, |to| {
                to.reserve(call.effect.octets_max() + call.backend.len());
                call.encode(to);
            });
            if said.is_err() {
                self.ended.push(Ended { ticket, backend: index, question, reply: None });
                unsent.push(probe);
                continue;
            }
            taken += 1;
            let (host, question) = (host.key, Some(question));
            self.running.insert(self.calls, Running { backend: index, ticket, question, deadline_ms, host, probe });
        }
        unsent.into_iter().for_each(|probe| self.judge(index, false, probe, now));
    }

    /// Takes what processes said, sends what they are asked, looks at deadlines.
    pub fn turn(&mut self, now: Now) {
        for at in (0..self.hosts.len()).rev() {
            if !self.receive(at, now) {
                let host = self.hosts.swap_remove(at);
                self.lost(&host, now);
            }
        }
        self.expire(now);
        for index in 0..self.backends.len() {
            self.send(index, now);
        }
        // An older generation that has answered everything may go.
        let newest = |hosts: &[Host], library: &str| {
            let described = hosts.iter().filter(|host| host.library == library && !host.parallel.is_empty());
            described.map(|host| host.generation).max()
        };
        for at in (0..self.hosts.len()).rev() {
            let Some(host) = self.hosts.get(at) else { continue };
            let old = newest(&self.hosts, &host.library).is_some_and(|newest| host.generation < newest);
            if old && !self.running.values().any(|call| call.host == host.key) {
                self.hosts.swap_remove(at);
            }
        }
        // What cannot be sent is found out when the link is read.
        self.hosts.iter_mut().for_each(|host| drop(host.outbox.flush(&host.link)));
    }

    /// When [`Broker::turn`] has something to do although nobody said anything, milliseconds.
    pub fn next_ms(&self) -> Option<u64> {
        let waiting = self.backends.iter().filter_map(|backend| backend.waiting.front()).map(|one| one.deadline_ms);
        let running = self.running.values().filter_map(|call| {
            let condemned = self.hosts.iter().any(|host| host.key == call.host && host.condemned);
            match &call.question {
                Some(_) => Some(call.deadline_ms),
                None if condemned => None,
                None => Some(self.stuck_at(call)),
            }
        });
        waiting.chain(running).min()
    }

    /// Questions that are over.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// Processes that have to be ended: library and generation.
    pub fn take_stuck(&mut self) -> Vec<(String, u32)> {
        std::mem::take(&mut self.stuck)
    }

    /// Questions that have no answer yet.
    pub fn pending(&self) -> usize {
        let waiting: usize = self.backends.iter().map(|backend| backend.waiting.len()).sum();
        waiting + self.running.values().filter(|call| call.question.is_some()).count()
    }

    /// Places that are taken, also by calls that nobody waits for any more.
    pub fn places(&self) -> usize {
        self.running.len()
    }

    /// What `outside` found in a reply: the back end does not do what it should.
    pub fn broken(&mut self, backend: usize, why: &str, now: Now) {
        self.trouble(backend, why.as_bytes(), now);
    }

    /// `false`: the process is gone.
    fn receive(&mut self, at: usize, now: Now) -> bool {
        let mut packet = std::mem::take(&mut self.packet);
        let mut alive = true;
        for _ in 0..PACKETS_PER_TURN {
            let Some(host) = self.hosts.get(at) else { break };
            match host.link.receive(&mut packet) {
                Ok(Received::Packet { .. }) => {}
                Ok(Received::WouldBlock) => break,
                Ok(Received::Closed) | Err(_) => {
                    alive = false;
                    break;
                }
            }
            let good = frames(&packet).all(|frame| frame.is_ok_and(|frame| self.heard(at, &frame, now)));
            packet.as_mut_slice().zeroize();
            if !good {
                // Whoever talks nonsense is not what we started.
                self.condemn(at, "it does not speak as it should");
                break;
            }
        }
        self.packet = packet;
        alive
    }

    fn heard(&mut self, at: usize, frame: &Frame<'_>, now: Now) -> bool {
        let Some(host) = self.hosts.get_mut(at) else { return false };
        match frame.kind {
            REPLY => match Reply::decode(frame.payload) {
                Ok(reply) => {
                    self.reply(host_key(&self.hosts, at), frame, &reply, now);
                    true
                }
                Err(_) => false,
            },
            DESCRIPTION => match Description::decode(frame.payload) {
                Ok(description) => {
                    for described in &description.backends {
                        let of = |one: &Backend| one.spec.name == described.name && one.spec.library == host.library;
                        if let Some(index) = self.backends.iter().position(of) {
                            let parallel = usize::try_from(described.parallel).unwrap_or(PARALLEL_MAX);
                            host.parallel.insert(index, parallel.clamp(1, PARALLEL_MAX));
                        }
                    }
                    true
                }
                Err(_) => false,
            },
            WORDS => {
                let library = host.library.clone();
                (self.report)(&Event::BackendWords { library, level: frame.id, text: clip(frame.payload) });
                true
            }
            _ => true,
        }
    }

    fn reply(&mut self, host: usize, frame: &Frame<'_>, reply: &Reply<'_>, now: Now) {
        // Late ones, doubles and those of nobody's question find nothing; one process cannot answer another's.
        if self.running.get(&frame.id).is_none_or(|call| call.host != host) {
            return;
        }
        let Some(call) = self.running.remove(&frame.id) else { return };
        let index = call.backend;
        let failed = matches!(reply.status, BROKEN | 2);
        if failed {
            self.trouble(index, reply.diagnosis, now);
        }
        if let Some(question) = call.question {
            let payload = Secret::new(frame.payload.to_vec());
            self.ended.push(Ended { ticket: call.ticket, backend: index, question, reply: Some(payload) });
            self.judge(index, !failed, call.probe, now);
        }
    }

    fn lost(&mut self, host: &Host, now: Now) {
        let of_it = |(id, call): (&u64, &Running)| (call.host == host.key).then_some(*id);
        let mut ids: Vec<u64> = self.running.iter().filter_map(of_it).collect();
        ids.sort_unstable();
        for id in ids {
            let Some(call) = self.running.remove(&id) else { continue };
            if let Some(question) = call.question {
                self.ended.push(Ended { ticket: call.ticket, backend: call.backend, question, reply: None });
                self.judge(call.backend, false, call.probe, now);
            }
        }
    }

    /// Answers for those who did not in time.
    fn expire(&mut self, now: Now) {
        let mut late: Vec<(usize, bool)> = Vec::new();
        for call in self.running.values_mut().filter(|call| call.deadline_ms <= now.ms) {
            if let Some(question) = call.question.take() {
                self.ended.push(Ended { ticket: call.ticket, backend: call.backend, question, reply: None });
                late.push((call.backend, call.probe));
            }
        }
        for (index, backend) in self.backends.iter_mut().enumerate() {
            while backend.waiting.front().is_some_and(|one| one.deadline_ms <= now.ms) {
                let Some(Waiting { ticket, question, probe, .. }) = backend.waiting.pop_front() else { break };
                self.ended.push(Ended { ticket, backend: index, question, reply: None });
                late.push((index, probe));
            }
        }
        for (index, probe) in late {
            self.judge(index, false, probe, now);
        }
        let stuck: Vec<usize> =
            self.running.values().filter(|call| self.stuck_at(call) <= now.ms).map(|call| call.host).collect();
        for key in stuck {
            if let Some(at) = self.hosts.iter().position(|host| host.key == key) {
                self.condemn(at, "a call does not end");
            }
        }
    }

    fn stuck_at(&self, call: &Running) -> u64 {
        let timeout_ms = self.backends.get(call.backend).map_or(0, |backend| backend.spec.timeout_ms);
        call.deadline_ms + STUCK_TIMEOUTS * timeout_ms
    }

    fn condemn(&mut self, at: usize, why: &'static str) {
        let Some(host) = self.hosts.get_mut(at).filter(|host| !host.condemned) else { return };
        host.condemned = true;
        self.stuck.push((host.library.clone(), host.generation));
        (self.report)(&Event::BackendCondemned { library: host.library.clone(), why });
    }

    /// What the end of a question says about the back end.
    fn judge(&mut self, index: usize, good: bool, probe: bool, now: Now) {
        let Some(backend) = self.backends.get_mut(index) else { return };
        let name = || backend.spec.name.clone();
        backend.breaker = match (backend.breaker, good) {
            (Breaker::Closed(_), true) => Breaker::Closed(0),
            (Breaker::Closed(failures), false) if failures + 1 < FAILURES_MAX => Breaker::Closed(failures + 1),
            (Breaker::Probing, true) if probe => {
                (self.report)(&Event::BackendWell { name: name() });
                Breaker::Closed(0)
            }
            (Breaker::Closed(_), false) => {
                (self.report)(&Event::BackendDown { name: name() });
                Breaker::Open { until_ms: now.ms + OPEN_MS }
            }
            (Breaker::Probing, false) if probe => Breaker::Open { until_ms: now.ms + OPEN_MS },
            // Questions from before it opened.
            (breaker, _) => breaker,
        };
        if matches!(backend.breaker, Breaker::Open { .. }) {
            for Waiting { ticket, question, .. } in backend.waiting.drain(..) {
                self.ended.push(Ended { ticket, backend: index, question, reply: None });
            }
        }
    }

    fn trouble(&mut self, index: usize, words: &[u8], now: Now) {
        let Some(backend) = self.backends.get_mut(index) else { return };
        if backend.told_ms.is_none_or(|told| told + TROUBLE_EVERY_MS <= now.ms) {
            backend.told_ms = Some(now.ms);
            (self.report)(&Event::BackendTrouble { name: backend.spec.name.clone(), text: clip(words) });
        }
    }
}

fn host_key(hosts: &[Host], at: usize) -> usize {
    hosts.get(at).map_or(0, |host| host.key)
}

/// A stranger's words for a log line.
fn clip(words: &[u8]) -> String {
    let words = words.get(..WORDS_OCTETS_MAX).unwrap_or(words);
    String::from_utf8_lossy(words).escape_debug().to_string()
}
