//! What a server says it can do, in its reply to EHLO or LHLO (RFC 5321 §4.1.1.1).

use crate::param;

use super::sasl::Mechanism;

/// What the peer offers on this connection now. STARTTLS makes all of it void (RFC 3207 §4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 1870.
    pub size: bool,
    /// The largest message that it takes; `None`: it does not say.
    pub size_octets_max: Option<u64>,
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461. Where it is missing, success notices are the client's to send.
    pub dsn: bool,
    /// RFC 8689.
    pub requiretls: bool,
    /// RFC 2034.
    pub enhanced_status_codes: bool,
    /// RFC 4954, with mechanisms that we know or not.
    pub auth: bool,
    /// One bit for each mechanism that we know.
    mechanisms: u16,
}

impl Extensions {
    /// Whether AUTH lists this mechanism.
    pub fn offers(&self, mechanism: Mechanism) -> bool {
        self.mechanisms & mechanism.bit() != 0
    }

    /// Whether AUTH lists a mechanism with channel binding.
    pub(crate) fn binds_channel(&self) -> bool {
        Mechanism::ALL.iter().any(|&mechanism| mechanism.binds_channel() && self.offers(mechanism))
    }

    /// The peer does not take it, whatever it said.
    pub(crate) fn strike(&mut self, mechanism: Mechanism) {
        self.mechanisms &= !mechanism.bit();
    }

    /// Takes one line after the first of the reply. What we do not know is no fault.
    pub(crate) fn learn(&mut self, line: &[u8]) {
        // `AUTH=` is how servers wrote it before RFC 2554; some still do, beside the right form.
        let mut words = line.split(|&b| b == b' ' || b == b'=').filter(|word| !word.is_empty());
        let keyword = words.next().unwrap_or_default();
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        if is("SIZE") {
            let octets = words.next().and_then(|word| std::str::from_utf8(word).ok()).and_then(param::digits);
            // RFC 1870 §4: 0 means that there is no fixed maximum.
            (self.size, self.size_octets_max) = (true, octets.filter(|&octets| octets > 0));
        } else if is("AUTH") {
            self.auth = true;
            for word in words {
                let known = std::str::from_utf8(word).ok().and_then(Mechanism::named);
                self.mechanisms |= known.map_or(0, Mechanism::bit);
            }
        } else {
            let flags: [(&str, &mut bool); 8] = [
                ("PIPELINING", &mut self.pipelining),
                ("STARTTLS", &mut self.starttls),
                ("CHUNKING", &mut self.chunking),
                ("8BITMIME", &mut self.eight_bit_mime),
                ("SMTPUTF8", &mut self.smtputf8),
                ("DSN", &mut self.dsn),
                ("REQUIRETLS", &mut self.requiretls),
                ("ENHANCEDSTATUSCODES", &mut self.enhanced_status_codes),
            ];
            for (name, flag) in flags {
                *flag |= keyword.eq_ignore_ascii_case(name.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(lines: &[&str]) -> Extensions {
        let mut extensions = Extensions::default();
        lines.iter().for_each(|line| extensions.learn(line.as_bytes()));
        extensions
    }

    #[test]
    fn keywords_in_any_case_and_what_is_unknown() {
        let peer =
            learn(&["pipelining", "SIZE 1000", "AUTH plain X-OWN CRAM-MD5", "XCLIENT NAME", "", " ", "8bitmime"]);
        assert!(peer.pipelining && peer.eight_bit_mime && peer.size && peer.auth && !peer.dsn);
        assert_eq!(peer.size_octets_max, Some(1000));
        assert!(peer.offers(Mechanism::Plain) && peer.offers(Mechanism::CramMd5) && !peer.offers(Mechanism::Login));
        assert!(learn(&["AUTH=LOGIN PLAIN"]).offers(Mechanism::Login));
    }

    #[test]
    fn sizes() {
        for (line, octets_max) in [
            ("SIZE", None),
            ("SIZE 0", None),
            ("SIZE x", None),
            ("SIZE -1", None),
            ("SIZE 18446744073709551615", Some(u64::MAX)),
            ("SIZE 99999999999999999999", None),
        ] {
            let peer = learn(&[line]);
            assert_eq!((peer.size, peer.size_octets_max), (true, octets_max), "{line}");
        }
    }
}
