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
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use portreeve_load::machine::{self, Machine};
use portreeve_load::process;
use rustix::process::{Pid, Signal};
use rustix::thread::{CpuSet, sched_setaffinity};
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
    /// Only these rows: connect, login, tls-login, mail, idle, idle-tls, logins-beside-idle.
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

const USER: &str = "alice@bench.test";
const PASSWORD: &str = "correct-horse-battery";

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
    /// `×`, `B`: what the value is counted in.
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

const COMPARED: [Compared; 4] = [
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
        scenario: &["--scenario", "login"],
        login: true,
    },
    Compared {
        name: "tls-login",
        work: "TLS 1.3 P-256 full handshake, EHLO, AUTH PLAIN, QUIT",
        bar: 1.2,
        count: 4_000,
        tls: true,
        scenario: &["--scenario", "login"],
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
];

fn run(args: &Args) -> Result<bool, String> {
    let wanted = |name: &str| args.rows.is_empty() || args.rows.iter().any(|row| row == name);
    // Others on the machine disturb less; not ours to insist on.
    let _ = rustix::process::setpriority_process(None, -20);
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
        let number = |value: f64| if self.unit == "×" { format!("{value:.2}×") } else { format!("{value:.0} B") };
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

/// The two programs, the load, and where they run.
struct Bench<'a> {
    args: &'a Args,
    bin: PathBuf,
    dir: PathBuf,
    ports: [u16; 3],
    build: String,
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        if !self.args.keep {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A server process tree; ended when dropped.
struct Server {
    child: Child,
}

impl Server {
    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args) -> Result<Self, String> {
        let bin = match &args.bin {
            Some(bin) => bin.clone(),
            None => {
                let own = std::env::current_exe().map_err(|error| error.to_string())?;
                own.parent().map(Path::to_owned).unwrap_or_default()
            }
        };
        for program in ["portreeve", "canned-reply", "portreeve-load"] {
            if !bin.join(program).is_file() {
                return Err(format!(
                    "{}: not there; `cargo build --release -p portreeve -p portreeve-standard -p portreeve-load` makes it",
                    bin.join(program).display()
                ));
            }
        }
        let dir = std::env::temp_dir().join(format!("portreeve-ratios-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let build = output(Command::new(bin.join("portreeve")).arg("--build-info"))?;
        let bench = Self { args, bin, dir, ports: free_ports()?, build };
        bench.prepare()?;
        Ok(bench)
    }

    /// Configuration, certificate, user, password file.
    fn prepare(&self) -> Result<(), String> {
        let write = |name: &str, text: &str| {
            let path = self.dir.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).map_err(|e| e.to_string())?;
        write("cert.pem", &key.cert.pem())?;
        write("key.pem", &key.signing_key.serialize_pem())?;
        write("password", &format!("{PASSWORD}\n"))?;
        let [mx, submission, submissions] = self.ports;
        let listener = |role: &str, port: u16| {
            format!(
                "[[listener]]\nrole = \"{role}\"\nbind = [\"127.0.0.1:{port}\"]\ndomains = [\"bench.test\"]\n\
                 recipients = \"any\"\nexempt_nets = [\"127.0.0.0/8\"]\ncleartext_auth_nets = [\"127.0.0.0/8\"]\n\n"
            )
        };
        let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
        let text = format!(
            "hostname = \"mail.bench.test\"\nallow_data_loss = true\ndrain = \"1s\"\n\n\
             [process]\nworkers = 1\nshards = 1\nstate_dir = \"state\"\n{user}\n{}{}{}\
             [[tls.certificate]]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n\n\
             [spool]\ndurability = \"none\"\nmin_free = \"16MiB\"\nmin_free_percent = 0\n\n\
             [[route]]\ndomain = \"*\"\nkind = \"discard\"\n\n\
             [log]\nlevel = \"{}\"\nfile = \"log\"\n",
            listener("mx", mx),
            listener("submission", submission),
            listener("submissions", submissions),
            self.args.log_level,
        );
        write("portreeve.toml", &text)?;
        let mut add = Command::new(self.bin.join("portreeve"));
        add.args(["user", "add", USER, "--password-stdin", "--config"]).arg(self.dir.join("portreeve.toml"));
        let mut child = add
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("portreeve user add: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "{PASSWORD}").map_err(|error| error.to_string())?;
        }
        let status = child.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("portreeve user add: {status}")) }
    }

    /// Portreeve, answering on all ports.
    fn portreeve(&self) -> Result<Server, String> {
        pin(self.args.server_core)?;
        let log = std::fs::File::create(self.dir.join("stderr")).map_err(|error| error.to_string())?;
        let child = Command::new(self.bin.join("portreeve"))
            .args(["serve", "--config"])
            .arg(self.dir.join("portreeve.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("portreeve: {error}"))?;
        let mut server = Server { child };
        pin(self.args.load_core)?;
        for port in self.ports {
            let until = Instant::now() + Duration::from_secs(20);
            while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
                if let Ok(Some(status)) = server.child.try_wait() {
                    let why = std::fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
                    return Err(format!("portreeve: {status}\n{why}"));
                }
                if Instant::now() > until {
                    return Err("portreeve: does not answer within 20 s".to_owned());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(server)
    }

    /// The baseline and its address.
    fn baseline(&self, tls: bool) -> Result<(Server, SocketAddr), String> {
        pin(self.args.server_core)?;
        let mut command = Command::new(self.bin.join("canned-reply"));
        if tls {
            command.arg("--tls");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| format!("canned-reply: {error}"))?;
        pin(self.args.load_core)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        }
        let server = Server { child };
        let address = line.trim().parse().map_err(|_| format!("canned-reply said {line:?} instead of its address"))?;
        Ok((server, address))
    }

    fn load(&self, target: SocketAddr, server: &Server, with: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("portreeve-load"));
        command
            .args([
                "--target",
                &target.to_string(),
                "--pid",
                &server.pid().to_string(),
                "--json",
                "-",
                "--sources",
                "64",
            ])
            .args(with);
        command
    }

    fn login(&self) -> [String; 4] {
        let file = self.dir.join("password").display().to_string();
        ["--user".to_owned(), USER.to_owned(), "--password-file".to_owned(), file]
    }

    /// Ratio of processor time per piece of work.
    fn compare(&self, compared: &Compared) -> Result<Row, String> {
        let server = self.portreeve()?;
        let (baseline, baseline_address) = self.baseline(compared.tls)?;
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports[if compared.tls { 2 } else { 0 }]));
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

    /// Private memory of all processes per idle session.
    fn idle(&self, name: &'static str, tls: bool) -> Result<Row, String> {
        let mut samples = Vec::new();
        for _ in 0..3 {
            // A fresh server each time: what an allocator keeps from the last crowd would be counted as nothing.
            let server = self.portreeve()?;
            let address = SocketAddr::from(([127, 0, 0, 1], self.ports[if tls { 2 } else { 0 }]));
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
            bar: if tls { 4096.0 } else { 256.0 },
            value: median(&octets),
            spread: spread(&octets),
            baseline: None,
            portreeve: None,
            side_unit: "",
            note: format!("{} sessions after EHLO", self.args.sessions),
            samples,
        })
    }

    /// p99 of logins, alternating without and beside an idle crowd.
    fn beside_idle(&self) -> Result<Row, String> {
        let server = self.portreeve()?;
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports[0]));
        let login = self.login();
        let concurrency = self.args.concurrency.to_string();
        let mut with: Vec<&str> = vec!["--scenario", "login", "--concurrency", &concurrency];
        with.extend(login.iter().map(String::as_str));
        let p99 = |count: &str| -> Result<f64, String> {
            let text = output(self.load(address, &server, &with).args(["--count", count]))?;
            let result: Value =
                serde_json::from_str(&text).map_err(|error| format!("portreeve-load: {error}: {text}"))?;
            result["latency_us"]["p99"].as_f64().ok_or_else(|| format!("portreeve-load: no p99: {text}"))
        };
        p99("2000")?;
        let mut samples = Vec::new();
        for _ in 0..self.args.pairs {
            let without = p99("20000")?;
            let sessions = self.args.sessions.to_string();
            let mut crowd = self
                .load(address, &server, &["--scenario", "idle", "--hold", "240", "--count", &sessions])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|error| format!("portreeve-load: {error}"))?;
            let mut told = String::new();
            if let Some(stderr) = crowd.stderr.take() {
                BufReader::new(stderr).read_line(&mut told).map_err(|error| error.to_string())?;
            }
            let beside = p99("20000");
            let _ = crowd.kill();
            let _ = crowd.wait();
            if !told.contains(&format!("holding {sessions} ")) {
                return Err(format!("the idle crowd is not whole: {told}"));
            }
            // The server sees 15,000 ends; the next pair begins when it has.
            process::settled(server.pid());
            let beside = beside?;
            samples.push(json!({ "ratio": beside / without, "without_us": without, "beside_us": beside }));
        }
        let ratios = numbers(&samples, "ratio");
        Ok(Row {
            name: "logins-beside-idle",
            work: "p99 of new logins beside idle sessions, against without",
            unit: "×",
            bar: 1.2,
            value: median(&ratios),
            spread: spread(&ratios),
            baseline: Some(median(&numbers(&samples, "without_us"))),
            portreeve: Some(median(&numbers(&samples, "beside_us"))),
            side_unit: "µs without, beside",
            note: format!("{} idle sessions, {concurrency} logins at a time; wall time", self.args.sessions),
            samples,
        })
    }
}

/// This thread, and what it starts, runs on `core`.
fn pin(core: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|error| format!("core {core}: {error}"))
}

/// Standard output of a command that must succeed.
fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::piped()).output().map_err(|error| format!("{name}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(format!("{name}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(text)
}

/// Three ports that were free a moment ago.
fn free_ports() -> Result<[u16; 3], String> {
    let mut listeners = Vec::new();
    let mut ports = [0; 3];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        *port = listener.local_addr().map_err(|error| error.to_string())?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

fn numbers(samples: &[Value], key: &str) -> Vec<f64> {
    samples.iter().filter_map(|sample| sample[key].as_f64()).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

/// Writes both files and prints the table.
fn record(args: &Args, bench: &Bench<'_>, rows: &[Row], failures: &[String]) -> Result<(), String> {
    let seconds = machine::unix_seconds();
    let date = machine::date(seconds);
    let command = std::env::args().collect::<Vec<_>>().join(" ");
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
        bench.build.trim().replace('\n', "; "),
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
        "portreeve": bench.build.trim(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(spread(&[2.0, 1.0, 3.0]), (1.0, 3.0));
    }
}
