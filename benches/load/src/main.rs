//! The command line of `portreeve-load`; see the [library](portreeve_load).
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{ArgAction, Args, Parser, Subcommand};
use portreeve_load::output::Output;
use portreeve_load::permission::Permission;
use portreeve_load::plan::{Arrivals, ChannelBinding, Kind, Pipelining, Plan, Scenario, Tls};
use portreeve_load::result::Report;
use portreeve_load::run::{Options, run};
use portreeve_load::sizes::Sizes;
use portreeve_load::{compare, html, worker};

const AFTER: &str = "\
SCENARIOS
  connect         connect, read the greeting, close
  churn           connect, read the greeting, QUIT
  login           EHLO, AUTH, QUIT
  wrong-password  a login that must be refused with 535; NOOP and QUIT must be answered after it
  submit          messages: --size, --recipients, --per-connection, --pipelining, --bdat, --eight-bit, --smtputf8
  slow            messages at --octets-per-second (100)
  half-open       connect and say nothing, for --hold seconds or until the server closes, with 421 or without
  rude            garbage, endless lines, HTTP, DATA without recipients, resets in the middle
  idle            EHLO (AUTH with --user), then nothing; --count of them, held for --hold seconds

  Several with weights are mixed: --scenario login:3 --scenario submit:1. --crowd N holds idle sessions beside
  them, without a login: they gather first, and what is measured is measured beside all of them. --starttls is for
  those who say EHLO: connect, churn and half-open stay in clear.

CLOSED AND OPEN LOOP
  Without --rate, --concurrency sessions go on at a time: how much can it do? With --rate, sessions begin at that
  rate whatever the server does, and latency counts from the intended start: how long do clients wait when so many
  come? Only an open loop shows what a stall does to those who would have come meanwhile. Sessions in progress are
  bounded by --concurrency there, too (10,000): who waits for a place waits from the intended start on.

LOGINS
  --mechanism names one; it must be offered, or the login fails. Without it the strongest that takes a password is
  used. SCRAM with -PLUS is bound to the TLS connection: by RFC 9266 in TLS 1.3, by the server's certificate
  (RFC 5929) in TLS 1.2, or as --channel-binding says. Where -PLUS is not named and not offered although we could,
  SCRAM says so (`y`), as RFC 5802 wants it. Tokens are what --password-file holds. EXTERNAL goes with
  --client-cert; --user is then whom to act as, and may be missing.

WHAT IS CHECKED
  Every reply: its form, its code, its number, and that nobody asked for no other. A server that leaves a session
  without octets for --patience seconds is given up (`silence`); who was still not served when the run was over is
  `unfinished`, with the stage that was waited for. SCRAM's server must prove that
  it knows the password. Certificates are not checked: servers are measured here, not trusted. What is asked for
  and not offered (BDAT, SMTPUTF8, 8BITMIME, a mechanism) is an error and never silently something else; only
  PIPELINING is used where it is there, as ordinary clients do.

RESULT
  Sessions and messages per second, percentiles of whole sessions, greetings (connect, TLS, 220), logins (AUTH to
  235), messages (end of data to 250) and NOOPs; errors by stage and code. With --pid, what the server cost: that
  process and all below it together. Processor time is also that of threads that have ended, and of processes that
  have ended and were waited for. Context switches are looked at once a second, and of what has ended the last look
  counts: what came after it is missing, and so is whoever came and went between two looks. Memory is that of who is
  there: the private one, per idle session, and the kernel's, where both ends of each connection are counted when both
  are here. Warnings say when this program, and not the server, may be what was measured. --json keeps all of it with
  command, plan, machine and histograms; --html makes a page with plots. Whether they can be written is told before
  the run; an earlier result stays until the new one is complete. On a terminal a few lines show how it goes on;
  elsewhere a line every five seconds.

MANY SESSIONS
  Each of --processes has its own limit of descriptors (`ulimit -Hn`; the soft limit is raised to it). Each source
  address has some 28,000 ports: --sources N connects from N addresses of 127.0.0.0/8 in turn.

FILE
  --plan FILE.toml says all of it, in the words of the flags with _ for -; flags beside it win, but --target is for
  scenarios without a target of their own. `tls` is starttls or implicit; files are looked for beside the plan.

    target = \"127.0.0.1:2587\"
    rate = 500.0
    duration = 30.0
    warm_up = 5.0
    [[scenario]]
    kind = \"submit\"
    weight = 3.0
    tls = \"starttls\"
    user = \"alice@demo.test\"
    password_file = \"password\"
    size = \"2k:70,20k:25,1m-2m:5\"
    [[scenario]]
    kind = \"idle\"
    count = 10000
    target = \"127.0.0.1:2525\"

SAFETY
  Only loopback addresses are loaded. For a server of yours elsewhere say so twice: --remote, and --permitted FILE
  with the line HOST. Every run is bounded: 10,000 sessions unless told otherwise, 300 s (--time-max) in any case.
  Ctrl-C ends it with what was measured until then; a second one at once.

EXAMPLES
  portreeve-load --target 127.0.0.1:2525 --scenario connect --count 20000
  portreeve-load --target 127.0.0.1:2465 --tls --scenario login --user alice@demo.test --password-file pw \\
      --mechanism SCRAM-SHA-256-PLUS --rate 200 --duration 30 --warm-up 5 --html report.html
  portreeve-load --target 127.0.0.1:2525 --scenario submit --per-connection 10 --size 1k-64k --pid 4711 \\
      --json out.json
  portreeve-load --target 127.0.0.1:2525 --scenario idle --count 40000 --processes 3 --sources 16 --hold 30
  portreeve-load --target 127.0.0.1:2424 --lmtp --scenario submit --recipients 3 --to 'u{n}@demo.test'
  portreeve-load compare before.json after.json
  portreeve-load report out.json report.html

EXIT CODES
  0 everything went as expected, 1 something did not (it is in the result), 2 it could not be run, 130 ended at once
  by a second Ctrl-C";

/// Loads an SMTP or LMTP server and says what it can take.
#[derive(Parser)]
#[command(version, after_long_help = AFTER, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Two results beside each other, with ratios.
    Compare {
        /// JSON of the first.
        a: PathBuf,
        /// JSON of the second.
        b: PathBuf,
    },
    /// A result as a page with plots.
    Report {
        /// JSON of the result.
        json: PathBuf,
        /// Where to; `-` is standard output.
        html: PathBuf,
    },
    /// A load process; started by the program itself.
    #[command(name = "__load-process", hide = true)]
    LoadProcess,
}

#[derive(Args)]
struct RunArgs {
    /// Host and port of the server.
    #[arg(long, value_name = "HOST:PORT")]
    target: Option<String>,
    /// A TOML file that says what to do.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// What sessions do, with a weight where there are several.
    #[arg(long, value_name = "KIND[:WEIGHT]", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Idle sessions beside the others.
    #[arg(long, value_name = "N")]
    crowd: Option<u64>,

    /// Sessions in all (10,000 without --duration; idle: 1,000).
    #[arg(long, help_heading = "How much")]
    count: Option<u64>,
    /// Seconds, instead of a number of sessions.
    #[arg(long, value_name = "SECONDS", help_heading = "How much")]
    duration: Option<f64>,
    /// Seconds before anything is counted (0).
    #[arg(long, value_name = "SECONDS", help_heading = "How much")]
    warm_up: Option<f64>,
    /// Sessions at a time (16, or one for each process); with --rate at most (10,000).
    #[arg(long, value_name = "N", help_heading = "How much")]
    concurrency: Option<usize>,
    /// Sessions that begin per second, whatever the server does (open loop).
    #[arg(long, value_name = "PER_SECOND", help_heading = "How much")]
    rate: Option<f64>,
    /// How they follow each other.
    #[arg(long, value_enum, help_heading = "How much")]
    arrivals: Option<Arrivals>,
    /// Load processes (1); each has its own descriptors and its own event loop.
    #[arg(long, value_name = "N", help_heading = "How much")]
    processes: Option<u32>,
    /// Seconds that `idle` alone and `half-open` hold a session (5).
    #[arg(long, value_name = "SECONDS", help_heading = "How much")]
    hold: Option<f64>,
    /// Idle sessions that are begun per second at most (20,000).
    #[arg(long, value_name = "PER_SECOND", help_heading = "How much")]
    gather_rate: Option<f64>,
    /// NOOPs per second to idle sessions picked at random (0).
    #[arg(long, value_name = "PER_SECOND", help_heading = "How much")]
    noop_rate: Option<f64>,
    /// The run ends after so many seconds at the latest (300).
    #[arg(long, value_name = "SECONDS", help_heading = "How much")]
    time_max: Option<f64>,
    /// Seconds that the server may leave a session without octets (30).
    #[arg(long, value_name = "SECONDS", help_heading = "How much")]
    patience: Option<f64>,
    /// The same seed gives the same sequence.
    #[arg(long, help_heading = "How much")]
    seed: Option<u64>,

    /// Connect from so many addresses from 127.0.1.1 on, in turn.
    ///
    /// One address has some 28,000 ports, and looking for a free one takes long when most are in use.
    #[arg(long, value_name = "N", help_heading = "Connection")]
    sources: Option<u32>,
    /// Connect from this address; repeat it for more.
    #[arg(long, value_name = "ADDRESS", help_heading = "Connection")]
    source_address: Vec<IpAddr>,
    /// TLS before the greeting.
    #[arg(long, conflicts_with = "starttls", help_heading = "Connection")]
    tls: bool,
    /// STARTTLS after the first EHLO.
    #[arg(long, help_heading = "Connection")]
    starttls: bool,
    /// Only this TLS version.
    #[arg(long, value_name = "1.2|1.3", help_heading = "Connection")]
    tls_version: Option<String>,
    /// Share of handshakes that may resume an earlier one, from 0 to 1 (0).
    #[arg(long, value_name = "SHARE", help_heading = "Connection")]
    resume: Option<f64>,
    /// Name that TLS asks for (localhost).
    #[arg(long, value_name = "NAME", help_heading = "Connection")]
    sni: Option<String>,
    /// Client certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "client_key", help_heading = "Connection")]
    client_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "client_cert", help_heading = "Connection")]
    client_key: Option<PathBuf>,
    /// LMTP instead of SMTP.
    #[arg(long, help_heading = "Connection")]
    lmtp: bool,

    /// User to log in as; an n in braces becomes a number below --users.
    #[arg(long, value_name = "NAME", help_heading = "Login")]
    user: Option<String>,
    /// How many users there are (1).
    #[arg(long, value_name = "N", help_heading = "Login")]
    users: Option<u32>,
    /// File whose first line is the password, or the token.
    #[arg(long, value_name = "FILE", help_heading = "Login")]
    password_file: Option<PathBuf>,
    /// PLAIN, LOGIN, CRAM-MD5, SCRAM-SHA-1/-256/-512, these with -PLUS, OAUTHBEARER, XOAUTH2, EXTERNAL.
    ///
    /// Idle sessions and --pipelining stream: PLAIN, OAUTHBEARER, XOAUTH2, EXTERNAL.
    #[arg(long, value_name = "NAME", help_heading = "Login")]
    mechanism: Option<String>,
    /// What -PLUS binds the login to TLS by; otherwise the TLS version decides.
    #[arg(long, value_enum, help_heading = "Login")]
    channel_binding: Option<ChannelBinding>,

    /// Envelope sender; the user otherwise.
    #[arg(long, value_name = "ADDRESS", help_heading = "Messages")]
    from: Option<String>,
    /// Envelope recipient (bob@demo.test); an n in braces becomes the number of the recipient.
    #[arg(long, value_name = "ADDRESS", help_heading = "Messages")]
    to: Option<String>,
    /// Recipients of each message (1).
    #[arg(long, value_name = "N", help_heading = "Messages")]
    recipients: Option<u32>,
    /// Octets of a message (4096): `4096`, `1k-64k`, `2k:70,20k:25,1m-2m:5`.
    #[arg(long, value_name = "SIZES", help_heading = "Messages")]
    size: Option<Sizes>,
    /// Messages on one connection (1).
    #[arg(long, value_name = "N", help_heading = "Messages")]
    per_connection: Option<u32>,
    /// How commands and messages follow each other.
    #[arg(long, value_enum, help_heading = "Messages")]
    pipelining: Option<Pipelining>,
    /// BDAT instead of DATA.
    #[arg(long, help_heading = "Messages")]
    bdat: bool,
    /// 8-bit content.
    #[arg(long, help_heading = "Messages")]
    eight_bit: bool,
    /// SMTPUTF8 with a header beyond ASCII.
    #[arg(long, help_heading = "Messages")]
    smtputf8: bool,
    /// Octets that a session sends per second at most.
    #[arg(long, value_name = "N", help_heading = "Messages")]
    octets_per_second: Option<u32>,

    /// A process of the server; its children are included.
    #[arg(long, value_name = "PID", help_heading = "Result")]
    pid: Option<u32>,
    /// Write the result as JSON (`-`: to standard output, instead of text).
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    json: Option<PathBuf>,
    /// Write the result as a page with plots (`-`: to standard output, instead of text).
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    html: Option<PathBuf>,
    /// No progress.
    #[arg(long, short, help_heading = "Result")]
    quiet: bool,

    /// The target is not this machine, and I may load it.
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Safety")]
    remote: bool,
    /// Names the hosts that may be loaded, one per line.
    #[arg(long, value_name = "FILE", help_heading = "Safety")]
    permitted: Option<PathBuf>,
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("portreeve-load: {error}");
            ExitCode::from(2)
        }
    }
}

/// True when nothing unexpected happened.
fn start(cli: Cli) -> Result<bool, String> {
    match cli.command {
        Some(Command::LoadProcess) => {
            // Its parent hears the signals and tells it to stop.
            let heard = Arc::new(AtomicBool::new(false));
            for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
                signal_hook::flag::register(signal, Arc::clone(&heard)).map_err(|error| error.to_string())?;
            }
            worker::main().map(|()| true)
        }
        Some(Command::Compare { a, b }) => {
            let (first, second) = (Report::read(&a)?, Report::read(&b)?);
            let table = compare::table([&a.to_string_lossy(), &b.to_string_lossy()], &first, &second);
            Output::Standard.write(&table).map(|()| true)
        }
        Some(Command::Report { json, html }) => {
            let page = html::page(&Report::read(&json)?);
            Output::find(&html)?.write(&page).map(|()| true)
        }
        None => load(cli.run),
    }
}

fn load(args: RunArgs) -> Result<bool, String> {
    let mut plan = plan(&args)?;
    plan.check(&Permission { remote: args.remote, file: args.permitted.clone() })?;
    // Where the result goes is found out before it is measured, not after.
    let find = |path: &Option<PathBuf>| path.as_deref().map(Output::find).transpose();
    let (json_to, html_to) = (find(&args.json)?, find(&args.html)?);
    match (&json_to, &html_to) {
        (Some(Output::Standard), Some(Output::Standard)) => {
            return Err("--json - and --html -: only one of them can be on standard output".to_owned());
        }
        (Some(Output::Replaced(one)), Some(Output::Replaced(other))) if one == other => {
            return Err(format!("{}: --json and --html are two files", one.display()));
        }
        _ => {}
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends it at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| error.to_string())?;
    }
    let report = run(&plan, &Options { pid: args.pid, quiet: args.quiet, program: None, stop })?;
    let json = serde_json::to_string(&report).map_err(|error| error.to_string())?;
    // For people first: it is there even when a file cannot be written any more.
    if ![&json_to, &html_to].iter().any(|to| matches!(to, Some(Output::Standard))) {
        Output::Standard.write(&report.text())?;
    }
    if let Some(to) = json_to {
        to.write(&format!("{json}\n"))?;
    }
    if let Some(to) = html_to {
        to.write(&html::page(&report))?;
    }
    Ok(report.is_clean())
}

/// The file, then the flags.
fn plan(args: &RunArgs) -> Result<Plan, String> {
    let mut plan = match &args.plan {
        Some(path) => Plan::read(path)?,
        None => Plan::default(),
    };
    if !args.scenario.is_empty() {
        plan.scenarios = args.scenario.iter().map(|text| scenario(text)).collect::<Result<_, _>>()?;
    }
    if let Some(target) = &args.target {
        plan.target.clone_from(target);
    }
    plan.rate = args.rate.or(plan.rate);
    plan.duration = args.duration.or(plan.duration);
    let set = |to: &mut f64, from: Option<f64>| *to = from.unwrap_or(*to);
    set(&mut plan.warm_up, args.warm_up);
    set(&mut plan.time_max, args.time_max);
    set(&mut plan.patience, args.patience);
    set(&mut plan.hold, args.hold);
    set(&mut plan.gather_rate, args.gather_rate);
    set(&mut plan.noop_rate, args.noop_rate);
    plan.arrivals = args.arrivals.unwrap_or(plan.arrivals);
    plan.processes = args.processes.unwrap_or(plan.processes);
    plan.sources = args.sources.unwrap_or(plan.sources);
    plan.seed = args.seed.unwrap_or(plan.seed);
    if !args.source_address.is_empty() {
        plan.source_addresses.clone_from(&args.source_address);
    }
    plan.concurrency = args.concurrency.or(plan.concurrency);
    for scenario in &mut plan.scenarios {
        flags(args, scenario);
    }
    // Idle sessions alone: `--count` is their number.
    let only_idle = !plan.scenarios.is_empty() && !plan.has_mix();
    match (&mut plan.scenarios[..], args.count) {
        ([idle], count) if only_idle => idle.count = count.or((idle.count > 0).then_some(idle.count)).unwrap_or(1000),
        (_, count) => plan.count = count.or(plan.count),
    }
    if let Some(crowd) = args.crowd {
        let mut idle = Scenario::new(Kind::Idle);
        flags(args, &mut idle);
        idle.user = None;
        idle.count = crowd;
        plan.scenarios.push(idle);
    }
    Ok(plan)
}

fn scenario(text: &str) -> Result<Scenario, String> {
    let (name, weight) = text.split_once(':').unwrap_or((text, "1"));
    let known = Kind::ALL.iter().find(|(known, _)| *known == name);
    let Some((_, kind)) = known else {
        let names: Vec<&str> = Kind::ALL.iter().map(|(name, _)| *name).collect();
        return Err(format!("--scenario {name:?}: known are {}", names.join(", ")));
    };
    let mut scenario = Scenario::new(*kind);
    scenario.weight = weight.parse().map_err(|_| format!("--scenario {text:?}: {weight:?} is no weight"))?;
    Ok(scenario)
}

fn flags(args: &RunArgs, scenario: &mut Scenario) {
    if args.tls {
        scenario.tls = Tls::Implicit;
    }
    if args.starttls {
        scenario.tls = Tls::Starttls;
    }
    let set = |to: &mut Option<String>, from: &Option<String>| {
        if from.is_some() {
            to.clone_from(from);
        }
    };
    set(&mut scenario.tls_version, &args.tls_version);
    set(&mut scenario.sni, &args.sni);
    set(&mut scenario.user, &args.user);
    set(&mut scenario.from, &args.from);
    set(&mut scenario.mechanism, &args.mechanism);
    if args.password_file.is_some() {
        scenario.password_file.clone_from(&args.password_file);
    }
    if args.client_cert.is_some() {
        scenario.client_cert.clone_from(&args.client_cert);
        scenario.client_key.clone_from(&args.client_key);
    }
    if let Some(to) = &args.to {
        scenario.to.clone_from(to);
    }
    if let Some(size) = &args.size {
        scenario.size = size.clone();
    }
    scenario.channel_binding = args.channel_binding.or(scenario.channel_binding);
    scenario.resume = args.resume.unwrap_or(scenario.resume);
    scenario.users = args.users.unwrap_or(scenario.users);
    scenario.recipients = args.recipients.unwrap_or(scenario.recipients);
    scenario.per_connection = args.per_connection.unwrap_or(scenario.per_connection);
    scenario.pipelining = args.pipelining.unwrap_or(scenario.pipelining);
    scenario.octets_per_second = args.octets_per_second.unwrap_or(scenario.octets_per_second);
    scenario.hold = args.hold.unwrap_or(scenario.hold);
    scenario.lmtp |= args.lmtp;
    scenario.bdat |= args.bdat;
    scenario.eight_bit |= args.eight_bit;
    scenario.smtputf8 |= args.smtputf8;
}
