//! Reads replies as the strictest client would: whatever RFC 5321 §4.2 forbids is an error here.

use std::fmt;

/// One reply, as it came.
#[derive(Clone, Copy)]
pub struct Reply<'a> {
    pub code: u16,
    pub enhanced: Option<Enhanced>,
    /// All lines, with their CRLF.
    pub octets: &'a [u8],
}

/// Enhanced status code (RFC 3463).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Enhanced(pub u8, pub u16, pub u16);

impl fmt::Debug for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl<'a> Reply<'a> {
    /// Splits the first reply off; `None` when it is not complete yet.
    pub fn first_in(octets: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, String> {
        let mut rest = octets;
        let mut head = None;
        loop {
            let Some(end) = rest.iter().position(|&c| c == b'\n') else { return Ok(None) };
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            let (code, last, text) =
                line_of(line).map_err(|why| format!("{why}: {:?}", String::from_utf8_lossy(line)))?;
            let enhanced = enhanced_of(code, text);
            match head {
                None => head = Some((code, enhanced)),
                Some(head) if head != (code, enhanced) => {
                    return Err(format!(
                        "lines of one reply differ in their codes: {:?}",
                        String::from_utf8_lossy(octets)
                    ));
                }
                Some(_) => {}
            }
            if last {
                let used = octets.len() - rest.len();
                return Ok(Some((Reply { code, enhanced, octets: &octets[..used] }, rest)));
            }
        }
    }

    /// Texts of the lines, without code, separator and CRLF.
    pub fn texts(&self) -> impl Iterator<Item = &'a str> {
        self.octets
            .split(|&c| c == b'\n')
            .filter(|line| line.len() > 4)
            .map(|line| std::str::from_utf8(&line[4..line.len() - 1]).unwrap_or("(not UTF-8)"))
    }

    /// The last line, without CRLF.
    pub fn last_line(&self) -> &'a str {
        let line = self.octets.split(|&c| c == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
        std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).unwrap_or("(not UTF-8)")
    }

    /// What must hold for every reply of ours, whatever the command was (RFC 2034 §4, RFC 3463 §2).
    pub fn check(&self, hostname: &str) -> Result<(), String> {
        let text = self.texts().next().unwrap_or_default();
        // Greeting and the replies to EHLO and HELO begin with our name and carry no enhanced code.
        let hello = matches!(self.code, 220 | 250) && text.split(' ').next() == Some(hostname);
        match self.enhanced {
            _ if self.code / 100 == 3 && self.enhanced.is_none() => Ok(()),
            None if hello => Ok(()),
            Some(Enhanced(class, _, _)) if u16::from(class) == self.code / 100 && self.code / 100 != 3 => Ok(()),
            other => Err(format!("enhanced code {other:?} in {:?}", self.last_line())),
        }
    }
}

/// Code, whether it is the reply's last line, and text.
fn line_of(line: &[u8]) -> Result<(u16, bool, &[u8]), &'static str> {
    if line.len() > 512 {
        return Err("reply line longer than 512 octets (RFC 5321 §4.5.3.1.5)");
    }
    let line = line.strip_suffix(b"\r\n").ok_or("reply line does not end in CRLF")?;
    let (code, text) = line.split_at_checked(3).ok_or("no reply code")?;
    if !matches!(code, [b'2'..=b'5', b'0'..=b'5', b'0'..=b'9']) {
        return Err("not a reply code (RFC 5321 §4.2)");
    }
    let code = code.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    // The text is printable: nothing a client sent may come back as structure or as terminal control.
    if text.iter().any(|&c| !(b' '..=b'~').contains(&c)) {
        return Err("reply text is not printable US-ASCII (RFC 5321 §4.2)");
    }
    match text.split_first() {
        Some((b' ', text)) => Ok((code, true, text)),
        Some((b'-', text)) => Ok((code, false, text)),
        // RFC 5321 §4.2 lets clients accept a bare code; we always send the space.
        _ => Err("no separator after the reply code"),
    }
}

fn enhanced_of(code: u16, text: &[u8]) -> Option<Enhanced> {
    // A 334 carries base64, which never looks like an enhanced code, and 354 has none (RFC 2034 §4).
    if code / 100 == 3 {
        return None;
    }
    let first = text.split(|&c| c == b' ').next()?;
    let mut parts = std::str::from_utf8(first).ok()?.split('.');
    let (class, subject, detail) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !matches!(class, "2" | "4" | "5") {
        return None;
    }
    Some(Enhanced(class.parse().ok()?, subject.parse().ok()?, detail.parse().ok()?))
}

#[test]
fn reads_replies_strictly() {
    let good = b"250-mx.demo.test\r\n250 SIZE 5\r\n221 2.0.0 Bye\r\n";
    let (first, rest) = Reply::first_in(good).unwrap().unwrap();
    assert_eq!((first.code, first.enhanced, first.texts().count()), (250, None, 2));
    assert!(first.check("mx.demo.test").is_ok() && first.check("other").is_err());
    let (second, rest) = Reply::first_in(rest).unwrap().unwrap();
    assert_eq!((second.code, second.enhanced, second.last_line()), (221, Some(Enhanced(2, 0, 0)), "221 2.0.0 Bye"));
    assert!(Reply::first_in(rest).unwrap().is_none());
    for bad in
        [&b"250\r\n"[..], b"250 x\n", b"150 x\r\n", b"25 x\r\n", b"250 \x80\r\n", b"250-2.0.0 a\r\n250 2.1.0 b\r\n"]
    {
        assert!(Reply::first_in(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
    }
    for wrong in [&b"250 4.0.0 x\r\n"[..], b"500 Error\r\n", b"250 Ok\r\n"] {
        assert!(Reply::first_in(wrong).unwrap().unwrap().0.check("h").is_err(), "{:?}", String::from_utf8_lossy(wrong));
    }
}
