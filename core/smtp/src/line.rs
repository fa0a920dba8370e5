//! Lines of the command phase. Only CRLF ends a line (RFC 5321 §2.3.8); a CR, LF or NUL anywhere else
//! makes it no command at all, whatever it looks like.

use memchr::{memchr, memchr2};

/// What stands at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan<'a> {
    /// A whole line without its CRLF, and its octets on the wire.
    Line { line: &'a [u8], wire: usize },
    /// A whole line that holds a NUL or a CR of its own.
    Dirty { wire: usize },
    /// An LF without CR: the line goes on to the next CRLF and must be skipped.
    BareLf { wire: usize },
    /// More octets than a line may have. `ended`: its CRLF was seen; otherwise the rest must be skipped.
    TooLong { wire: usize, ended: bool },
    /// No end of line yet.
    Partial,
}

/// Looks for the first line. The first `scanned` octets are known to hold no LF.
pub(crate) fn first(input: &[u8], scanned: usize, octets_max: usize) -> Scan<'_> {
    let unseen = input.get(scanned..).unwrap_or_default();
    let Some(at) = memchr(b'\n', unseen).map(|at| at + scanned) else {
        return if input.len() > octets_max {
            Scan::TooLong { wire: input.len(), ended: false }
        } else {
            Scan::Partial
        };
    };
    let wire = at + 1;
    let line = input.get(..at).and_then(|line| line.strip_suffix(b"\r"));
    match line {
        _ if wire > octets_max => Scan::TooLong { wire, ended: line.is_some() },
        None => Scan::BareLf { wire },
        Some(line) if memchr2(b'\r', 0, line).is_some() => Scan::Dirty { wire },
        Some(line) => Scan::Line { line, wire },
    }
}

/// Finds the end of a line that is being thrown away; `cr` is whether the octet before `input` was a CR.
/// Returns the octets that belong to it and whether its CRLF was among them.
pub(crate) fn skip(input: &[u8], cr: &mut bool) -> (usize, bool) {
    let mut from = 0;
    while let Some(at) = input.get(from..).and_then(|rest| memchr(b'\n', rest)).map(|at| at + from) {
        let before = if at == 0 { *cr } else { input.get(at - 1) == Some(&b'\r') };
        from = at + 1;
        if before {
            *cr = false;
            return (from, true);
        }
    }
    if let Some(&last) = input.last() {
        *cr = last == b'\r';
    }
    (input.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crlf_ends_a_line() {
        assert_eq!(first(b"NOOP\r\nQUIT", 0, 512), Scan::Line { line: b"NOOP", wire: 6 });
        assert_eq!(first(b"NOOP\n", 0, 512), Scan::BareLf { wire: 5 });
        assert_eq!(first(b"NO\rOP\r\n", 0, 512), Scan::Dirty { wire: 7 });
        assert_eq!(first(b"NO\0OP\r\n", 0, 512), Scan::Dirty { wire: 7 });
        assert_eq!(first(b"NOOP\r", 0, 512), Scan::Partial);
        assert_eq!(first(b"\r\n", 0, 512), Scan::Line { line: b"", wire: 2 });
        assert_eq!(first(b"\n", 0, 512), Scan::BareLf { wire: 1 });
    }

    #[test]
    fn a_line_has_the_same_length_limit_in_one_piece_and_in_many() {
        assert_eq!(first(b"12345678\r\n", 0, 10), Scan::Line { line: b"12345678", wire: 10 });
        assert_eq!(first(b"123456789\r\n", 0, 10), Scan::TooLong { wire: 11, ended: true });
        assert_eq!(first(b"1234567890", 0, 10), Scan::Partial);
        assert_eq!(first(b"12345678901", 0, 10), Scan::TooLong { wire: 11, ended: false });
    }

    #[test]
    fn skipping_ends_at_crlf_across_pieces() {
        let mut cr = false;
        assert_eq!(skip(b"ab\nc\r", &mut cr), (5, false));
        assert_eq!(skip(b"\nNOOP\r\n", &mut cr), (1, true));
        let mut cr = false;
        assert_eq!(skip(b"\n\r", &mut cr), (2, false));
        assert_eq!(skip(b"x\n", &mut cr), (2, false));
    }
}
