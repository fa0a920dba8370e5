//! Routes to next hops: from the configuration to what delivery uses. `check` makes them too, and throws them
//! away: what it finds is what delivery would.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use delivery::{HopSettings, IdleRoom, NextHops, Place, Retry, Security};
use smtp::client::{Credentials, Protocol};
use smtp::path::is_domain;
use tls::{ClientTls, Pem, Trust};
use zeroize::Zeroizing;

use crate::config::{Config, HopRoute, MxRoute, system_hostname};

/// Where systems keep the authorities that they trust.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How long a next hop that fails is left alone, at first and at most.
const BACKOFF: Retry = Retry { first: std::time::Duration::from_secs(10), max: std::time::Duration::from_secs(300) };

/// Reads `unix:run/lmtp.sock`, `relay.example.org:587`, `192.0.2.1:25`, `[2001:db8::1]:25`; otherwise says
/// what is wrong and what to write.
pub fn place(text: &str, base: &Path) -> Result<Place, (String, &'static str)> {
    let remedy = "write \"host:port\", \"[2001:db8::1]:25\" or \"unix:/run/dovecot/lmtp\"";
    if let Some(path) = text.strip_prefix("unix:") {
        return match path {
            "" => Err((format!("{text:?} names no socket"), remedy)),
            path => Ok(Place::Unix(base.join(path))),
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| (format!("{text:?} has no port"), remedy))?;
    let port = port.parse().ok().filter(|&port: &u16| port != 0);
    let port = port.ok_or_else(|| (format!("{text:?} has no port"), remedy))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match bare {
        Some(bare) => bare.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()),
        None => host.is_ascii() && is_domain(host),
    };
    let host = bare.unwrap_or(host);
    if good || (bare.is_none() && host.parse::<std::net::Ipv4Addr>().is_ok()) {
        Ok(Place::Tcp(host.to_owned(), port))
    } else {
        Err((format!("{text:?}: {host:?} is no host name and no address"), remedy))
    }
}

/// The route, and the option that is wrong when there is none.
pub fn make(config: &Config, hop: &HopRoute) -> Result<NextHops, (&'static str, String)> {
    let tls = match hop.security {
        Security::Off => None,
        Security::Opportunistic => Some(unverified()?),
        Security::Required | Security::Implicit => Some(verified(hop.authorities.as_ref())?),
    };
    let credentials = match &hop.login {
        None => None,
        Some((user, file)) => Some(Arc::new(credentials(user, file).map_err(|why| ("password_file", why))?)),
    };
    NextHops::new(HopSettings {
        places: hop.to.clone(),
        protocol: if hop.lmtp { Protocol::Lmtp } else { Protocol::Smtp },
        hostname: config.hostname.clone().unwrap_or_else(system_hostname),
        security: hop.security,
        tls,
        tls_name: hop.tls_name.clone(),
        credentials,
        connections: hop.connections,
        patience: hop.timeout,
        backoff: BACKOFF,
        pass_through: hop.pass_through,
        own: config.listeners.iter().flat_map(|listener| listener.bind.clone()).collect(),
        idle: IdleRoom::new(hop.connections),
    })
    .map_err(|why| ("to", why))
}

/// TLS that believes everybody.
fn unverified() -> Result<ClientTls, (&'static str, String)> {
    ClientTls::new(Trust::Anybody).map_err(|error| ("tls", error.to_string()))
}

/// TLS that believes these authorities, or the system's.
fn verified(file: Option<&PathBuf>) -> Result<ClientTls, (&'static str, String)> {
    let file = authorities(file).map_err(|why| ("tls_ca", why))?;
    let octets = read(&file).map_err(|why| ("tls_ca", why))?;
    ClientTls::new(Trust::Authorities(Pem { file: &file.to_string_lossy(), octets: &octets }))
        .map_err(|error| ("tls_ca", error.to_string()))
}

/// The route `mx`, and the option that is wrong when there is none. `folder` keeps MTA-STS policies.
#[cfg(feature = "mx")]
pub fn make_mx(
    config: &Config,
    mx: &MxRoute,
    folder: Option<PathBuf>,
    events: Arc<dyn delivery::Events>,
) -> Result<Arc<dyn delivery::Route>, (&'static str, String)> {
    let tls_any = unverified()?;
    // Without policies nothing is verified, and no authorities are needed.
    let verifies = mx.mta_sts_port.is_some() || mx.security == Security::Required;
    let tls_verified = if verifies { verified(mx.authorities.as_ref())? } else { tls_any.clone() };
    let hostname = config.hostname.clone().unwrap_or_else(system_hostname);
    let mut own_names = vec![hostname.clone()];
    own_names.extend(config.listeners.iter().filter_map(|listener| listener.hostname.clone()));
    let route = delivery::MxRoute::new(delivery::MxSettings {
        hostname,
        own_names,
        own: config.listeners.iter().flat_map(|listener| listener.bind.clone()).collect(),
        port: mx.port,
        security: mx.security,
        tls_any,
        tls_verified,
        sts: mx.mta_sts_port.map(|port| delivery::StsSettings { port, folder }),
        resolver: mx.resolver.clone(),
        dns_patience: mx.dns_timeout,
        allowed: mx.allow_private.clone(),
        connections: mx.connections,
        connections_per_host: mx.connections_per_host,
        patience: mx.timeout,
        backoff: BACKOFF,
        events,
    });
    Ok(Arc::new(route.map_err(|why| ("resolver", format!("{why}; name a server: resolver = [\"127.0.0.1:53\"]")))?))
}

/// The route `mx` of a program that has none.
#[cfg(not(feature = "mx"))]
pub fn make_mx(
    _: &Config,
    _: &MxRoute,
    _: Option<PathBuf>,
    _: Arc<dyn delivery::Events>,
) -> Result<Arc<dyn delivery::Route>, (&'static str, String)> {
    Err(("kind", "this program was built without direct delivery; build it with the feature `mx`".to_owned()))
}

/// Files that the route is made from, with what they hold: when they change, it must be made anew.
pub fn files_mx(mx: &MxRoute) -> Vec<(PathBuf, Option<Zeroizing<Vec<u8>>>)> {
    let file = authorities(mx.authorities.as_ref()).ok();
    file.into_iter().map(|file| (file.clone(), std::fs::read(file).ok().map(Zeroizing::new))).collect()
}

/// Files that the route is made from, with what they hold: when they change, it must be made anew.
pub fn files(hop: &HopRoute) -> Vec<(PathBuf, Option<Zeroizing<Vec<u8>>>)> {
    let verifies = matches!(hop.security, Security::Required | Security::Implicit);
    let authorities = verifies.then(|| authorities(hop.authorities.as_ref()).ok()).flatten();
    let password = hop.login.as_ref().map(|(_, file)| file.clone());
    let files = authorities.into_iter().chain(password);
    files.map(|file| (file.clone(), std::fs::read(file).ok().map(Zeroizing::new))).collect()
}

/// The list of authorities that the system keeps.
pub fn system_authorities() -> Option<PathBuf> {
    SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|file| file.is_file())
}

fn authorities(file: Option<&PathBuf>) -> Result<PathBuf, String> {
    file.cloned().or_else(system_authorities).ok_or_else(|| {
        "this system keeps no list of authorities where we look; install ca-certificates, or name a file".to_owned()
    })
}

fn credentials(user: &str, file: &Path) -> Result<Credentials, String> {
    let octets = Zeroizing::new(read(file)?);
    let text = std::str::from_utf8(&octets)
        .map_err(|_| format!("{}: is not UTF-8; write the password, one line", file.display()))?;
    let password = text.lines().next().unwrap_or_default();
    Credentials::new(user, "", password)
        .map_err(|bad| format!("{}: {bad}; write the password into its first line", file.display()))
}

/// A whole file, or why not.
pub fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file)
        .map_err(|error| format!("{}: {error}; name a file that the server's user may read", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let base = Path::new("/etc/portreeve");
        let tcp = |host: &str, port| Ok(Place::Tcp(host.to_owned(), port));
        for (text, expect) in [
            ("relay.example.org:587", tcp("relay.example.org", 587)),
            ("192.0.2.1:25", tcp("192.0.2.1", 25)),
            ("[2001:db8::1]:24", tcp("2001:db8::1", 24)),
            ("unix:/run/lmtp", Ok(Place::Unix("/run/lmtp".into()))),
            ("unix:run/lmtp", Ok(Place::Unix("/etc/portreeve/run/lmtp".into()))),
        ] {
            assert_eq!(place(text, base), expect, "{text}");
        }
        for text in ["relay.example.org", "relay.example.org:0", "a b:25", ":25", "2001:db8::1:25", "[a]:25", "unix:"] {
            assert!(place(text, base).is_err(), "{text}");
        }
    }
}
