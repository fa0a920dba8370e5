//! What durable mail costs from the first octet to the hand-on, beside a baseline that keeps nothing and beside
//! Postfix, measured in one run.
//!
//! ```text
//! in turn, on one core:   canned-reply │ Portreeve, durable, discard route │ Postfix, discard transport
//! then, on the same core: Portreeve into Maildirs │ Portreeve to an LMTP server
//! ```
//!
//! Submission with login, pipelined, ten messages of 4 KiB per connection; the load, and the LMTP server, run on
//! another core. Counted is the processor time of all processes of a server until the last message has left its
//! queue. Nothing is hidden in its being lazy: a server is done when its queue is empty.
#![forbid(unsafe_code)]

mod postfix;
mod sink;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use portreeve_load::figures::{median, numbers, pin, spread};
use portreeve_load::ground::{Ground, Server, Settings, end_on_signal, output};
use portreeve_load::machine::{self, Machine};
use portreeve_load::process;
use serde_json::{Value, json};

use postfix::Postfix;
use sink::Sink;

/// Measures what durable mail costs and writes `benches/record/<date>-handon.{json,md}`.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  cargo build --release -p portreeve -p portreeve-standard -p portreeve-load && sudo target/release/handon
  target/release/handon --without postfix --rounds 3 --out /tmp

Exit codes: 0 all bars met, 1 a bar was missed, 2 it could not be measured."
)]
struct Args {
    /// Folder of portreeve, its libraries, canned-reply and portreeve-load; the own folder otherwise.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Rounds, in each of which all take their turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Messages of Portreeve and the baseline in one round.
    #[arg(long, default_value_t = 20_000)]
    messages: u64,
    /// Messages of Postfix, of Maildir and of LMTP in one round.
    #[arg(long, default_value_t = 4_000)]
    few: u64,
    /// Leave out: postfix, maildir, lmtp.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Core of the servers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core of the load.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Connections at a time.
    #[arg(long, default_value_t = 64)]
    concurrency: u64,
    /// Where the servers' folders are made: the disk that is measured; where temporary files are otherwise.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Folder of the record.
    #[arg(long, default_value = "benches/record")]
    out: PathBuf,
    /// Keep the temporary folder.
    #[arg(long)]
    keep: bool,
}

/// Messages per connection.
const PER_CONNECTION: u64 = 10;
/// How long a queue may take to become empty.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("handon: {error}");
            ExitCode::from(2)
        }
    }
}

/// One way of mail, and what it cost in each round.
struct Way {
    name: &'static str,
    samples: Vec<Value>,
}

impl Way {
    fn new(name: &'static str) -> Self {
        Self { name, samples: Vec::new() }
    }

    fn of(&self, key: &str) -> f64 {
        median(&numbers(&self.samples, key))
    }

    fn line(&self) -> String {
        let (low, high) = spread(&numbers(&self.samples, "cpu_us"));
        format!(
            "| {} | **{:.1}** ({low:.1}…{high:.1}) | {:.0} | {:.0} | {:.1} | {:.1} |",
            self.name,
            self.of("cpu_us"),
            self.of("accepted_per_second"),
            self.of("handed_on_per_second"),
            self.of("p50_ms"),
            self.of("p99_ms"),
        )
    }
}

/// A ratio that is asked for.
struct Bar {
    what: &'static str,
    value: f64,
    most: f64,
}

fn run(args: &Args) -> Result<bool, String> {
    let _ = rustix::process::setpriority_process(None, -20);
    end_on_signal()?;
    let bench = Bench::new(args)?;
    let with = |name: &str| !args.without.iter().any(|without| without == name);
    let mut baseline = Way::new("canned-reply: answers, keeps nothing");
    let mut discard = Way::new("Portreeve, durable, route discard");
    let mut postfix = Way::new("Postfix, discard transport, no login");
    let mut maildir = Way::new("Portreeve, durable, into one Maildir");
    let mut lmtp = Way::new("Portreeve, durable, to an LMTP server");
    {
        bench.configure("[[route]]\ndomain = \"*\"\nkind = \"discard\"\n")?;
        let server = bench.on_server_core(|| bench.ground.portreeve())?;
        let (canned, canned_address) = bench.on_server_core(|| bench.ground.baseline(false))?;
        let theirs =
            if with("postfix") { Some(bench.on_server_core(|| Postfix::start(bench.folder()))?) } else { None };
        let address = bench.ground.address(1);
        // Warm: password cache, allocator, page tables, processes.
        bench.log_in(address, &server)?;
        bench.measure(address, &server, "x@bench.test", 500, &|| true)?;
        bench.measure(canned_address, &canned, "x@bench.test", 500, &|| true)?;
        if let Some(theirs) = &theirs {
            bench.postfix(theirs, 500)?;
        }
        for round in 0..args.rounds {
            eprintln!(
                "round {} of {}: baseline, discard{}",
                round + 1,
                args.rounds,
                if theirs.is_some() { ", postfix" } else { "" }
            );
            let queue_is_empty = || bench.waiting() == Some(0);
            baseline.samples.push(bench.measure(canned_address, &canned, "x@bench.test", args.messages, &|| true)?);
            discard.samples.push(bench.measure(address, &server, "x@bench.test", args.messages, &queue_is_empty)?);
            if let Some(theirs) = &theirs {
                postfix.samples.push(bench.postfix(theirs, args.few)?);
            }
        }
    }
    let sink = Sink::start()?;
    bench.configure(&format!(
        "[[route]]\ndomain = \"*\"\nkind = \"maildir\"\npath = \"mail/%d/%n\"\n\n\
         [[route]]\ndomain = \"lmtp.test\"\nkind = \"lmtp\"\nto = [\"{}\"]\n",
        sink.address
    ))?;
    if with("maildir") || with("lmtp") {
        let server = bench.on_server_core(|| bench.ground.portreeve())?;
        let address = bench.ground.address(1);
        bench.log_in(address, &server)?;
        for round in 0..args.rounds {
            eprintln!("round {} of {}: maildir, lmtp", round + 1, args.rounds);
            if with("maildir") {
                let folder = bench.folder().join("mail/maildir.test/x/new");
                let files = || std::fs::read_dir(&folder).map_or(0, |files| files.count() as u64);
                let before = files();
                let all = args.few;
                let there = || files() >= before + all && bench.waiting() == Some(0);
                maildir.samples.push(bench.measure(address, &server, "x@maildir.test", all, &there)?);
            }
            if with("lmtp") {
                let (before, all) = (sink.messages(), args.few);
                let there = || sink.messages() >= before + all && bench.waiting() == Some(0);
                lmtp.samples.push(bench.measure(address, &server, "x@lmtp.test", all, &there)?);
            }
        }
    }
    // Of each round, then the middle one: what disturbs a round disturbs both sides.
    let ratio = |ours: &Way, theirs: &Way| {
        let pairs = ours.samples.iter().zip(&theirs.samples);
        let ratios: Vec<f64> = pairs
            .map(|(a, b)| a["cpu_us"].as_f64().unwrap_or(f64::NAN) / b["cpu_us"].as_f64().unwrap_or(f64::NAN))
            .collect();
        median(&ratios)
    };
    let mut bars = vec![Bar {
        what: "Portreeve against canned-reply, CPU per message",
        value: ratio(&discard, &baseline),
        most: 3.0,
    }];
    if with("postfix") {
        bars.push(Bar {
            what: "Portreeve against Postfix, CPU per message",
            value: ratio(&discard, &postfix),
            most: 0.05,
        });
    }
    let ways: Vec<Way> =
        [baseline, discard, postfix, maildir, lmtp].into_iter().filter(|way| !way.samples.is_empty()).collect();
    record(args, &bench, &ways, &bars)?;
    Ok(bars.iter().all(|bar| bar.value <= bar.most))
}

/// The programs, and where they run.
struct Bench<'a> {
    args: &'a Args,
    ground: Ground,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args) -> Result<Self, String> {
        let ground = Ground::new(&Settings {
            bin: args.bin.clone(),
            workers: 1,
            shards: 1,
            sessions_max: 10_000,
            log_level: "info".to_owned(),
            durability: "group-fsync",
            dir: args.dir.clone(),
            keep: args.keep,
        })?;
        Ok(Self { args, ground })
    }

    fn folder(&self) -> &Path {
        self.ground.folder()
    }

    /// Durable, with these routes.
    fn configure(&self, routes: &str) -> Result<(), String> {
        let path = self.ground.configuration();
        let said = |error: std::io::Error| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(&path).map_err(said)?;
        let (head, rest) = text.split_once("[[route]]").ok_or("no route in the configuration")?;
        let (_, tail) = rest.split_once("[limits]").ok_or("no limits in the configuration")?;
        std::fs::write(&path, format!("{head}{routes}\n[limits]{tail}")).map_err(said)
    }

    /// Starts a server on its core; everything else stays on the other.
    fn on_server_core<T>(&self, start: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        pin(self.args.server_core)?;
        let started = start();
        pin(self.args.load_core)?;
        started
    }

    /// Messages in Portreeve's queue; `None` when it does not answer.
    fn waiting(&self) -> Option<u64> {
        let mut stats = std::process::Command::new(self.ground.bin.join("portreeve"));
        let text =
            output(stats.args(["queue", "stats", "--json", "--config"]).arg(self.ground.configuration())).ok()?;
        serde_json::from_str::<Value>(&text).ok()?["messages"].as_u64()
    }

    /// Once, alone: as many at a time as there are connections would each have the password's slow hash computed.
    fn log_in(&self, target: SocketAddr, server: &Server) -> Result<(), String> {
        let mut load = self.ground.load(target, server);
        load.args(self.ground.login());
        output(load.args(["--scenario", "login", "--mechanism", "PLAIN", "--count", "1", "--quiet"])).map(drop)
    }

    /// Sends so many messages; the report of the load.
    fn load(
        &self,
        target: SocketAddr,
        pid: Option<&Server>,
        to: &str,
        messages: u64,
        login: bool,
    ) -> Result<Value, String> {
        let mut load = match pid {
            Some(server) => self.ground.load(target, server),
            None => {
                let mut load = std::process::Command::new(self.ground.bin.join("portreeve-load"));
                load.args(["--target", &target.to_string()]);
                load
            }
        };
        if login {
            load.args(self.ground.login());
        }
        let connections = messages.div_ceil(PER_CONNECTION).to_string();
        let text = output(load.args(["--json", "-", "--scenario", "submit", "--pipelining", "stream"]).args([
            "--per-connection",
            &PER_CONNECTION.to_string(),
            "--size",
            "4096",
            "--to",
            to,
            "--count",
            &connections,
            "--concurrency",
            &self.args.concurrency.to_string(),
        ]))?;
        let report: Value = serde_json::from_str(&text).map_err(|error| format!("portreeve-load: {error}: {text}"))?;
        if report["messages"].as_u64() != Some(messages) || report["failed"].as_u64() != Some(0) {
            return Err(format!(
                "portreeve-load: {} of {messages} messages, {} sessions failed: {}",
                report["messages"], report["failed"], report["errors"]
            ));
        }
        Ok(report)
    }

    /// Sends so many messages and waits until they have left.
    fn measure(
        &self,
        target: SocketAddr,
        server: &Server,
        to: &str,
        messages: u64,
        left: &dyn Fn() -> bool,
    ) -> Result<Value, String> {
        let before = process::settled(server.pid());
        let begun = Instant::now();
        let report = self.load(target, Some(server), to, messages, true)?;
        wait(left)?;
        let whole = begun.elapsed();
        let after = process::settled(server.pid());
        Ok(sample(&report, messages, after.cpu.saturating_sub(before.cpu), whole))
    }

    fn postfix(&self, postfix: &Postfix, messages: u64) -> Result<Value, String> {
        let (cpu, sent) = (postfix.cpu(), postfix.sent());
        let begun = Instant::now();
        let report = self.load(postfix.address, None, "x@bench.test", messages, false)?;
        wait(&|| postfix.is_empty() && postfix.sent() >= sent + messages).map_err(|error| {
            format!("postfix: {error}\n{}", postfix.log().lines().rev().take(5).collect::<Vec<_>>().join("\n"))
        })?;
        let whole = begun.elapsed();
        Ok(sample(&report, messages, postfix.cpu().saturating_sub(cpu), whole))
    }
}

fn sample(report: &Value, messages: u64, cpu: Duration, whole: Duration) -> Value {
    let milliseconds = |name: &str| report["latency_us"][name].as_f64().unwrap_or(f64::NAN) / 1000.0;
    let each = messages as f64;
    json!({
        "messages": messages,
        "cpu_us": cpu.as_secs_f64() * 1e6 / each,
        "accepted_per_second": each / report["seconds"].as_f64().unwrap_or(f64::NAN),
        "handed_on_per_second": each / whole.as_secs_f64(),
        "p50_ms": milliseconds("p50"), "p99_ms": milliseconds("p99"),
        "warnings": report["warnings"],
    })
}

fn wait(left: &dyn Fn() -> bool) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while !left() {
        if Instant::now() > until {
            return Err(format!("the queue is not empty after {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Writes both files and prints the table.
fn record(args: &Args, bench: &Bench<'_>, ways: &[Way], bars: &[Bar]) -> Result<(), String> {
    let date = machine::date(machine::unix_seconds());
    let command = machine::command().join(" ");
    let machine = Machine::this();
    let mut text = format!(
        "# Durable mail, from the first octet to the hand-on\n\n\
         - date: {date}\n- command: `{command}`\n- machine: {}, {} cores, kernel {}\n- load average at the end: {}\n\
         - Portreeve: {}\n\n\
         Submission with login, pipelined, {PER_CONNECTION} messages of 4 KiB per connection, {} connections at a time. Processor time of\n\
         all processes of a server until its queue is empty; medians of {} rounds (smallest…largest). Servers on core {},\n\
         load and LMTP server on core {}. p50 and p99 are of whole connections.\n\n\
         | way | CPU µs a message | accepted/s | handed on/s | p50 ms | p99 ms |\n|---|---|---|---|---|---|\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.load,
        bench.ground.build,
        args.concurrency,
        args.rounds,
        args.server_core,
        args.load_core,
    );
    for way in ways {
        let _ = writeln!(text, "{}", way.line());
    }
    text.push_str("\n| ratio | bar | measured | |\n|---|---|---|---|\n");
    for Bar { what, value, most } in bars {
        let met = if value <= most { "pass" } else { "**miss**" };
        let _ = writeln!(text, "| {what} | ≤ {most} | **{value:.3}** | {met} |");
    }
    print!("{text}");
    let result = json!({
        "version": 1, "date": date, "command": command, "machine": machine, "portreeve": bench.ground.build,
        "ways": ways.iter().map(|way| json!({ "name": way.name, "samples": way.samples })).collect::<Vec<_>>(),
        "bars": bars.iter().map(|bar| json!({ "what": bar.what, "value": bar.value, "most": bar.most })).collect::<Vec<_>>(),
    });
    std::fs::create_dir_all(&args.out).map_err(|error| format!("{}: {error}", args.out.display()))?;
    for (ending, content) in [("md", text), ("json", format!("{result:#}\n"))] {
        let path = args.out.join(format!("{date}-handon.{ending}"));
        std::fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
