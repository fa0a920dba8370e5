//! Bearer tokens from end to end: real clients with OAUTHBEARER and XOAUTH2, and an issuer's web server on
//! loopback with TLS, in every state that such a server may be in.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PublicKeyData as _, SigningKey as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::version::TLS13;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::bare::DOMAIN;
use crate::clients::{command_exists, present};
use crate::next_hops::wait;
use crate::server::{Options, Server, feed, output, root};
use crate::wire::{Wire, tls_with};

pub const ISS: &str = "https://login.demo.test";
const ALICE: &str = "alice@demo.test";

/// Somebody who signs tokens, with Ed25519.
pub struct Signer(KeyPair);

impl Signer {
    pub fn new() -> Self {
        Self(KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key"))
    }

    pub fn key_set(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.der_bytes());
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": "1", "x": x }] }).to_string()
    }

    pub fn token(&self, changes: Value) -> String {
        self.signed(&json!({ "alg": "EdDSA", "kid": "1", "typ": "at+jwt" }), changes)
    }

    fn signed(&self, header: &Value, changes: Value) -> String {
        let mut claims = claims();
        for (name, value) in changes.as_object().expect("claims") {
            claims[name] = value.clone();
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(&claims));
        let signature = self.0.sign(signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn claims() -> Value {
    json!({ "iss": ISS, "aud": ["smtp.demo.test"], "exp": now() + 600, "scope": "mail", "email": ALICE, "username": ALICE })
}

// ---------------------------------------------------------------- the issuer's server

#[derive(Clone)]
enum Mood {
    /// `200` with this.
    Answer(String),
    /// Says nothing.
    BlackHole,
    /// Octet by octet.
    Drip,
    /// 100 MiB.
    Flood,
    /// This, and the end.
    Raw(&'static str),
    /// The connection ends in the middle.
    Reset,
}

/// A web server of one page, with TLS, whose certificate an authority of its own vouches for.
struct Issuer {
    address: SocketAddr,
    authority: String,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Issuer {
    fn start(mood: Mood) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let issuer = Self {
            address: listener.local_addr().expect("bound"),
            authority: authority.pem(),
            mood: Arc::new(Mutex::new(mood)),
            asked: Arc::default(),
            requests: Arc::default(),
        };
        let (mood, asked, requests) = (issuer.mood.clone(), issuer.asked.clone(), issuer.requests.clone());
        let tls = Arc::new(tls);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, mood, asked, requests) = (tls.clone(), mood.clone(), asked.clone(), requests.clone());
                std::thread::spawn(move || {
                    let Ok(connection) = ServerConnection::new(tls) else { return };
                    serve(StreamOwned::new(connection, stream), &mood, &asked, &requests);
                });
            }
        });
        issuer
    }

    fn url(&self) -> String {
        format!("https://{}/page", self.address)
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().expect("a mood") = mood;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(
    mut stream: StreamOwned<ServerConnection, TcpStream>,
    mood: &Mutex<Mood>,
    asked: &AtomicUsize,
    requests: &Mutex<Vec<String>>,
) {
    let (mut text, mut buffer) = (String::new(), [0; 65536]);
    loop {
        let Ok(read @ 1..) = stream.read(&mut buffer) else { return };
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break;
        }
    }
    asked.fetch_add(1, Ordering::SeqCst);
    requests.lock().expect("requests").push(text);
    let mood = mood.lock().expect("a mood").clone();
    let _ = match mood {
        Mood::Answer(body) => {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        }
        Mood::Raw(text) => stream.write_all(text.as_bytes()),
        Mood::BlackHole => stream.read(&mut buffer).map(drop),
        Mood::Drip => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
            while stream.write_all(b" ").is_ok() {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            return;
        }
        Mood::Flood => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n");
            let chunk = vec![b' '; 1 << 20];
            while stream.write_all(&chunk).is_ok() {}
            return;
        }
        Mood::Reset => return,
    };
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

// ---------------------------------------------------------------- our server

/// One that believes what `table` says, beside who it is for.
fn portreeve(table: &str, files: &[(&str, &str)]) -> Server {
    let tables =
        format!("\n[[tokens.issuer]]\n{table}\nopenid_configuration = \"{ISS}/.well-known/openid-configuration\"\n");
    let mechanisms = vec!["OAUTHBEARER", "XOAUTH2", "PLAIN"];
    // What clients below name as the port that they mean, beside the real one.
    let listener = "public_port = 587".into();
    let mut server = Server::prepare(Options { mechanisms, tables, listener, ..Options::default() });
    // A client that was told an address names that as the host it has connected to.
    let hosts = format!("\n[mechanism.OAUTHBEARER]\nhosts = [\"{}\"]\n", server.ip);
    server.write_config(&(server.config() + &hosts));
    for (name, text) in files {
        std::fs::write(server.path(name), text).expect("a file");
    }
    server.run();
    server
}

fn by_signature(issuer: &Issuer) -> Server {
    let table = format!(
        "kind = \"jwt\"\nissuer = \"{ISS}\"\naudience = [\"smtp.demo.test\"]\nkeys = \"{}\"\nalgorithms = [\"EdDSA\"]\n\
         scope = \"mail\"\nca = \"issuer-ca.pem\"\ntimeout = \"1s\"",
        issuer.url()
    );
    portreeve(&table, &[("issuer-ca.pem", &issuer.authority)])
}

fn by_asking(issuer: &Issuer) -> Server {
    let table = format!(
        "kind = \"introspection\"\nurl = \"{}\"\nclient_id = \"portreeve\"\nclient_secret_file = \"client-secret\"\n\
         scope = \"mail\"\nca = \"issuer-ca.pem\"\ntimeout = \"300ms\"",
        issuer.url()
    );
    portreeve(&table, &[("issuer-ca.pem", &issuer.authority), ("client-secret", "marker-client-secret\n")])
}

fn active() -> Mood {
    let mut claims = claims();
    claims["active"] = json!(true);
    Mood::Answer(claims.to_string())
}

/// TLS, greeting, EHLO.
pub fn dial(server: &Server) -> Wire {
    let config = tls_with(server, &[&TLS13], None);
    let mut wire = Wire::connect(server.submissions(), true, config).expect("TLS");
    wire.reply().expect("a greeting");
    let said = wire.ask("EHLO client.example").expect("a reply");
    assert!(said.contains(" OAUTHBEARER XOAUTH2 "), "{said}");
    wire
}

/// `334` with an error, and what came after the answer to it.
pub fn bearer(wire: &mut Wire, mechanism: &str, message: &str) -> (Option<Value>, String) {
    let reply = wire.ask(&format!("AUTH {mechanism} {}", STANDARD.encode(message))).expect("a reply");
    let Some(error) = reply.strip_prefix("334 ") else { return (None, reply) };
    let error = STANDARD.decode(error.trim_end()).expect("base64");
    let end = wire.ask(if mechanism == "XOAUTH2" { "" } else { "AQ==" }).expect("a reply");
    (Some(serde_json::from_slice(&error).expect("JSON")), end)
}

pub fn oauthbearer(authzid: &str, token: &str) -> String {
    let authzid = if authzid.is_empty() { String::new() } else { format!("a={authzid}") };
    format!("n,{authzid},\x01host=mx.demo.test\x01port=587\x01auth=Bearer {token}\x01\x01")
}

pub fn xoauth2(user: &str, token: &str) -> String {
    format!("user={user}\x01auth=Bearer {token}\x01\x01")
}

#[test]
fn who_a_token_is_for_decides_who_has_it() {
    let signer = Signer::new();
    let issuer = Issuer::start(Mood::Answer(signer.key_set()));
    let server = by_signature(&issuer);
    std::fs::write(
        server.path("state/auth/users"),
        format!(
            "{ALICE}::authzids=bob@{DOMAIN}\nbob@{DOMAIN}:\ncarol@{DOMAIN}::disabled\ndave@{DOMAIN}::mechanisms=PLAIN\n"
        ),
    )
    .expect("the users file");
    let invalid = json!({
        "status": "invalid_token", "scope": "mail", "openid-configuration": format!("{ISS}/.well-known/openid-configuration"),
    });
    let mut scope = invalid.clone();
    scope["status"] = json!("insufficient_scope");
    let elsewhere = json!({ "status": "invalid_request" });
    let of = |name: &str| signer.token(json!({ "email": name }));
    let good = signer.token(json!({}));
    // The users file is taken over within seconds.
    loop {
        let (_, end) = bearer(&mut dial(&server), "OAUTHBEARER", &oauthbearer("", &of("carol@demo.test")));
        if end.starts_with("525 5.7.13") {
            break;
        }
        std::thread::sleep(Duration::from_millis(20)); // between two looks, not instead of one
    }
    for (message, error, end) in [
        (oauthbearer("", &good), None, "235 2.7.0"),
        (oauthbearer(ALICE, &good), None, "235 2.7.0"),
        (oauthbearer("Alice@DEMO.test", &good), None, "235 2.7.0"),
        (oauthbearer("bob@demo.test", &good), None, "235 2.7.0"),
        (oauthbearer(ALICE, &of("bob@demo.test")), Some(&invalid), "535 5.7.8"),
        (oauthbearer("nobody@demo.test", &good), Some(&invalid), "535 5.7.8"),
        (oauthbearer("", &of("nobody@demo.test")), Some(&invalid), "535 5.7.8"),
        (oauthbearer("", &of("dave@demo.test")), None, "534 5.7.9"),
        (oauthbearer("", &signer.token(json!({ "scope": "openid" }))), Some(&scope), "535 5.7.8"),
        (oauthbearer("", &signer.token(json!({ "exp": now() - 100 }))), Some(&invalid), "535 5.7.8"),
        (oauthbearer("", &Signer::new().token(json!({}))), Some(&invalid), "535 5.7.8"),
        (oauthbearer("", &signer.signed(&json!({ "alg": "none" }), json!({}))), Some(&invalid), "535 5.7.8"),
        (
            oauthbearer("", &signer.signed(&json!({ "alg": "EdDSA", "kid": "../../secrets/decoy" }), json!({}))),
            Some(&invalid),
            "535 5.7.8",
        ),
        // Another server's port or name, known by what the client says of it (RFC 7628 §3.2).
        (oauthbearer("", &good).replace("port=587", "port=25"), Some(&elsewhere), "535 5.7.8"),
        (oauthbearer("", &good).replace("host=mx.", "host=imap."), Some(&elsewhere), "535 5.7.8"),
        (oauthbearer("", &good).replace("587", &server.submissions().port().to_string()), None, "235 2.7.0"),
        (oauthbearer("", &"t".repeat(12_000)), Some(&invalid), "535 5.7.8"),
        (oauthbearer("", &"t".repeat(17_000)), None, "500 5.5.6"),
    ] {
        let found = bearer(&mut dial(&server), "OAUTHBEARER", &message);
        assert!(found.1.starts_with(end) && found.0.as_ref() == error, "{message}: {found:?}\n{}", server.log());
    }
    // Why, the log says.
    for reason in ["the client means another port", "the client means another host"] {
        wait(reason, &|| server.log(), || server.log().contains(reason).then_some(()));
    }
    for (user, token, status, end) in [
        (ALICE, good.clone(), None, "235 2.7.0"),
        ("bob@demo.test", good.clone(), None, "235 2.7.0"),
        ("carol@demo.test", good.clone(), Some("401"), "535 5.7.8"),
        (ALICE, signer.token(json!({ "scope": "none" })), Some("403"), "535 5.7.8"),
    ] {
        let (error, found) = bearer(&mut dial(&server), "XOAUTH2", &xoauth2(user, &token));
        let error = error.map(|error| error["status"].as_str().unwrap_or_default().to_owned());
        assert!(found.starts_with(end) && error.as_deref() == status, "{user}: {error:?} {found}");
    }
    // An identity with its own rights: a token for alice that acts as bob sends as bob.
    let mut wire = dial(&server);
    bearer(&mut wire, "OAUTHBEARER", &oauthbearer("bob@demo.test", &good));
    assert!(wire.ask(&format!("MAIL FROM:<{ALICE}>")).expect("a reply").starts_with("550 5.7.1"));
    assert!(wire.ask("MAIL FROM:<bob@demo.test>").expect("a reply").starts_with("250 "));
    assert_eq!(issuer.asked(), 1, "one request for keys, however many tokens");
    // Somebody who is disabled is so at once, however fresh the token.
    std::fs::write(server.path("state/auth/users"), format!("{ALICE}::disabled\n")).expect("the users file");
    while !bearer(&mut dial(&server), "XOAUTH2", &xoauth2(ALICE, &good)).1.starts_with("525 ") {
        std::thread::sleep(Duration::from_millis(20)); // between two looks, not instead of one
    }
    let log = server.log();
    assert!(!log.contains(&good[..40]) && !log.contains("ttttttttt"), "no token in the log");
}

#[test]
fn an_issuer_in_trouble_is_454_and_never_a_bad_token() {
    let raw = |text| Mood::Raw(text);
    let issuer = Issuer::start(active());
    let server = by_asking(&issuer);
    let mut n = 0;
    let mut ask = |wanted: &str, what: &str| {
        n += 1;
        let token = format!("marker-token-{n}");
        // A breaker that is open closes within seconds; until then it is 454, too.
        loop {
            let (error, end) = bearer(&mut dial(&server), "OAUTHBEARER", &oauthbearer("", &token));
            if end.starts_with(wanted) {
                assert!(wanted != "454 4.7.0" || error.is_none(), "{what}: {error:?}");
                return;
            }
            assert!(end.starts_with("454 4.7.0"), "{what}: {error:?} {end}\n{}", server.log());
            std::thread::sleep(Duration::from_millis(50)); // between two looks, not instead of one
        }
    };
    ask("235 2.7.0", "well");
    for (what, mood) in [
        ("black hole", Mood::BlackHole),
        ("drip", Mood::Drip),
        ("flood", Mood::Flood),
        ("reset", Mood::Reset),
        ("garbage", raw("\x16\x03\x01 not HTTP at all\r\n\r\n")),
        ("500", raw("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n")),
        ("redirect", raw("HTTP/1.1 307 There\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n")),
        ("no JSON", Mood::Answer("<html>".into())),
        ("no answer", Mood::Answer("{\"error\":\"invalid_client\"}".into())),
    ] {
        issuer.set(mood);
        ask("454 4.7.0", what);
        issuer.set(Mood::Answer("{\"active\":false}".into()));
        ask("535 5.7.8", what);
        issuer.set(active());
        ask("235 2.7.0", what);
    }
    let request = issuer.requests.lock().expect("requests").first().cloned().unwrap_or_default();
    assert!(request.contains(&STANDARD.encode("portreeve:marker-client-secret")), "{request}");
    while !server.log().contains("tokens.back") {
        std::thread::sleep(Duration::from_millis(20)); // between two looks, not instead of one
    }
    let log = server.log();
    assert!(log.contains("tokens.trouble"), "{log}");
    assert!(!log.contains("marker-token") && !log.contains("marker-client-secret"), "{log}");
    assert!(!log.contains(&STANDARD.encode("portreeve:marker-client-secret")), "{log}");
}

#[test]
fn an_issuer_with_the_wrong_certificate_is_not_believed() {
    let (issuer, other) = (Issuer::start(active()), Issuer::start(active()));
    let table =
        format!("kind = \"introspection\"\nurl = \"{}\"\nca = \"issuer-ca.pem\"\ntimeout = \"1s\"", issuer.url());
    let server = portreeve(&table, &[("issuer-ca.pem", &other.authority)]);
    let (error, end) = bearer(&mut dial(&server), "XOAUTH2", &xoauth2(ALICE, "marker-token"));
    assert!(error.is_none() && end.starts_with("454 4.7.0"), "{error:?} {end}");
    assert_eq!(issuer.asked(), 0, "no token goes to whoever has another certificate");
    while !server.log().contains("tokens.trouble") {
        std::thread::sleep(Duration::from_millis(20)); // between two looks, not instead of one
    }
}

#[test]
fn without_an_issuer_no_bearer_mechanism_is_offered() {
    let mechanisms = vec!["OAUTHBEARER", "XOAUTH2", "PLAIN"];
    let server = Server::start_with(Options { mechanisms, ..Options::default() });
    let config = tls_with(&server, &[&TLS13], None);
    let mut wire = Wire::connect(server.submissions(), true, config).expect("TLS");
    wire.reply().expect("a greeting");
    let said = wire.ask("EHLO client.example").expect("a reply");
    assert!(said.contains("AUTH PLAIN\r\n"), "{said}");
    let reply = wire.ask(&format!("AUTH XOAUTH2 {}", STANDARD.encode(xoauth2(ALICE, "t")))).expect("a reply");
    assert!(reply.starts_with("504 5.5.4"), "{reply}");
}

// ---------------------------------------------------------------- clients

/// Sends a message: server, mechanism, token, file. Whether that went well, and what was said.
type Send<'a> = &'a dyn Fn(&Server, &str, &str, &str) -> (bool, String);

/// Sends with a good token and a bad one; `run` gets mechanism, token and a file with the message.
fn exercise(client: &str, mechanisms: &[&'static str], run: Send<'_>) {
    let signer = Signer::new();
    let issuer = Issuer::start(Mood::Answer(signer.key_set()));
    let server = by_signature(&issuer);
    let message = format!("From: {ALICE}\r\nTo: bob@{DOMAIN}\r\nSubject: {client}\r\n\r\nby token\r\n");
    std::fs::write(server.path("message"), message).expect("a message");
    let file = server.path("message").display().to_string();
    let mut sent = 0;
    for mechanism in mechanisms {
        let (good, said) = run(&server, mechanism, &signer.token(json!({})), &file);
        assert!(good, "{client} {mechanism}: {said}\n{}", server.log());
        sent += 1;
        assert_eq!(server.mail("bob", sent).len(), sent);
        let bad = signer.token(json!({ "exp": now() - 3600 }));
        let (good, said) = run(&server, mechanism, &bad, &file);
        assert!(!good && said.contains("535"), "{client} {mechanism}: {said}");
        assert!(!server.log().contains(&bad[..60]), "no token in the log");
    }
}

#[test]
fn curl_with_a_token() {
    if !present("curl", command_exists("curl")) {
        return;
    }
    exercise("curl", &["OAUTHBEARER", "XOAUTH2"], &|server, mechanism, token, message| {
        let port = server.submission().port();
        let mut command = Command::new("curl");
        command.args(["-sS", "-v", "--max-time", "15", "--mail-from", ALICE, "--mail-rcpt", "bob@demo.test"]);
        command.args(["--resolve", &format!("mx.demo.test:{port}:{}", server.ip)]);
        command.args(["--url", &format!("smtp://mx.demo.test:{port}/client.example"), "--ssl-reqd", "-T", message]);
        command.arg("--cacert").arg(server.certificate_files().0);
        command.args(["--user", ALICE, "--oauth2-bearer", token, "--login-options", &format!("AUTH={mechanism}")]);
        let (status, said) = output(&mut command);
        (status.success(), said)
    });
}

fn scripted(server: &Server, mechanism: &str, token: &str, message: &str) -> String {
    json!({
        "host": server.ip.to_string(), "port": server.submission().port(), "tls": "starttls", "mechanism": mechanism,
        "user": ALICE, "token": token, "from": ALICE, "to": "bob@demo.test", "message": message,
        "certificate": server.certificate_files().0,
    })
    .to_string()
}

#[test]
fn smtplib_with_a_token() {
    if !present("python3", command_exists("python3")) {
        return;
    }
    exercise("smtplib", &["XOAUTH2", "OAUTHBEARER"], &|server, mechanism, token, message| {
        let script = root().join("tests/clients/send.py");
        let (status, said) =
            output(Command::new("python3").arg(script).arg(scripted(server, mechanism, token, message)));
        (status.success(), said)
    });
}

#[test]
fn nodemailer_with_a_token() {
    let clients = root().join("tests/clients");
    if !present("nodemailer", command_exists("node") && clients.join("node_modules/nodemailer").exists()) {
        return;
    }
    exercise("nodemailer", &["XOAUTH2"], &|server, mechanism, token, message| {
        let script = clients.join("send.mjs");
        let (status, said) = output(Command::new("node").arg(script).arg(scripted(server, mechanism, token, message)));
        (status.success(), said)
    });
}

#[test]
fn msmtp_with_a_token() {
    if !present("msmtp", command_exists("msmtp")) {
        return;
    }
    exercise("msmtp", &["OAUTHBEARER", "XOAUTH2"], &|server, mechanism, token, message| {
        let mut command = Command::new("msmtp");
        command.args(["--file=/dev/null", "--domain=client.example", "--debug", "--timeout=15"]);
        command.args([format!("--host={}", server.ip), format!("--port={}", server.submission().port())]);
        command.args(["--tls=on", "--tls-starttls=on", "--tls-certcheck=off", &format!("--from={ALICE}")]);
        command.args([format!("--auth={}", mechanism.to_lowercase()), format!("--user={ALICE}")]);
        command.arg(format!("--passwordeval=echo {token}")).args(["--", "bob@demo.test"]);
        let (status, said) = feed(&mut command, &std::fs::read(message).expect("a message"));
        (status.success(), said)
    });
}

#[test]
fn the_load_tool_with_a_token() {
    exercise("portreeve-load", &["OAUTHBEARER", "XOAUTH2"], &|server, mechanism, token, _| {
        std::fs::write(server.path("token"), token).expect("a file");
        let mut command = crate::load::tool();
        command.args(["--target", &server.submission().to_string(), "--starttls", "--quiet", "--scenario", "submit"]);
        command.args(["--count", "1", "--mechanism", mechanism, "--user", ALICE, "--to", "bob@demo.test"]);
        let (status, said) = output(command.arg("--password-file").arg(server.path("token")));
        (status.success(), said)
    });
}
