//! Exchanges as a worker has them run, without a server around: in this process, or in a mechanism-host that is
//! locked up as it is in service. For `bench sasl` and `plugin replay`.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use conformance::event::{Answer, Event, Facts, Moment, Octets, Outcome};
use conformance::sandbox::Fault;
use conformance::world::{self, Stepper};
use link::mechanism::{self as wire, ANSWER, DESCRIPTION, FINISH, STEP};
use link::message::Message;
use link::{Link, Outbox, Received, Role, frames, sealed, sys};
use plugin_host::{Demands, Ownership, Registry, Terms, Vetted, wire_facts};
use portreeve_plugin_abi::{action, conn, out_flag};
use rustix::event::PollFlags;
use sasl::{Flat, Input, Mechanism, MechanismName, Proof, ScramKey, State, Status};
use serde_json::json;

/// How long a mechanism-host may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What may wait for a mechanism-host.
const OUTBOX_OCTETS_MAX: usize = 4 << 20;

/// A library that was looked at, ready to be loaded.
pub fn vet(file: &Path) -> Result<Vetted, String> {
    plugin_host::vet(file, &Demands { ownership: Ownership::Relaxed, sha256: None }).map_err(|error| error.to_string())
}

/// What the kit wants to know of a mechanism.
pub fn traits(mechanism: &dyn Mechanism) -> world::Traits {
    let traits = mechanism.traits();
    let has = |flag: u32| traits.flags & flag != 0;
    world::Traits {
        name: mechanism.name().as_str().to_owned(),
        client_first: has(sasl::flag::CLIENT_FIRST),
        server_first: has(sasl::flag::SERVER_FIRST),
        allow_nul: has(sasl::flag::ALLOW_NUL),
        utf8: has(sasl::flag::UTF8),
        entropy: has(sasl::flag::ENTROPY),
        anonymous: has(sasl::flag::ANONYMOUS),
        self_asserts: has(sasl::flag::SELF_ASSERTS),
        channel_bind: has(sasl::flag::CHANNEL_BIND),
        message_octets_max: traits.message_octets_max,
        steps_max: traits.steps_max,
    }
}

// ---------------------------------------------------------------- in this process

/// A mechanism inside this process, as a worker runs bundled libraries.
pub struct Inline {
    /// The mechanism.
    pub mechanism: Arc<dyn Mechanism>,
    /// The state of its exchange.
    pub state: State,
    /// What it writes into.
    pub scratch: Vec<u8>,
    message: Vec<u8>,
}

impl Inline {
    /// One mechanism of a library. Its code runs here: for libraries that are trusted so far.
    pub fn new(vetted: &Vetted, mech: &str, settings: &str) -> Result<Self, String> {
        let name = MechanismName::parse(mech.as_bytes()).ok_or_else(|| format!("{mech}: no mechanism's name"))?;
        let mut registry = Registry::new();
        registry
            .load(&vetted.note.id, copy(&vetted.fd)?, &vetted.path, Terms::default())
            .map_err(|error| error.to_string())?;
        let mechanism = registry.mechanism(&name, settings).map_err(|error| error.to_string())?;
        let scratch = vec![0; mechanism.traits().output_octets_max];
        Ok(Self { mechanism, state: State::default(), scratch, message: Vec::new() })
    }
}

impl Stepper for Inline {
    fn begin(&mut self) -> Result<(), Fault> {
        self.state.prepare(self.mechanism.traits().state_octets);
        Ok(())
    }

    fn step(&mut self, facts: &Facts, moment: &Moment) -> Result<Answer, Fault> {
        if let Some(message) = message_of(&moment.event) {
            message.clone_into(&mut self.message);
        }
        let unix_ms = facts.unix_ms;
        let facts = sasl_facts(facts).ok_or_else(|| Fault::new("A7", "a client address of neither 4 nor 16 octets"))?;
        let input = Input { unix_ms, ..input(&facts, moment, &self.message)? };
        let step = self.mechanism.step(&mut self.state, input, &mut self.scratch);
        Ok(answer(Flat::from(&step)))
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.mechanism.finish(&mut self.state);
        Ok(())
    }
}

/// What the message is from this event on; none where it stays.
fn message_of(event: &Event) -> Option<&[u8]> {
    match event {
        Event::Start(initial) => Some(initial.as_ref().map_or(&[][..], |initial| &initial.0)),
        Event::Message(message) => Some(&message.0),
        Event::Result(_) | Event::Resume => None,
    }
}

/// The connection as the host's types have it.
pub fn sasl_facts(facts: &Facts) -> Option<sasl::Facts<'_>> {
    let has = |bit: u32| facts.conn_flags & bit != 0;
    Some(sasl::Facts {
        tls: has(conn::TLS),
        tls_version: u16::try_from(facts.tls_version).ok()?,
        client_certificate: has(conn::CLIENT_CERT),
        plus_offered: has(conn::CB_SIBLING),
        channel_bindings: facts.cb_types,
        server_name: &facts.server_name,
        client_ip: address(&facts.client_ip)?,
        listener: &facts.listener,
        sni: &facts.sni,
        session: 1,
    })
}

fn address(octets: &Octets) -> Option<IpAddr> {
    match octets.0.len() {
        4 => <[u8; 4]>::try_from(&octets.0[..]).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(&octets.0[..]).ok().map(IpAddr::from),
    }
}

/// One step's input; `message` is the client's current one.
pub fn input<'a>(facts: &'a sasl::Facts<'a>, moment: &'a Moment, message: &'a [u8]) -> Result<Input<'a>, Fault> {
    let event = match &moment.event {
        Event::Start(initial) => sasl::Event::Start { initial: initial.is_some() },
        Event::Message(_) => sasl::Event::Message,
        Event::Resume => sasl::Event::Resume,
        Event::Result(outcome) => sasl::Event::Outcome(sasl::Outcome {
            effect: effect(outcome)?,
            status: Status::from_abi(outcome.status),
            proof: Proof(outcome.handle),
            data: &outcome.data.0,
            scram: outcome.scram.as_ref().map(|key| ScramKey {
                iterations: key.iterations,
                salt: &key.salt.0,
                stored_key: &key.stored_key.0,
                server_key: &key.server_key.0,
            }),
        }),
    };
    Ok(Input { event, message, facts, entropy: &moment.entropy.0, unix_ms: 0, exchange: 1 })
}

fn effect(outcome: &Outcome) -> Result<sasl::EffectKind, Fault> {
    sasl::EffectKind::from_abi(outcome.effect).ok_or_else(|| Fault::new("A7", "an effect of a later minor"))
}

/// As the kit writes it.
fn answer(flat: Flat<'_>) -> Answer {
    let [data, second, authzid] = flat.parts.map(|part| Octets(part.to_vec()));
    let flags = if flat.last { out_flag::FINAL_DATA } else { 0 };
    let mut answer = Answer { action: flat.action, flags, data, authzid, ..Answer::default() };
    match flat.action {
        action::SUCCESS => answer.handle = flat.arg,
        action::FAIL => (answer.arg, answer.diag) = (flat.arg, second),
        action::VERIFY_TOKEN | action::BACKEND_CALL => (answer.arg, answer.data2) = (flat.arg, second),
        _ => (answer.arg, answer.authcid) = (flat.arg, second),
    }
    answer
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, String> {
    fd.try_clone().map_err(|error| error.to_string())
}

// ---------------------------------------------------------------- in a mechanism-host

/// A mechanism-host of one library, and one exchange of one of its mechanisms.
pub struct Hosted {
    child: Child,
    // The host ends when its supervisor is gone.
    _supervisor: Link,
    /// Its link, as a shard has one.
    pub link: Link,
    /// What is to be sent there.
    pub outbox: Outbox,
    packet: Vec<u8>,
    mech: String,
    exchange: u64,
}

impl Hosted {
    /// Starts the process and waits until it has described itself.
    pub fn start(program: &Path, vetted: &Vetted, mech: &str, settings: Option<&str>) -> Result<Self, String> {
        if settings.is_some_and(|settings| !settings.trim().is_empty()) {
            return Err("a mechanism with settings is not run in a process here: take --runner check".into());
        }
        let failed = |error: std::io::Error| format!("mechanism-host: {error}");
        let (ours, theirs) = Link::pair().map_err(failed)?;
        let mut command = Command::new(program);
        command.args([supervisor::child::ROLE_ARGUMENT, Role::MechanismHost.name()]);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = sys::spawn(&mut command, theirs).map_err(failed)?;
        let (link, shard) = Link::pair().map_err(failed)?;
        let (outbox, packet) = (Outbox::new(OUTBOX_OCTETS_MAX), Vec::new());
        let mut hosted = Self { child, _supervisor: ours, link, outbox, packet, mech: mech.to_owned(), exchange: 0 };

        let told = json!({ "file": "none", "text": CONFIGURATION, "client_authorities": [], "runners": [] });
        let told = sealed::create("configuration", told.to_string().as_bytes()).map_err(failed)?;
        let origin = vetted.path.to_string_lossy();
        let mut outbox = Outbox::new(1 << 20);
        let mut say = |message: &Message<'_>, fd: Option<OwnedFd>| {
            let fds = fd.into_iter().collect();
            outbox.push_with(message.kind(), 0, fds, |to| message.encode(to)).map_err(|full| full.to_string())
        };
        say(&Message::Config, Some(told))?;
        say(&Message::Plugin { id: &vetted.note.id, origin: &origin }, Some(copy(&vetted.fd)?))?;
        say(&Message::Peer { role: Role::Worker, shard: 0, instance: 1 }, Some(shard.into()))?;
        say(&Message::Start, None)?;
        outbox.flush(&hosted._supervisor).map_err(failed)?;
        let mut described = false;
        while !described {
            hosted.receive(&mut |kind, _, _| described |= kind == DESCRIPTION).map_err(|why| {
                let words = hosted.last_words();
                format!("the mechanism-host did not start: {why}{words}")
            })?;
        }
        Ok(hosted)
    }

    /// What it told its supervisor before it went.
    fn last_words(&mut self) -> String {
        let mut words = String::new();
        while let Ok(Received::Packet { fds }) = self._supervisor.receive(&mut self.packet) {
            for (_, message, _) in link::message::messages(&self.packet, fds).flatten() {
                if let Message::Failed { text } = message {
                    words = format!(": {text}");
                }
            }
        }
        words
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Queues a step; the kit's facts go with the first one of an exchange.
    pub fn say(&mut self, exchange: u64, facts: &Facts, moment: &Moment) -> Result<(), Fault> {
        let event = match &moment.event {
            Event::Start(initial) => wire::Event::Start {
                mechanism: &self.mech,
                initial: initial.as_ref().map(|initial| &initial.0[..]),
                facts: sasl_facts(facts)
                    .as_ref()
                    .map(wire_facts)
                    .ok_or_else(|| Fault::new("A7", "impossible facts"))?,
            },
            Event::Message(message) => wire::Event::Message(&message.0),
            Event::Resume => wire::Event::Message(b""),
            Event::Result(outcome) => {
                let scram = outcome.scram.as_ref().map(|key| wire::Scram {
                    iterations: key.iterations,
                    salt: &key.salt.0,
                    stored_key: &key.stored_key.0,
                    server_key: &key.server_key.0,
                });
                let (effect, status, proof, data) = (outcome.effect, outcome.status, outcome.handle, &outcome.data.0);
                wire::Event::Outcome { effect, status, proof, data, scram }
            }
        };
        let (unix_ms, entropy) = (facts.unix_ms, &moment.entropy.0[..]);
        let step = wire::Step { exchange, session: 1, unix_ms, entropy, event };
        let pushed = self.outbox.push_sized(STEP, exchange, step.octets_max(), |to| step.encode(to));
        pushed.map_err(|full| Fault::new("A7", full.to_string()))
    }

    /// Queues the end of an exchange.
    pub fn say_finish(&mut self, exchange: u64) {
        // Without room the host bounds what it keeps by itself.
        let _ = self.outbox.push_sized(FINISH, 0, 8, |to| to.extend_from_slice(&exchange.to_le_bytes()));
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Result<(), String> {
        while !self.outbox.flush(&self.link).map_err(|error| error.to_string())? {
            self.link.wait(PollFlags::OUT, Some(PATIENCE)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Waits for a packet and hands out its frames: kind, id, payload.
    pub fn receive(&mut self, hear: &mut dyn FnMut(u16, u64, &[u8])) -> Result<(), String> {
        loop {
            if !self.link.wait(PollFlags::IN, Some(PATIENCE)).map_err(|error| error.to_string())? {
                return Err("no answer in time".into());
            }
            match self.link.receive(&mut self.packet).map_err(|error| error.to_string())? {
                Received::Packet { .. } => break,
                Received::Closed => return Err("it has ended".into()),
                Received::WouldBlock => {}
            }
        }
        for frame in frames(&self.packet) {
            let frame = frame.map_err(|bad| bad.to_string())?;
            hear(frame.kind, frame.id, frame.payload);
        }
        Ok(())
    }
}

impl Stepper for Hosted {
    fn begin(&mut self) -> Result<(), Fault> {
        self.exchange += 1;
        Ok(())
    }

    fn step(&mut self, facts: &Facts, moment: &Moment) -> Result<Answer, Fault> {
        let broken = |why: String| Fault::new("A7", why);
        let exchange = self.exchange;
        self.say(exchange, facts, moment)?;
        self.flush().map_err(broken)?;
        let mut heard = None;
        while heard.is_none() {
            self.receive(&mut |kind, id, payload| {
                if kind == ANSWER && id == exchange {
                    heard =
                        Some(wire::Answer::decode(payload).map(|wire::Answer { action, arg, last, parts }| {
                            answer(Flat { action, arg, last, parts })
                        }));
                }
            })
            .map_err(broken)?;
        }
        match heard {
            Some(Ok(answer)) => Ok(answer),
            _ => Err(broken("an answer that cannot be read".into())),
        }
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.say_finish(self.exchange);
        self.flush().map_err(|why| Fault::new("A7", why))
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a mechanism-host reads of a configuration is how strictly it is to be locked up.
const CONFIGURATION: &str = "hostname = \"runners.invalid\"\n[[listener]]\nrole = \"mx\"\nbind = [\"127.0.0.1:25\"]\n\
                             tls = \"off\"\nauth = \"off\"\ndomains = [\"runners.invalid\"]\n\
                             [[route]]\ndomain = \"runners.invalid\"\nkind = \"maildir\"\npath = \"mail\"\n";
