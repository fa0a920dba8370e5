//! MTA-STS (RFC 8461), the pure part: the TXT record, the policy and what it says about a host.

use smtp::path::is_domain;

/// What a policy wants of senders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Hand mail only to hosts that fit.
    Enforce,
    /// Hand it on as ever; only reports, which we do not send, would tell.
    Testing,
    /// No policy any more.
    None,
}

/// A domain's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) mode: Mode,
    pub(crate) max_age_seconds: u64,
    /// Lower case; `*.` stands for one label.
    mx: Vec<String>,
}

/// RFC 8461 §3.2.
const MAX_AGE_SECONDS_MAX: u64 = 31_557_600;
/// More than anybody has hosts.
const PATTERNS_MAX: usize = 200;

/// The policy's id from the TXT records at `_mta-sts`; `None`: no policy is announced (§3.1).
pub(crate) fn announced<'a>(records: impl IntoIterator<Item = &'a [u8]>) -> Option<String> {
    let mut ours = records.into_iter().filter(|record| {
        let rest = record.strip_prefix(b"v=STSv1").unwrap_or_default();
        rest.trim_ascii_start().first() == Some(&b';')
    });
    let (record, more) = (ours.next()?, ours.next());
    if more.is_some() {
        return None;
    }
    let text = std::str::from_utf8(record).ok().filter(|text| text.is_ascii())?;
    let mut id = None;
    let mut fields = text.split(';').map(|field| field.trim_matches([' ', '\t'])).skip(1).peekable();
    while let Some(field) = fields.next() {
        if field.is_empty() {
            // Only the end may be empty.
            fields.peek().is_none().then_some(())?;
            continue;
        }
        let (name, value) = field.split_once('=')?;
        let good = |text: &str, allowed: &dyn Fn(u8) -> bool| !text.is_empty() && text.bytes().all(allowed);
        let name_fits = good(name, &|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if !name_fits || !good(value, &|b| b.is_ascii_graphic() && b != b'=') {
            return None;
        }
        if name == "id" && id.is_none() {
            let fits = value.len() <= 32 && value.bytes().all(|b| b.is_ascii_alphanumeric());
            id = Some(fits.then(|| value.to_owned())?);
        }
    }
    id
}

impl Policy {
    /// Reads the file that a policy host serves (§3.2); otherwise says what is wrong with it.
    pub(crate) fn parse(octets: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(octets).map_err(|_| "it is not UTF-8")?;
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for line in text.split('\n').map(|line| line.trim_end_matches(['\r', ' ', '\t'])) {
            if line.is_empty() {
                continue;
            }
            let (key, value) = line.split_once(':').ok_or("a line is no `key: value`")?;
            let value = value.trim_matches([' ', '\t']);
            match key {
                "mx" => {
                    let host = value.strip_prefix("*.").unwrap_or(value);
                    if !host.is_ascii() || !is_domain(host) {
                        return Err("an `mx` is no host name");
                    }
                    if mx.len() == PATTERNS_MAX {
                        return Err("it has too many `mx`");
                    }
                    mx.push(value.to_ascii_lowercase());
                }
                // Of what must not be repeated the first counts.
                "version" => version = version.or(Some(value)),
                "mode" => mode = mode.or(Some(value)),
                "max_age" => max_age = max_age.or(Some(value)),
                _ => {}
            }
        }
        if version != Some("STSv1") {
            return Err("its version is not STSv1");
        }
        let mode = match mode {
            Some("enforce") => Mode::Enforce,
            Some("testing") => Mode::Testing,
            Some("none") => Mode::None,
            _ => return Err("its mode is none of `enforce`, `testing`, `none`"),
        };
        let max_age = max_age.filter(|text| (1..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()));
        let max_age: u64 = max_age.and_then(|text| text.parse().ok()).ok_or("its `max_age` is no number of seconds")?;
        if mx.is_empty() && mode != Mode::None {
            return Err("it has no `mx`");
        }
        Ok(Self { mode, max_age_seconds: max_age.min(MAX_AGE_SECONDS_MAX), mx })
    }

    /// Whether a host named by an MX record may take the domain's mail (§4.1).
    pub(crate) fn names(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.mx.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
            None => *pattern == host,
        })
    }

    /// As a policy host would serve it.
    pub(crate) fn text(&self) -> String {
        let mode = self.mode.word();
        let mx: String = self.mx.iter().map(|pattern| format!("mx: {pattern}\n")).collect();
        format!("version: STSv1\nmode: {mode}\nmax_age: {}\n{mx}", self.max_age_seconds)
    }
}

impl Mode {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Testing => "testing",
            Self::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let long = format!("v=STSv1; id={}", "a".repeat(33));
        for (records, id) in [
            (&["v=STSv1; id=20160831085700Z;"][..], Some("20160831085700Z")),
            (&["v=STSv1;id=1"], Some("1")),
            (&["v=STSv1 ; \tid=1 ;  "], Some("1")),
            (&["v=STSv1; x.y-z=$1:2; id=1; id=2"], Some("1")),
            // Records of others beside it.
            (&["v=spf1 -all", "v=STSv1; id=7"], Some("7")),
            (&["v=STSv1; id=7", "v=STSv1; id=7"], None),
            (&["v=STSv1; id=7", "v=STSv1; nonsense"], None),
            (&["v=STSv2; id=7"], None),
            (&["id=7; v=STSv1"], None),
            (&["v=STSv1"], None),
            (&["v=STSv1;"], None),
            (&["v=STSv1;; id=7"], None),
            (&["v=STSv1; id="], None),
            (&["v=STSv1; id=a-b"], None),
            (&["v=STSv1; id=ä"], None),
            (&["v=STSv1; id=1; nonsense"], None),
            (&["v=STSv1; a=b=c; id=1"], None),
            (&[&long], None),
            (&[], None),
        ] {
            assert_eq!(announced(records.iter().map(|text| text.as_bytes())).as_deref(), id, "{records:?}");
        }
        assert_eq!(announced([&b"v=STSv1; id=\xff"[..]]), None);
    }

    #[test]
    fn policies() {
        let read = |text: &str| Policy::parse(text.as_bytes());
        let example = "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.Example.net\r\n\
                       mx: backupmx.example.com\r\nmax_age: 604800\r\n";
        let policy = read(example).unwrap();
        assert_eq!((policy.mode, policy.max_age_seconds), (Mode::Enforce, 604_800));
        assert_eq!(read(&policy.text()), Ok(policy.clone()), "what is kept is what was read");
        for (host, fits) in [
            ("mail.example.com", true),
            ("MAIL.example.COM", true),
            ("a.example.net", true),
            ("example.net", false),
            (".example.net", false),
            ("a.b.example.net", false),
            ("mail.example.com.evil.example", false),
            ("xmail.example.com", false),
            ("*.example.net", true),
        ] {
            assert_eq!(policy.names(host), fits, "{host}");
        }
        // LF alone, any order, blanks at the end, unknown keys, the first of two counts, a bound.
        let odd = "max_age: 99999999999999\nversion: STSv1";
        assert!(read(odd).is_err());
        let odd = "max_age:9999999999  \nmode:none\nmode: enforce\nwhat: ever: ü\n\nversion: STSv1";
        assert_eq!(
            read(odd).map(|policy| (policy.mode, policy.max_age_seconds)),
            Ok((Mode::None, MAX_AGE_SECONDS_MAX))
        );
        for (text, part) in [
            ("", "version"),
            ("<html>\n", "key: value"),
            ("version: STSv2\nmode: none\nmax_age: 1", "version"),
            ("version: STSv1\nmode: off\nmax_age: 1", "mode"),
            ("version: STSv1\nmode: enforce\nmax_age: 1", "no `mx`"),
            ("version: STSv1\nmode: none\nmax_age: -1", "max_age"),
            ("version: STSv1\nmode: none", "max_age"),
            ("version: STSv1\nmode: enforce\nmax_age: 1\nmx: *.*.a", "host name"),
            ("version: STSv1\nmode: enforce\nmax_age: 1\nmx: bücher.example", "host name"),
            ("version: STSv1\nmode: enforce\nmax_age: 1\nmx:", "host name"),
        ] {
            assert!(read(text).is_err_and(|why| why.contains(part)), "{text:?}: {:?}", read(text));
        }
        assert!(Policy::parse(b"version: \xff").is_err());
        let many = format!("version: STSv1\nmode: enforce\nmax_age: 1\n{}", "mx: a.example\n".repeat(201));
        assert!(read(&many).is_err_and(|why| why.contains("too many")));
    }
}
