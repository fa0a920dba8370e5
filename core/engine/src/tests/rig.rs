//! A worker on loopback with everything that it needs: a policy, a mechanism, a directory at the other end
//! of its links, a spool in a temporary folder.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use link::directory::{ANSWER, Answer, IdentityFields, Question};
use link::{Link, Outbox, Received, Role as Process, frames};
use rustix::event::PollFlags;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use sasl::{Event, FailureClass, Input, Mechanism, MechanismName, State, Status, Step, Traits, flag};
use smtp::envelope::{Envelope, Recipient};
use smtp::listener::{AuthOffer, Listener, Tls};
use smtp::policy::{Facts, Policy, Verdict};
use smtp::{Role, testing};
use spool::{Follower, Message, RealDisk, Writer};

use crate::*;

/// Local domain demo.test; whoever is named panic makes the code fail.
struct TestPolicy;

impl Policy for TestPolicy {
    fn mail(&self, facts: &Facts<'_>, sender: Option<&str>) -> Verdict {
        assert!(!sender.is_some_and(|sender| sender.starts_with("panic")), "the test asked for this");
        if facts.identity.is_some() { Verdict::Ask } else { Verdict::Permit }
    }
    fn rcpt(&self, _: &Facts<'_>, _: &Envelope, recipient: &str) -> Verdict {
        if recipient.ends_with("@demo.test") { Verdict::Ask } else { Verdict::Permit }
    }
    fn header_from(&self, _: &Facts<'_>, address: &str) -> Verdict {
        if address.starts_with("late") { Verdict::Ask } else { Verdict::Permit }
    }
}

/// PLAIN without the care that the real one takes.
struct Plain {
    name: MechanismName,
    traits: Traits,
}

impl Mechanism for Plain {
    fn name(&self) -> &MechanismName {
        &self.name
    }
    fn traits(&self) -> &Traits {
        &self.traits
    }
    fn step<'a>(&'a self, _: &'a mut State, input: Input<'a>, _: &'a mut [u8]) -> Step<'a> {
        match input.event {
            Event::Start { initial: false } => Step::Challenge(b""),
            Event::Start { initial: true } | Event::Message => {
                let mut parts = input.message.splitn(3, |&octet| octet == 0);
                let (Some(authzid), Some(authcid), Some(password)) = (parts.next(), parts.next(), parts.next()) else {
                    return Step::Failure { class: FailureClass::Malformed, data: None, diagnosis: b"" };
                };
                Step::Effect(sasl::Effect::VerifyPassword { authcid, authzid, password })
            }
            Event::Outcome(outcome) if outcome.status == Status::Ok => {
                Step::Success { proof: outcome.proof, data: None }
            }
            Event::Outcome(outcome) => {
                let class = match outcome.status {
                    Status::Temporary => FailureClass::Temporary,
                    _ => FailureClass::Credentials,
                };
                Step::Failure { class, data: None, diagnosis: b"" }
            }
            Event::Resume => unreachable!("never offloaded"),
        }
    }
}

/// A listener with the policy and the mechanism of the tests.
pub fn listener(role: Role, tls: Tls) -> Listener {
    let traits = Traits {
        flags: flag::CLIENT_FIRST | flag::PLAINTEXT | flag::ALLOW_NUL,
        needs: sasl::EffectKind::VerifyPassword.need(),
        strength: 1,
        state_octets: 0,
        message_octets_max: 2048,
        output_octets_max: 0,
        steps_max: 4,
        plus_of: None,
    };
    let plain = Plain { name: MechanismName::parse(b"PLAIN").unwrap(), traits };
    Listener {
        tls,
        auth: AuthOffer::AfterTls,
        mechanisms: vec![Arc::new(plain)],
        policy: Box::new(TestPolicy),
        ..testing::listener(role)
    }
}

/// What a test changes before the worker starts.
pub struct Plan {
    pub listener: Listener,
    pub shards: usize,
    pub deadlines: Deadlines,
    pub bounds: Bounds,
    pub limits: limits::Config,
    pub sessions_max: usize,
    /// Loopback is exempt from limits and delays.
    pub exempt: bool,
    /// Octets of the server's send buffers; 0: the kernel's choice.
    pub send_octets: usize,
    /// Memory of the spool for messages that come in.
    pub pool_octets: usize,
    /// Replies wait for a next hop; the ends of delivery's links are the rig's.
    pub passes: bool,
}

impl Plan {
    pub fn new(role: Role, tls: Tls) -> Self {
        Self {
            listener: listener(role, tls),
            shards: 2,
            deadlines: Deadlines::of(role),
            bounds: Bounds::default(),
            limits: limits::Config { per_prefix_max: 10_000, ..limits::Config::mx() },
            sessions_max: 10_000,
            exempt: true,
            send_octets: 0,
            pool_octets: 64 << 20,
            passes: false,
        }
    }
}

pub struct Rig {
    handle: Option<Handle>,
    pub address: SocketAddr,
    pub socket: TcpListener,
    pub notices: mpsc::Receiver<Notice>,
    pub board: telemetry::Board,
    pub directory: Directory,
    /// Delivery's ends, by shard.
    pub delivery: Vec<Link>,
    root: CertificateDer<'static>,
    folder: tempfile::TempDir,
}

impl Rig {
    pub fn start(plan: Plan) -> Self {
        let socket = listen(plan.send_octets);
        Self::start_on(plan, socket)
    }

    pub fn start_on(plan: Plan, socket: TcpListener) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = socket.local_addr().unwrap();
        let (server, root) = server_tls();

        let directory = Directory::new();
        let links = (0..plan.shards).map(|_| directory.link()).collect();
        let pairs = (0..plan.shards).filter(|_| plan.passes).map(|_| Link::pair().unwrap());
        let (ways, delivery): (Vec<Link>, Vec<Link>) = pairs.unzip();
        let board = telemetry::Board::create(2).unwrap();
        let counts = board.claim(0, Process::Worker, 1, 0).unwrap();
        let (notify, notices) = mpsc::channel();
        let options = spool::Options {
            segment_octets: 1 << 20,
            pool_octets: plan.pool_octets,
            floors: spool::Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 },
            ..spool::Options::default()
        };
        let disk = Arc::new(RealDisk::open(folder.path()).unwrap());
        // As the supervisor does it: each shard gets a socket of its own, or a duplicate of one.
        let sockets =
            (0..plan.shards).map(|shard| Socket { shard, fd: OwnedFd::from(socket.try_clone().unwrap()) }).collect();
        let loopback = "127.0.0.0/8".parse().unwrap();
        let setup = Setup {
            shards: plan.shards,
            ports: vec![Port {
                listener: Arc::new(plan.listener),
                sockets,
                tls: Some(Arc::new(server)),
                backend: None,
                exempt_nets: if plan.exempt { vec![loopback] } else { Vec::new() },
                cleartext_nets: vec![loopback],
                limits: plan.limits,
                deadlines: plan.deadlines,
            }],
            sessions_max: plan.sessions_max,
            directory: links,
            delivery: ways,
            passes: plan.passes.then(|| Box::new(|to: &Recipient<'_>| to.address.starts_with("bob")) as Passes),
            spool: Writer::open(disk, options, spool::Hooks::default()).unwrap(),
            limits: Arc::new(limits::Table::create(2).unwrap()),
            account_key: sasl::Secret::new(vec![3; 32]),
            events: telemetry::EventSender::new(1 << 20, counts.clone()),
            counts,
            notify: Box::new(move |notice| {
                let _ = notify.send(notice);
            }),
            bounds: plan.bounds,
        };
        let handle = Some(Worker::start(setup).unwrap());
        Self { handle, address, socket, notices, board, directory, delivery, root, folder }
    }

    pub fn handle(&self) -> &Handle {
        self.handle.as_ref().unwrap()
    }

    pub fn connect(&self) -> Client<TcpStream> {
        Client::new(self.dial())
    }

    /// Connected and greeted.
    pub fn greeted(&self) -> Client<TcpStream> {
        let mut client = self.connect();
        assert_eq!(client.reply(), "220 mx.example ESMTP Portreeve\r\n");
        client
    }

    pub fn dial(&self) -> TcpStream {
        dial(self.address)
    }

    /// TLS over a connection.
    pub fn tls(&self, stream: TcpStream) -> Client<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
        Client::new(rustls::StreamOwned::new(client_tls(&self.root), stream))
    }

    /// Waits until the worker says `value` for the sessions.
    pub fn await_sessions(&self, value: u64) {
        await_that(&format!("{value} sessions"), || self.handle().stats().sessions == value);
    }

    /// Stops the worker and reads what it made durable.
    pub fn messages(mut self) -> Vec<(Envelope, Vec<u8>)> {
        let handle = self.handle.take().unwrap();
        handle.stop();
        handle.join();
        let disk = Arc::new(RealDisk::open(self.folder.path()).unwrap());
        let mut follower = Follower::open(disk, Arc::new(|_: &spool::Notice| {})).unwrap();
        let (mut messages, mut message) = (Vec::new(), Message::default());
        while follower.next(&mut message) {
            let mut body = Vec::new();
            message
                .body(&mut |octets| {
                    body.extend_from_slice(octets);
                    Ok(())
                })
                .unwrap();
            messages.push((Envelope::decode(message.envelope()).unwrap(), body));
        }
        messages
    }
}

/// TLS of a server, and the certificate that its clients believe.
pub fn server_tls() -> (tls::ServerTls, CertificateDer<'static>) {
    let made = tls::self_signed(&["mx.example"], 30).unwrap();
    let certificate = tls::Certificate::from_pem(
        tls::Pem { file: "cert.pem", octets: made.certificate_pem.as_bytes() },
        tls::Pem { file: "key.pem", octets: made.key_pem.as_bytes() },
    )
    .unwrap();
    let store = Arc::new(tls::CertificateStore::new(tls::CertificateSet::new(vec![certificate]).unwrap()));
    let keys = Arc::new(tls::TicketKeys::new(&[[7; 32]]));
    let server = tls::ServerTls::new(&tls::Settings::default(), store, keys).unwrap();
    (server, CertificateDer::from_pem_slice(made.certificate_pem.as_bytes()).unwrap())
}

/// A client's side of it.
pub fn client_tls(root: &CertificateDer<'static>) -> rustls::ClientConnection {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("mx.example").unwrap();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap()
}

/// Waits for something that another thread does; the bound is for a test that has failed.
pub fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn listen(send_octets: usize) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    if send_octets > 0 {
        socket.set_send_buffer_size(send_octets).unwrap();
    }
    socket.set_tcp_nodelay(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(1024).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

pub fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A client that reads reply by reply.
pub struct Client<S> {
    pub stream: BufReader<S>,
}

impl<S: Read + Write> Client<S> {
    pub fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
        self.stream.get_mut().flush().unwrap();
    }

    /// The next reply, all of its lines; empty at the end of the connection.
    pub fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let start = reply.len();
            match self.stream.read_line(&mut reply) {
                Ok(0) => return reply,
                Ok(_) if reply.as_bytes().get(start + 3) == Some(&b'-') => {}
                Ok(_) => return reply,
                Err(error) if is_end(&error) => return reply,
                Err(error) => panic!("{error} after {reply:?}"),
            }
        }
    }

    /// Sends a command, returns its reply.
    pub fn ask(&mut self, command: &str) -> String {
        self.send(&format!("{command}\r\n"));
        self.reply()
    }

    /// Sends a command; its reply must begin so.
    pub fn expect(&mut self, command: &str, start: &str) -> String {
        let reply = self.ask(command);
        assert!(reply.starts_with(start), "{command:?} gave {reply:?}, not {start}");
        reply
    }

    /// Everything until the end of the connection.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if is_end(&error) => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&rest)),
        }
        String::from_utf8(rest).unwrap()
    }
}

fn is_end(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionReset | Kind::UnexpectedEof | Kind::BrokenPipe)
}

/// A directory with one user (alice, password secret, who may send as sales), mailboxes bob and carol, and
/// no answer for what is named silent until it is allowed to speak.
pub struct Directory {
    asked: Arc<Mutex<Vec<String>>>,
    threads: Mutex<Vec<(Link, JoinHandle<()>)>>,
}

impl Directory {
    fn new() -> Self {
        Self { asked: Arc::default(), threads: Mutex::default() }
    }

    /// A new link to it.
    pub fn link(&self) -> Link {
        let (here, there) = Link::pair().unwrap();
        let asked = self.asked.clone();
        let serves = here.try_clone().unwrap();
        let thread = std::thread::spawn(move || serve(&serves, &asked));
        self.threads.lock().unwrap().push((here, thread));
        there
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// It dies: all links end.
    pub fn die(&self) {
        for (link, thread) in self.threads.lock().unwrap().drain(..) {
            let _ = rustix::net::shutdown(&link, rustix::net::Shutdown::Both);
            thread.join().unwrap();
        }
    }
}

fn serve(link: &Link, asked: &Mutex<Vec<String>>) {
    let (mut packet, mut outbox) = (Vec::new(), Outbox::new(1 << 20));
    loop {
        match link.receive(&mut packet) {
            Ok(Received::Packet { .. }) => {}
            Ok(Received::WouldBlock) => {
                link.wait(PollFlags::IN, None).unwrap();
                continue;
            }
            Ok(Received::Closed) | Err(_) => return,
        }
        for frame in frames(&packet) {
            let frame = frame.unwrap();
            let question = Question::decode(frame.payload).unwrap();
            let (what, answer) = answer(&question);
            asked.lock().unwrap().push(what);
            if let Some(answer) = answer {
                outbox.push(ANSWER, frame.id, |to| answer.encode(to)).unwrap();
            }
        }
        let _ = outbox.flush(link);
    }
}

fn answer<'a>(question: &Question<'a>) -> (String, Option<Answer<'a>>) {
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    match question {
        Question::VerifyPassword { authcid, password, .. } => {
            let good = (*authcid, *password) == (b"alice", b"secret");
            let identity = good.then(|| IdentityFields {
                name: "alice@demo.test",
                senders: vec!["alice@demo.test"],
                message_octets_max: None,
                recipients_max: None,
                epoch: 0,
            });
            let status = u8::from(!good);
            let answer = Answer::Sasl { status, doomed: !good, account: 0, identity, data: b"", scram: None };
            (format!("password {}", text(authcid)), Some(answer))
        }
        Question::FetchKey { authcid, .. } => (format!("key {}", text(authcid)), None),
        Question::Asserted { authcid, .. } => (format!("asserted {}", text(authcid)), None),
        Question::VerifyExternal { authzid, .. } => (format!("external {}", text(authzid)), None),
        Question::VerifyToken { authzid, .. } => (format!("token {}", text(authzid)), None),
        Question::Backend { backend, .. } => (format!("back end {backend}"), None),
        Question::Recipient { address } => {
            let answer = match address.split('@').next() {
                Some("silent") => None,
                Some("bob" | "carol") => Some(Answer::Recipient { status: 0, mailbox: "bob@demo.test" }),
                _ => Some(Answer::Recipient { status: 1, mailbox: "" }),
            };
            (format!("recipient {address}"), answer)
        }
        Question::Sender { address, .. } => {
            if address.starts_with("late") {
                // A directory that takes its time.
                std::thread::sleep(Duration::from_millis(100));
            }
            let granted = ["alice@demo.test", "sales@demo.test", "late@demo.test"];
            let status = u8::from(!granted.contains(address));
            (format!("sender {address}"), Some(Answer::Sender { status }))
        }
    }
}

/// Raises the directory's epoch, as it does at every change.
pub fn raise_epoch(board: &telemetry::Board) {
    board.directory_epoch().fetch_add(1, Ordering::Release);
}
