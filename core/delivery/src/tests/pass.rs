//! Clients that wait for the next hop: what they hear, and what is kept.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::AtomicBool;

use link::Received;
use link::pass::{ANSWER, Answer, KEEPING, QUESTION, Question};
use smtp::client::Protocol;

use super::hops::{BODY, Fault, Hop, Script, Step, WHOLE, from_alice, hop_settings};
use super::*;
use crate::{HopSettings, NextHops};

/// A worker that passes messages through.
struct Asker {
    ours: Link,
    packet: Vec<u8>,
    asked: u64,
    /// Questions whose answers are waited for without an end.
    keeping: BTreeSet<u64>,
}

/// What it is told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    reply: String,
    taken: u32,
}

impl Asker {
    fn start(running: &Running) -> Self {
        let (ours, theirs) = Link::pair().unwrap();
        running.handle.follow(theirs);
        Self { ours, packet: Vec::new(), asked: 0, keeping: BTreeSet::new() }
    }

    fn ask(&mut self, envelope: &Envelope, body: &[u8], until: Duration) -> u64 {
        let (mut file, prepend) = (body.to_vec(), b"Received: by here\r\n");
        envelope.encode(&mut file);
        let envelope_octets = (file.len() - body.len()) as u32;
        file.extend_from_slice(prepend);
        let file = link::sealed::create("message", &file).unwrap();
        let mut random = [0; 16];
        getrandom::fill(&mut random).unwrap();
        let question = Question {
            id: u128::from_le_bytes(random),
            unix_ms: crate::service::unix_ms(),
            until_ms: link::monotonic_ms() + until.as_millis() as u64,
            body_octets: body.len() as u64,
            envelope_octets,
            prepend_octets: prepend.len() as u32,
        };
        self.asked += 1;
        let mut outbox = Outbox::new(1 << 16);
        outbox.push_with(QUESTION, self.asked, vec![file], |to| question.encode(to)).unwrap();
        outbox.flush(&self.ours).unwrap();
        self.asked
    }

    /// Answers, by question, until there are so many.
    fn answers(&mut self, count: usize) -> BTreeMap<u64, Told> {
        let mut answers = BTreeMap::new();
        let late = Instant::now() + Duration::from_secs(30);
        while answers.len() < count {
            assert!(Instant::now() < late, "only {answers:?}");
            self.ours.wait(rustix::event::PollFlags::IN, Some(Duration::from_millis(100))).unwrap();
            match self.ours.receive(&mut self.packet).unwrap() {
                Received::Packet { .. } => {}
                Received::WouldBlock => continue,
                Received::Closed => panic!("delivery is gone: {answers:?}"),
            }
            for frame in link::frames(&self.packet) {
                let frame = frame.unwrap();
                if frame.kind == KEEPING {
                    assert!(frame.payload.is_empty() && !answers.contains_key(&frame.id));
                    assert!(self.keeping.insert(frame.id), "once");
                    continue;
                }
                assert_eq!(frame.kind, ANSWER);
                let Answer { code, text, taken } = Answer::decode(frame.payload).unwrap();
                let told = Told { reply: format!("{code} {text}"), taken };
                assert!(answers.insert(frame.id, told).is_none(), "one answer each");
            }
        }
        answers
    }

    fn one(&mut self, envelope: &Envelope) -> Told {
        let id = self.ask(envelope, BODY, LONG);
        self.answers(1).remove(&id).unwrap()
    }
}

const LONG: Duration = Duration::from_secs(60);

fn passing(settings: HopSettings) -> Arc<dyn Route> {
    Arc::new(NextHops::new(HopSettings { pass_through: true, ..settings }).unwrap())
}

fn to(addresses: &[&str]) -> Envelope {
    from_alice(&addresses.iter().map(|address| (*address, Notify(0))).collect::<Vec<_>>())
}

#[test]
fn every_fault_at_every_step_is_a_reply_and_nothing_is_kept() {
    use Fault::{Garbage, Reset, Say, Slow, Stall};
    use Step::{Body, Data, End, Greeting, Hello, Mail, Rcpt};
    for protocol in [Protocol::Smtp, Protocol::Lmtp] {
        let lmtp = protocol == Protocol::Lmtp;
        for step in [Greeting, Hello, Mail, Rcpt, Data, Body, End] {
            let refusals: &[(Fault, &str)] = match step {
                // What is said about the connection is not about the message.
                Greeting => {
                    &[(Say("554 5.3.2 not now"), "451 4.3.2 Next hop"), (Say("421 4.3.2 busy"), "451 4.4.2 Next hop")]
                }
                // A host that refuses EHLO may know HELO.
                Hello if lmtp => &[(Say("550 5.7.1 no"), "451 4.7.1 Next hop")],
                Hello => &[(Say("550 5.7.1 no"), "250 2.0.0 Ok: passed on")],
                Body => &[],
                _ => &[
                    (Say("452 4.2.2 full"), "452 4.2.2 full"),
                    (Say("421 4.3.2 closing"), "451 4.4.2 Next hop closed"),
                    (Say("550 5.7.1 no"), "550 5.7.1 no"),
                    (Say("530 5.7.0 who are you"), "554 5.7.0 who are you"),
                ],
            };
            let slow = [(Slow, "250 2.0.0 Ok: passed on")];
            let slow: &[(Fault, &str)] = if step == Body { &[] } else { &slow };
            let lost = [(Stall, "451 4.4.2 Next hop"), (Reset, "451 4.4.2 Next hop"), (Garbage, "451 4.")];
            for &(fault, expect) in lost.iter().chain(slow).chain(refusals) {
                let folder = tempfile::tempdir().unwrap();
                let hop = Hop::start(Script { lmtp: AtomicBool::new(lmtp), ..Script::default() });
                hop.script.faults.lock().push_back((step, fault));
                let route = passing(hop_settings(vec![hop.place()], protocol));
                let running = Running::start(folder.path(), Routes::new(Some(route)));
                let told = Asker::start(&running).one(&to(&["bob@far.example"]));
                let taken = expect.starts_with("250");
                assert!(told.reply.starts_with(expect), "{step:?} {fault:?}: {told:?}");
                assert_eq!(told.taken, u32::from(taken), "{step:?} {fault:?}");
                assert!(hop.script.faults.lock().is_empty(), "{step:?} {fault:?} has happened");
                let texts: &[&str] = if taken { &[WHOLE] } else { &[] };
                assert_eq!(hop.texts(), texts, "{step:?} {fault:?}");
                let seen = running.stop();
                assert_eq!(
                    seen.count(if taken { "delivered to" } else { "not taken for" }),
                    1,
                    "{:#?}",
                    seen.lines.lock()
                );
                assert!(is_empty(folder.path()), "nothing is kept");
            }
        }
    }
}

#[test]
fn a_next_hop_that_is_not_there_or_is_too_late() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = hop_settings(vec![crate::Place::Tcp("127.0.0.1".into(), 1)], Protocol::Smtp);
    let running = Running::start(folder.path(), Routes::new(Some(passing(nobody))));
    let mut asker = Asker::start(&running);
    for _ in 0..2 {
        let told = asker.one(&to(&["bob@far.example"]));
        assert_eq!(told.reply, "451 4.4.1 Next hop cannot take it now; please try again later");
    }
    let asked = asker.ask(&to(&["bob@far.example"]), BODY, Duration::ZERO);
    assert!(asker.answers(1)[&asked].reply.starts_with("451 4.4.5 "));
    running.stop();

    // Before the message is with it, it is left at the end of the client's time, however patient we were.
    let hop = Hop::start(Script::default());
    hop.script.faults.lock().push_back((Step::Rcpt, Fault::Stall));
    let patient = |hop: &Hop| HopSettings { patience: LONG, ..hop_settings(vec![hop.place()], Protocol::Smtp) };
    let running = Running::start(folder.path(), Routes::new(Some(passing(patient(&hop)))));
    let mut asker = Asker::start(&running);
    let begun = Instant::now();
    let asked = asker.ask(&to(&["bob@far.example"]), BODY, Duration::from_millis(300));
    assert!(asker.answers(1)[&asked].reply.starts_with("451 4.4.2 "));
    assert!(begun.elapsed() < LONG);
    running.stop();

    // Afterwards its word is waited for: who gives up does not know whether there is a twin.
    let hop = Hop::start(Script { frozen: AtomicBool::new(true), ..Script::default() });
    hop.script.faults.lock().push_back((Step::End, Fault::Late));
    let mail = folder.path().join("mail");
    let routes = Routes::new(Some(passing(patient(&hop)))).domain("demo.test", maildir(&mail));
    let running = Running::start(&folder.path().join("spool"), routes);
    let mut asker = Asker::start(&running);
    let time = Duration::from_secs(1);
    let asked = asker.ask(&to(&["bob@far.example", "carol@demo.test"]), BODY, time);
    // Its time passes from when delivery has heard of it, and that it has when the message is with the next hop.
    let begun = Instant::now();
    while !hop.script.faults.lock().is_empty() {
        assert!(begun.elapsed() < LONG, "the message does not come");
        std::thread::yield_now();
    }
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    hop.script.frozen.store(false, Ordering::SeqCst);
    let told = asker.answers(1).remove(&asked).unwrap();
    assert!(told.reply.starts_with("451 4.4.5 ") && told.taken == 1, "{told:?}");
    running.stop();
    assert!(is_empty(&folder.path().join("spool")), "carol gets it when the client comes again");
    assert_eq!(hop.texts(), [WHOLE]);
}

#[test]
fn mixed_ends_and_mixed_routes_are_kept_for_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    for protocol in [Protocol::Smtp, Protocol::Lmtp] {
        let hop = Hop::start(Script { lmtp: AtomicBool::new(protocol == Protocol::Lmtp), ..Script::default() });
        let refuse =
            |address: &str, reply| hop.script.by_address.lock().insert(address.to_owned(), VecDeque::from([reply]));
        refuse("full@far.example", "452 4.2.2 full");
        refuse("nobody@far.example", "550 5.1.1 nobody");
        let routes =
            Routes::new(Some(passing(hop_settings(vec![hop.place()], protocol)))).domain("demo.test", maildir(&mail));
        let running = Running::start(&spool, routes);
        let mut asker = Asker::start(&running);
        // Somebody has it: the sender hears of one by a report, the other gets it later.
        let told = asker.one(&to(&["bob@far.example", "full@far.example", "nobody@far.example"]));
        assert!(told.reply.starts_with("250 2.0.0 Ok: queued as ") && told.taken == 1, "{told:?}");
        assert_eq!(asker.keeping.len(), 1, "its worker knew before that it is kept");
        running.seen.wait(1, "<nobody@far.example> failed");
        running.seen.wait(1, "delivered to <full@far.example>");
        running.seen.wait(1, "delivered to <alice@demo.test>");
        // Nobody has it: nothing is kept, and the client comes again as long as that may help.
        refuse("full@far.example", "452 4.2.2 full");
        refuse("nobody@far.example", "550 5.1.1 nobody");
        let told = asker.one(&to(&["nobody@far.example", "full@far.example"]));
        assert_eq!((&*told.reply, told.taken), ("452 4.2.2 full", 0));
        refuse("nobody@far.example", "550 5.1.1 nobody");
        refuse("nobody2@far.example", "551 5.1.6 moved");
        let told = asker.one(&to(&["nobody@far.example", "nobody2@far.example"]));
        assert_eq!((&*told.reply, told.taken), ("550 5.1.1 nobody", 0));
        // Nor where everybody has it.
        let told = asker.one(&to(&["erin@far.example", "frank@far.example"]));
        assert!(told.reply.starts_with("250 2.0.0 Ok: passed on as ") && told.taken == 2, "{told:?}");
        assert_eq!(asker.keeping.len(), 1);
        // An ordinary route among them.
        refuse("nobody@far.example", "550 5.1.1 nobody");
        let told = asker.one(&to(&["dave@demo.test", "nobody@far.example", "bob@far.example"]));
        assert!(told.reply.starts_with("250 2.0.0 Ok: queued as "), "{told:?}");
        running.seen.wait(1, "delivered to <dave@demo.test> by maildir");
        running.seen.wait(2, "delivered to <alice@demo.test>");
        let told = asker.one(&to(&["bob@far.example", "dave@demo.test"]));
        assert!(told.reply.starts_with("250 2.0.0 Ok: queued as "), "{told:?}");
        running.seen.wait(2, "delivered to <dave@demo.test> by maildir");
        assert_eq!(asker.keeping.len(), 3);
        let seen = running.stop();
        assert_eq!(seen.count("delivered to <bob@far.example>"), 3, "{:#?}", seen.lines.lock());
        let to: Vec<String> = hop.script.taken.lock().iter().flat_map(|(to, _)| to.clone()).collect();
        assert_eq!(to.iter().filter(|to| *to == "bob@far.example").count(), 3, "{to:?}");
        assert_eq!(to.iter().filter(|to| *to == "full@far.example").count(), 1, "{to:?}");
        assert_eq!(to.len(), 6, "{to:?}");
        for notice in new_files(&mail.join("demo.test/alice")).values() {
            assert!(
                notice.contains("Diagnostic-Code: smtp; 550 5.1.1 nobody\n") && !notice.contains("full@"),
                "{notice}"
            );
        }
        assert_eq!(std::fs::read_dir(mail.join("demo.test/alice/new")).unwrap().count(), 2);
        std::fs::remove_dir_all(&mail).unwrap();
        // And nothing comes again.
        let again = Running::start(&spool, Routes::new(None));
        wait_until_empty(&spool);
        assert_eq!(again.stop().count("waits"), 0);
    }
}

#[test]
fn clients_wait_for_a_connection_and_beside_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script { frozen: AtomicBool::new(true), ..Script::default() });
    let slow = HopSettings { patience: LONG, ..hop_settings(vec![hop.place()], Protocol::Smtp) };
    let other = Hop::start(Script::default());
    let route = passing(slow);
    let routes =
        Routes::new(Some(route)).domain("other.example", passing(hop_settings(vec![other.place()], Protocol::Smtp)));
    let running = Running::start(folder.path(), routes);
    let mut worker = Worker::start(folder.path());
    running.handle.follow(worker.link.take().unwrap());
    for _ in 0..3 {
        worker.commit(Some("a@b.example"), &[("c@far.example", "")], BODY);
    }
    let mut asker = Asker::start(&running);
    for _ in 0..9 {
        asker.ask(&to(&["bob@far.example"]), BODY, LONG);
    }
    // A route that stalls holds up no other.
    let quick = asker.ask(&to(&["bob@other.example"]), BODY, LONG);
    assert!(asker.answers(1)[&quick].reply.starts_with("250 "));
    hop.script.frozen.store(false, Ordering::SeqCst);
    let answers = asker.answers(9);
    assert!(answers.values().all(|told| told.reply.starts_with("250 ")), "{answers:?}");
    running.seen.wait(3, "delivered to <c@far.example>");
    running.stop();
    assert_eq!(hop.texts().len(), 12);
    assert!(hop.script.connections.load(Ordering::SeqCst) <= 4, "two at a time");
}

#[test]
fn a_large_message_passes_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script { chunking: AtomicBool::new(true), ..Script::default() });
    let running =
        Running::start(folder.path(), Routes::new(Some(passing(hop_settings(vec![hop.place()], Protocol::Smtp)))));
    let mut asker = Asker::start(&running);
    let large = format!("Subject: x\r\n\r\n{}", ".line of a large message\r\n".repeat(200_000));
    let asked = asker.ask(&to(&["bob@far.example"]), large.as_bytes(), LONG);
    assert!(asker.answers(1)[&asked].reply.starts_with("250 "));
    assert!(hop.texts() == [format!("Received: by here\r\n{large}")]);
    // Mixed: it goes through the spool as well.
    hop.script.by_address.lock().insert("full@far.example".into(), VecDeque::from(["452 4.2.2 full"]));
    let asked = asker.ask(&to(&["bob@far.example", "full@far.example"]), large.as_bytes(), LONG);
    assert!(asker.answers(1)[&asked].reply.starts_with("250 2.0.0 Ok: queued"));
    running.seen.wait(1, "delivered to <full@far.example>");
    running.stop();
    assert!(hop.texts().iter().all(|text| *text == format!("Received: by here\r\n{large}")));
}

#[test]
fn the_end_of_a_worker_or_of_delivery_while_a_client_waits() {
    let folder = tempfile::tempdir().unwrap();
    let script = || Script { frozen: AtomicBool::new(true), ..Script::default() };
    let hop = Hop::start(script());
    let slow = |hop: &Hop| passing(HopSettings { patience: LONG, ..hop_settings(vec![hop.place()], Protocol::Smtp) });
    let running = Running::start(folder.path(), Routes::new(Some(slow(&hop))));
    let mut asker = Asker::start(&running);
    asker.ask(&to(&["bob@far.example"]), BODY, LONG);
    let late = Instant::now() + Duration::from_secs(20);
    while hop.script.connections.load(Ordering::SeqCst) < 1 {
        assert!(Instant::now() < late, "nobody connects");
        std::thread::yield_now();
    }
    drop(asker);
    hop.script.frozen.store(false, Ordering::SeqCst);
    running.seen.wait(1, "1 recipients may get it twice: the worker whose client waited is gone");
    running.stop();

    let hop = Hop::start(script());
    let running = Running::start(folder.path(), Routes::new(Some(slow(&hop))));
    let mut asker = Asker::start(&running);
    for _ in 0..5 {
        asker.ask(&to(&["bob@far.example"]), BODY, LONG);
    }
    while hop.script.connections.load(Ordering::SeqCst) < 2 {
        assert!(Instant::now() < late, "nobody connects");
        std::thread::yield_now();
    }
    // Those that wait for a connection are answered too.
    running.stop();
    let answers = asker.answers(5);
    assert!(answers.values().all(|told| told.reply.starts_with("451 ") && told.taken == 0), "{answers:?}");
    assert!(hop.texts().is_empty());
}

#[test]
fn nothing_is_kept_for_a_worker_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script { frozen: AtomicBool::new(true), ..Script::default() });
    hop.script.by_address.lock().insert("full@far.example".into(), VecDeque::from(["452 4.2.2 full"]));
    let slow = HopSettings { patience: LONG, ..hop_settings(vec![hop.place()], Protocol::Smtp) };
    let running = Running::start(folder.path(), Routes::new(Some(passing(slow))));
    let mut asker = Asker::start(&running);
    asker.ask(&to(&["bob@far.example", "full@far.example"]), BODY, LONG);
    let begun = Instant::now();
    while hop.script.connections.load(Ordering::SeqCst) < 1 {
        assert!(begun.elapsed() < LONG, "nobody connects");
        std::thread::yield_now();
    }
    // Its client comes again, to both of them.
    drop(asker);
    hop.script.frozen.store(false, Ordering::SeqCst);
    running.seen.wait(1, "1 recipients may get it twice: the worker whose client waited is gone");
    assert_eq!(running.stop().count("delivered to <full@far.example>"), 0);
    assert!(is_empty(folder.path()));
    assert_eq!(hop.texts(), [WHOLE]);
}

#[test]
fn questions_that_make_no_sense_are_left() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script::default());
    let running =
        Running::start(folder.path(), Routes::new(Some(passing(hop_settings(vec![hop.place()], Protocol::Smtp)))));
    let mut asker = Asker::start(&running);
    let question = |body_octets, envelope_octets| Question {
        id: 1,
        unix_ms: 0,
        until_ms: u64::MAX,
        body_octets,
        envelope_octets,
        prepend_octets: 0,
    };
    for (body_octets, envelope_octets) in [(u64::MAX, u32::MAX), (1 << 40, 5), (0, 10), (5, 5)] {
        let file = link::sealed::create("message", b"0123456789").unwrap();
        let mut outbox = Outbox::new(1 << 16);
        outbox.push_with(QUESTION, 7, vec![file], |to| question(body_octets, envelope_octets).encode(to)).unwrap();
        outbox.flush(&asker.ours).unwrap();
    }
    let mut outbox = Outbox::new(1 << 16);
    outbox.push(QUESTION, 7, |to| question(5, 5).encode(to)).unwrap();
    outbox.flush(&asker.ours).unwrap();
    running.seen.wait(5, "link from a worker: ");
    assert!(asker.one(&to(&["bob@far.example"])).reply.starts_with("250 "));
    running.stop();
}
