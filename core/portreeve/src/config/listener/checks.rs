//! What fits row by row in a listener's table, but not together, or not with the rest of the file.

use std::net::SocketAddr;

use smtp::listener::{AuthOffer, Role, Tls};

use super::{ClientCert, Listener};
use crate::config::Config;
use crate::config::reader::{About, called_twice};
use crate::report::Report;

pub fn check(config: &Config, report: &mut Report) {
    if config.listeners.is_empty() {
        let remedy = "add a [[listener]] table, or let `portreeve init` write a file";
        report.error(None, "listener", "there is none: nothing would be served", remedy);
    }
    for listener in called_twice(&config.listeners, |listener| &listener.name) {
        let cause = format!("two listeners are called {:?}", listener.name);
        About::new(&listener.written, report).error("listener[].name", cause, "give one of them another name");
    }
    for (index, listener) in config.listeners.iter().enumerate() {
        addresses(listener, &config.listeners[..index], report);
        tls(config, listener, report);
        client_certificates(listener, report);
        auth(listener, report);
        networks(listener, report);
        mail(config, listener, report);
    }
}

fn addresses(listener: &Listener, earlier: &[Listener], report: &mut Report) {
    let mut about = About::new(&listener.written, report);
    if listener.bind.is_empty() {
        about.error("listener[].bind", "is empty", "write an address, like [\"0.0.0.0:25\"]");
    }
    for (at, address) in listener.bind.iter().enumerate() {
        if address.port() == 0 {
            let remedy = "write the port, 25, 587 or 465";
            about.error_in("listener[].bind", at, format!("{address} has no port"), remedy);
        }
        let clash = |other: &SocketAddr| {
            other.port() == address.port()
                && other.is_ipv4() == address.is_ipv4()
                && (other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified())
        };
        if let Some(other) = earlier.iter().find(|other| other.bind.iter().any(clash)) {
            about.error_in(
                "listener[].bind",
                at,
                format!("{address} is taken by the listener {:?}", other.name),
                "give one of them another address or port",
            );
        } else if listener.bind[..at].iter().any(clash) {
            about.error_in(
                "listener[].bind",
                at,
                format!("{address} is covered by another address of this listener"),
                "take one of them out",
            );
        }
    }
}

fn tls(config: &Config, listener: &Listener, report: &mut Report) {
    let mut about = About::new(&listener.written, report);
    match (listener.role, listener.tls) {
        (Role::Submissions, Tls::Off | Tls::StartTls) => about.error(
            "listener[].tls",
            "the role \"submissions\" is TLS from the first octet (RFC 8314 §3.3)",
            "write tls = \"implicit\", or role = \"submission\"",
        ),
        (Role::Mx, Tls::Implicit) => {
            about.error("listener[].tls", "other hosts do not speak implicit TLS to an mx", "write tls = \"starttls\"")
        }
        _ => {}
    }
    // Names that were not found have been told already.
    if listener.tls != Tls::Off && config.certificates.is_empty() {
        let how = if listener.tls == Tls::Implicit { "implicit TLS" } else { "STARTTLS" };
        about.error(
            "listener[].tls",
            format!("the listener {:?} wants {how}, but there is no certificate", listener.name),
            "add a [[tls.certificate]] table with cert and key, or write tls = \"off\"",
        );
    }
    if listener.require_tls && listener.tls == Tls::Off {
        about.error(
            "listener[].require_tls",
            "nobody could get past it: the listener has no TLS",
            "write require_tls = false, or tls = \"starttls\"",
        );
    }
    if listener.require_tls && listener.role == Role::Mx {
        about.warning(
            "listener[].require_tls",
            "a public mx must not refuse mail in clear (RFC 3207 §4)",
            "write require_tls = false unless only known hosts deliver here",
        );
    }
}

fn client_certificates(listener: &Listener, report: &mut Report) {
    let mut about = About::new(&listener.written, report);
    if listener.client_cert == ClientCert::Off {
        if listener.client_ca.is_some() {
            about.warning(
                "listener[].client_ca",
                "is not used: clients are not asked for a certificate",
                "write client_cert = \"request\", or take it out",
            );
        }
    } else if listener.tls == Tls::Off {
        about.error(
            "listener[].client_cert",
            "clients show certificates in TLS, and the listener has none",
            "write tls = \"starttls\", or take it out",
        );
    } else if listener.client_ca.is_none() {
        let remedy = "write client_ca = \"client-ca.pem\", the file of the authorities";
        match listener.client_cert {
            ClientCert::Require => {
                let cause = "nobody could get in: without client_ca no certificate can be verified";
                about.error("listener[].client_cert", cause, remedy);
            }
            _ => {
                let cause = "without client_ca no certificate is ever verified";
                about.warning("listener[].client_cert", cause, remedy);
            }
        }
    } else if listener.client_cert == ClientCert::Require && listener.role == Role::Mx {
        about.warning(
            "listener[].client_cert",
            "other hosts have no certificate of your authorities: they cannot use TLS here",
            "write \"request\" unless only known hosts deliver here",
        );
    }
    let verifies = listener.client_cert != ClientCert::Off && listener.client_ca.is_some();
    if let Some(at) = listener.mechanisms.iter().position(|name| name == "EXTERNAL")
        && listener.auth != AuthOffer::Off
        && !verifies
    {
        about.warning_in(
            "listener[].mechanisms",
            at,
            "EXTERNAL is offered to nobody: it needs a verified client certificate",
            "write client_cert = \"request\" and client_ca, or take it out",
        );
    }
}

fn auth(listener: &Listener, report: &mut Report) {
    let mut about = About::new(&listener.written, report);
    if listener.require_auth && listener.auth == AuthOffer::Off {
        about.error(
            "listener[].auth",
            "nobody could get past require_auth: AUTH is off",
            "write auth = \"after-tls\", or require_auth = false",
        );
    }
    if listener.auth != AuthOffer::Off && listener.tls == Tls::Off && listener.cleartext_auth_nets.is_empty() {
        let blocked = listener.require_auth;
        let (cause, remedy) = (
            "AUTH is offered inside TLS only, and the listener has none",
            "write tls = \"starttls\", auth = \"off\", or name networks in cleartext_auth_nets",
        );
        if blocked {
            about.error("listener[].auth", cause, remedy);
        } else {
            about.warning("listener[].auth", cause, remedy);
        }
    }
    if listener.auth != AuthOffer::Off && listener.mechanisms.is_empty() && !listener.mechanisms_auto {
        about.error(
            "listener[].mechanisms",
            "is empty, but AUTH is offered",
            "write [\"PLAIN\", \"LOGIN\"], or auth = \"off\"",
        );
    }
    let anonymous = listener.mechanisms.iter().position(|name| name == "ANONYMOUS");
    match (listener.anonymous, anonymous) {
        (true, Some(_)) => about.warning(
            "listener[].anonymous",
            "whoever connects may leave mail for local users under any foreign name",
            "take it out unless that is what this listener is for",
        ),
        (true, None) => about.warning(
            "listener[].anonymous",
            "means nothing: no mechanism here is anonymous",
            "add \"ANONYMOUS\" to mechanisms and \"legacy\" to plugins.load, or take it out",
        ),
        (false, Some(at)) if listener.auth != AuthOffer::Off => about.warning_in(
            "listener[].mechanisms",
            at,
            "ANONYMOUS is offered to nobody: the listener does not permit it",
            "write anonymous = \"local\", or take it out",
        ),
        _ => {}
    }
}

/// Who is treated differently must not be everybody.
fn networks(listener: &Listener, report: &mut Report) {
    let mut about = About::new(&listener.written, report);
    for (at, network) in listener.cleartext_auth_nets.iter().enumerate() {
        if network.prefix_len() == 0 {
            about.warning_in(
                "listener[].cleartext_auth_nets",
                at,
                format!("{network} lets everybody send passwords in clear"),
                "name only networks that nobody listens in",
            );
        }
    }
    for (at, network) in listener.exempt_nets.iter().enumerate() {
        if network.prefix_len() == 0 {
            about.warning_in(
                "listener[].exempt_nets",
                at,
                format!("{network} takes limits and penalties away for everybody"),
                "name only hosts that you run",
            );
        }
    }
}

/// Mail that is taken must have somewhere to go, and come from somebody who may send it there.
fn mail(config: &Config, listener: &Listener, report: &mut Report) {
    let mut about = About::new(&listener.written, report);
    if listener.any_recipient {
        about.warning(
            "listener[].recipients",
            "\"any\" takes mail for people who do not exist: bounces go to forged senders",
            "write \"directory\" unless the next hop says no before we say 250",
        );
    }
    if listener.role == Role::Mx && listener.domains.is_empty() {
        about.warning(
            "listener[].domains",
            format!("the mx {:?} has no domains: it takes no mail from strangers", listener.name),
            "write domains = [\"example.org\"]",
        );
    }
    for (at, domain) in listener.domains.iter().enumerate() {
        if config.route_of(domain).is_none() {
            about.error_in(
                "listener[].domains",
                at,
                format!("no route takes mail for {domain}"),
                format!("add a [[route]] table with domain = \"{domain}\" or \"*\""),
            );
        }
    }
    // Whoever has authenticated may write anywhere.
    if listener.auth != AuthOffer::Off && config.route_of("*").is_none() {
        let who = &listener.name;
        about.error(
            "route",
            format!("the listener {who:?} relays for the authenticated, but no route takes mail for other domains"),
            "add a [[route]] table with domain = \"*\", or write auth = \"off\"",
        );
    }
    if !listener.require_auth && listener.role.is_submission() {
        about.warning(
            "listener[].require_auth",
            "strangers may submit mail for local domains here",
            "write require_auth = true",
        );
    }
}
