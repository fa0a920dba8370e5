//! What is said on the wire, heard by a server that writes it down.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// What clients said, by connection, and where they came from.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(SocketAddr, String)>>>);

impl Heard {
    fn all(&self) -> Vec<(SocketAddr, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn text(&self) -> String {
        self.all().into_iter().map(|(_, text)| text).collect()
    }
}

/// A server that is as honest as can be, offers `extensions` and writes down what it hears. DATA, BDAT, LMTP.
fn listening(extensions: &'static str) -> (Fake, Heard) {
    let heard = Heard::default();
    let kept = heard.clone();
    let fake = Fake::new(move |mut stream, _| {
        let place = {
            let mut all = kept.0.lock().unwrap();
            all.push((stream.peer_addr().unwrap(), String::new()));
            all.len() - 1
        };
        let note = |text: &str| kept.0.lock().unwrap()[place].1.push_str(text);
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let (mut recipients, mut lmtp) = (0_usize, false);
        let mut say = |text: &str| stream.write_all(text.as_bytes()).is_ok();
        say("220 fake ESMTP\r\n");
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|octets| octets > 0) {
            note(&line);
            let words: Vec<&str> = line.split_whitespace().collect();
            let word = words.first().map(|word| word.to_ascii_uppercase()).unwrap_or_default();
            let go_on = match word.as_str() {
                "EHLO" | "LHLO" => {
                    lmtp = word == "LHLO";
                    let all: Vec<&str> = extensions.split(',').filter(|name| !name.is_empty()).collect();
                    let offered: String = all.iter().map(|name| format!("250-{name}\r\n")).collect();
                    say(&format!("250-fake\r\n{offered}250 HELP\r\n"))
                }
                "MAIL" => {
                    recipients = 0;
                    say("250 ok\r\n")
                }
                "RCPT" => {
                    recipients += 1;
                    say("250 ok\r\n")
                }
                "AUTH" if words.len() == 2 => {
                    say("334 \r\n");
                    let mut response = String::new();
                    lines.read_line(&mut response).unwrap();
                    note(&response);
                    say("235 ok\r\n")
                }
                "AUTH" => say("235 ok\r\n"),
                "BDAT" => {
                    let mut chunk = vec![0; words[1].parse().unwrap()];
                    lines.read_exact(&mut chunk).unwrap();
                    note(&String::from_utf8_lossy(&chunk));
                    say("250 taken\r\n")
                }
                "DATA" => {
                    say("354 go\r\n");
                    loop {
                        let mut data = Vec::new();
                        lines.read_until(b'\n', &mut data).unwrap();
                        note(&String::from_utf8_lossy(&data));
                        if data == b".\r\n" || data.is_empty() {
                            break;
                        }
                    }
                    say(&"250 taken\r\n".repeat(if lmtp { recipients } else { 1 }))
                }
                "QUIT" => {
                    say("221 bye\r\n");
                    return;
                }
                _ => say("250 ok\r\n"),
            };
            if !go_on {
                return;
            }
            line.clear();
        }
    });
    (fake, heard)
}

const USUAL: &str = "PIPELINING,8BITMIME,SMTPUTF8,CHUNKING,SIZE,AUTH PLAIN OAUTHBEARER XOAUTH2 EXTERNAL";

fn password(folder: &Folder) -> String {
    folder.file("password", "secret\n")
}

/// RFC 7628 §3.1 and the form of the mail providers; EXTERNAL with and without a name.
#[test]
fn tokens_and_external_are_said_as_they_should() {
    let folder = Folder::new("tokens");
    let password = password(&folder);
    for (mechanism, user, expect) in [
        ("OAUTHBEARER", "a@x.example", "n,a=a@x.example,\x01auth=Bearer secret\x01\x01"),
        ("xoauth2", "a@x.example", "user=a@x.example\x01auth=Bearer secret\x01\x01"),
        ("EXTERNAL", "a@x.example", "a@x.example"),
        ("PLAIN", "a{n}@x.example", "\0a0@x.example\0secret"),
    ] {
        // A session that only logs in, one that goes on with mail, and one that is held.
        for scenario in [&["login"][..], &["submit", "--pipelining", "stream"], &["idle", "--hold", "0.2"]] {
            let (server, heard) = listening(USUAL);
            let mut with = vec!["--count", "2", "--user", user, "--password-file", &password, "--mechanism", mechanism];
            with.push("--scenario");
            with.extend(scenario);
            let report = report(server.address, &with);
            assert_eq!(errors(&report), Vec::<String>::new(), "{mechanism} {scenario:?}");
            let line = format!("AUTH {} {}\r\n", mechanism.to_uppercase(), STANDARD.encode(expect));
            assert_eq!(heard.text().matches(&line).count(), 2, "{mechanism} {scenario:?}: {}", heard.text());
            assert_eq!(report.server_greeting, "fake ESMTP");
        }
    }
    // Nobody's name: the certificate says it all.
    let (server, heard) = listening(USUAL);
    report(server.address, &["--scenario", "login", "--mechanism", "EXTERNAL", "--count", "1"]);
    assert!(heard.text().contains("AUTH EXTERNAL =\r\n"), "{}", heard.text());
    // A long token is not for the line of AUTH.
    let token = folder.file("token", &"t".repeat(2000));
    let (server, heard) = listening(USUAL);
    let with =
        ["--scenario", "login", "--mechanism", "XOAUTH2", "--count", "1", "--user", "a", "--password-file", &token];
    assert_eq!(report(server.address, &with).connections, 1);
    assert!(heard.text().contains("AUTH XOAUTH2\r\n"), "{}", heard.text());
    // A refused token is what `wrong-password` wants to see, behind the words of its error (RFC 7628 §3.2.3).
    let refusing = Fake::answering(|word| match word {
        "EHLO" => "250-fake\r\n250 AUTH OAUTHBEARER\r\n".into(),
        "AUTH" => format!("334 {}\r\n", STANDARD.encode("{\"status\":\"invalid_token\"}")),
        "AQ==" => "535 5.7.8 no\r\n".into(),
        _ => honest(word),
    });
    let mut with =
        vec!["--mechanism", "OAUTHBEARER", "--count", "3", "--user", "a", "--password-file", &password, "--scenario"];
    with.push("wrong-password");
    assert_eq!((errors(&report(refusing.address, &with)).len(), report(refusing.address, &with).connections), (0, 3));
    with.pop();
    with.push("login");
    assert_eq!(errors(&report(refusing.address, &with)), ["AUTH: 535 × 3"]);
}

/// Each flag of a submission is seen by the server.
#[test]
fn submissions_in_every_form() {
    let with = |flags: &[&str], extensions| {
        let (server, heard) = listening(extensions);
        let mut with = vec!["--scenario", "submit", "--count", "4", "--to", "b{n}@x.example", "--size", "2k"];
        with.extend(flags);
        let report = report(server.address, &with);
        (report, heard)
    };
    type Check = fn(&str) -> bool;
    let cases: [(&[&str], u64, Check); 8] = [
        (&[], 4, |said| said.matches("RCPT TO:<b0@x.example>\r\nDATA\r\n").count() == 4),
        (&["--recipients", "3"], 4, |said| {
            said.contains("RCPT TO:<b0@x.example>\r\nRCPT TO:<b1@x.example>\r\nRCPT TO:<b2@x.example>\r\n")
        }),
        (&["--per-connection", "3"], 12, |said| {
            said.matches("QUIT").count() == 4 && said.matches("MAIL FROM").count() == 12
        }),
        (&["--bdat"], 4, |said| said.matches(" LAST\r\n").count() == 4 && !said.contains("DATA\r\n")),
        (&["--eight-bit"], 4, |said| said.contains(" BODY=8BITMIME") && said.contains("äöü")),
        (&["--smtputf8"], 4, |said| said.contains(" SMTPUTF8") && said.contains("Subject: Prüfung")),
        (&["--from", "who{n}@x.example", "--pipelining", "never"], 4, |said| {
            said.contains("MAIL FROM:<who0@x.example>")
        }),
        (&["--pipelining", "stream", "--per-connection", "2"], 8, |said| said.contains(".\r\nMAIL FROM:")),
    ];
    for (flags, messages, check) in cases {
        let (report, heard) = with(flags, USUAL);
        assert_eq!(errors(&report), Vec::<String>::new(), "{flags:?}");
        assert_eq!((report.messages, report.connections), (messages, 4), "{flags:?}");
        let said = heard.text();
        assert!(check(&said), "{flags:?}: {said}");
        let octets = report.message_octets / report.messages;
        assert!((2040..=2048).contains(&octets), "{flags:?}: {octets}");
    }
    // What the server does not offer is no silent something else.
    for (flags, expect) in [
        (&["--bdat"][..], "EHLO: no CHUNKING × 4"),
        (&["--smtputf8"], "MAIL: unusable × 4"),
        (&["--eight-bit"], "MAIL: unusable × 4"),
    ] {
        assert_eq!(errors(&with(flags, "PIPELINING").0), [expect], "{flags:?}");
    }
}

/// With `never` each command waits for its reply; with groups they travel together where that is offered.
#[test]
fn pipelining_is_seen_in_the_writes() {
    let writes = |pipelining: &str, extensions| {
        let (server, _heard) = listening(extensions);
        let with =
            ["--scenario", "submit", "--count", "5", "--recipients", "4", "--size", "2k", "--pipelining", pipelining];
        let report = report(server.address, &with);
        assert_eq!((report.connections, errors(&report).len()), (5, 0));
        report.client.writes / 5
    };
    // EHLO; MAIL, four RCPT, DATA; the message; QUIT.
    assert_eq!(writes("never", USUAL), 9);
    assert_eq!(writes("groups", USUAL), 4);
    assert_eq!(writes("groups", "8BITMIME"), 9);
}

#[test]
fn lmtp_has_a_reply_for_each_recipient() {
    let (server, heard) = listening(USUAL);
    let with = ["--lmtp", "--scenario", "submit", "--count", "3", "--recipients", "2", "--to", "b{n}@x.example"];
    let report = report(server.address, &with);
    assert_eq!((report.messages, errors(&report).len()), (3, 0));
    assert!(heard.text().contains("LHLO load.example\r\n") && !heard.text().contains("EHLO"));
    // One that answers once for two recipients is found out.
    let short = Fake::answering(|word| match word {
        "LHLO" => "250 fake\r\n".into(),
        "DATA" => "354 go\r\n".into(),
        "." => "250 for one\r\n".into(),
        "MAIL" | "RCPT" | "QUIT" | "" => honest(word),
        _ => String::new(),
    });
    let mut with = with.to_vec();
    with.extend(["--patience", "1", "--pipelining", "never"]);
    let report = self::report(short.address, &with);
    assert!(report.errors.iter().any(|error| error.stage == "end of message" && error.code == "silence"), "{report:?}");
}

#[test]
fn sessions_come_from_many_addresses() {
    let (server, heard) = listening(USUAL);
    let with = ["--scenario", "connect", "--count", "60", "--sources", "5", "--processes", "2"];
    assert_eq!(report(server.address, &with).connections, 60);
    let mut from: Vec<String> = heard.all().into_iter().map(|(address, _)| address.ip().to_string()).collect();
    from.sort();
    from.dedup();
    assert_eq!(from, ["127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4", "127.0.1.5"]);
    let (server, heard) = listening(USUAL);
    let with = ["--scenario", "connect", "--count", "4", "--source-address", "127.9.9.9"];
    assert_eq!(report(server.address, &with).connections, 4);
    assert!(heard.all().iter().all(|(address, _)| address.ip().to_string() == "127.9.9.9"));
}

/// A slow client really is slow, half-open ones say nothing, and rude ones do every one of their tricks.
#[test]
fn clients_that_behave_badly() {
    let (server, _heard) = listening(USUAL);
    let with = ["--scenario", "slow", "--octets-per-second", "2000", "--count", "2", "--size", "1k"];
    let slow = report(server.address, &with);
    assert_eq!((slow.messages, errors(&slow).len()), (2, 0));
    // More than 1,100 octets at 2,000 a second.
    assert!(slow.latency_us.p50 > 400_000, "{:?}", slow.latency_us);

    let (server, heard) = listening(USUAL);
    let churn = report(server.address, &["--scenario", "churn", "--count", "3"]);
    assert_eq!((churn.connections, heard.text().as_str()), (3, "QUIT\r\nQUIT\r\nQUIT\r\n"));

    let (server, heard) = listening(USUAL);
    let half = report(server.address, &["--scenario", "half-open", "--count", "3", "--hold", "0.4"]);
    assert_eq!((half.connections, heard.text().as_str()), (3, ""));
    assert!(half.latency_us.p50 >= 400_000, "{:?}", half.latency_us);

    let strict = |word: &str| match word {
        "" | "EHLO" | "QUIT" => honest(word),
        "MAIL" | "RCPT" => "250 ok\r\n".to_owned(),
        _ => "500 what?\r\n".to_owned(),
    };
    let server = Fake::answering(strict);
    let rude = report(server.address, &["--scenario", "rude", "--count", "16"]);
    assert_eq!((rude.connections, errors(&rude)), (16, vec![]));
    // A server that takes garbage for a command is told of.
    let server = Fake::answering(move |word| if word == "GET" { "250 ok\r\n".into() } else { strict(word) });
    assert_eq!(errors(&report(server.address, &["--scenario", "rude", "--count", "16"])), ["rude: HTTP: 250 × 2"]);
}

/// STARTTLS that leads nowhere, and TLS that is none.
#[test]
fn tls_that_lies() {
    let with =
        ["--scenario", "connect,login", "--count", "6", "--patience", "1", "--starttls", "--mechanism", "EXTERNAL"];
    type Reply = fn(&str) -> String;
    let offer = "250-fake\r\n250-AUTH EXTERNAL\r\n250 STARTTLS\r\n";
    let cases: [(&str, Reply, &str); 4] = [
        (
            "garbage",
            |word| if word == "STARTTLS" { "220 go\r\nHTTP/1.1 400 what\r\n\r\n".into() } else { honest(word) },
            "protocol",
        ),
        (
            "silence",
            |word| if word == "STARTTLS" { "220 go\r\n".into() } else { honest(word) },
            "TLS handshake: silence",
        ),
        ("refusal", |word| if word == "STARTTLS" { "454 no\r\n".into() } else { honest(word) }, "STARTTLS: 454"),
        ("no offer", |word| if word == "EHLO" { "250 fake\r\n".into() } else { honest(word) }, "STARTTLS: unusable"),
    ];
    for (name, reply, expect) in cases {
        let server = Fake::answering(move |word| {
            // What is inside a handshake begins with no word that anybody knows.
            let known = ["", "EHLO", "STARTTLS", "QUIT"].contains(&word);
            match (name, word) {
                ("garbage" | "silence" | "refusal", "EHLO") => offer.to_owned(),
                _ if known => reply(word),
                _ => String::new(),
            }
        });
        let output = output(load(server.address, &with));
        let report = report_of(&output);
        let logins = report.scenarios.iter().find(|scenario| scenario.name == "login").unwrap();
        assert!(logins.failed > 0 && logins.done == 0, "{name}");
        let found = errors(&report);
        assert!(found.len() == 1 && found[0].contains(expect), "{name}: {found:?}");
    }
    let clear = Fake::answering(honest);
    let report = report(clear.address, &["--scenario", "connect", "--count", "3", "--tls", "--patience", "1"]);
    assert!(
        report.failed == 3 && report.errors.iter().all(|error| error.stage == "TLS handshake"),
        "{:?}",
        report.errors
    );
}

/// The name that `--sni` gives is the one that the server is asked for.
#[test]
fn the_name_that_is_asked_for_arrives() {
    for (with, expect) in [(&["--sni", "mail.example.org"][..], "mail.example.org"), (&[], "localhost")] {
        let names = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&names);
        let server = Fake::new(move |mut stream, _| {
            let mut acceptor = rustls::server::Acceptor::default();
            while acceptor.read_tls(&mut stream).is_ok_and(|octets| octets > 0) {
                if let Some(accepted) = acceptor.accept().unwrap() {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                    return;
                }
            }
        });
        let with = [&["--scenario", "connect", "--count", "3", "--tls"], with].concat();
        let report = report(server.address, &with);
        assert_eq!(report.failed, 3, "it closes without an answer");
        let names = names.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(*names, vec![Some(expect.to_owned()); 3]);
    }
}

/// On a terminal: rates, percentiles, errors, sessions held, progress and time left, drawn in place; and nothing of
/// that is left in the way of the result.
#[test]
fn the_live_view_on_a_terminal() {
    let on_terminal = |command: &str| Command::new("script").args(["-qec", command, "/dev/null"]).output();
    if !on_terminal("true").is_ok_and(|output| output.status.success()) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI needs script (bsdutils) for the live view's test");
        eprintln!("skipped: no `script` here to make a terminal");
        return;
    }
    let server = Canned::new(false);
    let command = format!(
        "{} --target {} --scenario connect --rate 50 --duration 3 --crowd 20 --pid {}",
        env!("CARGO_BIN_EXE_portreeve-load"),
        server.1,
        server.0.id()
    );
    let output = on_terminal(&command).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    for word in [
        "measured",
        "█",
        "░",
        " s left",
        "sessions",
        "messages",
        "errors",
        "held",
        "active",
        "p50",
        "p99",
        "% CPU",
        "MiB private",
    ] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    // Drawn anew: up by as many lines as were drawn, and cleared.
    assert!(said.contains("\x1b[5A\x1b[J"), "{said}");
    let last = said.rsplit("\x1b[J").next().unwrap();
    assert!(last.contains("150 in") && !last.contains('█'), "{last}");
    // On a narrow one no line is wrapped, or going up would not reach the first.
    let command = command.replace("--duration 3", "--duration 2");
    let output = on_terminal(&format!("stty cols 37 rows 20; {command}")).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let (drawn, _) = said.rsplit_once("\x1b[J").unwrap();
    let long = drawn.split(['\n', '\r']).filter(|line| !line.contains('\x1b')).find(|line| line.chars().count() > 37);
    assert!(drawn.contains("\x1b[5A\x1b[J") && drawn.contains("sessions"), "{said}");
    assert_eq!(long, None, "{said}");
}

/// The same seed gives the same load, and `--users` gives each session a name of its own.
#[test]
fn seeds_and_users() {
    let folder = Folder::new("seeds");
    let password = password(&folder);
    let octets = |seed: &str| {
        let (server, heard) = listening(USUAL);
        let mut with = vec!["--scenario", "submit", "--count", "12", "--size", "1k-64k", "--seed", seed];
        with.extend(["--user", "u{n}@x.example", "--users", "3", "--password-file", &password]);
        with.extend(["--concurrency", "1", "--rate", "500", "--arrivals", "poisson"]);
        let report = report(server.address, &with);
        assert_eq!((report.messages, errors(&report).len()), (12, 0));
        let said = heard.text();
        for n in 0..3 {
            assert_eq!(said.matches(&format!("MAIL FROM:<u{n}@x.example>")).count(), 4, "{said}");
        }
        assert!(!said.contains("u3@"));
        report.message_octets
    };
    let first = octets("7");
    assert_eq!(octets("7"), first);
    assert_ne!(octets("8"), first);
}

/// Without a word about how much, a run is bounded; and `--help` has all that the manual promises.
#[test]
fn bounds_and_help() {
    let server = Canned::new(false);
    let report = report(server.1, &["--scenario", "connect"]);
    let plan = report.plan.unwrap();
    assert_eq!((report.connections, plan.count, plan.time_max), (10_000, Some(10_000), 300.0));
    let output = Command::new(env!("CARGO_BIN_EXE_portreeve-load")).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout);
    for section in [
        "SCENARIOS",
        "CLOSED AND OPEN LOOP",
        "LOGINS",
        "WHAT IS CHECKED",
        "RESULT",
        "MANY SESSIONS",
        "FILE",
        "SAFETY",
        "EXAMPLES",
        "EXIT CODES",
    ] {
        assert!(help.contains(section), "{section}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 120), "{help}");
}
