//! `[[listener]]`: where clients come in, what is asked of them, and what is offered.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use smtp::listener::{AuthOffer, Role, SenderCheck, StarttlsTrailing, SyncViolation, Tls};

use super::Certificate;
use super::reader::{About, Reader};
use crate::report::Report;
use crate::values::Table;

mod checks;

pub(super) use checks::check;

/// `[[listener]]`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its table as written, for places in findings.
    pub written: Table,
    /// Unique.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Where it listens.
    pub bind: Vec<SocketAddr>,
    /// The port that clients connect to, if it is another one.
    pub public_port: Option<u16>,
    /// Own host name.
    pub hostname: Option<String>,
    /// How TLS comes about.
    pub tls: Tls,
    /// Indices into [`certificates`](super::Config::certificates), default first.
    pub certificates: Vec<usize>,
    /// Resumption.
    pub tls_tickets: bool,
    /// Whether clients are asked for a certificate.
    pub client_cert: ClientCert,
    /// Who vouches for clients, PEM.
    pub client_ca: Option<PathBuf>,
    /// Local domains.
    pub domains: Vec<String>,
    /// Take every recipient of a local domain.
    pub any_recipient: bool,
    /// Whether AUTH is offered.
    pub auth: AuthOffer,
    /// Whether somebody may log in as nobody.
    pub anonymous: bool,
    /// Mechanism names, strongest first.
    pub mechanisms: Vec<String>,
    /// Instead of names: whatever the back end can serve.
    pub mechanisms_auto: bool,
    /// Who knows the users.
    pub backend: String,
    /// 530 before TLS.
    pub require_tls: bool,
    /// 530 before AUTH.
    pub require_auth: bool,
    /// Passwords in clear.
    pub cleartext_auth_nets: Vec<IpNet>,
    /// No limits, delays, penalties.
    pub exempt_nets: Vec<IpNet>,
    /// MAIL FROM against the identity.
    pub identity_envelope: SenderCheck,
    /// From against the identity.
    pub identity_header: SenderCheck,
    /// Add Date and Message-ID.
    pub fixups: bool,
    /// Client's address stays out of Received.
    pub hide_client: bool,
    /// Whose AUTH= is believed.
    pub trust_auth_param_from: Vec<String>,
    /// Octets behind STARTTLS.
    pub starttls_trailing: StarttlsTrailing,
    /// Talking too early.
    pub sync_violation: SyncViolation,
    /// BDAT.
    pub chunking: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// Largest message.
    pub max_size: u64,
    /// Most recipients.
    pub max_rcpt: u32,
    /// Concurrent sessions of one client.
    pub per_ip: u32,
    /// Longest time from the end of the data to the answer.
    pub data_deadline: Duration,
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert {
    /// No.
    Off,
    /// Yes, but nobody is refused for it.
    Request,
    /// Only who has one that verifies gets in.
    Require,
}

/// `top`: what holds for all listeners.
pub(super) fn read(
    read: &Reader<'_>,
    top: &Reader<'_>,
    certificates: &[Certificate],
    report: &mut Report,
) -> Option<Listener> {
    let role_text = read.required("listener[].role", report);
    let role_name = role_text.as_deref().unwrap_or("mx");
    // Defaults may depend on the role.
    let (read, top) = (Reader { role: role_name, ..*read }, Reader { role: role_name, ..*top });
    if !read.is_written("listener[].bind") {
        About::new(read.table, report).missing("listener[].bind");
        return None;
    }
    let role = match role_text.as_deref()? {
        "mx" => Role::Mx,
        "submission" => Role::Submission,
        _ => Role::Submissions,
    };
    Some(Listener {
        name: read.text("listener[].name").unwrap_or_else(|| role_name.to_owned()),
        role,
        bind: read.addresses("listener[].bind"),
        public_port: read.number("listener[].public_port").and_then(|port| u16::try_from(port).ok()),
        hostname: read.text("listener[].hostname"),
        tls: match read.word("listener[].tls").as_str() {
            "off" => Tls::Off,
            "starttls" => Tls::StartTls,
            _ => Tls::Implicit,
        },
        certificates: chosen(&read, certificates, report),
        tls_tickets: read.flag("listener[].tls_tickets"),
        client_cert: match read.word("listener[].client_cert").as_str() {
            "request" => ClientCert::Request,
            "require" => ClientCert::Require,
            _ => ClientCert::Off,
        },
        client_ca: read.path("listener[].client_ca"),
        domains: read.words("listener[].domains"),
        any_recipient: read.word("listener[].recipients") == "any",
        auth: match read.word("listener[].auth").as_str() {
            "off" => AuthOffer::Off,
            _ => AuthOffer::AfterTls,
        },
        anonymous: read.word("listener[].anonymous") == "local",
        mechanisms: read.words("listener[].mechanisms"),
        mechanisms_auto: read.text("listener[].mechanisms").is_some(),
        backend: read.word("listener[].backend"),
        require_tls: read.flag("listener[].require_tls"),
        require_auth: read.flag("listener[].require_auth"),
        cleartext_auth_nets: read.networks("listener[].cleartext_auth_nets"),
        exempt_nets: read.networks("listener[].exempt_nets"),
        identity_envelope: sender_check(&read.word("listener[].identity.envelope")),
        identity_header: sender_check(&read.word("listener[].identity.header")),
        fixups: read.flag("listener[].fixups"),
        hide_client: read.flag("listener[].received.hide_client"),
        trust_auth_param_from: read.words("listener[].trust_auth_param_from"),
        starttls_trailing: match read.word("listener[].starttls_trailing").as_str() {
            "close" => StarttlsTrailing::Close,
            _ => StarttlsTrailing::Drop,
        },
        sync_violation: match read.word("listener[].sync_violation").as_str() {
            "log" => SyncViolation::Log,
            _ => SyncViolation::Close,
        },
        chunking: read.flag("listener[].chunking"),
        smtputf8: read.flag("listener[].smtputf8"),
        max_size: read.number("listener[].limits.max_size").unwrap_or_else(|| top.count("limits.max_size")),
        max_rcpt: match read.number("listener[].limits.max_rcpt") {
            Some(_) => read.count("listener[].limits.max_rcpt"),
            None => top.count("limits.max_rcpt"),
        },
        per_ip: read.count("listener[].limits.per_ip"),
        data_deadline: read.time("listener[].timeouts.data_deadline"),
        written: read.table.clone(),
    })
}

/// Certificates that it names, or all of them.
fn chosen(read: &Reader<'_>, certificates: &[Certificate], report: &mut Report) -> Vec<usize> {
    let wanted = read.words("listener[].certificates");
    if wanted.is_empty() {
        return (0..certificates.len()).collect();
    }
    let mut about = About::new(read.table, report);
    let mut chosen = Vec::new();
    for (index, name) in wanted.iter().enumerate() {
        match certificates.iter().position(|certificate| certificate.name == *name) {
            Some(at) => chosen.push(at),
            None => {
                let known: Vec<&str> = certificates.iter().map(|certificate| certificate.name.as_str()).collect();
                let remedy = match known.is_empty() {
                    true => "add a [[tls.certificate]] table".to_owned(),
                    false => format!("write one of: {}", known.join(", ")),
                };
                let cause = format!("no [[tls.certificate]] has the name {name:?}");
                about.error_in("listener[].certificates", index, cause, remedy);
            }
        }
    }
    chosen
}

fn sender_check(word: &str) -> SenderCheck {
    match word {
        "off" => SenderCheck::Off,
        _ => SenderCheck::Enforce,
    }
}
