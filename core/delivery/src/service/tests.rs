//! Turns of the loop on a simulated disk: what is written when, and what of it a crash of the machine leaves.

use std::sync::Arc;

use smtp::envelope::{Envelope, Notify, Recipient};
use smtp::id::QueueId;
use spool::sim::{Act, Image, SimDisk};
use spool::{Completions, Hooks, Options, Port, Trouble as SpoolTrouble, Writer};

use super::pace::{AGAIN_AFTER, WRITE_EVERY};
use super::*;
use crate::route::{Discard, Mail, Route, Verdict};

/// A spool with a writer that lives, so that no segment goes as a whole.
struct Bench {
    disk: SimDisk,
    service: Service,
    writer: Writer,
    port: Port,
    jobs: Sender<Message>,
    count: u128,
    start: Instant,
}

struct Nobody;

impl Completions for Nobody {
    fn done(&self, _: u64, _: Result<(), SpoolTrouble>) {}
    fn room(&self) {}
}

/// As [`Discard`], but who gets its mail twice can tell.
struct Keeps;

impl Route for Keeps {
    fn name(&self) -> &str {
        "keeps"
    }

    fn deliver(&self, _: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict> {
        vec![Verdict::Delivered; recipients.len()]
    }

    fn blocks(&self) -> bool {
        false
    }
}

/// `far.example` is discarded, `demo.test` is kept.
fn service(disk: &SimDisk) -> Service {
    let routes = Routes::new(Some(Arc::new(Discard))).domain("demo.test", Arc::new(Keeps));
    let expire = Duration::from_secs(100 * 365 * 86_400);
    let settings = Settings { expire, delay_notice: None, ..Settings::new(routes) };
    Service::open(Arc::new(disk.clone()), settings, Arc::new(|_: &Event<'_>| {})).unwrap().0
}

fn wait_until(done: impl Fn() -> bool) {
    let late = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < late, "what is waited for does not come");
        std::thread::yield_now();
    }
}

impl Bench {
    /// With one message that was discarded, so that all files are made.
    fn new() -> Self {
        let disk = SimDisk::new();
        let service = service(&disk);
        let floors = Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 };
        let options = Options { segment_octets: 1 << 20, inline_octets_max: 8192, floors, ..Options::default() };
        let writer = Writer::open(Arc::new(disk.clone()), options, Hooks::default()).unwrap();
        let port = writer.port(Arc::new(Nobody));
        let (jobs, _) = crossbeam_channel::bounded(1);
        let start = Instant::now();
        let mut bench = Self { disk, service, writer, port, jobs, count: 0, start };
        bench.commit("x@far.example", 10);
        // The segment's head, the message, and the blocks that are filled ahead: then nobody syncs unasked.
        wait_until(|| bench.disk.count(Act::Sync) == 1 + 1 + 3);
        bench.turn(start);
        assert_eq!(bench.entries(), 1);
        bench
    }

    /// One message is durable, and delivery knows of it.
    fn commit(&mut self, to: &str, octets: usize) {
        self.count += 1;
        let mut envelope = Envelope::default();
        envelope.set_reverse_path(Some("a@b.example"));
        envelope.push(Recipient { address: to, mailbox: "", orcpt: None, notify: Notify(0) });
        let mut encoded = Vec::new();
        envelope.encode(&mut encoded);
        let mut entry = self.port.begin(QueueId::new(1_700_000_000_000, self.count), None).unwrap();
        let body = vec![b'x'; octets];
        let mut rest = &body[..];
        while !rest.is_empty() {
            rest = &rest[entry.append(rest)..];
            std::thread::yield_now();
        }
        let before = self.writer.position();
        self.port.commit_now(entry, &encoded, b"Received: by here\r\n").unwrap();
        // It is noted just after it is told.
        wait_until(|| self.writer.position() != before);
        self.service.follower.ring(self.writer.position().unwrap());
    }

    /// What the loop does between two sleeps, as far as the log is concerned.
    fn turn(&mut self, now: Instant) {
        assert!(!self.service.feed(&self.jobs, false));
        self.service.log(now, false);
    }

    /// What is in the files of acknowledgements, behind their heads.
    fn entries(&self) -> usize {
        let logs = self.disk.files().into_iter().filter(|(name, _)| name.ends_with(".ack"));
        // Each is of one recipient: 32 octets, none of which begins with a zero that is not filling.
        logs.map(|(_, octets)| octets[32..].chunks(32).filter(|entry| entry.iter().any(|&octet| octet != 0)).count())
            .sum()
    }

    /// To whom the messages are that a start finds on this disk.
    fn left(disk: &SimDisk) -> Vec<String> {
        let mut service = service(disk);
        let mut message = Message::default();
        let mut left = Vec::new();
        while service.follower.next(&mut message) {
            let envelope = Envelope::decode(message.envelope()).unwrap();
            left.extend(envelope.recipients().map(|recipient| recipient.address.to_owned()));
        }
        left
    }
}

#[test]
fn what_is_discarded_is_written_once_for_several_turns_and_never_synced() {
    let mut bench = Bench::new();
    let start = bench.start;
    for _ in 0..5 {
        bench.commit("x@far.example", 10);
        bench.turn(start + WRITE_EVERY - Duration::from_nanos(1));
    }
    assert_eq!(bench.entries(), 1, "the 5 ms are not over");
    let (writes, syncs) = (bench.disk.count(Act::Write), bench.disk.count(Act::Sync));
    bench.turn(start + WRITE_EVERY);
    assert_eq!(bench.entries(), 6);
    assert_eq!(bench.disk.count(Act::Write), writes + 1, "one write for all of them");
    assert_eq!(bench.disk.count(Act::Sync), syncs, "no promise needs a sync");
    // The end of this process does not undo it, that of the machine may.
    assert_eq!(Bench::left(&bench.disk.image(Image::Kept, 0)), [""; 0]);
    assert_eq!(Bench::left(&bench.disk.image(Image::Lost, 0)), ["x@far.example"; 6]);
    bench.service.log(start + WRITE_EVERY, true);
    assert_eq!(Bench::left(&bench.disk.image(Image::Lost, 0)), [""; 0], "whoever stops leaves nothing open");
}

#[test]
fn what_is_kept_is_synced_with_its_turn_and_takes_the_others_along() {
    let mut bench = Bench::new();
    let start = bench.start;
    for round in 1..4 {
        bench.commit("x@far.example", 10);
        bench.commit("x@demo.test", 10);
        bench.commit("y@demo.test", 10);
        let syncs = bench.disk.count(Act::Sync);
        // No time has passed.
        bench.turn(start);
        assert_eq!(bench.disk.count(Act::Sync), syncs + 1, "one for the turn");
        assert_eq!(bench.entries(), 1 + 3 * round);
        assert_eq!(Bench::left(&bench.disk.image(Image::Lost, 0)), [""; 0]);
    }
}

/// A body that goes before its message is surely done with would be missed after a crash.
#[test]
fn a_large_body_goes_when_the_log_is_durable() {
    let mut bench = Bench::new();
    let start = bench.start;
    bench.commit("x@far.example", 100_000);
    bench.turn(start);
    let bodies = |disk: &SimDisk| disk.files().iter().filter(|(name, _)| name.ends_with(".body")).count();
    assert_eq!(bodies(&bench.disk), 1);
    let syncs = bench.disk.count(Act::Sync);
    bench.turn(start + WRITE_EVERY);
    assert_eq!(bodies(&bench.disk), 0);
    assert_eq!(bench.disk.count(Act::Sync), syncs + 1);
    assert_eq!(Bench::left(&bench.disk.image(Image::Lost, 0)), [""; 0]);
}

/// Once it had to be durable it has to be durable at the second try, too.
#[test]
fn a_sync_that_failed_is_no_mere_write_later() {
    let mut bench = Bench::new();
    let start = bench.start;
    bench.commit("x@demo.test", 10);
    bench.disk.fail(Act::Sync, bench.disk.count(Act::Sync), 1, rustix::io::Errno::IO);
    bench.turn(start);
    assert!(bench.service.follower.has_unlogged());
    bench.turn(start + AGAIN_AFTER - Duration::from_nanos(1));
    assert!(bench.service.follower.has_unlogged(), "tried again too soon");
    bench.turn(start + AGAIN_AFTER);
    assert!(!bench.service.follower.has_unlogged());
    assert_eq!(
        Bench::left(&bench.disk.image(Image::Lost, 0)),
        ["x@far.example"],
        "the file that failed had only what may repeat"
    );
}
