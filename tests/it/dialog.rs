//! Dialogues: what a client sends, what it gets, which section says so. The files lie in
//! `tests/dialogs`; `tests/dialogs/README.md` describes their form. Each is played against the bare session
//! (effects at once and late, a wide and a narrow sink, octet by octet) and, unless it says `bare`,
//! against the built program (see `wire`).

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smtp::envelope::{Body, Envelope, Notify, Ret};
use smtp::host::Trouble;
use smtp::listener::{AuthOffer, Listener, Role, SenderCheck, StarttlsTrailing, SyncViolation, Tls};

use crate::bare::{self, Bare, HOSTNAME, Manners};
use crate::mechanisms::cram_md5;
use crate::replies::Reply;

/// One dialogue of a file.
pub struct Dialog {
    pub file: PathBuf,
    pub line: usize,
    pub title: String,
    pub places: Vec<Place>,
    /// `with` settings of the listener.
    settings: Vec<(String, String)>,
    /// Only for the bare session: it looks behind the scenes or needs its directory.
    pub bare: bool,
    /// What is answered depends on what came in one read, so the octets may not be cut elsewhere.
    pub whole: bool,
    steps: Vec<(usize, Step)>,
}

/// Where a dialogue begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub role: Role,
    /// After STARTTLS (on an implicit-TLS listener: always).
    pub tls: bool,
}

enum Step {
    Client(String),
    /// The last line of the next reply begins with this, or (exactly) is this.
    Server {
        text: String,
        exactly: bool,
    },
    HasLine(String),
    LacksLine(String),
    Keywords(String),
    Handshake,
    Closed,
    Mails(u64),
    Body(String),
    Head(String),
    NoHead(String),
    Envelope(String),
    World(String, String),
}

impl Dialog {
    /// `file:line: title`.
    pub fn name(&self) -> String {
        format!("{}:{}: {}", self.file.display(), self.line, self.title)
    }

    /// The listener of the bare session.
    pub fn listener(&self, place: Place) -> Listener {
        let mut listener = bare::listener(place.role);
        for (key, value) in &self.settings {
            set(&mut listener, key, value).unwrap_or_else(|| panic!("{}: with {key}={value}?", self.name()));
        }
        listener
    }
}

fn set(listener: &mut Listener, key: &str, value: &str) -> Option<()> {
    let limits = &mut listener.limits;
    let check = |value: &str| match value {
        "enforce" => Some(SenderCheck::Enforce),
        "off" => Some(SenderCheck::Off),
        _ => None,
    };
    match key {
        "recipients_max" => limits.recipients_max = value.parse().ok()?,
        "message_octets_max" => limits.message_octets_max = value.parse().ok()?,
        "envelope_octets_max" => limits.envelope_octets_max = value.parse().ok()?,
        "messages_max" => limits.messages_max = value.parse().ok()?,
        "errors_max" => limits.errors_max = value.parse().ok()?,
        "idle_commands_max" => limits.idle_commands_max = value.parse().ok()?,
        "auth_failures_max" => limits.auth_failures_max = value.parse().ok()?,
        "received_max" => limits.received_max = value.parse().ok()?,
        "tls" if value == "off" => listener.tls = Tls::Off,
        "auth" if value == "off" => listener.auth = AuthOffer::Off,
        "chunking" if value == "off" => listener.chunking = false,
        "smtputf8" if value == "off" => listener.smtputf8 = false,
        "fixups" if value == "off" => listener.fixups = false,
        "hide_client" => listener.hide_client = value == "on",
        "require_tls" => listener.require_tls = value == "on",
        "starttls_trailing" if value == "close" => listener.starttls_trailing = StarttlsTrailing::Close,
        "sync_violation" if value == "log" => listener.sync_violation = SyncViolation::Log,
        "sync_violation" if value == "close" => listener.sync_violation = SyncViolation::Close,
        "sender_envelope" => listener.sender_envelope = check(value)?,
        "sender_header" => listener.sender_header = check(value)?,
        _ => return None,
    }
    // Policy is told the sender checks when it is made.
    listener.policy = Box::new(policy::RolePolicy::new(policy::Settings {
        role: listener.role,
        domains: vec![bare::DOMAIN.to_owned()],
        recipients: policy::Recipients::Directory,
        sender_envelope: listener.sender_envelope,
        sender_header: listener.sender_header,
    }));
    Some(())
}

/// All dialogues of `tests/dialogs`.
pub static ALL: LazyLock<Vec<Dialog>> = LazyLock::new(|| {
    let mut files = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("dialogs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("tests/dialogs").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "smtp") {
                files.push(entry);
            }
        }
    }
    files.sort();
    files.iter().flat_map(|file| parse(file, &fs::read_to_string(file).expect("a readable dialogue"))).collect()
});

fn parse(file: &Path, text: &str) -> Vec<Dialog> {
    let file = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(file);
    let mut dialogs: Vec<Dialog> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        let at = || format!("{}:{number}: {line:?}", file.display());
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "==" {
            dialogs.push(Dialog {
                file: file.to_owned(),
                line: number,
                title: rest.to_owned(),
                places: Vec::new(),
                settings: Vec::new(),
                bare: false,
                whole: false,
                steps: Vec::new(),
            });
            continue;
        }
        let dialog = dialogs.last_mut().unwrap_or_else(|| panic!("{} before the first ==", at()));
        let mut step = |step| dialog.steps.push((number, step));
        let text = rest.to_owned();
        match word {
            "on" => {
                let (role, tls) = match rest {
                    "mx" => (Role::Mx, false),
                    "mx in tls" => (Role::Mx, true),
                    "submission" => (Role::Submission, false),
                    "submission in tls" => (Role::Submission, true),
                    "submissions" => (Role::Submissions, true),
                    _ => panic!("{}: no such place", at()),
                };
                dialog.places.push(Place { role, tls });
            }
            "with" => {
                let (key, value) = rest.split_once('=').unwrap_or_else(|| panic!("{}: key=value", at()));
                dialog.settings.push((key.to_owned(), value.to_owned()));
                dialog.bare = true;
            }
            "bare" => dialog.bare = true,
            "whole" => dialog.whole = true,
            "after" => {
                let hello = [
                    Step::Client("EHLO client.example\\r\\n".into()),
                    Step::Server { text: "250 ".into(), exactly: false },
                ];
                let login = [
                    Step::Client("AUTH PLAIN {plain alice}\\r\\n".into()),
                    Step::Server { text: "235 2.7.0".into(), exactly: false },
                ];
                hello.into_iter().for_each(&mut step);
                match rest {
                    "ehlo" => {}
                    "login" => login.into_iter().for_each(&mut step),
                    _ => panic!("{}: after ehlo, or after login", at()),
                }
            }
            "C" => step(Step::Client(text + "\\r\\n")),
            "C-" => step(Step::Client(text)),
            "S" => step(Step::Server { text, exactly: false }),
            "S=" => step(Step::Server { text, exactly: true }),
            "S+" => step(Step::HasLine(text)),
            "S!" => step(Step::LacksLine(text)),
            "SK" => step(Step::Keywords(text)),
            "TLS" => step(Step::Handshake),
            "CLOSED" => step(Step::Closed),
            // What follows is only seen by the bare session; a server is only spoken to.
            "MAILS" => step(Step::Mails(rest.parse().unwrap_or_else(|_| panic!("{}: a number", at())))),
            "BODY" => step(Step::Body(text)),
            "HEAD" => step(Step::Head(text)),
            "NOHEAD" => step(Step::NoHead(text)),
            "ENVELOPE" => step(Step::Envelope(text)),
            "WORLD" => {
                let (key, value) = rest.split_once('=').unwrap_or_else(|| panic!("{}: key=value", at()));
                dialog.bare = true;
                dialog.steps.push((number, Step::World(key.to_owned(), value.to_owned())));
            }
            _ => panic!("{}: not a line of a dialogue", at()),
        }
    }
    for dialog in &dialogs {
        assert!(!dialog.places.is_empty(), "{}: on which listener?", dialog.name());
        let checks = dialog.steps.iter().filter(|(_, step)| !matches!(step, Step::Client(_))).count();
        assert!(checks > 0, "{}: nothing is expected", dialog.name());
    }
    dialogs
}

/// The client's end of a connection.
pub trait Connection {
    fn send(&mut self, octets: &[u8]);
    /// The next reply with all its lines; `None` when there is none: closed, or (bare session) nothing more to come.
    fn reply(&mut self) -> Option<Vec<u8>>;
    fn handshake(&mut self);
    /// Whether the server closed, after what was read.
    fn closed(&mut self) -> bool;
    /// The bare session, when it is one.
    fn bare(&mut self) -> Option<&mut Bare>;
}

/// Plays a dialogue; the error names the line.
pub fn play(dialog: &Dialog, place: Place, connection: &mut dyn Connection) -> Result<(), String> {
    let at = |line: usize, why: String| format!("{}:{line}: {place:?}: {why}", dialog.file.display());
    let mut last = Vec::new();
    let mut unsent = Vec::new();
    expect(connection, &mut last, &format!("220 {HOSTNAME}"), false).map_err(|why| at(dialog.line, why))?;
    if place.tls && place.role != Role::Submissions {
        connection.send(b"EHLO client.example\r\n");
        expect(connection, &mut last, "250 ", false).map_err(|why| at(dialog.line, why))?;
        connection.send(b"STARTTLS\r\n");
        expect(connection, &mut last, "220 2.0.0", false).map_err(|why| at(dialog.line, why))?;
        connection.handshake();
    }
    for (index, (line, step)) in dialog.steps.iter().enumerate() {
        if let Step::Client(text) = step {
            unsent.extend(unescape(text, &last).map_err(|why| at(*line, why))?);
            // Lines that stand together leave together, as from a client that pipelines.
            if !matches!(dialog.steps.get(index + 1), Some((_, Step::Client(_)))) {
                connection.send(&unsent);
                unsent.clear();
            }
            continue;
        }
        check(step, connection, &mut last).map_err(|why| at(*line, why))?;
    }
    match connection.bare() {
        Some(bare) if !bare.out.is_empty() => {
            Err(at(dialog.line, format!("at its end the server also said {:?}", bare.take())))
        }
        Some(bare) if bare.closed && !dialog.steps.iter().any(|(_, step)| matches!(step, Step::Closed)) => {
            Err(at(dialog.line, "at its end the server had closed".to_owned()))
        }
        _ => Ok(()),
    }
}

fn expect(connection: &mut dyn Connection, last: &mut Vec<u8>, text: &str, exactly: bool) -> Result<(), String> {
    let text = String::from_utf8(unescape(text, last)?).map_err(|_| "a reply is US-ASCII".to_owned())?;
    *last = connection.reply().ok_or_else(|| format!("expected {text:?} and got nothing"))?;
    let (reply, _) = Reply::first_in(last)?.ok_or_else(|| format!("half a reply: {last:?}"))?;
    reply.check(HOSTNAME)?;
    let got = reply.last_line();
    let fits = if exactly { got == text } else { got.starts_with(&text) };
    if fits { Ok(()) } else { Err(format!("expected {text:?} and got {got:?}")) }
}

fn check(step: &Step, connection: &mut dyn Connection, last: &mut Vec<u8>) -> Result<(), String> {
    if let Step::Server { text, exactly } = step {
        return expect(connection, last, text, *exactly);
    }
    let texts: Vec<&str> =
        Reply::first_in(last).ok().flatten().map(|(reply, _)| reply.texts().collect()).unwrap_or_default();
    let has = |wanted: &str| texts.iter().any(|text| *text == wanted || text.starts_with(&format!("{wanted} ")));
    let claim = |holds: bool, otherwise: &dyn Fn() -> String| if holds { Ok(()) } else { Err(otherwise()) };
    match step {
        Step::Client(_) | Step::Server { .. } => Ok(()),
        Step::HasLine(wanted) => claim(has(wanted), &|| format!("no line {wanted:?} in {texts:?}")),
        Step::LacksLine(wanted) => claim(!has(wanted), &|| format!("line {wanted:?} in {texts:?}")),
        Step::Keywords(wanted) => {
            let mut wanted: Vec<&str> = wanted.split(' ').collect();
            let mut got: Vec<&str> =
                texts.iter().skip(1).map(|text| text.split(' ').next().unwrap_or_default()).collect();
            wanted.sort_unstable();
            got.sort_unstable();
            claim(wanted == got, &|| format!("expected exactly {wanted:?} and got {got:?}"))
        }
        Step::Handshake => {
            connection.handshake();
            Ok(())
        }
        Step::Closed => claim(connection.closed(), &|| "the connection is still open".to_owned()),
        Step::Mails(_) | Step::Body(_) | Step::Head(_) | Step::NoHead(_) | Step::Envelope(_) | Step::World(..) => {
            connection.bare().map_or(Ok(()), |bare| check_world(step, bare))
        }
    }
}

fn check_world(step: &Step, bare: &mut Bare) -> Result<(), String> {
    let claim = |holds: bool, otherwise: String| if holds { Ok(()) } else { Err(otherwise) };
    let newest = bare.world.messages.last();
    match step {
        Step::Mails(count) => claim(
            bare.world.committed == *count,
            format!("{} messages were accepted, not {count}", bare.world.committed),
        ),
        Step::Body(text) => {
            let (expected, got) =
                (unescape(text, b"")?, newest.map(|message| message.body.as_slice()).unwrap_or_default());
            claim(expected == got, format!("the body is {:?}", String::from_utf8_lossy(got)))
        }
        Step::Head(text) | Step::NoHead(text) => {
            let got = newest.map(|message| String::from_utf8_lossy(&message.prepend).into_owned()).unwrap_or_default();
            let got = got.replace("\r\n\t", " ").replace("\r\n ", " ");
            let text = unescape(text, b"")?;
            let found = got.as_bytes().windows(text.len().max(1)).any(|part| part == text);
            claim(found == matches!(step, Step::Head(_)), format!("our header lines are {got:?}"))
        }
        Step::Envelope(text) => {
            let got = newest.map(|message| describe(&message.envelope)).unwrap_or_default();
            claim(got.contains(text.as_str()), format!("the envelope is {got}"))
        }
        Step::World(key, value) => {
            match (key.as_str(), value.as_str()) {
                ("trouble", "no-space") => bare.world.trouble = Some(Trouble::NoSpace),
                ("trouble", "temporary") => bare.world.trouble = Some(Trouble::Temporary),
                ("trouble", "late") => bare.world.trouble = Some(Trouble::Late),
                ("failure_delay_ms", ms) => bare.world.failure_delay = ms.parse().ok(),
                ("delayed_ms", ms) => {
                    return claim(
                        bare.world.delayed_ms.to_string() == ms,
                        format!("waited {} ms", bare.world.delayed_ms),
                    );
                }
                ("auth_failures", count) => {
                    let got = bare.world.auth_failures;
                    return claim(got.to_string() == count, format!("{got} failed logins were charged"));
                }
                ("dropped", octets) => {
                    let (engine, noted) = (bare.dropped, bare.world.trailing_octets);
                    return claim(octets == engine.max(noted).to_string(), format!("dropped {engine}, noted {noted}"));
                }
                _ => return Err(format!("WORLD {key}={value}?")),
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// An envelope in one line.
pub fn describe(envelope: &Envelope) -> String {
    let mut text = format!("from=<{}>", envelope.reverse_path().unwrap_or_default());
    for recipient in envelope.recipients() {
        let _ = write!(text, " to=<{}>", recipient.address);
        if !recipient.mailbox.is_empty() {
            let _ = write!(text, " mailbox={}", recipient.mailbox);
        }
        if let Some(orcpt) = recipient.orcpt {
            let _ = write!(text, " orcpt={orcpt}");
        }
        for (name, bit) in [
            ("never", Notify::NEVER),
            ("success", Notify::SUCCESS),
            ("failure", Notify::FAILURE),
            ("delay", Notify::DELAY),
        ] {
            if recipient.notify.0 & bit.0 != 0 {
                let _ = write!(text, " notify={name}");
            }
        }
    }
    if envelope.body == Body::EightBitMime {
        text += " body=8bitmime";
    }
    if envelope.smtputf8 {
        text += " smtputf8";
    }
    match envelope.ret {
        Some(Ret::Full) => text += " ret=full",
        Some(Ret::Headers) => text += " ret=hdrs",
        None => {}
    }
    for (name, value) in [("envid", envelope.envid()), ("auth", envelope.auth()), ("identity", envelope.identity())] {
        if let Some(value) = value {
            let _ = write!(text, " {name}={value}");
        }
    }
    if let Some(size) = envelope.size {
        let _ = write!(text, " size={size}");
    }
    text
}

/// `\r \n \0 \t \\ \xHH`, and `{…}`: `{x 300 a}` is 300 times `a`; `{b64 text}`; `{plain user [password]}`;
/// `{cram user [password]}` answers the challenge in the last reply.
fn unescape(text: &str, last: &[u8]) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let (escape, after) = rest.split_at_checked(1).ok_or("a lone \\")?;
                rest = after;
                octets.push(match escape {
                    "r" => b'\r',
                    "n" => b'\n',
                    "0" => 0,
                    "t" => b'\t',
                    "\\" => b'\\',
                    "{" => b'{',
                    "x" => {
                        let (hex, after) = rest.split_at_checked(2).ok_or("\\xHH")?;
                        rest = after;
                        u8::from_str_radix(hex, 16).map_err(|_| "\\xHH")?
                    }
                    _ => return Err(format!("\\{escape}?")),
                });
            }
            '{' => {
                let (call, after) = rest.split_once('}').ok_or("{ without }")?;
                rest = after;
                octets.extend(expand(call, last)?);
            }
            _ => octets.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Ok(octets)
}

fn expand(call: &str, last: &[u8]) -> Result<Vec<u8>, String> {
    let (function, argument) = call.split_once(' ').ok_or_else(|| format!("{{{call}}}?"))?;
    let (first, second) = argument.split_once(' ').unwrap_or((argument, "secret"));
    let name = if first.contains('@') { first.to_owned() } else { format!("{first}@{}", bare::DOMAIN) };
    Ok(match function {
        "x" => unescape(second, last)?.repeat(first.parse().map_err(|_| "{x COUNT text}")?),
        "b64" => STANDARD.encode(unescape(argument, last)?).into_bytes(),
        "plain" => STANDARD.encode(format!("\0{name}\0{second}")).into_bytes(),
        "cram" => {
            let challenge = last.trim_ascii_end().strip_prefix(b"334 ").ok_or("no challenge to answer")?;
            let challenge = STANDARD.decode(challenge).map_err(|_| "the challenge is not base64")?;
            STANDARD.encode(format!("{name} {}", cram_md5(second.as_bytes(), &challenge))).into_bytes()
        }
        _ => return Err(format!("{{{function} …}}?")),
    })
}

/// How the octets of a dialogue are cut on their way to the bare session.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    Nowhere,
    Everywhere,
    /// Once, this many octets after the beginning.
    At(usize),
    /// Into pieces of 1 to 40 octets; the number is the seed.
    Pieces(u64),
}

/// Cuts octets into pieces of 1 to 40; the same seed cuts the same way.
pub fn pieces(octets: &[u8], seed: u64) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut state) = (octets, seed | 1);
    std::iter::from_fn(move || {
        // xorshift64*: small, and good enough to choose lengths.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let length = 1 + (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize % 40;
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The client's end of a bare session.
pub struct BareConnection {
    bare: Bare,
    cut: Cut,
    /// Octets sent so far.
    pub sent: usize,
    replies: VecDeque<Vec<u8>>,
}

impl BareConnection {
    pub fn new(bare: Bare, cut: Cut) -> Self {
        Self { bare, cut, sent: 0, replies: VecDeque::new() }
    }
}

impl Connection for BareConnection {
    fn send(&mut self, octets: &[u8]) {
        match self.cut {
            Cut::Nowhere => self.bare.send(octets),
            Cut::Everywhere => octets.chunks(1).for_each(|octet| self.bare.send(octet)),
            Cut::At(at) => {
                let (before, after) = octets.split_at(at.saturating_sub(self.sent).min(octets.len()));
                self.bare.send(before);
                self.bare.send(after);
            }
            Cut::Pieces(seed) => pieces(octets, seed ^ self.sent as u64).for_each(|piece| self.bare.send(piece)),
        }
        self.sent += octets.len();
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        if self.replies.is_empty() {
            let replies = &mut self.replies;
            self.bare.replies(|reply| replies.push_back(reply.octets.to_vec()));
        }
        self.replies.pop_front()
    }

    fn handshake(&mut self) {
        self.bare.handshake();
    }

    fn closed(&mut self) -> bool {
        self.bare.closed
    }

    fn bare(&mut self) -> Option<&mut Bare> {
        // Replies that were taken out but not asked for belong to what is left to read.
        let mut unread: Vec<u8> = self.replies.drain(..).flatten().collect();
        unread.append(&mut self.bare.out);
        self.bare.out = unread;
        Some(&mut self.bare)
    }
}

/// Plays `dialog` against a bare session of `place`; returns how many octets the client sent.
pub fn play_bare(dialog: &Dialog, place: Place, manners: Manners, cut: Cut) -> Result<usize, String> {
    let listener = Arc::new(dialog.listener(place));
    let mut connection = BareConnection::new(Bare::connect(listener, manners), cut);
    play(dialog, place, &mut connection)
        .map(|()| connection.sent)
        .map_err(|why| format!("{}\n  {why}\n  {manners:?}, cut {cut:?}", dialog.name()))
}

#[test]
fn dialogues_with_the_bare_session() {
    assert!(ALL.len() >= 80, "only {} dialogues", ALL.len());
    let narrow = Manners { late: false, sink_octets: 1, keep: true };
    let late = Manners { late: true, ..Manners::PLAIN };
    let mut failures = Vec::new();
    for dialog in ALL.iter() {
        for &place in &dialog.places {
            for (manners, cut) in [
                (Manners::PLAIN, Cut::Nowhere),
                (late, Cut::Nowhere),
                (narrow, Cut::Nowhere),
                (Manners::PLAIN, Cut::Everywhere),
                (Manners::AWKWARD, Cut::Everywhere),
            ] {
                if dialog.whole && matches!(cut, Cut::Everywhere) {
                    continue;
                }
                if let Err(why) = play_bare(dialog, place, manners, cut) {
                    failures.push(why);
                    break;
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} dialogues failed:\n{}", failures.len(), failures.join("\n"));
}
