//! Connections: many of them, and the ways in which they end.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use telemetry::{Counter, Gauge};

use super::rig::*;
use super::{BODY, MAIL, mx};
use crate::*;

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
fn octets_behind_the_last_command_do_not_cost_the_last_reply() {
    let rig = Rig::start(mx());
    for _ in 0..50 {
        let mut client = rig.connect();
        client.send(&format!("EHLO c.example\r\nQUIT\r\n{}", "NOOP\r\n".repeat(5000)));
        assert!(client.rest().ends_with("221 2.0.0 Bye\r\n"));
    }
    rig.await_sessions(0);
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
