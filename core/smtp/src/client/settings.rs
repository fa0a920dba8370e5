//! What a client is told once and shares between connections.

use std::fmt;
use std::sync::Arc;

use crate::path;

use super::credentials::Credentials;
use super::sasl::Mechanism;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033: LHLO, and a reply for each recipient.
    Lmtp,
}

/// Whether STARTTLS is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartTls {
    /// Not even when it is offered.
    Never,
    /// When it is offered; in clear otherwise, also after the peer refused it.
    IfOffered,
    /// Without it nothing is sent.
    Required,
}

/// Whether an extension is used that need not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Not even when it is offered.
    Never,
    /// When it is offered.
    IfOffered,
}

/// What becomes of a message that is marked 8BITMIME when the peer does not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EightBit {
    /// Fails for good, 5.6.3 (RFC 6152 §3; we do not convert).
    Refuse,
    /// Is sent as it is: nearly every server copes, whatever it says.
    Send,
}

/// Whether a password may cross the wire in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleartext {
    /// PLAIN and LOGIN only inside TLS.
    Refuse,
    /// PLAIN and LOGIN also without.
    Allow,
}

/// How to log in. A client that has this and cannot use it sends no mail.
#[derive(Clone)]
pub struct Login {
    /// Who we are.
    pub credentials: Arc<Credentials>,
    /// What may be used, in this order; others are not.
    pub mechanisms: Vec<Mechanism>,
    /// Whether a password may cross the wire in clear.
    pub cleartext: Cleartext,
}

impl Login {
    /// With every mechanism, strongest first, and no password in clear.
    pub fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, mechanisms: Mechanism::ALL.to_vec(), cleartext: Cleartext::Refuse }
    }
}

/// How to talk to a peer.
#[derive(Clone)]
pub struct Settings {
    name: Box<str>,
    /// What is spoken.
    pub protocol: Protocol,
    /// Whether STARTTLS is used.
    pub starttls: StartTls,
    /// How to log in, if at all.
    pub login: Option<Login>,
    /// Commands in groups (RFC 2920).
    pub pipelining: Use,
    /// BDAT instead of DATA (RFC 3030).
    pub chunking: Use,
    /// What becomes of 8-bit messages that the peer does not take.
    pub eight_bit: EightBit,
}

/// Not a name for EHLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("name for EHLO is neither a domain in ASCII nor an address literal in brackets")
    }
}

impl std::error::Error for BadName {}

impl Settings {
    /// SMTP with everything that is offered, and no login. `name` is what we call ourselves.
    pub fn new(name: &str) -> Result<Self, BadName> {
        if !(name.is_ascii() && (path::is_domain(name) || path::is_literal(name))) {
            return Err(BadName);
        }
        Ok(Self {
            name: name.into(),
            protocol: Protocol::Smtp,
            starttls: StartTls::IfOffered,
            login: None,
            pipelining: Use::IfOffered,
            chunking: Use::IfOffered,
            eight_bit: EightBit::Refuse,
        })
    }

    /// What we call ourselves.
    pub fn name(&self) -> &str {
        &self.name
    }
}
