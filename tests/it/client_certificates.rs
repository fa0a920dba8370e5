//! Clients that show a TLS certificate: who gets in, and what is known about them.

use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::{TLS12, TLS13};

use crate::server::{Options, PATIENCE, Server};
use crate::wire::{Wire, tls_with};

/// An authority that issues to clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client's certificate and key.
    fn issue(&self, common_name: &str, mail: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let mail = mail.iter().map(|name| SanType::Rfc822Name((*name).try_into().expect("ASCII")));
        params.subject_alt_names = mail.collect();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }
}

/// A server that asks its clients for certificates of `authority`.
fn server(client_cert: &str, authority: &Authority) -> Server {
    let listener = format!("client_cert = \"{client_cert}\"\nclient_ca = \"client-ca.pem\"");
    let mut server = Server::prepare(Options { listener, ..Options::default() });
    std::fs::write(server.path("client-ca.pem"), authority.pem()).expect("the authority");
    server.run();
    server
}

/// What the records of `count` sessions say about certificates, in order.
fn recorded(server: &Server, count: usize) -> Vec<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = server.log();
        let events = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let told: Vec<_> = events
            .filter(|event| event["event"] == "session.end" && event["cipher"].is_string())
            .map(|event| event["client_certificate"].as_str().map(str::to_owned))
            .collect();
        if told.len() >= count {
            return told;
        }
        assert!(Instant::now() < deadline, "{} of {count} records\n{log}", told.len());
        std::thread::sleep(std::time::Duration::from_millis(10)); // between two looks, not instead of one
    }
}

#[test]
fn a_certificate_that_is_requested_lets_everybody_in_and_is_recorded() {
    let (known, unknown) = (Authority::new("Ours"), Authority::new("Somebody's"));
    let server = server("request", &known);
    for version in [&TLS12, &TLS13] {
        for own in [None, Some(known.issue("alice", &[])), Some(unknown.issue("alice", &[]))] {
            let config = tls_with(&server, &[version], own);
            let mut wire = Wire::connect(server.submissions(), true, config).expect("a handshake");
            assert!(wire.reply().expect("a greeting").is_some_and(|reply| reply.starts_with("220 ")));
            assert!(wire.ask("EHLO client.example").expect("a reply").starts_with("250-"));
            assert!(wire.ask("QUIT").expect("a reply").starts_with("221 "));
        }
    }
    let each = [None, Some("verified".to_owned()), Some("unverified".to_owned())];
    assert_eq!(recorded(&server, 6), [each.clone(), each].concat());
}

#[test]
fn a_certificate_that_is_required_keeps_everybody_else_out() {
    let (known, unknown) = (Authority::new("Ours"), Authority::new("Somebody's"));
    let server = server("require", &known);
    for version in [&TLS12, &TLS13] {
        for own in [None, Some(unknown.issue("alice", &[]))] {
            let config = tls_with(&server, &[version], own);
            // In TLS 1.3 the client is through before the server has looked at its certificate.
            let greeting = Wire::connect(server.submissions(), true, config).and_then(|mut wire| wire.reply());
            let error = greeting.expect_err("no greeting").to_string();
            assert!(error.contains("alert"), "{error}");
        }
        let config = tls_with(&server, &[version], Some(known.issue("alice", &[])));
        let mut wire = Wire::connect(server.submission(), false, config).expect("a connection");
        wire.reply().expect("a greeting");
        wire.ask("EHLO client.example").expect("a reply");
        assert!(wire.ask("STARTTLS").expect("a reply").starts_with("220 2.0.0"));
        wire.enter_tls().expect("a handshake");
        assert!(wire.ask("EHLO client.example").expect("a reply").starts_with("250-"));
        assert!(wire.ask("QUIT").expect("a reply").starts_with("221 "));
    }
    assert_eq!(recorded(&server, 2), [Some("verified".to_owned()), Some("verified".to_owned())]);
}
