//! The built program against servers that answer, stall, drop and lie.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portreeve_load::result::Report;

mod hostile;
mod mistakes;
mod wire;

/// Longest that a run of a test may take, far above its bound.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portreeve-load-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that handles each connection by a function, until it is dropped.
struct Fake {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Fake {
    fn new(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, serve) = (Arc::new(AtomicBool::new(false)), Arc::new(serve));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    // A load program that never ends is the test's failure, not this thread's.
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    serve(stream, number);
                });
            }
        });
        Self { address, stop }
    }

    /// Answers each line by what `reply` says to its first word: nothing for the greeting, the line's end for an
    /// empty line.
    fn answering(reply: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::new(move |mut stream, _| {
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let _ = stream.write_all(reply("").as_bytes());
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|octets| octets > 0) {
                let text = String::from_utf8_lossy(&line).to_ascii_uppercase();
                let word = text.split_whitespace().next().unwrap_or("\r\n");
                if stream.write_all(reply(word).as_bytes()).is_err() || word == "QUIT" {
                    return;
                }
                line.clear();
            }
        })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// As an honest server answers who logs in.
fn honest(word: &str) -> String {
    match word {
        "" => "220 fake\r\n",
        "EHLO" => "250-fake\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n",
        "AUTH" => "235 ok\r\n",
        "QUIT" => "221 bye\r\n",
        _ => "250 ok\r\n",
    }
    .to_owned()
}

/// The baseline as a server that does everything.
struct Canned(Child, SocketAddr);

impl Canned {
    fn new(tls: bool) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_canned-reply"));
        if tls {
            command.arg("--tls");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap();
        Self(child, address)
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn load(target: SocketAddr, with: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve-load"));
    command.args(["--target", &target.to_string(), "--json", "-"]).args(with);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(mut command: Command) -> Output {
    output_of(&mut command)
}

fn output_of(command: &mut Command) -> Output {
    let began = Instant::now();
    let output = command.output().unwrap();
    assert!(began.elapsed() < PATIENCE, "a run that does not end");
    output
}

fn report_of(output: &Output) -> Report {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn report(target: SocketAddr, with: &[&str]) -> Report {
    report_of(&output(load(target, with)))
}

/// `stage: code × count`, sorted.
fn errors(report: &Report) -> Vec<String> {
    let mut errors: Vec<String> =
        report.errors.iter().map(|error| format!("{}: {} × {}", error.stage, error.code, error.count)).collect();
    errors.sort();
    errors
}

#[test]
fn every_kind_of_session_in_several_processes_and_tls() {
    let folder = Folder::new("kinds");
    let password = folder.file("password", "secret\n");
    for tls in [false, true] {
        let server = Canned::new(tls);
        let mut with = vec![
            "--scenario",
            "connect,login:2,submit:2",
            "--count",
            "300",
            "--processes",
            "3",
            "--sources",
            "6",
            "--user",
            "alice@load.example",
            "--password-file",
            &password,
            "--size",
            "1k-9k",
            "--per-connection",
            "2",
            "--crowd",
            "90",
            "--noop-rate",
            "2000",
        ];
        let pid = server.0.id().to_string();
        with.extend(["--pid", &pid]);
        if tls {
            with.extend(["--tls", "--resume", "0.5"]);
        }
        let output = output(load(server.1, &with));
        let report = report_of(&output);
        assert_eq!(errors(&report), Vec::<String>::new());
        assert!(output.status.success());
        assert_eq!((report.connections, report.held, report.crowd_lost), (300, 90, 0));
        let done = |name: &str| report.scenarios.iter().find(|scenario| scenario.name == name).unwrap().done;
        assert!((30..90).contains(&done("connect")) && (80..160).contains(&done("login")));
        assert_eq!(report.messages, 2 * done("submit"));
        assert_eq!(report.latency_us.count, 300);
        let idle = &report.scenarios[3];
        assert_eq!(idle.name, "idle");
        let server = report.server.unwrap();
        assert!(server.cpu_us_each > 0.0 && server.processes == 1 && server.context_switches > 0);
        assert!(server.memory_octets_each.is_some() && server.kernel_octets_each.is_some());
        assert_eq!(report.client.processes, 3);
        // A share of 390 handshakes; the first of each process cannot be resumed.
        let resumed: u64 = report.scenarios.iter().map(|scenario| scenario.resumed).sum();
        assert!(if tls { (100..290).contains(&resumed) } else { resumed == 0 }, "{resumed}");
        assert_eq!(report.tls.is_some_and(|words| words.starts_with("TLSv1_3")), tls);
        // The password is not in what is kept.
        assert!(!String::from_utf8_lossy(&output.stdout).contains("secret"));
    }
}

#[test]
fn servers_that_lie_drop_stall_and_babble_are_found_out() {
    let folder = Folder::new("hostile");
    let password = folder.file("password", "secret\n");
    let with = ["--scenario", "login", "--count", "8", "--user", "a", "--password-file", &password, "--patience", "1"];
    type Reply = fn(&str) -> String;
    let cases: [(&str, Reply, &str); 10] = [
        ("honest", honest, ""),
        ("refuses", |word| if word == "AUTH" { "454 later\r\n".into() } else { honest(word) }, "AUTH: 454 × 8"),
        (
            "accepts what was not asked",
            |word| if word == "AUTH" { "250 ok\r\n".into() } else { honest(word) },
            "AUTH: protocol × 8",
        ),
        (
            "two codes",
            |word| if word == "EHLO" { "250-a\r\n251 b\r\n".into() } else { honest(word) },
            "EHLO: protocol × 8",
        ),
        ("answers twice", |word| if word == "EHLO" { honest(word).repeat(2) } else { honest(word) }, "protocol × 8"),
        ("babbles", |_| "hello?\r\n".into(), "greeting: protocol × 8"),
        ("binary", |_| "\0\u{1}\u{7f}".repeat(5000), "greeting: protocol × 8"),
        ("stalls", |word| if word == "AUTH" { String::new() } else { honest(word) }, "AUTH: silence × 8"),
        ("says nothing", |_| String::new(), "greeting: silence × 8"),
        (
            "takes a login before it hears it",
            |word| if word == "EHLO" { format!("{}235 ok\r\n", honest(word)) } else { honest(word) },
            "protocol × 8",
        ),
    ];
    for (name, reply, expect) in cases {
        let server = Fake::answering(reply);
        let output = output(load(server.address, &with));
        let report = report_of(&output);
        let errors = errors(&report);
        let found = match expect {
            "" => errors.is_empty() && output.status.success() && report.connections == 8,
            _ => {
                errors.len() == 1
                    && errors[0].ends_with(expect)
                    && output.status.code() == Some(1)
                    && report.failed == 8
            }
        };
        assert!(found, "{name}: {errors:?} {}", String::from_utf8_lossy(&output.stderr));
    }
    let dropping = Fake::new(|mut stream, number| {
        if number % 2 == 0 {
            let _ = stream.write_all(b"220 fake\r\n");
        }
    });
    let report = report(dropping.address, &with);
    let errors = errors(&report);
    assert!(errors.contains(&"greeting: lost × 4".to_owned()), "{errors:?}");
    assert_eq!(report.failed, 8);
    let closed = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let nobody = self::report(closed, &with);
    assert_eq!((nobody.failed, self::errors(&nobody)), (8, vec!["connect: connection refused × 8".to_owned()]));
    assert!(nobody.warnings.iter().any(|warning| warning.contains("nothing to be measured")));
    assert!(nobody.warnings.iter().any(|warning| warning.contains(&format!("nobody listens at {closed}"))));
}

#[test]
fn a_wrong_password_that_is_taken_is_an_error() {
    let folder = Folder::new("wrong");
    let password = folder.file("password", "secret\n");
    let with = ["--scenario", "wrong-password", "--count", "5", "--user", "a", "--password-file", &password];
    let strict = Fake::answering(|word| if word == "AUTH" { "535 5.7.8 no\r\n".into() } else { honest(word) });
    let good = report(strict.address, &with);
    assert_eq!((good.connections, errors(&good).len()), (5, 0));
    let lax = Fake::answering(honest);
    assert_eq!(errors(&report(lax.address, &with)), ["AUTH: 235 × 5"]);
}

/// A server that stops for a while: a closed loop sees one slow session per connection, an open one sees
/// everybody who would have come meanwhile.
#[test]
fn a_stall_is_seen_by_all_who_would_have_come() {
    const STALL: Duration = Duration::from_millis(600);
    let server = |from: usize| {
        let until = std::sync::Mutex::new(None);
        Fake::new(move |mut stream, number| {
            // All connections from this one on wait until the stall is over.
            if number >= from {
                let end = *until.lock().unwrap().get_or_insert_with(|| Instant::now() + STALL);
                std::thread::sleep(end.saturating_duration_since(Instant::now()));
            }
            let _ = stream.write_all(b"220 fake\r\n");
            let _ = stream.read(&mut [0; 16]);
        })
    };
    let slow = |report: &Report| -> u64 {
        let values = &report.scenarios[0].latency_us["session"].values;
        values.iter().filter(|(micros, _)| *micros > 100_000).map(|(_, count)| count).sum()
    };
    let closed = server(100);
    let report_closed = report(closed.address, &["--scenario", "connect", "--count", "400", "--concurrency", "2"]);
    assert_eq!(report_closed.connections, 400);
    assert!(slow(&report_closed) <= 4, "{}", slow(&report_closed));
    let open = server(100);
    let with = ["--scenario", "connect", "--rate", "200", "--count", "400", "--concurrency", "2"];
    let report_open = report(open.address, &with);
    assert_eq!(report_open.connections, 400);
    // 200 a second for the half second that is left of the stall: about a hundred of them.
    assert!(slow(&report_open) >= 60, "{}", slow(&report_open));
    assert!(report_open.client.late_us.max > 100_000);
}

#[test]
fn the_warm_up_is_counted_apart() {
    let server = Canned::new(false);
    let with = ["--scenario", "connect", "--rate", "100", "--duration", "1", "--warm-up", "1"];
    let report = report(server.1, &with);
    assert!((80..=101).contains(&report.connections), "{}", report.connections);
    assert!(report.warm_up_seconds >= 1.0 && (0.8..2.0).contains(&report.seconds), "{report:?}");
    // Those that began before the duration was over are all that should have.
    assert!(!report.warnings.iter().any(|warning| warning.contains("rate was not reached")), "{:?}", report.warnings);
    // What goes wrong meanwhile is the warm-up's, too: the first 20 of some 100.
    let warming = Fake::new(|mut stream, number| {
        let _ = stream.write_all(if number < 20 { b"554 not yet\r\n" } else { b"220 fake\r\n" });
        let _ = stream.read(&mut [0; 16]);
    });
    let report = self::report(warming.address, &with);
    assert!(report.failed == 0 && report.client.late_us.count == report.connections, "{report:?}");
    assert_eq!(errors(&report), Vec::<String>::new());
    let cold = self::report(warming.address, &with[..with.len() - 2]);
    assert_eq!(cold.failed, 0, "the server is warm by now");
    // And so are its handshakes: the tickets that were got meanwhile serve for what is measured, and each of that has
    // one handshake in the counts.
    let server = Canned::new(true);
    let report = self::report(server.1, &[&with[..], &["--tls", "--resume", "1"]].concat());
    assert_eq!(errors(&report), Vec::<String>::new());
    assert!(report.connections >= 80, "{}", report.connections);
    assert_eq!(report.scenarios[0].resumed, report.connections);
    assert_eq!(report.tls_all.values().sum::<u64>(), report.connections);
}

/// Waits until the idle sessions are there and it goes on. Its standard error has to stay open.
fn until_measured(child: &mut Child) -> (rustix::process::Pid, BufReader<ChildStderr>) {
    until_phase(child, "measured")
}

fn until_phase(child: &mut Child, phase: &str) -> (rustix::process::Pid, BufReader<ChildStderr>) {
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(phase) {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended by itself");
    }
    (rustix::process::Pid::from_raw(child.id() as i32).unwrap(), stderr)
}

#[test]
fn a_signal_ends_it_with_what_there_is() {
    let server = Canned::new(false);
    let mut command = load(server.1, &["--scenario", "connect", "--duration", "25", "--crowd", "50", "--rate", "200"]);
    // As a terminal does it: all processes of the group hear the signal.
    command.args(["--processes", "2"]).process_group(0);
    let began = Instant::now();
    let mut child = command.spawn().unwrap();
    let (pid, _stderr) = until_measured(&mut child);
    rustix::process::kill_process_group(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(15));
    let report = report_of(&output);
    assert!(report.cut_short.is_some_and(|why| why.contains("signal")));
    assert!(report.connections > 0 && report.held == 50);
    assert_eq!(output.status.code(), Some(1));
}

/// What ends before everybody is there has measured nothing, and those that were never begun are not lost.
#[test]
fn an_end_before_the_crowd_is_there() {
    let server = Canned::new(false);
    let with = ["--scenario", "connect", "--crowd", "100000", "--gather-rate", "200"];
    let mut child = load(server.1, &with).spawn().unwrap();
    let (pid, _stderr) = until_phase(&mut child, "gathering");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let stopped = report_of(&child.wait_with_output().unwrap());
    assert!(stopped.cut_short.as_ref().is_some_and(|why| why.contains("signal")), "{:?}", stopped.cut_short);
    let timed = report(server.1, &[&with[..], &["--time-max", "1"]].concat());
    assert!(timed.cut_short.as_ref().is_some_and(|why| why.contains("--time-max")), "{:?}", timed.cut_short);
    for report in [stopped, timed] {
        assert!(report.held > 0 && report.scenarios[1].begun >= report.held, "{:?}", report.scenarios);
        assert_eq!((report.connections, report.crowd_lost, errors(&report)), (0, 0, vec![]));
    }
}

/// Who is in a hurry does not wait for what is in progress.
#[test]
fn a_second_signal_ends_it_at_once() {
    let server = Canned::new(false);
    let mut command = load(server.1, &["--scenario", "half-open", "--hold", "25", "--count", "2", "--crowd", "1"]);
    let mut child = command.spawn().unwrap();
    let (pid, _stderr) = until_measured(&mut child);
    // Sent again until it has ended: two that come together are one.
    let began = Instant::now();
    let status = loop {
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(130));
}

#[test]
fn a_duration_bounds_a_closed_loop() {
    let server = Canned::new(false);
    let report = report(server.1, &["--scenario", "connect", "--duration", "1", "--warm-up", "0.5"]);
    assert!(report.cut_short.is_none() && report.connections > 0);
    assert!((0.9..3.0).contains(&report.seconds), "{}", report.seconds);
}

#[test]
fn a_run_ends_at_its_bound() {
    let server = Fake::new(|mut stream, _| {
        let _ = stream.write_all(b"220-");
        // Alive, and never done.
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let began = Instant::now();
    let report = report(server.address, &["--scenario", "connect", "--count", "20", "--time-max", "2"]);
    assert!(began.elapsed() < Duration::from_secs(12));
    // Who was never served is counted where it waited.
    assert_eq!(errors(&report), ["greeting: unfinished × 16"]);
    assert_eq!((report.connections, report.failed), (0, 16));
    assert!(report.cut_short.is_some_and(|why| why.contains("after 2 s (--time-max)")));
    let with = ["--scenario", "connect", "--duration", "0.5", "--patience", "1", "--concurrency", "2"];
    let report = self::report(server.address, &with);
    assert_eq!(errors(&report), ["greeting: unfinished × 2"]);
    assert!(report.cut_short.is_some_and(|why| why.contains("--patience")));
    // A crowd that never gets there is no crowd.
    let report = self::report(server.address, &["--scenario", "idle", "--count", "5", "--time-max", "1"]);
    assert_eq!((report.held, report.crowd_lost), (0, 5));
    assert_eq!(errors(&report), ["greeting: unfinished × 5"]);
}

/// More NOOPs than anybody can say are as many as go, and all else goes on; a crowd may be lost at once.
#[test]
fn a_crowd_does_not_hold_up_the_rest() {
    let server = Canned::new(false);
    let with = ["--scenario", "connect", "--duration", "1", "--crowd", "10", "--noop-rate", "1e9"];
    let busy = report(server.1, &with);
    assert_eq!((errors(&busy), busy.crowd_lost), (vec![], 0));
    assert!((0.9..4.0).contains(&busy.seconds), "{}", busy.seconds);
    let noops = &busy.scenarios[1].latency_us["noop"];
    assert!(noops.percentiles.count > 100, "{:?}", noops.percentiles);

    // Each idle one is closed by the server after its second NOOP, in whatever order.
    let server = Fake::new(|mut stream, _| {
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        let _ = stream.write_all(b"220 fake\r\n");
        for reply in ["250 fake\r\n", "250 ok\r\n", "421 bye\r\n"] {
            line.clear();
            if lines.read_line(&mut line).is_ok_and(|octets| octets > 0) {
                let _ = stream.write_all(reply.as_bytes());
            }
        }
    });
    let with = ["--scenario", "idle", "--count", "100", "--noop-rate", "2000", "--hold", "2"];
    let lost = report(server.address, &with);
    assert_eq!((lost.held, lost.crowd_lost, errors(&lost)), (100, 100, vec!["NOOP: 421 × 100".to_owned()]));
    assert_eq!(lost.scenarios[0].latency_us["noop"].percentiles.count, 100);
}

#[test]
fn others_are_refused_and_mistakes_are_told() {
    let folder = Folder::new("refused");
    let plan = folder.file("plan.toml", "target = \"127.0.0.1:25\"\n[[scenario]]\nkind = \"sumbit\"\n");
    for (with, expect) in [
        (vec!["--target", "192.0.2.1:25", "--scenario", "connect"], "say so twice"),
        (vec!["--target", "192.0.2.1:25", "--scenario", "connect", "--remote"], "say so twice"),
        (vec!["--target", "127.0.0.1:25", "--scenario", "conect"], "known are connect"),
        (vec!["--target", "127.0.0.1:25", "--scenario", "login"], "needs a user"),
        (vec!["--plan", &plan], "sumbit"),
        (vec!["compare", "/nowhere/a.json", "/nowhere/b.json"], "/nowhere/a.json"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_portreeve-load")).args(&with).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(expect), "{with:?}: {said}");
    }
}

#[test]
fn files_reports_and_comparisons() {
    let folder = Folder::new("files");
    let server = Canned::new(false);
    let plan = folder.file(
        "plan.toml",
        &format!(
            "target = \"{}\"\nrate = 200.0\nduration = 2.0\n[[scenario]]\nkind = \"submit\"\nweight = 2\nsize = \"2k:9,20k:1\"\n\
             [[scenario]]\nname = \"churn\"\nkind = \"connect\"\n[[scenario]]\nkind = \"idle\"\ncount = 20\n",
            server.1
        ),
    );
    let (json, html) = (folder.0.join("a.json"), folder.0.join("a.html"));
    let output = Command::new(env!("CARGO_BIN_EXE_portreeve-load"))
        .args(["--plan", &plan, "--pid", &server.0.id().to_string(), "--json"])
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("churn session"), "{text}");
    let report = Report::read(&json).unwrap();
    assert!((350..=401).contains(&report.connections), "{}", report.connections);
    // An open loop is not held up by the bound of a closed one.
    assert_eq!(report.plan.as_ref().and_then(|plan| plan.concurrency), Some(10_000));
    for words in [&report.tool, &report.machine.kernel, &report.time, "command      portreeve-load --plan "] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(report.plan.is_some() && report.machine.cores > 0 && report.command.len() > 2 && !report.time.is_empty());
    let table =
        Command::new(env!("CARGO_BIN_EXE_portreeve-load")).arg("compare").arg(&json).arg(&json).output().unwrap();
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("churn session p99") && table.contains("1.00×") && !table.contains("differs"), "{table}");
    let page = Command::new(env!("CARGO_BIN_EXE_portreeve-load")).arg("report").arg(&json).arg("-").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&page.stdout), std::fs::read_to_string(&html).unwrap());
    in_a_browser(&html, &folder.0);
}

/// The page as a real browser makes it. Without one this is said and passed over, except where CI must have it.
fn in_a_browser(html: &Path, folder: &Path) {
    let browser = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
    let Some(browser) = browser else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI needs chromium for the report's test");
        eprintln!("skipped: no chromium here to look at the report with");
        return;
    };
    let run = |with: &[&str]| {
        let mut command = Command::new(browser);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1360,1900"]);
        command.arg(format!("--user-data-dir={}", folder.join("profile").display())).args(with);
        command.arg(format!("file://{}", html.display())).output().unwrap()
    };
    let dom = String::from_utf8_lossy(&run(&["--dump-dom"]).stdout).into_owned();
    assert!(dom.contains("Latency by percentile") && dom.matches("<svg").count() >= 5, "{dom}");
    for words in ["server processor time per message", "of the kernel's", "context switches of the server"] {
        assert!(dom.contains(words), "{words}: {dom}");
    }
    assert!(dom.contains("churn session") && dom.matches("<polyline").count() >= 6);
    let picture = folder.join("page.png");
    run(&[&format!("--screenshot={}", picture.display())]);
    // An empty page of this size is some 8 KB.
    assert!(std::fs::metadata(&picture).unwrap().len() > 40_000);
}
