//! Real clients against the built program: each submits on 587 after STARTTLS and on 465 with PLAIN, LOGIN and
//! CRAM-MD5, is told 530 before AUTH, delivers to local recipients on 25, and is no stranger's relay.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::mechanisms::cram_md5;
use crate::replies::Reply;
use crate::runners::await_that;
use crate::server::{Options, PATIENCE, Server, feed, output, root};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Channel {
    Clear,
    StartTls,
    Tls,
}

/// One message to send.
struct Job<'a> {
    server: &'a Server,
    address: SocketAddr,
    tls: Channel,
    mechanism: Option<&'static str>,
    from: &'a str,
    to: &'a str,
    /// The message with CRLF, and with LF.
    crlf: PathBuf,
    lf: PathBuf,
}

const MECHANISMS: [&str; 5] = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5"];

/// For clients that know no better.
fn is_old(mechanism: Option<&str>) -> bool {
    mechanism.is_none_or(|name| !name.starts_with("SCRAM"))
}

const USER: &str = "alice@demo.test";
const PASSWORD: &str = "secret";

/// Date and Message-ID are there, so that nothing needs to be added; dots at the beginning of lines, a long
/// line and octets beyond ASCII must survive.
fn message(subject: &str) -> String {
    format!(
        "Date: Thu, 1 Jan 1970 00:00:00 +0000\r\nFrom: Alice <{USER}>\r\nTo: <bob@demo.test>\r\nSubject: {subject}\r\n\
         Message-ID: <{}@client.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n.one dot\r\n..two dots\r\n{}\r\n\r\nend\r\n",
        subject.replace(' ', "-"),
        "x".repeat(900),
    )
}

/// Whether a client is there; without it a test fails where CI=true and says so elsewhere.
pub fn present(client: &str, there: bool) -> bool {
    if !there {
        let why = format!("{client} is not installed; tests/setup installs it");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        eprintln!("SKIPPED: {why}");
    }
    there
}

pub fn command_exists(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).exists()))
}

/// What a stored message must be: our header lines, then the octets that were sent (CRLF taken as LF).
fn check_stored(stored: &[u8], sent: &str, to: &str, keyword: &str) {
    let sent = sent.replace("\r\n", "\n");
    let text = String::from_utf8_lossy(stored);
    let ours = text
        .strip_suffix(sent.as_str())
        .unwrap_or_else(|| panic!("not the message that was sent:\n{text}\n---\n{sent}"));
    let unfolded = ours.replace("\n\t", " ").replace("\n ", " ");
    let mut received = 0;
    for line in unfolded.lines() {
        let name = line.split(':').next().unwrap_or_default();
        assert!(matches!(name, "Return-Path" | "Received" | "Delivered-To"), "a header line of ours: {line}");
        received += usize::from(name == "Received");
    }
    assert_eq!(received, 1, "{ours}");
    assert!(unfolded.starts_with("Return-Path: <"), "RFC 5321 §4.4: {ours}");
    let trace = unfolded.lines().find(|line| line.starts_with("Received:")).unwrap_or_default();
    for part in [" by mx.demo.test ", &format!(" with {keyword} "), &format!(" for <{to}>"), " id "] {
        assert!(trace.contains(part), "no {part:?} in {trace}");
    }
    // RFC 8314 §4.3: the clause tells the cipher suite, after FOR.
    assert_eq!(trace.contains(" tls TLS_"), keyword.contains("PS"), "{trace}");
    assert!(trace.ends_with(" +0000"), "{trace}");
    if keyword.contains("PSA") && to.ends_with("demo.test") {
        assert!(!trace.contains("127."), "the address of a submitting client is withheld: {trace}");
    }
}

/// Everything that is asked of every client.
fn exercise(client: &str, can: &dyn Fn(Channel, Option<&str>) -> bool, run: &dyn Fn(&Job<'_>) -> (bool, String)) {
    let server = Server::start_with(Options { mechanisms: MECHANISMS.to_vec(), ..Options::default() });
    let (mut to_bob, mut done) = (0, 0);
    let job = |address, tls, mechanism, to, subject: &str| {
        let (crlf, lf) = (server.path("message.crlf"), server.path("message.lf"));
        fs::write(&crlf, message(subject)).expect("a message");
        fs::write(&lf, message(subject).replace("\r\n", "\n")).expect("a message");
        Job { server: &server, address, tls, mechanism, from: USER, to, crlf, lf }
    };
    for (tls, address) in [(Channel::StartTls, server.submission()), (Channel::Tls, server.submissions())] {
        for mechanism in MECHANISMS {
            if !can(tls, Some(mechanism)) {
                continue;
            }
            let subject = format!("{client} {tls:?} {mechanism}");
            let (good, said) = run(&job(address, tls, Some(mechanism), "bob@demo.test", &subject));
            assert!(good, "{subject}: {said}");
            to_bob += 1;
            let stored = server.mail("bob", to_bob);
            let own =
                stored.iter().find(|stored| String::from_utf8_lossy(stored).contains(&format!("Subject: {subject}\n")));
            let own = own.unwrap_or_else(|| panic!("{subject}: not in the Maildir"));
            check_stored(own, &message(&subject), "bob@demo.test", "ESMTPSA");
            done += 1;
        }
        if can(tls, None) {
            let (good, said) = run(&job(address, tls, None, "bob@demo.test", "nobody"));
            assert!(!good && said.contains("530") && said.contains("5.7.0"), "{client} {tls:?} before AUTH: {said}");
            done += 1;
        }
    }
    if can(Channel::Clear, None) {
        let (good, said) = run(&job(server.mx(), Channel::Clear, None, "alice@demo.test", "local"));
        assert!(good, "{client} to a local recipient: {said}");
        check_stored(&server.mail("alice", 1)[0], &message("local"), "alice@demo.test", "ESMTP");
        for (to, code, enhanced) in [("nobody@demo.test", "550", "5.1.1"), ("x@far.example", "550", "5.7.1")] {
            let (good, said) = run(&job(server.mx(), Channel::Clear, None, to, "refused"));
            assert!(!good && said.contains(code) && said.contains(enhanced), "{client} to {to}: {said}");
        }
        done += 3;
    }
    if can(Channel::StartTls, Some("PLAIN")) {
        let (good, said) = run(&job(server.mx(), Channel::StartTls, Some("PLAIN"), "x@far.example", "relayed"));
        assert!(good, "{client} relaying after AUTH: {said}");
        check_stored(&server.mail("outbound", 1)[0], &message("relayed"), "x@far.example", "ESMTPSA");
        done += 1;
    }
    assert!(done >= 3, "{client}: only {done} jobs");
    assert_eq!(server.mail("bob", to_bob).len(), to_bob, "nothing of the refused messages is stored");
}

fn host(job: &Job<'_>) -> (String, String) {
    (job.address.ip().to_string(), job.address.port().to_string())
}

fn finish(command: &mut Command) -> (bool, String) {
    let (status, said) = output(command);
    (status.success(), said)
}

#[test]
fn swaks() {
    if !present("swaks", command_exists("swaks")) {
        return;
    }
    exercise("swaks", &|_, mechanism| is_old(mechanism), &|job| {
        let (host, port) = host(job);
        let mut command = Command::new("swaks");
        command.args([
            "--server",
            &host,
            "--port",
            &port,
            "--ehlo",
            "client.example",
            "--from",
            job.from,
            "--to",
            job.to,
        ]);
        // It ends the message with a line end of its own.
        let text = fs::read_to_string(&job.lf).expect("a message");
        fs::write(&job.lf, text.strip_suffix('\n').unwrap_or(&text)).expect("a message");
        command.arg("--data").arg(format!("@{}", job.lf.display()));
        match job.tls {
            Channel::Clear => {}
            Channel::StartTls => drop(command.arg("--tls")),
            Channel::Tls => drop(command.arg("--tls-on-connect")),
        }
        if let Some(mechanism) = job.mechanism {
            command.args(["--auth", mechanism, "--auth-user", USER, "--auth-password", PASSWORD]);
        }
        finish(&mut command)
    });
}

#[test]
fn curl() {
    if !present("curl", command_exists("curl")) {
        return;
    }
    exercise("curl", &|_, mechanism| is_old(mechanism), &|job| {
        let (host, port) = host(job);
        let scheme = if job.tls == Channel::Tls { "smtps" } else { "smtp" };
        let mut command = Command::new("curl");
        command.args(["-sS", "-v", "--max-time", "15", "--mail-from", job.from, "--mail-rcpt", job.to]);
        // By name, so that the certificate is verified as a client in earnest would.
        command.args(["--resolve", &format!("mx.demo.test:{port}:{host}")]);
        command.args(["--url", &format!("{scheme}://mx.demo.test:{port}/client.example")]);
        command.arg("--cacert").arg(job.server.certificate_files().0).arg("-T").arg(&job.crlf);
        if job.tls == Channel::StartTls {
            command.arg("--ssl-reqd");
        }
        if let Some(mechanism) = job.mechanism {
            command.args(["--user", &format!("{USER}:{PASSWORD}"), "--login-options", &format!("AUTH={mechanism}")]);
        }
        finish(&mut command)
    });
}

#[test]
fn msmtp() {
    if !present("msmtp", command_exists("msmtp")) {
        return;
    }
    exercise("msmtp", &|_, mechanism| mechanism != Some("SCRAM-SHA-256-PLUS"), &|job| {
        let (host, port) = host(job);
        let mut command = Command::new("msmtp");
        command.arg("--file=/dev/null").args([format!("--host={host}"), format!("--port={port}")]);
        command.args(["--domain=client.example", "--debug", "--timeout=15", &format!("--from={}", job.from)]);
        match job.tls {
            Channel::Clear => drop(command.arg("--tls=off")),
            Channel::StartTls => drop(command.args(["--tls=on", "--tls-starttls=on", "--tls-certcheck=off"])),
            Channel::Tls => drop(command.args(["--tls=on", "--tls-starttls=off", "--tls-certcheck=off"])),
        }
        if let Some(mechanism) = job.mechanism {
            command.args([format!("--auth={}", mechanism.to_lowercase()), format!("--user={USER}")]);
            command.arg(format!("--passwordeval=echo {PASSWORD}"));
        }
        let (status, said) = feed(command.arg("--").arg(job.to), &fs::read(&job.lf).expect("a message"));
        (status.success(), said)
    });
}

/// What the two scripts are told.
fn told(job: &Job<'_>) -> String {
    json!({
        "host": job.address.ip().to_string(),
        "port": job.address.port(),
        "tls": match job.tls { Channel::Clear => "none", Channel::StartTls => "starttls", Channel::Tls => "implicit" },
        "mechanism": job.mechanism,
        "user": USER,
        "password": PASSWORD,
        "from": job.from,
        "to": job.to,
        "message": job.crlf,
        "certificate": job.server.certificate_files().0,
    })
    .to_string()
}

fn clients() -> PathBuf {
    root().join("tests/clients")
}

#[test]
fn smtplib() {
    if !present("python3", command_exists("python3")) {
        return;
    }
    exercise("smtplib", &|_, mechanism| is_old(mechanism), &|job| {
        finish(Command::new("python3").arg(clients().join("send.py")).arg(told(job)))
    });
}

#[test]
fn nodemailer() {
    let installed = Path::exists(&clients().join("node_modules/nodemailer"));
    if !present("nodemailer", command_exists("node") && installed) {
        return;
    }
    exercise("nodemailer", &|_, mechanism| is_old(mechanism), &|job| {
        finish(Command::new("node").arg(clients().join("send.mjs")).arg(told(job)))
    });
}

/// gsasl knows STARTTLS and AUTH; after that it carries lines, so the transaction is ours.
#[test]
fn gsasl() {
    if !present("gsasl", command_exists("gsasl")) {
        return;
    }
    exercise("gsasl", &|tls, mechanism| tls == Channel::StartTls && mechanism.is_some(), &|job| {
        let (host, port) = host(job);
        // Its input unbuffered: it polls the descriptor, and would not see lines that stdio has read already.
        let mut command = Command::new("stdbuf");
        command.args(["-i0", "-oL", "gsasl"]);
        command.args(["--client", "--smtp", "--verbose", &format!("--connect={host}:{port}")]);
        command.args([
            "--mechanism",
            job.mechanism.unwrap_or_default(),
            "--authentication-id",
            USER,
            "--password",
            PASSWORD,
        ]);
        // SCRAM has no empty authorization identity (RFC 5802 §7).
        let authzid = if is_old(job.mechanism) { "" } else { USER };
        command.args(["--authorization-id", authzid, "--hostname", "mx.demo.test", "--service", "smtp"]);
        // It compares the name in the certificate with the address that it connects to; an empty file turns that off.
        command.arg("--x509-ca-file=");
        if job.mechanism == Some("SCRAM-SHA-256") {
            // Else it says that it could have bound itself, which is a downgrade where -PLUS is offered.
            command.arg("--no-cb");
        }
        let stuffed = stuffed(job);
        let lines = format!("MAIL FROM:<{}>\r\nRCPT TO:<{}>\r\nDATA\r\n{stuffed}.\r\nQUIT\r\n", job.from, job.to);
        let mut client = Talk::spawn(&mut command);
        let sent = client.stdin.write_all(lines.as_bytes());
        // It ends without reading on when its input ends, so that stays open.
        let good = sent.is_ok() && client.until("\n250 2.0.0 ");
        client.end();
        (good, String::from_utf8_lossy(&client.unread).into_owned())
    });
}

/// The message as DATA wants it (RFC 5321 §4.5.2).
fn stuffed(job: &Job<'_>) -> String {
    fs::read_to_string(&job.crlf).expect("a message").replace("\r\n.", "\r\n..")
}

/// A client that carries lines of ours.
struct Talk {
    child: Child,
    stdin: ChildStdin,
    heard: Receiver<Vec<u8>>,
    unread: Vec<u8>,
    transcript: String,
}

impl Talk {
    /// `openssl s_client` as a pipe.
    fn s_client(job: &Job<'_>) -> Self {
        let (host, port) = host(job);
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect", &format!("{host}:{port}"), "-servername", "mx.demo.test"]);
        command.args(["-verify_return_error", "-partial_chain", "-verify_hostname", "mx.demo.test"]);
        command.arg("-CAfile").arg(job.server.certificate_files().0);
        if job.tls == Channel::StartTls {
            command.args(["-starttls", "smtp", "-name", "client.example"]);
        }
        Self::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Self {
        Self::spawn_with(command, Stdio::null())
    }

    fn spawn_with(command: &mut Command, stderr: Stdio) -> Self {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = pipes.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdin, mut stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (told, heard) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(octets @ 1..) = stdout.read(&mut buffer) {
                if told.send(buffer[..octets].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, stdin, heard, unread: Vec::new(), transcript: String::new() }
    }

    /// Reads until this was said.
    fn until(&mut self, wanted: &str) -> bool {
        while !self.unread.windows(wanted.len()).any(|part| part == wanted.as_bytes()) {
            let Ok(octets) = self.heard.recv_timeout(PATIENCE) else { return false };
            self.unread.extend(octets);
        }
        true
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn reply(&mut self) -> Result<String, String> {
        loop {
            if let Some((reply, rest)) = Reply::first_in(&self.unread)? {
                let text = String::from_utf8_lossy(reply.octets).into_owned();
                self.unread = rest.to_vec();
                self.transcript += &text;
                return Ok(text);
            }
            self.unread.extend(self.heard.recv_timeout(PATIENCE).map_err(|_| "the client ended".to_owned())?);
        }
    }

    fn ask(&mut self, line: &str, wanted: &str) -> Result<String, String> {
        self.stdin.write_all(format!("{line}\r\n").as_bytes()).map_err(|error| error.to_string())?;
        let reply = self.reply()?;
        if reply.starts_with(wanted) { Ok(reply) } else { Err(reply) }
    }

    fn submit(&mut self, job: &Job<'_>) -> Result<(), String> {
        if job.tls == Channel::Tls {
            self.reply()?;
        }
        // After its own STARTTLS some versions show the last line of the EHLO reply in clear.
        match self.ask("EHLO client.example", "250-") {
            Err(rest) if job.tls == Channel::StartTls && rest.starts_with("250 ") => drop(self.reply()?),
            other => drop(other?),
        }
        match job.mechanism {
            Some("PLAIN") => {
                self.ask(&format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{USER}\0{PASSWORD}"))), "235 2.7.0")?;
            }
            Some("LOGIN") => {
                self.ask("AUTH LOGIN", "334 VXNlcm5hbWU6")?;
                self.ask(&STANDARD.encode(USER), "334 UGFzc3dvcmQ6")?;
                self.ask(&STANDARD.encode(PASSWORD), "235 2.7.0")?;
            }
            Some(_) => {
                let challenge = self.ask("AUTH CRAM-MD5", "334 ")?;
                let challenge = STANDARD.decode(challenge[4..].trim()).map_err(|error| error.to_string())?;
                let response = format!("{USER} {}", cram_md5(PASSWORD.as_bytes(), &challenge));
                self.ask(&STANDARD.encode(response), "235 2.7.0")?;
            }
            None => {}
        }
        self.ask(&format!("MAIL FROM:<{}>", job.from), "250 2.1.0")?;
        self.ask(&format!("RCPT TO:<{}>", job.to), "250 2.1.5")?;
        self.ask("DATA", "354 ")?;
        self.ask(&format!("{}.", stuffed(job)), "250 2.0.0")?;
        self.ask("QUIT", "221 2.0.0").map(|_| ())
    }
}

#[test]
fn openssl_s_client() {
    if !present("openssl", command_exists("openssl")) {
        return;
    }
    exercise("openssl s_client", &|tls, mechanism| tls != Channel::Clear && is_old(mechanism), &|job| {
        let mut client = Talk::s_client(job);
        let outcome = client.submit(job);
        client.end();
        let good = outcome.is_ok();
        (good, format!("{}{}", client.transcript, outcome.err().unwrap_or_default()))
    });
}

/// RFC 8446 §4.6.3 with another implementation: new keys of the client alone (`k`) and of both (`K`), between commands
/// and within a message that fills hundreds of records.
#[test]
fn openssl_s_client_changes_keys() {
    if !present("openssl", command_exists("openssl")) {
        return;
    }
    let server = Server::start();
    let suites = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    for (number, suite) in suites.into_iter().enumerate() {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-tls1_3", "-ciphersuites", suite, "-servername", "mx.demo.test"]);
        command.args(["-connect", &server.submissions().to_string()]);
        let mut client = Talk::spawn_with(&mut command, Stdio::piped());
        let mut told = BufReader::new(client.child.stderr.take().expect("piped"));
        // A read of standard input that begins with such a letter is a command, all of it. So it is written at once and
        // read alone, and no line for the server has these letters.
        let mut change = |client: &mut Talk, letter: &str| {
            await_that("the client reads", || rustix::io::ioctl_fionread(&client.stdin) == Ok(0));
            client.stdin.write_all(format!("{letter}\n").as_bytes()).expect("a client");
            let mut line = String::new();
            while !line.contains("KEYUPDATE") {
                line.clear();
                assert!(told.read_line(&mut line).expect("a pipe") > 0, "{suite}: the client ended");
            }
        };
        let ask = |client: &mut Talk, line: &str, wanted: &str| {
            client.unread.clear();
            write!(client.stdin, "{line}\r\n").expect("a client");
            assert!(client.until(wanted), "{suite}: {line}: {}", String::from_utf8_lossy(&client.unread));
        };
        assert!(client.until("220 mx.demo.test"), "{suite}: {}", String::from_utf8_lossy(&client.unread));
        ask(&mut client, "ehlo client.example", "\r\n250 ");
        for letter in ["k", "K", "K", "k", "k", "K"] {
            change(&mut client, letter);
            ask(&mut client, "noop", "250 2.0.0");
        }
        ask(&mut client, &format!("auth PLAIN {}", STANDARD.encode(format!("\0{USER}\0{PASSWORD}"))), "235 2.7.0");
        ask(&mut client, &format!("mail from:<{USER}>"), "250 2.1.0");
        change(&mut client, "K");
        ask(&mut client, "rcpt to:<bob@demo.test>", "250 2.1.5");
        ask(&mut client, "data", "354 ");
        let line = format!("{}\r\n", "x".repeat(900));
        write!(client.stdin, "from: <{USER}>\r\nto: <bob@demo.test>\r\nsubject: {number}\r\n\r\n").expect("a client");
        for letter in ["K", "k", "K"] {
            client.stdin.write_all(line.repeat(1200).as_bytes()).expect("a client");
            change(&mut client, letter);
        }
        ask(&mut client, ".", "250 2.0.0");
        ask(&mut client, "quit", "221 2.0.0");
        client.end();
        let stored = server.mail("bob", number + 1);
        let body = format!("subject: {number}\n\n{}", line.replace('\r', "").repeat(3600));
        assert!(stored.iter().any(|message| message.ends_with(body.as_bytes())), "{suite}: another message");
    }
}
