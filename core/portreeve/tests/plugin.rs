//! What the author of a mechanism meets: the commands under `portreeve plugin`, and the pages that teach them.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portreeve");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A library that cargo built with this test.
fn bundled(id: &str) -> PathBuf {
    std::env::current_exe().unwrap().with_file_name(format!("libportreeve_{id}.so"))
}

fn plugin(folder: &Path, arguments: &[&str]) -> (Output, String) {
    let run = Command::new(PROGRAM).arg("plugin").args(arguments).current_dir(folder).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    (run, text)
}

/// Runs, and insists on the exit code.
fn expect(folder: &Path, arguments: &[&str], code: i32) -> String {
    let (run, text) = plugin(folder, arguments);
    assert_eq!(run.status.code(), Some(code), "plugin {arguments:?}:\n{text}");
    text
}

/// A folder with a built C plugin: its path, and that of the library.
fn made(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    expect(folder, &["new", name, "--lang", "c"], 0);
    let home = folder.join(name);
    let make = Command::new("make").arg("CFLAGS=-Werror").current_dir(&home).output().unwrap();
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    let library = home.join(format!("portreeve_{}.so", name.replace('-', "_")));
    (home, library)
}

#[test]
fn inspect_runs_nothing_and_names_what_is_no_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let text = expect(folder.path(), &["inspect", bundled("legacy").to_str().unwrap(), "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((json["id"].as_str(), json["abi"].as_str()), (Some("legacy"), Some("1.0")));
    assert_eq!(json["mechanisms"]["CRAM-MD5"][0], "FETCH_KEY");
    expect(folder.path(), &["inspect", "/bin/ls"], 3);
    // A constructor that leaves a trace: checking runs it, in a sandbox where it can leave none.
    let (home, library) = made(folder.path(), "evil");
    let source = home.join("evil.c");
    let trace = folder.path().join("trace");
    let constructor = format!(
        "\n#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ FILE *f = fopen(\"{}\", \"w\"); if (f) fclose(f); }}\n",
        trace.display()
    );
    std::fs::write(&source, std::fs::read_to_string(&source).unwrap() + &constructor).unwrap();
    assert!(Command::new("make").current_dir(&home).output().unwrap().status.success());
    let text = expect(folder.path(), &["inspect", library.to_str().unwrap(), "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(json["mechanisms"]["X-EVIL"].is_array() && !trace.exists(), "{text}");
    expect(folder.path(), &["check", library.to_str().unwrap(), "--seconds", "0.2"], 0);
    assert!(!trace.exists());
}

#[test]
fn check_speaks_json_and_three_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let (_, library) = made(folder.path(), "good");
    let library = library.to_str().unwrap();
    let text = expect(folder.path(), &["check", library, "--json", "--seconds", "0.4"], 0);
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rules: Vec<&str> = lines.iter().filter_map(|line| line["rule"].as_str()).collect();
    for rule in conformance::rules::RULES {
        // This library has no back ends for the rules of back ends.
        let times = usize::from(!rule.id.starts_with('B'));
        assert_eq!(rules.iter().filter(|id| **id == rule.id).count(), times, "{}", rule.id);
    }
    assert_eq!(lines.last().unwrap()["failed"], 0);
    // The same file, damaged: the note promises another mechanism.
    let mut octets = std::fs::read(library).unwrap();
    let at = octets.windows(6).position(|window| window == b"X-GOOD").unwrap();
    octets[at + 2] = b'W';
    let broken = folder.path().join("broken.so");
    std::fs::write(&broken, octets).unwrap();
    let text = expect(folder.path(), &["check", broken.to_str().unwrap(), "--seconds", "0.2"], 1);
    assert!(text.contains("FAIL  A7") && text.contains("mend: "), "{text}");
    expect(folder.path(), &["check", "/nowhere.so"], 2);
    expect(folder.path(), &["check", library, "--mech", "PLAIN"], 2);
    expect(folder.path(), &["check", library, "--config", "{"], 2);
}

#[test]
fn recorded_exchanges_are_replayed_octet_by_octet() {
    let folder = tempfile::tempdir().unwrap();
    let standard = bundled("standard");
    let script = folder.path().join("script");
    let mut text = String::new();
    let count = if std::env::var_os("PORTREEVE_LONG").is_some() { 10_000 } else { 500 };
    for number in 0..count {
        text += &format!(
            "start \"n,,n=user,r=nonce{number}\"\nexpect effect FETCH_KEY\nsay \"c=biws,r=nonce{number},p=AAAA\"\nexpect fail\n"
        );
    }
    std::fs::write(&script, text).unwrap();
    let arguments = ["run", standard.to_str().unwrap(), "SCRAM-SHA-256", "--script", "script", "--record", "trace"];
    expect(folder.path(), &arguments, 0);
    for runner in ["check", "inline", "process"] {
        let text = expect(folder.path(), &["replay", "trace", "--runner", runner], 0);
        let same = format!("{} steps in {count} exchanges: the same", 3 * count);
        assert!(text.contains(&same), "{runner}: {text}");
    }
    // One octet of one recorded answer is another: found, and where.
    let trace = std::fs::read_to_string(folder.path().join("trace")).unwrap();
    let changed = trace.replacen("\"data\":\"c", "\"data\":\"d", 1);
    assert_ne!(trace, changed);
    std::fs::write(folder.path().join("changed"), changed).unwrap();
    for runner in ["check", "inline", "process"] {
        let text = expect(folder.path(), &["replay", "changed", "--runner", runner], 1);
        assert!(text.contains("changed: line ") && text.contains("step "), "{text}");
    }
    // Another library altogether.
    let (_, other) = made(folder.path(), "other");
    expect(folder.path(), &["replay", "trace", "--plugin", other.to_str().unwrap()], 2);
    expect(folder.path(), &["replay", "script"], 2);
}

#[test]
fn published_vectors_come_out_as_published() {
    let folder = tempfile::tempdir().unwrap();
    let vectors = root().join("tests/vectors/sasl.json");
    let libraries = [bundled("standard"), bundled("legacy")];
    let mut arguments = vec!["vectors", vectors.to_str().unwrap()];
    for library in &libraries {
        arguments.extend(["--plugin", library.to_str().unwrap()]);
    }
    let text = expect(folder.path(), &arguments, 0);
    assert!(text.contains(" 0 otherwise, 0 skipped"), "{text}");
    let (home, library) = made(folder.path(), "hi");
    expect(&home, &["vectors", "vectors.json", "--plugin", library.to_str().unwrap()], 0);
    let wrong = std::fs::read_to_string(home.join("vectors.json")).unwrap().replace("malformed", "credentials");
    std::fs::write(home.join("wrong.json"), wrong).unwrap();
    let text = expect(&home, &["vectors", "wrong.json", "--plugin", library.to_str().unwrap()], 1);
    assert!(text.contains("FAIL  X-HI (no space)") && text.contains("it ends with malformed"), "{text}");
}

#[test]
fn fuzzing_finds_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let (home, library) = made(folder.path(), "rare");
    let library = library.to_str().unwrap();
    expect(&home, &["fuzz", library, "X-RARE", "--seconds", "0.3"], 0);
    // Wrong in one of some thousand messages: a 0x17 right behind a space.
    let source = home.join("rare.c");
    let text = std::fs::read_to_string(&source).unwrap();
    let text = text.replace(
        "  /* Nothing is copied",
        "  if (space[1] == 0x17) { prv_fail_with(out, PRV_FAIL_INTERNAL); return; }\n  /* Nothing is copied",
    );
    std::fs::write(&source, text).unwrap();
    assert!(Command::new("make").current_dir(&home).output().unwrap().status.success());
    let text = expect(&home, &["fuzz", library, "X-RARE", "--seconds", "20", "--seed", "3"], 1);
    let seed = text.split("--seed ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(text.contains("FAIL  P4 X-RARE"), "{text}");
    let again = expect(&home, &["fuzz", library, "X-RARE", "--seed", seed, "--exchanges", "1"], 1);
    assert!(again.contains("FAIL  P4"), "{again}");
    expect(&home, &["fuzz", library, "X-NONE"], 2);
}

#[test]
fn the_abi_by_command() {
    let folder = tempfile::tempdir().unwrap();
    let text = expect(folder.path(), &["abi"], 0);
    let golden = std::fs::read_to_string(root().join("plugins/abi/layout-1.0.txt")).unwrap();
    let structs: String =
        golden.lines().filter(|line| line.starts_with("prv_")).map(|line| format!("{line}\n")).collect();
    assert_eq!(text, structs);
    // And for programs.
    let json: serde_json::Value = serde_json::from_str(&expect(folder.path(), &["abi", "--json"], 0)).unwrap();
    for (name, number) in structs.lines().map(|line| line.split_once(' ').unwrap()) {
        let found = match name.split_once('.') {
            Some((name, field)) => &json["structs"][name]["offsets"][field],
            None => &json["structs"][name]["size"],
        };
        assert_eq!(found.to_string(), number, "{name}");
    }
}

/// The examples build without a warning and pass.
#[test]
fn examples_pass() {
    let folder = tempfile::tempdir().unwrap();
    let examples = root().join("plugins/examples");
    for (name, source, id) in [("c-plain", "plain.c", "c_plain"), ("c-acme-token", "acme_token.c", "acme_token")] {
        let (home, abi) = (folder.path().join(name), root().join("plugins/abi"));
        std::fs::create_dir(&home).unwrap();
        for file in [source, "Makefile", "vectors.json"] {
            std::fs::copy(examples.join(name).join(file), home.join(file)).unwrap();
        }
        for compiler in ["gcc", "clang"] {
            if Command::new(compiler).arg("--version").output().is_err() {
                continue;
            }
            let abi = format!("ABI={}", abi.canonicalize().unwrap().display());
            let arguments = ["-B", &format!("CC={compiler}"), "CFLAGS=-O2 -Werror", &abi];
            let make = Command::new("make").args(arguments).current_dir(&home).output().unwrap();
            assert!(make.status.success(), "{compiler}: {}", String::from_utf8_lossy(&make.stderr));
            let library = format!("portreeve_{id}.so");
            expect(&home, &["check", &library, "--vectors", "vectors.json", "--seconds", "0.4"], 0);
        }
    }
}

/// A server of its own, ended with this value.
struct Server(std::process::Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// With these users and libraries, every mechanism offered. Waits until it greets.
    fn start(home: &Path, users: &[(&str, &str)], load: &[&str], mechanisms: &[&str]) -> Self {
        // Libraries beside the program are found there, wherever a test's folder is; a configured path below a
        // folder that others may write to would be refused.
        let program = home.join("portreeve");
        if std::fs::hard_link(PROGRAM, &program).is_err() {
            std::fs::copy(PROGRAM, &program).unwrap();
        }
        let portreeve = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.args(arguments).current_dir(home);
            command
        };
        let made =
            portreeve(&["init", ".", "--hostname", "mail.example.com", "--domain", "example.com"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let pem = |key: bool| {
            let mut folders = vec![home.to_owned()];
            while let Some(folder) = folders.pop() {
                for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                    let is_pem = path.extension().is_some_and(|suffix| suffix == "pem");
                    if path.is_dir() {
                        folders.push(path);
                    } else if is_pem && std::fs::read_to_string(&path).unwrap().contains("PRIVATE KEY") == key {
                        return path;
                    }
                }
            }
            panic!("init made no PEM file");
        };
        // The system picks the port; it is free again when the server binds it.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
        let config = format!(
            "hostname = \"mail.example.com\"\n[process]\nstate_dir = \"state\"\n{user}\n[[tls.certificate]]\ncert = {:?}\n\
             key = {:?}\n\n[plugins]\nload = {load:?}\n\n[spool]\nsegment = \"1MiB\"\nmin_free = \"1MiB\"\n\
             min_free_percent = 0\n\n[[listener]]\nrole = \"submission\"\nbind = [\"127.0.0.1:{port}\"]\n\
             mechanisms = {mechanisms:?}\nexempt_nets = [\"127.0.0.0/8\"]\n\n[[route]]\ndomain = \"*\"\nkind = \"maildir\"\n\
             path = \"mail\"\n",
            pem(false),
            pem(true)
        );
        std::fs::write(home.join("own.toml"), config).unwrap();
        for (name, password) in users {
            let arguments = ["user", "add", name, "--password-stdin", "--config", "own.toml"];
            let mut add = portreeve(&arguments).stdin(std::process::Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut add.stdin.take().unwrap(), format!("{password}\n").as_bytes()).unwrap();
            assert!(add.wait().unwrap().success());
        }
        let log = std::fs::File::create(home.join("log")).unwrap();
        let mut serve = portreeve(&["serve", "--config", "own.toml"]);
        serve.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = Self(serve.spawn().unwrap(), port);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(home.join("log")).unwrap();
            assert!(server.0.try_wait().unwrap().is_none(), "{}", log());
            assert!(std::time::Instant::now() < deadline, "{}", log());
            std::thread::sleep(std::time::Duration::from_millis(10)); // between two looks, not instead of one
        }
        server
    }
}

/// The examples log in: third-party libraries, in processes of their own, against a real server over TLS. Built
/// with the header of each minor that was released and with today's, in C and in C++, by each compiler that is here.
#[test]
fn examples_log_in_over_the_wire() {
    let abi = root().join("plugins/abi");
    let frozen = std::fs::read_dir(&abi).unwrap().flatten().map(|entry| entry.path());
    let frozen = frozen.filter(|path| path.join("portreeve_plugin.h").is_file());
    let headers: Vec<PathBuf> = frozen.chain([abi.clone()]).collect();
    assert!(headers.len() >= 2, "no frozen header");
    let mut built = 0;
    for header in headers {
        for (c, cxx) in [("gcc", "g++"), ("clang", "clang++")] {
            if [c, cxx].iter().any(|compiler| Command::new(compiler).arg("--version").output().is_err()) {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "{c} or {cxx} is missing");
                continue;
            }
            examples_log_in(&header, c, cxx);
            built += 1;
        }
    }
    assert!(built > 0, "no compiler for C and C++");
}

fn examples_log_in(header: &Path, c: &str, cxx: &str) {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    for (compiler, standard, source, id) in [
        (c, "c11", "plugins/examples/c-plain/plain.c", "c_plain"),
        (c, "c11", "plugins/examples/c-acme-token/acme_token.c", "acme_token"),
        (cxx, "c++17", "core/portreeve/tests/fixtures/plain.cc", "cc_plain"),
    ] {
        let built = Command::new(compiler)
            .arg(format!("-std={standard}"))
            .args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden", "-I"])
            .args([header, "-o".as_ref(), &home.join(format!("portreeve_{id}.so")), &root().join(source)])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{compiler} with {}: {said}", header.display());
    }
    for id in ["example_pin", "standard"] {
        std::fs::copy(bundled(id), home.join(format!("portreeve_{id}.so"))).unwrap();
    }
    let (tim, acme, pin) = ("tim@example.com", "acme@example.com", "pin@example.com");
    let users = [(tim, "tanstaaftanstaaf"), (acme, "acme_0123456789"), (pin, "271828")];
    let mechanisms = ["SCRAM-SHA-256", "PLAIN", "X-C-PLAIN", "X-CC-PLAIN", "X-ACME-TOKEN", "X-PIN"];
    let load = ["standard", "c_plain", "cc_plain", "acme_token", "example_pin"];
    let server = Server::start(home, &users, &load, &mechanisms);
    let encoded = |text: &str| conformance::event::base64(text.as_bytes());
    let say = |text: &str| serde_json::json!({"c": encoded(text)});
    let hear = |text: &str| serde_json::json!({"s": encoded(text)});
    let vector = |mech: &str, lines: &[serde_json::Value], password: &str, outcome: &str| serde_json::json!({"mech": mech, "source": outcome, "exchange": lines, "password": password, "outcome": outcome});
    let plain = format!("\0{tim}\0tanstaaftanstaaf");
    let scram = format!("n,,n={tim},r=rOprNGfwEbeRWgbNEkqO");
    let vectors = [
        vector("PLAIN", &[say(&plain)], "", "success"),
        vector("X-C-PLAIN", &[say(&plain)], "", "success"),
        vector("X-C-PLAIN", &[say(&format!("\0{tim}\0wrong"))], "", "credentials"),
        vector("X-C-PLAIN", &[say("\0\0")], "", "malformed"),
        vector("X-CC-PLAIN", &[say(&format!("{tim}\0tanstaaftanstaaf"))], "", "success"),
        vector("X-CC-PLAIN", &[say(&format!("{tim}\0wrong"))], "", "credentials"),
        vector("X-ACME-TOKEN", &[say(&format!("{acme} acme_0123456789"))], "", "success"),
        vector("X-PIN", &[hear("name"), say(pin), hear("number"), say("271828")], "", "success"),
        vector("X-PIN", &[hear("name"), say(pin), hear("number"), say("141421")], "", "credentials"),
        vector("SCRAM-SHA-256", &[say(&scram)], "tanstaaftanstaaf", "success"),
        vector("SCRAM-SHA-256", &[say(&scram)], "wrong", "credentials"),
    ];
    std::fs::write(home.join("v.json"), serde_json::json!({"exchanges": vectors}).to_string()).unwrap();
    let address = format!("127.0.0.1:{}", server.1);
    let text = expect(home, &["vectors", "v.json", "--smtp", &address], 0);
    assert!(text.contains("11 as published, 0 otherwise, 0 skipped"), "{text}");
    // Somebody whom the server does not know: said so, and why that may be.
    let unknown = [vector("PLAIN", &[say("\0nobody@example.com\0x")], "", "success")];
    std::fs::write(home.join("u.json"), serde_json::json!({"exchanges": unknown}).to_string()).unwrap();
    let text = expect(home, &["vectors", "u.json", "--smtp", &address], 1);
    assert!(text.contains("535") && text.contains("does the server know"), "{text}");
    drop(server);
    expect(home, &["vectors", "v.json", "--smtp", &address], 1);
}

// ---------------------------------------------------------------- docs/mechanisms.md, word for word

/// A piece of the page that says what to do or what to see.
enum Piece {
    /// Commands; with `fails` the last one is meant to.
    Shell(String, bool),
    /// Each line is in what the commands before have printed.
    Output(String),
    /// In a file, each occurrence of the first text becomes the second.
    Replace(String, String, String),
}

fn pieces(page: &str) -> Vec<Piece> {
    let (mut pieces, mut old) = (Vec::new(), None);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```").filter(|info| !info.is_empty()) else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let body = body.join("\n");
        match info {
            "sh" | "sh fails" => pieces.push(Piece::Shell(body, info.ends_with("fails"))),
            "text" => pieces.push(Piece::Output(body)),
            "rust new" => {
                let (file, from) = old.take().expect("what is replaced comes first");
                pieces.push(Piece::Replace(file, from, body));
            }
            _ => {
                if let Some(file) = info.strip_prefix("rust old=") {
                    old = Some((file.to_owned(), body));
                }
            }
        }
    }
    assert!(old.is_none(), "something is replaced by nothing");
    pieces
}

#[test]
fn the_first_mechanism_by_the_page() {
    let page = std::fs::read_to_string(root().join("docs/mechanisms.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut home = folder.path().to_owned();
    // `portreeve` and cargo are found; what cargo would share with other builds is kept apart.
    let path = format!("{}:{}", Path::new(PROGRAM).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let (mut printed, mut commands, mut seen) = (String::new(), 0, 0);
    for piece in pieces(&page) {
        match piece {
            Piece::Shell(text, fails) => {
                printed.clear();
                let last = text.lines().count();
                for (number, line) in text.lines().enumerate() {
                    if let Some(to) = line.strip_prefix("cd ") {
                        home = home.join(to).canonicalize().unwrap();
                        continue;
                    }
                    let run = Command::new("sh")
                        .args(["-c", line])
                        .current_dir(&home)
                        .env("PATH", &path)
                        .env("CARGO_NET_OFFLINE", "true")
                        .env_remove("CARGO_TARGET_DIR")
                        .output()
                        .unwrap();
                    printed += &String::from_utf8_lossy(&run.stdout);
                    printed += &String::from_utf8_lossy(&run.stderr);
                    let meant = fails && number + 1 == last;
                    assert_eq!(run.status.success(), !meant, "{line}\n{printed}");
                    commands += 1;
                }
            }
            Piece::Output(text) => {
                for line in text.lines() {
                    assert!(printed.contains(line), "{line:?} was not printed, but\n{printed}");
                    seen += 1;
                }
            }
            Piece::Replace(file, from, to) => {
                let file = home.join(file);
                let text = std::fs::read_to_string(&file).unwrap();
                assert!(text.contains(&from), "{} has no\n{from}", file.display());
                std::fs::write(&file, text.replace(&from, &to)).unwrap();
            }
        }
    }
    assert!(commands >= 18 && seen >= 13, "{commands} commands, {seen} lines");
}
