//! `[[route]]`: what happens to mail, by the recipient's domain.
//!
//! ```text
//! kind = "maildir"        path
//! kind = "lmtp", "smtp"   to, tls, login, connections …      read_hop
//! kind = "mx"             tls, resolver, MTA-STS …           read_mx
//! kind = "discard"
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use delivery::Security;
use ipnet::IpNet;

use super::Config;
use super::reader::{About, Reader, called_twice};
use crate::report::Report;
use crate::values::Table;

/// `[[route]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its table as written.
    pub written: Table,
    /// A domain, or `*`.
    pub domain: String,
    /// What happens to the mail.
    pub kind: RouteKind,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Into Maildirs; a template of [`delivery::Maildir`].
    Maildir(String),
    /// To another server.
    NextHop(HopRoute),
    /// To the hosts that the DNS names.
    Mx(MxRoute),
    /// Thrown away.
    Discard,
}

/// A route to another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopRoute {
    /// LMTP, not SMTP.
    pub lmtp: bool,
    /// Next hops, best first.
    pub to: Vec<delivery::Place>,
    /// Whether TLS is used.
    pub security: Security,
    /// Authorities; `None`: the system's.
    pub authorities: Option<PathBuf>,
    /// The name in the certificate; `None`: the host's.
    pub tls_name: Option<String>,
    /// User, and the file with the password.
    pub login: Option<(String, PathBuf)>,
    /// Connections at the same time.
    pub connections: usize,
    /// Longest wait for a reply.
    pub timeout: Duration,
    /// Clients wait for the next hop's reply.
    pub pass_through: bool,
}

/// Direct delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxRoute {
    /// Of the hosts.
    pub port: u16,
    /// Whether TLS is used where no policy asks for it.
    pub security: Security,
    /// Authorities; `None`: the system's.
    pub authorities: Option<PathBuf>,
    /// Connections at the same time.
    pub connections: usize,
    /// Of these, to one host.
    pub connections_per_host: usize,
    /// Longest wait for a reply.
    pub timeout: Duration,
    /// Name servers; empty: the system's.
    pub resolver: Vec<SocketAddr>,
    /// Longest wait for one of their answers.
    pub dns_timeout: Duration,
    /// Open although they are not public.
    pub allow_private: Vec<IpNet>,
    /// The port of policy hosts; `None`: MTA-STS is not looked at.
    pub mta_sts_port: Option<u16>,
}

pub(super) fn read(read: &Reader<'_>, report: &mut Report) -> Option<Route> {
    let word = read.required("route[].kind", report)?;
    let hop = matches!(word.as_str(), "lmtp" | "smtp");
    let mx = word == "mx";
    let mut about = About::new(read.table, report);
    for &path in read.table.entries.keys() {
        let fits = match path {
            "route[].domain" | "route[].kind" => true,
            "route[].path" => word == "maildir",
            // It has a default everywhere.
            "route[].timeout" => true,
            "route[].pass_through" => hop || !read.flag(path),
            "route[].tls" | "route[].tls_ca" | "route[].connections" => hop || mx,
            "route[].connections_per_host"
            | "route[].resolver"
            | "route[].dns_timeout"
            | "route[].mta_sts"
            | "route[].mta_sts_port"
            | "route[].allow_private"
            | "route[].port" => mx,
            _ => hop,
        };
        if !fits {
            let cause = format!("means nothing for kind {word:?}");
            about.error(path, cause, "take it out");
        }
    }
    let kind = match word.as_str() {
        "discard" => RouteKind::Discard,
        "maildir" => RouteKind::Maildir(maildir(read, report)?),
        "mx" => RouteKind::Mx(read_mx(read, report)),
        _ => RouteKind::NextHop(read_hop(read, word == "lmtp", report)?),
    };
    Some(Route { written: read.table.clone(), domain: read.word("route[].domain"), kind })
}

fn maildir(read: &Reader<'_>, report: &mut Report) -> Option<String> {
    let path = read.required("route[].path", report)?;
    // Only what the operator wrote is a template; the folder that it starts at is not.
    let base = read.base.to_string_lossy().replace('%', "%%");
    let template = Path::new(&base).join(&path).to_string_lossy().into_owned();
    if let Err(bad) = delivery::Maildir::new(&template, delivery::LineEnd::Lf) {
        let (cause, remedy) = crate::certificates::halves(&bad.to_string());
        About::new(read.table, report).error("route[].path", cause, remedy);
    }
    Some(template)
}

fn read_hop(read: &Reader<'_>, lmtp: bool, report: &mut Report) -> Option<HopRoute> {
    let mut about = About::new(read.table, report);
    let words = read.words("route[].to");
    if words.is_empty() {
        about.missing("route[].to");
        return None;
    }
    let mut to = Vec::new();
    for (at, word) in words.iter().enumerate() {
        match crate::next_hop::place(word, read.base) {
            Ok(place) => to.push(place),
            Err((cause, remedy)) => {
                about.error_in("route[].to", at, cause, remedy);
            }
        }
    }
    let security = match read.text("route[].tls").as_deref() {
        Some("off") => Security::Off,
        Some("opportunistic") => Security::Opportunistic,
        Some("required") => Security::Required,
        Some("implicit") => Security::Implicit,
        _ if lmtp => Security::Off,
        _ => Security::Opportunistic,
    };
    let verifies = matches!(security, Security::Required | Security::Implicit);
    for path in ["route[].tls_ca", "route[].tls_name"] {
        if read.is_written(path) && !verifies {
            let remedy = "write tls = \"required\" or \"implicit\", or take it out";
            about.error(path, "no certificate is verified", remedy);
        }
    }
    let login = match (read.text("route[].user"), read.path("route[].password_file")) {
        (Some(user), Some(file)) => Some((user, file)),
        (None, None) => None,
        (Some(_), None) => {
            about.missing("route[].password_file");
            None
        }
        (None, Some(_)) => {
            about.missing("route[].user");
            None
        }
    };
    let in_clear = security == Security::Off && to.iter().any(|place| matches!(place, delivery::Place::Tcp(..)));
    if login.is_some() && in_clear {
        about.warning(
            "route[].user",
            "without TLS no password is sent: the next hop must offer SCRAM-SHA-256 or CRAM-MD5",
            "write tls = \"required\"",
        );
    }
    Some(HopRoute {
        lmtp,
        to,
        security,
        authorities: read.path("route[].tls_ca"),
        tls_name: read.text("route[].tls_name"),
        login,
        connections: read.number("route[].connections").map_or(4, |count| count as usize),
        timeout: read.time("route[].timeout"),
        pass_through: read.flag("route[].pass_through"),
    })
}

fn read_mx(read: &Reader<'_>, report: &mut Report) -> MxRoute {
    let mut about = About::new(read.table, report);
    let number = |path: &str, otherwise: u64| read.number(path).unwrap_or(otherwise);
    let port = |path: &str, otherwise: u64| u16::try_from(number(path, otherwise)).unwrap_or(u16::MAX);
    let count = |path: &str, otherwise: u64| usize::try_from(number(path, otherwise)).unwrap_or(1);
    let security = match read.text("route[].tls").as_deref() {
        Some("off") => Security::Off,
        Some("required") => Security::Required,
        Some("implicit") => {
            let remedy = "write \"opportunistic\" or \"required\"";
            let cause = "hosts that the DNS names listen on port 25, where TLS begins with STARTTLS";
            about.error("route[].tls", cause, remedy);
            Security::Required
        }
        _ => Security::Opportunistic,
    };
    let mta_sts = !read.is_written("route[].mta_sts") || read.flag("route[].mta_sts");
    for (path, fits) in
        [("route[].tls_ca", mta_sts || security == Security::Required), ("route[].mta_sts_port", mta_sts)]
    {
        if read.is_written(path) && !fits {
            let remedy = "take it out, or do not write mta_sts = false";
            about.error(path, "no certificate is verified", remedy);
        }
    }
    let connections = count("route[].connections", 50);
    MxRoute {
        port: port("route[].port", 25),
        security,
        authorities: read.path("route[].tls_ca"),
        connections,
        connections_per_host: count("route[].connections_per_host", 5).min(connections),
        timeout: read.time("route[].timeout"),
        resolver: read.addresses("route[].resolver"),
        dns_timeout: Duration::from_millis(number("route[].dns_timeout", 5000)),
        allow_private: read.networks("route[].allow_private"),
        mta_sts_port: mta_sts.then(|| port("route[].mta_sts_port", 443)),
    }
}

pub(super) fn check(config: &Config, report: &mut Report) {
    for route in called_twice(&config.routes, |route| &route.domain) {
        let cause = format!("two routes for {:?}: the second is never taken", route.domain);
        About::new(&route.written, report).error("route[].domain", cause, "take one of them out");
    }
    for route in &config.routes {
        match &route.kind {
            RouteKind::NextHop(hop) => check_hop(config, route, hop, report),
            RouteKind::Discard if !config.allow_data_loss => About::new(&route.written, report).error(
                "route[].kind",
                "\"discard\" loses mail",
                "write kind = \"maildir\", or allow_data_loss = true at the top of the file (benches only)",
            ),
            _ => {}
        }
    }
}

/// A next hop must not be this server.
fn check_hop(config: &Config, route: &Route, hop: &HopRoute, report: &mut Report) {
    let binds = || config.listeners.iter().flat_map(|listener| &listener.bind);
    let mut about = About::new(&route.written, report);
    for (at, place) in hop.to.iter().enumerate() {
        let delivery::Place::Tcp(host, port) = place else { continue };
        // Names that this server calls itself by. What other names lead to is not looked at, here or in delivery.
        let named = config.listeners.iter().any(|listener| config.hostname_of(listener).eq_ignore_ascii_case(host));
        let ip = host.parse::<std::net::IpAddr>().ok();
        let own = |bind: &SocketAddr| {
            let here = ip.is_some_and(|ip| bind.ip() == ip || (bind.ip().is_unspecified() && ip.is_loopback()));
            bind.port() == *port && (here || named)
        };
        if binds().any(own) {
            about.error_in(
                "route[].to",
                at,
                format!("{place} is this server itself: mail would go round"),
                "name the server that mail goes to next",
            );
        }
    }
}
