//! What a session says, and what it must hear: either through [`smtp::client`], which checks every reply as a
//! mail server would, or from a script, for what an ordinary client does not do.

use std::sync::Arc;
use std::time::Instant;

use smtp::client::{
    Channel, ChannelBindings, Class, Cleartext, Client, Credentials, Login, Mechanism, Message, Next, Protocol,
    RecipientResult, Settings, Stage, StartTls, Use,
};
use smtp::envelope::{Body, Envelope, Notify, Recipient};

use crate::content::{NAME, header, numbered, sender, tail, text};
use crate::plan::{Kind, Pipelining, Scenario, Tls};
use crate::script::{Progress, Script, UNASKED, scripts, take_reply};
use crate::sizes::Random;

/// What is timed, besides whole sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// From the intended start to the greeting, with connect and implicit TLS.
    Greeting,
    /// From AUTH to 235.
    Login,
    /// From the end of a message to its reply.
    Message,
    /// From NOOP to 250, on idle sessions.
    Noop,
}

/// Why something did not go as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// How far it had come.
    pub stage: String,
    /// A reply code, or what happened instead of a reply.
    pub code: String,
    /// In the server's words or in ours.
    pub text: String,
}

impl Trouble {
    /// Without a reply.
    pub fn new(stage: &str, code: &str, text: impl Into<String>) -> Self {
        Self { stage: stage.to_owned(), code: code.to_owned(), text: text.into() }
    }
}

/// What happened meanwhile, for the counts.
#[derive(Default)]
pub struct Notes {
    /// Times in microseconds.
    pub times: Vec<(Measure, u64)>,
    /// Messages that the server took for at least one recipient.
    pub messages: u64,
    /// Their octets.
    pub message_octets: u64,
    /// What went wrong without ending the session.
    pub troubles: Vec<Trouble>,
}

/// What the driver does next; before that, it sends what was appended to `out`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Then {
    /// Read.
    Going,
    /// Send all of it, then call [`Dialogue::send_more`].
    More,
    /// Do the handshake, then [`Dialogue::tls_started`].
    StartTls,
    /// Keep the connection: for so many seconds, or to the end of the run.
    Held(Option<f64>),
    /// Close.
    Done,
    /// Close with a reset, without waiting for what is sent to arrive.
    Reset,
}

/// A session's side of the dialogue.
pub enum Dialogue {
    /// An ordinary client.
    Client(Box<Talk>),
    /// A script.
    Script(Progress),
}

/// What all sessions of a scenario share.
pub struct Spec {
    scenario: Scenario,
    /// One of each user, for [`Dialogue::Client`].
    settings: Vec<Arc<Settings>>,
    /// One of each user or trick.
    scripts: Vec<Arc<Script>>,
    /// What follows a login that was refused as it should be.
    after_refusal: Arc<Script>,
    /// Text that bodies are cut from.
    text: Arc<[u8]>,
}

/// Octets of a message that are handed over at a time.
const PIECE_OCTETS: usize = 64 * 1024;

impl Spec {
    /// Everything that is the same for all sessions is made once.
    pub fn new(scenario: &Scenario) -> Result<Self, String> {
        let mut spec = Self {
            scenario: scenario.clone(),
            settings: Vec::new(),
            scripts: Vec::new(),
            after_refusal: Arc::new(Script::after_refusal()),
            text: text(scenario),
        };
        let scripted = match scenario.kind {
            Kind::Connect | Kind::Churn | Kind::HalfOpen | Kind::Idle | Kind::Rude => true,
            Kind::Submit | Kind::Slow => scenario.pipelining == Pipelining::Stream,
            Kind::Login | Kind::WrongPassword => false,
        };
        if scripted {
            spec.scripts = scripts(scenario, &spec.text)?;
        } else {
            let users = if scenario.user.is_some() { scenario.users } else { 1 };
            for user in 0..users {
                spec.settings.push(Arc::new(settings(scenario, user)?));
            }
        }
        Ok(spec)
    }

    /// Whether a login may be bound to the TLS connection: what it can be bound by is not free.
    pub fn may_bind(&self) -> bool {
        let binds = |login: &Login| login.mechanisms.iter().any(|mechanism| mechanism.binds_channel());
        self.settings.first().and_then(|settings| settings.login.as_ref()).is_some_and(binds)
    }

    /// The dialogue of session number `n`.
    pub fn begin(self: &Arc<Self>, n: u64, random: &mut Random, now: Instant) -> Dialogue {
        let pick = |of: usize| (n % of.max(1) as u64) as usize;
        if let Some(script) = self.scripts.get(pick(self.scripts.len())) {
            return Dialogue::Script(Progress::new(Arc::clone(script), now));
        }
        let channel = if self.scenario.tls == Tls::Implicit { Channel::Tls } else { Channel::Clear };
        let mut entropy = [0; 24];
        for part in entropy.chunks_mut(8) {
            part.copy_from_slice(&random.bits().to_le_bytes());
        }
        let settings = Arc::clone(&self.settings[pick(self.settings.len())]);
        Dialogue::Client(Box::new(Talk {
            client: Client::new(settings, channel, entropy),
            spec: Arc::clone(self),
            user: pick(self.settings.len()) as u32,
            left: if self.scenario.kind.sends_mail() { self.scenario.per_connection } else { 0 },
            header: Vec::new(),
            body_octets: 0,
            at: 0,
            intended: now,
            sent: now,
            unsent: 0,
            stage: Stage::Greeting,
            since: now,
        }))
    }
}

fn settings(scenario: &Scenario, user: u32) -> Result<Settings, String> {
    let mut settings = Settings::new(NAME).map_err(|error| error.to_string())?;
    settings.protocol = if scenario.lmtp { Protocol::Lmtp } else { Protocol::Smtp };
    settings.starttls = if scenario.tls == Tls::Starttls { StartTls::Required } else { StartTls::Never };
    settings.pipelining = if scenario.pipelining == Pipelining::Never { Use::Never } else { Use::IfOffered };
    settings.chunking = if scenario.bdat { Use::IfOffered } else { Use::Never };
    let wanted = match &scenario.mechanism {
        None => None,
        Some(name) => {
            Some(Mechanism::named(name).ok_or_else(|| format!("mechanism {name:?}: known are {}", mechanisms()))?)
        }
    };
    if let Some(name) = scenario.user.as_deref().or((wanted == Some(Mechanism::External)).then_some("")) {
        let name = numbered(name, user);
        let wrong = format!("not-{}", scenario.password);
        let secret = if scenario.kind == Kind::WrongPassword { &wrong } else { &scenario.password };
        let credentials = match wanted {
            Some(Mechanism::External) => Credentials::external(&name),
            Some(wanted) if wanted.takes_token() => Credentials::token(&name, secret),
            _ => Credentials::new(&name, "", secret),
        };
        let mut login = Login::new(Arc::new(credentials.map_err(|error| format!("{name}: {error}"))?));
        // Measured, not protected: the passwords are those of a test.
        login.cleartext = Cleartext::Allow;
        if let Some(wanted) = wanted {
            login.mechanisms = vec![wanted];
        }
        settings.login = Some(login);
    }
    Ok(settings)
}

fn mechanisms() -> String {
    Mechanism::ALL.map(Mechanism::name).join(", ")
}

// -------------------------------------------------------------------------------------- the ordinary client

/// A session of an ordinary client.
pub struct Talk {
    client: Client,
    spec: Arc<Spec>,
    user: u32,
    /// Messages that are still to be begun.
    left: u32,
    header: Vec<u8>,
    body_octets: usize,
    /// How much of header and body was handed over.
    at: usize,
    intended: Instant,
    /// When the last octets of the message were handed over.
    sent: Instant,
    /// How many octets had not gone out yet when the last octets came in.
    unsent: usize,
    /// What is timed now.
    stage: Stage,
    since: Instant,
}

impl Talk {
    fn follow(
        &mut self,
        mut next: Next,
        out: &mut Vec<u8>,
        random: &mut Random,
        now: Instant,
        notes: &mut Notes,
    ) -> Result<Then, Trouble> {
        loop {
            self.time(now, notes);
            next = match next {
                Next::Read => return Ok(Then::Going),
                Next::StartTls => return Ok(Then::StartTls),
                Next::Write => {
                    let next = self.write(out, now);
                    if next == Next::Write {
                        return Ok(Then::More);
                    }
                    next
                }
                Next::Delivered => {
                    self.look(now, notes);
                    self.more(out, random, now)
                }
                Next::Ready if self.left > 0 && self.spec.scenario.bdat && !self.client.peer().chunking => {
                    // DATA instead would be another measurement than the one that was asked for.
                    return Err(Trouble::new("EHLO", "no CHUNKING", "the server does not offer it"));
                }
                Next::Ready => self.more(out, random, now),
                Next::Closed => return self.closed(),
            };
        }
    }

    /// Notes what came to its end since the last call.
    fn time(&mut self, now: Instant, notes: &mut Notes) {
        let stage = self.client.stage();
        if stage == self.stage {
            return;
        }
        let micros = |since: Instant| now.saturating_duration_since(since).as_micros() as u64;
        match self.stage {
            Stage::Greeting if stage == Stage::Hello => notes.times.push((Measure::Greeting, micros(self.intended))),
            Stage::Auth if stage == Stage::Idle => notes.times.push((Measure::Login, micros(self.since))),
            _ => {}
        }
        (self.stage, self.since) = (stage, now);
    }

    fn more(&mut self, out: &mut Vec<u8>, random: &mut Random, now: Instant) -> Next {
        if self.left == 0 {
            return self.client.quit(out);
        }
        self.left -= 1;
        let scenario = &self.spec.scenario;
        let from = sender(scenario, self.user);
        self.header = header(scenario, &from, u64::from(self.left), random.bits());
        let size = scenario.size.draw(random) as usize;
        self.body_octets = tail(&self.spec.text, size.saturating_sub(self.header.len()).max(2)).len();
        self.at = 0;
        let mut envelope = Envelope::default();
        envelope.set_reverse_path(Some(&from));
        envelope.smtputf8 = scenario.smtputf8;
        if scenario.eight_bit || scenario.smtputf8 {
            envelope.body = Body::EightBitMime;
        }
        let addresses: Vec<String> = (0..scenario.recipients).map(|n| numbered(&scenario.to, n)).collect();
        let recipients: Vec<Recipient<'_>> = addresses
            .iter()
            .map(|address| Recipient { address, mailbox: "", orcpt: None, notify: Notify(0) })
            .collect();
        let octets = (self.header.len() + self.body_octets) as u64;
        let next = self.client.deliver(&Message { envelope: &envelope, recipients: &recipients, octets }, out);
        (self.stage, self.since) = (self.client.stage(), now);
        next
    }

    /// Hands a piece of the message over; `Write` when there is more.
    fn write(&mut self, out: &mut Vec<u8>, now: Instant) -> Next {
        let enough = out.len() + PIECE_OCTETS;
        let body = tail(&self.spec.text, self.body_octets);
        let mut next = Next::Write;
        while next == Next::Write && out.len() < enough {
            let piece = match self.header.get(self.at..).filter(|rest| !rest.is_empty()) {
                Some(rest) => rest,
                None => {
                    let from = self.at - self.header.len();
                    &body[from..body.len().min(from + PIECE_OCTETS)]
                }
            };
            self.at += piece.len();
            next = self.client.body(piece, out);
        }
        self.sent = now;
        next
    }

    /// What became of the message.
    fn look(&mut self, now: Instant, notes: &mut Notes) {
        let mut taken = false;
        for result in self.client.results() {
            match result {
                RecipientResult::Taken(_) => taken = true,
                RecipientResult::Failed(failure) => notes.troubles.push(trouble(&failure)),
                RecipientResult::Pending => notes.troubles.push(Trouble::new("end of message", "no result", "")),
            }
        }
        if taken && self.unsent > 0 {
            let why = "taken before all of it was sent";
            return notes.troubles.push(Trouble::new(&Stage::Final.to_string(), "protocol", why));
        }
        if taken {
            notes.times.push((Measure::Message, now.saturating_duration_since(self.sent).as_micros() as u64));
        }
        notes.messages += u64::from(taken);
        notes.message_octets += if taken { (self.header.len() + self.body_octets) as u64 } else { 0 };
    }

    /// The login that should be refused is.
    fn is_refused(&self) -> bool {
        let refused = |failure: smtp::client::Failure<'_>| (failure.stage, failure.code) == (Stage::Auth, Some(535));
        self.spec.scenario.kind == Kind::WrongPassword && self.client.failure().is_some_and(refused)
    }

    fn closed(&mut self) -> Result<Then, Trouble> {
        let wanted = self.spec.scenario.kind == Kind::WrongPassword;
        match self.client.failure() {
            Some(failure) => Err(trouble(&failure)),
            None if wanted => Err(Trouble::new("AUTH", "235", "a wrong password was taken")),
            None => Ok(Then::Done),
        }
    }
}

fn trouble(failure: &smtp::client::Failure<'_>) -> Trouble {
    let code = failure.code.map(|code| code.to_string()).unwrap_or_else(|| {
        match failure.class {
            Class::Lost => "lost",
            Class::Protocol => "protocol",
            Class::Temporary | Class::Permanent => "unusable",
        }
        .to_owned()
    });
    Trouble { stage: failure.stage.to_string(), code, text: failure.text.to_owned() }
}

/// What answers QUIT. A client goes whatever it hears; here it must be 221 and nothing behind it.
fn goodbye(received: &[u8]) -> Result<(), Trouble> {
    let wrong = |code: &str, why: &str| Err(Trouble::new(&Stage::Quit.to_string(), code, why));
    match take_reply(received) {
        Ok(None) => Ok(()),
        Ok(Some((octets, 221))) if octets == received.len() => Ok(()),
        Ok(Some((_, 221))) => wrong("protocol", UNASKED),
        Ok(Some((_, code))) => wrong(&code.to_string(), "instead of 221"),
        Err(why) => wrong("protocol", why),
    }
}

// -------------------------------------------------------------------------------------- both

impl Dialogue {
    /// Takes what was received while so many octets were not sent yet; returns how much of it is done with.
    pub fn receive(
        &mut self,
        received: &[u8],
        unsent: usize,
        out: &mut Vec<u8>,
        random: &mut Random,
        now: Instant,
        notes: &mut Notes,
    ) -> Result<(usize, Then), Trouble> {
        match self {
            Self::Script(progress) => progress.receive(received, out, now, notes),
            Self::Client(talk) => {
                if talk.client.stage() == Stage::Quit {
                    goodbye(received)?;
                }
                talk.unsent = unsent;
                let before = out.len();
                let (used, next) = talk.client.receive(received, out);
                if talk.is_refused() {
                    // A client goes when its login is refused, and hears no more; a person may try again.
                    out.truncate(before);
                    if take_reply(received).is_ok_and(|reply| reply.is_none_or(|(octets, _)| octets < received.len())) {
                        return Err(Trouble::new(&Stage::Auth.to_string(), "protocol", UNASKED));
                    }
                    let mut progress = Progress::new(Arc::clone(&talk.spec.after_refusal), now);
                    let then = progress.speak(out, now);
                    *self = Self::Script(progress);
                    return Ok((used, then));
                }
                talk.follow(next, out, random, now, notes).map(|then| (used, then))
            }
        }
    }

    /// The handshake is over: what the connection can be bound by.
    pub fn bind(&mut self, bindings: ChannelBindings) {
        if let Self::Client(talk) = self {
            talk.client.bind(bindings);
        }
    }

    /// The handshake of STARTTLS is over.
    pub fn tls_started(
        &mut self,
        out: &mut Vec<u8>,
        random: &mut Random,
        now: Instant,
        notes: &mut Notes,
    ) -> Result<Then, Trouble> {
        match self {
            Self::Script(progress) => Ok(progress.speak(out, now)),
            Self::Client(talk) => {
                let next = talk.client.tls_started(out);
                talk.follow(next, out, random, now, notes)
            }
        }
    }

    /// What waited is sent: more of the message.
    pub fn send_more(
        &mut self,
        out: &mut Vec<u8>,
        random: &mut Random,
        now: Instant,
        notes: &mut Notes,
    ) -> Result<Then, Trouble> {
        match self {
            Self::Script(progress) => Ok(progress.waiting()),
            Self::Client(talk) => talk.follow(Next::Write, out, random, now, notes),
        }
    }

    /// The connection ended or nothing came for too long. An end may be what was wanted.
    pub fn lost(&mut self, code: &str, why: &str) -> Result<(), Trouble> {
        match self {
            Self::Script(progress) => progress.lost(code, why),
            Self::Client(talk) => {
                let stage = talk.client.stage();
                talk.client.lost(why);
                Err(Trouble::new(&stage.to_string(), code, why))
            }
        }
    }

    /// Says NOOP on a session that is held; false when it is not, or when one is on its way.
    pub fn noop(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        match self {
            Self::Script(progress) => progress.noop(out, now),
            Self::Client(_) => false,
        }
    }

    /// Whether nothing is due on a session that is held.
    pub fn is_at_rest(&self) -> bool {
        matches!(self, Self::Script(progress) if progress.is_at_rest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Client and scripts against the real session machine: what is sent is accepted.
    #[test]
    fn dialogues_fit_the_server() {
        use smtp::{Role, Session, testing};
        for (name, edit) in [
            ("groups", (|_| {}) as fn(&mut Scenario)),
            ("stream", |scenario| scenario.pipelining = Pipelining::Stream),
            ("one by one", |scenario| scenario.pipelining = Pipelining::Never),
            ("BDAT", |scenario| scenario.bdat = true),
            ("8-bit", |scenario| scenario.eight_bit = true),
            ("SMTPUTF8", |scenario| scenario.smtputf8 = true),
        ] {
            let mut scenario = Scenario::new(Kind::Submit);
            (scenario.per_connection, scenario.recipients) = (3, 2);
            scenario.to = "b{n}@mx.example".to_owned();
            scenario.size = "1k-200k".parse().unwrap();
            edit(&mut scenario);
            let spec = Arc::new(Spec::new(&scenario).unwrap());
            let (mut random, now, mut notes) = (Random(3), Instant::now(), Notes::default());
            let mut dialogue = spec.begin(0, &mut random, now);
            let (listener, mut world) = (testing::listener(Role::Mx), testing::World::new());
            let mut server = Session::new();
            server.greet(&mut world.context(&listener));
            let mut kept = Vec::new();
            let mut then = Then::Going;
            for _ in 0..200 {
                let mut out = Vec::new();
                then = match then {
                    Then::More => dialogue.send_more(&mut out, &mut random, now, &mut notes).unwrap(),
                    _ => {
                        kept.extend_from_slice(world.text().as_bytes());
                        world.clear();
                        let (used, then) = dialogue
                            .receive(&kept, 0, &mut out, &mut random, now, &mut notes)
                            .unwrap_or_else(|t| panic!("{name}: {t:?}"));
                        kept.drain(..used);
                        then
                    }
                };
                if then == Then::Done {
                    break;
                }
                let mut from = 0;
                while from < out.len() {
                    let (used, _) = server.receive(&out[from..], &mut world.context(&listener));
                    if used == 0 {
                        break;
                    }
                    from += used;
                }
            }
            assert_eq!(then, Then::Done, "{name}");
            assert_eq!((notes.messages, notes.troubles.len()), (3, 0), "{name}: {:?}", notes.troubles);
        }
    }
}
