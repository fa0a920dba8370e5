//! What a login asks the directory, and what is remembered of it.

use std::time::{Duration, Instant};

use telemetry::{Counter, Histogram};

use super::rig::*;
use super::{ALICE, mx};
use crate::*;

#[test]
fn login_once_asked_then_remembered_until_something_changes() {
    let rig = Rig::start(Plan { shards: 1, ..mx() });
    let login = |command: &str| {
        let mut client = rig.greeted();
        client.expect("EHLO c.example", "250-");
        let reply = client.ask(command);
        (client, reply)
    };
    for _ in 0..3 {
        let (mut client, reply) = login(&format!("AUTH PLAIN {ALICE}"));
        assert!(reply.starts_with("235"), "{reply}");
        client.expect("MAIL FROM:<sales@demo.test>", "250");
        client.expect("RSET", "250");
        client.expect("MAIL FROM:<boss@demo.test>", "550 5.7.1");
    }
    let boss = "sender boss@demo.test";
    assert_eq!(rig.directory.asked(), ["password alice", "sender sales@demo.test", boss, boss, boss]);
    raise_epoch(&rig.board);
    let (_client, reply) = login("AUTH PLAIN");
    assert_eq!(reply, "334 \r\n");
    // The test's directory still answers with the old epoch: never remembered again.
    for _ in 0..2 {
        assert!(login(&format!("AUTH PLAIN {ALICE}")).1.starts_with("235"));
    }
    assert_eq!(rig.directory.asked().len(), 7);
    // A wrong password is asked about every time.
    for _ in 0..2 {
        assert!(login("AUTH PLAIN AGFsaWNlAHdyb25n").1.starts_with("535"));
    }
    assert_eq!(rig.directory.asked().len(), 9);
    await_that("counters", || rig.board.counter(Counter::AuthOk) == 5);
    await_that("counter", || rig.board.counter(Counter::AuthFailed) == 2);
    assert_eq!(rig.board.summary(Histogram::LoginMicros).count(), 7);
}

#[test]
fn a_failed_login_is_answered_late() {
    let rig = Rig::start(Plan { exempt: false, ..mx() });
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    let started = Instant::now();
    // What is pipelined behind waits, too, and keeps its order.
    client.send("AUTH PLAIN AGFsaWNlAHdyb25n\r\n");
    assert!(client.reply().starts_with("535"));
    assert!(started.elapsed() >= Duration::from_millis(1800), "{:?}", started.elapsed());
    client.expect("NOOP", "250");
}

#[test]
fn questions_outlive_their_directory_for_two_seconds() {
    let rig = Rig::start(Plan { shards: 1, ..mx() });
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    client.expect("MAIL FROM:<>", "250");
    client.send("RCPT TO:<silent@demo.test>\r\nNOOP\r\n");
    await_that("question", || rig.directory.asked().len() == 1);
    rig.directory.die();
    assert_eq!(rig.notices.recv_timeout(Duration::from_secs(10)), Ok(Notice::DirectoryLost { shard: 0 }));
    rig.handle().connect_directory(0, rig.directory.link());
    await_that("the same question again", || rig.directory.asked().len() == 2);
    let started = Instant::now();
    rig.directory.die();
    assert_eq!(rig.notices.recv_timeout(Duration::from_secs(10)), Ok(Notice::DirectoryLost { shard: 0 }));
    assert!(client.reply().starts_with("451"));
    assert!((1900..6000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(client.reply().starts_with("250"), "what was behind the question");
    // Now nobody waits any more; mail for others goes on.
    let started = Instant::now();
    client.expect("RCPT TO:<bob@demo.test>", "451");
    client.expect("RCPT TO:<x@far.example>", "250");
    assert!(started.elapsed() < Duration::from_secs(1));
    rig.handle().connect_directory(0, rig.directory.link());
    await_that("bob", || client.ask("RCPT TO:<bob@demo.test>").starts_with("250"));
}
