//! Portreeve beside other servers: the same work from the same load tool, on the same machine, in turn.
//!
//! ```text
//! packages → Prepared → caged server, one core ─┐
//!                        portreeve-load, other core ─ round after round, server after server → table, plot, JSON
//! ```
//!
//! What is compared is the processor time of all processes of a server per session or message, then rates and
//! latencies. Servers differ in what they have on disk when they say 250: what each claims stands in the table, and
//! what it syncs is counted with strace, in a run of its own. Who cannot be set up is named with the reason.
//!
//! Absent on purpose: tuning. Each has what its documentation shows for a small configuration.
#![forbid(unsafe_code)]

mod cage;
mod disk;
mod packages;
mod record;
mod servers;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use portreeve_load::ground::{Ground, Settings, USER, end_on_signal, free_ports, output};
use portreeve_load::result::Report;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::cage::Caged;
use crate::packages::Packages;
use crate::servers::{NAMES, Place, Prepared, prepare};

/// Measures Portreeve beside Postfix, Exim, OpenSMTPD, Haraka and aiosmtpd; writes
/// `benches/record/<date>-peers.{json,md,html}`.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  sudo benches/peers/run                                       builds what is needed, then everything
  sudo target/release/peers --servers portreeve,postfix --rounds 5 --out /tmp
  sudo target/release/peers --scale 0.02 --rounds 1 --out /tmp   does everything still work?

Postfix, Exim and OpenSMTPD need root. Installed programs are used; others are fetched from Debian, npm and PyPI into
--packages and run from there. Everything listens on loopback, at ports that are free.

Exit codes: 0 everybody was measured, 1 somebody was not (the reason stands in the table), 2 it could not be run."
)]
struct Args {
    /// Folder of portreeve, its libraries and portreeve-load; the own one otherwise.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Whom to measure.
    #[arg(long, value_delimiter = ',', default_values_t = NAMES.map(str::to_owned))]
    servers: Vec<String>,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Multiplies sessions per run.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Sessions at a time.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Folder for queues: its disk is in the figures.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Folder of fetched programs.
    #[arg(long, default_value = "target/peers")]
    packages: PathBuf,
    /// Core of the servers, core of the load.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1])]
    cores: Vec<usize>,
    /// Folder of the record.
    #[arg(long, default_value = "benches/record")]
    out: PathBuf,
}

/// A kind of work: a column of the table.
struct Work {
    name: &'static str,
    what: &'static str,
    /// What is counted and timed.
    of: &'static str,
    count: u64,
    /// Goes to the port for logins.
    login: bool,
    /// One after the other.
    alone: bool,
    with: &'static [&'static str],
}

const WORKS: [Work; 4] = [
    Work {
        name: "connect",
        what: "connect, greeting, QUIT",
        of: "session",
        count: 2000,
        login: false,
        alone: false,
        with: &["--scenario", "churn"],
    },
    Work {
        name: "login",
        what: "EHLO, STARTTLS (full handshake), EHLO, AUTH PLAIN, QUIT",
        of: "session",
        count: 600,
        login: true,
        alone: false,
        with: &["--scenario", "login", "--starttls", "--mechanism", "PLAIN"],
    },
    Work {
        name: "mail",
        what: "4 KiB messages, 10 per connection, in clear, without login",
        of: "message",
        count: 200,
        login: false,
        alone: false,
        with: &["--scenario", "submit", "--size", "4096", "--per-connection", "10", "--to", "bob@bench.test"],
    },
    Work {
        name: "one mail",
        what: "the same, one connection at a time: how long does a message take?",
        of: "message",
        count: 20,
        login: false,
        alone: true,
        with: &["--scenario", "submit", "--size", "4096", "--per-connection", "10", "--to", "bob@bench.test"],
    },
];

/// What a run of a work came to.
#[derive(Clone, Default)]
struct Sample {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
    errors: u64,
    first_error: String,
    warnings: Vec<String>,
}

/// A server and what was measured of it.
struct Measured {
    key: String,
    name: String,
    durable: &'static str,
    then: &'static str,
    password: &'static str,
    /// How its processor time is known.
    how: &'static str,
    syncs: Result<disk::Syncs, String>,
    /// Of each work, one for each round.
    samples: Vec<Vec<Sample>>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::from(2)
        }
    }
}

/// A server in the run.
struct Peer {
    caged: Caged,
    ports: [u16; 2],
    measured: Measured,
}

fn run(args: &Args) -> Result<bool, String> {
    end_on_signal()?;
    let &[server_core, load_core] = &args.cores[..] else { return Err("--cores: two numbers".to_owned()) };
    let packages = Packages::new(&args.packages)?;
    let ground = Ground::new(&Settings {
        bin: args.bin.clone(),
        workers: 1,
        shards: 1,
        sessions_max: 10_000,
        log_level: "info".to_owned(),
        durability: "group-fsync",
        dir: Some(args.dir.clone()),
        keep: false,
    })?;
    let disk = disk::Disk::look(&ground.file("state"))?;
    let (mut peers, mut absent) = (Vec::new(), Vec::new());
    for name in &args.servers {
        match start(name, args, &ground, &packages, server_core) {
            Ok(peer) => {
                eprintln!("{}: answers", peer.measured.name);
                peers.push(peer);
            }
            Err(why) => {
                eprintln!("{name}: not measured: {}", why.trim_end());
                absent.push((name.clone(), why.trim_end().to_owned()));
            }
        }
    }
    pin(load_core)?;
    for peer in &mut peers {
        peer.measured.syncs = disk::syncs(peer.caged.pids(), || {
            load(args, &ground, peer.ports, &WORKS[3], 1).map(|report| report.messages)
        });
    }
    // Warm: caches, pools of processes, page tables.
    for peer in &peers {
        for work in &WORKS {
            load(args, &ground, peer.ports, work, (work.count / 20).max(2))?;
        }
    }
    for round in 0..args.rounds {
        for (at, work) in WORKS.iter().enumerate() {
            // Who begins changes.
            let of = peers.len();
            for place in 0..of {
                let peer = &mut peers[(place + round) % of];
                let count = ((work.count as f64 * args.scale) as u64).max(2);
                let before = peer.caged.settled_cpu();
                let report = load(args, &ground, peer.ports, work, count)?;
                let mut sample = sample(work, &report, peer.caged.settled_cpu().saturating_sub(before));
                if peer.caged.has_ended() {
                    sample.first_error = "the server has ended".to_owned();
                }
                eprintln!(
                    "round {}, {}: {}: {:.0}/s, {:.0} µs of processor time each{}",
                    round + 1,
                    work.name,
                    peer.measured.name,
                    sample.rate,
                    sample.cpu_us,
                    if sample.errors > 0 { format!(", {} errors", sample.errors) } else { String::new() },
                );
                peer.measured.samples[at].push(sample);
            }
        }
    }
    let measured: Vec<Measured> = peers.into_iter().map(|peer| peer.measured).collect();
    record::write(&args.out, &disk, &measured, &absent, args.rounds)?;
    let clean = measured.iter().all(|peer| peer.samples.iter().flatten().all(|sample| sample.errors == 0));
    Ok(absent.is_empty() && clean)
}

fn start(name: &str, args: &Args, ground: &Ground, packages: &Packages, core: usize) -> Result<Peer, String> {
    let folder = ground.file(name);
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let place = Place {
        folder,
        port: free_ports()?[0],
        cert: ground.file("cert.pem"),
        key: ground.file("key.pem"),
        user: USER,
        password: ground.password(),
        packages,
    };
    let prepared = prepare(name, &place, ground)?;
    pin(core)?;
    let caged = Caged::start(name, &prepared.command, &ground.file(&format!("{name}.said")));
    pin(args.cores.get(1).copied().unwrap_or(core))?;
    let mut caged = caged?;
    let said = || std::fs::read_to_string(ground.file(&format!("{name}.said"))).unwrap_or_default();
    wait(&mut caged, &prepared, &said)?;
    let Prepared { name: full, command, ports, durable, then, password, once_up } = prepared;
    if let Some(once_up) = once_up {
        let program = command.get_args().find(|word| Path::new(word).ends_with("sbin/smtpd"));
        once_up(caged.pid(), Path::new(program.unwrap_or_default()))?;
    }
    let measured = Measured {
        key: name.to_owned(),
        name: full,
        durable,
        then,
        password,
        how: caged.how(),
        syncs: Err("not looked at".to_owned()),
        samples: WORKS.iter().map(|_| Vec::new()).collect(),
    };
    Ok(Peer { caged, ports, measured })
}

/// Until it answers.
fn wait(caged: &mut Caged, prepared: &Prepared, said: &dyn Fn() -> String) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(30);
    for port in prepared.ports {
        while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
            if caged.has_ended() {
                return Err(format!("ended at once: {}", said()));
            }
            if Instant::now() > until {
                return Err(format!("does not answer within 30 s: {}", said()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn load(args: &Args, ground: &Ground, ports: [u16; 2], work: &Work, count: u64) -> Result<Report, String> {
    let port = ports[usize::from(work.login)];
    let concurrency = if work.alone { 1 } else { args.concurrency };
    let mut command = Command::new(ground.bin.join("portreeve-load"));
    command.args(["--quiet", "--target", &format!("127.0.0.1:{port}"), "--count", &count.to_string()]);
    // From 127.0.0.1 alone: it has a name in /etc/hosts, and nobody waits for the domain name system.
    command.args(["--concurrency", &concurrency.to_string()]).args(work.with);
    if work.login {
        command.args(ground.login());
    }
    let json = ground.file("result.json");
    let _ = std::fs::remove_file(&json);
    // With errors it is a result, too.
    let outcome = output(command.arg("--json").arg(&json));
    Report::read(&json).map_err(|error| format!("portreeve-load: {error}: {outcome:?}"))
}

fn sample(work: &Work, report: &Report, cpu: Duration) -> Sample {
    let messages = work.of == "message";
    let count = if messages { report.messages } else { report.connections };
    let latency = report.scenarios.first().and_then(|scenario| scenario.latency_us.get(work.of));
    let percentiles = latency.map(|latency| latency.percentiles).unwrap_or_default();
    Sample {
        rate: count as f64 / report.seconds.max(1e-9),
        p50_ms: percentiles.p50 as f64 / 1e3,
        p99_ms: percentiles.p99 as f64 / 1e3,
        cpu_us: cpu.as_secs_f64() * 1e6 / count.max(1) as f64,
        errors: report.errors.iter().map(|error| error.count).sum(),
        first_error: report
            .errors
            .first()
            .map(|error| format!("{}: {} {}", error.stage, error.code, error.text))
            .unwrap_or_default(),
        warnings: report.warnings.clone(),
    }
}

/// This thread, and what it starts, runs on `core`.
fn pin(core: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|error| format!("core {core}: {error}"))
}
