//! One AUTH (RFC 4954) around one SASL exchange. The host of the mechanism: it owns base64, `*`, `=`,
//! lengths, the ledger of proofs, reply codes and the secrets' lifetime. The mechanism sees none of that.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sasl::{
    EffectKind, Event, Facts, FailureClass, Input, Mechanism, OwnedStep, Proof, Secret, State, Status, Step, flag,
};
use zeroize::Zeroize;

use crate::host::{Account, Allowance, Charge, Context, Effect, Identity, Note, Outcome, SaslOutcome};
use crate::listener::{AuthOffer, Listener};
use crate::reply::{self, Reply};

/// Most effects in one exchange.
const EFFECTS_MAX: u8 = 8;
/// Idle sets of buffers that an event loop keeps.
const POOLED_MAX: usize = 64;
/// Octets of a mechanism's own words that reach the log.
const DIAGNOSIS_OCTETS_MAX: usize = 200;

/// How much a failure counts towards the end of the session. RFC 4954 §9 SHOULD NOT end it before three.
pub(crate) const FULL_FAILURE: u8 = 2;
/// A message that breaks the mechanism's grammar is rather a broken client than a wrong password.
const HALF_FAILURE: u8 = 1;

/// One exchange in progress.
#[derive(Default)]
pub(crate) struct Authentication {
    mechanism: Option<Arc<dyn Mechanism>>,
    state: State,
    /// The client's current message, decoded; none while the client has to answer.
    message: Secret,
    /// What has been proven. The handle that a mechanism is told is the position, counted from 1.
    ledger: Vec<Entry>,
    /// As claimed, for the log, the limits and the authorization.
    authcid: Vec<u8>,
    authzid: Vec<u8>,
    steps: u8,
    effects: u8,
    /// Another process keeps the state.
    elsewhere: bool,
    /// The mechanism was told a channel binding.
    bound: bool,
    /// Its sibling with channel binding is listed, too; that does not change during an exchange.
    plus_offered: bool,
    /// When AUTH came.
    began_ms: u64,
    /// When the client last said something.
    said_ms: u64,
    wait: Wait,
}

/// A proof: an effect that ended well.
struct Entry {
    /// The user does not exist; what was proven is only that the client knows the decoy, which cannot be.
    doomed: bool,
    identity: Option<Arc<Identity>>,
    account: Account,
}

/// What the exchange waits for.
#[derive(Default)]
enum Wait {
    /// The client's response to a challenge.
    #[default]
    Response,
    /// The empty line after the final data of a success (RFC 4954 §4).
    Acknowledgement(Arc<Identity>),
    /// Whatever the client says to the final data of a failure (RFC 7628 §3.2.3); and what the log is told then.
    Dismissal(Verdict, Box<[u8]>),
    /// The outcome of this effect.
    Effect(EffectKind),
    /// Who it is that the mechanism has proven by itself. `data`: it has sent final data.
    Asserted { data: bool },
    /// The answer of a mechanism that runs in another process.
    Step,
    /// The delay before a refusal is told.
    Delay(Verdict),
}

/// A refusal: what the client is told, what the log is told, how much it counts.
#[derive(Clone, Copy)]
struct Verdict {
    reply: &'static Reply,
    reason: &'static str,
    weight: u8,
}

impl Verdict {
    const fn new(reply: &'static Reply, reason: &'static str, weight: u8) -> Self {
        Self { reply, reason, weight }
    }
}

/// What the session does next.
pub(crate) enum Progress {
    /// A challenge was sent; the client answers.
    Continue,
    /// An effect or a delay is pending.
    Pending,
    /// Over: say this; `weight` counts towards the end of the session.
    Over { reply: &'static Reply, weight: u8 },
    /// Over: the login succeeded.
    Success(Arc<Identity>),
    /// Over: the client is nobody, and that is enough here (RFC 4505).
    Anonymous,
}

/// Why the mechanism is stepped.
enum Cause {
    Start {
        initial: bool,
    },
    Message,
    Outcome(EffectKind, SaslOutcome),
    /// The mechanism has answered from where it runs.
    Answer(OwnedStep),
}

/// What a step came to, when the borrows of the step are over.
enum Decision {
    Wait,
    Elsewhere,
    Pending(EffectKind),
    Outcome(EffectKind, SaslOutcome),
    Success { proof: Proof, data: bool },
    Asserted { data: bool },
    Failure { class: FailureClass, data: bool },
}

/// Whether `mechanism` can be used on this connection. What is not offered is answered 504.
pub(crate) fn is_offered(mechanism: &dyn Mechanism, cx: &Context<'_>) -> bool {
    let flags = mechanism.traits().flags;
    let certificate = cx.tls.is_some_and(|tls| tls.client_certificate);
    let in_clear = cx.tls.is_none() && cx.peer.cleartext_auth && flags & flag::NEEDS_TLS == 0;
    cx.listener.auth != AuthOffer::Off
        && mechanism.is_available()
        && (cx.tls.is_some() || in_clear)
        && (flags & flag::ANONYMOUS == 0 || cx.listener.anonymous)
        && (flags & flag::NEEDS_CERT == 0 || certificate)
        && (flags & flag::CHANNEL_BIND == 0 || cx.tls.is_some_and(|tls| tls.channel_bindings != 0))
}

/// Whether the sibling of `mechanism` with channel binding is listed in this connection's EHLO reply.
fn is_plus_offered(mechanism: &dyn Mechanism, cx: &Context<'_>) -> bool {
    let is_sibling = |other: &dyn Mechanism| other.traits().plus_of.as_ref() == Some(mechanism.name());
    cx.listener.mechanisms.iter().any(|other| is_sibling(&**other) && is_offered(&**other, cx))
}

fn find<'a>(listener: &'a Listener, name: &[u8]) -> Option<&'a Arc<dyn Mechanism>> {
    let name = sasl::MechanismName::parse(name)?;
    listener.mechanisms.iter().find(|mechanism| *mechanism.name() == name)
}

/// Decodes one message strictly: standard alphabet, canonical padding, nothing else (RFC 4954 §4).
fn decode(line: &[u8], mechanism: &dyn Mechanism, to: &mut Secret) -> Result<(), &'static Reply> {
    let traits = mechanism.traits();
    to.wipe();
    let octets_max = line.len() / 4 * 3;
    if octets_max > traits.message_octets_max + 2 {
        return Err(&reply::AUTH_LINE_TOO_LONG);
    }
    let buffer = to.buffer();
    buffer.reserve(octets_max + 3);
    STANDARD.decode_vec(line, buffer).map_err(|_| &reply::BAD_BASE64)?;
    if buffer.len() > traits.message_octets_max {
        return Err(&reply::AUTH_LINE_TOO_LONG);
    }
    let nul = traits.flags & flag::ALLOW_NUL == 0 && buffer.contains(&0);
    let not_utf8 = traits.flags & flag::UTF8 != 0 && std::str::from_utf8(buffer).is_err();
    if nul || not_utf8 { Err(&reply::BAD_AUTH_MESSAGE) } else { Ok(()) }
}

/// Appends `334 `, base64, CRLF: nothing else may follow 334 (RFC 4954 §4).
fn write_challenge(data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"334 ");
    let start = out.len();
    let octets = base64::encoded_len(data.len(), true).unwrap_or_default();
    out.resize(start + octets, 0);
    // The slice has exactly the length that the encoder asks for.
    let _ = STANDARD.encode_slice(data, out.get_mut(start..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

impl Authentication {
    /// Starts an exchange from the arguments of AUTH. Everything that RFC 4954 says about the state of
    /// the session was checked before.
    pub(crate) fn begin(args: &[u8], cx: &mut Context<'_>) -> (Box<Self>, Progress) {
        let mut this = cx.pools.exchanges.pop().unwrap_or_default();
        (this.began_ms, this.said_ms) = (cx.now_ms, cx.now_ms);
        let progress = match this.start(args, cx) {
            Ok(progress) => progress,
            Err(reply) => Progress::Over { reply, weight: 0 },
        };
        (this, progress)
    }

    fn start(&mut self, args: &[u8], cx: &mut Context<'_>) -> Result<Progress, &'static Reply> {
        let mut words = args.split(|&b| b == b' ').filter(|word| !word.is_empty());
        let (Some(name), initial, None) = (words.next(), words.next(), words.next()) else {
            return Err(&reply::BAD_AUTH);
        };
        let mechanism = find(cx.listener, name).filter(|mechanism| is_offered(&***mechanism, cx));
        let mechanism = Arc::clone(mechanism.ok_or(&reply::UNKNOWN_MECHANISM)?);
        let traits = mechanism.traits();
        if initial.is_some() && traits.flags & flag::SERVER_FIRST != 0 {
            return Err(&reply::NO_INITIAL_RESPONSE);
        }
        match initial {
            // RFC 4954 §4: "=" is an initial response that is present and empty.
            None | Some(b"=") => self.message.wipe(),
            Some(initial) => decode(initial, &*mechanism, self.message_buffer(cx))?,
        }
        self.plus_offered = is_plus_offered(&*mechanism, cx);
        self.state.prepare(traits.state_octets);
        self.mechanism = Some(mechanism);
        Ok(self.run(Cause::Start { initial: initial.is_some() }, cx))
    }

    /// Where the next message goes.
    fn message_buffer(&mut self, cx: &mut Context<'_>) -> &mut Secret {
        if self.message.buffer().capacity() == 0 {
            self.message = cx.pools.messages.pop().unwrap_or_default();
        }
        &mut self.message
    }

    /// The client has to answer: what it said is not needed any more. Many exchanges may wait so for long.
    fn rest(&mut self, cx: &mut Context<'_>) {
        let mut message = std::mem::take(&mut self.message);
        message.wipe();
        if cx.pools.messages.len() < POOLED_MAX {
            cx.pools.messages.push(message);
        }
    }

    /// Whether input must wait.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.wait, Wait::Effect(_) | Wait::Asserted { .. } | Wait::Step | Wait::Delay(_))
    }

    /// Whether it has used the connection's channel binding.
    pub(crate) fn is_bound(&self) -> bool {
        self.bound
    }

    /// Takes one line of the client, without its CRLF.
    pub(crate) fn respond(&mut self, line: &[u8], cx: &mut Context<'_>) -> Progress {
        const CANCELLED: Verdict = Verdict::new(&reply::AUTH_CANCELLED, "cancelled", 0);
        self.said_ms = cx.now_ms;
        match std::mem::take(&mut self.wait) {
            // RFC 4954 §4: `*` is recognised in every step, before any decoding. After the error challenge
            // of a failure it is still answered 501, but it is a failed login.
            Wait::Dismissal(verdict, diagnosis) if line == b"*" => {
                self.refuse(Verdict { reply: &reply::AUTH_CANCELLED, ..verdict }, &diagnosis, cx)
            }
            _ if line == b"*" => self.refuse(CANCELLED, b"", cx),
            Wait::Acknowledgement(identity) if line.is_empty() => self.succeed(identity, cx),
            Wait::Acknowledgement(_) => {
                self.refuse(Verdict::new(&reply::BAD_BASE64, "acknowledgement", FULL_FAILURE), b"", cx)
            }
            Wait::Dismissal(verdict, diagnosis) => self.refuse(verdict, &diagnosis, cx),
            Wait::Response | Wait::Effect(_) | Wait::Asserted { .. } | Wait::Step | Wait::Delay(_) => {
                let Some(mechanism) = self.mechanism.clone() else { return self.internal(b"no mechanism", cx) };
                match decode(line, &*mechanism, self.message_buffer(cx)) {
                    Ok(()) => self.run(Cause::Message, cx),
                    Err(reply) => self.bad_line(reply, cx),
                }
            }
        }
    }

    /// A line that cannot be a response at all ends the exchange.
    pub(crate) fn bad_line(&mut self, reply: &'static Reply, cx: &mut Context<'_>) -> Progress {
        self.refuse(Verdict::new(reply, reply.rule, 0), b"", cx)
    }

    /// The effect has ended, or the delay is over.
    pub(crate) fn complete(&mut self, outcome: Outcome, cx: &mut Context<'_>) -> Progress {
        match (std::mem::take(&mut self.wait), outcome) {
            (Wait::Delay(Verdict { reply, weight, .. }), _) => Progress::Over { reply, weight },
            (Wait::Effect(kind), Outcome::Sasl(outcome)) => self.run(Cause::Outcome(kind, outcome), cx),
            (Wait::Asserted { data }, Outcome::Sasl(outcome)) => self.known(outcome, data, cx),
            (Wait::Step, Outcome::Step(answer)) => self.run(Cause::Answer(answer), cx),
            // The answer to another question than the one that was asked is no answer.
            _ => self.internal(b"mismatched outcome", cx),
        }
    }

    /// Steps the mechanism until it waits for somebody.
    fn run(&mut self, mut cause: Cause, cx: &mut Context<'_>) -> Progress {
        let Some(mechanism) = self.mechanism.clone() else { return self.internal(b"no mechanism", cx) };
        let mut diagnosis = Vec::new();
        loop {
            self.steps = self.steps.saturating_add(u8::from(!matches!(cause, Cause::Answer(_))));
            if u32::from(self.steps) > mechanism.traits().steps_max || self.effects > EFFECTS_MAX {
                return self.internal(b"too many steps", cx);
            }
            if let Cause::Outcome(_, outcome) = &cause
                && outcome.status == Status::Ok
            {
                self.bound |= matches!(cause, Cause::Outcome(EffectKind::ChannelBinding, _));
                self.ledger.push(Entry {
                    doomed: outcome.doomed,
                    identity: outcome.identity.clone(),
                    account: outcome.account,
                });
            }
            let decision = self.step(&*mechanism, &cause, &mut diagnosis, cx);
            if let Cause::Answer(_) = &cause
                && let Cause::Answer(answer) = std::mem::replace(&mut cause, Cause::Message)
            {
                cx.host.reuse(answer);
            }
            match decision {
                Decision::Wait => {
                    self.rest(cx);
                    return Progress::Continue;
                }
                Decision::Elsewhere => {
                    self.wait = Wait::Step;
                    return Progress::Pending;
                }
                Decision::Pending(kind) => {
                    self.wait = Wait::Effect(kind);
                    return Progress::Pending;
                }
                Decision::Outcome(kind, outcome) => cause = Cause::Outcome(kind, outcome),
                Decision::Success { proof, data } => return self.proven(proof, data, cx),
                Decision::Asserted { data } => return self.asserted(&*mechanism, data, cx),
                Decision::Failure { class, data } => {
                    let verdict = verdict(class);
                    if data {
                        self.wait = Wait::Dismissal(verdict, diagnosis.into());
                        return Progress::Continue;
                    }
                    return self.refuse(verdict, &diagnosis, cx);
                }
            }
        }
    }

    fn step(
        &mut self,
        mechanism: &dyn Mechanism,
        cause: &Cause,
        diagnosis: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Decision {
        let Self { state, message, ledger, authcid, authzid, effects, elsewhere, plus_offered, .. } = self;
        let facts = Facts {
            tls: cx.tls.is_some(),
            tls_version: cx.tls.map_or(0, |tls| tls.version),
            client_certificate: cx.tls.is_some_and(|tls| tls.client_certificate),
            plus_offered: *plus_offered,
            channel_bindings: cx.tls.map_or(0, |tls| tls.channel_bindings),
            server_name: &cx.listener.hostname,
            client_ip: cx.peer.ip,
            listener: &cx.listener.name,
            sni: cx.tls.map_or("", |tls| &tls.sni),
            session: cx.session.0,
        };
        let fresh = mechanism.traits().flags & flag::ENTROPY != 0;
        let entropy = if fresh { cx.host.entropy() } else { [0; 64] };
        let event = match cause {
            Cause::Start { initial } => Event::Start { initial: *initial },
            Cause::Message => Event::Message,
            Cause::Answer(_) => Event::Resume,
            Cause::Outcome(effect, outcome) => {
                let data = outcome.data.expose();
                let scram = outcome.scram.and_then(|layout| {
                    let (salt, keys) = data.split_at_checked(usize::from(layout.salt_octets))?;
                    let (stored_key, server_key) = keys.split_at_checked(usize::from(layout.hash_octets))?;
                    Some(sasl::ScramKey { iterations: layout.iterations, salt, stored_key, server_key })
                });
                // Where keys lie in memory is nothing that a mechanism could use.
                let data = if scram.is_some() { &[] } else { data };
                let proof = Proof(if outcome.status == Status::Ok { ledger.len() as u32 } else { 0 });
                Event::Outcome(sasl::Outcome { effect: *effect, status: outcome.status, proof, data, scram })
            }
        };
        let input = Input {
            event,
            message: message.expose(),
            facts: &facts,
            entropy: if fresh { &entropy } else { &[] },
            unix_ms: cx.unix_ms,
            exchange: cx.session.0,
        };
        let octets = mechanism.traits().output_octets_max;
        if cx.pools.scratch.len() < octets {
            cx.pools.scratch.resize(octets, 0);
        }
        let scratch = cx.pools.scratch.get_mut(..octets).unwrap_or_default();
        let carried;
        let step = match cause {
            Cause::Answer(answer) => answer.step(),
            _ if mechanism.runner().is_some() => {
                *elsewhere = true;
                match cx.host.step(mechanism, input) {
                    None => return Decision::Elsewhere,
                    Some(answer) => {
                        carried = answer;
                        carried.step()
                    }
                }
            }
            _ => mechanism.step(state, input, scratch),
        };
        let decision = match step {
            Step::Challenge(data) => {
                write_challenge(data, cx.out);
                Decision::Wait
            }
            Step::Effect(sasl::Effect::VerifyToken { fields, .. }) if is_elsewhere(fields, &cx.listener.ports) => {
                diagnosis.extend(b"the client means another port; ours are the listener's bind and public_port");
                // The mechanism says so to the client in its own way: RFC 7628 §3.2.2 wants JSON and its answer to that.
                let data = sasl::Secret::new(br#"{"status":"invalid_request"}"#.to_vec());
                let (status, account) = (Status::Denied, Account::Good);
                let refused = SaslOutcome { status, doomed: false, identity: None, data, scram: None, account };
                Decision::Outcome(EffectKind::VerifyToken, refused)
            }
            Step::Effect(effect) => {
                *effects = effects.saturating_add(1);
                let kind = effect.kind();
                match effect {
                    sasl::Effect::VerifyPassword { authcid: c, authzid: z, .. }
                    | sasl::Effect::FetchKey { authcid: c, authzid: z, .. } => {
                        c.clone_into(authcid);
                        z.clone_into(authzid);
                    }
                    sasl::Effect::VerifyToken { authzid: z, .. } | sasl::Effect::VerifyExternal { authzid: z } => {
                        z.clone_into(authzid);
                    }
                    sasl::Effect::ChannelBinding { .. } | sasl::Effect::BackendCall { .. } => {}
                }
                match cx.host.perform(Effect::Sasl { mechanism: mechanism.name(), effect }) {
                    Some(Outcome::Sasl(outcome)) => Decision::Outcome(kind, outcome),
                    None => Decision::Pending(kind),
                    Some(_) => Decision::Failure { class: FailureClass::Internal, data: false },
                }
            }
            Step::Success { proof, data } => {
                if let Some(data) = data {
                    write_challenge(data, cx.out);
                }
                Decision::Success { proof, data: data.is_some() }
            }
            Step::Asserted { authcid: c, authzid: z, data } => {
                c.clone_into(authcid);
                z.clone_into(authzid);
                if let Some(data) = data {
                    write_challenge(data, cx.out);
                }
                Decision::Asserted { data: data.is_some() }
            }
            Step::Failure { class, data, diagnosis: words } => {
                diagnosis.extend(words.iter().take(DIAGNOSIS_OCTETS_MAX));
                if let Some(data) = data {
                    write_challenge(data, cx.out);
                }
                Decision::Failure { class, data: data.is_some() }
            }
            // Mechanisms that must leave the event loop are refused when they are loaded.
            Step::Offload => Decision::Failure { class: FailureClass::Internal, data: false },
        };
        sasl::wipe(cx.pools.scratch.get_mut(..octets).unwrap_or_default());
        decision
    }

    /// The mechanism says itself who this is. From here on it is like any proof: the directory knows whether there
    /// is such a user, and whom they may act as.
    fn asserted(&mut self, mechanism: &dyn Mechanism, data: bool, cx: &mut Context<'_>) -> Progress {
        const UNPERMITTED: Verdict = Verdict::new(&reply::BAD_CREDENTIALS, "unpermitted assertion", FULL_FAILURE);
        // The flag is there only when the mechanism declares it and the operator has consented.
        if mechanism.traits().flags & flag::SELF_ASSERTS == 0 {
            mechanism.quarantine();
            return self.judged(Err(UNPERMITTED), data, cx);
        }
        let effect = Effect::Asserted { mechanism: mechanism.name(), authcid: &self.authcid, authzid: &self.authzid };
        match cx.host.perform(effect) {
            Some(Outcome::Sasl(outcome)) => self.known(outcome, data, cx),
            None => {
                self.wait = Wait::Asserted { data };
                Progress::Pending
            }
            Some(_) => self.internal(b"mismatched outcome", cx),
        }
    }

    /// The directory knows whom the mechanism has named, or that there is no such user.
    fn known(&mut self, outcome: SaslOutcome, data: bool, cx: &mut Context<'_>) -> Progress {
        let SaslOutcome { status, doomed, identity, account, .. } = outcome;
        match status {
            Status::Ok => {
                self.ledger.push(Entry { doomed, identity, account });
                self.proven(Proof(self.ledger.len() as u32), data, cx)
            }
            Status::Denied => self.judged(Err(verdict(FailureClass::Credentials)), data, cx),
            _ => self.judged(Err(verdict(FailureClass::Temporary)), data, cx),
        }
    }

    /// The mechanism says that `proof` settles it. The ledger decides whether that is so.
    fn proven(&mut self, proof: Proof, data: bool, cx: &mut Context<'_>) -> Progress {
        const CREDENTIALS: Verdict = Verdict::new(&reply::BAD_CREDENTIALS, "credentials", FULL_FAILURE);
        let entry = (proof.0 as usize).checked_sub(1).and_then(|at| self.ledger.get(at));
        let anonymous = self.mechanism.as_ref().is_some_and(|it| it.traits().flags & flag::ANONYMOUS != 0);
        if anonymous && proof.0 == 0 && !data && cx.listener.anonymous {
            let mechanism = self.mechanism.as_ref().map_or("", |mechanism| mechanism.name().as_str());
            // RFC 4505 §3: the text is for the log.
            cx.host.note(Note::Anonymous { mechanism, trace: self.message.expose() });
            return Progress::Anonymous;
        }
        let needs_binding = self.mechanism.as_ref().is_some_and(|it| it.traits().flags & flag::CHANNEL_BIND != 0);
        let verdict = match entry {
            None => Err(Verdict { reason: "unproven success", ..CREDENTIALS }),
            // A -PLUS mechanism that never asked for the binding has compared nothing.
            Some(_) if needs_binding && !self.bound => Err(Verdict { reason: "unbound success", ..CREDENTIALS }),
            // A mechanism that is content with a decoy does not verify anything.
            Some(Entry { doomed: true, .. }) => {
                if let Some(mechanism) = &self.mechanism {
                    mechanism.quarantine();
                }
                Err(Verdict { reason: "doomed success", ..CREDENTIALS })
            }
            Some(Entry { identity: None, .. }) => Err(CREDENTIALS),
            Some(Entry { account: Account::Disabled, .. }) => {
                Err(Verdict::new(&reply::ACCOUNT_DISABLED, "disabled", FULL_FAILURE))
            }
            Some(Entry { account: Account::TooWeak, .. }) => Err(Verdict::new(&reply::TOO_WEAK, "too weak", 0)),
            Some(Entry { identity: Some(identity), .. }) => {
                // RFC 4422 §3.6: may authcid act as authzid? Only as itself.
                let itself = self.authzid.is_empty()
                    || self.authzid == self.authcid
                    || stands_for(&identity.name, &self.authzid);
                if itself { Ok(Arc::clone(identity)) } else { Err(Verdict { reason: "authorization", ..CREDENTIALS }) }
            }
        };
        self.judged(verdict, data, cx)
    }

    /// Tells the client, after its answer to the final data where there was some.
    fn judged(&mut self, verdict: Result<Arc<Identity>, Verdict>, data: bool, cx: &mut Context<'_>) -> Progress {
        match (verdict, data) {
            (Ok(identity), false) => self.succeed(identity, cx),
            (Ok(identity), true) => {
                self.wait = Wait::Acknowledgement(identity);
                Progress::Continue
            }
            (Err(verdict), false) => self.refuse(verdict, b"", cx),
            (Err(verdict), true) => {
                self.wait = Wait::Dismissal(verdict, Box::default());
                Progress::Continue
            }
        }
    }

    fn succeed(&mut self, identity: Arc<Identity>, cx: &mut Context<'_>) -> Progress {
        cx.host.charge(Charge::AuthSuccess { authcid: &self.authcid });
        self.note(Some(&identity.name), &reply::AUTHENTICATED, "ok", b"", cx);
        Progress::Success(identity)
    }

    fn internal(&mut self, diagnosis: &[u8], cx: &mut Context<'_>) -> Progress {
        self.refuse(Verdict::new(&reply::AUTH_TROUBLE, "internal", 0), diagnosis, cx)
    }

    /// Refuses: at once, or after the delay that the limits ask for when it counts as a failed login. That counts
    /// from what the client said, so however fast a back end knows that somebody does not exist, nobody sees it.
    fn refuse(&mut self, verdict: Verdict, diagnosis: &[u8], cx: &mut Context<'_>) -> Progress {
        let Verdict { reply, reason, weight } = verdict;
        self.note(None, reply, reason, diagnosis, cx);
        if weight >= FULL_FAILURE
            && let Allowance::Delay(ms) = cx.host.charge(Charge::AuthFailure { authcid: &self.authcid })
            && let waited_ms = u32::try_from(cx.now_ms.saturating_sub(self.said_ms)).unwrap_or(u32::MAX)
            && let ms = ms.saturating_sub(waited_ms)
            && ms > 0
            && cx.host.perform(Effect::Delay { ms }).is_none()
        {
            self.wait = Wait::Delay(verdict);
            return Progress::Pending;
        }
        Progress::Over { reply, weight }
    }

    fn note(
        &self,
        identity: Option<&str>,
        reply: &'static Reply,
        reason: &'static str,
        diagnosis: &[u8],
        cx: &mut Context<'_>,
    ) {
        let mechanism = self.mechanism.as_ref().map_or("", |mechanism| mechanism.name().as_str());
        let code = reply.code;
        let ms = cx.now_ms.saturating_sub(self.began_ms);
        cx.host.note(Note::Login { mechanism, authcid: &self.authcid, identity, code, reason, diagnosis, ms });
    }

    /// Ends the exchange, wipes what it held and gives the buffers back.
    pub(crate) fn recycle(mut self: Box<Self>, cx: &mut Context<'_>) {
        if std::mem::take(&mut self.elsewhere) {
            cx.host.finish();
        }
        if let Some(mechanism) = self.mechanism.take() {
            mechanism.finish(&mut self.state);
        }
        self.state.wipe();
        self.message.wipe();
        self.authcid.zeroize();
        self.authzid.zeroize();
        self.ledger.clear();
        (self.steps, self.effects, self.wait) = (0, 0, Wait::Response);
        self.bound = false;
        if cx.pools.exchanges.len() < POOLED_MAX {
            cx.pools.exchanges.push(self);
        }
    }
}

/// Whether a client that asked to act as `authzid` may have meant `name`. The directory has compared the prepared
/// forms and says who it is; here is no table for that, so only what is plainly somebody else is refused.
fn stands_for(name: &str, authzid: &[u8]) -> bool {
    let local = name.rsplit_once('@').map_or(name, |(local, _)| local).as_bytes();
    name.as_bytes().eq_ignore_ascii_case(authzid) || local.eq_ignore_ascii_case(authzid) || !authzid.is_ascii()
}

/// Whether `port` of a bearer token's fields (`key=value`, separated by 0x01) is none of ours: RFC 7628 §3.2 wants
/// compared what is known otherwise. That it is a number, once, the mechanism has seen.
fn is_elsewhere(fields: &[u8], ports: &[u16]) -> bool {
    let port = fields.split(|octet| *octet == 1).find_map(|field| field.strip_prefix(b"port="));
    let port = port.map(|port| std::str::from_utf8(port).ok().and_then(|port| port.parse().ok()));
    !ports.is_empty() && port.is_some_and(|port| port.is_none_or(|port| !ports.contains(&port)))
}

/// SASL.md's failure classes as replies of RFC 4954 §6.
fn verdict(class: FailureClass) -> Verdict {
    match class {
        FailureClass::Credentials => Verdict::new(&reply::BAD_CREDENTIALS, "credentials", FULL_FAILURE),
        FailureClass::Authorization => Verdict::new(&reply::BAD_CREDENTIALS, "authorization", FULL_FAILURE),
        FailureClass::Expired => Verdict::new(&reply::BAD_CREDENTIALS, "expired", FULL_FAILURE),
        FailureClass::ChannelBinding => Verdict::new(&reply::BAD_CREDENTIALS, "channel binding", FULL_FAILURE),
        // 432 would tell that the user exists.
        FailureClass::Transition => Verdict::new(&reply::BAD_CREDENTIALS, "transition", FULL_FAILURE),
        FailureClass::Malformed => Verdict::new(&reply::BAD_AUTH_MESSAGE, "malformed", HALF_FAILURE),
        FailureClass::TooWeak => Verdict::new(&reply::TOO_WEAK, "too weak", 0),
        FailureClass::NeedTls => Verdict::new(&reply::UNKNOWN_MECHANISM, "needs TLS", 0),
        FailureClass::Temporary => Verdict::new(&reply::AUTH_TROUBLE, "temporary", 0),
        FailureClass::Internal => Verdict::new(&reply::AUTH_TROUBLE, "internal", 0),
    }
}
