//! `portreeve-load`: drives an SMTP server with many connections from one event loop and says what it cost.
//!
//! Closed loop: `--concurrency` connections at a time, a new one as soon as one ends, until `--count` are
//! done. Every reply is checked; an unexpected one is counted by stage and code and ends its connection.
//! With `--pid` the server's processor time and memory are read from /proc, summed over all its processes.
#![forbid(unsafe_code)]

mod connection;
mod run;
mod script;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Loads an SMTP server on loopback and reports throughput, latency, and the server's cost.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  portreeve-load --target 127.0.0.1:2525 --scenario connect --count 20000
  portreeve-load --target 127.0.0.1:2465 --tls --scenario login --user alice@demo.test --password-file pw
  portreeve-load --target 127.0.0.1:2525 --scenario submit --per-connection 10 --size 4096 --pid 4711 --json out.json
  portreeve-load --target 127.0.0.1:2525 --scenario idle --count 15000 --hold 30"
)]
struct Args {
    /// Address of the server; only loopback is accepted.
    #[arg(long)]
    target: SocketAddr,
    /// What each connection does.
    #[arg(long, value_enum)]
    scenario: Scenario,
    /// Connections in all.
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// Connections at a time (all of them for `idle`).
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Connect from so many addresses of 127.0.0.0/8 in turn: one address has ports for 28,000 connections,
    /// and looking for a free one takes long when most are in use.
    #[arg(long, default_value_t = 0)]
    sources: u32,
    /// TLS before the greeting.
    #[arg(long, conflicts_with = "starttls")]
    tls: bool,
    /// STARTTLS after the first EHLO.
    #[arg(long)]
    starttls: bool,
    /// Log in as this user (`login`, and `submit` when given).
    #[arg(long)]
    user: Option<String>,
    /// File whose first line is the password.
    #[arg(long)]
    password_file: Option<std::path::PathBuf>,
    /// Envelope sender of `submit`; the user when there is one.
    #[arg(long)]
    from: Option<String>,
    /// Envelope recipient of `submit`.
    #[arg(long, default_value = "bob@demo.test")]
    to: String,
    /// Octets of a message.
    #[arg(long, default_value_t = 4096)]
    size: usize,
    /// Messages on one connection.
    #[arg(long, default_value_t = 10)]
    per_connection: usize,
    /// Seconds that `idle` holds its connections after all have said EHLO.
    #[arg(long, default_value_t = 5)]
    hold: u64,
    /// A process of the server; its children are included.
    #[arg(long)]
    pid: Option<u32>,
    /// Give up after so many seconds; what was done until then is reported.
    #[arg(long, default_value_t = 300)]
    time_max: u64,
    /// Also write the result as JSON to this file (`-`: standard output).
    #[arg(long)]
    json: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Connect, read the greeting, close.
    Connect,
    /// EHLO, AUTH PLAIN, QUIT.
    Login,
    /// Messages, fully pipelined.
    Submit,
    /// EHLO, then hold the connection.
    Idle,
}

fn main() -> ExitCode {
    match start(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("portreeve-load: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the load; true when nothing unexpected happened.
fn start(args: Args) -> Result<bool, String> {
    if !args.target.ip().is_loopback() {
        return Err(format!("{}: only loopback addresses are loaded", args.target));
    }
    let password = match &args.password_file {
        None => String::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
    };
    let login = args.user.as_ref().map(|user| script::Login { user: user.clone(), password });
    if args.scenario == Scenario::Login && login.is_none() {
        return Err("--scenario login needs --user and --password-file".to_owned());
    }
    let idle = args.scenario == Scenario::Idle;
    let mut script = script::Script::new(args.tls, args.starttls);
    match args.scenario {
        Scenario::Connect => {}
        Scenario::Idle => script.hello(),
        Scenario::Login => {
            script.hello();
            script.login(login.as_ref().expect("checked above"));
            script.quit();
        }
        Scenario::Submit => {
            script.hello();
            if let Some(login) = &login {
                script.login(login);
            }
            let from = args.from.clone().or(args.user.clone()).unwrap_or_else(|| "load@load.example".to_owned());
            script.messages(&from, &args.to, args.size, args.per_connection);
            script.quit();
        }
    }
    let plan = run::Plan {
        target: args.target,
        script,
        count: args.count,
        concurrency: if idle { usize::try_from(args.count).unwrap_or(usize::MAX) } else { args.concurrency },
        sources: (0..args.sources).map(|n| Ipv4Addr::from_bits(0x7f00_0101 + n).into()).collect(),
        hold: idle.then(|| Duration::from_secs(args.hold)),
        pid: args.pid,
        time_max: Duration::from_secs(args.time_max),
        messages_each: if args.scenario == Scenario::Submit { args.per_connection as u64 } else { 0 },
    };
    let result = run::run(plan)?;
    if args.json.as_deref() != Some("-") {
        print!("{}", result.text());
    }
    if let Some(path) = args.json {
        let json = result.json();
        match path.as_str() {
            "-" => println!("{json}"),
            path => std::fs::write(path, format!("{json}\n")).map_err(|error| format!("{path}: {error}"))?,
        }
    }
    Ok(result.is_clean())
}
