//! Clients that show a TLS certificate: who gets in, and what is known about them.

use std::process::Command;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::{TLS12, TLS13};

use crate::bare::DOMAIN;
use crate::clients::{command_exists, present};
use crate::server::{Options, PATIENCE, Server, feed};
use crate::wire::{Wire, tls_with};

/// An authority that issues to clients.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client's certificate and key.
    pub fn issue(&self, common_name: &str, mail: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        self.issue_with(common_name, mail.iter().map(|name| SanType::Rfc822Name((*name).try_into().expect("ASCII"))))
    }

    /// The same, with URIs as its alternative names.
    fn issue_uris(&self, common_name: &str, uris: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        self.issue_with(common_name, uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))))
    }

    fn issue_with(
        &self,
        common_name: &str,
        names: impl Iterator<Item = SanType>,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = names.collect();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }
}

/// A server that asks its clients for certificates of `authority`; not running yet.
pub fn prepare(client_cert: &str, authority: &Authority) -> Server {
    let listener = format!("client_cert = \"{client_cert}\"\nclient_ca = \"client-ca.pem\"");
    let mechanisms = vec!["EXTERNAL", "PLAIN"];
    let server = Server::prepare(Options { listener, mechanisms, ..Options::default() });
    std::fs::write(server.path("client-ca.pem"), authority.pem()).expect("the authority");
    server
}

fn server(client_cert: &str, authority: &Authority) -> Server {
    let mut server = prepare(client_cert, authority);
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
    let mut sessions = 0;
    for version in [&TLS12, &TLS13] {
        for (own, wanted) in [
            (None, None),
            (Some(known.issue("alice", &[])), Some("verified")),
            (Some(unknown.issue("alice", &[])), Some("unverified")),
        ] {
            let config = tls_with(&server, &[version], own);
            let mut wire = Wire::connect(server.submissions(), true, config).expect("a handshake");
            assert!(wire.reply().expect("a greeting").is_some_and(|reply| reply.starts_with("220 ")));
            assert!(wire.ask("EHLO client.example").expect("a reply").starts_with("250-"));
            assert!(wire.ask("QUIT").expect("a reply").starts_with("221 "));
            sessions += 1;
            // One after the other: event loops write their records as they come to it.
            assert_eq!(recorded(&server, sessions).last(), Some(&wanted.map(str::to_owned)));
        }
    }
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

/// EXTERNAL (RFC 4422 appendix A): the certificate is the credential, the users file says whose it is.
#[test]
fn external_logs_in_whom_the_users_file_names() {
    let (known, unknown) = (Authority::new("Ours"), Authority::new("Somebody's"));
    let mut server = prepare("request", &known);
    let by_key = known.issue("a key", &[]);
    let users = format!(
        "alice@{DOMAIN}::cert=mail:alice@{DOMAIN},cn:shared authzids=@{DOMAIN}\n\
         bob@{DOMAIN}::cert=cn:shared,spki:{} \n\
         carol@{DOMAIN}::cert=cn:carol disabled\n",
        spki(&by_key.0)
    );
    std::fs::write(server.path("state/auth/users"), users).expect("the users file");
    server.run();
    let mail = format!("alice@{DOMAIN}");
    for (own, authzid, wanted) in [
        (Some(known.issue("x", &[&mail])), "", "235 2.7.0"),
        (Some(known.issue("x", &[&mail])), "alice@demo.test", "235 2.7.0"),
        (Some(known.issue("x", &[&mail])), "bob@demo.test", "235 2.7.0"),
        (Some(known.issue("x", &[&mail])), "nobody@demo.test", "535 5.7.8"),
        (Some(by_key), "", "235 2.7.0"),
        (Some(known.issue("a key", &[])), "", "535 5.7.8"),
        (Some(known.issue("shared", &[])), "", "535 5.7.8"),
        (Some(known.issue("shared", &[])), "bob@demo.test", "235 2.7.0"),
        (Some(known.issue("carol", &[])), "", "525 5.7.13"),
        (Some(known.issue("nobody", &["eve@demo.test"])), "", "535 5.7.8"),
        (Some(known.issue("nobody", &["alice@demo.test\0.evil.example"])), "", "535 5.7.8"),
        // Not offered is not there.
        (Some(unknown.issue("x", &[&mail])), "", "504 5.5.4"),
        (None, "", "504 5.5.4"),
    ] {
        for version in [&TLS12, &TLS13] {
            let own = own.as_ref().map(|(certificate, key)| (certificate.clone(), key.clone_key()));
            let mut wire = Wire::connect(server.submissions(), true, tls_with(&server, &[version], own)).expect("TLS");
            wire.reply().expect("a greeting");
            let said = wire.ask("EHLO client.example").expect("EHLO");
            assert_eq!(said.contains("AUTH EXTERNAL PLAIN\r\n"), !wanted.starts_with("504"), "{said}");
            let message = if authzid.is_empty() { "=".to_owned() } else { STANDARD.encode(authzid) };
            let reply = wire.ask(&format!("AUTH EXTERNAL {message}")).expect("a reply");
            assert!(reply.starts_with(wanted), "{authzid:?}: {reply}");
            if wanted == "235 2.7.0" && authzid.is_empty() {
                let from = wire.ask("MAIL FROM:<eve@demo.test>").expect("a reply");
                assert!(from.starts_with("550 5.7.1"), "an identity with its own rights: {from}");
            }
        }
    }
}

/// A URI as the certificate has it (SPIFFE and its like) names whoever the users file says, whole and to the octet.
#[test]
fn external_by_a_uri_in_the_certificate() {
    let known = Authority::new("Ours");
    let mut server = prepare("request", &known);
    let users = format!(
        "alice@{DOMAIN}::cert=uri:spiffe://demo.test/mail/alice,uri:urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6\n\
         bob@{DOMAIN}::cert=uri:spiffe://demo.test/mail/bob\n"
    );
    std::fs::write(server.path("state/auth/users"), users).expect("the users file");
    server.run();
    const ALICE: &str = "spiffe://demo.test/mail/alice";
    const BOB: &str = "spiffe://demo.test/mail/bob";
    for (name, uris, authzid, wanted) in [
        ("x", &[ALICE][..], "", "235 2.7.0"),
        ("x", &[ALICE], "alice@demo.test", "235 2.7.0"),
        ("x", &["urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"], "", "235 2.7.0"),
        ("x", &["https://demo.test/", ALICE], "", "235 2.7.0"),
        ("x", &[ALICE], "bob@demo.test", "535 5.7.8"),
        // Two users' at once: the client has to say which.
        ("x", &[ALICE, BOB], "", "535 5.7.8"),
        ("x", &[ALICE, BOB], "bob@demo.test", "235 2.7.0"),
        ("x", &["spiffe://demo.test/mail/alice/"], "", "535 5.7.8"),
        ("x", &["spiffe://demo.test/mail/alic"], "", "535 5.7.8"),
        ("x", &["spiffe://demo.test/mail/alice?"], "", "535 5.7.8"),
        ("x", &["spiffe://DEMO.test/mail/alice"], "", "535 5.7.8"),
        ("x", &["uri:spiffe://demo.test/mail/alice"], "", "535 5.7.8"),
        ("x", &["spiffe://demo.test/mail/alice\0.evil.example"], "", "535 5.7.8"),
        // What is no URI there is none.
        (ALICE, &[], "", "535 5.7.8"),
        ("uri:spiffe://demo.test/mail/alice", &[], "", "535 5.7.8"),
    ] {
        for version in [&TLS12, &TLS13] {
            let own = Some(known.issue_uris(name, uris));
            let mut wire = Wire::connect(server.submissions(), true, tls_with(&server, &[version], own)).expect("TLS");
            wire.reply().expect("a greeting");
            wire.ask("EHLO client.example").expect("EHLO");
            let message = if authzid.is_empty() { "=".to_owned() } else { STANDARD.encode(authzid) };
            let reply = wire.ask(&format!("AUTH EXTERNAL {message}")).expect("a reply");
            assert!(reply.starts_with(wanted), "{name} {uris:?} {authzid:?}: {reply}");
        }
    }
    // With certificate and TLS of another make.
    if !present("openssl", command_exists("openssl")) {
        return;
    }
    for (uri, wanted) in [(ALICE, "235 2.7.0"), ("spiffe://demo.test/mail/mallory", "535 5.7.8")] {
        let (certificate, key) = known.issue_uris("x", &[uri]);
        let [file, key_file] = ["client.pem", "client.key"].map(|name| server.path(name));
        std::fs::write(&file, pem("CERTIFICATE", &certificate)).expect("a file");
        std::fs::write(&key_file, pem("PRIVATE KEY", key.secret_der())).expect("a file");
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-crlf", "-connect", &server.submissions().to_string()]);
        command.arg("-cert").arg(&file).arg("-key").arg(&key_file);
        let (_, said) = feed(&mut command, b"EHLO client.example\nAUTH EXTERNAL =\nQUIT\n");
        assert!(said.contains("AUTH EXTERNAL PLAIN") && said.contains(wanted), "{uri}: {said}");
    }
}

/// Another implementation of EXTERNAL; its TLS library is GnuTLS.
#[test]
fn gsasl_logs_in_by_its_certificate() {
    if !present("gsasl", command_exists("gsasl")) {
        return;
    }
    let known = Authority::new("Ours");
    let mut server = prepare("request", &known);
    std::fs::write(server.path("state/auth/users"), format!("alice@{DOMAIN}::cert=cn:alice\n"))
        .expect("the users file");
    server.run();
    for (name, authzid, wanted) in [
        ("alice", "alice@demo.test", "235 2.7.0"),
        ("alice", "", "235 2.7.0"),
        ("alice", "bob@demo.test", "535 5.7.8"),
        ("mallory", "", "535 5.7.8"),
    ] {
        let (certificate, key) = known.issue(name, &[]);
        let [file, key_file] = ["client.pem", "client.key"].map(|name| server.path(name));
        std::fs::write(&file, pem("CERTIFICATE", &certificate)).expect("a file");
        std::fs::write(&key_file, pem("PRIVATE KEY", key.secret_der())).expect("a file");
        let mut command = Command::new("gsasl");
        command.args(["--smtp", "--verbose", "--x509-ca-file=", "--mechanism", "EXTERNAL"]);
        command.arg(format!("--x509-cert-file={}", file.display()));
        command.arg(format!("--x509-key-file={}", key_file.display()));
        command.args(["--authorization-id", authzid]);
        command.arg(server.ip.to_string()).arg(server.submission().port().to_string());
        let (_, said) = crate::server::output(&mut command);
        assert!(said.contains(wanted), "{name} {authzid:?}: {said}\n{}", server.log());
    }
}

/// A client of another make, with another TLS library.
#[test]
fn msmtp_logs_in_by_its_certificate() {
    if !present("msmtp", command_exists("msmtp")) {
        return;
    }
    let known = Authority::new("Ours");
    let mut server = prepare("request", &known);
    let users = format!("alice@{DOMAIN}::cert=cn:alice\nbob@{DOMAIN}:\n");
    std::fs::write(server.path("state/auth/users"), users).expect("the users file");
    server.run();
    for (name, wanted) in [("alice", true), ("mallory", false)] {
        let (certificate, key) = known.issue(name, &[]);
        let files =
            [("client.pem", pem("CERTIFICATE", &certificate)), ("client.key", pem("PRIVATE KEY", key.secret_der()))];
        files.iter().for_each(|(file, text)| std::fs::write(server.path(file), text).expect("a file"));
        let mut command = Command::new("msmtp");
        command.args([
            "--file=/dev/null",
            "--auth=external",
            "--user=alice@demo.test",
            "--domain=client.example",
            "--debug",
        ]);
        command.args(["--timeout=15", "--tls=on", "--tls-starttls=on", "--tls-certcheck=off"]);
        command.args([format!("--host={}", server.ip), format!("--port={}", server.submission().port())]);
        command.arg(format!("--tls-cert-file={}", server.path("client.pem").display()));
        command.arg(format!("--tls-key-file={}", server.path("client.key").display()));
        command.args([format!("--from=alice@{DOMAIN}"), format!("bob@{DOMAIN}")]);
        let (status, said) = feed(&mut command, format!("From: alice@{DOMAIN}\n\nby certificate\n").as_bytes());
        assert_eq!(status.success(), wanted, "{name}: {said}");
        assert!(said.contains(if wanted { "235 2.7.0" } else { "535 5.7.8" }), "{name}: {said}");
    }
    assert_eq!(server.mail("bob", 1).len(), 1);
}

pub fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// SHA-256 of the public key, as openssl makes it of the certificate.
fn spki(certificate: &CertificateDer<'_>) -> String {
    let (status, said) = feed(
        Command::new("sh").args(["-c", "openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | sha256sum"]),
        pem("CERTIFICATE", certificate).as_bytes(),
    );
    assert!(status.success(), "{said}");
    said.split(' ').next().unwrap_or_default().to_owned()
}
