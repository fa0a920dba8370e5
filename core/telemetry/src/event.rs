//! One thing that happened, for the log or the audit trail.
//!
//! What peers sent is quoted octets: it can neither start a line of its own nor colour a terminal nor pass
//! for one of our words. Passwords, tokens and SASL responses do not belong in an event at all.

use std::borrow::Cow;
use std::fmt::Write;

use link::BadPacket;
use link::codec::{Put, Reader};

/// Longest rendered line, octets with line end (CONTRACT C36).
pub const LINE_OCTETS_MAX: usize = 8 * 1024;

/// Octets of one value that are kept; the rest is replaced by `…`.
pub const FIELD_OCTETS_MAX: usize = 1024;

/// Most fields of an event.
const FIELDS_MAX: usize = 64;

/// Longest name of an event or a field, octets.
const NAME_OCTETS_MAX: usize = 64;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever looks into one session.
    Debug,
    /// The ordinary course.
    Info,
    /// Somebody should look when there is time.
    Warning,
    /// Somebody must act.
    Error,
}

impl Level {
    /// Its name in a line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    fn from_number(number: u8) -> Option<Level> {
        [Self::Debug, Self::Info, Self::Warning, Self::Error].into_iter().find(|level| *level as u8 == number)
    }
}

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number.
    Number(u64),
    /// A word of ours: a rule id, a mechanism's name, an address. Shown without quotes when it is plain.
    Word(Cow<'a, str>),
    /// Octets that a peer chose. Always quoted.
    Untrusted(Cow<'a, [u8]>),
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Stable name, `login`, `session.end`.
    pub name: Cow<'a, str>,
    /// How much it matters.
    pub level: Level,
    /// Part of the audit trail: must not be lost.
    pub audit: bool,
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// The session, 0 when there is none. Shown as the 13 characters that clients are told, too.
    pub session: u64,
    /// The rest, in order.
    pub fields: Vec<(Cow<'a, str>, Value<'a>)>,
}

impl<'a> Event<'a> {
    /// A log record.
    pub fn log(name: &'a str, level: Level, unix_ms: u64) -> Self {
        Self { name: Cow::Borrowed(name), level, audit: false, unix_ms, session: 0, fields: Vec::new() }
    }

    /// An audit record.
    pub fn audit(name: &'a str, unix_ms: u64) -> Self {
        Self { audit: true, ..Self::log(name, Level::Info, unix_ms) }
    }

    /// Of this session.
    pub fn session(mut self, session: u64) -> Self {
        self.session = session;
        self
    }

    /// With a number.
    pub fn number(self, name: &'a str, value: u64) -> Self {
        self.field(name, Value::Number(value))
    }

    /// With a word of ours.
    pub fn word(self, name: &'a str, value: impl Into<Cow<'a, str>>) -> Self {
        let value = value.into();
        // A long word is no word; it is cut like anything else.
        if value.len() > FIELD_OCTETS_MAX {
            return self.untrusted(name, value.into_owned().into_bytes());
        }
        self.field(name, Value::Word(value))
    }

    /// With octets that a peer chose.
    pub fn untrusted(self, name: &'a str, value: impl Into<Cow<'a, [u8]>>) -> Self {
        let mut value = value.into();
        if value.len() > FIELD_OCTETS_MAX {
            value = Cow::Owned([&value[..FIELD_OCTETS_MAX], "…".as_bytes()].concat());
        }
        self.field(name, Value::Untrusted(value))
    }

    fn field(mut self, name: &'a str, value: Value<'a>) -> Self {
        if self.fields.len() < FIELDS_MAX {
            self.fields.push((Cow::Borrowed(name), value));
        }
        self
    }

    /// Appends the payload of [`link::message::Message::Event`].
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_str(&self.name);
        to.put_u8(self.level as u8);
        to.put_bool(self.audit);
        to.put_u64(self.unix_ms);
        to.put_u64(self.session);
        to.put_list(&self.fields, |to, (name, value)| {
            to.put_str(name);
            match value {
                Value::Number(number) => {
                    to.put_u8(0);
                    to.put_u64(*number);
                }
                Value::Word(word) => {
                    to.put_u8(1);
                    to.put_str(word);
                }
                Value::Untrusted(octets) => {
                    to.put_u8(2);
                    to.put_bytes(octets);
                }
            }
        });
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let event = Self {
            name: name(&mut from)?,
            level: Level::from_number(from.u8()?).ok_or(BadPacket::Value("level"))?,
            audit: from.bool()?,
            unix_ms: from.u64()?,
            session: from.u64()?,
            fields: from.list(|from| {
                let name = name(from)?;
                let value = match from.u8()? {
                    0 => Value::Number(from.u64()?),
                    1 => Value::Word(Cow::Borrowed(from.str()?)),
                    2 => Value::Untrusted(Cow::Borrowed(from.bytes()?)),
                    _ => return Err(BadPacket::Value("field")),
                };
                Ok((name, value))
            })?,
        };
        from.end()?;
        Ok(event)
    }

    /// One JSON object and a line feed. `source` says who reported it, `worker[1234]`. Fields that would
    /// make the line longer than [`LINE_OCTETS_MAX`] are left out, and `"cut":true` says so.
    pub fn json(&self, source: &str) -> String {
        let mut line = String::with_capacity(256);
        let _ = write!(line, "{{\"time\":\"{}\",\"level\":\"{}\",\"event\":", rfc3339(self.unix_ms), self.level.name());
        json_string(&mut line, &clip(&self.name));
        line.push_str(",\"source\":");
        json_string(&mut line, &clip(source));
        if self.audit {
            line.push_str(",\"audit\":true");
        }
        if self.session != 0 {
            let _ = write!(line, ",\"session\":\"{}\"", session_text(self.session));
        }
        let mut cut = false;
        for (name, value) in &self.fields {
            let before = line.len();
            line.push(',');
            json_string(&mut line, &clip(name));
            line.push(':');
            match value {
                Value::Number(number) => {
                    let _ = write!(line, "{number}");
                }
                Value::Word(word) => json_string(&mut line, &clip(word)),
                Value::Untrusted(octets) => json_string(&mut line, &printable(octets)),
            }
            if line.len() > LINE_OCTETS_MAX - 16 {
                line.truncate(before);
                cut = true;
            }
        }
        line.push_str(if cut { ",\"cut\":true}\n" } else { "}\n" });
        line
    }

    /// One line for people. `colour` only when somebody is known to look at a terminal.
    pub fn human(&self, source: &str, colour: bool) -> String {
        let (on, off) = match self.level {
            _ if !colour => ("", ""),
            Level::Debug => ("\x1b[2m", "\x1b[0m"),
            Level::Info => ("\x1b[32m", "\x1b[0m"),
            Level::Warning => ("\x1b[33m", "\x1b[0m"),
            Level::Error => ("\x1b[31m", "\x1b[0m"),
        };
        let mut line = String::with_capacity(256);
        let time = rfc3339(self.unix_ms);
        let (level, source, name) = (self.level.name(), word(source), word(&self.name));
        let _ = write!(line, "{time} {on}{level:<7}{off} {source} {name}");
        if self.session != 0 {
            let _ = write!(line, " session={}", session_text(self.session));
        }
        let mut cut = false;
        for (name, value) in &self.fields {
            let before = line.len();
            let _ = match value {
                Value::Number(number) => write!(line, " {}={number}", word(name)),
                Value::Word(value) => write!(line, " {}={}", word(name), word(value)),
                Value::Untrusted(octets) => write!(line, " {}={}", word(name), quoted(octets)),
            };
            if line.len() > LINE_OCTETS_MAX - 16 {
                line.truncate(before);
                cut = true;
            }
        }
        line.push_str(if cut { " cut=true\n" } else { "\n" });
        line
    }
}

fn name<'a>(from: &mut Reader<'a>) -> Result<Cow<'a, str>, BadPacket> {
    match from.str()? {
        name if name.len() <= NAME_OCTETS_MAX => Ok(Cow::Borrowed(name)),
        _ => Err(BadPacket::Value("name")),
    }
}

/// Octets as text that is safe in a line: what is printable stays, `\` becomes `\\`, and every octet of a
/// control, an invisible or direction-changing character, or of no UTF-8 at all becomes `\xNN`. Two
/// different inputs never look the same.
pub fn printable(octets: &[u8]) -> Cow<'_, str> {
    if let Some(plain) = plain(octets) {
        return Cow::Borrowed(plain);
    }
    let mut text = String::with_capacity(octets.len());
    for chunk in octets.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if invisible(c) => c.encode_utf8(&mut [0; 4]).bytes().for_each(|octet| escape(&mut text, octet)),
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|&octet| escape(&mut text, octet));
    }
    Cow::Owned(text)
}

/// Text that needs no care anywhere: printable ASCII without quotes and backslashes.
fn plain(octets: &[u8]) -> Option<&str> {
    let harmless = |&octet: &u8| matches!(octet, b' '..=b'~') && octet != b'"' && octet != b'\\';
    if octets.iter().all(harmless) { std::str::from_utf8(octets).ok() } else { None }
}

fn escape(text: &mut String, octet: u8) {
    let _ = write!(text, "\\x{octet:02x}");
}

/// Controls (C0, DEL, C1), line separators, what joins, hides or turns the direction of text.
fn invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn quoted(octets: &[u8]) -> String {
    format!("\"{}\"", printable(octets).replace('"', "\\\""))
}

/// A word as it stands when nobody can mistake it, else quoted.
fn word(text: &str) -> Cow<'_, str> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-:/@+[]<>,*%".contains(&c);
    if !text.is_empty() && text.len() <= FIELD_OCTETS_MAX && text.bytes().all(plain) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(quoted(clip(text).as_bytes()))
    }
}

fn clip(text: &str) -> Cow<'_, str> {
    if text.len() <= FIELD_OCTETS_MAX {
        return Cow::Borrowed(text);
    }
    let end = (0..=FIELD_OCTETS_MAX).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    Cow::Owned(format!("{}…", &text[..end]))
}

fn json_string(line: &mut String, text: &str) {
    line.push('"');
    if let Some(plain) = plain(text.as_bytes()) {
        line.push_str(plain);
        line.push('"');
        return;
    }
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            c if invisible(c) => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(line, "\\u{unit:04x}");
            }),
            c => line.push(c),
        }
    }
    line.push('"');
}

/// As `smtp::SessionId` shows it: 13 characters of Crockford base32.
fn session_text(session: u64) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    (0..13).rev().map(|i| char::from(ALPHABET[(session >> (5 * i)) as usize & 31])).collect()
}

/// `2026-03-01T12:00:00.123Z`.
pub fn rfc3339(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in years that begin in March, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + next_year;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests;
