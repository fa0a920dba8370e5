//! STARTTLS and implicit TLS.

use std::io::{Read, Write};

use smtp::Role;
use smtp::listener::Tls;
use telemetry::{Counter, Gauge, Histogram};

use super::rig::*;
use super::{ALICE, BODY, MAIL, mx};

#[test]
fn starttls_and_what_was_behind_it() {
    let rig = Rig::start(mx());
    let mut client = rig.greeted();
    assert!(client.expect("EHLO c.example", "250-").contains("STARTTLS"));
    // Injected commands arrive with STARTTLS; they must be neither answered nor executed.
    client.send("STARTTLS\r\nMAIL FROM:<evil@far.example>\r\n");
    assert!(client.reply().starts_with("220"));
    let mut client = rig.tls(client.stream.into_inner());
    assert!(!client.expect("EHLO c.example", "250-").contains("STARTTLS"));
    client.expect("RCPT TO:<bob@demo.test>", "503");
    client.expect(&format!("AUTH PLAIN {ALICE}"), "235");
    client.send("MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n");
    (0..3).for_each(|_| drop(client.reply()));
    client.send(BODY);
    assert!(client.reply().contains("queued as"));
    client.expect("QUIT", "221");
    assert_eq!(client.rest(), "", "close_notify, then the end");
    await_that("counters", || rig.board.gauge(Gauge::SessionsTls) == 0);
    assert_eq!(rig.board.counter(Counter::TlsHandshakesOk), 1);
    let handshakes = rig.board.summary(Histogram::HandshakeMicros);
    assert!(handshakes.count() == 1 && handshakes.quantile(1.0) > 0);
    assert!(rig.board.counter(Counter::StarttlsTrailingOctets) > 0);
    let messages = rig.messages();
    assert_eq!((messages.len(), messages[0].0.identity()), (1, Some("alice@demo.test")));
}

#[test]
fn implicit_tls_in_small_pieces() {
    let rig = Rig::start(Plan::new(Role::Submissions, Tls::Implicit));
    for size in [1, 7, 100, 5000] {
        let mut client = rig.tls(rig.dial());
        assert!(client.reply().starts_with("220"));
        let dialogue = format!("EHLO c.example\r\n{MAIL}{BODY}QUIT\r\n");
        for piece in dialogue.as_bytes().chunks(size) {
            // A record for each piece.
            client.stream.get_mut().write_all(piece).unwrap();
            client.stream.get_mut().flush().unwrap();
        }
        let replies = client.rest();
        assert!(replies.contains("queued as") && replies.ends_with("221 2.0.0 Bye\r\n"), "{size}: {replies}");
    }
    let mut plain = rig.connect();
    plain.send("EHLO c.example\r\n");
    let mut octets = Vec::new();
    let _ = plain.stream.read_to_end(&mut octets);
    assert!(octets.is_empty() || octets[0] == 21, "an alert at most: {octets:?}");
    await_that("counter", || rig.board.counter(Counter::TlsHandshakesFailed) == 1);
    rig.await_sessions(0);
    assert_eq!(rig.messages().len(), 4);
}
