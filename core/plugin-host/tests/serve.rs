//! The work of a mechanism-host over a link, without the process around it.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::time::{Duration, Instant};

use common::{bundled, load};
use link::mechanism::{ANSWER, Answer, DESCRIPTION, Description, Event, FINISH, Facts, STEP, Step};
use link::{Link, Outbox, Received, frames};
use plugin_host::{Host, OFFLOAD_MS_MAX, Pool, Registry, THREADS, Terms, Watch};

fn host() -> (Host, Link) {
    let mut registry = Registry::new();
    load(&mut registry, "standard", &bundled("standard")).unwrap();
    let watch = Watch::new(None).unwrap();
    let pool = Pool::start(&watch).unwrap();
    let mut host = Host::new(registry, |_| String::new(), watch, pool).unwrap();
    let (here, there) = Link::pair().unwrap();
    host.add(there);
    (host, here)
}

fn facts() -> Facts<'static> {
    Facts {
        tls: true,
        tls_version: 0x0304,
        client_certificate: false,
        plus_offered: false,
        channel_bindings: 0,
        server_name: "mx.example",
        client_ip: [192, 0, 2, 1].into(),
        listener: "submission",
        sni: "",
    }
}

fn push(outbox: &mut Outbox, id: u64, event: Event<'_>) {
    let step = Step { exchange: id, session: 1, unix_ms: 1, entropy: &[7; 64], event };
    outbox.push(STEP, id, |to| step.encode(to)).unwrap();
}

fn verified() -> Event<'static> {
    Event::Outcome { effect: 16, status: 0, proof: 1, data: b"", scram: None }
}

fn start() -> Event<'static> {
    Event::Start { mechanism: "PLAIN", initial: Some(b"\0alice\0secret"), facts: facts() }
}

/// Actions of all answers so far.
fn actions(link: &Link, packet: &mut Vec<u8>) -> Vec<(u64, u32)> {
    let mut all = Vec::new();
    while let Received::Packet { .. } = link.receive(packet).unwrap() {
        for frame in frames(packet).map(|frame| frame.unwrap()).filter(|frame| frame.kind == ANSWER) {
            all.push((frame.id, Answer::decode(frame.payload).unwrap().action));
        }
    }
    all
}

#[test]
fn it_describes_itself_steps_and_forgets() {
    let (mut host, link) = host();
    let mut packet = Vec::new();
    assert!(matches!(link.receive(&mut packet).unwrap(), Received::Packet { .. }));
    let frame = frames(&packet).next().unwrap().unwrap();
    assert_eq!(frame.kind, DESCRIPTION);
    let description = Description::decode(frame.payload).unwrap();
    assert!(description.mechanisms.iter().any(|one| one.name == "PLAIN" && one.message_octets_max > 0));

    let mut outbox = Outbox::new(1 << 20);
    push(&mut outbox, 5, start());
    push(&mut outbox, 6, verified());
    push(&mut outbox, 7, Event::Start { mechanism: "NO-SUCH", initial: None, facts: facts() });
    assert!(outbox.flush(&link).unwrap());
    host.turn(Duration::ZERO);
    // Asks for the password; an exchange that nobody began; a mechanism that is not here.
    assert_eq!(actions(&link, &mut packet), [(5, 16), (6, 3), (7, 3)]);
    assert_eq!(host.exchanges(), 1);
    push(&mut outbox, 5, verified());
    outbox.push(FINISH, 0, |to| to.extend_from_slice(&5u64.to_le_bytes())).unwrap();
    assert!(outbox.flush(&link).unwrap());
    host.turn(Duration::ZERO);
    assert_eq!(actions(&link, &mut packet), [(5, 2)]);
    assert_eq!(host.exchanges(), 0);

    push(&mut outbox, 8, start());
    assert!(outbox.flush(&link).unwrap());
    drop(link);
    // The step, and then that nobody waits for its answer.
    host.turn(Duration::ZERO);
    host.turn(Duration::ZERO);
    assert!(host.is_left() && host.exchanges() == 0, "who is gone leaves nothing behind");
}

#[test]
fn nonsense_ends_the_link_and_nothing_else() {
    let (mut host, link) = host();
    link.send(b"nonsense", &[]).unwrap();
    host.turn(Duration::ZERO);
    assert!(host.is_left());
    let (here, there) = Link::pair().unwrap();
    host.add(there);
    let mut outbox = Outbox::new(1 << 20);
    push(&mut outbox, 5, start());
    assert!(outbox.flush(&here).unwrap());
    host.turn(Duration::ZERO);
    assert_eq!(actions(&here, &mut Vec::new()), [(5, 16)]);
}

/// A host with a mechanism that does what its message says: `bad.c`, all of it offloaded, or some of it.
fn slow(flag: &str) -> (Host, Link, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portreeve_bad.so");
    common::compile("bad.c", &path, &[&format!("FLAGS=(PRV_M_CLIENT_FIRST|{flag})")]);
    let mut registry = Registry::new();
    load(&mut registry, "bad", &path).unwrap();
    let refused = registry.mechanism(&common::name("X-BAD"), "").err().unwrap().to_string();
    assert!(refused.contains("OFFLOAD") && refused.contains("runner = \"process\""), "{refused}");
    let mut registry = Registry::new();
    common::load_on(&mut registry, "bad", &path, Terms { process: true, self_asserts: false }).unwrap();
    let watch = Watch::new(None).unwrap();
    let pool = Pool::start(&watch).unwrap();
    let mut host = Host::new(registry, |_| String::new(), watch, pool).unwrap();
    let (here, there) = Link::pair().unwrap();
    host.add(there);
    (host, here, folder)
}

fn begin(outbox: &mut Outbox, id: u64, what: &'static str) {
    push(outbox, id, Event::Start { mechanism: "X-BAD", initial: Some(what.as_bytes()), facts: facts() });
}

/// Turns until there are `count` answers.
fn answers(host: &mut Host, link: &Link, count: usize) -> Vec<(u64, u32)> {
    let (mut all, mut packet) = (Vec::new(), Vec::new());
    while all.len() < count {
        host.turn(Duration::ZERO);
        all.extend(actions(link, &mut packet));
        std::thread::yield_now();
    }
    all
}

/// What takes long stops nobody else's exchange, whether it says so beforehand or when it comes to it.
#[test]
fn a_step_that_sleeps_stops_nobody() {
    for (flag, sleeps) in [("PRV_M_OFFLOAD_ALL", "sleep 2"), ("PRV_M_MAY_OFFLOAD", "offload, sleep 2")] {
        let (mut host, link, _folder) = slow(flag);
        let mut outbox = Outbox::new(1 << 20);
        begin(&mut outbox, 1, sleeps);
        assert!(outbox.flush(&link).unwrap());
        host.turn(Duration::ZERO);
        // A hundred exchanges come and go in the meantime.
        for id in 2..102 {
            begin(&mut outbox, id, "challenge");
            assert!(outbox.flush(&link).unwrap());
            assert_eq!(answers(&mut host, &link, 1), [(id, 1)], "{flag}");
        }
        assert_eq!(answers(&mut host, &link, 1), [(1, 1)], "{flag}: it has slept");
        assert_eq!(host.exchanges(), 101);
        push(&mut outbox, 1, Event::Message(b"challenge"));
        assert!(outbox.flush(&link).unwrap());
        assert_eq!(answers(&mut host, &link, 1), [(1, 1)], "{flag}: and goes on");
    }
}

/// Its own exchange is over after a while; whoever is gone, ends, or begins anew meanwhile is not told. With all
/// threads lost the process has to end, and not before.
#[test]
fn who_does_not_come_back_is_given_up() {
    let (mut host, link, _folder) = slow("PRV_M_OFFLOAD_ALL");
    let mut outbox = Outbox::new(1 << 20);
    begin(&mut outbox, 1, "sleep 2");
    begin(&mut outbox, 2, "sleep 2");
    begin(&mut outbox, 3, "sleep for ever");
    outbox.push(FINISH, 0, |to| to.extend_from_slice(&1u64.to_le_bytes())).unwrap();
    assert!(outbox.flush(&link).unwrap());
    host.turn(Duration::ZERO);
    begin(&mut outbox, 2, "challenge");
    assert!(outbox.flush(&link).unwrap());
    assert_eq!(answers(&mut host, &link, 1), [(2, 1)], "the newer one");
    let began = Instant::now();
    assert_eq!(answers(&mut host, &link, 1), [(3, 3)], "failed; nothing of 1, nothing of the older 2");
    assert!(began.elapsed() <= Duration::from_millis(2 * OFFLOAD_MS_MAX));
    assert!(!host.is_stuck() && host.exchanges() == 1);

    // One thread is lost. As many more as there are, and some that find none and are told so.
    (10..10 + THREADS as u64 + 3).for_each(|id| begin(&mut outbox, id, "sleep for ever"));
    assert!(outbox.flush(&link).unwrap());
    let late = answers(&mut host, &link, THREADS + 3);
    assert!(late.iter().all(|(_, action)| *action == 3), "{late:?}");
    assert!(host.is_stuck() && host.exchanges() == 1);
}

/// 64 exchanges of PLAIN at a time: two steps and the end of each, encoded, sent, stepped, answered, decoded.
#[test]
fn a_batch_of_exchanges_costs_little() {
    const ROUNDS: u32 = 50;
    let (mut host, link) = host();
    let mut outbox = Outbox::new(1 << 20);
    let mut packet = Vec::new();
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for events in [start as fn() -> Event<'static>, verified] {
            (0..64).for_each(|id| push(&mut outbox, id, events()));
            assert!(outbox.flush(&link).unwrap());
            host.turn(Duration::ZERO);
            assert_eq!(actions(&link, &mut packet).len(), 64);
        }
        (0..64u64).for_each(|id| outbox.push(FINISH, 0, |to| to.extend_from_slice(&id.to_le_bytes())).unwrap());
        assert!(outbox.flush(&link).unwrap());
        host.turn(Duration::ZERO);
        best = best.min(started.elapsed() / 64);
    }
    println!("PLAIN through a mechanism-host, 64 at a time, both sides: {best:?} per exchange");
    // The figure is for release builds (≤ 1 µs); this only notices a catastrophe.
    assert!(best < Duration::from_micros(200), "{best:?}");
}
