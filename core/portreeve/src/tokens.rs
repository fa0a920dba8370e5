//! Issuers of bearer tokens: from `[[tokens.issuer]]` to what the directory uses. `check` makes them too, and
//! throws them away: what it finds is what the directory would.

use std::path::Path;

use backend::token::{Issuer, KeySource, Kind, parse_keys};
use zeroize::Zeroizing;

use crate::config::{Config, TokenIssuer, TokenKind};
use crate::next_hop::{read, system_authorities};

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
