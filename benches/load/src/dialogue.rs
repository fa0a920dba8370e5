//! What a session says, and what it must hear: either through [`smtp::client`], which checks every reply as a
//! mail server would, or from a script, for what an ordinary client does not do.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smtp::client::{
    Channel, ChannelBindings, Class, Cleartext, Client, Credentials, Login, Mechanism, Message, Next, Protocol,
    RecipientResult, Settings, Stage, StartTls, Use,
};
use smtp::envelope::{Body, Envelope, Notify, Recipient};

use crate::plan::{Kind, Pipelining, Scenario, Tls};
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
    /// Text that bodies are cut from.
    text: Arc<[u8]>,
}

/// Our name in EHLO.
const NAME: &str = "load.example";
/// Octets of a message that are handed over at a time.
const PIECE_OCTETS: usize = 64 * 1024;

impl Spec {
    /// Everything that is the same for all sessions is made once.
    pub fn new(scenario: &Scenario) -> Result<Self, String> {
        let mut spec =
            Self { scenario: scenario.clone(), settings: Vec::new(), scripts: Vec::new(), text: text(scenario) };
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
            stage: Stage::Greeting,
            since: now,
        }))
    }
}

/// A user's name, a recipient's address: `{n}` is a number.
fn numbered(pattern: &str, n: u32) -> String {
    pattern.replace("{n}", &n.to_string())
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

// -------------------------------------------------------------------------------------- content

/// Text that bodies are cut from: its end fits any size.
fn text(scenario: &Scenario) -> Arc<[u8]> {
    let line: &[u8] = if scenario.eight_bit || scenario.smtputf8 {
        "0123456789 äöü ß abcdefghijklmnop 0123456789 äöü ß abcdefghijklmnop 012345\r\n".as_bytes()
    } else {
        b"0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqrstuvwxyz\r\n"
    };
    let octets = if scenario.kind.sends_mail() { scenario.size.octets_max() as usize } else { 0 };
    line.repeat(octets / line.len() + 1).into()
}

/// The last `octets` of the text, or a few less: neither half a line end nor half a character comes first.
fn tail(text: &[u8], octets: usize) -> &[u8] {
    let mut start = text.len() - octets.min(text.len());
    while text.get(start).is_some_and(|&octet| octet == b'\n' || octet & 0xc0 == 0x80) {
        start += 1;
    }
    &text[start..]
}

fn header(scenario: &Scenario, from: &str, n: u64, salt: u64) -> Vec<u8> {
    let subject = if scenario.smtputf8 { "Prüfung" } else { "load" };
    let mime = if scenario.eight_bit || scenario.smtputf8 {
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    } else {
        ""
    };
    format!(
        "From: <{from}>\r\nTo: <{}>\r\nSubject: {subject}\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\n{mime}\
         Message-ID: <{salt:x}.{n}@{NAME}>\r\n\r\n",
        numbered(&scenario.to, 0),
    )
    .into_bytes()
}

fn sender(scenario: &Scenario, user: u32) -> String {
    let pattern = scenario.from.as_deref().or(scenario.user.as_deref()).unwrap_or("load@load.example");
    numbered(pattern, user)
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
        if taken {
            notes.times.push((Measure::Message, now.saturating_duration_since(self.sent).as_micros() as u64));
        }
        notes.messages += u64::from(taken);
        notes.message_octets += if taken { (self.header.len() + self.body_octets) as u64 } else { 0 };
    }

    fn closed(&mut self) -> Result<Then, Trouble> {
        let wanted = self.spec.scenario.kind == Kind::WrongPassword;
        match self.client.failure() {
            Some(failure) if wanted && (failure.stage, failure.code) == (Stage::Auth, Some(535)) => Ok(Then::Done),
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

// -------------------------------------------------------------------------------------- scripts

/// What must come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// These codes, in this order.
    Codes(Vec<u16>),
    /// One reply of 400 or more; or the server closes.
    Refusal,
    /// Nothing is waited for: the connection is reset.
    Nothing,
}

/// One exchange.
pub struct Step {
    stage: &'static str,
    send: Vec<u8>,
    expect: Expect,
    then_tls: bool,
    /// From sending to the first reply.
    measure: Option<Measure>,
    /// Octets of the message that the first reply takes.
    message_octets: u64,
}

/// The steps of a connection.
pub struct Script {
    steps: Vec<Step>,
    /// Then the connection is held: so many seconds, or to the end of the run.
    hold: Option<Option<f64>>,
}

/// Where a session stands in its script.
pub struct Progress {
    script: Arc<Script>,
    step: usize,
    replies: usize,
    since: Instant,
    /// A NOOP of a held session is on its way.
    noop: bool,
}

impl Script {
    fn new() -> Self {
        let mut script = Self { steps: Vec::new(), hold: None };
        script.step("greeting", b"", &[220]).measure = Some(Measure::Greeting);
        script
    }

    fn step(&mut self, stage: &'static str, send: &[u8], codes: &[u16]) -> &mut Step {
        self.push(stage, send, Expect::Codes(codes.to_vec()))
    }

    fn push(&mut self, stage: &'static str, send: &[u8], expect: Expect) -> &mut Step {
        self.steps.push(Step { stage, send: send.to_vec(), expect, then_tls: false, measure: None, message_octets: 0 });
        self.steps.last_mut().expect("pushed just now")
    }

    fn hello(&mut self, scenario: &Scenario) {
        let hello = format!("{} {NAME}\r\n", if scenario.lmtp { "LHLO" } else { "EHLO" });
        self.step("EHLO", hello.as_bytes(), &[250]);
        if scenario.tls == Tls::Starttls {
            self.step("STARTTLS", b"STARTTLS\r\n", &[220]).then_tls = true;
            self.step("EHLO", hello.as_bytes(), &[250]);
        }
    }

    fn login(&mut self, scenario: &Scenario, user: u32) {
        let Some(name) = &scenario.user else { return };
        let (name, password) = (numbered(name, user), &scenario.password);
        let mechanism = scenario.mechanism.as_deref().unwrap_or("PLAIN").to_ascii_uppercase();
        let response = match mechanism.as_str() {
            "XOAUTH2" => format!("user={name}\x01auth=Bearer {password}\x01\x01"),
            // RFC 7628 §3.1
            "OAUTHBEARER" => {
                let name = name.replace('=', "=3D").replace(',', "=2C");
                format!("n,a={name},\x01auth=Bearer {password}\x01\x01")
            }
            "EXTERNAL" => name,
            _ => format!("\0{name}\0{password}"),
        };
        let line = format!("AUTH {mechanism} {}\r\n", STANDARD.encode(response));
        self.step("AUTH", line.as_bytes(), &[235]).measure = Some(Measure::Login);
    }

    /// The end of each message travels with the beginning of the next (RFC 2920).
    fn stream(&mut self, scenario: &Scenario, user: u32, text: &[u8]) {
        let from = sender(scenario, user);
        let body = if scenario.eight_bit { " BODY=8BITMIME" } else { "" };
        let mut envelope = format!("MAIL FROM:<{from}>{body}\r\n").into_bytes();
        for n in 0..scenario.recipients {
            envelope.extend_from_slice(format!("RCPT TO:<{}>\r\n", numbered(&scenario.to, n)).as_bytes());
        }
        envelope.extend_from_slice(b"DATA\r\n");
        let mut codes = vec![250; 1 + scenario.recipients as usize];
        codes.push(354);
        self.step("MAIL", &envelope, &codes);
        let mut random = Random(u64::from(user) + 1);
        for left in (0..scenario.per_connection).rev() {
            let mut message = header(scenario, &from, u64::from(left), random.bits());
            let octets = (scenario.size.draw(&mut random) as usize).saturating_sub(message.len()).max(2);
            message.extend_from_slice(tail(text, octets));
            let message_octets = message.len() as u64;
            message.extend_from_slice(b".\r\n");
            let mut expect = vec![250];
            if left > 0 {
                message.extend_from_slice(&envelope);
                expect.extend_from_slice(&codes);
            }
            let step = self.step("end of message", &message, &expect);
            (step.measure, step.message_octets) = (Some(Measure::Message), message_octets);
        }
    }

    fn quit(&mut self) {
        self.step("QUIT", b"QUIT\r\n", &[221]);
    }
}

/// A token is said in one line: no machine is needed for it.
fn is_token(mechanism: &str) -> bool {
    ["OAUTHBEARER", "XOAUTH2", "EXTERNAL"].iter().any(|known| known.eq_ignore_ascii_case(mechanism))
}

fn scripts(scenario: &Scenario, text: &[u8]) -> Result<Vec<Arc<Script>>, String> {
    if scenario.kind == Kind::Rude {
        return Ok(tricks(scenario).into_iter().map(Arc::new).collect());
    }
    let scripted = |mechanism: &str| is_token(mechanism) || mechanism.eq_ignore_ascii_case("PLAIN");
    if let Some(mechanism) = scenario.mechanism.as_deref().filter(|mechanism| !scripted(mechanism)) {
        return Err(format!("mechanism {mechanism:?}: idle sessions and streams log in with PLAIN or a token"));
    }
    let users = if scenario.user.is_some() { scenario.users } else { 1 };
    let script = |user| {
        let mut script = Script::new();
        match scenario.kind {
            Kind::Connect => {}
            Kind::Churn => script.quit(),
            Kind::HalfOpen => script.hold = Some(Some(scenario.hold)),
            Kind::Idle => {
                script.hello(scenario);
                script.login(scenario, user);
                script.hold = Some(None);
            }
            _ => {
                script.hello(scenario);
                script.login(scenario, user);
                if scenario.kind.sends_mail() {
                    script.stream(scenario, user, text);
                }
                script.quit();
            }
        }
        Arc::new(script)
    };
    Ok((0..users).map(script).collect())
}

/// What rude clients do, each in turn.
fn tricks(scenario: &Scenario) -> Vec<Script> {
    let mut tricks = Vec::new();
    let mut trick = |stage: &'static str, polite: bool, send: &[u8], expect: Expect| {
        let mut script = Script::new();
        if polite {
            script.hello(scenario);
        }
        script.push(stage, send, expect);
        tricks.push(script);
    };
    let garbage: Vec<u8> = (0..2048_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).chain(*b"\r\n").collect();
    trick("rude: garbage", false, &garbage, Expect::Refusal);
    trick("rude: endless line", false, &[&[b'A'; 100_000][..], b"\r\n"].concat(), Expect::Refusal);
    trick("rude: HTTP", false, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", Expect::Refusal);
    trick("rude: no command", true, b"\r\n", Expect::Refusal);
    trick("rude: data without recipient", true, b"DATA\r\n", Expect::Refusal);
    trick("rude: reset in AUTH", true, b"AUTH LOGIN\r\n", Expect::Nothing);
    trick(
        "rude: reset in data",
        true,
        b"MAIL FROM:<a@load.example>\r\nRCPT TO:<b@load.example>\r\nDATA\r\nhalf",
        Expect::Nothing,
    );
    trick("rude: reset", false, b"EH", Expect::Nothing);
    tricks
}

impl Progress {
    fn new(script: Arc<Script>, now: Instant) -> Self {
        Self { script, step: 0, replies: 0, since: now, noop: false }
    }

    fn stage(&self) -> &'static str {
        match self.script.steps.get(self.step) {
            Some(step) => step.stage,
            None if self.noop => "NOOP",
            None => "idle",
        }
    }

    fn receive(
        &mut self,
        received: &[u8],
        out: &mut Vec<u8>,
        now: Instant,
        notes: &mut Notes,
    ) -> Result<(usize, Then), Trouble> {
        let script = Arc::clone(&self.script);
        let mut used = 0;
        loop {
            let reply = take_reply(&received[used..]).map_err(|text| Trouble::new(self.stage(), "protocol", text))?;
            let Some((octets, code)) = reply else { return Ok((used, self.waiting())) };
            used += octets;
            let micros = now.saturating_duration_since(self.since).as_micros() as u64;
            let Some(step) = script.steps.get(self.step) else {
                // Held. What comes is the answer to a NOOP, or goodbye.
                if !(self.noop && code == 250) {
                    return Err(Trouble::new(self.stage(), &code.to_string(), ""));
                }
                self.noop = false;
                notes.times.push((Measure::Noop, micros));
                continue;
            };
            let wrong =
                |expected: &str| Err(Trouble::new(step.stage, &code.to_string(), format!("instead of {expected}")));
            match &step.expect {
                Expect::Refusal if code >= 400 => return Ok((used, Then::Done)),
                Expect::Refusal => return wrong("a refusal"),
                Expect::Nothing => continue,
                Expect::Codes(codes) => match codes.get(self.replies) {
                    Some(expected) if *expected != code => return wrong(&expected.to_string()),
                    _ => {}
                },
            }
            if self.replies == 0 {
                notes.times.extend(step.measure.map(|measure| (measure, micros)));
                notes.messages += u64::from(step.message_octets > 0);
                notes.message_octets += step.message_octets;
            }
            self.replies += 1;
            if matches!(&step.expect, Expect::Codes(codes) if self.replies < codes.len()) {
                continue;
            }
            let then_tls = step.then_tls;
            if then_tls && used < received.len() {
                return Err(Trouble::new("STARTTLS", "protocol", "octets behind the reply"));
            }
            (self.step, self.replies) = (self.step + 1, 0);
            if then_tls {
                return Ok((used, Then::StartTls));
            }
            let then = self.speak(out, now);
            if then != Then::Going {
                return Ok((used, then));
            }
        }
    }

    /// Says what the current step says.
    fn speak(&mut self, out: &mut Vec<u8>, now: Instant) -> Then {
        self.since = now;
        let Some(step) = self.script.steps.get(self.step) else { return self.waiting() };
        out.extend_from_slice(&step.send);
        if step.expect == Expect::Nothing { Then::Reset } else { Then::Going }
    }

    fn waiting(&self) -> Then {
        match self.script.steps.get(self.step) {
            Some(_) => Then::Going,
            None => self.script.hold.map_or(Then::Done, Then::Held),
        }
    }
}

/// Octets and code of a whole reply, of one line or of several (RFC 5321 §4.2.1).
fn take_reply(received: &[u8]) -> Result<Option<(usize, u16)>, &'static str> {
    let mut from = 0;
    let mut first = None;
    while let Some(end) = memchr::memchr(b'\n', &received[from..]).map(|at| from + at) {
        let line = received[from..end].strip_suffix(b"\r").ok_or("line without CR")?;
        let digits = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit)).ok_or("not a reply")?;
        let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
        if *first.get_or_insert(code) != code {
            return Err("reply whose lines have different codes");
        }
        from = end + 1;
        match line.get(3) {
            Some(b'-') => {}
            None | Some(b' ') => return Ok(Some((from, code))),
            Some(_) => return Err("not a reply"),
        }
    }
    if received.len() > REPLY_OCTETS_MAX { Err("endless reply") } else { Ok(None) }
}

/// Longest reply that is waited for.
const REPLY_OCTETS_MAX: usize = 64 * 1024;

// -------------------------------------------------------------------------------------- both

impl Dialogue {
    /// Takes what was received; returns how much of it is done with.
    pub fn receive(
        &mut self,
        received: &[u8],
        out: &mut Vec<u8>,
        random: &mut Random,
        now: Instant,
        notes: &mut Notes,
    ) -> Result<(usize, Then), Trouble> {
        match self {
            Self::Script(progress) => progress.receive(received, out, now, notes),
            Self::Client(talk) => {
                let (used, next) = talk.client.receive(received, out);
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
            Self::Script(progress) => match progress.script.steps.get(progress.step) {
                // A server may get rid of the rude and of those who say nothing.
                Some(step) if step.expect == Expect::Refusal && code == "lost" => Ok(()),
                None if matches!(progress.script.hold, Some(Some(_))) && code == "lost" => Ok(()),
                _ => Err(Trouble::new(progress.stage(), code, why)),
            },
            Self::Client(talk) => {
                let stage = talk.client.stage();
                talk.client.lost(why);
                // After QUIT whoever closes first is right.
                if stage == Stage::Quit && talk.client.failure().is_none() && code == "lost" {
                    Ok(())
                } else {
                    Err(Trouble::new(&stage.to_string(), code, why))
                }
            }
        }
    }

    /// Says NOOP on a session that is held; false when it is not, or when one is on its way.
    pub fn noop(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        match self {
            Self::Script(progress) if progress.waiting() == Then::Held(None) && !progress.noop => {
                out.extend_from_slice(b"NOOP\r\n");
                (progress.noop, progress.since) = (true, now);
                true
            }
            _ => false,
        }
    }

    /// Whether nothing is due on a session that is held.
    pub fn is_at_rest(&self) -> bool {
        matches!(self, Self::Script(progress) if !progress.noop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        for (octets, expect) in [
            (&b"220 x\r\nmore"[..], Ok(Some((7, 220)))),
            (b"250-a\r\n250-b\r\n250 c\r\n", Ok(Some((21, 250)))),
            (b"250\r\n", Ok(Some((5, 250)))),
            (b"250-a\r\n", Ok(None)),
            (b"25", Ok(None)),
            (b"250-a\r\n251 b\r\n", Err("reply whose lines have different codes")),
            (b"hello\r\n", Err("not a reply")),
            (b"250x\r\n", Err("not a reply")),
            (b"250 a\n", Err("line without CR")),
        ] {
            assert_eq!(take_reply(octets), expect, "{octets:?}");
        }
        assert!(take_reply(&[b'2'; REPLY_OCTETS_MAX + 1]).is_err());
    }

    #[test]
    fn texts_begin_and_end_whole() {
        let mut scenario = Scenario::new(Kind::Submit);
        scenario.eight_bit = true;
        let text = text(&scenario);
        for octets in 2..=4096 {
            let tail = tail(&text, octets);
            assert!(octets - tail.len() <= 2 && tail.ends_with(b"\r\n"), "{octets}");
            let tail = std::str::from_utf8(tail).unwrap();
            assert!(!tail.starts_with('\n') && !tail.replace("\r\n", "").contains(['\r', '\n']), "{octets}");
        }
    }

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
                            .receive(&kept, &mut out, &mut random, now, &mut notes)
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
