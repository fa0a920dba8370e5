//! An independent model of what the session answers, and every short sequence of commands against it
//! (CONTRACT C30).
//!
//! The model knows codes and states, nothing else. It was written from the RFCs, the table of reply
//! precedence, and the rules on BDAT; not from the session. Where a text leaves a choice the model has
//! both ways and follows the one that was taken; each such place says which text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use smtp::listener::{Listener, Role};

use crate::bare::{self, Bare, Manners};
use crate::replies::Enhanced;

/// What a client does; `follow` goes out when the last reply had that code.
struct Token {
    name: &'static str,
    octets: &'static [u8],
    follow: Option<(u16, &'static [u8])>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Ehlo,
    Helo,
    Mail,
    MailBad,
    MailEightBit,
    MailAuth,
    Rcpt,
    RcptBad,
    RcptUnknown,
    RcptRelay,
    Data,
    Bdat,
    BdatLast,
    BdatBad,
    Rset,
    Noop,
    Vrfy,
    Auth,
    AuthWrong,
    AuthContinued,
    AuthCancelled,
    AuthOpen,
    StartTls,
    Garbage,
    LongLine,
    BareLf,
    Quit,
}

/// 2100 octets: more than a command may have, less than a response may have.
static LONG_LINE: [u8; 2100] = {
    let mut line = [b'a'; 2100];
    (line[0], line[1], line[2], line[3], line[4]) = (b'N', b'O', b'O', b'P', b' ');
    (line[2098], line[2099]) = (b'\r', b'\n');
    line
};

const GOOD: &[u8] = b"AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n";

const fn token(name: &'static str, kind: Kind, octets: &'static [u8]) -> Token {
    Token { name, octets, follow: None, kind }
}

const fn dance(name: &'static str, kind: Kind, octets: &'static [u8], on: u16, follow: &'static [u8]) -> Token {
    Token { name, octets, follow: Some((on, follow)), kind }
}

/// The alphabet. Chunks look like commands to a server that forgets to swallow them; NOOP, RSET, QUIT,
/// DATA and STARTTLS are base64 to one that waits for a response.
static TOKENS: [Token; 27] = [
    token("EHLO", Kind::Ehlo, b"EHLO client.example\r\n"),
    token("HELO", Kind::Helo, b"HELO client.example\r\n"),
    token("MAIL", Kind::Mail, b"MAIL FROM:<alice@demo.test>\r\n"),
    token("MAIL:bad", Kind::MailBad, b"MAIL FROM:alice\r\n"),
    token("MAIL:8-bit", Kind::MailEightBit, b"MAIL FROM:<jos\xc3\xa9@demo.test>\r\n"),
    token("MAIL:AUTH=", Kind::MailAuth, b"MAIL FROM:<alice@demo.test> AUTH=<>\r\n"),
    token("RCPT", Kind::Rcpt, b"RCPT TO:<bob@demo.test>\r\n"),
    token("RCPT:bad", Kind::RcptBad, b"RCPT TO:bob\r\n"),
    token("RCPT:unknown", Kind::RcptUnknown, b"RCPT TO:<nobody@demo.test>\r\n"),
    token("RCPT:relay", Kind::RcptRelay, b"RCPT TO:<x@far.example>\r\n"),
    dance("DATA", Kind::Data, b"DATA\r\n", 354, b"From: <alice@demo.test>\r\n\r\n..\r\nQUIT\r\n.\r\n"),
    token("BDAT", Kind::Bdat, b"BDAT 12\r\nSubject: a\r\n"),
    token("BDAT:last", Kind::BdatLast, b"BDAT 25 LAST\r\nFrom: <alice@demo.test>\r\n"),
    token("BDAT:bad", Kind::BdatBad, b"BDAT -1\r\n"),
    token("RSET", Kind::Rset, b"RSET\r\n"),
    token("NOOP", Kind::Noop, b"NOOP\r\n"),
    token("VRFY", Kind::Vrfy, b"VRFY alice\r\n"),
    token("AUTH", Kind::Auth, b"AUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\n"),
    token("AUTH:wrong", Kind::AuthWrong, b"AUTH PLAIN AGFsaWNlQGRlbW8udGVzdAB3cm9uZw==\r\n"),
    dance("AUTH:continued", Kind::AuthContinued, b"AUTH PLAIN\r\n", 334, GOOD),
    dance("AUTH:cancelled", Kind::AuthCancelled, b"AUTH PLAIN\r\n", 334, b"*\r\n"),
    token("AUTH:open", Kind::AuthOpen, b"AUTH LOGIN\r\n"),
    token("STARTTLS", Kind::StartTls, b"STARTTLS\r\n"),
    token("garbage", Kind::Garbage, b"XYZZY\r\n"),
    token("long line", Kind::LongLine, &LONG_LINE),
    token("bare LF", Kind::BareLf, b"NOOP a\nRSET\r\n"),
    token("QUIT", Kind::Quit, b"QUIT\r\n"),
];

/// What a reply must be.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Expected {
    code: u16,
    enhanced: Wanted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// No text says which; the class is checked everywhere.
    Some,
    Exactly(Enhanced),
}

impl Expected {
    fn fits(self, (code, enhanced): (u16, Option<Enhanced>)) -> bool {
        self.code == code
            && match self.enhanced {
                Wanted::Nothing => enhanced.is_none(),
                Wanted::Some => enhanced.is_some(),
                Wanted::Exactly(wanted) => enhanced == Some(wanted),
            }
    }
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.enhanced {
            Wanted::Nothing => write!(f, "{}", self.code),
            Wanted::Some => write!(f, "{} x.x.x", self.code),
            Wanted::Exactly(enhanced) => write!(f, "{} {enhanced:?}", self.code),
        }
    }
}

const fn bare_code(code: u16) -> Expected {
    Expected { code, enhanced: Wanted::Nothing }
}

const fn some(code: u16) -> Expected {
    Expected { code, enhanced: Wanted::Some }
}

const fn say(code: u16, subject: u16, detail: u16) -> Expected {
    Expected { code, enhanced: Wanted::Exactly(Enhanced((code / 100) as u8, subject, detail)) }
}

const HELLO: Expected = bare_code(250); // RFC 5321 §4.1.1.1; RFC 2034 §4: no enhanced code
const OK: Expected = say(250, 0, 0);
const SENDER_OK: Expected = say(250, 1, 0);
const RECIPIENT_OK: Expected = say(250, 1, 5);
const CHUNK_OK: Expected = some(250);
const QUEUED: Expected = say(250, 0, 0);
const GO_AHEAD: Expected = bare_code(354);
const CHALLENGE: Expected = bare_code(334);
const BYE: Expected = say(221, 0, 0);
const START_TLS: Expected = say(220, 0, 0);
const CANNOT_VERIFY: Expected = say(252, 5, 0);
const LOGGED_IN: Expected = say(235, 7, 0);
const BAD_LINE: Expected = say(500, 5, 2);
const BAD_AUTH_LINE: Expected = say(500, 5, 6);
const UNKNOWN: Expected = say(500, 5, 1);
const SYNTAX: Expected = some(501);
const BAD_BASE64: Expected = say(501, 5, 2);
const CANCELLED: Expected = say(501, 7, 0);
const NOT_OFFERED: Expected = say(502, 5, 1);
const SEQUENCE: Expected = say(503, 5, 1);
const NO_MECHANISM: Expected = say(504, 5, 4);
const NEED_TLS: Expected = say(530, 7, 0);
const NEED_AUTH: Expected = say(530, 7, 0);
const WRONG: Expected = say(535, 7, 8);
const NO_SUCH_USER: Expected = say(550, 1, 1);
const NO_RELAY: Expected = say(550, 7, 1);
const NO_UTF8: Expected = say(550, 6, 7);
const NO_RECIPIENTS: Expected = say(554, 5, 1);
const NO_PARAMETER: Expected = say(555, 5, 4);
const TOO_MANY_FAILURES: Expected = say(421, 7, 0);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hello {
    None,
    Helo,
    Ehlo,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transaction {
    None,
    Open {
        recipients: bool,
        chunks: bool,
    },
    /// After a failed BDAT (DECISIONS C9).
    Broken,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Exchange {
    None,
    UserName,
    Password,
}

/// Where a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Model {
    role: Role,
    tls: bool,
    hello: Hello,
    identity: bool,
    transaction: Transaction,
    exchange: Exchange,
    failures: u8,
    closed: bool,
}

/// One way to answer: replies in order, and where the session stands afterwards.
#[derive(Clone, Copy)]
struct Way {
    replies: [Option<Expected>; 3],
    next: Model,
}

/// All ways that the texts allow; at most three.
#[derive(Clone, Copy)]
struct Ways([Option<Way>; 3]);

fn way(next: Model, replies: &[Expected]) -> Way {
    let mut all = [None; 3];
    for (slot, reply) in all.iter_mut().zip(replies) {
        *slot = Some(*reply);
    }
    Way { replies: all, next }
}

impl Model {
    fn new(role: Role, tls: bool) -> Self {
        Self {
            role,
            tls,
            hello: Hello::None,
            identity: false,
            transaction: Transaction::None,
            exchange: Exchange::None,
            failures: 0,
            closed: false,
        }
    }

    /// Answers and stays.
    fn stay(self, reply: Expected) -> Ways {
        Ways([Some(way(self, &[reply])), None, None])
    }

    fn go(self, next: Self, replies: &[Expected]) -> Ways {
        Ways([Some(way(next, replies)), None, None])
    }

    /// A login failed: the third one gets its own reply and then 421 (RFC 4954 §9, DECISIONS C6).
    fn failed(self, first: &[Expected]) -> Ways {
        let failures = self.failures + 1;
        let next = Self { failures, exchange: Exchange::None, closed: failures == 3, ..self };
        let mut way = way(next, first);
        let end = first.len();
        way.replies[end] = Some(WRONG);
        if next.closed {
            way.replies[end + 1] = Some(TOO_MANY_FAILURES);
        }
        Ways([Some(way), None, None])
    }

    fn step(self, token: &Token) -> Ways {
        if self.closed {
            return Ways([Some(way(self, &[])), None, None]);
        }
        if self.exchange != Exchange::None {
            return self.response(token);
        }
        let kind = token.kind;
        // Row 1 and 2 of the table of precedence.
        match kind {
            Kind::LongLine | Kind::BareLf => return self.stay(BAD_LINE),
            Kind::Garbage => return self.stay(UNKNOWN),
            _ => {}
        }
        let none = Self { transaction: Transaction::None, ..self };
        // What is answered in every state.
        match kind {
            Kind::Quit => return self.go(Self { closed: true, ..none }, &[BYE]),
            Kind::Noop => return self.stay(OK),
            Kind::Rset => return self.go(none, &[OK]),
            Kind::Ehlo => return self.go(Self { hello: Hello::Ehlo, ..none }, &[HELLO]),
            Kind::Helo => return self.go(Self { hello: Hello::Helo, ..none }, &[HELLO]),
            Kind::StartTls => {
                return if self.tls || self.transaction == Transaction::Broken {
                    self.stay(SEQUENCE)
                } else {
                    // RFC 3207 §4.2: as if just connected.
                    self.go(Self { failures: self.failures, ..Self::new(self.role, true) }, &[START_TLS])
                };
            }
            _ => {}
        }
        // Row 3: TLS required, none. AUTH too.
        if self.role.is_submission() && !self.tls {
            return self.stay(NEED_TLS);
        }
        match kind {
            Kind::Auth | Kind::AuthWrong | Kind::AuthContinued | Kind::AuthCancelled | Kind::AuthOpen => {
                self.auth(kind)
            }
            // Row 6: before 503, before syntax.
            _ if self.role.is_submission() && !self.identity => self.stay(NEED_AUTH),
            Kind::Vrfy if self.hello == Hello::None || self.transaction == Transaction::Broken => self.stay(SEQUENCE),
            Kind::Vrfy => self.stay(CANNOT_VERIFY),
            Kind::Mail | Kind::MailBad | Kind::MailEightBit | Kind::MailAuth => self.mail(kind),
            Kind::Rcpt | Kind::RcptBad | Kind::RcptUnknown | Kind::RcptRelay => self.rcpt(kind),
            Kind::Data => self.data(),
            Kind::Bdat | Kind::BdatLast | Kind::BdatBad => self.bdat(kind),
            _ => unreachable!("answered above"),
        }
    }

    /// A line while a response is awaited (RFC 4954 §4).
    fn response(self, token: &Token) -> Ways {
        let end = token.octets.windows(2).position(|pair| pair == b"\r\n").unwrap_or_default();
        let idle = Self { exchange: Exchange::None, ..self };
        // Row 1: on a line that is none the exchange ends with its own code.
        if token.kind == Kind::BareLf {
            return self.go(idle, &[BAD_AUTH_LINE]);
        }
        if !is_base64(&token.octets[..end]) {
            // A chunk that came behind is a line now, and no command.
            let chunk = matches!(token.kind, Kind::Bdat | Kind::BdatLast);
            return self.go(idle, if chunk { &[BAD_BASE64, UNKNOWN] } else { &[BAD_BASE64] });
        }
        match self.exchange {
            Exchange::UserName => self.go(Self { exchange: Exchange::Password, ..self }, &[CHALLENGE]),
            _ => self.failed(&[]),
        }
    }

    fn auth(self, kind: Kind) -> Ways {
        // Row 4, then row 5.
        if self.hello != Hello::Ehlo || self.identity || self.transaction != Transaction::None {
            return self.stay(SEQUENCE);
        }
        if !self.tls {
            return self.stay(NO_MECHANISM);
        }
        let proven = Self { identity: true, ..self };
        match kind {
            Kind::Auth => self.go(proven, &[LOGGED_IN]),
            Kind::AuthContinued => self.go(proven, &[CHALLENGE, LOGGED_IN]),
            Kind::AuthCancelled => self.go(self, &[CHALLENGE, CANCELLED]),
            Kind::AuthOpen => self.go(Self { exchange: Exchange::UserName, ..self }, &[CHALLENGE]),
            _ => self.failed(&[]),
        }
    }

    fn mail(self, kind: Kind) -> Ways {
        let open = Self { transaction: Transaction::Open { recipients: false, chunks: false }, ..self };
        match kind {
            _ if self.hello == Hello::None || self.transaction != Transaction::None => self.stay(SEQUENCE),
            Kind::MailBad => self.stay(SYNTAX),
            Kind::MailEightBit => self.stay(NO_UTF8),
            // RFC 5321 §4.1.1.2: parameters when extensions were negotiated; §4.1.1.11: else 555.
            Kind::MailAuth if self.hello == Hello::Helo => self.stay(NO_PARAMETER),
            _ => self.go(open, &[SENDER_OK]),
        }
    }

    fn rcpt(self, kind: Kind) -> Ways {
        let Transaction::Open { chunks: false, .. } = self.transaction else { return self.stay(SEQUENCE) };
        let added = Self { transaction: Transaction::Open { recipients: true, chunks: false }, ..self };
        match kind {
            Kind::RcptBad => self.stay(SYNTAX),
            Kind::RcptUnknown => self.stay(NO_SUCH_USER),
            Kind::RcptRelay if !self.identity => self.stay(NO_RELAY),
            _ => self.go(added, &[RECIPIENT_OK]),
        }
    }

    fn data(self) -> Ways {
        let done = Self { transaction: Transaction::None, ..self };
        match self.transaction {
            Transaction::None | Transaction::Broken => self.stay(SEQUENCE),
            // RFC 3030 §2: 503, and "the state resulting from this error is indeterminate".
            Transaction::Open { chunks: true, .. } => {
                let broken = Self { transaction: Transaction::Broken, ..self };
                Ways([Some(way(self, &[SEQUENCE])), Some(way(broken, &[SEQUENCE])), None])
            }
            Transaction::Open { recipients: false, .. } => self.stay(NO_RECIPIENTS),
            Transaction::Open { .. } => self.go(done, &[GO_AHEAD, QUEUED]),
        }
    }

    fn bdat(self, kind: Kind) -> Ways {
        let broken = Self { transaction: Transaction::Broken, ..self };
        let more = Self { transaction: Transaction::Open { recipients: true, chunks: true }, ..self };
        let done = Self { transaction: Transaction::None, ..self };
        let bad = kind == Kind::BdatBad;
        let mut ways = match (self.transaction, kind) {
            (Transaction::Broken, _) => return self.stay(SEQUENCE),
            // No text puts the sequence before the syntax here, or behind it.
            (Transaction::None, _) if bad => [Some(way(self, &[SEQUENCE])), Some(way(self, &[SYNTAX])), None],
            (Transaction::None, _) => return self.stay(SEQUENCE),
            // RFC 5321 §3.3: without recipients "MAY return 503 or 554".
            (Transaction::Open { recipients: false, .. }, _) => [
                Some(way(broken, &[NO_RECIPIENTS])),
                Some(way(broken, &[SEQUENCE])),
                bad.then_some(way(broken, &[SYNTAX])),
            ],
            (_, Kind::BdatBad) => [Some(way(broken, &[SYNTAX])), None, None],
            (_, Kind::Bdat) => [Some(way(more, &[CHUNK_OK])), None, None],
            (_, _) => [Some(way(done, &[QUEUED])), None, None],
        };
        // After HELO CHUNKING was not offered; no text says whether BDAT is refused then.
        if self.hello == Hello::Helo && ways[2].is_none() {
            ways[2] = Some(way(broken, &[NOT_OFFERED]));
        }
        Ways(ways)
    }
}

fn is_base64(line: &[u8]) -> bool {
    let padding = line.iter().rev().take_while(|&&c| c == b'=').count();
    let digits = &line[..line.len() - padding.min(2)];
    line.len().is_multiple_of(4) && digits.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/'))
}

/// Where a sweep starts.
struct Start {
    role: Role,
    /// As if STARTTLS had been the first command.
    tls: bool,
    /// Tokens that are played first.
    preamble: &'static [Kind],
}

type Got = ([Option<(u16, Option<Enhanced>)>; 4], usize);

/// Disagreements, each kind once, with the shortest sequence that shows it.
#[derive(Default)]
struct Report {
    sequences: u64,
    disagreements: BTreeMap<String, (u64, String)>,
}

impl Report {
    fn add(&mut self, path: &[&'static Token], kind: String) {
        let names: Vec<&str> = path.iter().map(|token| token.name).collect();
        let entry = self.disagreements.entry(kind).or_insert_with(|| (0, names.join(", ")));
        entry.0 += 1;
    }

    fn conclude(self, title: &str) {
        println!("{title}: {} sequences", self.sequences);
        let lines: Vec<String> = self
            .disagreements
            .iter()
            .map(|(kind, (count, path))| format!("  {kind}\n    {count} times, first after: {path}"))
            .collect();
        assert!(lines.is_empty(), "{title}: {} disagreements\n{}", lines.len(), lines.join("\n"));
    }
}

/// Plays one token; leaves in `got` what came back.
fn play(bare: &mut Bare, token: &Token, got: &mut Got) {
    *got = ([None; 4], 0);
    let mut last = 0;
    let mut take = |bare: &mut Bare| {
        bare.replies(|reply| {
            last = reply.code;
            if let Some(slot) = got.0.get_mut(got.1) {
                *slot = Some((reply.code, reply.enhanced));
            }
            got.1 += 1;
        });
        last
    };
    bare.send(token.octets);
    let code = take(bare);
    if let Some((on, follow)) = token.follow
        && code == on
    {
        bare.send(follow);
        take(bare);
    }
    if bare.awaits_tls {
        bare.handshake();
        take(bare);
    }
}

/// Plays `path` from the start and compares every answer.
fn compare(bare: &mut Bare, start: &Start, path: &[&'static Token], report: &mut Report) {
    bare.reconnect();
    bare.replies(|reply| assert_eq!(reply.code, 220));
    if start.tls && start.role != Role::Submissions {
        bare.enter_tls();
    }
    let mut models: [Option<Model>; 4] = [Some(Model::new(start.role, start.tls)), None, None, None];
    let mut got: Got = ([None; 4], 0);
    for (at, token) in path.iter().enumerate() {
        play(bare, token, &mut got);
        let before = models;
        models = [None; 4];
        let mut count = 0;
        for ways in before.iter().flatten().map(|model| model.step(token)) {
            for way in ways.0.iter().flatten() {
                let expected = way.replies.iter().flatten().count();
                let fits = got.1 == expected
                    && way.replies.iter().flatten().zip(got.0.iter().flatten()).all(|(wanted, got)| wanted.fits(*got))
                    && way.next.closed == bare.closed;
                if fits && count < models.len() {
                    models[count] = Some(way.next);
                    count += 1;
                }
            }
        }
        let played = &path[..=at];
        let Some(first) = models[0] else {
            let model = before[0].expect("there was one");
            let ways = model.step(token).0;
            let wanted: Vec<Vec<Expected>> =
                ways.iter().flatten().map(|way| way.replies.iter().flatten().copied().collect()).collect();
            let heard: Vec<String> =
                got.0.iter().flatten().map(|(code, enhanced)| format!("{code} {enhanced:?}")).collect();
            let closed = if bare.closed { ", closed" } else { "" };
            let state = format!(
                "{:?} tls={} {:?} identity={} {:?} {:?}",
                model.role, model.tls, model.hello, model.identity, model.transaction, model.exchange
            );
            report.add(played, format!("{} in {state}: expected {wanted:?}, got {heard:?}{closed}", token.name));
            return;
        };
        // The invariant of CONTRACT A4 to A9: what is over leaves nothing behind.
        let certain = models[1].is_none();
        let open = matches!(first.transaction, Transaction::Open { .. });
        if certain && first.exchange == Exchange::None && !first.closed {
            if open != bare.in_transaction() && first.transaction != Transaction::Broken {
                report.add(played, format!("{}: transaction open: {}, should be {open}", token.name, !open));
                return;
            }
            let body = matches!(first.transaction, Transaction::Open { chunks: true, .. });
            if body != bare.message_open() {
                report.add(played, format!("{}: message begun: {}, should be {body}", token.name, !body));
                return;
            }
        }
        if first.closed {
            return;
        }
    }
}

fn sweep(start: &Start, length: usize) -> Report {
    let mut listener: Listener = bare::listener(start.role);
    // What counts bad commands is tested elsewhere; here it would only end sequences early.
    (listener.limits.errors_max, listener.limits.idle_commands_max) = (u8::MAX, u8::MAX);
    let mut bare = Bare::connect(Arc::new(listener), Manners::FORGETFUL);
    let mut report = Report::default();
    let preamble = start.preamble.iter().map(|kind| TOKENS.iter().find(|token| token.kind == *kind).expect("a token"));
    let mut path: Vec<&'static Token> = preamble.collect();
    let fixed = path.len();
    path.extend((0..length).map(|_| &TOKENS[0]));
    let mut digits = vec![0usize; length];
    loop {
        for (digit, slot) in digits.iter().zip(&mut path[fixed..]) {
            *slot = &TOKENS[*digit];
        }
        compare(&mut bare, start, &path, &mut report);
        report.sequences += 1;
        // The next sequence; the last digit runs fastest.
        let Some(at) = digits.iter().rposition(|digit| digit + 1 < TOKENS.len()) else { return report };
        digits[at] += 1;
        digits[at + 1..].fill(0);
    }
}

/// All sequences; every prefix of one is checked on the way.
fn length() -> usize {
    if std::env::var_os("PORTREEVE_LONG").is_some() { 5 } else { 4 }
}

fn run(role: Role, tls: bool) {
    let length = length();
    sweep(&Start { role, tls, preamble: &[] }, length).conclude(&format!("{} tls={tls} length {length}", role.name()));
}

#[test]
fn every_sequence_on_mx() {
    run(Role::Mx, false);
}

#[test]
fn every_sequence_on_submission_in_clear() {
    run(Role::Submission, false);
}

#[test]
fn every_sequence_on_submission_in_tls() {
    run(Role::Submission, true);
}

#[test]
fn every_sequence_on_submissions() {
    run(Role::Submissions, true);
}

/// Deeper into the states that take several commands to reach.
#[test]
fn every_short_sequence_from_deeper_states() {
    use Kind::{Auth, AuthOpen, AuthWrong, Bdat, BdatBad, Ehlo, Helo, Mail, Rcpt};
    let preambles: [(Role, bool, &[Kind]); 12] = [
        (Role::Mx, true, &[]),
        (Role::Mx, true, &[Ehlo]),
        (Role::Mx, true, &[Ehlo, Auth, Mail]),
        (Role::Mx, false, &[Ehlo, Mail, Rcpt]),
        (Role::Mx, false, &[Helo, Mail, Rcpt]),
        (Role::Mx, false, &[Ehlo, Mail, Rcpt, Bdat]),
        (Role::Mx, false, &[Ehlo, Mail, Rcpt, BdatBad]),
        (Role::Submissions, true, &[Ehlo, Auth]),
        (Role::Submissions, true, &[Ehlo, Auth, Mail, Rcpt]),
        (Role::Submissions, true, &[Ehlo, Auth, Mail, Rcpt, Bdat]),
        (Role::Submission, true, &[Ehlo, AuthOpen]),
        (Role::Submission, true, &[Ehlo, AuthWrong, AuthWrong]),
    ];
    for (role, tls, preamble) in preambles {
        let report = sweep(&Start { role, tls, preamble }, length() - 1);
        report.conclude(&format!("{} tls={tls} after {preamble:?}", role.name()));
    }
}

/// The model itself: a wrong server would be noticed. Each planted fault is a change of one answer
/// that has hurt a real server; the model must disagree with it.
#[test]
fn the_model_notices_planted_faults() {
    let open = Model {
        hello: Hello::Ehlo,
        transaction: Transaction::Open { recipients: true, chunks: false },
        ..Model::new(Role::Mx, false)
    };
    let token = |kind| TOKENS.iter().find(|token| token.kind == kind).expect("a token");
    let after =
        |kinds: &[Kind]| kinds.iter().fold(open, |model, kind| model.step(token(*kind)).0[0].expect("a way").next);
    // A5: recipients survive end of data. A4: DATA after a failed BDAT. A6: RCPT after a refused MAIL.
    for (kinds, kind) in [
        (&[Kind::Data][..], Kind::Rcpt),
        (&[Kind::BdatBad], Kind::Data),
        (&[Kind::Rset, Kind::MailEightBit], Kind::Rcpt),
        (&[Kind::StartTls], Kind::Mail),
    ] {
        let ways = after(kinds).step(token(kind)).0;
        assert!(
            ways.iter().flatten().all(|way| way.replies[0].is_some_and(|reply| reply.code == 503)),
            "{kinds:?} {kind:?}"
        );
    }
    assert!(!SEQUENCE.fits((250, Some(Enhanced(2, 1, 5)))) && !HELLO.fits((250, Some(Enhanced(2, 0, 0)))));
}
