//! The envelope: who a message is from and for, and how the client wants to hear about it.
//!
//! All text lies in one buffer, so that a transaction that is reused allocates nothing. The encoded form
//! ([`Envelope::encode`]) is what the spool keeps: binary and length-prefixed, never line-based, so that
//! nothing a client says can become structure (CVE-2020-28021, CVE-2020-8794).

use std::fmt;
use std::ops::Range;

/// Envelope of one message.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    text: String,
    reverse_path: Option<Range<u32>>,
    envid: Option<Range<u32>>,
    auth: Option<Range<u32>>,
    identity: Option<Range<u32>>,
    recipients: Vec<Entry>,
    /// RFC 6152, RFC 3030.
    pub body: Body,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461 §4.3.
    pub ret: Option<Ret>,
    /// Octets that the client announced with SIZE (RFC 1870).
    pub size: Option<u64>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    address: Range<u32>,
    mailbox: Range<u32>,
    orcpt: Option<Range<u32>>,
    notify: Notify,
}

/// One recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient<'a> {
    /// `local@domain`, or `postmaster`; domain in lower case, without angle brackets.
    pub address: &'a str,
    /// Local user whose mailbox it is; empty for mail that goes elsewhere.
    pub mailbox: &'a str,
    /// ORCPT as sent, still in xtext (RFC 3461 §4.2).
    pub orcpt: Option<&'a str>,
    /// When to tell the sender (RFC 3461 §4.1).
    pub notify: Notify,
}

impl Recipient<'_> {
    /// The domain that decides about its way, in lower case. An address without one (`postmaster`) goes where its
    /// mailbox's mail would.
    pub fn route_domain(&self) -> Option<String> {
        let domain = |address: &str| address.rsplit_once('@').map(|(_, domain)| domain.to_lowercase());
        domain(self.address).or_else(|| domain(self.mailbox))
    }
}

/// NOTIFY of RFC 3461 §4.1 as bits; none set: not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notify(pub u8);

impl Notify {
    /// NOTIFY=NEVER.
    pub const NEVER: Self = Self(1);
    /// NOTIFY=SUCCESS.
    pub const SUCCESS: Self = Self(2);
    /// NOTIFY=FAILURE.
    pub const FAILURE: Self = Self(4);
    /// NOTIFY=DELAY.
    pub const DELAY: Self = Self(8);
}

/// BODY parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// BODY=7BIT or not given.
    #[default]
    SevenBit,
    /// BODY=8BITMIME.
    EightBitMime,
}

/// RET parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// RET=FULL.
    Full,
    /// RET=HDRS.
    Headers,
}

/// Why octets are no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEnvelope;

impl fmt::Display for BadEnvelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an envelope, or one of a later version")
    }
}

impl std::error::Error for BadEnvelope {}

const VERSION: u8 = 1;

impl Envelope {
    /// Forgets everything and keeps the buffers.
    pub fn clear(&mut self) {
        self.text.clear();
        self.recipients.clear();
        (self.reverse_path, self.envid, self.auth, self.identity) = (None, None, None, None);
        (self.body, self.smtputf8, self.ret, self.size) = (Body::default(), false, None, None);
    }

    fn keep(&mut self, text: &str) -> Range<u32> {
        let start = self.text.len() as u32;
        self.text.push_str(text);
        start..self.text.len() as u32
    }

    fn at(&self, range: &Range<u32>) -> &str {
        self.text.get(range.start as usize..range.end as usize).unwrap_or_default()
    }

    fn at_option(&self, range: &Option<Range<u32>>) -> Option<&str> {
        range.as_ref().map(|range| self.at(range))
    }

    /// Sender; `None` is the null reverse-path `<>`.
    pub fn reverse_path(&self) -> Option<&str> {
        self.at_option(&self.reverse_path)
    }

    /// Sets the sender; `None` is the null reverse-path.
    pub fn set_reverse_path(&mut self, address: Option<&str>) {
        self.reverse_path = address.map(|address| self.keep(address));
    }

    /// ENVID as sent, still in xtext (RFC 3461 §4.4).
    pub fn envid(&self) -> Option<&str> {
        self.at_option(&self.envid)
    }

    /// Sets ENVID.
    pub fn set_envid(&mut self, xtext: &str) {
        self.envid = Some(self.keep(xtext));
    }

    /// AUTH= when the client is trusted to say so (RFC 4954 §5), decoded; `None` is `<>`.
    pub fn auth(&self) -> Option<&str> {
        self.at_option(&self.auth)
    }

    /// Sets AUTH=.
    pub fn set_auth(&mut self, mailbox: &str) {
        self.auth = Some(self.keep(mailbox));
    }

    /// Who the client had proven to be; `None` for a stranger.
    pub fn identity(&self) -> Option<&str> {
        self.at_option(&self.identity)
    }

    /// Sets the proven identity.
    pub fn set_identity(&mut self, name: &str) {
        self.identity = Some(self.keep(name));
    }

    /// Adds a recipient.
    pub fn push(&mut self, recipient: Recipient<'_>) {
        let entry = Entry {
            address: self.keep(recipient.address),
            mailbox: self.keep(recipient.mailbox),
            orcpt: recipient.orcpt.map(|orcpt| self.keep(orcpt)),
            notify: recipient.notify,
        };
        self.recipients.push(entry);
    }

    /// Recipients in the order of their RCPT commands.
    pub fn recipients(&self) -> impl ExactSizeIterator<Item = Recipient<'_>> {
        self.recipients.iter().map(|entry| Recipient {
            address: self.at(&entry.address),
            mailbox: self.at(&entry.mailbox),
            orcpt: self.at_option(&entry.orcpt),
            notify: entry.notify,
        })
    }

    /// The same for some of its recipients, chosen by their places.
    pub fn only(&self, chosen: impl Fn(u32) -> bool) -> Self {
        let mut envelope =
            Self { body: self.body, smtputf8: self.smtputf8, ret: self.ret, size: self.size, ..Self::default() };
        envelope.set_reverse_path(self.reverse_path());
        self.envid().into_iter().for_each(|xtext| envelope.set_envid(xtext));
        self.auth().into_iter().for_each(|mailbox| envelope.set_auth(mailbox));
        self.identity().into_iter().for_each(|name| envelope.set_identity(name));
        let places = (0..).zip(self.recipients()).filter(|&(place, _)| chosen(place));
        places.for_each(|(_, recipient)| envelope.push(recipient));
        envelope
    }

    /// Octets of text held; bounded by the session (CONTRACT A11).
    pub fn text_octets(&self) -> usize {
        self.text.len()
    }

    /// Appends the binary form: version, flags, then fields as u32 length (little-endian) and octets;
    /// `0xffff_ffff` stands for an absent field.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.push(VERSION);
        to.push(u8::from(self.smtputf8) | (u8::from(self.body == Body::EightBitMime) << 1));
        to.push(match self.ret {
            None => 0,
            Some(Ret::Full) => 1,
            Some(Ret::Headers) => 2,
        });
        to.extend_from_slice(&self.size.map_or(u64::MAX, |size| size).to_le_bytes());
        for field in [&self.reverse_path, &self.envid, &self.auth, &self.identity] {
            put(to, self.at_option(field));
        }
        to.extend_from_slice(&(self.recipients.len() as u32).to_le_bytes());
        for recipient in self.recipients() {
            put(to, Some(recipient.address));
            put(to, Some(recipient.mailbox));
            put(to, recipient.orcpt);
            to.push(recipient.notify.0);
        }
    }

    /// Reads what [`Envelope::encode`] wrote; all octets must be used.
    pub fn decode(octets: &[u8]) -> Result<Self, BadEnvelope> {
        let mut from = octets;
        let mut envelope = Self::default();
        let &[version, flags, ret] = take(&mut from)?;
        if version != VERSION {
            return Err(BadEnvelope);
        }
        envelope.smtputf8 = flags & 1 != 0;
        envelope.body = if flags & 2 != 0 { Body::EightBitMime } else { Body::SevenBit };
        envelope.ret = match ret {
            0 => None,
            1 => Some(Ret::Full),
            2 => Some(Ret::Headers),
            _ => return Err(BadEnvelope),
        };
        envelope.size = Some(u64::from_le_bytes(*take(&mut from)?)).filter(|&size| size != u64::MAX);
        envelope.reverse_path = field(&mut from)?.map(|text| envelope.keep(text));
        envelope.envid = field(&mut from)?.map(|text| envelope.keep(text));
        envelope.auth = field(&mut from)?.map(|text| envelope.keep(text));
        envelope.identity = field(&mut from)?.map(|text| envelope.keep(text));
        for _ in 0..u32::from_le_bytes(*take(&mut from)?) {
            let address = field(&mut from)?.ok_or(BadEnvelope)?;
            let mailbox = field(&mut from)?.ok_or(BadEnvelope)?;
            let orcpt = field(&mut from)?;
            let &[notify] = take(&mut from)?;
            envelope.push(Recipient { address, mailbox, orcpt, notify: Notify(notify) });
        }
        if from.is_empty() { Ok(envelope) } else { Err(BadEnvelope) }
    }
}

fn put(to: &mut Vec<u8>, text: Option<&str>) {
    to.extend_from_slice(&text.map_or(u32::MAX, |text| text.len() as u32).to_le_bytes());
    to.extend_from_slice(text.unwrap_or_default().as_bytes());
}

fn take<'a, const N: usize>(from: &mut &'a [u8]) -> Result<&'a [u8; N], BadEnvelope> {
    let (taken, rest) = from.split_first_chunk().ok_or(BadEnvelope)?;
    *from = rest;
    Ok(taken)
}

fn field<'a>(from: &mut &'a [u8]) -> Result<Option<&'a str>, BadEnvelope> {
    let octets = match u32::from_le_bytes(*take(from)?) {
        u32::MAX => return Ok(None),
        octets => octets as usize,
    };
    let (text, rest) = from.split_at_checked(octets).ok_or(BadEnvelope)?;
    *from = rest;
    std::str::from_utf8(text).map(Some).map_err(|_| BadEnvelope)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Envelope {
        let mut envelope = Envelope { smtputf8: true, ret: Some(Ret::Headers), size: Some(12), ..Envelope::default() };
        envelope.set_reverse_path(Some("a@b.example"));
        envelope.set_identity("a");
        let notify = Notify(6);
        envelope.push(Recipient { address: "c@d.example", mailbox: "", orcpt: Some("rfc822;c+2Bx@d"), notify });
        envelope.push(Recipient { address: "postmaster", mailbox: "e", orcpt: None, notify: Notify(0) });
        envelope
    }

    #[test]
    fn encode_and_decode_are_inverse() {
        for envelope in [Envelope::default(), sample()] {
            let mut octets = Vec::new();
            envelope.encode(&mut octets);
            assert!(Envelope::decode(&octets).unwrap() == envelope);
            for cut in 0..octets.len() {
                assert!(Envelope::decode(&octets[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn for_some_recipients_nothing_else_changes() {
        let mut all = sample();
        all.set_envid("e+2B1");
        all.set_auth("x@y");
        assert!(all.only(|_| true) == Envelope::decode(&encoded(&all)).unwrap());
        let one = all.only(|place| place == 1);
        assert_eq!(one.recipients().map(|to| to.mailbox.to_owned()).collect::<Vec<_>>(), ["e"]);
        assert_eq!((one.envid(), one.auth(), one.identity(), one.ret), (all.envid(), all.auth(), Some("a"), all.ret));
    }

    fn encoded(envelope: &Envelope) -> Vec<u8> {
        let mut octets = Vec::new();
        envelope.encode(&mut octets);
        octets
    }

    #[test]
    fn a_null_reverse_path_is_not_an_empty_one() {
        let mut envelope = sample();
        envelope.clear();
        assert_eq!((envelope.reverse_path(), envelope.recipients().len(), envelope.text_octets()), (None, 0, 0));
    }
}
