//! Steps of mechanisms that run in processes of their own (`runner = "process"`).
//!
//! Each shard has a link of its own to each mechanism-host; the steps of one turn leave in one packet. The
//! state of an exchange lives in the host that began it, so later steps go there and nowhere else. When a newer
//! edition of the library has described itself, new exchanges go to it; the link to the older one is closed
//! when its last exchange is over.
//!
//! A host that dies takes its exchanges with it: each ends as temporary (454 4.7.0), at once when it waits for
//! the host, at its next step when it waits for the client. A new exchange waits for the next host, as long as
//! for any answer ([`ANSWER_MS_MAX`]).

use std::collections::HashMap;
use std::sync::Arc;

use link::mechanism::{self as wire, ANSWER, DESCRIPTION, Description, FINISH, STEP, WORDS};
use link::{Link, Outbox, Received, frames};
use plugin_host::{Remote, RemoteLibrary, wire_facts};
use sasl::{
    Event, FailureClass, Flat, Input, Mechanism, MechanismName, OwnedStep, Runner, ScramKey, Secret, Step, Traits,
};
use smtp::host::Outcome;

use crate::slab::{GenSlab, Token};

/// How long a mechanism may think about one step, and a new exchange may wait for a process.
pub const ANSWER_MS_MAX: u64 = 5_000;
/// Unsent steps for one process.
const OUTBOX_OCTETS_MAX: usize = 1 << 20;
/// Buffers kept for answers, and the largest of them.
const SPARE_MAX: usize = 256;
const SPARE_OCTETS_MAX: usize = 1024;
/// Lines of libraries that wait for the log; more are lost.
const WORDS_MAX: usize = 64;

/// One shard's side of all mechanism-hosts.
pub struct Steps {
    libraries: Vec<Library>,
    pending: GenSlab<Pending>,
    pending_max: usize,
    /// By session: which process keeps its exchange.
    exchanges: HashMap<u64, Place>,
    /// Links so far.
    hosts: u32,
    packet: Vec<u8>,
    /// Buffers of answers that were read.
    spare: Vec<Secret>,
    words: Vec<Words>,
}

/// A line that a library logged.
pub struct Words {
    /// The library.
    pub id: String,
    /// 1 error … 4 debugging.
    pub level: u64,
    /// Untrusted.
    pub text: Vec<u8>,
}

#[derive(Default)]
struct Library {
    library: Option<Arc<RemoteLibrary>>,
    hosts: Vec<Host>,
    /// New exchanges that no process can take yet.
    waiting: Vec<Token>,
}

/// A mechanism-host at the other end.
struct Host {
    /// Names it in polls.
    number: u32,
    generation: u32,
    link: Link,
    outbox: Outbox,
    /// It serves.
    described: bool,
    exchanges: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    runner: u16,
    host: u32,
}

/// A step without an answer.
struct Pending {
    session: Token,
    runner: u16,
    /// Where it is; not yet anywhere when it waits for a process.
    host: Option<u32>,
    /// What it says, while it waits. May hold a password.
    payload: Secret,
    mechanism: MechanismName,
    traits: Traits,
}

impl Steps {
    /// Without any process.
    pub fn new(pending_max: usize) -> Self {
        Self {
            libraries: Vec::new(),
            pending: GenSlab::default(),
            pending_max,
            exchanges: HashMap::new(),
            hosts: 0,
            packet: Vec::new(),
            spare: Vec::new(),
            words: Vec::new(),
        }
    }

    /// A link to a process; returns its number. It is used once it has described itself.
    pub fn connect(&mut self, library: Arc<RemoteLibrary>, generation: u32, link: Link, described: bool) -> u32 {
        let Runner(runner) = library.runner;
        let number = self.hosts;
        self.hosts = self.hosts.wrapping_add(1) % HOSTS;
        let entry = self.library(runner);
        entry.library = Some(library);
        let outbox = Outbox::new(OUTBOX_OCTETS_MAX);
        entry.hosts.push(Host { number, generation, link, outbox, described: false, exchanges: 0 });
        if described {
            self.described(runner, number);
        }
        number
    }

    /// The link with this number, to be polled.
    pub fn link(&self, number: u32) -> Option<&Link> {
        self.libraries.iter().flat_map(|library| &library.hosts).find(|host| host.number == number).map(|h| &h.link)
    }

    /// Has a step taken. The `Err` is the answer when that cannot even be tried.
    pub fn ask(&mut self, session: Token, mechanism: &dyn Mechanism, input: &Input<'_>) -> Result<Token, OwnedStep> {
        let temporary = |why| OwnedStep::failure(FailureClass::Temporary, why);
        let Some(Runner(runner)) = mechanism.runner() else { return Err(temporary("it runs nowhere")) };
        if self.pending.len() >= self.pending_max {
            return Err(temporary("too many steps wait"));
        }
        let start = matches!(input.event, Event::Start { .. });
        let place = self.exchanges.get(&session.word()).copied().filter(|place| place.runner == runner);
        let host = match (start, place) {
            (true, _) => {
                self.finish(session);
                self.library(runner).newest()
            }
            (false, Some(place)) => Some(place.host),
            (false, None) => return Err(temporary("the process that kept the exchange has ended")),
        };
        let (name, traits) = (*mechanism.name(), mechanism.traits().clone());
        let id =
            self.pending.insert(Pending { session, runner, host, payload: Secret::default(), mechanism: name, traits });
        let step = wire_step(session, &name, input);
        let write = |to: &mut Vec<u8>| step.encode(to);
        let said = match host {
            Some(number) => self.say(id, number, start, step.octets_max(), write),
            None => {
                if let Some(pending) = self.pending.get_mut(id) {
                    // Sized once: a buffer that grows leaves copies of the password behind.
                    pending.payload = Secret::new(Vec::with_capacity(step.octets_max()));
                    write(pending.payload.buffer());
                }
                self.library(runner).waiting.push(id);
                true
            }
        };
        if said {
            return Ok(id);
        }
        self.pending.remove(id);
        Err(temporary("the process does not take what is sent to it"))
    }

    /// The exchange of `session` is over.
    pub fn finish(&mut self, session: Token) {
        let Some(place) = self.exchanges.remove(&session.word()) else { return };
        let library = self.library(place.runner);
        if let Some(host) = library.hosts.iter_mut().find(|host| host.number == place.host) {
            host.exchanges = host.exchanges.saturating_sub(1);
            // Without room it is too slow to be told; it bounds what it keeps by itself.
            let _ = host.outbox.push_sized(FINISH, 0, 8, |to| to.extend_from_slice(&session.word().to_le_bytes()));
        }
        library.close_old();
    }

    /// Whether the step of `session` that stands at `index` has no answer yet.
    pub fn is_asked(&mut self, session: Token, index: u32) -> bool {
        self.pending.at_mut(index).is_some_and(|pending| pending.session == session)
    }

    /// Leaves the process that owes the answer at `index`: whoever waits for it is told, and nothing new is sent
    /// there. Its runner and generation.
    pub fn leave_debtor(&mut self, index: u32, answers: &mut Vec<(Token, Outcome)>) -> Option<(u16, u32)> {
        let Pending { runner, host, .. } = *self.pending.at_mut(index)?;
        let hosts = &self.libraries.get(usize::from(runner))?.hosts;
        let (number, generation) =
            hosts.iter().find(|one| Some(one.number) == host).map(|one| (one.number, one.generation))?;
        self.lose(runner, number, answers);
        Some((runner, generation))
    }

    /// Forgets the step of `session` that stands at `index`.
    pub fn forget(&mut self, session: Token, index: u32) -> bool {
        let is_it = self.is_asked(session, index);
        let id = self.pending.token_at(index).filter(|_| is_it);
        let Some(pending) = id.and_then(|id| self.pending.remove(id)) else { return false };
        if pending.host.is_none() {
            self.library(pending.runner).waiting.retain(|waiting| Some(*waiting) != id);
        }
        true
    }

    /// Sends what was asked during this turn.
    pub fn flush(&mut self, answers: &mut Vec<(Token, Outcome)>) {
        for runner in 0..self.libraries.len() {
            let Some(library) = self.libraries.get_mut(runner) else { return };
            let mut lost = Vec::new();
            for host in &mut library.hosts {
                if !host.outbox.is_empty() && host.outbox.flush(&host.link).is_err() {
                    lost.push(host.number);
                }
            }
            lost.into_iter().for_each(|number| self.lose(runner as u16, number, answers));
        }
    }

    /// Takes what a process says and appends who is to be told what.
    pub fn receive(&mut self, number: u32, answers: &mut Vec<(Token, Outcome)>) {
        let mut packet = std::mem::take(&mut self.packet);
        while let Some(runner) =
            self.libraries.iter().position(|library| library.hosts.iter().any(|host| host.number == number))
        {
            let received = self.link(number).map(|link| link.receive(&mut packet));
            let good = match received {
                Some(Ok(Received::WouldBlock)) | None => break,
                Some(Ok(Received::Packet { .. })) => self.heard(runner as u16, number, &packet, answers),
                Some(Ok(Received::Closed) | Err(_)) => false,
            };
            link::wipe(&mut packet);
            if !good {
                self.lose(runner as u16, number, answers);
            }
        }
        self.packet = packet;
    }

    /// An answer was read: the next one may have its buffer.
    pub fn reuse(&mut self, answer: OwnedStep) {
        let buffer = answer.into_buffer();
        if self.spare.len() < SPARE_MAX && buffer.room() <= SPARE_OCTETS_MAX {
            self.spare.push(buffer);
        }
    }

    /// What libraries logged since the last call.
    pub fn take_words(&mut self) -> Vec<Words> {
        std::mem::take(&mut self.words)
    }

    /// `false` when it talks nonsense.
    fn heard(&mut self, runner: u16, number: u32, packet: &[u8], answers: &mut Vec<(Token, Outcome)>) -> bool {
        for frame in frames(packet) {
            let Ok(frame) = frame else { return false };
            match frame.kind {
                ANSWER => match wire::Answer::decode(frame.payload) {
                    Ok(answer) => self.answer(runner, number, Token::from_word(frame.id), &answer, answers),
                    Err(_) => return false,
                },
                DESCRIPTION => {
                    let Ok(description) = Description::decode(frame.payload) else { return false };
                    let entry = self.library(runner);
                    // Two editions may start at once; the newer one's word counts.
                    let newest = entry.newest_generation();
                    let own = entry.hosts.iter().find(|host| host.number == number).map(|host| host.generation);
                    if let Some(library) = entry.library.as_ref().filter(|_| own >= newest) {
                        library.describe(&description);
                    }
                    self.described(runner, number);
                }
                WORDS if self.words.len() < WORDS_MAX => {
                    let id = self.library(runner).library.as_ref().map(|library| library.id.clone());
                    let id = id.unwrap_or_default();
                    self.words.push(Words { id, level: frame.id, text: frame.payload.to_vec() });
                }
                _ => {}
            }
        }
        true
    }

    fn answer(
        &mut self,
        runner: u16,
        number: u32,
        id: Token,
        answer: &wire::Answer<'_>,
        answers: &mut Vec<(Token, Outcome)>,
    ) {
        // Twice, late, or to what was asked of somebody else: nobody waits for it.
        if self.pending.get_mut(id).is_none_or(|pending| pending.host != Some(number)) {
            return;
        }
        let Some(Pending { session, mechanism, traits, .. }) = self.pending.remove(id) else { return };
        let wire::Answer { action, arg, last, parts } = *answer;
        let buffer = self.spare.pop().unwrap_or_default();
        let step = OwnedStep::new(Flat { action, arg, last, parts }, &traits, buffer);
        let broken = match &step {
            None => true,
            Some(step) => matches!(step.step(), Step::Failure { class: FailureClass::Internal, .. }),
        };
        if broken && let Some(remote) = self.remote(runner, &mechanism) {
            remote.broken();
        }
        let step = step.unwrap_or_else(|| OwnedStep::failure(FailureClass::Internal, "the answer breaks the contract"));
        answers.push((session, Outcome::Step(step)));
    }

    fn remote(&self, runner: u16, name: &MechanismName) -> Option<Arc<Remote>> {
        let library = self.libraries.get(usize::from(runner))?.library.as_ref()?;
        library.mechanisms.iter().find(|remote| remote.name() == name).cloned()
    }

    /// It serves: what waited goes there.
    fn described(&mut self, runner: u16, number: u32) {
        let library = self.library(runner);
        if let Some(host) = library.hosts.iter_mut().find(|host| host.number == number) {
            host.described = true;
        }
        library.close_old();
        let Some(number) = library.newest() else { return };
        for id in std::mem::take(&mut library.waiting) {
            if let Some(pending) = self.pending.get_mut(id) {
                pending.host = Some(number);
                let payload = std::mem::take(&mut pending.payload);
                let octets = payload.expose();
                // What does not fit stays without answer until its deadline.
                self.say(id, number, true, octets.len(), |to| to.extend_from_slice(octets));
            }
        }
    }

    /// Puts a pending step of at most so many octets into its process' outbox.
    fn say(
        &mut self,
        id: Token,
        number: u32,
        start: bool,
        octets_max: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let Some(&mut Pending { session, runner, .. }) = self.pending.get_mut(id) else { return false };
        let host = self.library(runner).hosts.iter_mut().find(|host| host.number == number);
        let Some(host) = host else { return false };
        let said = host.outbox.push_sized(STEP, id.word(), octets_max, write).is_ok();
        if said && start {
            host.exchanges += 1;
            self.exchanges.insert(session.word(), Place { runner, host: number });
        }
        said
    }

    /// The process is gone.
    fn lose(&mut self, runner: u16, number: u32, answers: &mut Vec<(Token, Outcome)>) {
        self.library(runner).hosts.retain(|host| host.number != number);
        self.exchanges.retain(|_, place| place.host != number);
        for id in self.pending.tokens() {
            if self.pending.get_mut(id).is_some_and(|pending| pending.host == Some(number))
                && let Some(pending) = self.pending.remove(id)
            {
                let failure = OwnedStep::failure(FailureClass::Temporary, "the mechanism's process has ended");
                answers.push((pending.session, Outcome::Step(failure)));
            }
        }
    }

    fn library(&mut self, runner: u16) -> &mut Library {
        let at = usize::from(runner);
        if self.libraries.len() <= at {
            self.libraries.resize_with(at + 1, Library::default);
        }
        // Made just now, if it was not there.
        &mut self.libraries[at]
    }
}

impl Library {
    fn newest_generation(&self) -> Option<u32> {
        self.hosts.iter().filter(|host| host.described).map(|host| host.generation).max()
    }

    /// Who takes new exchanges.
    fn newest(&self) -> Option<u32> {
        let described = self.hosts.iter().filter(|host| host.described);
        described.max_by_key(|host| (host.generation, host.number)).map(|host| host.number)
    }

    /// Closes links on which nothing will be begun and nothing is left to finish, so that their processes may go.
    fn close_old(&mut self) {
        if let Some(newest) = self.newest() {
            // What is still to be said is said first: the end of the last exchange wipes its state.
            self.hosts.retain_mut(|host| {
                let left = host.described && host.number != newest && host.exchanges == 0;
                if left {
                    let _ = host.outbox.flush(&host.link);
                }
                !left
            });
        }
    }
}

/// Numbers of links in polls.
const HOSTS: u32 = 1 << 20;

fn wire_step<'a>(session: Token, name: &'a MechanismName, input: &Input<'a>) -> wire::Step<'a> {
    let facts = input.facts;
    let event = match &input.event {
        Event::Start { initial } => wire::Event::Start {
            mechanism: name.as_str(),
            initial: initial.then_some(input.message),
            facts: wire_facts(facts),
        },
        Event::Message | Event::Resume => wire::Event::Message(input.message),
        Event::Outcome(outcome) => {
            let (effect, status, proof) = (outcome.effect as u32, outcome.status as u32, outcome.proof.0);
            let data = outcome.data;
            let scram = outcome.scram.map(|ScramKey { iterations, salt, stored_key, server_key }| wire::Scram {
                iterations,
                salt,
                stored_key,
                server_key,
            });
            wire::Event::Outcome { effect, status, proof, data, scram }
        }
    };
    let Input { exchange, unix_ms, entropy, .. } = *input;
    wire::Step { exchange: session.word(), session: exchange, unix_ms, entropy, event }
}

#[cfg(test)]
mod tests;
