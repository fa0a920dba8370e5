use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use link::directory::Answer;

use super::*;
use crate::scheme;
use crate::watch::Found;

const STOP: u16 = 0x13;
const PEER: u16 = 0x06;

/// A running directory process in a thread, and our end of its control link.
struct Running {
    control: Link,
    folder: tempfile::TempDir,
    epoch: Arc<AtomicU64>,
    events: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<Counts>>,
    links: mpsc::Sender<Link>,
}

impl Running {
    fn start(text: &str, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        std::fs::write(&path, text).unwrap();
        let mut config = Config::new(path, [1; 32]);
        config.threads = 2;
        change(&mut config);
        let epoch = Arc::new(AtomicU64::new(0));
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        let report: Report = Arc::new(move |event: &Event| log.lock().unwrap().push(event.to_string()));
        let mut service = Service::new(config, epoch.clone(), report).unwrap();
        let (control, theirs) = Link::pair().unwrap();
        let (links, new_links) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let run = service.run(theirs, |control, service| match control {
                Control::Packet { octets, .. } => {
                    let mut flow = ControlFlow::Continue(());
                    for frame in frames(octets).map(Result::unwrap) {
                        match frame.kind {
                            PEER => service.add_link(new_links.recv().unwrap()),
                            STOP => flow = ControlFlow::Break(()),
                            other => panic!("{other}"),
                        }
                        service.say(0x0f, 0, |to| to.push(1)).unwrap();
                    }
                    flow
                }
                Control::Closed => ControlFlow::Break(()),
                Control::Tick => ControlFlow::Continue(()),
            });
            run.unwrap();
            service.counts()
        });
        Self { control, folder, epoch, events, thread: Some(thread), links }
    }

    fn say(&self, kind: u16) {
        let mut outbox = Outbox::new(1000);
        outbox.push(kind, 0, |_| ()).unwrap();
        assert!(outbox.flush(&self.control).unwrap());
        assert!(self.control.wait(PollFlags::IN, Some(Duration::from_secs(30))).unwrap());
        assert!(matches!(self.control.receive(&mut Vec::new()).unwrap(), Received::Packet { .. }));
    }

    fn link(&self) -> Link {
        let (ours, theirs) = Link::pair().unwrap();
        self.links.send(theirs).unwrap();
        self.say(PEER);
        ours
    }

    fn stop(mut self) -> Counts {
        self.say(STOP);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn verify<'a>(name: &'a str, password: &'a str) -> Question<'a> {
    Question::VerifyPassword {
        listener: "submission",
        client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        mechanism: "PLAIN",
        authcid: name.as_bytes(),
        authzid: b"",
        password: password.as_bytes(),
    }
}

fn ask(link: &Link, questions: &[(u64, Question<'_>)]) {
    let mut outbox = Outbox::new(1 << 20);
    for (id, question) in questions {
        outbox.push(QUESTION, *id, |to| question.encode(to)).unwrap();
    }
    while !outbox.flush(link).unwrap() {
        assert!(link.wait(PollFlags::OUT, Some(Duration::from_secs(30))).unwrap());
    }
}

/// The statuses of the answers, by question.
fn hear(link: &Link, count: usize) -> HashMap<u64, u8> {
    let mut answers = HashMap::new();
    let mut packet = Vec::new();
    while answers.len() < count {
        assert!(link.wait(PollFlags::IN, Some(Duration::from_secs(60))).unwrap(), "no more answers");
        match link.receive(&mut packet).unwrap() {
            Received::Packet { .. } => {}
            Received::WouldBlock => continue,
            Received::Closed => panic!("the directory closed the link"),
        }
        for frame in frames(&packet).map(Result::unwrap) {
            assert_eq!(frame.kind, ANSWER);
            let (Answer::Sasl { status, .. } | Answer::Recipient { status, .. } | Answer::Sender { status }) =
                Answer::decode(frame.payload).unwrap();
            assert!(answers.insert(frame.id, status).is_none(), "answered twice");
        }
    }
    answers
}

const SSHA: &str = "{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==";

#[test]
fn a_thousand_questions_over_two_links() {
    let running = Running::start(&format!("alice@demo.test:{SSHA}\n"), |config| {
        config.decoys =
            Decoys::new([1; 32], vec![crate::decoy::Profile { weight: 1, iterations: 4096, salt_octets: 16 }]);
    });
    assert_eq!(running.epoch.current(), 1);
    let links = [running.link(), running.link()];
    std::thread::scope(|scope| {
        for link in &links {
            scope.spawn(move || {
                let question = |n: u64| match n % 5 {
                    0 => verify("alice@demo.test", "pencil"),
                    1 => Question::Recipient { address: "alice+x@demo.test" },
                    2 => Question::Recipient { address: "nobody@demo.test" },
                    3 => Question::Sender { identity: "alice@demo.test", address: "bob@demo.test" },
                    _ => Question::Sender { identity: "alice@demo.test", address: "alice@demo.test" },
                };
                let questions: Vec<_> = (0..500).map(|n| (n, question(n))).collect();
                ask(link, &questions);
                for (id, status) in hear(link, 500) {
                    assert_eq!(status, [0, 0, 1, 1, 0][(id % 5) as usize], "{id}");
                }
            });
        }
    });
    let counts = running.stop();
    assert_eq!((counts.questions, counts.refused, counts.dropped, counts.damaged), (1000, 0, 0, 0));
}

#[test]
fn a_full_queue_answers_at_once() {
    let slow = scheme::new_scram_sha256(b"pencil", 100_000).unwrap();
    let running = Running::start(&format!("alice@demo.test:{}\n", *slow), |config| {
        (config.threads, config.queue_max) = (1, 4);
    });
    let link = running.link();
    let questions: Vec<_> = (0..100).map(|id| (id, verify("alice@demo.test", "pencil"))).collect();
    ask(&link, &questions);
    let answers = hear(&link, 100);
    let good = answers.values().filter(|status| **status == 0).count();
    let busy = answers.values().filter(|status| **status == 2).count();
    assert_eq!(good + busy, 100);
    assert!(good >= 2 && busy >= 50, "{good} good, {busy} busy");
    // Recipients do not queue behind passwords.
    ask(&link, &[(1, verify("alice@demo.test", "pencil")), (2, Question::Recipient { address: "alice@demo.test" })]);
    assert_eq!(hear(&link, 2), HashMap::from([(1, 0), (2, 0)]));
    assert_eq!(running.stop().refused, busy as u64);
}

#[test]
fn who_waited_too_long_is_not_worked_for() {
    let running = Running::start(&format!("alice@demo.test:{SSHA}\n"), |config| config.wait_max = Duration::ZERO);
    let link = running.link();
    ask(&link, &[(1, verify("alice@demo.test", "pencil"))]);
    assert_eq!(hear(&link, 1), HashMap::from([(1, 2)]));
    running.stop();
}

#[test]
fn a_stuck_worker_disturbs_nobody() {
    let running = Running::start("alice@demo.test:\n", |_| ());
    let (stuck, busy) = (running.link(), running.link());
    // Asks and never listens, until its own socket is full.
    let questions: Vec<_> = (0..1000).map(|id| (id, Question::Recipient { address: "alice@demo.test" })).collect();
    let mut asked = 0;
    'asking: for _ in 0..1000 {
        let mut outbox = Outbox::new(1 << 20);
        for (id, question) in &questions {
            outbox.push(QUESTION, *id, |to| question.encode(to)).unwrap();
        }
        while !outbox.flush(&stuck).unwrap() {
            // Not a sleep: the directory has stopped reading, or the socket would be writable again.
            if !stuck.wait(PollFlags::OUT, Some(Duration::from_millis(300))).unwrap() {
                break 'asking;
            }
        }
        asked += 1;
    }
    assert!(asked < 1000, "the directory never stopped reading");
    for round in 0..20 {
        ask(&busy, &[(round, Question::Recipient { address: "alice@demo.test" })]);
        assert_eq!(hear(&busy, 1), HashMap::from([(round, 0)]));
    }
    drop(stuck);
    ask(&busy, &[(1, Question::Recipient { address: "alice@demo.test" })]);
    hear(&busy, 1);
    assert_eq!(running.stop().dropped, 0);
}

#[test]
fn nonsense_ends_a_link_and_nothing_else() {
    let running = Running::start("alice@demo.test:\n", |_| ());
    let (bad, good) = (running.link(), running.link());
    let mut outbox = Outbox::new(1000);
    outbox.push(0x7777, 1, |to| to.push(1)).unwrap();
    outbox.push(QUESTION, 2, |to| to.push(99)).unwrap();
    assert!(outbox.flush(&bad).unwrap());
    // Unknown kinds and damaged questions are skipped.
    ask(&bad, &[(3, Question::Recipient { address: "alice@demo.test" })]);
    assert_eq!(hear(&bad, 1), HashMap::from([(3, 0)]));
    // A packet that is not made of frames is the end.
    bad.send(b"xyz", &[]).unwrap();
    assert!(bad.wait(PollFlags::IN, Some(Duration::from_secs(30))).unwrap());
    assert!(matches!(bad.receive(&mut Vec::new()).unwrap(), Received::Closed));
    ask(&good, &[(4, Question::Recipient { address: "x@demo.test" })]);
    assert_eq!(hear(&good, 1), HashMap::from([(4, 1)]));
    assert!(running.events.lock().unwrap().iter().any(|event| event.contains("link to a worker ended")));
    let counts = running.stop();
    assert_eq!((counts.unknown, counts.damaged), (1, 1));
}

#[test]
fn it_ends_with_its_supervisor() {
    let mut running = Running::start("alice@demo.test:\n", |_| ());
    let thread = running.thread.take().unwrap();
    drop(running);
    thread.join().unwrap();
}

#[test]
fn a_bad_file_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    std::fs::write(&path, "a:\nb\n").unwrap();
    let report: Report = Arc::new(|_: &Event| ());
    let error = Service::new(Config::new(path, [0; 32]), Arc::new(AtomicU64::new(0)), report).err().unwrap();
    assert!(error.to_string().contains(":2:2: no colon"), "{error}");
}

#[test]
fn changes_are_taken_up_and_bad_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    let replace = |text: &str| {
        let new = folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    replace("a@x:\n");
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    let report: Report = Arc::new(move |event: &Event| log.lock().unwrap().push(event.name()));
    let (mut watch, users) = Watch::open(path.clone(), Arc::default(), report).unwrap();
    let epoch = Arc::new(AtomicU64::new(0));
    let directory = Directory::new(users, Decoys::new([0; 32], Vec::new()), None, epoch.clone());
    let has = |name: &str| directory.users().named(name).is_some();
    events.lock().unwrap().clear();

    assert_eq!(watch.check(&directory), Found::Same);
    replace("b@x:\n");
    assert_eq!(watch.check(&directory), Found::Replaced);
    assert!(has("b@x") && !has("a@x") && epoch.current() == 1);
    // Bad content, removal, and the same again: told once, the old content stays.
    replace("b@x:\nc\n");
    assert_eq!((watch.check(&directory), watch.check(&directory)), (Found::Refused, Found::Same));
    std::fs::remove_file(&path).unwrap();
    assert_eq!((watch.check(&directory), watch.check(&directory)), (Found::Refused, Found::Refused));
    assert!(has("b@x") && epoch.current() == 1);
    replace("c@x:\n");
    assert_eq!(watch.check(&directory), Found::Replaced);
    // Written in place: not before it looks the same twice.
    std::fs::write(&path, "c@x:\nd@x:\n").unwrap();
    assert_eq!(watch.check(&directory), Found::Unsettled);
    std::fs::write(&path, "c@x:\nd@x:\ne@x:\n").unwrap();
    assert_eq!((watch.check(&directory), watch.check(&directory)), (Found::Unsettled, Found::Replaced));
    assert!(has("e@x") && epoch.current() == 3);
    let events: Vec<_> = events.lock().unwrap().iter().copied().filter(|event| *event != "users.loose-mode").collect();
    assert_eq!(events, ["users.loaded", "users.reload-failed", "users.reload-failed", "users.loaded", "users.loaded"]);
}

#[test]
fn a_running_directory_takes_up_changes_by_itself() {
    let running = Running::start("a@x:\n", |_| ());
    let link = running.link();
    let file = crate::edit::UsersFile::new(running.folder.path().join("users"), Options::default());
    file.add(&crate::edit::NewUser { name: "b@x", ..Default::default() }).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        ask(&link, &[(1, Question::Recipient { address: "b@x" })]);
        if hear(&link, 1)[&1] == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "the new user was never seen");
    }
    assert_eq!(running.epoch.current(), 2);
    running.stop();
}
