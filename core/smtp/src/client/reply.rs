//! Replies as a server sends them: strict, bounded, a line at a time.
//!
//! A reply is one or more lines with one code; all but the last carry a `-` behind it (RFC 5321 §4.2.1).
//! Whatever is not exactly that is no reply, and there is no guessing what it might have meant: two hops
//! that disagree about where a reply ends no longer agree about which command it answers.

use std::fmt;

use crate::line::{self, Scan};

/// Octets of one reply line with its CRLF. RFC 5321 §4.5.3.1.5 asks for 512; EHLO lines and SASL challenges are longer.
const LINE_OCTETS_MAX: usize = 2048;
/// Lines of one reply.
const LINES_MAX: u16 = 128;
/// Octets of a reply's text that are kept.
const TEXT_OCTETS_MAX: usize = 512;

/// An enhanced status code (RFC 3463), `5.1.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enhanced {
    /// 2, 4 or 5.
    pub class: u8,
    /// 0 to 999.
    pub subject: u16,
    /// 0 to 999.
    pub detail: u16,
}

impl Enhanced {
    /// `class.subject.detail`.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }

    /// Reads one at the front of a reply's text; returns it and the octets that it takes with the blank after it.
    pub fn first_in(text: &[u8]) -> Option<(Self, usize)> {
        let end = text.iter().position(|&b| b == b' ').unwrap_or(text.len());
        let mut parts = text.get(..end)?.split(|&b| b == b'.');
        let mut number = |digits_max: usize| {
            let part = parts.next()?;
            let good = (1..=digits_max).contains(&part.len()) && part.iter().all(u8::is_ascii_digit);
            good.then(|| part.iter().fold(0u16, |number, digit| number * 10 + u16::from(digit - b'0')))
        };
        let code = Self { class: number(1)? as u8, subject: number(3)?, detail: number(3)? };
        let good = parts.next().is_none() && matches!(code.class, 2 | 4 | 5);
        good.then_some((code, (end + 1).min(text.len())))
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One line of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Octets on the wire.
    pub(crate) wire: usize,
    /// It begins a reply.
    pub(crate) first: bool,
    /// It ends the reply.
    pub(crate) last: bool,
    /// What stands behind code and separator.
    pub(crate) text: &'a [u8],
}

/// Reads replies and keeps what is worth keeping of the current one.
#[derive(Default)]
pub(crate) struct Reader {
    /// Code of the reply that is being read, or was read last.
    pub(crate) code: u16,
    /// Its enhanced code, when that is of the same class.
    pub(crate) enhanced: Option<Enhanced>,
    /// Its text: lines joined by blanks, bounded, without control characters.
    pub(crate) text: String,
    lines: u16,
    /// The input before this position is known to hold no LF.
    scanned: u16,
}

impl Reader {
    /// Whether a reply has begun and not ended.
    pub(crate) fn is_within(&self) -> bool {
        self.lines > 0
    }

    /// Forgets what was begun.
    pub(crate) fn reset(&mut self) {
        (self.lines, self.scanned) = (0, 0);
        self.text.clear();
    }

    /// Takes the line at the front of `input`; `None` when it is not all there. The text of a refusal is
    /// always kept, that of other replies when `keep` says so.
    pub(crate) fn line<'a>(&mut self, input: &'a [u8], keep: bool) -> Result<Option<Line<'a>>, &'static str> {
        let (line, wire) = match line::first(input, self.scanned.into(), LINE_OCTETS_MAX) {
            Scan::Line { line, wire } => (line, wire),
            Scan::Partial => {
                // Never more than LINE_OCTETS_MAX.
                self.scanned = input.len() as u16;
                return Ok(None);
            }
            Scan::Dirty { .. } => return Err("reply line with a NUL or CR in it"),
            Scan::BareLf { .. } => return Err("reply line that ends in LF without CR"),
            Scan::TooLong { .. } => return Err("reply line that is too long"),
        };
        self.scanned = 0;
        let (code, rest) = line.split_first_chunk::<3>().ok_or("reply without a code")?;
        let code = match code {
            [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
            }
            _ => return Err("reply without a code"),
        };
        let (last, text) = match rest.split_first() {
            // RFC 5321 §4.2.1: the text and the blank before it may be missing.
            None => (true, rest),
            Some((b' ', text)) => (true, text),
            Some((b'-', text)) => (false, text),
            Some(_) => return Err("reply code that is followed by neither blank nor hyphen"),
        };
        let first = self.lines == 0;
        if first {
            (self.code, self.enhanced) = (code, None);
            self.text.clear();
        } else if code != self.code {
            return Err("reply whose lines have different codes");
        }
        if self.lines >= LINES_MAX {
            return Err("reply with too many lines");
        }
        self.lines = if last { 0 } else { self.lines + 1 };
        if keep || code >= 400 || code == CHALLENGE {
            self.keep(text, first);
        }
        Ok(Some(Line { wire, first, last, text }))
    }

    fn keep(&mut self, text: &[u8], first: bool) {
        let mut text = text;
        // RFC 2034 §4: each line of the reply carries the enhanced code.
        if let Some((enhanced, octets)) = Enhanced::first_in(text)
            && u16::from(enhanced.class) == self.code / 100
            && (first || self.enhanced == Some(enhanced))
        {
            self.enhanced = Some(enhanced);
            text = text.get(octets..).unwrap_or_default();
        }
        // A challenge is one line of base64, whole or nothing.
        let octets_max = if self.code == CHALLENGE { LINE_OCTETS_MAX } else { TEXT_OCTETS_MAX };
        if !first && !self.text.is_empty() && self.text.len() < octets_max {
            self.text.push(' ');
        }
        for chunk in text.utf8_chunks() {
            let invalid = if chunk.invalid().is_empty() { "" } else { "\u{fffd}" };
            for c in chunk.valid().chars().chain(invalid.chars()) {
                let c = if c.is_control() { '?' } else { c };
                if self.text.len() + c.len_utf8() > octets_max {
                    return;
                }
                self.text.push(c);
            }
        }
    }
}

/// 334, the only reply whose text is data.
const CHALLENGE: u16 = 334;

#[cfg(test)]
mod tests {
    use super::*;

    /// Code, enhanced code, text, octets.
    type Whole = (u16, Option<Enhanced>, String, usize);

    /// Reads one reply from pieces.
    fn read(input: &[u8], step: usize) -> Result<Option<Whole>, &'static str> {
        let (mut reader, mut used, mut seen) = (Reader::default(), 0, 0);
        while seen < input.len() {
            seen = (seen + step).min(input.len());
            while let Some(line) = reader.line(&input[used..seen], true)? {
                used += line.wire;
                if line.last {
                    return Ok(Some((reader.code, reader.enhanced, reader.text, used)));
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn replies_in_any_pieces() {
        let code = |class, subject, detail| Some(Enhanced::new(class, subject, detail));
        for (input, expect) in [
            (&b"250 Ok\r\n"[..], (250, None, "Ok")),
            (b"250\r\n", (250, None, "")),
            (b"250 \r\n", (250, None, "")),
            (b"250-\r\n250\r\n", (250, None, "")),
            (b"550-5.1.1 No such\r\n550 5.1.1 user\r\n", (550, code(5, 1, 1), "No such user")),
            (b"550-5.1.1 No such\r\n550 5.7.1 user\r\n", (550, code(5, 1, 1), "No such 5.7.1 user")),
            (b"250 2.0.0\r\n", (250, code(2, 0, 0), "")),
            (b"550 4.1.1 other class\r\n", (550, None, "4.1.1 other class")),
            (b"550 5.1 half\r\n", (550, None, "5.1 half")),
            (b"550 5.1.1111 long\r\n", (550, None, "5.1.1111 long")),
            (b"550 5.1.1.1 long\r\n", (550, None, "5.1.1.1 long")),
            (b"550 \x1b[2J\xff\xc3\xa9\r\n", (550, None, "?[2J\u{fffd}é")),
        ] {
            for step in 1..=input.len() {
                let (code, enhanced, text, used) = read(input, step).unwrap().unwrap();
                assert_eq!(((code, enhanced, &*text), used), (expect, input.len()), "{input:?} by {step}");
            }
        }
    }

    #[test]
    fn what_is_no_reply() {
        let long = [&b"250 "[..], &[b'x'; 2100], b"\r\n"].concat();
        let endless = b"250-more\r\n".repeat(200);
        for input in [
            &b"hello\r\n"[..],
            b"\r\n",
            b"25\r\n",
            b"25x Ok\r\n",
            b"150 Ok\r\n",
            b"650 Ok\r\n",
            b"250_Ok\r\n",
            b"2500 Ok\r\n",
            b"250 Ok\n",
            b"250 O\rk\r\n",
            b"250 O\0k\r\n",
            b"250-a\r\n251 b\r\n",
            b"250-a\r\nb\r\n",
            b" 250 Ok\r\n",
            &long,
            &endless,
        ] {
            for step in [1, 7, input.len()] {
                assert!(read(input, step).is_err(), "{:?} by {step}", input.escape_ascii().to_string());
            }
        }
        assert_eq!(read(&[b'2'; 2048], 1), Ok(None));
        assert!(read(&[b'2'; 2049], 1).is_err());
    }

    #[test]
    fn kept_text_is_bounded() {
        let input = [&b"550-"[..], "é".repeat(900).as_bytes(), b"\r\n550 end\r\n"].concat();
        let (_, _, text, _) = read(&input, 100).unwrap().unwrap();
        assert!(text.len() <= TEXT_OCTETS_MAX && text.starts_with('é'));
    }
}
