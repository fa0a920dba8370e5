//! The load tool against the real server: what it says is accepted, and what it counts is what happened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::bare::DOMAIN;
use crate::client_certificates::{Authority, pem, prepare};
use crate::clients::present;
use crate::scram::Hash;
use crate::server::{Options, PATIENCE, Server, program};

const PASSWORDS: [&str; 9] = [
    "SCRAM-SHA-512-PLUS",
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-512",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1",
    "CRAM-MD5",
    "PLAIN",
    "LOGIN",
];

/// The tool. With PORTREEVE_PROGRAM another server is tested; the load tool is always ours.
pub fn tool() -> Command {
    program();
    let own = std::env::current_exe().expect("our own path");
    let tool: PathBuf = own.ancestors().nth(2).expect("target/<profile>").join("portreeve-load");
    Command::new(tool)
}

/// Runs it; the result, which must say that everything went as expected.
fn load(server: &Server, target: std::net::SocketAddr, with: &[&str]) -> Value {
    let mut command = tool();
    command.args(["--target", &target.to_string(), "--json", "-", "--quiet", "--time-max", "60"]).args(with);
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let result: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert!(output.status.success(), "{with:?}: {:#}\n{}", result["errors"], server.log());
    result
}

/// A server that knows alice by every mechanism that takes a password.
fn server(listener: &str) -> Server {
    let options = Options { mechanisms: PASSWORDS.to_vec(), listener: listener.to_owned(), ..Options::default() };
    let mut server = Server::prepare(options);
    let file = server.path("state/auth/users");
    let keys = [Hash::Sha1, Hash::Sha512].map(|hash| hash.stored("secret")).join(" ");
    let users = std::fs::read_to_string(&file).expect("the users file");
    std::fs::write(file, users.replace(&format!("alice@{DOMAIN}:"), &format!("alice@{DOMAIN}:{keys} ")))
        .expect("users");
    std::fs::write(server.path("password"), "secret\n").expect("a file");
    server.run();
    server
}

fn login(server: &Server) -> [String; 4] {
    let password = server.path("password").display().to_string();
    ["--user".into(), format!("alice@{DOMAIN}"), "--password-file".into(), password]
}

/// Logins of the audit trail by mechanism and code, once there are `count`.
fn logins(server: &Server, count: usize) -> BTreeMap<(String, u64), usize> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let log = server.log();
        let mut logins = BTreeMap::new();
        for event in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if event["event"] == "login" {
                let mechanism = event["mechanism"].as_str().unwrap_or_default().to_owned();
                *logins.entry((mechanism, event["code"].as_u64().unwrap_or_default())).or_default() += 1;
            }
        }
        if logins.values().sum::<usize>() >= count {
            return logins;
        }
        assert!(std::time::Instant::now() < deadline, "{logins:?} of {count}\n{log}");
        std::thread::sleep(std::time::Duration::from_millis(10)); // between two looks
    }
}

/// Each mechanism, by STARTTLS and inside TLS, with TLS 1.2 and 1.3, and what binds them; the audit trail of the server
/// says the same as the tool.
#[test]
fn logins_by_every_mechanism() {
    let server = server("");
    let login = login(&server);
    let mut wanted = BTreeMap::new();
    for mechanism in PASSWORDS {
        for (target, tls) in [(server.submission(), "--starttls"), (server.submissions(), "--tls")] {
            for version in ["1.2", "1.3"] {
                let bindings: &[&str] = match (mechanism.ends_with("-PLUS"), version) {
                    (true, "1.3") => &["tls-exporter", "tls-server-end-point"],
                    _ => &[""],
                };
                for binding in bindings {
                    let mut with = vec!["--scenario", "login", "--count", "2", "--mechanism", mechanism, tls];
                    with.extend(["--tls-version", version]);
                    with.extend(login.iter().map(String::as_str));
                    if !binding.is_empty() {
                        with.extend(["--channel-binding", binding]);
                    }
                    let result = load(&server, target, &with);
                    assert_eq!(result["connections"], 2, "{with:?}: {result:#}");
                    *wanted.entry((mechanism.to_owned(), 235)).or_insert(0) += 2;
                }
            }
        }
        // A wrong password is refused, and that is what was wanted.
        let mut with = vec!["--scenario", "wrong-password", "--count", "1", "--mechanism", mechanism, "--tls"];
        with.extend(login.iter().map(String::as_str));
        assert_eq!(load(&server, server.submissions(), &with)["connections"], 1, "{mechanism}");
        *wanted.entry((mechanism.to_owned(), 535)).or_insert(0) += 1;
    }
    // Nothing was said: the strongest that is offered, bound to the connection.
    let mut with = vec!["--scenario", "login", "--count", "3", "--tls"];
    with.extend(login.iter().map(String::as_str));
    load(&server, server.submissions(), &with);
    *wanted.entry(("SCRAM-SHA-512-PLUS".to_owned(), 235)).or_insert(0) += 3;
    assert_eq!(logins(&server, wanted.values().sum()), wanted);
}

/// EXTERNAL by a client certificate, which the server has checked.
#[test]
fn a_client_certificate_is_shown() {
    let authority = Authority::new("Ours");
    let mut server = prepare("request", &authority);
    std::fs::write(server.path("state/auth/users"), format!("alice@{DOMAIN}::cert=cn:alice\n")).expect("users");
    server.run();
    let (certificate, key) = authority.issue("alice", &[]);
    for (file, text) in [("c.pem", pem("CERTIFICATE", &certificate)), ("c.key", pem("PRIVATE KEY", key.secret_der()))] {
        std::fs::write(server.path(file), text).expect("a file");
    }
    let files = ["c.pem", "c.key"].map(|name| server.path(name).display().to_string());
    let mut with = vec!["--scenario", "login", "--mechanism", "EXTERNAL", "--count", "4", "--tls"];
    with.extend(["--client-cert", &files[0], "--client-key", &files[1]]);
    assert_eq!(load(&server, server.submissions(), &with)["connections"], 4);
    assert_eq!(logins(&server, 4), BTreeMap::from([(("EXTERNAL".to_owned(), 235), 4)]));
    // The other form: acting as somebody by name.
    let user = format!("alice@{DOMAIN}");
    with.extend(["--user", &user]);
    assert_eq!(load(&server, server.submissions(), &with)["connections"], 4);
}

/// Every form of a submission arrives, as often and as large as the tool says.
#[test]
fn submissions_arrive_as_counted() {
    let server = server("");
    let login = login(&server);
    let mut messages = 0;
    let forms: [&[&str]; 8] = [
        &["--size", "1k-9k"],
        &["--pipelining", "never", "--per-connection", "2"],
        &["--pipelining", "stream", "--per-connection", "3", "--mechanism", "PLAIN"],
        &["--bdat", "--size", "300k"],
        &["--eight-bit"],
        &["--eight-bit", "--bdat"],
        &["--smtputf8"],
        &["--octets-per-second", "60000", "--size", "12k"],
    ];
    for form in forms {
        let to = format!("bob@{DOMAIN}");
        let mut with = vec!["--scenario", "submit", "--count", "3", "--to", &to, "--tls"];
        with.extend(login.iter().map(String::as_str));
        with.extend(form);
        let result = load(&server, server.submissions(), &with);
        let each = if form.contains(&"2") {
            2
        } else if form.contains(&"3") {
            3
        } else {
            1
        };
        assert_eq!(result["messages"], 3 * each, "{form:?}");
        messages += 3 * each as usize;
    }
    let mail = server.mail("bob", messages);
    assert_eq!(mail.len(), messages);
    let large = mail.iter().filter(|message| message.len() > 290_000).count();
    assert_eq!(large, 3);
    assert!(mail.iter().any(|message| String::from_utf8_lossy(message).contains("Subject: Prüfung")));
}

/// A mix with an idle crowd beside it, in two processes, with resumption; and the server's cost over all its processes.
#[test]
fn a_mix_with_a_crowd_and_what_it_cost() {
    let server = server("");
    let login = login(&server);
    let pid = server.pid().as_raw_nonzero().to_string();
    let to = format!("bob@{DOMAIN}");
    let mut with = vec!["--scenario", "connect:2,login:2,submit,wrong-password:0.3,rude,half-open", "--count", "120"];
    with.extend([
        "--tls",
        "--resume",
        "0.7",
        "--crowd",
        "80",
        "--noop-rate",
        "200",
        "--processes",
        "2",
        "--hold",
        "0.3",
    ]);
    with.extend(["--to", &to, "--pid", &pid, "--sources", "3", "--sni", "mail.example.org"]);
    with.extend(login.iter().map(String::as_str));
    let result = load(&server, server.submissions(), &with);
    assert_eq!((&result["connections"], &result["held"], &result["crowd_lost"]), (&120.into(), &80.into(), &0.into()));
    let resumed: u64 =
        result["scenarios"].as_array().expect("scenarios").iter().filter_map(|s| s["resumed"].as_u64()).sum();
    assert!(resumed > 10, "{resumed}");
    let cost = &result["server"];
    // Supervisor, control, directory, delivery, worker.
    assert!(cost["processes"].as_u64() >= Some(5), "{cost:#}");
    assert!(cost["cpu_seconds"].as_f64() > Some(0.0) && cost["context_switches"].as_u64() > Some(0), "{cost:#}");
    assert!(cost["memory_octets_each"].is_number() && cost["kernel_octets_each"].is_number(), "{cost:#}");
    assert!(result["server_greeting"].as_str().is_some_and(|words| words.contains("ESMTP")), "{result:#}");
}

/// What follows a script takes the step to TLS as well: an idle crowd that has logged in, streams, and rude clients.
#[test]
fn scripts_begin_tls() {
    let server = server("");
    let login = login(&server);
    let to = format!("bob@{DOMAIN}");
    for (scenario, version) in [("idle", "1.3"), ("idle", "1.2"), ("submit", "1.3"), ("rude", "1.3")] {
        let mut with = vec!["--scenario", scenario, "--count", "16", "--starttls", "--tls-version", version];
        with.extend(["--hold", "0.3", "--noop-rate", "100", "--to", &to]);
        if scenario != "rude" {
            with.extend(["--pipelining", "stream", "--mechanism", "PLAIN"]);
            with.extend(login.iter().map(String::as_str));
        }
        let result = load(&server, server.submission(), &with);
        let (of, count) = if scenario == "idle" { ("held", 16) } else { ("connections", 16) };
        assert_eq!(result[of], count, "{scenario}: {result:#}");
        assert!(result["tls"].as_str().is_some_and(|words| words.starts_with("TLSv1_")), "{scenario}: {result:#}");
    }
    assert_eq!(server.mail("bob", 16).len(), 16);
}

/// Clients that are slow, rude or silent, at the MX: the server ends them or answers, and none of them is an error.
#[test]
fn clients_that_no_server_wants() {
    let server = server("");
    let to = format!("bob@{DOMAIN}");
    let mut with = vec!["--scenario", "rude:4,half-open,slow", "--count", "60", "--hold", "0.2", "--to", &to];
    with.extend(["--size", "600", "--octets-per-second", "4000"]);
    let result = load(&server, server.mx(), &with);
    assert_eq!(result["connections"], 60);
    let slow = result["scenarios"].as_array().expect("scenarios").iter().find(|s| s["name"] == "slow").expect("slow");
    assert!(slow["messages"].as_u64() > Some(0));
    // And it still serves others.
    assert_eq!(load(&server, server.mx(), &["--scenario", "connect", "--count", "5"])["connections"], 5);
}

/// The comparison with other servers, small: both are set up, do the work without an error, and are ended.
#[test]
fn beside_postfix() {
    let installed = |program: &str| ["/usr/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(program).exists());
    let there = installed("postfix") && installed("saslpasswd2") && rustix::process::geteuid().is_root();
    if !present("Postfix, sasl2-bin and root", there) {
        return;
    }
    let out = tempfile::tempdir().expect("a folder");
    let peers = program().with_file_name("peers");
    let mut command = Command::new(peers);
    command.args(["--servers", "portreeve,postfix", "--rounds", "1", "--scale", "0.01", "--cores", "0,0"]);
    command.arg("--out").arg(out.path()).arg("--packages").arg(out.path()).arg("--dir").arg(out.path());
    command.arg("--bin").arg(program().parent().expect("its folder"));
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let record = |ending: &str| {
        let files = std::fs::read_dir(out.path()).expect("the folder").flatten().map(|file| file.path());
        let found = files.into_iter().find(|path| path.extension().is_some_and(|end| end == ending));
        std::fs::read_to_string(found.expect("a record")).expect("text")
    };
    let result: Value = serde_json::from_str(&record("json")).expect("JSON");
    let peers = result["peers"].as_array().expect("peers");
    assert_eq!(peers.len(), 2, "{said}");
    for peer in peers {
        for work in ["connect", "login", "mail", "one mail"] {
            let sample = &peer["samples"][work][0];
            let good = sample["errors"] == 0 && sample["cpu_us"].as_f64() > Some(0.0);
            assert!(good && sample["per_second"].as_f64() > Some(0.0), "{work}: {peer:#}");
        }
        // Both promise that the message is on disk; strace, where it is, has seen it.
        let counted = peer["syncs"]["each"].as_f64();
        assert!(counted.is_none_or(|each| each >= 1.0) && (counted.is_some() || !installed("strace")), "{peer:#}");
    }
    let page = record("html");
    assert!(page.matches("<svg").count() == 8 && page.contains("Postfix") && !page.contains("http"), "{page}");
}
