//! The mechanism says that it is done. Whether that is so, and for whom, is not its word but the ledger's.
//!
//! ```text
//! Success(proof)     ─► that entry: bound? doomed? may log in? may act as authzid? ─► judged
//! Asserted(authcid)  ─► consent? ─► the directory ─► an entry like any other ──────► Success
//! judged ─► final data was sent: the client answers first ─► 235, or the refusal
//! ```

use std::sync::Arc;

use sasl::{FailureClass, Mechanism, Proof, Status, flag};

use super::ledger::Entry;
use super::refusal::Refusal;
use super::step::FinalData;
use super::{Authentication, Progress, Wait};
use crate::host::{Account, Charge, Context, Effect, Identity, Note, Outcome, SaslOutcome};
use crate::reply;

impl Authentication {
    /// The mechanism says itself who this is. From here on it is like any proof: the directory knows whether there
    /// is such a user, and whom they may act as.
    pub(super) fn asserted(&mut self, mechanism: &dyn Mechanism, data: FinalData, cx: &mut Context<'_>) -> Progress {
        // The flag is there only when the mechanism declares it and the operator has consented.
        if mechanism.traits().flags & flag::SELF_ASSERTS == 0 {
            mechanism.quarantine();
            return self.judged(Err(Refusal::credentials("unpermitted assertion")), data, cx);
        }
        let (authcid, authzid) = (&self.claim.authcid[..], &self.claim.authzid[..]);
        match cx.host.perform(Effect::Asserted { mechanism: mechanism.name(), authcid, authzid }) {
            Some(Outcome::Sasl(outcome)) => self.known(outcome, data, cx),
            None => self.pending(Wait::Asserted(data)),
            Some(_) => self.internal(b"mismatched outcome", cx),
        }
    }

    /// The directory knows whom the mechanism has named, or that there is no such user.
    pub(super) fn known(&mut self, outcome: SaslOutcome, data: FinalData, cx: &mut Context<'_>) -> Progress {
        match outcome.status {
            Status::Ok => {
                self.ledger.enter(&outcome);
                self.proven(self.ledger.last(), data, cx)
            }
            Status::Denied => self.judged(Err(FailureClass::Credentials.into()), data, cx),
            _ => self.judged(Err(FailureClass::Temporary.into()), data, cx),
        }
    }

    /// The mechanism says that `proof` settles it.
    pub(super) fn proven(&mut self, proof: Proof, data: FinalData, cx: &mut Context<'_>) -> Progress {
        let flags = self.mechanism.as_ref().map_or(0, |mechanism| mechanism.traits().flags);
        if flags & flag::ANONYMOUS != 0 && proof.0 == 0 && data == FinalData::None && cx.listener.anonymous {
            let mechanism = self.mechanism.as_ref().map_or("", |mechanism| mechanism.name().as_str());
            // RFC 4505 §3: the text is for the log.
            cx.host.note(Note::Anonymous { mechanism, trace: self.message.expose() });
            return Progress::Anonymous;
        }
        let judgement = match self.ledger.entry(proof) {
            None => Err(Refusal::credentials("unproven success")),
            // A -PLUS mechanism that never asked for the binding has compared nothing.
            Some(_) if flags & flag::CHANNEL_BIND != 0 && !self.bound => Err(Refusal::credentials("unbound success")),
            // A mechanism that is content with a decoy does not verify anything.
            Some(Entry { doomed: true, .. }) => {
                if let Some(mechanism) = &self.mechanism {
                    mechanism.quarantine();
                }
                Err(Refusal::credentials("doomed success"))
            }
            Some(Entry { identity: None, .. }) => Err(Refusal::credentials("credentials")),
            Some(Entry { account: Account::Disabled, .. }) => Err(Refusal::DISABLED),
            Some(Entry { account: Account::TooWeak, .. }) => Err(Refusal::TOO_WEAK),
            // RFC 4422 §3.6: may authcid act as authzid? Only as itself.
            Some(Entry { identity: Some(identity), .. }) if self.claim.is_for(identity) => Ok(Arc::clone(identity)),
            Some(_) => Err(Refusal::credentials("authorization")),
        };
        self.judged(judgement, data, cx)
    }

    /// Tells the client, after its answer to the final data where there was some.
    fn judged(&mut self, judgement: Result<Arc<Identity>, Refusal>, data: FinalData, cx: &mut Context<'_>) -> Progress {
        match (judgement, data) {
            (Ok(identity), FinalData::None) => self.succeed(identity, cx),
            (Ok(identity), FinalData::Sent) => {
                self.wait = Wait::Acknowledgement(identity);
                Progress::Continue
            }
            (Err(refusal), FinalData::None) => self.refuse(refusal, b"", cx),
            (Err(refusal), FinalData::Sent) => {
                self.wait = Wait::Dismissal(refusal, Box::default());
                Progress::Continue
            }
        }
    }

    pub(super) fn succeed(&mut self, identity: Arc<Identity>, cx: &mut Context<'_>) -> Progress {
        cx.host.charge(Charge::AuthSuccess { authcid: &self.claim.authcid });
        self.note(Some(&identity.name), &reply::AUTHENTICATED, "ok", b"", cx);
        Progress::Success(identity)
    }
}

impl super::Claim {
    /// Whether whoever has proven to be `identity` asked to act as nobody else.
    fn is_for(&self, identity: &Identity) -> bool {
        self.authzid.is_empty() || self.authzid == self.authcid || stands_for(&identity.name, &self.authzid)
    }
}

/// Whether a client that asked to act as `authzid` may have meant `name`. The directory has compared the prepared
/// forms and says who it is; here is no table for that, so only what is plainly somebody else is refused.
fn stands_for(name: &str, authzid: &[u8]) -> bool {
    let local = name.rsplit_once('@').map_or(name, |(local, _)| local).as_bytes();
    name.as_bytes().eq_ignore_ascii_case(authzid) || local.eq_ignore_ascii_case(authzid) || !authzid.is_ascii()
}
