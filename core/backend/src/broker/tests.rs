use std::sync::{Arc, Mutex};

use super::*;

struct Bench {
    broker: Broker,
    host: Link,
    told: Arc<Mutex<Vec<&'static str>>>,
    now: Now,
    tickets: u64,
}

fn spec(parallel: Option<usize>) -> Spec {
    Spec {
        library: "acme".into(),
        name: "acme".into(),
        mechanisms: vec!["X-ACME".into()],
        provides: EffectKind::VerifyPassword.need() | EffectKind::BackendCall.need(),
        timeout_ms: 1000,
        queue_max: 8,
        parallel,
        decoys: Decoys::new([7; 32], Vec::new()),
    }
}

impl Bench {
    fn new(parallel: Option<usize>) -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = told.clone();
        let report: Report = Arc::new(move |event: &Event| to.lock().unwrap().push(event.name()));
        let broker = Broker::new(vec![spec(parallel)], report);
        let (ours, host) = Link::pair().unwrap();
        let mut bench = Self { broker, host, told, now: Now { ms: 0, unix_ms: 1_000_000 }, tickets: 0 };
        bench.broker.connect("acme", 1, ours);
        bench.describe(2);
        bench
    }

    fn describe(&mut self, parallel: u32) {
        let described = link::backend::Described { name: "acme", provides: 1, parallel };
        let description = Description { backends: vec![described] };
        self.say(DESCRIPTION, 0, |to| description.encode(to));
    }

    fn say(&mut self, kind: u16, id: u64, write: impl FnOnce(&mut Vec<u8>)) {
        let mut outbox = Outbox::new(1 << 20);
        outbox.push(kind, id, write).unwrap();
        assert!(outbox.flush(&self.host).unwrap());
        self.broker.turn(self.now);
    }

    fn reply(&mut self, id: u64, status: u32) {
        let reply = Reply { found: true, ..Reply::of(status) };
        self.say(REPLY, id, |to| reply.encode(to));
    }

    fn ask_as(&mut self, client: &str, mechanism: &str, effect: EffectKind, service: &[u8]) -> Result<(), Refusal> {
        self.tickets += 1;
        let effect = Effect {
            effect: effect as u32,
            arg: 0,
            conn_flags: 0,
            tls_version: 0,
            session: 0,
            client_ip: client.parse().unwrap(),
            mechanism,
            listener: "submission",
            sni: "",
            authcid: b"alice",
            authzid: b"",
            data: b"secret",
            data2: b"",
            service,
        };
        let mut question = Vec::new();
        let backend = if service.is_empty() { "acme" } else { "" };
        Question::Backend { backend, effect }.encode(&mut question);
        let asked = self.broker.ask(Ticket { link: 1, id: self.tickets }, &question, self.now);
        self.broker.turn(self.now);
        asked
    }

    fn ask(&mut self) -> Result<(), Refusal> {
        let client = format!("192.0.2.{}", self.tickets % 200);
        self.ask_as(&client, "PLAIN", EffectKind::VerifyPassword, b"")
    }

    /// Ids of the calls that have come to the process.
    fn calls(&self) -> Vec<u64> {
        let (mut packet, mut ids) = (Vec::new(), Vec::new());
        while let Received::Packet { .. } = self.host.receive(&mut packet).unwrap() {
            for frame in frames(&packet).map(Result::unwrap) {
                let call = Call::decode(frame.payload).expect("a call");
                assert_eq!((frame.kind, call.backend), (CALL, "acme"));
                ids.push(frame.id);
            }
        }
        ids
    }

    /// Tickets that are over, and whether there was a reply.
    fn ended(&mut self) -> Vec<(u64, bool)> {
        self.broker.take_ended().into_iter().map(|one| (one.ticket.id, one.reply.is_some())).collect()
    }

    fn pass(&mut self, ms: u64) {
        self.now.ms += ms;
        self.now.unix_ms += ms;
        self.broker.turn(self.now);
    }
}

#[test]
fn no_more_calls_at_a_time_than_there_are_places() {
    let mut bench = Bench::new(None);
    for _ in 0..5 {
        assert_eq!(bench.ask(), Ok(()));
    }
    let calls = bench.calls();
    assert_eq!(calls.len(), 2, "as many as the library wants");
    assert_eq!(bench.broker.pending(), 5);
    // Somebody else's answer, one of nobody, and the right one twice.
    bench.reply(calls[1] + 1000, 0);
    bench.reply(calls[1], 0);
    bench.reply(calls[1], 1);
    assert_eq!(bench.ended(), [(2, true)]);
    assert_eq!(bench.calls().len(), 1, "the place went to the next");
    let mut fewer = Bench::new(Some(1));
    (0..3).for_each(|_| fewer.ask().unwrap());
    assert_eq!(fewer.calls().len(), 1, "as few as the operator wants");
}

#[test]
fn the_deadline_answers_and_the_place_stays_taken_until_the_end() {
    let mut bench = Bench::new(None);
    (0..3).for_each(|_| bench.ask().unwrap());
    let calls = bench.calls();
    assert_eq!(bench.broker.next_ms(), Some(1000));
    bench.pass(999);
    assert!(bench.ended().is_empty());
    bench.pass(1);
    let mut ended = bench.ended();
    ended.sort_unstable();
    assert_eq!(ended, [(1, false), (2, false), (3, false)], "waiting or running, both");
    assert_eq!(bench.broker.places(), 2);
    // A late answer is nobody's; it frees the place.
    bench.reply(calls[0], 0);
    assert!(bench.ended().is_empty());
    assert_eq!(bench.broker.places(), 1);
    bench.pass(2999);
    assert!(bench.broker.take_stuck().is_empty());
    bench.pass(1);
    assert_eq!(bench.broker.take_stuck(), [("acme".to_owned(), 1)]);
    bench.pass(5000);
    assert!(bench.broker.take_stuck().is_empty(), "once");
    bench.ask().unwrap();
    assert!(bench.calls().is_empty(), "nothing more for the condemned");
}

#[test]
fn five_failures_open_the_breaker_and_one_probe_closes_it() {
    let mut bench = Bench::new(None);
    for _ in 0..4 {
        bench.ask().unwrap();
        let calls = bench.calls();
        bench.reply(calls[0], 2);
    }
    bench.ask().unwrap();
    let calls = bench.calls();
    bench.reply(calls[0], 1);
    for _ in 0..4 {
        bench.ask().unwrap();
        let calls = bench.calls();
        bench.reply(calls[0], BROKEN);
    }
    assert_eq!(bench.ask(), Ok(()), "a good answer was between");
    bench.ask().unwrap();
    bench.ask().unwrap();
    bench.ended();
    let calls = bench.calls();
    bench.reply(calls[0], 2);
    assert!(bench.told.lock().unwrap().contains(&"backend.down"));
    assert_eq!(bench.ended(), [(10, true), (12, false)], "who waits is told at once; who is being served is served");
    assert_eq!(bench.ask(), Err(Refusal::Temporary));
    bench.reply(calls[1], 0);
    assert_eq!(bench.ended(), [(11, true)]);
    assert_eq!(bench.ask(), Err(Refusal::Temporary), "from before it opened: no probe");
    bench.pass(OPEN_MS);
    assert_eq!(bench.ask(), Ok(()), "the probe");
    assert_eq!(bench.ask(), Err(Refusal::Temporary), "one");
    let probe = bench.calls();
    bench.reply(probe[0], 2);
    assert_eq!(bench.ask(), Err(Refusal::Temporary));
    bench.pass(OPEN_MS);
    bench.ask().unwrap();
    let probe = bench.calls();
    bench.reply(probe[0], 1);
    assert_eq!(bench.ask(), Ok(()), "a wrong password is an answer, too");
    assert_eq!(bench.told.lock().unwrap().iter().filter(|name| **name == "backend.well").count(), 1);
}

#[test]
fn a_probe_that_dies_is_a_failure_and_not_the_end() {
    let mut bench = Bench::new(None);
    (0..5).for_each(|_| bench.ask().unwrap());
    // Nobody answers, nobody is there any more.
    let (ours, theirs) = Link::pair().unwrap();
    bench.host = theirs;
    bench.pass(1000);
    assert_eq!(bench.ask(), Err(Refusal::Temporary));
    bench.pass(OPEN_MS);
    assert_eq!(bench.ask(), Ok(()), "waits for a process");
    bench.pass(1000);
    assert_eq!(bench.ask(), Err(Refusal::Temporary));
    bench.broker.connect("acme", 2, ours);
    bench.describe(1);
    bench.pass(OPEN_MS);
    assert_eq!(bench.ask(), Ok(()));
    let calls = bench.calls();
    bench.reply(calls[0], 0);
    assert_eq!(bench.ask(), Ok(()));
}

#[test]
fn the_death_of_the_process_answers_what_it_had_and_what_waits_goes_to_the_next() {
    let mut bench = Bench::new(Some(1));
    bench.ask().unwrap();
    bench.ask().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    drop(std::mem::replace(&mut bench.host, theirs));
    bench.pass(1);
    assert_eq!(bench.ended(), [(1, false)]);
    bench.broker.connect("acme", 1, ours);
    bench.describe(7);
    let calls = bench.calls();
    assert_eq!(calls.len(), 1);
    bench.reply(calls[0], 0);
    assert_eq!(bench.ended(), [(2, true)]);
}

#[test]
fn a_newer_edition_takes_over_and_the_older_one_is_left_when_it_has_answered() {
    let mut bench = Bench::new(None);
    bench.ask().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    let old = std::mem::replace(&mut bench.host, theirs);
    bench.broker.connect("acme", 2, ours);
    bench.ask().unwrap();
    assert!(bench.calls().is_empty(), "it has not described itself");
    bench.describe(2);
    bench.ask().unwrap();
    assert_eq!(bench.calls().len(), 1);
    assert_eq!(bench.broker.interest().count(), 2);
    let new = std::mem::replace(&mut bench.host, old);
    for id in bench.calls() {
        bench.reply(id, 0);
    }
    assert_eq!(bench.ended().len(), 2);
    assert_eq!(bench.broker.interest().count(), 1);
    drop(new);
}

#[test]
fn nonsense_condemns_a_process() {
    for (kind, octets) in [(REPLY, &b"x"[..]), (DESCRIPTION, b"\xff\xff\xff\xff"), (REPLY, &[0; 400])] {
        let mut bench = Bench::new(None);
        bench.ask().unwrap();
        bench.say(kind, 1, |to| to.extend_from_slice(octets));
        assert_eq!(bench.broker.take_stuck().len(), 1);
        bench.pass(1000);
        assert_eq!(bench.ended(), [(1, false)]);
    }
    // What is only unknown is skipped.
    let mut bench = Bench::new(None);
    bench.say(0x04ff, 0, |to| to.extend_from_slice(b"of a later time"));
    assert!(bench.broker.take_stuck().is_empty());
}

#[test]
fn who_may_ask_whom() {
    let mut bench = Bench::new(None);
    let ip = "192.0.2.1";
    for (mechanism, effect, service, asked) in [
        ("PLAIN", EffectKind::FetchKey, &b""[..], Err(Refusal::Unsupported)),
        ("PLAIN", EffectKind::ChannelBinding, b"", Err(Refusal::Unsupported)),
        ("X-ACME", EffectKind::BackendCall, b"acme", Ok(())),
        ("X-OTHER", EffectKind::BackendCall, b"acme", Err(Refusal::Unsupported)),
        ("X-ACME", EffectKind::BackendCall, b"other", Err(Refusal::Unsupported)),
        ("X-ACME", EffectKind::BackendCall, b"\xff", Err(Refusal::Unsupported)),
    ] {
        assert_eq!(bench.ask_as(ip, mechanism, effect, service), asked, "{mechanism} {effect:?}");
    }
    // When it gets tight nobody holds more than a quarter of the queue.
    let mut bench = Bench::new(Some(1));
    let taken = (0..20).filter(|_| bench.ask_as(ip, "PLAIN", EffectKind::VerifyPassword, b"").is_ok()).count();
    assert_eq!(taken, 1 + 5);
    assert!(bench.ask_as("192.0.2.2", "PLAIN", EffectKind::VerifyPassword, b"").is_ok());
    let more =
        (0..20).filter(|n| bench.ask_as(&format!("198.51.100.{n}"), "PLAIN", EffectKind::VerifyPassword, b"").is_ok());
    assert_eq!(more.count(), 2, "eight may wait");
}
