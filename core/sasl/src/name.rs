use std::fmt;

/// A SASL mechanism name (RFC 4422 §3.1): 1 to 20 of `A-Z 0-9 - _`, kept in upper case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MechanismName {
    octets: [u8; 20],
    len: u8,
}

impl MechanismName {
    /// Parses a name in any case; `None` when it is no mechanism name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let mut octets = [0; 20];
        let len = u8::try_from(name.len()).ok().filter(|len| (1..=20).contains(len))?;
        for (to, from) in octets.iter_mut().zip(name) {
            *to = from.to_ascii_uppercase();
            if !matches!(*to, b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_') {
                return None;
            }
        }
        Some(Self { octets, len })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.octets.get(..usize::from(self.len)).unwrap_or_default()).unwrap_or_default()
    }
}

impl fmt::Display for MechanismName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for MechanismName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_case_insensitive_and_bounded() {
        assert_eq!(MechanismName::parse(b"scram-sha-256-plus").unwrap().as_str(), "SCRAM-SHA-256-PLUS");
        for bad in [&b""[..], b"PLAIN ", b"A\0", b"ABCDEFGHIJKLMNOPQRSTU", "Ä".as_bytes()] {
            assert!(MechanismName::parse(bad).is_none(), "{bad:?}");
        }
    }
}
