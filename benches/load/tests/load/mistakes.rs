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
    let cases: [(&[&str], &str); 20] = [
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
        (&["--concurrency", "2", "--processes", "3"], "concurrency: 2 at a time are too few for 3 processes"),
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

/// A folder of its own with an old result in it, and what is in it afterwards.
fn names(folder: &Folder) -> Vec<String> {
    let entries = std::fs::read_dir(&folder.0).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A run that cannot be done, and one whose result cannot be written to its end, leave files as they were.
#[test]
fn an_old_result_stays_until_the_new_one_is_complete() {
    let folder = Folder::new("old");
    let (old, new) = (folder.file("old.json", "an old result\n"), folder.0.join("new.html").display().to_string());
    let files = ["--json", old.as_str(), "--html", new.as_str()];
    let nobody = ["--target", "127.0.0.1:1", "--scenario", "connect", "--pid", "4194999"];
    let (code, said) = tool(&[&nobody[..], &files].concat());
    assert!(code == Some(2) && said.contains("no such process"), "{said}");
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "an old result\n");
    assert_eq!(names(&folder), ["old.json"]);

    let server = Canned::new(false);
    let (target, page) = (server.1.to_string(), folder.0.display().to_string());
    let run = ["--target", target.as_str(), "--scenario", "connect", "--count", "50", "--quiet"];
    // A folder is no place for a page; and nothing was measured before that was said.
    let (code, said) = tool(&[&run[..], &["--html", &page]].concat());
    assert!(code == Some(2) && said.contains("the result cannot be written there"), "{said}");
    let (code, said) = tool(&[&run[..], &["--html", &old, "--json", &old]].concat());
    assert!(code == Some(2) && said.contains("--json and --html are two files"), "{said}");
    // A file of the shell's limit is smaller than any result.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ && ulimit -f 1 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_portreeve-load")]);
    let output = output_of(command.args(run).args(["--json", &old]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("old.json: "), "{said}");
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "an old result\n");
    assert_eq!(names(&folder), ["old.json"]);

    let (code, said) = tool(&[&run[..], &files].concat());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(Report::read(Path::new(&old)).unwrap().connections, 50);
    assert_eq!(names(&folder), ["new.html", "old.json"]);
}

/// What is no ordinary file is written to where it is; links and modes stay.
#[test]
fn results_go_to_devices_links_and_files_of_others() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    let folder = Folder::new("places");
    let server = Canned::new(false);
    let script = |script: &str| {
        let mut command = Command::new("sh");
        command.current_dir(&folder.0).args(["-c", script, env!("CARGO_BIN_EXE_portreeve-load")]);
        command.args(["--target", &server.1.to_string(), "--scenario", "connect", "--count", "5", "--quiet"]);
        let output = output_of(&mut command);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let is_result = |text: &str| serde_json::from_str::<Report>(text).is_ok_and(|report| report.connections == 5);
    let kept = |name: &str| std::fs::read_to_string(folder.0.join(name)).unwrap();
    assert!(script("\"$0\" \"$@\" --json /dev/null").starts_with("server"));
    // Behind the text, which goes there, too: a pipe, and a file that the shell has opened.
    let both = script("\"$0\" \"$@\" --json /dev/stdout");
    assert!(both.starts_with("server") && both.lines().last().is_some_and(is_result), "{both}");
    script("\"$0\" \"$@\" --json /dev/stdout > out");
    assert!(kept("out").starts_with("server") && kept("out").lines().last().is_some_and(is_result), "{}", kept("out"));
    script("\"$0\" \"$@\" --json /dev/fd/3 3> third");
    assert!(is_result(&kept("third")));
    assert!(is_result(&script("mkfifo pipe && { cat pipe & } && exec \"$0\" \"$@\" --json pipe >&2")));
    // The link leads to the new file, where there was none before and where there was one.
    std::fs::create_dir(folder.0.join("results")).unwrap();
    symlink("results/last.json", folder.0.join("link")).unwrap();
    let last = folder.0.join("results/last.json");
    for mode in [0o640, 0o604] {
        script("umask 027 && exec \"$0\" \"$@\" --json link");
        assert!(is_result(&kept("results/last.json")) && folder.0.join("link").is_symlink());
        assert_eq!(std::fs::metadata(&last).unwrap().mode() & 0o777, mode);
        std::fs::set_permissions(&last, std::fs::Permissions::from_mode(0o604)).unwrap();
    }
    assert_eq!(names(&folder), ["link", "out", "pipe", "results", "third"]);
}
