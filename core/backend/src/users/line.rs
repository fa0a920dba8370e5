//! One line of the users file, taken apart and written again.

use std::borrow::Cow;
use std::fmt::Write as _;

use sasl::MechanismName;
use zeroize::Zeroizing;

use super::{Options, User};
use crate::scheme::StoredSecret;

/// Longest line, octets.
pub const LINE_OCTETS_MAX: usize = 64 * 1024;

/// What is wrong with a line, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Octet in the line, from 1.
    pub column: usize,
    /// What is wrong.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
}

impl Fault {
    fn new(at: usize, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { column: at + 1, cause: cause.into(), remedy: remedy.into() }
    }
}

/// The columns of a line, still escaped, each with where it begins.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// Who.
    pub name: &'a str,
    /// Secrets, separated by spaces.
    pub secrets: (usize, &'a str),
    /// Fields, separated by spaces.
    pub fields: (usize, &'a str),
}

/// Takes a line apart; `None` for blank lines and comments.
pub fn columns(line: &[u8]) -> Result<Option<Columns<'_>>, Fault> {
    if line.len() > LINE_OCTETS_MAX {
        return Err(Fault::new(LINE_OCTETS_MAX, "the line is longer than 65,536 octets", "shorten it"));
    }
    let line = std::str::from_utf8(line)
        .map_err(|error| Fault::new(error.valid_up_to(), "an octet that is not UTF-8", "save the file as UTF-8"))?;
    let line = line.strip_suffix('\r').unwrap_or(line);
    // Some editors begin a file with a byte order mark.
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    if line.trim_ascii().is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    if let Some(at) = line.find(|c: char| c.is_control()) {
        return Err(Fault::new(at, "a control character", r"remove it (a tab is no separator here), or write \hh"));
    }
    let Some((name, rest)) = line.split_once(':') else {
        return Err(Fault::new(line.len(), "no colon after the name", "write name:{SCHEME}secret"));
    };
    let at = name.len() + 1;
    let end = secrets_end(rest);
    let (secrets, fields) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
    // What a certificate says has a colon of its own.
    let stray = |(at, word): (usize, &str)| (!word.starts_with("cert=")).then(|| Some(at + word.find(':')?))?;
    if let Some(extra) = words((0, fields)).find_map(stray) {
        let remedy = r"the columns are name:secrets:fields; write \3a for a colon, or use 'portreeve user import'";
        return Err(Fault::new(at + end + 1 + extra, "a third colon", remedy));
    }
    Ok(Some(Columns { name, secrets: (at, secrets), fields: (at + end + 1, fields) }))
}

/// Where the secrets end: at the next colon that does not belong to an RFC 5803 secret
/// (`SCRAM-SHA-256$4096:salt$stored:server`), which is taken as it is.
pub fn secrets_end(rest: &str) -> usize {
    let mut start = 0;
    loop {
        let token = &rest[start..];
        let bare = token.split_once('}').filter(|_| token.starts_with('{')).map_or(token, |(_, data)| data);
        let mut colons = if bare.starts_with("SCRAM-SHA-") { 2 } else { 0 };
        let stop = token.bytes().position(|octet| match octet {
            b':' if colons > 0 => {
                colons -= 1;
                false
            }
            octet => octet == b':' || octet == b' ',
        });
        match stop {
            None => return rest.len(),
            Some(stop) if token.as_bytes()[stop] == b':' => return start + stop,
            Some(stop) => start += stop + 1,
        }
    }
}

/// The prepared name of a line.
pub fn name(columns: &Columns<'_>, options: &Options) -> Result<String, Fault> {
    let raw = unescape(0, columns.name)?;
    let bad = |cause: &str| Fault::new(0, cause, "correct the name, or comment the line out with '#'");
    let name = options.names.name(raw.as_bytes()).ok_or_else(|| bad("this can be nobody's name"))?;
    // Names become folders: delivery must never meet one that leads elsewhere.
    if name.contains(['/', ' ']) || name.starts_with('.') {
        return Err(bad("a name that begins with '.' or contains '/' or a space"));
    }
    Ok(name)
}

/// Each secret of a line with where it begins, unescaped.
pub fn secrets<'a>(columns: &Columns<'a>) -> impl Iterator<Item = Result<(usize, Cow<'a, str>), Fault>> {
    words(columns.secrets).map(|(at, word)| Ok((at, unescape(at, word)?)))
}

/// Everything that a line says.
pub fn user(line: &[u8], options: &Options) -> Result<Option<User>, Fault> {
    let Some(columns) = columns(line)? else { return Ok(None) };
    let mut user = User { name: name(&columns, options)?, ..User::default() };
    for secret in secrets(&columns) {
        let (at, text) = secret?;
        let secret = StoredSecret::parse(&text, &options.secrets)
            .map_err(|bad| Fault::new(at, bad.to_string(), bad.remedy()))?;
        user.secrets.push(secret);
    }
    for (at, word) in words(columns.fields) {
        field(&mut user, at, word, options)?;
    }
    Ok(Some(user))
}

const FIELDS: &str = "fields are aliases=, senders=, authzids=, cert=, mechanisms=, size=, recipients=, disabled";

fn field(user: &mut User, at: usize, word: &str, options: &Options) -> Result<(), Fault> {
    let Some((key, value)) = word.split_once('=') else {
        return match word {
            "disabled" => {
                user.disabled = true;
                Ok(())
            }
            // Not repeated: somebody may have put a password here.
            _ => Err(Fault::new(at, "a field that is neither key=value nor 'disabled'", FIELDS)),
        };
    };
    let value_at = at + key.len() + 1;
    let number = |unit_shift: u32, digits: &str| {
        let number = digits.parse::<u64>().ok().filter(|_| !digits.starts_with('+'));
        number.and_then(|number| number.checked_mul(1 << unit_shift)).filter(|number| *number > 0)
    };
    match key {
        "aliases" => user.aliases.extend(list(value_at, value, |raw| address(raw, options))?),
        "senders" => user.senders.extend(list(value_at, value, |raw| pattern(raw, options))?),
        "authzids" => user.authzids.extend(list(value_at, value, |raw| pattern(raw, options))?),
        "cert" => user.certificates.extend(list(value_at, value, |raw| certificate(raw, options))?),
        "mechanisms" => user.mechanisms.extend(list(value_at, value, |raw| MechanismName::parse(raw.as_bytes()))?),
        "size" => {
            let size = match value.as_bytes().last() {
                Some(b'K') => number(10, &value[..value.len() - 1]),
                Some(b'M') => number(20, &value[..value.len() - 1]),
                Some(b'G') => number(30, &value[..value.len() - 1]),
                _ => number(0, value),
            };
            let remedy = "write octets, or a number with K, M or G: size=25M";
            user.message_octets_max = Some(size.ok_or_else(|| Fault::new(value_at, "no size", remedy))?);
        }
        "recipients" => {
            let count = number(0, value).and_then(|count| u32::try_from(count).ok());
            let remedy = "write a number from 1: recipients=100";
            user.recipients_max = Some(count.ok_or_else(|| Fault::new(value_at, "no number of recipients", remedy))?);
        }
        _ => return Err(Fault::new(at, format!("unknown field '{key}='"), FIELDS)),
    }
    Ok(())
}

fn list<T>(at: usize, value: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Fault> {
    let mut items = Vec::new();
    let mut offset = 0;
    for item in value.split(',') {
        let text = unescape(at + offset, item)?;
        let remedy = match item.contains(':') {
            true => "write spki: with 64 hexadecimal digits, mail:a@b, uri:…, or cn:… with \\20 for a space",
            false => "write addresses (a@b), domains (@b) or names, separated by commas without spaces",
        };
        items.push(read(&text).ok_or_else(|| Fault::new(at + offset, format!("'{item}' does not fit here"), remedy))?);
        offset += item.len() + 1;
    }
    Ok(items)
}

/// `local@domain`, or `@domain` for everything that nobody else has.
pub fn address(raw: &str, options: &Options) -> Option<String> {
    match raw.strip_prefix('@') {
        Some(domain) => options.names.domain(domain).map(|domain| format!("@{domain}")),
        None => options.names.address(raw).filter(|address| address.contains('@') && raw != "*"),
    }
}

/// What a certificate may say, in the form in which it is compared.
pub fn certificate(raw: &str, options: &Options) -> Option<String> {
    let (kind, said) = raw.split_once(':').filter(|(_, said)| !said.is_empty())?;
    match kind {
        "spki" if said.len() == 64 && said.bytes().all(|c| c.is_ascii_hexdigit()) => Some(raw.to_ascii_lowercase()),
        "mail" => options.names.address(said).filter(|said| said.contains('@')).map(|said| format!("mail:{said}")),
        "uri" | "cn" => Some(raw.to_owned()),
        _ => None,
    }
}

fn pattern(raw: &str, options: &Options) -> Option<String> {
    if raw == "*" { Some("*".to_owned()) } else { address(raw, options) }
}

fn words((at, column): (usize, &str)) -> impl Iterator<Item = (usize, &str)> {
    let mut next = at;
    column.split(' ').filter_map(move |word| {
        let begin = next;
        next += word.len() + 1;
        (!word.is_empty()).then_some((begin, word))
    })
}

/// `\hh` stands for the octet with that number.
fn unescape(at: usize, text: &str) -> Result<Cow<'_, str>, Fault> {
    if !text.contains('\\') {
        return Ok(Cow::Borrowed(text));
    }
    let bad =
        |offset: usize| Fault::new(at + offset, r"'\' without two hexadecimal digits", r"write \5c for a backslash");
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&octet, after)) = rest.split_first() {
        rest = after;
        octets.push(match octet {
            b'\\' => {
                let offset = text.len() - after.len() - 1;
                let digits = after.first_chunk::<2>().ok_or_else(|| bad(offset))?;
                let digit = |octet: u8| char::from(octet).to_digit(16).ok_or_else(|| bad(offset));
                rest = &after[2..];
                (digit(digits[0])? << 4 | digit(digits[1])?) as u8
            }
            other => other,
        });
    }
    let text = String::from_utf8(octets);
    text.map(Cow::Owned).map_err(|_| Fault::new(at, "escapes that do not make up UTF-8", "correct them"))
}

/// Writes `text` so that nothing in it is structure.
pub fn escape(text: &str) -> Cow<'_, str> {
    let structure = |c: char| matches!(c, '\\' | ':' | ',' | '=' | ' ' | '#') || c.is_control();
    if !text.contains(structure) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if structure(c) {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(|octet| {
                write!(out, "\\{octet:02x}").expect("a String takes everything");
            });
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Writes a secret: `,` and `=` belong to it there.
pub fn escape_secret(text: &str) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(text.len() + 16));
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\5c"),
            ':' => out.push_str("\\3a"),
            ' ' => out.push_str("\\20"),
            c if c.is_control() => c.encode_utf8(&mut [0; 4]).bytes().for_each(|octet| {
                write!(out, "\\{octet:02x}").expect("a String takes everything");
            }),
            c => out.push(c),
        }
    }
    out
}
