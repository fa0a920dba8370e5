//! What EHLO offers: only what this very connection could use, strongest first; and what somebody may do who
//! logs in as nobody (ANONYMOUS).

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

use crate::bare::DOMAIN;
use crate::client_certificates::Authority;
use crate::clients::{command_exists, present};
use crate::cyrus::{self, Sample};
use crate::server::{Options, PATIENCE, Server};
use crate::wire::{Wire, tls_with};

/// All there are, in an order that nobody would choose.
const ALL: [&str; 14] = [
    "ANONYMOUS",
    "LOGIN",
    "PLAIN",
    "CRAM-MD5",
    "DIGEST-MD5",
    "XOAUTH2",
    "OAUTHBEARER",
    "SCRAM-SHA-1",
    "SCRAM-SHA-256",
    "SCRAM-SHA-512",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-512-PLUS",
    "EXTERNAL",
];

/// A connection: over TLS of this version, with a client certificate or without.
#[derive(Clone, Copy, Debug)]
struct Connection {
    tls: Option<&'static SupportedProtocolVersion>,
    certificate: bool,
}

fn offered(
    server: &Server,
    address: std::net::SocketAddr,
    connection: Connection,
    authority: &Authority,
) -> Vec<String> {
    let own = connection.certificate.then(|| authority.issue("alice", &[]));
    let versions = connection.tls.map_or(vec![&TLS13], |version| vec![version]);
    let mut wire = Wire::connect(address, false, tls_with(server, &versions, own)).expect("a connection");
    wire.reply().expect("a greeting");
    let mut said = wire.ask("EHLO client.example").expect("EHLO");
    if connection.tls.is_some() {
        assert!(wire.ask("STARTTLS").expect("STARTTLS").starts_with("220 "));
        wire.enter_tls().expect("TLS");
        said = wire.ask("EHLO client.example").expect("EHLO");
    }
    let line = said.lines().find_map(|line| line.get(4..)?.strip_prefix("AUTH "));
    let names: Vec<String> = line.into_iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
    // What is not listed is not there; what is listed begins.
    for name in ALL {
        let reply = wire.ask(&format!("AUTH {name}")).expect("a reply");
        let is = names.iter().any(|known| known == name);
        assert_eq!(reply.starts_with("334 "), is, "{connection:?} {name}: {reply} in {names:?}");
        let none = if names.is_empty() && reply.starts_with("530") { "530 5.7.0" } else { "504 5.5.4" };
        if is {
            assert!(wire.ask("*").expect("a reply").starts_with("501 5.7.0"), "{name}");
        } else {
            assert!(reply.starts_with(none), "{connection:?} {name}: {reply}");
        }
    }
    names
}

#[test]
fn only_what_this_connection_could_use_and_the_strongest_first() {
    let authority = Authority::new("Ours");
    let scram_plus = "SCRAM-SHA-512-PLUS SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS";
    let scram = "SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1";
    let tokens = "\n[[tokens.issuer]]\nkind = \"file\"\nfile = \"tokens\"\n";
    let clear = "cleartext_auth_nets = [\"127.0.0.0/8\"]\n";
    let anonymous = "anonymous = \"local\"\n";
    let certificates = "client_cert = \"request\"\nclient_ca = \"client-ca.pem\"\n";
    let none = Connection { tls: None, certificate: false };
    let tls = |version| Connection { tls: Some(version), certificate: false };
    let certified = Connection { tls: Some(&TLS13), certificate: true };
    // Options of all listeners, tables, connection, what it is offered in which order.
    type Row = (String, &'static str, Vec<(Connection, String)>);
    let rows: Vec<Row> = vec![
        (
            String::new(),
            "",
            vec![
                (none, String::new()),
                (tls(&TLS13), format!("{scram_plus} {scram} DIGEST-MD5 CRAM-MD5 PLAIN LOGIN")),
                (tls(&TLS12), format!("{scram_plus} {scram} DIGEST-MD5 CRAM-MD5 PLAIN LOGIN")),
                // A certificate that nobody asks for is none.
                (certified, format!("{scram_plus} {scram} DIGEST-MD5 CRAM-MD5 PLAIN LOGIN")),
            ],
        ),
        (
            format!("{clear}{anonymous}{certificates}"),
            tokens,
            vec![
                // In clear, where the operator permits it: no token, no binding, no certificate.
                (none, format!("{scram} DIGEST-MD5 CRAM-MD5 PLAIN LOGIN ANONYMOUS")),
                (
                    tls(&TLS13),
                    format!("{scram_plus} {scram} OAUTHBEARER XOAUTH2 DIGEST-MD5 CRAM-MD5 PLAIN LOGIN ANONYMOUS"),
                ),
                (
                    certified,
                    format!(
                        "{scram_plus} EXTERNAL {scram} OAUTHBEARER XOAUTH2 DIGEST-MD5 CRAM-MD5 PLAIN LOGIN ANONYMOUS"
                    ),
                ),
            ],
        ),
        ("auth = \"off\"\nrequire_auth = false\n".to_owned(), tokens, vec![(none, String::new())]),
    ];
    for (listener, tables, connections) in rows {
        let mechanisms = ALL.to_vec();
        let mut server =
            Server::prepare(Options { listener, mechanisms, tables: tables.to_owned(), ..Options::default() });
        std::fs::write(server.path("client-ca.pem"), authority.pem()).expect("the authority");
        std::fs::write(server.path("tokens"), "").expect("tokens");
        server.run();
        for (connection, wanted) in &connections {
            let roles: &[std::net::SocketAddr] = &[server.mx(), server.submission()];
            for &address in roles {
                if server.options_have("auth = \"off\"") {
                    let config = tls_with(&server, &[&TLS13], None);
                    let mut wire = Wire::connect(address, false, config).expect("a connection");
                    wire.reply().expect("a greeting");
                    assert!(!wire.ask("EHLO c").expect("EHLO").contains("AUTH"));
                    assert!(wire.ask("AUTH PLAIN").expect("a reply").starts_with("502 5.5.1"));
                    continue;
                }
                let names = offered(&server, address, *connection, &authority);
                let strongest: Vec<&str> = wanted.split(' ').filter(|name| !name.is_empty()).collect();
                assert_eq!(names, strongest, "{connection:?}");
            }
        }
    }
}

/// The first line of the log with these words, once there is one.
fn logged(server: &Server, words: &str) -> String {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let log = server.log();
        if let Some(line) = log.lines().find(|line| line.contains(words)) {
            return line.to_owned();
        }
        assert!(std::time::Instant::now() < deadline, "no {words} in {log}");
        std::thread::sleep(std::time::Duration::from_millis(10)); // between two looks, not instead of one
    }
}

/// A session without an identity: mail for local users from elsewhere, and nothing more.
#[test]
fn somebody_who_is_nobody() {
    let listener = "anonymous = \"local\"\nlimits.max_size = \"4MiB\"\n".to_owned();
    let top = "limits.anonymous_size = \"64KiB\"".to_owned();
    let server =
        Server::start_with(Options { listener, top, mechanisms: vec!["ANONYMOUS", "PLAIN"], ..Options::default() });
    let dial = || {
        let mut wire =
            Wire::connect(server.submissions(), true, tls_with(&server, &[&TLS13], None)).expect("a connection");
        wire.reply().expect("a greeting");
        assert!(wire.ask("EHLO client.example").expect("EHLO").contains("AUTH PLAIN ANONYMOUS\r\n"));
        wire
    };
    let mut wire = dial();
    assert!(wire.ask("MAIL FROM:<x@elsewhere.example>").expect("a reply").starts_with("530 5.7.0"));
    let trace = STANDARD.encode("sirhc \u{1f600} \"}\u{3b1}");
    assert!(wire.ask(&format!("AUTH ANONYMOUS {trace}")).expect("a reply").starts_with("235 2.7.0"));
    assert!(wire.ask("EHLO client.example").expect("EHLO").contains("SIZE 65536\r\n"));
    for (line, reply) in [
        ("AUTH PLAIN AGFsaWNlAHNlY3JldA==", "503 5.5.1"),
        ("MAIL FROM:<alice@demo.test>", "550 5.7.1"),
        ("MAIL FROM:<x@elsewhere.example> SIZE=70000", "552 5.3.4"),
        ("MAIL FROM:<x@elsewhere.example>", "250 "),
        ("RCPT TO:<y@far.example>", "550 5.7.1"),
        ("RCPT TO:<nobody@demo.test>", "550 5.1.1"),
        ("RCPT TO:<bob@demo.test>", "250 "),
        ("DATA", "354 "),
    ] {
        let said = wire.ask(line).expect("a reply");
        assert!(said.starts_with(reply), "{line}: {said}");
    }
    wire.send(b"From: alice@demo.test\r\n\r\nforged\r\n").expect("sent");
    assert!(wire.ask(".").expect("a reply").starts_with("550 5.7.1"), "nor a local author");
    for line in ["MAIL FROM:<x@elsewhere.example>", "RCPT TO:<bob@demo.test>", "DATA"] {
        wire.ask(line).expect("a reply");
    }
    wire.send(b"From: x@elsewhere.example\r\n\r\nhello\r\n").expect("sent");
    assert!(wire.ask(".").expect("a reply").starts_with("250 2.0.0"));
    let stored = String::from_utf8_lossy(&server.mail("bob", 1)[0]).into_owned();
    // RFC 3848: `A` says that somebody was authenticated.
    assert!(stored.contains("with ESMTPS\n") || stored.contains("with ESMTPS "), "{stored}");
    drop(wire);
    for bad in ["\u{7}", "a@", &"x".repeat(256)] {
        let reply = dial().ask(&format!("AUTH ANONYMOUS {}", STANDARD.encode(bad))).expect("a reply");
        assert!(reply.starts_with("501 5.5.2"), "{bad:?}: {reply}");
    }
    let login = logged(&server, "\"mechanism\":\"ANONYMOUS\",\"class\":\"anonymous\"");
    let event: serde_json::Value = serde_json::from_str(&login).expect("one line of JSON");
    assert!(event["trace"].as_str().is_some_and(|trace| trace.starts_with("sirhc")), "{login}");
    assert!(event.get("identity").is_none(), "{login}");
}

#[test]
fn without_permission_nobody_is_let_in_as_nobody() {
    let server = Server::start_with(Options { mechanisms: vec!["ANONYMOUS", "PLAIN"], ..Options::default() });
    let mut wire = Wire::connect(server.submissions(), true, tls_with(&server, &[&TLS13], None)).expect("a connection");
    wire.reply().expect("a greeting");
    assert!(!wire.ask("EHLO client.example").expect("EHLO").contains("ANONYMOUS"));
    assert!(wire.ask("AUTH ANONYMOUS =").expect("a reply").starts_with("504 5.5.4"));
    assert!(server.log().contains("ANONYMOUS is offered to nobody"), "{}", server.log());
}

/// Clients of two makes.
#[test]
fn gsasl_and_cyrus_log_in_as_nobody() {
    let listener = "anonymous = \"local\"\n".to_owned();
    let server = Server::start_with(Options { listener, mechanisms: vec!["ANONYMOUS"], ..Options::default() });
    if present("gsasl", command_exists("gsasl")) {
        let mut command = Command::new("gsasl");
        command.args(["--client", "--smtp", "--verbose", "--x509-ca-file=", "--mechanism", "ANONYMOUS"]);
        command.args(["--anonymous-token", "gsasl was here"]);
        command.arg(format!("--connect={}:{}", server.ip, server.submission().port()));
        let (_, said) = crate::server::output(&mut command);
        assert!(said.contains("235 2.7.0"), "{said}");
        logged(&server, "gsasl was here");
    }
    if present("sasl-sample-client", command_exists("sasl-sample-client")) {
        let config = tls_with(&server, &[&TLS13], None);
        let mut wire = Wire::connect(server.submissions(), true, config).expect("a connection");
        wire.reply().expect("a greeting");
        wire.ask("EHLO client.example").expect("EHLO");
        let reply =
            cyrus::converse(&mut wire, "ANONYMOUS", Sample::start("ANONYMOUS", &format!("me@{DOMAIN}"), "", &[]));
        assert!(reply.starts_with("235 2.7.0"), "{reply}");
    }
}
