//! A message on its way in: end of data, dot-unstuffing, and nothing but CRLF as line end.
//!
//! DATA ends at CRLF "." CRLF and nowhere else (RFC 5321 §4.1.1.4); each of the forms that other servers
//! took for it (`LF.LF`, `CR.CR`, `LF.CRLF`, …) has carried smuggled mail. A message that holds a CR or LF
//! of its own is followed to its true end and refused there.

use memchr::memchr2;

/// Where in the stream the next octet stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// After CRLF, or at the start.
    #[default]
    LineStart,
    /// Within a line.
    Line,
    /// After a CR.
    Cr,
    /// After a dot at the start of a line.
    Dot,
    /// After that dot and a CR.
    DotCr,
}

/// Follows one message. Works on whatever pieces the network delivers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Decoder {
    at: At,
    bare: bool,
}

/// One piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many octets are message octets as they stand.
    Text(usize),
    /// So many octets are framing: a stuffed dot, or the start of what may be the end.
    Framing(usize),
    /// So many octets complete the end of data.
    End(usize),
}

impl Decoder {
    /// Whether a CR or LF stood alone somewhere.
    pub(crate) fn saw_bare(&self) -> bool {
        self.bare
    }

    /// The next piece of a DATA stream at the front of `input`, which is not empty.
    pub(crate) fn data(&mut self, input: &[u8]) -> Piece {
        match (self.at, input.first()) {
            (At::LineStart, Some(b'.')) => {
                self.at = At::Dot;
                Piece::Framing(1)
            }
            (At::Dot, Some(b'\r')) => {
                self.at = At::DotCr;
                Piece::Framing(1)
            }
            // The dot was stuffing (RFC 5321 §4.5.2); what follows is text.
            (At::Dot, _) => {
                self.at = At::Line;
                Piece::Framing(0)
            }
            (At::DotCr, Some(b'\n')) => {
                self.at = At::LineStart;
                Piece::End(1)
            }
            (At::DotCr, _) => {
                self.bare = true;
                self.at = At::Line;
                Piece::Framing(0)
            }
            _ => Piece::Text(self.text(input, true)),
        }
    }

    /// Checks octets of a BDAT chunk, all of which are text.
    pub(crate) fn chunk(&mut self, input: &[u8]) {
        self.text(input, false);
    }

    /// The message is complete: a CR at its very end stands alone.
    pub(crate) fn finish_chunks(&mut self) {
        self.bare |= self.at == At::Cr;
    }

    /// Walks over text; with `dots` it stops before a dot at the start of a line. Returns the octets walked.
    fn text(&mut self, input: &[u8], dots: bool) -> usize {
        let mut i = 0;
        while let Some(&b) = input.get(i) {
            match self.at {
                At::Cr => {
                    if b == b'\n' {
                        self.at = At::LineStart;
                        i += 1;
                    } else {
                        self.bare = true;
                        self.at = At::Line;
                    }
                }
                At::LineStart if dots && b == b'.' => break,
                _ => match input.get(i..).and_then(|rest| memchr2(b'\r', b'\n', rest)) {
                    None => {
                        self.at = At::Line;
                        i = input.len();
                    }
                    Some(n) => {
                        i += n;
                        if input.get(i) == Some(&b'\r') {
                            self.at = At::Cr;
                        } else {
                            self.bare = true;
                            self.at = At::Line;
                        }
                        i += 1;
                    }
                },
            }
        }
        i
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes in pieces of `step` octets: text, bare seen, octets used, ended.
    fn decode(input: &[u8], step: usize) -> (Vec<u8>, bool, usize, bool) {
        let (mut decoder, mut text, mut used) = (Decoder::default(), Vec::new(), 0);
        for piece in input.chunks(step) {
            let mut i = 0;
            while i < piece.len() {
                match decoder.data(&piece[i..]) {
                    Piece::Text(n) => {
                        text.extend_from_slice(&piece[i..i + n]);
                        (i, used) = (i + n, used + n);
                    }
                    Piece::Framing(n) => (i, used) = (i + n, used + n),
                    Piece::End(n) => return (text, decoder.saw_bare(), used + n, true),
                }
            }
        }
        (text, decoder.saw_bare(), used, false)
    }

    #[test]
    fn only_crlf_dot_crlf_ends_data() {
        for (input, text, bare) in [
            (&b"a\r\n.\r\n"[..], &b"a\r\n"[..], false),
            (b".\r\n", b"", false),
            (b"..\r\n.\r\n", b".\r\n", false),
            (b"...a\r\n.\r\n", b"..a\r\n", false),
            (b".a\r\n.\r\n", b"a\r\n", false),
            (b"a\n.\n\r\n.\r\n", b"a\n.\n\r\n", true),
            (b"a\n.\r\n\r\n.\r\n", b"a\n.\r\n\r\n", true),
            (b"a\r\n.\n\r\n.\r\n", b"a\r\n\n\r\n", true),
            (b"a\r.\r\r\n.\r\n", b"a\r.\r\r\n", true),
            (b"a\r\n\0.\r\n\r\n.\r\n", b"a\r\n\0.\r\n\r\n", false),
            (b"a\r\r\n.\r\n", b"a\r\r\n", true),
        ] {
            for step in 1..=input.len() {
                assert_eq!(decode(input, step), (text.to_vec(), bare, input.len(), true), "{input:?} by {step}");
            }
        }
        // After the dot and a lone CR the line goes on; the CR is lost, but so is the message.
        for step in 1..9 {
            let (_, bare, used, ended) = decode(b".\r.\r\n\r\n.\r\n", step);
            assert_eq!((bare, used, ended), (true, 10, true));
        }
    }

    #[test]
    fn chunks_hold_no_dots_to_unstuff_but_may_not_hold_bare_ends() {
        for (chunks, bare) in [
            (&[&b"..\r"[..], b"\n.\r\n"][..], false),
            (&[b"a\r", b"b"], true),
            (&[b"a\n"], true),
            (&[b"a\r"], true),
            (&[b"a"], false),
        ] {
            let mut decoder = Decoder::default();
            chunks.iter().for_each(|chunk| decoder.chunk(chunk));
            decoder.finish_chunks();
            assert_eq!(decoder.saw_bare(), bare, "{chunks:?}");
        }
    }
}
