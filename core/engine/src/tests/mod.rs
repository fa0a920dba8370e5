//! A real worker on loopback.

mod descriptors;
pub mod rig;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use smtp::Role;
use smtp::listener::Tls;
use telemetry::{Counter, Gauge, Histogram};

use crate::*;
use rig::*;

const MAIL: &str = "MAIL FROM:<x@far.example>\r\nRCPT TO:<bob@demo.test>\r\nDATA\r\n";
const BODY: &str = "Subject: hello\r\n\r\n..dots\r\nworld\r\n.\r\n";
/// base64 of NUL alice NUL secret.
const ALICE: &str = "AGFsaWNlAHNlY3JldA==";

fn mx() -> Plan {
    Plan::new(Role::Mx, Tls::StartTls)
}

#[test]
fn many_connections_come_and_go() {
    let rig = Rig::start(mx());
    let mut clients: Vec<_> = (0..300).map(|_| rig.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.reply(), "220 mx.example ESMTP Portreeve\r\n");
    }
    rig.await_sessions(300);
    for client in &mut clients {
        client.expect("EHLO c.example", "250-mx.example");
    }
    // Half of them leave with QUIT, a quarter just close, a quarter half-close after a command.
    for (n, client) in clients.iter_mut().enumerate() {
        match n % 4 {
            0 | 1 => assert_eq!(client.expect("QUIT", "221 ") + &client.rest(), "221 2.0.0 Bye\r\n"),
            2 => client.stream.get_ref().shutdown(Shutdown::Both).unwrap(),
            _ => {
                client.send("NOOP\r\nNOOP\r\n");
                client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
                assert_eq!(client.rest(), "250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n");
            }
        }
    }
    rig.await_sessions(0);
    assert_eq!(rig.handle().stats().parts_octets, 0);
    await_that("counters", || rig.board.gauge(Gauge::Sessions) == 0);
    assert_eq!(rig.board.counter(Counter::ConnectionsAccepted), 300);
}

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
fn a_client_that_does_not_read_is_not_read_either() {
    let rig = Rig::start(Plan { send_octets: 4096, ..mx() });
    let mut client = rig.greeted();
    client.stream.get_ref().set_nonblocking(true).unwrap();
    let command = b"EHLO c.example\r\n";
    let mut sent = 0usize;
    let mut quiet = 0;
    // Until neither side's buffers take more for a while: the server has stopped reading.
    while quiet < 200 {
        match client.stream.get_mut().write(&command[sent % command.len()..]) {
            Ok(octets) => (sent, quiet) = (sent + octets, 0),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                quiet += 1;
                std::thread::yield_now();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    let held = rig.handle().stats().parts_octets;
    assert!(held > 0 && held <= 128 << 10, "{held}");
    client.stream.get_ref().set_nonblocking(false).unwrap();
    // Reading again, every complete command has its reply.
    for n in 0..sent / command.len() {
        let reply = client.reply();
        assert!(reply.starts_with("250-mx.example") && reply.contains("250 "), "{n}: {reply}");
    }
    await_that("nothing held but a piece of a line", || rig.handle().stats().parts_octets <= 64);
}

#[test]
fn a_half_closed_client_hears_the_end() {
    let rig = Rig::start(mx());
    let mut client = rig.connect();
    client.send(&format!("EHLO c.example\r\n{MAIL}{BODY}NOOP\r\n"));
    client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    let replies = client.rest();
    assert!(replies.contains("queued as") && replies.ends_with("250 2.0.0 Ok\r\n"), "{replies}");
    rig.await_sessions(0);
}

#[test]
fn a_client_that_resets_frees_its_session_at_once() {
    let rig = Rig::start(mx());
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    client.expect("MAIL FROM:<>", "250");
    client.send("RCPT TO:<silent@demo.test>\r\n");
    await_that("question", || rig.directory.asked().len() == 1);
    let stream = socket2::Socket::from(client.stream.into_inner());
    stream.set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    rig.await_sessions(0);
    await_that("gauge", || rig.board.gauge(Gauge::EffectsPending) == 0);
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
    let mut dripping = rig.greeted();
    await_that("the end of who drips", || {
        std::thread::sleep(Duration::from_millis(20));
        dripping.stream.get_mut().write_all(b"N").is_err()
    });

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
    await_that("the end of who is slow", || {
        std::thread::sleep(Duration::from_millis(10));
        client.stream.get_mut().write_all(b"x").is_err()
    });
    assert!(rig.messages().is_empty());
}

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
    assert!(started.elapsed() >= Duration::from_millis(1900), "{:?}", started.elapsed());
    assert!(client.reply().starts_with("250"), "what was behind the question");
    // Now nobody waits any more; mail for others goes on. One of many, as the machine may be busy.
    await_that("an answer at once", || {
        let started = Instant::now();
        client.expect("RCPT TO:<bob@demo.test>", "451");
        started.elapsed() < Duration::from_secs(1)
    });
    client.expect("RCPT TO:<x@far.example>", "250");
    rig.handle().connect_directory(0, rig.directory.link());
    await_that("bob", || client.ask("RCPT TO:<bob@demo.test>").starts_with("250"));
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
fn a_drain_lets_work_finish_and_leaves_the_door_to_others() {
    let rig = Rig::start(Plan { shards: 1, ..mx() });
    let mut idle = rig.greeted();
    let mut silent = rig.greeted();
    let mut busy = rig.greeted();
    idle.expect("EHLO c.example", "250-");
    busy.expect("EHLO c.example", "250-");
    busy.expect("MAIL FROM:<>", "250");
    rig.handle().drain(Duration::from_secs(2), Duration::from_secs(60));
    // Nobody is accepted: a new client waits in the queue of the socket.
    await_that("the drain", || idle.ask("NOOP").starts_with("421 4.3.2"));
    assert_eq!(idle.rest(), "");
    let waiting = rig.dial();
    busy.expect("RCPT TO:<bob@demo.test>", "250");
    busy.expect("DATA", "354");
    busy.send(BODY);
    assert!(busy.reply().contains("queued as"));
    busy.expect("NOOP", "421 4.3.2");
    assert!(silent.rest().starts_with("421 4.3.2"), "idle for too long");
    assert_eq!(rig.notices.recv_timeout(Duration::from_secs(10)), Ok(Notice::Drained));

    let successor = Rig::start_on(mx(), rig.socket.try_clone().unwrap());
    let mut waiting = Client::new(waiting);
    assert!(waiting.reply().starts_with("220"), "served by the next generation");
    drop(successor);
    assert_eq!(rig.messages().len(), 1);
}

/// Delivery as a worker sees it: the next question, its message, and the way to answer.
fn next_question(rig: &Rig) -> (u64, spool::Message) {
    let link = &rig.delivery[0];
    let mut packet = Vec::new();
    link.wait(rustix::event::PollFlags::IN, Some(Duration::from_secs(10))).unwrap();
    let fds = match link.receive(&mut packet).unwrap() {
        link::Received::Packet { fds } => fds,
        link::Received::WouldBlock => panic!("nobody asks"),
        link::Received::Closed => panic!("the worker is gone"),
    };
    let frame = link::frames(&packet).next().unwrap().unwrap();
    let question = link::pass::Question::decode(frame.payload).unwrap();
    assert!(question.until_ms > 0 && question.unix_ms > 0);
    let handed = spool::Handed {
        file: fds.into_iter().next().unwrap(),
        id: smtp::id::QueueId(question.id),
        body_octets: question.body_octets,
        envelope_octets: question.envelope_octets,
        prepend_octets: question.prepend_octets,
    };
    (frame.id, spool::Message::handed(handed, question.unix_ms).unwrap())
}

fn answer(rig: &Rig, id: u64, code: u16, text: &str, taken: u32) {
    let mut outbox = link::Outbox::new(1 << 16);
    outbox.push(link::pass::ANSWER, id, |to| link::pass::Answer { code, text, taken }.encode(to)).unwrap();
    outbox.flush(&rig.delivery[0]).unwrap();
}

#[test]
fn a_reply_waits_for_the_next_hop_and_not_for_ever() {
    let mut plan = Plan { shards: 1, passes: true, ..mx() };
    plan.deadlines.data_deadline_ms = 60_000;
    let rig = Rig::start(plan);
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    for (code, text) in [(250, "2.0.0 Ok: passed on as X"), (550, "5.1.1 nobody"), (452, "4.2.2 full")] {
        client.send(MAIL);
        (0..3).for_each(|_| drop(client.reply()));
        client.send(BODY);
        client.send("NOOP\r\n");
        let (id, message) = next_question(&rig);
        let envelope = smtp::Envelope::decode(message.envelope()).unwrap();
        assert_eq!(envelope.reverse_path(), Some("x@far.example"));
        assert!(message.prepend().starts_with(b"Received: "));
        let mut body = Vec::new();
        message.body(&mut |part| std::io::Write::write_all(&mut body, part)).unwrap();
        assert_eq!(body, b"Subject: hello\r\n\r\n.dots\r\nworld\r\n");
        answer(&rig, id, code, text, 0);
        assert_eq!(client.reply(), format!("{code} {text}\r\n"));
        assert_eq!(client.reply(), "250 2.0.0 Ok\r\n");
    }
    assert!(rig.messages().is_empty(), "nothing is kept");
}

#[test]
fn a_next_hop_that_answers_after_the_deadline_is_a_doubt_and_no_reply_to_the_next_message() {
    let mut plan = Plan { shards: 1, passes: true, ..mx() };
    plan.deadlines.data_deadline_ms = 300;
    let rig = Rig::start(plan);
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    let send = |client: &mut Client<_>| {
        client.send(MAIL);
        (0..3).for_each(|_| drop(client.reply()));
        client.send(BODY);
        next_question(&rig).0
    };
    let late = "451 4.4.5 Could not take the message in time; please send it again\r\n";
    let first = send(&mut client);
    assert_eq!(client.reply(), late);
    let second = send(&mut client);
    // The second message waits when the answer to the first comes.
    answer(&rig, first, 250, "2.0.0 Ok: late", 1);
    await_that("the doubt", || rig.board.counter(Counter::MessagesInDoubt) == 1);
    assert_eq!(client.reply(), late);
    // Nobody has this one, so nothing is in doubt.
    answer(&rig, second, 451, "4.4.5 late", 0);
    let third = send(&mut client);
    answer(&rig, third, 250, "2.0.0 Ok", 1);
    assert_eq!(client.reply(), "250 2.0.0 Ok\r\n");
    assert_eq!(rig.board.counter(Counter::MessagesInDoubt), 1);
}

#[test]
fn messages_for_others_are_kept_as_ever_and_a_delivery_that_goes_is_replaced() {
    let mut rig = Rig::start(Plan { shards: 1, passes: true, ..mx() });
    let mut client = rig.greeted();
    client.expect("EHLO c.example", "250-");
    client.expect("MAIL FROM:<x@far.example>", "250");
    client.expect("RCPT TO:<alice@far.example>", "250");
    client.expect("DATA", "354");
    client.send(BODY);
    assert!(client.reply().contains("queued as"));
    client.send(MAIL);
    (0..3).for_each(|_| drop(client.reply()));
    client.send(BODY);
    next_question(&rig);
    rig.delivery.clear();
    assert_eq!(client.reply(), "451 4.3.0 Local trouble; please try again later\r\n");
    await_that("the doubt", || rig.board.counter(Counter::MessagesInDoubt) == 1);
    // One that comes now waits a moment for the next delivery.
    client.send(MAIL);
    (0..3).for_each(|_| drop(client.reply()));
    client.send(BODY);
    let (ours, theirs) = link::Link::pair().unwrap();
    rig.handle().connect_delivery(0, ours);
    rig.delivery.push(theirs);
    let (id, _) = next_question(&rig);
    answer(&rig, id, 250, "2.0.0 Ok", 1);
    assert_eq!(client.reply(), "250 2.0.0 Ok\r\n");
    assert_eq!(rig.messages().len(), 1);
}

#[test]
fn a_stop_says_421() {
    let rig = Rig::start(mx());
    let mut client = rig.greeted();
    rig.handle().stop();
    assert_eq!(client.rest(), "421 4.3.2 Service is closing; please try again\r\n");
    await_that("the end", || rig.handle().is_finished());
}

#[test]
fn octets_behind_the_last_command_do_not_cost_the_last_reply() {
    let rig = Rig::start(mx());
    for _ in 0..50 {
        let mut client = rig.connect();
        client.send(&format!("EHLO c.example\r\nQUIT\r\n{}", "NOOP\r\n".repeat(5000)));
        assert!(client.rest().ends_with("221 2.0.0 Bye\r\n"));
    }
    rig.await_sessions(0);
}
