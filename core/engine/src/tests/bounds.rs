//! What one client may take of what all share, and what a bug may.

use std::time::Duration;

use smtp::Role;
use smtp::listener::Tls;
use telemetry::Counter;

use super::rig::*;
use super::{BODY, mx};
use crate::*;

#[test]
fn limits_answer_before_anything_is_spent() {
    let limits = limits::Config { per_prefix_max: 2, ..limits::Config::mx() };
    let rig = Rig::start(Plan { exempt: false, limits, ..mx() });
    let (first, mut second) = (rig.greeted(), rig.greeted());
    assert!(rig.connect().rest().starts_with("421 4.7.0"));
    second.expect("QUIT", "221");
    rig.await_sessions(1);
    rig.greeted();
    drop(first);
    await_that("counter", || rig.board.counter(Counter::ConnectionsRefusedPrefix) == 1);

    let rig = Rig::start(Plan { shards: 1, sessions_max: 3, ..mx() });
    let clients: Vec<_> = (0..3).map(|_| rig.greeted()).collect();
    assert!(rig.connect().rest().starts_with("421 4.3.2"));
    drop(clients);
    rig.await_sessions(0);
    rig.greeted();
}

#[test]
fn pieces_of_lines_have_a_budget() {
    let bounds = Bounds { parts_octets_max: 4096, ..Bounds::default() };
    let rig = Rig::start(Plan { shards: 1, bounds, ..mx() });
    let piece = format!("NOOP {}", "x".repeat(1500));
    let mut held: Vec<_> = (0..2)
        .map(|n| {
            let mut client = rig.greeted();
            client.send(&piece);
            await_that("piece", || rig.handle().stats().parts_octets > 1500 * n + 1400);
            client
        })
        .collect();
    let mut third = rig.greeted();
    third.send(&piece);
    assert!(third.rest().starts_with("421 4.3.2"));
    for client in &mut held {
        client.expect("", "250");
    }
    assert_eq!(rig.handle().stats().parts_octets, 0);
}

#[test]
fn a_panic_ends_one_session() {
    let rig = Rig::start(Plan { shards: 1, ..mx() });
    let mut neighbour = rig.greeted();
    neighbour.expect("EHLO n.example", "250-");
    neighbour.expect("MAIL FROM:<>", "250");
    for n in 1..=11 {
        let mut client = rig.greeted();
        client.expect("EHLO c.example", "250-");
        client.send("MAIL FROM:<panic@far.example>\r\nNOOP\r\n");
        assert_eq!(client.rest(), "421 4.3.0 Internal error; closing\r\n");
        assert_eq!(rig.handle().stats().panics, n);
    }
    assert_eq!(rig.notices.recv_timeout(Duration::from_secs(10)), Ok(Notice::Panicking));
    neighbour.expect("RCPT TO:<bob@demo.test>", "250");
    neighbour.expect("DATA", "354");
    neighbour.send(BODY);
    assert!(neighbour.reply().starts_with("250"));
    rig.await_sessions(1);
    assert_eq!(rig.messages().len(), 1);
}

#[test]
fn a_panic_inside_tls_ends_one_session() {
    let rig = Rig::start(Plan { shards: 1, ..Plan::new(Role::Submissions, Tls::Implicit) });
    let mut client = rig.tls(rig.dial());
    assert!(client.reply().starts_with("220"));
    client.expect("EHLO c.example", "250-");
    client.send("MAIL FROM:<panic@far.example>\r\n");
    assert_eq!(client.rest(), "421 4.3.0 Internal error; closing\r\n");
}
