//! Whose time is over.

use std::io::Write;
use std::time::{Duration, Instant};

use smtp::Role;
use smtp::listener::Tls;
use telemetry::{Counter, Gauge};

use super::rig::*;
use super::{ALICE, MAIL, mx};
use crate::*;

#[test]
fn strangers_do_not_stay_on_a_submission_port() {
    let mut plan = Plan::new(Role::Submission, Tls::StartTls);
    plan.deadlines.preauth_ms = Some(400);
    let rig = Rig::start(plan);
    let (mut known, mut stranger) = (rig.greeted(), rig.greeted());
    known.expect("EHLO c.example", "250-");
    known.expect(&format!("AUTH PLAIN {ALICE}"), "235");
    let started = Instant::now();
    let last = loop {
        let reply = stranger.ask("NOOP");
        if !reply.starts_with("250") {
            break reply;
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(last.starts_with("421 4.4.2"), "{last}");
    known.expect("NOOP", "250");
}

#[test]
fn a_message_that_we_kept_waiting_too_long_is_not_kept() {
    let mut plan = Plan::new(Role::Submission, Tls::StartTls);
    plan.deadlines.data_deadline_ms = 20;
    plan.listener.sender_header = smtp::listener::SenderCheck::Enforce;
    let rig = Rig::start(plan);
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    client.expect("AUTH PLAIN", "334");
    client.expect(ALICE, "235");
    for (author, answer) in [("late", "451 4.4.5"), ("alice", "250 2.0.0")] {
        client.send("MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n");
        (0..3).for_each(|_| drop(client.reply()));
        client.send(&format!("From: {author}@demo.test\r\n\r\n.\r\n"));
        let reply = client.reply();
        assert!(reply.starts_with(answer), "{author}: {reply}");
    }
    assert_eq!(rig.messages().len(), 1);
}

#[test]
fn deadlines() {
    let deadlines = Deadlines { command_ms: 300, unread_ms: 300, handshake_ms: 300, ..Deadlines::of(Role::Mx) };
    let rig = Rig::start(Plan { deadlines: deadlines.clone(), send_octets: 4096, ..mx() });
    let started = Instant::now();
    let mut client = rig.greeted();
    assert!(client.rest().starts_with("421 4.4.2"));
    assert!(started.elapsed() >= Duration::from_millis(290));

    // Octets alone do not move the deadline of a command.
    let started = Instant::now();
    let mut dripping = rig.greeted();
    while started.elapsed() < Duration::from_millis(1500) && dripping.stream.get_mut().write_all(b"N").is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(started.elapsed() < Duration::from_millis(1400), "still open");

    // Nor does a client that never reads keep its connection.
    let mut deaf = rig.greeted();
    deaf.stream.get_ref().set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    while deaf.stream.get_mut().write_all(&b"EHLO c\r\n".repeat(100)).is_ok() {}
    rig.await_sessions(0);

    let implicit = Plan { deadlines, ..Plan::new(Role::Submissions, Tls::Implicit) };
    let rig = Rig::start(implicit);
    assert_eq!(rig.connect().rest(), "", "no TLS, no words");
    await_that("counter", || rig.board.counter(Counter::SessionsTimedOut) == 1);
}

#[test]
fn a_slow_message_ends() {
    let deadlines = Deadlines { data_grace_ms: 300, data_octets_per_second: 100_000, ..Deadlines::of(Role::Mx) };
    let rig = Rig::start(Plan { deadlines, ..mx() });
    let mut client = rig.greeted();
    client.send("EHLO c\r\n");
    client.reply();
    client.send(MAIL);
    (0..3).for_each(|_| drop(client.reply()));
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) && client.stream.get_mut().write_all(b"x").is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(started.elapsed() < Duration::from_secs(4));
    assert!(rig.messages().is_empty());
}

#[test]
fn an_effect_has_a_deadline() {
    let deadlines = Deadlines { effect_ms: 300, ..Deadlines::of(Role::Mx) };
    let rig = Rig::start(Plan { deadlines, ..mx() });
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    client.expect("MAIL FROM:<>", "250");
    client.expect("RCPT TO:<silent@demo.test>", "451");
    client.expect("RCPT TO:<bob@demo.test>", "250");
    await_that("counter", || rig.board.counter(Counter::EffectsTimedOut) == 1);
    await_that("gauge", || rig.board.gauge(Gauge::EffectsPending) == 0);
}
