//! What a failure is: to the client a reply of RFC 4954 §6, to the log a reason, to the limits and the session a weight.

use sasl::FailureClass;

use super::{Authentication, Progress, Wait};
use crate::host::{Allowance, Charge, Context, Effect, Note};
use crate::reply::{self, Reply};

/// How much a failure counts towards the end of the session. RFC 4954 §9 SHOULD NOT end it before three.
pub(crate) const FULL_FAILURE: u8 = 2;
/// A message that breaks the mechanism's grammar is rather a broken client than a wrong password.
const HALF_FAILURE: u8 = 1;

/// What the client is told, what the log is told, how much it counts.
#[derive(Clone, Copy)]
pub(super) struct Refusal {
    pub reply: &'static Reply,
    pub reason: &'static str,
    pub weight: u8,
}

impl Refusal {
    pub(super) const CANCELLED: Self = Self::new(&reply::AUTH_CANCELLED, "cancelled", 0);
    pub(super) const NO_ACKNOWLEDGEMENT: Self = Self::new(&reply::BAD_BASE64, "acknowledgement", FULL_FAILURE);
    pub(super) const INTERNAL: Self = Self::new(&reply::AUTH_TROUBLE, "internal", 0);
    pub(super) const DISABLED: Self = Self::new(&reply::ACCOUNT_DISABLED, "disabled", FULL_FAILURE);
    pub(super) const TOO_WEAK: Self = Self::new(&reply::TOO_WEAK, "too weak", 0);

    pub(super) const fn new(reply: &'static Reply, reason: &'static str, weight: u8) -> Self {
        Self { reply, reason, weight }
    }

    /// A failed login. The same octets for every cause (RFC 4954 §6); `reason` is for the log.
    pub(super) const fn credentials(reason: &'static str) -> Self {
        Self::new(&reply::BAD_CREDENTIALS, reason, FULL_FAILURE)
    }
}

impl From<FailureClass> for Refusal {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::Credentials => Self::credentials("credentials"),
            FailureClass::Authorization => Self::credentials("authorization"),
            FailureClass::Expired => Self::credentials("expired"),
            FailureClass::ChannelBinding => Self::credentials("channel binding"),
            // 432 would tell that the user exists.
            FailureClass::Transition => Self::credentials("transition"),
            FailureClass::Malformed => Self::new(&reply::BAD_AUTH_MESSAGE, "malformed", HALF_FAILURE),
            FailureClass::TooWeak => Self::TOO_WEAK,
            FailureClass::NeedTls => Self::new(&reply::UNKNOWN_MECHANISM, "needs TLS", 0),
            FailureClass::Temporary => Self::new(&reply::AUTH_TROUBLE, "temporary", 0),
            FailureClass::Internal => Self::INTERNAL,
        }
    }
}

impl Authentication {
    /// Refuses: at once, or after the delay that the limits ask for when it counts as a failed login. That counts
    /// from what the client said, so however fast a back end knows that somebody does not exist, nobody sees it.
    pub(super) fn refuse(&mut self, refusal: Refusal, diagnosis: &[u8], cx: &mut Context<'_>) -> Progress {
        let Refusal { reply, reason, weight } = refusal;
        self.note(None, reply, reason, diagnosis, cx);
        if weight >= FULL_FAILURE
            && let Allowance::Delay(ms) = cx.host.charge(Charge::AuthFailure { authcid: &self.claim.authcid })
            && let waited_ms = u32::try_from(cx.now_ms.saturating_sub(self.said_ms)).unwrap_or(u32::MAX)
            && let ms = ms.saturating_sub(waited_ms)
            && ms > 0
            && cx.host.perform(Effect::Delay { ms }).is_none()
        {
            return self.pending(Wait::Delay(refusal));
        }
        Progress::Over { reply, weight }
    }

    /// What cannot be, or not in this order.
    pub(super) fn internal(&mut self, diagnosis: &[u8], cx: &mut Context<'_>) -> Progress {
        self.refuse(Refusal::INTERNAL, diagnosis, cx)
    }

    /// The login has ended, for the log.
    pub(super) fn note(
        &self,
        identity: Option<&str>,
        reply: &'static Reply,
        reason: &'static str,
        diagnosis: &[u8],
        cx: &mut Context<'_>,
    ) {
        let mechanism = self.mechanism.as_ref().map_or("", |mechanism| mechanism.name().as_str());
        let (authcid, code) = (&self.claim.authcid[..], reply.code);
        let ms = cx.now_ms.saturating_sub(self.began_ms);
        cx.host.note(Note::Login { mechanism, authcid, identity, code, reason, diagnosis, ms });
    }
}
