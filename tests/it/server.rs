//! The built program, started for one test in a folder of its own on a loopback address of its own, and
//! stopped by its handle.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::bare::{DOMAIN, HOSTNAME};

/// Longest that anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A running server.
pub struct Server {
    dir: TempDir,
    child: Option<Child>,
    pub ip: Ipv4Addr,
    ports: [u16; 3],
    options: Options,
}

/// What differs from the usual configuration.
#[derive(Clone, Default)]
pub struct Options {
    /// Lines for the whole server, before the first table.
    pub top: String,
    /// Lines for every listener.
    pub listener: String,
    /// SASL mechanisms of every listener; none: PLAIN, LOGIN, CRAM-MD5.
    pub mechanisms: Vec<&'static str>,
    /// Tables at the end.
    pub tables: String,
    /// Most open files of each process.
    pub files_max: Option<u32>,
    /// The spool lies on a tmpfs with these mount options, in a mount namespace of the server's own.
    pub spool_disk: Option<String>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
}

/// Where the built program lies; builds it first, so that a test never meets an old one.
/// `PORTREEVE_PROGRAM` names another one, say an installed one, or the one that `tests/run` has just built, which is
/// taken as it is.
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("PORTREEVE_PROGRAM") {
        return program.into();
    }
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let packages = [
        "portreeve",
        "portreeve-standard",
        "portreeve-legacy",
        "portreeve-published",
        "portreeve-load",
        "peers",
        "portreeve-example-store",
    ];
    BUILT.get_or_init(|| build(&packages)).join("portreeve")
}

/// Builds what the tests drive, in our own profile; where it then lies.
pub fn build(packages: &[&str]) -> PathBuf {
    // …/target/<profile>/deps/it-<hash>
    let own = std::env::current_exe().expect("our own path");
    let profile = own.ancestors().nth(2).expect("target/<profile>").to_owned();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--manifest-path"]).arg(root().join("Cargo.toml"));
    build.args(packages.iter().flat_map(|package| ["-p", package]));
    build.arg("--target-dir").arg(profile.parent().expect("the target folder"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let built = build.stdin(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(built, "{packages:?} could not be built; `cargo build -p {}` tells why", packages[0]);
    profile
}

/// The workspace's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// A loopback address that no other test uses: 127.x.y.z by our process id and a counter.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let host = (std::process::id() << 6 | (number & 63)) & 0x00ff_ffff;
    Ipv4Addr::from(0x7f00_0000 | host.max(256))
}

/// For a server that binds its address itself. Of its own: clients and other servers of other tests, at the usual
/// loopback address, do not take the port in between.
pub fn free_address() -> SocketAddr {
    TcpListener::bind((own_address(), 0)).and_then(|held| held.local_addr()).expect("a free port")
}

impl Server {
    /// Starts one as usual: alice and bob, no limits for this machine.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// Starts one with other options and waits until it greets.
    pub fn start_with(options: Options) -> Self {
        let mut server = Self::prepare(options);
        server.run();
        server
    }

    /// Folder, certificate, configuration and users, but nothing running.
    pub fn prepare(options: Options) -> Self {
        let ip = own_address();
        // The system picks the ports; all are held until all are known.
        let held: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind((ip, 0)).expect("a free port")).collect();
        let ports = [0, 1, 2].map(|at: usize| held[at].local_addr().expect("bound").port());
        let dir = TempDir::with_prefix("portreeve-it-").expect("a temporary folder");
        let server = Self { dir, child: None, ip, ports, options };
        let init = server.path("init");
        let made =
            output(Command::new(program()).args(["init", "--hostname", HOSTNAME, "--domain", DOMAIN]).arg(&init));
        assert!(made.0.success(), "portreeve init: {}", made.1);
        server.write_config(&server.config());
        for user in ["alice", "bob"] {
            let mut add =
                server.command(&["user", "add", &format!("{user}@{DOMAIN}"), "--password-stdin", "--cram-md5"]);
            let added = feed(&mut add, b"secret\n");
            assert!(added.0.success(), "portreeve user add: {}", added.1);
        }
        server
    }

    /// The configuration as the test wants it.
    pub fn config(&self) -> String {
        let Options { top, listener, mechanisms, tables, .. } = &self.options;
        let mechanisms: &[&str] = if mechanisms.is_empty() { &["PLAIN", "LOGIN", "CRAM-MD5"] } else { mechanisms };
        let mut text = format!("hostname = \"{HOSTNAME}\"\n{top}\n[process]\nstate_dir = \"state\"\nshards = 2\n");
        if rustix::process::geteuid().is_root() {
            text += "user = \"root\"\n";
        }
        // What `portreeve init` made is used as it is.
        let (cert, key) = self.certificate_files();
        text += &format!("\n[[tls.certificate]]\ncert = {cert:?}\nkey = {key:?}\n");
        text += "\n[plugins]\nload = [\"standard\", \"legacy\"]\n";
        text += "\n[spool]\nsegment = \"1MiB\"\nmin_free = \"1MiB\"\nmin_free_percent = 0\n";
        for (role, port) in ["mx", "submission", "submissions"].iter().zip(self.ports) {
            text += &format!(
                "\n[[listener]]\nrole = \"{role}\"\nbind = [\"{}:{port}\"]\ndomains = [\"{DOMAIN}\"]\n\
                 mechanisms = {mechanisms:?}\nexempt_nets = [\"127.0.0.0/8\"]\n{listener}\n",
                self.ip
            );
        }
        text += &format!("\n[[route]]\ndomain = \"{DOMAIN}\"\nkind = \"maildir\"\npath = \"mail/%d/%n\"\n");
        text += "\n[[route]]\ndomain = \"*\"\nkind = \"maildir\"\npath = \"mail/outbound\"\n";
        text + "\n[log]\nformat = \"json\"\n" + tables
    }

    /// What the next start gets.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.options.environment = environment;
    }

    /// Like [`Server::run`], for a program that may lose a process while it starts, and then may end altogether.
    pub fn run_patiently(&mut self) {
        self.spawn(&["serve"]);
        let deadline = Instant::now() + PATIENCE;
        while !self.greets(self.ports[0]) {
            self.revive();
            assert!(Instant::now() < deadline, "no greeting within {PATIENCE:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10)); // between two looks, not instead of one
        }
    }

    /// Starts again if it has ended: the supervisor does, when a process dies before everything serves.
    pub fn revive(&mut self) {
        if self.child.as_mut().is_some_and(|child| child.try_wait().expect("our child").is_some()) {
            self.spawn(&["serve"]);
        }
    }

    pub fn write_config(&self, text: &str) {
        fs::write(self.path("portreeve.toml"), text).expect("the configuration");
    }

    /// PEM files of certificate and key.
    pub fn certificate_files(&self) -> (PathBuf, PathBuf) {
        let mut found: BTreeMap<bool, PathBuf> = BTreeMap::new();
        let mut folders = vec![self.path("init")];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).expect("what init made").map(|entry| entry.expect("an entry").path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "pem") {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    found.insert(text.contains("PRIVATE KEY"), path);
                }
            }
        }
        (found.remove(&false).expect("a certificate"), found.remove(&true).expect("a key"))
    }

    /// Runs (again) in the same folder and waits until every listener greets.
    pub fn run(&mut self) {
        self.spawn(&["serve"]);
        let deadline = Instant::now() + PATIENCE;
        for port in [self.ports[0], self.ports[1]] {
            while !self.greets(port) {
                let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
                assert!(ended.is_none(), "portreeve ended: {ended:?}\n{}", self.log());
                assert!(Instant::now() < deadline, "no greeting within {PATIENCE:?}\n{}", self.log());
                std::thread::sleep(Duration::from_millis(10)); // between two looks, not instead of one
            }
        }
    }

    /// Starts the program with this configuration; its output goes to the log.
    pub fn spawn(&mut self, arguments: &[&str]) {
        let log = File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let mut before = self.options.files_max.map(|files| format!("ulimit -n {files} &&")).unwrap_or_default();
        if let Some(options) = &self.options.spool_disk {
            let spool = self.path("state/spool");
            fs::create_dir_all(&spool).expect("a folder");
            before += &format!(" mount -t tmpfs -o mode=700,{options} tmpfs {} &&", spool.display());
        }
        let mut command = self.command(arguments);
        if !before.is_empty() {
            let namespace = self.options.spool_disk.is_some();
            let mut shell = Command::new(if namespace { "unshare" } else { "sh" });
            shell.args(if namespace { &["-m", "sh"][..] } else { &[] });
            shell.args(["-c", &format!("{before} exec \"$@\""), "sh"]);
            shell.arg(command.get_program()).args(command.get_args());
            command = shell;
        }
        let disturbed = std::env::var("PORTREEVE_DISTURB").ok().filter(|_| crate::shim::library().is_some());
        match disturbed {
            Some(seed) if self.options.environment.is_empty() => {
                command.envs(crate::shim::environment(&format!("role=* seed={seed} one_in=7")));
            }
            _ => drop(command.envs(self.options.environment.iter().cloned())),
        }
        let output = log.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn().expect("portreeve starts");
        self.child = Some(child);
    }

    /// `portreeve <arguments> --config …`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).arg("--config").arg(self.path("portreeve.toml")).env_remove("RUST_BACKTRACE");
        command
    }

    fn greets(&self, port: u16) -> bool {
        let Ok(mut stream) = TcpStream::connect((self.ip, port)) else { return false };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).is_ok() && greeting == *b"220 "
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mx(&self) -> SocketAddr {
        (self.ip, self.ports[0]).into()
    }

    pub fn submission(&self) -> SocketAddr {
        (self.ip, self.ports[1]).into()
    }

    pub fn submissions(&self) -> SocketAddr {
        (self.ip, self.ports[2]).into()
    }

    /// Whether its listeners were given this line.
    pub fn options_have(&self, line: &str) -> bool {
        self.options.listener.contains(line)
    }

    /// What the program has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The supervisor.
    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("running"))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our own child");
    }

    /// The processes that the supervisor started, by role.
    pub fn processes(&self) -> BTreeMap<String, Vec<Pid>> {
        let mut roles: BTreeMap<String, Vec<Pid>> = BTreeMap::new();
        let supervisor = self.pid().as_raw_nonzero().get();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // `pid (name) state ppid …`; the name may hold anything, so count from its end.
            let parent =
                stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|&c| c == 0).collect();
            if parent == Some(supervisor)
                && let Some(at) = words.iter().position(|word| *word == b"__role")
                && let Some(pid) = Pid::from_raw(pid)
            {
                let role = words.get(at + 1).map(|word| String::from_utf8_lossy(word).into_owned());
                roles.entry(role.unwrap_or_default()).or_default().push(pid);
            }
        }
        roles
    }

    /// Waits for the supervisor's end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        wait(&mut child).unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("portreeve did not end within {PATIENCE:?}\n{}", self.log());
        })
    }

    /// Messages in a mailbox, once there are `count`; `outbound` is the mailbox of all other domains.
    pub fn mail(&self, user: &str, count: usize) -> Vec<Vec<u8>> {
        let folder = if user == "outbound" { "mail/outbound".into() } else { format!("mail/{DOMAIN}/{user}") };
        let folder = self.path(&folder).join("new");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let files: Vec<PathBuf> = fs::read_dir(&folder)
                .map(|files| files.flatten().map(|file| file.path()).collect())
                .unwrap_or_default();
            if files.len() >= count {
                return files.iter().map(|file| fs::read(file).expect("a message")).collect();
            }
            assert!(Instant::now() < deadline, "{} of {count} messages in {folder:?}\n{}", files.len(), self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            if wait(&mut child).is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- end of the log of portreeve ---\n{}\n---",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
    }
}

/// The child's end, within [`PATIENCE`].
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().expect("our child") {
            Some(status) => return Some(status),
            None if Instant::now() > deadline => return None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Runs a command to its end; its exit status and everything it wrote.
pub fn output(command: &mut Command) -> (ExitStatus, String) {
    feed(command, b"")
}

/// The same, with input.
pub fn feed(command: &mut Command, input: &[u8]) -> (ExitStatus, String) {
    // Through a file: a pipe that nobody reads would stop the child.
    let mut written = tempfile::tempfile().expect("a temporary file");
    let errors = written.try_clone().expect("a second handle");
    let output = written.try_clone().expect("a third handle");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    // A child that ends early closes its end; that is its business.
    let _ = stdin.write_all(input);
    drop(stdin);
    let status = wait(&mut child);
    let mut text = Vec::new();
    use std::io::Seek as _;
    written.rewind().expect("a file");
    written.read_to_end(&mut text).expect("what it wrote");
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = status.unwrap_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{command:?} did not end within {PATIENCE:?}: {text}");
    });
    (status, text)
}

/// Tests that measure time, or need the machine's cores, one after the other.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
