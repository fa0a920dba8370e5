//! Cyrus SASL's sample client over the wire: every mechanism that it knows with every form in which a credential
//! may be stored, and what EHLO says about it.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::bare::DOMAIN;
use crate::clients::{command_exists, present};
use crate::server::{Options, PATIENCE, Server};
use crate::wire::{Wire, tls_with};

/// The sample client: it talks to a terminal, in base64.
pub struct Sample {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// All that it has said, and how much of that was looked at.
    said: String,
    seen: usize,
    password: String,
}

impl Sample {
    pub fn start(mechanism: &str, user: &str, password: &str, more: &[&str]) -> Self {
        // Without a terminal of its own it reads the password from its input.
        let mut command = Command::new("setsid");
        command.args(["-w", "stdbuf", "-o0", "sasl-sample-client", "-l", "-n", "mx.demo.test", "-s", "smtp"]);
        command.args(["-m", mechanism, "-a", user, "-u", user]).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("sasl-sample-client starts");
        let (to, output) = channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for mut stream in streams {
            let to = to.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    if to.send(buffer[..read].to_vec()).is_err() {
                        return;
                    }
                }
            });
        }
        let stdin = child.stdin.take().expect("piped");
        Self { child, stdin, output, said: String::new(), seen: 0, password: password.to_owned() }
    }

    fn tell(&mut self, octets: &[u8]) {
        // One that has ended hears nothing; what it said last tells why.
        let _ = writeln!(self.stdin, "S: {}", STANDARD.encode(octets));
    }

    /// Its next message; `None` when it has ended.
    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let fresh = &self.said[self.seen..];
            if let Some(at) = fresh.find("assword: ") {
                self.seen += at + "assword: ".len();
                let password = self.password.clone();
                let _ = writeln!(self.stdin, "{password}");
                continue;
            }
            if let Some((before, line)) = fresh.split_once("C: ")
                && let Some((line, _)) = line.split_once('\n')
            {
                self.seen += before.len() + 3 + line.len() + 1;
                return Some(STANDARD.decode(line.trim()).expect("base64"));
            }
            // Content with what the server sent last: RFC 4954 §4 wants an empty line for that.
            if let Some(at) = fresh.find("Negotiation complete") {
                self.seen += at + 1;
                return Some(Vec::new());
            }
            match self.output.recv_timeout(PATIENCE) {
                Ok(octets) => self.said.push_str(&String::from_utf8_lossy(&octets)),
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Logs in; the last reply of the server, and what the client made of it.
fn log_in(wire: &mut Wire, mechanism: &str, user: &str, password: &str, more: &[&str]) -> String {
    converse(wire, mechanism, Sample::start(mechanism, user, password, more))
}

/// Carries what the two say to each other.
pub fn converse(wire: &mut Wire, mechanism: &str, mut client: Sample) -> String {
    client.tell(mechanism.as_bytes());
    let first = client.next().unwrap_or_else(|| panic!("{mechanism}: {}", client.said));
    // The name, and behind a NUL the initial response if there is one.
    let mut parts = first.splitn(2, |octet| *octet == 0);
    assert_eq!(parts.next(), Some(mechanism.as_bytes()), "{}", client.said);
    let initial = match parts.next() {
        None => String::new(),
        Some(b"") => " =".to_owned(),
        Some(initial) => format!(" {}", STANDARD.encode(initial)),
    };
    let mut reply = wire.ask(&format!("AUTH {mechanism}{initial}")).expect("a reply");
    while let Some(challenge) = reply.strip_prefix("334 ") {
        client.tell(&STANDARD.decode(challenge.trim_end()).expect("base64"));
        let Some(answer) = client.next() else { return format!("the client gave up: {}", client.said) };
        reply = wire.ask(&STANDARD.encode(answer)).expect("a reply");
    }
    reply
}

const MECHANISMS: [&str; 7] =
    ["SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "DIGEST-MD5", "PLAIN", "LOGIN"];

fn server(users: &str) -> Server {
    let top = "users.allow_cleartext = true".to_owned();
    let tables = "\n[mechanism.DIGEST-MD5]\nrealm = \"demo.test\"\n".to_owned();
    let mut server = Server::prepare(Options { mechanisms: MECHANISMS.to_vec(), top, tables, ..Options::default() });
    std::fs::write(server.path("state/auth/users"), users).expect("the users file");
    server.run();
    server
}

fn dial(server: &Server) -> Wire {
    let mut wire =
        Wire::connect(server.submissions(), true, tls_with(server, rustls::ALL_VERSIONS, None)).expect("TLS");
    wire.reply().expect("a greeting");
    assert!(wire.ask("EHLO client.example").expect("EHLO").starts_with("250-"));
    wire
}

/// What is stored serves what it can, and nothing else; nobody learns which it was that was not there.
#[test]
fn every_mechanism_with_every_stored_form() {
    if !present("sasl-sample-client", command_exists("sasl-sample-client")) {
        return;
    }
    // Made by doveadm, openssl and our own `user add`; all of `secret`.
    let forms: [(&str, &str, &[&str]); 9] = [
        ("clear", "{PLAIN}secret", &MECHANISMS),
        ("crypt", "{SHA512-CRYPT}", &[]),
        ("cram", "{CRAM-MD5}cd3ba7deaad6e5ca23448ba42e379747a9e0f7f1fbc00c8a81bbaac395731b56", &["CRAM-MD5"]),
        ("digest", "{DIGEST-MD5}DIGEST", &["DIGEST-MD5"]),
        (
            "scram1",
            "{SCRAM-SHA-1}4096,n7dn3nJWU/PPkQIHt5wLzg==,cH3yUHKb+ANM9y0jLPrxt94L5eQ=,v/y5XEuhH/Q+d0FR43B0wgTXdW0=",
            &["SCRAM-SHA-1"],
        ),
        ("scram256", "SCRAM-SHA-256", &["SCRAM-SHA-256"]),
        ("scram512", "SCRAM-SHA-512", &["SCRAM-SHA-512"]),
        ("several", "SCRAM-SHA-256 CRAM-MD5 DIGEST-MD5", &["SCRAM-SHA-256", "CRAM-MD5", "DIGEST-MD5"]),
        ("none", "", &[]),
    ];
    let server = server("");
    let mut lines = String::new();
    for (user, stored, _) in forms {
        let name = format!("{user}@{DOMAIN}");
        if stored.starts_with("SCRAM") {
            let schemes = stored.split(' ').flat_map(|scheme| ["--scheme", scheme]);
            let mut add = server.command(&["user", "add", &name, "--password-stdin"]);
            let (status, said) = crate::server::feed(add.args(schemes), b"secret\n");
            assert!(status.success(), "{said}");
            continue;
        }
        let stored = match stored {
            stored if stored.starts_with("{SHA512-CRYPT}") => {
                let (status, said) = crate::server::output(
                    Command::new("openssl").args(["passwd", "-6", "-salt", "saltsalt", "secret"]),
                );
                assert!(status.success(), "{said}");
                format!("{{SHA512-CRYPT}}{}", said.trim())
            }
            // MD5("digest:demo.test:secret")
            stored if stored.ends_with("DIGEST") => "{DIGEST-MD5}235c272b051c6e25805fe133dec490ea".to_owned(),
            stored => stored.to_owned(),
        };
        lines += &format!("{name}:{stored}\n");
    }
    let file = server.path("state/auth/users");
    let made = std::fs::read_to_string(&file).expect("the users file");
    std::fs::write(&file, format!("{made}{lines}")).expect("the users file");
    // The last line is in service when its user is known.
    loop {
        let reply = dial(&server)
            .ask(&format!("AUTH PLAIN {}", STANDARD.encode("\0crypt@demo.test\0secret")))
            .expect("a reply");
        if reply.starts_with("235 ") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20)); // between two looks, not instead of one
    }
    let mut done = 0;
    for (user, stored, serves) in forms {
        for mechanism in MECHANISMS {
            let password_mechanism = matches!(mechanism, "PLAIN" | "LOGIN");
            let wanted = !stored.is_empty() && (password_mechanism || serves.contains(&mechanism));
            let name = if mechanism == "DIGEST-MD5" { user.to_owned() } else { format!("{user}@{DOMAIN}") };
            let reply = log_in(&mut dial(&server), mechanism, &name, "secret", &["-r", "demo.test"]);
            let expected = if wanted { "235 2.7.0" } else { "535 5.7.8" };
            assert!(reply.starts_with(expected), "{stored} {mechanism}: {reply}\n{}", server.log());
            done += 1;
        }
        let reply = log_in(&mut dial(&server), "PLAIN", &format!("{user}@{DOMAIN}"), "other", &[]);
        assert!(reply.starts_with("535 5.7.8"), "{stored}: {reply}");
    }
    // A wrong password, and somebody who is not there, for each mechanism.
    for mechanism in MECHANISMS {
        for (user, password) in [("clear", "wrong"), ("nobody", "secret")] {
            let name = if mechanism == "DIGEST-MD5" { user.to_owned() } else { format!("{user}@{DOMAIN}") };
            let reply = log_in(&mut dial(&server), mechanism, &name, password, &["-r", "demo.test"]);
            assert!(reply.starts_with("535 5.7.8"), "{user} {mechanism}: {reply}");
            done += 1;
        }
    }
    assert_eq!(done, forms.len() * MECHANISMS.len() + 2 * MECHANISMS.len());
}

/// GNU SASL's DIGEST-MD5; its other mechanisms are elsewhere.
#[test]
fn gsasl_with_digest_md5() {
    if !present("gsasl", command_exists("gsasl")) {
        return;
    }
    // MD5("digest:demo.test:secret")
    let server = server("digest@demo.test:{DIGEST-MD5}235c272b051c6e25805fe133dec490ea\n");
    for (password, wanted) in [("secret", "235 2.7.0"), ("wrong", "535 5.7.8")] {
        let mut command = Command::new("gsasl");
        command.args(["--smtp", "--verbose", "--x509-ca-file=", "--mechanism", "DIGEST-MD5", "--realm", "demo.test"]);
        command.args(["--quality-of-protection=qop-auth", "--service", "smtp", "--hostname", "mx.demo.test"]);
        // Without one it says authzid="", which RFC 2831 §2.1.2 has no meaning for.
        command.args([
            "--authentication-id",
            "digest",
            "--authorization-id",
            "digest@demo.test",
            "--password",
            password,
        ]);
        command.arg(server.ip.to_string()).arg(server.submission().port().to_string());
        let (_, said) = crate::server::output(&mut command);
        assert!(said.contains(wanted), "{password}: {said}\n{}", server.log());
    }
}

/// SASLprep in its form for queries lets through what Unicode 3.2 did not know (RFC 3454 §7), and names are compared
/// in their prepared form: authzid, authcid and the line of the users file.
#[test]
fn passwords_of_emoji_and_names_in_any_form() {
    if !present("sasl-sample-client", command_exists("sasl-sample-client")) {
        return;
    }
    let server = Server::start_with(Options { mechanisms: MECHANISMS.to_vec(), ..Options::default() });
    let password = "🔑 correct 🐴 battery";
    let mut add = server.command(&["user", "add", "josé@demo.test", "--password-stdin", "--scheme", "scram-sha-256"]);
    let (status, said) =
        crate::server::feed(add.args(["--scheme", "scram-sha-512"]), format!("{password}\n").as_bytes());
    assert!(status.success(), "{said}");
    loop {
        let message = STANDARD.encode(format!("\0josé@demo.test\0{password}"));
        if dial(&server).ask(&format!("AUTH PLAIN {message}")).expect("a reply").starts_with("235 ") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20)); // between two looks, not instead of one
    }
    for mechanism in ["PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let reply = log_in(&mut dial(&server), mechanism, "josé@demo.test", password, &[]);
        assert!(reply.starts_with("235 2.7.0"), "{mechanism}: {reply}");
        let reply = log_in(&mut dial(&server), mechanism, "josé@demo.test", "🔑 correct 🐴 batterz", &[]);
        assert!(reply.starts_with("535 5.7.8"), "{mechanism}: {reply}");
    }
    for (authzid, authcid, wanted) in [
        ("", "JOSÉ@Demo.Test", "235 2.7.0"),
        ("josé@demo.test", "JOSE\u{301}@demo.test", "235 2.7.0"),
        ("JOSE\u{301}@DEMO.test", "josé@demo.test", "235 2.7.0"),
        ("jose@demo.test", "josé@demo.test", "535 5.7.8"),
        ("", "jose@demo.test", "535 5.7.8"),
        ("", "jos\u{aa}@demo.test", "535 5.7.8"),
    ] {
        let message = STANDARD.encode(format!("{authzid}\0{authcid}\0{password}"));
        let reply = dial(&server).ask(&format!("AUTH PLAIN {message}")).expect("a reply");
        assert!(reply.starts_with(wanted), "{authzid:?} {authcid:?}: {reply}");
    }
}
