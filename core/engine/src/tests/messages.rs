//! Messages: durable, however they are cut, and the spool that has no room.

use std::io::Write;

use telemetry::Histogram;

use super::rig::*;
use super::{BODY, MAIL, mx};

#[test]
fn a_message_becomes_durable() {
    let rig = Rig::start(mx());
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    client.send(MAIL);
    let replies = [client.reply(), client.reply(), client.reply()];
    assert!(
        replies[0].starts_with("250 2.1.0") && replies[1].starts_with("250 2.1.5") && replies[2].starts_with("354")
    );
    client.send(BODY);
    assert!(client.reply().starts_with("250 2.0.0 Ok: queued as "));
    client.expect("RCPT TO:<bob@demo.test>", "503");
    client.expect("MAIL FROM:<>", "250");
    client.expect("RCPT TO:<nobody@demo.test>", "550 5.1.1");
    client.expect("DATA", "554 5.5.1");
    let commits = rig.board.summary(Histogram::CommitMicros);
    assert!(commits.count() == 1 && commits.quantile(1.0) > 0 && commits.quantile(1.0) < 60_000_000);
    assert!(rig.board.summary(Histogram::TurnMicros).count() > 0);
    let messages = rig.messages();
    assert_eq!(messages.len(), 1);
    let (envelope, body) = &messages[0];
    assert_eq!(envelope.reverse_path(), Some("x@far.example"));
    let recipient = envelope.recipients().next().unwrap();
    assert_eq!((recipient.address, recipient.mailbox), ("bob@demo.test", "bob@demo.test"));
    assert_eq!(body, b"Subject: hello\r\n\r\n.dots\r\nworld\r\n");
}

#[test]
fn any_split_of_the_octets_gives_the_same_replies() {
    let rig = Rig::start(mx());
    let dialogue = format!("EHLO c.example\r\n{MAIL}{BODY}RSET\r\nBOGUS\r\nQUIT\r\n");
    let without_ids = |replies: String| -> String {
        let lines = replies.lines().map(|line| match line.split_once("queued as ") {
            Some((front, id)) => format!("{front}{}", id.len()),
            None => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let mut whole = rig.connect();
    whole.send(&dialogue);
    let expected = without_ids(whole.rest());
    assert!(expected.contains("Ok: queued as 26") || expected.contains("Ok: 26"), "{expected}");
    for size in [1, 2, 3, 5, 7, 16, 64] {
        let mut client = rig.connect();
        for piece in dialogue.as_bytes().chunks(size) {
            client.stream.get_mut().write_all(piece).unwrap();
        }
        assert_eq!(without_ids(client.rest()), expected, "pieces of {size}");
    }
    rig.await_sessions(0);
    assert_eq!(rig.handle().stats().parts_octets, 0);
    assert_eq!(rig.messages().len(), 8);
}

#[test]
fn a_large_message_streams_in() {
    let rig = Rig::start(mx());
    let mut client = rig.greeted();
    let line = format!("{}\r\n", "x".repeat(998));
    let body = line.repeat(4000);
    client.expect("EHLO c.example", "250-");
    client.send(&format!("{MAIL}{body}.\r\nQUIT\r\n"));
    let replies = client.rest();
    assert!(replies.contains("queued as") && replies.ends_with("221 2.0.0 Bye\r\n"), "{replies}");
    let messages = rig.messages();
    assert!(messages[0].1 == body.as_bytes());
}

#[test]
fn a_full_spool_makes_clients_wait() {
    // Room for one chunk of the largest size: most of these messages wait for it most of the time.
    let rig = Rig::start(Plan { pool_octets: 64 << 10, ..mx() });
    let body = |n: usize| format!("{}\r\n", n.to_string().repeat(900)).repeat(400 + n);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (mut client, body) = (rig.connect(), body(n));
            scope.spawn(move || {
                client.send(&format!("EHLO c.example\r\n{MAIL}"));
                client.send(&format!("{body}.\r\nQUIT\r\n"));
                let replies = client.rest();
                assert!(replies.contains("queued as"), "{replies}");
            });
        }
    });
    let mut bodies: Vec<_> = rig.messages().into_iter().map(|(_, body)| body).collect();
    bodies.sort();
    assert!(bodies == (0..8).map(|n| body(n).into_bytes()).collect::<Vec<_>>());
}
