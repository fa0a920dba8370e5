//! Next hops that misbehave: a server that does one thing wrong at one step, then works.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicBool;

use smtp::client::Protocol;
use smtp::envelope::Ret;

use super::*;
use crate::{Answer, EntryState, Filter, HopSettings, IdleRoom, NextHops, Place, Request, Security};

/// Where in the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Greeting,
    Hello,
    Mail,
    Rcpt,
    Data,
    /// In the middle of the message.
    Body,
    End,
}

/// What is wrong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This reply instead of the good one.
    Say(&'static str),
    Stall,
    Reset,
    Garbage,
    /// The good reply, octet by octet.
    Slow,
    /// The good reply, when [`Script::frozen`] is over.
    Late,
}

#[derive(Default)]
pub(crate) struct Script {
    /// In this order; each happens once.
    pub(crate) faults: Mutex<VecDeque<(Step, Fault)>>,
    /// Messages that were taken: recipients and text.
    pub(crate) taken: Mutex<Vec<(Vec<String>, String)>>,
    /// Replies to RCPT (LMTP: to the message) by address; once each.
    pub(crate) by_address: Mutex<BTreeMap<String, VecDeque<&'static str>>>,
    pub(crate) commands: Seen,
    pub(crate) connections: AtomicUsize,
    pub(crate) lmtp: AtomicBool,
    pub(crate) chunking: AtomicBool,
    /// A connection ends, without a word, after one message.
    pub(crate) single: AtomicBool,
    /// While it is set, nobody is greeted.
    pub(crate) frozen: AtomicBool,
}

impl Script {
    fn fault(&self, step: Step) -> Option<Fault> {
        let mut faults = self.faults.lock();
        faults.front().filter(|(at, _)| *at == step)?;
        faults.pop_front().map(|(_, fault)| fault)
    }

    /// Says the good reply, or does what is wrong; `None`: the connection is over.
    fn say<S: Read + Write>(&self, stream: &mut BufReader<S>, step: Step, good: &str) -> Option<bool> {
        let (text, pace) = match self.fault(step) {
            None => (good.to_owned(), false),
            Some(Fault::Say(text)) => (format!("{text}\r\n"), false),
            Some(Fault::Slow) => (good.to_owned(), true),
            Some(Fault::Late) => {
                self.thaw();
                (good.to_owned(), false)
            }
            Some(Fault::Garbage) => ("\u{0}\u{7f}no reply at all\r\n".to_owned(), false),
            Some(Fault::Reset) => return None,
            Some(Fault::Stall) => {
                // Until the client loses its patience.
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest);
                return None;
            }
        };
        for piece in text.as_bytes().chunks(if pace { 1 } else { usize::MAX }) {
            stream.get_mut().write_all(piece).ok()?;
        }
        Some(text == good)
    }

    /// Whether it is a reply that comes late, not the greeting.
    fn late(&self) -> bool {
        self.faults.lock().iter().any(|(_, fault)| *fault == Fault::Late)
    }

    fn thaw(&self) {
        let late = Instant::now() + Duration::from_secs(20);
        while self.frozen.load(Ordering::SeqCst) && Instant::now() < late {
            std::thread::yield_now();
        }
    }

    fn serve<S: Read + Write>(&self, stream: S) -> Option<()> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        if self.frozen.load(Ordering::SeqCst) && !self.late() {
            self.thaw();
        }
        let mut stream = BufReader::new(stream);
        let lmtp = self.lmtp.load(Ordering::SeqCst);
        self.say(&mut stream, Step::Greeting, "220 hop.example ESMTP\r\n")?;
        let mut recipients: Vec<String> = Vec::new();
        let mut mail = false;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end();
            self.commands.add(line.to_owned());
            let address = || line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
            match line.get(..4).unwrap_or_default() {
                "EHLO" | "LHLO" => {
                    assert_eq!(line.starts_with("LHLO"), lmtp);
                    let chunking = if self.chunking.load(Ordering::SeqCst) { "250-CHUNKING\r\n" } else { "" };
                    let good = format!(
                        "250-hop.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n{chunking}250 SMTPUTF8\r\n"
                    );
                    self.say(&mut stream, Step::Hello, &good)?;
                }
                "HELO" => stream.get_mut().write_all(b"250 hop.example\r\n").ok()?,
                "MAIL" => {
                    recipients.clear();
                    mail = self.say(&mut stream, Step::Mail, "250 2.1.0 OK\r\n")?;
                }
                "RCPT" if !mail => stream.get_mut().write_all(b"503 5.5.1 MAIL first\r\n").ok()?,
                "RCPT" => {
                    let own = if lmtp { None } else { self.reply_for(&address()) };
                    let good = own.map_or("250 2.1.5 OK\r\n".to_owned(), |own| format!("{own}\r\n"));
                    if self.say(&mut stream, Step::Rcpt, &good)? && good.starts_with('2') {
                        recipients.push(address());
                    }
                }
                "DATA" if recipients.is_empty() => stream.get_mut().write_all(b"554 5.5.1 nobody\r\n").ok()?,
                "DATA" => {
                    if !self.say(&mut stream, Step::Data, "354 go on\r\n")? {
                        continue;
                    }
                    let mut text = String::new();
                    let mut lines = 0;
                    loop {
                        let mut line = String::new();
                        if stream.read_line(&mut line).ok()? == 0 {
                            return None;
                        }
                        if line == ".\r\n" {
                            break;
                        }
                        text += line.strip_prefix('.').unwrap_or(&line);
                        lines += 1;
                        if lines == 2 && self.faults.lock().front().is_some_and(|(at, _)| *at == Step::Body) {
                            self.say(&mut stream, Step::Body, "")?;
                            return None;
                        }
                    }
                    self.end(&mut stream, &recipients, text)?;
                }
                "BDAT" => {
                    let octets: usize = line.split(' ').nth(1)?.parse().ok()?;
                    let mut text = vec![0; octets];
                    stream.read_exact(&mut text).ok()?;
                    self.end(&mut stream, &recipients, String::from_utf8(text).unwrap())?;
                }
                "RSET" => stream.get_mut().write_all(b"250 2.0.0 OK\r\n").ok()?,
                "QUIT" => {
                    let _ = stream.get_mut().write_all(b"221 2.0.0 bye\r\n");
                    return Some(());
                }
                _ => stream.get_mut().write_all(b"500 5.5.2 what?\r\n").ok()?,
            }
        }
    }

    fn end<S: Read + Write>(&self, stream: &mut BufReader<S>, recipients: &[String], text: String) -> Option<()> {
        if !self.lmtp.load(Ordering::SeqCst) {
            // Locked before it is said, so that whoever has heard it finds it.
            let mut taken = self.taken.lock();
            if self.say(stream, Step::End, "250 2.0.0 taken\r\n")? {
                taken.push((recipients.to_vec(), text));
            }
            return (!self.single.load(Ordering::SeqCst)).then_some(());
        }
        for recipient in recipients {
            let own = self.reply_for(recipient).unwrap_or("250 2.0.0 taken");
            let mut taken = self.taken.lock();
            if self.say(stream, Step::End, &format!("{own}\r\n"))? && own.starts_with('2') {
                taken.push((vec![recipient.clone()], text.clone()));
            }
        }
        (!self.single.load(Ordering::SeqCst)).then_some(())
    }

    fn reply_for(&self, address: &str) -> Option<&'static str> {
        self.by_address.lock().get_mut(address)?.pop_front()
    }
}

/// A server with a script; ends with its handle.
pub(crate) struct Hop {
    pub(crate) script: Arc<Script>,
    host: std::net::IpAddr,
    pub(crate) port: u16,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hop {
    pub(crate) fn start(script: Script) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    pub(crate) fn start_on(listener: TcpListener, script: Script) -> Self {
        let host = listener.local_addr().unwrap().ip();
        let port = listener.local_addr().unwrap().port();
        let (script, over) = (Arc::new(script), Arc::new(AtomicBool::new(false)));
        let (its, end) = (script.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let its = its.clone();
                std::thread::spawn(move || {
                    its.serve(&mut &stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { script, host, port, over, thread: Some(thread) }
    }

    pub(crate) fn place(&self) -> Place {
        Place::Tcp("127.0.0.1".into(), self.port)
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.script.taken.lock().iter().map(|(_, text)| text.clone()).collect()
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.script.frozen.store(false, Ordering::SeqCst);
        let _ = TcpStream::connect((self.host, self.port));
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
    }
}

pub(super) fn hops(places: Vec<Place>, protocol: Protocol) -> Arc<dyn Route> {
    Arc::new(NextHops::new(hop_settings(places, protocol)).unwrap())
}

pub(crate) fn hop_settings(places: Vec<Place>, protocol: Protocol) -> HopSettings {
    HopSettings {
        places,
        protocol,
        hostname: "our.example".into(),
        security: Security::Opportunistic,
        tls: None,
        tls_name: None,
        credentials: None,
        connections: 2,
        patience: Duration::from_millis(400),
        backoff: Retry { first: Duration::from_millis(10), max: Duration::from_millis(40) },
        own: Vec::new(),
        pass_through: false,
        idle: IdleRoom::new(4),
    }
}

/// An envelope from alice, who has logged in.
pub(crate) fn from_alice(to: &[(&str, Notify)]) -> Envelope {
    let mut envelope = Envelope::default();
    envelope.set_reverse_path(Some("alice@demo.test"));
    envelope.set_identity("alice@demo.test");
    for &(address, notify) in to {
        envelope.push(Recipient { address, mailbox: "", orcpt: Some("rfc822;first+2Bname@far.example"), notify });
    }
    envelope
}

pub(crate) fn commit(worker: &mut Worker, envelope: &Envelope, body: &[u8]) -> QueueId {
    let mut octets = Vec::new();
    envelope.encode(&mut octets);
    worker.commit_raw(&octets, body)
}

pub(crate) const BODY: &[u8] = b"Subject: hello\r\n\r\nfirst\r\n.dot\r\n..two\r\nlast\r\n";
pub(crate) const WHOLE: &str = "Received: by here\r\nSubject: hello\r\n\r\nfirst\r\n.dot\r\n..two\r\nlast\r\n";

#[test]
fn every_fault_at_every_step_costs_no_message_and_makes_no_twin() {
    every_fault_at_every_step(Protocol::Smtp);
}

#[test]
fn every_fault_at_every_step_over_lmtp_costs_no_message_and_makes_no_twin() {
    every_fault_at_every_step(Protocol::Lmtp);
}

fn every_fault_at_every_step(protocol: Protocol) {
    let lmtp = protocol == Protocol::Lmtp;
    use Fault::{Garbage, Reset, Say, Slow, Stall};
    use Step::{Body, Data, End, Greeting, Hello, Mail, Rcpt};
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let hop = Hop::start(Script { lmtp: AtomicBool::new(lmtp), ..Script::default() });
    let route = hops(vec![hop.place()], protocol);
    let running = Running::start(&spool, Routes::new(Some(route)).domain("demo.test", maildir(&mail)));
    let mut worker = Worker::start(&spool);
    running.handle.follow(worker.link.take().unwrap());
    let (mut delivered, mut failed) = (0, 0);
    for step in [Greeting, Hello, Mail, Rcpt, Data, Body, End] {
        hop.script.single.store(matches!(step, Greeting | Hello), Ordering::SeqCst);
        let refusals: &[Fault] = match step {
            Greeting => &[Say("554 5.3.2 not now"), Say("421 4.3.2 busy")],
            Body => &[],
            _ => &[Say("451 4.3.0 try later"), Say("421 4.3.2 closing"), Say("550 5.7.1 no")],
        };
        for &fault in [Stall, Reset, Garbage, Slow].iter().chain(refusals) {
            if step == Body && fault == Slow {
                continue;
            }
            hop.script.faults.lock().push_back((step, fault));
            commit(&mut worker, &from_alice(&[("bob@far.example", Notify(0))]), BODY);
            // A host that refuses EHLO for good may know HELO; of LHLO it is the host's trouble, not the message's.
            let refused = fault == Say("550 5.7.1 no") && step != Hello;
            if refused {
                failed += 1;
                running.seen.wait(
                    failed,
                    if lmtp { "<bob@far.example> failed (lmtp)" } else { "<bob@far.example> failed (smtp)" },
                );
            } else {
                delivered += 1;
                running.seen.wait(delivered, "delivered to <bob@far.example>");
            }
            assert!(hop.script.faults.lock().is_empty(), "{step:?} {fault:?} has happened");
            let texts = hop.texts();
            assert_eq!(texts.len(), delivered, "{step:?} {fault:?}: {:#?}", running.seen.lines.lock());
            assert!(texts.iter().all(|text| text == WHOLE), "{step:?} {fault:?}");
        }
    }
    running.seen.wait(failed, "delivered to <alice@demo.test> by maildir");
    running.stop();
    let notices = new_files(&mail.join("demo.test/alice"));
    assert_eq!(notices.len(), failed);
    for notice in notices.values() {
        assert!(notice.contains("Diagnostic-Code: smtp; 550 5.7.1 no\n"), "{notice}");
    }
}

#[test]
fn bdat_carries_the_same_message() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script { chunking: AtomicBool::new(true), ..Script::default() });
    let running = Running::start(folder.path(), Routes::new(Some(hops(vec![hop.place()], Protocol::Smtp))));
    let mut worker = Worker::start(folder.path());
    running.handle.follow(worker.link.take().unwrap());
    let large = format!("Subject: x\r\n\r\n{}", ".line of a large message\r\n".repeat(30_000));
    worker.commit(Some("a@b.example"), &[("c@far.example", "")], BODY);
    worker.commit(Some("a@b.example"), &[("c@far.example", "")], large.as_bytes());
    running.seen.wait(2, "delivered to");
    let mut texts = hop.texts();
    texts.sort_by_key(String::len);
    assert!(
        texts == [WHOLE.to_owned(), format!("Received: by here\r\n{large}")],
        "{:?}",
        texts.iter().map(String::len)
    );
    running.stop();
}

#[test]
fn lmtp_settles_each_recipient_alone_and_tells_the_sender() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let path = folder.path().join("lmtp");
    let listener = UnixListener::bind(&path).unwrap();
    let script = Arc::new(Script { lmtp: AtomicBool::new(true), ..Script::default() });
    let replies = [("b@far.example", "450 4.2.2 full"), ("c@far.example", "550 5.1.1 no such\u{1b} mailbox")];
    for (address, reply) in replies {
        script.by_address.lock().insert(address.to_owned(), VecDeque::from([reply]));
    }
    let its = script.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            its.serve(&mut &stream);
        }
    });
    let route = hops(vec![Place::Unix(path)], Protocol::Lmtp);
    let running = Running::start(&spool, Routes::new(Some(route)).domain("demo.test", maildir(&mail)));
    let mut worker = Worker::start(&spool);
    running.handle.follow(worker.link.take().unwrap());
    let mut envelope = from_alice(&[
        ("a@far.example", Notify::SUCCESS),
        ("b@far.example", Notify(0)),
        ("c@far.example", Notify::FAILURE),
    ]);
    envelope.set_envid("id+2B1");
    envelope.ret = Some(Ret::Full);
    commit(&mut worker, &envelope, BODY);
    running.seen.wait(1, "delivered to <b@far.example>");
    running.seen.wait(1, "<c@far.example> failed");
    running.seen.wait(1, "delivered to <alice@demo.test>");
    let seen = running.stop();
    assert_eq!(seen.count("delivered to <a@far.example>"), 1);
    let who: Vec<String> = script.taken.lock().iter().flat_map(|(to, _)| to.clone()).collect();
    assert_eq!(who, ["a@far.example", "b@far.example"]);
    let notices = new_files(&mail.join("demo.test/alice"));
    let [notice] = notices.values().collect::<Vec<_>>()[..] else { panic!("{notices:#?}") };
    for part in [
        "Return-Path: <>\n",
        "Auto-Submitted: auto-replied\n",
        "Content-Type: multipart/report; report-type=delivery-status; boundary=",
        "Content-Type: message/delivery-status\n\nReporting-MTA: dns; localhost\nOriginal-Envelope-Id: id+1\nArrival-Date: Tue, 14 Nov 2023 22:13:20 +0000\n",
        "Original-Recipient: rfc822; first+name@far.example\nFinal-Recipient: rfc822; a@far.example\nAction: delivered\nStatus: 2.0.0\n",
        "Final-Recipient: rfc822; c@far.example\nAction: failed\nStatus: 5.1.1\nRemote-MTA: dns; localhost\nDiagnostic-Code: smtp; 550 5.1.1 no such",
        "Content-Type: message/rfc822\n\nReceived: by here\nSubject: hello\n\nfirst\n.dot\n",
    ] {
        assert!(notice.contains(part), "{part:?} is not in {notice}");
    }
    assert!(!notice.contains("b@far.example") && !notice.contains('\u{1b}'), "{notice}");
}

#[test]
fn strangers_and_notices_get_no_notice_and_their_mail_stays_until_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script::default());
    let replies = || VecDeque::from(vec!["550 5.1.1 no"; 3]);
    hop.script.by_address.lock().extend(["x@far.example", "y@far.example"].map(|to| (to.to_owned(), replies())));
    let mut worker = Worker::start(folder.path());
    worker.commit(Some("forged@victim.example"), &[("x@far.example", "")], BODY);
    worker.commit(None, &[("y@far.example", "")], BODY);
    worker.die();
    let route = || Routes::new(Some(hops(vec![hop.place()], Protocol::Smtp)));
    let running = Running::start(folder.path(), route());
    running.seen.wait(1, "<x@far.example> waits (smtp): refused for good, and its sender may not be told");
    running.seen.wait(1, "<y@far.example> waits (smtp): refused for good, and its sender may not be told");
    assert_eq!(running.stop().count("failed"), 0);
    let running = Running::start_with(folder.path(), route(), |settings| settings.expire = Duration::from_secs(60));
    hop.script.by_address.lock().extend(["x@far.example", "y@far.example"].map(|to| (to.to_owned(), replies())));
    running.seen.wait(2, "sender is not told");
    wait_until_empty(folder.path());
    running.stop();
    assert_eq!(hop.texts().len(), 0);
}

#[test]
fn what_is_too_old_comes_back_to_its_sender() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let nobody = Place::Tcp("127.0.0.1".into(), 1);
    let mut worker = Worker::start(&spool);
    commit(&mut worker, &from_alice(&[("b@far.example", Notify(0)), ("c@far.example", Notify::NEVER)]), BODY);
    worker.die();
    let routes = Routes::new(Some(hops(vec![nobody], Protocol::Smtp))).domain("demo.test", maildir(&mail));
    let running = Running::start_with(&spool, routes, |settings| settings.expire = Duration::from_secs(5 * 86_400));
    running.seen.wait(1, "delivered to <alice@demo.test>");
    running.seen.wait(2, "failed (smtp): not delivered within 5.0 days: 127.0.0.1:1: connect");
    running.stop();
    let notices = new_files(&mail.join("demo.test/alice"));
    let [notice] = notices.values().collect::<Vec<_>>()[..] else { panic!("{notices:#?}") };
    assert!(notice.contains("Action: failed\nStatus: 4.4.7\n") && !notice.contains("c@far.example"), "{notice}");
    // RET was not given: the header comes back, the text does not.
    assert!(notice.contains("text/rfc822-headers") && !notice.contains("first\n"), "{notice}");
}

#[test]
fn the_second_next_hop_is_taken_and_connections_are_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script::default());
    let refusing = Hop::start(Script {
        faults: Mutex::new(vec![(Step::Greeting, Fault::Say("554 5.3.2 no service")); 100].into()),
        ..Script::default()
    });
    let places = vec![Place::Tcp("127.0.0.1".into(), 1), refusing.place(), hop.place()];
    let running = Running::start(folder.path(), Routes::new(Some(hops(places, Protocol::Smtp))));
    let mut worker = Worker::start(folder.path());
    running.handle.follow(worker.link.take().unwrap());
    for done in 1..=5 {
        worker.commit(Some("a@b.example"), &[("c@far.example", "")], BODY);
        running.seen.wait(done, "delivered to");
    }
    let seen = running.stop();
    assert_eq!(seen.count("waits"), 0, "{:#?}", seen.lines.lock());
    assert_eq!(hop.script.connections.load(Ordering::SeqCst), 1);
    hop.script.commands.wait(1, "QUIT");
}

#[test]
fn a_next_hop_that_stalls_holds_up_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail) = (folder.path().join("spool"), folder.path().join("mail"));
    let hop = Hop::start(Script { frozen: AtomicBool::new(true), ..Script::default() });
    let routes = Routes::new(Some(hops(vec![hop.place()], Protocol::Smtp))).domain("demo.test", maildir(&mail));
    let running = Running::start(&spool, routes);
    let mut worker = Worker::start(&spool);
    running.handle.follow(worker.link.take().unwrap());
    for _ in 0..40 {
        worker.commit(Some("a@b.example"), &[("c@far.example", "")], BODY);
    }
    worker.commit(Some("a@b.example"), &[("d@demo.test", "d@demo.test")], BODY);
    running.seen.wait(1, "delivered to <d@demo.test>");
    assert_eq!(running.seen.count("delivered to <c@far.example>"), 0, "nobody is greeted yet");
    hop.script.frozen.store(false, Ordering::SeqCst);
    running.seen.wait(40, "delivered to <c@far.example>");
    running.stop();
    assert_eq!(hop.texts().len(), 40);
}

#[test]
fn the_operator_sees_holds_releases_and_removes() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, mail, held) = (folder.path().join("spool"), folder.path().join("mail"), folder.path().join("held"));
    // Files where the Maildirs should be.
    std::fs::create_dir_all(mail.join("demo.test")).unwrap();
    ["b", "c"].iter().for_each(|name| std::fs::write(mail.join("demo.test").join(name), "").unwrap());
    let start = || {
        Running::start_with(&spool, Routes::new(Some(maildir(&mail))), |settings| {
            settings.held = Some(held.clone());
            // Nothing happens by itself.
            settings.retry = Retry { first: Duration::from_secs(3600), max: Duration::from_secs(3600) };
        })
    };
    let running = start();
    let mut worker = Worker::start(&spool);
    running.handle.follow(worker.link.take().unwrap());
    let kept = worker.commit(Some("a@one.example"), &[("b@demo.test", "b@demo.test")], BODY);
    let gone = worker.commit(None, &[("c@demo.test", "c@demo.test")], BODY);
    running.seen.wait(2, "waits (maildir)");
    let filter = |ids: &[QueueId]| Filter { ids: ids.to_vec(), ..Filter::default() };
    let list = |running: &Running, filter: Filter| match running.handle.queue(Request::List(filter, 10)) {
        Some(Answer::Entries(entries, all)) => {
            assert_eq!(entries.len(), all);
            entries
        }
        other => panic!("{other:?}"),
    };
    let entries = list(&running, Filter::default());
    assert_eq!(entries.len(), 2);
    let entry = entries.iter().find(|entry| entry.id == kept).unwrap();
    assert!(matches!(entry.state, EntryState::Waiting(seconds) if seconds > 2000), "{entry:?}");
    assert_eq!((entry.sender.as_deref(), entry.attempts, entry.recipients.len()), (Some("a@one.example"), 1, 1));
    assert!(entry.recipients[0].reason.contains("demo.test/b"), "{entry:?}");
    for (filter, expect) in [
        (Filter { sender: Some("A@ONE.example".into()), ..Filter::default() }, vec![kept]),
        (Filter { sender: Some(String::new()), ..Filter::default() }, vec![gone]),
        (Filter { recipient: Some("c@demo.test".into()), ..Filter::default() }, vec![gone]),
        (Filter { domain: Some("far.example".into()), ..Filter::default() }, vec![]),
        (Filter { older_ms: Some(u64::MAX), ..Filter::default() }, vec![]),
    ] {
        let found: Vec<QueueId> = list(&running, filter.clone()).iter().map(|entry| entry.id).collect();
        assert_eq!(found, expect, "{filter:?}");
    }
    match running.handle.queue(Request::Show(kept)) {
        Some(Answer::Shown(_, header)) => assert_eq!(header, b"Received: by here\r\nSubject: hello\r\n"),
        other => panic!("{other:?}"),
    }
    assert_eq!(running.handle.queue(Request::Remove(filter(&[gone]))), Some(Answer::Changed(1)));
    assert_eq!(running.handle.queue(Request::Hold(filter(&[kept]))), Some(Answer::Changed(1)));
    assert_eq!(running.handle.queue(Request::Retry(filter(&[kept]))), Some(Answer::Changed(0)), "held stays held");
    worker.die();
    running.stop();

    // A hold outlives a restart, a removal too.
    let running = start();
    // Each question is a turn of the loop, which finds what was left sooner or later.
    let late = Instant::now() + Duration::from_secs(20);
    let entries = loop {
        let entries = list(&running, Filter::default());
        if !entries.is_empty() || Instant::now() > late {
            break entries;
        }
    };
    assert_eq!(entries.iter().map(|entry| (entry.id, entry.state)).collect::<Vec<_>>(), [(kept, EntryState::Held)]);
    std::fs::remove_file(mail.join("demo.test/b")).unwrap();
    assert_eq!(running.handle.queue(Request::Release(filter(&[kept]))), Some(Answer::Changed(1)));
    running.seen.wait(1, "delivered to <b@demo.test>");
    wait_until_empty(&spool);
    match running.handle.queue(Request::Stats) {
        Some(Answer::Stats(summary)) => assert_eq!((summary.messages, summary.held), (0, 0)),
        other => panic!("{other:?}"),
    }
    running.stop();
    assert_eq!(std::fs::read_to_string(&held).unwrap(), "");
    assert!(new_files(&mail.join("demo.test/c")).is_empty());
}

#[test]
fn a_next_hop_that_is_this_server_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script::default());
    let settings = HopSettings {
        places: vec![hop.place()],
        protocol: Protocol::Smtp,
        hostname: "our.example".into(),
        security: Security::Off,
        tls: None,
        tls_name: None,
        credentials: None,
        connections: 1,
        patience: Duration::from_secs(5),
        backoff: Retry::default(),
        own: vec![([0, 0, 0, 0], hop.port).into()],
        pass_through: false,
        idle: IdleRoom::new(4),
    };
    let route: Arc<dyn Route> = Arc::new(NextHops::new(settings).unwrap());
    let running = Running::start(folder.path(), Routes::new(Some(route)));
    let mut worker = Worker::start(folder.path());
    running.handle.follow(worker.link.take().unwrap());
    worker.commit(Some("a@b.example"), &[("c@far.example", "")], BODY);
    running.seen.wait(1, "is this server itself");
    running.stop();
    assert!(hop.texts().is_empty());
}

#[test]
fn a_next_hop_that_stalls_does_not_keep_delivery_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let hop = Hop::start(Script { frozen: AtomicBool::new(true), ..Script::default() });
    let settings = HopSettings {
        places: vec![hop.place()],
        protocol: Protocol::Smtp,
        hostname: "our.example".into(),
        security: Security::Off,
        tls: None,
        tls_name: None,
        credentials: None,
        connections: 2,
        patience: Duration::from_secs(300),
        backoff: Retry::default(),
        own: Vec::new(),
        pass_through: false,
        idle: IdleRoom::new(4),
    };
    let route: Arc<dyn Route> = Arc::new(NextHops::new(settings).unwrap());
    let running = Running::start(folder.path(), Routes::new(Some(route)));
    let mut worker = Worker::start(folder.path());
    running.handle.follow(worker.link.take().unwrap());
    for _ in 0..10 {
        worker.commit(Some("a@b.example"), &[("c@far.example", "")], BODY);
    }
    let late = Instant::now() + Duration::from_secs(20);
    while hop.script.connections.load(Ordering::SeqCst) < 2 {
        assert!(Instant::now() < late, "nobody connects");
        std::thread::yield_now();
    }
    let begun = Instant::now();
    running.stop();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
