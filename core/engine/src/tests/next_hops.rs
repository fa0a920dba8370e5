//! Messages whose reply is the next hop's.

use std::time::Duration;

use telemetry::Counter;

use super::rig::*;
use super::{BODY, MAIL, mx};

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
