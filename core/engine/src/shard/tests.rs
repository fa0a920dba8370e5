//! A shard whose rounds the test makes, one by one and at the time that it says: what must not depend on which
//! things happen in the same round.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicU64;

use hmac::{Hmac, KeyInit};
use link::mechanism::{Described, Description};
use link::{Link, Outbox, Received, frames};
use mio::{Events, Poll};
use plugin_host::RemoteLibrary;
use rustls::pki_types::CertificateDer;
use sasl::{MechanismName, Runner};
use smtp::listener::{Listener, Tls};
use smtp::{Phase, Role};
use spool::RealDisk;
use telemetry::Counter;

use super::*;
use crate::budget::Budget;
use crate::cache::{Addresses, Passwords};
use crate::connection::{Pending, Stage, ticks};
use crate::entropy::Entropy;
use crate::now::Now;
use crate::passing::Passing;
use crate::questions::Questions;
use crate::setup::{Deadlines, Passes, Port};
use crate::steps::Steps;
use crate::tests::rig::{Client, client_tls, dial, listen, listener, server_tls};
use crate::watch::Watch;
use crate::worker::Results;

/// A shard with its other ends.
struct Bench {
    shard: Shard,
    events: Events,
    address: SocketAddr,
    addresses: Vec<SocketAddr>,
    directory: Link,
    delivery: Link,
    board: telemetry::Board,
    root: CertificateDer<'static>,
    _spool: spool::Writer,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with(1, |_| {})
    }

    fn with(doors: usize, change: impl FnOnce(&mut Listener)) -> Self {
        let mut listener = listener(Role::Mx, Tls::Off);
        change(&mut listener);
        let sockets: Vec<_> = (0..doors).map(|_| listen(0)).collect();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let (server, root) = server_tls();
        let port = Port {
            listener: Arc::new(listener),
            sockets: Vec::new(),
            tls: Some(Arc::new(server)),
            backend: None,
            exempt_nets: vec!["127.0.0.0/8".parse().unwrap()],
            cleartext_nets: vec!["127.0.0.0/8".parse().unwrap()],
            limits: limits::Config::mx(),
            deadlines: Deadlines::of(Role::Mx),
        };
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open(folder.path()).unwrap());
        let floors = spool::Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 };
        let options = spool::Options { segment_octets: 1 << 20, floors, ..spool::Options::default() };
        let spool = spool::Writer::open(disk, options, spool::Hooks::default()).unwrap();
        let board = telemetry::Board::create(1).unwrap();
        let counts = board.claim(0, link::Role::Worker, 1, 0).unwrap();
        let counters = || std::iter::once(AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            ports: vec![port],
            passwords: Passwords::new(0).unwrap(),
            budget: Budget::new(1 << 20),
            limits: Arc::new(limits::Table::create(1).unwrap()),
            account_key: Hmac::new_from_slice(b"key").unwrap(),
            notify: Box::new(|_| {}),
            passes: Some(Box::new(|to: &smtp::envelope::Recipient<'_>| to.address.starts_with("bob")) as Passes),
            beats: counters(),
            sessions: counters(),
            panics: AtomicU64::new(0),
        });
        let poll = Poll::new().unwrap();
        let inbox = Inbox::new(poll.registry(), mio_token(Token::outside(INBOX))).unwrap();
        let (directory, questions) = Link::pair().unwrap();
        let (delivery, passing) = Link::pair().unwrap();
        let now = Now::first();
        let local = Local {
            now,
            number: 0,
            questions: Questions::new(Some(questions), 100, now.ms),
            steps: Steps::new(100),
            passing: Passing::new(Some(passing), 100, now.ms),
            addresses: Addresses::new(100),
            entropy: Entropy::new(),
            spool: spool.port(Arc::new(Results(inbox.clone()))),
            watch: Watch::new(counts.clone(), telemetry::EventSender::new(1 << 16, counts)),
            envelope: Vec::new(),
            effect_ms: 0,
            secret: false,
            authenticated: false,
            queued: false,
            session_base: 0,
            spare: Vec::new(),
        };
        let sockets = sockets.into_iter().map(|socket| (0, OwnedFd::from(socket))).collect();
        let shard = Shard::new(Beginning { poll, inbox, shared, local, sockets, slots_max: 100 }).unwrap();
        let events = Events::with_capacity(64);
        Self {
            shard,
            events,
            address: addresses[0],
            addresses,
            directory,
            delivery,
            board,
            root,
            _spool: spool,
            _folder: folder,
        }
    }

    /// One round, so much later.
    fn round_later(&mut self, ms: u64) {
        let wait = if ms == 0 { Duration::from_millis(20) } else { Duration::ZERO };
        self.shard.poll.poll(&mut self.events, Some(wait.min(self.shard.timeout()))).unwrap();
        let now = &mut self.shard.local.now;
        now.read();
        (now.ms, now.tick) = (now.ms + ms, now.tick + ticks(ms));
        self.shard.round(&self.events);
    }

    /// Rounds until something is so; the bound is for a test that has failed.
    fn rounds_until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let began = std::time::Instant::now();
        while !is_so(self) {
            assert!(began.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
            self.round_later(0);
        }
    }

    /// The client's side of TLS.
    fn client(&self) -> rustls::ClientConnection {
        client_tls(&self.root)
    }

    /// What the only sessions wait for.
    fn pending(&mut self) -> Vec<Pending> {
        let tokens = self.shard.slots.tokens();
        tokens.into_iter().filter_map(|token| self.shard.slots.get_mut(token).map(|slot| slot.pending)).collect()
    }

    /// A process that runs a library's mechanism X-A, and takes steps without ever answering them.
    fn runner(&mut self, library: &Arc<RemoteLibrary>) -> Link {
        let (here, there) = Link::pair().unwrap();
        self.shard.take_mail(Mail::Runner(Arc::clone(library), 1, here, true));
        there
    }

    /// A client whose message waits for the next hop, with `behind` pipelined; the id of the question.
    fn passing(&mut self, behind: &str) -> (Client<TcpStream>, u64) {
        let mut client = Client::new(dial(self.address));
        client.send(&format!("EHLO c.example\r\n{MAIL}DATA\r\n"));
        self.rounds_until("the go-ahead", |bench| {
            let slots = &mut bench.shard.slots;
            slots
                .tokens()
                .into_iter()
                .any(|token| slots.get_mut(token).is_some_and(|slot| slot.session.phase() == Phase::Data))
        });
        while !client.reply().starts_with("354 ") {}
        client.send(&format!("Subject: hello\r\n\r\nhello\r\n.\r\n{behind}"));
        let mut id = None;
        self.rounds_until("the question to delivery", |bench| {
            id = heard(&bench.delivery).pop();
            id.is_some()
        });
        (client, id.unwrap())
    }

    fn delivered(&self, id: u64) {
        let mut outbox = Outbox::new(1 << 16);
        let answer = link::pass::Answer { code: 250, text: "2.0.0 Ok: passed on", taken: 1 };
        outbox.push(link::pass::ANSWER, id, |to| answer.encode(to)).unwrap();
        assert!(outbox.flush(&self.delivery).unwrap());
    }

    fn doubts(&self) -> u64 {
        self.board.counter(Counter::MessagesInDoubt)
    }

    /// Until it is known that the only client has shut its side.
    fn rounds_until_shut(&mut self) {
        self.rounds_until("the end of the client's side", |bench| {
            let slots = &mut bench.shard.slots;
            slots.tokens().into_iter().any(|token| slots.get_mut(token).is_some_and(|slot| slot.has(flag::READ_CLOSED)))
        });
    }
}

/// Ids of what was asked.
fn heard(link: &Link) -> Vec<u64> {
    let (mut packet, mut ids) = (Vec::new(), Vec::new());
    while let Received::Packet { .. } = link.receive(&mut packet).unwrap() {
        ids.extend(frames(&packet).map(|frame| frame.unwrap().id));
    }
    ids
}

const MAIL: &str = "MAIL FROM:<x@far.example>\r\nRCPT TO:<bob@far.example>\r\n";
/// The directory is asked for this one.
const ASKED: &str = "MAIL FROM:<x@far.example>\r\nRCPT TO:<carol@demo.test>\r\n";

#[test]
fn an_answer_that_comes_with_the_deadline_is_the_answer() {
    let mut bench = Bench::new();
    let (mut client, id) = bench.passing("");
    assert_eq!(bench.pending(), [Pending::Passing]);
    bench.delivered(id);
    bench.round_later(600_000);
    assert_eq!(client.reply(), "250 2.0.0 Ok: passed on\r\n");
}

#[test]
fn what_is_being_kept_is_answered_by_its_commit_however_late() {
    let mut bench = Bench::new();
    let (mut client, id) = bench.passing("");
    let mut outbox = Outbox::new(1 << 16);
    // For a question that nobody asked it means nothing.
    for id in [id + 1, id] {
        outbox.push(link::pass::KEEPING, id, |_| ()).unwrap();
    }
    assert!(outbox.flush(&bench.delivery).unwrap());
    // Heard in the round of the deadline it is heard in time.
    bench.round_later(600_000);
    assert_eq!(bench.pending(), [Pending::Keeping]);
    bench.round_later(600_000);
    assert_eq!(bench.pending(), [Pending::Keeping]);
    bench.delivered(id);
    bench.rounds_until("the reply", |bench| bench.pending() == [Pending::None]);
    assert_eq!(client.reply(), "250 2.0.0 Ok: passed on\r\n");
    assert_eq!(bench.doubts(), 0);
    // A client that goes leaves a doubt, as while its next hop is asked.
    let (client, id) = bench.passing("");
    outbox.push(link::pass::KEEPING, id, |_| ()).unwrap();
    assert!(outbox.flush(&bench.delivery).unwrap());
    bench.rounds_until("the word", |bench| bench.pending().contains(&Pending::Keeping));
    rustix::net::sockopt::set_socket_linger(client.stream.get_ref(), Some(Duration::ZERO)).unwrap();
    drop(client);
    bench.rounds_until("its end", |bench| !bench.pending().contains(&Pending::Keeping));
    bench.delivered(id);
    bench.rounds_until("the doubt", |bench| bench.doubts() == 1);
}

#[test]
fn a_client_that_has_done_with_speaking_hears_the_answer_and_one_that_is_gone_is_a_doubt() {
    for behind in ["", "QUIT\r\n"] {
        let mut bench = Bench::new();
        let (mut client, id) = bench.passing(behind);
        client.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
        bench.rounds_until_shut();
        bench.delivered(id);
        bench.rounds_until("the session's end", |bench| bench.shard.slots.is_empty());
        let rest = client.rest();
        let bye = if behind.is_empty() { "" } else { "221 2.0.0 Bye\r\n" };
        assert_eq!(rest, format!("250 2.0.0 Ok: passed on\r\n{bye}"));
        assert_eq!(bench.doubts(), 0, "{behind:?}");

        // It has read what was said so far: its end looks the same, and only the reply meets a reset.
        let (client, id) = bench.passing(behind);
        drop(client);
        bench.rounds_until_shut();
        assert_eq!(bench.pending(), [Pending::Passing]);
        bench.delivered(id);
        bench.rounds_until("the session's end", |bench| bench.shard.slots.is_empty());
        assert_eq!(bench.doubts(), 1, "{behind:?}");
    }
}

#[test]
fn what_an_answer_lets_a_session_ask_leaves_in_the_same_round() {
    let mut bench = Bench::new();
    let (mut client, id) = bench.passing(ASKED);
    bench.delivered(id);
    bench.rounds_until("the question", |bench| bench.pending() == [Pending::Question]);
    assert_eq!(heard(&bench.directory).len(), 1);
    assert_eq!(client.reply(), "250 2.0.0 Ok: passed on\r\n");
}

#[test]
fn two_steps_that_are_late_together_end_once_each() {
    let library = Arc::new(RemoteLibrary::new("a", Runner(0), &[MechanismName::parse(b"X-A").unwrap()], false, None));
    let (flags, needs, strength, steps_max) = (1, 1, 1, 4);
    let (message_octets_max, output_octets_max) = (100, 10);
    library.describe(&Description {
        mechanisms: vec![Described {
            name: "X-A",
            flags,
            needs,
            strength,
            message_octets_max,
            output_octets_max,
            steps_max,
            plus_of: "",
        }],
    });
    let mut bench = Bench::with(1, |listener| listener.mechanisms = vec![library.mechanisms[0].clone()]);
    let stuck = bench.runner(&library);
    let mut clients: Vec<_> = (0..2).map(|_| Client::new(dial(bench.address))).collect();
    for client in &mut clients {
        client.send(&format!("EHLO c.example\r\nAUTH X-A bQ==\r\n{ASKED}"));
    }
    bench.rounds_until("both steps", |bench| bench.pending() == [Pending::Step, Pending::Step]);
    bench.round_later(u64::from(u16::MAX));
    // The answer to a step is none to the recipient that is asked about next.
    assert_eq!(bench.pending(), [Pending::Question, Pending::Question]);
    assert_eq!(heard(&stuck).len(), 2);
    for client in &mut clients {
        (0..2).for_each(|_| drop(client.reply()));
        assert!(client.reply().starts_with("454 4.7.0 "));
        assert_eq!(client.reply(), "250 2.1.0 Sender ok\r\n");
    }
}

#[test]
fn what_is_thrown_away_at_the_end_does_not_stay_in_memory() {
    let mut bench = Bench::new();
    let mut client = Client::new(dial(bench.address));
    let secret = "AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n";
    client.send(&format!("QUIT\r\n{}", secret.repeat(2000)));
    bench.rounds_until("the client", |bench| !bench.shard.slots.is_empty());
    bench.rounds_until("the last reply", |bench| {
        let slots = &mut bench.shard.slots;
        slots.tokens().into_iter().all(|token| slots.get_mut(token).is_some_and(|slot| slot.stage == Stage::Linger))
    });
    client.send(secret);
    drop(client);
    bench.rounds_until("the end", |bench| bench.shard.slots.is_empty());
    assert!(bench.shard.input.iter().all(|&octet| octet == 0));
}

#[test]
fn what_stood_before_a_broken_record_does_not_stay_in_memory() {
    let mut bench = Bench::with(1, |listener| listener.tls = Tls::Implicit);
    let (mut stream, mut client) = (dial(bench.address), bench.client());
    stream.set_nonblocking(true).unwrap();
    bench.rounds_until("the handshake", |_| {
        // Once it does not go on, it is the shard's turn.
        let _ = client.complete_io(&mut stream);
        !client.is_handshaking() && !client.wants_write()
    });
    let mut records = Vec::new();
    for line in ["AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n", "NOOP\r\n"] {
        client.writer().write_all(line.as_bytes()).unwrap();
        client.write_tls(&mut records).unwrap();
    }
    *records.last_mut().unwrap() ^= 1;
    stream.write_all(&records).unwrap();
    bench.rounds_until("the end", |bench| bench.shard.slots.is_empty());
    assert!(!bench.shard.plain.is_empty());
    assert!(bench.shard.plain.iter().all(|&octet| octet == 0));
}

#[test]
fn a_question_that_nobody_knows_of_ends_its_session() {
    let mut bench = Bench::new();
    let mut client = Client::new(dial(bench.address));
    bench.rounds_until("the client", |bench| !bench.shard.slots.is_empty());
    let token = bench.shard.slots.tokens()[0];
    bench.shard.local.effect_ms = 1000;
    let slot = bench.shard.slots.get_mut(token).unwrap();
    (slot.pending, slot.question) = (Pending::Question, 7);
    bench.shard.arm_effect(token);
    bench.round_later(2000);
    assert!(bench.shard.slots.is_empty());
    assert!(client.rest().ends_with("421 4.3.0 Internal error; closing\r\n"));
}

#[test]
fn the_last_door_is_opened_when_all_others_are_flooded() {
    let mut bench = Bench::with(9, |_| {});
    let others: Vec<_> = bench.addresses.iter().take(8).flat_map(|&door| (0..8).map(move |_| dial(door))).collect();
    let mut last = dial(bench.addresses[8]);
    last.set_nonblocking(true).unwrap();
    bench.round_later(0);
    let mut greeting = [0; 4];
    last.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ");
    drop(others);
}

#[test]
fn what_a_stop_or_a_drain_has_begun_no_later_drain_puts_off() {
    let first: [(fn() -> Mail, u64); 2] = [(|| Mail::Stop, 0), (|| Mail::Drain(0, 5_000), 5_000)];
    for (earlier, ends_ms) in first {
        let mut bench = Bench::new();
        let mut client = Client::new(dial(bench.address));
        client.send(&format!("EHLO c.example\r\n{ASKED}"));
        bench.rounds_until("the question", |bench| bench.pending() == [Pending::Question]);
        // All of it in one batch, as a thread finds it that was busy for a moment.
        for mail in [earlier(), Mail::Drain(120_000, 300_000)] {
            bench.shard.take_mail(mail);
        }
        bench.round_later(ends_ms);
        let last = client.rest();
        assert!(last.ends_with("421 4.3.2 Service is closing; please try again\r\n"), "{ends_ms}: {last}");
    }
}
