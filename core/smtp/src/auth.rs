//! One AUTH (RFC 4954) around one SASL exchange. The host of the mechanism: it owns base64, `*`, `=`,
//! lengths, the ledger of proofs, reply codes and the secrets' lifetime. The mechanism sees none of that.
//!
//! ```text
//! begin, respond, complete ─► run: step after step, until somebody has to be waited for
//!     step ─► challenge ─► the client     effect ─► the host, or at once     elsewhere ─► another process
//!          ─► success, assertion ─► judge: what does the ledger say? ─► 235
//!          ─► failure ─► refusal: its reply, its delay, its weight
//!
//! offer      which mechanisms this connection may use
//! message    one line of base64, one message
//! step       one step of the mechanism: what it is told, what it wants
//! ledger     what has been proven, by whom
//! judge      whether that proof permits this login
//! refusal    what a failure is to the client, the log and the limits
//! ```

mod judge;
mod ledger;
mod message;
mod offer;
mod refusal;
mod step;

use std::sync::Arc;

use sasl::{EffectKind, Mechanism, Secret, State, flag};
use zeroize::Zeroize;

use self::ledger::Ledger;
pub(crate) use self::offer::is_offered;
use self::offer::is_plus_offered;
pub(crate) use self::refusal::FULL_FAILURE;
use self::refusal::Refusal;
use self::step::{Cause, Decision, FinalData};
use crate::host::{Context, Identity, Outcome};
use crate::reply::{self, Reply};

/// One exchange in progress.
#[derive(Default)]
pub(crate) struct Authentication {
    mechanism: Option<Arc<dyn Mechanism>>,
    state: State,
    /// The client's current message, decoded; none while the client has to answer.
    message: Secret,
    ledger: Ledger,
    claim: Claim,
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

/// Who the client says it is, and whom it wants to act as: for the log, the limits and the authorization.
#[derive(Default)]
struct Claim {
    authcid: Vec<u8>,
    authzid: Vec<u8>,
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
    Dismissal(Refusal, Box<[u8]>),
    /// The outcome of this effect.
    Effect(EffectKind),
    /// Who it is that the mechanism has proven by itself.
    Asserted(FinalData),
    /// The answer of a mechanism that runs in another process.
    Step,
    /// The delay before a refusal is told.
    Delay(Refusal),
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
        let mechanism = offer::find(name, cx).ok_or(&reply::UNKNOWN_MECHANISM)?;
        let traits = mechanism.traits();
        if initial.is_some() && traits.flags & flag::SERVER_FIRST != 0 {
            return Err(&reply::NO_INITIAL_RESPONSE);
        }
        match initial {
            // RFC 4954 §4: "=" is an initial response that is present and empty.
            None | Some(b"=") => self.message.wipe(),
            Some(initial) => message::decode(initial, &*mechanism, self.message_buffer(cx))?,
        }
        self.plus_offered = is_plus_offered(&*mechanism, cx);
        self.state.prepare(traits.state_octets);
        self.mechanism = Some(mechanism);
        Ok(self.run(Cause::Start { initial: initial.is_some() }, cx))
    }

    /// Takes one line of the client, without its CRLF.
    pub(crate) fn respond(&mut self, line: &[u8], cx: &mut Context<'_>) -> Progress {
        self.said_ms = cx.now_ms;
        match std::mem::take(&mut self.wait) {
            // RFC 4954 §4: `*` is recognised in every step, before any decoding. After the error challenge
            // of a failure it is still answered 501, but it is a failed login.
            Wait::Dismissal(refusal, diagnosis) if line == b"*" => {
                self.refuse(Refusal { reply: &reply::AUTH_CANCELLED, ..refusal }, &diagnosis, cx)
            }
            _ if line == b"*" => self.refuse(Refusal::CANCELLED, b"", cx),
            Wait::Acknowledgement(identity) if line.is_empty() => self.succeed(identity, cx),
            Wait::Acknowledgement(_) => self.refuse(Refusal::NO_ACKNOWLEDGEMENT, b"", cx),
            Wait::Dismissal(refusal, diagnosis) => self.refuse(refusal, &diagnosis, cx),
            Wait::Response | Wait::Effect(_) | Wait::Asserted(_) | Wait::Step | Wait::Delay(_) => {
                let Some(mechanism) = self.mechanism.clone() else { return self.internal(b"no mechanism", cx) };
                match message::decode(line, &*mechanism, self.message_buffer(cx)) {
                    Ok(()) => self.run(Cause::Message, cx),
                    Err(reply) => self.bad_line(reply, cx),
                }
            }
        }
    }

    /// A line that cannot be a response at all ends the exchange.
    pub(crate) fn bad_line(&mut self, reply: &'static Reply, cx: &mut Context<'_>) -> Progress {
        self.refuse(Refusal::new(reply, reply.rule, 0), b"", cx)
    }

    /// The effect has ended, or the delay is over.
    pub(crate) fn complete(&mut self, outcome: Outcome, cx: &mut Context<'_>) -> Progress {
        match (std::mem::take(&mut self.wait), outcome) {
            (Wait::Delay(Refusal { reply, weight, .. }), _) => Progress::Over { reply, weight },
            (Wait::Effect(kind), Outcome::Sasl(outcome)) => self.run(Cause::Outcome(kind, outcome), cx),
            (Wait::Asserted(data), Outcome::Sasl(outcome)) => self.known(outcome, data, cx),
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
            if let Cause::Outcome(kind, outcome) = &cause
                && outcome.status == sasl::Status::Ok
            {
                self.bound |= *kind == EffectKind::ChannelBinding;
                self.ledger.enter(outcome);
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
                Decision::Elsewhere => return self.pending(Wait::Step),
                Decision::Pending(kind) => return self.pending(Wait::Effect(kind)),
                Decision::Outcome(kind, outcome) => cause = Cause::Outcome(kind, outcome),
                Decision::Success(proof, data) => return self.proven(proof, data, cx),
                Decision::Asserted(data) => return self.asserted(&*mechanism, data, cx),
                Decision::Failure(class, FinalData::Sent) => {
                    self.wait = Wait::Dismissal(class.into(), diagnosis.into());
                    return Progress::Continue;
                }
                Decision::Failure(class, FinalData::None) => return self.refuse(class.into(), &diagnosis, cx),
            }
        }
    }

    fn pending(&mut self, wait: Wait) -> Progress {
        self.wait = wait;
        Progress::Pending
    }

    /// Whether input must wait.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.wait, Wait::Effect(_) | Wait::Asserted(_) | Wait::Step | Wait::Delay(_))
    }

    /// Whether it has used the connection's channel binding.
    pub(crate) fn is_bound(&self) -> bool {
        self.bound
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
        self.claim.authcid.zeroize();
        self.claim.authzid.zeroize();
        self.ledger.clear();
        (self.steps, self.effects, self.wait) = (0, 0, Wait::Response);
        self.bound = false;
        if cx.pools.exchanges.len() < POOLED_MAX {
            cx.pools.exchanges.push(self);
        }
    }
}

/// Most effects in one exchange.
const EFFECTS_MAX: u8 = 8;
/// Idle sets of buffers that an event loop keeps.
const POOLED_MAX: usize = 64;
