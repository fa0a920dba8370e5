//! A message on its way out: dots stuffed, and nothing but CRLF as line end.
//!
//! The mirror of the server's decoder. What leaves here holds no CR and no LF but as CRLF, whatever came
//! in: a server that takes another octet sequence for an end of line, hence for an end of data, finds none
//! (CVE-2023-51764 and its family).

use memchr::memchr2;

/// How the octets are framed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// For DATA: RFC 5321 §4.5.2.
    Dots,
    /// For BDAT: as they are (RFC 3030 §2).
    Counted,
}

/// A CR or LF stands alone: this is no CRLF text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BareLineEnd;

/// Where in the message the next octet stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// After CRLF, or at the start.
    #[default]
    LineStart,
    /// Within a line.
    Line,
    /// After a CR, which is kept back until the LF is there.
    Cr,
}

/// Follows one message through whatever pieces it comes in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Encoder {
    at: At,
}

impl Encoder {
    /// Appends the wire form of `octets`. After an error, what was appended is still free of bare CR and
    /// LF, but the message must not be finished.
    pub(crate) fn push(&mut self, octets: &[u8], framing: Framing, out: &mut Vec<u8>) -> Result<(), BareLineEnd> {
        // Octets before `kept` are in `out`; those before `i` are known to be good.
        let (mut kept, mut i) = (0, 0);
        if self.at == At::Cr && !octets.is_empty() {
            if octets.first() != Some(&b'\n') {
                return Err(BareLineEnd);
            }
            out.extend_from_slice(b"\r\n");
            (kept, i) = (1, 1);
            self.at = At::LineStart;
        }
        let good = loop {
            if self.at == At::LineStart && octets.get(i) == Some(&b'.') && framing == Framing::Dots {
                out.extend_from_slice(octets.get(kept..i).unwrap_or_default());
                out.push(b'.');
                kept = i;
            }
            let Some(rest) = octets.get(i..).filter(|rest| !rest.is_empty()) else { break Ok(()) };
            let Some(n) = memchr2(b'\r', b'\n', rest) else {
                i = octets.len();
                self.at = At::Line;
                break Ok(());
            };
            i += n;
            match rest.get(n..).unwrap_or_default() {
                [b'\r', b'\n', ..] => {
                    i += 2;
                    self.at = At::LineStart;
                }
                [b'\r'] => {
                    self.at = At::Cr;
                    break Ok(());
                }
                _ => break Err(BareLineEnd),
            }
        };
        out.extend_from_slice(octets.get(kept..i).unwrap_or_default());
        good
    }

    /// The message is complete. For DATA: ends its last line where that is missing, then says so.
    pub(crate) fn finish(self, framing: Framing, out: &mut Vec<u8>) -> Result<(), BareLineEnd> {
        match (self.at, framing) {
            (At::Cr, _) => return Err(BareLineEnd),
            (_, Framing::Counted) => {}
            (At::LineStart, Framing::Dots) => out.extend_from_slice(b".\r\n"),
            (At::Line, Framing::Dots) => out.extend_from_slice(b"\r\n.\r\n"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{Decoder, Piece};

    fn encode(input: &[u8], step: usize, framing: Framing) -> (Vec<u8>, Result<(), BareLineEnd>) {
        let (mut encoder, mut out) = (Encoder::default(), Vec::new());
        for piece in input.chunks(step) {
            if let Err(bare) = encoder.push(piece, framing, &mut out) {
                return (out, Err(bare));
            }
        }
        let good = encoder.finish(framing, &mut out);
        (out, good)
    }

    /// What the server makes of it: text, whether bare line ends were seen, octets used, ended.
    fn decode(wire: &[u8]) -> (Vec<u8>, bool, usize, bool) {
        let (mut decoder, mut text, mut i) = (Decoder::default(), Vec::new(), 0);
        while i < wire.len() {
            match decoder.data(&wire[i..]) {
                Piece::Text(n) => {
                    text.extend_from_slice(&wire[i..i + n]);
                    i += n;
                }
                Piece::Framing(n) => i += n,
                Piece::End(n) => return (text, decoder.saw_bare(), i + n, true),
            }
        }
        (text, decoder.saw_bare(), i, false)
    }

    #[test]
    fn dots_and_ends() {
        for (input, expect) in [
            (&b""[..], &b".\r\n"[..]),
            (b"a", b"a\r\n.\r\n"),
            (b"a\r\n", b"a\r\n.\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b".\r\n", b"..\r\n.\r\n"),
            (b"..\r\n.a\r\n", b"...\r\n..a\r\n.\r\n"),
            (b"a\r\n.\r\nb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"\r\n\r\n.", b"\r\n\r\n..\r\n.\r\n"),
        ] {
            for step in 1..=input.len().max(1) {
                assert_eq!(encode(input, step, Framing::Dots), (expect.to_vec(), Ok(())), "{input:?} by {step}");
                assert_eq!(encode(input, step, Framing::Counted), (input.to_vec(), Ok(())), "{input:?} by {step}");
            }
        }
    }

    #[test]
    fn no_bare_line_end_leaves() {
        for input in [
            &b"a\n"[..],
            b"\n",
            b"a\rb",
            b"a\r",
            b"\r\r\n",
            b"a\r\n\n.\r\n",
            b"a\r\n.\n\r\n",
            b"a\n.\r\n",
            b"a\r.\r\r\n",
            b"a\r\n.\r",
        ] {
            for step in 1..=input.len() {
                for framing in [Framing::Dots, Framing::Counted] {
                    let (out, good) = encode(input, step, framing);
                    assert_eq!(good, Err(BareLineEnd), "{input:?} by {step}");
                    let text = String::from_utf8(out).unwrap().replace("\r\n", "");
                    assert!(!text.contains(['\r', '\n']), "{input:?} by {step} left {text:?}");
                }
            }
        }
    }

    /// Every text of up to 7 of these octets, in every step: what arrives is what was sent.
    #[test]
    fn there_and_back() {
        const OCTETS: [&[u8]; 5] = [b"\r\n", b".", b"a", b"\r", b"\n"];
        let mut count = 0;
        for length in 0..=7u32 {
            for number in 0..5usize.pow(length) {
                let parts: Vec<&[u8]> = (0..length).map(|i| OCTETS[number / 5usize.pow(i) % 5]).collect();
                let input = parts.concat();
                let crlf = String::from_utf8(input.clone()).unwrap().replace("\r\n", "");
                let text = !crlf.contains(['\r', '\n']);
                let steps = [1, 2, 3, input.len().max(1)];
                for step in steps {
                    let (wire, good) = encode(&input, step, Framing::Dots);
                    assert_eq!(good.is_ok(), text, "{input:?}");
                    if !text {
                        continue;
                    }
                    count += 1;
                    let (decoded, bare, used, ended) = decode(&wire);
                    assert_eq!((bare, used, ended), (false, wire.len(), true), "{input:?} gave {wire:?}");
                    let mut expect = input.clone();
                    if !(expect.is_empty() || expect.ends_with(b"\r\n")) {
                        expect.extend_from_slice(b"\r\n");
                    }
                    assert_eq!(decoded, expect);
                }
            }
        }
        assert!(count > 10_000, "{count}");
    }
}
