//! The `maildir` route: each message a file, by the protocol of maildir(5): written to `tmp/`, synced, moved to
//! `new/`, the folder synced. Messages that are under way at the same time are synced together (`together.rs`).
//!
//! The file's name is made from the message's id and time of acceptance, so a second delivery of the same
//! message (after a crash between the delivery and our note of it) finds the first one and adds nothing.
//!
//! What is written: Return-Path (RFC 5321 §4.4; `<>` too), our own lines, the message. Line ends are LF, as
//! Maildir readers expect, unless asked otherwise.

mod together;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use smtp::client::Enhanced;
use smtp::envelope::Recipient;

use self::together::{Fresh, Together};
use crate::route::{Mail, Route, Trouble, Verdict};

/// Line ends in the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineEnd {
    /// `\n`, what readers of Maildirs expect.
    #[default]
    Lf,
    /// `\r\n`, as on the wire.
    Crlf,
}

/// A route into Maildirs.
pub struct Maildir {
    /// Folders that exist for everybody; made when missing.
    root: PathBuf,
    /// Below the root, one per component.
    parts: Vec<Vec<Part>>,
    line_end: LineEnd,
    host: String,
    together: Together,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `%d`
    Domain,
    /// `%n`
    Local,
    /// `%u`
    User,
}

/// Why a template names no folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTemplate {
    /// Nothing there.
    Empty,
    /// A `%` before something other than `d`, `n`, `u`, `%`.
    Unknown(char),
    /// `..` or `.` behind a variable.
    Dots,
}

impl fmt::Display for BadTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty folder; write one like mail/%d/%n"),
            Self::Unknown(c) => {
                write!(
                    f,
                    "%{} is unknown; use %d (domain), %n (local part), %u (whole user name), %%",
                    c.escape_debug()
                )
            }
            Self::Dots => f.write_str("`.` and `..` may stand only before the first variable"),
        }
    }
}

impl std::error::Error for BadTemplate {}

/// Longest name of a folder, octets.
const NAME_OCTETS_MAX: usize = 255;
/// Octets that are written at once.
const WRITE_OCTETS: usize = 64 << 10;
/// Messages that are written at the same time, so that they can share a sync.
const WRITERS: usize = 28;

impl Maildir {
    /// `template` is a folder like `mail/%d/%n`, or a fixed one. Names are checked when they are put in: none
    /// ever leads out of the part before the first variable.
    pub fn new(template: &str, line_end: LineEnd) -> Result<Self, BadTemplate> {
        if template.is_empty() {
            return Err(BadTemplate::Empty);
        }
        let mut root = PathBuf::from(if template.starts_with('/') { "/" } else { "" });
        let mut parts: Vec<Vec<Part>> = Vec::new();
        for component in template.split('/').filter(|component| !component.is_empty()) {
            let component = parse(component)?;
            match &component[..] {
                [Part::Text(text)] if parts.is_empty() => root.push(text),
                [Part::Text(text)] if text == "." || text == ".." => return Err(BadTemplate::Dots),
                _ => parts.push(component),
            }
        }
        // Maildir names may not hold these two (maildir(5)).
        let host = rustix::system::uname().nodename().to_string_lossy().replace('/', "\\057").replace(':', "\\072");
        Ok(Self { root, parts, line_end, host, together: Together::default() })
    }

    /// The folder of a recipient.
    fn folder(&self, recipient: &Recipient<'_>) -> Result<PathBuf, String> {
        let lower;
        let user = match recipient.mailbox {
            "" => {
                lower = recipient.address.to_lowercase();
                &lower
            }
            mailbox => mailbox,
        };
        let (local, domain) = match user.rsplit_once('@') {
            Some((local, domain)) => (local, domain),
            None => (user, recipient.address.rsplit_once('@').map_or("", |(_, domain)| domain)),
        };
        let mut folder = self.root.clone();
        for component in &self.parts {
            let mut name = String::new();
            for part in component {
                match part {
                    Part::Text(text) => name.push_str(text),
                    Part::Domain => name.push_str(&safe(domain)?.to_lowercase()),
                    Part::Local => name.push_str(safe(local)?),
                    Part::User => name.push_str(safe(user)?),
                }
            }
            if name.len() > NAME_OCTETS_MAX || name == "." || name == ".." {
                return Err(format!("`{}` cannot be the name of a folder", name.escape_debug()));
            }
            folder.push(name);
        }
        Ok(folder)
    }

    /// Puts one file into a Maildir; well when it is there already.
    fn put(&self, folder: &Path, mail: &Mail<'_>) -> io::Result<()> {
        let name = format!("{}.{}.{}", mail.unix_ms() / 1000, mail.id(), self.host);
        let new_folder = folder.join("new");
        let new = new_folder.join(&name);
        let mut fresh = None;
        if !named(&new, new.try_exists())? {
            let tmp = folder.join("tmp").join(&name);
            let file = match create(&tmp) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.make(folder)?;
                    named(&tmp, create(&tmp))?
                }
                file => named(&tmp, file)?,
            };
            match self.write(file, mail) {
                Ok(file) => fresh = Some(Fresh { file, tmp, new }),
                Err(error) => {
                    let _ = std::fs::remove_file(&tmp);
                    return named(&tmp, Err(error));
                }
            }
        }
        // Also for a file that was there: the crash may have come before its folder was synced.
        self.together.settle(fresh, new_folder)
    }

    fn write(&self, file: File, mail: &Mail<'_>) -> io::Result<File> {
        let mut out = LineWriter { file, line_end: self.line_end, carriage_return: false, buffer: Vec::new() };
        out.put(return_path(mail.envelope.reverse_path()).as_bytes())?;
        out.put(mail.prepend())?;
        mail.body(&mut |part| out.put(part))?;
        out.finish()
    }

    /// Makes a Maildir and what leads to it, durably. `tmp/` comes last and is the sign that all is there: another
    /// thread may write into it at once, and what it moves to `new/` must find that folder, and find it durable.
    fn make(&self, folder: &Path) -> io::Result<()> {
        for name in ["new", "cur"] {
            make_folder(&folder.join(name))?;
        }
        // Names of new folders must outlive a crash: sync from the Maildir up to where they begin. One level
        // above the root, since that too may have been made just now.
        let above_root = self.root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(&self.root);
        for level in folder.ancestors().take_while(|level| !level.as_os_str().is_empty()) {
            named(level, File::open(level).and_then(|level| level.sync_all()))?;
            if level == above_root {
                break;
            }
        }
        // Nothing that must last is ever in there.
        make_folder(&folder.join("tmp"))
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    named(path, DirBuilder::new().recursive(true).mode(0o700).create(path))
}

impl Route for Maildir {
    fn name(&self) -> &str {
        "maildir"
    }

    fn slow_attempts(&self) -> usize {
        WRITERS
    }

    fn deliver(&self, mail: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict> {
        // Several recipients, one mailbox: one copy.
        let mut done: BTreeMap<PathBuf, Verdict> = BTreeMap::new();
        let deliver = |recipient: &Recipient<'_>| match self.folder(recipient) {
            Err(reason) => Verdict::never(reason),
            Ok(folder) => done
                .entry(folder)
                .or_insert_with_key(|folder| match self.put(folder, mail) {
                    Ok(()) => Verdict::Delivered,
                    Err(error) if is_full(&error) => {
                        Verdict::Later(Trouble::own(Enhanced::new(4, 3, 1), error.to_string()))
                    }
                    Err(error) => Verdict::later(error.to_string()),
                })
                .clone(),
        };
        recipients.iter().map(deliver).collect()
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded)
}

fn parse(component: &str) -> Result<Vec<Part>, BadTemplate> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = component.chars();
    while let Some(c) = rest.next() {
        let variable = match (c, (c == '%').then(|| rest.next()).flatten()) {
            ('%', Some('d')) => Part::Domain,
            ('%', Some('n')) => Part::Local,
            ('%', Some('u')) => Part::User,
            ('%', Some('%')) => {
                text.push('%');
                continue;
            }
            ('%', other) => return Err(BadTemplate::Unknown(other.unwrap_or(' '))),
            (c, _) => {
                text.push(c);
                continue;
            }
        };
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(variable);
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

/// A user's or a domain's name as a part of a path, or why it cannot be one.
fn safe(name: &str) -> Result<&str, String> {
    let bad = name.is_empty() || name.starts_with('.') || name.contains(|c: char| c == '/' || c.is_control());
    if bad { Err(format!("`{}` cannot be the name of a folder", name.escape_debug())) } else { Ok(name) }
}

/// RFC 5321 §4.4. The session lets no line end into an address; a second look costs nothing.
fn return_path(reverse_path: Option<&str>) -> String {
    let mut line = String::from("Return-Path: <");
    line.extend(reverse_path.unwrap_or_default().chars().map(|c| if c.is_control() { '?' } else { c }));
    line.push_str(">\r\n");
    line
}

fn create(tmp: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    match options.open(tmp) {
        // Left by an attempt that a crash ended: the name is this message's, and nobody else works on it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(tmp)?;
            options.open(tmp)
        }
        file => file,
    }
}

fn named<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Turns CRLF into what is wanted, wherever the parts are cut.
struct LineWriter {
    file: File,
    line_end: LineEnd,
    /// The last octet was a CR that is not written yet.
    carriage_return: bool,
    buffer: Vec<u8>,
}

impl LineWriter {
    fn put(&mut self, part: &[u8]) -> io::Result<()> {
        match self.line_end {
            LineEnd::Crlf => self.buffer.extend_from_slice(part),
            LineEnd::Lf => self.put_lf(part),
        }
        if self.buffer.len() >= WRITE_OCTETS {
            self.file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    fn put_lf(&mut self, part: &[u8]) {
        if part.is_empty() {
            return;
        }
        if std::mem::take(&mut self.carriage_return) && part.first() != Some(&b'\n') {
            self.buffer.push(b'\r');
        }
        let mut rest = part;
        while let Some(place) = memchr::memchr(b'\r', rest) {
            let (line, behind) = rest.split_at(place);
            self.buffer.extend_from_slice(line);
            rest = behind.get(1..).unwrap_or_default();
            match rest.first() {
                None => self.carriage_return = true,
                Some(b'\n') => {}
                Some(_) => self.buffer.push(b'\r'),
            }
        }
        self.buffer.extend_from_slice(rest);
    }

    fn finish(mut self) -> io::Result<File> {
        if self.carriage_return {
            self.buffer.push(b'\r');
        }
        self.file.write_all(&self.buffer)?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smtp::envelope::Notify;

    fn to<'a>(address: &'a str, mailbox: &'a str) -> Recipient<'a> {
        Recipient { address, mailbox, orcpt: None, notify: Notify(0) }
    }

    #[test]
    fn folders_by_template() {
        for (template, address, mailbox, expect) in [
            ("mail/%d/%n", "a@b.example", "alice@demo.test", "mail/demo.test/alice"),
            ("mail/%d/%n", "A@b.example", "", "mail/b.example/a"),
            ("/var/mail/%u/Maildir", "a@b", "alice@demo.test", "/var/mail/alice@demo.test/Maildir"),
            ("../mail/all", "a@b", "x@y", "../mail/all"),
            ("m/100%%/x-%n-y", "a@b", "x@y", "m/100%/x-x-y"),
            ("mail/%d/%n", "postmaster", "alice@demo.test", "mail/demo.test/alice"),
            ("mail/%d/%n", "a@b.example", "alice", "mail/b.example/alice"),
            ("mail/%d/%n", "ü@b.example", "", "mail/b.example/ü"),
        ] {
            let maildir = Maildir::new(template, LineEnd::Lf).unwrap();
            assert_eq!(maildir.folder(&to(address, mailbox)).unwrap(), Path::new(expect), "{template} {address}");
        }
    }

    #[test]
    fn bad_templates() {
        for (template, expect) in [
            ("", BadTemplate::Empty),
            ("mail/%x", BadTemplate::Unknown('x')),
            ("mail/%", BadTemplate::Unknown(' ')),
            ("mail/%d/../x", BadTemplate::Dots),
        ] {
            assert_eq!(Maildir::new(template, LineEnd::Lf).map(drop), Err(expect), "{template}");
        }
    }

    #[test]
    fn no_name_leads_out() {
        let long = "x".repeat(256);
        for template in ["mail/%d/%n", "mail/%u", "mail/x%n"] {
            for local in ["..", ".", "", "../../etc", "a/b", ".hidden", "a\0b", "a\nb", &long] {
                for mailbox in [format!("{local}@demo.test"), format!("{local}@..")] {
                    let maildir = Maildir::new(template, LineEnd::Lf).unwrap();
                    if let Ok(folder) = maildir.folder(&to("a@b.example", &mailbox)) {
                        // `%u` may begin with what `%n` may not be: then it is one harmless name.
                        let names: Vec<_> = folder.components().collect();
                        let normal = names.iter().all(|name| matches!(name, std::path::Component::Normal(_)));
                        assert!(
                            normal && names.len() == template.split('/').count(),
                            "{template} {mailbox:?}: {folder:?}"
                        );
                        assert!(!local.contains(['/', '\0', '\n']), "{folder:?}");
                    }
                }
            }
        }
    }

    /// Another thread takes it for the sign that the rest is there and durable.
    #[test]
    fn tmp_is_made_last() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::new(folder.path().join("%d/%n").to_str().unwrap(), LineEnd::Lf).unwrap();
        for missing in ["new", "cur"] {
            let mailbox = folder.path().join("demo.test").join(missing);
            std::fs::create_dir_all(&mailbox).unwrap();
            std::fs::write(mailbox.join(missing), "not a folder").unwrap();
            let error = maildir.make(&mailbox).unwrap_err().to_string();
            assert!(error.contains(mailbox.join(missing).to_str().unwrap()), "{error}");
            assert!(!mailbox.join("tmp").exists());
            std::fs::remove_file(mailbox.join(missing)).unwrap();
            maildir.make(&mailbox).unwrap();
            assert!(["tmp", "new", "cur"].iter().all(|name| mailbox.join(name).is_dir()));
        }
    }

    #[test]
    fn line_ends_wherever_the_parts_are_cut() {
        let wire = b"a\r\nb\rc\r\r\n\r\n\nend\r";
        for (line_end, expect) in [(LineEnd::Lf, &b"a\nb\rc\r\n\n\nend\r"[..]), (LineEnd::Crlf, &wire[..])] {
            for cut in 0..=wire.len() {
                for second in cut..=wire.len() {
                    let folder = tempfile::tempdir().unwrap();
                    let path = folder.path().join("x");
                    let file = File::create(&path).unwrap();
                    let mut out = LineWriter { file, line_end, carriage_return: false, buffer: Vec::new() };
                    for part in [&wire[..cut], &wire[cut..second], &wire[second..]] {
                        out.put(part).unwrap();
                    }
                    // Not `finish`: hundreds of syncs prove nothing more.
                    if out.carriage_return {
                        out.buffer.push(b'\r');
                    }
                    assert_eq!(out.buffer, expect, "{cut} {second}");
                }
            }
        }
    }

    #[test]
    fn return_path_is_one_line() {
        assert_eq!(return_path(None), "Return-Path: <>\r\n");
        assert_eq!(return_path(Some("a@b")), "Return-Path: <a@b>\r\n");
        assert_eq!(return_path(Some("a\r\nX: y@b")), "Return-Path: <a??X: y@b>\r\n");
    }
}
