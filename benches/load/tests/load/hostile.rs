//! Servers that answer what nobody asked, half of it, far too much of it or nothing: counted by stage, and the run ends.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portreeve_load::permission::Permission;
use portreeve_load::plan::{Kind, Plan, Scenario};
use portreeve_load::tick::Tick;
use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};

use super::*;

/// A server that says `octets` as soon as somebody comes, hears until the end, and has nothing else to say.
fn saying(octets: Vec<u8>) -> Fake {
    Fake::new(move |mut stream, _| {
        let _ = stream.write_all(&octets);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
}

#[test]
fn replies_that_nobody_asked_for() {
    let folder = Folder::new("unasked");
    let password = folder.file("password", "secret\n");
    type Reply = fn(&str) -> String;
    let twice: Reply = |word| if word.is_empty() { honest(word).repeat(2) } else { honest(word) };
    let early: Reply = |word| if word.is_empty() { "220 fake\r\n250 fake\r\n".into() } else { honest(word) };
    let rude_end: Reply = |word| if word == "QUIT" { "500 what?\r\n".into() } else { honest(word) };
    let long_end: Reply = |word| if word == "QUIT" { "221 bye\r\n250 ok\r\n".into() } else { honest(word) };
    let no_go: Reply = |word| if word == "DATA" { "250 ok\r\n".into() } else { honest(word) };
    let no_end: Reply = |word| if word == "QUIT" { String::new() } else { honest(word) };
    let cases: [(Reply, &[&str], &str); 11] = [
        (twice, &["connect"], "greeting: protocol × 4"),
        (early, &["idle", "--hold", "0.1"], "greeting: protocol × 4"),
        (early, &["submit", "--pipelining", "stream"], "greeting: protocol × 4"),
        (rude_end, &["churn"], "QUIT: 500 × 4"),
        (rude_end, &["login", "--user", "a", "--password-file", &password], "QUIT: 500 × 4"),
        (no_end, &["churn"], "QUIT: lost × 4"),
        (no_end, &["login", "--user", "a", "--password-file", &password], "QUIT: lost × 4"),
        (long_end, &["churn"], "QUIT: protocol × 4"),
        (long_end, &["login", "--user", "a", "--password-file", &password], "QUIT: protocol × 4"),
        // RFC 5321 §4.3.2: 354, or the message must not be sent.
        (no_go, &["submit", "--pipelining", "never"], "DATA: protocol × 4"),
        (no_go, &["submit", "--pipelining", "stream"], "MAIL: 250 × 4"),
    ];
    for (reply, scenario, expect) in cases {
        let server = Fake::answering(reply);
        let report = report(server.address, &[&["--count", "4", "--scenario"], scenario].concat());
        assert_eq!(errors(&report), [expect], "{scenario:?}");
    }
}

/// Who has mistyped a password may try again: a server that goes, babbles or says too much behind its 535 is told of.
#[test]
fn what_follows_a_refused_login() {
    let folder = Folder::new("refused-login");
    let password = folder.file("password", "secret\n");
    let run = |server: &Fake| {
        let mut with = vec!["--scenario", "wrong-password", "--count", "4", "--patience", "1"];
        with.extend(["--user", "a", "--password-file", &password]);
        let report = report(server.address, &with);
        (report.connections, errors(&report))
    };
    let cases = [
        ("AUTH", "535-no\r\n535 no\r\n", ""),
        ("AUTH", "535 no\r\n535 no\r\n", "AUTH: protocol × 4"),
        ("AUTH", "535 no\r\nhello?\r\n", "AUTH: protocol × 4"),
        ("AUTH", "535 no\r\n2", "AUTH: protocol × 4"),
        ("AUTH", "454 later\r\n", "AUTH: 454 × 4"),
        ("NOOP", "250 ok\r\n250 ok\r\n", "NOOP after 535: protocol × 4"),
        ("NOOP", "535 no\r\n", "NOOP after 535: 535 × 4"),
        ("NOOP", "hello?\r\n", "NOOP after 535: protocol × 4"),
        ("NOOP", "", "NOOP after 535: silence × 4"),
        ("QUIT", "503 what?\r\n", "QUIT after 535: 503 × 4"),
        ("QUIT", "221 bye\r\n221 bye\r\n", "QUIT after 535: protocol × 4"),
        ("QUIT", "", "QUIT after 535: lost × 4"),
    ];
    for (word, reply, expect) in cases {
        let server = Fake::answering(move |said| match said {
            _ if said == word => reply.to_owned(),
            "AUTH" => "535 5.7.8 no\r\n".to_owned(),
            _ => honest(said),
        });
        let expect = if expect.is_empty() { (4, vec![]) } else { (0, vec![expect.to_owned()]) };
        assert_eq!(run(&server), expect, "{word}: {reply:?}");
    }
    let gone = Fake::new(|mut stream, _| {
        for reply in ["220 fake\r\n", "250-fake\r\n250 AUTH PLAIN\r\n", "535 no\r\n"] {
            let _ = stream.write_all(reply.as_bytes());
            if !reply.starts_with('5') {
                let _ = stream.read(&mut [0; 512]);
            }
        }
    });
    assert_eq!(run(&gone), (0, vec!["NOOP after 535: lost × 4".to_owned()]));
}

#[test]
fn halves_floods_and_resets() {
    let folder = Folder::new("floods");
    let password = folder.file("password", "secret\n");
    let reset = |after: &'static str| {
        Fake::new(move |mut stream, _| {
            let _ = stream.write_all(after.as_bytes());
            if !after.is_empty() {
                let _ = stream.read(&mut [0; 512]);
            }
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        })
    };
    let half_then_gone = Fake::new(|mut stream, _| drop(stream.write_all(b"220 fak")));
    let cases = [
        ("half a line, gone", half_then_gone, "greeting: lost × 3"),
        ("half a line, alive", saying(b"220 fak".to_vec()), "greeting: silence × 3"),
        ("a line of 10 MB", saying([b"220 ".to_vec(), vec![b'a'; 10_000_000]].concat()), "greeting: protocol × 3"),
        ("a reply of 10 MB", saying(b"220-a\r\n".repeat(1_400_000)), "greeting: protocol × 3"),
        ("zeros", saying(vec![0; 10_000_000]), "greeting: protocol × 3"),
        ("reset at once", reset(""), "greeting: lost × 3"),
        ("reset later", reset("220 fake\r\n"), "EHLO: lost × 3"),
    ];
    for (name, server, expect) in cases {
        for scenario in ["login", "idle"] {
            let mut with = vec!["--scenario", scenario, "--count", "3", "--patience", "0.5", "--hold", "0.1"];
            with.extend(["--user", "a", "--password-file", &password]);
            let output = output(load(server.address, &with));
            assert_eq!(errors(&report_of(&output)), [expect], "{name}, {scenario}");
            assert_eq!(output.status.code(), Some(1), "{name}, {scenario}");
        }
    }
    // A server that wants the message and then does not take it.
    let deaf = Fake::new(|mut stream, _| {
        let mut lines = BufReader::with_capacity(64, stream.try_clone().unwrap());
        let mut line = String::new();
        let _ = stream.write_all(b"220 fake\r\n");
        while lines.read_line(&mut line).is_ok_and(|octets| octets > 0) {
            if line.starts_with("DATA") {
                let _ = stream.write_all(b"354 go\r\n");
                std::thread::park_timeout(PATIENCE);
                return;
            }
            let _ = stream.write_all(b"250 ok\r\n");
            line.clear();
        }
    });
    let with = ["--scenario", "submit", "--size", "64m", "--count", "2", "--patience", "1", "--pipelining", "never"];
    let report = report(deaf.address, &with);
    assert!(report.failed == 2 && report.errors[0].code == "silence", "{:?}", report.errors);
}

/// A server that takes a message of which it cannot have all octets has lost it.
#[test]
fn a_message_that_is_taken_before_it_is_sent() {
    let eager = Fake::answering(|word| match word {
        // Its data goes on for two seconds.
        "DATA" => "354 go\r\n".to_owned(),
        "SUBJECT:" => "250 taken\r\n".to_owned(),
        "" | "EHLO" | "MAIL" | "RCPT" | "QUIT" => honest(word),
        _ => String::new(),
    });
    let with =
        ["--scenario", "slow", "--octets-per-second", "1000", "--size", "2k", "--count", "3", "--time-max", "20"];
    let report = report(eager.address, &with);
    assert_eq!((report.messages, report.connections), (0, 0), "{report:?}");
    assert!(errors(&report).contains(&"end of message: protocol × 3".to_owned()), "{:?}", report.errors);
}

/// Whoever does not even take the connection: refused is told elsewhere, this is a queue that is full.
#[test]
fn a_queue_that_is_full() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let target = socket.local_addr().unwrap().as_socket().unwrap();
    let report = report(target, &["--scenario", "connect", "--count", "6", "--patience", "0.5"]);
    let stages: Vec<&str> = report.errors.iter().map(|error| error.stage.as_str()).collect();
    assert!(report.failed == 6 && stages.contains(&"connect") && stages.contains(&"greeting"), "{:?}", report.errors);
    assert!(report.errors.iter().all(|error| error.code == "silence"), "{:?}", report.errors);
}

/// TLS that breaks off in the middle: the server has agreed, and answers the ClientHello with something else.
#[test]
fn tls_that_turns_to_garbage() {
    let server = |garbage: &'static [u8]| {
        Fake::new(move |mut stream, _| {
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            let _ = stream.write_all(b"220 fake\r\n");
            while lines.read_line(&mut line).is_ok_and(|octets| octets > 0) {
                if line.starts_with("STARTTLS") {
                    let _ = stream.write_all(b"220 go\r\n");
                    // The ClientHello has come.
                    let _ = lines.fill_buf();
                    let _ = stream.write_all(garbage);
                    return;
                }
                let _ = stream.write_all(b"250-fake\r\n250 STARTTLS\r\n");
                line.clear();
            }
        })
    };
    for garbage in [&b"HTTP/1.1 400 what\r\n\r\n"[..], b"\x16\x03\x03\xff\xff", b"\x16\x03\x03\x00\x02\x02\x00", b""] {
        let server = server(garbage);
        for scenario in ["submit", "idle", "rude:1,submit"] {
            let with = ["--scenario", scenario, "--count", "4", "--starttls", "--patience", "1", "--hold", "0.1"];
            let report = report(server.address, &with);
            let handshakes = report.errors.iter().filter(|error| error.stage == "TLS handshake");
            assert!(handshakes.map(|error| error.count).sum::<u64>() > 0, "{garbage:?}: {:?}", report.errors);
            assert_eq!(report.messages, 0);
        }
    }
}

/// TLS and a greeting, then tickets for later connections (RFC 8446 §4.6.1), as many as are taken: valid records, and no
/// octet of content in them.
fn tickets_without_end(mut stream: TcpStream, config: &Arc<rustls::ServerConfig>, greeting: &[u8]) {
    let mut tls = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
    while tls.is_handshaking() {
        if tls.complete_io(&mut stream).is_err() {
            return;
        }
    }
    tls.writer().write_all(greeting).unwrap();
    while tls.wants_write() {
        if tls.write_tls(&mut stream).is_err() {
            return;
        }
    }
    let aead = tls.negotiated_cipher_suite().and_then(|suite| suite.tls13()).unwrap().aead_alg;
    let (first, secrets) = tls.dangerous_extract_secrets().unwrap().tx;
    let rustls::ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else { panic!("the first suite") };
    let mut encrypter = aead.encrypter(key, iv);
    // Lifetime, age, nonce, the ticket of 32 octets, no extensions.
    let fields = [&[0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 32][..], &[7; 32], &[0, 0]].concat();
    let ticket = [&[4, 0, 0, fields.len() as u8][..], &fields].concat();
    let mut record = |number| {
        let payload = OutboundChunks::Single(&ticket);
        let (typ, version) = (rustls::ContentType::Handshake, rustls::ProtocolVersion::TLSv1_3);
        encrypter.encrypt(OutboundPlainMessage { typ, version, payload }, number).unwrap().encode()
    };
    // The library wants to see every number from the first on.
    (0..first).map(&mut record).for_each(drop);
    for from in (first..).step_by(1000) {
        let many: Vec<u8> = (from..from + 1000).flat_map(&mut record).collect();
        if stream.write_all(&many).is_err() {
            return;
        }
    }
}

/// Octets without end, in clear and in valid records of TLS, at every place and on many connections at a time: each
/// is an error of its session, those who are served well meanwhile end well, and so does the run.
#[test]
fn floods_without_end() {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private.into())
        .unwrap();
    config.enable_secret_extraction = true;
    let config = Arc::new(config);
    for (greeting, scenario, expect) in [
        ("", "churn", "greeting: protocol × 40"),
        ("220 fake\r\n", "churn", "QUIT: protocol × 40"),
        ("220 fake\r\n", "submit", "EHLO: protocol × 40"),
        ("220 fake\r\n", "half-open", "idle: protocol × 40"),
        ("220 fake\r\n", "idle", "EHLO: protocol × 40"),
    ] {
        let config = Arc::clone(&config);
        let server = Fake::new(move |stream, _| tickets_without_end(stream, &config, greeting.as_bytes()));
        let hold = if scenario == "idle" { "0.1" } else { "20" };
        let mut with = vec!["--tls", "--scenario", scenario, "--count", "40", "--hold", hold, "--processes", "2"];
        with.extend(if scenario == "idle" { &[][..] } else { &["--concurrency", "10"] });
        let output = output(load(server.address, &with));
        assert_eq!(errors(&report_of(&output)), [expect], "{greeting:?} {scenario}");
        assert_eq!(output.status.code(), Some(1), "{greeting:?} {scenario}");
    }
    for (flood, scenario, expect) in [
        ("220-fake\r\n", "churn", "greeting: protocol × 30"),
        ("2", "churn", "greeting: protocol × 30"),
        ("250 ok\r\n", "half-open", "greeting: 250 × 30"),
        ("220 fake\r\n", "half-open", "greeting: protocol × 30"),
        ("250-fake\r\n", "submit", "greeting: protocol × 30"),
    ] {
        let server = Fake::new(move |mut stream, number| {
            if number % 4 == 3 {
                let _ = stream.write_all(b"220 fake\r\n");
                let _ = stream.read(&mut [0; 512]);
                let _ = stream.write_all(b"221 bye\r\n");
                return;
            }
            let many = flood.repeat(10_000);
            while stream.write_all(many.as_bytes()).is_ok() {}
        });
        let with = ["--scenario", scenario, "--count", "40", "--hold", "0.3", "--concurrency", "10"];
        let report = report(server.address, &with);
        assert!(errors(&report).contains(&expect.to_owned()), "{flood:?} {scenario}: {:?}", report.errors);
        if scenario == "churn" {
            assert_eq!((report.connections, report.failed), (10, 30), "{:?}", report.errors);
        }
    }
}

/// Whoever says nothing is told so and closed: that is how a half-open client should end.
#[test]
fn a_goodbye_to_the_half_open_is_no_error() {
    let server = saying(b"220 fake\r\n".to_vec());
    let with = ["--scenario", "half-open", "--count", "3", "--hold", "0.2"];
    assert_eq!(report(server.address, &with).connections, 3);
    let server = Fake::new(|mut stream, _| {
        let _ = stream.write_all(b"220 fake\r\n");
        // Between the two it is held.
        std::thread::park_timeout(Duration::from_millis(100));
        let _ = stream.write_all(b"421 4.4.2 too slow\r\n");
    });
    let with = ["--scenario", "half-open", "--count", "3", "--hold", "20"];
    let report = report(server.address, &with);
    assert_eq!((report.connections, errors(&report)), (3, vec![]));
}

/// A server that has every login compute keys of so many iterations, after `wait`, and then refuses it.
fn expensive(iterations: u32, wait: impl Fn() + Send + Sync + 'static) -> Fake {
    Fake::new(move |mut stream, number| {
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        let _ = stream.write_all(b"220 fake\r\n");
        while lines.read_line(&mut line).is_ok_and(|octets| octets > 0) {
            let mut words = line.split_whitespace();
            let reply = match (words.next(), words.next(), words.next()) {
                (Some("AUTH"), _, Some(first)) => {
                    wait();
                    let first = String::from_utf8(STANDARD.decode(first).unwrap()).unwrap();
                    let (_, nonce) = first.split_once("r=").unwrap();
                    // Another salt each time, so that no key can be kept (RFC 5802 §3).
                    let salt = STANDARD.encode(format!("salt {number}"));
                    let challenge = format!("r={nonce}server,s={salt},i={iterations}");
                    format!("334 {}\r\n", STANDARD.encode(challenge))
                }
                (Some("EHLO"), ..) => "250-fake\r\n250 AUTH SCRAM-SHA-256\r\n".to_owned(),
                (Some(word @ ("NOOP" | "QUIT")), ..) => honest(word),
                _ => "535 5.7.8 no\r\n".to_owned(),
            };
            let _ = stream.write_all(reply.as_bytes());
            line.clear();
        }
    })
}

/// Keys that cost much are computed by the load program: it says that it was the limit. Where others have its processor,
/// it says that instead.
#[test]
fn its_own_saturation_is_said_beside_the_result() {
    let folder = Folder::new("saturated");
    let password = folder.file("password", "secret\n");
    let server = expensive(100_000, || {});
    let mut with = vec!["--scenario", "wrong-password", "--duration", "1.5", "--concurrency", "4"];
    with.extend(["--user", "a", "--password-file", &password, "--mechanism", "SCRAM-SHA-256"]);
    let output = output(load(server.address, &with));
    let report = report_of(&output);
    assert!(report.connections > 0, "{:?}", report.errors);
    let said = |words: &str| report.warnings.iter().any(|warning| warning.contains(words));
    assert!(said("of its processor") || said("waited for a processor"), "{:?}", report.client);
}

/// Between turns that take long each, its ticks are told: what all of them took together is in no single one.
#[test]
fn ticks_between_expensive_turns() {
    const AT_A_TIME: usize = 12;
    let together = std::sync::Barrier::new(AT_A_TIME);
    // As many iterations as a client does.
    let server = expensive(1 << 20, move || {
        together.wait();
    });
    let mut scenario = Scenario::new(Kind::WrongPassword);
    (scenario.user, scenario.password) = (Some("a".to_owned()), "secret".to_owned());
    let mut plan = Plan { target: server.address.to_string(), scenarios: vec![scenario], ..Plan::default() };
    (plan.count, plan.concurrency) = (Some(AT_A_TIME as u64), Some(AT_A_TIME));
    plan.check(&Permission::default()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve-load"));
    let mut child = command.arg("__load-process").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", serde_json::to_string(&plan.share(0)).unwrap()).unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ticks = lines.map(|line| serde_json::from_str::<Tick>(&line.unwrap()).unwrap());
    assert!(ticks.next().unwrap().gathered);
    writeln!(stdin, "go").unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|tick: &Tick| !tick.done) {
        told.push(ticks.next().unwrap());
    }
    drop(stdin);
    told.extend(ticks);
    assert!(child.wait().unwrap().success());
    let done: u64 = told.iter().flat_map(|tick| &tick.scenarios).map(|counts| counts.done).sum();
    assert_eq!(done, AT_A_TIME as u64, "{told:?}");
    let cpu: Vec<u64> = told.iter().map(|tick| tick.cpu_us).collect();
    let (all, most) = (cpu.iter().sum::<u64>(), cpu.iter().copied().max().unwrap());
    assert!(2 * most < all, "{cpu:?}");
}

/// A limit of descriptors is said with its remedy, and several processes have several times as many.
#[test]
fn descriptors_of_several_processes() {
    let server = Canned::new(false);
    let limited = |limit: &str, processes: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_portreeve-load")]);
        command.args(["--target", &server.1.to_string(), "--json", "-", "--scenario", "idle", "--count", "120"]);
        report_of(&output_of(command.args(["--hold", "0.1", "--processes", processes])))
    };
    let one = limited("-n 64", "1");
    assert!(one.held < 64 && one.errors.iter().all(|error| error.code == "no descriptor"), "{:?}", one.errors);
    assert!(one.warnings.iter().any(|warning| warning.contains("--processes")), "{:?}", one.warnings);
    let four = limited("-n 64", "4");
    assert_eq!((four.held, errors(&four)), (120, vec![]));
    // A soft limit is no limit.
    assert_eq!(limited("-Sn 64", "1").held, 120);
}

/// Ports are a limit, too, and so is whose address it is.
#[test]
fn an_address_that_is_not_ours() {
    let server = Canned::new(false);
    let report = report(server.1, &["--scenario", "connect", "--count", "2", "--source-address", "192.0.2.1"]);
    assert_eq!(errors(&report), ["connect: no address × 2"]);
    assert!(report.warnings.iter().any(|warning| warning.contains("--sources")), "{:?}", report.warnings);
}
