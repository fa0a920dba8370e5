//! Real processes: this test binary runs itself as the children, see [`child_main`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use link::message::{AdminRequest, Message};
use link::{Link, Outbox, Received, Role, frames};
use rustix::event::PollFlags;
use telemetry::Event;

use crate::child::{self, Later, Startup};
use crate::process::{Outfit, Post, Process};
use crate::{Bound, Error, Handle, Hooks, Listener, Options, Plan, Supervisor};

/// Nothing here takes that long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);
const QUESTION: u16 = 0x0100;

#[test]
fn a_child_that_has_ended_while_it_was_written_to_is_still_heard() {
    let directory = tempfile::tempdir().unwrap();
    // What it says is a packet on its link, which is descriptor 3.
    let arguments = ["-c", "printf 'last words' >&3"].map(Into::into).into();
    let options = Options { program: "/bin/sh".into(), arguments, ..Options::new(directory.path(), "test") };
    let outfit = Outfit { instance: 1, library: None, shards: 0, slot: 0, row: None };
    let mut process = Process::start(&options, Post::singleton(Role::Delivery), outfit).unwrap();
    let until = Instant::now() + PATIENCE;
    while process.exit_status().is_none() {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(2)); // between two looks
    }
    process.say(&Message::Stop, None);
    process.flush();
    assert!(!process.has_more_to_send(), "nobody will take it");
    let mut packet = Vec::new();
    let link = process.link().expect("it is there to be heard");
    assert!(matches!(link.receive(&mut packet), Ok(Received::Packet { .. })) && packet == b"last words");
    assert!(matches!(link.receive(&mut packet), Ok(Received::Closed)));
}

// The children.

/// Not a test of its own: what the children of the other tests run.
#[test]
fn child_main() {
    let Some(requested) = child::requested(std::env::args_os()) else { return };
    // Before anything is opened: the directory's own descriptor is the only one that we add.
    let fds: BTreeSet<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| !std::fs::read_link(entry.path()).is_ok_and(|to| to.starts_with("/proc")))
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let startup = child::start(requested.unwrap(), "test").unwrap();
    let configuration = String::from_utf8(startup.configuration.clone()).unwrap();
    let failing = if configuration.contains("bad library") { Role::BackendHost } else { Role::Worker };
    if configuration.contains("cannot start") && startup.role == failing {
        startup.supervisor.failed("configuration: cannot start: mend it").unwrap();
        std::process::exit(1);
    }
    match startup.role {
        Role::Worker if configuration.contains("never ready") => rest_of(startup.supervisor),
        Role::Worker => worker(startup, fds),
        Role::Directory => directory(startup),
        Role::Control => control(startup, Path::new(configuration.split('|').next().unwrap())),
        Role::BackendHost => {
            let path = format!("{}-{}", configuration.split('|').next().unwrap(), std::process::id());
            std::fs::write(path, &configuration).unwrap();
            rest(startup);
        }
        _ => rest(startup),
    }
    std::process::exit(0);
}

/// Greets with its process id and answers lines until QUIT or until the client closes.
fn worker(startup: Startup, fds: BTreeSet<String>) {
    let Startup { mut supervisor, listeners, peers, configuration, .. } = startup;
    let links: BTreeMap<Role, Arc<Mutex<Link>>> =
        peers.into_iter().map(|peer| (peer.role, Arc::new(Mutex::new(peer.link)))).collect();
    let links = Arc::new(Mutex::new(links));
    let sessions = Arc::new(AtomicUsize::new(0));
    let facts = Arc::new((fds, String::from_utf8(configuration).unwrap()));
    supervisor.ready().unwrap();
    let mut draining = false;
    loop {
        for listener in &listeners {
            while let Ok((stream, _)) = listener.socket.accept() {
                stream.set_nonblocking(false).unwrap();
                assert!(stream.nodelay().unwrap(), "TCP_NODELAY passes from the listening socket");
                sessions.fetch_add(1, SeqCst);
                let (links, sessions, facts) = (links.clone(), sessions.clone(), facts.clone());
                thread::spawn(move || {
                    let _ = session(stream, &links, &facts);
                    sessions.fetch_sub(1, SeqCst);
                });
            }
        }
        // What was queued is taken; the next generation has the same sockets.
        if draining && sessions.load(SeqCst) == 0 {
            supervisor.drained().unwrap();
            return;
        }
        for later in supervisor.next(Some(Duration::from_millis(2))) {
            match later {
                Later::Peer(peer) => {
                    links.lock().unwrap().insert(peer.role, Arc::new(Mutex::new(peer.link)));
                }
                Later::Drain { .. } => draining = true,
                Later::Stop => return,
                _ => {}
            }
        }
    }
}

type Links = Arc<Mutex<BTreeMap<Role, Arc<Mutex<Link>>>>>;

fn session(stream: TcpStream, links: &Links, facts: &(BTreeSet<String>, String)) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    writeln!(stream, "{}", std::process::id())?;
    while let Some(line) = lines.next().transpose()? {
        let answer = match line.as_str() {
            "abort" => std::process::abort(),
            "quit" => return writeln!(stream, "bye"),
            "fds" => facts.0.iter().cloned().collect::<Vec<_>>().join(","),
            "configuration" => facts.1.clone(),
            "status" => std::fs::read_to_string("/proc/thread-self/status")?.replace('\n', ";"),
            question => ask(links, question).unwrap_or_else(|| "no directory".to_owned()),
        };
        writeln!(stream, "{answer}")?;
    }
    Ok(())
}

/// Asks the directory; `None` when it is dead.
fn ask(links: &Links, question: &str) -> Option<String> {
    let link = links.lock().unwrap().get(&Role::Directory)?.clone();
    let link = link.lock().unwrap();
    let mut outbox = Outbox::new(1000);
    outbox.push(QUESTION, 1, |to| to.extend_from_slice(question.as_bytes())).ok()?;
    outbox.flush(&link).ok()?;
    let mut packet = Vec::new();
    link.wait(PollFlags::IN, Some(PATIENCE)).ok()?;
    match link.receive(&mut packet).ok()? {
        Received::Packet { .. } => Some(String::from_utf8_lossy(frames(&packet).next()?.ok()?.payload).into_owned()),
        _ => None,
    }
}

/// Answers its process id and the question.
fn directory(startup: Startup) {
    let Startup { mut supervisor, mut peers, .. } = startup;
    supervisor.ready().unwrap();
    let mut packet = Vec::new();
    loop {
        for later in supervisor.next(Some(Duration::from_millis(2))) {
            match later {
                Later::Peer(peer) => peers.push(peer),
                // A new configuration: finish, be started again with it.
                Later::Stop | Later::Configuration(_) => return,
                _ => {}
            }
        }
        for peer in &peers {
            while let Ok(Received::Packet { .. }) = peer.link.receive(&mut packet) {
                let frame = frames(&packet).next().unwrap().unwrap();
                let question = String::from_utf8_lossy(frame.payload).into_owned();
                if question == "die" {
                    std::process::exit(7);
                }
                let mut outbox = Outbox::new(1000);
                let answer = format!("{} {question}", std::process::id());
                outbox.push(QUESTION + 1, frame.id, |to| to.extend_from_slice(answer.as_bytes())).unwrap();
                outbox.flush(&peer.link).unwrap();
            }
        }
    }
}

/// Passes one line from a unix socket to the supervisor, and the answer back.
fn control(startup: Startup, socket: &Path) {
    let Startup { supervisor, .. } = startup;
    let _ = std::fs::remove_file(socket);
    let door = UnixListener::bind(socket).unwrap();
    door.set_nonblocking(true).unwrap();
    supervisor.ready().unwrap();
    let link = supervisor.into_link();
    let mut asker: Option<UnixStream> = None;
    let mut packet = Vec::new();
    loop {
        if let Ok((stream, _)) = door.accept() {
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            let request = match line.trim() {
                "status" => AdminRequest::Status,
                "reload" => AdminRequest::Reload,
                "drain" => AdminRequest::Drain { seconds: 1 },
                other => AdminRequest::Other(other),
            };
            let message = Message::AdminRequest(request);
            let mut outbox = Outbox::new(1000);
            outbox.push(message.kind(), 5, |to| message.encode(to)).unwrap();
            outbox.flush(&link).unwrap();
            asker = Some(stream);
        }
        link.wait(PollFlags::IN, Some(Duration::from_millis(5))).unwrap();
        match link.receive(&mut packet).unwrap() {
            Received::Closed => return,
            Received::WouldBlock => {}
            Received::Packet { fds } => {
                for item in link::message::messages(&packet, fds) {
                    match item.unwrap() {
                        (5, Message::AdminAnswer { ok, text }, _) => {
                            let mut asker = asker.take().unwrap();
                            write!(asker, "{ok} {text}").unwrap();
                        }
                        (_, Message::Stop | Message::Drain { .. }, _) => return,
                        _ => {}
                    }
                }
            }
        }
    }
}

fn rest(startup: Startup) {
    startup.supervisor.ready().unwrap();
    rest_of(startup.supervisor);
}

fn rest_of(mut supervisor: child::Supervisor) {
    loop {
        if supervisor.next(None).iter().any(|later| matches!(later, Later::Stop | Later::Drain { .. })) {
            return;
        }
    }
}

// The tests' side.

struct TestHooks {
    plans: Arc<Mutex<VecDeque<Result<Plan, String>>>>,
    serving: mpsc::Sender<Vec<SocketAddr>>,
    events: mpsc::Sender<String>,
}

impl Hooks for TestHooks {
    fn reload(&mut self) -> Result<Plan, String> {
        self.plans.lock().unwrap().pop_front().unwrap_or_else(|| Err("no plan".to_owned()))
    }

    fn admin(&mut self, request: &str) -> Result<String, String> {
        Ok(format!("{request} to you"))
    }

    fn event(&mut self, event: &Event<'_>) {
        let _ = self.events.send(event.human("supervisor", false));
    }

    fn serving(&mut self, bound: &[Bound]) {
        let _ = self.serving.send(bound.iter().map(|bound| bound.address).collect());
    }
}

struct Server {
    directory: tempfile::TempDir,
    handle: Handle,
    plans: Arc<Mutex<VecDeque<Result<Plan, String>>>>,
    serving: mpsc::Receiver<Vec<SocketAddr>>,
    events: mpsc::Receiver<String>,
    thread: Option<JoinHandle<Result<u8, Error>>>,
    address: SocketAddr,
}

fn plan(directory: &Path, configuration: &str) -> Plan {
    Plan {
        configuration: format!("{}|{configuration}", directory.join("admin").display()).into_bytes(),
        listeners: vec![Listener { name: "mx".into(), address: "127.0.0.1:0".parse().unwrap() }],
        workers: 2,
        shards: 2,
        drain_seconds: 1,
        drain_seconds_max: 20,
        ..Plan::default()
    }
}

/// The same and a library with a back end, on terms of that configuration.
fn with_library(directory: &Path, configuration: &str) -> Plan {
    Plan {
        plugins: vec![crate::Plugin {
            id: "users".into(),
            origin: "users.so".into(),
            library: Arc::new(link::sealed::create("users", b"a library").unwrap()),
            process: true,
            mechanisms: Vec::new(),
            terms: configuration.to_owned(),
            backends: vec!["users".into()],
            settings: Vec::new(),
        }],
        ..plan(directory, configuration)
    }
}

fn options(directory: &Path) -> Options {
    Options {
        program: std::env::current_exe().unwrap(),
        arguments: ["tests::child_main", "--exact", "--nocapture"].map(Into::into).into(),
        signals: false,
        ..Options::new(directory, "test")
    }
}

impl Server {
    fn start() -> Server {
        let directory = tempfile::tempdir().unwrap();
        let (options, plan) = (options(directory.path()), plan(directory.path(), "first"));
        Self::start_with(directory, options, plan)
    }

    fn start_with(directory: tempfile::TempDir, options: Options, plan: Plan) -> Server {
        let server = Self::begin_with(directory, options, plan);
        server.wait_serving();
        server
    }

    fn begin_with(directory: tempfile::TempDir, options: Options, plan: Plan) -> Server {
        let plans = Arc::new(Mutex::new(VecDeque::new()));
        let ((serving, serving_rx), (events, events_rx)) = (mpsc::channel(), mpsc::channel());
        let hooks = TestHooks { plans: plans.clone(), serving, events };
        let (supervisor, handle) = Supervisor::new(options, plan, hooks).unwrap();
        let address = supervisor.bound()[0].address;
        let thread = Some(thread::spawn(move || supervisor.run()));
        Server { directory, handle, plans, serving: serving_rx, events: events_rx, thread, address }
    }

    fn wait_serving(&self) {
        let got = self.serving.recv_timeout(PATIENCE);
        assert!(got.is_ok(), "not serving: {:?}", self.events.try_iter().collect::<Vec<_>>());
    }

    fn event(&self, part: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let line = self.events.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("no event with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn connect(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    fn admin(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.directory.path().join("admin")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{request}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn reload_to(&self, configuration: &str) {
        self.plans.lock().unwrap().push_back(Ok(plan(self.directory.path(), configuration)));
        self.handle.reload();
    }

    fn join(&mut self) -> u8 {
        self.thread.take().unwrap().join().unwrap().unwrap()
    }

    fn status(&self) -> serde_json::Value {
        let answer = self.admin("status");
        serde_json::from_str(answer.strip_prefix("true ").unwrap()).unwrap()
    }

    fn pids(&self) -> Vec<u64> {
        self.status()["processes"].as_array().unwrap().iter().map(|process| process["pid"].as_u64().unwrap()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.kill();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
    pid: u32,
}

impl Client {
    fn connect(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Client { lines: BufReader::new(stream.try_clone()?), stream, pid: 0 };
        client.pid = client.line()?.parse().map_err(std::io::Error::other)?;
        Ok(client)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn ask(&mut self, question: &str) -> std::io::Result<String> {
        writeln!(self.stream, "{question}")?;
        self.line()
    }
}

fn alive(pid: u64) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

#[test]
fn serves_answers_administrators_and_drains() {
    let mut server = Server::start();
    let mut client = server.connect();
    assert!(client.ask("who").unwrap().ends_with(" who"), "worker and directory are linked");
    let pids = server.pids();
    assert_eq!(pids.len(), 5);
    assert_eq!(server.admin("hello"), "true hello to you");
    // A session under way holds the drain up; a new one is not taken.
    assert_eq!(server.admin("drain"), "true draining");
    server.event("draining");
    assert!(client.ask("still").unwrap().ends_with(" still"));
    assert_eq!(client.ask("quit").unwrap(), "bye");
    drop(client);
    assert_eq!(server.join(), 0);
    assert!(pids.into_iter().all(|pid| !alive(pid)));
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn a_dead_worker_is_named_and_replaced_and_no_connection_is_refused() {
    let server = Server::start();
    let mut client = server.connect();
    let dead = client.pid;
    assert!(client.ask("abort").is_err());
    let line = server.event("process.died");
    assert!(line.contains(&format!("process {dead} died")) && line.contains("SIGABRT"), "{line}");
    server.event("role=worker");
    // Some of these wait in the dead worker's sockets until its successor takes them.
    let mut pids = BTreeSet::new();
    for _ in 0..100 {
        pids.insert(server.connect().pid);
    }
    assert!(pids.len() == 2 && !pids.contains(&dead), "{pids:?}");
}

#[test]
fn a_dead_directory_is_replaced_and_linked_again() {
    let server = Server::start();
    let mut client = server.connect();
    let first = client.ask("a").unwrap();
    assert_eq!(client.ask("die").unwrap(), "no directory");
    assert!(server.event("process.died").contains("exit code 7"));
    let until = Instant::now() + PATIENCE;
    let second = loop {
        let answer = client.ask("a").unwrap();
        if answer != "no directory" {
            break answer;
        }
        assert!(Instant::now() < until);
        thread::yield_now();
    };
    assert!(second.ends_with(" a") && second != first);
}

#[test]
fn reload_under_load_refuses_and_resets_nobody() {
    let server = Server::start();
    let (stop, sessions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<JoinHandle<BTreeSet<u32>>> = (0..3)
        .map(|_| {
            let (stop, sessions, address) = (stop.clone(), sessions.clone(), server.address);
            thread::spawn(move || {
                let mut pids = BTreeSet::new();
                while !stop.load(SeqCst) {
                    let mut client = Client::connect(address).expect("a connection is taken");
                    assert!(client.ask("x").expect("the session goes on").ends_with(" x"));
                    assert_eq!(client.ask("quit").expect("and ends in order"), "bye");
                    pids.insert(client.pid);
                    sessions.fetch_add(1, SeqCst);
                }
                pids
            })
        })
        .collect();
    // Every generation has its share of clients.
    let work_on = || {
        let (enough, until) = (sessions.load(SeqCst) + 30, Instant::now() + PATIENCE);
        while sessions.load(SeqCst) < enough {
            assert!(Instant::now() < until, "clients do not get on");
            thread::yield_now();
        }
    };
    let mut held = server.connect();
    server.reload_to("first");
    server.wait_serving();
    work_on();
    // A third generation waits for the session that the first still has.
    server.reload_to("first");
    assert!(held.ask("y").unwrap().ends_with(" y"), "the old generation serves whom it has");
    work_on();
    assert!(server.serving.try_recv().is_err());
    assert_eq!(held.ask("quit").unwrap(), "bye");
    server.wait_serving();
    for _ in 0..4 {
        work_on();
        server.reload_to("first");
        server.wait_serving();
    }
    work_on();
    stop.store(true, SeqCst);
    let pids: BTreeSet<u32> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert!(pids.len() >= 10, "{} workers of seven generations were met", pids.len());
    assert!(server.events.try_iter().all(|line| !line.contains("died")));
}

#[test]
fn a_bad_reload_leaves_everything_as_it_is() {
    let server = Server::start();
    let before = server.pids();
    assert_eq!(server.admin("reload"), "false reload: no plan; the old configuration stays in force");

    // A port that somebody else has.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bad = plan(server.directory.path(), "x");
    bad.listeners.push(Listener { name: "other".into(), address: taken.local_addr().unwrap() });
    server.plans.lock().unwrap().push_back(Ok(bad));
    let answer = server.admin("reload");
    assert!(answer.starts_with("false reload: listener other: 127.0.0.1:") && answer.contains("ss -ltnp"), "{answer}");

    // More shards than sockets.
    let large = Plan { shards: 3, ..plan(server.directory.path(), "x") };
    server.plans.lock().unwrap().push_back(Ok(large));
    assert!(server.admin("reload").contains("restart needed"));

    // A generation that cannot start, with a new address that must be given back.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut bad = plan(server.directory.path(), "cannot start");
    bad.listeners.push(Listener { name: "other".into(), address: free });
    server.plans.lock().unwrap().push_back(Ok(bad));
    let answer = server.admin("reload");
    assert!(answer.starts_with("false") && answer.contains("configuration: cannot start: mend it"), "{answer}");
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(free).is_ok() {
        assert!(Instant::now() < until, "the new address is not given back");
        thread::yield_now();
    }
    let mut after = server.pids();
    while after.len() != before.len() {
        assert!(Instant::now() < until);
        after = server.pids();
    }
    assert_eq!(BTreeSet::from_iter(before), BTreeSet::from_iter(after));
    assert!(server.connect().ask("configuration").unwrap().ends_with("|first"));
}

#[test]
fn a_reload_changes_configuration_and_addresses() {
    let server = Server::start();
    let mut next = plan(server.directory.path(), "second");
    let new: SocketAddr = "127.0.0.1:0".parse().unwrap();
    next.listeners = vec![Listener { name: "submission".into(), address: new }];
    server.plans.lock().unwrap().push_back(Ok(next));
    assert_eq!(server.admin("reload"), "true generation 2 serves");
    let address = server.serving.recv_timeout(PATIENCE).unwrap()[0];
    assert_ne!(address, server.address);
    let mut client = Client::connect(address).unwrap();
    assert!(client.ask("configuration").unwrap().ends_with("|second"));
    // The directory chose to be started again; that is no death.
    let until = Instant::now() + PATIENCE;
    while !client.ask("a").unwrap().ends_with(" a") {
        assert!(Instant::now() < until);
    }
    // The old generation is gone, and with it the old address.
    while TcpStream::connect(server.address).is_ok() {
        assert!(Instant::now() < until);
        thread::yield_now();
    }
    assert!(server.events.try_iter().all(|line| !line.contains("died")));
}

#[test]
fn a_reload_that_mends_a_start_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let (options, bad) = (options(directory.path()), plan(directory.path(), "never ready"));
    let server = Server::begin_with(directory, options, bad);
    server.reload_to("first");
    server.wait_serving();
    // From now on a death is mended, and ends nothing.
    let mut client = server.connect();
    assert!(client.ask("abort").is_err());
    server.event("SIGABRT");
    assert_ne!(server.connect().pid, client.pid);
    assert!(!server.thread.as_ref().unwrap().is_finished());
}

/// A library with a back end: what the configuration grants it, it has from the reload on that grants it.
#[test]
fn the_back_ends_of_a_reload_start_with_its_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let server = Server::start_with(directory, options(&path), with_library(&path, "first"));
    let told = || {
        let pid = server.status()["libraries"].as_array().unwrap().last().unwrap()["pid"].clone();
        std::fs::read_to_string(path.join(format!("admin-{pid}"))).unwrap()
    };
    assert!(told().ends_with("|first"));
    server.plans.lock().unwrap().push_back(Ok(with_library(&path, "second")));
    assert_eq!(server.admin("reload"), "true generation 2 serves");
    assert!(told().ends_with("|second"), "{}", told());
}

/// However often somebody tries: what is left of a failed reload holds up none that comes later.
#[test]
fn reloads_of_a_library_that_dies_leave_nothing_behind() {
    let server = Server::start();
    for _ in 0..20 {
        let bad = with_library(server.directory.path(), "bad library, cannot start");
        server.plans.lock().unwrap().push_back(Ok(bad));
        let answer = server.admin("reload");
        assert!(answer.starts_with("false reload: the new backend-host failed: "), "{answer}");
        assert_eq!(server.status()["libraries"].as_array().unwrap().len(), 0);
    }
    let good = with_library(server.directory.path(), "second");
    server.plans.lock().unwrap().push_back(Ok(good));
    assert!(server.admin("reload").starts_with("true generation "));
}

#[test]
fn certificates_are_exchanged_in_place() {
    let server = Server::start();
    let before = server.connect().pid;
    let next = Plan { certificates: b"new".to_vec(), ..plan(server.directory.path(), "first") };
    server.plans.lock().unwrap().push_back(Ok(next));
    assert_eq!(server.admin("reload"), "true certificates exchanged");
    assert!(server.pids().contains(&before.into()));
    assert!(server.serving.try_recv().is_err());
}

#[test]
fn a_second_start_is_refused_with_address_and_remedy() {
    let server = Server::start();
    let hooks = || TestHooks { plans: Arc::default(), serving: mpsc::channel().0, events: mpsc::channel().0 };
    let same = server.directory.path();
    let error = Supervisor::new(options(same), plan(same, ""), hooks()).err().unwrap().to_string();
    assert!(error.contains("portreeve.lock") && error.contains(&format!("process {}", std::process::id())), "{error}");

    let other = tempfile::tempdir().unwrap();
    let mut twice = plan(other.path(), "");
    twice.listeners[0].address = server.address;
    let error = Supervisor::new(options(other.path()), twice, hooks()).err().unwrap().to_string();
    let expected = format!("listener mx: {}: ", server.address);
    assert!(error.starts_with(&expected) && error.contains("stop it or give the listener another"), "{error}");
    assert!(server.connect().ask("x").is_ok());
}

#[test]
fn a_failure_at_the_very_start_ends_the_program_with_its_cause() {
    let directory = tempfile::tempdir().unwrap();
    let hooks = TestHooks { plans: Arc::default(), serving: mpsc::channel().0, events: mpsc::channel().0 };
    let bad = plan(directory.path(), "cannot start");
    let (supervisor, _handle) = Supervisor::new(options(directory.path()), bad, hooks).unwrap();
    let error = supervisor.run().unwrap_err().to_string();
    assert!(error.contains("worker") && error.contains("configuration: cannot start: mend it"), "{error}");
}

#[test]
fn draining_ends_when_patience_does() {
    let directory = tempfile::tempdir().unwrap();
    let short = Plan { drain_seconds_max: 1, ..plan(directory.path(), "first") };
    let options = options(directory.path());
    let mut server = Server::start_with(directory, options, short);
    let mut client = server.connect();
    server.handle.drain();
    assert_eq!(server.join(), 0);
    assert!(client.line().is_err());
}

#[test]
fn kill_ends_everything_at_once() {
    let mut server = Server::start();
    let pids = server.pids();
    let _held = server.connect();
    server.handle.drain();
    server.handle.kill();
    assert_eq!(server.join(), 130);
    assert!(pids.into_iter().all(|pid| !alive(pid)));
}

#[test]
fn children_inherit_one_descriptor_and_ignore_the_terminal() {
    // Something that a careless parent left open.
    let open = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    let server = Server::start();
    let mut client = server.connect();
    assert_eq!(client.ask("fds").unwrap(), "0,1,2,3");
    let status = client.ask("status").unwrap();
    let field = |name: &str| {
        let start = status.find(&format!("{name}:")).unwrap();
        status[start..].split(';').next().unwrap().split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("NoNewPrivs"), "1");
    let ignored = u64::from_str_radix(&field("SigIgn"), 16).unwrap();
    for signal in [1, 2, 15] {
        assert!(ignored >> (signal - 1) & 1 == 1, "signal {signal}");
    }
}

/// Needs root; says so where it cannot run.
#[test]
fn children_give_up_every_right() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root has rights to give up");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // Control makes its socket there, as somebody else.
    std::os::unix::fs::chown(directory.path(), Some(65_534), Some(65_534)).unwrap();
    let ids = link::ids::Ids { uid: 65_534, gid: 65_534, groups: vec![65_533] };
    let options = Options { ids: Some(ids), ..options(directory.path()) };
    let plan = plan(directory.path(), "first");
    let server = Server::start_with(directory, options, plan);
    let status = server.connect().ask("status").unwrap();
    for expected in
        ["Uid: 65534 65534 65534 65534", "Gid: 65534 65534 65534 65534", "Groups: 65533", "CapEff: 0000000000000000"]
    {
        let words: Vec<&str> = expected.split(' ').collect();
        let found = status.split(';').any(|line| line.split_whitespace().collect::<Vec<_>>() == words);
        assert!(found, "{expected} in {status}");
    }
}

// A whole supervisor in a process of its own, driven by signals.

/// Not a test of its own: what [`Whole`] runs.
#[test]
fn supervisor_main() {
    let mut arguments = std::env::args_os().skip_while(|argument| argument != "__supervise");
    let Some(directory) = arguments.nth(1).map(PathBuf::from) else { return };
    struct Loud(PathBuf);
    impl Hooks for Loud {
        fn reload(&mut self) -> Result<Plan, String> {
            Ok(plan(&self.0, "first"))
        }
        fn event(&mut self, event: &Event<'_>) {
            println!("event {}", event.name);
        }
        fn serving(&mut self, bound: &[Bound]) {
            println!("serving {}", bound[0].address);
        }
    }
    let options = Options { signals: true, ..options(&directory) };
    let (supervisor, _handle) = Supervisor::new(options, plan(&directory, "first"), Loud(directory)).unwrap();
    std::process::exit(supervisor.run().unwrap().into());
}

struct Whole {
    process: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    _directory: tempfile::TempDir,
}

impl Whole {
    fn start() -> (Whole, SocketAddr) {
        let directory = tempfile::tempdir().unwrap();
        let mut process = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["tests::supervisor_main", "--exact", "--nocapture", "__supervise"])
            .arg(directory.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut whole = Whole { process, lines, _directory: directory };
        let address = whole.line("serving ");
        (whole, address.parse().unwrap())
    }

    fn line(&mut self, start: &str) -> String {
        let found = |line: String| line.split_once(start).map(|(_, rest)| rest.to_owned());
        self.lines.by_ref().map(Result::unwrap).find_map(found).expect("the supervisor went on")
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.process.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn children(&self) -> Vec<u64> {
        let path = format!("/proc/{0}/task", self.process.id());
        let tasks = std::fs::read_dir(path).unwrap().map(|task| task.unwrap().path().join("children"));
        let children: Vec<String> = tasks.map(|path| std::fs::read_to_string(path).unwrap()).collect();
        children.iter().flat_map(|line| line.split_whitespace()).map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn signals_reload_drain_and_end() {
    use rustix::process::Signal;
    let (mut whole, address) = Whole::start();
    let mut held = Client::connect(address).unwrap();
    whole.signal(Signal::HUP);
    assert_eq!(whole.line("serving "), address.to_string());
    whole.signal(Signal::INT);
    whole.line("event draining");
    assert!(held.ask("x").unwrap().ends_with(" x"), "the first Ctrl-C lets sessions finish");
    whole.signal(Signal::INT);
    assert_eq!(whole.process.wait().unwrap().code(), Some(130));
    assert!(held.line().is_err());

    let (mut whole, _) = Whole::start();
    whole.signal(Signal::TERM);
    assert_eq!(whole.process.wait().unwrap().code(), Some(0));
}

#[test]
fn a_supervisor_that_is_killed_leaves_no_child_behind() {
    let (mut whole, address) = Whole::start();
    let mut held = Client::connect(address).unwrap();
    let children = whole.children();
    assert_eq!(children.len(), 5);
    whole.process.kill().unwrap();
    whole.process.wait().unwrap();
    assert!(held.line().is_err());
    // They are adopted by somebody else, who reaps them when it gets to it.
    let ended =
        |pid: u64| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    let until = Instant::now() + PATIENCE;
    while !children.iter().all(|&pid| ended(pid)) {
        assert!(Instant::now() < until, "{children:?}");
        thread::yield_now();
    }
}
