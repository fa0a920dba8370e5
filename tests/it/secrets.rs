//! Passwords and tokens are in no log at any level, and in no memory once they were used: whatever a client does
//! with them, in every process of the server, also when it said them where they do not belong.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Pid;

use crate::mechanisms::cram_md5;
use crate::runners::{Client, await_that};
use crate::scram::{Hash, Proof};
use crate::server::{Options, Server, feed};
use crate::wire::{Wire, tls};

/// Nothing else looks like it.
const MARKER: &str = "Kanarienvogel-77-xQz";
const TOKEN: &str = "TokenDesKanarienvogels77xQzWv";
const ALICE: &str = "alice@demo.test";

/// A marker in all the forms that somebody would find it in.
struct Needles(Vec<(&'static str, Vec<u8>)>);

impl Needles {
    fn new() -> Self {
        let mut all = Vec::new();
        for marker in [MARKER, TOKEN] {
            all.push(("as it is", marker.as_bytes().to_vec()));
            all.push(("reversed", marker.bytes().rev().collect()));
            all.push(("in hexadecimal", marker.bytes().map(|octet| format!("{octet:02x}")).collect::<String>().into()));
            // Wherever it stands in what was encoded: without the characters that its neighbours share.
            for before in 0..3 {
                let text = STANDARD.encode([&vec![b'-'; before], marker.as_bytes()].concat());
                let first = [0, 2, 3][before];
                let last = (before + marker.len()) * 4 / 3;
                all.push(("in base64", text.as_bytes()[first..last].to_vec()));
            }
        }
        Self(all)
    }

    /// What is found in `octets`.
    fn find(&self, octets: &[u8]) -> Vec<(usize, &'static str)> {
        let mut first = [false; 256];
        self.0.iter().for_each(|(_, needle)| first[usize::from(needle[0])] = true);
        let starts = octets.iter().enumerate().filter(|(_, octet)| first[usize::from(**octet)]);
        starts
            .filter_map(|(at, _)| {
                let found = self.0.iter().find(|(_, needle)| octets[at..].starts_with(needle))?;
                Some((at, found.0))
            })
            .collect()
    }
}

/// Everything that a process may write to, and what is found there.
fn scan(pid: Pid, needles: &Needles) -> Result<Vec<String>, std::io::Error> {
    let pid = pid.as_raw_nonzero();
    let (maps, memory) = (fs::read_to_string(format!("/proc/{pid}/maps"))?, File::open(format!("/proc/{pid}/mem"))?);
    let mut found = Vec::new();
    let mut chunk = vec![0; 1 << 20];
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        let name = words.nth(3).unwrap_or("anonymous");
        // What nobody can write to came from a file; what is the kernel's cannot be read.
        if !rights.starts_with("rw") || name == "[vvar]" {
            continue;
        }
        let Some((from, to)) = range.split_once('-') else { continue };
        let [mut at, end] = [from, to].map(|hex| u64::from_str_radix(hex, 16).expect("an address"));
        while at < end {
            let octets = usize::try_from(end - at).map_or(chunk.len(), |left| left.min(chunk.len()));
            // A part that is not there (yet, or any more) holds nothing.
            let Ok(read) = memory.read_at(&mut chunk[..octets], at) else { break };
            if read == 0 {
                break;
            }
            for (offset, how) in needles.find(&chunk[..read]) {
                let around = &chunk[offset.saturating_sub(60)..read.min(offset + 80)];
                found.push(format!("{how} at {:x} of {name}: {}", at + offset as u64, around.escape_ascii()));
            }
            // Across the border of two chunks, too.
            at += if read == chunk.len() { read as u64 - 128 } else { read as u64 };
        }
    }
    Ok(found)
}

fn server(runner: &str) -> Server {
    let tables = format!(
        "level = \"debug\"\n[[plugins.library]]\nid = \"standard\"\nrunner = \"{runner}\"\n\
         [[plugins.library]]\nid = \"legacy\"\nrunner = \"{runner}\"\n"
    );
    let mechanisms = vec!["SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5", "OAUTHBEARER", "XOAUTH2"];
    let listener = "cleartext_auth_nets = [\"127.0.0.0/8\"]".to_owned();
    let mut server = Server::prepare(Options { mechanisms, listener, tables, ..Options::default() });
    let mut passwd = server.command(&["user", "passwd", ALICE, "--password-stdin", "--cram-md5"]);
    let (status, text) = feed(&mut passwd, format!("{MARKER}\n").as_bytes());
    assert!(status.success(), "{text}");
    server.run();
    server
}

fn plain(password: &str) -> String {
    STANDARD.encode(format!("\0{ALICE}\0{password}"))
}

/// Says each line, and wants replies that begin so.
fn play(client: &mut Client, lines: &[(&str, &str)]) {
    for (line, expected) in lines {
        let reply = client.ask(line);
        assert!(reply.starts_with(expected), "{expected} expected: {reply}");
    }
}

/// Every way in which a client may come to say a secret.
fn say_it_everywhere(server: &Server) {
    let (right, wrong) = (plain(MARKER), plain(&format!("{MARKER}x")));
    let (user, word) = (STANDARD.encode(ALICE), STANDARD.encode(MARKER));
    let long = STANDARD.encode(MARKER.repeat(4_000));
    let oauth = STANDARD.encode(format!("n,a={ALICE},\x01auth=Bearer {TOKEN}\x01\x01"));
    let xoauth2 = STANDARD.encode(format!("user={ALICE}\x01auth=Bearer {TOKEN}\x01\x01"));
    let dialogues: &[&[(&str, &str)]] = &[
        // Inline and continued, in any case, right.
        &[(&format!("AUTH PLAIN {right}"), "235 ")],
        &[("AUTH PLAIN", "334"), (&right, "235 ")],
        &[(&format!("auth login {user}"), "334"), (&word, "235 ")],
        &[("AUTH LOGIN", "334"), (&user, "334"), (&word, "235 ")],
        // Wrong, and then as a command.
        &[(&format!("AUTH PLAIN {wrong}"), "535 "), (&wrong, "500 "), (MARKER, "500 ")],
        &[("AUTH LOGIN", "334"), (&user, "334"), (&STANDARD.encode(format!("{MARKER}x")), "535 "), (&word, "500 ")],
        // Given up, malformed, too long.
        &[("AUTH PLAIN", "334"), ("*", "501 "), (&right, "500 ")],
        &[("AUTH LOGIN", "334"), (&user, "334"), ("*", "501 "), (&word, "500 ")],
        &[(&format!("AUTH PLAIN {right}!"), "501 "), (&format!("AUTH PLAIN \0{MARKER}"), "50")],
        &[(&format!("AUTH PLAIN {}", STANDARD.encode(MARKER)), "501 ")],
        &[(&format!("AUTH PLAIN {long}"), "500 "), ("AUTH PLAIN", "334"), (&long, "500 ")],
        &[(&format!("AUTH LOGIN {user} {word}"), "501 ")],
        // Where there is no AUTH: after success, in a transaction, of no known mechanism, as an argument of others.
        &[(&format!("AUTH PLAIN {right}"), "235 "), (&format!("AUTH PLAIN {right}"), "503 ")],
        &[("MAIL FROM:<>", "250 "), (&format!("AUTH PLAIN {right}"), "503 ")],
        &[(&format!("AUTH X-NONE {right}"), "504 "), (&format!("XCLIENT {MARKER}"), "50")],
        &[(&format!("AUTH CRAM-MD5 {right}"), "501 "), ("AUTH CRAM-MD5", "334"), (&right, "5")],
        // Tokens.
        &[(&format!("AUTH XOAUTH2 {xoauth2}"), ""), ("", ""), (&xoauth2, "500 ")],
        &[(&format!("AUTH OAUTHBEARER {oauth}"), ""), ("AQ==", ""), (&oauth, "500 "), (TOKEN, "500 ")],
    ];
    for dialogue in dialogues {
        play(&mut Client::connect(server.mx()), dialogue);
    }
    // Before EHLO.
    let mut wire = Wire::connect(server.submission(), false, tls(server)).expect("a connection");
    wire.reply().expect("a greeting");
    wire.ask(&format!("AUTH PLAIN {right}")).expect("a reply");
    // Mechanisms that keep the password for themselves.
    let mut client = Client::connect(server.mx());
    let mut proof = Proof::new(Hash::Sha256, ALICE, MARKER);
    let challenge = client.ask(&proof.auth());
    assert!(client.ask(&proof.answer(&challenge)).starts_with("334 "));
    assert!(client.ask("").starts_with("235 "));
    let mut client = Client::connect(server.mx());
    let challenge = client.ask("AUTH CRAM-MD5");
    let challenge = STANDARD.decode(challenge.trim().trim_start_matches("334 ")).expect("base64");
    let answer = format!("{ALICE} {}", cram_md5(MARKER.as_bytes(), &challenge));
    assert!(client.ask(&STANDARD.encode(answer)).starts_with("235 "));
    // Too early: all in one write.
    let mut client = Client::connect(server.mx());
    client.say(&format!("AUTH LOGIN\r\n{user}\r\n{word}\r\nNOOP"));
    for expected in ["334", "334", "235 ", "250 "] {
        let reply = client.reply();
        assert!(reply.starts_with(expected), "{reply}");
    }
    // Half a line, and gone.
    let mut client = Client::connect(server.mx());
    client.say(&format!("NOOP\r\nAUTH PLAIN {right}\r\nNOOP\r\nAUTH PLAIN {}", &right[..right.len() - 4]));
    assert!(client.reply().starts_with("250 "));
    drop(client);
}

/// A thousand logins over TLS, right and wrong.
fn log_in_a_thousand_times(server: &Server) {
    let config = tls(server);
    let (right, wrong) = (plain(MARKER), plain(&format!("{MARKER}x")));
    for round in 0..500 {
        let mut wire = Wire::connect(server.submissions(), true, config.clone()).expect("a connection");
        wire.reply().expect("a greeting");
        wire.ask("EHLO client.example").expect("EHLO");
        // The third failure is the last: so 250 right ones, and 750 wrong ones.
        let (attempts, word, expected) = if round % 2 == 0 { (1, &right, "235 ") } else { (3, &wrong, "535 ") };
        for _ in 0..attempts {
            let reply = wire.ask(&format!("AUTH PLAIN {word}")).expect("a reply");
            assert!(reply.starts_with(expected), "{reply}");
        }
    }
}

/// Half a line is kept until the rest comes, so there the scan has to find something; and nothing afterwards.
fn the_scan_finds_what_is_there(server: &Server, needles: &Needles) {
    let workers = server.processes()["worker"].clone();
    let copies = || -> Option<usize> {
        let found: Result<Vec<_>, _> = workers.iter().map(|pid| scan(*pid, needles)).collect();
        found.ok().map(|found| found.iter().map(Vec::len).sum())
    };
    let mut stream = std::net::TcpStream::connect(server.mx()).expect("a server");
    stream.write_all(format!("AUTH PLAIN {}", plain(MARKER)).as_bytes()).expect("sent");
    if copies().is_none() {
        assert!(!rustix::process::geteuid().is_root(), "root may read everything");
        return println!("SKIPPED: memory can be read by root only");
    }
    await_that("half a line in memory", || copies() > Some(0));
    drop(stream);
    await_that("its end", || copies() == Some(0));
}

#[test]
fn no_log_and_no_memory_keeps_a_password() {
    let needles = Needles::new();
    // They find what they should.
    let text = STANDARD.encode(format!("\0a\0{MARKER}")) + &format!(" {TOKEN} ") + &STANDARD.encode(MARKER);
    assert_eq!(needles.find(text.as_bytes()).len(), 3);
    for runner in ["inline", "process"] {
        let server = server(runner);
        the_scan_finds_what_is_there(&server, &needles);
        say_it_everywhere(&server);
        log_in_a_thousand_times(&server);
        say_it_everywhere(&server);
        let log = fs::read(server.path("log")).expect("a log");
        assert!(log.windows(7).filter(|window| window == b"\"login\"").count() > 100, "the log tells of logins");
        let found: Vec<String> = needles.find(&log).into_iter().map(|(at, how)| format!("{how} at {at}")).collect();
        assert!(found.is_empty(), "{runner}: in the log {found:?}");

        let mut processes: BTreeMap<String, Vec<Pid>> = server.processes();
        processes.insert("supervisor".into(), vec![server.pid()]);
        assert_eq!(processes.contains_key("mechanism-host"), runner == "process");
        for (role, pids) in processes {
            for pid in pids {
                // Debuggers are kept out of these processes; root is not.
                let mut last = match scan(pid, &needles) {
                    Ok(found) => found,
                    Err(error) if rustix::process::geteuid().is_root() => panic!("{role}: {error}"),
                    Err(error) => {
                        println!("SKIPPED: memory of the {role} can be read by root only: {error}");
                        continue;
                    }
                };
                println!("{runner}, {role} {pid:?}: {} at once", last.len());
                let until = std::time::Instant::now() + crate::server::PATIENCE;
                while !last.is_empty() && std::time::Instant::now() < until {
                    last = scan(pid, &needles).expect("as before");
                }
                assert!(last.is_empty(), "{runner}: the {role} keeps {} copies: {last:#?}", last.len());
            }
        }
        await_that("an answer", || Client::connect(server.mx()).ask("NOOP").starts_with("250 "));
    }
}
