//! What a session asks of its engine, performed: from a cache, by the directory, by the spool, by the wheel.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hmac::{Hmac, Mac};
use limits::{Rate, Subject};
use link::directory::{CertificateFields, Question};
use sha2::Sha256;
use smtp::host::{
    Allowance, Charge, Effect, Host, Note, Outcome, Peer, Permission, RecipientOutcome, SessionId, Trouble,
};
use smtp::id::QueueId;
use spool::Commit;
use telemetry::{Counter, Event, Histogram};

use crate::budget::Budget;
use crate::cache::{Addresses, Passwords, Tag};
use crate::connection::{Held, Message, Pending, Tls};
use crate::entropy::Entropy;
use crate::passing::Passing;
use crate::questions::{Asked, Questions, sasl_outcome};
use crate::setup::{Notice, Passes, Port};
use crate::slab::Token;
use crate::steps::{ANSWER_MS_MAX, Steps};
use crate::watch::Watch;
use crate::wheel::{TICK_MS, Tick};

/// What all shards of a worker share.
pub struct Shared {
    pub ports: Vec<Port>,
    pub passwords: Passwords,
    pub budget: Budget,
    pub limits: Arc<limits::Table>,
    /// Names of accounts become numbers under this key.
    pub account_key: Hmac<Sha256>,
    pub notify: Box<dyn Fn(Notice) + Send + Sync>,
    /// Whose reply waits for the next hop.
    pub passes: Option<Passes>,
    /// Per shard: when it last turned, milliseconds since 1970.
    pub beats: Box<[AtomicU64]>,
    /// Per shard: sessions.
    pub sessions: Box<[AtomicU64]>,
    pub panics: AtomicU64,
}

impl Shared {
    /// The number of an account in the limits; case does not make another one.
    pub fn account(&self, name: &[u8]) -> u64 {
        let mut mac = self.account_key.clone();
        mac.update(&name.to_ascii_lowercase());
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        digest.first_chunk().map_or(0, |head| u64::from_le_bytes(*head))
    }
}

/// What belongs to one shard and is used while a session speaks.
pub struct Local {
    pub now: Now,
    pub number: usize,
    pub questions: Questions,
    pub steps: Steps,
    pub passing: Passing,
    pub addresses: Addresses,
    pub entropy: Entropy,
    pub spool: spool::Port,
    pub watch: Watch,
    /// Scratch for encoded envelopes.
    pub envelope: Vec<u8>,
    /// How long the effect that just became pending may take, milliseconds.
    pub effect_ms: u64,
    /// What was just taken is not a message's content: it may have been a password, wherever it came.
    pub secret: bool,
    /// There was a SASL message in it.
    pub authenticated: bool,
    /// Messages of this turn wait in the spool for the word to commit them.
    pub queued: bool,
    pub session_base: u64,
    /// Boxes that connections gave back.
    #[allow(clippy::vec_box, reason = "the boxes themselves go back and forth between shard and connection")]
    pub spare: Vec<Box<Held>>,
}

/// The time of a turn.
#[derive(Clone, Copy)]
pub struct Now {
    /// Monotonic, of the machine.
    pub ms: u64,
    /// The same, finer: when the turn began.
    pub us: u64,
    /// Wall clock.
    pub unix_ms: u64,
    /// Ticks since the shard started.
    pub tick: Tick,
    start_ms: u64,
}

impl Now {
    /// Reads the clocks for the first time.
    pub fn first() -> Self {
        let mut now = Self { ms: 0, us: 0, unix_ms: 0, tick: 0, start_ms: 0 };
        now.read();
        now.start_ms = now.ms;
        now.tick = 0;
        now
    }

    /// Reads the clocks.
    pub fn read(&mut self) {
        self.us = link::monotonic_us();
        self.ms = self.us / 1000;
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.unix_ms = unix.as_millis() as u64;
        self.tick = (self.ms.saturating_sub(self.start_ms) / TICK_MS) as Tick;
    }

    /// The time of `tick`.
    pub fn at(&self, tick: Tick) -> u64 {
        self.start_ms + u64::from(tick) * TICK_MS
    }
}

/// The host of one session during one call.
pub struct TurnHost<'a> {
    pub shared: &'a Shared,
    pub local: &'a mut Local,
    pub port: &'a Port,
    pub token: Token,
    pub id: SessionId,
    pub peer: &'a Peer,
    pub tls: Option<&'a Tls>,
    /// Who has logged in, where a limit wants to know.
    pub account: Option<u64>,
    pub pending: &'a mut Pending,
    pub question: &'a mut u32,
    pub held: &'a mut Option<Box<Held>>,
}

impl TurnHost<'_> {
    fn ask(&mut self, question: &Question<'_>, asked: Asked) -> Option<Outcome> {
        let epoch = self.local.watch.epoch();
        self.local.watch.add(Counter::DirectoryQuestions, 1);
        match self.local.questions.ask(self.token, question, asked, epoch, self.local.now.ms) {
            Ok(id) => {
                (*self.pending, *self.question) = (Pending::Question, id.index());
                self.local.effect_ms = self.port.deadlines.effect_ms;
                None
            }
            Err(outcome) => {
                self.local.watch.add(Counter::DirectoryTemporary, 1);
                Some(outcome)
            }
        }
    }

    /// Asks a back end of a library.
    fn ask_outside(&mut self, backend: &str, mechanism: &str, effect: sasl::Effect<'_>) -> Option<Outcome> {
        let none: &[u8] = b"";
        let kind = effect.kind();
        let (mut names, spki);
        names = Vec::new();
        // [authcid, authzid, data, data2, service] as `prv_request` has them.
        let (arg, [authcid, authzid, data, data2, service]) = match effect {
            sasl::Effect::VerifyPassword { authcid, authzid, password } => {
                (0, [authcid, authzid, password, none, none])
            }
            sasl::Effect::FetchKey { kind, authcid, authzid, realm } => {
                (kind as u32, [authcid, authzid, realm, none, none])
            }
            sasl::Effect::VerifyToken { token, authzid, fields } => (0, [none, authzid, token, fields, none]),
            sasl::Effect::VerifyExternal { authzid } => {
                let Some(certificate) = self.tls.and_then(|tls| tls.session.client_identity()) else {
                    return Some(Outcome::Sasl(sasl_outcome(sasl::Status::Denied)));
                };
                let all = [("mail", &certificate.mail), ("uri", &certificate.uris), ("cn", &certificate.common_names)];
                for (kind, names_of) in all {
                    // A name with a control character would look like two.
                    for name in names_of.iter().filter(|name| !name.contains(char::is_control)) {
                        names.extend_from_slice(format!("{kind}={name}\x01").as_bytes());
                    }
                }
                spki = certificate.spki_sha256;
                (0, [none, authzid, &spki[..], &names[..], none])
            }
            sasl::Effect::BackendCall { service, request } => (0, [none, none, request, none, service]),
            sasl::Effect::ChannelBinding { .. } => return None,
        };
        // PRV_C_TLS, PRV_C_CLIENT_CERT.
        let facts = self.tls.and_then(|tls| tls.facts.as_ref());
        let certified = facts.is_some_and(|facts| facts.client_certificate);
        let effect = link::backend::Effect {
            effect: kind as u32,
            arg,
            conn_flags: u32::from(self.tls.is_some()) | u32::from(certified) << 1,
            tls_version: facts.map_or(0, |facts| facts.version),
            session: self.id.0,
            client_ip: self.peer.ip,
            mechanism,
            listener: &self.port.listener.name,
            sni: facts.map_or("", |facts| &facts.sni),
            authcid,
            authzid,
            data,
            data2,
            service,
        };
        let question = Question::Backend { backend, effect };
        if kind != sasl::EffectKind::VerifyPassword {
            return self.ask(&question, Asked::Key);
        }
        let tag = self.shared.passwords.tag(backend, mechanism, authcid, authzid, data);
        self.verified(tag).or_else(|| self.ask(&question, Asked::Password(tag)))
    }

    /// What is remembered of a password.
    fn verified(&mut self, tag: Tag) -> Option<Outcome> {
        let identity = self.shared.passwords.find(tag, self.local.watch.epoch(), self.local.now.ms)?;
        self.local.watch.add(Counter::DirectoryCacheHits, 1);
        let mut outcome = sasl_outcome(sasl::Status::Ok);
        outcome.identity = Some(identity);
        Some(Outcome::Sasl(outcome))
    }

    fn sasl(&mut self, mechanism: &sasl::MechanismName, effect: sasl::Effect<'_>) -> Option<Outcome> {
        (self.local.secret, self.local.authenticated) = (true, true);
        let outside = match (&self.port.backend, effect.kind()) {
            (_, sasl::EffectKind::ChannelBinding) => None,
            (Some(backend), _) => Some(&**backend),
            // A mechanism may call the back end of its own library wherever it is offered.
            (None, sasl::EffectKind::BackendCall) => Some(""),
            (None, _) => None,
        };
        if let Some(backend) = outside {
            return self.ask_outside(backend, mechanism.as_str(), effect);
        }
        let (listener, client_ip, mechanism) = (&*self.port.listener.name, self.peer.ip, mechanism.as_str());
        match effect {
            sasl::Effect::VerifyPassword { authcid, authzid, password } => {
                let question = Question::VerifyPassword { listener, client_ip, mechanism, authcid, authzid, password };
                let tag = self.shared.passwords.tag("", mechanism, authcid, authzid, password);
                self.verified(tag).or_else(|| self.ask(&question, Asked::Password(tag)))
            }
            sasl::Effect::FetchKey { kind, authcid, authzid, realm } => {
                let kind = kind as u32;
                self.ask(
                    &Question::FetchKey { listener, client_ip, mechanism, kind, authcid, authzid, realm },
                    Asked::Key,
                )
            }
            sasl::Effect::VerifyExternal { authzid } => {
                let Some(certificate) = self.tls.and_then(|tls| tls.session.client_identity()) else {
                    return Some(Outcome::Sasl(sasl_outcome(sasl::Status::Denied)));
                };
                let question = Question::VerifyExternal {
                    listener,
                    client_ip,
                    mechanism,
                    authzid,
                    certificate: CertificateFields {
                        spki_sha256: &certificate.spki_sha256,
                        mail: certificate.mail.iter().map(String::as_str).collect(),
                        uris: certificate.uris.iter().map(String::as_str).collect(),
                        common_names: certificate.common_names.iter().map(String::as_str).collect(),
                    },
                };
                self.ask(&question, Asked::External)
            }
            sasl::Effect::ChannelBinding { kind } => {
                let binding = self.tls.and_then(|tls| tls.session.channel_binding(crate::connection::binding(kind)));
                let mut outcome =
                    sasl_outcome(if binding.is_some() { sasl::Status::Ok } else { sasl::Status::Unsupported });
                outcome.data.set(binding.unwrap_or_default());
                Some(Outcome::Sasl(outcome))
            }
            // The port that a client says it connected to was compared with ours by the session.
            sasl::Effect::VerifyToken { token, authzid, fields: _ } => {
                let question = Question::VerifyToken { listener, client_ip, mechanism, authzid, token };
                self.ask(&question, Asked::Token)
            }
            // No back end of this release can do this.
            sasl::Effect::BackendCall { .. } => Some(Outcome::Sasl(sasl_outcome(sasl::Status::Unsupported))),
        }
    }

    fn commit(&mut self, envelope: &smtp::Envelope, prepend: &[u8]) -> Result<Commit, Trouble> {
        let held = self.held.as_mut().ok_or(Trouble::Temporary)?;
        let Message { entry, last_ms } = held.message.take().ok_or(Trouble::Temporary)?;
        // Looked at before the commit is handed over; from then on the answer is the sync's (DECISIONS H12).
        if self.local.now.ms.saturating_sub(last_ms) > self.port.deadlines.data_deadline_ms {
            return Err(Trouble::Late);
        }
        self.local.envelope.clear();
        envelope.encode(&mut self.local.envelope);
        if self.shared.passes.as_ref().is_some_and(|passes| envelope.recipients().any(|to| passes(&to))) {
            return self.hand_over(entry, last_ms, prepend);
        }
        // Those of one turn go together: the shard gives the word at its end.
        let commit = self.local.spool.queue(entry, &self.local.envelope, prepend, self.token.word());
        if commit == Commit::Pending {
            self.local.queued = true;
            *self.pending = Pending::Commit;
            // Nobody else uses the place meanwhile.
            *self.question = link::monotonic_us() as u32;
        }
        Ok(commit)
    }
}

impl TurnHost<'_> {
    /// Gives the message to delivery, which asks its next hop. The client is answered in time, whatever happens;
    /// delivery hears of an earlier end, so that its answer can come first (DECISIONS B4).
    fn hand_over(&mut self, entry: spool::Entry, last_ms: u64, prepend: &[u8]) -> Result<Commit, Trouble> {
        let Now { ms, unix_ms, .. } = self.local.now;
        let deadline_ms = self.port.deadlines.data_deadline_ms;
        let until_ms = last_ms + deadline_ms.saturating_sub(ANSWER_AHEAD_MS).max(deadline_ms / 2);
        let at = self.local.passing.begin(self.token, entry.id(), unix_ms, until_ms, ms).ok_or(Trouble::Temporary)?;
        self.local.spool.hand_over(entry, &self.local.envelope, prepend, at.word());
        (*self.pending, *self.question) = (Pending::Passing, at.index());
        self.local.effect_ms = (last_ms + deadline_ms).saturating_sub(ms);
        Ok(Commit::Pending)
    }
}

/// How much earlier than its client delivery gives up.
const ANSWER_AHEAD_MS: u64 = 10_000;

impl Host for TurnHost<'_> {
    fn perform(&mut self, effect: Effect<'_>) -> Option<Outcome> {
        match effect {
            Effect::Sasl { mechanism, effect } => self.sasl(mechanism, effect),
            Effect::Asserted { mechanism, authcid, authzid } => {
                self.local.secret = true;
                let (listener, client_ip, mechanism) = (&*self.port.listener.name, self.peer.ip, mechanism.as_str());
                self.ask(&Question::Asserted { listener, client_ip, mechanism, authcid, authzid }, Asked::Asserted)
            }
            Effect::Recipient { address } => {
                if let Some(mailbox) = self.local.addresses.mailbox(address, self.local.watch.epoch()) {
                    let mailbox = mailbox.into();
                    self.local.watch.add(Counter::DirectoryCacheHits, 1);
                    return Some(Outcome::Recipient(RecipientOutcome::Exists { mailbox }));
                }
                self.ask(&Question::Recipient { address }, Asked::Recipient(address.into()))
            }
            Effect::Sender { identity, address } => {
                if self.local.addresses.granted(&identity.name, address, self.local.watch.epoch()) {
                    self.local.watch.add(Counter::DirectoryCacheHits, 1);
                    return Some(Outcome::Sender(Permission::Granted));
                }
                let question = Question::Sender { identity: &identity.name, address };
                self.ask(&question, Asked::Sender(Arc::clone(identity), address.into()))
            }
            Effect::Commit { envelope, prepend } => match self.commit(envelope, prepend) {
                Ok(Commit::Pending) => None,
                Ok(Commit::Done) => Some(Outcome::Commit(Ok(()))),
                Err(trouble) => Some(Outcome::Commit(Err(trouble))),
            },
            Effect::Delay { ms: 0 } => Some(Outcome::Elapsed),
            Effect::Delay { ms } => {
                *self.pending = Pending::Delay;
                self.local.effect_ms = ms.into();
                None
            }
        }
    }

    fn step(&mut self, mechanism: &dyn sasl::Mechanism, input: sasl::Input<'_>) -> Option<sasl::OwnedStep> {
        (self.local.secret, self.local.authenticated) = (true, true);
        match self.local.steps.ask(self.token, mechanism, &input) {
            Ok(id) => {
                (*self.pending, *self.question) = (Pending::Step, id.index());
                self.local.effect_ms = ANSWER_MS_MAX;
                None
            }
            Err(answer) => Some(answer),
        }
    }

    fn reuse(&mut self, answer: sasl::OwnedStep) {
        self.local.steps.reuse(answer);
    }

    fn finish(&mut self) {
        self.local.steps.finish(self.token);
    }

    fn begin_message(&mut self, size: Option<u64>) -> Result<QueueId, Trouble> {
        let id = QueueId::new(self.local.now.unix_ms, u128::from_le_bytes(self.local.entropy.take()));
        let entry = self.local.spool.begin(id, size).map_err(trouble)?;
        let spare = &mut self.local.spare;
        let held = self.held.get_or_insert_with(|| spare.pop().unwrap_or_default());
        held.message = Some(Message { entry, last_ms: self.local.now.ms });
        (held.data_octets, held.looked, held.looked_octets) = (0, self.local.now.tick, 0);
        Ok(id)
    }

    fn write(&mut self, octets: &[u8]) -> usize {
        let Some(held) = self.held else { return octets.len() };
        let Some(message) = &mut held.message else { return octets.len() };
        let taken = message.entry.append(octets);
        message.last_ms = self.local.now.ms;
        held.data_octets += taken as u64;
        taken
    }

    fn abort_message(&mut self) {
        if let Some(held) = self.held {
            held.message = None;
        }
    }

    fn charge(&mut self, charge: Charge<'_>) -> Allowance {
        let (ip, now_ms) = (self.peer.ip, self.local.now.ms);
        let (limits, config) = (&self.shared.limits, &self.port.limits);
        let exempt = self.peer.exempt;
        let subject = self.account.map_or(Subject::Prefix(ip), Subject::Account);
        let permitted = match charge {
            Charge::AuthAttempt => {
                (self.local.secret, self.local.authenticated) = (true, true);
                self.local.watch.add(Counter::AuthAttempts, 1);
                // What cannot be recorded is not done (DECISIONS C15).
                let permitted = self.local.watch.may_begin() && (exempt || limits.auth_attempt(config, ip, now_ms));
                self.local.watch.add(Counter::AuthLimited, u64::from(!permitted));
                permitted
            }
            Charge::AuthFailure { authcid } if !exempt => {
                let jitter = u32::from_le_bytes(self.local.entropy.take());
                return Allowance::Delay(limits.auth_failed(ip, self.shared.account(authcid), now_ms, jitter));
            }
            Charge::AuthSuccess { authcid } if !exempt => {
                limits.auth_succeeded(ip, self.shared.account(authcid), now_ms);
                true
            }
            Charge::AuthFailure { .. } | Charge::AuthSuccess { .. } => true,
            Charge::Message => {
                let per_minute = config.messages_per_minute;
                self.local.watch.may_begin() && (exempt || limits.charge(Rate::Message, subject, per_minute, now_ms))
            }
            Charge::AnonymousMessage => {
                // Apart from what the same place does by name.
                let subject = Subject::Account(self.shared.account(format!("\0anonymous {}", place(ip)).as_bytes()));
                exempt || limits.charge(Rate::Message, subject, config.anonymous_per_minute, now_ms)
            }
            Charge::Recipient => {
                exempt || limits.charge(Rate::Recipient, subject, config.recipients_per_minute, now_ms)
            }
        };
        if permitted { Allowance::Permit } else { Allowance::Refuse }
    }

    fn entropy(&mut self) -> [u8; 64] {
        self.local.entropy.take()
    }

    fn note(&mut self, note: Note<'_>) {
        let Now { ms, unix_ms, .. } = self.local.now;
        let watch = &mut self.local.watch;
        match note {
            Note::Reply { code, rule } => {
                watch.add(Counter::replies(code), 1);
                if let Some(counter) = counter_of(code, rule) {
                    watch.add(counter, 1);
                }
            }
            Note::Login { mechanism, authcid, identity, code, reason, diagnosis, ms: took_ms } => {
                watch.observe(Histogram::LoginMicros, took_ms * 1000);
                watch.add(
                    match code {
                        235 => Counter::AuthOk,
                        400..500 => Counter::AuthTemporary,
                        _ => Counter::AuthFailed,
                    },
                    1,
                );
                let mut event = Event::audit("login", unix_ms)
                    .session(self.id.0)
                    .word("listener", &*self.port.listener.name)
                    .word("client", self.peer.ip.to_string())
                    .word("mechanism", mechanism)
                    .untrusted("authcid", authcid)
                    .number("code", code.into())
                    .word("reason", reason);
                if let Some(identity) = identity {
                    event = event.word("identity", identity);
                }
                if !diagnosis.is_empty() {
                    event = event.untrusted("diagnosis", diagnosis);
                }
                watch.tell(&event, ms);
            }
            Note::Anonymous { mechanism, trace } => {
                watch.add(Counter::AuthOk, 1);
                let event = Event::audit("login", unix_ms)
                    .session(self.id.0)
                    .word("listener", &*self.port.listener.name)
                    .word("client", self.peer.ip.to_string())
                    .word("mechanism", mechanism)
                    .word("class", "anonymous")
                    .untrusted("trace", trace)
                    .number("code", 235)
                    .word("reason", "ok");
                watch.tell(&event, ms);
            }
            Note::Accepted { id, octets, recipients, reverse_path } => {
                watch.add(Counter::MessagesAccepted, 1);
                watch.add(Counter::MessageOctets, octets);
                watch.observe(Histogram::MessageOctetsSpread, octets);
                if !watch.wants(telemetry::Level::Info) {
                    return;
                }
                let event = Event::log("message.accepted", telemetry::Level::Info, unix_ms)
                    .session(self.id.0)
                    .word("id", id.to_string())
                    .number("octets", octets)
                    .number("recipients", recipients as u64)
                    .untrusted("sender", reverse_path.as_bytes());
                watch.tell(&event, ms);
            }
            Note::Aborted { .. } => watch.add(Counter::MessagesAborted, 1),
            Note::StarttlsTrailing { octets } => watch.add(Counter::StarttlsTrailingOctets, octets as u64),
        }
    }
}

/// An IPv4 address, or the /64 of an IPv6 one: whoever has one of its addresses has all.
fn place(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !0 << 64)),
        v4 => v4,
    }
}

/// What a reply says about recipients and early talkers, by its stable rule.
fn counter_of(code: u16, rule: &str) -> Option<Counter> {
    if rule == "rcpt.ok" {
        return Some(Counter::RecipientsAccepted);
    }
    if rule.starts_with("sync") {
        return Some(Counter::EarlyTalkers);
    }
    (code >= 400 && (rule.starts_with("rcpt.") || rule.starts_with("relay."))).then_some(Counter::RecipientsRefused)
}

fn trouble(trouble: spool::Trouble) -> Trouble {
    match trouble {
        spool::Trouble::Temporary => Trouble::Temporary,
        spool::Trouble::NoSpace => Trouble::NoSpace,
    }
}

/// The outcome of a commit.
pub fn committed(result: Result<(), spool::Trouble>) -> Outcome {
    Outcome::Commit(result.map_err(trouble))
}
