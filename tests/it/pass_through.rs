//! Clients that wait for the next hop: real ones behind us, and the deaths of everybody in between.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};

use crate::hop::{Act, Hop, STEPS, Step};
use crate::next_hops::{dovecot, is_installed, is_root, mails, open_folder, postfix, present, server, wait};
use crate::server::{Options, PATIENCE, Server};

/// Alice, logged in.
pub struct Alice<'a> {
    stream: BufReader<TcpStream>,
    server: &'a Server,
}

impl<'a> Alice<'a> {
    pub fn login(server: &'a Server) -> Self {
        let stream = TcpStream::connect(server.submission()).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE * 2)).expect("a timeout");
        let mut alice = Self { stream: BufReader::new(stream), server };
        alice.expect("", "220");
        alice.expect("EHLO client.example\r\n", "250");
        alice.expect(&format!("AUTH PLAIN {}\r\n", STANDARD.encode("\0alice@demo.test\0secret")), "235");
        alice
    }

    /// The last line of the reply; `None` when the connection ends.
    fn say(&mut self, command: &str) -> Option<String> {
        self.stream.get_mut().write_all(command.as_bytes()).ok()?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.as_bytes().get(3) == Some(&b' ') {
                return Some(line.trim_end().to_owned());
            }
        }
    }

    fn expect(&mut self, command: &str, expect: &str) {
        let reply = self.say(command);
        let good = reply.as_ref().is_some_and(|reply| reply.starts_with(expect));
        assert!(good, "{command:?}: {reply:?}\n{}", self.server.log());
    }

    /// Everything up to the message, which is not sent yet.
    fn begin(&mut self, to: &[&str]) {
        self.expect("MAIL FROM:<alice@demo.test>\r\n", "250");
        to.iter().for_each(|to| self.expect(&format!("RCPT TO:<{to}>\r\n"), "250"));
        self.expect("DATA\r\n", "354");
    }

    /// Sends a message and returns the last reply.
    pub fn send(&mut self, to: &[&str], subject: &str) -> Option<String> {
        self.begin(to);
        self.say(&message(subject))
    }
}

fn message(subject: &str) -> String {
    format!("From: alice@demo.test\r\nSubject: {subject}\r\n\r\n..dots\r\nhello\r\n.\r\n")
}

#[test]
fn dovecot_and_postfix_decide_while_the_client_waits() {
    let there = is_root() && is_installed("dovecot") && is_installed("postfix");
    if !present("Dovecot and Postfix must be installed, and we must be root to start them", there) {
        return;
    }
    let dir = open_folder();
    let _dovecot = dovecot(dir.path());
    let other = Server::prepare(Options::default());
    let (certificate, key) = other.certificate_files();
    let (postfix, relay) = postfix(dir.path(), &certificate, &key);
    fs::write(dir.path().join("password"), "relay-secret\n").expect("a password");
    let path = dir.path().display();
    let server = server(
        &format!("kind = \"lmtp\"\npass_through = true\nto = [\"unix:{path}/lmtp\"]"),
        &format!(
            "kind = \"smtp\"\npass_through = true\nto = [\"{relay}\"]\ntls = \"required\"\ntls_ca = {certificate:?}\n\
             tls_name = {:?}\nuser = \"relay@demo.test\"\npassword_file = \"{path}/password\"",
            crate::bare::HOSTNAME
        ),
    );
    let tell = || {
        let log = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        format!("{}\n--- dovecot\n{}\n--- postfix\n{}", server.log(), log("dovecot.log"), log("postfix.log"))
    };
    let boxes = |name: &str| mails(&dir.path().join("boxes").join(name));
    let mut alice = Alice::login(&server);
    let mut send = |to: &[&str], subject: &str, expect: &str| {
        let reply = alice.send(to, subject).unwrap_or_default();
        assert!(reply.starts_with(expect), "{to:?}: {reply}\n{}", tell());
    };
    send(&["bob@demo.test"], "to dovecot", "250 2.0.0 Ok: passed on as ");
    // It was in the mailbox before the client heard so.
    let mail = boxes("bob").pop().expect("it is there");
    assert!(mail.contains("Subject: to dovecot\n\n.dots\nhello\n"), "{mail}");
    send(&["known@far.example"], "to postfix", "250 2.0.0 Ok: passed on as ");
    wait("mail at Postfix", &tell, || boxes("known").into_iter().find(|mail| mail.contains("Subject: to postfix\n")));
    // What they refuse, the client hears, with their codes.
    send(&["unknown@far.example"], "to nobody", "550 5.1.1 ");
    send(&["carol@demo.test"], "to nobody", "550 5.1.1 ");
    assert!(boxes("alice").is_empty(), "nobody is told twice");
    // Somebody has it: a report about the other.
    send(&["bob@demo.test", "carol@demo.test"], "to one of two", "250 2.0.0 Ok: passed on as ");
    let is_report = |mail: &String| mail.contains("Final-Recipient: rfc822; carol@demo.test\nAction: failed\n");
    wait("a report", &tell, || boxes("alice").into_iter().find(is_report));
    assert_eq!(boxes("bob").len(), 2);
    send(&["bob@demo.test"], "still to dovecot", "250 2.0.0 Ok: passed on as ");
    assert_eq!(boxes("bob").len(), 3);
    drop(postfix);
    // What it had open may serve a little longer.
    wait("the end of Postfix", &tell, || {
        let reply = alice.send(&["known@far.example"], "to the dead").expect("a reply");
        assert!(reply.starts_with("250 ") || reply.starts_with("451 4."), "{reply}");
        reply.starts_with("451 4.4.").then_some(())
    });
}

/// A server before a hop of ours; `extra` goes to the route.
fn before(hop: &Hop, extra: &str) -> Server {
    let others = format!("kind = \"smtp\"\nto = [\"{}\"]\n{extra}", hop.address);
    server("kind = \"maildir\"\npath = \"mail/%d/%n\"", &others)
}

fn process(server: &Server, role: &str) -> Option<Pid> {
    server.processes().get(role).and_then(|pids| pids.first()).copied()
}

/// Ends a process between two octets of the next hop; once.
struct Killer {
    victim: AtomicI32,
    at: Mutex<Option<Step>>,
    /// The victim stands still.
    stopped: AtomicBool,
}

impl Killer {
    fn new() -> Arc<Self> {
        Arc::new(Self { victim: AtomicI32::new(0), at: Mutex::new(None), stopped: AtomicBool::new(false) })
    }

    fn arm(&self, server: &Server, role: &str, step: Step) -> Pid {
        let pid = process(server, role).expect("it runs");
        self.victim.store(pid.as_raw_nonzero().get(), Ordering::SeqCst);
        *self.at.lock().expect("not poisoned") = Some(step);
        pid
    }

    fn step(&self, step: Step) -> Act {
        let mut at = self.at.lock().expect("not poisoned");
        let armed = *at;
        let signal = |signal| {
            let pid = Pid::from_raw(self.victim.load(Ordering::SeqCst)).expect("armed");
            kill_process(pid, signal).expect("a child of our child");
        };
        match (armed, step) {
            // It stands still while it is told that the message was taken, so that it cannot write that down.
            (Some(Step::Said), Step::End) => {
                signal(Signal::STOP);
                // One thread hears it and stops the others.
                while !is(self.victim.load(Ordering::SeqCst), 'T') {
                    std::thread::sleep(Duration::from_millis(1)); // between two looks
                }
                self.stopped.store(true, Ordering::SeqCst);
            }
            // Of the message before: its client may have had its reply, and armed us, earlier.
            (Some(Step::Said), Step::Said) if !self.stopped.swap(false, Ordering::SeqCst) => {}
            (Some(armed), step) if armed == step => {
                *at = None;
                signal(Signal::KILL);
                while !is(self.victim.load(Ordering::SeqCst), 'Z') {
                    std::thread::sleep(Duration::from_millis(1)); // between two looks
                }
                // What the dead do not hear need not be said.
                return Act::Close;
            }
            _ => {}
        }
        Act::Good
    }
}

/// Every thread of it; one that is gone may be anything.
fn is(pid: i32, state: char) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default()).all(|stat| {
        // `tid (name) state …`; the name may hold anything.
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(state))
    })
}

/// CONTRACT C8 and C4: delivery dies at every step of the next hop's dialogue.
#[test]
fn delivery_dies_at_every_step_while_the_client_waits() {
    let killer = Killer::new();
    let its = killer.clone();
    // A new connection for each message, so that each step happens.
    let hop = Hop::start(false, move |step, _| {
        if step == Step::Said {
            its.step(step);
            Act::Close
        } else {
            its.step(step)
        }
    });
    let server = before(&hop, "pass_through = true\n");
    let tell = || server.log();
    for (at, step) in STEPS.into_iter().enumerate() {
        let mut alice = Alice::login(&server);
        let victim = killer.arm(&server, "delivery", step);
        let subject = format!("step {at}");
        let reply = alice.send(&["bob@far.example"], &subject).expect("a reply");
        assert!(reply.starts_with("451 4.3.0 "), "{step:?}: {reply}");
        let taken =
            || hop.taken().iter().filter(|taken| taken.text.contains(&format!("Subject: {subject}\r\n"))).count();
        assert_eq!(taken(), usize::from(step == Step::Said), "{step:?}");
        wait("a doubt", &tell, || (server.log().matches("\"passed.doubt\"").count() > at).then_some(()));
        wait("a new delivery", &tell, || process(&server, "delivery").filter(|pid| *pid != victim));
        // The same session goes on, once the new one can be asked.
        wait("passed on", &tell, || {
            let reply = alice.send(&["bob@far.example"], &subject).expect("a reply");
            let passed = reply.starts_with("250 2.0.0 Ok: passed on as ");
            assert!(passed || reply.starts_with("451 4.3.0 "), "{step:?}: {reply}\n{}", server.log());
            passed.then_some(())
        });
        // One twin, and only where the next hop had taken it.
        assert_eq!(taken(), 1 + usize::from(step == Step::Said), "{step:?}");
    }
}

#[test]
fn a_worker_or_a_client_that_goes_while_it_waits_leaves_a_doubt_and_no_other_trace() {
    let killer = Killer::new();
    let (gone, may_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (its, goes, says) = (killer.clone(), gone.clone(), may_go.clone());
    let hop = Hop::start(false, move |step, now| {
        if step == Step::End && now.text.contains("Subject: impatient\r\n") {
            // The client leaves before the next hop says what it thinks.
            goes.store(true, Ordering::SeqCst);
            while !says.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2)); // between two looks
            }
        }
        match its.step(step) {
            // Delivery lives, and hears what is said.
            Act::Close => Act::Good,
            act => act,
        }
    });
    let server = before(&hop, "pass_through = true\n");
    let tell = || server.log();
    let doubts = || server.log().matches("\"passed.doubt\"").count();
    let mut alice = Alice::login(&server);
    // Replies that are not read make a reset of the end.
    let stream = alice.stream.get_mut();
    stream.write_all(b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@far.example>\r\nDATA\r\n").expect("it is sent");
    let mut unread = [0; 512];
    wait("354", &tell, || {
        let octets = stream.peek(&mut unread).expect("replies");
        String::from_utf8_lossy(&unread[..octets]).contains("\r\n354 ").then_some(())
    });
    stream.write_all(message("impatient").as_bytes()).expect("it is sent");
    wait("the next hop", &tell, || gone.load(Ordering::SeqCst).then_some(()));
    let ends =
        || server.log().lines().filter(|line| line.contains("\"session.end\"") && line.contains("alice@")).count();
    assert_eq!(ends(), 0);
    drop(alice);
    wait("the session's end", &tell, || (ends() == 1).then_some(()));
    may_go.store(true, Ordering::SeqCst);
    wait("a doubt", &tell, || (doubts() == 1).then_some(()));

    for step in [Step::Mail, Step::End] {
        let mut alice = Alice::login(&server);
        let victim = killer.arm(&server, "worker", step);
        assert_eq!(alice.send(&["bob@far.example"], "orphan"), None, "its worker is gone");
        wait("a new worker", &tell, || process(&server, "worker").filter(|pid| *pid != victim));
    }
    wait("doubts", &tell, || (doubts() == 3).then_some(()));
    assert_eq!(hop.taken().len(), 3);
    let mut alice = Alice::login(&server);
    let reply = alice.send(&["bob@far.example"], "afterwards").expect("a reply");
    assert!(reply.starts_with("250 2.0.0 Ok: passed on as "), "{reply}");
    // The file of a message has no name by then, and goes with whoever has it open.
    let mut left = Vec::new();
    for writer in fs::read_dir(server.path("state/spool")).into_iter().flatten().flatten() {
        let files = fs::read_dir(writer.path()).into_iter().flatten().flatten();
        left.extend(files.map(|file| file.file_name()).filter(|name| name.to_string_lossy().ends_with(".body")));
    }
    assert!(left.is_empty(), "{left:?}");
}

/// A client that is killed while it waits says no more than one that has shut its side: only the reply tells them apart.
#[test]
fn a_client_that_shuts_its_side_hears_the_answer_and_one_that_is_gone_leaves_a_doubt() {
    let (waits, says) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (there, goes_on) = (waits.clone(), says.clone());
    let hop = Hop::start(false, move |step, _| {
        if step == Step::End {
            there.store(true, Ordering::SeqCst);
            while !goes_on.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2)); // between two looks
            }
        }
        Act::Good
    });
    let server = before(&hop, "pass_through = true\n");
    let tell = || server.log();
    let ends =
        || server.log().lines().filter(|line| line.contains("\"session.end\"") && line.contains("alice@")).count();
    let mut heard = String::new();
    for (round, gone) in [false, true].into_iter().enumerate() {
        waits.store(false, Ordering::SeqCst);
        says.store(false, Ordering::SeqCst);
        let mut alice = Alice::login(&server);
        alice.begin(&["bob@far.example"]);
        alice.stream.get_mut().write_all(message("impatient").as_bytes()).expect("it is sent");
        wait("the next hop", &tell, || waits.load(Ordering::SeqCst).then_some(()));
        let mut alice = (!gone).then_some(alice);
        if let Some(alice) = &alice {
            alice.stream.get_ref().shutdown(std::net::Shutdown::Write).expect("it is shut");
        }
        says.store(true, Ordering::SeqCst);
        if let Some(alice) = &mut alice {
            let reply = alice.say("").unwrap_or_default();
            let id = reply.strip_prefix("250 2.0.0 Ok: passed on as ");
            heard = id.unwrap_or_else(|| panic!("{reply}\n{}", tell())).to_owned();
        }
        drop(alice);
        wait("the session's end", &tell, || (ends() == round + 1).then_some(()));
    }
    let doubts = || server.log().lines().filter(|line| line.contains("\"passed.doubt\"")).map(str::to_owned).collect();
    let doubts: Vec<String> = wait("a doubt", &tell, || Some(doubts()).filter(|doubts: &Vec<_>| !doubts.is_empty()));
    assert!(doubts.len() == 1 && !doubts[0].contains(&heard), "{heard}: {doubts:?}");
    assert_eq!(hop.taken().len(), 2);
}

/// CONTRACT C4: a message comes twice only when a crash falls between the next hop's 250 and our note of it.
#[test]
fn twins_are_no_more_than_crashes_in_the_window() {
    let killer = Killer::new();
    let its = killer.clone();
    // A new connection for each message, so that each step happens.
    let hop = Hop::start(false, move |step, _| {
        if step == Step::Said {
            its.step(step);
            Act::Close
        } else {
            its.step(step)
        }
    });
    let server = before(&hop, "");
    let tell = || server.log();
    let mut alice = Alice::login(&server);
    let mut in_the_window = 0;
    let mut sent = 0;
    for round in 0..2 {
        for step in STEPS {
            let victim = killer.arm(&server, "delivery", step);
            let subject = format!("round {round} {step:?}");
            let reply = alice.send(&["bob@far.example"], &subject).expect("a reply");
            assert!(reply.starts_with("250 2.0.0 Ok: queued as "), "{reply}");
            sent += 1;
            in_the_window += usize::from(step == Step::Said);
            wait("a new delivery", &tell, || process(&server, "delivery").filter(|pid| *pid != victim));
            // The one that is written down.
            wait("delivery", &tell, || (server.log().matches("\"delivered\"").count() == sent).then_some(()));
            let taken = hop.taken();
            let twins = taken.len() - sent;
            assert_eq!(twins, in_the_window, "{subject}: {taken:#?}");
            let own = taken.iter().filter(|taken| taken.text.contains(&format!("Subject: {subject}\r\n"))).count();
            assert_eq!(own, 1 + usize::from(step == Step::Said), "{subject}");
        }
    }
    assert!(in_the_window >= 2);
}

/// A message is never whole in the memory of any process.
#[test]
fn a_large_message_is_never_whole_in_memory() {
    let hop = Hop::start(false, |step, now| match now.to.last().map(String::as_str) {
        Some("nobody@far.example") if step == Step::Rcpt => Act::Say("550 5.1.1 nobody"),
        _ => Act::Good,
    });
    let server = before(&hop, "pass_through = true\n");
    let most = |role: &str| {
        let pid = process(&server, role).expect("it runs").as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    };
    let mut alice = Alice::login(&server);
    assert!(alice.send(&["bob@far.example"], "small").is_some_and(|reply| reply.starts_with("250 ")));
    assert_eq!(alice.send(&["nobody@far.example"], "refused").as_deref(), Some("550 5.1.1 nobody"));
    let before = [most("worker"), most("delivery")];
    alice.begin(&["bob@far.example"]);
    let line = format!("{}\r\n", "x".repeat(998));
    let lines = 40 << 10;
    let head = "From: alice@demo.test\r\nSubject: large\r\n\r\n";
    alice.stream.get_mut().write_all(head.as_bytes()).expect("it is sent");
    (0..lines).for_each(|_| alice.stream.get_mut().write_all(line.as_bytes()).expect("it is sent"));
    let reply = alice.say(".\r\n").expect("a reply");
    assert!(reply.starts_with("250 2.0.0 Ok: passed on as "), "{reply}");
    let grown = [most("worker") - before[0], most("delivery") - before[1]];
    assert!(grown.iter().all(|grown| *grown < 12 << 20), "{grown:?} octets more for a message of 40 MB");
    let taken = hop.taken().pop().expect("it");
    assert_eq!((&*taken.from, taken.text.matches(&line).count()), ("alice@demo.test", lines));
}
