//! Where benches run Portreeve: a temporary folder with a configuration, a certificate and a user, and the server
//! started in it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Who can log in.
pub const USER: &str = "alice@bench.test";
const PASSWORD: &str = "correct-horse-battery";

/// What differs between benches.
pub struct Settings {
    /// Folder of the programs; the one of this program otherwise.
    pub bin: Option<PathBuf>,
    /// Worker processes.
    pub workers: u32,
    /// Event loops of each.
    pub shards: u32,
    /// `limits.max_sessions`.
    pub sessions_max: u64,
    /// `log.level`.
    pub log_level: String,
    /// `spool.durability`.
    pub durability: &'static str,
    /// Where the folder is made; where temporary files are otherwise.
    pub dir: Option<PathBuf>,
    /// The folder stays.
    pub keep: bool,
}

/// The folder, and what is in it. Gone when dropped.
pub struct Ground {
    /// Folder of the programs.
    pub bin: PathBuf,
    dir: PathBuf,
    keep: bool,
    /// mx, submission, submissions.
    pub ports: [u16; 3],
    /// What the server says of its build.
    pub build: String,
}

impl Drop for Ground {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Processes that run now, and whether a signal has asked us to end.
static RUNNING: Mutex<(Vec<u32>, bool)> = Mutex::new((Vec::new(), false));

/// From now on a signal ends what was started here before it ends us: nobody is left behind.
pub fn end_on_signal() -> Result<(), String> {
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
    let mut signals = signal_hook::iterator::Signals::new(signals).map_err(|error| error.to_string())?;
    std::thread::spawn(move || {
        if signals.forever().next().is_none() {
            return;
        }
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.1 = true;
        for pid in running.0.iter().filter_map(|&pid| Pid::from_raw(pid as i32)) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    });
    Ok(())
}

/// A process; ended when dropped.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if running.1 {
            return Err("ended by a signal".to_owned());
        }
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        running.0.push(child.id());
        Ok(Self { child })
    }

    /// Starts `portreeve-load` with idle sessions; returns when it holds all of them.
    pub fn crowd(command: &mut Command, sessions: u64) -> Result<Self, String> {
        let mut running = Self::start(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let mut told = String::new();
        if let Some(stderr) = running.child.stderr.take() {
            let lines = BufReader::new(stderr).lines().map_while(Result::ok);
            told = lines.into_iter().find(|line| line.starts_with("holding")).unwrap_or_default();
        }
        if told.contains(&format!("holding {sessions} ")) {
            Ok(running)
        } else {
            Err(format!("the idle crowd is not whole: {told:?}"))
        }
    }

    /// Its standard output, once it has ended well.
    fn output(mut self) -> Result<String, String> {
        let (mut text, mut said) = (String::new(), String::new());
        // What goes to standard error is little: it fits the pipe until the output is read.
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text).map_err(|error| error.to_string())?;
        }
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).map_err(|error| error.to_string())?;
        }
        let status = self.child.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(text) } else { Err(format!("{status}\n{text}{said}")) }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<ExitStatus, String> {
        self.child.wait().map_err(|error| error.to_string())
    }
}

/// A server process with its children; ended when dropped.
pub struct Server {
    running: Running,
}

impl Server {
    /// Of the first process.
    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).0.retain(|&pid| pid != self.child.id());
        // It may have ended, and its number may be another's.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + Duration::from_secs(20);
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

impl Ground {
    /// Makes the folder.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let bin = match &settings.bin {
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
        let build = output(Command::new(bin.join("portreeve")).arg("--build-info"))?.trim().replace('\n', "; ");
        let parent = settings.dir.clone().unwrap_or_else(std::env::temp_dir);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("portreeve-bench-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let ground = Self { bin, dir, keep: settings.keep, ports: free_ports()?, build };
        ground.prepare(settings)?;
        Ok(ground)
    }

    fn prepare(&self, settings: &Settings) -> Result<(), String> {
        let write = |name: &str, text: &str| {
            let path = self.dir.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).map_err(|e| e.to_string())?;
        write("cert.pem", &key.cert.pem())?;
        write("key.pem", &key.signing_key.serialize_pem())?;
        let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(self.dir.join("key.pem"), own).map_err(|error| error.to_string())?;
        write("password", &format!("{PASSWORD}\n"))?;
        let [mx, submission, submissions] = self.ports;
        let listener = |role: &str, port: u16| {
            format!(
                "[[listener]]\nrole = \"{role}\"\nbind = [\"127.0.0.1:{port}\"]\ndomains = [\"bench.test\"]\n\
                 mechanisms = [\"SCRAM-SHA-256\", \"PLAIN\", \"LOGIN\"]\nrecipients = \"any\"\nexempt_nets = [\"127.0.0.0/8\"]\ncleartext_auth_nets = [\"127.0.0.0/8\"]\n\n"
            )
        };
        let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
        let text = format!(
            "hostname = \"mail.bench.test\"\nallow_data_loss = true\ndrain = \"1s\"\n\n\
             [process]\nworkers = {}\nshards = {}\nstate_dir = \"state\"\n{user}\n{}{}{}\
             [[tls.certificate]]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n\n\
             [spool]\ndurability = \"{}\"\nmin_free = \"16MiB\"\nmin_free_percent = 0\n\n\
             [[route]]\ndomain = \"*\"\nkind = \"discard\"\n\n\
             [limits]\nmax_sessions = {}\n\n\
             [timeouts]\ncommand = \"1h\"\ncommand_crowded = \"1h\"\npre_auth = \"1h\"\nauth = \"1h\"\n\n\
             [log]\nlevel = \"{}\"\nfile = \"log\"\n",
            settings.workers,
            settings.shards,
            listener("mx", mx),
            listener("submission", submission),
            listener("submissions", submissions),
            settings.durability,
            settings.sessions_max,
            settings.log_level,
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

    /// The configuration.
    pub fn configuration(&self) -> PathBuf {
        self.dir.join("portreeve.toml")
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.dir
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Flags of `portreeve-load` that log in.
    pub fn login(&self) -> [String; 4] {
        let file = self.dir.join("password").display().to_string();
        ["--user".to_owned(), USER.to_owned(), "--password-file".to_owned(), file]
    }

    /// Address of a listener, by its place in `ports`.
    pub fn address(&self, place: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[place]))
    }

    /// What [`USER`] logs in with.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// Starts Portreeve; returns when it answers on all ports.
    pub fn portreeve(&self) -> Result<Server, String> {
        let log = std::fs::File::create(self.dir.join("stderr")).map_err(|error| error.to_string())?;
        let mut command = Command::new(self.bin.join("portreeve"));
        command.args(["serve", "--config"]).arg(self.configuration());
        let running = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))?;
        let mut server = Server { running };
        let until = Instant::now() + Duration::from_secs(60);
        for place in 0..self.ports.len() {
            while TcpStream::connect(self.address(place)).is_err() {
                if let Ok(Some(status)) = server.running.child.try_wait() {
                    let why = std::fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
                    return Err(format!("portreeve: {status}\n{why}"));
                }
                if Instant::now() > until {
                    return Err("portreeve: does not answer within 60 s".to_owned());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(server)
    }

    /// Starts the baseline.
    pub fn baseline(&self, tls: bool) -> Result<(Server, SocketAddr), String> {
        let mut command = Command::new(self.bin.join("canned-reply"));
        if tls {
            command.arg("--tls");
        }
        let mut running = Running::start(command.stdout(Stdio::piped()))?;
        let mut line = String::new();
        if let Some(stdout) = running.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        }
        let server = Server { running };
        let address = line.trim().parse().map_err(|_| format!("canned-reply said {line:?} instead of its address"))?;
        Ok((server, address))
    }

    /// `portreeve-load` at a server whose cost is wanted.
    pub fn load(&self, target: SocketAddr, server: &Server) -> Command {
        let mut command = Command::new(self.bin.join("portreeve-load"));
        let (target, pid) = (target.to_string(), server.pid().to_string());
        command.args(["--target", &target, "--pid", &pid]);
        command
    }
}

/// Standard output of a command that must succeed.
pub fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    running.output().map_err(|error| format!("{name}: {error}"))
}

/// Three ports that are free. Where there are others, none of those that the system gives to clients and to who asks for
/// any: one of these could be taken before the server has it.
pub fn free_ports() -> Result<[u16; 3], String> {
    const FIRST: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(32_768);
    let mut held = Vec::new();
    for _ in 0..TRIES {
        // Two processes begin at different places.
        let number = (std::process::id() << 5).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        // Clients may have been given all of them: in a network of our own, where nobody else is.
        let port = if end > FIRST { FIRST + number % (end - FIRST) } else { 0 };
        held.extend(TcpListener::bind(("127.0.0.1", port as u16)));
        if let [first, second, third] = &held[..] {
            let port = |held: &TcpListener| held.local_addr().map(|address| address.port());
            let [first, second, third] =
                [first, second, third].map(|held| port(held).map_err(|error| error.to_string()));
            return Ok([first?, second?, third?]);
        }
    }
    Err("there are not three free ports at 127.0.0.1".to_owned())
}

/// Ports that are looked at for three free ones.
const TRIES: u32 = 1000;
