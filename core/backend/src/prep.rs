//! String preparation: when two names are the same name, and what a password may have been hashed as.
//!
//! RFC 4954 §4 wants SASLprep (RFC 4013) for names, RFC 4616 §2 for names and passwords; for names RFC 8265 (PRECIS)
//! has taken its place. What a client sends as a password is a *query*: code points that Unicode 3.2 did not know are
//! let through there (RFC 3454 §7), or every emoji in a password would be an error. ASCII takes a path that looks at
//! no table.

use std::borrow::Cow;

use precis_core::profile::PrecisFastInvocation as _;
use precis_profiles::{UsernameCaseMapped, UsernameCasePreserved};
use stringprep::tables;
use unicode_normalization::UnicodeNormalization as _;
use zeroize::Zeroizing;

/// Longest prepared name, octets: a local part of 64, `@`, a domain of 255 (RFC 5321 §4.5.3.1).
pub const NAME_OCTETS_MAX: usize = 320;

/// What makes two names one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prep {
    /// UsernameCaseMapped (RFC 8265 §3.3): case and width do not matter; symbols and look-alikes are nobody's name.
    #[default]
    CaseMapped,
    /// UsernameCasePreserved (RFC 8265 §3.4): the same, but `Alice@` and `alice@` are two users. Domains never are.
    CasePreserved,
    /// RFC 4013: what looks the same in print is the same; case matters.
    Saslprep,
    /// To the octet.
    None,
}

/// How names are compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRules {
    /// Added to a name that has no domain.
    pub default_domain: Option<String>,
    /// What makes two of them one.
    pub prep: Prep,
}

impl NameRules {
    /// The one form of a user's name; `None` when it can be nobody's.
    pub fn name(&self, raw: &[u8]) -> Option<String> {
        let name = self.fold(raw)?;
        let name = match (&self.default_domain, name.contains('@')) {
            (Some(domain), false) => format!("{name}@{}", domain.to_ascii_lowercase()),
            _ => name,
        };
        let (local, domain) = name.rsplit_once('@').unwrap_or((&name, "-"));
        (!local.is_empty() && !domain.is_empty() && name.len() <= NAME_OCTETS_MAX).then_some(name)
    }

    /// The one form of an address, `local@domain`; quotes that change nothing are gone (RFC 5321 §4.1.2).
    pub fn address(&self, raw: &str) -> Option<String> {
        let raw = match raw.strip_prefix('"').and_then(|rest| rest.rsplit_once("\"@")) {
            Some((quoted, domain)) => Cow::Owned(format!("{}@{domain}", unquote(quoted))),
            None => Cow::Borrowed(raw),
        };
        self.name(raw.as_bytes())
    }

    /// The one form of a domain.
    pub fn domain(&self, raw: &str) -> Option<String> {
        let domain = NameRules::default().fold(raw.as_bytes())?;
        (!domain.contains(['@', ' ']) && domain.len() <= 255).then_some(domain)
    }

    fn fold(&self, raw: &[u8]) -> Option<String> {
        if raw.len() > 4 * NAME_OCTETS_MAX {
            return None;
        }
        let raw = std::str::from_utf8(raw).ok()?;
        // In every profile: what a control character would do is for a terminal to find out.
        if raw.is_empty() || raw.chars().any(char::is_control) {
            return None;
        }
        if raw.is_ascii() {
            return Some(match self.prep {
                Prep::CaseMapped => raw.to_ascii_lowercase(),
                Prep::CasePreserved | Prep::Saslprep => with_lower_domain(raw),
                Prep::None => raw.to_owned(),
            });
        }
        match self.prep {
            Prep::CaseMapped => {
                stable(raw, |text| UsernameCaseMapped::enforce(text.to_owned()).ok().map(Cow::into_owned))
            }
            Prep::CasePreserved => stable(raw, |text| {
                let kept = UsernameCasePreserved::enforce(text.to_owned()).ok()?;
                Some(with_lower_domain(&kept))
            }),
            Prep::Saslprep => stable(raw, |text| query(text).map(|text| with_lower_domain(&text))),
            Prep::None => Some(raw.to_owned()),
        }
    }
}

/// Applied until nothing changes any more, as RFC 8264 §7 asks for; a name that never settles is nobody's.
fn stable(raw: &str, rule: impl Fn(&str) -> Option<String>) -> Option<String> {
    const ROUNDS_MAX: usize = 4;
    let mut name = rule(raw)?;
    for _ in 0..ROUNDS_MAX {
        let next = rule(&name)?;
        if next == name {
            return Some(name).filter(|name| !name.is_empty());
        }
        name = next;
    }
    None
}

fn with_lower_domain(name: &str) -> String {
    match name.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_lowercase()),
        None => name.to_owned(),
    }
}

/// What a password that a client sent may have been hashed as, most likely first: prepared, and as it
/// came, since Dovecot hashes raw octets. One candidate for ASCII; empty when it can be nobody's password.
pub fn candidates(password: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    if password.is_empty() || password.len() > crate::scheme::PASSWORD_OCTETS_MAX || password.contains(&0) {
        return Vec::new();
    }
    let raw = Zeroizing::new(password.to_vec());
    if password.is_ascii() {
        return vec![raw];
    }
    let prepared = std::str::from_utf8(password).ok().and_then(query);
    match prepared.map(|prepared| Zeroizing::new(prepared.into_owned().into_bytes())) {
        Some(prepared) if *prepared != *raw && !prepared.is_empty() => vec![prepared, raw],
        _ => vec![raw],
    }
}

/// What to hash when a password is set: prepared if that is possible, else as it came.
pub fn enrolled(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    Zeroizing::new(match prepared {
        Some(prepared) if !prepared.is_empty() => prepared.into_owned().into_bytes(),
        _ => password.to_vec(),
    })
}

/// SASLprep for queries: RFC 4013, except that unassigned code points pass.
fn query(text: &str) -> Option<Cow<'_, str>> {
    if text.is_ascii() {
        return (!text.bytes().any(|b| b.is_ascii_control())).then_some(Cow::Borrowed(text));
    }
    // RFC 4013 §2.1, then §2.2.
    let mapped = text.chars().filter(|&c| !tables::commonly_mapped_to_nothing(c));
    let mapped = mapped.map(|c| if tables::non_ascii_space_character(c) { ' ' } else { c });
    let normal: String = mapped.nfkc().collect();
    // RFC 4013 §2.3.
    let prohibited = |c| {
        tables::non_ascii_space_character(c)
            || tables::ascii_control_character(c)
            || tables::non_ascii_control_character(c)
            || tables::private_use(c)
            || tables::non_character_code_point(c)
            || tables::surrogate_code(c)
            || tables::inappropriate_for_plain_text(c)
            || tables::inappropriate_for_canonical_representation(c)
            || tables::change_display_properties_or_deprecated(c)
            || tables::tagging_character(c)
    };
    // RFC 3454 §6: text that runs from right to left begins and ends so, and has no letter of the other kind.
    let mixed = normal.contains(tables::bidi_r_or_al)
        && (normal.contains(tables::bidi_l)
            || !normal.starts_with(tables::bidi_r_or_al)
            || !normal.ends_with(tables::bidi_r_or_al));
    (!normal.contains(prohibited) && !mixed).then_some(Cow::Owned(normal))
}

fn unquote(quoted: &str) -> String {
    let mut out = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(c) = characters.next() {
        out.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saslprep_examples_and_unassigned() {
        // RFC 4013 §3.
        for (from, to) in [
            ("I\u{ad}X", Some("IX")),
            ("user", Some("user")),
            ("USER", Some("USER")),
            ("ª", Some("a")),
            ("Ⅸ", Some("IX")),
            ("\u{7}", None),
            ("\u{627}1", None),
            ("é\u{7}", None),
            ("a\u{2028}b", None),
            // Unknown to Unicode 3.2.
            ("🔑", Some("🔑")),
        ] {
            assert_eq!(query(from).as_deref(), to, "{from:?}");
        }
    }

    #[test]
    fn names_have_one_form() {
        let rules = NameRules { default_domain: Some("Demo.test".into()), prep: Prep::CaseMapped };
        for (from, to) in [
            ("Alice@DEMO.test", Some("alice@demo.test")),
            ("alice", Some("alice@demo.test")),
            ("JOSÉ@x.test", Some("josé@x.test")),
            ("Σ@x.test", Some("σ@x.test")),
            ("", None),
            ("@x.test", None),
            ("a@", None),
            ("a\0b", None),
            ("a\nb", None),
            ("é\u{2028}b", None),
        ] {
            assert_eq!(rules.name(from.as_bytes()).as_deref(), to, "{from:?}");
        }
        assert_eq!(rules.name(b"\xff"), None);
        assert_eq!(rules.name(&[b'a'; 65536]), None);
        assert_eq!(rules.name(&[b'a'; 321]), None);
        assert_eq!(rules.address("\"a b\\\"c\"@X.test").as_deref(), Some("a b\"c@x.test"));
        // RFC 8265 §3.3, §3.4, RFC 4013 §3; whom each of them takes for one, and whom for nobody.
        let by = |prep| NameRules { default_domain: None, prep };
        for (from, mapped, preserved, saslprep, none) in [
            ("Bob@X.TEST", Some("bob@x.test"), Some("Bob@x.test"), Some("Bob@x.test"), Some("Bob@X.TEST")),
            ("JOSÉ@x.test", Some("josé@x.test"), Some("JOSÉ@x.test"), Some("JOSÉ@x.test"), Some("JOSÉ@x.test")),
            (
                "jose\u{301}@X.test",
                Some("josé@x.test"),
                Some("josé@x.test"),
                Some("josé@x.test"),
                Some("jose\u{301}@X.test"),
            ),
            ("ｂｏｂ@x.test", Some("bob@x.test"), Some("bob@x.test"), Some("bob@x.test"), Some("ｂｏｂ@x.test")),
            ("henryⅣ", None, None, Some("henryIV"), Some("henryⅣ")),
            ("♚", None, None, Some("♚"), Some("♚")),
            ("ª", None, None, Some("a"), Some("ª")),
            ("so\u{ad}ft", None, None, Some("soft"), Some("so\u{ad}ft")),
            ("\u{627}1", Some("\u{627}1"), Some("\u{627}1"), None, Some("\u{627}1")),
            ("é\n", None, None, None, None),
        ] {
            let found = [Prep::CaseMapped, Prep::CasePreserved, Prep::Saslprep, Prep::None]
                .map(|prep| by(prep).name(from.as_bytes()));
            let wanted = [mapped, preserved, saslprep, none].map(|name| name.map(str::to_owned));
            assert_eq!(found, wanted, "{from:?}");
        }
    }

    #[test]
    fn only_foreign_letters_cost_two_checks() {
        let texts = |password: &str| -> Vec<String> {
            candidates(password.as_bytes()).iter().map(|c| String::from_utf8(c.to_vec()).unwrap()).collect()
        };
        assert_eq!(texts("pencil"), ["pencil"]);
        assert_eq!(texts("p\u{61}\u{308}ss"), ["päss", "pa\u{308}ss"]);
        assert_eq!(texts("päss"), ["päss"]);
        assert!(texts("").is_empty() && texts("a\0").is_empty() && texts(&"x".repeat(1025)).is_empty());
        assert_eq!(candidates(b"\xff").len(), 1);
        assert_eq!(*enrolled("Ⅸ".as_bytes()), b"IX".to_vec());
        assert_eq!(*enrolled("🔑".as_bytes()), "🔑".as_bytes().to_vec());
    }

    /// What is in the file was prepared once and is prepared again when it is read.
    #[test]
    fn preparation_is_idempotent() {
        for prep in [Prep::CaseMapped, Prep::CasePreserved, Prep::Saslprep, Prep::None] {
            let rules = NameRules { default_domain: None, prep };
            for c in (0x80..=0x10_ffff).filter_map(char::from_u32) {
                let Some(once) = rules.name(format!("x{c}Y@z").as_bytes()) else { continue };
                assert_eq!(rules.name(once.as_bytes()).as_ref(), Some(&once), "{prep:?} {:04x}", c as u32);
            }
        }
    }
}
