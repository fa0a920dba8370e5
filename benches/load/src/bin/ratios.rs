//! The figures of the first issue as ratios against the canned-reply baseline, measured in one run.
//!
//! Both programs do the same work in turn, pair after pair, on one core; the load runs on another. What is
//! compared is processor time of all processes of the server, per connection or message: wall time would
//! measure whoever else uses the machine. The median of the ratios of all pairs stands in the table.
//!
//! The baseline answers by the first octet of a line; what a ratio is above 1 is what an SMTP server does
//! beyond that. A pair counts only when both sides got the same number of writes from the client.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use portreeve_load::figures::{median, numbers, pin, spread};
use portreeve_load::ground::{Ground, Running, Server, Settings, end_on_signal, output};
use portreeve_load::machine::{self, Machine};
use serde_json::{Value, json};

/// Measures Portreeve against the canned-reply baseline and writes `benches/record/<date>-ratios.{json,md}`.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  cargo build --release -p portreeve -p portreeve-standard -p portreeve-load && target/release/ratios
  target/release/ratios --rows tls-login --pairs 15 --out /tmp
  target/release/ratios --rows login --log-level error    what the log costs

Exit codes: 0 all bars met, 1 a bar was missed, 2 it could not be measured."
)]
struct Args {
    /// Folder of portreeve, its libraries, canned-reply and portreeve-load; the own folder otherwise.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Pairs of each ratio.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Only these rows: connect, login, tls-login, mail, tls-mail, submit, idle, idle-tls, logins-beside-idle.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Core of the servers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core of the load.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Idle sessions.
    #[arg(long, default_value_t = 15_000)]
    sessions: u64,
    /// Multiplies connections per run.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Connections at a time.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// `log.level` of Portreeve; `info` is its default.
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Folder of the record.
    #[arg(long, default_value = "benches/record")]
    out: PathBuf,
    /// Keep the temporary folder of the server.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ratios: {error}");
            ExitCode::from(2)
        }
    }
}

/// A line of the table.
struct Row {
    name: &'static str,
    work: &'static str,
    /// `×`, `B`, `µs`: what the value is counted in.
    unit: &'static str,
    bar: f64,
    value: f64,
    /// Smallest and largest of the pairs.
    spread: (f64, f64),
    /// Medians of the two sides, where there are two.
    baseline: Option<f64>,
    portreeve: Option<f64>,
    side_unit: &'static str,
    note: String,
    samples: Vec<Value>,
}

/// A row that compares processor time.
struct Compared {
    name: &'static str,
    work: &'static str,
    bar: f64,
    count: u64,
    tls: bool,
    scenario: &'static [&'static str],
    /// The load logs in.
    login: bool,
}

/// What an idle crowd may do to the p99 of logins.
const BESIDE_MAX: f64 = 1.2;

/// Slices of logins for each pair that was asked for, see [`Bench::beside_idle`]: before there is a crowd, and beside it.
const SLICES: [usize; 2] = [10, 30];

/// Sessions with a login and a mail that one core takes in a second.
const SESSIONS_MIN: f64 = 8_000.0;

const COMPARED: [Compared; 5] = [
    Compared {
        name: "connect",
        work: "connect, greet, close",
        bar: 1.3,
        count: 20_000,
        tls: false,
        scenario: &["--scenario", "connect"],
        login: false,
    },
    Compared {
        name: "login",
        work: "EHLO, AUTH PLAIN (cached), QUIT, in clear",
        bar: 1.5,
        count: 20_000,
        tls: false,
        scenario: &["--scenario", "login", "--mechanism", "PLAIN"],
        login: true,
    },
    Compared {
        name: "tls-login",
        work: "TLS 1.3 P-256 full handshake, EHLO, AUTH PLAIN, QUIT",
        bar: 1.2,
        count: 4_000,
        tls: true,
        scenario: &["--scenario", "login", "--mechanism", "PLAIN"],
        login: true,
    },
    Compared {
        name: "mail",
        work: "4 KiB mail, pipelined, 10 per connection, discard without durability",
        bar: 2.0,
        count: 3_000,
        tls: false,
        scenario: &[
            "--scenario",
            "submit",
            "--pipelining",
            "stream",
            "--per-connection",
            "10",
            "--size",
            "4096",
            "--to",
            "bob@bench.test",
        ],
        login: false,
    },
    Compared {
        name: "tls-mail",
        work: "the same inside TLS 1.3, after a login",
        bar: 2.0,
        count: 3_000,
        tls: true,
        scenario: &[
            "--scenario",
            "submit",
            "--mechanism",
            "PLAIN",
            "--pipelining",
            "stream",
            "--per-connection",
            "10",
            "--size",
            "4096",
            "--to",
            "bob@bench.test",
        ],
        login: true,
    },
];

fn run(args: &Args) -> Result<bool, String> {
    let wanted = |name: &str| args.rows.is_empty() || args.rows.iter().any(|row| row == name);
    // Others on the machine disturb less; not ours to insist on.
    let _ = rustix::process::setpriority_process(None, -20);
    end_on_signal()?;
    let bench = Bench::new(args)?;
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    let mut take = |name: &str, row: Result<Row, String>| match row {
        Ok(row) => {
            eprintln!("{}", row.line());
            rows.push(row);
        }
        Err(error) => {
            eprintln!("{name}: not measured: {error}");
            failures.push(format!("{name}: {}", error.lines().next().unwrap_or_default()));
        }
    };
    for compared in COMPARED.iter().filter(|compared| wanted(compared.name)) {
        take(compared.name, bench.compare(compared));
    }
    if wanted("submit") {
        take("submit", bench.submit());
    }
    for (name, tls) in [("idle", false), ("idle-tls", true)] {
        if wanted(name) {
            take(name, bench.idle(name, tls));
        }
    }
    if wanted("logins-beside-idle") {
        take("logins-beside-idle", bench.beside_idle());
    }
    record(args, &bench, &rows, &failures)?;
    if let Some(failure) = failures.first() {
        return Err(format!("not measured: {failure}"));
    }
    Ok(rows.iter().all(Row::is_met))
}

impl Row {
    fn is_met(&self) -> bool {
        self.value <= self.bar
    }

    fn line(&self) -> String {
        let number = |value: f64| match self.unit {
            "×" => format!("{value:.2}×"),
            unit => format!("{value:.0} {unit}"),
        };
        let side = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
        format!(
            "| {} | ≤ {} | **{}** ({}…{}) | {} | {} | {} | {} | {} |",
            self.work,
            number(self.bar),
            number(self.value),
            number(self.spread.0),
            number(self.spread.1),
            if self.is_met() { "pass" } else { "**miss**" },
            side(self.baseline),
            side(self.portreeve),
            self.side_unit,
            self.note,
        )
    }
}

/// The programs, and where they run.
struct Bench<'a> {
    args: &'a Args,
    ground: Ground,
}

/// One worker with one event loop: what is measured is a core.
fn settings(args: &Args) -> Settings {
    Settings {
        bin: args.bin.clone(),
        workers: 1,
        shards: 1,
        sessions_max: 100_000,
        log_level: args.log_level.clone(),
        durability: "none",
        dir: None,
        keep: args.keep,
    }
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args) -> Result<Self, String> {
        Ok(Self { args, ground: Ground::new(&settings(args))? })
    }

    /// Starts a server on its core; everything else stays on the other.
    fn on_server_core<T>(&self, start: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        pin(self.args.server_core)?;
        let started = start();
        pin(self.args.load_core)?;
        started
    }

    fn portreeve(&self) -> Result<Server, String> {
        self.on_server_core(|| self.ground.portreeve())
    }

    fn baseline(&self, tls: bool) -> Result<(Server, SocketAddr), String> {
        self.on_server_core(|| self.ground.baseline(tls))
    }

    fn load(&self, target: SocketAddr, server: &Server, with: &[&str]) -> Command {
        let mut command = self.ground.load(target, server);
        command.args(["--json", "-", "--sources", "64"]).args(with);
        command
    }

    fn login(&self) -> [String; 4] {
        self.ground.login()
    }

    /// Ratio of processor time per piece of work.
    fn compare(&self, compared: &Compared) -> Result<Row, String> {
        let server = self.portreeve()?;
        let (baseline, baseline_address) = self.baseline(compared.tls)?;
        let address = self.ground.address(if compared.tls { 2 } else { 0 });
        let login = self.login();
        let mut with: Vec<&str> = compared.scenario.to_vec();
        if compared.tls {
            with.push("--tls");
        }
        if compared.login {
            with.extend(login.iter().map(String::as_str));
        }
        let once = |target, server: &Server, count: u64| -> Result<Value, String> {
            let count = ((count as f64 * self.args.scale) as u64).max(10).to_string();
            let concurrency = self.args.concurrency.to_string();
            let text =
                output(self.load(target, server, &with).args(["--count", &count, "--concurrency", &concurrency]))?;
            serde_json::from_str(&text).map_err(|error| format!("portreeve-load: {error}: {text}"))
        };
        // Warm: password cache, allocator, page tables.
        once(address, &server, compared.count / 4)?;
        once(baseline_address, &baseline, compared.count / 4)?;
        let mut samples = Vec::new();
        let mut note = String::new();
        for pair in 0..self.args.pairs {
            // Who begins changes.
            let (ours, theirs) = if pair % 2 == 0 {
                let theirs = once(baseline_address, &baseline, compared.count)?;
                (once(address, &server, compared.count)?, theirs)
            } else {
                let ours = once(address, &server, compared.count)?;
                (ours, once(baseline_address, &baseline, compared.count)?)
            };
            let cpu = |of: &Value| of["server"]["cpu_us_each"].as_f64().unwrap_or(f64::NAN);
            let writes = |of: &Value| of["client"]["writes"].as_f64().unwrap_or(f64::NAN);
            if (writes(&ours) / writes(&theirs) - 1.0).abs() > 0.01 {
                return Err(format!(
                    "{}: unlike work: {} writes against {}",
                    compared.name,
                    writes(&ours),
                    writes(&theirs)
                ));
            }
            if ours["tls"] != theirs["tls"] {
                return Err(format!("{}: unlike TLS: {} against {}", compared.name, ours["tls"], theirs["tls"]));
            }
            note = ours["tls"].as_str().unwrap_or_default().to_owned();
            samples.push(json!({
                "ratio": cpu(&ours) / cpu(&theirs), "baseline_us": cpu(&theirs), "portreeve_us": cpu(&ours),
                "client_writes": [writes(&theirs), writes(&ours)],
                "client_octets": [theirs["client"]["octets_sent"], ours["client"]["octets_sent"]],
                "context_switches": [theirs["server"]["context_switches"], ours["server"]["context_switches"]],
            }));
        }
        let ratios = numbers(&samples, "ratio");
        Ok(Row {
            name: compared.name,
            work: compared.work,
            unit: "×",
            bar: compared.bar,
            value: median(&ratios),
            spread: spread(&ratios),
            baseline: Some(median(&numbers(&samples, "baseline_us"))),
            portreeve: Some(median(&numbers(&samples, "portreeve_us"))),
            side_unit: "µs",
            note,
            samples,
        })
    }

    /// Processor time of a whole session with a login and a mail: what one core can take.
    fn submit(&self) -> Result<Row, String> {
        let server = self.portreeve()?;
        let login = self.login();
        let mut with = vec!["--scenario", "submit", "--mechanism", "PLAIN", "--size", "4096", "--to", "bob@bench.test"];
        with.extend(login.iter().map(String::as_str));
        let concurrency = self.args.concurrency.to_string();
        with.extend(["--concurrency", &concurrency]);
        let once = |count: f64| -> Result<Value, String> {
            let count = ((count * self.args.scale) as u64).max(10).to_string();
            let text = output(self.load(self.ground.address(0), &server, &with).args(["--count", &count]))?;
            serde_json::from_str(&text).map_err(|error| format!("portreeve-load: {error}: {text}"))
        };
        once(2_500.0)?;
        let mut samples = Vec::new();
        for _ in 0..self.args.pairs {
            let result = once(10_000.0)?;
            samples.push(json!({ "cpu_us": result["server"]["cpu_us_each"], "messages": result["messages"] }));
        }
        let cpu = numbers(&samples, "cpu_us");
        Ok(Row {
            name: "submit",
            work: "EHLO, AUTH PLAIN, one 4 KiB mail, QUIT, in clear, discard without durability",
            unit: "µs",
            bar: 1e6 / SESSIONS_MIN,
            value: median(&cpu),
            spread: spread(&cpu),
            baseline: None,
            portreeve: Some(median(&cpu)),
            side_unit: "µs",
            note: format!("{:.0} sessions/s for a core; the bar is {SESSIONS_MIN:.0}", 1e6 / median(&cpu)),
            samples,
        })
    }

    /// Private memory of all processes per idle session.
    fn idle(&self, name: &'static str, tls: bool) -> Result<Row, String> {
        let mut samples = Vec::new();
        for _ in 0..3 {
            // A fresh server each time: what an allocator keeps from the last crowd would be counted as nothing.
            let server = self.portreeve()?;
            let address = self.ground.address(if tls { 2 } else { 0 });
            let login = self.login();
            let mut warm: Vec<&str> = vec!["--scenario", "login", "--count", "500"];
            warm.extend(login.iter().map(String::as_str));
            let sessions = self.args.sessions.to_string();
            let mut idle = vec!["--scenario", "idle", "--hold", "1", "--count", &sessions];
            if tls {
                warm.push("--tls");
                idle.push("--tls");
            }
            output(self.load(address, &server, &warm).args(["--concurrency", "8"]))?;
            let text = output(&mut self.load(address, &server, &idle))?;
            let result: Value =
                serde_json::from_str(&text).map_err(|error| format!("portreeve-load: {error}: {text}"))?;
            let grown = result["server"]["memory_octets"].as_f64().unwrap_or(f64::NAN);
            let held = result["held"].as_f64().unwrap_or(f64::NAN);
            samples.push(json!({ "octets": grown / held, "held": held, "grown": grown, "tls": result["tls"] }));
        }
        let octets = numbers(&samples, "octets");
        Ok(Row {
            name,
            work: if tls {
                "process memory per idle session, TLS 1.3"
            } else {
                "process memory per idle session, plain"
            },
            unit: "B",
            bar: if tls { 1300.0 } else { 256.0 },
            value: median(&octets),
            spread: spread(&octets),
            baseline: None,
            portreeve: None,
            side_unit: "",
            note: format!("{} sessions after EHLO", self.args.sessions),
            samples,
        })
    }

    /// p99 of logins at a worker that holds an idle crowd, against one that does not.
    ///
    /// Two servers alike share a core and get short slices of logins in turn; then one of them gets a crowd and they
    /// do so again. What else the machine does comes upon both alike, and a median of slices forgets what came upon
    /// a few: a single long run with the crowd after one without it measures who was on the machine in the meantime.
    fn beside_idle(&self) -> Result<Row, String> {
        let other = Ground::new(&settings(self.args))?;
        let servers = [self.portreeve()?, self.on_server_core(|| other.portreeve())?];
        let addresses = [self.ground.address(0), other.address(0)];
        // An open loop far from saturation: what is asked is how long a login takes, not how long a queue is.
        let login = self.login();
        let mut with: Vec<&str> = vec!["--scenario", "login", "--mechanism", "PLAIN", "--rate", "2000"];
        with.extend(login.iter().map(String::as_str));
        let p99 = |which: usize, count: &str| -> Result<f64, String> {
            let text = output(self.load(addresses[which], &servers[which], &with).args(["--count", count]))?;
            let result: Value =
                serde_json::from_str(&text).map_err(|error| format!("portreeve-load: {error}: {text}"))?;
            result["latency_us"]["p99"].as_f64().ok_or_else(|| format!("portreeve-load: no p99: {text}"))
        };
        let slices = |pairs: usize| -> Result<Vec<[f64; 2]>, String> {
            (0..pairs)
                .map(|pair| {
                    // Who begins changes.
                    let first = pair % 2;
                    let mut slices = [0.0; 2];
                    for which in [first, 1 - first] {
                        slices[which] = p99(which, "500")?;
                    }
                    Ok(slices)
                })
                .collect()
        };
        // Ratio of the medians of both sides, and the two medians.
        let compared = |slices: &[[f64; 2]]| {
            let [with, without] = [0, 1].map(|which| median(&slices.iter().map(|s| s[which]).collect::<Vec<_>>()));
            (with / without, with, without)
        };
        for which in [0, 1] {
            p99(which, "4000")?;
        }
        let [before, pairs] = SLICES.map(|slices| self.args.pairs.max(1) * slices);
        let alike = slices(before)?;
        let (control, ..) = compared(&alike);
        if !(1.0 / BESIDE_MAX..=BESIDE_MAX).contains(&control) {
            return Err(format!(
                "two servers alike differ by {control:.2}x: other work on this machine is greater than the bar; run again \
                 when it is quiet, or with more --pairs"
            ));
        }

        let sessions = self.args.sessions.to_string();
        // Longer than all slices take; it is ended before.
        let hold = (pairs * 3 + 60).to_string();
        let crowd = ["--scenario", "idle", "--hold", &hold, "--count", &sessions];
        let mut crowd = Running::crowd(&mut self.load(addresses[0], &servers[0], &crowd), self.args.sessions)?;
        let beside = slices(pairs)?;
        if crowd.has_ended() {
            return Err("the idle crowd went before the end".to_owned());
        }
        drop(crowd);

        let (value, with, without) = compared(&beside);
        let rounds: Vec<f64> = beside.chunks(SLICES[1]).map(|round| compared(round).0).collect();
        Ok(Row {
            name: "logins-beside-idle",
            work: "p99 of new logins at a worker with idle sessions, against one without",
            unit: "×",
            bar: BESIDE_MAX,
            value,
            spread: spread(&rounds),
            baseline: Some(without),
            portreeve: Some(with),
            side_unit: "µs without, beside",
            note: format!(
                "{} idle sessions; 2,000 logins per second, open loop, wall time; medians of {pairs} slices of 500 logins; \
                 {control:.2}× between the two before the crowd came",
                self.args.sessions
            ),
            samples: vec![json!({ "alike_p99_us": alike, "beside_and_without_p99_us": beside })],
        })
    }
}

/// Writes both files and prints the table.
fn record(args: &Args, bench: &Bench<'_>, rows: &[Row], failures: &[String]) -> Result<(), String> {
    let seconds = machine::unix_seconds();
    let date = machine::date(seconds);
    let command = portreeve_load::machine::command().join(" ");
    let machine = Machine::this();
    let mut text = format!(
        "# Ratios against the canned-reply baseline\n\n\
         - date: {date}\n- command: `{command}`\n- machine: {}, {} cores, kernel {}\n- load average at the end: {}\n\
         - Portreeve: {}\n\n\
         Server CPU is the processor time of all processes of the server, per connection (per message for mail); the\n\
         ratio is the median of {} pairs run in turn (smallest…largest). Servers on core {}, load on core {}.\n\n\
         | work | bar | measured | | baseline | Portreeve | in | note |\n|---|---|---|---|---|---|---|---|\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.load,
        bench.ground.build,
        args.pairs,
        args.server_core,
        args.load_core,
    );
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
    }
    for failure in failures {
        let _ = writeln!(text, "\nNot measured: {failure}");
    }
    print!("{text}");
    let result = json!({
        "version": 1,
        "date": date,
        "unix_seconds": seconds,
        "command": command,
        "machine": machine,
        "portreeve": bench.ground.build,
        "not_measured": failures,
        "log_level": args.log_level,
        "rows": rows.iter().map(|row| json!({
            "name": row.name, "work": row.work, "unit": row.unit, "bar": row.bar, "value": row.value,
            "met": row.is_met(), "smallest": row.spread.0, "largest": row.spread.1,
            "baseline": row.baseline, "portreeve": row.portreeve, "note": row.note, "samples": row.samples,
        })).collect::<Vec<_>>(),
    });
    std::fs::create_dir_all(&args.out).map_err(|error| format!("{}: {error}", args.out.display()))?;
    for (ending, content) in [("md", text), ("json", format!("{result:#}\n"))] {
        let path = args.out.join(format!("{date}-ratios.{ending}"));
        std::fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
