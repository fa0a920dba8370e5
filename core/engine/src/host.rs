//! What a session asks of its engine, performed: from a cache, by the directory, by the spool, by the wheel.
//!
//! ```text
//! perform   Sasl, Asserted     logins     remembered, or a question to the directory (which may ask a library's back end)
//!           Recipient, Sender             likewise
//!           Commit             messages   the spool; or delivery, where the next hop decides
//!           Delay                         the wheel
//! step                                    a mechanism that runs in another process
//! charge                       charges    the limits
//! note                         notes      counters and records
//! ```
//!
//! What ends later is noted in the connection's slot ([`TurnHost::wait_for`]), and the shard brings the outcome.

mod charges;
mod logins;
mod messages;
mod notes;

use std::sync::Arc;

use link::directory::Question;
use smtp::host::{
    Allowance, Charge, Effect, Host, Note, Outcome, Peer, Permission, RecipientOutcome, SessionId, Trouble,
};
use smtp::id::QueueId;
use spool::Commit;
use telemetry::Counter;

pub use self::messages::committed;
use crate::connection::{Held, Pending, Tls};
use crate::local::Local;
use crate::questions::Asked;
use crate::setup::Port;
use crate::shared::Shared;
use crate::slab::Token;
use crate::steps::ANSWER_MS_MAX;

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

impl Host for TurnHost<'_> {
    fn perform(&mut self, effect: Effect<'_>) -> Option<Outcome> {
        match effect {
            Effect::Sasl { mechanism, effect } => self.login(mechanism.as_str(), effect),
            Effect::Asserted { mechanism, authcid, authzid } => self.assertion(mechanism.as_str(), authcid, authzid),
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
                // Nobody is asked, so the place for a question is as it was.
                self.wait_for(Pending::Delay, *self.question, ms.into());
                None
            }
        }
    }

    fn step(&mut self, mechanism: &dyn sasl::Mechanism, input: sasl::Input<'_>) -> Option<sasl::OwnedStep> {
        self.local.heard_credentials();
        match self.local.steps.ask(self.token, mechanism, &input) {
            Ok(id) => {
                self.wait_for(Pending::Step, id.index(), ANSWER_MS_MAX);
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
        self.begin(size)
    }

    fn write(&mut self, octets: &[u8]) -> usize {
        self.append(octets)
    }

    fn abort_message(&mut self) {
        if let Some(held) = self.held {
            held.message = None;
        }
    }

    fn charge(&mut self, charge: Charge<'_>) -> Allowance {
        self.charged(charge)
    }

    fn entropy(&mut self) -> [u8; 64] {
        self.local.entropy.take()
    }

    fn note(&mut self, note: Note<'_>) {
        self.take_note(note);
    }
}

impl TurnHost<'_> {
    /// The session waits now. `question`: where that stands with whoever answers; `ms`: how long it may take.
    fn wait_for(&mut self, pending: Pending, question: u32, ms: u64) {
        (*self.pending, *self.question) = (pending, question);
        self.local.effect_ms = ms;
    }

    fn ask(&mut self, question: &Question<'_>, asked: Asked) -> Option<Outcome> {
        let epoch = self.local.watch.epoch();
        self.local.watch.add(Counter::DirectoryQuestions, 1);
        match self.local.questions.ask(self.token, question, asked, epoch, self.local.now.ms) {
            Ok(id) => {
                self.wait_for(Pending::Question, id.index(), self.port.deadlines.effect_ms);
                None
            }
            Err(outcome) => {
                self.local.watch.add(Counter::DirectoryTemporary, 1);
                Some(outcome)
            }
        }
    }
}
