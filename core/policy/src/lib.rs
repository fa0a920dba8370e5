//! Who may do what on a listener: pure functions of role, identity and address.
//!
//! ```text
//!               sender                         recipient, local domain     recipient, elsewhere
//! mx            anybody                        ask the directory           the authenticated, else 550 5.7.1
//! submission(s) owned by the identity (or <>)  ask the directory           permitted (they are authenticated)
//! anonymous     not of a local domain          ask the directory           550 5.7.1: nobody is no relay's friend
//! ```
//!
//! What only the directory knows (does the mailbox exist, has somebody been given further rights since the
//! login) is [`Verdict::Ask`].
#![forbid(unsafe_code)]

use smtp::envelope::Envelope;
use smtp::host::Identity;
use smtp::listener::{Role, SenderCheck};
use smtp::path;
use smtp::policy::{Facts, Policy, Verdict};
use smtp::reply;

/// How recipients of local domains are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// The directory knows them all: the others are told 550 5.1.1, and no backscatter arises.
    Directory,
    /// Somebody behind us verifies them.
    Any,
}

/// What an operator chose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The listener's role.
    pub role: Role,
    /// Local domains, lower case.
    pub domains: Vec<String>,
    /// How recipients of these are judged.
    pub recipients: Recipients,
    /// MAIL FROM against the identity.
    pub sender_envelope: SenderCheck,
    /// Header From against the identity.
    pub sender_header: SenderCheck,
}

/// The policy of the roles `mx`, `submission`, `submissions`.
pub struct RolePolicy {
    settings: Settings,
}

impl RolePolicy {
    /// With these settings.
    pub fn new(mut settings: Settings) -> Self {
        settings.domains.sort_unstable();
        Self { settings }
    }

    fn is_local(&self, domain: &str) -> bool {
        self.settings.domains.binary_search_by(|local| local.as_str().cmp(domain)).is_ok()
    }

    /// Somebody without a name may say that they are anybody, except for those whom we know.
    fn foreign(&self, address: &str, denied: &'static smtp::Reply) -> Verdict {
        if self.is_local(path::split(address).1) { Verdict::Refuse(denied) } else { Verdict::Permit }
    }

    /// A domain of one label is nobody's on the Internet; only what is configured as local passes.
    fn is_qualified(&self, domain: &str) -> bool {
        path::is_qualified(domain) || self.is_local(domain)
    }
}

/// Whether the rights that came with the login cover `address` (`local@domain`, domain in lower case).
/// Local parts are compared without regard to ASCII case, as the directory does.
pub fn may_send_as(identity: &Identity, address: &str) -> bool {
    let (local, domain) = path::split(address);
    identity.senders.iter().any(|right| match path::split(right) {
        ("*", "") => true,
        (right_local, right_domain) => {
            right_domain == domain && (right_local.is_empty() || right_local.eq_ignore_ascii_case(local))
        }
    })
}

/// Rights that came with the login decide at once and hold for the session; without them the directory is
/// asked, so that an alias given a minute ago works without a new login.
fn owned(facts: &Facts<'_>, address: &str, check: SenderCheck, denied: &'static smtp::Reply) -> Verdict {
    match (check, facts.identity) {
        (SenderCheck::Off, _) => Verdict::Permit,
        (SenderCheck::Enforce, None) => Verdict::Refuse(denied),
        (SenderCheck::Enforce, Some(identity)) if may_send_as(identity, address) => Verdict::Permit,
        (SenderCheck::Enforce, Some(_)) => Verdict::Ask,
    }
}

impl Policy for RolePolicy {
    fn mail(&self, facts: &Facts<'_>, sender: Option<&str>) -> Verdict {
        // RFC 6409 §3.2: a null return path "MUST NOT, in itself, be cause for rejecting".
        let Some(sender) = sender else { return Verdict::Permit };
        if !self.settings.role.is_submission() {
            return Verdict::Permit;
        }
        if !self.is_qualified(path::split(sender).1) {
            return Verdict::Refuse(&reply::UNQUALIFIED_SENDER);
        }
        if facts.anonymous {
            return self.foreign(sender, &reply::SENDER_NOT_OWNED);
        }
        owned(facts, sender, self.settings.sender_envelope, &reply::SENDER_NOT_OWNED)
    }

    fn rcpt(&self, facts: &Facts<'_>, _: &Envelope, recipient: &str) -> Verdict {
        let (_, domain) = path::split(recipient);
        // Postmaster without a domain is ours (RFC 5321 §4.1.1.3).
        if domain.is_empty() {
            return Verdict::Ask;
        }
        if self.is_local(domain) {
            return match self.settings.recipients {
                Recipients::Directory => Verdict::Ask,
                Recipients::Any => Verdict::Permit,
            };
        }
        if self.settings.role.is_submission() && !self.is_qualified(domain) {
            return Verdict::Refuse(&reply::UNQUALIFIED_RECIPIENT);
        }
        match facts.identity {
            Some(_) => Verdict::Permit,
            None => Verdict::Refuse(&reply::RELAYING_DENIED),
        }
    }

    fn header_from(&self, facts: &Facts<'_>, address: &str) -> Verdict {
        if !self.settings.role.is_submission() {
            return Verdict::Permit;
        }
        if facts.anonymous {
            return self.foreign(address, &reply::FROM_NOT_OWNED);
        }
        owned(facts, address, self.settings.sender_header, &reply::FROM_NOT_OWNED)
    }
}

#[cfg(test)]
mod tests;
