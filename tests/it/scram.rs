//! SCRAM over the wire: a client of our own that does what it is told, also what it should not.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use sha2::Digest as _;

use crate::bare::{DOMAIN, HOSTNAME};
use crate::clients::{command_exists, present};
use crate::server::{Options, Server, output};
use crate::wire::{Wire, tls_pinned, tls_with};

const MECHANISMS: [&str; 8] = [
    "SCRAM-SHA-512-PLUS",
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-512",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1",
    "PLAIN",
    "LOGIN",
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    pub const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];

    fn mechanism(self) -> &'static str {
        match self {
            Self::Sha1 => "SCRAM-SHA-1",
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn digest(self, octets: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => sha1::Sha1::digest(octets).to_vec(),
            Self::Sha256 => sha2::Sha256::digest(octets).to_vec(),
            Self::Sha512 => sha2::Sha512::digest(octets).to_vec(),
        }
    }

    fn hmac(self, key: &[u8], octets: &[u8]) -> Vec<u8> {
        const ANY: &str = "any length will do";
        match self {
            Self::Sha1 => Hmac::<sha1::Sha1>::new_from_slice(key)
                .expect(ANY)
                .chain_update(octets)
                .finalize()
                .into_bytes()
                .to_vec(),
            Self::Sha256 => Hmac::<sha2::Sha256>::new_from_slice(key)
                .expect(ANY)
                .chain_update(octets)
                .finalize()
                .into_bytes()
                .to_vec(),
            Self::Sha512 => Hmac::<sha2::Sha512>::new_from_slice(key)
                .expect(ANY)
                .chain_update(octets)
                .finalize()
                .into_bytes()
                .to_vec(),
        }
    }

    /// Hi() of RFC 5802 §2.2.
    fn salted(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let mut block = self.hmac(password, &[salt, &[0, 0, 0, 1]].concat());
        let mut sum = block.clone();
        for _ in 1..iterations {
            block = self.hmac(password, &block);
            sum.iter_mut().zip(&block).for_each(|(sum, octet)| *sum ^= octet);
        }
        sum
    }

    /// A secret of the users file.
    pub fn stored(self, password: &str) -> String {
        let salt = *b"a salt of 16 oct";
        let salted = self.salted(password.as_bytes(), &salt, 4096);
        let stored_key = self.digest(&self.hmac(&salted, b"Client Key"));
        let server_key = self.hmac(&salted, b"Server Key");
        let base64 = |octets: &[u8]| STANDARD.encode(octets);
        format!("{{{}}}4096,{},{},{}", self.mechanism(), base64(&salt), base64(&stored_key), base64(&server_key))
    }
}

/// The client's side for many exchanges of one user: the password is hashed once.
pub struct Proof {
    hash: Hash,
    first: String,
    password: String,
    salted: Option<Vec<u8>>,
}

impl Proof {
    /// Without channel binding.
    pub fn new(hash: Hash, user: &str, password: &str) -> Self {
        Self { hash, first: format!("n={user},r=a-nonce-of-the-client"), password: password.to_owned(), salted: None }
    }

    /// The command.
    pub fn auth(&self) -> String {
        format!("AUTH {} {}", self.hash.mechanism(), STANDARD.encode(format!("n,,{}", self.first)))
    }

    /// The response to `334 …`.
    pub fn answer(&mut self, challenge: &str) -> String {
        let challenge = challenge.trim_end().strip_prefix("334 ").unwrap_or_else(|| panic!("{challenge}"));
        let challenge = String::from_utf8(STANDARD.decode(challenge).expect("base64")).expect("text");
        let part = |lead: &str| challenge.split(',').find_map(|part| part.strip_prefix(lead)).expect("an attribute");
        let hash = self.hash;
        let salted = self.salted.get_or_insert_with(|| {
            let salt = STANDARD.decode(part("s=")).expect("base64");
            hash.salted(self.password.as_bytes(), &salt, part("i=").parse().expect("a number"))
        });
        let without_proof = format!("c=biws,r={}", part("r="));
        let client_key = hash.hmac(salted, b"Client Key");
        let signed = format!("{},{challenge},{without_proof}", self.first);
        let signature = hash.hmac(&hash.digest(&client_key), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, octet)| key ^ octet).collect();
        STANDARD.encode(format!("{without_proof},p={}", STANDARD.encode(proof)))
    }
}

/// What a client does in an exchange.
#[derive(Clone)]
struct Client<'a> {
    hash: Hash,
    plus: bool,
    /// The gs2-cbind-flag.
    flag: &'a str,
    binding: Vec<u8>,
    user: String,
    password: &'a str,
}

impl Client<'_> {
    /// The last reply; checks that the server knows the key, too.
    fn log_in(&self, wire: &mut Wire) -> String {
        let Self { hash, plus, flag, binding, user, password } = self;
        let header = format!("{flag},,");
        let first = format!("n={user},r=a-nonce-of-the-client");
        let mechanism = format!("{}{}", hash.mechanism(), if *plus { "-PLUS" } else { "" });
        let message = STANDARD.encode(format!("{header}{first}"));
        let reply = wire.ask(&format!("AUTH {mechanism} {message}")).expect("a reply");
        let Some(challenge) = reply.strip_prefix("334 ") else { return reply };
        let challenge = String::from_utf8(STANDARD.decode(challenge.trim_end()).expect("base64")).expect("text");
        let part = |lead: &str| challenge.split(',').find_map(|part| part.strip_prefix(lead)).expect("an attribute");
        let (nonce, iterations) = (part("r="), part("i=").parse().expect("a number"));
        assert!(nonce.starts_with("a-nonce-of-the-client") && nonce.len() >= 21 + 18, "{nonce}");
        let salted = hash.salted(password.as_bytes(), &STANDARD.decode(part("s=")).expect("base64"), iterations);
        let cbind = STANDARD.encode([header.as_bytes(), binding].concat());
        let without_proof = format!("c={cbind},r={nonce}");
        let signed = format!("{first},{challenge},{without_proof}");
        let client_key = hash.hmac(&salted, b"Client Key");
        let signature = hash.hmac(&hash.digest(&client_key), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, octet)| key ^ octet).collect();
        let reply =
            wire.ask(&STANDARD.encode(format!("{without_proof},p={}", STANDARD.encode(proof)))).expect("a reply");
        let Some(last) = reply.strip_prefix("334 ") else { return reply };
        let server = hash.hmac(&hash.hmac(&salted, b"Server Key"), signed.as_bytes());
        let wanted = STANDARD.encode(format!("v={}", STANDARD.encode(server)));
        assert_eq!(last.trim_end(), wanted, "the server's signature");
        wire.ask("").expect("a reply")
    }
}

/// A server whose alice has keys for all, and bob for nothing.
fn server(mechanisms: &[&'static str]) -> Server {
    server_with(mechanisms, "inline")
}

fn server_with(mechanisms: &[&'static str], runner: &str) -> Server {
    let tables = format!("\n[[plugins.library]]\nid = \"standard\"\nrunner = \"{runner}\"\n");
    let mut server = Server::prepare(Options { mechanisms: mechanisms.to_vec(), tables, ..Options::default() });
    let file = server.path("state/auth/users");
    let keys: Vec<String> = Hash::ALL.iter().map(|hash| hash.stored("secret")).collect();
    std::fs::write(file, format!("alice@{DOMAIN}:{}\nbob@{DOMAIN}:\n", keys.join(" "))).expect("the users file");
    server.run();
    server
}

/// A connection that has said EHLO inside TLS, and the mechanisms that it is offered.
fn connect(server: &Server, version: &'static SupportedProtocolVersion) -> (Wire, Vec<String>) {
    let config = tls_with(server, &[version], None);
    let mut wire = Wire::connect(server.submissions(), true, config).expect("a connection");
    wire.reply().expect("a greeting");
    let said = wire.ask("EHLO client.example").expect("EHLO");
    let offer = said.lines().find_map(|line| line.get(4..)?.strip_prefix("AUTH ")).unwrap_or_default();
    (wire, offer.split(' ').map(str::to_owned).collect())
}

fn end_point(server: &Server) -> Vec<u8> {
    let certificate = CertificateDer::from_pem_file(server.certificate_files().0).expect("a certificate");
    sha2::Sha256::digest(&certificate).to_vec()
}

fn alice(hash: Hash) -> Client<'static> {
    let user = format!("alice@{DOMAIN}");
    Client { hash, plus: false, flag: "n", binding: Vec::new(), user, password: "secret" }
}

#[test]
fn every_hash_and_every_channel_binding() {
    for runner in ["inline", "process"] {
        every_hash_and_every_channel_binding_in(&server_with(&MECHANISMS, runner));
    }
}

fn every_hash_and_every_channel_binding_in(server: &Server) {
    for version in [&TLS12, &TLS13] {
        for hash in Hash::ALL {
            let (mut wire, offered) = connect(server, version);
            assert_eq!(offered, MECHANISMS);
            assert!(alice(hash).log_in(&mut wire).starts_with("235 2.7.0"), "{hash:?}");
            // What is over is over, and needs no channel binding.
            assert!(wire.ask("AUTH SCRAM-SHA-256-PLUS").expect("a reply").starts_with("503 5.5.1"));

            let (mut wire, _) = connect(server, version);
            let binding = end_point(server);
            let client = Client { plus: true, flag: "p=tls-server-end-point", binding, ..alice(hash) };
            assert!(client.log_in(&mut wire).starts_with("235 2.7.0"), "{hash:?}");

            let (mut wire, _) = connect(server, version);
            let client = Client { plus: true, flag: "p=tls-exporter", binding: wire.exporter(), ..alice(hash) };
            let reply = client.log_in(&mut wire);
            // On 1.2 only the extended master secret would make it safe (RFC 9266 §4.2), and nobody tells us.
            let wanted = if version == &TLS13 { "235 2.7.0" } else { "535 5.7.8" };
            assert!(reply.starts_with(wanted), "{hash:?}: {reply}");
        }
    }
}

/// Who carries messages from one connection to another fails, and RFC 9266 §4.1: one exchange per connection.
#[test]
fn a_binding_of_another_connection_is_worth_nothing_and_is_tried_once() {
    let server = server(&MECHANISMS);
    let (other, _) = connect(&server, &TLS13);
    let bound = Client { plus: true, flag: "p=tls-exporter", ..alice(Hash::Sha256) };
    for client in [
        Client { binding: other.exporter(), ..bound.clone() },
        Client { binding: Vec::new(), ..bound.clone() },
        Client { flag: "p=tls-server-end-point", binding: vec![0; 32], ..bound.clone() },
    ] {
        let (mut wire, _) = connect(&server, &TLS13);
        assert!(client.log_in(&mut wire).starts_with("535 5.7.8"));
        assert!(wire.ask("NOOP").expect("a reply").starts_with("250 "), "the session itself goes on");
        let reply = alice(Hash::Sha256).log_in(&mut wire);
        assert!(reply.starts_with("421 4.7.0") && reply.contains("reconnect"), "{reply}");
        assert!(wire.reply().is_ok_and(|reply| reply.is_none()) || wire.ask("NOOP").is_err(), "closed");
    }
    // A wrong password in a bound exchange uses the binding up as well, and so does giving up.
    let (mut wire, _) = connect(&server, &TLS13);
    let wrong = Client { binding: wire.exporter(), password: "wrong", ..bound.clone() };
    assert!(wrong.log_in(&mut wire).starts_with("535 5.7.8"));
    let right = Client { binding: wire.exporter(), ..bound.clone() };
    assert!(right.log_in(&mut wire).starts_with("421 4.7.0"));
    let (mut wire, _) = connect(&server, &TLS13);
    let first = STANDARD.encode("p=tls-exporter,,n=alice@demo.test,r=nonce");
    assert!(wire.ask(&format!("AUTH SCRAM-SHA-256-PLUS {first}")).expect("a reply").starts_with("334 "));
    assert!(wire.ask("*").expect("a reply").starts_with("501 "));
    assert!(wire.ask("AUTH PLAIN").expect("a reply").starts_with("421 4.7.0"));
    // Without channel binding there are three attempts (RFC 4954 §9).
    let (mut wire, _) = connect(&server, &TLS13);
    for _ in 0..2 {
        let wrong = Client { password: "wrong", ..alice(Hash::Sha256) };
        assert!(wrong.log_in(&mut wire).starts_with("535 5.7.8"));
    }
    assert!(alice(Hash::Sha256).log_in(&mut wire).starts_with("235 2.7.0"));
}

/// Somebody whose certificate the client believes: ends its TLS, reads everything, and says it again inside TLS of
/// his own to the server. One connection.
fn stand_between(server: &Server, version: &'static SupportedProtocolVersion, strips: bool) -> (Wire, Vec<u8>) {
    let key = rcgen::generate_simple_self_signed(vec![HOSTNAME.to_owned()]).expect("a certificate");
    let certificate = key.cert.der().clone();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into()),
        )
        .expect("a key that fits");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut onward =
        Wire::connect(server.submissions(), true, tls_with(server, &[version], None)).expect("a connection");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the client");
        let session = rustls::ServerConnection::new(std::sync::Arc::new(config)).expect("a session");
        let mut client = BufReader::new(rustls::StreamOwned::new(session, stream));
        let mut reply = onward.reply();
        while let Ok(Some(text)) = reply {
            // A client that does not see -PLUS cannot use it.
            let text = if strips { text.replace("-PLUS", "-NONE") } else { text };
            let mut line = String::new();
            let said = client.get_mut().write_all(text.as_bytes()).and_then(|()| client.read_line(&mut line));
            if said.is_err() || line.is_empty() {
                return;
            }
            reply = onward.ask(line.trim_end()).map(Some);
        }
    });
    let end_point = sha2::Sha256::digest(&certificate).to_vec();
    let mut wire = Wire::connect(address, true, tls_pinned(certificate, &[version], None)).expect("a connection");
    wire.reply().expect("a greeting");
    assert!(wire.ask("EHLO client.example").expect("EHLO").contains("SCRAM-SHA-256-PLUS") != strips);
    (wire, end_point)
}

/// He gets the password of who sends it, and a login of who is not bound to a connection; of others nothing.
#[test]
fn who_ends_tls_in_between_gets_no_bound_login() {
    let server = server(&MECHANISMS);
    for version in [&TLS12, &TLS13] {
        let (mut wire, _) = stand_between(&server, version, false);
        assert!(alice(Hash::Sha256).log_in(&mut wire).starts_with("235 "), "he says all again as he should");
        let bound = Client { plus: true, ..alice(Hash::Sha256) };
        if version == &TLS13 {
            let (mut wire, _) = stand_between(&server, version, false);
            let client = Client { flag: "p=tls-exporter", binding: wire.exporter(), ..bound.clone() };
            assert!(client.log_in(&mut wire).starts_with("535 5.7.8"));
        }
        let (mut wire, end_point) = stand_between(&server, version, false);
        let client = Client { flag: "p=tls-server-end-point", binding: end_point, ..bound.clone() };
        assert!(client.log_in(&mut wire).starts_with("535 5.7.8"));
        // RFC 9266 §1, RFC 5929 §3: there are others, and we have none of them.
        let (mut wire, _) = stand_between(&server, version, false);
        let client = Client { flag: "p=tls-unique", binding: vec![7; 12], ..bound };
        assert!(client.log_in(&mut wire).starts_with("535 5.7.8"));
        // He hides -PLUS, so the client says that it did not see it.
        let (mut wire, _) = stand_between(&server, version, true);
        assert!(Client { flag: "y", ..alice(Hash::Sha256) }.log_in(&mut wire).starts_with("535 5.7.8"));
    }
    // Nor is it accepted from anybody else.
    let (mut wire, _) = connect(&server, &TLS12);
    let client = Client { plus: true, flag: "p=tls-unique", binding: vec![7; 12], ..alice(Hash::Sha256) };
    assert!(client.log_in(&mut wire).starts_with("535 5.7.8"));
}

/// RFC 5802 §6: a client that could have bound itself but saw no -PLUS says so, and a server that had offered
/// it knows that somebody stood between.
#[test]
fn downgrades_are_seen() {
    let with = server(&MECHANISMS);
    let without = server(&["SCRAM-SHA-256", "PLAIN"]);
    let client = Client { flag: "y", ..alice(Hash::Sha256) };
    let (mut wire, _) = connect(&with, &TLS13);
    assert!(client.log_in(&mut wire).starts_with("535 5.7.8"));
    let (mut wire, offered) = connect(&without, &TLS13);
    assert_eq!(offered, ["SCRAM-SHA-256", "PLAIN"]);
    assert!(client.log_in(&mut wire).starts_with("235 2.7.0"));
    let (mut wire, _) = connect(&without, &TLS13);
    let bound = Client { plus: true, flag: "p=tls-exporter", binding: wire.exporter(), ..client };
    assert!(bound.log_in(&mut wire).starts_with("504 5.5.4"), "not listed, not there");
    // The names must fit the flags.
    let (mut wire, _) = connect(&with, &TLS13);
    let binding = wire.exporter();
    for (plus, flag, binding) in [(true, "n", vec![]), (true, "y", vec![]), (false, "p=tls-exporter", binding)] {
        let client = Client { plus, flag, binding, ..alice(Hash::Sha256) };
        assert!(client.log_in(&mut wire).starts_with("535 5.7.8"), "{plus} {flag}");
        if flag == "y" {
            // Three failures end the session; none of them came as far as the binding.
            let again;
            (again, _) = connect(&with, &TLS13);
            wire = again;
        }
    }
}

/// Whether there is such a user, or one without keys, cannot be told from an exchange.
#[test]
fn nobody_looks_like_somebody_with_another_password() {
    let server = server(&MECHANISMS);
    for hash in Hash::ALL {
        for user in ["alice", "bob", "nobody"] {
            let (mut wire, _) = connect(&server, &TLS13);
            let user = format!("{user}@{DOMAIN}");
            let client = Client { user, password: "wrong", ..alice(hash) };
            assert_eq!(client.log_in(&mut wire), "535 5.7.8 Authentication credentials invalid\r\n", "{hash:?}");
        }
    }
}

/// Another implementation, with and without channel binding (tls-exporter in TLS 1.3), for the hashes that it knows.
#[test]
fn gsasl_with_and_without_channel_binding() {
    if !present("gsasl", command_exists("gsasl")) {
        return;
    }
    let mut server = Server::prepare(Options { mechanisms: MECHANISMS.to_vec(), ..Options::default() });
    let stored = [Hash::Sha1, Hash::Sha256].map(|hash| hash.stored("secret")).join(" ");
    std::fs::write(server.path("state/auth/users"), format!("alice@{DOMAIN}:{stored}\n")).expect("the users file");
    server.run();
    for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"] {
        for (password, wanted) in [("secret", "235 2.7.0"), ("wrong", "535 5.7.8")] {
            let mut command = Command::new("gsasl");
            command.args(["--smtp", "--verbose", "--x509-ca-file=", "--mechanism", mechanism, "--password", password]);
            command.args(["--authentication-id", "alice@demo.test", "--authorization-id", "alice@demo.test"]);
            // Else it says that it could have bound itself, which is a downgrade where -PLUS is offered.
            command.args(if mechanism.ends_with("-PLUS") { &[][..] } else { &["--no-cb"] });
            command.arg(server.ip.to_string()).arg(server.submission().port().to_string());
            let (status, said) = output(&mut command);
            assert!(said.contains(wanted), "{mechanism} {password}: {said}");
            assert_eq!(status.success(), password == "secret", "{mechanism} {password}: {said}");
        }
    }
}
