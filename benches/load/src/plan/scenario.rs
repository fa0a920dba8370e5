//! What sessions do: a kind, and everything that it can be told.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sizes::Sizes;

/// What a session is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Connect, read the greeting, close.
    Connect,
    /// Connect, read the greeting, QUIT.
    Churn,
    /// EHLO, AUTH, QUIT.
    Login,
    /// A login that must be refused with 535, and NOOP and QUIT that must be answered after it.
    WrongPassword,
    /// Messages.
    Submit,
    /// Messages at a few octets per second.
    Slow,
    /// Says nothing until the server or `hold` ends it.
    HalfOpen,
    /// What no client should do; the server may answer or close, but must not stall or lie.
    Rude,
    /// EHLO, then nothing until the run ends.
    Idle,
}

impl Kind {
    /// With the names of the command line.
    pub const ALL: [(&'static str, Self); 9] = [
        ("connect", Self::Connect),
        ("churn", Self::Churn),
        ("login", Self::Login),
        ("wrong-password", Self::WrongPassword),
        ("submit", Self::Submit),
        ("slow", Self::Slow),
        ("half-open", Self::HalfOpen),
        ("rude", Self::Rude),
        ("idle", Self::Idle),
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Whether it sends mail.
    pub fn sends_mail(self) -> bool {
        matches!(self, Self::Submit | Self::Slow)
    }
}

/// How TLS comes about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// Not at all.
    #[default]
    None,
    /// STARTTLS after the first EHLO.
    Starttls,
    /// Before the greeting.
    Implicit,
}

/// What a login is bound to the TLS connection by (SCRAM with -PLUS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelBinding {
    /// RFC 9266; TLS 1.3 only.
    TlsExporter,
    /// RFC 5929 §4: the server's certificate.
    TlsServerEndPoint,
}

/// How messages of one connection follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pipelining {
    /// One command, one reply.
    Never,
    /// Groups where PIPELINING is offered, as ordinary clients do.
    #[default]
    Groups,
    /// The end of a message travels with the beginning of the next, whatever is offered.
    Stream,
}

/// A kind of session with what it needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is called in the result.
    #[serde(default)]
    pub name: String,
    /// What it is about.
    pub kind: Kind,
    /// Its share of the sessions.
    #[serde(default = "one")]
    pub weight: f64,
    /// Sessions in all; for `idle` only.
    #[serde(default)]
    pub count: u64,
    /// Host and port of the server.
    #[serde(default)]
    pub target: Option<String>,
    /// How TLS comes about.
    #[serde(default)]
    pub tls: Tls,
    /// "1.2" or "1.3" only.
    #[serde(default)]
    pub tls_version: Option<String>,
    /// Share of handshakes that may resume.
    #[serde(default)]
    pub resume: f64,
    /// Name that TLS asks for.
    #[serde(default)]
    pub sni: Option<String>,
    /// PEM.
    #[serde(default)]
    pub client_cert: Option<PathBuf>,
    /// PEM.
    #[serde(default)]
    pub client_key: Option<PathBuf>,
    /// LHLO, and a reply per recipient.
    #[serde(default)]
    pub lmtp: bool,
    /// SASL mechanism; the strongest that is offered otherwise.
    #[serde(default)]
    pub mechanism: Option<String>,
    /// What SCRAM with -PLUS binds by; otherwise the exporter in TLS 1.3, the certificate in TLS 1.2.
    #[serde(default)]
    pub channel_binding: Option<ChannelBinding>,
    /// User; `{n}` becomes a number below `users`.
    #[serde(default)]
    pub user: Option<String>,
    /// How many users there are.
    #[serde(default = "one_user")]
    pub users: u32,
    /// Password or token. In a file of its own it does not end in somebody's shell history.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// Its first line is the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Envelope sender; the user otherwise.
    #[serde(default)]
    pub from: Option<String>,
    /// Envelope recipient; `{n}` becomes the number of the recipient.
    #[serde(default = "somebody")]
    pub to: String,
    /// Recipients of each message.
    #[serde(default = "one_user")]
    pub recipients: u32,
    /// Octets of a message: `4096`, `1k-64k`, `2k:70,20k:25,1m-2m:5`.
    #[serde(default)]
    pub size: Sizes,
    /// Messages on one connection.
    #[serde(default = "one_user")]
    pub per_connection: u32,
    /// How messages follow each other.
    #[serde(default)]
    pub pipelining: Pipelining,
    /// BDAT instead of DATA; an error where it is not offered.
    #[serde(default)]
    pub bdat: bool,
    /// 8-bit content, BODY=8BITMIME; an error where it is not offered.
    #[serde(default)]
    pub eight_bit: bool,
    /// SMTPUTF8, with a header beyond ASCII; addresses are as they are given.
    #[serde(default)]
    pub smtputf8: bool,
    /// Octets that are sent per second at most; 0: as many as go. `slow` has 100 unless told otherwise.
    #[serde(default)]
    pub octets_per_second: u32,
    /// Seconds that `half-open` waits.
    #[serde(default = "five")]
    pub hold: f64,
}

fn one() -> f64 {
    1.0
}
fn one_user() -> u32 {
    1
}
fn five() -> f64 {
    5.0
}
fn somebody() -> String {
    "bob@demo.test".to_owned()
}

impl Scenario {
    /// With defaults.
    pub fn new(kind: Kind) -> Self {
        Self {
            name: kind.name().to_owned(),
            kind,
            weight: 1.0,
            count: 0,
            target: None,
            tls: Tls::None,
            tls_version: None,
            resume: 0.0,
            sni: None,
            client_cert: None,
            client_key: None,
            lmtp: false,
            mechanism: None,
            channel_binding: None,
            user: None,
            users: 1,
            password: String::new(),
            password_file: None,
            from: None,
            to: somebody(),
            recipients: 1,
            size: Sizes::default(),
            per_connection: 1,
            pipelining: Pipelining::Groups,
            bdat: false,
            eight_bit: false,
            smtputf8: false,
            octets_per_second: 0,
            hold: 5.0,
        }
    }

    /// Where to, once the plan is [checked](super::Plan::check).
    pub fn address(&self) -> Option<SocketAddr> {
        self.target.as_ref()?.parse().ok()
    }
}
