//! Dialogues: what the server says, what the client must say to that, how it ends. They name no internal
//! function. Each runs with the server's octets cut in several ways.

mod hostile;
mod paired;

use std::sync::Arc;

use super::*;
use crate::envelope::{Body, Envelope, Notify, Recipient, Ret};

/// A message to be sent.
#[derive(Clone)]
struct Mail {
    envelope: Envelope,
    to: Vec<&'static str>,
    notify: Notify,
    orcpt: Option<&'static str>,
    body: Vec<u8>,
}

fn mail(to: &[&'static str]) -> Mail {
    let mut envelope = Envelope::default();
    envelope.set_reverse_path(Some("a@c.example"));
    Mail { envelope, to: to.to_vec(), notify: Notify(0), orcpt: None, body: b"Subject: x\r\n\r\n.\r\n".to_vec() }
}

impl Mail {
    fn tuned(mut self, tune: impl FnOnce(&mut Self)) -> Self {
        tune(&mut self);
        self
    }

    fn deliver(&self, client: &mut Client, out: &mut Vec<u8>) -> Next {
        let (notify, orcpt) = (self.notify, self.orcpt);
        let recipients: Vec<_> =
            self.to.iter().map(|address| Recipient { address, mailbox: "", orcpt, notify }).collect();
        let octets = self.body.len() as u64;
        client.deliver(&Message { envelope: &self.envelope, recipients: &recipients, octets }, out)
    }
}

fn settings(tune: impl FnOnce(&mut Settings)) -> Arc<Settings> {
    let mut settings = Settings::new("c.example").unwrap();
    tune(&mut settings);
    Arc::new(settings)
}

fn login(settings: &mut Settings) {
    let credentials = Credentials::new("alice", "", "secret").unwrap();
    settings.login = Some(Login::new(Arc::new(credentials)));
}

/// Drives a client as an engine would, and notes what came of it.
struct Driver {
    client: Client,
    mails: std::collections::VecDeque<Mail>,
    body: Vec<u8>,
    /// Octets of body that are handed on at a time.
    piece: usize,
    unread: Vec<u8>,
    said: Vec<u8>,
    /// One line for each recipient of each message.
    results: Vec<String>,
    /// A message was begun and its results are not noted.
    open: bool,
    closed: bool,
}

impl Driver {
    fn new(settings: Arc<Settings>, channel: Channel, mails: &[Mail], piece: usize) -> Self {
        Self {
            client: Client::new(settings, channel, [7; 24]),
            mails: mails.iter().cloned().collect(),
            body: Vec::new(),
            piece,
            unread: Vec::new(),
            said: Vec::new(),
            results: Vec::new(),
            open: false,
            closed: false,
        }
    }

    fn hear(&mut self, octets: &[u8]) {
        self.unread.extend_from_slice(octets);
        let (used, next) = self.client.receive(&self.unread, &mut self.said);
        self.unread.drain(..used);
        assert!(self.unread.len() <= 2048);
        self.go_on(next);
    }

    fn go_on(&mut self, mut next: Next) {
        loop {
            next = match next {
                Next::Read => return,
                Next::Write => {
                    let piece: Vec<u8> = self.body.drain(..self.piece.min(self.body.len())).collect();
                    self.client.body(&piece, &mut self.said)
                }
                Next::StartTls => {
                    self.said.extend_from_slice(b"<TLS>\r\n");
                    self.unread.clear();
                    self.client.tls_started(&mut self.said)
                }
                Next::Ready | Next::Delivered => {
                    if next == Next::Delivered {
                        self.note_results();
                    }
                    match self.mails.pop_front() {
                        Some(mail) => {
                            self.body = mail.body.clone();
                            self.open = true;
                            mail.deliver(&mut self.client, &mut self.said)
                        }
                        None => self.client.quit(&mut self.said),
                    }
                }
                Next::Closed => {
                    if !self.closed {
                        self.closed = true;
                        self.note_results();
                    }
                    return;
                }
            };
        }
    }

    fn note_results(&mut self) {
        if std::mem::take(&mut self.open) {
            self.results.extend(self.client.results().map(|result| show(&result)));
        }
    }

    fn failure(&self) -> String {
        self.client
            .failure()
            .map_or(String::new(), |failure| format!("{:?} {} {failure}", failure.class, failure.status()))
    }
}

fn show(result: &RecipientResult<'_>) -> String {
    match result {
        RecipientResult::Pending => "pending".to_owned(),
        RecipientResult::Taken(answer) => format!("taken {} {}", answer.code, answer.text),
        RecipientResult::Failed(failure) => format!("{:?} {} {failure}", failure.class, failure.status()),
    }
}

/// One dialogue: lines of the server (`S:`) and the client (`C:`), results, why it ended.
struct Dialogue {
    why: &'static str,
    settings: Arc<Settings>,
    mails: Vec<Mail>,
    script: &'static str,
    results: &'static [&'static str],
    failure: &'static str,
}

impl Dialogue {
    fn check(&self) {
        for step in [1, 2, 5, 13, usize::MAX] {
            self.check_in_pieces(step);
        }
    }

    fn check_in_pieces(&self, step: usize) {
        let why = self.why;
        let mut driver = Driver::new(Arc::clone(&self.settings), Channel::Clear, &self.mails, step);
        let mut lines = self.script.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
        while lines.peek().is_some() {
            let (mut heard, mut expected) = (String::new(), String::new());
            while let Some(line) = lines.next_if(|line| line.starts_with("S:")) {
                heard += &format!("{}\r\n", line[2..].trim_start());
            }
            while let Some(line) = lines.next_if(|line| line.starts_with("C:")) {
                expected += &format!("{}\r\n", line[2..].trim_start());
            }
            assert!(!(heard.is_empty() && expected.is_empty()), "{why}: bad script");
            heard.as_bytes().chunks(step.min(heard.len())).for_each(|piece| driver.hear(piece));
            let said = String::from_utf8(std::mem::take(&mut driver.said)).unwrap();
            assert_eq!(said, expected, "{why}, in pieces of {step}: after {heard:?}");
        }
        if !driver.closed {
            let next = driver.client.lost("end of script");
            driver.go_on(next);
        }
        assert_eq!(driver.results, self.results, "{why}, in pieces of {step}");
        assert_eq!(driver.failure(), self.failure, "{why}, in pieces of {step}");
    }
}

fn check(
    why: &'static str,
    tune: impl FnOnce(&mut Settings),
    mails: &[Mail],
    script: &'static str,
    results: &'static [&'static str],
    failure: &'static str,
) {
    Dialogue { why, settings: settings(tune), mails: mails.to_vec(), script, results, failure }.check();
}

const TWO: &[&str] = &["x@s.example", "y@s.example"];
const LOST: &str = "Lost 4.4.2 idle: end of script";

#[test]
fn one_message() {
    let basic = [mail(TWO)];
    check(
        "a server that can nothing",
        |_| {},
        &basic,
        "S: 220 s.example
         C: EHLO c.example
         S: 250 s.example
         C: MAIL FROM:<a@c.example>
         S: 250 Ok
         C: RCPT TO:<x@s.example>
         S: 251 Will forward
         C: RCPT TO:<y@s.example>
         S: 250 Ok
         C: DATA
         S: 354 Go
         C: Subject: x
         C:
         C: ..
         C: .
         S: 250 2.0.0 Ok: queued as 4711
         C: QUIT
         S: 221 Bye",
        &["taken 250 Ok: queued as 4711", "taken 250 Ok: queued as 4711"],
        "",
    );
    check(
        "PIPELINING: commands in one group, DATA last",
        |_| {},
        &basic,
        "S: 220-s.example
         S: 220 ESMTP
         C: EHLO c.example
         S: 250-s.example
         S: 250-SIZE 1000
         S: 250 PIPELINING
         C: MAIL FROM:<a@c.example> SIZE=17
         C: RCPT TO:<x@s.example>
         C: RCPT TO:<y@s.example>
         C: DATA
         S: 250 Ok
         S: 250 Ok
         S: 550 5.1.1 No such
         S: 354 Go
         C: Subject: x
         C:
         C: ..
         C: .
         S: 250 Ok
         C: QUIT",
        &["taken 250 Ok", "Permanent 5.1.1 RCPT: 550 5.1.1 No such"],
        "",
    );
    check(
        "CHUNKING and PIPELINING: one round trip",
        |_| {},
        &basic,
        "S: 220 s.example
         C: EHLO c.example
         S: 250-s.example
         S: 250-CHUNKING
         S: 250 PIPELINING
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: RCPT TO:<y@s.example>
         C: BDAT 17 LAST
         C: Subject: x
         C:
         C: .
         S: 250 Ok
         S: 452 4.2.2 Full
         S: 250 Ok
         S: 250 Ok
         C: QUIT",
        &["Temporary 4.2.2 RCPT: 452 4.2.2 Full", "taken 250 Ok"],
        "",
    );
    check(
        "CHUNKING alone: replies between",
        |_| {},
        &basic[..],
        "S: 220 s.example
         C: EHLO c.example
         S: 250-s.example
         S: 250 CHUNKING
         C: MAIL FROM:<a@c.example>
         S: 250 Ok
         C: RCPT TO:<x@s.example>
         S: 250 Ok
         C: RCPT TO:<y@s.example>
         S: 250 Ok
         C: BDAT 17 LAST
         C: Subject: x
         C:
         C: .
         S: 552 5.3.4 Too big
         C: QUIT",
        &["Permanent 5.3.4 end of message: 552 5.3.4 Too big", "Permanent 5.3.4 end of message: 552 5.3.4 Too big"],
        "",
    );
    check(
        "neither is used when the settings say so; HELO; postmaster; the null sender",
        |settings| (settings.pipelining, settings.chunking) = (Use::Never, Use::Never),
        &[mail(&["postmaster"]).tuned(|mail| mail.envelope.set_reverse_path(None))],
        "S: 220 s.example
         C: EHLO c.example
         S: 502 5.5.1 What?
         C: HELO c.example
         S: 250 s.example
         C: MAIL FROM:<>
         S: 250 Ok
         C: RCPT TO:<postmaster>
         S: 250 Ok
         C: DATA
         S: 354 Go
         C: Subject: x
         C:
         C: ..
         C: .
         S: 250
         C: QUIT",
        &["taken 250 "],
        "",
    );
    check(
        "an empty message",
        |_| {},
        &[mail(&["x@s.example"]).tuned(|mail| mail.body.clear())],
        "S: 220 s.example
         C: EHLO c.example
         S: 250 PIPELINING
         C: MAIL FROM:<a@c.example>
         S: 250 Ok
         C: RCPT TO:<x@s.example>
         S: 250 Ok
         C: DATA
         S: 354 Go
         C: .
         S: 250 Ok
         C: QUIT",
        &["taken 250 Ok"],
        "",
    );
}

#[test]
fn several_messages() {
    check(
        "RSET only where something was left behind, and in the same group",
        |settings| settings.chunking = Use::Never,
        &[mail(TWO), mail(&["x@s.example"]), mail(&["x@s.example"]), mail(&["z@s.example"])],
        "S: 220 s.example
         C: EHLO c.example
         S: 250-s.example
         S: 250 PIPELINING
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: RCPT TO:<y@s.example>
         C: DATA
         S: 250 Ok
         S: 550 No
         S: 450 Later
         S: 503 5.5.1 No recipients
         C: RSET
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: DATA
         S: 250 Ok
         S: 250 Ok
         S: 250 Ok
         S: 354 Go
         C: Subject: x
         C:
         C: ..
         C: .
         S: 451 4.3.0 Trouble
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: DATA
         S: 450 4.7.1 Not now
         S: 503 No
         S: 503 No
         C: RSET
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<z@s.example>
         C: DATA
         S: 250 Ok
         S: 250 Ok
         S: 250 Ok
         S: 354 Go
         C: Subject: x
         C:
         C: ..
         C: .
         S: 250 Ok
         C: QUIT",
        &[
            "Permanent 5.0.0 RCPT: 550 No",
            "Temporary 4.0.0 RCPT: 450 Later",
            "Temporary 4.3.0 end of message: 451 4.3.0 Trouble",
            "Temporary 4.7.1 MAIL: 450 4.7.1 Not now",
            "taken 250 Ok",
        ],
        "",
    );
    check(
        "354 for a message that nobody gets: an empty one (RFC 2920 §3.1)",
        |_| {},
        &[mail(&["x@s.example"]), mail(&["y@s.example"])],
        "S: 220 s.example
         C: EHLO c.example
         S: 250-s.example
         S: 250 PIPELINING
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: DATA
         S: 250 Ok
         S: 552 Too many
         S: 354 Go
         C: .
         S: 554 No recipients
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<y@s.example>
         C: DATA
         S: 250 Ok
         S: 552 5.2.2 Full
         S: 554 No recipients
         C: QUIT",
        &["Temporary 4.0.0 RCPT: 552 Too many", "Permanent 5.2.2 RCPT: 552 5.2.2 Full"],
        "",
    );
    check(
        "without PIPELINING nothing follows a refusal",
        |_| {},
        &[mail(TWO), mail(TWO), mail(&["x@s.example"])],
        "S: 220 s.example
         C: EHLO c.example
         S: 250 s.example
         C: MAIL FROM:<a@c.example>
         S: 550 5.7.1 Not you
         C: MAIL FROM:<a@c.example>
         S: 250 Ok
         C: RCPT TO:<x@s.example>
         S: 550 5.1.1 No
         C: RCPT TO:<y@s.example>
         S: 550 5.1.1 No
         C: RSET
         S: 250 Ok
         C: MAIL FROM:<a@c.example>
         S: 250 Ok
         C: RCPT TO:<x@s.example>
         S: 250 Ok
         C: DATA
         S: 554 5.7.1 No
         C: QUIT",
        &[
            "Permanent 5.7.1 MAIL: 550 5.7.1 Not you",
            "Permanent 5.7.1 MAIL: 550 5.7.1 Not you",
            "Permanent 5.1.1 RCPT: 550 5.1.1 No",
            "Permanent 5.1.1 RCPT: 550 5.1.1 No",
            "Permanent 5.7.1 DATA: 554 5.7.1 No",
        ],
        "",
    );
    check(
        "BDAT that nobody wants is followed to its end; RFC 3030 §2: RSET",
        |_| {},
        &[mail(&["x@s.example"]), mail(&["y@s.example"])],
        "S: 220 s.example
         C: EHLO c.example
         S: 250-s.example
         S: 250-chunking
         S: 250 pipelining
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: BDAT 17 LAST
         C: Subject: x
         C:
         C: .
         S: 250 Ok
         S: 550 5.1.1 No
         S: 554 5.5.1 No recipients
         C: RSET
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<y@s.example>
         C: BDAT 17 LAST
         C: Subject: x
         C:
         C: .
         S: 250 Ok
         S: 250 Ok
         S: 250 Ok
         S: 250 Ok
         C: QUIT",
        &["Permanent 5.1.1 RCPT: 550 5.1.1 No", "taken 250 Ok"],
        "",
    );
}

#[test]
fn lmtp() {
    let lmtp = |settings: &mut Settings| settings.protocol = Protocol::Lmtp;
    check(
        "a reply for each accepted recipient, in order (RFC 2033 §4.2)",
        lmtp,
        &[mail(&["x@s.example", "no@s.example", "y@s.example", "z@s.example"])],
        "S: 220 s.example LMTP
         C: LHLO c.example
         S: 250-s.example
         S: 250 PIPELINING
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: RCPT TO:<no@s.example>
         C: RCPT TO:<y@s.example>
         C: RCPT TO:<z@s.example>
         C: DATA
         S: 250 Ok
         S: 250 Ok
         S: 550 5.1.1 No
         S: 250 Ok
         S: 250 Ok
         S: 354 Go
         C: Subject: x
         C:
         C: ..
         C: .
         S: 250 2.0.0 <x> Saved
         S: 452 4.2.2 <y> Full
         S: 250-2.0.0 <z>
         S: 250 2.0.0 Saved
         C: QUIT",
        &[
            "taken 250 <x> Saved",
            "Permanent 5.1.1 RCPT: 550 5.1.1 No",
            "Temporary 4.2.2 end of message: 452 4.2.2 <y> Full",
            "taken 250 <z> Saved",
        ],
        "",
    );
    check(
        "lost between two of them: what was said stands",
        lmtp,
        &[mail(TWO)],
        "S: 220 s.example LMTP
         C: LHLO c.example
         S: 250 s.example
         C: MAIL FROM:<a@c.example>
         S: 250 Ok
         C: RCPT TO:<x@s.example>
         S: 250 Ok
         C: RCPT TO:<y@s.example>
         S: 250 Ok
         C: DATA
         S: 354 Go
         C: Subject: x
         C:
         C: ..
         C: .
         S: 250 Saved",
        &["taken 250 Saved", "Lost 4.4.2 end of message: end of script"],
        "Lost 4.4.2 end of message: end of script",
    );
    check(
        "BDAT waits for the recipients, then one reply for each (RFC 2033 §4.3)",
        lmtp,
        &[mail(TWO), mail(TWO)],
        "S: 220 s.example LMTP
         C: LHLO c.example
         S: 250-s.example
         S: 250-CHUNKING
         S: 250 PIPELINING
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: RCPT TO:<y@s.example>
         S: 250 Ok
         S: 250 Ok
         S: 250 Ok
         C: BDAT 17 LAST
         C: Subject: x
         C:
         C: .
         S: 250 Saved
         S: 550 5.7.1 No
         C: RSET
         C: MAIL FROM:<a@c.example>
         C: RCPT TO:<x@s.example>
         C: RCPT TO:<y@s.example>
         S: 250 Ok
         S: 250 Ok
         S: 550 No
         S: 550 No
         C: QUIT",
        &[
            "taken 250 Saved",
            "Permanent 5.7.1 end of message: 550 5.7.1 No",
            "Permanent 5.0.0 RCPT: 550 No",
            "Permanent 5.0.0 RCPT: 550 No",
        ],
        "",
    );
    check(
        "no HELO",
        lmtp,
        &[],
        "S: 220 s\n C: LHLO c.example\n S: 500 What?\n C: QUIT",
        &[],
        "Permanent 5.0.0 EHLO: 500 What?",
    );
}

#[test]
fn what_a_message_needs() {
    let to = || mail(&["x@s.example"]);
    let utf8 = || mail(&["jörg@s.example", "x@s.example"]);
    let dsn = || {
        to().tuned(|mail| {
            mail.envelope.set_envid("id+2B1");
            mail.envelope.ret = Some(Ret::Headers);
            mail.envelope.set_auth("boss+=@c.example");
            mail.notify = Notify(Notify::SUCCESS.0 | Notify::DELAY.0);
            mail.orcpt = Some("rfc822;x@s.example");
        })
    };
    let greeted = |extensions: &'static str, mails: Vec<Mail>, end: &'static str, results: &'static [&'static str]| {
        let script = format!("S: 220 s\nC: EHLO c.example\nS: 250-s\n{extensions}\n{end}");
        check("needs", |_| {}, &mails, script.leak(), results, if end.contains("QUIT") { "" } else { LOST });
    };
    let big = to().tuned(|mail| mail.body = vec![b'x'; 1001]);
    greeted(
        "S: 250 SIZE 1000",
        vec![big],
        "C: QUIT",
        &["Permanent 5.3.4 MAIL: 5.3.4 message is larger than the peer takes"],
    );
    greeted(
        "S: 250 8BITMIME",
        vec![utf8()],
        "C: MAIL FROM:<a@c.example>\nS: 250 Ok\nC: RCPT TO:<x@s.example>\nS: 550 No\nC: QUIT",
        &[
            "Permanent 5.6.7 RCPT: 5.6.7 recipient address needs SMTPUTF8, which the peer does not offer",
            "Permanent 5.0.0 RCPT: 550 No",
        ],
    );
    greeted(
        "S: 250 SMTPUTF8",
        vec![utf8()],
        "C: MAIL FROM:<a@c.example> SMTPUTF8\nS: 550 5.7.1 No\nC: QUIT",
        &["Permanent 5.7.1 MAIL: 550 5.7.1 No", "Permanent 5.7.1 MAIL: 550 5.7.1 No"],
    );
    let header = to().tuned(|mail| mail.envelope.smtputf8 = true);
    greeted(
        "S: 250 8BITMIME",
        vec![header],
        "C: QUIT",
        &["Permanent 5.6.9 MAIL: 5.6.9 message needs SMTPUTF8, which the peer does not offer"],
    );
    let sender = to().tuned(|mail| mail.envelope.set_reverse_path(Some("jörg@c.example")));
    greeted(
        "S: 250 8BITMIME",
        vec![sender],
        "C: QUIT",
        &["Permanent 5.6.7 MAIL: 5.6.7 sender address needs SMTPUTF8, which the peer does not offer"],
    );
    let eight = || to().tuned(|mail| mail.envelope.body = Body::EightBitMime);
    greeted(
        "S: 250 SIZE",
        vec![eight()],
        "C: QUIT",
        &["Permanent 5.6.3 MAIL: 5.6.3 message needs 8BITMIME, which the peer does not offer"],
    );
    greeted(
        "S: 250 8bitmime",
        vec![eight()],
        "C: MAIL FROM:<a@c.example> BODY=8BITMIME\nS: 550 No\nC: QUIT",
        &["Permanent 5.0.0 MAIL: 550 No"],
    );
    greeted(
        "S: 250-DSN\nS: 250 AUTH X",
        vec![dsn()],
        "C: MAIL FROM:<a@c.example> RET=HDRS ENVID=id+2B1 AUTH=boss+2B+3D@c.example\nS: 250 Ok
         C: RCPT TO:<x@s.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x@s.example\nS: 550 No\nC: QUIT",
        &["Permanent 5.0.0 RCPT: 550 No"],
    );
    greeted(
        "S: 250 HELP",
        vec![dsn()],
        "C: MAIL FROM:<a@c.example>\nS: 250 Ok\nC: RCPT TO:<x@s.example>\nS: 550 No\nC: QUIT",
        &["Permanent 5.0.0 RCPT: 550 No"],
    );
    // What is no address is no address, and never a command.
    let evil = mail(&["x@s.example>\r\nQUIT\r\n<", "x", "", "a b@s.example", "x@s.example> NOTIFY=NEVER"]);
    greeted("S: 250 HELP", vec![evil], "C: QUIT", &["Permanent 5.1.3 RCPT: 5.1.3 recipient address is none"; 5]);
    let evil = dsn().tuned(|mail| {
        mail.envelope.set_envid("a\r\nQUIT");
        mail.envelope.set_auth("x\r\nQUIT");
        mail.orcpt = Some("rfc822;x NOTIFY=NEVER");
    });
    greeted(
        "S: 250-AUTH X\nS: 250 DSN",
        vec![evil],
        "C: MAIL FROM:<a@c.example> RET=HDRS AUTH=x+0D+0AQUIT\nS: 250 Ok
         C: RCPT TO:<x@s.example> NOTIFY=SUCCESS,DELAY\nS: 550 No\nC: QUIT",
        &["Permanent 5.0.0 RCPT: 550 No"],
    );
    let evil = to().tuned(|mail| mail.envelope.set_reverse_path(Some("a@c.example>\r\nDATA\r\n")));
    greeted("S: 250 HELP", vec![evil], "C: QUIT", &["Permanent 5.1.7 MAIL: 5.1.7 sender address is none"]);
}

#[test]
fn starttls() {
    let tls = |policy| move |settings: &mut Settings| settings.starttls = policy;
    check(
        "what was said in clear is forgotten (RFC 3207 §4.2)",
        tls(StartTls::Required),
        &[mail(&["x@s.example"])],
        "S: 220 s
         C: EHLO c.example
         S: 250-s
         S: 250-PIPELINING
         S: 250-SIZE 1
         S: 250 STARTTLS
         C: STARTTLS
         S: 220 Go
         C: <TLS>
         C: EHLO c.example
         S: 250-s
         S: 250 STARTTLS
         C: MAIL FROM:<a@c.example>
         S: 550 No
         C: QUIT",
        &["Permanent 5.0.0 MAIL: 550 No"],
        "",
    );
    let offered = "S: 220 s\nC: EHLO c.example\nS: 250-s\nS: 250 STARTTLS\nC: STARTTLS\n";
    let plain = "S: 220 s\nC: EHLO c.example\nS: 250 s\n";
    for (policy, script, end, failure) in [
        (StartTls::Required, offered, "S: 454 4.7.0 Later\nC: QUIT", "Temporary 4.7.0 STARTTLS: 454 4.7.0 Later"),
        (StartTls::IfOffered, offered, "S: 454 4.7.0 Later\nC: QUIT", ""),
        (StartTls::Required, plain, "C: QUIT", "Temporary 4.7.4 STARTTLS: 4.7.4 peer does not offer STARTTLS"),
        (StartTls::IfOffered, plain, "C: QUIT", ""),
        (StartTls::Never, "S: 220 s\nC: EHLO c.example\nS: 250-s\nS: 250 STARTTLS\n", "C: QUIT", ""),
        (StartTls::IfOffered, offered, "S: 250 Ok", "Protocol 4.5.0 STARTTLS: reply that does not fit"),
    ] {
        check("starttls", tls(policy), &[], format!("{script}{end}").leak(), &[], failure);
    }
}

/// What is said of channel binding: `p` where both can, `y` where only we can, `n` where we are told not to; a
/// server that had its offer struck out on the way hears `y` and knows (RFC 5802 §6).
#[test]
fn channel_binding() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let exporter = || ChannelBindings { exporter: Some([1; 32]), server_end_point: None };
    let plain = "SCRAM-SHA-1 SCRAM-SHA-256";
    let both = "PLAIN SCRAM-SHA-256 SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS";
    for (channel, bindings, only, offered, expect) in [
        (Channel::Tls, exporter(), None, both, "SCRAM-SHA-256-PLUS p=tls-exporter,,"),
        (Channel::Tls, exporter(), None, plain, "SCRAM-SHA-256 y,,"),
        (Channel::Tls, exporter(), Some(Mechanism::ScramSha256), both, "SCRAM-SHA-256 n,,"),
        (Channel::Tls, exporter(), Some(Mechanism::ScramSha256), plain, "SCRAM-SHA-256 n,,"),
        (Channel::Tls, ChannelBindings::default(), None, both, "SCRAM-SHA-256 n,,"),
        (Channel::Clear, exporter(), None, both, "SCRAM-SHA-256 n,,"),
        (Channel::Tls, ChannelBindings::default(), Some(Mechanism::ScramSha1Plus), both, ""),
        (Channel::Tls, exporter(), Some(Mechanism::OauthBearer), "OAUTHBEARER", ""),
    ] {
        let settings = settings(|settings| {
            login(settings);
            if let (Some(login), Some(only)) = (&mut settings.login, only) {
                login.mechanisms = vec![only];
            }
        });
        let mut client = Client::new(settings, channel, [7; 24]);
        client.bind(bindings);
        let mut out = Vec::new();
        client.receive(b"220 s\r\n", &mut out);
        out.clear();
        client.receive(format!("250-s\r\n250 AUTH {offered}\r\n").as_bytes(), &mut out);
        let said = String::from_utf8(out).unwrap();
        let words: Vec<&str> = said.split_whitespace().collect();
        let heard = match words[..] {
            ["AUTH", name, initial] => {
                let initial = String::from_utf8(STANDARD.decode(initial).unwrap()).unwrap();
                format!("{name} {}", initial.split("n=alice").next().unwrap())
            }
            _ => String::new(),
        };
        assert_eq!(heard, expect, "{offered}: {said}");
        assert_eq!(client.failure().is_some(), expect.is_empty());
    }
}

#[test]
fn auth() {
    let greeted = "S: 220 s\nC: EHLO c.example\nS: 250-s\nS: 250-AUTH PLAIN LOGIN X\nS: 250 STARTTLS\n";
    let inside = "C: STARTTLS\nS: 220 Go\nC: <TLS>\nC: EHLO c.example\nS: 250-s\n";
    let none = "Temporary 4.7.0 AUTH: 4.7.0 peer offers no mechanism that may be used on this connection";
    for (starttls, extensions, end, failure) in [
        (
            StartTls::IfOffered,
            "S: 250 AUTH PLAIN LOGIN\n",
            "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: 235 Ok\nC: QUIT",
            "",
        ),
        (
            StartTls::IfOffered,
            "S: 250 AUTH PLAIN\n",
            "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: 535 5.7.8 No\nC: QUIT",
            "Permanent 5.7.8 AUTH: 535 5.7.8 No",
        ),
        (
            StartTls::IfOffered,
            "S: 250 AUTH PLAIN\n",
            "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: 454 4.7.0 Later\nC: QUIT",
            "Temporary 4.7.0 AUTH: 454 4.7.0 Later",
        ),
        (
            StartTls::IfOffered,
            "S: 250 AUTH LOGIN\n",
            "C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: YWxpY2U=\nS: 334 UGFzc3dvcmQ6\nC: c2VjcmV0\nS: 235 2.7.0 Ok\nC: QUIT",
            "",
        ),
        (
            StartTls::IfOffered,
            "S: 250 AUTH CRAM-MD5 PLAIN\n",
            "C: AUTH CRAM-MD5\nS: 504 5.5.4 Not here\nC: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: 235 Ok\nC: QUIT",
            "",
        ),
        (
            StartTls::IfOffered,
            "S: 250 AUTH CRAM-MD5\n",
            "C: AUTH CRAM-MD5\nS: 534 5.7.9 Too weak\nC: QUIT",
            "Permanent 5.7.9 AUTH: 534 5.7.9 Too weak",
        ),
        (
            StartTls::IfOffered,
            "S: 250 AUTH LOGIN\n",
            "C: AUTH LOGIN\nS: 235 Ok",
            "Protocol 4.5.0 AUTH: peer accepts a login without having proven itself",
        ),
        (
            StartTls::IfOffered,
            "S: 250 AUTH LOGIN\n",
            "C: AUTH LOGIN\nS: 334 *",
            "Protocol 4.5.0 AUTH: challenge that is no base64",
        ),
        (
            StartTls::IfOffered,
            "S: 250 AUTH PLAIN\n",
            "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: 334",
            "Protocol 4.5.0 AUTH: challenge too many",
        ),
        (StartTls::IfOffered, "S: 250 AUTH X\n", "C: QUIT", none),
        (StartTls::IfOffered, "S: 250 SIZE\n", "C: QUIT", none),
        // Never in clear.
        (StartTls::Never, "", "C: QUIT", none),
    ] {
        let script = match starttls {
            StartTls::Never => format!("{greeted}{end}"),
            _ => format!("{greeted}{inside}{extensions}{end}"),
        };
        let tune = |settings: &mut Settings| {
            login(settings);
            settings.starttls = starttls;
        };
        check("auth", tune, &[], script.leak(), &[], failure);
    }
    check(
        "in clear when told so",
        |settings| {
            login(settings);
            settings.starttls = StartTls::Never;
            settings.login.iter_mut().for_each(|login| login.cleartext = Cleartext::Allow);
        },
        &[],
        format!("{greeted}C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: 235 Ok\nC: QUIT").leak(),
        &[],
        "",
    );
}

/// A whole dialogue, cut short after each reply: by 421, and by the end of the connection.
#[test]
fn ends_at_every_stage() {
    const STEPS: [(&str, &str); 9] = [
        ("220 s\r\n", "EHLO"),
        ("250-s\r\n250 AUTH CRAM-MD5\r\n", "AUTH"),
        ("334 PDE+\r\n", "AUTH"),
        ("235 Ok\r\n", "MAIL"),
        ("250 Ok\r\n", "RCPT"),
        ("250 Ok\r\n", "RCPT"),
        ("250 Ok\r\n", "DATA"),
        ("354 Go\r\n", "end of message"),
        ("250 Ok\r\n", "QUIT"),
    ];
    for length in 0..=STEPS.len() {
        for closing in [true, false] {
            let settings = settings(|settings| {
                login(settings);
                settings.starttls = StartTls::Never;
            });
            let mut driver = Driver::new(settings, Channel::Clear, &[mail(TWO)], 3);
            STEPS.iter().take(length).for_each(|(reply, _)| driver.hear(reply.as_bytes()));
            let stage = if length == 0 { "greeting" } else { STEPS[length - 1].1 };
            if closing {
                driver.hear(b"421 4.3.2 Closing\r\n");
            } else {
                driver.client.lost("reset by peer");
                driver.go_on(Next::Closed);
            }
            let expect = if closing {
                format!("Temporary 4.3.2 {stage}: 421 4.3.2 Closing")
            } else {
                format!("Lost 4.4.2 {stage}: reset by peer")
            };
            let over = length == STEPS.len();
            assert_eq!(driver.failure(), if over { "" } else { &expect }, "after {length}");
            let results = match length {
                0..4 => vec![],
                _ if over => vec!["taken 250 Ok".to_owned(); 2],
                _ => vec![expect; 2],
            };
            assert_eq!(driver.results, results, "after {length}");
            // It stays closed, and whatever is asked of it then fails for the same reason.
            let mut out = Vec::new();
            assert_eq!(driver.client.receive(b"250 Ok\r\n", &mut out), (8, Next::Closed));
            assert_eq!(mail(TWO).deliver(&mut driver.client, &mut out), Next::Closed);
            assert!(
                driver.client.results().all(|result| matches!(result, RecipientResult::Failed(f) if !f.is_permanent()))
            );
            assert_eq!((driver.client.results().len(), out.len()), (2, 0));
        }
    }
}

#[test]
fn many_recipients_go_in_windows() {
    let addresses: Vec<&'static str> = (0..200).map(|i| &*format!("r{i}@s.example").leak()).collect();
    let mut driver = Driver::new(settings(|_| {}), Channel::Clear, &[mail(&addresses)], 100);
    driver.hear(b"220 s\r\n");
    driver.hear(b"250-s\r\n250 PIPELINING\r\n");
    let (mut written, mut answered, mut most) = (0, 0, 0);
    while !driver.closed {
        let said = String::from_utf8(std::mem::take(&mut driver.said)).unwrap();
        written += said.lines().filter(|line| ["MAIL", "RCPT", "DATA"].contains(&line.get(..4).unwrap_or(""))).count();
        most = most.max(written - answered);
        if written == answered {
            driver.hear(if said.contains("QUIT") { b"221 Bye\r\n" } else { b"250 Ok\r\n" });
            continue;
        }
        answered += 1;
        driver.hear(match answered {
            202 => b"354 Go\r\n",
            n if n % 10 == 0 => b"550 No\r\n",
            _ => b"250 Ok\r\n",
        });
    }
    assert_eq!((written, most), (202, 64));
    let taken = driver.results.iter().filter(|result| result.starts_with("taken")).count();
    assert_eq!((driver.results.len(), taken), (200, 180));
}

#[test]
fn a_large_message_waits_for_its_recipients() {
    let body = b"0123456789abcdef\r\n".repeat(5000);
    let large = mail(&["x@s.example"]).tuned(|mail| mail.body = body.clone());
    let mut driver = Driver::new(settings(|_| {}), Channel::Clear, &[large.clone(), large], 1000);
    driver.hear(b"220 s\r\n");
    driver.hear(b"250-s\r\n250-PIPELINING\r\n250 CHUNKING\r\n");
    driver.said.drain(..b"EHLO c.example\r\n".len());
    assert_eq!(std::mem::take(&mut driver.said), b"MAIL FROM:<a@c.example>\r\nRCPT TO:<x@s.example>\r\n");
    driver.hear(b"250 Ok\r\n250 Ok\r\n");
    assert_eq!(std::mem::take(&mut driver.said), [b"BDAT 90000 LAST\r\n", &body[..]].concat());
    driver.hear(b"250 Ok\r\n");
    driver.hear(b"250 Ok\r\n550 No\r\n");
    assert!(driver.said.ends_with(b"RCPT TO:<x@s.example>\r\nQUIT\r\n"));
}

#[test]
fn a_message_that_is_none_ends_the_connection() {
    for (body, why) in [(&b"a\nb\r\n"[..], "bare LF"), (b"a\r", "bare CR at the end"), (b"a\rb", "bare CR")] {
        for extensions in [&b"250 s\r\n"[..], b"250-s\r\n250 CHUNKING\r\n"] {
            let bad = mail(&["x@s.example"]).tuned(|mail| mail.body = body.to_vec());
            let mut driver = Driver::new(settings(|_| {}), Channel::Clear, &[bad], 1);
            driver.hear(b"220 s\r\n");
            driver.hear(extensions);
            driver.hear(b"250 Ok\r\n");
            driver.hear(b"250 Ok\r\n");
            driver.hear(b"354 Go\r\n");
            assert!(driver.closed, "{why}");
            assert!(driver.results[0].starts_with("Permanent 5.6.0 message: 5.6.0 "), "{why}: {:?}", driver.results);
            assert!(!driver.said.ends_with(b".\r\n"), "{why}");
            let said = String::from_utf8(driver.said).unwrap().replace("\r\n", "");
            assert!(!said.contains(['\r', '\n']), "{why}: {said:?}");
        }
    }
    // More octets than were announced.
    let mut driver = Driver::new(settings(|_| {}), Channel::Clear, &[mail(&["x@s.example"])], 1);
    for reply in ["220 s\r\n", "250-s\r\n250 CHUNKING\r\n", "250 Ok\r\n"] {
        driver.hear(reply.as_bytes());
    }
    driver.body.truncate(5);
    driver.said.clear();
    let mut out = Vec::new();
    let (_, next) = driver.client.receive(b"250 Ok\r\n", &mut out);
    assert_eq!((next, &out[..]), (Next::Write, &b"BDAT 17 LAST\r\n"[..]));
    assert_eq!(driver.client.body(&[b'x'; 18], &mut out), Next::Closed);
    assert!(matches!(driver.client.results().next(), Some(RecipientResult::Failed(failure)) if failure.is_permanent()));
}

#[test]
fn an_early_refusal_counts_and_an_early_thanks_does_not() {
    let large = mail(&["x@s.example"]).tuned(|mail| mail.body = vec![b'x'; 100_000]);
    for (extensions, reply, expect) in [
        ("250 s\r\n", "552 5.3.4 Enough\r\n", "Permanent 5.3.4 message: 552 5.3.4 Enough"),
        ("250 s\r\n", "250 Thanks\r\n", "Protocol 4.5.0 message: peer spoke out of turn"),
        ("250-s\r\n250 CHUNKING\r\n", "552 5.3.4 Enough\r\n", "Permanent 5.3.4 message: 552 5.3.4 Enough"),
        (
            "250-s\r\n250 CHUNKING\r\n",
            "250 Thanks\r\n",
            "Protocol 4.5.0 message: peer takes a message that it does not have",
        ),
    ] {
        let mut client = Client::new(settings(|_| {}), Channel::Clear, [0; 24]);
        let mut out = Vec::new();
        client.receive(b"220 s\r\n", &mut out);
        client.receive(extensions.as_bytes(), &mut out);
        large.deliver(&mut client, &mut out);
        client.receive(b"250 Ok\r\n", &mut out);
        let mut next = client.receive(b"250 Ok\r\n", &mut out).1;
        if next == Next::Read {
            next = client.receive(b"354 Go\r\n", &mut out).1;
        }
        assert_eq!(next, Next::Write);
        assert_eq!(client.body(&[b'x'; 1000], &mut out), Next::Write);
        out.clear();
        assert_eq!(client.receive(reply.as_bytes(), &mut out).1, Next::Closed);
        assert_eq!(client.results().map(|result| show(&result)).collect::<Vec<_>>(), [expect]);
        assert!(out.is_empty());
    }
}

#[test]
fn the_second_message_allocates_nothing() {
    let mut client = Client::new(settings(|_| {}), Channel::Clear, [0; 24]);
    let (mut out, sent) = (Vec::with_capacity(4096), mail(TWO));
    client.receive(b"220 s\r\n", &mut out);
    client.receive(b"250-s\r\n250-DSN\r\n250 PIPELINING\r\n", &mut out);
    let recipients = sent.to.iter().map(|address| Recipient { address, mailbox: "", orcpt: None, notify: Notify(8) });
    let recipients: Vec<_> = recipients.collect();
    let octets = sent.body.len() as u64;
    let message = Message { envelope: &sent.envelope, recipients: &recipients, octets };
    let mut turn = || {
        out.clear();
        assert_eq!(client.deliver(&message, &mut out), Next::Read);
        assert_eq!(client.receive(b"250 Ok\r\n250 Ok\r\n550 No\r\n354 Go\r\n", &mut out).1, Next::Write);
        assert_eq!(client.body(&sent.body, &mut out), Next::Read);
        assert_eq!(client.receive(b"250 2.0.0 Ok: queued as 4711\r\n", &mut out).1, Next::Delivered);
        assert!(matches!(client.results().next(), Some(RecipientResult::Taken(answer)) if answer.code == 250));
    };
    turn();
    assert_eq!(allocation_counter::measure(turn).count_total, 0);
}
