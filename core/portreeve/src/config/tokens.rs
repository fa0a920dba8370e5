//! `[[tokens.issuer]]`: whose bearer tokens are taken, and how they are checked. What the directory makes of it is in
//! [`crate::tokens`].

use std::path::PathBuf;
use std::time::Duration;

use backend::token::{ALGORITHMS, KeySource};
use smtp::listener::AuthOffer;

use super::Config;
use super::reader::{About, Reader, called_twice};
use crate::report::Report;
use crate::values::Table;

/// `[[tokens.issuer]]`.
#[derive(Clone, Debug)]
pub struct TokenIssuer {
    /// Its table as written.
    pub written: Table,
    /// Unique.
    pub name: String,
    /// How its tokens are checked.
    pub kind: TokenKind,
    /// `iss`.
    pub issuer: Option<String>,
    /// `aud`.
    pub audience: Vec<String>,
    /// Which claim names the user.
    pub claim: String,
    /// What a token must be good for.
    pub scope: Option<String>,
    /// Where clients learn how to get one.
    pub openid_configuration: Option<String>,
    /// How much clocks may differ.
    pub skew: Duration,
    /// Who vouches for its server; `None`: whom the system trusts.
    pub authorities: Option<PathBuf>,
    /// For one answer.
    pub timeout: Duration,
}

/// How tokens are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// By their signature.
    Jwt {
        /// Where the keys are.
        keys: KeySource,
        /// With which signatures.
        algorithms: Vec<String>,
    },
    /// By asking.
    Introspection {
        /// Whom.
        url: String,
        /// Our id, and the file with our secret.
        client: Option<(String, PathBuf)>,
    },
    /// By a file.
    File(PathBuf),
}

pub(super) fn read(read: &Reader<'_>, report: &mut Report) -> Option<TokenIssuer> {
    let word = read.required("tokens.issuer[].kind", report)?;
    for &path in read.table.entries.keys() {
        let of = match path.trim_start_matches("tokens.issuer[].") {
            "keys" | "algorithms" => "jwt",
            "url" | "client_id" | "client_secret_file" => "introspection",
            "file" => "file",
            "ca" | "timeout" | "issuer" | "audience" if word == "file" => "",
            _ => &word,
        };
        if of != word {
            let cause = format!("means nothing for kind {word:?}");
            About::new(read.table, report).error(path, cause, "take it out");
        }
    }
    let issuer = read.text("tokens.issuer[].issuer");
    let audience = read.words("tokens.issuer[].audience");
    let kind = match word.as_str() {
        "jwt" => jwt(read, &issuer, &audience, report)?,
        "introspection" => introspection(read, report)?,
        _ => TokenKind::File(read.base.join(read.required("tokens.issuer[].file", report)?)),
    };
    let usual = if matches!(kind, TokenKind::Introspection { .. }) { "username" } else { "email" };
    if let Some(url) = read.text("tokens.issuer[].openid_configuration")
        && !url.starts_with("https://")
    {
        let cause = "is no https URL (RFC 7628 §3.2.2)";
        let remedy = "write https://…/.well-known/openid-configuration";
        About::new(read.table, report).error("tokens.issuer[].openid_configuration", cause, remedy);
    }
    Some(TokenIssuer {
        written: read.table.clone(),
        name: read.text("tokens.issuer[].name").or_else(|| issuer.clone()).unwrap_or(word),
        kind,
        issuer,
        audience,
        claim: read.text("tokens.issuer[].claim").unwrap_or_else(|| usual.to_owned()),
        scope: read.text("tokens.issuer[].scope"),
        openid_configuration: read.text("tokens.issuer[].openid_configuration"),
        skew: read.time("tokens.issuer[].skew"),
        authorities: read.path("tokens.issuer[].ca"),
        timeout: read.time("tokens.issuer[].timeout"),
    })
}

fn jwt(read: &Reader<'_>, issuer: &Option<String>, audience: &[String], report: &mut Report) -> Option<TokenKind> {
    let keys = read.required("tokens.issuer[].keys", report)?;
    let mut about = About::new(read.table, report);
    // Without both, a token that the issuer has made for any other service would open this one.
    if issuer.is_none() {
        about.missing("tokens.issuer[].issuer");
    }
    if audience.is_empty() {
        about.missing("tokens.issuer[].audience");
    }
    let keys = match keys.contains("://") {
        true => KeySource::Url(url(&keys, "tokens.issuer[].keys", &mut about)?),
        false => KeySource::File(read.base.join(keys)),
    };
    let algorithms = read.words("tokens.issuer[].algorithms");
    for (at, name) in algorithms.iter().enumerate() {
        if !ALGORITHMS.contains(&name.as_str()) {
            let cause = match name.starts_with("HS") {
                true => format!("{name:?}: who could check such a token could make one, too"),
                false => format!("{name:?} is no algorithm that can be used"),
            };
            let remedy = format!("write some of {}", ALGORITHMS.join(", "));
            about.error_in("tokens.issuer[].algorithms", at, cause, remedy);
        }
    }
    Some(TokenKind::Jwt { keys, algorithms })
}

fn introspection(read: &Reader<'_>, report: &mut Report) -> Option<TokenKind> {
    let address = read.required("tokens.issuer[].url", report)?;
    let url = url(&address, "tokens.issuer[].url", &mut About::new(read.table, report))?;
    let client = match (read.text("tokens.issuer[].client_id"), read.path("tokens.issuer[].client_secret_file")) {
        (Some(id), Some(file)) => Some((id, file)),
        (None, None) => {
            report.warning(
                // There is no better place for what is not there.
                Some(read.table.span("tokens.issuer[].url")),
                "tokens.issuer.client_id",
                "is missing: a server that answers anybody lets anybody try tokens (RFC 7662 §4)",
                "write client_id and client_secret_file",
            );
            None
        }
        (Some(_), None) => {
            About::new(read.table, report).missing("tokens.issuer[].client_secret_file");
            None
        }
        (None, Some(_)) => {
            About::new(read.table, report).missing("tokens.issuer[].client_id");
            None
        }
    };
    Some(TokenKind::Introspection { url, client })
}

/// An address of the web that can be asked.
fn url(text: &str, path: &str, about: &mut About<'_>) -> Option<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    if host.is_empty() || host.contains('@') || !text.bytes().all(|octet| octet.is_ascii_graphic()) {
        let cause = format!("{text:?} is no address of a web server");
        about.error(path, cause, "write https://host/path, or a file");
        return None;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_matches(['[', ']']);
    let here = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if text.starts_with("http://") && !here {
        about.warning(path, "without TLS whoever is on the way decides who may log in", "write https://");
    }
    Some(text.to_owned())
}

pub(super) fn check(config: &Config, report: &mut Report) {
    for issuer in called_twice(&config.issuers, |issuer| &issuer.name) {
        let cause = format!("two issuers are called {:?}", issuer.name);
        About::new(&issuer.written, report).error("tokens.issuer[].name", cause, "give one of them another name");
    }
    for issuer in config.issuers.iter().filter(|issuer| matches!(issuer.kind, TokenKind::File(_))) {
        About::new(&issuer.written, report).warning(
            "tokens.issuer[].kind",
            "whoever can read the file can log in as everybody in it; its tokens end when you write so",
            "keep it for tests, or for machines that have no issuer",
        );
    }
    for listener in config.listeners.iter().filter(|listener| listener.auth != AuthOffer::Off) {
        let bearer = |name: &String| name == "OAUTHBEARER" || name == "XOAUTH2";
        if let Some(at) = listener.mechanisms.iter().position(bearer)
            && config.issuers.is_empty()
        {
            About::new(&listener.written, report).warning_in(
                "listener[].mechanisms",
                at,
                format!("{} is offered to nobody: nobody here can tell whose a token is", listener.mechanisms[at]),
                "add a [[tokens.issuer]] table, or take it out",
            );
        }
    }
}
