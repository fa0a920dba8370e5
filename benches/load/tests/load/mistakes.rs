//! What was asked for cannot be done: said before anything begins, with file, line, cause and remedy.

use super::*;

fn tool(with: &[&str]) -> (Option<i32>, String) {
    let output = output_of(Command::new(env!("CARGO_BIN_EXE_portreeve-load")).args(with).stdin(Stdio::null()));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn flags_that_cannot_work() {
    let folder = Folder::new("flags");
    let password = folder.file("password", "secret\n");
    let bad_pem = folder.file("bad.pem", "nothing\n");
    let cases: [(&[&str], &str); 19] = [
        (&["--time-max", "1e300"], "time_max: "),
        (&["--duration", "1e300"], "duration: "),
        (&["--duration", "0"], "duration: 0 is not between"),
        (&["--warm-up", "nan"], "warm_up: NaN"),
        (&["--hold", "inf"], "hold: inf"),
        (&["--hold=-1"], "hold: -1"),
        (&["--patience", "1e30"], "patience: "),
        (&["--rate", "1e-300"], "rate: "),
        (&["--noop-rate", "1e-300"], "noop_rate: "),
        (&["--gather-rate", "0"], "gather_rate: 0"),
        (&["--count", "0"], "count: 0 sessions"),
        (&["--concurrency", "0"], "concurrency: 0 sessions"),
        (&["--sources", "4000000000"], "sources: "),
        (&["--source-address", "::1"], "one is IPv4, the other IPv6"),
        (&["--processes", "0"], "processes: 0"),
        (&["--recipients", "4000000000"], "recipients"),
        (&["--tls", "--tls-version", "1.1"], "neither \"1.2\" nor \"1.3\""),
        (&["--tls", "--client-cert", &bad_pem, "--client-key", &bad_pem], "bad.pem"),
        (&["--tls", "--sni", "no name"], "sni: "),
    ];
    for (flags, expect) in cases {
        let (code, said) = tool(&[&["--target", "127.0.0.1:1", "--scenario", "connect"], flags].concat());
        assert!(code == Some(2) && said.contains(expect) && said.lines().count() == 1, "{flags:?}: {code:?} {said}");
    }
    let login = ["--target", "127.0.0.1:1", "--processes", "3", "--user", "a", "--password-file", &password];
    for (flags, expect) in [
        (&["--scenario", "login", "--mechanism", "FOO"][..], "\"FOO\": known are "),
        (&["--scenario", "idle", "--mechanism", "LOGIN"], "PLAIN or a token"),
        (&["--scenario", "login", "--mechanism", "SCRAM-SHA-1-PLUS"], "--tls or --starttls"),
        (&["--scenario", "submit", "--pipelining", "stream", "--bdat"], "goes with neither"),
        (&["--scenario", "connect", "--pid", "4194999"], "no such process"),
        (&["--scenario", "connect", "--json", "/nowhere/a.json"], "/nowhere/a.json: "),
        (&["--scenario", "connect", "--json", "-", "--html", "-"], "only one of them"),
        (&["--scenario", "connect:-1"], "weight"),
    ] {
        let (code, said) = tool(&[&login, flags].concat());
        // Once, and not by each load process.
        assert!(code == Some(2) && said.contains(expect) && said.lines().count() == 1, "{flags:?}: {code:?} {said}");
    }
    // What clap finds.
    for flags in [&["--resume", "much"][..], &["--tls", "--starttls"], &["--client-cert", "x"], &["--scenaro"], &[]] {
        assert_eq!(tool(flags).0, Some(2), "{flags:?}");
    }
}

#[test]
fn plans_that_cannot_work() {
    let folder = Folder::new("plans");
    let head = "target = \"127.0.0.1:1\"\n";
    let good = "[[scenario]]\nkind = \"connect\"\n";
    for (text, expect) in [
        (format!("{head}rat = 5\n{good}"), "line 2"),
        (format!("{head}{good}wieght = 3\n"), "line 4"),
        (format!("{head}{good}[[scenario]]\nkind = \"sumbit\"\n"), "line 5"),
        (format!("{head}rate = \"much\"\n{good}"), "line 2"),
        (format!("{head}[[scenario\n"), "line 2"),
        (format!("{head}rate = -1.0\n{good}"), "plan.toml:2: rate: -1 is not between"),
        (format!("{head}\n# more\nduration = 1e300\n{good}"), "plan.toml:4: duration: "),
        (format!("{head}{good}[[scenario]]\nkind = \"login\"\n"), "plan.toml:4: scenario \"login\": needs a user"),
        (format!("{head}{good}hold = -1.0\n"), "plan.toml:2: scenario \"connect\": hold"),
        (format!("{head}{good}hold = 1e300\n"), "plan.toml:2: scenario \"connect\": hold"),
        (
            format!("{head}{good}[[scenario]]\nkind = \"login\"\nuser = \"a\"\npassword_file = \"gone\"\n"),
            "plan.toml:4: scenario \"login\": password file ",
        ),
        (format!("{head}{good}target = \"192.0.2.1:25\"\n"), "plan.toml:2: 192.0.2.1: not this machine"),
        (format!("{head}{good}client_cert = \"gone\"\nclient_key = \"gone\"\ntls = \"implicit\"\n"), "gone: "),
        (String::new(), "nothing to do"),
    ] {
        let plan = folder.file("plan.toml", &text);
        let (code, said) = tool(&["--plan", &plan]);
        assert!(code == Some(2) && said.contains(expect) && said.contains("panicked").eq(&false), "{text}: {said}");
    }
    let (code, said) = tool(&["--plan", "/nowhere/plan.toml"]);
    assert!(code == Some(2) && said.contains("/nowhere/plan.toml"), "{said}");
    let (code, said) = tool(&["compare", &folder.file("a.json", "{}"), &folder.file("b.json", "{}")]);
    assert!(code == Some(2) && said.contains("a.json") && said.contains("version 0"), "{said}");
}

/// Somebody who has heard enough of the result is no crash.
#[test]
fn a_pipe_that_is_closed() {
    let server = Canned::new(false);
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve-load"));
    command.args(["--target", &server.1.to_string(), "--scenario", "connect", "--count", "3", "--quiet"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("standard output: "), "{said}");
}
