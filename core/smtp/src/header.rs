//! The header of a message while it streams past: which fields there are, and the text of those that
//! carry addresses we must look at (RFC 6409 §4.2, §6.3). Bounded, and blind to everything else.

use memchr::memchr;

/// A field that we look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// RFC 5322 §3.6.2.
    From,
    /// RFC 5322 §3.6.2.
    Sender,
    /// RFC 5322 §3.6.2.
    ReplyTo,
    /// RFC 5322 §3.6.3.
    To,
    /// RFC 5322 §3.6.3.
    Cc,
    /// RFC 5322 §3.6.1.
    Date,
    /// RFC 5322 §3.6.4.
    MessageId,
    /// RFC 5321 §4.4.
    Received,
    /// RFC 6376 §3.5.
    DkimSignature,
}

const FIELDS: [(&[u8], Field); 9] = [
    (b"from", Field::From),
    (b"sender", Field::Sender),
    (b"reply-to", Field::ReplyTo),
    (b"to", Field::To),
    (b"cc", Field::Cc),
    (b"date", Field::Date),
    (b"message-id", Field::MessageId),
    (b"received", Field::Received),
    (b"dkim-signature", Field::DkimSignature),
];

const NAME_OCTETS_MAX: usize = 16;

impl Default for At {
    fn default() -> Self {
        Self::LineStart(false)
    }
}

/// Reads a header in whatever pieces it comes.
#[derive(Default)]
pub struct Scanner {
    at: At,
    /// The octets of the field name so far.
    name: [u8; NAME_OCTETS_MAX],
    name_len: u8,
    /// Octets of header seen.
    octets: usize,
    octets_max: usize,
    /// Keep address fields, not only count.
    keep: bool,
    truncated: bool,
    seen: u16,
    received: u16,
    /// Kept field bodies, unfolded by leaving the line ends out, one after another.
    text: Vec<u8>,
    fields: Vec<(Field, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// `true`: a continuation line would belong to a field that is kept.
    LineStart(bool),
    /// Within a field name.
    Name,
    /// Within a field body; `true`: it is kept.
    Body(bool),
    /// The body of the message, or more header than we look at.
    Done,
}

impl Scanner {
    /// Starts over. With `keep`, the text of address fields is kept.
    pub fn reset(&mut self, octets_max: usize, keep: bool) {
        self.text.clear();
        self.fields.clear();
        (self.at, self.name_len, self.octets, self.seen, self.received) = (At::default(), 0, 0, 0, 0);
        (self.octets_max, self.keep, self.truncated) = (octets_max, keep, false);
    }

    /// Octets of buffer that it holds, used or not.
    pub(crate) fn octets_held(&self) -> usize {
        self.text.capacity()
    }

    /// Whether nothing more is looked at.
    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Whether the header went on beyond what is looked at.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// How many Received fields were seen.
    pub fn received(&self) -> u16 {
        self.received
    }

    /// Whether `field` was seen.
    pub fn has(&self, field: Field) -> bool {
        self.seen & (1 << field as u16) != 0
    }

    /// The kept bodies of `field`.
    pub fn bodies(&self, field: Field) -> impl Iterator<Item = &[u8]> {
        self.kept().filter(move |(kept, _)| *kept == field).map(|(_, text)| text)
    }

    /// All kept fields in order.
    pub fn kept(&self) -> impl Iterator<Item = (Field, &[u8])> {
        self.fields.iter().enumerate().map(|(i, &(field, start))| {
            let end = self.fields.get(i + 1).map_or(self.text.len(), |&(_, next)| next as usize);
            (field, self.text.get(start as usize..end).unwrap_or_default())
        })
    }

    /// Takes the next octets of the message (CRLF line ends).
    pub fn push(&mut self, mut input: &[u8]) {
        while let (Some(&b), true) = (input.first(), self.at != At::Done) {
            if self.octets >= self.octets_max {
                (self.at, self.truncated) = (At::Done, true);
                return;
            }
            match self.at {
                At::LineStart(keep) => match b {
                    b'\r' | b'\n' => self.at = At::Done,
                    b' ' | b'\t' => self.at = At::Body(keep),
                    _ => (self.at, self.name_len) = (At::Name, 0),
                },
                At::Name => {
                    input = &input[1..];
                    self.octets += 1;
                    match b {
                        b':' => self.at = At::Body(self.begin_field()),
                        b'\n' => self.at = At::LineStart(false),
                        // RFC 5322 §4.5.8: blanks before the colon, as old programs wrote them.
                        b' ' | b'\t' => {}
                        _ => {
                            if let Some(slot) = self.name.get_mut(usize::from(self.name_len)) {
                                *slot = b.to_ascii_lowercase();
                            }
                            self.name_len = self.name_len.saturating_add(1);
                        }
                    }
                }
                At::Body(keep) => {
                    let end = memchr(b'\n', input);
                    let (piece, rest) = input.split_at(end.map_or(input.len(), |end| end + 1));
                    if keep {
                        let room = self.octets_max.saturating_sub(self.text.len());
                        self.text.extend(piece.iter().filter(|&&b| b != b'\r' && b != b'\n').take(room));
                    }
                    self.octets += piece.len();
                    input = rest;
                    if end.is_some() {
                        self.at = At::LineStart(keep);
                    }
                }
                At::Done => return,
            }
        }
    }

    /// The colon was seen: counts the field; true when its body is kept.
    fn begin_field(&mut self) -> bool {
        let name = self.name.get(..usize::from(self.name_len)).unwrap_or_default();
        let Some(&(_, field)) = FIELDS.iter().find(|(known, _)| *known == name) else { return false };
        self.seen |= 1 << field as u16;
        if field == Field::Received {
            self.received = self.received.saturating_add(1);
        }
        let addresses = matches!(field, Field::From | Field::Sender | Field::ReplyTo | Field::To | Field::Cc);
        let keep = self.keep && addresses;
        if keep {
            self.fields.push((field, self.text.len() as u32));
        }
        keep
    }
}

/// Not a list of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddresses;

/// Calls `each` with every addr-spec of an address list (RFC 5322 §3.4): display names, comments, groups
/// and quoted strings are stepped over, blanks and comments inside an addr-spec are left out.
pub fn addresses(body: &[u8], mut each: impl FnMut(&str)) -> Result<(), BadAddresses> {
    let text = std::str::from_utf8(body).map_err(|_| BadAddresses)?;
    let mut chars = text.chars();
    // `word`: what was read since the last separator; `angle`: the addr-spec of an angle-addr.
    let (mut word, mut angle, mut in_angle, mut in_group) = (String::new(), None::<String>, false, false);
    let mut finish = |word: &mut String, angle: &mut Option<String>| match (angle.take(), word.trim()) {
        (Some(address), _) => {
            word.clear();
            each(&address);
            Ok(())
        }
        (None, "") => {
            word.clear();
            Ok(())
        }
        (None, address) if address.contains(char::is_whitespace) && !address.starts_with('"') => Err(BadAddresses),
        (None, address) => {
            each(address);
            word.clear();
            Ok(())
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                word.push('"');
                loop {
                    match chars.next().ok_or(BadAddresses)? {
                        '"' => break,
                        '\\' => {
                            word.push('\\');
                            word.push(chars.next().ok_or(BadAddresses)?);
                        }
                        c => word.push(c),
                    }
                }
                word.push('"');
            }
            '(' => {
                let mut depth = 1;
                while depth > 0 {
                    match chars.next().ok_or(BadAddresses)? {
                        '(' => depth += 1,
                        ')' => depth -= 1,
                        '\\' => drop(chars.next()),
                        _ => {}
                    }
                }
            }
            '<' if !in_angle && angle.is_none() => {
                in_angle = true;
                word.clear();
            }
            '>' if in_angle => {
                in_angle = false;
                // An obsolete route (RFC 5322 §4.4) is not part of the address.
                let address =
                    word.rsplit_once(':').filter(|_| word.starts_with('@')).map_or(&word[..], |(_, address)| address);
                angle = Some(address.to_owned());
                word.clear();
            }
            ':' if !in_angle && !in_group => {
                in_group = true;
                word.clear();
            }
            ';' if !in_angle && in_group => {
                finish(&mut word, &mut angle)?;
                in_group = false;
            }
            ',' if !in_angle => finish(&mut word, &mut angle)?,
            c if c.is_whitespace() && in_angle => {}
            // Blanks around the parts of a bare addr-spec are allowed; between words of a name they stay.
            '@' | '.' => {
                let kept = word.trim_end().len();
                word.truncate(kept);
                word.push(c);
            }
            c if c.is_whitespace() && (word.is_empty() || word.ends_with(['@', '.'])) => {}
            '<' | '>' => return Err(BadAddresses),
            c => word.push(c),
        }
    }
    if in_angle { Err(BadAddresses) } else { finish(&mut word, &mut angle) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(body: &str) -> Result<Vec<String>, BadAddresses> {
        let mut found = Vec::new();
        addresses(body.as_bytes(), |address| found.push(address.to_owned()))?;
        Ok(found)
    }

    #[test]
    fn address_lists() {
        for (body, expect) in [
            (" a@b.example", &["a@b.example"][..]),
            (" Al <a@b.example>, \"X, Y\" <c@d.example>", &["a@b.example", "c@d.example"]),
            (" friends: a@b.example, <c@d.example>;, e@f.example", &["a@b.example", "c@d.example", "e@f.example"]),
            (" undisclosed-recipients:;", &[]),
            (" a@b.example (Al (nested) \\) x)", &["a@b.example"]),
            (" \"a b\"@c.example", &["\"a b\"@c.example"]),
            (" <@x,@y:a@b.example>", &["a@b.example"]),
            (" < a @ b.example >", &["a@b.example"]),
            (" a @ b . example", &["a@b.example"]),
            (" Jörg <j@b.example>", &["j@b.example"]),
            (" <>", &[""]),
            ("", &[]),
        ] {
            assert_eq!(
                list(body).as_deref(),
                Ok(&expect.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..]),
                "{body}"
            );
        }
        for bad in [" <a@b", " \"a", " (a", " a b@c.example", " a> b", " <a> <b>"] {
            assert!(list(bad).is_err(), "{bad}: {:?}", list(bad));
        }
    }

    #[test]
    fn fields_in_any_pieces() {
        let message = b"Received: x\r\n y\r\nreceived : z\r\nX-From: no@no\r\nFROM: Al\r\n <a@b.example>\r\nSubject: From: s\r\n t\r\nTo:c@d\r\n\r\nDate: body\r\n";
        for step in 1..=message.len() {
            let mut scanner = Scanner::default();
            scanner.reset(10_000, true);
            message.chunks(step).for_each(|piece| scanner.push(piece));
            assert!(scanner.is_done());
            assert_eq!((scanner.received(), scanner.has(Field::Date), scanner.has(Field::From)), (2, false, true));
            assert_eq!(scanner.bodies(Field::From).collect::<Vec<_>>(), [b" Al <a@b.example>"]);
            assert_eq!(scanner.bodies(Field::To).collect::<Vec<_>>(), [b"c@d"]);
        }
    }

    #[test]
    fn a_header_without_end_is_bounded() {
        let mut scanner = Scanner::default();
        scanner.reset(1000, true);
        for _ in 0..100 {
            scanner.push(b"From: aaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n");
        }
        assert!(scanner.is_done() && scanner.text.len() <= 1000);
    }
}
