//! Many idle sessions on one machine, while active clients log in and submit mail.
//!
//! A process may have some 20,000 descriptors, so there are many worker processes, and as many load processes,
//! in a network namespace of their own: nobody else's ports and addresses are touched. Both ends are here: the
//! kernel's memory is that of both.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use portreeve_load::ground::{Ground, Running, Settings, end_on_signal, output};
use portreeve_load::machine::{self, Machine};
use portreeve_load::namespace;
use portreeve_load::result::Report;
use serde_json::json;

/// Holds idle sessions and measures active clients beside them; writes `benches/record/<date>-million.{json,md}`.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  cargo build --release -p portreeve -p portreeve-standard -p portreeve-load && sudo target/release/million
  sudo target/release/million --plain 0,50000 --tls 20000 --workers 6 --out /tmp     a small one

Needs root (a network namespace of its own) and, for the whole, 24 GiB of memory.
Exit codes: 0 all sessions were held, 1 some were not, 2 it could not be run."
)]
struct Args {
    /// Folder of the programs; the own one otherwise.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Idle sessions in clear, of one run after another.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 100_000, 1_000_000])]
    plain: Vec<u64>,
    /// The same inside TLS.
    #[arg(long, value_delimiter = ',', default_values_t = [250_000])]
    tls: Vec<u64>,
    /// Worker processes, and load processes.
    #[arg(long, default_value_t = 60)]
    workers: u32,
    /// Sessions of active clients per second: EHLO, AUTH PLAIN, a 4 KiB mail, QUIT.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Seconds that they are measured for.
    #[arg(long, default_value_t = 30.0)]
    duration: f64,
    /// Idle sessions begun per second at most.
    #[arg(long, default_value_t = 30_000.0)]
    gather_rate: f64,
    /// Folder of the record.
    #[arg(long, default_value = "benches/record")]
    out: PathBuf,
    /// Name of the record, behind the date.
    #[arg(long, default_value = "million")]
    name: String,
    /// In the namespace already.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = if args.inside { run(&args) } else { Err(namespace::enter()) };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("million: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool, String> {
    end_on_signal()?;
    namespace::set_up()?;
    let most = args.plain.iter().chain(&args.tls).copied().max().unwrap_or_default();
    let mut runs = Vec::new();
    for (tls, &idle) in args.plain.iter().map(|idle| (false, idle)).chain(args.tls.iter().map(|idle| (true, idle))) {
        // Each run has a fresh server: what an allocator keeps from the last crowd would be counted as nothing.
        let ground = Ground::new(&Settings {
            bin: args.bin.clone(),
            workers: args.workers,
            shards: 1,
            sessions_max: most + 100_000,
            log_level: "warning".to_owned(),
            durability: "none",
            dir: None,
            keep: false,
        })?;
        eprintln!("{idle} idle sessions {}", if tls { "inside TLS" } else { "in clear" });
        let report = measure(args, &ground, tls, idle)?;
        eprint!("{}", report.text());
        let build = ground.build.clone();
        runs.push((tls, idle, report, build));
    }
    record(args, &runs)?;
    Ok(runs.iter().all(|(_, idle, report, _)| report.held == *idle && report.is_clean()))
}

fn measure(args: &Args, ground: &Ground, tls: bool, idle: u64) -> Result<Report, String> {
    let server = ground.portreeve()?;
    // Warm: every worker has verified the password once, and its allocator has what it always needs.
    let mut warm = ground.load(ground.address(0), &server);
    warm.args(["--scenario", "login", "--mechanism", "PLAIN", "--quiet", "--count", &(50 * args.workers).to_string()]);
    output(warm.args(ground.login()))?;
    let mut load = ground.load(ground.address(if tls { 2 } else { 0 }), &server);
    load.args(["--scenario", "submit", "--mechanism", "PLAIN", "--size", "4096", "--to", "bob@bench.test"]);
    load.args(ground.login()).args(["--warm-up", "10", "--noop-rate", "200", "--time-max", "1800"]);
    load.args(["--rate", &args.rate.to_string(), "--duration", &args.duration.to_string()]);
    load.args(["--processes", &args.workers.to_string(), "--sources", &(4 * args.workers).to_string()]);
    load.args(["--gather-rate", &args.gather_rate.to_string()]);
    if tls {
        load.arg("--tls");
    }
    if idle > 0 {
        load.args(["--crowd", &idle.to_string()]);
    }
    let json = ground.file("result.json");
    // The last word counts: a run with errors is a result, too.
    load.args(["--json"]).arg(&json);
    let status = Running::start(load.stdout(std::process::Stdio::null()))?.wait()?;
    Report::read(&json).map_err(|error| format!("portreeve-load: {status}: {error}"))
}

fn record(args: &Args, runs: &[(bool, u64, Report, String)]) -> Result<(), String> {
    let date = machine::date(machine::unix_seconds());
    let machine = Machine::this();
    let command =
        portreeve_load::machine::command().into_iter().filter(|arg| arg != "--inside").collect::<Vec<_>>().join(" ");
    let mut text = format!(
        "# Idle sessions and active clients on one machine\n\n- date: {date}\n- command: `{command}`\n- machine: {}, {} cores, \
         {}, kernel {}\n- load average at the end: {}\n- Portreeve: {}\n\n\
         {} worker processes, as many load processes, all on these cores, in a network namespace of their own. Active \
         clients: {} sessions per second (open loop), each EHLO, AUTH PLAIN, one 4 KiB mail, QUIT; the mail is discarded \
         without durability. Times in milliseconds from the intended start.\n\n\
         | idle sessions | held | there after | process memory each | kernel each, both ends | session p50 | p99 | p99.9 | message \
         p99 | NOOP of an idle one p99 | errors |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
        machine.cpu,
        machine.cores,
        machine.memory,
        machine.kernel,
        machine.load,
        runs.first().map_or("", |(_, _, _, build)| build),
        args.workers,
        args.rate,
    );
    for (tls, idle, report, _) in runs {
        let ms = |micros: u64| format!("{:.3}", micros as f64 / 1e3);
        let of = |name: &str, measure: &str| {
            let scenario = report.scenarios.iter().find(|scenario| scenario.name == name)?;
            Some(ms(scenario.latency_us.get(measure)?.percentiles.p99))
        };
        let each =
            |value: Option<f64>| value.filter(|_| *idle > 0).map_or("-".to_owned(), |value| format!("{value:.0} B"));
        let server = report.server.as_ref();
        let _ = writeln!(
            text,
            "| {idle} {} | {} | {:.1} s | {} | {} | {} | {} | {} | {} | {} | {} |",
            if *tls { "TLS" } else { "plain" },
            report.held,
            report.gather_seconds,
            each(server.and_then(|server| server.memory_octets_each)),
            each(server.and_then(|server| server.kernel_octets_each)),
            ms(report.latency_us.p50),
            ms(report.latency_us.p99),
            ms(report.latency_us.p999),
            of("submit", "message").unwrap_or_default(),
            of("idle", "noop").unwrap_or("-".to_owned()),
            report.errors.iter().map(|error| error.count).sum::<u64>(),
        );
    }
    text.push_str(
        "\nWhat it does not show: one process with a million descriptors, a network card, distances, clients that are \
         idle for hours, or mail that is kept.\n",
    );
    for (_, idle, report, _) in runs {
        for warning in &report.warnings {
            let _ = writeln!(text, "\nWarning at {idle}: {warning}");
        }
    }
    print!("{text}");
    let runs: Vec<_> = runs
        .iter()
        .map(|(tls, idle, report, build)| json!({ "tls": tls, "idle": idle, "build": build, "report": report }))
        .collect();
    let result = json!({ "version": 1, "date": date, "command": command, "machine": machine, "runs": runs });
    std::fs::create_dir_all(&args.out).map_err(|error| format!("{}: {error}", args.out.display()))?;
    for (ending, content) in [("md", text), ("json", format!("{result}\n"))] {
        let path = args.out.join(format!("{date}-{}.{ending}", args.name));
        std::fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
