//! Where a worker's processor time goes: functions by perf, system calls by strace, time per session and message;
//! and, beside another build, the ratio of both in the same run.
//!
//! Two builds take turns, work after work and round after round, on the same core; what is compared is the
//! processor time of all processes of the server. perf and strace look in runs of their own.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use portreeve_load::figures::{median, pin};
use portreeve_load::ground::{Ground, Running, Server, Settings, end_on_signal, output};
use portreeve_load::machine::{self, Machine};
use portreeve_load::process;
use serde_json::{Value, json};

/// Profiles a worker and compares two builds; writes `benches/record/<date>-profile.{json,md}`.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  cargo build --release -p portreeve -p portreeve-standard -p portreeve-load && target/release/profile
  target/release/profile --against before/ --rounds 9      before/ holds the programs of another build

Needs perf and strace. Exit codes: 0 measured, 2 it could not be run."
)]
struct Args {
    /// Folder of the programs; the own one otherwise.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Folder of the programs of another build.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Runs of each work and build; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Multiplies sessions per run.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Core of the servers, core of the load.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1])]
    cores: Vec<usize>,
    /// Functions that are named.
    #[arg(long, default_value_t = 12)]
    functions: usize,
    /// Folder of the record.
    #[arg(long, default_value = "benches/record")]
    out: PathBuf,
    /// Name of the record, behind the date.
    #[arg(long, default_value = "profile")]
    name: String,
}

struct Work {
    name: &'static str,
    what: &'static str,
    /// Messages of a session; 0: sessions are counted.
    messages: u64,
    /// Sessions of a run.
    sessions: u64,
    tls: bool,
    login: bool,
    with: &'static [&'static str],
}

const MAIL: [&str; 6] = ["--size", "4096", "--to", "bob@bench.test", "--per-connection", "10"];
const WORKS: [Work; 6] = [
    Work {
        name: "connect",
        what: "connect, greet, close",
        messages: 0,
        sessions: 12000,
        tls: false,
        login: false,
        with: &["--scenario", "connect"],
    },
    Work {
        name: "login",
        what: "EHLO, AUTH PLAIN (cached), QUIT, in clear",
        messages: 0,
        sessions: 8000,
        tls: false,
        login: true,
        with: &["--scenario", "login", "--mechanism", "PLAIN"],
    },
    Work {
        name: "scram",
        what: "EHLO, AUTH SCRAM-SHA-256, QUIT, in clear",
        messages: 0,
        sessions: 5000,
        tls: false,
        login: true,
        with: &["--scenario", "login", "--mechanism", "SCRAM-SHA-256"],
    },
    Work {
        name: "tls-login",
        what: "full TLS 1.3 handshake, EHLO, AUTH PLAIN (cached), QUIT",
        messages: 0,
        sessions: 2000,
        tls: true,
        login: true,
        with: &["--scenario", "login", "--mechanism", "PLAIN"],
    },
    Work {
        name: "crowd",
        what: "connect, EHLO, idle with all the others for a second, close",
        messages: 0,
        sessions: 8000,
        tls: false,
        login: false,
        with: &["--scenario", "idle", "--hold", "1"],
    },
    Work {
        name: "mail",
        what: "4 KiB messages, 10 per connection, in groups, kept with durability",
        messages: 10,
        sessions: 500,
        tls: false,
        login: false,
        with: &["--scenario", "submit"],
    },
];

/// What was found of one work.
#[derive(Default)]
struct Found {
    /// Processor microseconds each, of every round.
    ours: Vec<f64>,
    theirs: Vec<f64>,
    calls: Vec<(String, f64)>,
    functions: Vec<(String, f64)>,
    /// Per cent of the worker's time that is the kernel's.
    kernel: f64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("profile: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    end_on_signal()?;
    let ours = ground(args.bin.clone())?;
    let theirs = args.against.clone().map(|bin| ground(Some(bin))).transpose()?;
    let mut found: BTreeMap<&str, Found> = WORKS.iter().map(|work| (work.name, Found::default())).collect();
    {
        let server = args.on_server_core(|| ours.portreeve())?;
        let other = theirs.as_ref().map(|ground| args.on_server_core(|| ground.portreeve())).transpose()?;
        for work in &WORKS {
            let Some(found) = found.get_mut(work.name) else { continue };
            let sessions = ((work.sessions as f64 * args.scale) as u64).max(4);
            let each = |ground: &Ground, server: &Server| -> Result<f64, String> {
                let before = process::settled(server.pid()).cpu;
                load(&ours, ground, work, sessions)?;
                let cpu = process::settled(server.pid()).cpu.saturating_sub(before);
                Ok(cpu.as_secs_f64() * 1e6 / (sessions * work.messages.max(1)) as f64)
            };
            // Warm: password cache, allocator, page tables.
            load(&ours, &ours, work, sessions / 8 + 1)?;
            if let Some(ground) = &theirs {
                load(&ours, ground, work, sessions / 8 + 1)?;
            }
            for round in 0..args.rounds {
                // Who begins changes.
                if round % 2 == 0 {
                    found.ours.push(each(&ours, &server)?);
                }
                if let Some((ground, server)) = theirs.as_ref().zip(other.as_ref()) {
                    found.theirs.push(each(ground, server)?);
                }
                if round % 2 == 1 {
                    found.ours.push(each(&ours, &server)?);
                }
            }
            eprintln!("{}: {:.1} µs each {:?}", work.name, median(&found.ours), ratio(found));
        }
        drop(other);
        let worker = worker(&server)?;
        for work in &WORKS {
            let Some(found) = found.get_mut(work.name) else { continue };
            let sessions = ((work.sessions as f64 * args.scale) as u64).max(4);
            // With what the server does after the last reply.
            let whole = |sessions: u64| {
                load(&ours, &ours, work, sessions)?;
                process::settled(server.pid());
                Ok(())
            };
            let functions = sampled(&ours, worker, || whole(sessions))?;
            found.kernel = functions.iter().filter(|(name, _)| name.starts_with("[k]")).map(|(_, share)| share).sum();
            found.functions = functions.into_iter().take(args.functions).collect();
            let few = sessions / 10 + 1;
            let calls = traced(&ours, worker, || whole(few))?;
            let each = (few * work.messages.max(1)) as f64;
            found.calls = calls.into_iter().map(|(name, count)| (name, count as f64 / each)).collect();
            found.calls.sort_by(|a, b| b.1.total_cmp(&a.1));
        }
    }
    let rest = at_rest(args, &ours)?;
    record(args, &ours, theirs.as_ref(), &found, &rest)
}

/// What a worker does for sessions that do nothing.
struct Rest {
    sessions: u64,
    /// Processor time of all processes of the server, without and with the sessions, in [`REST`].
    cpu: [Duration; 2],
    /// System calls of the worker in [`REST`], without and with them.
    calls: [u64; 2],
}

/// How long a crowd is watched.
const REST: Duration = Duration::from_secs(5);

/// Watches a server by itself, and then with a crowd.
fn at_rest(args: &Args, ground: &Ground) -> Result<Rest, String> {
    let server = args.on_server_core(|| ground.portreeve())?;
    let worker = worker(&server)?;
    let watch = || -> Result<(Duration, u64), String> {
        let before = process::settled(server.pid()).cpu;
        std::thread::sleep(REST);
        let cpu = process::usage(server.pid()).cpu.saturating_sub(before);
        let calls = traced(ground, worker, || {
            std::thread::sleep(REST);
            Ok(())
        })?;
        Ok((cpu, calls.values().sum()))
    };
    let alone = watch()?;
    let sessions = ((8_000.0 * args.scale) as u64).max(4);
    let mut crowd = ground.load(ground.address(0), &server);
    crowd.args(["--json", "-", "--scenario", "idle", "--hold", "60", "--count", &sessions.to_string()]);
    let crowd = Running::crowd(&mut crowd, sessions)?;
    let beside = watch()?;
    drop(crowd);
    Ok(Rest { sessions, cpu: [alone.0, beside.0], calls: [alone.1, beside.1] })
}

fn ground(bin: Option<PathBuf>) -> Result<Ground, String> {
    Ground::new(&Settings {
        bin,
        workers: 1,
        shards: 1,
        sessions_max: 10_000,
        log_level: "info".to_owned(),
        durability: "group-fsync",
        dir: None,
        keep: false,
    })
}

impl Args {
    /// Starts something that stays on the servers' core; everything else stays on the other.
    fn on_server_core<T>(&self, start: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let &[server, load] = &self.cores[..] else { return Err("--cores: two numbers".to_owned()) };
        pin(server)?;
        let started = start();
        pin(load)?;
        started
    }
}

/// Median of the ratios of neighbours, where there is another build.
fn ratio(found: &Found) -> Option<f64> {
    let ratios: Vec<f64> = found.ours.iter().zip(&found.theirs).map(|(ours, theirs)| ours / theirs).collect();
    (!ratios.is_empty()).then(|| median(&ratios))
}

/// The process that has the sessions.
fn worker(server: &Server) -> Result<u32, String> {
    let is_worker = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(b"__role\0worker".len()).any(|part| part == b"__role\0worker")
    };
    // Ports answer before somebody accepts.
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        if let Some(pid) = process::family(server.pid()).into_iter().find(is_worker) {
            return Ok(pid);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("no worker among its processes".to_owned())
}

/// Loads the server of `ground` with the tool of `ours`: both builds hear the same.
fn load(ours: &Ground, ground: &Ground, work: &Work, sessions: u64) -> Result<(), String> {
    let mut command = Command::new(ours.bin.join("portreeve-load"));
    let target = ground.address(if work.tls { 2 } else { 0 }).to_string();
    command.args(["--quiet", "--target", &target, "--count", &sessions.to_string(), "--concurrency", "16"]);
    command.args(work.with);
    if work.messages > 0 {
        command.args(MAIL);
    }
    if work.tls {
        command.arg("--tls");
    }
    if work.login {
        command.args(ground.login());
    }
    output(&mut command).map(drop)
}

/// Functions of a process by their share of its time, the kernel's among them.
fn sampled(ground: &Ground, pid: u32, work: impl FnOnce() -> Result<(), String>) -> Result<Vec<(String, f64)>, String> {
    let file = ground.file("perf.data");
    let mut perf = Command::new("perf");
    perf.args(["record", "-q", "-e", "cpu-clock", "-F", "4000", "-p", &pid.to_string(), "-o"]).arg(&file);
    let mut perf = perf
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("perf: {error} (package linux-perf)"))?;
    let outcome = work();
    if let Some(pid) = rustix::process::Pid::from_raw(perf.id() as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    let _ = perf.wait();
    outcome?;
    let mut report = Command::new("perf");
    report.args(["report", "--stdio", "-q", "--no-children", "-F", "overhead,sym", "-g", "none", "-i"]).arg(&file);
    let text = output(&mut report)?;
    let rows = text.lines().filter_map(|line| {
        let (share, name) = line.trim().split_once('%')?;
        Some((short(name.trim()), share.trim().parse().ok()?))
    });
    Ok(rows.collect())
}

/// A function's name without a hash.
fn short(name: &str) -> String {
    let name = name.rsplit_once("::h").filter(|(_, hash)| hash.len() == 16).map_or(name, |(name, _)| name);
    name.chars().take(90).collect()
}

/// System calls of a process and its threads while `work` goes on.
fn traced(
    ground: &Ground,
    pid: u32,
    work: impl FnOnce() -> Result<(), String>,
) -> Result<BTreeMap<String, u64>, String> {
    let file = ground.file("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-c", "-o"]).arg(&file).args(["-p", &pid.to_string()]);
    let mut strace =
        strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|error| format!("strace: {error}"))?;
    let until = Instant::now() + Duration::from_secs(10);
    let is_traced = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    while !is_traced() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let outcome = work();
    if let Some(pid) = rustix::process::Pid::from_raw(strace.id() as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    let _ = strace.wait();
    outcome?;
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let mut calls = BTreeMap::new();
    // `% time     seconds  usecs/call     calls    errors syscall`
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(count), Some(name)) = (words.get(3), words.last()) else { continue };
        if let (Ok(count), true) = (count.parse::<u64>(), *name != "total") {
            *calls.entry((*name).to_owned()).or_default() += count;
        }
    }
    Ok(calls)
}

fn record(
    args: &Args,
    ours: &Ground,
    theirs: Option<&Ground>,
    found: &BTreeMap<&str, Found>,
    rest: &Rest,
) -> Result<(), String> {
    let date = machine::date(machine::unix_seconds());
    let command = machine::command().join(" ");
    let machine = Machine::this();
    let mut text = format!(
        "# Where a worker's time goes\n\n- date: {date}\n- command: `{command}`\n- machine: {}, {} cores, kernel {}\n\
         - load average at the end: {}\n- Portreeve: {}\n- the other build: {}\n\n\
         Processor time is that of all processes of the server, per session or message; the ratio is the median of the \
         ratios of {} pairs that ran in turn. System calls are those of the worker.\n\n\
         | work | µs each | other build | ratio | system calls each | of them |\n|---|---|---|---|---|---|\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.load,
        ours.build,
        theirs.map_or("none", |ground| &ground.build),
        args.rounds,
    );
    let works = || WORKS.iter().filter_map(|work| Some((work, found.get(work.name)?)));
    for (work, found) in works() {
        let calls: Vec<String> = found.calls.iter().take(7).map(|(name, each)| format!("{name} {each:.2}")).collect();
        let sum: f64 = found.calls.iter().map(|(_, each)| each).sum();
        let (other, times) = match ratio(found) {
            Some(ratio) => (format!("{:.1}", median(&found.theirs)), format!("{ratio:.3}×")),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let own = median(&found.ours);
        let _ = writeln!(
            text,
            "| {}: {} | {own:.1} | {other} | {times} | {sum:.2} | {} |",
            work.name,
            work.what,
            calls.join(", ")
        );
    }
    let _ = writeln!(
        text,
        "\nAt rest, in {} s: the server took {:.1} ms of processor time by itself and {:.1} ms with {} idle sessions; \
         its worker made {} and {} system calls.",
        REST.as_secs(),
        rest.cpu[0].as_secs_f64() * 1e3,
        rest.cpu[1].as_secs_f64() * 1e3,
        rest.sessions,
        rest.calls[0],
        rest.calls[1],
    );
    for (work, found) in works() {
        let _ = writeln!(
            text,
            "\n## {}: the kernel has {:.0} % of the worker's time\n\n| % | function |\n|---|---|",
            work.name, found.kernel
        );
        for (name, share) in &found.functions {
            let _ = writeln!(text, "| {share:.1} | `{name}` |");
        }
    }
    print!("{text}");
    let works: Vec<Value> = works()
        .map(|(work, found)| {
            json!({
                "name": work.name, "what": work.what, "us_each": found.ours, "other_us_each": found.theirs,
                "ratio": ratio(found), "calls": found.calls, "functions": found.functions, "kernel_percent": found.kernel,
            })
        })
        .collect();
    let result = json!({
        "version": 1, "date": date, "command": command, "machine": machine, "portreeve": ours.build,
        "other": theirs.map(|ground| &ground.build), "works": works,
        "at_rest": {
            "seconds": REST.as_secs(), "sessions": rest.sessions,
            "cpu_us": rest.cpu.map(|cpu| cpu.as_micros() as u64), "worker_calls": rest.calls,
        },
    });
    std::fs::create_dir_all(&args.out).map_err(|error| format!("{}: {error}", args.out.display()))?;
    for (ending, content) in [("md", text), ("json", format!("{result:#}\n"))] {
        let path = args.out.join(format!("{date}-{}.{ending}", args.name));
        std::fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
