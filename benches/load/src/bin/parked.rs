//! What an exchange costs that waits for its client: many connections at idle, the same after SCRAM's challenge, and
//! then all of them log in.
//!
//! A process may have some 20,000 descriptors, so there are several worker processes and several that hold the
//! clients' ends, in a network namespace of their own.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use portreeve_load::ground::{Ground, Settings, USER, end_on_signal, output};
use portreeve_load::machine::{self, Machine};
use portreeve_load::{namespace, process};
use serde_json::json;
use smtp::client::{Channel, Client, Credentials, Login, Mechanism, Next, StartTls};

/// Parks SCRAM-SHA-256 exchanges after the challenge, and finishes them; writes `benches/record/<date>-parked.{json,md}`.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  cargo build --release -p portreeve -p portreeve-standard -p portreeve-load && sudo target/release/parked
  sudo target/release/parked --exchanges 5000 --workers 2 --out /tmp     a small one

Needs root (a network namespace of its own). The memory is that of all processes of the server; what the same
connections cost at idle is taken off.
Exit codes: 0 at most 1 KiB each and all logged in, 1 not so, 2 it could not be run."
)]
struct Args {
    /// Folder of the programs; the own one otherwise.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// How many.
    #[arg(long, default_value_t = 100_000)]
    exchanges: usize,
    /// Worker processes.
    #[arg(long, default_value_t = 8)]
    workers: u32,
    /// Folder of the record.
    #[arg(long, default_value = "benches/record")]
    out: PathBuf,
    /// In the namespace already.
    #[arg(long, hide = true)]
    inside: bool,
    /// Holds so many connections to this address, from this one.
    #[arg(long, hide = true, num_args = 3, value_names = ["COUNT", "SOURCE", "TARGET"])]
    hold: Option<Vec<String>>,
    /// The user's password.
    #[arg(long, hide = true)]
    password_file: Option<PathBuf>,
}

/// What one may cost, octets.
const OCTETS_MAX: u64 = 1024;
/// Connections of one holder.
const HELD_MAX: usize = 15_000;
/// Longest that a reply is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.hold {
        Some(words) => hold(words, args.password_file.as_ref()).map(|()| true),
        None if args.inside => run(&args),
        None => Err(namespace::enter()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("parked: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool, String> {
    end_on_signal()?;
    namespace::set_up()?;
    let ground = Ground::new(&Settings {
        bin: args.bin.clone(),
        workers: args.workers,
        shards: 1,
        sessions_max: args.exchanges as u64 + 1_000,
        log_level: "warning".to_owned(),
        durability: "none",
        dir: None,
        keep: false,
    })?;
    let server = ground.portreeve()?;
    // Warm: every worker has run the mechanism.
    let mut warm = ground.load(ground.address(0), &server);
    warm.args(["--scenario", "login", "--mechanism", "SCRAM-SHA-256", "--quiet"]);
    output(warm.args(["--count", &(100 * args.workers).to_string()]).args(ground.login()))?;

    let mut holders = Vec::new();
    for first in (0..args.exchanges).step_by(HELD_MAX) {
        let count = HELD_MAX.min(args.exchanges - first);
        holders.push(Holder::start(count, holders.len(), ground.address(0), &ground.file("password"))?);
    }
    let mut all = |word: &str| -> Result<f64, String> {
        let started = Instant::now();
        holders.iter_mut().try_for_each(|holder| holder.say(word))?;
        holders.iter_mut().try_for_each(|holder| holder.hear(word))?;
        Ok(started.elapsed().as_secs_f64())
    };
    let gathered = all("idle")?;
    let idle = process::settled(server.pid()).anonymous_octets;
    let parking = all("park")?;
    let parked = process::settled(server.pid()).anonymous_octets;
    let finishing = all("finish")?;
    let each = parked.saturating_sub(idle) / args.exchanges as u64;
    let good = each <= OCTETS_MAX;

    let date = machine::date(machine::unix_seconds());
    let machine = Machine::this();
    let words = machine::command().into_iter().filter(|word| word != "--inside").collect::<Vec<_>>();
    let command = words.join(" ");
    let text = format!(
        "# SCRAM-SHA-256 exchanges that wait for their client\n\n- date: {date}\n- command: `{command}`\n- machine: {}, {} cores, \
         {}, kernel {}\n- Portreeve: {}\n\n| exchanges | idle | after the challenge | each | to park | all logged in after |\n\
         |---|---|---|---|---|---|\n| {} | {:.1} MiB | {:.1} MiB | {each} B | {parking:.1} s | {finishing:.1} s |\n\n\
         Memory is anonymous memory of all processes of the server ({} workers); the connections were there for {gathered:.1} s \
         before. At most {OCTETS_MAX} B are permitted: {}.\n",
        machine.cpu,
        machine.cores,
        machine.memory,
        machine.kernel,
        ground.build,
        args.exchanges,
        idle as f64 / f64::from(1 << 20),
        parked as f64 / f64::from(1 << 20),
        args.workers,
        if good { "met" } else { "missed" },
    );
    print!("{text}");
    let result = json!({
        "version": 1, "date": date, "command": command, "machine": machine, "build": ground.build,
        "exchanges": args.exchanges, "idle_octets": idle, "parked_octets": parked, "octets_each": each,
        "park_seconds": parking, "finish_seconds": finishing,
    });
    std::fs::create_dir_all(&args.out).map_err(|error| format!("{}: {error}", args.out.display()))?;
    for (ending, content) in [("md", text), ("json", format!("{result:#}\n"))] {
        let path = args.out.join(format!("{date}-parked.{ending}"));
        std::fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(good)
}

/// A process that holds clients' ends.
struct Holder {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Holder {
    fn start(count: usize, number: usize, target: SocketAddr, password: &std::path::Path) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let source = Ipv4Addr::from(0x7f01_0001 + number as u32);
        let mut command = Command::new(own);
        command.args(["--hold", &count.to_string(), &source.to_string(), &target.to_string()]);
        command.arg("--password-file").arg(password).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).ok_or("no pipes")?;
        Ok(Self { child, stdin, stdout: BufReader::new(stdout) })
    }

    fn say(&mut self, word: &str) -> Result<(), String> {
        writeln!(self.stdin, "{word}").map_err(|error| format!("a holder has ended: {error}"))
    }

    /// It repeats the word when all of its connections have come so far.
    fn hear(&mut self, word: &str) -> Result<(), String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).map_err(|error| error.to_string())?;
        if line.trim() == word { Ok(()) } else { Err(format!("a holder could not {word}: {line:?}")) }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One client: its machine is fed when it may go on.
struct Held {
    stream: TcpStream,
    client: Client,
    /// What the server said last.
    said: Vec<u8>,
}

impl Held {
    fn connect(source: Ipv4Addr, target: SocketAddr, settings: &Arc<smtp::client::Settings>) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{source} to {target}: {error}");
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).map_err(failed)?;
        socket.bind(&SocketAddr::from((source, 0)).into()).map_err(failed)?;
        socket.connect(&target.into()).map_err(failed)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        // A nonce needs no secrecy here, only to be another one each time.
        let mut entropy = [0; 24];
        let port = stream.local_addr().map_err(failed)?.port();
        entropy[..2].copy_from_slice(&port.to_le_bytes());
        entropy[2..6].copy_from_slice(&source.octets());
        let mut held =
            Self { stream, client: Client::new(settings.clone(), Channel::Clear, entropy), said: Vec::new() };
        held.read()?;
        held.go_on()?;
        held.read()?;
        Ok(held)
    }

    /// Reads one reply, to its last line.
    fn read(&mut self) -> Result<(), String> {
        self.said.clear();
        let mut buffer = [0; 1024];
        loop {
            let octets = self.stream.read(&mut buffer).map_err(|error| format!("no reply: {error}"))?;
            self.said.extend_from_slice(buffer.get(..octets).unwrap_or_default());
            let text = std::str::from_utf8(&self.said).unwrap_or_default();
            let is_whole = text.ends_with("\r\n")
                && text.lines().next_back().is_some_and(|last| last.as_bytes().get(3) == Some(&b' '));
            match (is_whole, octets) {
                (true, _) => return Ok(()),
                (false, 0) => return Err("the server has closed the connection".to_owned()),
                (false, _) => {}
            }
        }
    }

    /// Takes the reply to the machine and sends what it says to that.
    fn go_on(&mut self) -> Result<Next, String> {
        let mut out = Vec::new();
        let (_, next) = self.client.receive(&self.said, &mut out);
        if next == Next::Closed {
            let why = self.client.failure().map(|failure| failure.to_string());
            return Err(why.unwrap_or_else(|| String::from_utf8_lossy(&self.said).into_owned()));
        }
        self.stream.write_all(&out).map_err(|error| error.to_string())?;
        Ok(next)
    }

    /// From the challenge to the end of the login.
    fn finish(&mut self) -> Result<(), String> {
        while self.go_on()? == Next::Read {
            self.read()?;
        }
        if self.said.starts_with(b"235 ") { Ok(()) } else { Err(String::from_utf8_lossy(&self.said).into_owned()) }
    }
}

fn hold(words: &[String], password: Option<&PathBuf>) -> Result<(), String> {
    let [count, source, target] = words else { return Err("--hold COUNT SOURCE TARGET".to_owned()) };
    let count: usize = count.parse().map_err(|_| "--hold: no number")?;
    let source: Ipv4Addr = source.parse().map_err(|_| "--hold: no address")?;
    let target: SocketAddr = target.parse().map_err(|_| "--hold: no address and port")?;
    let password = std::fs::read_to_string(password.ok_or("no --password-file")?).map_err(|error| error.to_string())?;
    let credentials = Credentials::new(USER, "", password.trim_end()).map_err(|bad| bad.to_string())?;
    let mut settings = smtp::client::Settings::new("client.bench.test").map_err(|bad| bad.to_string())?;
    settings.starttls = StartTls::Never;
    settings.login = Some(Login { mechanisms: vec![Mechanism::ScramSha256], ..Login::new(Arc::new(credentials)) });
    let settings = Arc::new(settings);
    let mut held: Vec<Held> = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.map_err(|error| error.to_string())?;
        match line.as_str() {
            "idle" => {
                for _ in 0..count {
                    held.push(Held::connect(source, target, &settings)?);
                }
            }
            "park" => {
                for one in &mut held {
                    one.go_on()?;
                    one.read()?;
                    if !one.said.starts_with(b"334 ") {
                        return Err(String::from_utf8_lossy(&one.said).into_owned());
                    }
                }
            }
            "finish" => held.iter_mut().try_for_each(Held::finish)?,
            other => return Err(format!("{other}: no such word")),
        }
        println!("{line}");
    }
    Ok(())
}
