//! What an operator chose for a listener. Immutable while a worker lives.

use std::sync::Arc;

use crate::policy::Policy;

/// What a port is for. Nothing in the code tests a port number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes mail for its own domains; relays only for the authenticated (25).
    Mx,
    /// Message submission (RFC 6409) with STARTTLS (587).
    Submission,
    /// Message submission over implicit TLS (RFC 8314 §3.3) (465).
    Submissions,
}

impl Role {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mx => "mx",
            Self::Submission => "submission",
            Self::Submissions => "submissions",
        }
    }

    /// Whether RFC 6409 applies.
    pub fn is_submission(self) -> bool {
        matches!(self, Self::Submission | Self::Submissions)
    }
}

/// How TLS comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// No certificate: STARTTLS is not offered and answered 502.
    Off,
    /// RFC 3207.
    StartTls,
    /// RFC 8314 §3: TLS before the greeting.
    Implicit,
}

/// When AUTH is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthOffer {
    /// Never: `502 5.5.1`.
    Off,
    /// Inside TLS; in clear only mechanisms and networks that allow it.
    AfterTls,
}

/// How strictly sender addresses are held against the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderCheck {
    /// 550 5.7.1.
    Enforce,
    /// Not looked at.
    Off,
}

/// What happens to octets that came after STARTTLS in the same read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StarttlsTrailing {
    /// Thrown away and counted (RFC 3207 §6).
    Drop,
    /// `554 5.5.0` and close instead of 220.
    Close,
}

/// What happens when a client talks before it may (RFC 2920 §3.1, RFC 5321 §4.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncViolation {
    /// `554 5.5.0` and close.
    Close,
    /// Only noted.
    Log,
}

/// Bounds of one session.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Command line with CRLF, octets.
    pub line_octets_max: usize,
    /// AUTH command or response line with CRLF, octets.
    pub sasl_line_octets_max: usize,
    /// Message, octets.
    pub message_octets_max: u64,
    /// Message of somebody anonymous, octets.
    pub anonymous_octets_max: u64,
    /// Recipients of a message.
    pub recipients_max: u32,
    /// Text of all addresses of a message, octets.
    pub envelope_octets_max: usize,
    /// Messages of a session.
    pub messages_max: u32,
    /// Refused commands before 421.
    pub errors_max: u8,
    /// Commands that do nothing (NOOP, RSET, VRFY, HELP, repeated EHLO) before 421.
    pub idle_commands_max: u8,
    /// Failed logins before 421.
    pub auth_failures_max: u8,
    /// Received lines before a message is a loop.
    pub received_max: u16,
    /// Octets of header that are looked at.
    pub header_octets_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_octets_max: 2048,
            sasl_line_octets_max: 24_576,
            message_octets_max: 50 << 20,
            anonymous_octets_max: 1 << 20,
            recipients_max: 1000,
            envelope_octets_max: 256 << 10,
            messages_max: 1000,
            errors_max: 10,
            idle_commands_max: 100,
            auth_failures_max: 3,
            received_max: 50,
            header_octets_max: 100 << 10,
        }
    }
}

/// A listener as its sessions see it.
pub struct Listener {
    /// Name in the configuration.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Our name in greeting, EHLO and Received.
    pub hostname: String,
    /// Ports that clients connect to, as far as that is known.
    pub ports: Vec<u16>,
    /// How TLS comes about.
    pub tls: Tls,
    /// Before TLS everything but EHLO, HELO, NOOP, RSET, STARTTLS, QUIT is answered 530.
    pub require_tls: bool,
    /// Before AUTH a transaction is answered 530.
    pub require_auth: bool,
    /// When AUTH is offered.
    pub auth: AuthOffer,
    /// Whether somebody may say that they prove nothing (RFC 4505), and leave mail for local users then.
    pub anonymous: bool,
    /// Mechanisms that may be offered, strongest first.
    pub mechanisms: Vec<Arc<dyn sasl::Mechanism>>,
    /// Bounds.
    pub limits: Limits,
    /// MAIL FROM against the identity.
    pub sender_envelope: SenderCheck,
    /// Header From against the identity.
    pub sender_header: SenderCheck,
    /// Add Date and Message-ID when missing (RFC 6409 §8).
    pub fixups: bool,
    /// Keep the client's address out of Received.
    pub hide_client: bool,
    /// Identities whose AUTH= is believed (RFC 4954 §5).
    pub trust_auth_param_from: Vec<String>,
    /// After STARTTLS.
    pub starttls_trailing: StarttlsTrailing,
    /// When the client talks too early.
    pub sync_violation: SyncViolation,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// Whether the hand-on side carries SMTPUTF8.
    pub smtputf8: bool,
    /// Whether a message may be lost: said in the EHLO reply, loudly (benches only).
    pub data_loss: bool,
    /// Who may do what.
    pub policy: Box<dyn Policy>,
}
