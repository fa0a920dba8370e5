//! The questions that a session asks of policy. Answers live in the `policy` crate.

use crate::envelope::Envelope;
use crate::host::{Identity, Peer};
use crate::listener::Role;
use crate::reply::Reply;

/// Who may do what on a listener. Pure: no clock, no back end; what only the directory knows is
/// [`Verdict::Ask`].
pub trait Policy: Send + Sync {
    /// May this sender be used? `sender` is `None` for the null reverse-path.
    fn mail(&self, facts: &Facts<'_>, sender: Option<&str>) -> Verdict;
    /// May this recipient be reached? `recipient` is `local@domain` or `postmaster`, domain in lower case.
    fn rcpt(&self, facts: &Facts<'_>, envelope: &Envelope, recipient: &str) -> Verdict;
    /// May this address stand in the header From? Asked after the message.
    fn header_from(&self, facts: &Facts<'_>, address: &str) -> Verdict;
}

/// The session as policy may see it.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The listener's role.
    pub role: Role,
    /// Who the client has proven to be.
    pub identity: Option<&'a Identity>,
    /// The client has logged in as nobody (RFC 4505): the class `anonymous`.
    pub anonymous: bool,
    /// Who is at the other end.
    pub peer: &'a Peer,
    /// Inside TLS.
    pub tls: bool,
}

/// What policy says.
pub enum Verdict {
    /// Go on.
    Permit,
    /// Answer this.
    Refuse(&'static Reply),
    /// Only the directory knows: a recipient's existence, an identity's rights.
    Ask,
}
