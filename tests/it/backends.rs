//! Credential back ends of libraries: real clients log in through them, they serve the mechanisms that they can and
//! no other, and whatever they do with their time, their memory or their life costs their own callers a 454 and
//! nobody else anything.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tempfile::TempDir;

use crate::runners::{Client, await_that, compile, reload, status};
use crate::server::{Options, Server, alone, feed, output, root};

/// A server with these libraries beside our own, its folder of libraries, and a back end for each of the roles.
struct With {
    server: Server,
    folder: TempDir,
}

impl std::ops::Deref for With {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl With {
    /// `backends`: of mx, submission and submissions; `mechanisms`: TOML, of all of them; `tables`: at the end.
    fn prepare(load: &str, backends: [&str; 3], mechanisms: &str, tables: &str) -> With {
        let options = Options { listener: "cleartext_auth_nets = [\"127.0.0.0/8\"]".into(), ..Options::default() };
        let server = Server::prepare(options);
        // Root takes libraries only from folders that nobody else may write to, all the way up.
        let root = rustix::process::geteuid().is_root();
        let parent = if root { "/var/lib".into() } else { server.path("") };
        let folder = TempDir::with_prefix_in("portreeve-it-", parent).expect("a folder");
        let mut text = server.config().replace("mechanisms = [\"PLAIN\", \"LOGIN\", \"CRAM-MD5\"]", mechanisms);
        for (role, backend) in ["mx", "submission", "submissions"].iter().zip(backends) {
            let line = format!("role = \"{role}\"\n");
            text = text.replace(&line, &format!("{line}backend = \"{backend}\"\n"));
        }
        let libraries = format!("[plugins]\npath = [{:?}]\nload = [\"standard\", {load}]\n", folder.path());
        let text = text.replace("[plugins]\nload = [\"standard\", \"legacy\"]\n", &libraries) + tables;
        server.write_config(&text);
        With { server, folder }
    }

    fn run(mut self) -> With {
        self.server.run();
        self
    }

    fn moody(table: &str) -> With {
        let table = format!("[[plugins.backend]]\nname = \"moody\"\n{table}\n");
        let with = With::prepare("\"moody\"", ["moody", "users", "moody"], "mechanisms = [\"PLAIN\"]", &table);
        moody(with.folder.path(), "1.0");
        with.run()
    }

    fn login(&self, name: &str, password: &str) -> String {
        Client::connect(self.mx()).auth("PLAIN", &format!("\0{name}\0{password}"))
    }

    fn hosts(&self) -> Vec<rustix::process::Pid> {
        self.processes().remove("backend-host").unwrap_or_default()
    }
}

fn moody(folder: &Path, version: &str) {
    let version = format!("-DVERSION=\"{version}\"");
    compile(folder, &root().join("tests/it/fixtures/moody.c"), "moody", &[&version]);
}

fn present(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|found| found.status.success());
    assert!(
        found || std::env::var("CI").as_deref() != Ok("true"),
        "{program} is not installed; tests/setup installs it"
    );
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// What crypt(3) makes of a password, by OpenSSL.
fn crypted(password: &str) -> String {
    let (status, text) = feed(Command::new("openssl").args(["passwd", "-6", "-stdin"]), password.as_bytes());
    assert!(status.success(), "{text}");
    text.trim().to_owned()
}

#[test]
fn real_clients_log_in_through_back_ends_in_c_and_rust() {
    let tables = "[[plugins.backend]]\nname = \"accounts\"\nsettings = { users = { file = \"accounts.txt\" } }\n\
                  [[plugins.backend]]\nname = \"store\"\nsettings = { users = { file = \"store.txt\" } }\n";
    let load = "\"c_accounts\", \"example_store\"";
    let with = With::prepare(load, ["accounts", "store", "users"], "mechanisms = \"auto\"", tables);
    compile(with.folder.path(), &root().join("plugins/examples/c-accounts/accounts.c"), "c_accounts", &["-lcrypt"]);
    let name = "o'brien\"; DROP @demo.test";
    fs::write(with.server.path("accounts.txt"), format!("ann@demo.test:{}\n", crypted("pencil"))).expect("written");
    fs::write(with.server.path("store.txt"), format!("ben@demo.test:hammer\n{name}:nail\n")).expect("written");
    let with = with.run();

    // What a back end cannot do is not offered; what another library's mechanism can ask of it is.
    let offered = |address| {
        let reply = Client::connect(address).ask("EHLO client.example");
        reply.lines().find_map(|line| line.get(4..)?.strip_prefix("AUTH ")).unwrap_or_default().to_owned()
    };
    assert_eq!(offered(with.mx()), "X-STORE-HMAC PLAIN LOGIN", "passwords only, and the library's own");
    let both = offered(with.submission());
    assert!(both.contains("SCRAM-SHA-256") && both.contains("X-STORE-HMAC") && both.contains("PLAIN"), "{both}");

    let (mx, submission) = (with.mx(), with.submission());
    let login =
        |address, name: &str, password: &str| Client::connect(address).auth("PLAIN", &format!("\0{name}\0{password}"));
    for (address, name, password) in [(mx, "ann@demo.test", "pencil"), (submission, "ben@demo.test", "hammer")] {
        assert!(login(address, name, password).starts_with("235 2.7.0"), "{name}\n{}", with.log());
        assert!(login(address, name, "wrong").starts_with("535 5.7.8"), "{name}");
        assert!(login(address, &name.to_uppercase(), password).starts_with("535 "), "the store's own rules");
        // Somebody of another back end is nobody here.
        assert!(login(address, "alice@demo.test", "secret").starts_with("535 5.7.8"));
    }
    // Names that would end a query, a line, a string: octets, no more.
    for bad in ["'", "\"", "ann@demo.test\n", "ann@demo.test\u{2028}", "ann@demo.test:", "*", ")(uid=*", "\\", "%"] {
        assert!(login(mx, bad, "pencil").starts_with("535 5.7.8"), "{bad:?}");
        assert!(login(submission, bad, "hammer").starts_with("535 5.7.8"), "{bad:?}");
    }
    for octets in [255, 256, 700] {
        let long = "a".repeat(octets);
        assert!(login(mx, &long, "pencil").starts_with("535 5.7.8"), "{octets}");
        assert!(login(submission, &long, "pencil").starts_with("535 5.7.8"), "{octets}");
    }

    // The mechanism with its own store.
    let hmac = |address, name: &str, secret: &[u8]| {
        let mut client = Client::connect(address);
        let challenge = client.ask("AUTH X-STORE-HMAC");
        let challenge = STANDARD.decode(challenge.trim().strip_prefix("334 ").expect("a challenge")).expect("base64");
        let mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key").chain_update(challenge).finalize();
        let answer = [name.as_bytes(), b"\0", &mac.into_bytes()].concat();
        client.ask(&STANDARD.encode(answer))
    };
    for address in [mx, submission] {
        assert!(hmac(address, "ben@demo.test", b"hammer").starts_with("235 "), "{}", with.log());
        assert!(hmac(address, "ben@demo.test", b"nail").starts_with("535 5.7.8"));
        assert!(hmac(address, "nobody@demo.test", b"nail").starts_with("535 5.7.8"));
    }

    // Who is in no users file may send as itself, and as nobody else.
    let mut client = Client::connect(submission);
    assert!(client.auth("PLAIN", "\0ben@demo.test\0hammer").starts_with("235 "));
    assert!(client.ask("MAIL FROM:<ben@demo.test>").starts_with("250 "));
    assert!(client.ask("RSET").starts_with("250 "));
    let refused = client.ask("MAIL FROM:<alice@demo.test>");
    assert!(refused.starts_with("550 5.7.1"), "{refused}");
    let acting = Client::connect(mx).auth("PLAIN", "alice@demo.test\0ann@demo.test\0pencil");
    assert!(acting.starts_with("535 5.7.8"), "{acting}");

    let listed = output(&mut with.command(&["plugin", "list"])).1;
    assert!(listed.contains("back end accounts") && listed.contains("backend-host edition"), "{listed}");

    if present("swaks") {
        for (address, user, password, mechanisms) in [
            (mx, "ann@demo.test", "pencil", &["PLAIN", "LOGIN"][..]),
            (submission, "ben@demo.test", "hammer", &["PLAIN", "LOGIN"]),
        ] {
            for mechanism in mechanisms {
                let mut swaks = Command::new("swaks");
                swaks.args(["--tls", "--auth", mechanism, "--auth-user", user, "--auth-password", password]);
                swaks.args(["--from", user, "--to", "bob@demo.test", "--server"]);
                let (status, text) = output(swaks.arg(address.to_string()));
                assert!(status.success(), "{mechanism} {user}: {text}");
            }
        }
        with.mail("bob", 4);
    }
    if present("gsasl") {
        for (password, right) in [("hammer", true), ("wrong", false)] {
            let mut gsasl = Command::new("gsasl");
            gsasl.args(["--smtp", "--no-starttls", "--mechanism", "SCRAM-SHA-256", "-a", "ben@demo.test"]);
            gsasl.args(["-p", password, "--connect"]).arg(submission.to_string());
            let (_, text) = output(&mut gsasl);
            assert_eq!(text.contains("235 2.7.0"), right, "{text}\n{}", with.log());
        }
    }
}

#[test]
fn mechanisms_that_a_back_end_cannot_serve_are_told_with_their_place() {
    let with = |mechanisms: &str, tables: &str| {
        let with = With::prepare("\"moody\"", ["users", "moody", "users"], mechanisms, tables);
        moody(with.folder.path(), "1.0");
        with
    };
    // Acceptance check 13.
    let scram = with("mechanisms = [\"PLAIN\", \"SCRAM-SHA-256\"]", "");
    let (status, text) = output(&mut scram.command(&["check"]));
    assert_eq!(status.code(), Some(78), "{text}");
    let config = scram.server.path("portreeve.toml");
    let text_of = fs::read_to_string(&config).expect("the configuration");
    let line = 1 + text_of.lines().position(|line| line == "backend = \"moody\"").expect("written");
    let mechanisms = line + text_of.lines().skip(line).position(|line| line.starts_with("mechanisms")).unwrap() + 1;
    let place = format!("portreeve.toml:{mechanisms}:24");
    assert!(text.contains(&place), "{place}: {text}");
    assert!(text.contains("SCRAM-SHA-256 needs FETCH_KEY"), "{text}");
    assert!(text.contains("\"moody\" does not provide"), "{text}");
    assert_eq!(text.matches("FETCH_KEY").count(), 1, "once: the users file serves it: {text}");
    // With "auto" it is left out there, and only there.
    let auto = with("mechanisms = \"auto\"", "");
    let ehlo = |name: &str| output(&mut auto.command(&["check", "--print-ehlo", name])).1;
    let (own, other) = (ehlo("mx"), ehlo("submission"));
    assert!(own.contains("SCRAM-SHA-256") && own.contains("PLAIN"), "{own}");
    assert!(!other.contains("SCRAM") && other.contains("AUTH PLAIN LOGIN"), "{other}");
    let auto = auto.run();
    let ehlo = Client::connect(auto.submission()).ask("EHLO client.example");
    assert!(ehlo.contains("AUTH PLAIN LOGIN") && !ehlo.contains("SCRAM"), "{ehlo}");
    let ehlo = Client::connect(auto.mx()).ask("EHLO client.example");
    assert!(ehlo.contains(" SCRAM-SHA-256") && ehlo.contains(" PLAIN"), "{ehlo}");

    for (tables, told) in [
        ("[[plugins.backend]]\nname = \"mody\"\n", "no loaded library has a back end \"mody\""),
        ("[[plugins.backend]]\nname = \"moody\"\ntimeout = \"30s\"\n", "not shorter than timeouts.directory"),
        (
            "[[plugins.backend]]\nname = \"moody\"\n[[plugins.backend]]\nname = \"moody\"\n",
            "two tables for the back end",
        ),
    ] {
        let (status, text) = output(&mut with("mechanisms = [\"PLAIN\"]", tables).command(&["check"]));
        assert!(!status.success() && text.contains(told), "{told}: {text}");
    }
}

#[test]
fn settings_are_compared_with_the_librarys_schema_before_it_runs() {
    let check = |settings: &str| {
        let tables = format!("[[plugins.backend]]\nname = \"store\"\nsettings = {settings}\n");
        let backends = ["store", "users", "users"];
        let with = With::prepare("\"example_store\"", backends, "mechanisms = [\"PLAIN\"]", &tables);
        let (status, text) = output(with.command(&["check"]).env("STORE", "ann:secret"));
        (status.success(), text)
    };
    for (settings, told) in [
        ("{}", "`users` is missing"),
        ("{ users = 7 }", "must be string"),
        ("{ users = \"a:b\", user = \"x\" }", "is no setting; known are users"),
        ("{ users = { file = \"not-there\" } }", "not-there"),
        ("{ users = { env = \"NOT_THERE\" } }", "the environment has no text NOT_THERE"),
        ("7", "must be a table"),
    ] {
        let (good, text) = check(settings);
        let place = text.contains("portreeve.toml:") && text.contains("plugins.backend");
        assert!(!good && place && text.contains(told), "{settings}: {text}");
    }
    for good in ["{ users = \"ann:secret\" }", "{ users = { env = \"STORE\" } }"] {
        let (fine, text) = check(good);
        assert!(fine, "{good}: {text}");
    }
}

/// Acceptance check 10.
#[test]
fn a_thousand_stuck_logins_stop_nobody_else() {
    const STUCK: usize = 1000;
    let _alone = alone();
    let with = With::moody("timeout = \"1s\"\nqueue = 2000\nparallel = 3");
    let mut others: Vec<Client> = (0..8).map(|_| Client::connect(with.mx())).collect();
    let mut stuck: Vec<Client> = (0..STUCK).map(|_| Client::connect(with.mx())).collect();
    let login = STANDARD.encode("\0sleeper\0x");
    for client in &mut stuck {
        client.say(&format!("AUTH PLAIN {login}"));
    }
    // Every answer to these comes although none of those has one: order, not time.
    let mut times = Vec::new();
    let until = Instant::now() + std::time::Duration::from_millis(500);
    while Instant::now() < until {
        for client in &mut others {
            let asked = Instant::now();
            assert!(client.ask("NOOP").starts_with("250 "));
            times.push(asked.elapsed());
        }
    }
    times.sort_unstable();
    println!("NOOP beside {STUCK} stuck logins: p99 {:?} of {}", times[times.len() * 99 / 100], times.len());
    for client in &mut stuck {
        let reply = client.reply();
        assert!(reply.starts_with("454 4.7.0"), "{reply}");
    }
    // The breaker is open: nobody waits for a deadline any more; the users file serves its own.
    await_that("backend.down", || with.log().contains("backend.down"));
    let reply = Client::connect(with.submission()).auth("PLAIN", "\0alice@demo.test\0secret");
    assert!(reply.starts_with("235 "), "{reply}");
    // The process is ended, and the next one serves.
    await_that("a login through the replacement", || with.login("right@demo.test", "secret").starts_with("235 "));
    await_that("backend.well", || with.log().contains("backend.well"));
    // It never had more calls at a time than it was to have; the replacement counts anew, so ask both ways.
    let with = With::moody("timeout = \"5s\"\nparallel = 3");
    let mut slow: Vec<Client> = (0..24).map(|_| Client::connect(with.mx())).collect();
    let login = STANDARD.encode("\0slow\0x");
    slow.iter_mut().for_each(|client| client.say(&format!("AUTH PLAIN {login}")));
    slow.iter_mut().for_each(|client| assert!(client.reply().starts_with("535 ")));
    assert!(with.login("most", "x").starts_with("235 "));
    await_that("three at a time", || with.log().contains("\"identity\":\"n3@demo.test\""));
}

/// What a back end may do, and what a login then gets.
#[test]
fn faults_cost_the_logins_that_are_under_way_and_nobody_else_anything() {
    for faults in [
        &["abort", "segv", "stack", "exit"][..],
        &["socket", "links"],
        &["temp", "huge", "over", "state"],
        &["status", "noname", "file"],
    ] {
        let with = With::moody("timeout = \"2s\"");
        let worker = with.processes()["worker"].clone();
        let mut bystander = Client::connect(with.submission());
        assert!(bystander.auth("PLAIN", "\0alice@demo.test\0secret").starts_with("235 "));
        for fault in faults {
            let reply = with.login(fault, "secret");
            let expected = if *fault == "file" { "535 5.7.8" } else { "454 4.7.0" };
            assert!(reply.starts_with(expected), "{fault}: {reply}\n{}", with.log());
            assert!(bystander.ask("NOOP").starts_with("250 "), "{fault}");
            await_that(&format!("a login after {fault}"), || {
                with.login("right@demo.test", "secret").starts_with("235 ")
            });
        }
        assert_eq!(with.processes()["worker"], worker, "the same worker");
        assert!(bystander.ask("MAIL FROM:<alice@demo.test>").starts_with("250 "));
        assert!(!with.log().contains("directory died"), "{}", with.log());
    }
}

#[test]
fn names_of_a_back_end_go_through_the_rules_of_the_users_file() {
    let with = With::moody("");
    let file = with.path("state/auth/users");
    let users = fs::read_to_string(&file).expect("the users file");
    let line = users.lines().find(|line| line.starts_with("alice@")).expect("alice");
    fs::write(&file, users.replace(line, &format!("{line}:disabled aliases=info@demo.test"))).expect("written");
    await_that("the users file to be read", || {
        // Known there, and barred there: told after a right proof only.
        with.login("alice", "x").starts_with("525 5.7.13")
    });
    assert!(with.login("nobody@Demo.Test", "x").starts_with("235 "));
    await_that("its prepared name", || with.log().contains("\"identity\":\"nobody@demo.test\""));
    // Somebody else's address is nobody's name.
    assert!(with.login("alias", "x").starts_with("454 4.7.0"));
    await_that("the reason", || with.log().contains("an alias of a user of the users file"));
}

#[test]
fn five_deaths_in_a_minute_are_quarantine_until_a_reload() {
    let with = With::moody("timeout = \"2s\"");
    for _ in 0..5 {
        await_that("a host", || !with.hosts().is_empty());
        let hosts = with.hosts();
        with.login("abort", "x");
        // The breaker may have answered: then it still lives.
        await_that("its end", || {
            with.hosts() != hosts || {
                with.login("abort", "x");
                false
            }
        });
    }
    await_that("quarantine", || status(&with)["supervisor"]["libraries"][0]["state"] == "quarantine");
    let why = status(&with)["supervisor"]["quarantine"]["back end moody"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains("5 times")), "{why}");
    assert!(with.log().contains("plugin.quarantined"));
    let (_, listed) = output(&mut with.command(&["plugin", "list"]));
    assert!(listed.contains("back end moody is in quarantine"), "{listed}");
    assert!(with.login("right@demo.test", "secret").starts_with("454 4.7.0"));
    assert!(Client::connect(with.submission()).auth("PLAIN", "\0alice@demo.test\0secret").starts_with("235 "));

    moody(with.folder.path(), "2.0");
    reload(&with);
    await_that("a login", || with.login("right@demo.test", "secret").starts_with("235 "));
}

#[test]
fn what_is_remembered_of_a_password_belongs_to_one_back_end_and_one_edition() {
    let tables = "[[plugins.backend]]\nname = \"store\"\nsettings = { users = { file = \"store.txt\" } }\n";
    let with = With::prepare("\"example_store\"", ["store", "users", "users"], "mechanisms = [\"PLAIN\"]", tables);
    fs::write(with.server.path("store.txt"), "alice@demo.test:other\n").expect("written");
    let with = with.run();
    let login =
        |address, password: &str| Client::connect(address).auth("PLAIN", &format!("\0alice@demo.test\0{password}"));
    for _ in 0..3 {
        // The same name, and two people; the answers of the first round are remembered in the second.
        for (address, password, expected) in [
            (with.mx(), "other", "235 "),
            (with.submission(), "secret", "235 "),
            (with.mx(), "secret", "535 "),
            (with.submission(), "other", "535 "),
        ] {
            let reply = login(address, password);
            assert!(reply.starts_with(expected), "{password}: {reply}\n{}", with.log());
        }
    }
    let worker = with.processes()["worker"].clone();
    fs::write(with.server.path("store.txt"), "alice@demo.test:changed\n").expect("written");
    reload(&with);
    await_that("the new edition", || login(with.mx(), "changed").starts_with("235 "));
    assert!(login(with.mx(), "other").starts_with("535 "), "remembered from an older edition");
    assert_eq!(with.processes()["worker"], worker, "only the back end's process is new");
}
