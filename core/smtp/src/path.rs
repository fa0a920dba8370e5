//! Paths and mailboxes of RFC 5321 §4.1.2, with the non-ASCII forms of RFC 6531 §3.3.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A path as a client sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path<'a> {
    /// `<>`.
    Null,
    /// `<Postmaster>`, which has no domain (RFC 5321 §4.1.1.3).
    Postmaster,
    /// `<local@domain>`.
    Mailbox(Mailbox<'a>),
}

/// Local part and domain, as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox<'a> {
    /// Dot-string, or quoted-string with its quotes.
    pub local: &'a str,
    /// Domain or address literal with its brackets.
    pub domain: &'a str,
}

/// Not a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPath;

const LOCAL_OCTETS_MAX: usize = 128; // RFC 5321 §4.5.3.1.1 asks for 64; VERP senders need more.
const DOMAIN_OCTETS_MAX: usize = 255; // §4.5.3.1.2
const PATH_OCTETS_MAX: usize = 512; // §4.5.3.1.3 asks for 256, and a UTF-8 local part is longer

/// Parses a path in angle brackets at the front of `input`; returns it and what follows.
pub fn parse(input: &[u8]) -> Result<(Path<'_>, &[u8]), BadPath> {
    let inner = input.strip_prefix(b"<").ok_or(BadPath)?;
    let end = closing(inner)?;
    let (inner, rest) = (&inner[..end], &inner[end + 1..]);
    if inner.len() > PATH_OCTETS_MAX {
        return Err(BadPath);
    }
    let text = std::str::from_utf8(inner).map_err(|_| BadPath)?;
    if text.is_empty() {
        return Ok((Path::Null, rest));
    }
    if text.eq_ignore_ascii_case("postmaster") {
        return Ok((Path::Postmaster, rest));
    }
    // RFC 5321 §4.1.1.3: a source route must be accepted and should be ignored.
    let text = match text.strip_prefix('@') {
        None => text,
        Some(route) => {
            let (route, mailbox) = route.split_once(':').ok_or(BadPath)?;
            if !route
                .split(',')
                .enumerate()
                .all(|(i, hop)| is_domain(if i == 0 { hop } else { hop.trim_start_matches('@') }))
            {
                return Err(BadPath);
            }
            mailbox
        }
    };
    mailbox(text).map(|mailbox| (Path::Mailbox(mailbox), rest))
}

/// Where the `>` is that ends the path: not inside a quoted string.
fn closing(inner: &[u8]) -> Result<usize, BadPath> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, &b) in inner.iter().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Ok(at),
            _ => {}
        }
    }
    Err(BadPath)
}

/// Parses `local@domain`.
pub fn mailbox(text: &str) -> Result<Mailbox<'_>, BadPath> {
    let (local, domain) = text.rsplit_once('@').ok_or(BadPath)?;
    let good = local.len() <= LOCAL_OCTETS_MAX
        && domain.len() <= DOMAIN_OCTETS_MAX
        && (is_dot_string(local) || is_quoted_string(local))
        && (is_domain(domain) || is_literal(domain));
    if good { Ok(Mailbox { local, domain }) } else { Err(BadPath) }
}

impl Mailbox<'_> {
    /// Appends the one form under which the same mailbox is always kept: domain in lower case, a local
    /// part without quotes where it needs none (RFC 5321 §4.1.2: both forms mean the same mailbox).
    pub fn write_canonical(&self, to: &mut String) {
        let unquoted = self.local.strip_prefix('"').and_then(|local| local.strip_suffix('"'));
        match unquoted {
            Some(local) if is_dot_string(local) => to.push_str(local),
            _ => to.push_str(self.local),
        }
        to.push('@');
        for c in self.domain.chars() {
            to.push(c.to_ascii_lowercase());
        }
    }

    /// Whether RFC 6531 is needed for it.
    pub fn needs_smtputf8(&self) -> bool {
        !(self.local.is_ascii() && self.domain.is_ascii())
    }
}

impl Path<'_> {
    /// Whether RFC 6531 is needed for it.
    pub fn needs_smtputf8(&self) -> bool {
        matches!(self, Path::Mailbox(mailbox) if mailbox.needs_smtputf8())
    }
}

/// `atext` of RFC 5321 §4.1.2, or beyond ASCII (RFC 6531 §3.3) but no control character.
fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || (!c.is_ascii() && !c.is_control())
}

fn is_dot_string(text: &str) -> bool {
    text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

fn is_quoted_string(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')) else { return false };
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        let good = match c {
            '\\' => chars.next().is_some_and(|c| matches!(c, ' '..='~')),
            '"' => false,
            c => matches!(c, ' '..='~') || (!c.is_ascii() && !c.is_control()),
        };
        if !good {
            return false;
        }
    }
    true
}

/// A domain name; labels may hold `_`, which hosts in the wild use, and U-labels.
pub fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= DOMAIN_OCTETS_MAX
        && text.split('.').all(|label| {
            let inner =
                |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || (!c.is_ascii() && !c.is_control());
            !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.chars().all(inner)
        })
}

/// An address literal (RFC 5321 §4.1.3).
pub fn is_literal(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) else { return false };
    if inner.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    match inner.split_once(':') {
        Some((tag, rest)) if tag.eq_ignore_ascii_case("ipv6") => rest.parse::<Ipv6Addr>().is_ok(),
        Some((tag, rest)) => {
            let dcontent = |b: u8| matches!(b, 33..=90 | 94..=126);
            !tag.is_empty()
                && !rest.is_empty()
                && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !tag.ends_with('-')
                && rest.bytes().all(dcontent)
        }
        None => false,
    }
}

/// Fully qualified (RFC 6409 §4.2): more than one label, or an address literal.
pub fn is_qualified(domain: &str) -> bool {
    is_literal(domain) || domain.trim_end_matches('.').contains('.')
}

/// Splits a canonical address into local part and domain; `postmaster` alone has no domain.
pub fn split(address: &str) -> (&str, &str) {
    address.rsplit_once('@').unwrap_or((address, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(path: &str) -> Option<String> {
        match parse(path.as_bytes()) {
            Ok((Path::Mailbox(mailbox), b"")) => {
                let mut text = String::new();
                mailbox.write_canonical(&mut text);
                Some(text)
            }
            _ => None,
        }
    }

    #[test]
    fn good_paths() {
        for (path, expect) in [
            ("<a@b.example>", "a@b.example"),
            ("<A.b+c@B.Example>", "A.b+c@b.example"),
            ("<\"a\"@b.example>", "a@b.example"),
            ("<\"a b\\\"@>\"@b.example>", "\"a b\\\"@>\"@b.example"),
            ("<\"\"@b.example>", "\"\"@b.example"),
            ("<@x.example,@y.example:a@b.example>", "a@b.example"),
            ("<a@[127.0.0.1]>", "a@[127.0.0.1]"),
            ("<a@[IPv6:::1]>", "a@[ipv6:::1]"),
            ("<jörg@bücher.example>", "jörg@bücher.example"),
        ] {
            assert_eq!(canonical(path).as_deref(), Some(expect), "{path}");
        }
        assert_eq!(parse(b"<> SIZE=1"), Ok((Path::Null, &b" SIZE=1"[..])));
        assert_eq!(parse(b"<PostMaster>"), Ok((Path::Postmaster, &b""[..])));
    }

    #[test]
    fn bad_paths() {
        for path in [
            "",
            "<",
            ">",
            "a@b",
            "<a@b",
            "<a>",
            "<@b>",
            "<a@>",
            "<a..b@c>",
            "<.a@b>",
            "<a.@b>",
            "<a b@c>",
            "<a@b c>",
            "<a@-b>",
            "<a@b-.c>",
            "<a@b..c>",
            "<a@b.>",
            "<a@[300.0.0.1]>",
            "<a@[IPv6:zz]>",
            "<\"a@b>",
            "<a\"b\"@c>",
            "<@a:b>",
            "<@:a@b>",
            "<a@b>c>x",
            "<a\u{85}@b>",
            "<<a@b>>",
            "<(c)a@b>",
            "<a@b:c>",
            "<\"a\tb\"@c>",
        ] {
            let parsed = parse(path.as_bytes());
            assert!(!matches!(parsed, Ok((_, b""))), "{path:?} gave {parsed:?}");
        }
        let long = format!("<{}@b.example>", "a".repeat(129));
        assert!(parse(long.as_bytes()).is_err());
        assert!(parse(format!("<{}@b.example>", "a".repeat(64)).as_bytes()).is_ok());
        assert!(parse(b"<\xff@b.example>").is_err());
    }
}
