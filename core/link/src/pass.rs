//! What a worker asks delivery about a message whose reply has to wait for the next hop's, and what it answers.
//!
//! The message comes as a file without a name, whose descriptor travels with the question: body, envelope,
//! lines that go before the body. An answer carries its question's id.
//!
//! Where delivery makes something durable before it answers, it says so first ([`KEEPING`]): as with any other commit
//! the client is from then on told what has come of it, and not "late" about a message that is kept.

use crate::BadPacket;
use crate::codec::{Put, Reader};

/// Frame kind of a [`Question`].
pub const QUESTION: u16 = 0x0210;
/// Frame kind of an [`Answer`].
pub const ANSWER: u16 = 0x0211;
/// Frame kind, without payload, before an [`Answer`] to the same question: it comes, however late.
pub const KEEPING: u16 = 0x0212;

/// Please hand this message to its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The message's id.
    pub id: u128,
    /// When it was accepted, milliseconds since 1970.
    pub unix_ms: u64,
    /// After this the client has given up, or will soon; of [`crate::monotonic_ms`].
    pub until_ms: u64,
    /// Length of the body, at the start of the file.
    pub body_octets: u64,
    /// Length of the envelope behind it.
    pub envelope_octets: u32,
    /// Length of the lines that go before the body, at the end.
    pub prepend_octets: u32,
}

/// What the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// 250, 4yz or 5yz.
    pub code: u16,
    /// Enhanced code and text, without CRLF.
    pub text: &'a str,
    /// Recipients that have the message by now, or may have it: if the client does not hear of it, they may get
    /// it twice.
    pub taken: u32,
}

impl Question {
    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_u128(self.id);
        to.put_u64(self.unix_ms);
        to.put_u64(self.until_ms);
        to.put_u64(self.body_octets);
        to.put_u32(self.envelope_octets);
        to.put_u32(self.prepend_octets);
    }

    /// Reads a payload.
    pub fn decode(payload: &[u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let question = Self {
            id: from.u128()?,
            unix_ms: from.u64()?,
            until_ms: from.u64()?,
            body_octets: from.u64()?,
            envelope_octets: from.u32()?,
            prepend_octets: from.u32()?,
        };
        from.end()?;
        Ok(question)
    }
}

/// Of an answer's text.
const TEXT_OCTETS_MAX: usize = 480;

impl<'a> Answer<'a> {
    /// Appends the payload.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.put_u16(self.code);
        to.put_str(self.text);
        to.put_u32(self.taken);
    }

    /// Reads a payload. What would not be one reply line to a message is none.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadPacket> {
        let mut from = Reader::new(payload);
        let answer = Self { code: from.u16()?, text: from.str()?, taken: from.u32()? };
        from.end()?;
        let printable = answer.text.bytes().all(|octet| matches!(octet, b' '..=b'~'));
        if !printable || answer.text.len() > TEXT_OCTETS_MAX {
            return Err(BadPacket::Value("reply text"));
        }
        if !matches!(answer.code, 250 | 400..=599) {
            return Err(BadPacket::Value("reply code"));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_and_nothing_else() {
        let question =
            Question { id: 7, unix_ms: 1, until_ms: 2, body_octets: 3, envelope_octets: 4, prepend_octets: 5 };
        let mut payload = Vec::new();
        question.encode(&mut payload);
        assert_eq!(Question::decode(&payload), Ok(question));
        assert!(Question::decode(&payload[1..]).is_err());
        let long = "x".repeat(TEXT_OCTETS_MAX + 1);
        for (code, text, good) in [
            (250, "2.0.0 Ok", true),
            (451, "4.4.2 lost", true),
            (554, "5.6.0 no", true),
            (354, "go on", false),
            (221, "bye", false),
            (600, "?", false),
            (550, "5.1.1 no\r\n250 yes", false),
            (550, "5.1.1 \u{e4}", false),
            (550, &long, false),
        ] {
            let mut payload = Vec::new();
            Answer { code, text, taken: 1 }.encode(&mut payload);
            assert_eq!(Answer::decode(&payload).is_ok(), good, "{code} {text:?}");
        }
    }
}
