//! Issuers of bearer tokens: from `[[tokens.issuer]]` to what the directory uses. `check` makes them too, and
//! throws them away: what it finds is what the directory would.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backend::token::{ALGORITHMS, Issuer, KeySource, Kind, parse_keys};
use zeroize::Zeroizing;

use crate::config::{Config, Reader, missing, required};
use crate::next_hop::{read, system_authorities};
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

/// Reads a table.
pub fn parse(table: &Table, base: &Path, report: &mut Report) -> Option<TokenIssuer> {
    let read = Reader { table, role: "mx", base };
    let word = required(&read, "tokens.issuer[].kind", report)?;
    for (&path, entry) in &table.entries {
        let of = match path.trim_start_matches("tokens.issuer[].") {
            "keys" | "algorithms" => "jwt",
            "url" | "client_id" | "client_secret_file" => "introspection",
            "file" => "file",
            "ca" | "timeout" | "issuer" | "audience" if word == "file" => "",
            _ => &word,
        };
        if of != word {
            let cause = format!("means nothing for kind {word:?}");
            report.error(Some(entry.span.clone()), path.replace("[]", ""), cause, "take it out");
        }
    }
    let issuer = read.text("tokens.issuer[].issuer");
    let audience = read.words("tokens.issuer[].audience");
    let kind = match word.as_str() {
        "jwt" => jwt(&read, &issuer, &audience, report)?,
        "introspection" => introspection(&read, report)?,
        _ => TokenKind::File(base.join(required(&read, "tokens.issuer[].file", report)?)),
    };
    let usual = if matches!(kind, TokenKind::Introspection { .. }) { "username" } else { "email" };
    if let Some(url) = read.text("tokens.issuer[].openid_configuration")
        && !url.starts_with("https://")
    {
        let cause = "is no https URL (RFC 7628 §3.2.2)";
        let remedy = "write https://…/.well-known/openid-configuration";
        let span = Some(table.span("tokens.issuer[].openid_configuration"));
        report.error(span, "tokens.issuer.openid_configuration", cause, remedy);
    }
    Some(TokenIssuer {
        written: table.clone(),
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
    let table = read.table;
    let keys = required(read, "tokens.issuer[].keys", report)?;
    // Without both, a token that the issuer has made for any other service would open this one.
    if issuer.is_none() {
        missing(table, "tokens.issuer[].issuer", report);
    }
    if audience.is_empty() {
        missing(table, "tokens.issuer[].audience", report);
    }
    let keys = match keys.contains("://") {
        true => KeySource::Url(url(&keys, table, "tokens.issuer[].keys", report)?),
        false => KeySource::File(read.base.join(keys)),
    };
    let algorithms = read.words("tokens.issuer[].algorithms");
    for (at, name) in algorithms.iter().enumerate() {
        if !ALGORITHMS.contains(&name.as_str()) {
            let cause = match name.starts_with("HS") {
                true => format!("{name:?}: who could check such a token could make one, too"),
                false => format!("{name:?} is no algorithm that can be used"),
            };
            let span = Some(table.element("tokens.issuer[].algorithms", at));
            let remedy = format!("write some of {}", ALGORITHMS.join(", "));
            report.error(span, "tokens.issuer.algorithms", cause, remedy);
        }
    }
    Some(TokenKind::Jwt { keys, algorithms })
}

fn introspection(read: &Reader<'_>, report: &mut Report) -> Option<TokenKind> {
    let table = read.table;
    let address = required(read, "tokens.issuer[].url", report)?;
    let url = url(&address, table, "tokens.issuer[].url", report)?;
    let client = match (read.text("tokens.issuer[].client_id"), read.path("tokens.issuer[].client_secret_file")) {
        (Some(id), Some(file)) => Some((id, file)),
        (None, None) => {
            report.warning(
                Some(table.span("tokens.issuer[].url")),
                "tokens.issuer.client_id",
                "is missing: a server that answers anybody lets anybody try tokens (RFC 7662 §4)",
                "write client_id and client_secret_file",
            );
            None
        }
        (Some(_), None) => {
            missing(table, "tokens.issuer[].client_secret_file", report);
            None
        }
        (None, Some(_)) => {
            missing(table, "tokens.issuer[].client_id", report);
            None
        }
    };
    Some(TokenKind::Introspection { url, client })
}

/// An address of the web that can be asked.
fn url(text: &str, table: &Table, path: &'static str, report: &mut Report) -> Option<String> {
    let key = path.replace("[]", "");
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    if host.is_empty() || host.contains('@') || !text.bytes().all(|octet| octet.is_ascii_graphic()) {
        let cause = format!("{text:?} is no address of a web server");
        report.error(Some(table.span(path)), key, cause, "write https://host/path, or a file");
        return None;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_matches(['[', ']']);
    let here = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if text.starts_with("http://") && !here {
        report.warning(
            Some(table.span(path)),
            key,
            "without TLS whoever is on the way decides who may log in",
            "write https://",
        );
    }
    Some(text.to_owned())
}

/// What the directory uses, and the option that is wrong when it cannot be made.
pub fn make(issuer: &TokenIssuer) -> Result<Issuer, (&'static str, String)> {
    let secure = |url: &String| url.starts_with("https://");
    let (kind, asks) = match &issuer.kind {
        TokenKind::Jwt { keys, algorithms } => {
            let asks = match keys {
                KeySource::Url(url) => secure(url),
                KeySource::File(file) => {
                    let text = read(file).map_err(|why| ("keys", why))?;
                    let bad = |why| format!("{}: {why}; write the issuer's key set (RFC 7517) into it", file.display());
                    parse_keys(&text).map_err(|why| ("keys", bad(why)))?;
                    false
                }
            };
            (Kind::Jwt { keys: keys.clone(), algorithms: algorithms.clone() }, asks)
        }
        TokenKind::Introspection { url, client } => {
            let client = match client {
                None => None,
                Some((id, file)) => {
                    let secret = secret(file).map_err(|why| ("client_secret_file", why))?;
                    Some((id.clone(), secret))
                }
            };
            (Kind::Introspection { url: url.clone(), client }, secure(url))
        }
        TokenKind::File(file) => {
            read(file).map_err(|why| ("file", why))?;
            (Kind::List(file.clone()), false)
        }
    };
    let authorities = match asks {
        false => None,
        true => {
            let file = issuer.authorities.clone().or_else(system_authorities);
            let file = file.ok_or_else(|| {
                let why =
                    "this system keeps no list of authorities where we look; install ca-certificates, or name a file";
                ("ca", why.to_owned())
            })?;
            let octets = read(&file).map_err(|why| ("ca", why))?;
            Some((file.display().to_string(), octets))
        }
    };
    Ok(Issuer {
        name: issuer.name.clone(),
        kind,
        issuer: issuer.issuer.clone(),
        audience: issuer.audience.clone(),
        claim: issuer.claim.clone(),
        scope: issuer.scope.clone(),
        openid_configuration: issuer.openid_configuration.clone(),
        skew: issuer.skew,
        authorities,
        timeout: issuer.timeout,
    })
}

/// All of a configuration; `Err` names the issuer.
pub fn make_all(config: &Config) -> Result<Vec<Issuer>, String> {
    let told = |issuer: &TokenIssuer, (option, why): (&str, String)| {
        format!("tokens.issuer {:?}: {option}: {why}", issuer.name)
    };
    config.issuers.iter().map(|issuer| make(issuer).map_err(|bad| told(issuer, bad))).collect()
}

fn secret(file: &Path) -> Result<Zeroizing<String>, String> {
    let octets = Zeroizing::new(read(file)?);
    let text = std::str::from_utf8(&octets).ok().and_then(|text| text.lines().next()).filter(|line| !line.is_empty());
    let text = text.ok_or_else(|| format!("{}: has no secret in its first line; write it there", file.display()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Files with secrets in them, by the option that names them.
pub fn secret_file(issuer: &TokenIssuer) -> Option<(&'static str, &Path)> {
    match &issuer.kind {
        TokenKind::Introspection { client: Some((_, file)), .. } => Some(("client_secret_file", file)),
        TokenKind::File(file) => Some(("file", file)),
        _ => None,
    }
}

/// What fits row by row, but not together.
pub fn contradictions(config: &Config, report: &mut Report) {
    let (key, path) = ("tokens.issuer.name", "tokens.issuer[].name");
    for (index, issuer) in config.issuers.iter().enumerate() {
        if config.issuers[..index].iter().any(|earlier| earlier.name == issuer.name) {
            let cause = format!("two issuers are called {:?}", issuer.name);
            report.error(Some(issuer.written.span(path)), key, cause, "give one of them another name");
        }
        if let TokenKind::File(_) = issuer.kind {
            let cause = "whoever can read the file can log in as everybody in it; its tokens end when you write so";
            let remedy = "keep it for tests, or for machines that have no issuer";
            report.warning(Some(issuer.written.span("tokens.issuer[].kind")), "tokens.issuer.kind", cause, remedy);
        }
    }
    for listener in &config.listeners {
        let bearer = |name: &String| name == "OAUTHBEARER" || name == "XOAUTH2";
        if let Some(at) = listener.mechanisms.iter().position(bearer)
            && config.issuers.is_empty()
            && listener.auth != smtp::listener::AuthOffer::Off
        {
            report.warning(
                Some(listener.written.element("listener[].mechanisms", at)),
                "listener.mechanisms",
                format!("{} is offered to nobody: nobody here can tell whose a token is", listener.mechanisms[at]),
                "add a [[tokens.issuer]] table, or take it out",
            );
        }
    }
}
