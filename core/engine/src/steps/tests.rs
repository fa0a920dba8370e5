//! A shard's side of mechanism-hosts, without processes.

use std::time::Duration;

use link::mechanism::Described;
use rustix::event::PollFlags;
use sasl::Facts;

use super::*;

/// A library with one mechanism, and steps that know it.
struct Bench {
    steps: Steps,
    library: Arc<RemoteLibrary>,
    answers: Vec<(Token, Outcome)>,
}

impl Bench {
    fn new() -> Self {
        let name = MechanismName::parse(b"X-A").unwrap();
        let library = Arc::new(RemoteLibrary::new("a", Runner(0), &[name], false, None));
        Self { steps: Steps::new(4), library, answers: Vec::new() }
    }

    /// A new host that has described itself: its number here, and its end.
    fn host(&mut self, generation: u32) -> (u32, Link) {
        let (here, there) = Link::pair().unwrap();
        let number = self.steps.connect(Arc::clone(&self.library), generation, here, false);
        let described = Described {
            name: "X-A",
            flags: 1,
            needs: 1,
            strength: 1,
            message_octets_max: 100,
            output_octets_max: 10,
            steps_max: 4,
            plus_of: "",
        };
        say(&there, DESCRIPTION, 0, |to| Description { mechanisms: vec![described] }.encode(to));
        self.steps.receive(number, &mut self.answers);
        (number, there)
    }

    fn ask(&mut self, session: u64, event: Event<'_>) -> Result<Token, OwnedStep> {
        let facts = Facts {
            tls: true,
            tls_version: 0x0304,
            client_certificate: false,
            plus_offered: false,
            channel_bindings: 0,
            server_name: "mx.example",
            client_ip: [127, 0, 0, 1].into(),
            listener: "mx",
            sni: "",
            session: 1,
        };
        let input = Input { event, message: b"m", facts: &facts, entropy: &[], unix_ms: 1, exchange: 1 };
        let mechanism = Arc::clone(&self.library.mechanisms[0]);
        let asked = self.steps.ask(Token::from_word(session), &*mechanism, &input);
        self.steps.flush(&mut self.answers);
        asked
    }

    fn start(&mut self, session: u64) -> Token {
        self.ask(session, Event::Start { initial: true }).unwrap_or_else(|_| panic!("asked"))
    }
}

fn say(link: &Link, kind: u16, id: u64, write: impl FnOnce(&mut Vec<u8>)) {
    let mut outbox = Outbox::new(1 << 16);
    outbox.push(kind, id, write).unwrap();
    assert!(outbox.flush(link).unwrap());
}

fn challenge(link: &Link, id: u64, data: &[u8]) {
    let answer = wire::Answer { action: 1, arg: 0, last: false, parts: [data, b"", b""] };
    say(link, ANSWER, id, |to| answer.encode(to));
}

/// Kinds and ids of what arrived; `None` at the end of the link.
fn heard(link: &Link) -> Option<Vec<(u16, u64)>> {
    let (mut packet, mut all) = (Vec::new(), Vec::new());
    loop {
        match link.receive(&mut packet).unwrap() {
            Received::Packet { .. } => all.extend(frames(&packet).flatten().map(|frame| (frame.kind, frame.id))),
            Received::WouldBlock => return Some(all),
            Received::Closed => return (!all.is_empty()).then_some(all),
        }
    }
}

/// Waits for the end of a link that says nothing more. A child of another test has a copy of the other side until it has
/// become a program of its own.
fn until_end(link: &Link) {
    assert!(link.wait(PollFlags::IN, Some(Duration::from_secs(30))).unwrap(), "still open");
}

#[test]
fn late_double_and_foreign_answers_find_nobody() {
    let mut bench = Bench::new();
    let (first, there) = bench.host(1);
    let id = bench.start(7);
    assert_eq!(heard(&there), Some(vec![(STEP, id.word())]));
    // Keeps the link to the older edition open.
    bench.start(6);
    // Another host's answer to a question that it was not asked.
    let (second, other) = bench.host(2);
    challenge(&other, id.word(), b"x");
    bench.steps.receive(second, &mut bench.answers);
    assert!(bench.answers.is_empty());
    challenge(&there, id.word(), b"x");
    challenge(&there, id.word(), b"x");
    bench.steps.receive(first, &mut bench.answers);
    assert!(matches!(&bench.answers[..], [(session, Outcome::Step(_))] if session.word() == 7));
    bench.answers.clear();
    // Its deadline passed, and a new exchange began: the answer is not the new one's.
    let late = bench.ask(7, Event::Message).unwrap_or_else(|_| panic!("asked"));
    assert!(bench.steps.forget(Token::from_word(7), late.index()));
    bench.start(7);
    challenge(&there, late.word(), b"x");
    bench.steps.receive(first, &mut bench.answers);
    assert!(bench.answers.is_empty());
}

#[test]
fn an_answer_beyond_what_was_declared_is_internal() {
    let mut bench = Bench::new();
    let (number, there) = bench.host(1);
    let id = bench.start(7);
    challenge(&there, id.word(), b"more than ten octets");
    bench.steps.receive(number, &mut bench.answers);
    let [(_, Outcome::Step(step))] = &bench.answers[..] else { panic!("one answer") };
    assert!(matches!(step.step(), Step::Failure { class: FailureClass::Internal, .. }));
}

#[test]
fn a_dead_host_ends_its_exchanges_and_new_ones_wait_for_the_next() {
    let mut bench = Bench::new();
    let (number, there) = bench.host(1);
    let waiting = bench.start(7);
    challenge(&there, waiting.word(), b"x");
    bench.steps.receive(number, &mut bench.answers);
    bench.answers.clear();
    bench.start(8);
    drop(there);
    until_end(bench.steps.link(number).unwrap());
    bench.steps.receive(number, &mut bench.answers);
    assert!(matches!(&bench.answers[..], [(session, _)] if session.word() == 8), "in flight: told at once");
    let Err(lost) = bench.ask(7, Event::Message) else { panic!("its state is gone") };
    assert!(matches!(lost.step(), Step::Failure { class: FailureClass::Temporary, .. }));
    let next = bench.start(9);
    let (_, there) = bench.host(1);
    bench.steps.flush(&mut bench.answers);
    assert_eq!(heard(&there), Some(vec![(STEP, next.word())]));
}

#[test]
fn an_older_edition_finishes_what_it_began_and_is_left() {
    let mut bench = Bench::new();
    let (_, old) = bench.host(1);
    bench.start(7);
    let (_, new) = bench.host(2);
    let begun = bench.start(8);
    assert_eq!(heard(&new), Some(vec![(STEP, begun.word())]));
    let more = bench.ask(7, Event::Message).unwrap_or_else(|_| panic!("asked"));
    assert_eq!(heard(&old).unwrap().last(), Some(&(STEP, more.word())), "its state is there");
    bench.steps.finish(Token::from_word(7));
    assert_eq!(heard(&old), Some(vec![(FINISH, 0)]));
    until_end(&old);
    assert_eq!(heard(&old), None, "closed: the process may go");
    assert_eq!(heard(&new), Some(vec![]));
}

#[test]
fn what_waits_is_bounded_and_nonsense_is_left() {
    let mut bench = Bench::new();
    let (number, there) = bench.host(1);
    for session in 0..4 {
        bench.start(session);
    }
    assert!(bench.ask(5, Event::Start { initial: false }).is_err());
    there.send(b"nonsense", &[]).unwrap();
    bench.steps.receive(number, &mut bench.answers);
    assert_eq!(bench.answers.len(), 4);
    assert!(bench.steps.link(number).is_none());
}

/// What a step and its answer take is there from the exchange before: a preloaded counter sees every `malloc` of this
/// test in a process of its own, with few exchanges and with many.
#[test]
fn an_exchange_allocates_nothing() {
    const FEW: u64 = 64;
    const MANY: u64 = FEW + 10_000;
    if let Some(exchanges) = std::env::var("EXCHANGES").ok().and_then(|text| text.parse().ok()) {
        return exchange(exchanges);
    }
    let folder = tempfile::tempdir().unwrap();
    let (counter, report) = (folder.path().join("count.so"), folder.path().join("report"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugin-host/tests/fixtures/count.c");
    let built = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&counter).arg(source).status();
    assert!(built.unwrap().success());
    let count = |exchanges: u64| -> u64 {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "steps::tests::an_exchange_allocates_nothing", "--test-threads=1"])
            .env("LD_PRELOAD", &counter)
            .env("ALLOCATIONS", &report)
            .env("EXCHANGES", exchanges.to_string())
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
        std::fs::read_to_string(&report).unwrap().parse().unwrap()
    };
    let (few, many) = (count(FEW), count(MANY));
    assert!(few > 100, "the counter does not count: {few}");
    // The test's own frame is not the same to the last octet each time.
    assert!(many.saturating_sub(few) < 100, "{} exchanges allocated {}", MANY - FEW, many - few);
}

/// So many exchanges of a step and an answer, one after the other.
fn exchange(exchanges: u64) {
    let mut bench = Bench::new();
    let (number, there) = bench.host(1);
    let (mut outbox, mut packet) = (Outbox::new(1 << 16), Vec::new());
    for session in 0..exchanges {
        let id = bench.start(session % 4);
        assert!(matches!(there.receive(&mut packet), Ok(Received::Packet { .. })));
        let answer = wire::Answer { action: 1, arg: 0, last: false, parts: [b"challenge", b"", b""] };
        outbox.push_sized(ANSWER, id.word(), answer.octets(), |to| answer.encode(to)).unwrap();
        assert!(outbox.flush(&there).unwrap());
        bench.steps.receive(number, &mut bench.answers);
        let Some((session, Outcome::Step(answer))) = bench.answers.pop() else { panic!("no answer") };
        assert!(matches!(answer.step(), Step::Challenge(b"challenge")));
        bench.steps.reuse(answer);
        bench.steps.finish(session);
    }
}
