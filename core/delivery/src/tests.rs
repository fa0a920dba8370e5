//! The service with a real spool, real links and real Maildirs.

pub(crate) mod hops;
mod notices;
mod pass;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use link::{Link, Outbox};
use parking_lot::{Condvar, Mutex};
use smtp::envelope::{Envelope, Notify, Recipient};
use smtp::id::QueueId;
use spool::{Completions, Disk, Doorbell, Floors, Hooks, Options, Port, RealDisk, Trouble, Writer};

use crate::{Discard, Event, Handle, LineEnd, Mail, Maildir, Retry, Route, Routes, Service, Settings, Verdict};

/// Counts what happened and wakes whoever waits for it.
#[derive(Default)]
pub(crate) struct Seen {
    lines: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Seen {
    fn add(&self, line: String) {
        self.lines.lock().push(line);
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self, count: usize, part: &str) {
        let mut lines = self.lines.lock();
        while lines.iter().filter(|line| line.contains(part)).count() < count {
            let late = self.changed.wait_for(&mut lines, Duration::from_secs(30)).timed_out();
            assert!(!late, "{part:?} is not seen {count} times: {lines:#?}");
        }
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.lines.lock().iter().filter(|line| line.contains(part)).count()
    }
}

impl Completions for Seen {
    fn done(&self, ticket: u64, result: Result<(), Trouble>) {
        self.add(format!("done {ticket} {result:?}"));
    }

    fn room(&self) {}
}

/// A worker as delivery sees it: a writer, and a link that carries its doorbells.
pub(crate) struct Worker {
    port: Option<Port>,
    writer: Option<Writer>,
    seen: Arc<Seen>,
    /// Delivery's end.
    pub(crate) link: Option<Link>,
    /// Ours; the writer's hook keeps a copy.
    _ours: Arc<Link>,
    committed: u64,
}

impl Worker {
    pub(crate) fn start(folder: &Path) -> Self {
        let (ours, theirs) = Link::pair().unwrap();
        let ours = Arc::new(ours);
        let way = ours.clone();
        let doorbell = Box::new(move |bell: Doorbell| {
            let mut outbox = Outbox::new(1 << 16);
            outbox.push(Doorbell::FRAME_KIND, 0, |payload| payload.extend_from_slice(&bell.encode())).unwrap();
            // Nobody there: delivery finds it later.
            let _ = outbox.flush(&way);
        });
        let floors = Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 };
        let options = Options { segment_octets: 1 << 20, floors, ..Options::default() };
        let disk = Arc::new(RealDisk::open(folder).unwrap());
        let writer = Writer::open(disk, options, Hooks { doorbell, ..Hooks::default() }).unwrap();
        let seen = Arc::new(Seen::default());
        let port = writer.port(seen.clone());
        Self { port: Some(port), writer: Some(writer), seen, link: Some(theirs), _ours: ours, committed: 0 }
    }

    fn commit(&mut self, from: Option<&str>, to: &[(&str, &str)], body: &[u8]) -> QueueId {
        let mut envelope = Envelope::default();
        envelope.set_reverse_path(from);
        for &(address, mailbox) in to {
            envelope.push(Recipient { address, mailbox, orcpt: None, notify: Notify(0) });
        }
        let mut octets = Vec::new();
        envelope.encode(&mut octets);
        self.commit_raw(&octets, body)
    }

    fn commit_raw(&mut self, envelope: &[u8], body: &[u8]) -> QueueId {
        let mut random = [0; 16];
        getrandom::fill(&mut random).unwrap();
        let id = QueueId::new(1_700_000_000_000, u128::from_le_bytes(random));
        let port = self.port.as_ref().unwrap();
        let mut entry = port.begin(id, None).unwrap();
        let mut rest = body;
        while !rest.is_empty() {
            rest = &rest[entry.append(rest)..];
            std::thread::yield_now();
        }
        port.commit(entry, envelope, b"Received: by here\r\n", self.committed);
        self.seen.wait(1, &format!("done {} Ok(())", self.committed));
        self.committed += 1;
        id
    }

    fn die(mut self) {
        self.port = None;
        self.writer = None;
    }
}

pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) seen: Arc<Seen>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Running {
    pub(crate) fn start(spool: &Path, routes: Routes) -> Self {
        Self::start_with(spool, routes, |_| {})
    }

    fn start_with(spool: &Path, routes: Routes, change: impl FnOnce(&mut Settings)) -> Self {
        let seen = Arc::new(Seen::default());
        let events = seen.clone();
        let disk = Arc::new(RealDisk::open(spool).unwrap());
        let retry = Retry { first: Duration::from_millis(10), max: Duration::from_millis(50) };
        // The tests' messages are of 2023.
        let expire = Duration::from_secs(100 * 365 * 86_400);
        let floors = Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 };
        let mut settings = Settings { retry, expire, floors, delay_notice: None, ..Settings::new(routes) };
        change(&mut settings);
        let events = Arc::new(move |event: &Event<'_>| events.add(event.to_string()));
        let (service, handle) = Service::open(disk, settings, events).unwrap();
        Self { handle, seen, thread: std::thread::spawn(|| service.run()) }
    }

    pub(crate) fn stop(self) -> Arc<Seen> {
        self.handle.stop();
        self.thread.join().unwrap().unwrap();
        self.seen
    }
}

fn maildir(folder: &Path) -> Arc<dyn Route> {
    Arc::new(Maildir::new(folder.join("%d/%n").to_str().unwrap(), LineEnd::Lf).unwrap())
}

/// Files in a Maildir's `new/`, by name.
fn new_files(folder: &Path) -> BTreeMap<String, String> {
    let Ok(files) = std::fs::read_dir(folder.join("new")) else { return BTreeMap::new() };
    let read = |file: std::fs::DirEntry| {
        (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap())
    };
    files.map(|file| read(file.unwrap())).collect()
}

/// Nothing is left of any writer.
fn is_empty(spool: &Path) -> bool {
    RealDisk::open(spool).unwrap().list("").unwrap().is_empty()
}

fn wait_until_empty(spool: &Path) {
    let late = Instant::now() + Duration::from_secs(30);
    while !is_empty(spool) {
        assert!(Instant::now() < late, "the spool is never freed");
        std::thread::yield_now();
    }
}

#[test]
fn from_a_doorbell_to_a_maildir_and_nothing_left() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let running = Running::start(&spool, Routes::new(Some(maildir(&mail))));
    let mut worker = Worker::start(&spool);
    running.handle.follow(worker.link.take().unwrap());
    let large = "line of a large message\r\n".repeat(20_000);
    let first = worker.commit(
        Some("sender@far.example"),
        &[
            ("alice@demo.test", "alice@demo.test"),
            ("ALIAS@demo.test", "alice@demo.test"),
            ("bob@demo.test", "bob@demo.test"),
        ],
        b"Subject: x\r\n\r\n.body\r\n",
    );
    worker.commit(None, &[("bob@demo.test", "bob@demo.test")], large.as_bytes());
    running.seen.wait(4, "delivered to");
    let alice = new_files(&mail.join("demo.test/alice"));
    assert_eq!(
        alice.values().collect::<Vec<_>>(),
        ["Return-Path: <sender@far.example>\nReceived: by here\nSubject: x\n\n.body\n"],
        "one mailbox, one copy"
    );
    assert!(alice.keys().all(|name| name.starts_with(&format!("1700000000.{first}."))));
    let bob = new_files(&mail.join("demo.test/bob"));
    assert_eq!(bob.len(), 2);
    let bounce = bob.values().find(|text| text.starts_with("Return-Path: <>\nReceived: by here\nline")).unwrap();
    assert!(bounce.ends_with(&large.replace("\r\n", "\n")));
    assert!(mail.join("demo.test/bob/cur").is_dir());
    assert_eq!(std::fs::read_dir(mail.join("demo.test/bob/tmp")).unwrap().count(), 0);
    assert_eq!(running.handle.stats().delivered, 4);
    worker.die();
    wait_until_empty(&spool);
    running.stop();
}

#[test]
fn what_a_dead_worker_left_is_found_at_start_and_delivered_once() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    for _ in 0..2 {
        let mut worker = Worker::start(&spool);
        for _ in 0..50 {
            worker.commit(Some("a@b.example"), &[("c@demo.test", "c@demo.test")], b"x\r\n");
        }
        worker.die();
    }
    let running = Running::start(&spool, Routes::new(Some(maildir(&mail))));
    running.seen.wait(100, "delivered to");
    wait_until_empty(&spool);
    running.stop();
    let seen = Running::start(&spool, Routes::new(Some(maildir(&mail)))).stop();
    assert_eq!(seen.count("delivered to"), 0);
    assert_eq!(new_files(&mail.join("demo.test/c")).len(), 100);
}

#[test]
fn a_worker_that_dies_while_delivery_runs_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let mut worker = Worker::start(&spool);
    let running = Running::start(&spool, Routes::new(Some(maildir(&mail))));
    // Written while nobody listens: only the end of the link tells.
    worker.commit(Some("a@b.example"), &[("c@demo.test", "c@demo.test")], b"x\r\n");
    running.handle.follow(Worker::start(&spool).link.take().unwrap());
    let link = worker.link.take().unwrap();
    worker.die();
    running.handle.follow(link);
    running.seen.wait(1, "delivered to");
    running.seen.wait(1, "is gone; recovering");
    running.stop();
}

#[test]
fn trouble_is_tried_again_and_settles_each_recipient_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    std::fs::create_dir_all(mail.join("demo.test")).unwrap();
    // A file where bob's Maildir should be.
    std::fs::write(mail.join("demo.test/bob"), "").unwrap();
    let running = Running::start(&spool, Routes::new(Some(maildir(&mail))));
    let mut worker = Worker::start(&spool);
    running.handle.follow(worker.link.take().unwrap());
    worker.commit(
        Some("a@b.example"),
        &[("alice@demo.test", "alice@demo.test"), ("bob@demo.test", "bob@demo.test")],
        b"x\r\n",
    );
    running.seen.wait(3, "<bob@demo.test> waits (maildir)");
    assert_eq!(running.handle.stats().waiting, 1);
    std::fs::remove_file(mail.join("demo.test/bob")).unwrap();
    running.seen.wait(1, "delivered to <bob@demo.test>");
    worker.die();
    let seen = running.stop();
    assert_eq!(seen.count("delivered to <alice@demo.test>"), 1, "{:#?}", seen.lines.lock());
    assert_eq!(new_files(&mail.join("demo.test/alice")).len(), 1);
    assert_eq!(new_files(&mail.join("demo.test/bob")).len(), 1);
}

#[test]
fn without_a_route_mail_waits_and_goes_when_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let mut worker = Worker::start(&spool);
    worker.commit(Some("a@b.example"), &[("x@far.example", ""), ("c@demo.test", "c@demo.test")], b"x\r\n");
    worker.die();
    let running = Running::start(&spool, Routes::default().domain("Demo.Test", maildir(&mail)));
    running.seen.wait(2, "<x@far.example> waits (no route): its domain has no route");
    assert_eq!(running.stop().count("delivered to <c@demo.test>"), 1);
    assert!(!is_empty(&spool));
    let running = Running::start(&spool, Routes::new(Some(Arc::new(Discard))));
    running.seen.wait(1, "delivered to <x@far.example> by discard");
    wait_until_empty(&spool);
    assert_eq!(running.stop().count("<c@demo.test>"), 0, "settled before the restart");
}

#[test]
fn a_second_delivery_of_the_same_message_adds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let mut worker = Worker::start(&spool);
    worker.commit(Some("a@b.example"), &[("c@demo.test", "c@demo.test")], b"x\r\n");
    worker.die();
    // The crash between a route's success and our note of it: the spool as it was comes back.
    let copy = folder.path().join("copy");
    copy_folder(&spool, &copy);
    for spool in [&spool, &copy] {
        let running = Running::start(spool, Routes::new(Some(maildir(&mail))));
        running.seen.wait(1, "delivered to");
        running.stop();
    }
    assert_eq!(new_files(&mail.join("demo.test/c")).len(), 1);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn damage_is_set_aside_and_a_bad_envelope_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let mut worker = Worker::start(&spool);
    let large = worker.commit(Some("a@b.example"), &[("c@demo.test", "c@demo.test")], &vec![b'x'; 500_000]);
    worker.commit_raw(b"\xffof a later version", b"x\r\n");
    worker.commit(Some("a@b.example"), &[("c@demo.test", "c@demo.test")], b"fine\r\n");
    worker.die();
    let home = std::fs::read_dir(&spool).unwrap().next().unwrap().unwrap().path();
    let body = home.join(format!("{large}.body"));
    let mut octets = std::fs::read(&body).unwrap();
    octets[400_000] ^= 1;
    std::fs::write(&body, octets).unwrap();
    let running = Running::start(&spool, Routes::new(Some(maildir(&mail))));
    running.seen.wait(1, "delivered to");
    running.seen.wait(2, "stays in the spool: its envelope is not an envelope");
    running.seen.wait(1, "moved to corrupt/");
    assert_eq!(running.handle.stats().set_aside, 1);
    running.stop();
    assert_eq!(new_files(&mail.join("demo.test/c")).len(), 1);
    assert!(spool.join(format!("corrupt/{large}.body")).exists());
    assert!(home.exists(), "the message that could not be read is still there");
}

#[test]
fn garbage_on_a_link_is_said_and_survived() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(&folder.path().join("spool"), Routes::new(Some(Arc::new(Discard))));
    let (ours, theirs) = Link::pair().unwrap();
    running.handle.follow(theirs);
    ours.send(b"\xff\xff\xff\xffrubbish", &[]).unwrap();
    let mut outbox = Outbox::new(1 << 16);
    outbox.push(Doorbell::FRAME_KIND, 0, |payload| payload.push(1)).unwrap();
    outbox.push(0x7777, 0, |_| {}).unwrap();
    outbox.flush(&ours).unwrap();
    running.seen.wait(2, "link from a worker");
    running.stop();
}

/// Holds every delivery until it is let go.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    entered: Seen,
    delivered: AtomicUsize,
}

impl Route for Arc<Gate> {
    fn name(&self) -> &str {
        "gate"
    }

    fn deliver(&self, _: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict> {
        self.entered.add("entered".to_owned());
        let mut open = self.open.lock();
        while !*open {
            self.opened.wait(&mut open);
        }
        self.delivered.fetch_add(1, Ordering::SeqCst);
        vec![Verdict::Delivered; recipients.len()]
    }
}

#[test]
fn stop_ends_what_is_under_way_and_notes_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Worker::start(folder.path());
    for _ in 0..100 {
        worker.commit(Some("a@b.example"), &[("c@demo.test", "c@demo.test")], b"x\r\n");
    }
    worker.die();
    let gate = Arc::new(Gate::default());
    let running = Running::start(folder.path(), Routes::new(Some(Arc::new(gate.clone()))));
    gate.entered.wait(4, "entered");
    running.handle.stop();
    *gate.open.lock() = true;
    gate.opened.notify_all();
    let first = running.stop().count("delivered to");
    assert!((4..100).contains(&first), "{first} delivered");
    let running = Running::start(folder.path(), Routes::new(Some(Arc::new(gate.clone()))));
    running.seen.wait(100 - first, "delivered to");
    assert_eq!(running.stop().count("delivered to"), 100 - first);
    assert_eq!(gate.delivered.load(Ordering::SeqCst), 100);
}

/// Counts.
#[derive(Default)]
struct Tally(AtomicUsize);

impl Route for Arc<Tally> {
    fn name(&self) -> &str {
        "tally"
    }

    fn deliver(&self, _: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict> {
        self.0.fetch_add(recipients.len(), Ordering::SeqCst);
        vec![Verdict::Delivered; recipients.len()]
    }
}

/// CONTRACT C4: a crash while one destination is slow makes no twins at another that has the message.
#[test]
fn who_has_it_is_noted_while_others_are_still_tried() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, after) = (folder.path().join("spool"), folder.path().join("after"));
    let (tally, gate) = (Arc::new(Tally::default()), Arc::new(Gate::default()));
    let routes = || Routes::new(Some(Arc::new(tally.clone()))).domain("demo.test", Arc::new(gate.clone()));
    let mut worker = Worker::start(&spool);
    let running = Running::start(&spool, routes());
    running.handle.follow(worker.link.take().unwrap());
    worker.commit(Some("a@b.example"), &[("x@demo.test", "x@demo.test"), ("y@far.example", "")], b"x\r\n");
    gate.entered.wait(1, "entered");
    assert_eq!(tally.0.load(Ordering::SeqCst), 1);
    // The disk as a crash would leave it now or a little later.
    let late = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < late, "it is not noted");
        let _ = std::fs::remove_dir_all(&after);
        copy(&spool, &after);
        let quiet = Arc::new(|_: &spool::Notice| {});
        let mut follower = spool::Follower::open(Arc::new(RealDisk::open(&after).unwrap()), quiet).unwrap();
        let mut message = spool::Message::default();
        assert!(follower.next(&mut message) && !message.is_settled(0));
        if message.is_settled(1) {
            break;
        }
    }
    *gate.open.lock() = true;
    gate.opened.notify_all();
    wait_until_delivered(&running, 2);
    running.stop();
    let again = Running::start(&after, routes());
    wait_until_delivered(&again, 1);
    again.stop();
    assert!(is_empty(&after));
    assert_eq!(tally.0.load(Ordering::SeqCst), 1, "who had it gets no twin");
    assert_eq!(gate.delivered.load(Ordering::SeqCst), 2, "who had it not gets it");
}

fn wait_until_delivered(running: &Running, count: usize) {
    running.seen.wait(count, "delivered to");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Panics the first time.
#[derive(Default)]
struct Clumsy(AtomicUsize);

impl Route for Clumsy {
    fn name(&self) -> &str {
        "clumsy"
    }

    fn deliver(&self, _: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict> {
        assert!(self.0.fetch_add(1, Ordering::SeqCst) > 0, "planted");
        vec![Verdict::Delivered; recipients.len()]
    }
}

#[test]
fn a_route_that_panics_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Worker::start(folder.path());
    worker.commit(Some("a@b.example"), &[("c@demo.test", "c@demo.test")], b"x\r\n");
    worker.die();
    let running = Running::start(folder.path(), Routes::new(Some(Arc::new(Clumsy::default()))));
    running.seen.wait(1, "its route panicked");
    running.seen.wait(1, "delivered to");
    wait_until_empty(folder.path());
    running.stop();
}
