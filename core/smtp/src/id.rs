//! Names for messages and sessions.

use std::fmt;

use crate::host::SessionId;

/// A message's 128-bit id, shown as 26 characters of Crockford base32. The high 48 bits are the time
/// in milliseconds, so ids sort by age.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub u128);

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl QueueId {
    /// From the wall clock and 80 random bits (the low ones of `random` count).
    pub fn new(unix_ms: u64, random: u128) -> Self {
        Self((u128::from(unix_ms) << 80) | (random & ((1 << 80) - 1)))
    }

    /// The 26 characters.
    pub fn text(self) -> [u8; 26] {
        let mut text = [0; 26];
        for (i, c) in text.iter_mut().rev().enumerate() {
            *c = ALPHABET[(self.0 >> (5 * i)) as usize & 31];
        }
        text
    }

    /// Reads the 26 characters, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 26 || text.as_bytes()[0] > b'7' {
            return None;
        }
        text.bytes()
            .try_fold(0u128, |id, c| {
                let digit = ALPHABET.iter().position(|&a| a == c.to_ascii_uppercase())?;
                Some((id << 5) | digit as u128)
            })
            .map(Self)
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SessionId {
    /// The 13 characters.
    pub fn text(self) -> [u8; 13] {
        let mut text = [0; 13];
        for (i, c) in text.iter_mut().rev().enumerate() {
            *c = ALPHABET[(self.0 >> (5 * i)) as usize & 31];
        }
        text
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for id in [QueueId(0), QueueId(u128::MAX), QueueId::new(1_700_000_000_000, 42)] {
            assert_eq!(QueueId::parse(&id.to_string()), Some(id));
        }
        assert_eq!(QueueId::parse("80000000000000000000000000"), None);
        assert!(QueueId::new(2, 0) > QueueId::new(1, u128::MAX));
    }
}
